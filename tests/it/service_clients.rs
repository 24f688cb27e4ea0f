//! What a program has open ends with its registration, and with a lower role.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Browser, Device, Finished, Origin, ServiceClient, Streaming, TestCloud, Topology, WebSocket,
    on_both_topologies, run,
};

on_both_topologies![
    tk_03_a_removed_program_loses_what_it_has_open,
    tk_03_a_program_with_a_lower_role_loses_what_it_has_open,
    a_command_takes_a_client_id_away_from_the_tenant_that_has_it,
];

/// Two seconds are promised; the rest is slack for a busy machine.
const SOON: Duration = Duration::from_secs(4);

struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: Device,
    origin: Origin,
}

/// What a program has open.
struct Opened {
    websocket: WebSocket,
    answer: (Sender<Bytes>, Streaming),
    events: Streaming,
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

    async fn program(&self, name: &str) -> ServiceClient {
        ServiceClient::register(&self.cloud, &self.alice, name, "operator").await
    }

    async fn open(&self, program: &ServiceClient) -> Opened {
        let to_device = |path: &str| {
            let target = format!("/api/devices/{}/http{path}", self.device.id);
            program.request(Method::GET, &target)
        };
        let handshake = to_device("/do/websocket");
        let mut websocket = handshake.websocket().await.expect("a WebSocket");
        assert!(websocket.echoes(Message::text("hello")).await);
        let body = self.origin.drive(&program.id);
        let target = format!("/do/driven?name={}&type=text/plain", program.id);
        let mut answer = to_device(&target).open().await.expect(200);
        body.send("first".into()).await.expect("taken");
        answer.read_until("first").await;
        let events = program.request(Method::GET, "/api/events").open().await;
        Opened {
            websocket,
            answer: (body, answer),
            events: events.expect(200),
        }
    }
}

impl Opened {
    async fn ends(mut self) {
        assert_eq!(self.websocket.closed().await.0, 4401);
        self.events.read_until("event: bye\n").await;
        let (body, mut answer) = self.answer;
        let rest = answer.next().await;
        assert!(matches!(rest, Some(Err(_))), "cut off, visibly: {rest:?}");
        body.closed().await;
    }
}

async fn tk_03_a_removed_program_loses_what_it_has_open(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let (robot, other) = (scene.program("robot").await, scene.program("other").await);
    let opened = scene.open(&robot).await;
    let mut others = scene.open(&other).await;
    let path = format!("/api/service-clients/{}", robot.id);
    scene.alice.delete(&path).send().await.expect(204);
    let again = robot.request(Method::GET, "/api/devices").send().await;
    again.expect_problem(401, "unauthenticated");
    let ended = timeout(SOON, opened.ends()).await;
    ended.expect("everything ends soon");
    let lives = others.websocket.echoes(Message::text("still here")).await;
    assert!(lives, "the other program's lives on");
}

async fn tk_03_a_program_with_a_lower_role_loses_what_it_has_open(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let robot = scene.program("robot").await;
    let opened = scene.open(&robot).await;
    let path = format!("/api/service-clients/{}", robot.id);
    let lower = scene.alice.patch(&path).json(&json!({"role": "viewer"}));
    lower.send().await.expect(200);
    let ended = timeout(SOON, opened.ends()).await;
    ended.expect("everything ends soon");
    let target = format!("/api/devices/{}/http/", scene.device.id);
    let refused = robot.request(Method::GET, &target).send().await;
    refused.expect_problem(403, "role_insufficient");
}

/// Runs `service-client remove` beside the processes.
async fn remove(cloud: &TestCloud, client_id: &str) -> Finished {
    let dir = cloud.data_dir();
    let data_dir = dir.to_str().expect("a path");
    let command = [
        "service-client",
        "remove",
        client_id,
        "--data-dir",
        data_dir,
    ];
    run(&dir, &command, &[]).await
}

async fn a_command_takes_a_client_id_away_from_the_tenant_that_has_it(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let (robot, other) = (scene.program("robot").await, scene.program("other").await);
    let opened = scene.open(&robot).await;
    let mut others = scene.open(&other).await;
    let tenant = scene.alice.tenant_id().await;
    let done = remove(&scene.cloud, "edgecloud-dev-robot").await;
    let done = done.expect_code(0);
    for part in [&robot.id, "edgecloud-dev-robot", &tenant] {
        assert!(done.stdout.contains(part), "{part}: {done:?}");
    }
    let ended = timeout(SOON, opened.ends()).await;
    ended.expect("everything ends soon");
    let again = robot.request(Method::GET, "/api/devices").send().await;
    again.expect_problem(401, "unauthenticated");
    let lives = others.websocket.echoes(Message::text("still here")).await;
    assert!(lives, "the other program's lives on");

    let told = scene.alice.get("/api/audit?action=service_client.removed");
    let told = told.send().await.expect(200).items();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["actor"], json!({"kind": "command", "id": null}));
    assert_eq!(told[0]["target"], *robot.id);
    assert_eq!(told[0]["detail"]["client_id"], "edgecloud-dev-robot");

    // Whose it really is can register it now.
    let bob = Browser::sign_in(&scene.cloud, "bob").await;
    ServiceClient::register(&scene.cloud, &bob, "robot", "viewer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_id_that_nobody_has_cannot_be_taken_away() {
    let cloud = TestCloud::builder(Topology::All).spawn().await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    ServiceClient::register(&cloud, &alice, "robot", "viewer").await;
    for nobodys in ["edgecloud-dev-robo", "EDGECLOUD-DEV-ROBOT", "%", ""] {
        let refused = remove(&cloud, nobodys).await.expect_code(1);
        let reason = format!("no tenant has registered the client id {nobodys:?}");
        assert!(refused.stderr.contains(&reason), "{refused:?}");
    }
    let listed = alice.get("/api/service-clients").send().await;
    assert_eq!(listed.expect(200).items().len(), 1);
    let empty = tempfile::TempDir::new().expect("make a directory");
    let command = ["service-client", "remove", "robot"];
    let refused = run(empty.path(), &command, &[]).await.expect_code(1);
    assert!(
        refused.stderr.contains("there is no database"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tk_03_a_program_removed_at_another_process_loses_what_it_has_open() {
    let cloud = TestCloud::builder(Topology::Split).spawn().await;
    let scene = Scene::set(cloud).await;
    let second = scene.cloud.another("api", &[]).await;
    let robot = scene.program("robot").await;
    let opened = scene.open(&robot).await;
    let there = scene.alice.through(second.api_addr());
    let path = format!("/api/service-clients/{}", robot.id);
    there.delete(&path).send().await.expect(204);
    let ended = timeout(SOON, opened.ends()).await;
    ended.expect("everything ends soon");
}
