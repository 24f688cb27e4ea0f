//! This process as a node: its entry in the directory, its lease, and what it hears from the others.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::lease::{LEASE, RENEW_EVERY};
use super::{Handle, Lease, LeaseState, LocalHandle, Registry};
use crate::feed::ChangeCursor;
use crate::store::{Change, ChangeKind, Echo, NewNode, Store, StoreError};
use crate::tunnel::CloseReason;
use crate::tunnel::control::ControlMessage;
use crate::types::{DeviceId, NodeId};

/// How often the device echoes are written to the directory.
const ECHO_EVERY: Duration = Duration::from_secs(15);
/// Echoes of one transaction: other writes wait no longer than for these.
const ECHOES_AT_ONCE: usize = 500;
/// How long a moved device may take to arrive elsewhere before an idle session is closed.
const MOVE_GRACE: Duration = Duration::from_secs(3);
/// Devices are told to move over this time, so that they do not arrive elsewhere at once.
const MOVE_SPREAD: Duration = Duration::from_secs(2);
/// How often a draining node looks whether sessions have become idle.
const DRAIN_POLL: Duration = Duration::from_millis(50);

struct Inner {
    id: NodeId,
    store: Store,
    registry: Registry,
    lease: Mutex<Lease>,
    draining: CancellationToken,
    new_node: NewNode,
}

/// A process that terminates tunnels. Cheap to clone.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

impl Node {
    /// Enters the directory.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn register(store: Store, new_node: NewNode) -> Result<Self, StoreError> {
        let sent_at = Instant::now();
        store.register_node(new_node.clone(), LEASE).await?;
        Ok(Self(Arc::new(Inner {
            id: new_node.id.clone(),
            store,
            registry: Registry::default(),
            lease: Mutex::new(Lease::taken(sent_at, new_node.internal_url.is_none())),
            draining: CancellationToken::new(),
            new_node,
        })))
    }

    /// The node's id, new at every start.
    pub fn id(&self) -> &NodeId {
        &self.0.id
    }

    /// The sessions of this process.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The directory and everything else.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Whether the node may take new tunnels and new streams from other processes.
    pub fn lease_state(&self) -> LeaseState {
        self.0
            .lease
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .state(Instant::now())
    }

    /// Whether the node is on its way out.
    pub fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Keeps the node's word until `stop`: renews the lease, writes echoes, follows changes.
    pub async fn maintain(&self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.renew() => {}
            () = self.write_echoes() => {}
            () = self.follow_changes() => {}
        }
    }

    async fn renew(&self) {
        let mut ticks = interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.renew_once().await;
        }
    }

    async fn renew_once(&self) {
        let sent_at = Instant::now();
        let renewed = match self
            .0
            .store
            .renew_node(&self.0.id, LEASE, self.is_draining())
            .await
        {
            // Somebody cleared a node away that was away for long: it enters again.
            Ok(false) => {
                self.0
                    .store
                    .register_node(self.0.new_node.clone(), LEASE)
                    .await
            }
            Ok(true) => Ok(()),
            Err(error) => Err(error),
        };
        match renewed {
            Ok(()) => self
                .0
                .lease
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .renewed(sent_at),
            Err(error) => tracing::warn!(%error, "the node's lease could not be renewed"),
        }
    }

    async fn write_echoes(&self) {
        let mut ticks = interval(ECHO_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let echoes: Vec<Echo> = self.0.registry.all().iter().filter_map(echo_of).collect();
            for echoes in echoes.chunks(ECHOES_AT_ONCE) {
                let written = self.0.store.record_echoes(&self.0.id, echoes.to_vec());
                if let Err(error) = written.await {
                    tracing::warn!(%error, "device echoes could not be written");
                }
            }
        }
    }

    async fn follow_changes(&self) {
        let mut changes = ChangeCursor::new(self.0.store.clone());
        loop {
            for change in changes.next().await {
                self.on_change(&change);
            }
        }
    }

    fn on_change(&self, change: &Change) {
        let Ok(device) = change.subject.parse::<DeviceId>() else {
            return;
        };
        match change.kind {
            ChangeKind::DeviceRevoked => self.revoke(&device),
            ChangeKind::SessionMoved => {
                let epoch = change
                    .detail
                    .as_deref()
                    .and_then(|detail| detail.parse::<i64>().ok());
                for session in self.sessions_of(&device) {
                    if epoch.is_some_and(|epoch| session.parts().epoch < epoch) {
                        session.drain();
                    }
                }
            }
            _ => {}
        }
    }

    /// Cuts a device's sessions at once.
    pub fn revoke(&self, device: &DeviceId) {
        for session in self.sessions_of(device) {
            session.tell(ControlMessage::Revoked);
            session.close_because(CloseReason::Revoked);
        }
    }

    fn sessions_of(&self, device: &DeviceId) -> Vec<LocalHandle> {
        let mut sessions = self.0.registry.all();
        sessions.retain(|session| session.parts().device == *device);
        sessions
    }

    /// Tells the devices to move, lets streams finish until `deadline`, then closes all sessions.
    pub async fn drain(&self, deadline: Instant) {
        self.0.draining.cancel();
        self.renew_once().await;
        // Where there is nowhere to go a device would only run against a closed door, and then wait
        // longer than this process needs to come back.
        let elsewhere = !matches!(self.0.store.tunnel_url().await, Ok(None));
        let grace = match elsewhere {
            true => self.tell_to_move(),
            false => Instant::now(),
        };
        while !self.0.registry.is_empty() && Instant::now() < deadline {
            for session in self.0.registry.all() {
                let moved = session.is_draining() || Instant::now() >= grace;
                if moved && session.parts().tunnel.open_streams() == 0 {
                    session.close_because(CloseReason::Restarting);
                }
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
        for session in self.0.registry.all() {
            session.close_because(CloseReason::Restarting);
        }
    }

    /// Spreads the fleet over a while; tells until when an idle session is left alone.
    fn tell_to_move(&self) -> Instant {
        let sessions = self.0.registry.all();
        let step = MOVE_SPREAD / u32::try_from(sessions.len().max(1)).unwrap_or(u32::MAX);
        for (index, session) in sessions.iter().enumerate() {
            let after = step * u32::try_from(index).unwrap_or(u32::MAX);
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            session.tell(ControlMessage::Move { after_ms });
        }
        Instant::now() + MOVE_GRACE
    }

    /// Leaves the directory.
    pub async fn leave(&self) {
        if let Err(error) = self.0.store.remove_node(&self.0.id).await {
            tracing::warn!(%error, "the node could not leave the directory");
        }
    }
}

fn echo_of(session: &LocalHandle) -> Option<Echo> {
    let summary = session.summary();
    Some(Echo {
        device: summary.device,
        epoch: summary.epoch,
        at: summary.last_heartbeat?,
        rtt_ms: summary.rtt_ms,
    })
}
