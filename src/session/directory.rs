//! Finds sessions of other processes through the directory in the database.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use moka::sync::Cache;

use super::internal::{InternalClient, Target};
use super::{Handle, LocalSessions, RemoteHandle, SessionError, Sessions, Summary};
use crate::store::{SessionRow, Store};
use crate::types::{DeviceId, TenantId};

/// How long a found session is taken for true.
const CACHE_FOR: Duration = Duration::from_secs(1);
/// Sessions in the cache at once.
const CACHE_ENTRIES: u64 = 100_000;

/// [`Sessions`] of all processes: this one's registry first, if it has one, then the directory.
#[derive(Clone)]
pub struct ProxySessions {
    local: Option<LocalSessions>,
    store: Store,
    client: InternalClient,
    /// A device is in one tenant, which is compared with the caller's.
    cache: Cache<DeviceId, (TenantId, Arc<RemoteHandle>)>,
}

impl ProxySessions {
    /// Sessions by way of the directory.
    pub fn new(local: Option<LocalSessions>, store: Store, client: InternalClient) -> Self {
        let cache = Cache::builder()
            .max_capacity(CACHE_ENTRIES)
            .time_to_live(CACHE_FOR)
            .build();
        Self {
            local,
            store,
            client,
            cache,
        }
    }

    async fn find_remote(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<Option<Arc<dyn Handle>>, SessionError> {
        if let Some((owner, handle)) = self.cache.get(device)
            && owner == *tenant
            && !handle.is_closed()
        {
            return Ok(Some(handle));
        }
        let Some(row) = self.store.find_session(tenant, device).await? else {
            return Ok(None);
        };
        if !row.node_alive {
            return Ok(None);
        }
        let Some(handle) = self.handle(tenant, row) else {
            return Ok(None);
        };
        let handle = Arc::new(handle);
        self.cache
            .insert(device.clone(), (tenant.clone(), Arc::clone(&handle)));
        Ok(Some(handle))
    }

    /// A node without an internal API is the only process of its kind: if the session is not in
    /// this process, nobody can reach it.
    fn handle(&self, tenant: &TenantId, row: SessionRow) -> Option<RemoteHandle> {
        let target = Target {
            node: row.node.clone(),
            url: row.node_internal_url.clone()?,
            device: row.device.clone(),
            tenant: tenant.clone(),
            epoch: row.epoch,
        };
        Some(RemoteHandle::new(
            summary_of(tenant, row),
            Some((self.client.clone(), target)),
        ))
    }

    /// What this process knows of a session: all of its own, of another's what the directory tells.
    pub fn snapshot(&self, tenant: &TenantId, row: &SessionRow) -> Summary {
        let local = self.local_summary(tenant, row);
        local.unwrap_or_else(|| summary_of(tenant, row.clone()))
    }

    fn local_summary(&self, tenant: &TenantId, row: &SessionRow) -> Option<Summary> {
        let summary = self.local.as_ref()?.0.find(&row.device)?.summary();
        (summary.epoch == row.epoch && summary.tenant == *tenant).then_some(summary)
    }

    /// What the node that holds a session knows of it now; `None` when it does not hold it any more.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn ask(
        &self,
        tenant: &TenantId,
        row: &SessionRow,
    ) -> Result<Option<Summary>, SessionError> {
        if let Some(local) = self.local_summary(tenant, row) {
            return Ok(Some(local));
        }
        let Some(url) = row.node_internal_url.clone() else {
            return Ok(None);
        };
        let target = Target {
            node: row.node.clone(),
            url,
            device: row.device.clone(),
            tenant: tenant.clone(),
            epoch: row.epoch,
        };
        self.client.summary(&target).await
    }
}

/// What the directory tells of a session.
pub fn summary_of(tenant: &TenantId, row: SessionRow) -> Summary {
    Summary {
        device: row.device,
        tenant: tenant.clone(),
        node: row.node,
        epoch: row.epoch,
        remote_addr: row.remote_addr,
        agent_version: row.agent_version,
        origin_host: row.origin_host,
        connected_at: row.connected_at,
        last_heartbeat: row.last_echo_at,
        rtt_ms: row.rtt_ms,
        open_streams: 0,
        bytes_in: 0,
        bytes_out: 0,
    }
}

impl Sessions for ProxySessions {
    fn find(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> BoxFuture<'_, Result<Option<Arc<dyn Handle>>, SessionError>> {
        let (tenant, device) = (tenant.clone(), device.clone());
        Box::pin(async move {
            if let Some(local) = &self.local
                && let Some(handle) = local.find(&tenant, &device).await?
            {
                return Ok(Some(handle));
            }
            self.find_remote(&tenant, &device).await
        })
    }

    fn forget(&self, device: &DeviceId) {
        self.cache.invalidate(device);
    }
}
