//! A database that cannot be written to for a while: nobody loses anything, and it heals by itself.

use http::Method;
use serde_json::json;

use crate::support::{
    Anonymous, Browser, Manner, RawDevice, ServedDevice, TestCloud, Topology, eventually,
    on_both_topologies, run,
};

on_both_topologies![
    rx_06_while_the_database_is_locked_writes_wait_in_vain_and_reads_go_on,
    rx_06_while_the_disk_is_full_writes_are_refused_and_reads_go_on,
];

/// Alice and a device of hers that is connected.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: RawDevice,
    _served: ServedDevice,
}

impl Scene {
    async fn set(topology: Topology) -> Self {
        let cloud = TestCloud::builder(topology)
            .with_file_limits()
            .spawn()
            .await;
        let alice = Browser::sign_in(&cloud, "alice").await;
        let device = RawDevice::pair(&cloud, &alice).await;
        let served = device.serve(Manner::Says("hello")).await;
        alice.wait_for_status(&device.id, "online").await;
        Self {
            cloud,
            alice,
            device,
            _served: served,
        }
    }

    /// Everything that changes nothing goes on.
    async fn reads(&self) {
        for path in ["/api/auth/me", "/api/devices", "/api/pairing/codes", "/"] {
            self.alice.get(path).send().await.expect(200);
        }
        let forwarded = self.alice.forward(&self.device.id, Method::GET, "/");
        assert_eq!(forwarded.send().await.expect(200).text(), "hello");
        let ready = Anonymous::of(&self.cloud).get("/healthz").send().await;
        ready.expect(200);
    }

    /// Changes of several kinds are refused, for now.
    async fn writes_are_refused(&self) {
        let rename = format!("/api/devices/{}", self.device.id);
        let alice = &self.alice;
        let changes = [
            alice.post("/api/pairing/codes").json(&json!({})),
            alice.patch(&rename).json(&json!({"name": "lost"})),
            alice.post("/api/groups").json(&json!({"name": "lost"})),
        ];
        for answer in futures_util::future::join_all(changes.map(|it| it.send())).await {
            let answer = answer.expect_problem(503, "unavailable");
            assert_eq!(answer.header("retry-after"), "1");
        }
    }

    /// Nothing of what was refused was done, what is asked for now is, and the database is whole.
    async fn is_whole(&self, name: &str) {
        let group = json!({"name": name});
        eventually("changes are made again", async || {
            let answer = self.alice.post("/api/groups").json(&group).send().await;
            (answer.status == 201).then_some(())
        })
        .await;
        let list = async |path: &str| self.alice.get(path).send().await.expect(200).items();
        let groups = list("/api/groups").await;
        assert!(groups.iter().all(|group| group["name"] != "lost"));
        let codes = list("/api/pairing/codes").await;
        assert!(
            codes.iter().all(|code| code["status"] != "open"),
            "{codes:?}"
        );
        assert_ne!(self.alice.device(&self.device.id).await["name"], "lost");
        self.alice.wait_for_status(&self.device.id, "online").await;
        self.reads().await;
        let home = tempfile::TempDir::new().expect("make a directory");
        let data = self.cloud.data_dir();
        let data = data.to_str().expect("a readable path");
        let check = ["db", "check", "--dev", "--data-dir", data];
        run(home.path(), &check, &[]).await.expect_code(0);
        for process in self.cloud.processes() {
            assert!(!process.output().contains("panicked"));
        }
    }
}

async fn rx_06_while_the_database_is_locked_writes_wait_in_vain_and_reads_go_on(
    topology: Topology,
) {
    let scene = Scene::set(topology).await;
    let lock = scene.cloud.database();
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    scene.reads().await;
    scene.writes_are_refused().await;
    lock.execute_batch("ROLLBACK")
        .expect("the lock is given back");
    scene.is_whole("after the lock").await;
}

async fn rx_06_while_the_disk_is_full_writes_are_refused_and_reads_go_on(topology: Topology) {
    let scene = Scene::set(topology).await;
    for (round, limit) in [("first", 0), ("second", 4096)] {
        scene.cloud.limit_files(Some(limit)).await;
        scene.writes_are_refused().await;
        scene.reads().await;
        scene.writes_are_refused().await;
        scene.cloud.limit_files(None).await;
        scene.is_whole(round).await;
    }
}
