//! SIGHUP: settings are read again without dropping anybody.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{
    Anonymous, Browser, Part, TestCloud, Topology, eventually, on_both_topologies,
};

on_both_topologies![
    cs_08_cookie_keys_are_changed_without_ending_a_login,
    the_log_level_is_changed_while_it_runs,
    a_broken_file_leaves_everything_as_it_was,
];

const OLD_KEY: &str = "the old key of these tests, which is long enough";
const NEW_KEY: &str = "the new key of these tests, which is long enough";

/// A cloud whose settings are in a file.
struct Scene {
    cloud: TestCloud,
    file: PathBuf,
    _home: TempDir,
}

impl Scene {
    async fn set(topology: Topology) -> Self {
        let home = TempDir::new().expect("make a directory");
        let file = home.path().join("edgecloud.toml");
        write(&file, "warn", &[OLD_KEY]);
        let cloud = TestCloud::builder(topology)
            .without_setting("EDGECLOUD__LOG__LEVEL")
            .setting("EDGECLOUD_CONFIG", file.display())
            .spawn()
            .await;
        Self {
            cloud,
            file,
            _home: home,
        }
    }

    fn reload(&mut self) {
        self.cloud.process(Part::Api).signal(Signal::SIGHUP);
    }

    async fn prints(&mut self, words: &str) {
        let found = |line: &str| line.contains(words).then_some(());
        self.cloud.process(Part::Api).prints(words, found).await;
    }
}

fn write(file: &PathBuf, level: &str, keys: &[&str]) {
    let text = format!("[log]\nlevel = {level:?}\n[login]\ncookie_key = {keys:?}\n");
    std::fs::write(file, text).expect("write the settings");
}

async fn cs_08_cookie_keys_are_changed_without_ending_a_login(topology: Topology) {
    let mut scene = Scene::set(topology).await;
    let before = Browser::sign_in(&scene.cloud, "alice").await;
    write(&scene.file, "info", &[NEW_KEY, OLD_KEY]);
    scene.reload();
    scene.prints("settings were read again").await;
    assert!(before.is_signed_in().await, "the old key still verifies");
    let after = Browser::sign_in(&scene.cloud, "alice").await;
    assert!(before.is_signed_in().await && after.is_signed_in().await);

    write(&scene.file, "info", &[NEW_KEY]);
    scene.reload();
    eventually("the old key is worth nothing", async || {
        (!before.is_signed_in().await).then_some(())
    })
    .await;
    assert!(after.is_signed_in().await, "the new key has signed it");
}

async fn the_log_level_is_changed_while_it_runs(topology: Topology) {
    let mut scene = Scene::set(topology).await;
    let ask = async |cloud: &TestCloud| {
        let ready = Anonymous::of(cloud).get("/readyz").send().await;
        ready.expect(200).header("x-request-id").to_owned()
    };
    let quiet = ask(&scene.cloud).await;
    write(&scene.file, "debug", &[OLD_KEY]);
    scene.reload();
    scene.prints("settings were read again").await;
    let told = ask(&scene.cloud).await;
    scene.prints(&told).await;
    let output = scene.cloud.process(Part::Api).output();
    assert!(!output.contains(&quiet), "nothing was told before");
}

async fn a_broken_file_leaves_everything_as_it_was(topology: Topology) {
    let mut scene = Scene::set(topology).await;
    let alice = Browser::sign_in(&scene.cloud, "alice").await;
    for (broken, named) in [
        ("[login\n", "edgecloud.toml"),
        ("[login]\ncookie_key = \"too short\"\n", "login.cookie_key"),
        ("[log]\nlevel = \"loud\"\n", "log.level"),
        ("[lgo]\nlevel = \"info\"\n", "lgo.level"),
    ] {
        std::fs::write(&scene.file, broken).expect("write the settings");
        scene.reload();
        scene.prints(named).await;
        assert!(alice.is_signed_in().await);
        Browser::sign_in(&scene.cloud, "alice").await;
    }
    let output = scene.cloud.process(Part::Api).output();
    assert!(output.contains("the old ones stay"), "{output}");
    assert!(
        !output.contains("too short"),
        "a secret is not told: {output}"
    );
    scene.cloud.process(Part::Api).check_running();

    write(&scene.file, "info", &[NEW_KEY, OLD_KEY]);
    scene.reload();
    scene.prints("settings were read again").await;
    assert!(alice.is_signed_in().await);
}
