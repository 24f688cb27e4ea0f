//! Devices and their tokens.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::directory::{session_columns, session_row};
use super::{changes, optional_time, parsed, time};
use crate::store::{
    ChangeKind, ConnectionFilter, Device, DeviceFilter, Page, PageRequest, StoreError,
};
use crate::types::{DeviceId, TenantId, Timestamp};

fn select() -> String {
    format!(
        "SELECT d.id, d.tenant_id, d.name, d.tags, d.created_at, d.last_seen, d.disconnect_reason,
         {} FROM devices d LEFT JOIN sessions s ON s.device_id = d.id
         LEFT JOIN nodes n ON n.node_id = s.node_id",
        session_columns()
    )
}

fn device(row: &Row<'_>) -> rusqlite::Result<Device> {
    let tags: String = row.get("tags")?;
    let tags = serde_json::from_str(&tags).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
    })?;
    let session = match row.get::<_, Option<String>>("s_device_id")? {
        Some(_) => Some(session_row(row)?),
        None => None,
    };
    Ok(Device {
        id: parsed(row, "id")?,
        tenant: parsed(row, "tenant_id")?,
        name: row.get("name")?,
        tags,
        created_at: time(row, "created_at")?,
        last_seen: optional_time(row, "last_seen")?,
        disconnect_reason: row.get("disconnect_reason")?,
        session,
    })
}

/// Part of a tenant's devices.
pub fn list(
    connection: &Connection,
    tenant: &TenantId,
    filter: &DeviceFilter,
    page: &PageRequest,
) -> Result<Page<Device>, StoreError> {
    let (after_time, after_id) = page.after()?;
    let (tag_key, tag_value) = match filter.tag.as_deref().map(|tag| tag.split_once('=')) {
        None => (None, None),
        Some(Some((key, value))) => (Some(key), Some(value)),
        Some(None) => (filter.tag.as_deref(), None),
    };
    let online = filter
        .status
        .map(|status| status == ConnectionFilter::Online);
    let sql = format!(
        "SELECT * FROM ({}) WHERE tenant_id = :tenant AND (created_at, id) > (:time, :id)
         AND (:name IS NULL OR instr(lower(name), lower(:name)) > 0)
         AND (:online IS NULL OR coalesce(n_alive, 0) = :online)
         AND (:tag IS NULL OR EXISTS (SELECT 1 FROM json_each(tags) t WHERE t.key = :tag
              AND (:value IS NULL OR t.value = :value)))
         ORDER BY created_at, id LIMIT :limit",
        select()
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(
        named_params! {
            ":tenant": tenant.as_str(), ":time": after_time, ":id": after_id,
            ":name": filter.name, ":online": online, ":tag": tag_key, ":value": tag_value,
            ":limit": page.limit.saturating_add(1),
        },
        device,
    )?;
    let items = rows.collect::<Result<_, _>>()?;
    Ok(page.page(items, |last: &Device| {
        (last.created_at.as_millis(), last.id.to_string())
    }))
}

/// One of a tenant's devices.
pub fn find(
    connection: &Connection,
    tenant: &TenantId,
    id: &DeviceId,
) -> Result<Option<Device>, StoreError> {
    let sql = format!("{} WHERE d.id = ?1 AND d.tenant_id = ?2", select());
    Ok(connection
        .prepare_cached(&sql)?
        .query_row([id.as_str(), tenant.as_str()], device)
        .optional()?)
}

/// Renames.
pub fn rename(
    connection: &Connection,
    tenant: &TenantId,
    id: &DeviceId,
    name: &str,
) -> Result<Option<Device>, StoreError> {
    connection
        .prepare_cached("UPDATE devices SET name = ?3 WHERE id = ?1 AND tenant_id = ?2")?
        .execute(params![id.as_str(), tenant.as_str(), name])?;
    find(connection, tenant, id)
}

/// Removes.
pub fn delete(
    connection: &Connection,
    tenant: &TenantId,
    id: &DeviceId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let deleted = connection
        .prepare_cached("DELETE FROM devices WHERE id = ?1 AND tenant_id = ?2")?
        .execute([id.as_str(), tenant.as_str()])?;
    if deleted == 1 {
        changes::append(
            connection,
            ChangeKind::DeviceRevoked,
            id.as_str(),
            None,
            now,
        )?;
    }
    Ok(deleted == 1)
}

/// The device with a token.
pub fn find_by_token(
    connection: &Connection,
    token_hash: &[u8; 32],
    now: Timestamp,
) -> Result<Option<(DeviceId, TenantId)>, StoreError> {
    let sql = "SELECT d.id, d.tenant_id FROM device_tokens t JOIN devices d ON d.id = t.device_id
               WHERE t.hash = ?1 AND (t.expires_at IS NULL OR t.expires_at > ?2)";
    Ok(connection
        .prepare_cached(sql)?
        .query_row(params![&token_hash[..], now.as_millis()], |row| {
            Ok((parsed(row, "id")?, parsed(row, "tenant_id")?))
        })
        .optional()?)
}
