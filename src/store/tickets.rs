//! One-time tickets that lead a signed-in browser to a device's own host.

use super::{Store, StoreError, on_engine};
use crate::types::{DeviceId, LoginId, TenantId, Timestamp};

impl Store {
    /// Makes a ticket.
    ///
    /// # Errors
    /// `Conflict` when the login or the device is gone by now.
    pub async fn create_ticket(
        &self,
        hash: [u8; 32],
        tenant: &TenantId,
        device: &DeviceId,
        login: &LoginId,
        expires_at: Timestamp,
    ) -> Result<(), StoreError> {
        let (tenant, device, login) = (tenant.clone(), device.clone(), login.clone());
        on_engine!(
            self,
            write,
            tickets::create(&hash, &tenant, &device, &login, expires_at)
        )
    }

    /// Uses a ticket up; `None` when it is unknown, used, expired or another device's.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn redeem_ticket(
        &self,
        hash: [u8; 32],
        device: &DeviceId,
        now: Timestamp,
    ) -> Result<Option<(LoginId, TenantId)>, StoreError> {
        let device = device.clone();
        on_engine!(self, write, tickets::redeem(&hash, &device, now))
    }
}
