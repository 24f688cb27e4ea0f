//! `edgecloud tcp`: a TCP port of a device as a port of this machine, or on standard input and output.
//!
//! A program's way in: it gets an access token from the provider with a service client's id and
//! secret, and each connection is a WebSocket to the cloud of its own.

mod access_token;
mod config;
mod websocket;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::task::TaskTracker;

pub use access_token::TokenError;
pub use config::ClientConfig;
pub use websocket::OpenError;

use crate::agent::{Links, TrustError};
use crate::tcp_relay::{Relay, RelayEnd};
use access_token::AccessTokens;

/// Connections that `--listen` keeps open at once.
const MAX_CONNECTIONS: usize = 256;
/// How long `--listen` waits after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no connection, or no whole one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The certificates to trust cannot be had.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// There is no access token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The cloud does not open the connection.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It broke off.
    #[error("the connection broke off: {0}")]
    Broken(&'static str),
    /// The address to listen on cannot be had.
    #[error("--listen {0}: {1}")]
    Listen(std::net::SocketAddr, io::Error),
}

/// Opens connections to one port of one device. Cheap to clone.
#[derive(Clone)]
pub struct TcpClient(Arc<Inner>);

struct Inner {
    config: ClientConfig,
    links: Links,
    tokens: AccessTokens,
}

impl TcpClient {
    /// Asks nobody anything yet.
    ///
    /// # Errors
    /// When the certificates to trust cannot be read.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let links = Links::new(config.ca_file.as_deref().map(Path::new))?;
        let tokens = AccessTokens::new(config.access.clone(), links.clone());
        Ok(Self(Arc::new(Inner {
            config,
            links,
            tokens,
        })))
    }

    /// Joins a new connection to the device with `local`, until both directions have ended.
    ///
    /// # Errors
    /// When there is none, or it breaks off.
    pub async fn join<L>(&self, local: L) -> Result<L, ClientError>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        let inner = &*self.0;
        let token = inner.tokens.get().await?;
        let opened = websocket::open(&inner.links, &inner.config, &token).await;
        if let Err(OpenError::Unauthorized) = &opened {
            inner.tokens.forget().await;
        }
        let (link, ahead) = opened?;
        let relay = Relay::new((link, &ahead), Role::Client, local, &());
        let (end, _, local) = relay.run(std::future::pending()).await;
        match end {
            RelayEnd::Complete => Ok(local),
            RelayEnd::Closed(4401) => Err(ClientError::Broken("access was taken away")),
            RelayEnd::Closed(1012) => Err(ClientError::Broken("the cloud restarts")),
            RelayEnd::Closed(4502) => Err(ClientError::Broken("the device's end is gone")),
            RelayEnd::Closed(_) => Err(ClientError::Broken("the cloud closed it")),
            RelayEnd::WebSocketLost => Err(ClientError::Broken("the cloud is gone")),
            RelayEnd::ConnectionLost => Err(ClientError::Broken("the local end is gone")),
            RelayEnd::Told(_) => Err(ClientError::Broken("the cloud breaks the protocol")),
        }
    }

    /// Serves one connection on standard input and output.
    ///
    /// # Errors
    /// As [`TcpClient::join`].
    pub async fn serve_stdio(&self) -> Result<(), ClientError> {
        let local = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
        self.join(local).await.map(drop)
    }

    /// Takes connections until the future is dropped; a failed one does not keep the next from being
    /// taken.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn serve_listener(
        &self,
        listen: std::net::SocketAddr,
        bound: impl FnOnce(std::net::SocketAddr),
    ) -> Result<(), ClientError> {
        let unusable = |error| ClientError::Listen(listen, error);
        let listener = TcpListener::bind(listen).await.map_err(unusable)?;
        bound(listener.local_addr().map_err(unusable)?);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let tasks = TaskTracker::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return Ok(());
            };
            let tcp = match listener.accept().await {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let client = self.clone();
            tasks.spawn(async move {
                client.serve_connection(tcp).await;
                drop(place);
            });
        }
    }

    async fn serve_connection(&self, tcp: TcpStream) {
        // Only speed is lost without it.
        let _ = tcp.set_nodelay(true);
        // Whatever goes wrong must not look like an end: what was received may not be all.
        let _ = tcp.set_zero_linger();
        match self.join(tcp).await {
            Ok(tcp) => {
                let _ = socket2::SockRef::from(&tcp).set_linger(None);
            }
            Err(error) => tracing::warn!(%error, "no connection to the device"),
        }
    }
}
