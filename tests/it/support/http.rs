//! A small HTTP/1.1 client that sends exactly what a test says.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::task::AbortOnDropHandle;

use super::browser::Jar;
use super::tls::TlsClient;
use super::wait::within;

/// What goes wrong with an exchange, as text enough for a test.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Error>;

/// Largest body that is read whole, in bytes.
const MAX_BODY: usize = 64 << 20;
/// How long the largest bodies may take.
const LONG_LIMIT: Duration = Duration::from_secs(300);

/// Connects to a listener of the cloud.
async fn connect(addr: SocketAddr) -> TcpStream {
    let stream = within("a connection", TcpStream::connect(addr)).await;
    stream.unwrap_or_else(|error| panic!("connect to {addr}: {error}"))
}

/// A text that no other test uses.
pub fn random_token() -> String {
    edgecloud::types::base32_lower(&edgecloud::types::random_bytes::<10>())
}

/// A request in the making.
pub struct Request {
    addr: SocketAddr,
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Body,
    jar: Option<(Jar, String)>,
    tls: Option<TlsClient>,
}

/// A connection, with or without TLS.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Request {
    /// A request to a listener; `host` is the Host header.
    pub fn new(addr: SocketAddr, host: &str, method: Method, target: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().expect("a host"));
        Self {
            addr,
            method,
            target: target.to_owned(),
            headers,
            body: full(Bytes::new()),
            jar: None,
            tls: None,
        }
    }

    /// Goes over TLS, if there is somebody to trust.
    pub(super) fn over(mut self, tls: Option<&TlsClient>) -> Self {
        self.tls = tls.cloned();
        self
    }

    /// Takes cookies from a jar and puts the answer's there.
    pub(super) fn with_jar(mut self, jar: Jar, host: &str) -> Self {
        if let Some(cookies) = jar.header(host) {
            self = self.header("cookie", &cookies);
        }
        self.jar = Some((jar, host.to_owned()));
        self
    }

    /// Sets a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name_of(name), value_of(value));
        self
    }

    /// Adds a header beside those of the same name.
    pub fn another_header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(name_of(name), value_of(value));
        self
    }

    /// Removes a header.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// Sets the body, with a Content-Length.
    pub fn bytes(mut self, body: impl Into<Bytes>) -> Self {
        self.body = full(body.into());
        self
    }

    /// Sets a JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json")
            .bytes(body.to_string())
    }

    /// Sets a body that is made while it is sent: chunked, unless a Content-Length is set.
    pub fn stream(mut self, chunks: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        let frames = chunks.map(|chunk| Ok(Frame::data(chunk)));
        self.body = BodyExt::boxed_unsync(StreamBody::new(frames));
        self
    }

    /// Sends it and reads the whole answer.
    pub async fn send(self) -> Answer {
        let what = self.to_string();
        self.try_send()
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Sends it and reads the whole answer, however long the body takes.
    pub async fn send_long(self) -> Answer {
        let what = self.to_string();
        let exchange = async { self.try_open().await?.try_finish().await };
        timeout(LONG_LIMIT, exchange)
            .await
            .unwrap_or_else(|_| panic!("{what}: no end"))
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Sends it and reads the whole answer, if it arrives whole.
    pub async fn try_send(self) -> Result<Answer, Error> {
        let what = self.to_string();
        within(&what, async {
            let streaming = self.try_open().await?;
            streaming.try_finish().await
        })
        .await
    }

    /// Sends it and returns with the head of the answer; the body follows.
    pub async fn open(self) -> Streaming {
        let what = self.to_string();
        within(&what, self.try_open())
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    async fn try_open(self) -> Result<Streaming, Error> {
        let what = self.to_string();
        let stream = TcpStream::connect(self.addr).await?;
        let stream: Box<dyn Io> = match &self.tls {
            Some(tls) => Box::new(tls.connect(stream).await?),
            None => Box::new(stream),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // The exchange below tells of any error.
            let _ = connection.await;
        }));
        let mut request = http::Request::builder()
            .method(self.method)
            .uri(self.target)
            .body(self.body)?;
        *request.headers_mut() = self.headers;
        let (head, body) = sender.send_request(request).await?.into_parts();
        if let Some((jar, host)) = &self.jar {
            jar.store(host, &head.headers);
        }
        Ok(Streaming {
            what,
            status: head.status,
            headers: head.headers,
            body,
            _connection: connection,
        })
    }

    /// Sends it as a WebSocket handshake.
    ///
    /// # Errors
    /// The answer, when that is not 101.
    pub async fn websocket(self) -> Result<WebSocket, Box<Answer>> {
        let stream = connect(self.addr).await;
        self.shake_hands(stream).await
    }

    /// As [`Request::websocket`], over TLS.
    ///
    /// # Errors
    /// The answer, when that is not 101.
    pub async fn secure_websocket(self) -> Result<WebSocket<TlsStream<TcpStream>>, Box<Answer>> {
        let stream = connect(self.addr).await;
        let tls = self.tls.as_ref().expect("somebody to trust");
        let stream = tls.connect(stream).await.expect("a TLS handshake");
        self.shake_hands(stream).await
    }

    /// As [`Request::websocket`], over a connection that the caller has made.
    pub(super) async fn shake_hands<S>(self, stream: S) -> Result<WebSocket<S>, Box<Answer>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let what = self.to_string();
        let mut request = http::Request::builder()
            .uri(format!("ws://{}{}", self.addr, self.target))
            .body(())
            .expect("a request");
        *request.headers_mut() = self.headers;
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            (
                "sec-websocket-key",
                &tungstenite::handshake::client::generate_key(),
            ),
        ] {
            request.headers_mut().insert(name_of(name), value_of(value));
        }
        match within(&what, tokio_tungstenite::client_async(request, stream)).await {
            Ok((socket, answer)) => Ok(WebSocket {
                socket,
                headers: answer.headers().clone(),
            }),
            Err(tungstenite::Error::Http(answer)) => {
                let (head, body) = answer.into_parts();
                Err(Box::new(Answer {
                    what,
                    status: head.status,
                    headers: head.headers,
                    body: body.unwrap_or_default().into(),
                    trailers: None,
                }))
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target)
    }
}

fn full(body: Bytes) -> Body {
    BodyExt::boxed_unsync(Full::new(body).map_err(|never| match never {}))
}

fn name_of(name: &str) -> HeaderName {
    name.parse().expect("a header name")
}

fn value_of(value: &str) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).expect("a header value")
}

/// A WebSocket, and the headers of the answer that opened it.
pub struct WebSocket<S = TcpStream> {
    /// The open socket.
    pub socket: WebSocketStream<S>,
    /// The headers of the 101.
    pub headers: HeaderMap,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Waits for the close frame, past any messages: its code and reason.
    pub async fn closed(&mut self) -> (u16, String) {
        within("the close frame", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => {
                        return (frame.code.into(), frame.reason.as_str().to_owned());
                    }
                    Some(Ok(Message::Close(None))) => return (1005, String::new()),
                    Some(Ok(_)) => {}
                    other => panic!("a close frame should come: {other:?}"),
                }
            }
        })
        .await
    }

    /// Whether a message comes back from an origin that echoes.
    pub async fn echoes(&mut self, message: Message) -> bool {
        let back = within("the message comes back", async {
            self.socket.send(message.clone()).await.ok()?;
            self.socket.next().await?.ok()
        });
        back.await == Some(message)
    }
}

/// An answer whose body is still coming.
pub struct Streaming {
    what: String,
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl Streaming {
    /// Fails the test unless the status is the expected one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.what);
        self
    }

    /// The next piece of the body; `None` at its clean end.
    ///
    /// # Errors
    /// When the body is cut off.
    pub async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let what = format!("more of the answer to {}", self.what);
        loop {
            match within(&what, self.body.frame()).await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(_trailers) => {}
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next piece of the body, which must come.
    pub async fn next_piece(&mut self) -> Bytes {
        let what = self.what.clone();
        match self.next().await {
            Some(Ok(piece)) => piece,
            other => panic!("the answer to {what} should go on, but: {other:?}"),
        }
    }

    /// Reads on until the body holds `text`, and returns everything read.
    pub async fn read_until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            let piece = self.next_piece().await;
            read.push_str(&String::from_utf8_lossy(&piece));
        }
        read
    }

    /// Reads the rest.
    pub async fn finish(self) -> Answer {
        let what = self.what.clone();
        within(&what, self.try_finish())
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Reads the rest, if it arrives whole.
    ///
    /// # Errors
    /// When the body is cut off.
    pub async fn try_finish(self) -> Result<Answer, Error> {
        let body = Limited::new(self.body, MAX_BODY).collect().await?;
        Ok(Answer {
            what: self.what,
            status: self.status,
            headers: self.headers,
            trailers: body.trailers().cloned(),
            body: body.to_bytes(),
        })
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    what: String,
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// What followed the body.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// Fails the test unless the status is the expected one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}: {}", self.what, self.text());
        self
    }

    /// Fails the test unless the answer is a success.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert!(
            self.status.is_success(),
            "{}: {} {}",
            self.what,
            self.status,
            self.text()
        );
        self
    }

    /// Fails the test unless the request was refused as the caller's fault.
    #[track_caller]
    pub fn expect_refusal(self) -> Self {
        assert!(
            self.status.is_client_error(),
            "{}: {} {}",
            self.what,
            self.status,
            self.text()
        );
        self
    }

    /// Fails the test unless it is a problem (RFC 9457) with this status and code.
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.json()["code"], code, "{}", answer.text());
        answer
    }

    /// A header, as text; empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("a readable header"))
    }

    /// Every value of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let values = self.headers.get_all(name).iter();
        values
            .map(|value| value.to_str().expect("a readable header"))
            .collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{}: {error} in {:?}", self.what, self.text()))
    }

    /// The items of a list.
    #[track_caller]
    pub fn items(&self) -> Vec<Value> {
        let json = self.json();
        let items = json["items"].as_array();
        items
            .unwrap_or_else(|| panic!("{}: no items in {json}", self.what))
            .clone()
    }

    /// The body without what is different in every answer, for comparing two of them.
    #[track_caller]
    pub fn without_request_id(&self) -> Value {
        let mut json = self.json();
        json.as_object_mut()
            .expect("an object")
            .remove("request_id")
            .expect("a problem names its request");
        json
    }
}

/// A bare connection, for requests that no client would send.
pub struct RawConnection(TcpStream);

impl RawConnection {
    /// Connects.
    pub async fn open(addr: SocketAddr) -> Self {
        Self(connect(addr).await)
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("the bytes are taken", self.0.write_all(bytes.as_ref()))
            .await
            .expect("write to the connection");
    }

    /// Sends bytes for as long as the other side takes them: it may close before the end.
    pub async fn send_what_is_taken(&mut self, bytes: impl AsRef<[u8]>) {
        // An error is the close.
        let _ = within("the bytes are taken", self.0.write_all(bytes.as_ref())).await;
    }

    /// Reads one head, up to its empty line, and nothing after it.
    pub async fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = within("the head of an answer", self.0.read_u8()).await;
            let byte = byte.unwrap_or_else(|error| {
                let so_far = String::from_utf8_lossy(&head);
                panic!("the connection ended after {so_far:?}: {error}")
            });
            head.push(byte);
        }
        String::from_utf8_lossy(&head).into_owned()
    }

    /// The status of the answer that comes next.
    pub async fn read_status(&mut self) -> u16 {
        let head = self.read_head().await;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        status.unwrap_or_else(|| panic!("no status line: {head:?}"))
    }

    /// Reads exactly so many bytes.
    pub async fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = within("more bytes", self.0.read_exact(&mut bytes)).await;
        read.expect("the connection goes on");
        bytes
    }

    /// Reads until the other side has nothing more to say.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = within("the end of a connection", self.0.read_to_end(&mut rest)).await;
        rest
    }
}
