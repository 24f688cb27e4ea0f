//! The proxy's end of the internal API.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::time::{Duration, timeout};
use tokio_util::task::TaskTracker;

use super::credential::{Covered, Verifier};
use super::{EPOCH_HEADER, PREFIX, TENANT_HEADER, UPGRADE};
use crate::net::upgraded_connection;
use crate::session::node::Node;
use crate::session::{Handle, LeaseState, LocalHandle, SessionError, SessionStream};
use crate::types::{DeviceId, TenantId};

/// How long opening a stream to the device may take.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long the caller may take to switch protocols.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// Copy buffer per direction of a spliced stream, in bytes.
const SPLICE_BUFFER: usize = 64 * 1024;

type Answer = Response<Full<Bytes>>;

/// Answers the paths of health and metrics.
pub type StatusPages = Arc<dyn Fn(&str) -> Option<(StatusCode, String)> + Send + Sync>;

/// Serves the sessions of this process to the other processes. Cheap to clone.
#[derive(Clone)]
pub struct InternalApi {
    node: Node,
    verifier: Arc<Verifier>,
    splices: TaskTracker,
    /// Answers `/healthz`, `/readyz` and, with the credential, `/metrics`.
    status: StatusPages,
}

impl InternalApi {
    /// The internal API of `node`; `status` answers the paths of health and metrics.
    pub fn new(node: Node, verifier: Verifier, splices: TaskTracker, status: StatusPages) -> Self {
        Self {
            node,
            verifier: Arc::new(verifier),
            splices,
            status,
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Never.
    pub async fn answer(self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        Ok(self.route(request).await)
    }

    async fn route(self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        let free = matches!(path.as_str(), "/healthz" | "/readyz");
        if !free && !self.is_authorised(&request) {
            let mut answer = problem(StatusCode::UNAUTHORIZED, "unauthorized");
            let scheme = HeaderValue::from_static("Edgecloud-HMAC");
            answer
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
            return answer;
        }
        if free || path == "/metrics" {
            return match (self.status)(&path) {
                Some((status, body)) if body.starts_with('{') => {
                    with_body(status, "application/json", body)
                }
                Some((status, body)) => with_body(status, "text/plain; charset=utf-8", body),
                None => problem(StatusCode::NOT_FOUND, "not_found"),
            };
        }
        let Some(rest) = path.strip_prefix(PREFIX) else {
            return problem(StatusCode::NOT_FOUND, "not_found");
        };
        let segments: Vec<&str> = rest.split('/').skip(1).collect();
        match (request.method(), segments.as_slice()) {
            (&Method::GET, []) => self.list(),
            (&Method::GET, [device]) => match self.find(device, request.headers()).await {
                Some(session) => json_body(StatusCode::OK, &json!(session.summary())),
                None => problem(StatusCode::NOT_FOUND, "not_here"),
            },
            (&Method::DELETE, [device]) => self.close(device, request.headers()).await,
            (&Method::POST, [device, "stream"]) => self.open(device, request).await,
            _ => problem(StatusCode::NOT_FOUND, "not_found"),
        }
    }

    fn is_authorised(&self, request: &Request<Incoming>) -> bool {
        let headers = request.headers();
        let covered = Covered {
            method: request.method(),
            path: request.uri().path(),
            node: self.node.id(),
            tenant: text(headers, TENANT_HEADER),
            epoch: text(headers, EPOCH_HEADER),
        };
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        match (
            given.next().and_then(|value| value.to_str().ok()),
            given.next(),
        ) {
            (Some(authorization), None) => self.verifier.verify(authorization, covered),
            _ => false,
        }
    }

    /// The session that a request means: of this device, this tenant, this epoch. Whoever asks has read
    /// of it in the directory, so one that is just entering there is waited for.
    async fn find(&self, device: &str, headers: &HeaderMap) -> Option<LocalHandle> {
        let device: DeviceId = device.parse().ok()?;
        if let Some(found) = self.meant(&device, headers) {
            return Some(found);
        }
        let has_begun = self.node.registry().begun(&device).await;
        has_begun.then(|| self.meant(&device, headers)).flatten()
    }

    fn meant(&self, device: &DeviceId, headers: &HeaderMap) -> Option<LocalHandle> {
        let tenant: TenantId = text(headers, TENANT_HEADER).parse().ok()?;
        let epoch = text(headers, EPOCH_HEADER);
        let session = self.node.registry().find(device)?;
        let parts = session.parts();
        let meant =
            parts.tenant == tenant && (epoch.is_empty() || epoch == parts.epoch.to_string());
        meant.then_some(session)
    }

    fn list(&self) -> Answer {
        let sessions = self.node.registry().all();
        let items: Vec<_> = sessions.iter().map(Handle::summary).collect();
        json_body(StatusCode::OK, &json!({ "items": items }))
    }

    async fn close(&self, device: &str, headers: &HeaderMap) -> Answer {
        if let Some(session) = self.find(device, headers).await {
            // Closing a local session cannot fail.
            let _ = session.close().await;
        }
        with_body(StatusCode::NO_CONTENT, "text/plain", String::new())
    }

    async fn open(&self, device: &str, request: Request<Incoming>) -> Answer {
        let upgrade = request
            .headers()
            .get(header::UPGRADE)
            .and_then(|value| value.to_str().ok());
        if upgrade != Some(UPGRADE) {
            return problem(StatusCode::BAD_REQUEST, "upgrade_required");
        }
        if self.node.lease_state() == LeaseState::Fenced {
            return problem(StatusCode::CONFLICT, "draining");
        }
        let Some(session) = self.find(device, request.headers()).await else {
            return problem(StatusCode::NOT_FOUND, "not_here");
        };
        let stream = match timeout(OPEN_DEADLINE, session.open_stream()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(SessionError::Busy)) => {
                return problem(StatusCode::SERVICE_UNAVAILABLE, "device_busy");
            }
            Ok(Err(SessionError::Draining)) => return problem(StatusCode::CONFLICT, "draining"),
            Ok(Err(_)) => return problem(StatusCode::NOT_FOUND, "not_here"),
            Err(_) => return problem(StatusCode::GATEWAY_TIMEOUT, "stream_timeout"),
        };
        self.splices.spawn(splice(request, stream));
        let mut answer = with_body(StatusCode::SWITCHING_PROTOCOLS, "text/plain", String::new());
        let headers = answer.headers_mut();
        headers.clear();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(UPGRADE));
        answer
    }
}

/// Joins an upgraded connection and a stream until both directions have ended.
async fn splice(request: Request<Incoming>, mut stream: SessionStream) {
    let Ok(Ok(upgraded)) = timeout(UPGRADE_DEADLINE, hyper::upgrade::on(request)).await else {
        return;
    };
    let Some((mut connection, ahead)) = upgraded_connection(upgraded) else {
        return;
    };
    let copied = async {
        tokio::io::AsyncWriteExt::write_all(&mut stream, &ahead).await?;
        copy_bidirectional_with_sizes(&mut connection, &mut stream, SPLICE_BUFFER, SPLICE_BUFFER)
            .await
    };
    if copied.await.is_err() {
        // A reset on one side must not look like a clean end on the other; dropping the stream
        // resets it too.
        connection.reset_on_drop();
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn with_body(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn json_body(status: StatusCode, body: &serde_json::Value) -> Answer {
    with_body(status, "application/json", body.to_string())
}

fn problem(status: StatusCode, code: &'static str) -> Answer {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = json!({
        "type": format!("/problems/{code}"), "title": title, "status": status.as_u16(), "code": code,
    });
    with_body(status, "application/problem+json", body.to_string())
}
