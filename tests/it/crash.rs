//! Processes that end, as asked or not, and start again: everything is whole without manual work.

use bytes::Bytes;
use http::Method;
use nix::sys::signal::Signal;
use tokio::sync::mpsc::Sender;

use crate::support::{
    Anonymous, Browser, Device, Origin, Part, Streaming, TestCloud, Topology, eventually,
    on_both_topologies, random_token,
};

on_both_topologies![
    a_killed_agent_comes_back_as_the_same_device,
    an_agent_that_is_asked_to_end_ends_and_says_goodbye,
    f26_a_request_that_waits_fails_when_its_agent_is_killed,
    a_code_is_ignored_by_a_device_that_is_paired_already,
    f24_a_killed_proxy_comes_back_and_so_do_its_devices,
    f03_a_killed_api_comes_back_and_logins_live_on,
    f05_a_cloud_that_is_killed_while_it_pairs_loses_and_doubles_nothing,
    ug_01_a_process_that_is_asked_to_end_finishes_what_it_is_at,
    ug_01_a_second_signal_ends_it_at_once,
    ug_02_a_stream_that_never_ends_does_not_hold_the_process_for_ever,
    a_restart_while_nothing_is_at_hand_is_quick_and_clean,
];

/// Alice and her device.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: Device,
    origin: Origin,
}

impl Scene {
    async fn set(cloud: TestCloud) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let origin = Origin::spawn().await;
        let device = Device::pair(&cloud, &alice, origin.addr()).await;
        Self {
            cloud,
            alice,
            device,
            origin,
        }
    }

    /// Waits until a request reaches the origin and its answer comes back.
    async fn is_whole(&self) {
        let target = format!("/{}", random_token());
        eventually("the device answers", async || {
            let request = self.alice.forward(&self.device.id, Method::GET, &target);
            let answer = request.try_send().await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
        assert!(self.origin.count(&target) >= 1);
        assert_eq!(self.alice.devices().await.len(), 1);
        self.alice.wait_for_status(&self.device.id, "online").await;
    }
}

async fn a_killed_agent_comes_back_as_the_same_device(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    scene.device.process().crash().await;
    scene
        .alice
        .wait_for_status(&scene.device.id, "offline")
        .await;
    scene.device.start_again();
    scene.is_whole().await;
}

async fn an_agent_that_is_asked_to_end_ends_and_says_goodbye(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    scene.device.process().signal(Signal::SIGTERM);
    let status = scene.device.process().wait().await;
    assert_eq!(status.code(), Some(0));
    scene
        .alice
        .wait_for_status(&scene.device.id, "offline")
        .await;
    scene.device.start_again();
    scene.is_whole().await;
}

async fn f26_a_request_that_waits_fails_when_its_agent_is_killed(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    let mut waiting = tokio::task::JoinSet::new();
    for method in [Method::GET, Method::POST] {
        let request = scene.alice.forward(&scene.device.id, method, "/do/hang");
        waiting.spawn(request.send());
    }
    eventually("both requests wait", async || {
        (scene.origin.count("/do/hang") == 2).then_some(())
    })
    .await;
    scene.device.process().crash().await;
    for answer in waiting.join_all().await {
        // A GET may be tried again, on a device that is offline by then.
        let code = answer.json()["code"].clone();
        assert!(
            code == "tunnel_lost" || code == "device_offline",
            "{answer:?}"
        );
    }
    scene.device.start_again();
    scene.is_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_a_request_that_waits_fails_when_its_proxy_is_killed() {
    let cloud = TestCloud::builder(Topology::Split).spawn().await;
    let mut scene = Scene::set(cloud).await;
    let request = scene
        .alice
        .forward(&scene.device.id, Method::POST, "/do/hang");
    let waiting = tokio::spawn(request.send());
    eventually("the request waits", async || {
        (scene.origin.count("/do/hang") == 1).then_some(())
    })
    .await;
    scene.cloud.crash(Part::Proxy).await;
    let answer = waiting.await.expect("no panic");
    answer.expect_problem(502, "tunnel_lost");
    scene.cloud.start_again(Part::Proxy).await;
    scene.is_whole().await;
}

async fn a_code_is_ignored_by_a_device_that_is_paired_already(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    scene.device.process().crash().await;
    let (_, unused) = scene.alice.pairing_code().await;
    let url = scene.cloud.public_url().to_owned();
    let again = ["--cloud", url.as_str(), "--pair", unused.as_str()];
    scene.device.start_again_with(&again);
    scene.is_whole().await;
    let output = scene.device.process().output();
    assert!(output.contains("WARN"), "it says so: {output}");
    Anonymous::of(&scene.cloud)
        .exchange(&unused)
        .await
        .expect(200);
}

async fn f24_a_killed_proxy_comes_back_and_so_do_its_devices(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    scene.cloud.crash(Part::Proxy).await;
    scene.cloud.start_again(Part::Proxy).await;
    scene.is_whole().await;
}

async fn f03_a_killed_api_comes_back_and_logins_live_on(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    let before = scene.alice.me().await;
    scene.cloud.crash(Part::Api).await;
    scene.cloud.start_again(Part::Api).await;
    assert_eq!(scene.alice.me().await["login"], before["login"]);
    scene.is_whole().await;
    scene.alice.sign_in_again("alice").await;
}

async fn f05_a_cloud_that_is_killed_while_it_pairs_loses_and_doubles_nothing(mut cloud: TestCloud) {
    const ROUNDS: u32 = 5;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let mut paired = 0;
    for round in 0..ROUNDS {
        let (_, code) = alice.pairing_code().await;
        let exchanging = {
            let (box_, code) = (Anonymous::of(&cloud), code.clone());
            tokio::spawn(async move {
                let body = serde_json::json!({"code": code, "device": {}});
                let request = box_.post("/api/pairing/exchange").json(&body);
                request
                    .try_send()
                    .await
                    .map(|answer| answer.status.as_u16())
            })
        };
        // The kill comes a little later in each round.
        for _ in 0..round * 40 {
            tokio::task::yield_now().await;
        }
        cloud.crash(Part::Api).await;
        let told = exchanging.await.expect("no panic").ok();
        cloud.start_again(Part::Api).await;
        let devices = alice.devices().await.len();
        let again = Anonymous::of(&cloud).exchange(&code).await.status.as_u16();
        // Used and one device, or unused and none; and what was acknowledged is there.
        match devices - paired {
            0 => assert_eq!((told.is_none(), again), (true, 200)),
            1 => assert_eq!(again, 404),
            more => panic!("{more} devices of one code"),
        }
        paired += 1;
        assert_eq!(alice.devices().await.len(), paired);
    }
}

async fn ug_01_a_process_that_is_asked_to_end_finishes_what_it_is_at(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    let body = scene.origin.drive("body");
    body.send("first".into()).await.expect("taken");
    let target = "/do/driven?name=body";
    let request = scene.alice.forward(&scene.device.id, Method::GET, target);
    let mut answer = request.open().await.expect(200);
    answer.read_until("first").await;

    scene.cloud.terminate(Part::Api);
    let addr = scene.cloud.api_addr();
    eventually(
        "the process accepts nobody new, or says that it is not ready",
        async || match tokio::net::TcpStream::connect(addr).await {
            Err(_) => Some(()),
            Ok(connection) => {
                drop(connection);
                let ready = Anonymous::of(&scene.cloud).get("/readyz");
                let ready = ready.try_send().await.map(|answer| answer.status.as_u16());
                (!matches!(ready, Ok(200))).then_some(())
            }
        },
    )
    .await;
    body.send("second".into()).await.expect("taken");
    answer.read_until("second").await;
    drop(body);
    assert!(answer.next().await.is_none(), "a clean end");
    let status = scene.cloud.wait_exit(Part::Api).await;
    assert_eq!(status.code(), Some(0));
    scene.cloud.start_again(Part::Api).await;
    scene.is_whole().await;
}

/// An answer that goes on as long as the sender lives.
async fn held_open(scene: &Scene) -> (Sender<Bytes>, Streaming) {
    let body = scene.origin.drive("endless");
    body.send("first".into()).await.expect("taken");
    let target = "/do/driven?name=endless";
    let request = scene.alice.forward(&scene.device.id, Method::GET, target);
    let mut answer = request.open().await.expect(200);
    answer.read_until("first").await;
    (body, answer)
}

async fn ug_01_a_second_signal_ends_it_at_once(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__SERVER__DRAIN_TIMEOUT", "1h")
        .spawn()
        .await;
    let mut scene = Scene::set(cloud).await;
    let held = held_open(&scene).await;
    for part in [Part::Proxy, Part::Api] {
        if part == Part::Api && topology == Topology::All {
            continue;
        }
        scene.cloud.terminate(part);
        // Signals of the same kind that are pending together count as one.
        let log = "the first signal is noticed";
        let process = scene.cloud.process(part);
        let before = process.output().len();
        eventually(log, async || {
            (process.output().len() > before).then_some(())
        })
        .await;
        process.signal(Signal::SIGTERM);
        process.wait().await;
    }
    drop(held);
}

async fn ug_02_a_stream_that_never_ends_does_not_hold_the_process_for_ever(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__SERVER__DRAIN_TIMEOUT", "1s")
        .spawn()
        .await;
    let mut scene = Scene::set(cloud).await;
    let (_sender, mut answer) = held_open(&scene).await;
    scene.cloud.terminate(Part::Api);
    let status = scene.cloud.wait_exit(Part::Api).await;
    assert_eq!(status.code(), Some(0));
    let rest = answer.next().await;
    assert!(matches!(rest, Some(Err(_))), "cut off, visibly: {rest:?}");
    scene.cloud.start_again(Part::Api).await;
    scene.is_whole().await;
}

async fn a_restart_while_nothing_is_at_hand_is_quick_and_clean(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    for part in [Part::Proxy, Part::Api] {
        scene.cloud.restart(part).await;
        scene.is_whole().await;
    }
}
