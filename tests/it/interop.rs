//! A device that is not ours: the usual Go parts, hashicorp/yamux over gorilla/websocket, paired and reached like any
//! other. What such a device may rely on is written down in `docs/protocol.md`.

use futures_util::future::join_all;
use futures_util::stream;
use http::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Answer, Browser, GoDevice, Pattern, Request, TestCloud, Topology, eventually,
    on_both_topologies, within,
};

on_both_topologies![
    a_go_device_answers_plain_requests,
    fw_17_events_of_a_go_device_pass_one_by_one,
    fw_17_a_websocket_of_a_go_device_passes_both_ways,
    fw_16_a_gigabyte_passes_each_way_between_a_caller_and_a_go_device,
    five_hundred_requests_at_once_reach_a_go_device,
    tu_15_a_go_device_keeps_its_tunnel_when_there_are_too_many_requests,
    a_single_write_larger_than_the_window_arrives,
];

const BYTES: u64 = 1 << 30;
/// Enough to fill every buffer and pool on the way once.
const WARM_UP: u64 = 128 << 20;
/// How much more memory than before a process may have had in use, in bytes.
const MAX_GROWTH: u64 = 64 << 20;
/// More than there are streams by default.
const CROWD: usize = 500;

/// Alice and her device.
pub struct Scene {
    pub cloud: TestCloud,
    pub alice: Browser,
    pub device: GoDevice,
}

impl Scene {
    pub async fn set(cloud: TestCloud) -> Self {
        Self::set_with(cloud, &[]).await
    }

    pub async fn set_with(cloud: TestCloud, more: &[&'static str]) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let device = GoDevice::pair(&cloud, &alice, more).await;
        Self {
            cloud,
            alice,
            device,
        }
    }

    pub fn request(&self, method: Method, path: &str) -> Request {
        self.alice.forward(&self.device.id, method, path)
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path).send().await
    }

    /// The device answers, and in the same tunnel as from the beginning.
    pub async fn is_in_its_first_tunnel(&self) {
        self.get("/echo").await.expect(200);
        let stats = self.device.stats().await;
        assert_eq!(stats["tunnels"], 1, "{stats}");
    }

    /// Asks for something as many times at once as there are people in a crowd.
    fn crowd(&self, path: &str) -> JoinSet<Answer> {
        (0..CROWD)
            .map(|_| self.request(Method::GET, path).send())
            .collect()
    }
}

async fn a_go_device_answers_plain_requests(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let answer = scene.get("/echo").await.expect(200);
    assert_eq!(answer.header("x-method"), "GET");
    // A device that does not say what its origin is called.
    assert_eq!(answer.header("x-host"), "localhost");
    let posted = scene
        .request(Method::POST, "/echo?status=201")
        .header("x-ask", "one")
        .another_header("x-ask", "two")
        .bytes("some bytes");
    let answer = posted.send().await.expect(201);
    assert_eq!(answer.header("x-method"), "POST");
    assert_eq!(answer.all("x-answer"), ["one", "two"]);
    assert_eq!(answer.text(), "some bytes");
    for status in [204, 304, 404, 418, 500, 503] {
        let path = format!("/echo?status={status}");
        scene.get(&path).await.expect(status);
    }
    scene.get("/nowhere").await.expect(404);
    let shown = scene.alice.device(&scene.device.id).await;
    assert_eq!(shown["session"]["agent_version"], "go-device/1", "{shown}");
    scene.is_in_its_first_tunnel().await;
}

async fn fw_17_events_of_a_go_device_pass_one_by_one(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let mut events = scene
        .request(Method::GET, "/events")
        .open()
        .await
        .expect(200);
    assert_eq!(events.headers["content-type"], "text/event-stream");
    assert_eq!(events.read_until("\n\n").await, "data: hello\n\n");
    for text in ["one", "two", "three"] {
        // The next is not made before the one before was read.
        let next = scene.request(Method::POST, "/events/next").bytes(text);
        next.send().await.expect(200);
        let event = events.read_until("\n\n").await;
        assert_eq!(event, format!("data: {text}\n\n"));
    }
    let end = scene.request(Method::POST, "/events/next").bytes("end");
    end.send().await.expect(200);
    assert!(events.next().await.is_none());
}

async fn fw_17_a_websocket_of_a_go_device_passes_both_ways(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let opened = scene.alice.forward_websocket(&scene.device.id, "/ws");
    let mut socket = opened.websocket().await.expect("a WebSocket");
    for message in [
        Message::text("hello"),
        Message::binary(vec![7; 3]),
        Message::text(""),
        Message::binary(Pattern::default().next(60_000)),
        Message::binary(vec![1; 2_000_000]),
    ] {
        assert!(socket.echoes(message).await);
    }
    socket.socket.close(None).await.expect("sent");
    let (code, _) = socket.closed().await;
    assert_eq!(code, 1005, "the same close comes back");
    scene.is_in_its_first_tunnel().await;
}

async fn fw_16_a_gigabyte_passes_each_way_between_a_caller_and_a_go_device(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    download(&scene, WARM_UP).await;
    upload(&scene, WARM_UP).await;
    let before = peaks(&mut scene);
    download(&scene, BYTES).await;
    upload(&scene, BYTES).await;
    for (before, after) in before.iter().zip(&peaks(&mut scene)) {
        // The kernel sums up counters of its processors: a peak may be read a little too high.
        let grown = after.saturating_sub(*before);
        assert!(grown < MAX_GROWTH, "from {before} to {after} bytes");
    }
    scene.is_in_its_first_tunnel().await;
}

/// The most memory that each process ever had in use, in bytes.
fn peaks(scene: &mut Scene) -> Vec<u64> {
    let device = scene.device.process().peak_memory();
    let processes = scene.cloud.processes();
    processes
        .map(crate::support::Process::peak_memory)
        .chain([device])
        .collect()
}

fn sha256() -> ring::digest::Context {
    ring::digest::Context::new(&ring::digest::SHA256)
}

fn hex(context: ring::digest::Context) -> String {
    let digest = context.finish();
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads so many bytes that the device makes up, and compares their hash with the device's own.
async fn download(scene: &Scene, bytes: u64) {
    receive(scene, &format!("/download?bytes={bytes}"), bytes).await;
}

async fn receive(scene: &Scene, path: &str, bytes: u64) {
    let request = scene.request(Method::GET, path);
    let mut answer = request.open().await.expect(200);
    let (mut hash, mut length) = (sha256(), 0);
    while let Some(piece) = answer.next().await {
        let piece = piece.expect("the body is not cut off");
        hash.update(&piece);
        length += piece.len() as u64;
    }
    assert_eq!(length, bytes);
    let sent = &scene.device.stats().await["sent"];
    assert_eq!(*sent, hex(hash), "{path}");
}

async fn upload(scene: &Scene, bytes: u64) {
    let mut pattern = Pattern::default();
    let mut hash = sha256();
    while pattern.position() < bytes {
        hash.update(&pattern.next(bytes - pattern.position()));
    }
    let body = stream::unfold(Pattern::default(), move |mut pattern| async move {
        let left = bytes - pattern.position();
        (left > 0).then(|| (pattern.next(left), pattern))
    });
    let request = scene.request(Method::POST, "/upload");
    let answer = request.stream(body).send_long().await.expect(200);
    let whole = json!({"bytes": bytes, "sha256": hex(hash), "complete": true});
    assert_eq!(answer.json(), whole);
}

async fn five_hundred_requests_at_once_reach_a_go_device(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__TUNNEL__MAX_STREAMS_PER_SESSION", CROWD)
        .spawn()
        .await;
    let scene = Scene::set(cloud).await;
    let crowd = scene.crowd("/hold?key=crowd");
    // All are there at the same time, each in a stream of its own.
    scene.device.wait_for_stat("held", CROWD as u64).await;
    scene.device.release("crowd").await;
    for answer in within("all answers", crowd.join_all()).await {
        assert_eq!(answer.expect(200).text(), "end\n");
    }
    scene.is_in_its_first_tunnel().await;
}

async fn tu_15_a_go_device_keeps_its_tunnel_when_there_are_too_many_requests(cloud: TestCloud) {
    /// The default of `tunnel.max_streams_per_session`.
    const STREAMS: usize = 256;
    let scene = Scene::set(cloud).await;
    let mut crowd = scene.crowd("/hold?key=crowd");
    for _ in STREAMS..CROWD {
        let refused = within("a refusal", crowd.join_next()).await;
        let refused = refused.expect("more answers").expect("no panic");
        let refused = refused.expect_problem(503, "device_busy");
        let wait: u64 = refused.header("retry-after").parse().expect("seconds");
        assert!(wait >= 1, "{wait}");
    }
    scene.device.wait_for_stat("held", STREAMS as u64).await;
    scene.device.release("crowd").await;
    for answer in within("all answers", crowd.join_all()).await {
        assert_eq!(answer.expect(200).text(), "end\n");
    }
    // Who asks again when told so gets an answer in the end.
    let patient = (0..CROWD).map(|_| async {
        eventually("an answer", async || {
            let answer = scene.get("/echo").await;
            match answer.status.as_u16() {
                200 => Some(()),
                _ => {
                    answer.expect_problem(503, "device_busy");
                    None
                }
            }
        })
        .await;
    });
    join_all(patient).await;
    scene.is_in_its_first_tunnel().await;
}

async fn a_single_write_larger_than_the_window_arrives(cloud: TestCloud) {
    /// Where every window begins, in bytes.
    const FIRST_WINDOW: u64 = 256 << 10;
    /// What the window of a device without the subprotocol may grow to, in bytes.
    const LARGEST_WINDOW: u64 = 1 << 20;
    const WRITE: u64 = 4 << 20;
    // Windows grow where the way is long.
    let scene = Scene::set_with(cloud, &["--latency", "20ms"]).await;
    let path = format!("/one-write?bytes={WRITE}");
    eventually("the window has grown", async || {
        receive(&scene, &path, WRITE).await;
        (scene.device.stat("largest_frame").await > FIRST_WINDOW).then_some(())
    })
    .await;
    for _ in 0..5 {
        receive(&scene, &path, WRITE).await;
    }
    let largest = scene.device.stat("largest_frame").await;
    assert!(largest <= LARGEST_WINDOW, "{largest}");
    scene.is_in_its_first_tunnel().await;
}

#[test]
fn the_go_code_in_the_docs_is_what_the_tests_use() {
    let docs = include_str!("../../docs/protocol.md");
    let device = include_str!("../interop/device.go");
    let blocks = docs.split("```go\n").skip(1);
    let blocks: Vec<_> = blocks
        .map(|rest| rest.split_once("```").expect("the end of a block").0)
        .collect();
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        assert!(device.contains(block), "not in device.go:\n{block}");
    }
}
