//! A device without the agent: the test holds the tunnel's other end itself.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use edgecloud::tunnel::{EndReason, Side, Tunnel, TunnelSettings, TunnelStream, WindowBudget};
use edgecloud::types::Clock;
use http::{Method, Response};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::browser::{Anonymous, Browser, text};
use super::cloud::TestCloud;
use super::http::{Request, WebSocket};
use super::wait::within;

/// A paired device whose token the test knows.
#[derive(Clone)]
pub struct RawDevice {
    /// Its id.
    pub id: String,
    /// Its token.
    pub token: String,
    tunnel: SocketAddr,
}

impl RawDevice {
    /// Pairs a new device with the tenant of `owner`; it does not connect.
    pub async fn pair(cloud: &TestCloud, owner: &Browser) -> Self {
        let (_, code) = owner.pairing_code().await;
        let paired = Anonymous::of(cloud).exchange(&code).await.expect(200);
        let paired = paired.json();
        Self {
            id: text(&paired["device_id"]),
            token: text(&paired["token"]),
            tunnel: cloud.tunnel_addr(),
        }
    }

    /// A device whose id and token the test has from elsewhere.
    pub fn known(cloud: &TestCloud, id: &str, token: &str) -> Self {
        Self {
            id: id.to_owned(),
            token: token.to_owned(),
            tunnel: cloud.tunnel_addr(),
        }
    }

    /// The same device, on its way to another proxy.
    pub fn through(&self, tunnel: SocketAddr) -> Self {
        Self {
            tunnel,
            ..self.clone()
        }
    }

    /// A request to the tunnel listener without credentials.
    pub fn anonymous(cloud: &TestCloud, target: &str) -> Request {
        let addr = cloud.tunnel_addr();
        Request::new(addr, &addr.to_string(), Method::GET, target)
    }

    /// Where it connects.
    pub fn tunnel_addr(&self) -> SocketAddr {
        self.tunnel
    }

    /// A request for a tunnel, not sent yet.
    pub fn handshake(&self) -> Request {
        let host = self.tunnel.to_string();
        Request::new(self.tunnel, &host, Method::GET, "/tunnel")
            .header("authorization", &format!("Bearer {}", self.token))
    }

    /// Opens the tunnel's WebSocket and nothing in it.
    pub async fn connect(&self) -> WebSocket {
        match self.handshake().websocket().await {
            Ok(socket) => socket,
            Err(answer) => panic!("a device with its token should be let in: {answer:?}"),
        }
    }

    /// Keeps a tunnel, as a device maker's own client would, and treats each stream alike.
    pub async fn serve(&self, manner: Manner) -> ServedDevice {
        let socket = self.connect().await.socket.into_inner();
        let settings = TunnelSettings {
            side: Side::Device,
            subprotocol: false,
            heartbeat: Duration::from_secs(15),
            max_streams: 512,
            window_budget: 0,
            process_budget: WindowBudget::new(0),
            max_message_bytes: 2 << 20,
            clock: Clock::system(),
        };
        // The cloud says nothing before the first request, so that nothing was read ahead.
        let (tunnel, driver, mut incoming) = Tunnel::over(socket, Bytes::new(), &settings);
        let driver = AbortOnDropHandle::new(tokio::spawn(driver.run()));
        let streams = tokio::spawn(async move {
            let mut streams = JoinSet::new();
            while let Some(stream) = incoming.recv().await {
                streams.spawn(treat(stream, manner));
            }
        });
        ServedDevice {
            tunnel,
            _driver: driver,
            _streams: AbortOnDropHandle::new(streams),
        }
    }
}

/// How a [`ServedDevice`] treats its streams.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    /// Every request is answered with a text.
    Says(&'static str),
    /// The first request is answered with these bytes, then the stream ends.
    Blurts(&'static str),
    /// Nothing is ever read or answered.
    Silent,
}

/// A device that is connected as long as this lives.
pub struct ServedDevice {
    tunnel: Tunnel,
    _driver: AbortOnDropHandle<EndReason>,
    _streams: AbortOnDropHandle<()>,
}

impl ServedDevice {
    /// Waits for the end of the tunnel.
    pub async fn ended(&self) -> EndReason {
        within("the end of the tunnel", self.tunnel.ended()).await
    }

    /// Whether the tunnel has ended.
    pub fn is_ended(&self) -> bool {
        self.tunnel.is_ended()
    }
}

async fn treat(mut stream: TunnelStream, manner: Manner) {
    match manner {
        Manner::Says(text) => {
            let service = service_fn(move |_| async move {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(
                    text.as_bytes(),
                ))))
            });
            // The cloud may end the stream whenever it likes.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
        Manner::Blurts(bytes) => {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(bytes.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        Manner::Silent => std::future::pending().await,
    }
}
