//! An exchange of a pairing code that fails or dies half-way: all of it has happened, or nothing.

use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;

use crate::support::{Anonymous, Browser, Part, TestCloud, Topology, on_both_topologies};

on_both_topologies![
    pa_04_a_write_that_fails_leaves_no_device_and_the_code_good,
    pa_05_a_crash_at_any_step_leaves_all_or_nothing,
];

/// What is stored of pairing.
#[derive(Debug, PartialEq, Eq)]
struct Stored {
    devices: u32,
    tokens: u32,
    used_codes: u32,
}

const NOTHING: Stored = Stored {
    devices: 0,
    tokens: 0,
    used_codes: 0,
};
const ALL: Stored = Stored {
    devices: 1,
    tokens: 1,
    used_codes: 1,
};

fn stored(cloud: &TestCloud) -> Stored {
    let count = |what: &str| {
        let sql = format!("SELECT count(*) FROM {what}");
        let counted = cloud.database().query_row(&sql, [], |row| row.get(0));
        counted.expect("count the rows")
    };
    Stored {
        devices: count("devices"),
        tokens: count("device_tokens"),
        used_codes: count("pairing_codes WHERE used_at IS NOT NULL"),
    }
}

async fn pa_04_a_write_that_fails_leaves_no_device_and_the_code_good(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, code) = alice.pairing_code().await;
    let box_ = Anonymous::of(&cloud);
    let mark = "UPDATE OF used_at ON pairing_codes";
    for write in [
        mark,
        "INSERT ON devices",
        "INSERT ON device_tokens",
        "INSERT ON changes",
    ] {
        for fault in [
            "ABORT, 'canary'",
            "FAIL, 'canary'",
            "ROLLBACK, 'canary'",
            "IGNORE",
        ] {
            // That a statement succeeds and does nothing is thinkable where it has a condition.
            if fault == "IGNORE" && write != mark {
                continue;
            }
            let make =
                format!("CREATE TRIGGER fault BEFORE {write} BEGIN SELECT RAISE({fault}); END");
            cloud
                .database()
                .execute_batch(&make)
                .expect("install the fault");
            let answer = box_.exchange(&code).await;
            let told = format!("{write} {fault}: {} {}", answer.status, answer.text());
            assert!(answer.status.is_server_error(), "{told}");
            assert!(!answer.text().contains("edt_"), "{told}");
            assert!(!answer.text().contains("canary"), "{told}");
            assert_eq!(stored(&cloud), NOTHING, "{told}");
            let heal = cloud.database().execute_batch("DROP TRIGGER fault");
            heal.expect("remove the fault");
        }
    }
    assert!(alice.devices().await.is_empty());
    box_.exchange(&code).await.expect(200);
    assert_eq!(stored(&cloud), ALL);
    box_.exchange(&code).await.expect(404);
}

async fn pa_05_a_crash_at_any_step_leaves_all_or_nothing(topology: Topology) {
    for (place, left) in [
        ("exchange.found", NOTHING),
        ("exchange.after_device", NOTHING),
        ("exchange.after_token", NOTHING),
        ("exchange.after_mark", NOTHING),
        ("exchange.before_commit", NOTHING),
        ("exchange.after_commit", ALL),
    ] {
        let mut cloud = TestCloud::builder(topology)
            .setting("EDGECLOUD_FAIL_POINT", place)
            .spawn()
            .await;
        let alice = Browser::sign_in(&cloud, "alice").await;
        let (_, code) = alice.pairing_code().await;
        let body = serde_json::json!({ "code": code });
        let exchange = Anonymous::of(&cloud).post("/api/pairing/exchange");
        let cut = exchange.json(&body).try_send().await;
        assert!(cut.is_err(), "{place}: nobody is left to answer: {cut:?}");
        let status = cloud.wait_exit(Part::Api).await;
        assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{place}");

        cloud.forget_setting("EDGECLOUD_FAIL_POINT");
        cloud.start_again(Part::Api).await;
        assert_eq!(stored(&cloud), left, "{place}");
        let again = Anonymous::of(&cloud).exchange(&code).await;
        // Nobody has learnt the token of a device that paired without an answer: its owner sees the
        // device and removes it.
        let expected = if left == ALL { 404 } else { 200 };
        again.expect(expected);
        assert_eq!(stored(&cloud), ALL, "{place}");
        assert_eq!(alice.devices().await.len(), 1, "{place}");
    }
}
