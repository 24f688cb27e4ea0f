//! Switching protocols on the way to a device: to WebSocket, when both ends want it, and to nothing else.

use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::support::{
    Browser, Device, Origin, RawConnection, RawOrigin, TestCloud, eventually, on_both_topologies,
    within,
};

on_both_topologies![
    fw_07_an_upgrade_to_anything_but_websocket_is_not_forwarded,
    fw_07_bytes_behind_an_upgrade_wait_for_the_101,
    fw_07_bytes_behind_a_refused_upgrade_reach_nobody,
    fw_07_a_101_that_nobody_asked_for_is_the_origins_fault,
];

/// The key of RFC 6455 §1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// A masked text frame, as a client sends it.
const FRAME: &[u8] = b"\x81\x85\x00\x00\x00\x00hello";

/// The head of a request to a device, without its last line end.
fn head(alice: &Browser, device: &str, path: &str) -> String {
    format!(
        "GET /api/devices/{device}/http{path} HTTP/1.1\r\nHost: {}\r\nOrigin: {}\r\n\
         Cookie: edgecloud={}\r\nSec-Fetch-Site: same-origin\r\n",
        alice.host(),
        alice.origin(),
        alice.login_cookie(),
    )
}

/// A WebSocket handshake with bytes right behind it, which did not wait for the answer.
fn hasty_handshake(alice: &Browser, device: &str, path: &str) -> Vec<u8> {
    let head = head(alice, device, path);
    let handshake = format!(
        "{head}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    [handshake.as_bytes(), FRAME].concat()
}

async fn fw_07_an_upgrade_to_anything_but_websocket_is_not_forwarded(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    for upgrade in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: foo\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0, HTTP/1.1\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Upgrade: websocket\r\n",
    ] {
        let head = head(&alice, &device.id, "/plain");
        let mut caller = RawConnection::open(cloud.api_addr()).await;
        caller.send(format!("{head}{upgrade}\r\n")).await;
        assert_eq!(caller.read_status().await, 200, "{upgrade:?}");
        let seen = origin.last();
        assert_eq!(seen.target, "/plain");
        for field in ["upgrade", "http2-settings", "connection"] {
            assert_eq!(seen.header(field), "", "{upgrade:?}: {field}");
        }
    }
    // The same field in a handshake that is one.
    let handshake = alice.forward_websocket(&device.id, "/do/websocket");
    handshake.websocket().await.map(drop).expect("a WebSocket");
    assert_eq!(origin.last().header("upgrade"), "websocket");
}

async fn fw_07_bytes_behind_an_upgrade_wait_for_the_101(cloud: TestCloud) {
    let (asked, may_answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (early, late) = (Arc::default(), Arc::default());
    let origin = RawOrigin::spawn({
        let (asked, may_answer) = (Arc::clone(&asked), Arc::clone(&may_answer));
        let (early, late): (Kept, Kept) = (Arc::clone(&early), Arc::clone(&late));
        move |mut stream, head| {
            let (asked, may_answer) = (Arc::clone(&asked), Arc::clone(&may_answer));
            let (early, late) = (Arc::clone(&early), Arc::clone(&late));
            async move {
                if !head.contains("/slow ") {
                    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
                    let _ = stream.write_all(answer.as_bytes()).await;
                    return;
                }
                asked.notify_one();
                may_answer.notified().await;
                let mut ahead = [0; 64];
                let read = stream.try_read(&mut ahead).unwrap_or(0);
                keep(&early, &ahead[..read]);
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                    derive_accept_key(KEY.as_bytes())
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                let mut frame = vec![0; FRAME.len()];
                if stream.read_exact(&mut frame).await.is_ok() {
                    keep(&late, &frame);
                }
                std::future::pending::<()>().await;
            }
        }
    })
    .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let mut caller = RawConnection::open(cloud.api_addr()).await;
    caller
        .send(hasty_handshake(&alice, &device.id, "/slow"))
        .await;
    within("the handshake is at the origin", asked.notified()).await;
    // Whatever went into the tunnel before this has arrived when its answer has.
    let overtaken = alice.forward(&device.id, Method::GET, "/other");
    overtaken.send().await.expect(204);
    may_answer.notify_one();
    let answer = caller.read_head().await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let sent = eventually("the bytes are at the origin", async || {
        let sent = kept(&late);
        (!sent.is_empty()).then_some(sent)
    })
    .await;
    assert_eq!(kept(&early), b"", "nothing came before the 101");
    assert_eq!(sent, FRAME);
}

/// Bytes that an origin has read.
type Kept = Arc<Mutex<Vec<u8>>>;

fn keep(kept: &Kept, bytes: &[u8]) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.extend_from_slice(bytes);
}

fn kept(kept: &Kept) -> Vec<u8> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

async fn fw_07_bytes_behind_a_refused_upgrade_reach_nobody(cloud: TestCloud) {
    let (told, rest) = oneshot::channel();
    let told = Mutex::new(Some(told));
    let origin = RawOrigin::spawn(move |mut stream, _| {
        let told = told.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
            let _ = stream.write_all(refusal.as_bytes()).await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            if let Some(told) = told {
                let _ = told.send(rest);
            }
        }
    })
    .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let mut caller = RawConnection::open(cloud.api_addr()).await;
    caller.send(hasty_handshake(&alice, &device.id, "/")).await;
    assert_eq!(caller.read_status().await, 403);
    let rest = within("the origin has read all", rest).await;
    assert_eq!(rest.expect("the origin tells"), b"");
    assert_eq!(origin.requests(), 1);
}

async fn fw_07_a_101_that_nobody_asked_for_is_the_origins_fault(cloud: TestCloud) {
    let origin = RawOrigin::spawn(|mut stream, head| async move {
        let protocol = if head.contains("/h2c") {
            "h2c"
        } else {
            "websocket"
        };
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nunasked",
            derive_accept_key(KEY.as_bytes())
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        std::future::pending::<()>().await;
    })
    .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    for method in [Method::GET, Method::POST, Method::HEAD] {
        let answer = alice.forward(&device.id, method.clone(), "/").send().await;
        assert_eq!(answer.status, 502, "{method}");
        assert_eq!(answer.header("upgrade"), "", "{method}");
        if method != Method::HEAD {
            answer.expect_problem(502, "origin_invalid");
        }
    }
    // Asked for by somebody whose wish was not passed on, and another protocol than the one asked for.
    let plain = alice.forward(&device.id, Method::GET, "/h2c");
    let plain = plain
        .header("connection", "upgrade")
        .header("upgrade", "h2c");
    plain.send().await.expect_problem(502, "origin_invalid");
    let handshake = alice.forward_websocket(&device.id, "/h2c").websocket();
    let refused = handshake.await.err().expect("no 101");
    refused.expect_problem(502, "origin_invalid");
    alice.wait_for_status(&device.id, "online").await;
}
