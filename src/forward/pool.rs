//! HTTP/1.1 connections to origins, each on one stream of a session, kept for the next request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::OriginConnection;
use crate::types::{DeviceId, IdMap, NodeId};

/// How long a connection is kept unused.
const IDLE_FOR: Duration = Duration::from_secs(60);

/// Nodes on their way out that are remembered at once.
const MAX_LEAVING: u64 = 10_000;
/// How long a node may be on its way out.
const LEAVING_FOR: Duration = Duration::from_secs(3600);

/// The session that a connection runs in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The device.
    pub device: DeviceId,
    /// The epoch of its tunnel.
    pub epoch: i64,
    /// The node that holds the tunnel.
    pub node: NodeId,
}

struct Idle {
    connection: OriginConnection,
    since: Instant,
}

/// The kept connections of all sessions. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    idle: Arc<Mutex<IdMap<SessionKey, Vec<Idle>>>>,
    per_session: usize,
    /// Nodes whose streams are not kept: an unused one would hold up the node's end.
    leaving: Cache<NodeId, ()>,
    closed: CancellationToken,
}

impl Pool {
    /// Keeps at most `per_session` connections of each session.
    pub fn new(per_session: usize) -> Self {
        Self {
            idle: Arc::default(),
            per_session,
            leaving: Cache::builder()
                .max_capacity(MAX_LEAVING)
                .time_to_live(LEAVING_FOR)
                .build(),
            closed: CancellationToken::new(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, IdMap<SessionKey, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the connection that was used last, if it was used within `max_idle`.
    pub fn take(&self, key: &SessionKey, max_idle: Duration) -> Option<OriginConnection> {
        let mut idle = self.idle();
        let kept = idle.get_mut(key)?;
        let mut found = None;
        // The one that was used last is the one most likely to be open; what has ended goes.
        while let Some(entry) = kept.pop() {
            if entry.since.elapsed() >= max_idle.min(IDLE_FOR) {
                kept.push(entry);
                break;
            }
            if entry.connection.is_usable() {
                found = Some(entry);
                break;
            }
        }
        if kept.is_empty() {
            idle.remove(key);
        }
        found.map(|entry| entry.connection)
    }

    /// Keeps a connection whose last exchange is complete.
    pub fn put(&self, key: SessionKey, connection: OriginConnection) {
        if !connection.is_usable() {
            return;
        }
        let mut idle = self.idle();
        // Looked at under the lock: whoever closes the pool clears it afterwards.
        let unwanted = self.closed.is_cancelled() || self.leaving.contains_key(&key.node);
        if unwanted || self.per_session == 0 {
            return;
        }
        let kept = idle.entry(key).or_default();
        if kept.len() >= self.per_session {
            kept.remove(0);
        }
        kept.push(Idle {
            connection,
            since: Instant::now(),
        });
    }

    /// Drops the kept connections of a device.
    pub fn forget(&self, device: &DeviceId) {
        self.idle().retain(|key, _| key.device != *device);
    }

    /// Keeps nothing of a node any more.
    pub fn leave_node(&self, node: &NodeId) {
        self.leaving.insert(node.clone(), ());
        self.idle().retain(|key, _| key.node != *node);
    }

    /// Drops connections that have ended or were not used for long.
    pub fn sweep(&self) {
        self.idle().retain(|_, kept| {
            kept.retain(|entry| entry.connection.is_usable() && entry.since.elapsed() < IDLE_FOR);
            !kept.is_empty()
        });
    }

    /// Drops everything that is kept and keeps nothing any more.
    pub fn close(&self) {
        self.closed.cancel();
        self.idle().clear();
    }
}
