//! The task that owns one tunnel: moves bytes between the WebSocket and yamux, answers the holders'
//! requests, watches over life and death. Polled by hand, so that everything that became ready in
//! one wake-up leaves in one message and one flush.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message, error::ProtocolError};

use super::heartbeat::{Beat, Heartbeat};
use super::metered::Metered;
use super::stream::TunnelStream;
use super::wire::{MuxEnd, Wire};
use super::{CloseReason, Command, EndReason, OpenError, Shared, Side, Tunnel, TunnelSettings};
use crate::types::{Clock, random_bytes};

/// How long the other side may take no byte before the tunnel ends.
pub const WRITE_STALL: Duration = Duration::from_secs(10);
/// How long a closing tunnel waits for its last words to leave and the other side to answer.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Rounds of work in one wake-up before other tasks get a turn.
const MAX_ROUNDS: usize = 32;
/// WebSocket messages taken in one round.
const MESSAGES_PER_ROUND: usize = 32;
/// Pings that the other side may send within [`PING_WINDOW`].
const MAX_PINGS: u32 = 100;
const PING_WINDOW: Duration = Duration::from_secs(10);
/// Streams that a device may try to open before its tunnel ends; each is reset.
const MAX_REFUSED_STREAMS: u32 = 1_000;

#[derive(Debug, PartialEq, Eq)]
enum Farewell {
    /// yamux says its last words.
    Mux,
    /// The close frame is next.
    Frame,
    /// The other side's close frame is awaited.
    Answer,
    /// What the other side still sends is read away: closing with unread data resets the
    /// connection, which would destroy our close frame on its way.
    Drain,
}

struct Closing {
    reason: EndReason,
    code: u16,
    stage: Farewell,
    /// The WebSocket can no longer be read as such.
    unreadable: bool,
    deadline: Instant,
}

/// The driver of one tunnel; its owner must [`run`](TunnelTask::run) it. Dropping it cuts the tunnel.
pub struct TunnelTask<S> {
    ws: WebSocketStream<Metered<S>>,
    mux: yamux::Connection<MuxEnd>,
    wire: Wire,
    clock: Clock,
    commands: mpsc::Receiver<Command>,
    opens: VecDeque<oneshot::Sender<Result<yamux::Stream, OpenError>>>,
    incoming: Option<mpsc::Sender<TunnelStream>>,
    refused_streams: u32,
    heartbeat: Heartbeat,
    received_before: u64,
    stall: Option<(Instant, u64)>,
    pings: u32,
    pings_since: Instant,
    timer: Pin<Box<Sleep>>,
    closing: Option<Closing>,
    shared: Arc<Shared>,
}

impl Tunnel {
    /// Puts a tunnel over a WebSocket. The task must be run by the caller; the receiver yields the
    /// streams that the other side opens and stays empty at the proxy's end.
    pub fn over<S: AsyncRead + AsyncWrite + Unpin>(
        ws: WebSocketStream<Metered<S>>,
        settings: &TunnelSettings,
    ) -> (Tunnel, TunnelTask<S>, mpsc::Receiver<TunnelStream>) {
        let (tunnel, commands) = Tunnel::new(settings, ws.get_ref().traffic());
        let (incoming, incoming_receiver) = mpsc::channel(settings.max_streams.max(1));
        let wire = Wire::default();
        let mode = match settings.side {
            Side::Proxy => yamux::Mode::Client,
            Side::Device => yamux::Mode::Server,
        };
        let now = Instant::now();
        let task = TunnelTask {
            mux: yamux::Connection::new(wire.mux_end(), settings.yamux(), mode),
            ws,
            wire,
            clock: settings.clock.clone(),
            commands,
            opens: VecDeque::new(),
            incoming: (settings.side == Side::Device).then_some(incoming),
            refused_streams: 0,
            heartbeat: Heartbeat::new(settings.heartbeat, now),
            received_before: 0,
            stall: None,
            pings: 0,
            pings_since: now,
            timer: Box::pin(sleep_until(now)),
            closing: None,
            shared: Arc::clone(&tunnel.shared),
        };
        (tunnel, task, incoming_receiver)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TunnelTask<S> {
    /// Drives the tunnel to its end and tells why it ended.
    pub async fn run(mut self) -> EndReason {
        let reason = std::future::poll_fn(|cx| self.poll_drive(cx)).await;
        // Only the first reason counts, and only this task sets it.
        let _ = self.shared.end_reason.set(reason.clone());
        reason
    }

    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        for _ in 0..MAX_ROUNDS {
            let round = match self.closing {
                None => self.work(cx),
                Some(_) => self.part(cx),
            };
            match round {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(reason) => return Poll::Ready(reason),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One round of an open tunnel; tells whether anything moved. An error ends the tunnel at once.
    fn work(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
        let mut moved = self.take_commands(cx);
        moved |= self.read_messages(cx)?;
        moved |= self.poll_mux(cx);
        moved |= self.open_streams(cx);
        moved |= self.flush(cx)?;
        moved |= self.poll_timer(cx)?;
        if self.closing.is_none() && self.wire.go_away().is_some() {
            // The crate says goodbye to a peer that broke the rules, but would keep reading.
            self.begin_close(EndReason::Protocol("yamux"), 1002);
            moved = true;
        }
        Ok(moved || self.closing.is_some())
    }

    fn take_commands(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            moved = true;
            match command {
                Command::Open(reply) => self.opens.push_back(reply),
                Command::Close(reason) => {
                    self.begin_close(EndReason::Closed(reason), reason.code());
                    break;
                }
            }
        }
        moved
    }

    fn read_messages(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
        let mut moved = false;
        for _ in 0..MESSAGES_PER_ROUND {
            if self.closing.is_some() || self.wire.inbound_is_full() {
                break;
            }
            let Poll::Ready(message) = self.ws.poll_next_unpin(cx) else {
                break;
            };
            moved = true;
            match message {
                Some(Ok(message)) => self.on_message(message),
                Some(Err(error)) => self.on_read_error(&error)?,
                None => return Err(EndReason::Transport),
            }
        }
        let received = self.shared.traffic.received();
        if received != self.received_before {
            self.received_before = received;
            self.heartbeat.heard();
        }
        Ok(moved)
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Binary(bytes) => self.wire.push_inbound(bytes),
            Message::Ping(_) => self.on_ping(),
            Message::Pong(payload) => {
                if let Some(rtt) = self.heartbeat.pong(&payload, Instant::now()) {
                    let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX - 1);
                    self.shared.rtt.store(micros, Ordering::Relaxed);
                    let now = self.clock.now().as_millis();
                    self.shared.last_echo.store(now, Ordering::Relaxed);
                }
            }
            Message::Text(_) => self.begin_close(EndReason::Protocol("text message"), 1003),
            Message::Close(frame) => {
                let code = frame.map_or(1005, |frame| frame.code.into());
                self.begin_close(EndReason::ClosedByPeer(code), code);
                if let Some(closing) = &mut self.closing {
                    // tungstenite has queued the answer already.
                    closing.stage = Farewell::Answer;
                }
            }
            Message::Frame(_) => {}
        }
    }

    /// Counts the other side's pings; tungstenite answers them.
    fn on_ping(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.pings_since) > PING_WINDOW {
            self.pings_since = now;
            self.pings = 0;
        }
        self.pings += 1;
        if self.pings > MAX_PINGS {
            self.begin_close(EndReason::Protocol("ping flood"), 1008);
        }
    }

    fn on_read_error(&mut self, error: &WsError) -> Result<(), EndReason> {
        let (what, code) = match error {
            WsError::Capacity(_) => ("message too long", 1009),
            WsError::Utf8(_) => ("text message", 1003),
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) | WsError::Io(_) => {
                return Err(EndReason::Transport);
            }
            WsError::Protocol(_) => ("websocket", 1002),
            _ => return Err(EndReason::Transport),
        };
        self.begin_close(EndReason::Protocol(what), code);
        if let Some(closing) = &mut self.closing {
            closing.unreadable = true;
        }
        Ok(())
    }

    fn poll_mux(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while self.closing.is_none() {
            match self.mux.poll_next_inbound(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(stream))) => self.on_incoming(stream),
                Poll::Ready(Some(Err(_))) => {
                    self.begin_close(EndReason::Protocol("yamux"), 1002);
                }
                Poll::Ready(None) => {
                    // The other side's GoAway; the crate has dropped all streams by now.
                    self.begin_close(EndReason::ClosedByPeer(1005), 1000);
                }
            }
            moved = true;
        }
        moved
    }

    fn on_incoming(&mut self, stream: yamux::Stream) {
        if let Some(incoming) = &self.incoming {
            let stream = TunnelStream::new(stream, None, Arc::clone(&self.shared));
            // A full queue drops the stream, which resets it.
            let _ = incoming.try_send(stream);
            return;
        }
        // Only the proxy opens streams: dropping the stream resets it.
        drop(stream);
        self.refused_streams += 1;
        if self.refused_streams > MAX_REFUSED_STREAMS {
            self.begin_close(EndReason::Protocol("streams opened by the device"), 1008);
        }
    }

    fn open_streams(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        // While output is stuck the crate cannot clear dropped streams away, so none are added.
        while self.closing.is_none() && !self.wire.outbound_is_full() {
            let Some(reply) = self.opens.pop_front() else {
                break;
            };
            if reply.is_closed() {
                continue;
            }
            match self.mux.poll_new_outbound(cx) {
                // A receiver that has gone drops the stream.
                Poll::Ready(Ok(stream)) => drop(reply.send(Ok(stream))),
                Poll::Ready(Err(_)) => {
                    self.begin_close(EndReason::Protocol("yamux"), 1002);
                }
                Poll::Pending => {
                    self.opens.push_front(reply);
                    break;
                }
            }
            moved = true;
        }
        moved
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
        let mut moved = false;
        loop {
            match Pin::new(&mut self.ws).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.stall = None,
                Poll::Ready(Err(_)) => return Err(self.lost()),
                Poll::Pending => {
                    let sent = self.shared.traffic.sent();
                    self.stall
                        .get_or_insert((Instant::now() + WRITE_STALL, sent));
                    return Ok(moved);
                }
            }
            let Some(bytes) = self.wire.take_outbound() else {
                return Ok(moved);
            };
            self.send(Message::Binary(bytes))?;
            moved = true;
        }
    }

    fn send(&mut self, message: Message) -> Result<(), EndReason> {
        self.ws.start_send_unpin(message).map_err(|_| self.lost())
    }

    /// The reason for a connection that fails: the one of a close under way, if there is any.
    fn lost(&self) -> EndReason {
        match &self.closing {
            Some(closing) => closing.reason.clone(),
            None => EndReason::Transport,
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
        let mut moved = false;
        loop {
            let now = Instant::now();
            let mut next = match self.heartbeat.tick(now, random_bytes) {
                Beat::Wait(at) => at,
                Beat::Dead => return Err(EndReason::HeartbeatLost),
                Beat::Ping(nonce) => {
                    self.send(Message::Ping(Bytes::copy_from_slice(&nonce)))?;
                    moved = true;
                    continue;
                }
            };
            if let Some((deadline, sent_before)) = &mut self.stall {
                let sent = self.shared.traffic.sent();
                if sent != *sent_before {
                    (*deadline, *sent_before) = (now + WRITE_STALL, sent);
                } else if now >= *deadline {
                    return Err(EndReason::WriteStalled);
                }
                next = next.min(*deadline);
            }
            if self.timer.deadline() != next {
                self.timer.as_mut().reset(next);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(moved);
            }
        }
    }

    fn begin_close(&mut self, reason: EndReason, code: u16) {
        if self.closing.is_some() {
            return;
        }
        self.shared.parting.cancel();
        let deadline = Instant::now() + CLOSE_GRACE;
        self.timer.as_mut().reset(deadline);
        self.commands.close();
        self.opens.clear();
        self.closing = Some(Closing {
            reason,
            code,
            stage: Farewell::Mux,
            unreadable: false,
            deadline,
        });
    }

    /// One round of a closing tunnel.
    fn part(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
        let mut moved = self.flush(cx)?;
        let Some(closing) = &mut self.closing else {
            return Ok(moved);
        };
        let over = self.timer.as_mut().poll(cx).is_ready() && Instant::now() >= closing.deadline;
        match closing.stage {
            _ if over => return Err(closing.reason.clone()),
            Farewell::Mux => {
                if self.mux.poll_close(cx).is_ready() {
                    closing.stage = Farewell::Frame;
                    moved = true;
                }
            }
            Farewell::Frame => {
                if self.stall.is_none() {
                    closing.stage = match closing.unreadable {
                        true => Farewell::Drain,
                        false => Farewell::Answer,
                    };
                    let frame = CloseFrame {
                        code: wire_code(closing.code),
                        reason: "".into(),
                    };
                    self.send(Message::Close(Some(frame)))?;
                    moved = true;
                }
            }
            Farewell::Answer => match self.ws.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(Message::Close(frame)))) => {
                    // Its GoAway came first and said less.
                    return Err(match (&closing.reason, frame) {
                        (EndReason::ClosedByPeer(1005), Some(frame)) => {
                            EndReason::ClosedByPeer(frame.code.into())
                        }
                        (reason, _) => reason.clone(),
                    });
                }
                Poll::Ready(Some(Err(_)) | None) => return Err(closing.reason.clone()),
                // What still comes in is no longer wanted.
                Poll::Ready(Some(Ok(_))) => moved = true,
                Poll::Pending => {}
            },
            Farewell::Drain => {
                let mut scratch = [0; 4096];
                let mut scratch = ReadBuf::new(&mut scratch);
                match Pin::new(self.ws.get_mut()).poll_read(cx, &mut scratch) {
                    Poll::Ready(Ok(())) if !scratch.filled().is_empty() => moved = true,
                    Poll::Ready(_) => return Err(closing.reason.clone()),
                    Poll::Pending => {}
                }
            }
        }
        Ok(moved)
    }
}

/// 1005 says "no code" and never goes over the wire (RFC 6455 §7.4.1).
fn wire_code(code: u16) -> CloseCode {
    match CloseCode::from(code) {
        code if code.is_allowed() => code,
        _ => CloseCode::Normal,
    }
}

impl<S> Drop for TunnelTask<S> {
    fn drop(&mut self) {
        let _ = self.shared.end_reason.set(EndReason::Transport);
        self.shared.parting.cancel();
        self.shared.ended.cancel();
    }
}

impl From<CloseReason> for EndReason {
    fn from(reason: CloseReason) -> Self {
        EndReason::Closed(reason)
    }
}
