//! Tenants.

use std::str::FromStr;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{changes, members, parsed, time};
use crate::store::{ChangeKind, RemovedTenant, StoreError, Tenant};
use crate::types::{Role, TenantId, Timestamp, UserId};

fn tenant(row: &Row<'_>) -> rusqlite::Result<Tenant> {
    Ok(Tenant {
        id: parsed(row, "id")?,
        name: row.get("name")?,
        claimed: row.get("claimed")?,
        created_at: time(row, "created_at")?,
    })
}

/// Makes a tenant.
pub fn create(
    connection: &Connection,
    id: &TenantId,
    name: &str,
    owner: &UserId,
    max_owned: u32,
    now: Timestamp,
) -> Result<Tenant, StoreError> {
    let owned: u32 = connection
        .prepare_cached("SELECT count(*) FROM members WHERE user_id = ?1 AND role = 'owner'")?
        .query_row([owner.as_str()], |row| row.get(0))?;
    if owned >= max_owned {
        return Err(StoreError::Conflict("too many tenants"));
    }
    connection
        .prepare_cached("INSERT INTO tenants (id, name, created_at) VALUES (?1, ?2, ?3)")?
        .execute(params![id.as_str(), name, now.as_millis()])?;
    members::add(connection, id, owner, Role::Owner, "personal")?;
    find(connection, id)?.ok_or_else(|| StoreError::Failed("a new tenant is gone".to_owned()))
}

/// A tenant.
pub fn find(connection: &Connection, id: &TenantId) -> Result<Option<Tenant>, StoreError> {
    let sql = "SELECT id, name, external_key IS NOT NULL AS claimed, created_at FROM tenants
               WHERE id = ?1";
    Ok(connection
        .prepare_cached(sql)?
        .query_row([id.as_str()], tenant)
        .optional()?)
}

/// Renames.
pub fn rename(
    connection: &Connection,
    id: &TenantId,
    name: &str,
) -> Result<Option<Tenant>, StoreError> {
    connection
        .prepare_cached("UPDATE tenants SET name = ?2 WHERE id = ?1")?
        .execute(params![id.as_str(), name])?;
    find(connection, id)
}

fn ids<T: FromStr>(
    connection: &Connection,
    sql: &str,
    tenant: &TenantId,
) -> Result<Vec<T>, StoreError> {
    let damaged = |_| StoreError::Failed("an id in the database is damaged".to_owned());
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([tenant.as_str()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        found.push(id.parse().map_err(damaged)?);
    }
    Ok(found)
}

/// Removes a tenant with everything in it.
pub fn delete(
    connection: &Connection,
    id: &TenantId,
    now: Timestamp,
) -> Result<Option<RemovedTenant>, StoreError> {
    let of_tenant = "WHERE tenant_id = ?1";
    let removed = RemovedTenant {
        devices: ids(
            connection,
            &format!("SELECT id FROM devices {of_tenant}"),
            id,
        )?,
        members: ids(
            connection,
            &format!("SELECT user_id FROM members {of_tenant}"),
            id,
        )?,
        service_clients: ids(
            connection,
            &format!("SELECT id FROM service_clients {of_tenant}"),
            id,
        )?,
    };
    for device in &removed.devices {
        let kind = ChangeKind::DeviceRevoked;
        changes::append(connection, kind, device.as_str(), None, now)?;
    }
    for client in &removed.service_clients {
        let kind = ChangeKind::ServiceClientEnded;
        changes::append(connection, kind, client.as_str(), None, now)?;
    }
    for user in &removed.members {
        members::remove(connection, id, user, now)?;
    }
    let deleted = connection
        .prepare_cached("DELETE FROM tenants WHERE id = ?1")?
        .execute([id.as_str()])?;
    Ok((deleted == 1).then_some(removed))
}
