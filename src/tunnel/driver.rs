//! The task that owns one tunnel's connection: reads and writes, watches over life and death. Polled by
//! hand, so that everything that became ready in one wake-up leaves in one message and one write.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};

use super::frame::{Header, Kind};
use super::heartbeat::{Beat, Heartbeat};
use super::masks::Masks;
use super::mux::Shared;
use super::receiver::{self, Notice, Receiver};
use super::websocket::{self, Decoder, Event};
use super::{CloseReason, EndReason, Side, Traffic, Tunnel, TunnelSettings, TunnelStream};
use crate::types::{Clock, random_bytes};

/// How long the other side may take no byte before the tunnel ends.
pub const WRITE_STALL: Duration = Duration::from_secs(10);
/// How long a closing tunnel waits for its last words to leave and the other side to answer.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Rounds of work in one wake-up before other tasks get a turn.
const MAX_ROUNDS: usize = 32;
/// Bytes that are read in one go, into a buffer that all tunnels of a thread share.
const READ_BYTES: usize = 128 * 1024;
/// Reads in one round.
const READS_PER_ROUND: usize = 4;
/// Pings that the other side may send within [`PING_WINDOW`].
const MAX_PINGS: u32 = 100;
const PING_WINDOW: Duration = Duration::from_secs(10);
/// Control frames that may wait to be sent, in bytes: more are not answered.
const MAX_CONTROL: usize = 1024;
/// The close code of a violation that leaves nothing to say (RFC 6455 §7.4.1).
const CLOSE_PROTOCOL_ERROR: u16 = 1002;
/// Reasons of a GoAway (hashicorp/yamux specification).
const GO_AWAY_NORMAL: u32 = 0;
const GO_AWAY_PROTOCOL: u32 = 1;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    /// What is to be sent goes first, then the close frame.
    Words,
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
    /// The other side has said its last word, or can no longer be understood.
    unreadable: bool,
    deadline: Instant,
}

/// The driver of one tunnel; its owner must [`run`](TunnelTask::run) it. Dropping it cuts the tunnel.
pub struct TunnelTask<S> {
    io: S,
    /// What was read before the tunnel began.
    ahead: Bytes,
    decoder: Decoder,
    receiver: Receiver,
    masks: Masks,
    /// What is being written, and how far that is.
    writing: Vec<u8>,
    written: usize,
    flushing: bool,
    /// Control frames that go before the next message.
    control: Vec<u8>,
    clock: Clock,
    heartbeat: Heartbeat,
    /// When the other side must have taken a byte, and what it had taken before.
    stall: Option<(Instant, u64)>,
    pings: u32,
    pings_since: Instant,
    timer: Pin<Box<Sleep>>,
    closing: Option<Box<Closing>>,
    shared: Arc<Shared>,
}

impl Tunnel {
    /// Puts a tunnel over a connection that was upgraded to a WebSocket; `ahead` was read from it
    /// already. The task must be run by the caller; the receiver yields the streams that the other side
    /// opens and stays empty at the proxy's end.
    pub fn over<S: AsyncRead + AsyncWrite + Unpin>(
        io: S,
        ahead: Bytes,
        settings: &TunnelSettings,
    ) -> (Tunnel, TunnelTask<S>, mpsc::Receiver<TunnelStream>) {
        let shared = Arc::new(Shared::new(settings, Arc::new(Traffic::default())));
        let is_device = settings.side == Side::Device;
        let queue = if is_device {
            settings.max_streams.max(1)
        } else {
            1
        };
        let (incoming, incoming_receiver) = mpsc::channel(queue);
        let incoming = is_device.then_some(incoming);
        let now = Instant::now();
        let task = TunnelTask {
            io,
            ahead,
            decoder: Decoder::new(!is_device, settings.max_message_bytes),
            receiver: Receiver::new(Arc::clone(&shared), incoming),
            masks: Masks::new(is_device),
            writing: Vec::new(),
            written: 0,
            flushing: false,
            control: Vec::new(),
            clock: settings.clock.clone(),
            heartbeat: Heartbeat::new(settings.heartbeat, now),
            stall: None,
            pings: 0,
            pings_since: now,
            timer: Box::pin(sleep_until(now)),
            closing: None,
            shared: Arc::clone(&shared),
        };
        (Tunnel { shared }, task, incoming_receiver)
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
        self.shared.register_driver(cx.waker());
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

    /// One round of an open tunnel; tells whether there may be more to do. An error ends it at once.
    fn work(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
        let more = self.read(cx)?;
        self.obey();
        self.flush(cx)?;
        self.poll_timer(cx)?;
        Ok(more || self.closing.is_some())
    }

    /// Does what holders asked for.
    fn obey(&mut self) {
        let (close, over) = {
            let mut table = self.shared.table();
            let idle = self.shared.open_streams.load(Ordering::Relaxed) == 0;
            (table.close.take(), table.peer_gone_away && idle)
        };
        if let Some(reason) = close {
            self.begin_close(EndReason::Closed(reason), reason.code());
        } else if over {
            self.begin_close(EndReason::ClosedByPeer(1005), 1000);
        }
    }

    /// Reads what there is; tells whether there may be more.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
        if !self.ahead.is_empty() {
            let mut ahead = std::mem::take(&mut self.ahead).to_vec();
            self.on_bytes(&mut ahead)?;
        }
        let mut scratch = SCRATCH.take();
        scratch.resize(READ_BYTES, 0);
        let read = self.read_into(cx, &mut scratch);
        SCRATCH.set(scratch);
        read
    }

    fn read_into(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Result<bool, EndReason> {
        for _ in 0..READS_PER_ROUND {
            if self.closing.is_some() {
                return Ok(true);
            }
            let mut buf = ReadBuf::new(scratch);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(_)) => return Err(EndReason::Transport),
                Poll::Ready(Ok(())) => {}
            }
            let filled = buf.filled().len();
            if filled == 0 {
                return Err(EndReason::Transport);
            }
            self.on_bytes(&mut scratch[..filled])?;
        }
        Ok(true)
    }

    fn on_bytes(&mut self, bytes: &mut [u8]) -> Result<(), EndReason> {
        self.shared.traffic.add_received(bytes.len());
        self.heartbeat.heard();
        let mut at = 0;
        while self.closing.is_none() {
            match self.decoder.next(&mut bytes[at..]) {
                Ok((_, None)) => break,
                Ok((taken, Some(event))) => {
                    at += taken;
                    match event {
                        Event::Data(data) => {
                            let mut notices = Notices::default();
                            let received = self.receiver.receive(data, |n| notices.add(n));
                            self.on_notices(&notices);
                            self.on_violation(received);
                        }
                        Event::Ping(payload) => {
                            if self.control.len() < MAX_CONTROL {
                                let mask = self.masks.next();
                                websocket::push_pong(&mut self.control, payload, mask);
                            }
                            self.count_pings(1);
                        }
                        Event::Pong(payload) => {
                            let echo = self.heartbeat.pong(payload, Instant::now());
                            echo.into_iter().for_each(|rtt| self.note_echo(rtt));
                        }
                        Event::Close(code) => {
                            let code = code.unwrap_or(1005);
                            self.begin_close(EndReason::ClosedByPeer(code), code);
                            self.stop_reading();
                        }
                    }
                }
                Err(violation) => {
                    let (what, code) = match violation {
                        websocket::Violation::TooLong => ("message too long", 1009),
                        websocket::Violation::Text => ("text message", 1003),
                        websocket::Violation::Protocol => ("websocket", CLOSE_PROTOCOL_ERROR),
                    };
                    self.begin_close(EndReason::Protocol(what), code);
                    self.stop_reading();
                }
            }
        }
        Ok(())
    }

    fn on_violation(&mut self, received: Result<(), receiver::Violation>) {
        match received {
            Ok(()) => {}
            Err(receiver::Violation::Frame) => {
                self.begin_close(EndReason::Protocol("yamux"), CLOSE_PROTOCOL_ERROR);
            }
            Err(receiver::Violation::Streams) => {
                self.begin_close(EndReason::Protocol("streams opened by the device"), 1008);
            }
        }
    }

    fn on_notices(&mut self, notices: &Notices) {
        self.count_pings(notices.pings);
        match notices.go_away {
            None => {}
            // Its streams may end in peace.
            Some(true) => self.shared.table().peer_gone_away = true,
            Some(false) => self.begin_close(EndReason::ClosedByPeer(1005), 1000),
        }
    }

    /// Counts what the other side wants answered.
    fn count_pings(&mut self, pings: u32) {
        if pings == 0 {
            return;
        }
        let now = Instant::now();
        if now.duration_since(self.pings_since) > PING_WINDOW {
            self.pings_since = now;
            self.pings = 0;
        }
        self.pings = self.pings.saturating_add(pings);
        if self.pings > MAX_PINGS {
            self.begin_close(EndReason::Protocol("ping flood"), 1008);
        }
    }

    fn note_echo(&self, rtt: Duration) {
        let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX - 1);
        self.shared.rtt.store(micros, Ordering::Relaxed);
        self.shared.least_rtt.fetch_min(micros, Ordering::Relaxed);
        let now = self.clock.now().as_millis();
        self.shared.last_echo.store(now, Ordering::Relaxed);
    }

    /// Writes until there is nothing more to write or nothing more is taken; tells whether all is gone.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
        loop {
            while self.written < self.writing.len() {
                let rest = &self.writing[self.written..];
                match Pin::new(&mut self.io).poll_write(cx, rest) {
                    Poll::Ready(Ok(0) | Err(_)) => return Err(self.lost()),
                    Poll::Ready(Ok(taken)) => {
                        self.written += taken;
                        self.flushing = true;
                        self.shared.traffic.add_sent(taken);
                    }
                    Poll::Pending => return Ok(self.is_stuck()),
                }
            }
            self.writing.clear();
            self.written = 0;
            if self.control.is_empty() {
                self.take_message();
            } else {
                std::mem::swap(&mut self.writing, &mut self.control);
            }
            if self.writing.is_empty() {
                break;
            }
        }
        if self.flushing {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.flushing = false,
                Poll::Ready(Err(_)) => return Err(self.lost()),
                Poll::Pending => return Ok(self.is_stuck()),
            }
        }
        self.stall = None;
        Ok(true)
    }

    fn is_stuck(&mut self) -> bool {
        let sent = self.shared.traffic.sent();
        self.stall
            .get_or_insert_with(|| (Instant::now() + WRITE_STALL, sent));
        false
    }

    /// Makes one message of what streams want to send.
    fn take_message(&mut self) {
        let called = {
            let mut table = self.shared.table();
            self.shared.driver_looks(&mut table);
            table.outbox.take(&mut self.writing)
        };
        if !self.writing.is_empty() {
            self.written = websocket::seal_binary(&mut self.writing, self.masks.next());
        }
        called.into_iter().for_each(Waker::wake);
    }

    /// The reason for a connection that fails: the one of a close under way, if there is any.
    fn lost(&self) -> EndReason {
        match &self.closing {
            Some(closing) => closing.reason.clone(),
            None => EndReason::Transport,
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), EndReason> {
        loop {
            let now = Instant::now();
            let mut next = match self.heartbeat.tick(now, random_bytes) {
                Beat::Wait(at) => at,
                Beat::Dead => return Err(EndReason::HeartbeatLost),
                Beat::Ping(nonce) => {
                    let mask = self.masks.next();
                    websocket::push_ping(&mut self.control, &nonce, mask);
                    self.rest();
                    self.flush(cx)?;
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
                return Ok(());
            }
        }
    }

    /// Lets go of buffers that a busy tunnel has grown; it gets new ones when it needs them.
    fn rest(&mut self) {
        if self.writing.is_empty() {
            self.writing = Vec::new();
            self.shared.table().outbox.shrink();
        }
    }

    fn begin_close(&mut self, reason: EndReason, code: u16) {
        if self.closing.is_some() {
            return;
        }
        self.shared.part();
        // hashicorp/yamux leaves at a GoAway that is not normal, without reading the close frame.
        let length = match code {
            CLOSE_PROTOCOL_ERROR => GO_AWAY_PROTOCOL,
            _ => GO_AWAY_NORMAL,
        };
        self.shared.table().outbox.push_header(Header {
            kind: Kind::GoAway,
            flags: 0,
            stream: 0,
            length,
        });
        let deadline = Instant::now() + CLOSE_GRACE;
        self.closing = Some(Box::new(Closing {
            reason,
            code,
            stage: Farewell::Words,
            unreadable: false,
            deadline,
        }));
    }

    fn stop_reading(&mut self) {
        if let Some(closing) = &mut self.closing {
            closing.unreadable = true;
        }
    }

    /// One round of a closing tunnel.
    fn part(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
        let gone = self.flush(cx)?;
        let Some(closing) = &mut self.closing else {
            return Ok(false);
        };
        if self.timer.deadline() != closing.deadline {
            self.timer.as_mut().reset(closing.deadline);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            return Err(closing.reason.clone());
        }
        match closing.stage {
            Farewell::Words if !gone => return Ok(false),
            Farewell::Words => {
                closing.stage = match closing.unreadable {
                    true => Farewell::Drain,
                    false => Farewell::Answer,
                };
                let mask = self.masks.next();
                websocket::push_close(&mut self.control, closing.code, mask);
                return Ok(true);
            }
            Farewell::Answer | Farewell::Drain => {}
        }
        if gone && matches!(closing.reason, EndReason::ClosedByPeer(_)) && closing.unreadable {
            // Both have said their last word: the server ends the connection (RFC 6455 §7.1.1).
            return Err(closing.reason.clone());
        }
        let mut scratch = [0; 4096];
        let mut buf = ReadBuf::new(&mut scratch);
        match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
            Poll::Ready(_) => return Err(self.lost()),
        }
        let filled = buf.filled().len();
        self.shared.traffic.add_received(filled);
        self.await_answer(&mut scratch[..filled])?;
        Ok(true)
    }

    /// Looks for the other side's close frame; what else it sends is no longer wanted.
    fn await_answer(&mut self, bytes: &mut [u8]) -> Result<(), EndReason> {
        let Some(closing) = &mut self.closing else {
            return Ok(());
        };
        let mut at = 0;
        while closing.stage == Farewell::Answer {
            match self.decoder.next(&mut bytes[at..]) {
                Ok((_, None)) => break,
                Ok((_, Some(Event::Close(code)))) => {
                    // Its GoAway came first and said less.
                    return Err(match (&closing.reason, code) {
                        (EndReason::ClosedByPeer(1005), Some(code)) => {
                            EndReason::ClosedByPeer(code)
                        }
                        (reason, _) => reason.clone(),
                    });
                }
                Ok((taken, Some(_))) => at += taken,
                Err(_) => closing.stage = Farewell::Drain,
            }
        }
        Ok(())
    }
}

/// What frames say about the tunnel as a whole.
#[derive(Default)]
struct Notices {
    pings: u32,
    /// Whether all is well with the other side.
    go_away: Option<bool>,
}

impl Notices {
    fn add(&mut self, notice: Notice) {
        match notice {
            Notice::Ping => self.pings = self.pings.saturating_add(1),
            Notice::GoAway { normal } => self.go_away = Some(normal),
        }
    }
}

impl<S> Drop for TunnelTask<S> {
    fn drop(&mut self) {
        let _ = self.shared.end_reason.set(EndReason::Transport);
        self.shared.part();
        self.shared.ended.cancel();
    }
}

impl From<CloseReason> for EndReason {
    fn from(reason: CloseReason) -> Self {
        EndReason::Closed(reason)
    }
}
