//! yamux over WebSocket: the driver of one tunnel, the same at both ends.
//!
//! One task owns the WebSocket and the yamux state ([`TunnelTask`]); everybody else holds a
//! [`Tunnel`], opens streams through it and learns from it when and why the tunnel ended. The yamux
//! crate stays behind these types. This module knows nothing of devices, tenants or HTTP.

pub mod control;
mod driver;
mod heartbeat;
mod metered;
mod stream;
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests end with their runtime, which owns their tasks"
)]
mod tests;
mod wire;

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::sync::CancellationToken;

pub use driver::TunnelTask;
pub use metered::{Metered, Traffic};
pub use stream::TunnelStream;

use crate::types::{Clock, Timestamp};

/// The WebSocket subprotocol of devices that understand the control stream.
pub const SUBPROTOCOL: &str = "edgecloud.v1";

/// Largest payload of one yamux data frame that this side sends, in bytes.
const FRAME_BYTES: usize = 64 * 1024;
/// What the yamux crate gives each stream to start with, in bytes.
const DEFAULT_WINDOW: usize = 256 * 1024;
/// How far the windows of a device without the subprotocol may grow together, in bytes: no stream
/// can exceed 1 MiB then, the largest frame that the yamux crate accepts.
const PLAIN_WINDOW_BUDGET: usize = 768 * 1024;
/// Requests to open a stream that wait for the driver.
const OPEN_QUEUE: usize = 512;
/// Resident read buffer of an idle tunnel, in bytes.
const READ_BUFFER: usize = 8 * 1024;
/// Most bytes that wait in the WebSocket's write buffer.
const MAX_WRITE_BUFFER: usize = 512 * 1024;

/// Which end of the tunnel this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The cloud: yamux client, the only side that opens streams.
    Proxy,
    /// The device: yamux server, accepts streams.
    Device,
}

/// How one tunnel is driven.
#[derive(Debug, Clone)]
pub struct TunnelSettings {
    /// Which end this is.
    pub side: Side,
    /// Whether both ends agreed on [`SUBPROTOCOL`].
    pub subprotocol: bool,
    /// Time between two pings.
    pub heartbeat: Duration,
    /// Streams that may be open at once; the next one is refused with [`OpenError::Busy`].
    pub max_streams: usize,
    /// Bytes by which all windows together may outgrow their start of 256 KiB each.
    pub window_budget: usize,
    /// Largest WebSocket message that is accepted, in bytes.
    pub max_message_bytes: usize,
    /// The wall clock of `last_echo`.
    pub clock: Clock,
}

impl TunnelSettings {
    /// The limits of the WebSocket below the tunnel.
    pub fn websocket(&self) -> WebSocketConfig {
        WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(MAX_WRITE_BUFFER)
            .max_message_size(Some(self.max_message_bytes))
            .max_frame_size(Some(self.max_message_bytes))
    }

    fn yamux(&self) -> yamux::Config {
        // Dropped streams leave the crate's table a moment after their slot here is free again, and
        // one stream too many ends the whole connection: the crate's limit keeps clear of ours.
        let streams = self.max_streams * 2 + 16;
        let budget = match self.subprotocol {
            true => self.window_budget,
            false => self.window_budget.min(PLAIN_WINDOW_BUDGET),
        };
        let mut config = yamux::Config::default();
        config
            .set_max_connection_receive_window(None)
            .set_max_num_streams(streams)
            .set_max_connection_receive_window(Some(streams * DEFAULT_WINDOW + budget))
            .set_split_send_size(FRAME_BYTES);
        config
    }
}

/// Why this side closes a tunnel; decides the WebSocket close code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The process stops; the device connects elsewhere (1012).
    Restarting,
    /// A newer session of the device took over, or somebody asked for the end (1000).
    Done,
    /// The device or its token is no longer valid (4401).
    Revoked,
}

impl CloseReason {
    fn code(self) -> u16 {
        match self {
            CloseReason::Restarting => 1012,
            CloseReason::Done => 1000,
            CloseReason::Revoked => 4401,
        }
    }
}

/// Why a tunnel ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// This side closed it.
    Closed(CloseReason),
    /// The other side closed it, with this WebSocket code (1005 when it gave none).
    ClosedByPeer(u16),
    /// Two heartbeats in a row had no answer.
    HeartbeatLost,
    /// The other side took no byte for ten seconds.
    WriteStalled,
    /// The other side broke the protocol.
    Protocol(&'static str),
    /// The connection below failed.
    Transport,
}

impl EndReason {
    /// A short stable word for logs, the database and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            EndReason::Closed(CloseReason::Restarting) => "restarting",
            EndReason::Closed(CloseReason::Done) => "closed",
            EndReason::Closed(CloseReason::Revoked) => "revoked",
            EndReason::ClosedByPeer(_) => "closed_by_device",
            EndReason::HeartbeatLost => "heartbeat_lost",
            EndReason::WriteStalled => "write_stalled",
            EndReason::Protocol(_) => "protocol_error",
            EndReason::Transport => "connection_lost",
        }
    }
}

/// Why no stream could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many streams as allowed are open.
    #[error("the stream limit of the tunnel is reached")]
    Busy,
    /// The tunnel ended.
    #[error("the tunnel has ended")]
    Ended,
}

enum Command {
    Open(oneshot::Sender<Result<yamux::Stream, OpenError>>),
    Close(CloseReason),
}

/// What both the driver and the holders of a tunnel know.
struct Shared {
    traffic: Arc<Traffic>,
    open_streams: AtomicUsize,
    /// Milliseconds since the epoch; 0 before the first echo.
    last_echo: AtomicI64,
    /// Microseconds; `u64::MAX` before the first echo.
    rtt: AtomicU64,
    /// The end has begun: no stream gets anything more.
    parting: CancellationToken,
    ended: CancellationToken,
    end_reason: OnceLock<EndReason>,
}

/// One live tunnel, for everybody but its driver. Cheap to clone.
#[derive(Clone)]
pub struct Tunnel {
    commands: mpsc::Sender<Command>,
    slots: Arc<Semaphore>,
    shared: Arc<Shared>,
}

impl Tunnel {
    fn new(settings: &TunnelSettings, traffic: Arc<Traffic>) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(OPEN_QUEUE);
        let shared = Shared {
            traffic,
            open_streams: AtomicUsize::new(0),
            last_echo: AtomicI64::new(0),
            rtt: AtomicU64::new(u64::MAX),
            parting: CancellationToken::new(),
            ended: CancellationToken::new(),
            end_reason: OnceLock::new(),
        };
        let tunnel = Self {
            commands,
            slots: Arc::new(Semaphore::new(settings.max_streams)),
            shared: Arc::new(shared),
        };
        (tunnel, receiver)
    }

    /// Opens a stream; nothing is sent before its first byte is written.
    ///
    /// # Errors
    /// [`OpenError::Busy`] at the stream limit, [`OpenError::Ended`] when the tunnel is gone.
    pub async fn open(&self) -> Result<TunnelStream, OpenError> {
        if self.is_ended() {
            return Err(OpenError::Ended);
        }
        let slot = Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_| OpenError::Busy)?;
        let stream = self.request_stream().await?;
        Ok(TunnelStream::new(
            stream,
            Some(slot),
            Arc::clone(&self.shared),
        ))
    }

    /// Opens the control stream, which takes no slot.
    ///
    /// # Errors
    /// [`OpenError::Ended`] when the tunnel is gone.
    pub async fn open_control(&self) -> Result<TunnelStream, OpenError> {
        let stream = self.request_stream().await?;
        Ok(TunnelStream::new(stream, None, Arc::clone(&self.shared)))
    }

    async fn request_stream(&self) -> Result<yamux::Stream, OpenError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .try_send(Command::Open(reply))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => OpenError::Busy,
                mpsc::error::TrySendError::Closed(_) => OpenError::Ended,
            })?;
        answer.await.unwrap_or(Err(OpenError::Ended))
    }

    /// Asks the driver to end the tunnel; later calls change nothing.
    pub async fn close(&self, reason: CloseReason) {
        // An error means that the driver is gone already.
        let _ = self.commands.send(Command::Close(reason)).await;
    }

    /// Whether the tunnel has ended.
    pub fn is_ended(&self) -> bool {
        self.shared.ended.is_cancelled()
    }

    /// Waits for the end of the tunnel and tells why.
    pub async fn ended(&self) -> EndReason {
        self.shared.ended.cancelled().await;
        self.end_reason().unwrap_or(EndReason::Transport)
    }

    /// Why the tunnel ended, once it has.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.shared.end_reason.get().cloned()
    }

    /// Streams that are open now, without the control stream.
    pub fn open_streams(&self) -> usize {
        self.shared.open_streams.load(Ordering::Relaxed)
    }

    /// Bytes that crossed the connection, WebSocket and yamux headers included.
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// When the other side last answered a heartbeat.
    pub fn last_echo(&self) -> Option<Timestamp> {
        let millis = self.shared.last_echo.load(Ordering::Relaxed);
        (millis != 0).then(|| Timestamp::from_millis(millis))
    }

    /// The round-trip time that the last heartbeat measured.
    pub fn rtt(&self) -> Option<Duration> {
        let micros = self.shared.rtt.load(Ordering::Relaxed);
        (micros != u64::MAX).then(|| Duration::from_micros(micros))
    }
}
