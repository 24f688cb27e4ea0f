//! Devices.

use std::collections::BTreeMap;

use super::{Page, PageRequest, SessionRow, Store, StoreError, on_engine};
use crate::types::{DeviceId, TenantId, Timestamp};

/// A device.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// The id.
    pub id: DeviceId,
    /// Its owner.
    pub tenant: TenantId,
    /// Its name.
    pub name: String,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
    /// When it was paired.
    pub created_at: Timestamp,
    /// When it was last known to be connected; `None` before its first session.
    pub last_seen: Option<Timestamp>,
    /// Why its last session ended.
    pub disconnect_reason: Option<String>,
    /// Its entry in the directory; the node may be gone.
    pub session: Option<SessionRow>,
}

impl Device {
    /// The entry in the directory, if its node lives.
    pub fn live_session(&self) -> Option<&SessionRow> {
        self.session.as_ref().filter(|session| session.node_alive)
    }

    /// Why the device is not connected; `None` when it is.
    pub fn offline_reason(&self) -> Option<&'static str> {
        match (&self.session, self.last_seen) {
            (Some(session), _) if session.node_alive => None,
            (Some(_), _) => Some("node_lost"),
            (None, None) => Some("never_connected"),
            (None, Some(_)) => Some("disconnected"),
        }
    }
}

/// By connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionFilter {
    /// Connected devices.
    Online,
    /// The others.
    Offline,
}

/// Which devices of a tenant.
#[derive(Debug, Clone, Default)]
pub struct DeviceFilter {
    /// Those whose name contains this, whatever the case.
    pub name: Option<String>,
    /// Connected or not.
    pub status: Option<ConnectionFilter>,
    /// Those with this tag: `key` or `key=value`.
    pub tag: Option<String>,
}

impl Store {
    /// A tenant's devices, oldest first.
    ///
    /// # Errors
    /// `BadCursor`, or when the database cannot be read.
    pub async fn list_devices(
        &self,
        tenant: &TenantId,
        filter: DeviceFilter,
        page: PageRequest,
    ) -> Result<Page<Device>, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, devices::list(&tenant, &filter, &page))
    }

    /// One of a tenant's devices.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_device(
        &self,
        tenant: &TenantId,
        id: &DeviceId,
    ) -> Result<Option<Device>, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(self, read, devices::find(&tenant, &id))
    }

    /// Gives a device another name.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn rename_device(
        &self,
        tenant: &TenantId,
        id: &DeviceId,
        name: &str,
        now: Timestamp,
    ) -> Result<Option<Device>, StoreError> {
        let (tenant, id, name) = (tenant.clone(), id.clone(), name.to_owned());
        on_engine!(self, write, devices::rename(&tenant, &id, &name, now))
    }

    /// Sets a tag of a device.
    ///
    /// # Errors
    /// `Conflict` when the device has `max` other tags.
    pub async fn set_device_tag(
        &self,
        tenant: &TenantId,
        id: &DeviceId,
        (key, value): (&str, &str),
        max: usize,
        now: Timestamp,
    ) -> Result<Option<Device>, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        let (key, value) = (key.to_owned(), value.to_owned());
        on_engine!(
            self,
            write,
            devices::set_tag(&tenant, &id, (&key, &value), max, now)
        )
    }

    /// Removes a tag of a device; tells whether it was there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_device_tag(
        &self,
        tenant: &TenantId,
        id: &DeviceId,
        key: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (tenant, id, key) = (tenant.clone(), id.clone(), key.to_owned());
        on_engine!(self, write, devices::delete_tag(&tenant, &id, &key, now))
    }

    /// Gives a device a further token. The one that it uses stays valid until the device has
    /// connected with the new one, or until `old_until`; a new one that was never used is replaced.
    /// Tells until when the old one is valid; `None` when there is no such device.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn rotate_device_token(
        &self,
        tenant: &TenantId,
        id: &DeviceId,
        token_hash: [u8; 32],
        old_until: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(
            self,
            write,
            devices::rotate_token(&tenant, &id, &token_hash, old_until, now)
        )
    }

    /// Removes a device, its tokens, its session and its tickets; tells whether it existed.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_device(
        &self,
        tenant: &TenantId,
        id: &DeviceId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(self, write, devices::delete(&tenant, &id, now))
    }

    /// The device with this token.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_device_by_token(
        &self,
        token_hash: [u8; 32],
        now: Timestamp,
    ) -> Result<Option<(DeviceId, TenantId)>, StoreError> {
        on_engine!(self, read, devices::find_by_token(&token_hash, now))
    }
}
