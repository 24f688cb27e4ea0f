//! The chain of checkpoints over the audit, against somebody who has the database file.

use edgecloud::audit_chain::{AuditReport, seal, verify};
use edgecloud::keys::KeyRing;
use edgecloud::store::{AuditActor, AuditEntry, Location, Store};
use edgecloud::types::{Clock, Timestamp};
use secrecy::SecretString;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

struct Fixture {
    store: Store,
    keys: KeyRing,
    dir: tempfile::TempDir,
}

fn ring(letter: &str) -> KeyRing {
    KeyRing::from_secrets(&[SecretString::from(letter.repeat(32))]).expect("long enough")
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("edgecloud.db");
        Self {
            store: Store::open(Location::Sqlite(&path)).await.expect("open"),
            keys: ring("k"),
            dir,
        }
    }

    async fn write(&self, rows: u32) {
        for _ in 0..rows {
            let entry = AuditEntry::new(NOW, None, AuditActor::Anonymous, "login.failed");
            self.store.append_audit(entry).await.expect("write");
        }
    }

    async fn seal(&self) {
        let clock = Clock::manual(NOW);
        seal(&self.store, &self.keys, &clock).await.expect("seal");
    }

    async fn verify(&self, keys: &KeyRing, expect: Option<[u8; 32]>) -> AuditReport {
        verify(&self.store, keys, expect).await.expect("verify")
    }

    /// Does what only somebody with the database file can do.
    fn tamper(&self, sql: &str) {
        let file = self.dir.path().join("edgecloud.db");
        let raw = rusqlite::Connection::open(file).expect("open");
        raw.execute_batch(
            "DROP TRIGGER IF EXISTS audit_is_not_changed;
             DROP TRIGGER IF EXISTS audit_is_not_removed;
             DROP TRIGGER IF EXISTS audit_checkpoints_are_not_changed;
             DROP TRIGGER IF EXISTS audit_checkpoints_are_not_removed;",
        )
        .expect("drop the triggers");
        raw.execute_batch(sql).expect("tamper");
    }
}

#[tokio::test]
async fn what_is_sealed_is_counted_and_nothing_new_needs_no_seal() {
    let it = Fixture::new().await;
    it.seal().await;
    assert_eq!(it.verify(&it.keys, None).await, AuditReport::default());
    it.write(3).await;
    it.seal().await;
    it.seal().await;
    it.write(2).await;
    it.seal().await;
    it.write(1).await;
    let report = it.verify(&it.keys, None).await;
    assert_eq!(
        (report.sealed, report.checkpoints, report.unsealed),
        (5, 2, 1)
    );
    assert_eq!(report.mistakes, Vec::<String>::new());
}

#[tokio::test]
async fn a_long_audit_is_followed_part_by_part() {
    let it = Fixture::new().await;
    it.tamper(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
         INSERT INTO audit (at, actor_kind, action, outcome)
         SELECT i, 'anonymous', 'login.failed', 'failure' FROM n",
    );
    it.seal().await;
    it.write(1).await;
    it.seal().await;
    let report = it.verify(&it.keys, None).await;
    assert_eq!(
        (report.sealed, report.checkpoints, report.unsealed),
        (2501, 2, 0)
    );
    assert_eq!(report.mistakes, Vec::<String>::new());
}

#[tokio::test]
async fn au_02_a_changed_a_removed_and_an_added_row_are_found() {
    for sql in [
        "UPDATE audit SET at = at + 1 WHERE seq = 2",
        "UPDATE audit SET action = 'login.faile', target = 'd' WHERE seq = 2",
        "UPDATE audit SET target = '' WHERE seq = 2",
        "UPDATE audit SET tenant_id = 'x' WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 1",
        "UPDATE audit SET seq = 0 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 1",
    ] {
        let it = Fixture::new().await;
        it.write(3).await;
        it.seal().await;
        it.write(2).await;
        it.seal().await;
        it.tamper(sql);
        let mistakes = it.verify(&it.keys, None).await.mistakes;
        let expected = "rows 1 to 3 are not those that were sealed";
        assert_eq!(
            mistakes.first().map(String::as_str),
            Some(expected),
            "{sql}"
        );
    }
}

#[tokio::test]
async fn au_02_a_chain_that_was_made_anew_is_found() {
    let it = Fixture::new().await;
    it.write(2).await;
    it.seal().await;
    let head = it.verify(&it.keys, None).await.head;
    assert!(head.is_some());
    it.tamper("DELETE FROM audit_checkpoints; UPDATE audit SET outcome = 'denied'");
    // Without the key every checkpoint is somebody else's.
    let thief = ring("t");
    let clock = Clock::manual(NOW);
    seal(&it.store, &thief, &clock).await.expect("seal");
    let report = it.verify(&it.keys, head).await;
    assert_eq!((report.checkpoints, report.foreign_keys), (0, 1));
    assert_eq!(
        report.mistakes,
        ["the expected checkpoint is not part of the chain"]
    );
    it.tamper("UPDATE audit_checkpoints SET mac = zeroblob(32)");
    let report = it.verify(&thief, None).await;
    assert_eq!(report.mistakes, ["the checkpoint at row 2 is not ours"]);
}

#[tokio::test]
async fn of_two_processes_that_seal_at_once_one_does() {
    let it = Fixture::new().await;
    it.write(5).await;
    tokio::join!(it.seal(), it.seal(), it.seal());
    let report = it.verify(&it.keys, None).await;
    assert_eq!((report.sealed, report.checkpoints), (5, 1));
    assert_eq!(report.mistakes, Vec::<String>::new());
}
