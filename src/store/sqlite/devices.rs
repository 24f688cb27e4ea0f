//! Devices and their tokens.

use std::collections::BTreeMap;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use serde_json::json;

use super::directory::{session_columns, session_row};
use super::{changes, events, optional_time, parsed, time};
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
    let (after_time, after_id) = page.after(tenant)?;
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
    Ok(page.page(tenant, items, |last: &Device| {
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
    now: Timestamp,
) -> Result<Option<Device>, StoreError> {
    let renamed = connection
        .prepare_cached("UPDATE devices SET name = ?3 WHERE id = ?1 AND tenant_id = ?2")?
        .execute(params![id.as_str(), tenant.as_str(), name])?;
    if renamed == 1 {
        let (place, detail) = ((tenant.as_str(), id.as_str()), json!({ "name": name }));
        events::append(connection, place, "device.renamed", Some(&detail), now)?;
    }
    find(connection, tenant, id)
}

/// Sets a tag.
pub fn set_tag(
    connection: &Connection,
    tenant: &TenantId,
    id: &DeviceId,
    (key, value): (&str, &str),
    max: usize,
    now: Timestamp,
) -> Result<Option<Device>, StoreError> {
    let Some(mut device) = find(connection, tenant, id)? else {
        return Ok(None);
    };
    if !device.tags.contains_key(key) && device.tags.len() >= max {
        return Err(StoreError::Conflict("too many tags"));
    }
    device.tags.insert(key.to_owned(), value.to_owned());
    write_tags(connection, &device, now)?;
    Ok(Some(device))
}

/// Removes a tag.
pub fn delete_tag(
    connection: &Connection,
    tenant: &TenantId,
    id: &DeviceId,
    key: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let Some(mut device) = find(connection, tenant, id)? else {
        return Ok(false);
    };
    let removed = device.tags.remove(key).is_some();
    if removed {
        write_tags(connection, &device, now)?;
    }
    Ok(removed)
}

fn write_tags(connection: &Connection, device: &Device, now: Timestamp) -> Result<(), StoreError> {
    let tags: &BTreeMap<String, String> = &device.tags;
    let tags = json!(tags);
    connection
        .prepare_cached("UPDATE devices SET tags = ?2 WHERE id = ?1")?
        .execute(params![device.id.as_str(), tags.to_string()])?;
    let place = (device.tenant.as_str(), device.id.as_str());
    let detail = json!({ "tags": tags });
    events::append(connection, place, "device.tagged", Some(&detail), now)
}

/// Adds a token. Only a token that the device has not connected with has no end beside one with an end.
pub fn rotate_token(
    connection: &Connection,
    tenant: &TenantId,
    id: &DeviceId,
    token_hash: &[u8; 32],
    old_until: Timestamp,
    now: Timestamp,
) -> Result<Option<Timestamp>, StoreError> {
    if find(connection, tenant, id)?.is_none() {
        return Ok(None);
    }
    let (device, until, now_ms) = (id.as_str(), old_until.as_millis(), now.as_millis());
    let has_old: bool = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM device_tokens WHERE device_id = ?1 AND expires_at > ?2)",
        )?
        .query_row(params![device, now_ms], |row| row.get(0))?;
    if has_old {
        connection
            .prepare_cached(
                "DELETE FROM device_tokens WHERE device_id = ?1 AND expires_at IS NULL",
            )?
            .execute([device])?;
    }
    connection
        .prepare_cached(
            "UPDATE device_tokens SET expires_at = ?2
             WHERE device_id = ?1 AND (expires_at IS NULL OR expires_at > ?3)",
        )?
        .execute(params![device, until, now_ms])?;
    connection
        .prepare_cached(
            "INSERT INTO device_tokens (hash, device_id, created_at) VALUES (?1, ?2, ?3)",
        )?
        .execute(params![&token_hash[..], device, now_ms])?;
    let place = (tenant.as_str(), device);
    events::append(connection, place, "device.token_rotated", None, now)?;
    Ok(Some(old_until))
}

/// The device has connected with a token: those before it are void.
pub fn token_used(
    connection: &Connection,
    device: &DeviceId,
    token_hash: &[u8; 32],
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "DELETE FROM device_tokens WHERE device_id = ?1 AND expires_at IS NOT NULL AND EXISTS
             (SELECT 1 FROM device_tokens WHERE hash = ?2 AND device_id = ?1 AND expires_at IS NULL)",
        )?
        .execute(params![device.as_str(), &token_hash[..]])?;
    Ok(())
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
        let place = (tenant.as_str(), id.as_str());
        events::append(connection, place, "device.removed", None, now)?;
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
