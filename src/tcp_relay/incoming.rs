//! What comes by the WebSocket.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use super::{BUFFER_BYTES, SMALL_BUFFER_BYTES};
use crate::websocket::{Decoder, Event, Violation};

/// Largest message that is accepted, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// What has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// Bytes for the connection: [`Incoming::data`].
    Data,
    /// The end of this direction: an empty message.
    End,
    /// To be answered with the same payload.
    Ping(Bytes),
    /// An answer to a ping.
    Pong,
    /// The end, with its code (1005 for none).
    Close(u16),
}

/// Why nothing more comes.
#[derive(Debug)]
pub enum Fault {
    /// The WebSocket broke off.
    Lost,
    /// The other end breaks the protocol, which is to be answered with this close code.
    Protocol(u16),
}

impl From<io::Error> for Fault {
    fn from(_: io::Error) -> Self {
        Self::Lost
    }
}

/// Reads the frames of a WebSocket. Their bytes stay where they were read into until the connection has
/// taken them.
pub struct Incoming {
    decoder: Decoder,
    buffer: Vec<u8>,
    /// What was read and not yet looked at.
    unread: Range<usize>,
    /// What was looked at and is for the connection.
    data: Range<usize>,
    received: u64,
}

impl Incoming {
    /// Reads the frames of a client (`peer_masks`) or of a server; `ahead` was read already.
    pub fn new(peer_masks: bool, ahead: &[u8]) -> Self {
        Self {
            decoder: Decoder::new(peer_masks, MAX_MESSAGE_BYTES),
            buffer: ahead.to_vec(),
            unread: 0..ahead.len(),
            data: 0..0,
            received: 0,
        }
    }

    /// Bytes that have come so far, framing included.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// What the connection has not taken yet.
    pub fn data(&self) -> &[u8] {
        &self.buffer[self.data.clone()]
    }

    /// The connection has taken so many bytes.
    pub fn taken(&mut self, bytes: usize) {
        self.data.start += bytes;
        if self.data.is_empty() {
            self.discard();
        }
    }

    /// Forgets what the connection has not taken.
    pub fn discard(&mut self) {
        self.data = 0..0;
    }

    /// What comes next, once the connection has taken what came before.
    ///
    /// # Errors
    /// When nothing more comes; this must not be called again then.
    pub fn poll_next<W: AsyncRead + Unpin>(
        &mut self,
        ws: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Arrival, Fault>> {
        loop {
            while !self.unread.is_empty() {
                if let Some(arrival) = self.decode()? {
                    return Poll::Ready(Ok(arrival));
                }
            }
            ready!(self.poll_read(ws, cx))?;
        }
    }

    fn decode(&mut self) -> Result<Option<Arrival>, Fault> {
        let unread = &mut self.buffer[self.unread.clone()];
        let (taken, event) = self
            .decoder
            .next(unread)
            .map_err(|violation| match violation {
                Violation::Protocol => Fault::Protocol(1002),
                Violation::Text => Fault::Protocol(1003),
                Violation::TooLong => Fault::Protocol(1009),
            })?;
        let end = self.unread.start + taken;
        let arrival = event.map(|event| match event {
            Event::Data([]) => Arrival::End,
            Event::Data(data) => {
                self.data = end - data.len()..end;
                Arrival::Data
            }
            Event::Ping(payload) => Arrival::Ping(Bytes::copy_from_slice(payload)),
            Event::Pong(_) => Arrival::Pong,
            Event::Close(code) => Arrival::Close(code.unwrap_or(1005)),
        });
        self.unread.start = end;
        Ok(arrival)
    }

    fn poll_read<W: AsyncRead + Unpin>(
        &mut self,
        ws: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        if self.buffer.len() < SMALL_BUFFER_BYTES {
            self.buffer.resize(SMALL_BUFFER_BYTES, 0);
        }
        let mut buf = ReadBuf::new(&mut self.buffer);
        let polled = Pin::new(ws).poll_read(cx, &mut buf);
        let read = buf.filled().len();
        if polled.is_pending() && self.buffer.len() > SMALL_BUFFER_BYTES {
            // A quiet WebSocket holds no large buffer.
            self.buffer = Vec::new();
        }
        ready!(polled)?;
        if read == 0 {
            return Poll::Ready(Err(Fault::Lost));
        }
        self.received += read as u64;
        self.unread = 0..read;
        if read == self.buffer.len() && read < BUFFER_BYTES {
            // There is more, which is read in larger pieces.
            self.buffer.resize(BUFFER_BYTES, 0);
        }
        Poll::Ready(Ok(()))
    }
}
