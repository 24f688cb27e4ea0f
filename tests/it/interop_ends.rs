//! How tunnels of a device that is not ours live and end: see `interop`.

use http::Method;
use serde_json::{Value, json};

use crate::interop::Scene;
use crate::support::{
    Part, RawDevice, TestCloud, Topology, eventually, on_both_topologies, text, within,
};

on_both_topologies![
    keepalives_of_a_go_device_are_answered,
    a_go_device_that_was_started_again_is_reached,
    ug_01_a_go_device_comes_back_after_a_restart,
    a_go_device_comes_back_after_a_disconnect,
    tu_20_a_go_device_that_was_removed_is_told_so,
    a_go_device_takes_a_new_token,
    tu_11_streams_that_a_go_device_opens_are_reset_and_harm_nobody,
    tu_11_a_go_device_that_opens_streams_again_and_again_loses_its_tunnel,
    a_go_device_without_connect_takes_no_tcp,
];

/// Waits until the device has seen so many tunnels end; returns their close codes.
async fn close_codes(scene: &Scene, ends: usize) -> Value {
    let stats = eventually("the device sees the end", async || {
        let stats = scene.device.stats().await;
        let seen = stats["ends"].as_array().expect("a list").len();
        (seen >= ends).then_some(stats)
    });
    stats.await["close_codes"].take()
}

async fn keepalives_of_a_go_device_are_answered(cloud: TestCloud) {
    let scene = Scene::set_with(cloud, &["--keepalive", "1s"]).await;
    // A ping is sent only when the one before was answered.
    scene.device.wait_for_stat("pings", 5).await;
    // While the tunnel is busy, too.
    let pings = scene.get("/stats").await.json()["pings"].as_u64();
    let pings = pings.expect("a number");
    let events = scene.request(Method::GET, "/events").open().await;
    scene.device.wait_for_stat("pings", pings + 3).await;
    drop(events);
    scene.is_in_its_first_tunnel().await;
}

async fn a_go_device_that_was_started_again_is_reached(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    for _ in 0..2 {
        scene.get("/echo").await.expect(200);
        scene.device.process().crash().await;
        let id = scene.device.id.clone();
        scene.alice.wait_for_status(&id, "offline").await;
        scene
            .get("/echo")
            .await
            .expect_problem(503, "device_offline");
        scene.device.start_again().await;
        scene.alice.wait_for_status(&id, "online").await;
        let posted = scene.request(Method::POST, "/echo").bytes("again");
        assert_eq!(posted.send().await.expect(200).text(), "again");
    }
    // One process after the other, each with one tunnel.
    scene.is_in_its_first_tunnel().await;
}

async fn ug_01_a_go_device_comes_back_after_a_restart(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__SERVER__DRAIN_TIMEOUT", "5s")
        .spawn()
        .await;
    let mut scene = Scene::set(cloud).await;
    let open = async |scene: &Scene, key: &str| {
        let path = format!("/hold?begin=1&key={key}");
        let mut answer = scene.request(Method::GET, &path).open().await.expect(200);
        assert_eq!(answer.read_until("\n").await, "begin\n");
        answer
    };
    let ends_by_itself = open(&scene, "short").await;
    let endless = open(&scene, "endless").await;
    scene.cloud.terminate(Part::Proxy);
    let proxy = scene.cloud.process(Part::Proxy);
    proxy
        .prints("that it stops", |line| {
            line.contains("stopping").then_some(())
        })
        .await;
    scene.device.release("short").await;
    assert_eq!(ends_by_itself.finish().await.text(), "end\n");
    let status = scene.cloud.wait_exit(Part::Proxy).await;
    assert!(status.success(), "{status}");
    let cut = within("the end of a download", endless.try_finish()).await;
    assert!(cut.is_err(), "{cut:?}");
    assert_eq!(close_codes(&scene, 1).await, json!([1012]));
    scene.cloud.start_again(Part::Proxy).await;
    scene
        .alice
        .wait_for_status(&scene.device.id, "online")
        .await;
    let posted = scene.request(Method::POST, "/echo").bytes("again");
    assert_eq!(posted.send().await.expect(200).text(), "again");
    assert_eq!(scene.device.stat("tunnels").await, 2);
}

async fn tu_11_streams_that_a_go_device_opens_are_reset_and_harm_nobody(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let mut events = scene
        .request(Method::GET, "/events")
        .open()
        .await
        .expect(200);
    events.read_until("hello").await;
    let opened = scene.get("/open?streams=50").await.expect(200).json();
    assert_eq!(opened, json!({"0 bytes, connection reset": 50}));
    let next = scene.request(Method::POST, "/events/next").bytes("still");
    next.send().await.expect(200);
    events.read_until("still").await;
    scene.is_in_its_first_tunnel().await;
}

async fn tu_11_a_go_device_that_opens_streams_again_and_again_loses_its_tunnel(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    scene.get("/open?streams=1000").await.expect(200);
    assert_eq!(scene.device.stat("tunnels").await, 1);
    let asking = scene.request(Method::POST, "/open?streams=1").send();
    asking.await.expect_problem(502, "tunnel_lost");
    assert_eq!(close_codes(&scene, 1).await, json!([1008]));
    scene.device.wait_for_stat("tunnels", 2).await;
    scene
        .alice
        .wait_for_status(&scene.device.id, "online")
        .await;
    scene.get("/echo").await.expect(200);
}

async fn a_go_device_comes_back_after_a_disconnect(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let path = format!("/api/devices/{}/session", scene.device.id);
    scene.alice.delete(&path).send().await.expect_success();
    assert_eq!(close_codes(&scene, 1).await, json!([1000]));
    scene.device.wait_for_stat("tunnels", 2).await;
    scene
        .alice
        .wait_for_status(&scene.device.id, "online")
        .await;
    scene.get("/echo").await.expect(200);
}

async fn tu_20_a_go_device_that_was_removed_is_told_so(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    let path = format!("/api/devices/{}", scene.device.id);
    scene.alice.delete(&path).send().await.expect_success();
    assert_eq!(close_codes(&scene, 1).await, json!([4401]));
    let parked = |line: &str| line.contains("no tunnel for 1h").then_some(());
    let device = scene.device.process();
    device.prints("that it waits an hour", parked).await;
    // Its token opens no tunnel either.
    device.crash().await;
    scene.device.start_again().await;
    let device = scene.device.process();
    device.prints("that it waits an hour", parked).await;
    assert_eq!(scene.device.stat("tunnels").await, 0);
}

async fn a_go_device_takes_a_new_token(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    let mut identity = scene.device.identity();
    let old = RawDevice::known(&scene.cloud, &scene.device.id, &text(&identity["token"]));
    let path = format!("/api/devices/{}/token", scene.device.id);
    let new = scene.alice.post(&path).send().await.expect(200).json();
    // The present tunnel goes on.
    scene.is_in_its_first_tunnel().await;
    identity["token"] = new["token"].clone();
    scene.device.process().crash().await;
    scene
        .alice
        .wait_for_status(&scene.device.id, "offline")
        .await;
    scene.device.write_identity(&identity);
    scene.device.start_again().await;
    scene
        .alice
        .wait_for_status(&scene.device.id, "online")
        .await;
    scene.is_in_its_first_tunnel().await;
    let refused = old.handshake().websocket().await.err();
    assert_eq!(refused.expect("no tunnel").status, 401);
}

async fn a_go_device_without_connect_takes_no_tcp(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let path = format!("/api/devices/{}/tcp/22", scene.device.id);
    let host = scene.alice.host();
    let handshake = scene
        .alice
        .request_on(host, Method::GET, &path)
        .header("origin", &scene.alice.origin());
    let refused = handshake.websocket().await.err().expect("no connection");
    refused.expect_problem(502, "tcp_unsupported");
    scene.is_in_its_first_tunnel().await;
}
