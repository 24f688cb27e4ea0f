//! The sequence of changes.

use rusqlite::{Connection, params};

use crate::store::{Change, ChangeKind, StoreError};
use crate::types::Timestamp;

/// Adds a change, in the caller's transaction.
pub fn append(
    connection: &Connection,
    kind: ChangeKind,
    subject: &str,
    detail: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT INTO changes (kind, subject, detail, at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![kind.as_str(), subject, detail, now.as_millis()])?;
    Ok(())
}

/// The newest place; removed rows count.
pub fn latest(connection: &Connection) -> Result<i64, StoreError> {
    let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'changes'";
    Ok(connection
        .prepare_cached(sql)?
        .query_row([], |row| row.get(0))?)
}

/// Changes after a place.
pub fn list(connection: &Connection, after: i64, limit: u32) -> Result<Vec<Change>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, kind, subject, detail FROM changes WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let rows = statement.query_map(params![after, limit], |row| {
        Ok(Change {
            seq: row.get("seq")?,
            kind: ChangeKind::parse(&row.get::<_, String>("kind")?),
            subject: row.get("subject")?,
            detail: row.get("detail")?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
