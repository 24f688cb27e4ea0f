//! Traffic by device and hour.

use rusqlite::{Connection, Row, params};

use super::{parsed, time};
use crate::store::usage::HOUR_MS;
use crate::store::{StoreError, Traffic, Usage};
use crate::types::{DeviceId, TenantId, Timestamp};

const SUMS: &str = "coalesce(sum(requests), 0) AS requests,
    coalesce(sum(bytes_to_device), 0) AS bytes_to_device,
    coalesce(sum(bytes_from_device), 0) AS bytes_from_device";

fn hour_of(time: Timestamp) -> i64 {
    time.as_millis().div_euclid(HOUR_MS) * HOUR_MS
}

fn counted(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn traffic(row: &Row<'_>) -> rusqlite::Result<Traffic> {
    let number =
        |column| Ok::<_, rusqlite::Error>(row.get::<_, i64>(column)?.max(0).unsigned_abs());
    Ok(Traffic {
        requests: number("requests")?,
        bytes_to_device: number("bytes_to_device")?,
        bytes_from_device: number("bytes_from_device")?,
    })
}

/// Adds to an hour.
pub fn add(
    connection: &Connection,
    all: &[(TenantId, DeviceId, Traffic)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO usage_hours (tenant_id, device_id, hour, requests, bytes_to_device,
             bytes_from_device)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE EXISTS (SELECT 1 FROM tenants WHERE id = ?1)
         ON CONFLICT (tenant_id, device_id, hour) DO UPDATE SET
             requests = requests + excluded.requests,
             bytes_to_device = bytes_to_device + excluded.bytes_to_device,
             bytes_from_device = bytes_from_device + excluded.bytes_from_device",
    )?;
    for (tenant, device, traffic) in all {
        statement.execute(params![
            tenant.as_str(),
            device.as_str(),
            hour_of(now),
            counted(traffic.requests),
            counted(traffic.bytes_to_device),
            counted(traffic.bytes_from_device)
        ])?;
    }
    Ok(())
}

/// A device's hours.
pub fn of_device(
    connection: &Connection,
    tenant: &TenantId,
    device: &DeviceId,
    from: Timestamp,
) -> Result<Vec<Usage<Timestamp>>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT hour, requests, bytes_to_device, bytes_from_device FROM usage_hours
         WHERE tenant_id = ?1 AND device_id = ?2 AND hour >= ?3 ORDER BY hour",
    )?;
    let values = params![tenant.as_str(), device.as_str(), hour_of(from)];
    let rows = statement.query_map(values, |row| {
        Ok(Usage {
            of: time(row, "hour")?,
            traffic: traffic(row)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A tenant's devices.
pub fn of_tenant(
    connection: &Connection,
    tenant: &TenantId,
    (from, to): (Timestamp, Timestamp),
    limit: u32,
) -> Result<Vec<Usage<DeviceId>>, StoreError> {
    let sql = format!(
        "SELECT device_id, {SUMS} FROM usage_hours WHERE tenant_id = ?1 AND hour >= ?2 AND hour < ?3
         GROUP BY device_id ORDER BY sum(bytes_to_device) + sum(bytes_from_device) DESC, device_id
         LIMIT ?4"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let values = params![tenant.as_str(), hour_of(from), to.as_millis(), limit];
    let rows = statement.query_map(values, |row| {
        Ok(Usage {
            of: parsed(row, "device_id")?,
            traffic: traffic(row)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// All of a tenant.
pub fn total(
    connection: &Connection,
    tenant: &TenantId,
    (from, to): (Timestamp, Timestamp),
) -> Result<Traffic, StoreError> {
    let sql =
        format!("SELECT {SUMS} FROM usage_hours WHERE tenant_id = ?1 AND hour >= ?2 AND hour < ?3");
    let values = params![tenant.as_str(), hour_of(from), to.as_millis()];
    Ok(connection
        .prepare_cached(&sql)?
        .query_row(values, traffic)?)
}
