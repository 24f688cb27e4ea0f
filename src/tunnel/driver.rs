//! The task that owns one tunnel's connection: reads and writes, watches over life and death. Polled by
//! hand, so that everything that became ready in one wake-up leaves in one message and one write.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};

use super::heartbeat::{Beat, Heartbeat};
use super::mux::Shared;
use super::parting::{CLOSE_PROTOCOL_ERROR, Closing};
use super::receiver::{self, Notice, Receiver};
use super::writing::WRITE_STALL;
use super::{EndReason, Side, Traffic, Tunnel, TunnelSettings, TunnelStream};
use crate::types::{Clock, random_bytes};
use crate::websocket::masks::Masks;
use crate::websocket::{self, Decoder, Event};

/// Rounds of work in one wake-up before other tasks get a turn.
const MAX_ROUNDS: usize = 4;
/// Bytes that are read in one go, into a buffer that all tunnels of a thread share.
const READ_BYTES: usize = 128 * 1024;
/// Reads in one round.
const READS_PER_ROUND: usize = 4;
/// Pings that the other side may send within [`PING_WINDOW`].
const MAX_PINGS: u32 = 100;
const PING_WINDOW: Duration = Duration::from_secs(10);
/// Control frames that may wait to be sent, in bytes: more are not answered.
const MAX_CONTROL: usize = 1024;
thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The driver of one tunnel; its owner must [`run`](TunnelTask::run) it. Dropping it cuts the tunnel.
pub struct TunnelTask<S> {
    pub(super) io: S,
    /// What was read before the tunnel began.
    pub(super) ahead: Bytes,
    pub(super) decoder: Decoder,
    pub(super) receiver: Receiver,
    pub(super) masks: Masks,
    /// What is being written, and how far that is.
    pub(super) writing: Vec<u8>,
    pub(super) written: usize,
    pub(super) flushing: bool,
    /// Control frames that go before the next message.
    pub(super) control: Vec<u8>,
    pub(super) clock: Clock,
    pub(super) heartbeat: Heartbeat,
    /// When the other side must have taken a byte, and what it had taken before.
    pub(super) stall: Option<(Instant, u64)>,
    pub(super) pings: u32,
    pub(super) pings_since: Instant,
    pub(super) timer: Pin<Box<Sleep>>,
    pub(super) closing: Option<Box<Closing>>,
    pub(super) shared: Arc<Shared>,
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
            // Also an empty one holds the buffer that the head of the handshake was read into.
            ahead: Some(ahead)
                .filter(|ahead| !ahead.is_empty())
                .unwrap_or_default(),
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
                                let mask = self.masks.next_key();
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

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), EndReason> {
        loop {
            let now = Instant::now();
            let mut next = match self.heartbeat.tick(now, random_bytes) {
                Beat::Wait(at) => at,
                Beat::Dead => return Err(EndReason::HeartbeatLost),
                Beat::Ping(nonce) => {
                    let mask = self.masks.next_key();
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
