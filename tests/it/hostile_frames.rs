//! Frames that are none, below and inside the tunnel's WebSocket: each ends its own session, with the
//! code that says why.

use http::Method;

use crate::support::{
    Browser, Manner, RawConnection, RawDevice, ServedDevice, TestCloud, Topology, WireDevice,
    length, on_both_topologies, within, yamux,
};

on_both_topologies![
    tu_02_a_slow_head_at_the_tunnels_door_is_cut_off,
    tu_03_lengths_and_fragments_beyond_the_limit_end_the_session,
    tu_04_frames_that_break_the_rules_end_the_session,
    tu_06_a_flood_of_empty_frames_disturbs_nobody,
    tu_07_a_window_beyond_all_bounds_on_a_new_stream_ends_the_session,
    tu_10_every_kind_of_header_ends_the_session_at_most,
];

/// A device that is about to misbehave, and a neighbour in the same process.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: RawDevice,
    neighbour: RawDevice,
    _served: ServedDevice,
}

impl Scene {
    async fn set(cloud: TestCloud) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let device = RawDevice::pair(&cloud, &alice).await;
        let neighbour = RawDevice::pair(&cloud, &alice).await;
        let served = neighbour.serve(Manner::Says("neighbour")).await;
        alice.wait_for_status(&neighbour.id, "online").await;
        Self {
            cloud,
            alice,
            device,
            neighbour,
            _served: served,
        }
    }

    async fn connect(&self) -> WireDevice {
        let wire = WireDevice::connect(&self.device).await;
        self.alice.wait_for_status(&self.device.id, "online").await;
        wire
    }

    /// The session has ended and everything else is as before.
    async fn only_that_session_ended(&self) {
        self.alice.wait_for_status(&self.device.id, "offline").await;
        let request = self.alice.forward(&self.neighbour.id, Method::GET, "/");
        assert_eq!(request.send().await.expect(200).text(), "neighbour");
    }
}

/// A frame with a payload of less than 126 bytes; the mask is nothing but zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short payload");
    assert!(length < 126, "a short payload");
    [&[first, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

/// A frame whose header states the length in eight bytes, and what there is of its payload.
fn long_frame(first: u8, length: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, 0xff];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

async fn tu_02_a_slow_head_at_the_tunnels_door_is_cut_off(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__HEADER_READ_TIMEOUT", "1s")
        .spawn()
        .await;
    let scene = Scene::set(cloud).await;
    let mut slow = Vec::new();
    for beginning in ["", "GET /tun", "GET /tunnel HTTP/1.1\r\nHost: x\r\nX-A: "] {
        for _ in 0..length(3_334, 100) {
            let mut device = RawConnection::open(scene.cloud.tunnel_addr()).await;
            device.send(beginning).await;
            slow.push(device);
        }
    }
    // Others are let in meanwhile.
    let wire = scene.connect().await;
    for mut device in slow {
        device.send_what_is_taken("x").await;
        let told = device.read_to_end().await;
        let told = String::from_utf8_lossy(&told);
        assert!(!told.contains(" 101 "), "{told}");
    }
    wire.leave().await;
    scene.only_that_session_ended().await;
}

async fn tu_03_lengths_and_fragments_beyond_the_limit_end_the_session(cloud: TestCloud) {
    const LIMIT: u64 = 2 << 20;
    let scene = Scene::set(cloud).await;
    // Refused as soon as it is announced.
    for length in [LIMIT + 1, u64::from(u32::MAX), 1 << 62, 1 << 63, u64::MAX] {
        let mut wire = scene.connect().await;
        wire.send_below(&long_frame(0x82, length, b"x")).await;
        let code = wire.ended().await;
        assert!(matches!(code, Some(1002 | 1009)), "{length}: {code:?}");
        scene.only_that_session_ended().await;
    }
    // A message in pieces that never ends, all of it the body of a frame for a stream that is gone.
    let mut wire = scene.connect().await;
    let frame = yamux::header(yamux::DATA, 0, 99, 4 << 20);
    assert!(
        wire.send_below(&long_frame(0x02, frame.len() as u64, &frame))
            .await
    );
    let piece = vec![0; 64 << 10];
    let mut sent = 0;
    while wire.send_below(&long_frame(0x00, 64 << 10, &piece)).await {
        sent += piece.len() as u64;
        if sent > LIMIT {
            break;
        }
    }
    let code = wire.ended().await;
    assert!(matches!(code, Some(1009) | None), "{code:?}");
    scene.only_that_session_ended().await;
}

async fn tu_04_frames_that_break_the_rules_end_the_session(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let frames = [
        ("not masked", vec![0x82, 1, b'x']),
        ("reserved bit 1, as of compression", frame(0xc2, b"x")),
        ("reserved bit 2", frame(0xa2, b"x")),
        ("reserved bit 3", frame(0x92, b"x")),
        ("a data frame of no known kind", frame(0x83, b"x")),
        ("a control frame of no known kind", frame(0x8b, b"x")),
        ("a long ping", long_frame(0x89, 126, &[0; 126])),
        ("a ping in pieces", frame(0x09, b"x")),
        ("a close in pieces", frame(0x08, &[3, 232])),
        ("a close with half a code", frame(0x88, &[3])),
        ("a continuation of nothing", frame(0x80, b"x")),
        (
            "a message within a message",
            [frame(0x02, b"x"), frame(0x82, b"x")].concat(),
        ),
        ("a text", frame(0x81, b"x")),
        ("a text that is none", frame(0x81, &[0xff])),
    ];
    for (what, bytes) in frames {
        let mut wire = scene.connect().await;
        assert!(wire.send_below(&bytes).await, "{what}");
        let code = wire.ended().await;
        assert!(matches!(code, Some(1002 | 1003 | 1007)), "{what}: {code:?}");
        scene.only_that_session_ended().await;
    }
}

async fn tu_06_a_flood_of_empty_frames_disturbs_nobody(cloud: TestCloud) {
    const FRAMES: usize = 100_000;
    let scene = Scene::set(cloud).await;
    for first in [0x82, 0x8a] {
        let mut wire = scene.connect().await;
        let flood = frame(first, b"").repeat(FRAMES / 100);
        // Cut off on the way or borne to its end: both will do.
        for _ in 0..100 {
            if !wire.send_below(&flood).await {
                break;
            }
        }
        let request = scene.alice.forward(&scene.neighbour.id, Method::GET, "/");
        assert_eq!(request.send().await.expect(200).text(), "neighbour");
        wire.leave().await;
        scene.only_that_session_ended().await;
    }
}

async fn tu_07_a_window_beyond_all_bounds_on_a_new_stream_ends_the_session(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let mut wire = scene.connect().await;
    let opened = yamux::header(yamux::WINDOW_UPDATE, yamux::SYN, 2, u32::MAX);
    let again = yamux::header(yamux::WINDOW_UPDATE, 0, 2, u32::MAX);
    assert!(wire.send([opened, again].concat()).await);
    wire.leave().await;
    scene.only_that_session_ended().await;
    // On one that the cloud has opened, with the ACK.
    let mut wire = scene.connect().await;
    let request = scene.alice.forward(&scene.device.id, Method::POST, "/");
    let asking = tokio::spawn(request.send());
    let stream = wire.take_stream().await;
    let taken = yamux::header(yamux::WINDOW_UPDATE, yamux::ACK, stream, u32::MAX);
    wire.send([taken.clone(), taken].concat()).await;
    wire.ended().await;
    let answer = within("the request ends", asking).await.expect("no panic");
    assert!(answer.status.is_server_error(), "{answer:?}");
    scene.only_that_session_ended().await;
}

async fn tu_10_every_kind_of_header_ends_the_session_at_most(cloud: TestCloud) {
    /// Fewer than make a flood of pings.
    const QUESTIONS: u32 = 80;
    let mut scene = Scene::set(cloud).await;
    let (mut wire, mut asked) = (scene.connect().await, 0);
    // Every flag with every other, and some that have no meaning.
    for flags in (0..16).chain([0x10, 0x100, 0x8000, 0xfff0, 0xffff]) {
        for kind in 0..=4 {
            // Of the session, of the device's own parity, and of the cloud's.
            for stream in [0, 2, 1, u32::MAX] {
                let header = yamux::header(kind, flags, stream, 0);
                // Twice: what is open by now is opened again, what is closed is closed again.
                let taken = wire.send(header.repeat(2)).await;
                asked += 1;
                if !taken || asked == QUESTIONS || wire.has_ended().await {
                    (wire, asked) = (WireDevice::connect(&scene.device).await, 0);
                }
            }
        }
    }
    wire.leave().await;
    scene.only_that_session_ended().await;
    for version in [1, 0xff] {
        let mut header = yamux::header(yamux::WINDOW_UPDATE, 0, 1, 0);
        header[0] = version;
        let mut wire = scene.connect().await;
        assert!(wire.send(header).await);
        wire.ended().await;
        scene.only_that_session_ended().await;
    }
    for process in [crate::support::Part::Api, crate::support::Part::Proxy] {
        scene.cloud.process(process).check_running();
    }
}
