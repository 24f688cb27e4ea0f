//! Everything that outlives a process, and the only place with SQL.
//!
//! [`Store`] is one concrete type over a closed set of engines; the functions on it are grouped by
//! resource, one file each, and hand over to the engine's folder. A function on a tenant's data
//! takes the tenant: one that forgets it does not compile.

mod changes;
mod devices;
mod directory;
mod logins;
mod pairing;
#[cfg(feature = "sqlite")]
mod sqlite;
mod tickets;

#[cfg(all(test, feature = "sqlite"))]
#[expect(
    clippy::disallowed_methods,
    reason = "tests end with their runtime, which owns their tasks"
)]
mod contract;

use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;

pub use changes::{Change, ChangeKind};
pub use devices::{ConnectionFilter, Device, DeviceFilter};
pub use directory::{BegunSession, Echo, NewNode, NewSession, SessionRow};
pub use logins::{LoginEntry, LoginRecord, MAX_LOGINS_PER_USER, Membership, NewLogin, User};
pub use pairing::{
    CodeStatus, Exchange, NewDevice, NewPairingCode, Paired, PairedDevice, PairingCode,
};

/// Why the store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database is busy, away, full or read-only for now; trying again later may help.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Another version of edgecloud has changed the database.
    #[error(
        "the database has schema version {found}, this program knows up to {supported}; use a newer edgecloud"
    )]
    NewerSchema {
        /// The database's version.
        found: i64,
        /// The newest version that this program knows.
        supported: i64,
    },
    /// The file cannot be opened or made, is not writable or not a database.
    #[error("cannot use the database {path}: {detail}")]
    Unusable {
        /// Which file.
        path: String,
        /// Why not.
        detail: String,
    },
    /// The engine is not part of this build.
    #[error("this build of edgecloud has no support for {0} databases")]
    EngineNotBuilt(&'static str),
    /// A rule of the data forbids it.
    #[error("{0}")]
    Conflict(&'static str),
    /// The cursor was not made by this list.
    #[error("the cursor is not valid")]
    BadCursor,
    /// A statement failed in a way that should not happen.
    #[error("a database statement failed: {0}")]
    Failed(String),
}

/// Which database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location<'a> {
    /// A file of this machine.
    Sqlite(&'a Path),
    /// A PostgreSQL server.
    Postgres,
}

#[derive(Clone)]
enum Engine {
    #[cfg(feature = "sqlite")]
    Sqlite(sqlite::Sqlite),
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    engine: Engine,
}

/// Runs a function of the engine's folder, in a transaction (`write`) or on a reader (`read`).
macro_rules! on_engine {
    ($store:expr, $kind:ident, $module:ident :: $function:ident ( $($argument:expr),* )) => {{
        // A build without an engine uses no argument and waits for nothing.
        #[cfg(not(feature = "sqlite"))]
        std::future::ready(($(&$argument,)*)).await;
        match $store.engine {
            #[cfg(feature = "sqlite")]
            crate::store::Engine::Sqlite(ref db) => {
                db.$kind(move |connection| {
                    crate::store::sqlite::$module::$function(connection, $($argument),*)
                }).await
            }
        }
    }};
}
use on_engine;

impl Store {
    /// Opens a database, makes it when it does not exist, and brings its schema up to date.
    ///
    /// # Errors
    /// When it cannot be used, or is newer than this program.
    #[cfg_attr(
        not(feature = "sqlite"),
        expect(
            clippy::unused_async,
            reason = "a build without an engine waits for nothing"
        )
    )]
    pub async fn open(location: Location<'_>) -> Result<Self, StoreError> {
        match location {
            #[cfg(feature = "sqlite")]
            Location::Sqlite(path) => Ok(Self {
                engine: Engine::Sqlite(sqlite::Sqlite::open(path).await?),
            }),
            #[cfg(not(feature = "sqlite"))]
            Location::Sqlite(_) => Err(StoreError::EngineNotBuilt("SQLite")),
            Location::Postgres => Err(StoreError::EngineNotBuilt("PostgreSQL")),
        }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        on_engine!(self, read, maintenance::ping())
    }

    /// Copies the whole database to a new file while it is in use.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_owned();
        on_engine!(self, read, maintenance::backup(&to))
    }

    /// Looks for damage; returns what was found, one line each.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn check(&self) -> Result<Vec<String>, StoreError> {
        on_engine!(self, read, maintenance::check())
    }

    /// Removes what has expired: states, tickets, device tokens; codes a day and changes ten
    /// minutes after their time.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_expired(&self, now: crate::types::Timestamp) -> Result<(), StoreError> {
        on_engine!(self, write, maintenance::delete_expired(now))
    }
}

/// Which part of a list.
#[derive(Debug, Clone)]
pub struct PageRequest {
    /// Most items.
    pub limit: u32,
    /// Where the page before this one ended.
    pub cursor: Option<String>,
}

/// Part of a list.
#[derive(Debug, Clone, Serialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins, `None` at the end.
    pub next_cursor: Option<String>,
}

impl PageRequest {
    /// The key after which this page starts: creation time and id.
    ///
    /// # Errors
    /// `BadCursor` when the cursor was not made by [`PageRequest::page`].
    pub fn after(&self) -> Result<(i64, String), StoreError> {
        let Some(cursor) = &self.cursor else {
            return Ok((i64::MIN, String::new()));
        };
        let bytes = BASE64URL_NOPAD
            .decode(cursor.as_bytes())
            .map_err(|_| StoreError::BadCursor)?;
        serde_json::from_slice(&bytes).map_err(|_| StoreError::BadCursor)
    }

    /// Makes a page of `limit` items out of up to one more.
    pub fn page<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> (i64, String)) -> Page<T> {
        let limit = self.limit as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|last| {
            let json = serde_json::to_vec(&key(last)).expect("a number and a text are JSON");
            BASE64URL_NOPAD.encode(&json)
        });
        Page { items, next_cursor }
    }
}
