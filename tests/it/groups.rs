//! Groups of devices, their tags, and new tokens for them.

use http::Method;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Answer, Browser, Device, Manner, Origin, RawDevice, TestCloud, eventually, on_both_topologies,
    text,
};

on_both_topologies![
    a_group_is_made_renamed_and_removed_without_its_devices,
    a_groups_name_is_its_own_within_the_tenant,
    devices_come_into_groups_and_leave_them,
    only_devices_of_the_tenant_come_into_its_groups,
    tags_are_set_changed_and_removed,
    a_tag_has_bounds,
    the_list_of_devices_is_filtered_by_tag_name_and_status,
    pa_11_the_token_before_is_good_until_the_new_one_is_used,
    pa_11_the_token_before_is_good_for_ten_minutes_at_most,
    pa_11_a_new_token_that_nobody_used_is_void_when_there_is_a_newer_one,
    pa_11_a_removed_device_has_no_good_token,
    an_agent_takes_its_new_token_and_loses_no_request,
];

async fn new_group(person: &Browser, name: &str) -> Answer {
    let request = person.post("/api/groups").json(&json!({"name": name}));
    request.send().await
}

async fn group_path(person: &Browser, name: &str) -> String {
    let made = new_group(person, name).await.expect(201).json();
    format!("/api/groups/{}", text(&made["id"]))
}

async fn show(person: &Browser, path: &str) -> Value {
    person.get(path).send().await.expect(200).json()
}

async fn a_group_is_made_renamed_and_removed_without_its_devices(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let made = new_group(&alice, " line 1 ").await.expect(201).json();
    assert_eq!(
        (&made["name"], &made["devices"]),
        (&json!("line 1"), &json!([]))
    );
    let path = format!("/api/groups/{}", text(&made["id"]));
    assert!(path.starts_with("/api/groups/grp_"), "{path}");
    assert_eq!(show(&alice, &path).await, made);
    let renamed = alice.patch(&path).json(&json!({"name": "line 2"}));
    let renamed = renamed.send().await.expect(200).json();
    assert_eq!(renamed["name"], "line 2");
    assert_eq!(renamed["created_at"], made["created_at"]);
    alice
        .patch(&path)
        .json(&json!({"name": null}))
        .send()
        .await
        .expect(422);
    let device = RawDevice::pair(&cloud, &alice).await.id;
    alice
        .put(&format!("{path}/devices/{device}"))
        .send()
        .await
        .expect(204);
    alice.delete(&path).send().await.expect(204);
    alice
        .get(&path)
        .send()
        .await
        .expect_problem(404, "not_found");
    assert_eq!(alice.device(&device).await["id"], *device);
}

async fn a_groups_name_is_its_own_within_the_tenant(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    group_path(&alice, "line 1").await;
    let second = group_path(&alice, "line 2").await;
    new_group(&alice, "line 1")
        .await
        .expect_problem(409, "name_taken");
    let renamed = alice.patch(&second).json(&json!({"name": "line 1"}));
    renamed.send().await.expect_problem(409, "name_taken");
    assert_eq!(show(&alice, &second).await["name"], "line 2");
    new_group(&bob, "line 1").await.expect(201);
}

async fn devices_come_into_groups_and_leave_them(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (one, two) = (
        group_path(&alice, "one").await,
        group_path(&alice, "two").await,
    );
    let device = RawDevice::pair(&cloud, &alice).await.id;
    let other = RawDevice::pair(&cloud, &alice).await.id;
    for path in [&one, &two] {
        for _ in 0..2 {
            let place = format!("{path}/devices/{device}");
            alice.put(&place).send().await.expect(204);
        }
    }
    alice
        .put(&format!("{one}/devices/{other}"))
        .send()
        .await
        .expect(204);
    let mut inside = [device.clone(), other.clone()];
    inside.sort();
    assert_eq!(show(&alice, &one).await["devices"], json!(inside));
    let listed = alice.get("/api/groups").send().await.expect(200).items();
    assert_eq!(listed, [show(&alice, &one).await, show(&alice, &two).await]);

    let place = format!("{one}/devices/{other}");
    alice.delete(&place).send().await.expect(204);
    alice
        .delete(&place)
        .send()
        .await
        .expect_problem(404, "not_found");
    alice
        .delete(&format!("/api/devices/{device}"))
        .send()
        .await
        .expect(204);
    for path in [&one, &two] {
        assert_eq!(
            show(&alice, path).await["devices"],
            json!([]),
            "removed devices leave"
        );
    }
}

async fn only_devices_of_the_tenant_come_into_its_groups(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let (hers, his) = (group_path(&alice, "g").await, group_path(&bob, "g").await);
    let his_device = RawDevice::pair(&cloud, &bob).await.id;
    let missing = format!("dev_{}", "a".repeat(26));
    for device in [&his_device, &missing, &"nonsense".to_owned()] {
        let place = format!("{hers}/devices/{device}");
        for method in [Method::PUT, Method::DELETE] {
            let answer = alice.request(method, &place).send().await;
            answer.expect_problem(404, "not_found");
        }
    }
    let foreign = format!("{his}/devices/{his_device}");
    alice
        .put(&foreign)
        .send()
        .await
        .expect_problem(404, "not_found");
    assert_eq!(show(&bob, &his).await["devices"], json!([]));
    assert_eq!(show(&alice, &hers).await["devices"], json!([]));
}

async fn set_tag(person: &Browser, device: &str, key: &str, value: &str) -> Answer {
    let path = format!("/api/devices/{device}/tags/{key}");
    person
        .put(&path)
        .json(&json!({"value": value}))
        .send()
        .await
}

async fn tags_are_set_changed_and_removed(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await.id;
    let set = set_tag(&alice, &device, "room", "7")
        .await
        .expect(200)
        .json();
    assert_eq!(set["tags"], json!({"room": "7"}));
    set_tag(&alice, &device, "room", "8").await.expect(200);
    let bare = alice.put(&format!("/api/devices/{device}/tags/edge.ai_1-x"));
    bare.send().await.expect(200);
    let tags = json!({"room": "8", "edge.ai_1-x": ""});
    assert_eq!(alice.device(&device).await["tags"], tags);
    let path = format!("/api/devices/{device}/tags/room");
    alice.delete(&path).send().await.expect(204);
    alice
        .delete(&path)
        .send()
        .await
        .expect_problem(404, "not_found");
    assert_eq!(
        alice.device(&device).await["tags"],
        json!({"edge.ai_1-x": ""})
    );
}

async fn a_tag_has_bounds(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await.id;
    for key in ["a%20b", "%c3%bc", "a=b", &"k".repeat(64)] {
        set_tag(&alice, &device, key, "x")
            .await
            .expect_problem(422, "invalid_field");
    }
    for value in ["a\nb", &"v".repeat(256)] {
        set_tag(&alice, &device, "k", value)
            .await
            .expect_problem(422, "invalid_field");
    }
    for number in 0..50 {
        set_tag(&alice, &device, &format!("k{number}"), &"ü".repeat(255))
            .await
            .expect(200);
    }
    set_tag(&alice, &device, "more", "x")
        .await
        .expect_problem(409, "too_many_tags");
    set_tag(&alice, &device, "k7", "changed").await.expect(200);
}

async fn the_list_of_devices_is_filtered_by_tag_name_and_status(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let (one, two) = (device.id.clone(), RawDevice::pair(&cloud, &alice).await.id);
    let _served = device.serve(Manner::Says("hello")).await;
    alice.wait_for_status(&one, "online").await;
    for (id, name, room) in [(&one, "Till 1", "7"), (&two, "Camera 2", "8=x")] {
        let path = format!("/api/devices/{id}");
        alice
            .patch(&path)
            .json(&json!({"name": name}))
            .send()
            .await
            .expect(200);
        set_tag(&alice, id, "room", room).await.expect(200);
    }
    set_tag(&alice, &two, "outdoors", "").await.expect(200);
    let all = [one.as_str(), &two];
    for (query, expected) in [
        ("tag=room", &all[..]),
        ("tag=room=7", &all[..1]),
        ("tag=room%3D8%3Dx", &all[1..]),
        ("tag=outdoors", &all[1..]),
        ("tag=outdoors=", &all[1..]),
        ("tag=room=9", &[]),
        ("tag=Room", &[]),
        ("name=till", &all[..1]),
        ("name=%25", &[]),
        ("status=online", &all[..1]),
        ("status=offline", &all[1..]),
        ("status=offline&tag=room&name=camera", &all[1..]),
        ("status=online&tag=outdoors", &[]),
    ] {
        let found = alice.get(&format!("/api/devices?{query}")).send().await;
        let found = found.expect(200).items();
        let ids: Vec<_> = found.iter().map(|device| text(&device["id"])).collect();
        assert_eq!(ids, expected, "{query}");
    }
    let wrong = alice.get("/api/devices?status=asleep").send().await;
    wrong.expect_problem(422, "invalid_field");
}

/// Makes a new token for a device.
async fn rotate(person: &Browser, device: &RawDevice) -> RawDevice {
    let path = format!("/api/devices/{}/token", device.id);
    let made = person.post(&path).send().await.expect(200).json();
    assert_eq!(made["device_id"], *device.id);
    let until: Timestamp = text(&made["previous_valid_until"]).parse().expect("a time");
    let left = until.duration_since(Timestamp::now()).as_secs();
    assert!((540..=600).contains(&left), "{left} s");
    let mut new = device.clone();
    new.token = text(&made["token"]);
    new
}

async fn is_let_in(device: &RawDevice) -> bool {
    match device.handshake().websocket().await {
        Ok(_) => true,
        Err(answer) => {
            answer.expect(401);
            false
        }
    }
}

async fn pa_11_the_token_before_is_good_until_the_new_one_is_used(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let old = RawDevice::pair(&cloud, &alice).await;
    let served = old.serve(Manner::Says("old")).await;
    alice.wait_for_status(&old.id, "online").await;
    let new = rotate(&alice, &old).await;
    assert_ne!(new.token, old.token);
    let says = async |text: &str| {
        let answer = alice.forward(&old.id, Method::GET, "/").send().await;
        answer.status == 200 && answer.text() == text
    };
    assert!(says("old").await, "its session is not cut");
    drop(served);
    alice.wait_for_status(&old.id, "offline").await;
    let again = old.serve(Manner::Says("old again")).await;
    eventually("it is back", async || says("old again").await.then_some(())).await;

    let _taken = new.serve(Manner::Says("new")).await;
    eventually("it uses the new token", async || {
        says("new").await.then_some(())
    })
    .await;
    drop(again);
    assert!(!is_let_in(&old).await, "the new one was used");
    assert!(says("new").await);
    let device = alice.device(&old.id).await.to_string();
    assert!(!device.contains("edt_"), "a token is shown once");
}

async fn pa_11_the_token_before_is_good_for_ten_minutes_at_most(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let old = RawDevice::pair(&cloud, &alice).await;
    let new = rotate(&alice, &old).await;
    let sql = "UPDATE device_tokens SET expires_at = ?1 WHERE expires_at IS NOT NULL";
    let now = Timestamp::now().as_millisecond();
    let moved = cloud.database().execute(sql, [now]);
    assert_eq!(moved.expect("move its end"), 1);
    assert!(!is_let_in(&old).await);
    assert!(is_let_in(&new).await);
}

async fn pa_11_a_new_token_that_nobody_used_is_void_when_there_is_a_newer_one(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let old = RawDevice::pair(&cloud, &alice).await;
    let lost = rotate(&alice, &old).await;
    let new = rotate(&alice, &old).await;
    assert!(!is_let_in(&lost).await);
    assert!(is_let_in(&old).await, "what the device has is still good");
    let _connected = new.connect().await;
    eventually("the token before is void", async || {
        (!is_let_in(&old).await).then_some(())
    })
    .await;
}

async fn pa_11_a_removed_device_has_no_good_token(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let old = RawDevice::pair(&cloud, &alice).await;
    let new = rotate(&alice, &old).await;
    let served = old.serve(Manner::Says("hello")).await;
    let path = format!("/api/devices/{}", old.id);
    alice.delete(&path).send().await.expect(204);
    served.ended().await;
    assert!(!is_let_in(&old).await && !is_let_in(&new).await);
}

async fn an_agent_takes_its_new_token_and_loses_no_request(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    let before = alice.device(&device.id).await["session"]["connected_at"].clone();
    let path = format!("/api/devices/{}/token", device.id);
    let made = alice.post(&path).send().await.expect(200).json();
    let file = device.state_dir().join("agent.json");
    let state = std::fs::read_to_string(&file).expect("read the state");
    let mut state: Value = serde_json::from_str(&state).expect("JSON");
    let old = text(&state["token"]);
    state["token"] = made["token"].clone();
    std::fs::write(&file, state.to_string()).expect("write the state");
    device.process().signal(Signal::SIGHUP);
    eventually("it has connected anew", async || {
        let get = alice.forward(&device.id, Method::GET, "/do/answer?body=x");
        get.send().await.expect(200);
        let session = alice.device(&device.id).await["session"].clone();
        (session["connected_at"] != before && !session.is_null()).then_some(())
    })
    .await;
    let old = RawDevice::known(&cloud, &device.id, &old);
    assert!(!is_let_in(&old).await);
    device.process().check_running();
}
