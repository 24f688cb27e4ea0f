//! What is open on behalf of a member ends when the place in the tenant changes, wherever that was.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Browser, Device, Origin, Streaming, TestCloud, Topology, WebSocket, on_both_topologies,
};

on_both_topologies![
    tn_06_a_demotion_ends_everything_that_is_open,
    tn_06_a_removal_ends_everything_that_is_open,
    tn_06_leaving_ends_everything_that_is_open,
    tn_06_the_removal_of_the_tenant_ends_everything_that_is_open,
    a_role_that_stays_the_same_ends_nothing,
    cs_06_whoever_loses_their_last_tenant_loses_login_and_streams,
];

/// Two seconds are promised; the rest is slack for a busy machine.
const SOON: Duration = Duration::from_secs(4);

/// Alice, who owns a device, and vera, who may reach it.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    vera: Browser,
    veras_place: String,
    veras_own: String,
    device: Device,
    origin: Origin,
}

impl Scene {
    async fn set(cloud: TestCloud) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let tenant = alice.create_tenant("shop").await;
        alice.enter_tenant(&tenant).await;
        let vera = Browser::sign_in_new(&cloud, "vera").await;
        let veras_own = vera.tenant_id().await;
        alice.take_in(&vera, "operator").await;
        let origin = Origin::spawn().await;
        let device = Device::pair(&cloud, &alice, origin.addr()).await;
        let user = vera.user_id().await;
        Self {
            cloud,
            alice,
            veras_place: format!("/api/tenants/{tenant}/members/{user}"),
            veras_own: format!("/api/tenants/{veras_own}"),
            vera,
            device,
            origin,
        }
    }

    async fn websocket_of(&self, person: &Browser) -> WebSocket {
        let handshake = person.forward_websocket(&self.device.id, "/do/websocket");
        let mut opened = handshake.websocket().await.expect("a WebSocket");
        assert!(opened.echoes(Message::text("hello")).await);
        opened
    }

    async fn opened(&self) -> Opened {
        let host = self.vera.enter(&self.device.id).await;
        let own_host = self
            .vera
            .request_on(&host, Method::GET, "/do/websocket")
            .header("origin", &format!("http://{host}"));
        let mut events = self.vera.get("/api/events").open().await.expect(200);
        events.read_until("events follow").await;
        let body = self.origin.drive("chunked");
        let target = "/do/driven?name=chunked&type=text/plain";
        let request = self.vera.forward(&self.device.id, Method::GET, target);
        let mut chunked = request.open().await.expect(200);
        body.send("1".into()).await.expect("taken");
        chunked.read_until("1").await;
        Opened {
            websocket: self.websocket_of(&self.vera).await,
            own_host: own_host.websocket().await.expect("a WebSocket"),
            events,
            chunked: (body, chunked),
        }
    }

    async fn demote(&self, through: &Browser) {
        let request = through.put(&self.veras_place);
        let changed = request.json(&json!({"role": "viewer"})).send().await;
        changed.expect(200);
    }
}

/// All that a member can have open.
struct Opened {
    websocket: WebSocket,
    own_host: WebSocket,
    events: Streaming,
    chunked: (Sender<Bytes>, Streaming),
}

impl Opened {
    async fn end(mut self) {
        let all = async {
            assert_eq!(self.websocket.closed().await.0, 4401);
            assert_eq!(self.own_host.closed().await.0, 4401);
            self.events.read_until("event: bye\n").await;
            while let Some(rest) = self.events.next().await {
                rest.expect("an event stream ends cleanly after its last words");
            }
            let (chunks, mut answer) = self.chunked;
            let rest = answer.next().await;
            assert!(matches!(rest, Some(Err(_))), "cut off, visibly: {rest:?}");
            chunks.closed().await;
        };
        timeout(SOON, all).await.expect("everything ends soon");
    }
}

async fn tn_06_a_demotion_ends_everything_that_is_open(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let mut others = scene.websocket_of(&scene.alice).await;
    let opened = scene.opened().await;
    scene.demote(&scene.alice).await;
    opened.end().await;
    assert!(others.echoes(Message::text("still here")).await);
    let path = "/do/websocket";
    let again = scene.vera.forward_websocket(&scene.device.id, path);
    let Err(refused) = again.websocket().await else {
        panic!("a viewer does not reach devices");
    };
    refused.expect(403);
    // What a viewer may do goes on.
    let events = scene.vera.get("/api/events").open().await;
    events.expect(200).read_until("events follow").await;
}

async fn tn_06_a_removal_ends_everything_that_is_open(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let mut others = scene.websocket_of(&scene.alice).await;
    let opened = scene.opened().await;
    let removed = scene.alice.delete(&scene.veras_place).send().await;
    removed.expect(204);
    opened.end().await;
    assert!(others.echoes(Message::text("still here")).await);
    assert_eq!(scene.vera.devices().await.len(), 0, "in her own tenant");
    let again = scene.vera.forward(&scene.device.id, Method::GET, "/");
    again.send().await.expect(404);
}

async fn tn_06_leaving_ends_everything_that_is_open(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let opened = scene.opened().await;
    let left = scene.vera.delete(&scene.veras_place).send().await;
    left.expect(204);
    opened.end().await;
}

async fn tn_06_the_removal_of_the_tenant_ends_everything_that_is_open(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let opened = scene.opened().await;
    let path = format!("/api/tenants/{}", scene.alice.tenant_id().await);
    scene.alice.delete(&path).send().await.expect(204);
    opened.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tn_06_a_demotion_at_another_process_ends_everything_that_is_open() {
    let cloud = TestCloud::builder(Topology::Split).spawn().await;
    let scene = Scene::set(cloud).await;
    let second = scene.cloud.another("api", &[]).await;
    let mut others = scene.websocket_of(&scene.alice).await;
    let opened = scene.opened().await;
    scene.demote(&scene.alice.through(second.api_addr())).await;
    opened.end().await;
    assert!(others.echoes(Message::text("still here")).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tn_06_a_removal_at_another_process_ends_everything_that_is_open() {
    let cloud = TestCloud::builder(Topology::Split).spawn().await;
    let scene = Scene::set(cloud).await;
    let second = scene.cloud.another("api", &[]).await;
    let opened = scene.opened().await;
    let alice = scene.alice.through(second.api_addr());
    alice.delete(&scene.veras_place).send().await.expect(204);
    opened.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tn_06_the_removal_of_the_tenant_at_another_process_ends_everything_that_is_open() {
    let cloud = TestCloud::builder(Topology::Split).spawn().await;
    let scene = Scene::set(cloud).await;
    let second = scene.cloud.another("api", &[]).await;
    let opened = scene.opened().await;
    let path = format!("/api/tenants/{}", scene.alice.tenant_id().await);
    let alice = scene.alice.through(second.api_addr());
    alice.delete(&path).send().await.expect(204);
    // Whether the tunnel or the news comes first.
    opened.end().await;
}

async fn a_role_that_stays_the_same_ends_nothing(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let mut opened = scene.websocket_of(&scene.vera).await;
    let same = scene.alice.put(&scene.veras_place);
    let same = same.json(&json!({"role": "operator"})).send().await;
    assert_eq!(same.expect(200).json()["role"], "operator");
    let lives = opened.echoes(Message::text("still here")).await;
    assert!(lives, "nothing has changed");
    let path = "/api/audit?action=member.role_changed";
    let audit = scene.alice.get(path).send().await.expect(200);
    assert_eq!(audit.items().len(), 0, "nothing to write down");
}

async fn cs_06_whoever_loses_their_last_tenant_loses_login_and_streams(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    scene.vera.delete(&scene.veras_own).send().await.expect(204);
    let opened = scene.opened().await;
    let removed = scene.alice.delete(&scene.veras_place).send().await;
    removed.expect(204);
    opened.end().await;
    assert!(!scene.vera.is_signed_in().await);
}
