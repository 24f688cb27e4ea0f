//! Calls the internal API of other processes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use url::Url;

use super::credential::{Covered, sign};
use super::{EPOCH_HEADER, PREFIX, TENANT_HEADER, UPGRADE};
use crate::keys::KeyRing;
use crate::session::{RemoteStream, SessionError, SessionStream, Summary};
use crate::types::{Clock, DeviceId, NodeId, TenantId};

/// How long the caller waits for the end of a session, whatever becomes of its own request.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How long another process may take to answer about a session.
const SUMMARY_DEADLINE: Duration = Duration::from_secs(2);
/// How long another process may take to be reached.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Largest answer about one session, in bytes.
const MAX_SUMMARY_BYTES: usize = 64 * 1024;

/// Where a session is: everything that a call about it needs.
#[derive(Debug, Clone)]
pub struct Target {
    /// The node that holds the session.
    pub node: NodeId,
    /// The node's internal API.
    pub url: String,
    /// The device.
    pub device: DeviceId,
    /// The device's owner.
    pub tenant: TenantId,
    /// The session's epoch.
    pub epoch: i64,
}

/// A client of the internal API of every node. Cheap to clone.
#[derive(Clone)]
pub struct InternalClient {
    keys: KeyRing,
    clock: Clock,
    tasks: Arc<TaskTracker>,
}

impl InternalClient {
    /// A client that signs with the first of `keys`.
    pub fn new(keys: KeyRing, clock: Clock) -> Self {
        Self {
            keys,
            clock,
            tasks: Arc::default(),
        }
    }

    /// Opens a stream to a device through its node.
    ///
    /// # Errors
    /// What the node answers, or [`SessionError::NodeLost`].
    pub async fn open_stream(&self, target: &Target) -> Result<SessionStream, SessionError> {
        let path = format!("{PREFIX}/{}/stream", target.device);
        let response = self.send(Method::POST, path, target, true).await?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let stream = hyper::upgrade::on(response).await;
                let stream = stream.ok().and_then(RemoteStream::new);
                stream
                    .map(SessionStream::Right)
                    .ok_or(SessionError::NodeLost)
            }
            StatusCode::NOT_FOUND => Err(SessionError::NotHere),
            StatusCode::CONFLICT => Err(SessionError::Draining),
            StatusCode::SERVICE_UNAVAILABLE => Err(SessionError::Busy),
            StatusCode::GATEWAY_TIMEOUT => Err(SessionError::Timeout),
            _ => Err(SessionError::NodeLost),
        }
    }

    /// Closes a session. The call has its own deadline and goes on when the caller is cancelled.
    ///
    /// # Errors
    /// When the node did not confirm it in time.
    pub async fn close_session(&self, target: Target) -> Result<(), SessionError> {
        let client = self.clone();
        let call = self.tasks.spawn(async move {
            let path = format!("{PREFIX}/{}", target.device);
            let call = client.send(Method::DELETE, path, &target, false);
            let response = tokio::time::timeout(CLOSE_DEADLINE, call).await;
            match response.map_err(|_| SessionError::Timeout)??.status() {
                StatusCode::NO_CONTENT => Ok(()),
                _ => Err(SessionError::NodeLost),
            }
        });
        call.await.unwrap_or(Err(SessionError::NodeLost))
    }

    /// Asks a node what it knows of a session now; `None` when it does not hold it.
    ///
    /// # Errors
    /// When the node does not answer in time.
    pub async fn summary(&self, target: &Target) -> Result<Option<Summary>, SessionError> {
        let ask = async {
            let path = format!("{PREFIX}/{}", target.device);
            let response = self.send(Method::GET, path, target, false).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let body = Limited::new(response.into_body(), MAX_SUMMARY_BYTES)
                .collect()
                .await;
            let bytes = body.map_err(|_| SessionError::NodeLost)?.to_bytes();
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|_| SessionError::NodeLost)
        };
        tokio::time::timeout(SUMMARY_DEADLINE, ask)
            .await
            .map_err(|_| SessionError::Timeout)?
    }

    /// Waits until closes that are under way have ended.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn send(
        &self,
        method: Method,
        path: String,
        target: &Target,
        upgrade: bool,
    ) -> Result<Response<Incoming>, SessionError> {
        let url = Url::parse(&target.url).map_err(|_| SessionError::NodeLost)?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(SessionError::NodeLost);
        };
        let connect = TcpStream::connect((host.trim_matches(['[', ']']), port));
        let stream = tokio::time::timeout(CONNECT_DEADLINE, connect).await;
        let stream = stream
            .map_err(|_| SessionError::NodeLost)?
            .map_err(|_| SessionError::NodeLost)?;
        stream
            .set_nodelay(true)
            .map_err(|_| SessionError::NodeLost)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|_| SessionError::NodeLost)?;
        let request = self.request(method, &path, target, (host, port), upgrade);
        // The connection task ends by itself after an upgrade; otherwise with the answer's body.
        let connection = self.tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "internal connection ended early");
            }
        });
        let guard = AbortOnDropHandle::new(connection);
        let response = sender
            .send_request(request)
            .await
            .map_err(|_| SessionError::NodeLost)?;
        drop(guard.detach());
        Ok(response)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        target: &Target,
        (host, port): (&str, u16),
        upgrade: bool,
    ) -> Request<Empty<Bytes>> {
        let epoch = target.epoch.to_string();
        let covered = Covered {
            method: &method,
            path,
            node: &target.node,
            tenant: target.tenant.as_str(),
            epoch: &epoch,
        };
        let authorization = sign(&self.keys, &self.clock, covered);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::AUTHORIZATION, authorization)
            .header(TENANT_HEADER, target.tenant.as_str())
            .header(EPOCH_HEADER, epoch);
        if upgrade {
            request = request
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, UPGRADE);
        }
        request
            .body(Empty::new())
            .expect("ids, hosts and hex are valid in a request head")
    }
}
