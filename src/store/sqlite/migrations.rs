//! The schema's versions: numbered, forward only.

use rusqlite::{Connection, TransactionBehavior};

use crate::store::StoreError;

const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_initial.sql"),
    include_str!("migrations/0002_logins_shown.sql"),
    include_str!("migrations/0003_tenancy.sql"),
    include_str!("migrations/0004_provider_tokens.sql"),
];

/// Brings the schema up to date, under the database's write lock.
pub fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let supported = i64::try_from(MIGRATIONS.len()).expect("few migrations");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > supported {
        return Err(StoreError::NewerSchema { found, supported });
    }
    for (migration, version) in MIGRATIONS
        .iter()
        .zip(1..)
        .skip_while(|(_, at)| *at <= found)
    {
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", version)?;
    }
    transaction.commit()?;
    Ok(())
}
