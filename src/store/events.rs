//! What a tenant's people see happen to its devices.

use super::{Page, PageRequest, Store, StoreError, on_engine};
use crate::types::{DeviceId, TenantId, Timestamp};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the sequence.
    pub seq: i64,
    /// What, as `device.connected`.
    pub kind: String,
    /// To which device.
    pub device: Option<DeviceId>,
    /// More, by kind, as JSON.
    pub detail: Option<String>,
    /// When.
    pub at: Timestamp,
}

impl Store {
    /// The newest event's place in the sequence, 0 when there was none.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn latest_event(&self) -> Result<i64, StoreError> {
        on_engine!(self, read, events::latest())
    }

    /// A tenant's events after a place in the sequence, oldest first; `None` when some of them have
    /// been removed by now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn read_events(
        &self,
        tenant: &TenantId,
        after: i64,
        limit: u32,
    ) -> Result<Option<Vec<Event>>, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, events::read(&tenant, after, limit))
    }

    /// The events of a tenant's device, newest first.
    ///
    /// # Errors
    /// `BadCursor`, or when the database cannot be read.
    pub async fn list_device_events(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        page: PageRequest,
    ) -> Result<Page<Event>, StoreError> {
        let (tenant, device) = (tenant.clone(), device.clone());
        on_engine!(self, read, events::list(&tenant, &device, &page))
    }
}
