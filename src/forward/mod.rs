//! A person's request into a device's stream and its response back, streamed in both directions.
//!
//! Knows sessions through [`Sessions`] only, and nothing of how the caller was identified or of how
//! errors are shown.

mod connection;
mod error;
mod exchange;
mod framing;
mod headers;
mod meter;
mod pool;
mod quiet_waker;
mod request_body;
mod response_body;
mod tcp;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::auth::live::{LiveStream, LiveStreams, Right};
use crate::net::{Client, upgraded_connection};
use crate::session::{Handle, SessionError, SessionStream, Sessions};
use crate::types::{DeviceId, NodeId, RequestId, TenantId};
use connection::OriginConnection;
pub use error::ForwardError;
use error::agent_error;
use exchange::{Answered, Exchange};
pub use headers::asks_for_websocket;
use meter::Counter;
pub use meter::TrafficMeter;
use pool::Pool;
use request_body::{Progress, RequestBody};
use response_body::{BodyKind, Keep, ResponseBody};
pub use tcp::TcpConnection;

/// A body that fits into the buffers on its way, in bytes: its end does not wait for the caller.
const SMALL_BODY: u64 = 64 * 1024;
/// How often kept connections are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long the two ends of a WebSocket may take to switch protocols.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// How the world reaches a device: by a path on the cloud's host or on the device's own host.
#[derive(Debug, Clone)]
pub struct Door {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host and port as the caller sees them.
    pub authority: Arc<str>,
    /// The path before the device's own; empty on the device's own host.
    pub prefix: String,
}

impl Door {
    /// Whether this is the device's own host.
    pub fn is_device_host(&self) -> bool {
        self.prefix.is_empty()
    }

    fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }
}

/// Who asks for what, already checked.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The device's owner.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// Who asks, for the device to know: a person's or a service client's id.
    pub user: String,
    /// What the request rests on, besides the device.
    pub rights: Vec<Right>,
    /// When that was checked.
    pub checked: Instant,
    /// The request.
    pub request_id: RequestId,
    /// Where it came from.
    pub client: Client,
    /// How the device is reached.
    pub door: Door,
    /// What finding out about the caller took.
    pub auth_time: Duration,
}

/// How long things may take, and how much is kept.
#[derive(Debug, Clone)]
pub struct ForwardLimits {
    /// Opening a stream to the device.
    pub stream_open_timeout: Duration,
    /// The device's response head, from when it has the request.
    pub response_header_timeout: Duration,
    /// A pause within a response.
    pub response_idle_timeout: Duration,
    /// Kept connections of one session.
    pub idle_streams_per_session: usize,
    /// Requests that one tenant may have open in this process, streams and WebSockets included.
    pub open_requests_per_tenant: usize,
}

struct Inner {
    sessions: Arc<dyn Sessions>,
    live: LiveStreams,
    limits: ForwardLimits,
    pool: Pool,
    meter: TrafficMeter,
    tasks: TaskTracker,
    restarting: CancellationToken,
    via: HeaderValue,
    pseudonym: String,
}

/// Forwards requests to devices. Cheap to clone.
#[derive(Clone)]
pub struct Forwarder(Arc<Inner>);

impl Forwarder {
    /// Forwards to what `sessions` finds. `pseudonym` names this installation in `Via` (RFC 9110
    /// §7.6.3), the same in all its processes.
    pub fn new(
        sessions: Arc<dyn Sessions>,
        live: LiveStreams,
        limits: ForwardLimits,
        pseudonym: &str,
    ) -> Self {
        let tasks = TaskTracker::new();
        let pool = Pool::new(limits.idle_streams_per_session);
        let pseudonym = format!("edgecloud-{pseudonym}");
        let via = HeaderValue::from_str(&format!("1.1 {pseudonym}"));
        Self(Arc::new(Inner {
            sessions,
            live,
            limits,
            pool,
            meter: TrafficMeter::default(),
            tasks,
            restarting: CancellationToken::new(),
            via: via.unwrap_or(HeaderValue::from_static("1.1 edgecloud")),
            pseudonym,
        }))
    }

    /// Counts what goes to and from devices.
    pub fn meter(&self) -> &TrafficMeter {
        &self.0.meter
    }

    /// Looks after kept connections; ends only with its owner.
    pub async fn maintain(&self) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            self.0.pool.sweep();
        }
    }

    /// Forgets what is kept about a device.
    pub fn forget(&self, device: &DeviceId) {
        self.0.sessions.forget(device);
        self.0.pool.forget(device);
    }

    /// Keeps no connections of a node any more, because it is on its way out.
    pub fn leave_node(&self, node: &NodeId) {
        self.0.pool.leave_node(node);
    }

    /// Keeps no connections any more, at the end of the process; waits until WebSockets have ended.
    pub async fn drain(&self) {
        self.0.pool.close();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Tells both ends of open WebSockets that the service restarts, and lets them go.
    pub fn close_websockets(&self) {
        self.0.restarting.cancel();
    }

    /// Forwards one request; `target` is the path and query for the origin.
    ///
    /// # Errors
    /// When there is no answer of the device to give back.
    pub async fn forward(
        &self,
        caller: Caller,
        target: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, ForwardError> {
        if self.has_been_here(request.headers()) {
            return Err(ForwardError::Loop);
        }
        let live = self.enlist(&caller)?;
        let websocket = *request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && asks_for_websocket(request.headers());
        let asked = headers::Asked {
            browser: headers::is_from_browser(request.headers()),
            head: *request.method() == Method::HEAD,
        };
        let upgrade = websocket.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let hold = expects_continue(&parts.headers);
        let counter = self.0.meter.counter(&caller.tenant, &caller.device);
        let (body, progress) = RequestBody::new(body, hold, Some(Arc::clone(&counter)));
        let exchange = Exchange {
            forwarder: self,
            caller: &caller,
            target,
            parts: &parts,
            progress: &progress,
            live: &live,
            websocket,
        };
        let answered = exchange.run(body).await?;
        counter.request();
        match (answered.response.status(), upgrade) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(upgrade)) => {
                self.switch_protocols(answered, upgrade, &caller, (asked, live, counter))
            }
            (StatusCode::SWITCHING_PROTOCOLS, None) => Err(ForwardError::OriginInvalid),
            _ => self.respond(answered, &caller, asked, (live, progress, counter)),
        }
    }

    fn has_been_here(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::VIA)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split([' ', ',']).any(|word| word == self.0.pseudonym))
    }

    /// Puts what the caller opens on the list of what is cut when its rights end.
    fn enlist(&self, caller: &Caller) -> Result<LiveStream, ForwardError> {
        let mut rights = caller.rights.clone();
        rights.push(Right::Device(caller.device.clone()));
        let max = self.0.limits.open_requests_per_tenant;
        let live = &self.0.live;
        live.open_in(&caller.tenant, max, rights, caller.checked)
            .ok_or(ForwardError::TenantBusy)
    }

    /// An error after which the session is looked up again, or the end.
    fn on_open_error(
        &self,
        device: &DeviceId,
        error: SessionError,
    ) -> Result<ForwardError, ForwardError> {
        self.0.sessions.forget(device);
        match error {
            SessionError::Busy => Err(ForwardError::Busy),
            SessionError::Timeout => Err(ForwardError::OriginTimeout),
            SessionError::Directory(error) => Err(ForwardError::Directory(error)),
            SessionError::NodeLost => Ok(ForwardError::NodeLost),
            SessionError::SessionClosed
            | SessionError::NotSupported
            | SessionError::NotHere
            | SessionError::Draining => Ok(ForwardError::Offline),
        }
    }

    async fn find(&self, caller: &Caller) -> Result<Arc<dyn Handle>, ForwardError> {
        match self.0.sessions.find(&caller.tenant, &caller.device).await {
            Ok(found) => found.ok_or(ForwardError::Offline),
            Err(SessionError::Directory(error)) => Err(ForwardError::Directory(error)),
            Err(_) => Err(ForwardError::NodeLost),
        }
    }

    async fn open_stream(&self, session: &dyn Handle) -> Result<SessionStream, SessionError> {
        let open = timeout(self.0.limits.stream_open_timeout, session.open_stream());
        open.await.unwrap_or(Err(SessionError::Timeout))
    }

    async fn connect(&self, session: &dyn Handle) -> Result<OriginConnection, SessionError> {
        let stream = self.open_stream(session).await?;
        let connected = OriginConnection::begin(stream).await;
        connected.map_err(|_| SessionError::SessionClosed)
    }

    fn respond(
        &self,
        answered: Answered,
        caller: &Caller,
        asked: headers::Asked,
        (live, progress, counter): (LiveStream, Progress, Arc<Counter>),
    ) -> Result<Response<Body>, ForwardError> {
        let timing = answered.timing.header(caller);
        let (parts, body) = answered.response.into_parts();
        if let Some(error) = agent_error(parts.status, &parts.headers) {
            return Err(error);
        }
        let is_event_stream = parts
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        let encoded = parts.headers.contains_key(header::CONTENT_ENCODING);
        let small = body
            .size_hint()
            .upper()
            .is_some_and(|size| size <= SMALL_BODY);
        let watch = (!small).then(|| {
            let (ended, driver) = (live.ended_owned(), answered.connection.driver.clone());
            AbortOnDropHandle::new(self.0.tasks.spawn(async move {
                ended.await;
                driver.cut();
            }))
        });
        let keep = Keep {
            live,
            watch,
            connection: answered.connection,
            pool: self.0.pool.clone(),
            key: answered.key,
            progress,
            counter,
        };
        let idle = self.0.limits.response_idle_timeout;
        let bodyless = asked.head
            || matches!(
                parts.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let kind = match (bodyless, is_event_stream && !encoded) {
            (true, _) => BodyKind::None,
            (false, true) => BodyKind::Events,
            (false, false) => BodyKind::Plain,
        };
        let body = ResponseBody::new(body, keep, idle, kind);
        let mut response = Response::new(Body::new(body));
        *response.status_mut() = parts.status;
        *response.headers_mut() = headers::to_caller(
            &parts.headers,
            parts.status,
            asked,
            &caller.door,
            &answered.origin_host,
        );
        response.headers_mut().append("server-timing", timing);
        Ok(response)
    }

    fn switch_protocols(
        &self,
        mut answered: Answered,
        upgrade: hyper::upgrade::OnUpgrade,
        caller: &Caller,
        (asked, live, counter): (headers::Asked, LiveStream, Arc<Counter>),
    ) -> Result<Response<Body>, ForwardError> {
        if !asks_for_websocket(answered.response.headers()) {
            return Err(ForwardError::OriginInvalid);
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let incoming = answered.response.headers();
        let status = StatusCode::SWITCHING_PROTOCOLS;
        let headers =
            headers::to_caller(incoming, status, asked, &caller.door, &answered.origin_host);
        *response.headers_mut() = headers;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let device = hyper::upgrade::on(&mut answered.response);
        let connection = answered.connection;
        let restarting = self.0.restarting.clone();
        self.0.tasks.spawn(async move {
            let switched = async { tokio::join!(upgrade, device, connection.driver.run()) };
            let Ok((Ok(client), Ok(device), ())) = timeout(UPGRADE_DEADLINE, switched).await else {
                return;
            };
            drop(connection);
            join(client, device, (&live, &counter), &restarting).await;
        });
        Ok(response)
    }
}

async fn join(
    client: hyper::upgrade::Upgraded,
    device: hyper::upgrade::Upgraded,
    (live, counter): (&LiveStream, &Counter),
    restarting: &CancellationToken,
) {
    let Some((mut connection, ahead)) = upgraded_connection(client) else {
        return;
    };
    let mut device = TokioIo::new(device);
    let joined = async {
        tokio::io::AsyncWriteExt::write_all(&mut device, &ahead).await?;
        websocket::splice(&mut connection, &mut device, (live, counter), restarting).await
    };
    if joined.await.is_err() {
        connection.reset_on_drop();
    }
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
