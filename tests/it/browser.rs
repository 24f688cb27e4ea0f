//! What a person does in a real browser: signs in, pairs a box, opens its page, signs out; and what a
//! box's page tries there.

use std::path::Path;

use tempfile::TempDir;

use crate::support::{
    BINARY, Browser, Device, Origin, TestCloud, on_both_topologies, program, run_program,
};

on_both_topologies![
    pa_10_a_person_sees_what_paired_removes_it_and_opens_another,
    fw_12_a_devices_page_cannot_act_as_the_person_who_looks_at_it,
];

/// Runs a script of `tests/browser` with Chromium, to its end.
async fn run_script(name: &str, home: &Path, env: &[(&str, &str)]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    let script = folder.join(name);
    let script = script.to_str().expect("a readable path");
    assert!(
        folder.join("node_modules").exists(),
        "the browser's driver is missing: npm ci --prefix tests/browser --ignore-scripts"
    );
    let node = program("node", "nodejs");
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| program("chromium", "chromium"));
    let env = [env, &[("CHROMIUM", &*chromium)]].concat();
    run_program(&node, home, &[script], &env)
        .await
        .expect_code(0);
}

async fn pa_10_a_person_sees_what_paired_removes_it_and_opens_another(cloud: TestCloud) {
    let home = TempDir::new().expect("make a directory");
    let state = home.path().join("state");
    let origin = Origin::with_page("The box in the shop window").await;
    let env = [
        ("EDGECLOUD_URL", cloud.public_url()),
        ("EDGECLOUD_BIN", BINARY),
        ("STATE_DIR", state.to_str().expect("a readable path")),
        ("ORIGIN_URL", &format!("http://{}/", origin.addr())),
    ];
    run_script("console.mjs", home.path(), &env).await;
    // The page came from the device, and what the browser paired and kept is alice's.
    assert!(origin.count("/") > 0);
    let alice = Browser::sign_in(&cloud, "alice").await;
    assert_eq!(alice.devices().await.len(), 1);
}

async fn fw_12_a_devices_page_cannot_act_as_the_person_who_looks_at_it(cloud: TestCloud) {
    let home = TempDir::new().expect("make a directory");
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let env = [
        ("EDGECLOUD_URL", cloud.public_url()),
        ("DEVICE", &device.id),
    ];
    run_script("isolation.mjs", home.path(), &env).await;
    let pages = origin.seen();
    let pages = pages.iter().filter(|seen| {
        seen.target
            .starts_with("/do/answer?content-type=text%2Fhtml")
    });
    assert_eq!(pages.count(), 2, "one by path and one on its own host");
    assert_eq!(
        origin.count("/do/websocket"),
        0,
        "no WebSocket by way of the console"
    );
}
