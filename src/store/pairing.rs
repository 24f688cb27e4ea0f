//! Pairing codes and their exchange for a device and its token.

use serde::Serialize;

use super::{Page, PageRequest, Store, StoreError, on_engine};
use crate::types::{DeviceId, PairingCodeId, TenantId, Timestamp};

/// What has become of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeStatus {
    /// A device may still use it.
    Open,
    /// A device has used it.
    Used,
    /// Its time is over.
    Expired,
    /// Somebody took it back.
    Revoked,
}

/// A pairing code, without the code itself, which is stored nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PairingCode {
    /// The code's public name.
    pub id: PairingCodeId,
    /// The name for the device.
    pub name: Option<String>,
    /// What has become of it.
    pub status: CodeStatus,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it may be used.
    pub expires_at: Timestamp,
    /// When it was used.
    pub used_at: Option<Timestamp>,
    /// Who made it: a person or a service client.
    pub created_by: String,
    /// The device that used it, unless that was removed since.
    pub device: Option<PairedDevice>,
}

/// What paired, for the person who made the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PairedDevice {
    /// The device.
    pub id: DeviceId,
    /// Its name here.
    pub name: String,
    /// Its own host name.
    pub hostname: Option<String>,
    /// Its operating system.
    pub os: Option<String>,
    /// Its processor architecture.
    pub arch: Option<String>,
    /// Where it paired from.
    pub remote_addr: String,
}

/// A code to be made.
#[derive(Debug, Clone)]
pub struct NewPairingCode {
    /// The code's public name.
    pub id: PairingCodeId,
    /// HMAC-SHA256 of the code.
    pub mac: [u8; 32],
    /// Names the key of the HMAC.
    pub key_id: String,
    /// The name for the device.
    pub name: Option<String>,
    /// Who makes it: a person or a service client.
    pub created_by: String,
    /// Until when it may be used.
    pub expires_at: Timestamp,
}

/// A device to be made.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// The id.
    pub id: DeviceId,
    /// The name that the device gives itself.
    pub name: Option<String>,
    /// Its own host name.
    pub hostname: Option<String>,
    /// Its operating system.
    pub os: Option<String>,
    /// Its processor architecture.
    pub arch: Option<String>,
    /// What it runs.
    pub agent_version: Option<String>,
    /// Where it pairs from.
    pub remote_addr: String,
}

/// The exchange of a code for a device and its token.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// The HMAC of the code by each key that is known.
    pub macs: Vec<[u8; 32]>,
    /// The device.
    pub device: NewDevice,
    /// SHA-256 of the device's token.
    pub token_hash: [u8; 32],
}

/// An exchange that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paired {
    /// The new device.
    pub device: DeviceId,
    /// Its owner.
    pub tenant: TenantId,
    /// The code that was used.
    pub code: PairingCodeId,
}

impl Store {
    /// Makes a code.
    ///
    /// # Errors
    /// `Conflict` when the tenant has `max_open` open codes.
    pub async fn create_pairing_code(
        &self,
        tenant: &TenantId,
        code: NewPairingCode,
        max_open: u32,
        now: Timestamp,
    ) -> Result<PairingCode, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, write, pairing::create(&tenant, &code, max_open, now))
    }

    /// A tenant's codes, oldest first.
    ///
    /// # Errors
    /// `BadCursor`, or when the database cannot be read.
    pub async fn list_pairing_codes(
        &self,
        tenant: &TenantId,
        page: PageRequest,
        now: Timestamp,
    ) -> Result<Page<PairingCode>, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, pairing::list(&tenant, &page, now))
    }

    /// One of a tenant's codes.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_pairing_code(
        &self,
        tenant: &TenantId,
        id: &PairingCodeId,
        now: Timestamp,
    ) -> Result<Option<PairingCode>, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(self, read, pairing::find(&tenant, &id, now))
    }

    /// Takes a code back; tells whether it exists. One that was used stays used.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn revoke_pairing_code(
        &self,
        tenant: &TenantId,
        id: &PairingCodeId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(self, write, pairing::revoke(&tenant, &id, now))
    }

    /// Uses a code up and makes the device and its token, all or nothing; `None` when the code is
    /// unknown, used, expired, revoked, or its maker may no longer pair.
    ///
    /// # Errors
    /// When the database cannot be written; nothing is valid then.
    pub async fn exchange_pairing_code(
        &self,
        exchange: Exchange,
        now: Timestamp,
    ) -> Result<Option<Paired>, StoreError> {
        on_engine!(self, write, pairing::exchange(&exchange, now))
    }
}
