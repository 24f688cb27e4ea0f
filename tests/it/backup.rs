//! `db backup` beside a cloud that is at work, and what a restored copy is worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rusqlite::Connection;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::{Anonymous, Browser, Part, RawDevice, TestCloud, Topology, eventually, run};

/// Bob's browsers, which pair devices one after the other until they are told to stop.
struct Load {
    people: JoinSet<Vec<RawDevice>>,
    paired: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

impl Load {
    async fn begin(cloud: &Arc<TestCloud>) -> Self {
        let mut load = Self {
            people: JoinSet::new(),
            paired: Arc::default(),
            is_over: Arc::default(),
        };
        for _ in 0..3 {
            let owner = Browser::sign_in(cloud, "bob").await;
            let (cloud, paired) = (Arc::clone(cloud), Arc::clone(&load.paired));
            let is_over = Arc::clone(&load.is_over);
            load.people.spawn(async move {
                let mut devices = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    devices.push(RawDevice::pair(&cloud, &owner).await);
                    paired.fetch_add(1, Ordering::Relaxed);
                }
                devices
            });
        }
        load
    }

    /// Waits until some more devices were paired, and returns how many there are by then.
    async fn goes_on(&self) -> usize {
        let before = self.paired.load(Ordering::Relaxed);
        eventually("more devices are paired", async || {
            let paired = self.paired.load(Ordering::Relaxed);
            (paired >= before + 5).then_some(paired)
        })
        .await
    }

    async fn end(self) -> Vec<RawDevice> {
        self.is_over.store(true, Ordering::Relaxed);
        self.people.join_all().await.concat()
    }
}

fn count(database: &Connection, rows: &str) -> usize {
    let sql = format!("SELECT count(*) FROM {rows}");
    let count = database.query_row(&sql, [], |row| row.get::<_, i64>(0));
    let count = count.unwrap_or_else(|error| panic!("{sql}: {error}"));
    usize::try_from(count).expect("no negative count")
}

/// What is true of the rows at each moment, because each change is one transaction; returns the number
/// of devices.
fn assert_whole(database: &Connection) -> usize {
    let integrity: String = database
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("a check");
    assert_eq!(integrity, "ok");
    let devices = count(database, "devices");
    for rows in [
        "device_tokens",
        "pairing_codes WHERE used_at IS NOT NULL",
        "pairing_codes JOIN devices ON devices.id = pairing_codes.device_id \
         AND devices.tenant_id = pairing_codes.tenant_id",
        "events WHERE kind = 'device.paired'",
        "audit WHERE action = 'device.paired' AND outcome = 'success'",
    ] {
        assert_eq!(count(database, rows), devices, "{rows}");
    }
    devices
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bk_01_a_backup_under_load_is_whole_and_can_be_restored() {
    let cloud = Arc::new(TestCloud::builder(Topology::All).spawn().await);
    let alice = Browser::sign_in(&cloud, "alice").await;
    let known = RawDevice::pair(&cloud, &alice).await;
    // So much that a copy is not made in a moment.
    cloud
        .database()
        .execute_batch(
            "CREATE TABLE ballast (bytes BLOB NOT NULL);
             WITH RECURSIVE more (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more WHERE n < 64)
             INSERT INTO ballast SELECT randomblob(1 << 20) FROM more;",
        )
        .expect("fill the database");
    let home = TempDir::new().expect("make a directory");
    let (data, folder) = (cloud.data_dir(), home.path());
    let data_text = data.to_str().expect("a readable path");
    let load = Load::begin(&cloud).await;
    let mut newest = 0;
    for round in 0..3 {
        let acknowledged = load.goes_on().await;
        let file = folder.join(format!("backup-{round}.db"));
        let file_text = file.to_str().expect("a readable path");
        let backup = ["db", "backup", file_text, "--dev", "--data-dir", data_text];
        run(folder, &backup, &[]).await.expect_code(0);
        newest = assert_whole(&Connection::open(&file).expect("open the copy"));
        assert!(newest > acknowledged, "alice's device and what was told");
    }
    let acknowledged = load.goes_on().await;
    assert!(acknowledged > newest, "the load went on meanwhile");
    let devices = load.end().await;

    let mut cloud = Arc::into_inner(cloud).expect("nobody else has it");
    cloud.crash(Part::Api).await;
    for name in ["edgecloud.db-wal", "edgecloud.db-shm"] {
        let _ = std::fs::remove_file(data.join(name));
    }
    std::fs::copy(folder.join("backup-2.db"), data.join("edgecloud.db")).expect("restore");
    let check = ["db", "check", "--dev", "--data-dir", data_text];
    run(folder, &check, &[]).await.expect_code(0);
    cloud.start_again(Part::Api).await;
    assert_eq!(assert_whole(&cloud.database()), newest);
    assert!(alice.is_signed_in().await);
    assert_eq!(alice.devices().await[0]["id"], *known.id);
    known.connect().await;
    let mut let_in = 0;
    for device in &devices {
        let handshake = device.handshake().websocket().await;
        let_in += usize::from(handshake.is_ok());
    }
    assert_eq!(
        let_in + 1,
        newest,
        "a device is known with its token or not"
    );
    let (_, code) = alice.pairing_code().await;
    Anonymous::of(&cloud).exchange(&code).await.expect(200);
    assert_eq!(assert_whole(&cloud.database()), newest + 1);
}
