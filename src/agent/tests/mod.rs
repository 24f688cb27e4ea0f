//! The agent over real sockets, with a hand-driven cloud and origin.

mod pairing;
mod streams;
mod tunnels;

use std::net::SocketAddr;

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use super::*;
use crate::tunnel::control::{ControlMessage, ControlStream};
use crate::tunnel::{CloseReason, SUBPROTOCOL, Tunnel, TunnelStream, WindowBudget};
use crate::types::NodeId;

const TOKEN: &str = "edt_canary";

/// Awaits what must happen; only a broken test takes longer.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("it happens in time")
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let addr = listener.local_addr().expect("it is bound");
    (listener, addr)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    within(listener.accept()).await.expect("accept").0
}

/// An address at which nothing listens.
async fn nobody() -> SocketAddr {
    listen().await.1
}

fn settings(side: Side) -> TunnelSettings {
    TunnelSettings {
        side,
        subprotocol: true,
        heartbeat: HEARTBEAT,
        max_streams: 16,
        window_budget: WINDOW_BUDGET,
        process_budget: WindowBudget::new(WINDOW_BUDGET),
        max_message_bytes: MAX_MESSAGE_BYTES,
        clock: Clock::system(),
    }
}

/// The cloud's tunnel listener.
struct Cloud {
    listener: TcpListener,
    addr: SocketAddr,
}

/// The cloud's end of one tunnel.
struct Proxy {
    tunnel: Tunnel,
    head: HeaderMap,
}

impl Cloud {
    async fn start() -> Self {
        let (listener, addr) = listen().await;
        Self { listener, addr }
    }

    /// Takes the next handshake; agrees on the subprotocol or not.
    async fn tunnel(&self, subprotocol: bool) -> Proxy {
        let tcp = accept(&self.listener).await;
        let mut head = HeaderMap::new();
        #[expect(
            clippy::result_large_err,
            reason = "the callback's type is tungstenite's"
        )]
        let callback = |request: &Request, mut response: Response| {
            assert_eq!(request.uri(), "/tunnel");
            head = request.headers().clone();
            if subprotocol {
                let value = SUBPROTOCOL.parse().expect("a value");
                response
                    .headers_mut()
                    .insert("sec-websocket-protocol", value);
            }
            Ok(response)
        };
        let settings = TunnelSettings {
            subprotocol,
            ..settings(Side::Proxy)
        };
        let ws = tokio_tungstenite::accept_hdr_async(tcp, callback);
        let ws = within(ws).await.expect("a WebSocket handshake");
        // A device waits for the answer before it sends anything.
        let (tunnel, task, _) = Tunnel::over(ws.into_inner(), Bytes::new(), &settings);
        tokio::task::spawn(task.run());
        Proxy { tunnel, head }
    }

    /// Takes the next handshake, and the device says hello.
    async fn session(&self) -> (Proxy, ControlStream<TunnelStream>, Option<String>) {
        let proxy = self.tunnel(true).await;
        let (control, origin_host) = proxy.say_hello().await;
        (proxy, control, origin_host)
    }

    /// Answers the next connection with these bytes; returns what it received.
    async fn answer(&self, answer: &str) -> String {
        let mut tcp = accept(&self.listener).await;
        let request = read_request(&mut tcp).await;
        tcp.write_all(answer.as_bytes()).await.expect("write");
        request
    }
}

impl Proxy {
    async fn say_hello(&self) -> (ControlStream<TunnelStream>, Option<String>) {
        let stream = self.tunnel.open_control().expect("open");
        let mut control = ControlStream::new(stream);
        let hello = ControlMessage::Hello {
            origin_host: None,
            node_id: Some(NodeId::random().to_string()),
            device_id: None,
            tenant_id: None,
        };
        control.send(&hello).await.expect("send");
        match within(control.receive()).await.expect("receive") {
            Some(ControlMessage::Hello { origin_host, .. }) => (control, origin_host),
            other => panic!("no hello: {other:?}"),
        }
    }

    /// Opens a stream and writes to it.
    async fn ask(&self, bytes: &str) -> TunnelStream {
        let mut stream = self.tunnel.open().expect("open");
        stream.write_all(bytes.as_bytes()).await.expect("write");
        stream
    }
}

/// A request with its body, as far as Content-Length tells.
async fn read_request(tcp: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_ascii_lowercase();
            let length = length
                .split_once("content-length: ")
                .map_or(0, |(_, rest)| {
                    let digits = rest.split("\r\n").next().unwrap_or_default();
                    digits.parse().expect("a length")
                });
            if body.len() >= length {
                return text.into_owned();
            }
        }
        let read = within(tcp.read_buf(&mut bytes)).await.expect("read");
        assert_ne!(read, 0, "the request is cut off");
    }
}

async fn read_exactly(source: &mut (impl tokio::io::AsyncRead + Unpin), expected: &str) {
    let mut bytes = vec![0; expected.len()];
    within(source.read_exact(&mut bytes)).await.expect("read");
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

async fn read_to_end(source: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    within(source.read_to_string(&mut text))
        .await
        .expect("read");
    text
}

/// A paired agent that runs.
struct Device {
    status: watch::Receiver<AgentStatus>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
    reload: Box<dyn Fn() + Send>,
    state: tempfile::TempDir,
}

impl Device {
    async fn start(cloud: &Cloud, origin: SocketAddr, allow_tcp: &[SocketAddr]) -> Self {
        let temp = tempfile::tempdir().expect("a directory");
        let tunnel_url = format!("ws://{}", cloud.addr);
        let state = State::checked(
            DeviceId::random(),
            TOKEN.into(),
            &tunnel_url,
            "https://cloud.example.com",
        );
        let reservation = StateDir::new(temp.path().into())
            .reserve()
            .expect("reserve");
        reservation.commit(&state.expect("valid")).expect("commit");
        let config = AgentConfig {
            allow_tcp: allow_tcp
                .iter()
                .map(|addr| addr.to_string().parse().expect("an address"))
                .collect(),
            ..config(None, origin, temp.path())
        };
        let agent = Agent::prepare(config, Clock::system())
            .await
            .expect("a paired device");
        let (status, stop) = (agent.status(), CancellationToken::new());
        let reload = Box::new(agent.reload());
        Self {
            status,
            task: tokio::task::spawn(agent.run(stop.clone())),
            stop,
            reload,
            state: temp,
        }
    }

    /// Puts another token into the state file and tells the agent to look.
    fn take_token(&self, token: &str) {
        let file = StateDir::new(self.state.path().into()).file();
        let text = std::fs::read_to_string(&file).expect("the state file");
        let mut state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        state["token"] = token.into();
        std::fs::write(&file, state.to_string()).expect("write");
        (self.reload)();
    }

    async fn becomes(&mut self, wanted: AgentStatus) {
        let waiting = self.status.wait_for(|status| *status == wanted);
        within(waiting).await.expect("the agent runs");
    }
}

fn config(
    cloud: Option<SocketAddr>,
    origin: SocketAddr,
    state_dir: &std::path::Path,
) -> AgentConfig {
    AgentConfig {
        cloud: cloud.map(|addr| format!("http://{addr}").parse().expect("a URL")),
        pair: None,
        origin: format!("http://{origin}").parse().expect("a URL"),
        state_dir: state_dir.into(),
        allow_tcp: Vec::new(),
        ca_file: None,
        host_header: None,
        max_streams: 16,
    }
}
