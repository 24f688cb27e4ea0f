//! Nodes and sessions.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::json;

use super::{NOW_MS, changes, devices, events, optional_time, parsed, time};
use crate::store::{BegunSession, ChangeKind, Echo, NewNode, NewSession, SessionRow, StoreError};
use crate::types::{DeviceId, NodeId, TenantId, Timestamp};

/// Rows of nodes that are gone for this long are removed, in milliseconds.
const GONE_AFTER_MS: i64 = 3_600_000;

/// The columns of a [`SessionRow`], for a query that joins `sessions s` and `nodes n`.
pub fn session_columns() -> String {
    format!(
        "s.device_id AS s_device_id, s.node_id AS s_node_id, s.epoch AS s_epoch,
         s.connected_at AS s_connected_at, s.last_echo_at AS s_last_echo_at, s.rtt_ms AS s_rtt_ms,
         s.remote_addr AS s_remote_addr, s.agent_version AS s_agent_version,
         s.origin_host AS s_origin_host, n.internal_url AS n_internal_url,
         coalesce(n.lease_expires_at > {NOW_MS}, 0) AS n_alive"
    )
}

/// Reads the columns of [`session_columns`].
pub fn session_row(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    Ok(SessionRow {
        device: parsed(row, "s_device_id")?,
        node: parsed(row, "s_node_id")?,
        epoch: row.get("s_epoch")?,
        connected_at: time(row, "s_connected_at")?,
        last_echo_at: optional_time(row, "s_last_echo_at")?,
        rtt_ms: row.get("s_rtt_ms")?,
        remote_addr: row.get("s_remote_addr")?,
        agent_version: row.get("s_agent_version")?,
        origin_host: row.get("s_origin_host")?,
        node_internal_url: row.get("n_internal_url")?,
        node_alive: row.get("n_alive")?,
    })
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Enters a node.
pub fn register_node(
    connection: &Connection,
    node: &NewNode,
    lease: Duration,
) -> Result<(), StoreError> {
    if node.internal_url.is_none() {
        connection.execute(
            "DELETE FROM nodes WHERE internal_url IS NULL AND node_id <> ?1",
            [node.id.as_str()],
        )?;
    }
    connection.execute(
        &format!("DELETE FROM nodes WHERE lease_expires_at < {NOW_MS} - ?1"),
        [GONE_AFTER_MS],
    )?;
    connection.execute(
        &format!(
            "INSERT INTO nodes (node_id, internal_url, tunnel_url, version, lease_expires_at)
             VALUES (?1, ?2, ?3, ?4, {NOW_MS} + ?5)
             ON CONFLICT (node_id) DO UPDATE SET lease_expires_at = excluded.lease_expires_at"
        ),
        params![
            node.id.as_str(),
            node.internal_url,
            node.tunnel_url,
            node.version,
            millis(lease)
        ],
    )?;
    Ok(())
}

/// Renews a lease.
pub fn renew_node(
    connection: &Connection,
    node: &NodeId,
    lease: Duration,
    draining: bool,
) -> Result<bool, StoreError> {
    if draining {
        let begun = connection.execute(
            "UPDATE nodes SET draining = 1 WHERE node_id = ?1 AND draining = 0",
            [node.as_str()],
        )?;
        if begun == 1 {
            let now = connection.query_row(&format!("SELECT {NOW_MS}"), [], |row| row.get(0))?;
            let now = Timestamp::from_millis(now);
            changes::append(
                connection,
                ChangeKind::NodeDraining,
                node.as_str(),
                None,
                now,
            )?;
        }
    }
    let sql = format!("UPDATE nodes SET lease_expires_at = {NOW_MS} + ?2 WHERE node_id = ?1");
    let renewed = connection
        .prepare_cached(&sql)?
        .execute(params![node.as_str(), millis(lease)])?;
    Ok(renewed == 1)
}

/// Takes a node out.
pub fn remove_node(connection: &Connection, node: &NodeId) -> Result<(), StoreError> {
    connection.execute(
        &format!(
            "INSERT INTO events (tenant_id, device_id, kind, detail, at)
             SELECT tenant_id, device_id, 'device.disconnected', '{{\"reason\":\"node_stopped\"}}', {NOW_MS}
             FROM sessions WHERE node_id = ?1"
        ),
        [node.as_str()],
    )?;
    connection.execute(
        &format!(
            "UPDATE devices SET disconnect_reason = 'node_stopped', last_seen = {NOW_MS}
             WHERE id IN (SELECT device_id FROM sessions WHERE node_id = ?1)"
        ),
        [node.as_str()],
    )?;
    connection.execute("DELETE FROM sessions WHERE node_id = ?1", [node.as_str()])?;
    connection.execute("DELETE FROM nodes WHERE node_id = ?1", [node.as_str()])?;
    Ok(())
}

/// Where devices may connect.
pub fn tunnel_url(connection: &Connection) -> Result<Option<String>, StoreError> {
    let sql = format!(
        "SELECT tunnel_url FROM nodes
         WHERE tunnel_url IS NOT NULL AND lease_expires_at > {NOW_MS} AND draining = 0
         ORDER BY lease_expires_at DESC LIMIT 1"
    );
    Ok(connection
        .prepare_cached(&sql)?
        .query_row([], |row| row.get(0))
        .optional()?)
}

/// Enters a session.
pub fn begin_session(
    connection: &Connection,
    session: &NewSession,
    now: Timestamp,
) -> Result<Option<BegunSession>, StoreError> {
    let device = session.device.as_str();
    let epoch: Option<i64> = connection
        .prepare_cached(
            "UPDATE devices SET epoch = epoch + 1, last_seen = ?3,
                 agent_version = coalesce(?4, agent_version)
             WHERE id = ?1 AND tenant_id = ?2 RETURNING epoch",
        )?
        .query_row(
            params![
                device,
                session.tenant.as_str(),
                now.as_millis(),
                session.agent_version
            ],
            |row| row.get(0),
        )
        .optional()?;
    let Some(epoch) = epoch else {
        return Ok(None);
    };
    let before: Option<String> = connection
        .prepare_cached("SELECT node_id FROM sessions WHERE device_id = ?1")?
        .query_row([device], |row| row.get(0))
        .optional()?;
    if before.is_some_and(|node| node != session.node.as_str()) {
        let detail = epoch.to_string();
        changes::append(
            connection,
            ChangeKind::SessionMoved,
            device,
            Some(&detail),
            now,
        )?;
    }
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO sessions (device_id, tenant_id, node_id, epoch, connected_at,
                 remote_addr, agent_version, origin_host)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            device,
            session.tenant.as_str(),
            session.node.as_str(),
            epoch,
            now.as_millis(),
            session.remote_addr,
            session.agent_version,
            session.origin_host
        ])?;
    devices::token_used(connection, &session.device, &session.token_hash)?;
    let detail = json!({ "node_id": session.node, "remote_addr": session.remote_addr });
    let place = (session.tenant.as_str(), device);
    events::append(connection, place, "device.connected", Some(&detail), now)?;
    Ok(Some(BegunSession { epoch }))
}

/// Takes a session out.
pub fn end_session(
    connection: &Connection,
    device: &DeviceId,
    epoch: i64,
    reason: &str,
    last_seen: Timestamp,
) -> Result<bool, StoreError> {
    let ended = connection
        .prepare_cached("DELETE FROM sessions WHERE device_id = ?1 AND epoch = ?2")?
        .execute(params![device.as_str(), epoch])?;
    if ended == 1 {
        connection
            .prepare_cached(
                "UPDATE devices SET disconnect_reason = ?2, last_seen = max(last_seen, ?3)
                 WHERE id = ?1",
            )?
            .execute(params![device.as_str(), reason, last_seen.as_millis()])?;
        let tenant: String = connection
            .prepare_cached("SELECT tenant_id FROM devices WHERE id = ?1")?
            .query_row([device.as_str()], |row| row.get(0))?;
        let (place, detail) = (
            (tenant.as_str(), device.as_str()),
            json!({ "reason": reason }),
        );
        let now = connection.query_row(&format!("SELECT {NOW_MS}"), [], |row| row.get(0))?;
        let now = Timestamp::from_millis(now);
        events::append(connection, place, "device.disconnected", Some(&detail), now)?;
    }
    Ok(ended == 1)
}

/// One row by its key. All rows in one statement, joined with a list, would be looked for in each other: minutes
/// for ten thousand devices, in which nobody else writes.
const RECORD_ECHO: &str = "UPDATE sessions SET last_echo_at = ?4, rtt_ms = ?5
     WHERE device_id = ?1 AND epoch = ?2 AND node_id = ?3";

/// Notes signs of life.
pub fn record_echoes(
    connection: &Connection,
    node: &NodeId,
    echoes: &[Echo],
) -> Result<(), StoreError> {
    let mut record = connection.prepare_cached(RECORD_ECHO)?;
    for echo in echoes {
        record.execute(params![
            echo.device.as_str(),
            echo.epoch,
            node.as_str(),
            echo.at.as_millis(),
            echo.rtt_ms
        ])?;
    }
    Ok(())
}

/// A device's entry.
pub fn find_session(
    connection: &Connection,
    tenant: &TenantId,
    device: &DeviceId,
) -> Result<Option<SessionRow>, StoreError> {
    let sql = format!(
        "SELECT {} FROM sessions s LEFT JOIN nodes n ON n.node_id = s.node_id
         WHERE s.device_id = ?1 AND s.tenant_id = ?2",
        session_columns()
    );
    Ok(connection
        .prepare_cached(&sql)?
        .query_row([device.as_str(), tenant.as_str()], session_row)
        .optional()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_written_by_the_key_of_its_row() {
        let connection = Connection::open_in_memory().expect("open");
        let schema = include_str!("migrations/0001_initial.sql");
        connection.execute_batch(schema).expect("the tables");
        let sql = format!("EXPLAIN QUERY PLAN {RECORD_ECHO}");
        let mut plan = connection.prepare(&sql).expect("a plan");
        let steps = plan.query_map(["d", "1", "n", "1", "1"], |row| row.get::<_, String>(3));
        let steps: Result<Vec<_>, _> = steps.expect("steps").collect();
        let key = "SEARCH sessions USING INDEX sqlite_autoindex_sessions_1 (device_id=?)";
        assert_eq!(steps.expect("texts"), [key]);
    }
}
