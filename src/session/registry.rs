//! The sessions of this process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;

use super::{Handle, LocalHandle, SessionError, Sessions};
use crate::types::{DeviceId, IdMap, TenantId};

/// How long a session that is entering the directory is waited for; a write to the database.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Table {
    /// The newest session of each device.
    current: IdMap<DeviceId, LocalHandle>,
    /// Older sessions whose streams still run.
    superseded: Vec<LocalHandle>,
    /// Devices whose session is entering the directory: how many, and what their end cancels.
    beginning: IdMap<DeviceId, (usize, CancellationToken)>,
}

/// All sessions of this process; at most one per device gets new streams. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Table>>);

/// Takes its session out of the registry when dropped; touches no newer session of the device.
pub struct Registered {
    registry: Registry,
    session: LocalHandle,
}

/// A session that is entering the directory. Who reads there that the device is online and looks for
/// its session here waits until this is dropped: the directory comes first, as it gives the epoch.
pub struct Beginning {
    registry: Registry,
    device: DeviceId,
}

/// What happened to a session that was put into the registry.
pub enum Insertion {
    /// It is the newest; the one it replaces, if any, drains from now on.
    Newest(Option<LocalHandle>),
    /// A newer session of the device is there already.
    Outdated,
}

impl Registry {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a session. The guard keeps it in.
    pub fn insert(&self, session: LocalHandle) -> (Insertion, Registered) {
        let mut table = self.table();
        let device = session.parts().device.clone();
        let guard = Registered {
            registry: self.clone(),
            session: session.clone(),
        };
        let newest = table
            .current
            .get(&device)
            .is_none_or(|current| current.parts().epoch < session.parts().epoch);
        if !newest {
            session.drain();
            table.superseded.push(session);
            return (Insertion::Outdated, guard);
        }
        let replaced = table.current.insert(device, session);
        if let Some(replaced) = &replaced {
            replaced.drain();
            table.superseded.push(replaced.clone());
        }
        (Insertion::Newest(replaced), guard)
    }

    /// The session of a device that gets new streams.
    pub fn find(&self, device: &DeviceId) -> Option<LocalHandle> {
        self.table().current.get(device).cloned()
    }

    /// Announces that a session of the device enters the directory now.
    pub fn begin(&self, device: &DeviceId) -> Beginning {
        let mut table = self.table();
        table.beginning.entry(device.clone()).or_default().0 += 1;
        Beginning {
            registry: self.clone(),
            device: device.clone(),
        }
    }

    /// Waits until no session of the device is about to begin; whether there was one.
    pub async fn begun(&self, device: &DeviceId) -> bool {
        let beginning = self.table().beginning.get(device).cloned();
        let Some((_, over)) = beginning else {
            return false;
        };
        // A write that takes longer has not put the device online for long.
        let _ = timeout(BEGIN_WITHIN, over.cancelled()).await;
        true
    }

    fn is_beginning(&self, device: &DeviceId) -> bool {
        self.table().beginning.contains_key(device)
    }

    /// Every session, superseded ones too.
    pub fn all(&self) -> Vec<LocalHandle> {
        let table = self.table();
        table
            .current
            .values()
            .chain(&table.superseded)
            .cloned()
            .collect()
    }

    /// Number of sessions, superseded ones too.
    pub fn len(&self) -> usize {
        let table = self.table();
        table.current.len() + table.superseded.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let parts = self.session.parts();
        let same = |other: &LocalHandle| other.parts().epoch == parts.epoch;
        let mut table = self.registry.table();
        if table.current.get(&parts.device).is_some_and(same) {
            table.current.remove(&parts.device);
        }
        table
            .superseded
            .retain(|other| other.parts().device != parts.device || !same(other));
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let mut table = self.registry.table();
        if let Some((count, over)) = table.beginning.get_mut(&self.device) {
            *count -= 1;
            if *count == 0 {
                over.cancel();
                table.beginning.remove(&self.device);
            }
        }
    }
}

/// [`Sessions`] of this process alone.
#[derive(Clone)]
pub struct LocalSessions(pub Registry);

impl LocalSessions {
    fn usable(&self, tenant: &TenantId, device: &DeviceId) -> Option<Arc<dyn Handle>> {
        self.0
            .find(device)
            // A draining one has a successor, most likely on another node.
            .filter(|session| !session.is_closed() && !session.is_draining())
            .filter(|session| session.parts().tenant == *tenant)
            .map(|session| Arc::new(session) as Arc<dyn Handle>)
    }
}

impl Sessions for LocalSessions {
    fn find(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> BoxFuture<'_, Result<Option<Arc<dyn Handle>>, SessionError>> {
        let found = self.usable(tenant, device);
        if found.is_some() || !self.0.is_beginning(device) {
            return Box::pin(std::future::ready(Ok(found)));
        }
        let (tenant, device) = (tenant.clone(), device.clone());
        Box::pin(async move {
            self.0.begun(&device).await;
            Ok(self.usable(&tenant, &device))
        })
    }

    fn forget(&self, _device: &DeviceId) {}
}
