//! Named sets of a tenant's devices.

use super::{Page, PageRequest, Store, StoreError, on_engine};
use crate::types::{DeviceId, GroupId, TenantId, Timestamp};

/// Most devices of a group that are told with it.
pub const MAX_DEVICES_SHOWN: u32 = 1_000;

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The id.
    pub id: GroupId,
    /// The name, unique in the tenant.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its devices, in order of their ids, at most [`MAX_DEVICES_SHOWN`].
    pub devices: Vec<DeviceId>,
}

impl Store {
    /// Makes a group.
    ///
    /// # Errors
    /// `Conflict` when the tenant has one of that name, or `max` groups.
    pub async fn create_group(
        &self,
        tenant: &TenantId,
        (id, name): (&GroupId, &str),
        max: u32,
        now: Timestamp,
    ) -> Result<Group, StoreError> {
        let (tenant, id, name) = (tenant.clone(), id.clone(), name.to_owned());
        on_engine!(self, write, groups::create(&tenant, (&id, &name), max, now))
    }

    /// A tenant's groups, oldest first.
    ///
    /// # Errors
    /// `BadCursor`, or when the database cannot be read.
    pub async fn list_groups(
        &self,
        tenant: &TenantId,
        page: PageRequest,
    ) -> Result<Page<Group>, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, groups::list(&tenant, &page))
    }

    /// One of a tenant's groups.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_group(
        &self,
        tenant: &TenantId,
        id: &GroupId,
    ) -> Result<Option<Group>, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(self, read, groups::find(&tenant, &id))
    }

    /// Gives a group another name.
    ///
    /// # Errors
    /// `Conflict` when the tenant has one of that name.
    pub async fn rename_group(
        &self,
        tenant: &TenantId,
        id: &GroupId,
        name: &str,
    ) -> Result<Option<Group>, StoreError> {
        let (tenant, id, name) = (tenant.clone(), id.clone(), name.to_owned());
        on_engine!(self, write, groups::rename(&tenant, &id, &name))
    }

    /// Removes a group, not its devices; tells whether there was one.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_group(&self, tenant: &TenantId, id: &GroupId) -> Result<bool, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(self, write, groups::delete(&tenant, &id))
    }

    /// Puts a device into a group; false when one of them is not the tenant's.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn add_group_device(
        &self,
        tenant: &TenantId,
        group: &GroupId,
        device: &DeviceId,
    ) -> Result<bool, StoreError> {
        let (tenant, group, device) = (tenant.clone(), group.clone(), device.clone());
        on_engine!(self, write, groups::add_device(&tenant, &group, &device))
    }

    /// Takes a device out of a group; tells whether it was in it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_group_device(
        &self,
        tenant: &TenantId,
        group: &GroupId,
        device: &DeviceId,
    ) -> Result<bool, StoreError> {
        let (tenant, group, device) = (tenant.clone(), group.clone(), device.clone());
        on_engine!(self, write, groups::delete_device(&tenant, &group, &device))
    }
}
