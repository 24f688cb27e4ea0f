//! One stream of a tunnel as a tokio byte stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead as _, AsyncWrite as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;

/// A byte stream inside a tunnel. Shutting it down closes only the sending half; dropping it before
/// the other side has finished resets it.
pub struct TunnelStream {
    inner: yamux::Stream,
    slot: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
    shut_down: bool,
}

impl TunnelStream {
    pub(super) fn new(
        inner: yamux::Stream,
        slot: Option<OwnedSemaphorePermit>,
        shared: Arc<Shared>,
    ) -> Self {
        if slot.is_some() {
            shared.open_streams.fetch_add(1, Ordering::Relaxed);
        }
        Self {
            inner,
            slot,
            shared,
            shut_down: false,
        }
    }

    /// Sends an empty first frame, so that the opener learns that the stream is accepted.
    ///
    /// # Errors
    /// When the tunnel has ended.
    pub async fn acknowledge(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| Pin::new(&mut self.inner).poll_write(cx, &[])).await?;
        Ok(())
    }
}

impl TunnelStream {
    /// Whether an end of data means that the stream was reset or its tunnel lost: the crate reports
    /// both like a clean end, which would make a truncated body look complete.
    fn was_cut_off(&self) -> bool {
        match self.shut_down {
            // Nothing but a reset closes both halves while this side has not closed its own.
            false => self.inner.is_closed(),
            true => self.shared.ended.is_cancelled(),
        }
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if self.slot.is_some() {
            self.shared.open_streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf.initialize_unfilled()))?;
        if read == 0 && self.was_cut_off() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_close(cx))?;
        self.shut_down = true;
        Poll::Ready(Ok(()))
    }
}
