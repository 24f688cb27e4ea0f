//! Everything that outlives a process, and the only place with SQL.
//!
//! [`Store`] is one concrete type over a closed set of engines; the functions on it are grouped by
//! resource, one file each, and hand over to the engine's folder. A function on a tenant's data
//! takes the tenant: one that forgets it does not compile.

pub mod audit;
mod changes;
mod devices;
mod directory;
mod events;
pub mod groups;
#[cfg(feature = "sqlite")]
mod happened;
mod logins;
mod pairing;
mod provider;
mod service_clients;
#[cfg(feature = "sqlite")]
mod sqlite;
mod tenants;
mod tickets;
pub mod usage;

#[cfg(all(test, feature = "sqlite"))]
#[expect(
    clippy::disallowed_methods,
    reason = "tests end with their runtime, which owns their tasks"
)]
mod contract;

use std::path::Path;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use ring::digest::{SHA256, digest};
use serde::Serialize;

use crate::types::TenantId;
pub use audit::{
    AuditActor, AuditCheckpoint, AuditEntry, AuditFilter, AuditHash, AuditOutcome, AuditRow,
};
pub use changes::{Change, ChangeKind};
pub use devices::{ConnectionFilter, Device, DeviceFilter};
pub use directory::{BegunSession, Echo, NewNode, NewSession, SessionRow};
pub use events::Event;
pub use groups::Group;
pub use logins::{LoginEntry, LoginRecord, MAX_LOGINS_PER_USER, Membership, NewLogin, User};
pub use pairing::{
    CodeStatus, Exchange, NewDevice, NewPairingCode, Paired, PairedDevice, PairingCode,
};
pub use provider::{
    ProviderLogout, ProviderTokens, RefreshEnd, RefreshLease, Refreshed, RefreshedPerson,
};
pub use service_clients::{NewServiceClient, ServiceClient};
pub use tenants::{
    Acceptance, Invitation, Member, MemberChange, NewInvitation, RemovedTenant, Tenant,
};
pub use usage::{Traffic, Usage};

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

/// A state of the database: what was read under a version is good while the version is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Commits of this process.
    pub own: u64,
    /// The engine's own count of everybody's commits, as last seen.
    pub all: i64,
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
    /// Written down with the next write.
    record: Option<Arc<AuditEntry>>,
}

/// Runs a function of the engine's folder, in a transaction (`write`) or on a reader (`read`, or
/// `read_all` for what may take long).
macro_rules! on_engine {
    ($store:expr, write, $module:ident :: $function:ident ( $($argument:expr),* )) => {{
        let record = $store.record.clone();
        crate::store::on_engine!(@run $store, write, (record $(, $argument)*), |connection| {
            let done = crate::store::sqlite::$module::$function(connection, $($argument),*)?;
            if let Some(entry) = &record
                && let Some(entry) = crate::store::happened::of(entry, &done)
            {
                crate::store::sqlite::audit::append(connection, &entry)?;
            }
            Ok(done)
        })
    }};
    ($store:expr, read, $module:ident :: $function:ident ( $($argument:expr),* )) => {
        crate::store::on_engine!(@run $store, read, ($($argument),*), |connection| {
            crate::store::sqlite::$module::$function(connection, $($argument),*)
        })
    };
    ($store:expr, read_all, $module:ident :: $function:ident ( $($argument:expr),* )) => {
        crate::store::on_engine!(@run $store, read_all, ($($argument),*), |connection| {
            crate::store::sqlite::$module::$function(connection, $($argument),*)
        })
    };
    (@run $store:expr, $kind:ident, ($($used:expr),*), |$connection:ident| $run:expr) => {{
        // A build without an engine uses no argument and waits for nothing.
        #[cfg(not(feature = "sqlite"))]
        std::future::ready(($(&$used,)*)).await;
        match $store.engine {
            #[cfg(feature = "sqlite")]
            crate::store::Engine::Sqlite(ref db) => db.$kind(move |$connection| $run).await,
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
                record: None,
            }),
            #[cfg(not(feature = "sqlite"))]
            Location::Sqlite(_) => Err(StoreError::EngineNotBuilt("SQLite")),
            Location::Postgres => Err(StoreError::EngineNotBuilt("PostgreSQL")),
        }
    }

    /// What changes with every change of the database by any process, read without waiting; `None`
    /// where the engine has no such thing, or does not answer at once.
    pub fn version(&self) -> Option<Version> {
        match self.engine {
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(ref db) => db.version(),
            #[cfg(not(feature = "sqlite"))]
            _ => None,
        }
    }

    /// No other process serves this database from now on: what a command changes beside it may be
    /// noticed 50 ms later, which makes [`Store::version`] cheaper.
    pub fn set_alone(&self) {
        match self.engine {
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(ref db) => db.set_alone(),
            #[cfg(not(feature = "sqlite"))]
            _ => {}
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
        on_engine!(self, read_all, maintenance::backup(&to))
    }

    /// Looks for damage; returns what was found, one line each.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn check(&self) -> Result<Vec<String>, StoreError> {
        on_engine!(self, read_all, maintenance::check())
    }

    /// Removes what has expired: states, tickets, device tokens; codes a day, changes ten minutes,
    /// events a week, invitations a month and traffic 400 days after their time. The audit stays.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_expired(&self, now: crate::types::Timestamp) -> Result<(), StoreError> {
        on_engine!(self, write, maintenance::delete_expired(now))
    }
}

/// A kind of thing that a tenant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    /// A device.
    Device,
    /// A pairing code.
    PairingCode,
    /// A group.
    Group,
    /// A service client.
    ServiceClient,
    /// An invitation.
    Invitation,
    /// A member.
    Member,
}

impl Store {
    /// Whether a tenant has a thing with an id, which may be any text.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn exists(
        &self,
        tenant: &TenantId,
        thing: Thing,
        id: &str,
    ) -> Result<bool, StoreError> {
        let (tenant, id) = (tenant.clone(), id.to_owned());
        on_engine!(self, read, maintenance::exists(&tenant, thing, &id))
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
    /// The key after which this page of a tenant's list starts: creation time and id.
    ///
    /// # Errors
    /// `BadCursor` when the cursor was not made by [`PageRequest::page`] for this tenant.
    pub fn after(&self, tenant: &TenantId) -> Result<(i64, String), StoreError> {
        let Some(cursor) = &self.cursor else {
            return Ok((i64::MIN, String::new()));
        };
        let bytes = BASE64URL_NOPAD
            .decode(cursor.as_bytes())
            .map_err(|_| StoreError::BadCursor)?;
        let (time, id, of): (i64, String, String) =
            serde_json::from_slice(&bytes).map_err(|_| StoreError::BadCursor)?;
        match of == cursor_owner(tenant) {
            true => Ok((time, id)),
            false => Err(StoreError::BadCursor),
        }
    }

    /// Makes a page of `limit` items of a tenant out of up to one more.
    pub fn page<T>(
        &self,
        tenant: &TenantId,
        mut items: Vec<T>,
        key: impl Fn(&T) -> (i64, String),
    ) -> Page<T> {
        let limit = self.limit as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|last| {
            let (time, id) = key(last);
            let json = serde_json::to_vec(&(time, id, cursor_owner(tenant)))
                .expect("numbers and texts are JSON");
            BASE64URL_NOPAD.encode(&json)
        });
        Page { items, next_cursor }
    }
}

/// Tells the cursors of tenants apart, without naming the tenant.
fn cursor_owner(tenant: &TenantId) -> String {
    let hash = digest(&SHA256, tenant.as_str().as_bytes());
    BASE64URL_NOPAD.encode(&hash.as_ref()[..9])
}
