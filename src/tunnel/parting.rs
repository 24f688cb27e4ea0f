//! The end of a tunnel: streams are cut, the last words leave, the other side's are waited for.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::driver::TunnelTask;
use super::frame::{Header, Kind};
use super::{CloseReason, EndReason};
use crate::websocket::{self, Event};

/// How long a closing tunnel waits for its last words to leave and the other side to answer.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// What is read away of a peer that goes on sending, in bytes: enough for what was under way when it heard of
/// the end.
const MAX_READ_AWAY: usize = 16 * 1024 * 1024;
/// The close code of a violation that leaves nothing to say (RFC 6455 §7.4.1).
pub const CLOSE_PROTOCOL_ERROR: u16 = 1002;
/// Reasons of a GoAway (hashicorp/yamux specification).
const GO_AWAY_NORMAL: u32 = 0;
const GO_AWAY_PROTOCOL: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// What is to be sent goes first, then the close frame.
    Words,
    /// The other side's close frame is awaited.
    Answer,
    /// What the other side still sends is read away: closing with unread data resets the
    /// connection, which would destroy our close frame on its way.
    Drain,
}

/// A tunnel on its way to its end.
pub struct Closing {
    pub(super) reason: EndReason,
    pub(super) code: u16,
    pub(super) stage: Farewell,
    /// The other side has said its last word, or can no longer be understood.
    pub(super) unreadable: bool,
    /// What the other side has sent since, in bytes.
    pub(super) read_away: usize,
    pub(super) deadline: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TunnelTask<S> {
    /// Begins the end for a reason, with a WebSocket close code; only the first reason counts.
    pub(super) fn begin_close(&mut self, reason: EndReason, code: u16) {
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
            read_away: 0,
            deadline,
        }));
    }

    /// Nothing that still comes can be understood, or is wanted.
    pub(super) fn stop_reading(&mut self) {
        if let Some(closing) = &mut self.closing {
            closing.unreadable = true;
        }
    }

    /// One round of a closing tunnel.
    pub(super) fn part(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
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
                let mask = self.masks.next_key();
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
        closing.read_away += filled;
        if closing.read_away > MAX_READ_AWAY {
            return Err(closing.reason.clone());
        }
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

impl From<CloseReason> for EndReason {
    fn from(reason: CloseReason) -> Self {
        EndReason::Closed(reason)
    }
}
