//! What goes by the WebSocket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{BUFFER_BYTES, SMALL_BUFFER_BYTES};
use crate::websocket::masks::Masks;
use crate::websocket::{self, MAX_HEADER};

/// Control frames that may wait to be sent, in bytes: more pings are not answered.
const MAX_CONTROL: usize = 1024;

/// Writes the frames of a WebSocket: one message at a time, which was read from the connection right
/// behind the room for its header.
pub struct Outgoing {
    masks: Masks,
    buffer: Vec<u8>,
    /// What of the buffer is not written yet.
    from: usize,
    to: usize,
    /// Control frames, which go behind the message that is being written.
    control: Vec<u8>,
    control_from: usize,
    needs_flush: bool,
    sent: u64,
}

/// What reading from the connection has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// A message of so many bytes.
    Message(usize),
    /// The connection's end; nothing is to be sent.
    End,
}

impl Outgoing {
    /// Writes the frames of a client (`masking`) or of a server.
    pub fn new(masking: bool) -> Self {
        Self {
            masks: Masks::new(masking),
            buffer: Vec::new(),
            from: 0,
            to: 0,
            control: Vec::new(),
            control_from: 0,
            needs_flush: false,
            sent: 0,
        }
    }

    /// Bytes that were written so far, framing included.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Makes a message of bytes that are there already; only when everything is flushed.
    pub fn send(&mut self, bytes: &[u8]) {
        self.buffer.resize(MAX_HEADER, 0);
        self.buffer.extend_from_slice(bytes);
        self.seal(bytes.len());
    }

    /// Queues a ping.
    pub fn ping(&mut self) {
        let mask = self.masks.next_key();
        websocket::push_ping(&mut self.control, &[], mask);
    }

    /// Queues the answer to a ping, if there is room.
    pub fn pong(&mut self, payload: &[u8]) {
        if self.control.len() < MAX_CONTROL {
            let mask = self.masks.next_key();
            websocket::push_pong(&mut self.control, payload, mask);
        }
    }

    /// Queues the last frame.
    pub fn close(&mut self, code: u16) {
        let mask = self.masks.next_key();
        websocket::push_close(&mut self.control, code, mask);
    }

    fn seal(&mut self, length: usize) {
        self.to = MAX_HEADER + length;
        self.from = websocket::seal_binary(&mut self.buffer[..self.to], self.masks.next_key());
    }

    /// Makes a message of what there is to read; only when everything is flushed.
    ///
    /// # Errors
    /// Those of the connection. What was read before is a message all the same.
    pub fn poll_fill<C: AsyncRead + Unpin>(
        &mut self,
        connection: &mut C,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Filled>> {
        if self.buffer.len() < SMALL_BUFFER_BYTES {
            self.buffer.resize(SMALL_BUFFER_BYTES, 0);
        }
        let mut buf = ReadBuf::new(&mut self.buffer);
        buf.advance(MAX_HEADER);
        let mut ended = false;
        let polled = loop {
            let before = buf.filled().len();
            let polled = Pin::new(&mut *connection).poll_read(cx, &mut buf);
            ended |= matches!(polled, Poll::Ready(Ok(()))) && buf.filled().len() == before;
            if !matches!(polled, Poll::Ready(Ok(()))) || ended || buf.remaining() == 0 {
                break polled;
            }
        };
        let length = buf.filled().len() - MAX_HEADER;
        if length > 0 {
            self.seal(length);
            if self.to == self.buffer.len() && self.to < BUFFER_BYTES {
                // There is more, of which larger messages are made.
                self.buffer.resize(BUFFER_BYTES, 0);
            }
            // The end, like an error, shows again at the next read.
            return Poll::Ready(match polled {
                Poll::Ready(Err(error)) => Err(error),
                _ => Ok(Filled::Message(length)),
            });
        }
        if polled.is_pending() && self.buffer.len() > SMALL_BUFFER_BYTES {
            // A quiet connection holds no large buffer.
            self.buffer = Vec::new();
        }
        polled.map_ok(|()| Filled::End)
    }

    /// Writes until everything is on its way.
    ///
    /// # Errors
    /// When the WebSocket breaks off.
    pub fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        ws: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let parts = [
            (&self.buffer[..self.to], &mut self.from),
            (&self.control[..], &mut self.control_from),
        ];
        for (bytes, from) in parts {
            while *from < bytes.len() {
                let written = ready!(Pin::new(&mut *ws).poll_write(cx, &bytes[*from..]))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                *from += written;
                self.sent += written as u64;
                self.needs_flush = true;
            }
        }
        (self.from, self.to) = (0, 0);
        self.control.clear();
        self.control_from = 0;
        if self.needs_flush {
            ready!(Pin::new(ws).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }
}
