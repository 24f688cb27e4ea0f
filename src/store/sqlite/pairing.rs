//! Pairing codes.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{audit, changes, events, optional_time, parsed, time};
use crate::fail_point;
use crate::store::{
    AuditActor, AuditEntry, ChangeKind, CodeStatus, Exchange, NewPairingCode, Page, PageRequest,
    Paired, PairedDevice, PairingCode, StoreError,
};
use crate::types::{PairingCodeId, TenantId, Timestamp};

const SELECT: &str = "SELECT c.id, c.name, c.created_by, c.created_at, c.expires_at, c.used_at,
    c.revoked_at, d.id AS d_id, d.name AS d_name, d.hostname AS d_hostname, d.os AS d_os,
    d.arch AS d_arch, d.paired_from AS d_paired_from
    FROM pairing_codes c LEFT JOIN devices d ON d.id = c.device_id";

fn pairing_code(row: &Row<'_>, now: Timestamp) -> rusqlite::Result<PairingCode> {
    let expires_at = time(row, "expires_at")?;
    let used_at = optional_time(row, "used_at")?;
    let status = match (used_at, optional_time(row, "revoked_at")?) {
        (Some(_), _) => CodeStatus::Used,
        (None, Some(_)) => CodeStatus::Revoked,
        (None, None) if expires_at <= now => CodeStatus::Expired,
        (None, None) => CodeStatus::Open,
    };
    let device = match row.get::<_, Option<String>>("d_id")? {
        None => None,
        Some(_) => Some(PairedDevice {
            id: parsed(row, "d_id")?,
            name: row.get("d_name")?,
            hostname: row.get("d_hostname")?,
            os: row.get("d_os")?,
            arch: row.get("d_arch")?,
            remote_addr: row.get("d_paired_from")?,
        }),
    };
    Ok(PairingCode {
        id: parsed(row, "id")?,
        name: row.get("name")?,
        status,
        created_at: time(row, "created_at")?,
        expires_at,
        used_at,
        created_by: row.get("created_by")?,
        device,
    })
}

/// Makes a code.
pub fn create(
    connection: &Connection,
    tenant: &TenantId,
    code: &NewPairingCode,
    max_open: u32,
    now: Timestamp,
) -> Result<PairingCode, StoreError> {
    let open: u32 = connection
        .prepare_cached(
            "SELECT count(*) FROM pairing_codes WHERE tenant_id = ?1 AND used_at IS NULL
             AND revoked_at IS NULL AND expires_at > ?2",
        )?
        .query_row(params![tenant.as_str(), now.as_millis()], |row| row.get(0))?;
    if open >= max_open {
        return Err(StoreError::Conflict("too many open pairing codes"));
    }
    connection
        .prepare_cached(
            "INSERT INTO pairing_codes (id, tenant_id, mac, key_id, name, created_by, created_at,
                 expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            code.id.as_str(),
            tenant.as_str(),
            &code.mac[..],
            code.key_id,
            code.name,
            code.created_by,
            now.as_millis(),
            code.expires_at.as_millis()
        ])?;
    find(connection, tenant, &code.id, now)?
        .ok_or_else(|| StoreError::Failed("a code that was just made is gone".to_owned()))
}

/// Part of a tenant's codes.
pub fn list(
    connection: &Connection,
    tenant: &TenantId,
    page: &PageRequest,
    now: Timestamp,
) -> Result<Page<PairingCode>, StoreError> {
    let (after_time, after_id) = page.after(tenant)?;
    let sql = format!(
        "{SELECT} WHERE c.tenant_id = ?1 AND (c.created_at, c.id) > (?2, ?3)
         ORDER BY c.created_at, c.id LIMIT ?4"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let limit = page.limit.saturating_add(1);
    let rows = statement.query_map(
        params![tenant.as_str(), after_time, after_id, limit],
        |row| pairing_code(row, now),
    )?;
    let items = rows.collect::<Result<_, _>>()?;
    Ok(page.page(tenant, items, |last: &PairingCode| {
        (last.created_at.as_millis(), last.id.to_string())
    }))
}

/// One of a tenant's codes.
pub fn find(
    connection: &Connection,
    tenant: &TenantId,
    id: &PairingCodeId,
    now: Timestamp,
) -> Result<Option<PairingCode>, StoreError> {
    let sql = format!("{SELECT} WHERE c.id = ?1 AND c.tenant_id = ?2");
    Ok(connection
        .prepare_cached(&sql)?
        .query_row([id.as_str(), tenant.as_str()], |row| pairing_code(row, now))
        .optional()?)
}

/// Takes a code back.
pub fn revoke(
    connection: &Connection,
    tenant: &TenantId,
    id: &PairingCodeId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let found = connection
        .prepare_cached(
            "UPDATE pairing_codes SET revoked_at = coalesce(revoked_at, ?3)
             WHERE id = ?1 AND tenant_id = ?2",
        )?
        .execute(params![id.as_str(), tenant.as_str(), now.as_millis()])?;
    Ok(found == 1)
}

/// Exchanges a code, in the caller's transaction.
pub fn exchange(
    connection: &Connection,
    exchange: &Exchange,
    now: Timestamp,
) -> Result<Option<Paired>, StoreError> {
    for mac in &exchange.macs {
        let found: Option<(String, String, Option<String>)> = connection
            .prepare_cached(
                "SELECT c.id, c.tenant_id, c.name FROM pairing_codes c
                 JOIN makers m ON m.tenant_id = c.tenant_id AND m.id = c.created_by
                 WHERE c.mac = ?1 AND c.used_at IS NULL AND c.revoked_at IS NULL
                 AND c.expires_at > ?2 AND m.role IN ('admin', 'owner')",
            )?
            .query_row(params![&mac[..], now.as_millis()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        if let Some((code, tenant, code_name)) = found {
            fail_point::reach("exchange.found");
            return make_device(connection, exchange, (&code, &tenant, code_name), now).map(Some);
        }
    }
    Ok(None)
}

fn make_device(
    connection: &Connection,
    exchange: &Exchange,
    (code, tenant, code_name): (&str, &str, Option<String>),
    now: Timestamp,
) -> Result<Paired, StoreError> {
    let device = &exchange.device;
    let names = [&device.name, &code_name, &device.hostname];
    let name = names
        .into_iter()
        .flatten()
        .next()
        .map_or("device", String::as_str);
    connection.execute(
        "INSERT INTO devices (id, tenant_id, name, hostname, os, arch, agent_version, paired_from,
             created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            device.id.as_str(),
            tenant,
            name,
            device.hostname,
            device.os,
            device.arch,
            device.agent_version,
            device.remote_addr,
            now.as_millis()
        ],
    )?;
    fail_point::reach("exchange.after_device");
    connection.execute(
        "INSERT INTO device_tokens (hash, device_id, created_at) VALUES (?1, ?2, ?3)",
        params![
            &exchange.token_hash[..],
            device.id.as_str(),
            now.as_millis()
        ],
    )?;
    fail_point::reach("exchange.after_token");
    let marked = connection.execute(
        "UPDATE pairing_codes SET used_at = ?2, device_id = ?3 WHERE id = ?1 AND used_at IS NULL",
        params![code, now.as_millis(), device.id.as_str()],
    )?;
    if marked != 1 {
        return Err(StoreError::Failed(
            "the pairing code could not be marked used".to_owned(),
        ));
    }
    fail_point::reach("exchange.after_mark");
    changes::append(
        connection,
        ChangeKind::DevicePaired,
        device.id.as_str(),
        None,
        now,
    )?;
    let detail = serde_json::json!({
        "name": name, "hostname": device.hostname, "os": device.os, "arch": device.arch,
        "remote_addr": device.remote_addr, "pairing_code": code,
    });
    let place = (tenant, device.id.as_str());
    events::append(connection, place, "device.paired", Some(&detail), now)?;
    audit::append(
        connection,
        &AuditEntry {
            target: Some(code.to_owned()),
            remote_addr: device.remote_addr.parse().ok(),
            ..AuditEntry::new(
                now,
                tenant.parse().ok(),
                AuditActor::Device(device.id.clone()),
                "device.paired",
            )
        },
    )?;
    fail_point::reach("exchange.before_commit");
    let failed = |_| StoreError::Failed("an id in the database is damaged".to_owned());
    Ok(Paired {
        device: device.id.clone(),
        tenant: tenant.parse().map_err(failed)?,
        code: code.parse().map_err(failed)?,
    })
}
