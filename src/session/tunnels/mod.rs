//! The tunnel listener (`:3800`): checks a device's token, upgrades, and keeps its session.

mod hold;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::LeaseState;
use super::claims::Claims;
use super::node::Node;
use crate::device_token::DeviceToken;
use crate::net::{
    Admission, Peer, RateLimit, TrustedProxies, offers_subprotocol, switch_to_websocket,
    upgraded_connection, websocket_accept,
};
use crate::tunnel::{SUBPROTOCOL, WindowBudget};
use crate::types::{Clock, DeviceId, TenantId, random_bytes};

/// How long a device may take to switch protocols, and then to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// What a device is told to wait that is turned away for another reason than a crowd.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Longest agent name and version that is kept, in bytes.
const MAX_AGENT_VERSION: usize = 128;

type Answer = Response<Full<Bytes>>;

/// How tunnels are accepted.
#[derive(Debug, Clone)]
pub struct TunnelPolicy {
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Sessions of this process at once.
    pub max_sessions: usize,
    /// Sessions that may begin in a second; further devices are told to come back.
    pub new_sessions_per_second: usize,
    /// Handshakes that may be worked on at once.
    pub handshakes_at_once: usize,
    /// Streams of one session at once.
    pub max_streams: usize,
    /// Largest WebSocket message, in bytes.
    pub max_message_bytes: usize,
    /// How far the windows of one session may grow together, in bytes.
    pub window_budget: usize,
    /// How far those of all sessions may.
    pub process_budget: WindowBudget,
    /// How long the streams of a superseded session may go on.
    pub drain_timeout: Duration,
    /// Wrong tokens of one address in a minute that are told apart from too many.
    pub failed_tokens_per_minute: usize,
    /// Whose word on where a device connects from is taken.
    pub trusted_proxies: TrustedProxies,
}

struct Inner {
    node: Node,
    failed_tokens: RateLimit,
    admission: Admission,
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
    token_hash: [u8; 32],
    remote_ip: IpAddr,
    remote_addr: String,
    agent_version: Option<String>,
    subprotocol: bool,
    claims: Claims,
}

/// What a device says on its control stream first.
#[derive(Default)]
struct Hello {
    origin_host: Option<String>,
    claims: Claims,
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
            failed_tokens: RateLimit::per_address(policy.failed_tokens_per_minute),
            admission: Admission::new(policy.new_sessions_per_second, policy.handshakes_at_once),
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
        let Some(accept) = websocket_accept(&request) else {
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
        let answer = switch_to_websocket(accept, admitted.subprotocol.then_some(SUBPROTOCOL));
        let upgrade = hyper::upgrade::on(&mut request);
        let tunnels = self.clone();
        self.0.sessions.spawn(async move {
            let Ok(Ok(upgraded)) = timeout(HELLO_DEADLINE, upgrade).await else {
                return;
            };
            if let Some((connection, ahead)) = upgraded_connection(upgraded) {
                tunnels.keep(admitted, connection, ahead).await;
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
            return Err(self.unauthorized(request));
        };
        self.takes_sessions().map_err(later)?;
        // Before the database is asked: a fleet that comes back at once must not keep it from everybody.
        let random = u64::from_ne_bytes(random_bytes());
        let entered = self.0.admission.enter(random).await.map_err(later)?;
        // Much may have changed while it stood in line.
        self.takes_sessions().map_err(later)?;
        let node = &self.0.node;
        let found = node
            .store()
            .find_device_by_token(token.hash(), self.0.clock.now())
            .await;
        let (device, tenant) = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                // Who guesses takes no device's turn.
                entered.give_back();
                return Err(self.unauthorized(request));
            }
            Err(error) => {
                tracing::warn!(%error, "a device token could not be checked");
                return Err(later(RETRY_AFTER));
            }
        };
        drop(entered);
        Ok(Admitted {
            device,
            tenant,
            token_hash: token.hash(),
            remote_ip: self.client(request),
            remote_addr: self.remote_addr(request),
            agent_version: agent_version(headers),
            subprotocol: offers_subprotocol(headers, SUBPROTOCOL),
            claims: Claims::of_head(request.uri(), headers),
        })
    }

    /// The error is how long to wait.
    fn takes_sessions(&self) -> Result<(), Duration> {
        let node = &self.0.node;
        let refuses = node.is_draining()
            || node.lease_state() == LeaseState::Fenced
            || node.registry().len() >= self.0.policy.max_sessions;
        match refuses {
            true => Err(RETRY_AFTER),
            false => Ok(()),
        }
    }

    /// Counts a wrong token. Only now, so that a device with its right one is let in whatever others at
    /// its address do.
    fn unauthorized(&self, request: &Request<Incoming>) -> Answer {
        match self.0.failed_tokens.count(self.client(request)) {
            Ok(()) => unauthorized(),
            Err(wait) => too_many(wait),
        }
    }

    fn client(&self, request: &Request<Incoming>) -> IpAddr {
        let peer = request.extensions().get::<Peer>().copied();
        let proxies = &self.0.policy.trusted_proxies;
        proxies.client(peer, request.headers()).addr
    }

    /// Where the device connects from: address and port, or what a trusted proxy says.
    fn remote_addr(&self, request: &Request<Incoming>) -> String {
        let client = self.client(request);
        match request.extensions().get::<Peer>() {
            Some(peer) if peer.addr.ip().to_canonical() == client => peer.addr.to_string(),
            _ => client.to_string(),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let value = given.next()?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (given.next().is_none() && scheme.eq_ignore_ascii_case("bearer")).then_some(token)
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

fn too_many(wait: Duration) -> Answer {
    let answer = plain(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens\n");
    retry_after(answer, wait)
}

fn later(wait: Duration) -> Answer {
    let answer = plain(StatusCode::SERVICE_UNAVAILABLE, "try again in a moment\n");
    retry_after(answer, wait)
}

/// Says when to come back: at least after a second, in whole seconds.
fn retry_after(mut answer: Answer, wait: Duration) -> Answer {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let headers = answer.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    answer
}
