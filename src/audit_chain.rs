//! Makes tampering with the audit evident: seals the rows since the last checkpoint under a hash that
//! takes in the hash before it, signed with a key that is not in the database; and checks the chain.

use crate::keys::KeyRing;
use crate::store::{AuditCheckpoint, AuditHash, Store, StoreError};
use crate::types::Clock;

/// Keeps the signatures of checkpoints apart from all others.
const PURPOSE: &str = "audit-checkpoint";

/// What a check of the whole audit found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Rows under a checkpoint that holds.
    pub sealed: u64,
    /// Rows since the last checkpoint, which nothing protects yet.
    pub unsealed: u64,
    /// Checkpoints that hold.
    pub checkpoints: u64,
    /// Checkpoints signed with a key that is not configured any more: only the chain speaks for them.
    pub foreign_keys: u64,
    /// The hash of the last checkpoint, to be kept elsewhere and compared later.
    pub head: Option<[u8; 32]>,
    /// What is wrong, one line each.
    pub mistakes: Vec<String>,
}

/// Seals the rows since the last checkpoint, if there are any.
///
/// # Errors
/// When the database does not answer.
pub async fn seal(store: &Store, keys: &KeyRing, clock: &Clock) -> Result<(), StoreError> {
    let latest = store.latest_audit_checkpoint().await?;
    let (previous, hash) = latest.map_or((0, [0; 32]), |latest| (latest.up_to, latest.hash));
    let mut sum = AuditHash::after(&hash);
    let mut up_to = previous;
    loop {
        let rows = store.read_audit(up_to).await?;
        let Some(last) = rows.last() else {
            break;
        };
        up_to = last.seq;
        rows.iter().for_each(|row| sum.add(row));
    }
    if up_to == previous {
        return Ok(());
    }
    let hash = sum.finish();
    let signature = keys.sign(PURPOSE, &signed(up_to, &hash));
    let checkpoint = AuditCheckpoint {
        up_to,
        at: clock.now(),
        hash,
        key_id: signature.key_id,
        mac: signature.mac,
    };
    if store.create_audit_checkpoint(previous, checkpoint).await? {
        // Beyond the reach of whoever can write to the database.
        let hash = data_encoding::HEXLOWER.encode(&hash);
        tracing::info!(up_to, hash, "audit checkpoint");
    }
    Ok(())
}

fn signed(up_to: i64, hash: &[u8; 32]) -> Vec<u8> {
    [&up_to.to_be_bytes()[..], hash].concat()
}

/// Follows the whole chain, which must hold `expect`, the hash of an earlier checkpoint, if given.
///
/// # Errors
/// When the database does not answer.
pub async fn verify(
    store: &Store,
    keys: &KeyRing,
    expect: Option<[u8; 32]>,
) -> Result<AuditReport, StoreError> {
    let mut missing = expect;
    let mut report = AuditReport::default();
    let mut rows = Rows::new(store);
    let (mut previous, mut before) = ([0; 32], 0);
    loop {
        let checkpoints = store.read_audit_checkpoints(before).await?;
        if checkpoints.is_empty() {
            break;
        }
        for checkpoint in checkpoints {
            let mut sum = AuditHash::after(&previous);
            let mut count = 0;
            while let Some(row) = rows.next_up_to(checkpoint.up_to).await? {
                sum.add(&row);
                count += 1;
            }
            let message = signed(checkpoint.up_to, &checkpoint.hash);
            let (up_to, key) = (checkpoint.up_to, &checkpoint.key_id);
            if sum.finish() != checkpoint.hash {
                report.mistakes.push(format!(
                    "rows {} to {up_to} are not those that were sealed",
                    before + 1
                ));
            } else if !keys.knows(key) {
                report.foreign_keys += 1;
                report.sealed += count;
            } else if keys.verify(PURPOSE, key, &message, &checkpoint.mac) {
                report.checkpoints += 1;
                report.sealed += count;
            } else {
                report
                    .mistakes
                    .push(format!("the checkpoint at row {up_to} is not ours"));
            }
            (previous, before) = (checkpoint.hash, checkpoint.up_to);
            report.head = Some(checkpoint.hash);
            missing = missing.filter(|hash| *hash != checkpoint.hash);
        }
    }
    while rows.next_up_to(i64::MAX).await?.is_some() {
        report.unsealed += 1;
    }
    if missing.is_some() {
        let mistake = "the expected checkpoint is not part of the chain";
        report.mistakes.push(mistake.to_owned());
    }
    Ok(report)
}

/// All rows in order, a part at a time.
struct Rows<'s> {
    store: &'s Store,
    ready: std::collections::VecDeque<crate::store::AuditRow>,
    after: i64,
}

impl<'s> Rows<'s> {
    fn new(store: &'s Store) -> Self {
        Self {
            store,
            ready: std::collections::VecDeque::new(),
            after: 0,
        }
    }

    async fn next_up_to(
        &mut self,
        up_to: i64,
    ) -> Result<Option<crate::store::AuditRow>, StoreError> {
        if self.ready.is_empty() {
            self.ready = self.store.read_audit(self.after).await?.into();
        }
        if self.ready.front().is_none_or(|row| row.seq > up_to) {
            return Ok(None);
        }
        let row = self.ready.pop_front();
        self.after = row.as_ref().map_or(self.after, |row| row.seq);
        Ok(row)
    }
}
