//! Health, copies and cleaning.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, params};

use crate::store::{StoreError, Thing};
use crate::types::{TenantId, Timestamp};

const CODES_KEPT: Duration = Duration::from_secs(24 * 3600);
const CHANGES_KEPT: Duration = Duration::from_secs(600);
const EVENTS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
const INVITATIONS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
const USAGE_KEPT: Duration = Duration::from_secs(400 * 24 * 3600);
/// Rows of a table that are removed at once; the rest waits for the next time.
const BATCH: i64 = 5_000;
/// Pages copied at once by a backup: all of them. Whatever another process writes between two steps
/// makes SQLite begin anew, so that a copy beside a busy cloud would never end.
const BACKUP_PAGES: i32 = i32::MAX;

/// Whether the database can be read.
pub fn ping(connection: &Connection) -> Result<(), StoreError> {
    connection.query_row("SELECT count(*) FROM nodes", [], |_| Ok(()))?;
    Ok(())
}

/// Whether a tenant has a thing with an id.
pub fn exists(
    connection: &Connection,
    tenant: &TenantId,
    thing: Thing,
    id: &str,
) -> Result<bool, StoreError> {
    let (table, column) = match thing {
        Thing::Device => ("devices", "id"),
        Thing::PairingCode => ("pairing_codes", "id"),
        Thing::Group => ("device_groups", "id"),
        Thing::ServiceClient => ("service_clients", "id"),
        Thing::Invitation => ("invitations", "id"),
        Thing::Member => ("members", "user_id"),
    };
    let sql =
        format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {column} = ?1 AND tenant_id = ?2)");
    let mut statement = connection.prepare_cached(&sql)?;
    Ok(statement.query_row([id, tenant.as_str()], |row| row.get(0))?)
}

/// SQLite's online backup.
pub fn backup(connection: &Connection, to: &Path) -> Result<(), StoreError> {
    let unusable = |detail: String| StoreError::Unusable {
        path: to.display().to_string(),
        detail,
    };
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|error| unusable(error.to_string()))?;
    let mut copy = Connection::open(to)?;
    rusqlite::backup::Backup::new(connection, &mut copy)?
        .run_to_completion(BACKUP_PAGES, Duration::ZERO, None)
        .map_err(|error| unusable(error.to_string()))
}

/// SQLite's own checks.
pub fn check(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
    let mut found: Vec<String> = lines.collect::<Result<_, _>>()?;
    found.retain(|line| line != "ok");
    let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
    let dangling = statement.query_map([], |row| row.get::<_, String>(0))?;
    for table in dangling {
        found.push(format!(
            "a row of {} refers to a row that does not exist",
            table?
        ));
    }
    Ok(found)
}

/// Removes what has expired.
pub fn delete_expired(connection: &Connection, now: Timestamp) -> Result<(), StoreError> {
    let now = now.as_millis();
    let before = |kept: Duration| now - i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
    let expired = |sql: &str, time: i64| -> Result<(), StoreError> {
        connection
            .prepare_cached(sql)?
            .execute(params![time, BATCH])?;
        Ok(())
    };
    expired(
        "DELETE FROM used_states WHERE state_hash IN
         (SELECT state_hash FROM used_states WHERE expires_at <= ?1 LIMIT ?2)",
        now,
    )?;
    expired(
        "DELETE FROM tickets WHERE hash IN
         (SELECT hash FROM tickets WHERE expires_at <= ?1 LIMIT ?2)",
        now,
    )?;
    expired(
        "DELETE FROM device_tokens WHERE hash IN
         (SELECT hash FROM device_tokens WHERE expires_at <= ?1 LIMIT ?2)",
        now,
    )?;
    expired(
        "DELETE FROM pairing_codes WHERE id IN
         (SELECT id FROM pairing_codes WHERE expires_at <= ?1 LIMIT ?2)",
        before(CODES_KEPT),
    )?;
    expired(
        "DELETE FROM invitations WHERE id IN
         (SELECT id FROM invitations WHERE expires_at <= ?1 LIMIT ?2)",
        before(INVITATIONS_KEPT),
    )?;
    expired(
        "DELETE FROM events WHERE seq IN
         (SELECT seq FROM events WHERE at <= ?1 ORDER BY at LIMIT ?2)",
        before(EVENTS_KEPT),
    )?;
    expired(
        "DELETE FROM usage_hours WHERE (tenant_id, device_id, hour) IN
         (SELECT tenant_id, device_id, hour FROM usage_hours WHERE hour <= ?1 LIMIT ?2)",
        before(USAGE_KEPT),
    )?;
    expired(
        "DELETE FROM changes WHERE seq IN (SELECT seq FROM changes WHERE at <= ?1 LIMIT ?2)",
        before(CHANGES_KEPT),
    )
}
