//! A device's live tunnel as the rest of the cloud sees it: the [`Handle`] seam.
//!
//! Everything above asks [`Sessions`] for a [`Handle`] and cannot tell whether the tunnel ends in
//! this process (`local`) or in another one (`remote`, over the [`internal`] API). This module
//! owns the registry of this process, its entry in the directory and its lease. It knows nothing of
//! logins or of the HTTP that crosses a stream.

#[cfg(feature = "proxy")]
mod claims;
mod directory;
pub mod internal;
mod lease;
mod local;
#[cfg(feature = "proxy")]
pub mod node;
mod registry;
mod remote;
mod remote_stream;
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests end with their runtime, which owns their tasks"
)]
mod tests;
#[cfg(feature = "proxy")]
pub mod tunnels;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio_util::either::Either;

pub use directory::ProxySessions;
pub use lease::{FENCE_AFTER, LEASE, Lease, LeaseState, RENEW_EVERY};
pub use local::LocalHandle;
pub use registry::{LocalSessions, Registry};
pub use remote::RemoteHandle;
pub use remote_stream::RemoteStream;

use crate::store::StoreError;
use crate::tunnel::TunnelStream;
use crate::types::{DeviceId, NodeId, TenantId, Timestamp};

/// One device's live session, wherever its tunnel ends.
pub trait Handle: Send + Sync {
    /// Opens a byte stream to the device; half-close works in both directions.
    ///
    /// # Errors
    /// [`SessionError::SessionClosed`] after [`Handle::close`], without touching the network.
    fn open_stream(&self) -> BoxFuture<'_, Result<SessionStream, SessionError>>;

    /// Ends the session. A second call does nothing and is `Ok`, also when the first one failed.
    ///
    /// # Errors
    /// When the process that holds the tunnel could not be told.
    fn close(&self) -> BoxFuture<'_, Result<(), SessionError>>;

    /// Whether [`Handle::close`] was called here or, for a local session, the tunnel has ended. Of a
    /// remote session it knows no more: who wants the truth looks the device up again.
    fn is_closed(&self) -> bool;

    /// What is known of the session now.
    fn summary(&self) -> Summary;

    /// Notes that the device answered at this time; on a remote session in this snapshot only.
    fn record_heartbeat(&self, at: Timestamp);
}

/// Finds the session of a device.
pub trait Sessions: Send + Sync {
    /// The live session of a tenant's device, `None` when there is none.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn find(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> BoxFuture<'_, Result<Option<Arc<dyn Handle>>, SessionError>>;

    /// Forgets what is cached about a device, because it turned out wrong.
    fn forget(&self, device: &DeviceId);
}

/// A snapshot of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The device at the other end.
    pub device: DeviceId,
    /// The device's owner.
    pub tenant: TenantId,
    /// The process that holds the tunnel.
    pub node: NodeId,
    /// Grows with every connection of the device.
    pub epoch: i64,
    /// Where the device connected from.
    pub remote_addr: String,
    /// What the device says it runs.
    pub agent_version: Option<String>,
    /// The `Host` that the device's origin expects.
    pub origin_host: Option<String>,
    /// When the tunnel was opened.
    pub connected_at: Timestamp,
    /// When the device last answered a heartbeat.
    pub last_heartbeat: Option<Timestamp>,
    /// Round-trip time in milliseconds, measured by the last heartbeat.
    pub rtt_ms: Option<f64>,
    /// Streams that are open now; 0 when only the directory was asked.
    pub open_streams: usize,
    /// Bytes from the device so far; 0 when only the directory was asked.
    pub bytes_in: u64,
    /// Bytes to the device so far; 0 when only the directory was asked.
    pub bytes_out: u64,
}

/// Why a session cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The session was closed here, or its tunnel has ended.
    #[error("the session is closed")]
    SessionClosed,
    /// This handle only describes the session.
    #[error("this handle cannot open streams")]
    NotSupported,
    /// The device has as many open streams as are allowed.
    #[error("the device has too many open streams")]
    Busy,
    /// The node no longer holds the session.
    #[error("the session is not on this node")]
    NotHere,
    /// The session is making place for a newer one, or its node is stopping.
    #[error("the session is draining")]
    Draining,
    /// The node that holds the session does not answer.
    #[error("the node of the session does not answer")]
    NodeLost,
    /// It took longer than allowed.
    #[error("the session did not answer in time")]
    Timeout,
    /// The directory cannot be read.
    #[error("the directory cannot be read")]
    Directory(#[from] StoreError),
}

/// A byte stream to a device: inside a tunnel of this process, or through another one.
pub type SessionStream = Either<TunnelStream, RemoteStream>;
