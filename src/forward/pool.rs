//! HTTP/1.1 connections to origins, each on one stream of a session, kept for the next request.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use moka::sync::Cache;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::request_body::RequestBody;
use crate::session::SessionStream;
use crate::types::{DeviceId, NodeId};

/// Largest response head, and what is read ahead of a slow caller, in bytes.
const MAX_BUFFER: usize = 128 * 1024;
/// Most header fields of a response.
const MAX_HEADERS: usize = 128;
/// How long a connection is kept unused.
const IDLE_FOR: Duration = Duration::from_secs(60);

/// Nodes on their way out that are remembered at once.
const MAX_LEAVING: u64 = 10_000;
/// How long a node may be on its way out.
const LEAVING_FOR: Duration = Duration::from_secs(3600);

/// The session that a connection runs in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The device.
    pub device: DeviceId,
    /// The epoch of its tunnel.
    pub epoch: i64,
    /// The node that holds the tunnel.
    pub node: NodeId,
}

struct Idle {
    connection: OriginConnection,
    since: Instant,
}

/// The kept connections of all sessions. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    idle: Arc<Mutex<HashMap<SessionKey, Vec<Idle>>>>,
    per_session: usize,
    /// Nodes whose streams are not kept: an unused one would hold up the node's end.
    leaving: Cache<NodeId, ()>,
    closed: CancellationToken,
    tasks: TaskTracker,
}

/// One HTTP/1.1 connection to an origin. Dropping it resets its stream.
pub struct OriginConnection {
    /// Sends requests.
    pub sender: SendRequest<RequestBody>,
    heard: Arc<AtomicBool>,
    task: AbortOnDropHandle<()>,
}

impl OriginConnection {
    /// Forgets what was received so far.
    pub fn begin_exchange(&self) {
        self.heard.store(false, Ordering::Release);
    }

    /// Cuts the connection from elsewhere.
    pub fn abort_handle(&self) -> AbortHandle {
        self.task.abort_handle()
    }

    /// Whether a byte came from the device since [`OriginConnection::begin_exchange`].
    pub fn has_heard(&self) -> bool {
        self.heard.load(Ordering::Acquire)
    }
}

impl Pool {
    /// Keeps at most `per_session` connections of each session; they run in `tasks`.
    pub fn new(per_session: usize, tasks: TaskTracker) -> Self {
        Self {
            idle: Arc::default(),
            per_session,
            leaving: Cache::builder()
                .max_capacity(MAX_LEAVING)
                .time_to_live(LEAVING_FOR)
                .build(),
            closed: CancellationToken::new(),
            tasks,
        }
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<SessionKey, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the connection that was used last, if it was used within `max_idle`.
    pub fn take(&self, key: &SessionKey, max_idle: Duration) -> Option<OriginConnection> {
        let mut idle = self.idle();
        let kept = idle.get_mut(key)?;
        kept.retain(|entry| !entry.connection.sender.is_closed());
        let usable = |entry: &Idle| {
            entry.connection.sender.is_ready() && entry.since.elapsed() < max_idle.min(IDLE_FOR)
        };
        let found = kept
            .iter()
            .rposition(usable)
            .map(|index| kept.remove(index));
        if kept.is_empty() {
            idle.remove(key);
        }
        found.map(|entry| entry.connection)
    }

    /// Keeps a connection whose last exchange is complete.
    pub fn put(&self, key: SessionKey, connection: OriginConnection) {
        let mut idle = self.idle();
        // Looked at under the lock: whoever closes the pool clears it afterwards.
        let unwanted = self.closed.is_cancelled() || self.leaving.contains_key(&key.node);
        if connection.sender.is_closed() || unwanted || self.per_session == 0 {
            return;
        }
        let kept = idle.entry(key).or_default();
        if kept.len() >= self.per_session {
            kept.remove(0);
        }
        kept.push(Idle {
            connection,
            since: Instant::now(),
        });
    }

    /// Begins HTTP on a fresh stream.
    ///
    /// # Errors
    /// When the stream has ended already.
    pub async fn connect(&self, stream: SessionStream) -> Result<OriginConnection, hyper::Error> {
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
        let task = self.tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an origin ended early");
            }
        });
        Ok(OriginConnection {
            sender,
            heard,
            task: AbortOnDropHandle::new(task),
        })
    }

    /// Drops the kept connections of a device.
    pub fn forget(&self, device: &DeviceId) {
        self.idle().retain(|key, _| key.device != *device);
    }

    /// Keeps nothing of a node any more.
    pub fn leave_node(&self, node: &NodeId) {
        self.leaving.insert(node.clone(), ());
        self.idle().retain(|key, _| key.node != *node);
    }

    /// Drops connections that have ended or were not used for long.
    pub fn sweep(&self) {
        self.idle().retain(|_, kept| {
            kept.retain(|entry| {
                !entry.connection.sender.is_closed() && entry.since.elapsed() < IDLE_FOR
            });
            !kept.is_empty()
        });
    }

    /// Drops everything that is kept and keeps nothing any more.
    pub fn close(&self) {
        self.closed.cancel();
        self.idle().clear();
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Leaves the end to the drop, which resets the stream: a device that was told of an end only would go on to
    /// offer the rest of an answer that nobody takes, for as long as its tunnel lives.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
