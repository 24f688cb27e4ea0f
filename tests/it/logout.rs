//! What is open on behalf of a login ends with it, wherever it ended.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use jiff::Timestamp;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::login_cookie::move_end;
use crate::sign_in::parameter;
use crate::support::{
    Browser, Device, LOGIN_COOKIE, Origin, Streaming, TestCloud, Topology, WebSocket, eventually,
    on_both_topologies, text,
};

on_both_topologies![
    lo_01_signing_out_ends_the_login_on_the_server,
    lo_04_signing_out_leads_to_the_provider_without_a_token,
    lo_03_signing_out_ends_everything_that_is_open,
    lo_03_a_login_that_runs_out_ends_everything_that_is_open,
    lo_03_an_answer_that_nobody_reads_is_cut_too,
];

async fn lo_01_signing_out_ends_the_login_on_the_server(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let elsewhere = Browser::sign_in(&cloud, "alice").await;
    let stolen = alice.login_cookie();
    alice.get("/api/auth/logout").send().await.expect(405);
    assert!(alice.is_signed_in().await, "a link signs nobody out");

    let answer = alice.sign_out().await;
    let cleared = answer.all("set-cookie");
    assert!(
        cleared
            .iter()
            .any(|cookie| cookie.starts_with("edgecloud=") && cookie.contains("Max-Age=0")),
        "{cleared:?}"
    );
    assert!(!alice.is_signed_in().await);
    let thief = Browser::new(&cloud);
    thief.plant_cookie(alice.host(), LOGIN_COOKIE, &stolen);
    eventually("the stolen cookie is worthless", async || {
        (!thief.is_signed_in().await).then_some(())
    })
    .await;
    assert!(elsewhere.is_signed_in().await, "her other login lives on");
}

async fn lo_04_signing_out_leads_to_the_provider_without_a_token(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let answer = alice.sign_out().await.json();
    let url = url::Url::parse(&text(&answer["end_session_url"])).expect("a URL");
    assert_eq!(url.authority(), cloud.issuer_addr().to_string());
    assert_eq!(parameter(&url, "client_id"), "edgecloud-dev");
    let back = parameter(&url, "post_logout_redirect_uri");
    assert!(back.starts_with(cloud.public_url()), "{back}");
    assert!(!parameter(&url, "state").is_empty());
    assert!(!url.as_str().contains("id_token_hint"), "{url}");
}

/// Two seconds are promised; the rest is slack for a busy machine.
const SOON: Duration = Duration::from_secs(4);

/// Alice, twice, and her device.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    elsewhere: Browser,
    device: Device,
    origin: Origin,
}

impl Scene {
    async fn set(cloud: TestCloud) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let elsewhere = Browser::sign_in(&cloud, "alice").await;
        let origin = Origin::spawn().await;
        let device = Device::pair(&cloud, &alice, origin.addr()).await;
        Self {
            cloud,
            alice,
            elsewhere,
            device,
            origin,
        }
    }

    async fn open_websocket(&self, person: &Browser) -> WebSocket {
        let handshake = person.forward_websocket(&self.device.id, "/do/websocket");
        let mut opened = handshake.websocket().await.expect("a WebSocket");
        assert!(opened.echoes(Message::text("hello")).await);
        opened
    }

    async fn open_on_its_own_host(&self) -> WebSocket {
        let host = self.alice.enter(&self.device.id).await;
        let handshake = self
            .alice
            .request_on(&host, Method::GET, "/do/websocket")
            .header("origin", &format!("http://{host}"));
        let mut opened = handshake.websocket().await.expect("a WebSocket");
        assert!(opened.echoes(Message::text("hello")).await);
        opened
    }

    async fn open_stream(&self, name: &str, kind: &str) -> (Sender<Bytes>, Streaming) {
        let body = self.origin.drive(name);
        let target = format!("/do/driven?name={name}&type={kind}");
        let request = self.alice.forward(&self.device.id, Method::GET, &target);
        let mut answer = request.open().await.expect(200);
        body.send("data: 1\n\n".into()).await.expect("taken");
        answer.read_until("data: 1\n\n").await;
        (body, answer)
    }
}

/// All that a login can have open.
struct Opened {
    websocket: WebSocket,
    own_host: WebSocket,
    events: (Sender<Bytes>, Streaming),
    chunked: (Sender<Bytes>, Streaming),
    download: Streaming,
}

impl Opened {
    async fn of(scene: &Scene) -> Self {
        let endless = "/do/download?bytes=1000000000000&length=1";
        let download = scene
            .alice
            .forward(&scene.device.id, Method::GET, endless)
            .open()
            .await;
        Self {
            websocket: scene.open_websocket(&scene.alice).await,
            own_host: scene.open_on_its_own_host().await,
            events: scene.open_stream("events", "text/event-stream").await,
            chunked: scene.open_stream("chunked", "text/plain").await,
            download: download.expect(200),
        }
    }

    async fn ends(mut self) {
        assert_eq!(self.websocket.closed().await.0, 4401);
        assert_eq!(self.own_host.closed().await.0, 4401);
        let (events, mut answer) = self.events;
        answer.read_until("event: bye\n").await;
        while let Some(rest) = answer.next().await {
            rest.expect("an event stream ends cleanly after its last words");
        }
        events.closed().await;
        let (chunks, mut answer) = self.chunked;
        let rest = answer.next().await;
        assert!(matches!(rest, Some(Err(_))), "cut off, visibly: {rest:?}");
        chunks.closed().await;
        loop {
            match self.download.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => break,
                None => panic!("a cut download must not look whole"),
            }
        }
    }
}

async fn lo_03_signing_out_ends_everything_that_is_open(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let mut others = scene.open_websocket(&scene.elsewhere).await;
    let opened = Opened::of(&scene).await;
    scene.alice.sign_out().await;
    let ended = timeout(SOON, opened.ends()).await;
    ended.expect("everything ends soon");
    let lives = others.echoes(Message::text("still here")).await;
    assert!(lives, "her other login lives on");
}

async fn lo_03_a_login_that_runs_out_ends_everything_that_is_open(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    for end in ["idle_expires_at", "expires_at"] {
        let mut others = scene.open_websocket(&scene.elsewhere).await;
        let opened = Opened::of(&scene).await;
        let login = text(&scene.alice.me().await["login"]["id"]);
        move_end(&scene.cloud, &login, end, Timestamp::now());
        let ended = timeout(SOON, opened.ends()).await;
        ended.expect("everything ends soon");
        let lives = others.echoes(Message::text("still here")).await;
        assert!(lives, "her other login lives on");
        scene.alice.sign_in_again("alice").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lo_03_signing_out_at_another_process_ends_everything_that_is_open() {
    let cloud = TestCloud::builder(Topology::Split).spawn().await;
    let scene = Scene::set(cloud).await;
    let second = scene.cloud.another("api", &[]).await;
    let mut others = scene.open_websocket(&scene.elsewhere).await;
    let opened = Opened::of(&scene).await;
    scene.alice.through(second.api_addr()).sign_out().await;
    let ended = timeout(SOON, opened.ends()).await;
    ended.expect("everything ends soon");
    let lives = others.echoes(Message::text("still here")).await;
    assert!(lives, "her other login lives on");
}

async fn lo_03_an_answer_that_nobody_reads_is_cut_too(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let (chunks, answer) = scene.open_stream("unread", "text/plain").await;
    let piece = Bytes::from(vec![0; 1 << 20]);
    // Until every buffer on the way is full.
    while let Ok(sent) = timeout(Duration::from_secs(1), chunks.send(piece.clone())).await {
        sent.expect("the origin's side lives");
    }
    scene.alice.sign_out().await;
    let cut = timeout(SOON, chunks.closed()).await;
    cut.expect("the device hears of it soon");
    drop(answer);
}
