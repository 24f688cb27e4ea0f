//! A session whose tunnel ends in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Handle, SessionError, SessionStream, Summary};
use crate::tunnel::control::ControlMessage;
use crate::tunnel::{CloseReason, OpenError, Tunnel};
use crate::types::{DeviceId, NodeId, TenantId, Timestamp};

/// What a session is made of.
pub struct SessionParts {
    /// The device at the other end.
    pub device: DeviceId,
    /// The device's owner.
    pub tenant: TenantId,
    /// This process.
    pub node: NodeId,
    /// From the database; the newest epoch of a device wins.
    pub epoch: i64,
    /// Where the device connected from.
    pub remote_addr: String,
    /// What the device says it runs.
    pub agent_version: Option<String>,
    /// The `Host` that the device's origin expects.
    pub origin_host: Option<String>,
    /// When the tunnel was opened.
    pub connected_at: Timestamp,
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Towards the control stream, where the device has one.
    pub control: Option<mpsc::Sender<ControlMessage>>,
}

struct Session {
    parts: SessionParts,
    closed: AtomicBool,
    draining: CancellationToken,
    /// Milliseconds since the epoch, from [`Handle::record_heartbeat`]; 0 for none.
    heartbeat: AtomicI64,
}

/// A session of this process. Cheap to clone; all clones are the same session.
#[derive(Clone)]
pub struct LocalHandle(Arc<Session>);

impl LocalHandle {
    /// Makes the session.
    pub fn new(parts: SessionParts) -> Self {
        Self(Arc::new(Session {
            parts,
            closed: AtomicBool::new(false),
            draining: CancellationToken::new(),
            heartbeat: AtomicI64::new(0),
        }))
    }

    /// What the session is made of.
    pub fn parts(&self) -> &SessionParts {
        &self.0.parts
    }

    /// Refuses new streams from now on; those that are open live on.
    pub fn drain(&self) {
        self.0.draining.cancel();
    }

    /// Whether new streams are refused because a newer session took over.
    pub fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Waits until new streams are refused.
    pub async fn draining(&self) {
        self.0.draining.cancelled().await;
    }

    /// Tells the device something, if it has a control stream and listens.
    pub fn tell(&self, message: ControlMessage) {
        if let Some(control) = &self.0.parts.control {
            // A device that does not read its control stream misses the message, no more.
            let _ = control.try_send(message);
        }
    }

    /// Ends the session for a stated reason; only the first call counts.
    pub fn close_because(&self, reason: CloseReason) {
        if !self.0.closed.swap(true, Ordering::AcqRel) {
            self.0.parts.tunnel.close(reason);
        }
    }
}

impl Handle for LocalHandle {
    fn open_stream(&self) -> BoxFuture<'_, Result<SessionStream, SessionError>> {
        Box::pin(async {
            if self.is_closed() {
                return Err(SessionError::SessionClosed);
            }
            if self.is_draining() {
                return Err(SessionError::Draining);
            }
            match self.0.parts.tunnel.open() {
                Ok(stream) => Ok(SessionStream::Left(stream)),
                Err(OpenError::Busy) => Err(SessionError::Busy),
                Err(OpenError::Ended) => Err(SessionError::SessionClosed),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), SessionError>> {
        Box::pin(async {
            self.close_because(CloseReason::Done);
            Ok(())
        })
    }

    fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire) || self.0.parts.tunnel.is_ended()
    }

    fn summary(&self) -> Summary {
        let parts = &self.0.parts;
        let recorded = match self.0.heartbeat.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Timestamp::from_millis(millis)),
        };
        Summary {
            device: parts.device.clone(),
            tenant: parts.tenant.clone(),
            node: parts.node.clone(),
            epoch: parts.epoch,
            remote_addr: parts.remote_addr.clone(),
            agent_version: parts.agent_version.clone(),
            origin_host: parts.origin_host.clone(),
            connected_at: parts.connected_at,
            last_heartbeat: parts.tunnel.last_echo().max(recorded),
            rtt_ms: parts.tunnel.rtt().map(|rtt| rtt.as_secs_f64() * 1e3),
            open_streams: parts.tunnel.open_streams(),
            bytes_in: parts.tunnel.traffic().received(),
            bytes_out: parts.tunnel.traffic().sent(),
        }
    }

    fn record_heartbeat(&self, at: Timestamp) {
        self.0
            .heartbeat
            .fetch_max(at.as_millis(), Ordering::Relaxed);
    }
}
