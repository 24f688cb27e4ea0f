//! Serves HTTP/1.1 on a listener, within limits, until told to stop.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tower::util::ServiceExt;

use super::lingering::Lingering;
use super::listener::{Connection, Listener, Peer};
use super::tls::TlsFiles;

/// Pause after an accept that failed, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of an HTTP listener.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Largest request head, in bytes (at least 8 KiB).
    pub head_bytes: usize,
    /// Most header fields of a request.
    pub headers: usize,
    /// How long a request head may take to arrive, and an idle connection may wait for the next.
    pub header_read_timeout: Duration,
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
}

/// Accepts until `stop`; each connection then finishes the request it is at, and is cut at `abort`.
/// Returns when all connections have ended. The request's extensions hold the [`Peer`].
pub async fn serve_http<S, B>(
    listener: Listener,
    service: S,
    limits: HttpLimits,
    stop: CancellationToken,
    abort: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let tasks = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(limits.connections));
    while let Some((stream, peer, slot)) = next_connection(&listener, &slots, &stop).await {
        let conversation = Conversation {
            limits,
            peer,
            slot,
            tls: listener.tls(),
        };
        let (service, stop, abort) = (service.clone(), stop.clone(), abort.clone());
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                () = conversation.hold(stream, service, stop) => {}
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn next_connection(
    listener: &Listener,
    slots: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, Peer, OwnedSemaphorePermit)> {
    loop {
        let accepted = async {
            let slot = Arc::clone(slots)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => return Some((stream, peer, slot)),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Conversation {
    limits: HttpLimits,
    peer: Peer,
    slot: OwnedSemaphorePermit,
    tls: Option<TlsFiles>,
}

impl Conversation {
    async fn hold<S, B>(self, stream: TcpStream, service: S, stop: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let peer = self.peer;
        let connection =
            match Connection::establish(stream, self.tls, self.limits.header_read_timeout).await {
                Ok(connection) => connection,
                Err(error) => return tracing::debug!(%error, "TLS handshake failed"),
            };
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            service.clone().oneshot(request)
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_read_timeout)
            .max_buf_size(self.limits.head_bytes)
            .max_headers(self.limits.headers)
            .auto_date_header(true);
        let connection = builder
            .serve_connection(TokioIo::new(Lingering::new(connection)), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended early");
        }
        drop(self.slot);
    }
}
