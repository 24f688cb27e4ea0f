//! SQLite, embedded: one writer thread that commits in groups, readers beside it (WAL).

pub mod audit;
pub mod changes;
pub mod claims;
pub mod devices;
pub mod directory;
pub mod events;
pub mod groups;
pub mod invitations;
pub mod logins;
pub mod maintenance;
pub mod members;
mod migrations;
pub mod pairing;
pub mod provider;
pub mod service_clients;
pub mod tenants;
pub mod tickets;
pub mod usage;
mod version;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use self::version::Versions;
use super::{StoreError, Version};
use crate::types::Timestamp;

/// Statements that wait for the writer, and for the readers.
const QUEUE: usize = 1024;
/// Writes that are committed together.
const GROUP: usize = 64;
/// Readers beside the writer.
const READERS: usize = 2;
/// How long SQLite waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a place in the queue, and then for the answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 128;
/// The database's clock in milliseconds, as an SQL expression.
pub const NOW_MS: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Job = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Finish + Send>;

/// An open database. Cheap to clone; the threads end with the last clone.
#[derive(Clone)]
pub struct Sqlite {
    writes: mpsc::Sender<Job>,
    reads: mpsc::Sender<Job>,
    versions: Arc<Versions>,
}

impl Sqlite {
    /// Opens or makes the file (0600) and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || Self::open_blocking(&path))
            .await
            .map_err(|error| StoreError::Failed(error.to_string()))?
    }

    fn open_blocking(path: &Path) -> Result<Self, StoreError> {
        let unusable = |detail: String| StoreError::Unusable {
            path: path.display().to_string(),
            detail,
        };
        make_private(path).map_err(|error| unusable(error.to_string()))?;
        let mut writer = connect(path).map_err(|error| unusable(error.to_string()))?;
        migrations::migrate(&mut writer).map_err(|error| match error {
            StoreError::Failed(detail) | StoreError::Unavailable(detail) => unusable(detail),
            other => other,
        })?;
        let versions = Versions::open(path).map_err(|error| unusable(error.to_string()))?;
        let versions = Arc::new(versions);
        let (writes, queue) = mpsc::channel(QUEUE);
        let committed = Arc::clone(&versions);
        spawn("store-writer", move || {
            write_loop(&writer, queue, || committed.bump());
        })?;
        let (reads, queue) = mpsc::channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..READERS {
            let reader = connect(path).map_err(|error| unusable(error.to_string()))?;
            let queue = Arc::clone(&queue);
            spawn("store-reader", move || read_loop(&reader, &queue))?;
        }
        Ok(Self {
            writes,
            reads,
            versions,
        })
    }

    /// The state of the database now; `None` when SQLite does not tell at once.
    pub fn version(&self) -> Option<Version> {
        self.versions.now()
    }

    /// See [`Versions::set_alone`].
    pub fn set_alone(&self) {
        self.versions.set_alone();
    }

    /// Runs a function in a transaction of its own; what it did is durable when this returns.
    pub async fn write<T, F>(&self, run: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        call(&self.writes, move |connection| {
            in_savepoint(connection, run)
        })
        .await
    }

    /// Runs a function that only reads.
    pub async fn read<T, F>(&self, run: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        call(&self.reads, run).await
    }

    /// Runs a function that reads the whole database, however long that takes.
    pub async fn read_all<T, F>(&self, run: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        call_within(&self.reads, run, Duration::MAX).await
    }
}

async fn call<T, F>(queue: &mpsc::Sender<Job>, run: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    call_within(queue, run, CALL_TIMEOUT).await
}

async fn call_within<T, F>(
    queue: &mpsc::Sender<Job>,
    run: F,
    limit: Duration,
) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    let busy = || StoreError::Unavailable("it takes too long to answer".to_owned());
    let ended = || StoreError::Unavailable("it is closed".to_owned());
    let (reply, answer) = oneshot::channel();
    let given_up = Arc::new(AtomicBool::new(false));
    let is_given_up = Arc::clone(&given_up);
    let job: Job = Box::new(move |connection| {
        let result = match is_given_up.load(Ordering::Acquire) {
            false => connection.and_then(run),
            // The caller was told that it was not done.
            true => Err(busy()),
        };
        Box::new(move |committed| {
            // The caller may have stopped waiting.
            let _ = reply.send(committed.and(result));
        })
    });
    timeout(limit, queue.send(job))
        .await
        .map_err(|_| busy())?
        .map_err(|_| ended())?;
    let Ok(answered) = timeout(limit, answer).await else {
        given_up.store(true, Ordering::Release);
        return Err(busy());
    };
    answered.map_err(|_| ended())?
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| StoreError::Failed(error.to_string()))
}

fn write_loop(connection: &Connection, mut queue: mpsc::Receiver<Job>, committed: impl Fn()) {
    let mut jobs = Vec::with_capacity(GROUP);
    while queue.blocking_recv_many(&mut jobs, GROUP) > 0 {
        let begun = connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(StoreError::from);
        let within = || match &begun {
            Err(error) => Err(error.clone()),
            // A full disk or the like rolls everything back. What came after it would be committed by
            // itself, and its caller told that it was not.
            Ok(()) if connection.is_autocommit() => Err(StoreError::Unavailable(
                "an earlier write has rolled everything back".to_owned(),
            )),
            Ok(()) => Ok(connection),
        };
        let finishers: Vec<Finish> = jobs.drain(..).map(|job| job(within())).collect();
        let result = begun.and_then(|()| commit(connection));
        if result.is_ok() {
            committed();
        }
        for finish in finishers {
            finish(result.clone());
        }
    }
}

fn commit(connection: &Connection) -> Result<(), StoreError> {
    let committed = connection.execute_batch("COMMIT");
    if committed.is_err() && !connection.is_autocommit() {
        // Whatever made the commit fail, the next group must not find this transaction open.
        let _ = connection.execute_batch("ROLLBACK");
    }
    Ok(committed?)
}

fn in_savepoint<T>(
    connection: &Connection,
    run: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.execute_batch("SAVEPOINT job")?;
    let result = run(connection);
    let end = match result {
        Ok(_) => "RELEASE job",
        Err(_) => "ROLLBACK TO job; RELEASE job",
    };
    match connection.execute_batch(end) {
        Ok(()) => result,
        Err(error) => Err(result.err().unwrap_or_else(|| error.into())),
    }
}

fn read_loop(connection: &Connection, queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blocking_recv();
        let Some(job) = job else {
            return;
        };
        job(Ok(connection))(Ok(()));
    }
}

/// Makes the file before SQLite does, so that nobody else can read it.
fn make_private(path: &Path) -> std::io::Result<()> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .append(true)
        .mode(0o600)
        .open(path)?;
    Ok(())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let detail = error.to_string();
        match error.sqlite_error_code() {
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::OutOfMemory,
            ) => Self::Unavailable(detail),
            _ => Self::Failed(detail),
        }
    }
}

/// Whether a row with the same unique value exists.
fn is_taken(error: &rusqlite::Error) -> bool {
    let unique = rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE;
    error
        .sqlite_error()
        .is_some_and(|of| of.extended_code == unique)
}

/// Reads a column as a type that parses from text.
fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))
}

fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    Ok(Timestamp::from_millis(row.get(column)?))
}

fn optional_time(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row
        .get::<_, Option<i64>>(column)?
        .map(Timestamp::from_millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn insert(queue: mpsc::Sender<Job>, table: &'static str) -> Result<usize, StoreError> {
        let sql = format!("INSERT INTO {table} VALUES (1)");
        let insert = move |connection: &Connection| {
            in_savepoint(connection, |connection| Ok(connection.execute(&sql, [])?))
        };
        call(&queue, insert).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_caller_has_given_up_is_not_made_later() {
        let connection = Connection::open_in_memory().expect("open");
        let schema = "CREATE TABLE kept (x)";
        connection.execute_batch(schema).expect("a schema");
        let (queue, jobs) = mpsc::channel(QUEUE);
        let late = insert(queue.clone(), "kept").await;
        assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
        drop(queue);
        let count = thread::spawn(move || {
            write_loop(&connection, jobs, || {});
            let count = "SELECT count(*) FROM kept";
            connection.query_row(count, [], |row| row.get::<_, i64>(0))
        });
        let count = count.join().expect("no panic").expect("a count");
        assert_eq!(count, 0);
    }

    #[tokio::test]
    async fn a_write_behind_one_that_rolls_everything_back_is_not_made() {
        let connection = Connection::open_in_memory().expect("open");
        connection
            .execute_batch(
                "CREATE TABLE kept (x); CREATE TABLE cursed (x);
                 CREATE TRIGGER curse BEFORE INSERT ON cursed
                 BEGIN SELECT RAISE(ROLLBACK, 'the disk is full'); END",
            )
            .expect("a schema");
        let (queue, jobs) = mpsc::channel(QUEUE);
        let (one, two, three, four) = (
            insert(queue.clone(), "kept"),
            insert(queue.clone(), "cursed"),
            insert(queue.clone(), "kept"),
            insert(queue.clone(), "kept"),
        );
        let all = async move { tokio::join!(one, two, three, four) };
        let mut all = std::pin::pin!(all);
        // All wait before the writer begins, so that they are one group.
        assert!(futures_util::poll!(&mut all).is_pending());
        let writer = thread::spawn(move || {
            write_loop(&connection, jobs, || ());
            connection
        });
        let (before, cursed, after, last) = all.await;
        for result in [before, cursed, after, last] {
            result.expect_err("the whole group failed");
        }
        insert(queue, "kept").await.expect("the next group is well");
        let connection = writer.join().expect("no panic");
        let kept: u32 = connection
            .query_row("SELECT count(*) FROM kept", [], |row| row.get(0))
            .expect("count");
        assert_eq!(kept, 1, "nothing that its caller was told has failed");
    }
}
