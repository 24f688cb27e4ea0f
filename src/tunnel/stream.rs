//! One stream of a tunnel as a tokio byte stream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frame::{Header, Kind};
use super::mux::{Cell, Shared, lock};
use super::outbox::MAX_BODY;
use super::stream_state::StreamState;

/// A byte stream inside a tunnel. Shutting it down closes only the sending half; dropping it before both
/// halves are complete resets it, so that the other side does not take what it has for the whole.
pub struct TunnelStream {
    id: u32,
    cell: Arc<Cell>,
    shared: Arc<Shared>,
    /// Whether it counts towards the tunnel's limit.
    slot: bool,
    /// The rest of what was taken from the stream's buffer last.
    piece: BytesMut,
}

impl TunnelStream {
    pub(super) fn new(id: u32, cell: Arc<Cell>, shared: Arc<Shared>, slot: bool) -> Self {
        Self {
            id,
            cell,
            shared,
            slot,
            piece: BytesMut::new(),
        }
    }

    /// Makes `piece` hold what comes next; it stays empty at the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.piece.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut state = lock(&self.cell);
        if let Some(piece) = state.pop() {
            // No piece is larger than a window.
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            self.shared.credit(self.id, &mut state, length);
            drop(state);
            self.piece = piece;
            return Poll::Ready(Ok(()));
        }
        if state.remote_fin {
            return Poll::Ready(Ok(()));
        }
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Lets the other side know of a stream on which nothing was sent yet.
    fn announce(&self, state: &mut StreamState) {
        let mut table = self.shared.table();
        let flags = Shared::take_syn(&mut table, state);
        if flags != 0 {
            table.outbox.push_header(Header {
                kind: Kind::WindowUpdate,
                flags,
                stream: self.id,
                length: state.take_extra(),
            });
            self.shared.call_driver(table);
        }
    }

    /// An empty write lets the other side know of a fresh stream.
    fn poll_send<'a>(
        &mut self,
        cx: &mut Context<'_>,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Poll<io::Result<usize>> {
        let length: usize = parts.clone().map(<[u8]>::len).sum();
        let mut state = lock(&self.cell);
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.local_fin {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if length == 0 {
            self.announce(&mut state);
            return Poll::Ready(Ok(0));
        }
        if state.send_window == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = length.min(MAX_BODY).min(state.send_window as usize);
        let mut table = self.shared.table();
        if table.parting {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.syn_due && !Shared::may_begin(&mut table, self.id, cx.waker()) {
            return Poll::Pending;
        }
        if !table.outbox.admits(length, state.round) {
            table.outbox.wait(self.id, cx.waker());
            return Poll::Pending;
        }
        state.round = table.outbox.round();
        state.send_window -= length as u32;
        let mut flags = Shared::take_syn(&mut table, &mut state);
        let extra = state.take_extra();
        if extra > 0 {
            table.outbox.push_header(Header {
                kind: Kind::WindowUpdate,
                flags: std::mem::take(&mut flags),
                stream: self.id,
                length: extra,
            });
        }
        let header = Header {
            kind: Kind::Data,
            flags,
            stream: self.id,
            length: length as u32,
        };
        table.users.note(self.id, Instant::now());
        table.outbox.push_data(header, parts);
        self.shared.call_driver(table);
        Poll::Ready(Ok(length))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        let mut state = lock(&self.cell);
        self.shared.release(self.id, &mut state, self.slot);
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let this = self.get_mut();
        std::task::ready!(this.poll_piece(cx))?;
        let taken = this.piece.len().min(buf.remaining());
        buf.put_slice(&this.piece[..taken]);
        this.piece.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, std::iter::once(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, bufs.iter().map(|buf| &**buf))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written is on its way already.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut state = lock(&this.cell);
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !state.local_fin {
            state.local_fin = true;
            this.shared.finish(this.id, &mut state);
        }
        Poll::Ready(Ok(()))
    }
}
