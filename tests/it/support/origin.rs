//! The HTTP server of a device, in the test's own process, so that the test sees what arrives.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_util::task::AbortOnDropHandle;

use super::pattern::Pattern;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;
type Request = hyper::Request<Incoming>;

/// Pieces of a body that the test may send ahead of the origin.
const DRIVEN_QUEUE: usize = 64;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Path and query, byte by byte.
    pub target: String,
    /// Its headers.
    pub headers: HeaderMap,
}

impl Seen {
    /// A header as text; empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("a readable header"))
    }
}

/// One request body as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upload {
    /// Bytes that arrived.
    pub bytes: u64,
    /// Whether they were the known pattern.
    pub intact: bool,
    /// Whether the body ended as its framing says it should.
    pub complete: bool,
}

#[derive(Default)]
struct State {
    title: Option<String>,
    connections: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
    uploads: Mutex<Vec<Upload>>,
    closes: Mutex<Vec<(u16, String)>>,
    driven: Mutex<HashMap<String, mpsc::Receiver<Bytes>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An origin. Paths under `/do/` have the meaning that [`answer`] gives them; everything else tells
/// the caller, as JSON, what arrived.
pub struct Origin {
    addr: SocketAddr,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

impl Origin {
    /// Starts an origin on any free port.
    pub async fn spawn() -> Self {
        Self::with_state(State::default()).await
    }

    /// Starts an origin whose root is an HTML page with a title.
    pub async fn with_page(title: &str) -> Self {
        let title = Some(title.to_owned());
        Self::with_state(State {
            title,
            ..State::default()
        })
        .await
    }

    async fn with_state(state: State) -> Self {
        let (listener, addr) = listen().await;
        let state = Arc::new(state);
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Self {
            addr,
            state,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections it has had.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// How many requests had this path and query.
    pub fn count(&self, target: &str) -> usize {
        let seen = lock(&self.state.seen);
        seen.iter().filter(|seen| seen.target == target).count()
    }

    /// The latest request.
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("a request has reached the origin")
    }

    /// Every request body so far that `/do/upload` has seen the end of.
    pub fn uploads(&self) -> Vec<Upload> {
        lock(&self.state.uploads).clone()
    }

    /// The close codes and reasons that callers of `/do/websocket` have sent.
    pub fn closes(&self) -> Vec<(u16, String)> {
        lock(&self.state.closes).clone()
    }

    /// A body that the test drives: `/do/driven?name=NAME` answers with what is sent here, and ends
    /// when the sender is dropped. [`mpsc::Sender::closed`] tells that the caller is gone.
    pub fn drive(&self, name: &str) -> mpsc::Sender<Bytes> {
        let (sender, receiver) = mpsc::channel(DRIVEN_QUEUE);
        lock(&self.state.driven).insert(name.to_owned(), receiver);
        sender
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("bind an origin");
    let addr = listener.local_addr().expect("a bound address");
    (listener, addr)
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.connections.fetch_add(1, Ordering::SeqCst);
        let state = Arc::clone(&state);
        let service = service_fn(move |request| {
            let state = Arc::clone(&state);
            async move { Ok::<_, Infallible>(answer(&state, request).await) }
        });
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            // A caller that goes away is what some tests are about.
            let _ = connection.await;
        });
    }
}

async fn answer(state: &Arc<State>, request: Request) -> Response<Body> {
    let target = request.uri().to_string();
    lock(&state.seen).push(Seen {
        method: request.method().clone(),
        target: target.clone(),
        headers: request.headers().clone(),
    });
    let query = Query::of(&request);
    match request.uri().path() {
        "/do/answer" => built_answer(&query),
        "/do/download" => download(&query),
        "/do/upload" => upload(state, request).await,
        "/do/reflect" => with_body(StatusCode::OK, request.into_body().boxed_unsync()),
        "/do/driven" => driven(state, &query),
        "/do/trailers" => trailers(),
        "/do/range" => range(&request),
        "/do/websocket" => websocket(state, request),
        "/do/refuse-body" => text(StatusCode::EXPECTATION_FAILED, "not this body"),
        "/do/hang" => std::future::pending().await,
        "/" if state.title.is_some() => page(state.title.as_deref().unwrap_or_default()),
        _ => echo(request, &target).await,
    }
}

struct Query(Vec<(String, String)>);

impl Query {
    fn of(request: &Request) -> Self {
        let query = request.uri().query().unwrap_or_default();
        Self(
            url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    fn get(&self, wanted: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)
            .map(|value| value.parse().expect("a number in the query"))
    }
}

fn with_body(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    with_body(status, whole(text.to_owned()))
}

fn page(title: &str) -> Response<Body> {
    let html = format!("<!doctype html><title>{title}</title><h1>{title}</h1>");
    let mut response = text(StatusCode::OK, &html);
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn echo(request: Request, target: &str) -> Response<Body> {
    let method = request.method().to_string();
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let body = request.into_body().collect().await;
    let body_bytes = body.map_or(0, |body| body.to_bytes().len());
    let seen = json!({
        "method": method, "target": target, "headers": headers, "body_bytes": body_bytes,
    });
    let mut response = text(StatusCode::OK, &seen.to_string());
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// `/do/answer?status=N&body=TEXT&NAME=VALUE...`: every other parameter is a header.
fn built_answer(query: &Query) -> Response<Body> {
    let status = query.number("status").unwrap_or(200);
    let status = u16::try_from(status).expect("a status");
    let status = StatusCode::from_u16(status).expect("a status");
    let mut response = text(status, query.get("body").unwrap_or_default());
    for (name, value) in &query.0 {
        if name != "status" && name != "body" {
            let name: http::HeaderName = name.parse().expect("a header name");
            let value = value.parse().expect("a header value");
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// `/do/download?bytes=N`: the pattern, with `length=1` under a Content-Length, else chunked.
fn download(query: &Query) -> Response<Body> {
    let total = query.number("bytes").expect("how many bytes");
    let chunks = stream::unfold(Pattern::default(), move |mut pattern| async move {
        let left = total - pattern.position();
        (left > 0).then(|| (Ok(Frame::data(pattern.next(left))), pattern))
    });
    let mut response = with_body(StatusCode::OK, StreamBody::new(chunks).boxed_unsync());
    if query.get("length").is_some() {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, total.into());
    }
    response
}

async fn upload(state: &State, request: Request) -> Response<Body> {
    let mut body = request.into_body();
    let (mut pattern, mut intact) = (Pattern::default(), true);
    let complete = loop {
        match body.frame().await {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    intact &= pattern.accepts(&data);
                }
            }
        }
    };
    let bytes = pattern.position();
    lock(&state.uploads).push(Upload {
        bytes,
        intact,
        complete,
    });
    let told = json!({"bytes": bytes, "intact": intact, "complete": complete});
    text(StatusCode::OK, &told.to_string())
}

fn driven(state: &State, query: &Query) -> Response<Body> {
    let name = query.get("name").expect("which body");
    let receiver = lock(&state.driven).remove(name);
    let receiver = receiver.expect("the test drives this body, once");
    let chunks = stream::unfold(receiver, |mut receiver| async {
        let chunk = receiver.recv().await?;
        Some((Ok(Frame::data(chunk)), receiver))
    });
    let mut response = with_body(StatusCode::OK, StreamBody::new(chunks).boxed_unsync());
    if let Some(kind) = query.get("type") {
        let kind = kind.parse().expect("a content type");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

fn trailers() -> Response<Body> {
    let mut after = HeaderMap::new();
    after.insert("x-checksum", HeaderValue::from_static("of the body"));
    let frames = [
        Ok(Frame::data(Bytes::from("body"))),
        Ok(Frame::trailers(after)),
    ];
    let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
    let mut response = with_body(StatusCode::OK, body);
    let names = HeaderValue::from_static("x-checksum");
    response.headers_mut().insert(header::TRAILER, names);
    response
}

fn range(request: &Request) -> Response<Body> {
    const WHOLE: &str = "0123456789";
    let range = request.headers().get(header::RANGE);
    let Some(range) = range.and_then(|range| range.to_str().ok()) else {
        return text(StatusCode::OK, WHOLE);
    };
    let (first, last) = range
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
        .expect("one range");
    let first: usize = first.parse().expect("the first byte");
    let last: usize = last.parse().expect("the last byte");
    let mut response = text(StatusCode::PARTIAL_CONTENT, &WHOLE[first..=last]);
    let told = format!("bytes {first}-{last}/{}", WHOLE.len());
    let told = told.parse().expect("a header value");
    response.headers_mut().insert(header::CONTENT_RANGE, told);
    response
}

/// Sends messages back; `close CODE REASON` makes it close, `last words` makes it send one more and
/// close. Speaks the first subprotocol that is offered.
fn websocket(state: &Arc<State>, mut request: Request) -> Response<Body> {
    let headers = request.headers();
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return text(StatusCode::UPGRADE_REQUIRED, "not a WebSocket handshake");
    };
    let accept = derive_accept_key(key.as_bytes());
    let offered = headers
        .get(header::SEC_WEBSOCKET_PROTOCOL)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(',').next())
        .map(|value| value.trim().to_owned());
    let upgrade = hyper::upgrade::on(&mut request);
    let state = Arc::clone(state);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let io = TokioIo::new(upgraded);
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            converse(&state, socket).await;
        }
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = accept.parse().expect("base64 is a header value");
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(offered) = offered {
        let offered = offered.parse().expect("a subprotocol");
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
    }
    response
}

async fn converse<S>(state: &State, mut socket: WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Close(frame) => {
                let close = frame.map_or((1005, String::new()), |frame| {
                    (frame.code.into(), frame.reason.as_str().to_owned())
                });
                lock(&state.closes).push(close);
            }
            Message::Text(text) if text.starts_with("close ") => {
                let mut words = text.splitn(3, ' ').skip(1);
                let code = words.next().and_then(|code| code.parse::<u16>().ok());
                let frame = CloseFrame {
                    code: code.expect("a close code").into(),
                    reason: words.next().unwrap_or_default().to_owned().into(),
                };
                // The caller may be gone already.
                let _ = socket.close(Some(frame)).await;
            }
            Message::Text(_) | Message::Binary(_) => {
                let _ = socket.send(message).await;
            }
            _ => {}
        }
    }
}

/// An origin that treats the connection as the test says, once the head of a request has arrived.
pub struct RawOrigin {
    addr: SocketAddr,
    requests: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl RawOrigin {
    /// Starts it on any free port; `treat` gets the connection and the head of the request.
    pub async fn spawn<F>(treat: impl Fn(TcpStream, String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (listener, addr) = listen().await;
        let requests = Arc::new(AtomicUsize::new(0));
        let (treat, counter) = (Arc::new(treat), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let (treat, counter) = (Arc::clone(&treat), Arc::clone(&counter));
                connections.spawn(async move {
                    if let Some(head) = read_head(&mut stream).await {
                        counter.fetch_add(1, Ordering::SeqCst);
                        treat(stream, head).await;
                    }
                });
            }
        });
        Self {
            addr,
            requests,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many requests have arrived.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}
