//! The tunnel listener and what a device, or somebody who would like to be one, may do there.

use futures_util::{SinkExt, StreamExt};
use http::Method;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::{
    Anonymous, Browser, Manner, RawConnection, RawDevice, TestCloud, Topology, WebSocket,
    eventually, length, on_both_topologies, within,
};

on_both_topologies![
    tu_01_only_a_devices_own_token_opens_a_tunnel,
    cs_12_a_cookie_means_nothing_to_the_tunnel_listener,
    tu_01_a_browser_gets_no_tunnel,
    a_request_that_is_no_handshake_is_told_so,
    tu_02_an_endless_head_is_cut_off,
    tu_05_compression_is_not_offered_back,
    tu_04_a_text_message_ends_the_session,
    tu_10_garbage_ends_the_session_and_nothing_else,
    tu_07_a_window_beyond_all_bounds_ends_the_session,
    tu_03_a_message_that_is_too_long_ends_the_session,
    tu_11_a_stream_that_the_device_opens_is_reset,
    tu_06_a_flood_of_pings_ends_the_session,
    tu_19_the_newest_session_wins,
    a_plain_yamux_client_serves_requests,
    fw_04_a_raw_device_that_talks_nonsense_fails_only_its_own_requests,
    tu_16_a_device_that_never_answers_times_out,
    tu_16_what_was_never_answered_leaves_nothing_behind,
    tu_17_a_device_that_falls_silent_is_offline,
];

async fn tu_01_only_a_devices_own_token_opens_a_tunnel(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let revoked = RawDevice::pair(&cloud, &alice).await;
    let path = format!("/api/devices/{}", revoked.id);
    alice.delete(&path).send().await.expect_success();

    let unknown = edgecloud::device_token::DeviceToken::random();
    let mut changed = device.token.clone();
    let last = if changed.ends_with('a') { "b" } else { "a" };
    changed.replace_range(changed.len() - 1.., last);
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    let mut bodies = Vec::new();
    for authorization in [
        None,
        bearer(&revoked.token),
        bearer(unknown.expose()),
        bearer(&changed),
        bearer(""),
        bearer("junk"),
        bearer(&"x".repeat(5_000)),
        Some(device.token.clone()),
        Some(format!("Basic {}", device.token)),
    ] {
        let handshake = device.handshake().without("authorization");
        let handshake = match &authorization {
            Some(value) => handshake.header("authorization", value),
            None => handshake,
        };
        let refused = handshake.websocket().await.err().expect("no tunnel");
        assert_eq!(refused.status, 401, "{authorization:?}");
        bodies.push(refused.body);
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "one answer for all: {bodies:?}");

    for target in [
        format!("/tunnel?token={}", device.token),
        format!("/tunnel?access_token={}", device.token),
    ] {
        let handshake = RawDevice::anonymous(&cloud, &target).websocket();
        assert_eq!(handshake.await.err().expect("no tunnel").status, 401);
    }
    device.connect().await;
}

async fn cs_12_a_cookie_means_nothing_to_the_tunnel_listener(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let cookie = format!("edgecloud={}", alice.login_cookie());
    let handshake = RawDevice::anonymous(&cloud, "/tunnel").header("cookie", &cookie);
    let refused = handshake.websocket().await.err().expect("no tunnel");
    assert_eq!(refused.status, 401);
    assert!(refused.all("set-cookie").is_empty());
    for target in ["/", "/api/auth/me", "/api/devices", "/metrics"] {
        let request = RawDevice::anonymous(&cloud, target).header("cookie", &cookie);
        let answer = request.send().await;
        assert!(answer.status.is_client_error(), "{target}: {answer:?}");
        assert!(answer.all("set-cookie").is_empty());
    }
    for target in ["/healthz", "/readyz"] {
        RawDevice::anonymous(&cloud, target)
            .send()
            .await
            .expect(200);
    }
}

async fn tu_01_a_browser_gets_no_tunnel(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    for origin in [alice.origin().as_str(), "https://evil.example", "null"] {
        let handshake = device.handshake().header("origin", origin);
        let refused = handshake.websocket().await.err().expect("no tunnel");
        assert_eq!(refused.status, 403, "{origin}");
    }
}

async fn a_request_that_is_no_handshake_is_told_so(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let answer = device.handshake().send().await.expect(426);
    assert_eq!(answer.header("upgrade").to_lowercase(), "websocket");
    RawDevice::anonymous(&cloud, "/tunnel")
        .send()
        .await
        .expect(401);
}

async fn tu_02_an_endless_head_is_cut_off(cloud: TestCloud) {
    let mut connection = RawConnection::open(cloud.tunnel_addr()).await;
    let head = format!(
        "GET /tunnel HTTP/1.1\r\nHost: x\r\nX-Long: {}",
        "a".repeat(20_000)
    );
    connection.send(head).await;
    let answer = connection.read_to_end().await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
}

async fn tu_05_compression_is_not_offered_back(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let opened = device
        .handshake()
        .header("sec-websocket-extensions", "permessage-deflate")
        .websocket()
        .await
        .expect("a tunnel");
    assert!(!opened.headers.contains_key("sec-websocket-extensions"));
}

/// A device that is connected and online, and another that must not notice anything.
struct Scene {
    alice: Browser,
    device: RawDevice,
    neighbour: RawDevice,
    _neighbours_tunnel: crate::support::ServedDevice,
}

impl Scene {
    async fn set(cloud: &TestCloud) -> (Self, WebSocket) {
        let alice = Browser::sign_in(cloud, "alice").await;
        let device = RawDevice::pair(cloud, &alice).await;
        let neighbour = RawDevice::pair(cloud, &alice).await;
        let served = neighbour.serve(Manner::Says("neighbour")).await;
        let opened = device.connect().await;
        alice.wait_for_status(&device.id, "online").await;
        alice.wait_for_status(&neighbour.id, "online").await;
        let scene = Self {
            alice,
            device,
            neighbour,
            _neighbours_tunnel: served,
        };
        (scene, opened)
    }

    /// The session has ended, the device may come back, and the neighbour is as before.
    async fn only_that_session_ended(&self) {
        self.alice.wait_for_status(&self.device.id, "offline").await;
        let back = self.device.serve(Manner::Says("back")).await;
        self.alice.wait_for_status(&self.device.id, "online").await;
        for (device, words) in [(&self.device, "back"), (&self.neighbour, "neighbour")] {
            let answer = self
                .alice
                .forward(&device.id, Method::GET, "/")
                .send()
                .await;
            assert_eq!(answer.expect(200).text(), words);
        }
        drop(back);
    }
}

/// How the other side ends a tunnel: its close code, or `None` when it just hangs up.
async fn ending(opened: &mut WebSocket) -> Option<CloseCode> {
    within("the end of the tunnel", async {
        loop {
            match opened.socket.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    })
    .await
}

async fn tu_04_a_text_message_ends_the_session(cloud: TestCloud) {
    let (scene, mut opened) = Scene::set(&cloud).await;
    opened
        .socket
        .send(Message::text("hello"))
        .await
        .expect("sent");
    let code = ending(&mut opened).await.expect("a close code");
    assert!(
        matches!(code, CloseCode::Protocol | CloseCode::Unsupported),
        "{code}"
    );
    scene.only_that_session_ended().await;
}

async fn tu_10_garbage_ends_the_session_and_nothing_else(cloud: TestCloud) {
    let (scene, mut opened) = Scene::set(&cloud).await;
    for garbage in [
        vec![0xffu8; 64],
        // Another version, an unknown type, data for stream 0.
        yamux_frame(1, 0, 0, 1, 0),
        yamux_frame(0, 9, 0, 1, 0),
    ] {
        opened
            .socket
            .send(Message::binary(garbage))
            .await
            .expect("sent");
        ending(&mut opened).await;
        scene
            .alice
            .wait_for_status(&scene.device.id, "offline")
            .await;
        opened = scene.device.connect().await;
        scene
            .alice
            .wait_for_status(&scene.device.id, "online")
            .await;
    }
    opened.socket.close(None).await.expect("sent");
    ending(&mut opened).await;
    scene.only_that_session_ended().await;
}

/// A header of yamux (hashicorp yamux spec, "Framing").
fn yamux_frame(version: u8, kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut frame = vec![version, kind];
    frame.extend(flags.to_be_bytes());
    frame.extend(stream.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame
}

/// The stream that whole frames open, if they do.
fn opened_stream(mut frames: &[u8]) -> Option<u32> {
    while frames.len() >= 12 {
        let flags = u16::from_be_bytes([frames[2], frames[3]]);
        let stream = u32::from_be_bytes([frames[4], frames[5], frames[6], frames[7]]);
        if stream != 0 && flags & SYN != 0 {
            return Some(stream);
        }
        let length = u32::from_be_bytes([frames[8], frames[9], frames[10], frames[11]]);
        let body = if frames[0..2] == [0, DATA] { length } else { 0 };
        frames = frames.get(12 + body as usize..)?;
    }
    None
}

const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
const SYN: u16 = 1;
const RST: u16 = 8;

async fn tu_07_a_window_beyond_all_bounds_ends_the_session(cloud: TestCloud) {
    let (scene, mut opened) = Scene::set(&cloud).await;
    // A request opens stream 1 or a later odd one; its window is then blown up twice.
    let (alice, id) = (scene.alice.clone(), scene.device.id.clone());
    let asking = tokio::spawn(async move {
        let answer = alice.forward(&id, Method::POST, "/").send().await;
        assert!(answer.status.is_server_error(), "{answer:?}");
    });
    let stream = within("a stream opens", async {
        loop {
            match opened.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Some(stream) = opened_stream(&bytes) {
                        break stream;
                    }
                }
                Some(Ok(_)) => {}
                other => panic!("the tunnel should live: {other:?}"),
            }
        }
    })
    .await;
    for _ in 0..2 {
        let huge = yamux_frame(0, WINDOW_UPDATE, 0, stream, u32::MAX);
        // The tunnel may be gone after the first.
        let _ = opened.socket.send(Message::binary(huge)).await;
    }
    ending(&mut opened).await;
    within("the request ends", asking).await.expect("no panic");
    scene.only_that_session_ended().await;
}

async fn tu_03_a_message_that_is_too_long_ends_the_session(cloud: TestCloud) {
    let (scene, mut opened) = Scene::set(&cloud).await;
    let too_long = Message::binary(vec![0u8; (2 << 20) + 1]);
    // It may hang up while the message is still on its way.
    let _ = opened.socket.send(too_long).await;
    ending(&mut opened).await;
    scene.only_that_session_ended().await;
}

async fn tu_11_a_stream_that_the_device_opens_is_reset(cloud: TestCloud) {
    let (scene, mut opened) = Scene::set(&cloud).await;
    let open = yamux_frame(0, WINDOW_UPDATE, SYN, 2, 0);
    opened
        .socket
        .send(Message::binary(open))
        .await
        .expect("sent");
    within("a reset of stream 2", async {
        loop {
            match opened.socket.next().await {
                Some(Ok(Message::Binary(bytes))) if resets(&bytes, 2) => return,
                Some(Ok(_)) => {}
                other => panic!("a reset should come: {other:?}"),
            }
        }
    })
    .await;
    let shown = scene.alice.device(&scene.device.id).await;
    assert_eq!(shown["status"], "online");
}

/// Whether headers alone, as a side without open streams sends them, reset a stream.
fn resets(bytes: &[u8], stream: u32) -> bool {
    bytes.chunks_exact(12).any(|frame| {
        u16::from_be_bytes([frame[2], frame[3]]) & RST != 0 && frame[4..8] == stream.to_be_bytes()
    })
}

async fn tu_06_a_flood_of_pings_ends_the_session(cloud: TestCloud) {
    let (scene, mut opened) = Scene::set(&cloud).await;
    for _ in 0..1_000 {
        // It hangs up before all are sent.
        if opened
            .socket
            .send(Message::Ping("flood".into()))
            .await
            .is_err()
        {
            break;
        }
    }
    ending(&mut opened).await;
    scene.only_that_session_ended().await;
}

async fn tu_19_the_newest_session_wins(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__SERVER__DRAIN_TIMEOUT", "1s")
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let ask = || async {
        let answer = alice.forward(&device.id, Method::GET, "/").send().await;
        answer.expect(200).text()
    };
    let old = device.serve(Manner::Says("old")).await;
    alice.wait_for_status(&device.id, "online").await;
    assert_eq!(ask().await, "old");
    let new = device.serve(Manner::Says("new")).await;
    eventually("the new session answers", async || {
        (ask().await == "new").then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(ask().await, "new");
    }
    old.ended().await;
    assert!(!new.is_ended());
    assert_eq!(ask().await, "new");
    assert_eq!(alice.device(&device.id).await["status"], "online");
}

async fn a_plain_yamux_client_serves_requests(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let _served = device.serve(Manner::Says("plain")).await;
    alice.wait_for_status(&device.id, "online").await;
    let mut askers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (alice, id) = (alice.clone(), device.id.clone());
        askers.spawn(async move {
            let answer = alice.forward(&id, Method::GET, "/").send().await;
            answer.expect(200).text()
        });
    }
    let answers = askers.join_all().await;
    assert!(answers.iter().all(|text| text == "plain"), "{answers:?}");
}

async fn fw_04_a_raw_device_that_talks_nonsense_fails_only_its_own_requests(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let _served = device.serve(Manner::Blurts("nonsense\r\n\r\n")).await;
    alice.wait_for_status(&device.id, "online").await;
    for _ in 0..3 {
        let answer = alice.forward(&device.id, Method::POST, "/").send().await;
        answer.expect_problem(502, "origin_invalid");
    }
    assert_eq!(alice.device(&device.id).await["status"], "online");
    // A 101 that nobody asked for opens nothing.
    let other = RawDevice::pair(&cloud, &alice).await;
    let switched =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n";
    let _served = other.serve(Manner::Blurts(switched)).await;
    alice.wait_for_status(&other.id, "online").await;
    alice
        .forward(&other.id, Method::POST, "/")
        .send()
        .await
        .expect(502);
    Anonymous::of(&cloud)
        .get("/healthz")
        .send()
        .await
        .expect(200);
}

async fn tu_16_a_device_that_never_answers_times_out(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__RESPONSE_HEADER_TIMEOUT", "1s")
        .setting("EDGECLOUD__LIMITS__STREAM_OPEN_TIMEOUT", "1s")
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let _served = device.serve(Manner::Silent).await;
    alice.wait_for_status(&device.id, "online").await;
    for method in [Method::GET, Method::POST] {
        let answer = alice.forward(&device.id, method, "/").send().await;
        answer.expect_problem(504, "origin_timeout");
    }
}

async fn tu_16_what_was_never_answered_leaves_nothing_behind(topology: Topology) {
    const AT_ONCE: usize = 100;
    const MAX_GROWTH_KIB: u64 = 16 * 1024;
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__RESPONSE_HEADER_TIMEOUT", "1s")
        .setting("EDGECLOUD__LIMITS__STREAM_OPEN_TIMEOUT", "1s")
        // One that stayed behind would be in the way of the next round.
        .setting("EDGECLOUD__TUNNEL__MAX_STREAMS_PER_SESSION", AT_ONCE)
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let _served = device.serve(Manner::Silent).await;
    alice.wait_for_status(&device.id, "online").await;
    let mut memory = Vec::new();
    for _ in 0..length(10_000, 300) / AT_ONCE {
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE {
            asking.spawn(alice.forward(&device.id, Method::GET, "/").send());
        }
        for answer in asking.join_all().await {
            answer.expect_problem(504, "origin_timeout");
        }
        memory.push(
            cloud
                .processes()
                .map(|process| process.memory_kib())
                .sum::<u64>(),
        );
    }
    // What is made once is there after the first round.
    let grown = memory[memory.len() - 1].saturating_sub(memory[0]);
    assert!(grown <= MAX_GROWTH_KIB, "{memory:?} KiB");
}

async fn tu_17_a_device_that_falls_silent_is_offline(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__TUNNEL__HEARTBEAT", "1s")
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    // From here on nobody reads what arrives, and the connection stays open.
    let silent = device.connect().await;
    alice.wait_for_status(&device.id, "online").await;
    let pending = alice.forward(&device.id, Method::POST, "/").send();
    let pending = tokio::spawn(pending);
    let shown = alice.wait_for_status(&device.id, "offline").await;
    assert_eq!(shown["reason"], "disconnected");
    let answer = within("the request ends", pending).await.expect("no panic");
    assert!(matches!(answer.status.as_u16(), 502 | 504), "{answer:?}");
    drop(silent);
}
