//! Groups of devices.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{is_taken, parsed, time};
use crate::store::groups::MAX_DEVICES_SHOWN;
use crate::store::{Group, Page, PageRequest, StoreError};
use crate::types::{DeviceId, GroupId, TenantId, Timestamp};

const TAKEN: StoreError = StoreError::Conflict("the name is taken");

fn group(row: &Row<'_>) -> rusqlite::Result<Group> {
    Ok(Group {
        id: parsed(row, "id")?,
        name: row.get("name")?,
        created_at: time(row, "created_at")?,
        devices: Vec::new(),
    })
}

fn with_devices(connection: &Connection, mut group: Group) -> Result<Group, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT device_id FROM group_devices WHERE group_id = ?1 ORDER BY device_id LIMIT ?2",
    )?;
    let rows = statement.query_map(params![group.id.as_str(), MAX_DEVICES_SHOWN], |row| {
        parsed(row, "device_id")
    })?;
    group.devices = rows.collect::<Result<_, _>>()?;
    Ok(group)
}

/// Makes a group.
pub fn create(
    connection: &Connection,
    tenant: &TenantId,
    (id, name): (&GroupId, &str),
    max: u32,
    now: Timestamp,
) -> Result<Group, StoreError> {
    let count: u32 = connection
        .prepare_cached("SELECT count(*) FROM device_groups WHERE tenant_id = ?1")?
        .query_row([tenant.as_str()], |row| row.get(0))?;
    if count >= max {
        return Err(StoreError::Conflict("too many groups"));
    }
    let sql = "INSERT INTO device_groups (id, tenant_id, name, created_at) VALUES (?1, ?2, ?3, ?4)";
    let values = params![id.as_str(), tenant.as_str(), name, now.as_millis()];
    match connection.prepare_cached(sql)?.execute(values) {
        Err(error) if is_taken(&error) => return Err(TAKEN),
        other => other?,
    };
    find(connection, tenant, id)?
        .ok_or_else(|| StoreError::Failed("a new group is gone".to_owned()))
}

/// Part of a tenant's groups.
pub fn list(
    connection: &Connection,
    tenant: &TenantId,
    page: &PageRequest,
) -> Result<Page<Group>, StoreError> {
    let (after_time, after_id) = page.after(tenant)?;
    let mut statement = connection.prepare_cached(
        "SELECT id, name, created_at FROM device_groups
         WHERE tenant_id = ?1 AND (created_at, id) > (?2, ?3) ORDER BY created_at, id LIMIT ?4",
    )?;
    let limit = page.limit.saturating_add(1);
    let rows = statement.query_map(params![tenant.as_str(), after_time, after_id, limit], group)?;
    let mut items = Vec::new();
    for found in rows {
        items.push(with_devices(connection, found?)?);
    }
    Ok(page.page(tenant, items, |last: &Group| {
        (last.created_at.as_millis(), last.id.to_string())
    }))
}

/// One of a tenant's groups.
pub fn find(
    connection: &Connection,
    tenant: &TenantId,
    id: &GroupId,
) -> Result<Option<Group>, StoreError> {
    let found = connection
        .prepare_cached(
            "SELECT id, name, created_at FROM device_groups WHERE id = ?1 AND tenant_id = ?2",
        )?
        .query_row([id.as_str(), tenant.as_str()], group)
        .optional()?;
    found
        .map(|found| with_devices(connection, found))
        .transpose()
}

/// Renames.
pub fn rename(
    connection: &Connection,
    tenant: &TenantId,
    id: &GroupId,
    name: &str,
) -> Result<Option<Group>, StoreError> {
    let sql = "UPDATE device_groups SET name = ?3 WHERE id = ?1 AND tenant_id = ?2";
    let values = [id.as_str(), tenant.as_str(), name];
    match connection.prepare_cached(sql)?.execute(values) {
        Err(error) if is_taken(&error) => return Err(TAKEN),
        other => other?,
    };
    find(connection, tenant, id)
}

/// Removes.
pub fn delete(
    connection: &Connection,
    tenant: &TenantId,
    id: &GroupId,
) -> Result<bool, StoreError> {
    let deleted = connection
        .prepare_cached("DELETE FROM device_groups WHERE id = ?1 AND tenant_id = ?2")?
        .execute([id.as_str(), tenant.as_str()])?;
    Ok(deleted == 1)
}

/// Puts a device in.
pub fn add_device(
    connection: &Connection,
    tenant: &TenantId,
    group: &GroupId,
    device: &DeviceId,
) -> Result<bool, StoreError> {
    let both: bool = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM device_groups g JOIN devices d ON d.tenant_id = g.tenant_id
             WHERE g.id = ?1 AND d.id = ?2 AND g.tenant_id = ?3)",
        )?
        .query_row([group.as_str(), device.as_str(), tenant.as_str()], |row| row.get(0))?;
    if both {
        connection
            .prepare_cached(
                "INSERT INTO group_devices (group_id, device_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            )?
            .execute([group.as_str(), device.as_str()])?;
    }
    Ok(both)
}

/// Takes a device out.
pub fn delete_device(
    connection: &Connection,
    tenant: &TenantId,
    group: &GroupId,
    device: &DeviceId,
) -> Result<bool, StoreError> {
    let deleted = connection
        .prepare_cached(
            "DELETE FROM group_devices WHERE group_id = ?1 AND device_id = ?2 AND EXISTS
             (SELECT 1 FROM device_groups g WHERE g.id = ?1 AND g.tenant_id = ?3)",
        )?
        .execute([group.as_str(), device.as_str(), tenant.as_str()])?;
    Ok(deleted == 1)
}
