//! The audit.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::time;
use crate::store::audit::ROWS_AT_ONCE;
use crate::store::{
    AuditCheckpoint, AuditEntry, AuditFilter, AuditRow, Page, PageRequest, StoreError,
};
use crate::types::TenantId;

const COLUMNS: &str = "seq, at, tenant_id, actor_kind, actor, action, target, outcome, remote_addr,
    request_id, detail";

/// Writes something down, in the caller's transaction.
pub fn append(connection: &Connection, entry: &AuditEntry) -> Result<(), StoreError> {
    let sql = "INSERT INTO audit (at, tenant_id, actor_kind, actor, action, target, outcome,
                   remote_addr, request_id, detail)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    connection.prepare_cached(sql)?.execute(params![
        entry.at.as_millis(),
        entry.tenant.as_ref().map(TenantId::as_str),
        entry.actor.kind(),
        entry.actor.id(),
        entry.action,
        entry.target,
        entry.outcome.as_str(),
        entry.remote_addr.map(|addr| addr.to_string()),
        entry.request.as_ref().map(|id| id.as_str()),
        entry.detail.as_ref().map(ToString::to_string),
    ])?;
    Ok(())
}

/// Does nothing but have its entry written down.
#[expect(
    clippy::unnecessary_wraps,
    reason = "every function of the engine has this form"
)]
pub fn note(_: &Connection) -> Result<(), StoreError> {
    Ok(())
}

fn row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    Ok(AuditRow {
        seq: row.get("seq")?,
        at: time(row, "at")?,
        tenant: row.get("tenant_id")?,
        actor_kind: row.get("actor_kind")?,
        actor: row.get("actor")?,
        action: row.get("action")?,
        target: row.get("target")?,
        outcome: row.get("outcome")?,
        remote_addr: row.get("remote_addr")?,
        request_id: row.get("request_id")?,
        detail: row.get("detail")?,
    })
}

/// Part of a tenant's rows, newest first.
pub fn list(
    connection: &Connection,
    tenant: &TenantId,
    filter: &AuditFilter,
    page: &PageRequest,
) -> Result<Page<AuditRow>, StoreError> {
    let before = match page.cursor {
        Some(_) => page.after(tenant)?.0,
        None => i64::MAX,
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM audit WHERE tenant_id = :tenant AND seq < :before
         AND (:action IS NULL OR action = :action OR substr(action, 1, length(:action) + 1) = :action || '.')
         AND (:actor IS NULL OR actor = :actor) AND (:target IS NULL OR target = :target)
         ORDER BY seq DESC LIMIT :limit"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(
        named_params! {
            ":tenant": tenant.as_str(), ":before": before, ":action": filter.action,
            ":actor": filter.actor, ":target": filter.target,
            ":limit": page.limit.saturating_add(1),
        },
        row,
    )?;
    let items = rows.collect::<Result<_, _>>()?;
    Ok(page.page(tenant, items, |last: &AuditRow| (last.seq, String::new())))
}

/// Rows after a place.
pub fn read(connection: &Connection, after: i64) -> Result<Vec<AuditRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params![after, ROWS_AT_ONCE], row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn checkpoint(row: &Row<'_>) -> rusqlite::Result<AuditCheckpoint> {
    Ok(AuditCheckpoint {
        up_to: row.get("up_to")?,
        at: time(row, "at")?,
        hash: row.get("hash")?,
        key_id: row.get("key_id")?,
        mac: row.get("mac")?,
    })
}

/// Checkpoints after a place.
pub fn checkpoints(
    connection: &Connection,
    after: i64,
) -> Result<Vec<AuditCheckpoint>, StoreError> {
    let sql = "SELECT up_to, at, hash, key_id, mac FROM audit_checkpoints WHERE up_to > ?1
               ORDER BY up_to LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params![after, ROWS_AT_ONCE], checkpoint)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The newest checkpoint.
pub fn latest_checkpoint(connection: &Connection) -> Result<Option<AuditCheckpoint>, StoreError> {
    let sql = "SELECT up_to, at, hash, key_id, mac FROM audit_checkpoints
               ORDER BY up_to DESC LIMIT 1";
    Ok(connection
        .prepare_cached(sql)?
        .query_row([], checkpoint)
        .optional()?)
}

/// Adds a checkpoint right after another.
pub fn create_checkpoint(
    connection: &Connection,
    previous: i64,
    checkpoint: &AuditCheckpoint,
) -> Result<bool, StoreError> {
    let latest = latest_checkpoint(connection)?.map_or(0, |latest| latest.up_to);
    if latest != previous {
        return Ok(false);
    }
    let sql = "INSERT INTO audit_checkpoints (up_to, at, hash, key_id, mac)
               VALUES (?1, ?2, ?3, ?4, ?5)";
    connection.prepare_cached(sql)?.execute(params![
        checkpoint.up_to,
        checkpoint.at.as_millis(),
        &checkpoint.hash[..],
        checkpoint.key_id,
        &checkpoint.mac[..],
    ])?;
    Ok(true)
}
