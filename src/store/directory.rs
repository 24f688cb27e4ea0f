//! The directory: which node holds which device's session. Leases run by the database's clock.

use std::time::Duration;

use super::{Store, StoreError, on_engine};
use crate::types::{DeviceId, NodeId, TenantId, Timestamp};

/// A node to be entered.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// The id, new at every start.
    pub id: NodeId,
    /// Where its internal API is; `None` for the only process of its kind.
    pub internal_url: Option<String>,
    /// Where devices reach it.
    pub tunnel_url: Option<String>,
    /// What it runs.
    pub version: String,
}

/// A session to be entered.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// The device.
    pub device: DeviceId,
    /// Its owner.
    pub tenant: TenantId,
    /// SHA-256 of the token with which the device connected; older ones are void from now on.
    pub token_hash: [u8; 32],
    /// The node that holds the tunnel.
    pub node: NodeId,
    /// Where the device connected from.
    pub remote_addr: String,
    /// What the device says it runs.
    pub agent_version: Option<String>,
    /// The `Host` that its origin expects.
    pub origin_host: Option<String>,
}

/// A session that was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BegunSession {
    /// Greater than that of every session of the device before.
    pub epoch: i64,
}

/// An entry of the directory.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRow {
    /// The device.
    pub device: DeviceId,
    /// The node that holds the tunnel.
    pub node: NodeId,
    /// The newest epoch of the device.
    pub epoch: i64,
    /// When the tunnel was opened.
    pub connected_at: Timestamp,
    /// When the device last answered, up to 15 s old.
    pub last_echo_at: Option<Timestamp>,
    /// Milliseconds.
    pub rtt_ms: Option<f64>,
    /// Where the device connected from.
    pub remote_addr: String,
    /// What the device says it runs.
    pub agent_version: Option<String>,
    /// The `Host` that its origin expects.
    pub origin_host: Option<String>,
    /// Where the node's internal API is.
    pub node_internal_url: Option<String>,
    /// Whether the node's lease runs.
    pub node_alive: bool,
}

/// A device's sign of life.
#[derive(Debug, Clone)]
pub struct Echo {
    /// The device.
    pub device: DeviceId,
    /// Its session.
    pub epoch: i64,
    /// When it answered.
    pub at: Timestamp,
    /// Milliseconds.
    pub rtt_ms: Option<f64>,
}

impl Store {
    /// Enters a node. The only process of its kind clears its predecessors away.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn register_node(&self, node: NewNode, lease: Duration) -> Result<(), StoreError> {
        on_engine!(self, write, directory::register_node(&node, lease))
    }

    /// Renews a node's lease; false when the node is not in the directory.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn renew_node(
        &self,
        node: &NodeId,
        lease: Duration,
        draining: bool,
    ) -> Result<bool, StoreError> {
        let node = node.clone();
        on_engine!(self, write, directory::renew_node(&node, lease, draining))
    }

    /// Takes a node and its sessions out.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn remove_node(&self, node: &NodeId) -> Result<(), StoreError> {
        let node = node.clone();
        on_engine!(self, write, directory::remove_node(&node))
    }

    /// Where devices may connect: a live node that is not on its way out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn tunnel_url(&self) -> Result<Option<String>, StoreError> {
        on_engine!(self, read, directory::tunnel_url())
    }

    /// Enters a session, in the place of an older one; `None` when the device is gone by now.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn begin_session(
        &self,
        session: NewSession,
        now: Timestamp,
    ) -> Result<Option<BegunSession>, StoreError> {
        on_engine!(self, write, directory::begin_session(&session, now))
    }

    /// Takes a session out, but no newer one; tells whether it was there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn end_session(
        &self,
        device: &DeviceId,
        epoch: i64,
        reason: &str,
        last_seen: Timestamp,
    ) -> Result<bool, StoreError> {
        let (device, reason) = (device.clone(), reason.to_owned());
        on_engine!(
            self,
            write,
            directory::end_session(&device, epoch, &reason, last_seen)
        )
    }

    /// Notes signs of life, in one statement.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn record_echoes(&self, node: &NodeId, echoes: Vec<Echo>) -> Result<(), StoreError> {
        let node = node.clone();
        on_engine!(self, write, directory::record_echoes(&node, &echoes))
    }

    /// A device's entry.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_session(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<Option<SessionRow>, StoreError> {
        let (tenant, device) = (tenant.clone(), device.clone());
        on_engine!(self, read, directory::find_session(&tenant, &device))
    }
}
