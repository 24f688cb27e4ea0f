//! SQLite, embedded: one writer thread that commits in groups, readers beside it (WAL).

pub mod changes;
pub mod devices;
pub mod directory;
pub mod logins;
pub mod maintenance;
mod migrations;
pub mod pairing;
pub mod tickets;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::StoreError;
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
        let (writes, queue) = mpsc::channel(QUEUE);
        spawn("store-writer", move || write_loop(&writer, queue))?;
        let (reads, queue) = mpsc::channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..READERS {
            let reader = connect(path).map_err(|error| unusable(error.to_string()))?;
            let queue = Arc::clone(&queue);
            spawn("store-reader", move || read_loop(&reader, &queue))?;
        }
        Ok(Self { writes, reads })
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
}

async fn call<T, F>(queue: &mpsc::Sender<Job>, run: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let job: Job = Box::new(move |connection| {
        let result = connection.and_then(run);
        Box::new(move |committed| {
            // The caller may have stopped waiting.
            let _ = reply.send(committed.and(result));
        })
    });
    let busy = || StoreError::Unavailable("it takes too long to answer".to_owned());
    let ended = || StoreError::Unavailable("it is closed".to_owned());
    timeout(CALL_TIMEOUT, queue.send(job))
        .await
        .map_err(|_| busy())?
        .map_err(|_| ended())?;
    timeout(CALL_TIMEOUT, answer)
        .await
        .map_err(|_| busy())?
        .map_err(|_| ended())?
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| StoreError::Failed(error.to_string()))
}

fn write_loop(connection: &Connection, mut queue: mpsc::Receiver<Job>) {
    let mut jobs = Vec::with_capacity(GROUP);
    while queue.blocking_recv_many(&mut jobs, GROUP) > 0 {
        let begun = connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(StoreError::from);
        let finishers: Vec<Finish> = jobs
            .drain(..)
            .map(|job| job(begun.as_ref().map(|()| connection).map_err(Clone::clone)))
            .collect();
        let committed = begun.and_then(|()| commit(connection));
        for finish in finishers {
            finish(committed.clone());
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
