//! What a person does in a real browser: signs in, pairs a box, opens its page, signs out.

use std::path::Path;

use tempfile::TempDir;

use crate::support::{BINARY, Browser, Origin, TestCloud, on_both_topologies, run_program};

on_both_topologies![a_person_pairs_a_box_and_opens_its_page_in_chromium];

async fn a_person_pairs_a_box_and_opens_its_page_in_chromium(cloud: TestCloud) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/console.mjs");
    let script = script.to_str().expect("a readable path");
    let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/node_modules");
    assert!(
        driver.exists(),
        "the browser's driver is missing: npm ci --prefix tests/browser --ignore-scripts"
    );
    let node = program("node", "nodejs");
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| program("chromium", "chromium"));
    let home = TempDir::new().expect("make a directory");
    let state = home.path().join("state");
    let origin = Origin::with_page("The box in the shop window").await;
    let env = [
        ("EDGECLOUD_URL", cloud.public_url()),
        ("EDGECLOUD_BIN", BINARY),
        ("STATE_DIR", state.to_str().expect("a readable path")),
        ("ORIGIN_URL", &format!("http://{}/", origin.addr())),
        ("CHROMIUM", &chromium),
    ];
    run_program(&node, home.path(), &[script], &env)
        .await
        .expect_code(0);
    // The page came from the device, and what the browser paired is alice's.
    assert!(origin.count("/") > 0);
    let alice = Browser::sign_in(&cloud, "alice").await;
    assert_eq!(alice.devices().await.len(), 1);
}

/// The path of a program.
///
/// # Panics
/// When it is not installed; says how to install it.
fn program(name: &str, package: &str) -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    let file = found.unwrap_or_else(|| panic!("{name} is missing: sudo apt-get install {package}"));
    file.to_str().expect("a readable path").to_owned()
}
