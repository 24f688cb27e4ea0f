//! One HTTP/1.1 connection to an origin, on one stream of a session.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::quiet_waker::QuietWaker;
use super::request_body::RequestBody;
use crate::session::SessionStream;

/// Largest response head, and what is read ahead of a slow caller, in bytes.
const MAX_BUFFER: usize = 128 * 1024;
/// Most header fields of a response: as many as hyper reads without an allocation.
const MAX_HEADERS: usize = 100;

type Http1 = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

/// An HTTP/1.1 connection to an origin. Dropping it resets its stream.
pub struct OriginConnection {
    /// Sends requests.
    pub sender: SendRequest<RequestBody>,
    /// Moves their bytes, and those of the responses.
    pub driver: ConnectionDriver,
    heard: Arc<AtomicBool>,
}

impl OriginConnection {
    /// Begins HTTP on a fresh stream.
    ///
    /// # Errors
    /// When the stream has ended already.
    pub async fn begin(stream: SessionStream) -> Result<Self, hyper::Error> {
        let heard = Arc::new(AtomicBool::new(false));
        let stream = Listening {
            stream,
            heard: Arc::clone(&heard),
        };
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_BUFFER)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await?;
        let connection: Http1 = Box::pin(connection.with_upgrades());
        Ok(Self {
            sender,
            driver: ConnectionDriver {
                connection: Arc::new(Mutex::new(Some(connection))),
                unwanted: Arc::default(),
                waker: QuietWaker::default(),
            },
            heard,
        })
    }

    /// Forgets what was received so far.
    pub fn begin_exchange(&self) {
        self.heard.store(false, Ordering::Release);
    }

    /// Whether a byte came from the device since [`OriginConnection::begin_exchange`].
    pub fn has_heard(&self) -> bool {
        self.heard.load(Ordering::Acquire)
    }

    /// Whether a connection on which nothing is under way can take a request.
    pub fn is_usable(&self) -> bool {
        self.driver.is_alive() && self.sender.is_ready()
    }
}

/// Reads and writes for a connection. Whoever waits for the connection drives it: a task of its own for
/// each would cost two more turns of the scheduler on every request. Cheap to clone.
#[derive(Clone)]
pub struct ConnectionDriver {
    connection: Arc<Mutex<Option<Http1>>>,
    unwanted: Arc<AtomicBool>,
    waker: QuietWaker,
}

/// Cuts a connection from within it, when it moves next.
pub struct Cutter(Arc<AtomicBool>);

impl Cutter {
    /// Cuts the connection.
    pub fn cut(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ConnectionDriver {
    fn connection(&self) -> MutexGuard<'_, Option<Http1>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What the connection itself holds to be cut.
    pub fn cutter(&self) -> Cutter {
        Cutter(Arc::clone(&self.unwanted))
    }

    /// Looks for what comes over the connection, moves what can be moved, and looks again.
    pub fn poll_for<T>(
        &self,
        cx: &mut Context<'_>,
        mut look: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.waker.poll(cx, |cx| {
            // The first look tells the connection what is wanted.
            if let Poll::Ready(found) = look(cx) {
                return Poll::Ready(found);
            }
            // A connection that has ended shows in what comes over it.
            let _ = self.poll(cx);
            look(cx)
        })
    }

    /// Moves what can be moved; ready when the connection has ended.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut connection = self.connection();
        if let Some(open) = &mut *connection {
            match open.as_mut().poll(cx) {
                Poll::Pending if !self.unwanted.load(Ordering::Relaxed) => return Poll::Pending,
                Poll::Pending | Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a connection to an origin ended early");
                }
            }
            *connection = None;
        }
        Poll::Ready(())
    }

    /// Moves bytes until the connection has ended.
    pub async fn run(&self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    /// Looks at a connection that nobody waits for.
    fn is_alive(&self) -> bool {
        self.poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    }

    /// Cuts the connection, whoever drives it.
    pub fn cut(&self) {
        let cut = self.connection().take();
        drop(cut);
    }
}

/// A stream that remembers whether anything came.
struct Listening {
    stream: SessionStream,
    heard: Arc<AtomicBool>,
}

impl AsyncRead for Listening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Release);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Listening {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
