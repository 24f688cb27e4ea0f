//! Follows the changes that other processes wrote to the database: revocations, ended logins, moved
//! sessions. Polling finds everything within [`CHANGES_EVERY`]; a database that is away is waited
//! for, and nothing is skipped.

use std::time::Duration;

use crate::store::{Change, Store};

/// How often changes are looked for.
pub const CHANGES_EVERY: Duration = Duration::from_millis(500);
/// Changes taken at once.
const CHANGES_AT_ONCE: u32 = 1_000;

/// A place in the sequence of changes.
pub struct ChangeCursor {
    store: Store,
    after: Option<i64>,
}

impl ChangeCursor {
    /// Starts with the changes that come from now on.
    pub fn new(store: Store) -> Self {
        Self { store, after: None }
    }

    /// The next changes, at least one.
    pub async fn next(&mut self) -> Vec<Change> {
        loop {
            match self.poll().await {
                Ok(changes) if !changes.is_empty() => return changes,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "changes could not be read"),
            }
            tokio::time::sleep(CHANGES_EVERY).await;
        }
    }

    async fn poll(&mut self) -> Result<Vec<Change>, crate::store::StoreError> {
        let after = match self.after {
            Some(after) => after,
            None => *self.after.insert(self.store.latest_change().await?),
        };
        let changes = self.store.list_changes(after, CHANGES_AT_ONCE).await?;
        if let Some(last) = changes.last() {
            self.after = Some(last.seq);
        }
        Ok(changes)
    }
}
