use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

mod fuzzing;
mod hostile;
mod other_ends;
mod streams;

fn settings(side: Side) -> TunnelSettings {
    TunnelSettings {
        side,
        subprotocol: true,
        heartbeat: Duration::from_secs(15),
        max_streams: 4,
        window_budget: 16 << 20,
        process_budget: WindowBudget::new(16 << 20),
        max_message_bytes: 2 << 20,
        clock: Clock::system(),
    }
}

struct End {
    tunnel: Tunnel,
    incoming: mpsc::Receiver<TunnelStream>,
    task: JoinHandle<EndReason>,
}

fn end_over(io: DuplexStream, side: Side) -> End {
    let (tunnel, task, incoming) = Tunnel::over(io, Bytes::new(), &settings(side));
    End {
        tunnel,
        incoming,
        task: tokio::task::spawn(task.run()),
    }
}

fn pair() -> (End, End) {
    let (near, far) = duplex(64 * 1024);
    (end_over(near, Side::Proxy), end_over(far, Side::Device))
}

/// A proxy's end and a hand-driven WebSocket in the place of the device.
async fn proxy_and_raw_device() -> (End, WebSocketStream<DuplexStream>) {
    let (near, far) = duplex(64 * 1024);
    let raw = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    (end_over(near, Side::Proxy), raw)
}

async fn close_code(ws: &mut WebSocketStream<DuplexStream>) -> u16 {
    while let Some(Ok(message)) = ws.next().await {
        if let Message::Close(frame) = message {
            return frame.map_or(1005, |frame| frame.code.into());
        }
    }
    panic!("the connection ended without a close frame");
}

#[tokio::test]
async fn the_round_trip_time_comes_from_an_echo() {
    let (proxy, device) = pair();
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

#[tokio::test]
async fn closing_says_go_away_and_the_code_and_is_idempotent() {
    let (proxy, device) = pair();
    proxy.tunnel.close(CloseReason::Restarting);
    proxy.tunnel.close(CloseReason::Done);
    assert_eq!(
        proxy.tunnel.ended().await,
        EndReason::Closed(CloseReason::Restarting)
    );
    let seen = device.tunnel.ended().await;
    assert!(
        matches!(seen, EndReason::ClosedByPeer(1012 | 1005)),
        "{seen:?}"
    );
    assert_eq!(proxy.tunnel.open().err(), Some(OpenError::Ended));
    assert_eq!(
        proxy.task.await.expect("no panic"),
        EndReason::Closed(CloseReason::Restarting)
    );
}

#[tokio::test]
async fn a_lost_connection_fails_what_is_open() {
    let (near, far) = duplex(64 * 1024);
    let proxy = end_over(near, Side::Proxy);
    let mut stream = proxy.tunnel.open().expect("open");
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
    let (proxy, _device) = pair();
    proxy.task.abort();
    assert_eq!(proxy.tunnel.ended().await, EndReason::Transport);
    assert_eq!(proxy.tunnel.open().err(), Some(OpenError::Ended));
}
