//! How much goes through the cloud, by device and hour.

use super::{Store, StoreError, on_engine};
use crate::types::{DeviceId, TenantId, Timestamp};

/// Milliseconds of an hour.
pub const HOUR_MS: i64 = 3_600_000;

/// What went to and from a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that were forwarded.
    pub requests: u64,
    /// Bytes of bodies and WebSockets towards the device.
    pub bytes_to_device: u64,
    /// The same from the device.
    pub bytes_from_device: u64,
}

/// The traffic of one hour or of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage<K> {
    /// What was counted: the hour's beginning or the device.
    pub of: K,
    /// How much.
    pub traffic: Traffic,
}

impl Store {
    /// Adds to the hour of `now`; what is about tenants that are gone is left out.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn add_usage(
        &self,
        counted: Vec<(TenantId, DeviceId, Traffic)>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        on_engine!(self, write, usage::add(&counted, now))
    }

    /// A device's traffic by hour from a point in time on, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn list_device_usage(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        from: Timestamp,
    ) -> Result<Vec<Usage<Timestamp>>, StoreError> {
        let (tenant, device) = (tenant.clone(), device.clone());
        on_engine!(self, read, usage::of_device(&tenant, &device, from))
    }

    /// A tenant's traffic by device between two points in time, the busiest first, at most `limit`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn list_usage(
        &self,
        tenant: &TenantId,
        (from, to): (Timestamp, Timestamp),
        limit: u32,
    ) -> Result<Vec<Usage<DeviceId>>, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, usage::of_tenant(&tenant, (from, to), limit))
    }

    /// A tenant's whole traffic between two points in time.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn total_usage(
        &self,
        tenant: &TenantId,
        (from, to): (Timestamp, Timestamp),
    ) -> Result<Traffic, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, usage::total(&tenant, (from, to)))
    }
}
