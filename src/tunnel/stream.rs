//! One stream of a tunnel as a tokio byte stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead as _, AsyncWrite as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Shared;

/// A byte stream inside a tunnel. Shutting it down closes only the sending half; dropping it before
/// the other side has finished resets it.
pub struct TunnelStream {
    inner: yamux::Stream,
    slot: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
    shut_down: bool,
    /// The crate does not wake those who wait when this side closes a connection. Reading and writing
    /// may wait in different tasks.
    parting_read: Parting,
    parting_write: Parting,
}

type Parting = Pin<Box<WaitForCancellationFutureOwned>>;

/// What the crate says, or a reset when it has nothing to say and never will have.
fn or_reset<T>(
    polled: Poll<io::Result<T>>,
    parting: &mut Parting,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    if polled.is_pending() && parting.as_mut().poll(cx).is_ready() {
        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
    }
    polled
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
        let parting = || Box::pin(shared.parting.clone().cancelled_owned());
        Self {
            parting_read: parting(),
            parting_write: parting(),
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
            true => self.shared.parting.is_cancelled(),
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
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_read(cx, buf.initialize_unfilled());
        let read = ready!(or_reset(polled, &mut this.parting_read, cx))?;
        if read == 0 && this.was_cut_off() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(cx, buf);
        or_reset(polled, &mut this.parting_write, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_flush(cx);
        or_reset(polled, &mut this.parting_write, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_close(cx);
        ready!(or_reset(polled, &mut this.parting_write, cx))?;
        this.shut_down = true;
        Poll::Ready(Ok(()))
    }
}
