//! yamux over WebSocket: one tunnel, the same at both ends.
//!
//! One task owns the connection ([`TunnelTask`]); everybody else holds a [`Tunnel`], opens streams
//! through it and learns from it when and why the tunnel ended. In the order of the way of a byte:
//! `websocket` and `frame` know the wire, `receiver` does what the other side says, `stream_state` keeps
//! what a stream has received and may send, `mux` is what all parts share, with `sharing` for who uses it, `outbox`
//! what is to be sent;
//! `driver` owns the connection, with `writing` and `parting`.
//! This module knows nothing of devices, tenants or HTTP.

mod budget;
pub mod control;
mod driver;
mod frame;
mod heartbeat;
mod metered;
mod mux;
mod outbox;
mod parting;
mod receiver;
mod sharing;
mod stream;
mod stream_state;
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests end with their runtime, which owns their tasks"
)]
mod tests;
mod writing;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use budget::WindowBudget;
pub use driver::TunnelTask;
pub use metered::{Metered, Traffic};
use mux::Shared;
pub use stream::TunnelStream;

use crate::types::{Clock, Timestamp};

/// The WebSocket subprotocol of devices that understand the control stream.
pub const SUBPROTOCOL: &str = "edgecloud.v1";

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
    /// Bytes by which the windows of this tunnel together may outgrow their start of 256 KiB each.
    pub window_budget: usize,
    /// The same for all tunnels of the process.
    pub process_budget: WindowBudget,
    /// Largest WebSocket message that is accepted, in bytes.
    pub max_message_bytes: usize,
    /// The wall clock of `last_echo`.
    pub clock: Clock,
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

/// One live tunnel, for everybody but its driver. Cheap to clone.
#[derive(Clone)]
pub struct Tunnel {
    shared: Arc<Shared>,
}

impl Tunnel {
    /// Opens a stream; nothing is sent before its first byte is written.
    ///
    /// # Errors
    /// [`OpenError::Busy`] at the stream limit, [`OpenError::Ended`] when the tunnel is gone.
    pub fn open(&self) -> Result<TunnelStream, OpenError> {
        self.shared.open(true)
    }

    /// Opens the control stream, which does not count towards the limit.
    ///
    /// # Errors
    /// [`OpenError::Ended`] when the tunnel is gone.
    pub fn open_control(&self) -> Result<TunnelStream, OpenError> {
        self.shared.open(false)
    }

    /// Asks the driver to end the tunnel; later calls change nothing.
    pub fn close(&self, reason: CloseReason) {
        let mut table = self.shared.table();
        table.close.get_or_insert(reason);
        self.shared.call_driver(table);
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
