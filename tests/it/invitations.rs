//! Invitations: a way into a tenant for one person.

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Answer, Browser, TestCloud, Topology, on_both_topologies, text};

on_both_topologies![
    an_invitation_is_listed_without_its_token_and_accepted_once,
    of_twenty_people_with_one_invitation_exactly_one_joins,
    a_member_who_accepts_again_changes_nothing_and_uses_nothing_up,
    what_is_wrong_used_expired_or_revoked_looks_alike,
    nobody_invites_to_more_than_they_are,
    an_invitation_is_worth_no_more_than_its_maker_is_now,
    lifetimes_out_of_bounds_are_refused,
    a_tenant_has_at_most_a_hundred_open_invitations,
    guessing_is_slowed_down,
];

async fn path_of(owner: &Browser) -> String {
    format!("/api/tenants/{}/invitations", owner.tenant_id().await)
}

async fn listed(owner: &Browser) -> Vec<Value> {
    let answer = owner.get(&path_of(owner).await).send().await;
    answer.expect(200).items()
}

async fn invite(person: &Browser, body: Value) -> Answer {
    person.post(&path_of(person).await).json(&body).send().await
}

async fn an_invitation_is_listed_without_its_token_and_accepted_once(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let made = invite(
        &alice,
        json!({"role": "operator", "email": "vera@example.com"}),
    )
    .await;
    let made = made.expect(201).json();
    let token = text(&made["token"]);
    assert!(
        text(&made["id"]).starts_with("inv_") && token.len() == 43,
        "{made}"
    );
    let open = listed(&alice).await;
    assert_eq!(open.len(), 1);
    assert_eq!(open[0]["status"], "open");
    assert_eq!(open[0]["email"], "vera@example.com");
    assert_eq!(open[0]["created_by"], *alice.user_id().await);
    assert!(
        !open[0].to_string().contains(&token),
        "a token is shown once"
    );

    let vera = Browser::sign_in_new(&cloud, "vera").await;
    let joined = vera.accept(&token).await.expect(200).json();
    assert_eq!(joined["tenant"]["id"], *alice.tenant_id().await);
    assert_eq!(joined["tenant"]["role"], "operator");
    assert_eq!(vera.me().await["tenants"].as_array().map(Vec::len), Some(2));
    let used = listed(&alice).await;
    assert_eq!(used[0]["status"], "accepted");
    assert_eq!(used[0]["accepted_by"], *vera.user_id().await);
    let bob = Browser::sign_in(&cloud, "bob").await;
    bob.accept(&token)
        .await
        .expect_problem(404, "invitation_invalid");
}

async fn of_twenty_people_with_one_invitation_exactly_one_joins(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, token) = alice.invite("admin").await;
    let mut people = Vec::new();
    for number in 0..20 {
        people.push(Browser::sign_in_new(&cloud, &format!("person {number}")).await);
    }
    let mut attempts = JoinSet::new();
    for person in people {
        let token = token.clone();
        attempts.spawn(async move { person.accept(&token).await.status.as_u16() });
    }
    let mut statuses = attempts.join_all().await;
    statuses.sort_unstable();
    assert_eq!(statuses[0], 200);
    assert_eq!(statuses[1..], [404; 19]);
    let members = format!("/api/tenants/{}/members", alice.tenant_id().await);
    let members = alice.get(&members).send().await.expect(200);
    assert_eq!(members.items().len(), 2);
}

async fn a_member_who_accepts_again_changes_nothing_and_uses_nothing_up(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let vera = alice.colleague(&cloud, "vera", "viewer").await;
    let (_, token) = alice.invite("admin").await;
    for member in [&vera, &alice] {
        let again = member.accept(&token).await;
        again.expect_problem(409, "already_member");
    }
    assert_eq!(vera.me().await["tenant"]["role"], "viewer");
    assert_eq!(alice.me().await["tenant"]["role"], "owner");
    let bob = Browser::sign_in(&cloud, "bob").await;
    bob.accept(&token).await.expect(200);
}

async fn what_is_wrong_used_expired_or_revoked_looks_alike(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let (_, used) = alice.invite("viewer").await;
    let vera = Browser::sign_in_new(&cloud, "vera").await;
    vera.accept(&used).await.expect(200);
    let (expired_id, expired) = alice.invite("viewer").await;
    let sql = "UPDATE invitations SET expires_at = ?1 WHERE id = ?2";
    let now = Timestamp::now().as_millisecond();
    let moved = cloud.database().execute(sql, (now, &expired_id));
    assert_eq!(moved.expect("move its end"), 1);
    let (revoked_id, revoked) = alice.invite("viewer").await;
    let path = format!("{}/{revoked_id}", path_of(&alice).await);
    alice.delete(&path).send().await.expect(204);
    alice.delete(&path).send().await.expect(404);

    let unknown = bob
        .accept(&"A".repeat(43))
        .await
        .expect(404)
        .without_request_id();
    assert_eq!(unknown["code"], "invitation_invalid");
    for bad in [
        used.as_str(),
        &expired,
        &revoked,
        "",
        "not base64 at all",
        "AAAA",
    ] {
        let answer = bob.accept(bad).await.expect(404);
        assert_eq!(answer.without_request_id(), unknown, "{bad}");
    }
    let states: Vec<_> = listed(&alice)
        .await
        .iter()
        .map(|it| text(&it["status"]))
        .collect();
    assert_eq!(states, ["accepted", "expired"]);
    assert_eq!(bob.me().await["tenants"].as_array().map(Vec::len), Some(1));
}

async fn nobody_invites_to_more_than_they_are(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let adam = alice.colleague(&cloud, "adam", "admin").await;
    let above = invite(&adam, json!({"role": "owner"})).await;
    above.expect_problem(403, "role_insufficient");
    invite(&adam, json!({"role": "admin"})).await.expect(201);
    invite(&alice, json!({"role": "owner"})).await.expect(201);
    invite(&alice, json!({"role": "king"})).await.expect(422);
    assert_eq!(listed(&alice).await.len(), 3, "adam's own is one of them");
}

async fn an_invitation_is_worth_no_more_than_its_maker_is_now(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let adam = alice.colleague(&cloud, "adam", "owner").await;
    let (_, owners) = adam.invite("owner").await;
    let (_, viewers) = adam.invite("viewer").await;
    let (_, others) = adam.invite("viewer").await;
    let member = alice.tenant_id().await;
    let member = format!("/api/tenants/{member}/members/{}", adam.user_id().await);
    let set = async |role: &str| {
        let request = alice.put(&member).json(&json!({"role": role}));
        request.send().await.expect(200);
    };
    let accept = async |name: &str, token: &str| {
        let person = Browser::sign_in_new(&cloud, name).await;
        person.accept(token).await.status.as_u16()
    };
    set("admin").await;
    assert_eq!(
        accept("one", &owners).await,
        404,
        "more than an admin may give"
    );
    assert_eq!(accept("two", &viewers).await, 200);
    set("operator").await;
    assert_eq!(
        accept("three", &others).await,
        404,
        "an operator invites nobody"
    );
    alice.delete(&member).send().await.expect(204);
    assert_eq!(
        accept("four", &others).await,
        404,
        "nor does somebody who is gone"
    );
}

async fn lifetimes_out_of_bounds_are_refused(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    for ttl in [300, 2_592_000] {
        let made = invite(&alice, json!({"role": "viewer", "ttl_secs": ttl})).await;
        let until: Timestamp = text(&made.expect(201).json()["expires_at"])
            .parse()
            .expect("a time");
        let left = until.duration_since(Timestamp::now()).as_secs();
        assert!(left <= ttl && left > ttl - 60, "{left}");
    }
    for ttl in [0, 299, 2_592_001] {
        let refused = invite(&alice, json!({"role": "viewer", "ttl_secs": ttl})).await;
        refused.expect_problem(422, "invalid_field");
    }
}

async fn a_tenant_has_at_most_a_hundred_open_invitations(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (first, _) = alice.invite("viewer").await;
    for _ in 1..100 {
        invite(&alice, json!({"role": "viewer"})).await.expect(201);
    }
    let more = invite(&alice, json!({"role": "viewer"})).await;
    more.expect_problem(409, "too_many_invitations");
    let path = format!("{}/{first}", path_of(&alice).await);
    alice.delete(&path).send().await.expect(204);
    invite(&alice, json!({"role": "viewer"})).await.expect(201);
}

async fn guessing_is_slowed_down(topology: Topology) {
    const LIMIT: &str = "EDGECLOUD__LIMITS__PAIRING_ATTEMPTS_PER_MINUTE";
    let cloud = TestCloud::builder(topology)
        .without_setting(LIMIT)
        .setting(LIMIT, 5)
        .spawn()
        .await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    for _ in 0..5 {
        bob.accept("wrong").await.expect(404);
    }
    let slowed = bob.accept("wrong").await;
    let slowed = slowed.expect_problem(429, "rate_limited");
    assert_ne!(slowed.header("retry-after"), "");
}
