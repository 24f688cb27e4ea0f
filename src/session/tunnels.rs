//! The tunnel listener (`:3800`): checks a device's token, upgrades, and keeps its session.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::local::SessionParts;
use super::node::Node;
use super::registry::Insertion;
use super::{LeaseState, LocalHandle};
use crate::device_token::DeviceToken;
use crate::net::{Connection, Peer, TrustedProxies};
use crate::store::NewSession;
use crate::tunnel::control::{ControlMessage, ControlStream};
use crate::tunnel::{CloseReason, EndReason, Metered, SUBPROTOCOL, Side, Tunnel, TunnelSettings};
use crate::types::{Clock, DeviceId, TenantId};

/// How long a device may take to switch protocols, and then to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// What a device that is turned away for now is told to wait, in seconds.
const RETRY_AFTER_SECS: &str = "5";
/// Messages to a device's control stream that wait.
const CONTROL_QUEUE: usize = 8;
/// Longest agent name and version that is kept, in bytes.
const MAX_AGENT_VERSION: usize = 128;
/// How often a superseded session is looked at, whether its streams have ended.
const SUPERSEDED_POLL: Duration = Duration::from_millis(200);

type Answer = Response<Full<Bytes>>;

/// How tunnels are accepted.
#[derive(Debug, Clone)]
pub struct TunnelPolicy {
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Sessions of this process at once.
    pub max_sessions: usize,
    /// Streams of one session at once.
    pub max_streams: usize,
    /// Largest WebSocket message, in bytes.
    pub max_message_bytes: usize,
    /// How far the windows of one session may grow together, in bytes.
    pub window_budget: usize,
    /// How long the streams of a superseded session may go on.
    pub drain_timeout: Duration,
    /// Whose word on where a device connects from is taken.
    pub trusted_proxies: TrustedProxies,
}

struct Inner {
    node: Node,
    policy: TunnelPolicy,
    clock: Clock,
    sessions: TaskTracker,
    ready: CancellationToken,
}

/// Accepts tunnels. Cheap to clone.
#[derive(Clone)]
pub struct Tunnels(Arc<Inner>);

struct Admitted {
    device: DeviceId,
    tenant: TenantId,
    remote_addr: String,
    agent_version: Option<String>,
    subprotocol: bool,
}

impl Tunnels {
    /// Accepts tunnels for `node`; sessions run in `sessions`. `/readyz` is good once `ready` is
    /// cancelled.
    pub fn new(
        node: Node,
        policy: TunnelPolicy,
        clock: Clock,
        sessions: TaskTracker,
        ready: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            node,
            policy,
            clock,
            sessions,
            ready,
        }))
    }

    /// Answers one request on the tunnel listener.
    ///
    /// # Errors
    /// Never.
    pub async fn answer(self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        Ok(match (request.method(), request.uri().path()) {
            (_, "/tunnel") => self.connect(request).await,
            (&Method::GET | &Method::HEAD, "/healthz") => plain(StatusCode::OK, "ok\n"),
            (&Method::GET | &Method::HEAD, "/readyz") => self.readiness().await,
            _ => plain(StatusCode::NOT_FOUND, "only GET /tunnel is here\n"),
        })
    }

    async fn readiness(&self) -> Answer {
        let inner = &self.0;
        let open = inner.ready.is_cancelled() && !inner.node.is_draining();
        if open && inner.node.store().ping().await.is_ok() {
            let mut answer = plain(StatusCode::OK, "{\"degraded\":[]}");
            let json = HeaderValue::from_static("application/json");
            answer.headers_mut().insert(header::CONTENT_TYPE, json);
            return answer;
        }
        plain(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }

    async fn connect(&self, mut request: Request<Incoming>) -> Answer {
        let admitted = match self.admit(&request).await {
            Ok(admitted) => admitted,
            Err(refusal) => return refusal,
        };
        let headers = request.headers();
        let Some(key) = websocket_key(request.method(), headers) else {
            let mut answer = plain(
                StatusCode::UPGRADE_REQUIRED,
                "the tunnel is a WebSocket: GET with Upgrade: websocket, version 13\n",
            );
            let headers = answer.headers_mut();
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(
                header::SEC_WEBSOCKET_VERSION,
                HeaderValue::from_static("13"),
            );
            return answer;
        };
        let mut answer = plain(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = answer.headers_mut();
        headers.clear();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
        if admitted.subprotocol {
            headers.insert(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(SUBPROTOCOL),
            );
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let tunnels = self.clone();
        self.0.sessions.spawn(async move {
            let Ok(Ok(upgraded)) = timeout(HELLO_DEADLINE, upgrade).await else {
                return;
            };
            if let Ok(parts) = upgraded.downcast::<TokioIo<Connection>>() {
                tunnels
                    .keep(admitted, parts.io.into_inner(), parts.read_buf)
                    .await;
            }
        });
        answer
    }

    /// Everything that must hold before a device is let in.
    async fn admit(&self, request: &Request<Incoming>) -> Result<Admitted, Answer> {
        let headers = request.headers();
        if headers.contains_key(header::ORIGIN) {
            return Err(plain(StatusCode::FORBIDDEN, "browsers have no tunnels\n"));
        }
        let Some(token) = bearer(headers).and_then(DeviceToken::parse) else {
            return Err(unauthorized());
        };
        let node = &self.0.node;
        if node.is_draining()
            || node.lease_state() == LeaseState::Fenced
            || node.registry().len() >= self.0.policy.max_sessions
        {
            return Err(later());
        }
        let found = node
            .store()
            .find_device_by_token(token.hash(), self.0.clock.now())
            .await;
        let (device, tenant) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Err(unauthorized()),
            Err(error) => {
                tracing::warn!(%error, "a device token could not be checked");
                return Err(later());
            }
        };
        Ok(Admitted {
            device,
            tenant,
            remote_addr: self.remote_addr(request),
            agent_version: agent_version(headers),
            subprotocol: offers_subprotocol(headers),
        })
    }

    /// Where the device connects from: address and port, or what a trusted proxy says.
    fn remote_addr(&self, request: &Request<Incoming>) -> String {
        let peer = request.extensions().get::<Peer>().copied();
        let client = self
            .0
            .policy
            .trusted_proxies
            .client(peer, request.headers());
        match peer {
            Some(peer) if peer.addr.ip().to_canonical() == client.addr => peer.addr.to_string(),
            _ => client.addr.to_string(),
        }
    }

    /// Keeps one device's session from its first to its last byte.
    async fn keep(&self, admitted: Admitted, connection: Connection, ahead: Bytes) {
        let settings = self.settings(admitted.subprotocol);
        let ws = WebSocketStream::from_partially_read(
            Metered::new(connection),
            ahead.into(),
            Role::Server,
            Some(settings.websocket()),
        )
        .await;
        let (tunnel, task, _) = Tunnel::over(ws, &settings);
        let driver = AbortOnDropHandle::new(self.0.sessions.spawn(task.run()));
        let control = match admitted.subprotocol {
            true => self.say_hello(&tunnel).await,
            false => None,
        };
        let origin_host = control
            .as_ref()
            .and_then(|(_, origin_host)| origin_host.clone());
        let Some(parts) = self.begin(&admitted, &tunnel, origin_host).await else {
            let _ = driver.await;
            return;
        };
        let (sender, receiver) = mpsc::channel(CONTROL_QUEUE);
        let _control = control.map(|(stream, _)| {
            AbortOnDropHandle::new(self.0.sessions.spawn(converse(stream, receiver)))
        });
        let session = LocalHandle::new(SessionParts {
            control: admitted.subprotocol.then_some(sender),
            ..parts
        });
        self.hold(session).await;
        let _ = driver.await;
    }

    fn settings(&self, subprotocol: bool) -> TunnelSettings {
        let policy = &self.0.policy;
        TunnelSettings {
            side: Side::Proxy,
            subprotocol,
            heartbeat: policy.heartbeat,
            max_streams: policy.max_streams,
            window_budget: policy.window_budget,
            max_message_bytes: policy.max_message_bytes,
            clock: self.0.clock.clone(),
        }
    }

    /// Opens the control stream and exchanges hellos; a device that does not answer is served
    /// without one.
    async fn say_hello(
        &self,
        tunnel: &Tunnel,
    ) -> Option<(ControlStream<crate::tunnel::TunnelStream>, Option<String>)> {
        let exchange = async {
            let mut control = ControlStream::new(tunnel.open_control().await.ok()?);
            let node_id = Some(self.0.node.id().to_string());
            let hello = ControlMessage::Hello {
                origin_host: None,
                node_id,
            };
            control.send(&hello).await.ok()?;
            loop {
                match control.receive().await.ok()?? {
                    ControlMessage::Hello { origin_host, .. } => {
                        return Some((control, origin_host.filter(|host| is_host(host))));
                    }
                    _ => continue,
                }
            }
        };
        timeout(HELLO_DEADLINE, exchange).await.ok().flatten()
    }

    /// Enters the session into the directory; closes the tunnel when that fails.
    async fn begin(
        &self,
        admitted: &Admitted,
        tunnel: &Tunnel,
        origin_host: Option<String>,
    ) -> Option<SessionParts> {
        let node = &self.0.node;
        let connected_at = self.0.clock.now();
        let new = NewSession {
            device: admitted.device.clone(),
            tenant: admitted.tenant.clone(),
            node: node.id().clone(),
            remote_addr: admitted.remote_addr.clone(),
            agent_version: admitted.agent_version.clone(),
            origin_host: origin_host.clone(),
        };
        let epoch = match node.store().begin_session(new, connected_at).await {
            Ok(Some(begun)) => begun.epoch,
            Ok(None) => {
                tunnel.close(CloseReason::Revoked).await;
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, device = %admitted.device, "a session could not begin");
                tunnel.close(CloseReason::Restarting).await;
                return None;
            }
        };
        Some(SessionParts {
            device: admitted.device.clone(),
            tenant: admitted.tenant.clone(),
            node: node.id().clone(),
            epoch,
            remote_addr: admitted.remote_addr.clone(),
            agent_version: admitted.agent_version.clone(),
            origin_host,
            connected_at,
            tunnel: tunnel.clone(),
            control: None,
        })
    }

    async fn hold(&self, session: LocalHandle) {
        let parts = session.parts();
        let (insertion, registered) = self.0.node.registry().insert(session.clone());
        tracing::info!(device = %parts.device, epoch = parts.epoch, "session began");
        if let Insertion::Newest(Some(older)) = insertion {
            tracing::info!(device = %parts.device, older = older.parts().epoch, "session replaced");
        }
        let reason = tokio::select! {
            reason = parts.tunnel.ended() => reason,
            () = self.outlive(&session) => {
                session.close_because(CloseReason::Done).await;
                parts.tunnel.ended().await
            }
        };
        drop(registered);
        self.end(&session, &reason).await;
    }

    /// Waits until the session is superseded and its streams have ended or had their time.
    async fn outlive(&self, session: &LocalHandle) {
        session.draining().await;
        let idle = async {
            while session.parts().tunnel.open_streams() > 0 {
                tokio::time::sleep(SUPERSEDED_POLL).await;
            }
        };
        // Either way the session is over.
        let _ = timeout(self.0.policy.drain_timeout, idle).await;
    }

    async fn end(&self, session: &LocalHandle, reason: &EndReason) {
        let parts = session.parts();
        tracing::info!(
            device = %parts.device, epoch = parts.epoch, reason = reason.as_str(), "session ended"
        );
        let seen = parts
            .tunnel
            .last_echo()
            .unwrap_or_else(|| self.0.clock.now());
        let ended =
            self.0
                .node
                .store()
                .end_session(&parts.device, parts.epoch, reason.as_str(), seen);
        if let Err(error) = ended.await {
            tracing::warn!(%error, device = %parts.device, "the end of a session was not recorded");
        }
    }
}

/// Passes messages to the device and reads what it says, until either end is gone.
async fn converse(
    mut control: ControlStream<crate::tunnel::TunnelStream>,
    mut messages: mpsc::Receiver<ControlMessage>,
) {
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Some(message) if control.send(&message).await.is_ok() => {}
                _ => return,
            },
            received = control.receive() => match received {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            },
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let value = given.next()?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (given.next().is_none() && scheme.eq_ignore_ascii_case("bearer")).then_some(token)
}

/// The `Sec-WebSocket-Accept` for a right WebSocket handshake (RFC 6455 §4.2.1).
fn websocket_key(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    let has = |name, token: &str| {
        headers.get_all(name).iter().any(|value: &HeaderValue| {
            value.to_str().is_ok_and(|value| {
                value
                    .split(',')
                    .any(|part| part.trim().eq_ignore_ascii_case(token))
            })
        })
    };
    let right = method == Method::GET
        && has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    let accept = right.then(|| derive_accept_key(key.as_bytes()))?;
    HeaderValue::from_str(&accept).ok()
}

fn offers_subprotocol(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .any(|value| {
            value
                .to_str()
                .is_ok_and(|value| value.split(',').any(|name| name.trim() == SUBPROTOCOL))
        })
}

fn agent_version(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("edgecloud-agent")?.to_str().ok()?;
    (value.len() <= MAX_AGENT_VERSION).then(|| value.to_owned())
}

/// Whether a text can stand in a `Host` header.
fn is_host(text: &str) -> bool {
    text.len() <= 255 && text.parse::<http::uri::Authority>().is_ok() && !text.contains('@')
}

fn plain(status: StatusCode, body: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *answer.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, text);
    answer
}

fn unauthorized() -> Answer {
    let mut answer = plain(StatusCode::UNAUTHORIZED, "a valid device token is needed\n");
    answer
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

fn later() -> Answer {
    let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, "try again in a moment\n");
    answer.headers_mut().insert(
        header::RETRY_AFTER,
        HeaderValue::from_static(RETRY_AFTER_SECS),
    );
    answer
}
