use std::io;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::*;

/// A connection that is written out only at the third time of asking, as standard output may be.
struct Slow {
    io: DuplexStream,
    refusals: u8,
}

impl AsyncRead for Slow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Slow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.refusals = 2;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.refusals > 0 {
            self.refusals -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

async fn websocket(io: DuplexStream, role: Role) -> WebSocketStream<DuplexStream> {
    WebSocketStream::from_raw_socket(io, role, None).await
}

#[tokio::test]
async fn a_close_behind_the_last_byte_does_not_cut_it_short() {
    let (here, there) = duplex(1 << 16);
    let (local, mut program) = duplex(1 << 16);
    let mut cloud = websocket(there, Role::Server).await;
    for piece in ["all of it", ""] {
        let message = Message::binary(piece.as_bytes().to_vec());
        cloud.send(message).await.expect("sent");
    }
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    cloud.send(Message::Close(Some(close))).await.expect("sent");
    let slow = Slow {
        io: local,
        refusals: 0,
    };
    // This direction has ended before the other end closes.
    program.shutdown().await.expect("ended");
    let relay = Relay::new((here, &[]), Role::Client, slow, &());
    let (end, _, local) = relay.run(std::future::pending()).await;
    drop(local);
    let mut said = String::new();
    program.read_to_string(&mut said).await.expect("read");
    assert_eq!((end, said.as_str()), (RelayEnd::Complete, "all of it"));
}

/// What the other end is told by a relay that gets these messages.
async fn told(messages: Vec<Message>) -> (RelayEnd, u16) {
    let (here, there) = duplex(1 << 22);
    let (local, _program) = duplex(1 << 16);
    let mut caller = websocket(there, Role::Client).await;
    for message in messages {
        caller.send(message).await.expect("there is room");
    }
    let relay = Relay::new((here, &[]), Role::Server, local, &());
    let (end, here, _) = relay.run(std::future::pending()).await;
    drop(here);
    match caller.next().await {
        Some(Ok(Message::Close(Some(close)))) => (end, close.code.into()),
        other => panic!("{end:?}, {other:?}"),
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_is_answered_with_its_code() {
    let end = Message::binary(Vec::new());
    for (messages, code) in [
        (vec![Message::text("words")], 1003),
        (vec![Message::binary(vec![0; 2 << 20])], 1009),
        (vec![end, Message::binary(b"more".to_vec())], 1002),
    ] {
        assert_eq!(told(messages).await, (RelayEnd::Told(code), code));
    }
}

#[tokio::test]
async fn much_passes_whole_in_both_directions_with_pauses_between() {
    let (here, there) = duplex(1 << 16);
    let (local, program) = duplex(1 << 16);
    let relay = Relay::new((here, &[]), Role::Server, local, &());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { relay.run(std::future::pending()).await.0 });
    let (mut from_relay, mut to_relay) = tokio::io::split(program);
    let (mut to_caller, mut from_caller) = websocket(there, Role::Client).await.split();
    for size in [1, 300_000, 7, 0x3ff2, 0x2_0000, 1_000_000] {
        let piece: Vec<u8> = (0..size).map(|at: usize| (at * 7 + size) as u8).collect();
        let upload = to_caller.send(Message::binary(piece.clone()));
        let mut received = vec![0; size];
        let (sent, read) = tokio::join!(upload, from_relay.read_exact(&mut received));
        sent.expect("sent");
        read.expect("read");
        assert!(received == piece, "{size} bytes towards the connection");
        let upload = to_relay.write_all(&piece);
        let download = async {
            let mut received = Vec::new();
            while received.len() < size {
                let message = from_caller.next().await.expect("more").expect("whole");
                received.extend_from_slice(&message.into_data());
            }
            received
        };
        let (written, received) = tokio::join!(upload, download);
        written.expect("written");
        assert!(received == piece, "{size} bytes from the connection");
    }
    drop((to_caller, from_caller));
    assert_eq!(tasks.join_all().await, [RelayEnd::WebSocketLost]);
}

crate::fuzzing::fuzz_target!(tcp_relay, |bytes| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(async {
        for role in [Role::Server, Role::Client] {
            let (here, mut there) = duplex(1 << 16);
            let (local, _program) = duplex(1 << 16);
            there.write_all(bytes).await.expect("there is room");
            there.shutdown().await.expect("ended");
            let relay = Relay::new((here, &[]), role, local, &());
            let (end, _, _) = relay.run(std::future::pending()).await;
            assert_ne!(end, RelayEnd::Complete, "the program has not ended");
        }
    });
});
