//! One TCP connection's bytes over a WebSocket, the same at both ends: the cloud's, and that of
//! `edgecloud tcp`.
//!
//! Binary messages carry the bytes; where one ends means nothing. An empty one ends its direction, as
//! a FIN does: WebSocket itself has no half-close. When both directions have ended, the WebSocket is
//! closed with 1000; any other close code, or none, means that bytes may be missing.

mod incoming;
mod outgoing;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::protocol::Role;

use incoming::{Arrival, Fault, Incoming};
use outgoing::{Filled, Outgoing};

/// Buffer of a direction that carries much, in bytes: what one message carries at most, and what is read
/// in one go.
const BUFFER_BYTES: usize = 128 * 1024;
/// Buffer of a direction that carries little, in bytes.
const SMALL_BUFFER_BYTES: usize = 4 * 1024;
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
    deadline: Pin<Box<Sleep>>,
    /// Nothing more is waited for: the other end's close frame has come, or what comes cannot be read.
    answered: bool,
}

/// A WebSocket and a connection, joined.
pub struct Relay<'a, W, C, K> {
    ws: W,
    connection: C,
    count: &'a K,
    incoming: Incoming,
    outgoing: Outgoing,
    inbound: Inbound,
    /// The direction into the WebSocket has ended.
    outbound_ended: bool,
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
    /// Joins the end `role` of a WebSocket, from which `ahead` was read already, and a connection.
    pub fn new((ws, ahead): (W, &[u8]), role: Role, connection: C, count: &'a K) -> Self {
        // A client masks what it sends (RFC 6455 §5.1).
        let is_client = role == Role::Client;
        Self {
            ws,
            connection,
            count,
            incoming: Incoming::new(!is_client, ahead),
            outgoing: Outgoing::new(is_client),
            inbound: Inbound::Open,
            outbound_ended: false,
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

    /// Sends what was read from the connection already.
    pub fn send_first(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.outgoing.send(bytes);
        }
    }

    /// Moves bytes until both directions have ended or something breaks, and gives both ends back; when
    /// `told` comes with a close code, the other end is told that.
    pub async fn run(mut self, told: impl Future<Output = u16>) -> (RelayEnd, W, C) {
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
        (end, self.ws, self.connection)
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
        if self.is_complete() {
            self.begin_close(RelayEnd::Complete, 1000);
        }
        Ok(moved || self.closing.is_some())
    }

    /// Whether both directions have ended.
    fn is_complete(&self) -> bool {
        matches!(self.inbound, Inbound::Ended) && self.outbound_ended
    }

    fn write_connection(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while !self.incoming.data().is_empty() {
            let data = self.incoming.data();
            match Pin::new(&mut self.connection).poll_write(cx, data) {
                Poll::Pending => return moved,
                Poll::Ready(Ok(written)) if written > 0 => {
                    self.count.received(written);
                    self.incoming.taken(written);
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
        let busy = !self.incoming.data().is_empty() || matches!(self.inbound, Inbound::Ending);
        if self.closing.is_some() || busy {
            return Ok(false);
        }
        let Poll::Ready(arrival) = self.incoming.poll_next(&mut self.ws, cx) else {
            return Ok(false);
        };
        match arrival {
            Ok(Arrival::Data | Arrival::End) if !matches!(self.inbound, Inbound::Open) => {
                self.begin_close(RelayEnd::Told(1002), 1002);
            }
            Ok(Arrival::Data | Arrival::Pong) => {}
            Ok(Arrival::End) => self.inbound = Inbound::Ending,
            Ok(Arrival::Ping(payload)) => self.outgoing.pong(&payload),
            Ok(Arrival::Close(code)) => {
                let end = match self.is_complete() {
                    true => RelayEnd::Complete,
                    false => RelayEnd::Closed(code),
                };
                self.begin_close(end, code);
                self.stop_reading();
            }
            Err(Fault::Protocol(code)) => {
                self.begin_close(RelayEnd::Told(code), code);
                self.stop_reading();
            }
            Err(Fault::Lost) => return Err(RelayEnd::WebSocketLost),
        }
        Ok(true)
    }

    /// Takes from the connection only what the WebSocket can send on.
    fn read_connection(&mut self, cx: &mut Context<'_>) -> Result<bool, RelayEnd> {
        if !self.flush(cx)? || self.outbound_ended || self.closing.is_some() {
            return Ok(false);
        }
        match self.outgoing.poll_fill(&mut self.connection, cx) {
            Poll::Ready(Ok(Filled::Message(length))) => self.count.sent(length),
            Poll::Ready(Ok(Filled::End)) => {
                self.outbound_ended = true;
                self.outgoing.send(&[]);
            }
            Poll::Ready(Err(_)) => return Ok(self.connection_lost()),
            Poll::Pending => return Ok(false),
        }
        self.flush(cx)?;
        Ok(true)
    }

    /// Tells whether everything is on its way.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, RelayEnd> {
        let flushed = match self.outgoing.poll_flush(&mut self.ws, cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => return Err(RelayEnd::WebSocketLost),
            Poll::Pending => false,
        };
        self.is_blocked = !flushed;
        Ok(flushed)
    }

    fn keep_alive(&mut self, cx: &mut Context<'_>) -> Result<(), RelayEnd> {
        while self.life.ping.as_mut().poll(cx).is_ready() {
            self.life.ping.as_mut().reset(Instant::now() + PING_EVERY);
            let (received, sent) = (self.incoming.received(), self.outgoing.sent());
            let heard = received != self.life.received;
            let took = self.is_blocked && sent != self.life.sent;
            (self.life.received, self.life.sent) = (received, sent);
            // Nobody is heard who is not listened to.
            let deaf = !self.incoming.data().is_empty() || matches!(self.inbound, Inbound::Ending);
            self.life.misses = match heard || took || deaf {
                true => 0,
                false => self.life.misses + 1,
            };
            if self.life.misses > MAX_UNANSWERED {
                return Err(RelayEnd::WebSocketLost);
            }
            // A close frame is the last one (RFC 6455 §5.5.1).
            if !self.is_blocked && self.closing.is_none() {
                self.outgoing.ping();
                self.flush(cx)?;
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
            self.incoming.discard();
            self.outgoing.close(code);
            self.closing = Some(Closing {
                end,
                deadline: Box::pin(sleep_until(Instant::now() + CLOSE_GRACE)),
                answered: false,
            });
        }
    }

    /// The last words are all that is left to do.
    fn stop_reading(&mut self) {
        if let Some(closing) = &mut self.closing {
            closing.answered = true;
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
        let answered = closing.answered;
        let flushed = self.flush(cx).map_err(|_| end)?;
        if answered && flushed {
            // Whoever still sends is read away for a while, so that the last words arrive.
            let ended = Pin::new(&mut self.ws).poll_shutdown(cx);
            return if ended.is_ready() {
                Err(end)
            } else {
                Ok(false)
            };
        }
        if answered {
            return Ok(false);
        }
        match self.incoming.poll_next(&mut self.ws, cx) {
            Poll::Ready(Ok(Arrival::Close(_))) => {
                self.stop_reading();
                Ok(true)
            }
            // What still comes in is no longer wanted.
            Poll::Ready(Ok(_)) => {
                self.incoming.discard();
                Ok(true)
            }
            Poll::Ready(Err(_)) => Err(end),
            Poll::Pending => Ok(false),
        }
    }
}
