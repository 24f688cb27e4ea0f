//! A lock beside a SQLite database: a process without an internal API must be the only one, since
//! nobody else could reach the devices that it holds. The kernel gives the lock back however the
//! process ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, anyhow};

use crate::config::Config;

/// The lock; given back when dropped.
pub struct DatabaseLock {
    _file: File,
    /// Whether no other process can serve the database.
    pub is_alone: bool,
}

impl DatabaseLock {
    /// Takes the lock for a process with these settings: alone, or together with others.
    ///
    /// # Errors
    /// When another process runs that this one does not go together with.
    pub fn take(database: &Path, config: &Config) -> anyhow::Result<Self> {
        let path = database.with_added_extension("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let alone =
            config.role.has_api() && config.role.has_tunnels() && config.internal.listen.is_none();
        let locked = match alone {
            true => file.try_lock(),
            false => file.try_lock_shared(),
        };
        match locked {
            Ok(()) => Ok(Self {
                _file: file,
                is_alone: alone,
            }),
            Err(TryLockError::WouldBlock) => Err(anyhow!(
                "another edgecloud process uses {}; several processes on one database reach each \
                 other's devices only if each process of role all has internal.listen set",
                database.display()
            )),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("lock {}", path.display()))
            }
        }
    }
}
