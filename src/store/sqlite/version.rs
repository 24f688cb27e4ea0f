//! Whether the database has changed since something was read from it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::connect;
use crate::store::Version;

/// How long the commits of others may go unseen in the one process that serves a database. Only
/// commands of an operator make any.
const FOREIGN_COMMITS: Duration = Duration::from_millis(50);

/// Tells versions.
pub struct Versions {
    own: AtomicU64,
    is_alone: AtomicBool,
    data: Mutex<DataVersion>,
}

struct DataVersion {
    /// Never writes: it counts the commits of all other connections, in whichever process.
    connection: Connection,
    last: Option<(Instant, i64)>,
}

impl Versions {
    /// Opens a connection of its own.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = connect(path)?;
        // Asked on the way of every request: never waits for a lock.
        connection.busy_timeout(Duration::ZERO)?;
        Ok(Self {
            own: AtomicU64::new(0),
            is_alone: AtomicBool::new(false),
            data: Mutex::new(DataVersion {
                connection,
                last: None,
            }),
        })
    }

    /// From now on nobody else serves this database, so that its own commits are nearly all there are.
    pub fn set_alone(&self) {
        self.is_alone.store(true, Ordering::Relaxed);
    }

    /// A commit was made. To be called before anybody is told of it.
    pub fn bump(&self) {
        self.own.fetch_add(1, Ordering::Release);
    }

    /// The version now. It looks at shared memory, under SQLite's lock, for a few microseconds; alone
    /// mostly at a counter.
    pub fn now(&self) -> Option<Version> {
        let own = self.own.load(Ordering::Acquire);
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_alone.load(Ordering::Relaxed)
            && let Some((asked, all)) = data.last
            && asked.elapsed() < FOREIGN_COMMITS
        {
            return Some(Version { own, all });
        }
        let asked = Instant::now();
        let seen = data.ask()?;
        data.last = Some((asked, seen));
        Some(Version { own, all: seen })
    }
}

impl DataVersion {
    fn ask(&self) -> Option<i64> {
        let mut statement = self.connection.prepare_cached("PRAGMA data_version").ok()?;
        statement.query_row([], |row| row.get(0)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, Versions, Connection) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("edgecloud.db");
        std::fs::write(&path, "").expect("a file");
        let versions = Versions::open(&path).expect("open");
        let other = connect(&path).expect("open");
        (dir, versions, other)
    }

    fn commit(connection: &Connection) {
        let table = format!(
            "t{}",
            data_encoding::HEXLOWER.encode(&crate::types::random_bytes::<8>())
        );
        connection
            .execute_batch(&format!("CREATE TABLE {table} (x)"))
            .expect("a commit");
    }

    #[test]
    fn commits_of_others_are_seen_at_once_where_there_may_be_any() {
        let (_dir, versions, other) = database();
        let before = versions.now().expect("a version");
        assert_eq!(versions.now(), Some(before), "nothing has changed");
        commit(&other);
        assert_ne!(versions.now(), Some(before));
    }

    #[test]
    fn alone_its_own_commits_are_seen_at_once_and_those_of_commands_soon() {
        let (_dir, versions, other) = database();
        versions.set_alone();
        let before = versions.now().expect("a version");
        versions.bump();
        let after = versions.now().expect("a version");
        assert_ne!(after, before);
        commit(&other);
        let deadline = Instant::now() + Duration::from_secs(10);
        while versions.now() == Some(after) {
            assert!(
                Instant::now() < deadline,
                "a command's commit is never seen"
            );
            std::thread::yield_now();
        }
    }
}
