//! Raw TCP: a stream of the device's session that the agent has joined with an address on its side.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use super::meter::Counter;
use super::{Caller, ForwardError, Forwarder, UPGRADE_DEADLINE, agent_error, websocket};
use crate::auth::live::LiveStream;
use crate::net::{Connection, upgraded_connection};
use crate::session::SessionStream;
use crate::tcp_relay::{Count, Relay, RelayEnd};

/// Largest head of the agent's answer, in bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// How much of what the device still sends is read away after a caller has left, in bytes, so that the
/// end of what the caller wrote arrives.
const DRAIN_BYTES: u64 = 1024 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A connection on the device's side, not yet joined with a caller's WebSocket.
pub struct TcpConnection {
    stream: SessionStream,
    /// What the other end has said already.
    ahead: Bytes,
    live: LiveStream,
    counter: Arc<Counter>,
}

impl Forwarder {
    /// Opens a TCP connection on the device's side; `authority` is `HOST:PORT` as the device sees it.
    ///
    /// # Errors
    /// When there is no connection, among them [`ForwardError::AddressNotAllowed`].
    pub async fn connect_tcp(
        &self,
        caller: &Caller,
        authority: &str,
    ) -> Result<TcpConnection, ForwardError> {
        let live = self.enlist(caller)?;
        let counter = self.0.meter.counter(&caller.tenant, &caller.device);
        let connecting = async {
            let mut opened = self.open_stream(&*self.find(caller).await?).await;
            if let Err(error) = opened {
                // A cached look-up may be old once.
                self.on_open_error(&caller.device, error)?;
                opened = self.open_stream(&*self.find(caller).await?).await;
            }
            let stream = match opened {
                Ok(stream) => stream,
                Err(error) => return Err(self.on_open_error(&caller.device, error)?),
            };
            let limit = self.0.limits.response_header_timeout;
            let asked = timeout(limit, ask(stream, authority)).await;
            asked.unwrap_or(Err(ForwardError::OriginTimeout))
        };
        let (stream, ahead) = tokio::select! {
            connected = connecting => connected?,
            () = live.ended() => return Err(ForwardError::Ended),
        };
        counter.request();
        Ok(TcpConnection {
            stream,
            ahead,
            live,
            counter,
        })
    }

    /// Joins the connection with a caller's WebSocket, once that has switched protocols.
    pub fn join_tcp(&self, upgrade: OnUpgrade, tcp: TcpConnection) {
        let restarting = self.0.restarting.clone();
        self.0.tasks.spawn(async move {
            let Ok(Ok(upgraded)) = timeout(UPGRADE_DEADLINE, upgrade).await else {
                return;
            };
            let Some((connection, ahead)) = upgraded_connection(upgraded) else {
                return;
            };
            tcp.join((connection, &ahead), &restarting).await;
        });
    }
}

impl TcpConnection {
    async fn join(self, ws: (Connection, &[u8]), restarting: &CancellationToken) {
        self.counter.add_from_device(self.ahead.len());
        let told = async {
            tokio::select! {
                () = self.live.ended() => websocket::NO_LONGER_VALID,
                () = restarting.cancelled() => websocket::RESTARTING,
            }
        };
        let mut relay = Relay::new(ws, Role::Server, self.stream, &*self.counter);
        relay.send_first(&self.ahead);
        let (end, _, mut stream) = relay.run(told).await;
        tracing::debug!(?end, "a TCP connection ended");
        if let RelayEnd::Closed(1000 | 1001 | 1005) = end {
            // A caller that only writes may leave so: what it wrote is whole.
            let parting = async {
                stream.shutdown().await?;
                let mut rest = stream.take(DRAIN_BYTES);
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
            };
            // However this ends, the stream is dropped next.
            let _ = timeout(DRAIN_TIME, parting).await;
        }
    }
}

/// Asks the agent for an address; the stream is joined with it then. Also what came behind its answer.
async fn ask(
    stream: SessionStream,
    authority: &str,
) -> Result<(SessionStream, Bytes), ForwardError> {
    let lost = |_| ForwardError::TunnelLost;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .header(header::HOST, authority)
        .body(Empty::<Bytes>::new())
        .map_err(|_| ForwardError::AddressNotAllowed)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(lost)?;
    let asking = async move {
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| match error.is_parse() {
            true => ForwardError::TcpUnsupported,
            false => ForwardError::TunnelLost,
        })?;
        if let Some(error) = agent_error(response.status(), response.headers()) {
            return Err(error);
        }
        match response.status() {
            StatusCode::OK => hyper::upgrade::on(response).await.map_err(lost),
            StatusCode::FORBIDDEN => Err(ForwardError::AddressNotAllowed),
            _ => Err(ForwardError::TcpUnsupported),
        }
    };
    // What goes wrong with the connection shows in the answer.
    let (upgraded, _) = tokio::join!(asking, connection.with_upgrades());
    match upgraded?.downcast::<TokioIo<SessionStream>>() {
        Ok(parts) => Ok((parts.io.into_inner(), parts.read_buf)),
        Err(_) => Err(ForwardError::TunnelLost),
    }
}

impl Count for Counter {
    fn received(&self, bytes: usize) {
        self.add_to_device(bytes);
    }

    fn sent(&self, bytes: usize) {
        self.add_from_device(bytes);
    }
}
