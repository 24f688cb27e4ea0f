//! Tickets.

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::{audit, parsed};
use crate::store::{AuditActor, AuditEntry, StoreError};
use crate::types::{DeviceId, LoginId, TenantId, Timestamp};

/// Adds a ticket.
pub fn create(
    connection: &Connection,
    hash: &[u8; 32],
    tenant: &TenantId,
    device: &DeviceId,
    login: &LoginId,
    expires_at: Timestamp,
) -> Result<(), StoreError> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO tickets (hash, login_id, tenant_id, device_id, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            &hash[..],
            login.as_str(),
            tenant.as_str(),
            device.as_str(),
            expires_at.as_millis()
        ]);
    match inserted {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Err(StoreError::Conflict("the login or the device is gone"))
        }
        other => other.map(drop).map_err(Into::into),
    }
}

/// Takes a ticket out.
pub fn redeem(
    connection: &Connection,
    hash: &[u8; 32],
    device: &DeviceId,
    now: Timestamp,
) -> Result<Option<(LoginId, TenantId)>, StoreError> {
    let sql = "DELETE FROM tickets WHERE hash = ?1 AND device_id = ?2 AND expires_at > ?3
               RETURNING login_id, tenant_id";
    let redeemed: Option<(LoginId, TenantId)> = connection
        .prepare_cached(sql)?
        .query_row(
            params![&hash[..], device.as_str(), now.as_millis()],
            |row| Ok((parsed(row, "login_id")?, parsed(row, "tenant_id")?)),
        )
        .optional()?;
    if let Some((login, tenant)) = &redeemed {
        let user = connection
            .prepare_cached("SELECT user_id FROM logins WHERE id = ?1")?
            .query_row([login.as_str()], |row| parsed(row, "user_id"))?;
        let entry = AuditEntry {
            target: Some(device.to_string()),
            remote_addr: None,
            ..AuditEntry::new(
                now,
                Some(tenant.clone()),
                AuditActor::User(user),
                "device.host_opened",
            )
        };
        audit::append(connection, &entry)?;
    }
    Ok(redeemed)
}
