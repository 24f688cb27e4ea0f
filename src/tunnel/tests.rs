use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

fn settings(side: Side) -> TunnelSettings {
    TunnelSettings {
        side,
        subprotocol: true,
        heartbeat: Duration::from_secs(15),
        max_streams: 4,
        window_budget: 16 << 20,
        max_message_bytes: 2 << 20,
        clock: Clock::system(),
    }
}

struct End {
    tunnel: Tunnel,
    incoming: mpsc::Receiver<TunnelStream>,
    task: JoinHandle<EndReason>,
}

async fn end_over(io: DuplexStream, side: Side) -> End {
    let settings = settings(side);
    let role = match side {
        Side::Proxy => Role::Server,
        Side::Device => Role::Client,
    };
    let io = Metered::new(io);
    let ws = WebSocketStream::from_raw_socket(io, role, Some(settings.websocket())).await;
    let (tunnel, task, incoming) = Tunnel::over(ws, &settings);
    End {
        tunnel,
        incoming,
        task: tokio::task::spawn(task.run()),
    }
}

async fn pair() -> (End, End) {
    let (near, far) = duplex(64 * 1024);
    (
        end_over(near, Side::Proxy).await,
        end_over(far, Side::Device).await,
    )
}

/// A proxy's end and a hand-driven WebSocket in the place of the device.
async fn proxy_and_raw_device() -> (End, WebSocketStream<DuplexStream>) {
    let (near, far) = duplex(64 * 1024);
    let raw = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    (end_over(near, Side::Proxy).await, raw)
}

async fn close_code(ws: &mut WebSocketStream<DuplexStream>) -> u16 {
    while let Some(Ok(message)) = ws.next().await {
        if let Message::Close(frame) = message {
            return frame.map_or(1005, |frame| frame.code.into());
        }
    }
    panic!("the connection ended without a close frame");
}

use futures_util::{SinkExt, StreamExt};

#[tokio::test]
async fn bytes_cross_both_ways_and_halves_close_one_by_one() {
    let (proxy, mut device) = pair().await;
    let mut near = proxy.tunnel.open().await.expect("open");
    let body = vec![7u8; 3 << 20];
    let sent = body.clone();
    let writer = tokio::task::spawn(async move {
        near.write_all(&sent).await.expect("write");
        near.shutdown().await.expect("half-close");
        let mut answer = Vec::new();
        near.read_to_end(&mut answer)
            .await
            .expect("read the answer");
        answer
    });
    let mut far = device.incoming.recv().await.expect("a stream arrives");
    let mut received = Vec::new();
    far.read_to_end(&mut received)
        .await
        .expect("read to the half-close");
    assert!(received == body);
    far.write_all(b"got it")
        .await
        .expect("write after the other half closed");
    far.shutdown().await.expect("shutdown");
    assert_eq!(writer.await.expect("no panic"), b"got it");
}

#[tokio::test]
async fn a_reset_is_an_error_and_not_a_clean_end() {
    let (proxy, mut device) = pair().await;
    let mut near = proxy.tunnel.open().await.expect("open");
    near.write_all(b"hello").await.expect("write");
    let mut far = device.incoming.recv().await.expect("a stream arrives");
    far.write_all(b"half an ans").await.expect("write");
    far.flush().await.expect("flush");
    drop(far);
    let mut answer = Vec::new();
    let error = near
        .read_to_end(&mut answer)
        .await
        .expect_err("the reset shows");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(answer, b"half an ans");
}

#[tokio::test]
async fn streams_over_the_limit_are_busy_and_free_slots_are_used_again() {
    let (proxy, mut device) = pair().await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(proxy.tunnel.open().await.expect("open"));
    }
    assert_eq!(proxy.tunnel.open().await.err(), Some(OpenError::Busy));
    assert_eq!(proxy.tunnel.open_streams(), 4);
    open.clear();
    let mut stream = proxy.tunnel.open().await.expect("open again");
    stream.write_all(b"x").await.expect("write");
    assert_eq!(
        device
            .incoming
            .recv()
            .await
            .expect("arrives")
            .read_u8()
            .await
            .expect("read"),
        b'x'
    );
}

#[tokio::test]
async fn a_thousand_rounds_of_opening_and_dropping_keep_the_tunnel() {
    let (proxy, mut device) = pair().await;
    let echo = tokio::task::spawn(async move {
        while let Some(mut stream) = device.incoming.recv().await {
            let byte = stream.read_u8().await.expect("read");
            stream.write_u8(byte).await.expect("write");
            stream.flush().await.expect("flush");
        }
    });
    for round in 0..1_000u32 {
        let byte = round.to_be_bytes()[3];
        let mut stream = proxy.tunnel.open().await.expect("open");
        stream.write_u8(byte).await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), byte);
    }
    assert!(!proxy.tunnel.is_ended());
    drop(echo);
}

#[tokio::test]
async fn the_round_trip_time_comes_from_an_echo() {
    let (proxy, device) = pair().await;
    let measured = async {
        while proxy.tunnel.rtt().is_none() || device.tunnel.rtt().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), measured)
        .await
        .expect("both ends measure");
    assert!(proxy.tunnel.last_echo().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_ends_the_tunnel_within_thirty_seconds() {
    let (near, _far) = duplex(64 * 1024);
    let proxy = end_over(near, Side::Proxy).await;
    let started = tokio::time::Instant::now();
    assert_eq!(proxy.tunnel.ended().await, EndReason::HeartbeatLost);
    assert!(started.elapsed() <= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_ends_the_tunnel() {
    let (near, mut far) = duplex(4 * 1024);
    let proxy = end_over(near, Side::Proxy).await;
    let mut stream = proxy.tunnel.open().await.expect("open");
    let writer = tokio::task::spawn(async move { stream.write_all(&[0; 200_000]).await });
    // The device answers pings it never read, so that only the write timeout can tell.
    let alive = tokio::task::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if far.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.is_err() {
                return;
            }
        }
    });
    assert_eq!(proxy.tunnel.ended().await, EndReason::WriteStalled);
    let _ = (writer.await, alive.await);
}

#[tokio::test]
async fn a_text_message_is_refused_with_1003() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    raw.send(Message::text("hello")).await.expect("send");
    assert_eq!(close_code(&mut raw).await, 1003);
    assert_eq!(
        proxy.tunnel.ended().await,
        EndReason::Protocol("text message")
    );
}

#[tokio::test]
async fn an_oversized_message_is_refused_with_1009() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    // The connection may go before all of the message was taken.
    let _ = raw.feed(Message::binary(vec![0; (2 << 20) + 1])).await;
    let (mut sink, mut stream) = raw.split();
    let flushing = tokio::task::spawn(async move { sink.flush().await });
    let mut code = None;
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Close(Some(frame)) = message {
            code = Some(u16::from(frame.code));
        }
    }
    assert_eq!(code, Some(1009));
    assert_eq!(
        proxy.tunnel.ended().await,
        EndReason::Protocol("message too long")
    );
    drop(flushing);
}

#[tokio::test]
async fn yamux_garbage_is_refused_with_1002() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    raw.send(Message::binary(vec![9; 64])).await.expect("send");
    assert_eq!(close_code(&mut raw).await, 1002);
    assert_eq!(proxy.tunnel.ended().await, EndReason::Protocol("yamux"));
}

#[tokio::test]
async fn a_protocol_error_that_the_crate_only_answers_with_go_away_ends_the_tunnel() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    // A data frame with SYN on an odd id, which belongs to the proxy.
    raw.send(Message::binary(vec![0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0]))
        .await
        .expect("send");
    assert_eq!(close_code(&mut raw).await, 1002);
    assert_eq!(proxy.tunnel.ended().await, EndReason::Protocol("yamux"));
}

#[tokio::test]
async fn a_stream_that_the_device_opens_is_reset_and_the_tunnel_lives() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    // A window update with SYN on the even id 2.
    raw.send(Message::binary(vec![0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0]))
        .await
        .expect("send");
    let reset = async {
        while let Some(Ok(message)) = raw.next().await {
            if let Message::Binary(bytes) = message
                && bytes
                    .chunks(12)
                    .any(|frame| frame[3] & 8 != 0 && frame[7] == 2)
            {
                return true;
            }
        }
        false
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(5), reset)
            .await
            .expect("in time")
    );
    assert!(!proxy.tunnel.is_ended());
}

#[tokio::test]
async fn a_ping_flood_ends_the_tunnel() {
    let (proxy, raw) = proxy_and_raw_device().await;
    let (mut sink, mut stream) = raw.split();
    let reader = tokio::task::spawn(async move { while stream.next().await.is_some() {} });
    for _ in 0..200 {
        if sink.send(Message::Ping("x".into())).await.is_err() {
            break;
        }
    }
    assert_eq!(
        proxy.tunnel.ended().await,
        EndReason::Protocol("ping flood")
    );
    reader.await.expect("no panic");
}

#[tokio::test]
async fn closing_says_go_away_and_the_code_and_is_idempotent() {
    let (proxy, device) = pair().await;
    proxy.tunnel.close(CloseReason::Restarting).await;
    proxy.tunnel.close(CloseReason::Done).await;
    assert_eq!(
        proxy.tunnel.ended().await,
        EndReason::Closed(CloseReason::Restarting)
    );
    let seen = device.tunnel.ended().await;
    assert!(
        matches!(seen, EndReason::ClosedByPeer(1012 | 1005)),
        "{seen:?}"
    );
    assert_eq!(proxy.tunnel.open().await.err(), Some(OpenError::Ended));
    assert_eq!(
        proxy.task.await.expect("no panic"),
        EndReason::Closed(CloseReason::Restarting)
    );
}

#[tokio::test]
async fn a_lost_connection_fails_what_is_open() {
    let (near, far) = duplex(64 * 1024);
    let proxy = end_over(near, Side::Proxy).await;
    let mut stream = proxy.tunnel.open().await.expect("open");
    stream.write_all(b"x").await.expect("write");
    drop(far);
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .await
        .expect_err("not a clean end");
    assert_eq!(proxy.tunnel.ended().await, EndReason::Transport);
}

#[tokio::test]
async fn dropping_the_task_cuts_the_tunnel() {
    let (proxy, _device) = pair().await;
    proxy.task.abort();
    assert_eq!(proxy.tunnel.ended().await, EndReason::Transport);
    assert_eq!(proxy.tunnel.open().await.err(), Some(OpenError::Ended));
}
