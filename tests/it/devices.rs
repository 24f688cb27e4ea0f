//! What the API tells about devices, and what it lets whom do with them.

use std::collections::HashSet;

use http::Method;
use serde_json::{Value, json};

use crate::support::{
    Browser, Device, Manner, Origin, RawDevice, TestCloud, eventually, on_both_topologies, text,
};

on_both_topologies![
    a_device_tells_whether_it_is_online_and_why_not,
    a_device_that_never_connected_says_so,
    a_list_is_filtered,
    a_list_comes_in_pages,
    a_device_is_renamed,
    a_bad_change_is_refused_and_changes_nothing,
    a_session_can_be_looked_at_and_ended_and_the_agent_comes_back,
    pa_11_a_deleted_device_is_cut_off_and_stays_out,
    tu_20_what_is_open_to_a_device_ends_when_it_is_deleted,
    what_waits_for_a_device_fails_when_its_session_is_ended,
    tn_02_a_foreign_device_looks_like_one_that_does_not_exist,
    tn_03_the_tenant_comes_from_the_login_and_nowhere_else,
];

async fn a_device_tells_whether_it_is_online_and_why_not(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    let online = alice.device(&device.id).await;
    assert_eq!(online["status"], "online");
    let session = &online["session"];
    assert!(text(&session["node_id"]).starts_with("node_"), "{online}");
    assert!(session["connected_at"].is_string(), "{online}");
    assert!(
        text(&session["remote_addr"]).starts_with("127.0.0.1"),
        "{online}"
    );
    let version = text(&session["agent_version"]);
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let measured = eventually("the round trip is measured", async || {
        let device = alice.device(&device.id).await;
        device["session"]["rtt_ms"].as_f64().map(|_| device)
    })
    .await;
    assert!(measured["session"]["last_heartbeat"].is_string());

    device.process().crash().await;
    let offline = alice.wait_for_status(&device.id, "offline").await;
    assert_eq!(offline["reason"], "disconnected", "{offline}");
    assert!(offline["session"].is_null(), "{offline}");
    assert!(offline["last_seen"].is_string(), "{offline}");
}

async fn a_device_that_never_connected_says_so(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let shown = alice.device(&device.id).await;
    assert_eq!(shown["status"], "offline");
    assert_eq!(shown["reason"], "never_connected");
    assert!(shown["last_seen"].is_null(), "{shown}");
    let path = format!("/api/devices/{}/session", device.id);
    alice.get(&path).send().await.expect(404);
}

async fn named(cloud: &TestCloud, owner: &Browser, name: &str) -> RawDevice {
    let device = RawDevice::pair(cloud, owner).await;
    let path = format!("/api/devices/{}", device.id);
    let change = owner.patch(&path).json(&json!({"name": name}));
    change.send().await.expect(200);
    device
}

async fn a_list_is_filtered(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let near = named(&cloud, &alice, "near").await;
    let far = named(&cloud, &alice, "far").await;
    let _served = near.serve(Manner::Says("hello")).await;
    alice.wait_for_status(&near.id, "online").await;
    for (query, expected) in [
        ("status=online", &near),
        ("status=offline", &far),
        ("name=near", &near),
        ("name=far", &far),
    ] {
        let listed = alice.get(&format!("/api/devices?{query}")).send().await;
        let items = listed.expect(200).items();
        assert_eq!(ids(&items), HashSet::from([expected.id.clone()]), "{query}");
    }
    let bad = alice.get("/api/devices?status=sleepy").send().await;
    bad.expect_refusal();
}

fn ids(items: &[Value]) -> HashSet<String> {
    items.iter().map(|item| text(&item["id"])).collect()
}

async fn a_list_comes_in_pages(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let mut paired = HashSet::new();
    for _ in 0..5 {
        paired.insert(RawDevice::pair(&cloud, &alice).await.id);
    }
    let whole = alice.get("/api/devices").send().await.expect(200).json();
    assert_eq!(whole["next_cursor"], Value::Null, "{whole}");

    let (mut seen, mut pages, mut query) = (HashSet::new(), 0, "limit=2".to_owned());
    loop {
        let page = alice.get(&format!("/api/devices?{query}")).send().await;
        let page = page.expect(200);
        let items = page.items();
        assert!(items.len() <= 2, "{}", page.text());
        for id in ids(&items) {
            assert!(seen.insert(id), "a device is on one page only");
        }
        pages += 1;
        let Some(cursor) = page.json()["next_cursor"].as_str().map(str::to_owned) else {
            break;
        };
        let foreign = bob.get(&format!("/api/devices?limit=2&cursor={cursor}"));
        let foreign = foreign.send().await;
        assert!(
            foreign.status.is_client_error() || foreign.items().is_empty(),
            "another tenant's cursor shows nothing (TN-04)"
        );
        query = format!("limit=2&cursor={cursor}");
    }
    assert_eq!((seen, pages), (paired, 3));
    let bad = alice.get("/api/devices?cursor=nonsense").send().await;
    bad.expect_refusal();
}

async fn a_device_is_renamed(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let path = format!("/api/devices/{}", device.id);
    let before = alice.device(&device.id).await;
    let answer = alice
        .patch(&path)
        .json(&json!({"name": "Kasse 3 ☕"}))
        .send()
        .await
        .expect(200)
        .json();
    assert_eq!(answer["name"], "Kasse 3 ☕");
    let after = alice.device(&device.id).await;
    assert_eq!(after["name"], "Kasse 3 ☕");
    assert_eq!(after["created_at"], before["created_at"]);
    let nothing = alice.patch(&path).json(&json!({})).send().await.expect(200);
    assert_eq!(nothing.json()["name"], "Kasse 3 ☕");
}

async fn a_bad_change_is_refused_and_changes_nothing(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = named(&cloud, &alice, "before").await;
    let path = format!("/api/devices/{}", device.id);
    for (body, status) in [
        (json!({"name": 7}), 400),
        (json!({"colour": "red"}), 400),
        (json!({"status": "online"}), 400),
        (json!({"name": "after", "tenant_id": "ten_x"}), 400),
        (json!({"name": "x".repeat(10_000)}), 422),
        (json!({"name": ""}), 422),
        (json!([]), 400),
    ] {
        let answer = alice.patch(&path).json(&body).send().await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
    }
    assert_eq!(alice.device(&device.id).await["name"], "before");
}

async fn a_session_can_be_looked_at_and_ended_and_the_agent_comes_back(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let path = format!("/api/devices/{}/session", device.id);
    let session = alice.get(&path).send().await.expect(200).json();
    let shown = alice.device(&device.id).await;
    assert_eq!(session["node_id"], shown["session"]["node_id"]);
    assert_eq!(session["connected_at"], shown["session"]["connected_at"]);

    alice.delete(&path).send().await.expect_success();
    eventually("the agent has a new session", async || {
        let now = alice.device(&device.id).await;
        let connected = now["session"]["connected_at"].as_str()?;
        (shown["session"]["connected_at"] != connected).then_some(())
    })
    .await;
    let answer = alice.forward(&device.id, Method::GET, "/").send().await;
    answer.expect(200);
}

async fn pa_11_a_deleted_device_is_cut_off_and_stays_out(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let served = device.serve(Manner::Says("hello")).await;
    alice.wait_for_status(&device.id, "online").await;

    let path = format!("/api/devices/{}", device.id);
    alice.delete(&path).send().await.expect_success();
    served.ended().await;
    let refused = device.handshake().websocket().await.err();
    assert_eq!(refused.expect("no tunnel any more").status, 401);
    alice.get(&path).send().await.expect(404);
    alice
        .forward(&device.id, Method::GET, "/")
        .send()
        .await
        .expect(404);
    assert_eq!(alice.devices().await.len(), 0);
}

/// A request that the origin has and does not answer.
async fn wait_at(
    owner: &Browser,
    device: &Device,
    origin: &Origin,
) -> tokio::task::JoinHandle<crate::support::Answer> {
    let request = owner.forward(&device.id, Method::POST, "/do/hang");
    let waiting = tokio::spawn(request.send());
    eventually("the request waits", async || {
        (origin.count("/do/hang") == 1).then_some(())
    })
    .await;
    waiting
}

async fn tu_20_what_is_open_to_a_device_ends_when_it_is_deleted(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let events = origin.drive("events");
    events.send("data: 1\n\n".into()).await.expect("taken");
    let target = "/do/driven?name=events&type=text/event-stream";
    let request = alice.forward(&device.id, Method::GET, target);
    let mut open = request.open().await.expect(200);
    open.read_until("data: 1").await;
    let waiting = wait_at(&alice, &device, &origin).await;

    let path = format!("/api/devices/{}", device.id);
    alice.delete(&path).send().await.expect_success();
    let answer = waiting.await.expect("no panic");
    assert!(!answer.status.is_success(), "{answer:?}");
    // A last word may come, but then the stream ends.
    while let Some(Ok(_)) = open.next().await {}
}

async fn what_waits_for_a_device_fails_when_its_session_is_ended(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let waiting = wait_at(&alice, &device, &origin).await;
    let path = format!("/api/devices/{}/session", device.id);
    alice.delete(&path).send().await.expect_success();
    let answer = waiting.await.expect("no panic");
    answer.expect_problem(502, "tunnel_lost");
}

async fn tn_02_a_foreign_device_looks_like_one_that_does_not_exist(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let missing = "dev_aaaaaaaaaaaaaaaaaaaaaaaaaa";
    let before = alice.device(&device.id).await;
    for (method, rest) in [
        (Method::GET, ""),
        (Method::PATCH, ""),
        (Method::DELETE, ""),
        (Method::GET, "/session"),
        (Method::DELETE, "/session"),
        (Method::POST, "/open"),
        (Method::GET, "/http/"),
        (Method::POST, "/http/do/upload"),
        (Method::OPTIONS, "/http/"),
    ] {
        let ask = |id: &str| {
            let request = bob.request(method.clone(), &format!("/api/devices/{id}{rest}"));
            request.json(&json!({})).send()
        };
        let foreign = ask(&device.id).await.expect(404);
        let unknown = ask(missing).await.expect(404);
        assert_eq!(
            foreign
                .without_request_id()
                .to_string()
                .replace(&device.id, "ID"),
            unknown
                .without_request_id()
                .to_string()
                .replace(missing, "ID"),
            "{method} {rest}"
        );
        let names = |headers: &http::HeaderMap| -> HashSet<String> {
            headers.keys().map(ToString::to_string).collect()
        };
        assert_eq!(names(&foreign.headers), names(&unknown.headers));
    }
    let socket = bob.forward_websocket(&device.id, "/do/websocket");
    assert_eq!(socket.websocket().await.err().expect("refused").status, 404);

    assert_eq!(bob.devices().await.len(), 0);
    assert_eq!(origin.seen().len(), 0, "no byte reached alice's device");
    let after = alice.device(&device.id).await;
    assert_eq!(
        after["session"]["connected_at"],
        before["session"]["connected_at"]
    );
    assert_eq!(after["name"], before["name"]);
}

async fn tn_03_the_tenant_comes_from_the_login_and_nowhere_else(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let alices = text(&alice.me().await["tenant"]["id"]);
    let bobs = text(&bob.me().await["tenant"]["id"]);
    for tenant in [&alices, "ten_aaaaaaaaaaaaaaaaaaaaaaaaaa", "nonsense"] {
        let request = bob.get("/api/devices").header("edgecloud-tenant", tenant);
        request.send().await.expect_problem(403, "tenant_forbidden");
    }
    let own = bob.get("/api/devices").header("edgecloud-tenant", &bobs);
    assert_eq!(own.send().await.expect(200).items().len(), 0);
    let query = bob
        .get(&format!("/api/devices?tenant={alices}"))
        .send()
        .await;
    assert!(!query.text().contains(&device.id), "{}", query.text());
}
