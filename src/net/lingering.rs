//! A connection that ends without destroying its last answer.
//!
//! A socket that is closed with unread data resets the connection, and a reset may overtake the answer
//! before the peer has read it (RFC 9112 §9.6). An answer that comes before the end of an upload is
//! always in that danger: what the peer still sends is read away for a moment.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::Connection;

/// How long a peer that has not ended is read from.
const LINGER_FOR: Duration = Duration::from_secs(2);
/// Bytes that are read away in one go.
const SCRATCH_BYTES: usize = 16 * 1024;
/// Reads in one wake-up before other tasks get a turn.
const MAX_READS: usize = 16;

/// An HTTP connection. What it was upgraded to does not linger: see [`upgraded_connection`].
pub struct Lingering<C = Connection> {
    connection: C,
    until: Option<Pin<Box<Sleep>>>,
}

impl<C> Lingering<C> {
    /// Wraps a connection.
    pub fn new(connection: C) -> Self {
        Self {
            connection,
            until: None,
        }
    }
}

/// The connection below an upgraded one of [`serve_http`](super::serve_http), and what was read ahead
/// from it.
pub fn upgraded_connection(upgraded: Upgraded) -> Option<(Connection, Bytes)> {
    let parts = upgraded.downcast::<TokioIo<Lingering>>().ok()?;
    Some((parts.io.into_inner().connection, parts.read_buf))
}

impl<C: AsyncRead + Unpin> AsyncRead for Lingering<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    /// Also waits, within bounds, until the peer has ended.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.until.is_none() {
            ready!(Pin::new(&mut this.connection).poll_shutdown(cx))?;
        }
        // A peer in the middle of an upload may be quiet at this very moment.
        let until = this
            .until
            .get_or_insert_with(|| Box::pin(sleep(LINGER_FOR)));
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..MAX_READS {
            let mut scratch = [0; SCRATCH_BYTES];
            let mut scratch = ReadBuf::new(&mut scratch);
            let read = Pin::new(&mut this.connection).poll_read(cx, &mut scratch);
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !scratch.filled().is_empty() => {}
                // The peer has ended, or is gone: the answer was sent, whatever became of it.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn fw_16_an_answer_reaches_a_peer_that_is_still_sending() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("an address");
        let mut peer = TcpStream::connect(addr).await.expect("connect");
        let (accepted, _) = listener.accept().await.expect("accept");
        let answering = async {
            let mut connection = Lingering::new(accepted);
            connection.read_exact(&mut [0; 1]).await.expect("a byte");
            connection.write_all(b"too much").await.expect("sent");
            connection.shutdown().await.expect("ended");
        };
        let uploading = async {
            peer.write_all(&[1]).await.expect("sent");
            // Quiet when the connection is shut down.
            let mut answer = [0; 8];
            peer.read_exact(&mut answer).await.expect("the answer");
            assert_eq!(peer.read(&mut [0]).await.expect("the end"), 0);
            // Fills the buffers; only somebody who reads it away lets it end.
            let sent = peer.write_all(&vec![0; 8 << 20]).await;
            peer.shutdown().await.expect("the upload ends");
            assert_eq!(peer.read(&mut [0]).await.expect("no reset"), 0);
            (sent, answer)
        };
        let ((), (sent, answer)) = tokio::join!(answering, uploading);
        sent.expect("the upload is not cut off");
        assert_eq!(&answer, b"too much");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_ends_is_not_waited_for_for_ever() {
        let (peer, accepted) = tokio::io::duplex(64);
        let began = tokio::time::Instant::now();
        let mut ending = Lingering::new(accepted);
        ending.shutdown().await.expect("ended");
        assert_eq!(began.elapsed(), LINGER_FOR);
        drop(peer);
    }
}
