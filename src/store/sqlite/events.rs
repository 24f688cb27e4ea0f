//! Events.

use rusqlite::{Connection, Row, params};

use super::{parsed, time};
use crate::store::{Event, Page, PageRequest, StoreError};
use crate::types::{DeviceId, TenantId, Timestamp};

/// Adds an event, in the caller's transaction.
pub fn append(
    connection: &Connection,
    (tenant, device): (&str, &str),
    kind: &str,
    detail: Option<&serde_json::Value>,
    now: Timestamp,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO events (tenant_id, device_id, kind, detail, at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            tenant,
            device,
            kind,
            detail.map(ToString::to_string),
            now.as_millis()
        ])?;
    Ok(())
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let device = match row.get::<_, Option<String>>("device_id")? {
        Some(_) => Some(parsed(row, "device_id")?),
        None => None,
    };
    Ok(Event {
        seq: row.get("seq")?,
        kind: row.get("kind")?,
        device,
        detail: row.get("detail")?,
        at: time(row, "at")?,
    })
}

/// The newest place; removed rows count.
pub fn latest(connection: &Connection) -> Result<i64, StoreError> {
    let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'";
    Ok(connection
        .prepare_cached(sql)?
        .query_row([], |row| row.get(0))?)
}

/// A tenant's events after a place.
pub fn read(
    connection: &Connection,
    tenant: &TenantId,
    after: i64,
    limit: u32,
) -> Result<Option<Vec<Event>>, StoreError> {
    let first: Option<i64> = connection
        .prepare_cached("SELECT min(seq) FROM events")?
        .query_row([], |row| row.get(0))?;
    let newest = latest(connection)?;
    let oldest = first.unwrap_or(newest + 1);
    if after > newest || after < oldest - 1 {
        return Ok(None);
    }
    let mut statement = connection.prepare_cached(
        "SELECT seq, device_id, kind, detail, at FROM events WHERE tenant_id = ?1 AND seq > ?2
         ORDER BY seq LIMIT ?3",
    )?;
    let rows = statement.query_map(params![tenant.as_str(), after, limit], event)?;
    Ok(Some(rows.collect::<Result<_, _>>()?))
}

/// Part of a device's events, newest first.
pub fn list(
    connection: &Connection,
    tenant: &TenantId,
    device: &DeviceId,
    page: &PageRequest,
) -> Result<Page<Event>, StoreError> {
    let before = match page.cursor {
        Some(_) => page.after(tenant)?.0,
        None => i64::MAX,
    };
    let mut statement = connection.prepare_cached(
        "SELECT seq, device_id, kind, detail, at FROM events
         WHERE device_id = ?1 AND tenant_id = ?2 AND seq < ?3 ORDER BY seq DESC LIMIT ?4",
    )?;
    let limit = page.limit.saturating_add(1);
    let rows = statement.query_map(
        params![device.as_str(), tenant.as_str(), before, limit],
        event,
    )?;
    let items = rows.collect::<Result<_, _>>()?;
    Ok(page.page(tenant, items, |last: &Event| (last.seq, String::new())))
}
