//! An acceptance of an invitation that fails or dies half-way: the place, the mark on the invitation
//! and the line in the audit are there together, or none of them.

use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;

use crate::support::{Browser, Part, TestCloud, Topology, on_both_topologies};

on_both_topologies![
    au_01_an_acceptance_that_cannot_be_written_down_does_not_happen,
    au_01_a_crash_at_any_step_of_an_acceptance_leaves_all_or_nothing,
];

/// What is stored of invitations.
#[derive(Debug, PartialEq, Eq)]
struct Stored {
    places: u32,
    used: u32,
    rows: u32,
}

const NOTHING: Stored = Stored {
    places: 0,
    used: 0,
    rows: 0,
};
const ALL: Stored = Stored {
    places: 1,
    used: 1,
    rows: 1,
};

fn stored(cloud: &TestCloud) -> Stored {
    let count = |what: &str| {
        let sql = format!("SELECT count(*) FROM {what}");
        let counted = cloud.database().query_row(&sql, [], |row| row.get(0));
        counted.expect("count the rows")
    };
    Stored {
        places: count("members WHERE source = 'invitation'"),
        used: count("invitations WHERE accepted_at IS NOT NULL"),
        rows: count("audit WHERE action = 'invitation.accepted'"),
    }
}

async fn au_01_an_acceptance_that_cannot_be_written_down_does_not_happen(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let vera = Browser::sign_in_new(&cloud, "vera").await;
    let (_, token) = alice.invite("viewer").await;
    let mark = "UPDATE OF accepted_at ON invitations";
    for write in [mark, "INSERT ON members", "INSERT ON audit"] {
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
            let made = cloud.database().execute_batch(&make);
            made.expect("install the fault");
            // Twice, so that more of them fail than may be guessed wrong in a minute.
            for _ in 0..2 {
                let answer = vera.accept(&token).await;
                let told = format!("{write} {fault}: {} {}", answer.status, answer.text());
                assert!(answer.status.is_server_error(), "{told}");
                assert!(!answer.text().contains("canary"), "{told}");
                assert_eq!(stored(&cloud), NOTHING, "{told}");
            }
            let heal = cloud.database().execute_batch("DROP TRIGGER fault");
            heal.expect("remove the fault");
        }
    }
    vera.accept(&token).await.expect(200);
    assert_eq!(stored(&cloud), ALL);
}

async fn au_01_a_crash_at_any_step_of_an_acceptance_leaves_all_or_nothing(topology: Topology) {
    for (place, left) in [
        ("accept.found", NOTHING),
        ("accept.after_mark", NOTHING),
        ("accept.after_member", NOTHING),
        ("accept.after_commit", ALL),
    ] {
        let mut cloud = TestCloud::builder(topology)
            .setting("EDGECLOUD_FAIL_POINT", place)
            .spawn()
            .await;
        let alice = Browser::sign_in(&cloud, "alice").await;
        let vera = Browser::sign_in_new(&cloud, "vera").await;
        let (_, token) = alice.invite("viewer").await;
        let body = serde_json::json!({ "token": token });
        let accept = vera.post("/api/invitations/accept").json(&body);
        let cut = accept.try_send().await;
        assert!(cut.is_err(), "{place}: nobody is left to answer: {cut:?}");
        let status = cloud.wait_exit(Part::Api).await;
        assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{place}");

        cloud.forget_setting("EDGECLOUD_FAIL_POINT");
        cloud.start_again(Part::Api).await;
        assert_eq!(stored(&cloud), left, "{place}");
        // Used up by the one who joined.
        let expected = if left == ALL { 404 } else { 200 };
        vera.accept(&token).await.expect(expected);
        assert_eq!(stored(&cloud), ALL, "{place}");
    }
}
