//! What is measured: traffic by tenant, device and hour, and where the way to a device ends.

use http::Method;
use serde_json::{Value, json};

use crate::support::{
    Browser, Device, Origin, Part, RawDevice, RawOrigin, TestCloud, eventually, free_addr,
    on_both_topologies,
};

on_both_topologies![
    forwarded_traffic_is_counted_by_tenant_device_and_hour,
    what_was_counted_survives_the_end_of_the_process,
    a_report_is_about_the_time_that_it_is_asked_for,
    a_device_that_answers_is_reachable_in_every_step,
    a_device_that_never_connected_or_has_gone_is_said_to_be,
    an_origin_that_refuses_or_talks_nonsense_is_told_from_one_that_is_away,
];

/// Sends a kilobyte there and back, and asks for something small.
async fn make_traffic(person: &Browser, device: &str) {
    let there = person.forward(device, Method::POST, "/do/reflect");
    let back = there.bytes(vec![7; 1024]).send().await.expect(200);
    assert_eq!(back.body.len(), 1024);
    let get = person.forward(device, Method::GET, "/do/answer?body=small");
    get.send().await.expect(200);
}

async fn usage(person: &Browser, query: &str) -> Value {
    let answer = person.get(&format!("/api/usage{query}")).send().await;
    answer.expect(200).json()
}

async fn forwarded_traffic_is_counted_by_tenant_device_and_hour(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let idle = RawDevice::pair(&cloud, &alice).await.id;
    make_traffic(&alice, &device.id).await;
    let report = eventually("the traffic is counted", async || {
        let report = usage(&alice, "").await;
        (report["total"]["requests"] == 2).then_some(report)
    })
    .await;
    let expected = json!({"requests": 2, "bytes_to_device": 1024, "bytes_from_device": 1029});
    assert_eq!(report["total"], expected);
    let items = report["items"].as_array().expect("a list");
    assert_eq!(items.len(), 1, "{report}");
    assert_eq!(items[0]["device_id"], *device.id);
    assert_eq!(items[0]["bytes_from_device"], 1029);

    let metrics = async |id: &str| {
        let answer = alice
            .get(&format!("/api/devices/{id}/metrics"))
            .send()
            .await;
        answer.expect(200).json()
    };
    let measured = metrics(&device.id).await;
    let hours = measured["hours"].as_array().expect("a list");
    let requests = hours
        .iter()
        .map(|hour| hour["requests"].as_u64().expect("a number"));
    assert_eq!(requests.sum::<u64>(), 2, "{measured}");
    assert!(
        measured["session"]["bytes_in"].as_u64() >= Some(1024),
        "{measured}"
    );
    let unused = metrics(&idle).await;
    assert_eq!(
        (&unused["session"], &unused["hours"]),
        (&Value::Null, &json!([]))
    );
    let his = usage(&bob, "").await;
    assert_eq!(
        (&his["total"]["requests"], &his["items"]),
        (&json!(0), &json!([]))
    );
}

async fn what_was_counted_survives_the_end_of_the_process(mut cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    make_traffic(&alice, &device.id).await;
    cloud.restart(Part::Api).await;
    assert_eq!(usage(&alice, "").await["total"]["requests"], 2);
}

async fn a_report_is_about_the_time_that_it_is_asked_for(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await.id;
    let tenant = alice.tenant_id().await;
    let database = cloud.database();
    for (hour, requests) in [
        ("2026-01-31T12:00:00.000Z", 1),
        ("2026-01-31T13:00:00.000Z", 20),
    ] {
        let hour: jiff::Timestamp = hour.parse().expect("a time");
        let sql = "INSERT INTO usage_hours VALUES (?1, ?2, ?3, ?4, 0, 0)";
        let row = (&tenant, &device, hour.as_millisecond(), requests);
        database.execute(sql, row).expect("count something");
    }
    for (from, to, requests) in [
        ("2026-01-31T12:00:00.000Z", "2026-01-31T14:00:00.000Z", 21),
        ("2026-01-31T12:00:00.000Z", "2026-01-31T13:00:00.000Z", 1),
        ("2026-01-31T13:00:00.000Z", "2026-02-01T00:00:00.000Z", 20),
        ("2026-02-01T00:00:00.000Z", "2026-02-02T00:00:00.000Z", 0),
    ] {
        let report = usage(&alice, &format!("?from={from}&to={to}")).await;
        assert_eq!(report["total"]["requests"], requests, "{from} to {to}");
        assert_eq!((&report["from"], &report["to"]), (&json!(from), &json!(to)));
    }
    for bad in [
        "from=yesterday",
        "to=1",
        "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00.000Z",
    ] {
        let answer = alice.get(&format!("/api/usage?{bad}")).send().await;
        answer.expect_problem(422, "invalid_field");
    }
}

async fn diagnose(person: &Browser, device: &str) -> Value {
    let path = format!("/api/devices/{device}/diagnose");
    person.post(&path).send().await.expect(200).json()
}

/// The steps that were gone, and whether the last one succeeded.
fn way(diagnosis: &Value) -> (Vec<&str>, bool) {
    let steps = diagnosis["steps"].as_array().expect("steps");
    let names = steps
        .iter()
        .map(|step| step["name"].as_str().expect("a name"));
    for step in steps {
        assert!(step["ms"].as_f64() >= Some(0.0), "{diagnosis}");
    }
    let (last, before) = steps.split_last().expect("a step");
    assert!(before.iter().all(|step| step["ok"] == true), "{diagnosis}");
    (names.collect(), last["ok"] == true)
}

const WHOLE_WAY: [&str; 4] = ["session", "node", "stream", "origin"];

async fn a_device_that_answers_is_reachable_in_every_step(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let found = diagnose(&alice, &device.id).await;
    assert_eq!(found["reachable"], true, "{found}");
    assert_eq!(way(&found), (WHOLE_WAY.to_vec(), true));
    assert_eq!(origin.last().method, Method::HEAD);
}

async fn a_device_that_never_connected_or_has_gone_is_said_to_be(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let never = RawDevice::pair(&cloud, &alice).await.id;
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    device.process().crash().await;
    alice.wait_for_status(&device.id, "offline").await;
    for (id, reason) in [(&never, "never_connected"), (&device.id, "disconnected")] {
        let found = diagnose(&alice, id).await;
        assert_eq!(
            (&found["reachable"], &found["reason"]),
            (&json!(false), &json!(reason))
        );
        assert_eq!(way(&found), (vec!["session"], false));
    }
}

async fn an_origin_that_refuses_or_talks_nonsense_is_told_from_one_that_is_away(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let nonsense = RawOrigin::spawn(|mut stream, _| async move {
        use tokio::io::AsyncWriteExt;
        let _ = stream.write_all(b"what?\r\n\r\n").await;
    })
    .await;
    for (origin, reason) in [
        (free_addr(), "origin_refused"),
        (nonsense.addr(), "origin_invalid"),
    ] {
        let device = Device::pair(&cloud, &alice, origin).await;
        let found = diagnose(&alice, &device.id).await;
        assert_eq!(
            (&found["reachable"], &found["reason"]),
            (&json!(false), &json!(reason))
        );
        assert_eq!(way(&found), (WHOLE_WAY.to_vec(), false));
    }
}
