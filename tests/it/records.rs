//! The audit: who did what, for the tenant's admins to read and for nobody to change.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};

use crate::support::{
    Anonymous, Browser, Manner, Part, RawConnection, RawDevice, Request, TestCloud,
    on_both_topologies, run, text,
};

on_both_topologies![
    au_01_a_session_leaves_the_expected_list,
    au_01_an_entry_says_who_what_on_what_from_where_and_in_which_request,
    the_list_is_filtered_and_cut_into_pages,
    au_02_nobody_changes_the_audit_unseen,
    au_02_the_database_refuses_to_change_or_remove_a_row,
    au_03_no_control_character_of_a_caller_reaches_the_log,
];

async fn audit(person: &Browser, query: &str) -> Vec<Value> {
    let answer = person.get(&format!("/api/audit?limit=200{query}"));
    answer.send().await.expect(200).items()
}

/// Actions and outcomes, oldest first.
fn lines(items: &[Value]) -> Vec<String> {
    let line = |item: &Value| format!("{} {}", text(&item["action"]), text(&item["outcome"]));
    items.iter().rev().map(line).collect()
}

async fn au_01_a_session_leaves_the_expected_list(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let there = Browser::sign_in(&cloud, "alice").await;
    let member = change_people(&cloud, &alice).await;
    let device = change_a_device(&cloud, &alice).await;
    change_a_group(&alice, &device).await;
    change_a_program(&alice).await;
    delete(&alice, &format!("/api/devices/{device}")).await;
    delete(&alice, &member).await;
    let tenant = format!("/api/tenants/{}", alice.tenant_id().await);
    change(alice.patch(&tenant), json!({"name": "shop"})).await;
    let login = text(&there.me().await["login"]["id"]);
    delete(&alice, &format!("/api/auth/logins/{login}")).await;
    alice.sign_out().await;
    alice.sign_in_again("alice").await;

    let all = lines(&audit(&alice, "").await);
    // The proxy writes these, whenever it gets to it.
    let of_session = |line: &String| line.contains("connected");
    let (sessions, others): (Vec<_>, Vec<_>) = all.into_iter().partition(of_session);
    assert_eq!(others, EXPECTED);
    let expected = ["device.connected success", "device.disconnected success"];
    assert_eq!(sessions, expected);
}

async fn delete(person: &Browser, path: &str) {
    person.delete(path).send().await.expect(204);
}

async fn change(request: Request, body: Value) -> Value {
    request.json(&body).send().await.expect_success().json()
}

/// Returns the path of a member.
async fn change_people(cloud: &TestCloud, alice: &Browser) -> String {
    let adam = alice.colleague(cloud, "adam", "viewer").await;
    let code = adam.post("/api/pairing/codes").json(&json!({}));
    code.send().await.expect(403);
    let tenant = alice.tenant_id().await;
    let member = format!("/api/tenants/{tenant}/members/{}", adam.user_id().await);
    change(alice.put(&member), json!({"role": "admin"})).await;
    let (invitation, _) = alice.invite("viewer").await;
    delete(
        alice,
        &format!("/api/tenants/{tenant}/invitations/{invitation}"),
    )
    .await;
    member
}

async fn change_a_device(cloud: &TestCloud, alice: &Browser) -> String {
    let (code, _) = alice.pairing_code().await;
    delete(alice, &format!("/api/pairing/codes/{code}")).await;
    let device = RawDevice::pair(cloud, alice).await;
    let served = device.serve(Manner::Says("hello")).await;
    alice.wait_for_status(&device.id, "online").await;
    let path = format!("/api/devices/{}", device.id);
    change(alice.patch(&path), json!({"name": "till"})).await;
    let tag = format!("{path}/tags/room");
    change(alice.put(&tag), json!({"value": "7"})).await;
    delete(alice, &tag).await;
    alice.enter(&device.id).await;
    for what in ["diagnose", "token"] {
        let request = alice.post(&format!("{path}/{what}"));
        request.send().await.expect(200);
    }
    delete(alice, &format!("{path}/session")).await;
    served.ended().await;
    alice.wait_for_status(&device.id, "offline").await;
    device.id
}

async fn change_a_group(alice: &Browser, device: &str) {
    let made = change(alice.post("/api/groups"), json!({"name": "line"})).await;
    let group = format!("/api/groups/{}", text(&made["id"]));
    let place = format!("{group}/devices/{device}");
    change(alice.patch(&group), json!({"name": "line 1"})).await;
    alice.put(&place).send().await.expect(204);
    delete(alice, &place).await;
    alice.delete(&place).send().await.expect(404);
    delete(alice, &group).await;
}

async fn change_a_program(alice: &Browser) {
    let client = json!({"client_id": "robot", "role": "viewer"});
    let made = change(alice.post("/api/service-clients"), client).await;
    let client = format!("/api/service-clients/{}", text(&made["id"]));
    change(alice.patch(&client), json!({"name": "arm"})).await;
    delete(alice, &client).await;
}

const EXPECTED: &[&str] = &[
    "login.signed_in success",
    "login.signed_in success",
    "invitation.created success",
    "invitation.accepted success",
    "access.denied denied",
    "member.role_changed success",
    "invitation.created success",
    "invitation.revoked success",
    "pairing_code.created success",
    "pairing_code.revoked success",
    "pairing_code.created success",
    "device.paired success",
    "device.renamed success",
    "device.tag_set success",
    "device.tag_removed success",
    "device.open_link_created success",
    "device.host_opened success",
    "device.diagnosed success",
    "device.token_rotated success",
    "device.session_closed success",
    "group.created success",
    "group.renamed success",
    "group.device_added success",
    "group.device_removed success",
    "group.removed success",
    "service_client.created success",
    "service_client.changed success",
    "service_client.removed success",
    "device.removed success",
    "member.removed success",
    "tenant.renamed success",
    "login.ended success",
    "login.signed_out success",
    "login.signed_in success",
];

/// What is no tenant's is in no tenant's list.
fn rows_without_tenant(cloud: &TestCloud) -> Vec<(String, String, String)> {
    let database = cloud.database();
    let sql = "SELECT action, outcome, remote_addr FROM audit WHERE tenant_id IS NULL ORDER BY seq";
    let mut statement = database.prepare(sql).expect("a statement");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

async fn au_01_an_entry_says_who_what_on_what_from_where_and_in_which_request(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let path = format!("/api/devices/{}", device.id);
    let renamed = alice.patch(&path).json(&json!({"name": "till"}));
    let renamed = renamed.send().await.expect(200);
    let found = audit(&alice, "&action=device.renamed").await;
    assert_eq!(found.len(), 1);
    let entry = &found[0];
    assert_eq!(
        entry["actor"],
        json!({"kind": "user", "id": alice.user_id().await})
    );
    assert_eq!(entry["target"], *device.id);
    assert_eq!(entry["remote_addr"], "127.0.0.1");
    assert_eq!(entry["request_id"], renamed.header("x-request-id"));
    assert!(text(&entry["at"]).ends_with('Z'), "UTC: {entry}");
    let paired = audit(&alice, "&action=device.paired").await;
    assert_eq!(
        paired[0]["actor"],
        json!({"kind": "device", "id": device.id})
    );

    Anonymous::of(&cloud)
        .exchange("AAAA-AAAA")
        .await
        .expect(404);
    let stranger = Browser::new(&cloud);
    let authorize = stranger.begin_login("/").await;
    let callback = stranger.choose(&authorize, "bob").await;
    let wrong = callback.replace("code=", "code=x");
    stranger.open_callback(&wrong).await.expect_refusal();
    let row = |action: &str| {
        (
            action.to_owned(),
            "failure".to_owned(),
            "127.0.0.1".to_owned(),
        )
    };
    let expected = [row("pairing_code.refused"), row("login.failed")];
    assert_eq!(rows_without_tenant(&cloud), expected);
    let all = audit(&alice, "").await;
    let everything = format!("{all:?}");
    for secret in [device.token.as_str(), &alice.login_cookie()] {
        assert!(!everything.contains(secret), "no secret is written down");
    }
}

async fn the_list_is_filtered_and_cut_into_pages(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let adam = alice.colleague(&cloud, "adam", "admin").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let first = RawDevice::pair(&cloud, &alice).await.id;
    let second = RawDevice::pair(&cloud, &adam).await.id;
    for (person, device) in [(&alice, &first), (&adam, &second)] {
        let path = format!("/api/devices/{device}");
        person
            .patch(&path)
            .json(&json!({"name": "till"}))
            .send()
            .await
            .expect(200);
    }
    let renamed = audit(&alice, "&action=device.renamed").await;
    let targets: Vec<_> = renamed.iter().map(|item| text(&item["target"])).collect();
    assert_eq!(targets, [second.as_str(), &first], "newest first");
    let devices = lines(&audit(&alice, "&action=device").await);
    assert_eq!(devices.len(), 4, "{devices:?}");
    assert!(audit(&alice, "&action=dev").await.is_empty(), "whole words");
    let user = adam.user_id().await;
    let his = audit(&alice, &format!("&actor={user}")).await;
    assert!(!his.is_empty() && his.iter().all(|item| item["actor"]["id"] == *user));
    let about = audit(&alice, &format!("&target={first}&action=device.renamed")).await;
    assert_eq!(about.len(), 1);
    assert_eq!(lines(&audit(&bob, "").await), ["login.signed_in success"]);

    let all = audit(&alice, "").await;
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = alice
            .get(&format!("/api/audit?limit=3{cursor}"))
            .send()
            .await;
        let page = page.expect(200);
        paged.extend(page.items());
        match page.json()["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(paged, all);
    for bad in ["limit=0", "limit=201", "cursor=nonsense", "outcome=success"] {
        let answer = alice.get(&format!("/api/audit?{bad}")).send().await;
        answer.expect_refusal();
    }
}

/// Runs the check beside the processes: its exit code, and what it prints.
async fn verify(cloud: &TestCloud, more: &[&str]) -> (Option<i32>, String) {
    let dir = cloud.data_dir();
    let mut args = vec![
        "audit",
        "verify",
        "--data-dir",
        dir.to_str().expect("a path"),
    ];
    args.extend(more);
    let finished = run(&dir, &args, &[]).await;
    (finished.code, finished.stdout + &finished.stderr)
}

async fn au_02_nobody_changes_the_audit_unseen(mut cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    RawDevice::pair(&cloud, &alice).await;
    // What is written down is sealed when the process ends, too.
    cloud.restart(Part::Api).await;
    let (code, printed) = verify(&cloud, &[]).await;
    assert_eq!(code, Some(0), "{printed}");
    assert!(
        printed.contains("3 rows under 1 checkpoints, 0 rows since"),
        "{printed}"
    );
    let head = printed
        .split("head: ")
        .nth(1)
        .expect("a head")
        .trim()
        .to_owned();
    alice.pairing_code().await;
    cloud.restart(Part::Api).await;
    let (code, printed) = verify(&cloud, &["--expect", &head]).await;
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("4 rows under 2 checkpoints"), "{printed}");
    let (code, printed) = verify(&cloud, &["--expect", &"0".repeat(64)]).await;
    assert_eq!(code, Some(1), "{printed}");

    let database = without_triggers(&cloud);
    for (table, tamper, place) in [
        (
            "audit",
            "UPDATE audit SET actor = 'usr_x' WHERE seq = 2",
            "rows 1 to 3",
        ),
        (
            "audit",
            "UPDATE audit SET outcome = 'denied' WHERE seq = 4",
            "rows 4 to 4",
        ),
        ("audit", "DELETE FROM audit WHERE seq = 3", "rows 1 to 3"),
        (
            "audit_checkpoints",
            "DELETE FROM audit_checkpoints WHERE up_to = 3",
            "rows 1 to 4",
        ),
        (
            "audit_checkpoints",
            "UPDATE audit_checkpoints SET mac = zeroblob(32) WHERE up_to = 3",
            "at row 3",
        ),
    ] {
        let kept = format!("CREATE TABLE kept AS SELECT * FROM {table}");
        database.execute_batch(&kept).expect("keep the rows");
        assert_eq!(database.execute(tamper, []).expect("tamper"), 1);
        let (code, printed) = verify(&cloud, &[]).await;
        assert_eq!(code, Some(1), "{tamper}: {printed}");
        assert!(printed.contains(place), "{tamper}: {printed}");
        let back =
            format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept");
        database.execute_batch(&back).expect("put the rows back");
    }
    let (code, printed) = verify(&cloud, &[]).await;
    assert_eq!(code, Some(0), "{printed}");
}

fn without_triggers(cloud: &TestCloud) -> rusqlite::Connection {
    let database = cloud.database();
    for trigger in [
        "audit_is_not_changed",
        "audit_is_not_removed",
        "audit_checkpoints_are_not_changed",
        "audit_checkpoints_are_not_removed",
    ] {
        let sql = format!("DROP TRIGGER IF EXISTS {trigger}");
        database.execute(&sql, []).expect("drop a trigger");
    }
    database
}

async fn au_02_the_database_refuses_to_change_or_remove_a_row(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let database = cloud.database();
    for sql in ["UPDATE audit SET actor = 'usr_x'", "DELETE FROM audit"] {
        let refused = database.execute(sql, []).expect_err("it is append-only");
        assert!(refused.to_string().contains("append-only"), "{refused}");
    }
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let answer = alice.request(method, "/api/audit").json(&json!({}));
        answer.send().await.expect(405);
    }
    let one = audit(&alice, "").await;
    let path = format!("/api/audit/{}", text(&one[0]["id"]));
    alice.delete(&path).send().await.expect(404);
}

async fn au_03_no_control_character_of_a_caller_reaches_the_log(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let evil = "box\r\nFORGED line\u{1b}[2J\u{9b}31m\u{202e}";
    let (_, code) = alice.pairing_code().await;
    for field in ["name", "hostname", "os", "arch", "agent_version"] {
        let facts = BTreeMap::from([(field, evil)]);
        let body = json!({"code": code, "device": facts});
        let exchange = Anonymous::of(&cloud).post("/api/pairing/exchange");
        exchange
            .json(&body)
            .send()
            .await
            .expect_problem(422, "invalid_field");
    }
    let device = RawDevice::pair(&cloud, &alice).await;
    let path = format!("/api/devices/{}", device.id);
    let renamed = alice.patch(&path).json(&json!({"name": evil}));
    renamed.send().await.expect(422);
    let tag = alice
        .put(&format!("{path}/tags/room"))
        .json(&json!({"value": evil}));
    tag.send().await.expect(422);
    let path = format!("/api/devices/{}/http/%0d%0aFORGED%1b%5b2J", device.id);
    alice.get(&path).send().await.expect(503);
    let client = json!({"client_id": "robot", "name": evil, "role": "viewer"});
    let client = alice.post("/api/service-clients").json(&client);
    client.send().await.expect(422);
    // A sign-in from a browser with a name that a terminal would obey.
    let host = cloud.public_host();
    for agent in [
        &b"\x1b[2JFORGED"[..],
        b"\xc2\x9b31mFORGED",
        b"\x9b31mFORGED",
    ] {
        let mut caller = RawConnection::open(cloud.api_addr()).await;
        let mut request = format!(
            "GET /api/auth/me HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: "
        )
        .into_bytes();
        request.extend(agent);
        request.extend(b"\r\n\r\n");
        caller.send(request).await;
        caller.read_to_end().await;
    }
    alice.sign_out().await;
    for process in cloud.processes() {
        let output = process.output();
        assert!(!output.is_empty());
        for line in output.lines() {
            assert!(!line.starts_with("FORGED"), "{line:?}");
            let control = |letter: char| letter.is_control() && letter != '\t';
            assert!(!line.contains(control), "{line:?}");
            assert!(!line.contains('\u{202e}'), "{line:?}");
        }
    }
}
