//! Devices that break the rules of the tunnel or do not read what they are sent: they lose their own
//! session at most, and the memory of the cloud stays small.

use bytes::Bytes;
use futures_util::stream;
use http::Method;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::support::{
    Answer, Browser, Device, Manner, Origin, RawDevice, Streaming, TestCloud, Topology, WireDevice,
    eventually, on_both_topologies, within, yamux,
};

on_both_topologies![
    tu_08_a_first_frame_beyond_the_window_ends_the_session,
    tu_09_data_beyond_the_window_ends_the_session,
    tu_12_floods_of_frames_take_no_memory_and_disturb_nobody,
    tu_12_pings_whose_answers_nobody_reads_end_the_session,
    tu_12_streams_that_are_reset_at_once_cost_their_own_requests_only,
    tu_13_a_device_that_reads_nothing_ends_its_session,
    tu_13_a_stream_that_takes_nothing_holds_up_itself_only,
];

/// How much more memory than before a process may have had in use, in bytes. It holds for all floods
/// of a test together.
const MAX_GROWTH: u64 = 16 << 20;

/// A device that is about to misbehave, and a neighbour in the same process with an answer under way.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: RawDevice,
    neighbour: Device,
    _origin: Origin,
    words: mpsc::Sender<Bytes>,
    listening: Streaming,
    before: Vec<u64>,
}

impl Scene {
    async fn set(cloud: TestCloud) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let device = RawDevice::pair(&cloud, &alice).await;
        let origin = Origin::spawn().await;
        let neighbour = Device::pair(&cloud, &alice, origin.addr()).await;
        let words = origin.drive("words");
        words.send("begin".into()).await.expect("taken");
        let target = "/do/driven?name=words&type=text/event-stream";
        let listening = alice.forward(&neighbour.id, Method::GET, target);
        let mut listening = listening.open().await.expect(200);
        listening.read_until("begin").await;
        let mut scene = Self {
            cloud,
            alice,
            device,
            neighbour,
            _origin: origin,
            words,
            listening,
            before: Vec::new(),
        };
        // The first use of everything is not counted.
        let warm = scene.connect().await.serve();
        scene.ask(Method::GET, "/").await.expect(200);
        drop(warm);
        scene.gone().await;
        scene.before = scene.peaks();
        scene
    }

    /// The device's end of a new tunnel.
    async fn connect(&self) -> WireDevice {
        let wire = WireDevice::connect(&self.device).await;
        self.online().await;
        wire
    }

    async fn online(&self) {
        self.alice.wait_for_status(&self.device.id, "online").await;
    }

    async fn gone(&self) {
        self.alice.wait_for_status(&self.device.id, "offline").await;
    }

    async fn ask(&self, method: Method, path: &str) -> Answer {
        let request = self.alice.forward(&self.device.id, method, path);
        request.send().await
    }

    /// A request to the device that is not awaited here.
    fn asking(&self, path: &str) -> tokio::task::JoinHandle<Answer> {
        let request = self.alice.forward(&self.device.id, Method::POST, path);
        tokio::spawn(request.send())
    }

    /// The most memory that each process of the cloud ever had in use, in bytes.
    fn peaks(&self) -> Vec<u64> {
        let processes = self.cloud.processes();
        processes
            .map(crate::support::Process::peak_memory)
            .collect()
    }

    /// No process needed much memory for what has happened.
    fn little_memory(&self, allowed: u64) {
        for (before, after) in self.before.iter().zip(self.peaks()) {
            let grown = after.saturating_sub(*before);
            assert!(grown < allowed, "from {before} to {after} bytes");
        }
    }

    /// What the neighbour had open goes on, and it takes new requests.
    async fn neighbour_is_well(&mut self) {
        self.words.send("more".into()).await.expect("taken");
        self.listening.read_until("more").await;
        let request = self.alice.forward(&self.neighbour.id, Method::GET, "/");
        request.send().await.expect(200);
    }

    /// The session is over, and the device may come back.
    async fn only_that_session_ended(&mut self) {
        self.gone().await;
        let back = self.device.serve(Manner::Says("back")).await;
        self.online().await;
        let answer = self.ask(Method::GET, "/").await.expect(200);
        assert_eq!(answer.text(), "back");
        drop(back);
        self.gone().await;
        self.neighbour_is_well().await;
        self.little_memory(MAX_GROWTH);
    }
}

async fn tu_08_a_first_frame_beyond_the_window_ends_the_session(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    let too_long = vec![b'x'; yamux::INITIAL_WINDOW as usize + 1];
    for flags in [yamux::SYN, yamux::SYN | yamux::FIN] {
        let mut wire = scene.connect().await;
        assert!(wire.send(yamux::data(flags, 2, &too_long)).await);
        wire.ended().await;
        scene.only_that_session_ended().await;
    }
}

async fn tu_09_data_beyond_the_window_ends_the_session(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    let too_long = vec![b'x'; yamux::INITIAL_WINDOW as usize + 1];
    let excesses: [&dyn Fn(u32) -> Vec<u8>; 3] = [
        &|stream| yamux::data(0, stream, &too_long),
        // What is announced is refused before it has come.
        &|stream| yamux::header(yamux::DATA, 0, stream, u32::MAX),
        &|stream| yamux::header(yamux::DATA, yamux::FIN, stream, 1 << 24),
    ];
    for excess in excesses {
        let mut wire = scene.connect().await;
        let asking = scene.asking("/");
        let stream = wire.take_stream().await;
        wire.send(excess(stream)).await;
        wire.ended().await;
        let answer = within("the request ends", asking).await.expect("no panic");
        assert!(answer.status.is_server_error(), "{answer:?}");
        scene.only_that_session_ended().await;
    }
}

/// Frames of a flood in one message, and messages of a flood.
const FRAMES: u32 = 1_000;
const MESSAGES: usize = 100;

/// A flood's frames, from a number that grows and a stream that is open.
type Flood = fn(u32, u32) -> Vec<u8>;

const FLOODS: [(&str, Flood); 8] = [
    ("streams that the device opens", |number, _| {
        yamux::header(yamux::WINDOW_UPDATE, yamux::SYN, 2 * number + 2, 0)
    }),
    ("streams that the device opens and resets", |number, _| {
        let opened = yamux::header(yamux::WINDOW_UPDATE, yamux::SYN, 2 * number + 2, 0);
        let reset = yamux::header(yamux::WINDOW_UPDATE, yamux::RST, 2 * number + 2, 0);
        [opened, reset].concat()
    }),
    ("resets of streams that are not open", |number, _| {
        yamux::header(yamux::DATA, yamux::RST, 2 * number + 1_001, 0)
    }),
    ("data for streams that are not open", |number, _| {
        yamux::data(0, 2 * number + 1_001, b"x")
    }),
    ("windows of streams that are not open", |number, _| {
        yamux::header(yamux::WINDOW_UPDATE, 0, 2 * number + 1_001, 1)
    }),
    ("windows of an open stream", |_, stream| {
        yamux::header(yamux::WINDOW_UPDATE, 0, stream, 0)
    }),
    ("empty data of an open stream", |_, stream| {
        yamux::header(yamux::DATA, 0, stream, 0)
    }),
    ("pings", |number, _| {
        yamux::header(yamux::PING, yamux::SYN, 0, number)
    }),
];

async fn tu_12_floods_of_frames_take_no_memory_and_disturb_nobody(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    for (what, flood) in FLOODS {
        let mut wire = scene.connect().await;
        let asking = scene.asking("/");
        let stream = wire.take_stream().await;
        let frames = (0..FRAMES)
            .flat_map(|number| flood(number, stream))
            .collect();
        // Cut off on the way or borne to its end: both will do.
        wire.flood(frames, MESSAGES).await;
        wire.leave().await;
        let answer = within(what, asking).await.expect("no panic");
        assert!(answer.status.is_server_error(), "{what}: {answer:?}");
        scene.gone().await;
        scene.neighbour_is_well().await;
    }
    scene.only_that_session_ended().await;
}

async fn tu_12_pings_whose_answers_nobody_reads_end_the_session(cloud: TestCloud) {
    /// Far more answers than all buffers on the way can hold.
    const MOST: usize = 100_000;
    let mut scene = Scene::set(cloud).await;
    let mut wire = WireDevice::connect_narrowly(&scene.device).await;
    scene.online().await;
    let pings = |number| yamux::header(yamux::PING, yamux::SYN, 0, number);
    let pings = Bytes::from((0..FRAMES).flat_map(pings).collect::<Vec<_>>());
    let mut sent = 0;
    while wire.send(pings.clone()).await {
        sent += 1;
        assert!(sent < MOST, "the session should end");
    }
    scene.only_that_session_ended().await;
}

async fn tu_12_streams_that_are_reset_at_once_cost_their_own_requests_only(cloud: TestCloud) {
    let mut scene = Scene::set(cloud).await;
    let mut wire = scene.connect().await;
    for _ in 0..300 {
        let asking = scene.asking("/");
        let stream = wire.take_stream().await;
        let reset = yamux::header(yamux::WINDOW_UPDATE, yamux::RST, stream, 0);
        assert!(wire.send(reset).await, "the tunnel should live");
        let answer = within("the request ends", asking).await.expect("no panic");
        answer.expect(502);
    }
    let server = wire.serve();
    let answer = scene.ask(Method::GET, "/").await.expect(200);
    assert_eq!(answer.text(), "wire");
    drop(server);
    scene.only_that_session_ended().await;
}

/// A body of 100 MB that is made while it is sent.
fn upload() -> impl stream::Stream<Item = Bytes> + Send + 'static {
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    stream::iter(std::iter::repeat_n(piece, 1_600))
}

async fn tu_13_a_device_that_reads_nothing_ends_its_session(cloud: TestCloud) {
    const UPLOADS: u64 = 100;
    /// What an upload may take in each process: its first window, and copy buffers in both directions.
    const EACH: u64 = 640 << 10;
    let mut scene = Scene::set(cloud).await;
    let silent = WireDevice::connect_narrowly(&scene.device).await;
    scene.online().await;
    let mut uploads = JoinSet::new();
    for _ in 0..UPLOADS {
        let request = scene.alice.forward(&scene.device.id, Method::POST, "/");
        uploads.spawn(request.stream(upload()).send());
    }
    // Meanwhile the neighbour is served.
    for _ in 0..20 {
        scene.neighbour_is_well().await;
    }
    while let Some(answer) = uploads.join_next().await {
        let answer = answer.expect("no panic");
        // 503: its stream was not open yet when the session ended.
        assert!(matches!(answer.status.as_u16(), 502..=504), "{answer:?}");
    }
    scene.little_memory(UPLOADS * EACH);
    scene.before = scene.peaks();
    scene.only_that_session_ended().await;
    drop(silent);
}

async fn tu_13_a_stream_that_takes_nothing_holds_up_itself_only(topology: Topology) {
    const UPLOADS: usize = 10;
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__RESPONSE_HEADER_TIMEOUT", "3s")
        .spawn()
        .await;
    let mut scene = Scene::set(cloud).await;
    let server = scene.connect().await.serve();
    let mut uploads = JoinSet::new();
    for _ in 0..UPLOADS {
        let request = scene.alice.forward(&scene.device.id, Method::POST, "/");
        uploads.spawn(request.stream(upload()).send());
    }
    eventually("the device has them all", async || {
        (server.held() == UPLOADS).then_some(())
    })
    .await;
    for _ in 0..20 {
        let answer = scene.ask(Method::GET, "/").await.expect(200);
        assert_eq!(answer.text(), "wire");
    }
    scene.neighbour_is_well().await;
    while let Some(answer) = uploads.join_next().await {
        let answer = answer.expect("no panic");
        answer.expect_problem(504, "origin_timeout");
    }
    // The same session still serves.
    let answer = scene.ask(Method::GET, "/").await.expect(200);
    assert_eq!(answer.text(), "wire");
    scene.little_memory(MAX_GROWTH);
    drop(server);
    scene.only_that_session_ended().await;
}
