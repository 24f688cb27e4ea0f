//! A small device server to try the cloud with: a page, and an endpoint for each kind of traffic.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PAGE: &str = include_str!("sample_origin.html");
/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;
/// The most that `/bytes` gives.
const MAX_BYTES: u64 = 16 * 1024 * 1024 * 1024;
/// The largest WebSocket message that is echoed, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_secs(1);
const CHUNK: Bytes = Bytes::from_static(&[b'.'; 64 * 1024]);

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// A device's HTTP server, bound and not yet serving.
pub struct SampleOrigin {
    listener: TcpListener,
    addr: SocketAddr,
}

/// What its connections share.
#[derive(Clone)]
struct Shared {
    started: Instant,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl SampleOrigin {
    /// Binds the server.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop`, then cuts what is open.
    pub async fn serve(self, stop: CancellationToken) {
        let shared = Shared {
            started: Instant::now(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        };
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accept = async {
            loop {
                let slot = Arc::clone(&slots).acquire_owned().await;
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let hold = hold(stream, shared.clone());
                        shared.spawn(async move {
                            hold.await;
                            drop(slot);
                        });
                    }
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                }
            }
        };
        let _: Option<Infallible> = stop.run_until_cancelled(accept).await;
        shared.tasks.close();
        shared.tasks.wait().await;
    }
}

impl Shared {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }
}

async fn hold(stream: TcpStream, shared: Shared) {
    // Only speed is lost without it.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(request, &shared).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // A client that goes away is no news.
    let _ = connection.await;
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET | &Method::HEAD, "/") => respond("text/html; charset=utf-8", full(PAGE)),
        (&Method::GET | &Method::HEAD, "/api/hello") => json_body(&json!({
            "message": "hello from the sample box",
            "uptime_secs": shared.started.elapsed().as_secs(),
            "version": env!("CARGO_PKG_VERSION"),
        })),
        (&Method::GET | &Method::HEAD, "/headers") => json_body(&headers_of(&request)),
        (&Method::GET, "/events") => {
            let mut response = respond("text/event-stream", ticks());
            let no_store = HeaderValue::from_static("no-store");
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, no_store);
            response
        }
        (&Method::GET | &Method::HEAD, "/bytes") => bytes(request.uri().query()),
        (&Method::POST, "/echo") => echo(request),
        (&Method::POST, "/sink") => sink(request).await,
        (&Method::GET, "/ws") => websocket(request, shared),
        _ => plain(StatusCode::NOT_FOUND, "there is no such page on this box\n"),
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn respond(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = respond("text/plain; charset=utf-8", full(text));
    *response.status_mut() = status;
    response
}

fn json_body(value: &Value) -> Response<Body> {
    respond("application/json", full(value.to_string()))
}

fn headers_of(request: &Request<Incoming>) -> Value {
    let mut headers = Map::new();
    for name in request.headers().keys() {
        let values = request.headers().get_all(name).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        headers.insert(name.to_string(), values.join(", ").into());
    }
    headers.into()
}

fn ticks() -> Body {
    let ticks = stream::unfold((interval(TICK), 0u64), |(mut timer, count)| async move {
        timer.tick().await;
        let event = format!("id: {count}\ndata: {{\"tick\":{count}}}\n\n");
        Some((Ok(Frame::data(event.into())), (timer, count + 1)))
    });
    StreamBody::new(ticks).boxed_unsync()
}

fn bytes(query: Option<&str>) -> Response<Body> {
    let wanted = query.and_then(|query| query.strip_prefix("n=")?.parse().ok());
    let Some(wanted) = wanted.filter(|wanted| *wanted <= MAX_BYTES) else {
        let text = "say how many: /bytes?n=N, at most 16 GiB\n";
        return plain(StatusCode::BAD_REQUEST, text);
    };
    let chunks = stream::unfold(wanted, |left: u64| async move {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK.len());
        (len > 0).then(|| (Ok(Frame::data(CHUNK.slice(..len))), left - len as u64))
    });
    let mut response = respond(
        "application/octet-stream",
        StreamBody::new(chunks).boxed_unsync(),
    );
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, wanted.into());
    response
}

fn echo(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let mut response = respond("application/octet-stream", body.boxed_unsync());
    if let Some(content_type) = head.headers.get(header::CONTENT_TYPE) {
        let content_type = content_type.clone();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
    }
    response
}

async fn sink(request: Request<Incoming>) -> Response<Body> {
    let mut body = request.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes += frame.data_ref().map_or(0, Bytes::len) as u64,
            Err(_) => return plain(StatusCode::BAD_REQUEST, "the body was cut off\n"),
        }
    }
    json_body(&json!({ "bytes": bytes }))
}

fn websocket(mut request: Request<Incoming>, shared: &Shared) -> Response<Body> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let accept = key.map(|key| derive_accept_key(key.as_bytes()));
    let Some(accept) = accept.and_then(|accept| HeaderValue::try_from(accept).ok()) else {
        return plain(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket\n");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    shared.spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            echo_messages(TokioIo::new(upgraded)).await;
        }
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

async fn echo_messages(io: TokioIo<hyper::upgrade::Upgraded>) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let mut ws = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    while let Some(Ok(message)) = ws.next().await {
        let is_data = message.is_text() || message.is_binary();
        if is_data && ws.send(message).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests end with their runtime, which owns their tasks"
)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_tungstenite::tungstenite::Message;

    async fn origin() -> SocketAddr {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let origin = SampleOrigin::bind(any).await.expect("bind");
        let addr = origin.addr();
        tokio::task::spawn(origin.serve(CancellationToken::new()));
        addr
    }

    async fn ask(addr: SocketAddr, request: &str) -> String {
        let mut tcp = TcpStream::connect(addr).await.expect("connect");
        let request = request.replacen("\r\n", "\r\nHost: box\r\nConnection: close\r\n", 1);
        tcp.write_all(request.as_bytes()).await.expect("write");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.expect("read");
        answer
    }

    #[tokio::test]
    async fn it_answers_what_the_demo_shows() {
        let addr = origin().await;
        for (request, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", "<title>Sample box</title>"),
            (
                "GET /api/hello HTTP/1.1\r\n\r\n",
                "hello from the sample box",
            ),
            (
                "GET /headers HTTP/1.1\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
                "\"x-a\":\"1, 2\"",
            ),
            (
                "GET /bytes?n=70000 HTTP/1.1\r\n\r\n",
                "content-length: 70000",
            ),
            ("GET /bytes?n=17179869185 HTTP/1.1\r\n\r\n", "HTTP/1.1 400"),
            ("GET /bytes HTTP/1.1\r\n\r\n", "HTTP/1.1 400"),
            (
                "POST /sink HTTP/1.1\r\nContent-Length: 5\r\n\r\n12345",
                "{\"bytes\":5}",
            ),
            ("GET /ws HTTP/1.1\r\n\r\n", "HTTP/1.1 426"),
            ("GET /nothing HTTP/1.1\r\n\r\n", "HTTP/1.1 404"),
        ] {
            let answer = ask(addr, request).await;
            assert!(answer.contains(expected), "{request}: {answer:.300}");
        }
    }

    #[tokio::test]
    async fn it_echoes_bodies_with_their_type() {
        let request =
            "POST /echo HTTP/1.1\r\nContent-Type: text/x-ping\r\nContent-Length: 4\r\n\r\nping";
        let answer = ask(origin().await, request).await;
        assert!(answer.contains("content-type: text/x-ping"), "{answer}");
        assert!(answer.contains("ping\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn it_ticks() {
        let mut tcp = TcpStream::connect(origin().await).await.expect("connect");
        tcp.write_all(b"GET /events HTTP/1.1\r\nHost: box\r\n\r\n")
            .await
            .expect("write");
        let mut seen = Vec::new();
        while !seen.windows(10).any(|window| window == b"{\"tick\":0}") {
            assert_ne!(tcp.read_buf(&mut seen).await.expect("read"), 0);
        }
    }

    #[tokio::test]
    async fn it_echoes_messages() {
        let addr = origin().await;
        let tcp = TcpStream::connect(addr).await.expect("connect");
        let url = format!("ws://{addr}/ws");
        let (mut ws, _) = tokio_tungstenite::client_async(url, tcp)
            .await
            .expect("a WebSocket");
        ws.send(Message::text("ping")).await.expect("send");
        let echo = ws.next().await.expect("an answer").expect("a message");
        assert_eq!(echo, Message::text("ping"));
    }

    #[tokio::test]
    async fn it_ends_when_told() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let origin = SampleOrigin::bind(any).await.expect("bind");
        let mut tcp = TcpStream::connect(origin.addr()).await.expect("connect");
        let stop = CancellationToken::new();
        let serving = tokio::task::spawn(origin.serve(stop.clone()));
        tcp.write_all(b"GET /events HTTP/1.1\r\nHost: box\r\n\r\n")
            .await
            .expect("write");
        tcp.read_u8().await.expect("the answer begins");
        stop.cancel();
        serving.await.expect("no panic");
    }
}
