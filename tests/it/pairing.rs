//! Pairing: how a box becomes a tenant's device, once, and how nobody else's box does.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{
    Anonymous, Browser, RawDevice, TestCloud, Topology, on_both_topologies, text,
};

on_both_topologies![
    an_owner_makes_a_code_sees_it_and_takes_it_back,
    a_box_exchanges_a_code_for_its_identity,
    case_and_dash_of_a_code_do_not_matter,
    pa_02_a_code_lives_ten_minutes_unless_asked_otherwise,
    pa_02_lifetimes_out_of_bounds_are_refused,
    pa_03_of_a_hundred_exchanges_of_one_code_exactly_one_wins,
    pa_06_guessing_is_slowed_down,
    pa_08_a_code_pairs_with_its_own_tenant_only,
    pa_09_every_bad_code_looks_alike,
    unknown_fields_are_refused_and_leave_the_code_good,
    at_most_twenty_codes_are_open,
    codes_belong_to_their_tenant,
];

async fn an_owner_makes_a_code_sees_it_and_takes_it_back(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let made = alice
        .post("/api/pairing/codes")
        .json(&json!({"name": "shop window"}))
        .send()
        .await
        .expect(201)
        .json();
    let (id, code) = (text(&made["id"]), text(&made["code"]));
    assert!(id.starts_with("pc_"), "{made}");
    assert_is_code(&code);

    let listed = alice.get("/api/pairing/codes").send().await.expect(200);
    let items = listed.items();
    assert_eq!(items.len(), 1);
    assert_eq!(items[0]["id"], *id);
    assert!(!listed.text().contains(&code), "a code is shown once");
    let one = alice.get(&format!("/api/pairing/codes/{id}")).send().await;
    let one = one.expect(200);
    assert_eq!(one.json()["id"], *id);
    assert!(!one.text().contains(&code), "a code is shown once");

    let path = format!("/api/pairing/codes/{id}");
    alice.delete(&path).send().await.expect_success();
    Anonymous::of(&cloud)
        .exchange(&code)
        .await
        .expect_problem(404, "pairing_code_invalid");
    assert_eq!(alice.devices().await.len(), 0);
}

#[track_caller]
fn assert_is_code(code: &str) {
    let halves: Vec<_> = code.split('-').collect();
    let [left, right] = halves[..] else {
        panic!("not a code: {code}");
    };
    for half in [left, right] {
        let letters = half
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        assert!(half.len() == 4 && letters, "not a code: {code}");
    }
}

async fn a_box_exchanges_a_code_for_its_identity(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, code) = alice.pairing_code().await;
    let answer = Anonymous::of(&cloud)
        .post("/api/pairing/exchange")
        .json(&json!({"code": code, "device": {
            "name": "till 3", "hostname": "till3", "os": "linux", "arch": "aarch64",
            "agent_version": "1.2.3",
        }}))
        .send()
        .await
        .expect(200)
        .json();
    let id = text(&answer["device_id"]);
    assert!(id.starts_with("dev_") && id.len() == 4 + 26, "{id}");
    assert!(text(&answer["token"]).starts_with("edt_"), "{answer}");
    let tunnel = format!("ws://{}", cloud.tunnel_addr());
    assert!(text(&answer["tunnel_url"]).starts_with(&tunnel), "{answer}");

    let device = alice.device(&id).await;
    assert_eq!(device["id"], *id);
    assert_eq!(device["name"], "till 3");
    assert_eq!(device["status"], "offline");
    assert!(device["session"].is_null(), "{device}");
    assert_eq!(device["tags"], json!({}));
    assert!(device["created_at"].is_string(), "{device}");
    assert!(
        !device.to_string().contains("edt_"),
        "a token is shown once"
    );
}

async fn case_and_dash_of_a_code_do_not_matter(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, first) = alice.pairing_code().await;
    let (_, second) = alice.pairing_code().await;
    let box_ = Anonymous::of(&cloud);
    box_.exchange(&first.to_lowercase()).await.expect(200);
    box_.exchange(&second.replace('-', "")).await.expect(200);
}

async fn pa_02_a_code_lives_ten_minutes_unless_asked_otherwise(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    for (body, seconds) in [
        (json!({}), 600),
        (json!({"ttl_secs": 60}), 60),
        (json!({"ttl_secs": 86_400}), 86_400),
    ] {
        let before = Timestamp::now();
        let made = alice.post("/api/pairing/codes").json(&body).send().await;
        let made = made.expect(201).json();
        let until: Timestamp = text(&made["expires_at"]).parse().expect("RFC 3339");
        let ttl = SignedDuration::from_secs(seconds);
        // Both ends are rounded to at most a second.
        let second = SignedDuration::from_secs(1);
        assert!(until >= before + ttl - second, "{made}");
        assert!(until <= Timestamp::now() + ttl + second, "{made}");
    }
    let empty = alice.post("/api/pairing/codes").send().await;
    assert_is_code(&text(&empty.expect(201).json()["code"]));
}

async fn pa_02_lifetimes_out_of_bounds_are_refused(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let make = |body| alice.post("/api/pairing/codes").json(&body).send();
    for ttl in [0, 59, 86_401] {
        let answer = make(json!({"ttl_secs": ttl})).await.expect(422);
        let errors = answer.json()["errors"].to_string();
        assert!(errors.contains("ttl_secs"), "names the field: {errors}");
    }
    make(json!({"ttl_secs": "600"})).await.expect(400);
    make(json!({"ttl": 600})).await.expect(400);
}

async fn pa_03_of_a_hundred_exchanges_of_one_code_exactly_one_wins(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, code) = alice.pairing_code().await;
    let mut racers = JoinSet::new();
    for _ in 0..100 {
        let (racer, code) = (Anonymous::of(&cloud), code.clone());
        racers.spawn(async move { racer.exchange(&code).await });
    }
    let answers = racers.join_all().await;
    let won = answers.iter().filter(|answer| answer.status == 200).count();
    let lost = answers.iter().filter(|answer| answer.status == 404).count();
    assert_eq!((won, lost), (1, 99));
    assert_eq!(alice.devices().await.len(), 1);
}

async fn pa_06_guessing_is_slowed_down(topology: Topology) {
    const ALLOWED: usize = 5;
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__PAIRING_ATTEMPTS_PER_MINUTE", ALLOWED)
        .spawn()
        .await;
    let guesser = Anonymous::of(&cloud);
    for _ in 0..ALLOWED {
        guesser.exchange("AAAA-AAAA").await.expect(404);
    }
    let answer = guesser
        .post("/api/pairing/exchange")
        .header("x-forwarded-for", "192.0.2.7")
        .json(&json!({"code": "AAAA-AAAA", "device": {}}))
        .send()
        .await
        .expect(429);
    let wait: u64 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
}

async fn pa_08_a_code_pairs_with_its_own_tenant_only(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    assert_eq!(alice.device(&device.id).await["id"], *device.id);
    assert_eq!(bob.devices().await.len(), 0);
}

async fn pa_09_every_bad_code_looks_alike(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, used) = alice.pairing_code().await;
    Anonymous::of(&cloud).exchange(&used).await.expect(200);
    let (revoked_id, revoked) = alice.pairing_code().await;
    let path = format!("/api/pairing/codes/{revoked_id}");
    alice.delete(&path).send().await.expect_success();
    let (expired_id, expired) = alice.pairing_code().await;
    let_code_expire(&cloud, &expired_id);

    let mut answers = Vec::new();
    let bad = [
        &used,
        &revoked,
        &expired,
        "AAAA-AAAA",
        "",
        "short",
        "no code at all",
    ];
    for code in bad {
        let answer = Anonymous::of(&cloud).exchange(code).await;
        let answer = answer.expect_problem(404, "pairing_code_invalid");
        answers.push(answer.without_request_id().to_string());
    }
    let different: HashSet<_> = answers.iter().collect();
    assert_eq!(different.len(), 1, "{different:?}");
    assert_eq!(alice.devices().await.len(), 1);
}

/// A code lives a minute at least, which is too long for a test: its end is moved in the database.
fn let_code_expire(cloud: &TestCloud, id: &str) {
    let database = rusqlite::Connection::open(cloud.data_dir().join("edgecloud.db"));
    let database = database.expect("open the database");
    let changed = database
        .execute(
            "UPDATE pairing_codes SET expires_at = 1 WHERE id = ?1",
            [id],
        )
        .expect("move the code's end");
    assert_eq!(changed, 1);
}

async fn unknown_fields_are_refused_and_leave_the_code_good(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, code) = alice.pairing_code().await;
    for body in [
        json!({"code": code, "device": {}, "tenant_id": "ten_x"}),
        json!({"code": code, "device": {"role": "admin"}}),
        json!({"code": 7, "device": {}}),
    ] {
        let request = Anonymous::of(&cloud).post("/api/pairing/exchange");
        request.json(&body).send().await.expect(400);
    }
    Anonymous::of(&cloud).exchange(&code).await.expect(200);
}

async fn at_most_twenty_codes_are_open(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(alice.pairing_code().await.0);
    }
    let more = alice.post("/api/pairing/codes").json(&json!({}));
    more.send().await.expect_refusal();
    bob.pairing_code().await;
    let path = format!("/api/pairing/codes/{}", ids[0]);
    alice.delete(&path).send().await.expect_success();
    alice.pairing_code().await;
}

async fn codes_belong_to_their_tenant(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let (id, code) = alice.pairing_code().await;
    let path = format!("/api/pairing/codes/{id}");
    let unknown = "/api/pairing/codes/pc_aaaaaaaaaaaaaaaaaaaaaaaaaa";
    for method in [http::Method::GET, http::Method::DELETE] {
        let foreign = bob.request(method.clone(), &path).send().await;
        let missing = bob.request(method, unknown).send().await;
        let (foreign, missing) = (foreign.expect(404), missing.expect(404));
        assert_eq!(foreign.without_request_id(), missing.without_request_id());
    }
    let listed = bob.get("/api/pairing/codes").send().await.expect(200);
    assert_eq!(listed.items().len(), 0);
    Anonymous::of(&cloud).exchange(&code).await.expect(200);
}
