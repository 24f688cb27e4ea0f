//! One simulated device: opens a tunnel as the protocol asks (docs: README, "Pair a box"), says hello, answers
//! heartbeats, and answers each request on a stream with the same kilobyte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::frames::{
    ACK, Asked, DATA, FIN, Frame, Messages, PING, RST, SYN, Sink, WINDOW_UPDATE, message,
};
use super::http::connect;

/// How long a handshake may take, as for the agent.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Longest answer to a handshake, in bytes.
const MAX_HEAD: usize = 8 * 1024;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PONG: u8 = 10;
const HELLO: &[u8] = b"{\"type\":\"hello\",\"origin_host\":\"localhost\"}\n";
/// Read at once by a device, in bytes: twenty thousand of them wait with one buffer each.
const READ_BUFFER: usize = 1024;

/// Where devices connect to.
#[derive(Clone)]
pub struct Cloud {
    pub tunnel: SocketAddr,
    pub tls: Option<Arc<TlsConnector>>,
    pub subprotocol: bool,
}

/// Why there is no tunnel, or no more.
#[derive(Debug)]
pub enum End {
    /// It could not be opened, or broke.
    Failed,
    /// The cloud asked to come back after this time.
    Later(Duration),
    /// The cloud asked for another tunnel after this time.
    Moved(Duration),
    /// The cloud does not want the device.
    Refused,
}

/// A byte stream, with TLS or without.
trait Link: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Link for T {}

/// A tunnel that is open.
pub struct Tunnel {
    link: Box<dyn Link>,
    state: State,
    messages: Messages,
    ahead: Vec<u8>,
}

impl Tunnel {
    /// Opens one, from an address of this machine.
    pub async fn open(cloud: &Cloud, token: &str, from: SocketAddr) -> Result<Self, End> {
        match timeout(HANDSHAKE, handshake(cloud, token, from)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(_)) | Err(_) => Err(End::Failed),
        }
    }

    /// Serves until the tunnel ends. `connected` is called once, when the cloud has let the device in.
    pub async fn serve(mut self, connected: impl FnOnce()) -> End {
        let mut connected = Some(connected);
        let mut buffer = [0; READ_BUFFER];
        let mut bytes = std::mem::take(&mut self.ahead);
        loop {
            let asked = self.messages.feed(&bytes, &mut self.state);
            if self.state.connected
                && let Some(connected) = connected.take()
            {
                connected();
            }
            if let Some(after) = self.state.moved.take() {
                return End::Moved(after);
            }
            match self.answer(asked).await {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(_) => return End::Failed,
            }
            match self.link.read(&mut buffer).await {
                Ok(0) | Err(_) => return End::Failed,
                Ok(read) => {
                    bytes.clear();
                    bytes.extend_from_slice(&buffer[..read]);
                }
            }
        }
    }

    async fn answer(&mut self, asked: Vec<Asked>) -> Result<Option<End>> {
        let mut out = Vec::new();
        if !self.state.out.is_empty() {
            out = message(BINARY, &std::mem::take(&mut self.state.out));
        }
        let mut end = None;
        for asked in asked {
            match asked {
                Asked::Pong(payload) => out.extend(message(PONG, &payload)),
                Asked::Close(code) => {
                    out.extend(message(CLOSE, &code.to_be_bytes()));
                    end = Some(match code {
                        4401 => End::Refused,
                        _ => End::Failed,
                    });
                }
            }
        }
        if !out.is_empty() {
            self.link.write_all(&out).await?;
        }
        Ok(end)
    }
}

async fn handshake(cloud: &Cloud, token: &str, from: SocketAddr) -> Result<Result<Tunnel, End>> {
    let tcp = connect(cloud.tunnel, Some(from)).await?;
    let mut link: Box<dyn Link> = match &cloud.tls {
        None => Box::new(tcp),
        Some(tls) => {
            let name = ServerName::try_from("localhost").context("a server's name")?;
            Box::new(tls.connect(name, tcp).await?)
        }
    };
    let protocol = match cloud.subprotocol {
        true => "Sec-WebSocket-Protocol: edgecloud.v1\r\n",
        false => "",
    };
    let request = format!(
        "GET /tunnel HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: BwcHBwcHBwcHBwcHBwcHBw==\r\n{protocol}\
         Edgecloud-Agent: load/1\r\nAuthorization: Bearer {token}\r\n\r\n",
        cloud.tunnel
    );
    link.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(512);
    let end = loop {
        if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        if head.len() > MAX_HEAD || link.read_buf(&mut head).await? == 0 {
            bail!("no answer to the handshake");
        }
    };
    let ahead = head.split_off(end);
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok(match status {
        "101" => {
            let subprotocol = head.contains("edgecloud.v1");
            Ok(Tunnel {
                link,
                state: State::new(subprotocol),
                messages: Messages::default(),
                ahead,
            })
        }
        "401" => Err(End::Refused),
        "429" | "503" => Err(retry_after(&head).map_or(End::Failed, End::Later)),
        _ => Err(End::Failed),
    })
}

/// Seconds only: what this cloud sends.
fn retry_after(head: &str) -> Option<Duration> {
    let value = head.split("\r\nretry-after:").nth(1)?;
    let seconds = value.split("\r\n").next()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What is known of the streams.
struct State {
    subprotocol: bool,
    connected: bool,
    moved: Option<Duration>,
    /// The line of the control stream under way.
    line: Vec<u8>,
    /// Streams of requests, each with the bytes of the head's end that were seen.
    streams: Vec<(u32, usize)>,
    out: Vec<u8>,
}

impl State {
    fn new(subprotocol: bool) -> Self {
        Self {
            subprotocol,
            connected: !subprotocol,
            moved: None,
            line: Vec::new(),
            streams: Vec::new(),
            out: Vec::new(),
        }
    }

    fn send(&mut self, kind: u8, flags: u16, stream: u32, length: usize) {
        let length = u32::try_from(length).expect("frames are small");
        let frame = Frame {
            kind,
            flags,
            stream,
            length,
        };
        frame.write(&mut self.out);
    }

    fn is_control(&self, stream: u32) -> bool {
        self.subprotocol && stream == 1
    }

    fn on_control(&mut self, part: &[u8]) {
        for byte in part {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let said: serde_json::Value = serde_json::from_slice(&line).unwrap_or_default();
            match said["type"].as_str() {
                Some("hello") => self.connected = true,
                Some("move") => {
                    let after = said["after_ms"].as_u64().unwrap_or_default();
                    self.moved = Some(Duration::from_millis(after));
                }
                _ => {}
            }
        }
    }

    /// Answers as many requests as heads end here. A request has no body, and the answer before was read by then, so
    /// that the stream's window is never used up.
    fn on_request(&mut self, stream: u32, part: &[u8]) {
        const END: &[u8; 4] = b"\r\n\r\n";
        let Some((_, seen)) = self.streams.iter_mut().find(|(id, _)| *id == stream) else {
            return;
        };
        let mut heads = 0;
        for byte in part {
            *seen = match *byte {
                byte if byte == END[*seen] => *seen + 1,
                b'\r' => 1,
                _ => 0,
            };
            if *seen == END.len() {
                *seen = 0;
                heads += 1;
            }
        }
        for _ in 0..heads {
            let answer = answer();
            self.send(DATA, 0, stream, answer.len());
            self.out.extend_from_slice(answer);
        }
    }
}

impl Sink for State {
    fn on_frame(&mut self, frame: Frame) {
        match frame.kind {
            PING if frame.has(SYN) => self.send(PING, ACK, 0, frame.length as usize),
            DATA | WINDOW_UPDATE if frame.has(SYN) => {
                self.send(WINDOW_UPDATE, ACK, frame.stream, 0);
                if self.is_control(frame.stream) {
                    self.send(DATA, 0, frame.stream, HELLO.len());
                    self.out.extend_from_slice(HELLO);
                } else {
                    self.streams.push((frame.stream, 0));
                }
            }
            WINDOW_UPDATE if frame.has(FIN | RST) => self.on_end(frame),
            _ => {}
        }
    }

    fn on_data(&mut self, frame: Frame, part: &[u8]) {
        if self.is_control(frame.stream) {
            self.on_control(part);
        } else {
            self.on_request(frame.stream, part);
        }
    }

    fn on_end(&mut self, frame: Frame) {
        if frame.kind == DATA && frame.length > 0 {
            self.send(WINDOW_UPDATE, 0, frame.stream, frame.length as usize);
        }
        if frame.has(FIN | RST) {
            let known = self.streams.len();
            self.streams.retain(|(id, _)| *id != frame.stream);
            if known != self.streams.len() && !frame.has(RST) {
                self.send(DATA, FIN, frame.stream, 0);
            }
        }
    }
}

fn answer() -> &'static [u8] {
    const BODY: usize = 1024;
    static ANSWER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    ANSWER.get_or_init(|| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n");
        let mut answer = head.into_bytes();
        answer.resize(answer.len() + BODY, b'x');
        answer
    })
}
