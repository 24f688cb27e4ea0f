//! Writes to a tunnel's connection.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::EndReason;
use super::driver::TunnelTask;
use crate::websocket;

/// How long the other side may take no byte before the tunnel ends.
pub const WRITE_STALL: Duration = Duration::from_secs(10);

impl<S: AsyncRead + AsyncWrite + Unpin> TunnelTask<S> {
    /// Writes until there is nothing more to write or nothing more is taken; tells whether all is gone.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, EndReason> {
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
            self.written = websocket::seal_binary(&mut self.writing, self.masks.next_key());
        }
        called.into_iter().for_each(Waker::wake);
    }

    /// The reason for a connection that fails: the one of a close under way, if there is any.
    pub(super) fn lost(&self) -> EndReason {
        match &self.closing {
            Some(closing) => closing.reason.clone(),
            None => EndReason::Transport,
        }
    }
}
