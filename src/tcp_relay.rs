//! One TCP connection's bytes over a WebSocket, the same at both ends: the cloud's, and that of
//! `edgecloud tcp`.
//!
//! Binary messages carry the bytes; where one ends means nothing. An empty one ends its direction, as
//! a FIN does: WebSocket itself has no half-close. When both directions have ended, the WebSocket is
//! closed with 1000; any other close code, or none, means that bytes may be missing.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::io::poll_read_buf;

use crate::tunnel::Metered;

/// Bytes of the connection that one message carries at most.
const MESSAGE_BYTES: usize = 64 * 1024;
/// Largest message that is accepted, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Resident read buffer of a WebSocket, in bytes.
const READ_BUFFER: usize = 32 * 1024;
/// Most bytes that wait in the WebSocket's write buffer.
const MAX_WRITE_BUFFER: usize = 256 * 1024;
/// Time between two pings: proxies on the way must not take a quiet connection for a dead one.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Pings without any sign of life after which the other side is gone.
const MAX_UNANSWERED: u8 = 2;
/// Close code for a connection that broke; of the range for applications (RFC 6455 §7.4.2).
const CONNECTION_LOST: u16 = 4502;
/// How long the last words may take.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// Rounds of work in one wake-up before other tasks get a turn.
const MAX_ROUNDS: usize = 16;

/// The limits of the WebSocket below.
pub fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayEnd {
    /// Both directions ended, every byte arrived.
    Complete,
    /// The other end of the WebSocket closed it early, with this code (1005 when it gave none).
    Closed(u16),
    /// The WebSocket broke off or its other end is silent.
    WebSocketLost,
    /// The connection was reset.
    ConnectionLost,
    /// It was told to end, with this code.
    Told(u16),
}

/// Counts the bytes that cross.
pub trait Count {
    /// Bytes that came by the WebSocket and were written into the connection.
    fn received(&self, bytes: usize);
    /// Bytes that were read from the connection, for the WebSocket.
    fn sent(&self, bytes: usize);
}

impl Count for () {
    fn received(&self, _: usize) {}
    fn sent(&self, _: usize) {}
}

/// Where the direction out of the WebSocket stands.
enum Inbound {
    Open,
    /// The last byte is written; the connection's sending half is being closed.
    Ending,
    Ended,
}

struct Closing {
    end: RelayEnd,
    /// The close code, until it is sent.
    code: Option<u16>,
    deadline: Pin<Box<Sleep>>,
    /// The other end's close frame has come, and ours is the answer.
    answered: bool,
}

/// A WebSocket and a connection, joined.
pub struct Relay<'a, W, C, K> {
    ws: WebSocketStream<Metered<W>>,
    connection: C,
    count: &'a K,
    waiting: Bytes,
    inbound: Inbound,
    outbound_ended: bool,
    buffer: BytesMut,
    /// The WebSocket takes nothing at the moment.
    is_blocked: bool,
    life: Life,
    closing: Option<Closing>,
}

/// Looks for signs of life at each ping.
struct Life {
    ping: Pin<Box<Sleep>>,
    received: u64,
    sent: u64,
    misses: u8,
}

impl<'a, W, C, K> Relay<'a, W, C, K>
where
    W: AsyncRead + AsyncWrite + Unpin,
    C: AsyncRead + AsyncWrite + Unpin,
    K: Count,
{
    /// Joins them.
    pub fn new(ws: WebSocketStream<Metered<W>>, connection: C, count: &'a K) -> Self {
        Self {
            ws,
            connection,
            count,
            waiting: Bytes::new(),
            inbound: Inbound::Open,
            outbound_ended: false,
            buffer: BytesMut::new(),
            is_blocked: false,
            life: Life {
                ping: Box::pin(sleep_until(Instant::now() + PING_EVERY)),
                received: 0,
                sent: 0,
                misses: 0,
            },
            closing: None,
        }
    }

    /// Moves bytes until both directions have ended or something breaks, and gives both ends back; when
    /// `told` comes with a close code, the other end is told that.
    pub async fn run(mut self, told: impl Future<Output = u16>) -> (RelayEnd, Metered<W>, C) {
        let mut told = std::pin::pin!(told);
        let mut listening = true;
        let end = std::future::poll_fn(|cx| {
            if listening && let Poll::Ready(code) = told.as_mut().poll(cx) {
                listening = false;
                self.begin_close(RelayEnd::Told(code), code);
            }
            self.poll_relay(cx)
        })
        .await;
        (end, self.ws.into_inner(), self.connection)
    }

    fn poll_relay(&mut self, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        for _ in 0..MAX_ROUNDS {
            let moved = match self.closing {
                None => self.work(cx),
                Some(_) => self.part(cx),
            };
            match moved {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(end) => return Poll::Ready(end),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One round; tells whether anything moved.
    fn work(&mut self, cx: &mut Context<'_>) -> Result<bool, RelayEnd> {
        let mut moved = self.write_connection(cx);
        moved |= self.read_websocket(cx)?;
        moved |= self.read_connection(cx)?;
        self.keep_alive(cx)?;
        if matches!(self.inbound, Inbound::Ended) && self.outbound_ended {
            self.begin_close(RelayEnd::Complete, 1000);
        }
        Ok(moved || self.closing.is_some())
    }

    fn write_connection(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while !self.waiting.is_empty() {
            match Pin::new(&mut self.connection).poll_write(cx, &self.waiting) {
                Poll::Pending => return moved,
                Poll::Ready(Ok(written)) if written > 0 => {
                    self.count.received(written);
                    self.waiting.advance(written);
                    moved = true;
                }
                Poll::Ready(_) => return self.connection_lost(),
            }
        }
        if matches!(self.inbound, Inbound::Ended) {
            return moved;
        }
        // Also before its end: standard output is not written out by a shutdown.
        let mut polled = Pin::new(&mut self.connection).poll_flush(cx);
        if matches!(self.inbound, Inbound::Ending) && matches!(polled, Poll::Ready(Ok(()))) {
            polled = Pin::new(&mut self.connection).poll_shutdown(cx);
            if matches!(polled, Poll::Ready(Ok(()))) {
                self.inbound = Inbound::Ended;
                moved = true;
            }
        }
        match polled {
            Poll::Ready(Err(_)) => self.connection_lost(),
            _ => moved,
        }
    }

    fn read_websocket(&mut self, cx: &mut Context<'_>) -> Result<bool, RelayEnd> {
        // What has come is brought to its end first: a close behind it must not cut it short.
        let busy = !self.waiting.is_empty() || matches!(self.inbound, Inbound::Ending);
        if self.closing.is_some() || busy {
            return Ok(false);
        }
        let Poll::Ready(message) = self.ws.poll_next_unpin(cx) else {
            return Ok(false);
        };
        match message {
            Some(Ok(Message::Binary(bytes))) => match self.inbound {
                Inbound::Open if bytes.is_empty() => self.inbound = Inbound::Ending,
                Inbound::Open => self.waiting = bytes,
                Inbound::Ending | Inbound::Ended => {
                    self.begin_close(RelayEnd::Told(1002), 1002);
                }
            },
            Some(Ok(Message::Text(_))) => self.begin_close(RelayEnd::Told(1003), 1003),
            Some(Ok(Message::Close(frame))) => {
                let code = frame.map_or(1005, |frame| frame.code.into());
                let done = matches!(self.inbound, Inbound::Ended) && self.outbound_ended;
                let end = match done {
                    true => RelayEnd::Complete,
                    false => RelayEnd::Closed(code),
                };
                self.begin_close(end, code);
                if let Some(closing) = &mut self.closing {
                    // The answer is queued already.
                    closing.answered = true;
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(WsError::Capacity(_))) => self.begin_close(RelayEnd::Told(1009), 1009),
            Some(Err(_)) | None => return Err(RelayEnd::WebSocketLost),
        }
        Ok(true)
    }

    /// Takes from the connection only what the WebSocket can send on.
    fn read_connection(&mut self, cx: &mut Context<'_>) -> Result<bool, RelayEnd> {
        let mut moved = false;
        loop {
            match self.ws.poll_flush_unpin(cx) {
                Poll::Ready(Ok(())) => self.is_blocked = false,
                Poll::Ready(Err(_)) => return Err(RelayEnd::WebSocketLost),
                Poll::Pending => {
                    self.is_blocked = true;
                    return Ok(moved);
                }
            }
            if self.outbound_ended || self.closing.is_some() || moved {
                return Ok(moved);
            }
            self.buffer.reserve(MESSAGE_BYTES);
            let polled = poll_read_buf(Pin::new(&mut self.connection), cx, &mut self.buffer);
            let read = match polled {
                Poll::Ready(Ok(read)) => read,
                Poll::Ready(Err(_)) => return Ok(self.connection_lost()),
                Poll::Pending => {
                    if self.buffer.is_empty() {
                        // A quiet connection holds no buffer.
                        self.buffer = BytesMut::new();
                    }
                    return Ok(moved);
                }
            };
            self.count.sent(read);
            self.outbound_ended = read == 0;
            let bytes = self.buffer.split().freeze();
            self.send(Message::Binary(bytes))?;
            moved = true;
        }
    }

    fn send(&mut self, message: Message) -> Result<(), RelayEnd> {
        self.ws
            .start_send_unpin(message)
            .map_err(|_| RelayEnd::WebSocketLost)
    }

    fn keep_alive(&mut self, cx: &mut Context<'_>) -> Result<(), RelayEnd> {
        while self.life.ping.as_mut().poll(cx).is_ready() {
            self.life.ping.as_mut().reset(Instant::now() + PING_EVERY);
            let traffic = self.ws.get_ref().traffic();
            let (received, sent) = (traffic.received(), traffic.sent());
            let heard = received != self.life.received;
            let took = self.is_blocked && sent != self.life.sent;
            (self.life.received, self.life.sent) = (received, sent);
            // Nobody is heard who is not listened to.
            let deaf = !self.waiting.is_empty() || matches!(self.inbound, Inbound::Ending);
            self.life.misses = match heard || took || deaf {
                true => 0,
                false => self.life.misses + 1,
            };
            if self.life.misses > MAX_UNANSWERED {
                return Err(RelayEnd::WebSocketLost);
            }
            if !self.is_blocked {
                self.send(Message::Ping(Bytes::new()))?;
            }
        }
        Ok(())
    }

    /// The connection was reset: the other end must not take what it has for all.
    fn connection_lost(&mut self) -> bool {
        self.begin_close(RelayEnd::ConnectionLost, CONNECTION_LOST);
        true
    }

    fn begin_close(&mut self, end: RelayEnd, code: u16) {
        if self.closing.is_none() {
            self.waiting = Bytes::new();
            self.closing = Some(Closing {
                end,
                code: Some(code),
                deadline: Box::pin(sleep_until(Instant::now() + CLOSE_GRACE)),
                answered: false,
            });
        }
    }

    /// One round of the end.
    fn part(&mut self, cx: &mut Context<'_>) -> Result<bool, RelayEnd> {
        let Some(closing) = &mut self.closing else {
            return Ok(false);
        };
        let end = closing.end;
        if closing.deadline.as_mut().poll(cx).is_ready() {
            return Err(end);
        }
        let flushed = match self.ws.poll_flush_unpin(cx) {
            Poll::Ready(Ok(())) => true,
            // An answered close ends with an error, which says that all is said.
            Poll::Ready(Err(_)) => return Err(end),
            Poll::Pending => false,
        };
        if closing.answered {
            return if flushed { Err(end) } else { Ok(false) };
        }
        if flushed && let Some(code) = closing.code.take() {
            let code = match CloseCode::from(code) {
                code if code.is_allowed() => code,
                _ => CloseCode::Normal,
            };
            let frame = CloseFrame {
                code,
                reason: "".into(),
            };
            let sent = self.ws.start_send_unpin(Message::Close(Some(frame)));
            return sent.map(|()| true).map_err(|_| end);
        }
        match self.ws.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(Message::Close(_)))) => {
                closing.answered = true;
                Ok(true)
            }
            // What still comes in is no longer wanted.
            Poll::Ready(Some(Ok(_))) => Ok(true),
            Poll::Ready(Some(Err(_)) | None) => Err(end),
            Poll::Pending => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
    use tokio_tungstenite::tungstenite::protocol::Role;

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

    async fn websocket(io: DuplexStream, role: Role) -> WebSocketStream<Metered<DuplexStream>> {
        WebSocketStream::from_raw_socket(Metered::new(io), role, Some(websocket_config())).await
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
        let relay = Relay::new(websocket(here, Role::Client).await, slow, &());
        let (end, _, local) = relay.run(std::future::pending()).await;
        drop(local);
        let mut said = String::new();
        program.read_to_string(&mut said).await.expect("read");
        assert_eq!((end, said.as_str()), (RelayEnd::Complete, "all of it"));
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
                let relay = Relay::new(websocket(here, role).await, local, &());
                let (end, _, _) = relay.run(std::future::pending()).await;
                assert_ne!(end, RelayEnd::Complete, "the program has not ended");
            }
        });
    });
}
