//! Tenants, who is in them as what, and that they know nothing of each other.

use http::Method;
use serde_json::{Value, json};

use crate::support::{
    Anonymous, Browser, Manner, RawDevice, TestCloud, eventually, on_both_topologies, text,
};

on_both_topologies![
    a_person_makes_renames_and_removes_a_tenant,
    a_person_owns_at_most_twenty_tenants,
    an_owner_gives_members_roles_and_takes_them_out,
    a_tenant_keeps_its_last_owner,
    whoever_leaves_goes_on_in_a_tenant_of_their_own,
    whoever_leaves_their_only_tenant_is_signed_out,
    a_service_client_belongs_to_one_tenant_and_is_no_more_than_its_maker,
    tn_03_no_body_and_no_query_names_a_tenant,
    tn_03_a_foreign_tenant_in_the_header_looks_like_an_unknown_one,
    tn_04_no_list_shows_anything_of_another_tenant,
    tn_04_a_cursor_is_of_no_use_to_another_tenant,
    tn_11_a_removed_tenant_takes_codes_tunnels_and_logins_along,
    pa_08_a_code_whose_maker_is_gone_pairs_nothing,
];

async fn list(person: &Browser, path: &str) -> Vec<Value> {
    person.get(path).send().await.expect(200).items()
}

async fn set_role(owner: &Browser, user: &str, role: &str) -> crate::support::Answer {
    let path = member_path(owner, user).await;
    owner.put(&path).json(&json!({"role": role})).send().await
}

async fn member_path(person: &Browser, user: &str) -> String {
    format!("/api/tenants/{}/members/{user}", person.tenant_id().await)
}

async fn a_person_makes_renames_and_removes_a_tenant(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let first = alice.tenant_id().await;
    let made = alice
        .post("/api/tenants")
        .json(&json!({"name": " Shop 7 "}));
    let made = made.send().await.expect(201).json();
    assert_eq!(made["name"], "Shop 7");
    assert_eq!(made["role"], "owner");
    assert_eq!(made["managed_by_provider"], false);
    let id = text(&made["id"]);
    assert!(id.starts_with("ten_"), "{made}");
    assert_eq!(alice.tenant_id().await, first, "the active one stays");
    assert_eq!(list(&alice, "/api/tenants").await.len(), 2);

    let path = format!("/api/tenants/{id}");
    for bad in [
        json!({"name": ""}),
        json!({"name": null}),
        json!({"name": "a\u{1b}b"}),
    ] {
        alice
            .post("/api/tenants")
            .json(&bad)
            .send()
            .await
            .expect(422);
        alice.patch(&path).json(&bad).send().await.expect(422);
    }
    let renamed = alice.patch(&path).json(&json!({"name": "Shop 8"}));
    assert_eq!(renamed.send().await.expect(200).json()["name"], "Shop 8");
    let same = alice.patch(&path).json(&json!({})).send().await.expect(200);
    assert_eq!(same.json()["name"], "Shop 8");
    let shown = alice.get(&path).send().await.expect(200).json();
    assert_eq!(shown, same.json());

    alice.delete(&path).send().await.expect(204);
    alice
        .get(&path)
        .send()
        .await
        .expect_problem(404, "not_found");
    alice.delete(&path).send().await.expect(404);
    assert_eq!(list(&alice, "/api/tenants").await.len(), 1);
}

async fn a_person_owns_at_most_twenty_tenants(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    for number in 2..=20 {
        alice.create_tenant(&format!("shop {number}")).await;
    }
    let more = alice.post("/api/tenants").json(&json!({"name": "more"}));
    more.send().await.expect_problem(409, "too_many_tenants");
}

async fn an_owner_gives_members_roles_and_takes_them_out(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let vera = alice.colleague(&cloud, "vera", "viewer").await;
    let user = vera.user_id().await;
    let members = format!("/api/tenants/{}/members", alice.tenant_id().await);
    let listed = list(&vera, &members).await;
    let found = listed.iter().find(|member| member["user_id"] == *user);
    let found = found.expect("vera is a member");
    assert_eq!(
        (&found["role"], &found["source"]),
        (&json!("viewer"), &json!("invitation"))
    );

    for role in ["operator", "admin", "owner", "viewer"] {
        let member = set_role(&alice, &user, role).await.expect(200).json();
        assert_eq!(member["role"], role);
        assert_eq!(vera.me().await["tenant"]["role"], role, "at once");
    }
    set_role(&alice, &user, "king").await.expect(422);
    let nobody = set_role(&alice, &format!("usr_{}", "a".repeat(26)), "viewer").await;
    nobody.expect_problem(404, "not_found");

    let path = format!("{members}/{user}");
    alice.delete(&path).send().await.expect(204);
    alice.delete(&path).send().await.expect(404);
    vera.get(&members).send().await.expect(404);
    assert_eq!(list(&alice, &members).await.len(), 1);
}

async fn a_tenant_keeps_its_last_owner(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (user, path) = (
        alice.user_id().await,
        member_path(&alice, &alice.user_id().await).await,
    );
    set_role(&alice, &user, "admin")
        .await
        .expect_problem(409, "last_owner");
    let leave = alice.delete(&path).send().await;
    leave.expect_problem(409, "last_owner");
    set_role(&alice, &user, "owner").await.expect(200);
    assert_eq!(alice.me().await["tenant"]["role"], "owner");

    let oscar = alice.colleague(&cloud, "oscar", "owner").await;
    set_role(&alice, &user, "admin").await.expect(200);
    let last = oscar.user_id().await;
    set_role(&oscar, &last, "viewer")
        .await
        .expect_problem(409, "last_owner");
    let leave = oscar.delete(&member_path(&oscar, &last).await).send().await;
    leave.expect_problem(409, "last_owner");
    oscar.delete(&path).send().await.expect(204);
}

async fn whoever_leaves_goes_on_in_a_tenant_of_their_own(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let tenant = alice.tenant_id().await;
    let vera = Browser::sign_in_new(&cloud, "vera").await;
    let own = vera.tenant_id().await;
    alice.take_in(&vera, "viewer").await;
    assert_eq!(vera.tenant_id().await, tenant);
    let path = member_path(&vera, &vera.user_id().await).await;
    vera.delete(&path).send().await.expect(204);
    let me = vera.me().await;
    assert_eq!(me["tenant"]["id"], *own);
    assert_eq!(me["tenants"].as_array().map(Vec::len), Some(1), "{me}");
}

async fn whoever_leaves_their_only_tenant_is_signed_out(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let vera = Browser::sign_in_new(&cloud, "vera").await;
    let own = vera.tenant_id().await;
    alice.take_in(&vera, "viewer").await;
    let gone = vera.delete(&format!("/api/tenants/{own}")).send().await;
    gone.expect(204);
    let path = member_path(&vera, &vera.user_id().await).await;
    vera.delete(&path).send().await.expect(204);
    assert!(!vera.is_signed_in().await);
}

async fn register(person: &Browser, client: &str, role: &str) -> crate::support::Answer {
    let body = json!({"client_id": client, "name": "robot", "role": role});
    person.post("/api/service-clients").json(&body).send().await
}

async fn a_service_client_belongs_to_one_tenant_and_is_no_more_than_its_maker(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let adam = alice.colleague(&cloud, "adam", "admin").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let made = register(&adam, "robot-1", "admin").await.expect(201).json();
    let path = format!("/api/service-clients/{}", text(&made["id"]));
    for person in [&adam, &bob] {
        let taken = register(person, "robot-1", "viewer").await;
        taken.expect_problem(409, "client_id_taken");
    }
    let above = register(&adam, "robot-2", "owner").await;
    above.expect_problem(403, "role_insufficient");
    for bad in ["", "two words", "ümlaut", &"x".repeat(256)] {
        register(&adam, bad, "viewer").await.expect(422);
    }

    let patch = async |person: &Browser, body: Value| person.patch(&path).json(&body).send().await;
    let raised = patch(&adam, json!({"role": "owner"})).await;
    raised.expect_problem(403, "role_insufficient");
    let changed = patch(&alice, json!({"role": "owner", "name": "robot one"})).await;
    let changed = changed.expect(200).json();
    assert_eq!(
        (&changed["role"], &changed["name"]),
        (&json!("owner"), &json!("robot one"))
    );
    let lowered = patch(&adam, json!({"role": "viewer"})).await;
    lowered.expect_problem(403, "role_insufficient");
    let unknown = patch(&alice, json!({"client_id": "robot-3"})).await;
    unknown.expect_problem(400, "bad_request");

    alice.delete(&path).send().await.expect(204);
    adam.get(&path).send().await.expect(404);
    register(&bob, "robot-1", "viewer").await.expect(201);
}

async fn tn_03_no_body_and_no_query_names_a_tenant(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let (own, foreign) = (alice.tenant_id().await, bob.tenant_id().await);
    let device = RawDevice::pair(&cloud, &alice).await.id;
    for (method, path, body) in [
        (Method::POST, "/api/groups".to_owned(), json!({"name": "x"})),
        (Method::POST, "/api/pairing/codes".to_owned(), json!({})),
        (
            Method::POST,
            "/api/tenants".to_owned(),
            json!({"name": "x"}),
        ),
        (
            Method::POST,
            "/api/service-clients".to_owned(),
            json!({"client_id": "x", "role": "viewer"}),
        ),
        (
            Method::POST,
            format!("/api/tenants/{own}/invitations"),
            json!({"role": "viewer"}),
        ),
        (
            Method::PATCH,
            format!("/api/tenants/{own}"),
            json!({"name": "x"}),
        ),
        (
            Method::PATCH,
            format!("/api/devices/{device}"),
            json!({"name": "x"}),
        ),
        (
            Method::POST,
            format!("/api/devices/{device}/open"),
            json!({}),
        ),
    ] {
        for field in ["tenant_id", "tenant", "role_id"] {
            for value in [&foreign, &own] {
                let mut body = body.clone();
                body[field] = json!(value);
                let answer = alice
                    .request(method.clone(), &path)
                    .json(&body)
                    .send()
                    .await;
                answer.expect_problem(400, "bad_request");
            }
        }
    }
    for path in [
        "/api/devices",
        "/api/groups",
        "/api/audit",
        "/api/usage",
        "/api/pairing/codes",
    ] {
        for query in [format!("tenant={foreign}"), format!("tenant_id={own}")] {
            let answer = alice.get(&format!("{path}?{query}")).send().await;
            answer.expect_problem(400, "bad_request");
        }
    }
}

async fn tn_03_a_foreign_tenant_in_the_header_looks_like_an_unknown_one(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let second = alice.create_tenant("second").await;
    let in_tenant = async |tenant: &str, path: &str| {
        let request = alice.get(path).header("edgecloud-tenant", tenant);
        request.send().await
    };
    let me = in_tenant(&second, "/api/auth/me").await.expect(200).json();
    assert_eq!(me["tenant"]["id"], *second);
    let unknown = format!("ten_{}", "a".repeat(26));
    for path in ["/api/devices", "/api/auth/me", "/api/audit", "/api/nothing"] {
        let expected = in_tenant(&unknown, path).await;
        let expected = expected.expect_problem(403, "tenant_forbidden");
        for bad in [bob.tenant_id().await.as_str(), "nonsense", ""] {
            let answer = in_tenant(bad, path).await.expect(403);
            assert_eq!(answer.without_request_id(), expected.without_request_id());
        }
    }
    let both = alice
        .get("/api/devices")
        .header("edgecloud-tenant", &second);
    let both = both.another_header("edgecloud-tenant", &alice.tenant_id().await);
    both.send().await.expect(403);
}

/// Every list of a tenant.
async fn lists(person: &Browser, device: &str) -> Vec<String> {
    let tenant = person.tenant_id().await;
    let mut paths: Vec<_> = [
        "devices",
        "groups",
        "service-clients",
        "pairing/codes",
        "audit",
        "usage",
        "tenants",
    ]
    .iter()
    .map(|list| format!("/api/{list}"))
    .collect();
    for list in ["members", "invitations"] {
        paths.push(format!("/api/tenants/{tenant}/{list}"));
    }
    for list in ["events", "metrics"] {
        paths.push(format!("/api/devices/{device}/{list}"));
    }
    paths
}

/// Two of each thing that a tenant has, with the same names in every tenant; returns a device.
async fn fill(cloud: &TestCloud, owner: &Browser, clients: [&str; 2], person: &str) -> String {
    owner.colleague(cloud, person, "viewer").await;
    for client in clients {
        register(owner, client, "viewer").await.expect(201);
        owner.invite("viewer").await;
        owner.pairing_code().await;
    }
    for name in ["line 1", "line 2"] {
        let made = owner.post("/api/groups").json(&json!({"name": name}));
        made.send().await.expect(201);
    }
    RawDevice::pair(cloud, owner).await;
    let device = RawDevice::pair(cloud, owner).await;
    let _served = device.serve(Manner::Says("hello")).await;
    owner.wait_for_status(&device.id, "online").await;
    let get = owner.forward(&device.id, Method::GET, "/");
    get.send().await.expect(200);
    device.id
}

/// Everything in a text that looks like an id.
fn ids(text: &str) -> Vec<String> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.len() > 26 && word.contains('_') && !word.starts_with("req_"))
        .map(str::to_owned)
        .collect()
}

async fn tn_04_no_list_shows_anything_of_another_tenant(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let hers = fill(&cloud, &alice, ["a-1", "a-2"], "vera").await;
    let his = fill(&cloud, &bob, ["b-1", "b-2"], "otto").await;
    let all = async |person: &Browser, device: &str| {
        eventually("traffic is counted", async || {
            let usage = person.get("/api/usage").send().await.expect(200).json();
            (usage["total"]["requests"] == 1).then_some(())
        })
        .await;
        let mut texts = String::new();
        for path in lists(person, device).await {
            texts += &person.get(&path).send().await.expect(200).text();
        }
        texts
    };
    let (her_text, his_text) = (all(&alice, &hers).await, all(&bob, &his).await);
    let (her_ids, his_ids) = (ids(&her_text), ids(&his_text));
    assert!(her_ids.len() > 20 && her_ids.contains(&hers), "{her_ids:?}");
    assert!(her_ids.contains(&alice.user_id().await));
    for id in &her_ids {
        // The node is the only thing that both use.
        assert!(!his_ids.contains(id) || id.starts_with("node_"), "{id}");
    }
    for name in ["b-1", "otto"] {
        assert!(
            his_text.contains(name) && !her_text.contains(name),
            "{name}"
        );
    }
    let found = list(&alice, "/api/devices?name=box").await;
    assert_eq!(found.len(), 2, "the search stays in the tenant");
    let of_his = list(&alice, &format!("/api/audit?target={his}")).await;
    assert_eq!(of_his, Vec::<Value>::new());
}

async fn tn_04_a_cursor_is_of_no_use_to_another_tenant(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let hers = fill(&cloud, &alice, ["a-1", "a-2"], "vera").await;
    let his = fill(&cloud, &bob, ["b-1", "b-2"], "otto").await;
    let lists = lists(&alice, &hers)
        .await
        .into_iter()
        .zip(lists(&bob, &his).await);
    let mut tried = 0;
    for (her_path, his_path) in lists {
        let is_paged = !["usage", "metrics", "tenants"]
            .iter()
            .any(|end| her_path.ends_with(end));
        if !is_paged {
            continue;
        }
        let first = alice.get(&format!("{her_path}?limit=1")).send().await;
        let first = first.expect(200).json();
        let cursor = text(&first["next_cursor"]);
        let next = list(&alice, &format!("{her_path}?limit=1&cursor={cursor}")).await;
        assert_ne!(next[0], first["items"][0], "{her_path}");
        let stolen = bob.get(&format!("{his_path}?limit=1&cursor={cursor}"));
        stolen.send().await.expect_problem(400, "cursor_invalid");
        tried += 1;
    }
    assert_eq!(tried, 8);
}

async fn tn_11_a_removed_tenant_takes_codes_tunnels_and_logins_along(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let first = alice.tenant_id().await;
    let tenant = alice.create_tenant("for a while").await;
    alice.enter_tenant(&tenant).await;
    let vera = Browser::sign_in_new(&cloud, "vera").await;
    let own = vera.tenant_id().await;
    alice.take_in(&vera, "admin").await;
    vera.delete(&format!("/api/tenants/{own}"))
        .send()
        .await
        .expect(204);
    let (_, invitation) = alice.invite("viewer").await;
    let (_, code) = alice.pairing_code().await;
    register(&alice, "robot-1", "viewer").await.expect(201);
    let device = RawDevice::pair(&cloud, &alice).await;
    let served = device.serve(Manner::Says("hello")).await;
    alice.wait_for_status(&device.id, "online").await;

    alice
        .delete(&format!("/api/tenants/{tenant}"))
        .send()
        .await
        .expect(204);
    served.ended().await;
    let again = device.handshake().websocket().await;
    let Err(refused) = again else {
        panic!("the token is void");
    };
    refused.expect(401);
    let exchanged = Anonymous::of(&cloud).exchange(&code).await;
    exchanged.expect_problem(404, "pairing_code_invalid");
    assert!(!vera.is_signed_in().await, "it was her only tenant");
    assert_eq!(alice.tenant_id().await, first, "she goes on in another");
    let header = alice
        .get("/api/devices")
        .header("edgecloud-tenant", &tenant);
    header.send().await.expect_problem(403, "tenant_forbidden");
    let path = format!("/api/devices/{}", device.id);
    alice.get(&path).send().await.expect(404);
    let bob = Browser::sign_in(&cloud, "bob").await;
    let late = bob.accept(&invitation).await;
    late.expect_problem(404, "invitation_invalid");
    register(&bob, "robot-1", "viewer").await.expect(201);
}

async fn pa_08_a_code_whose_maker_is_gone_pairs_nothing(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let anybody = Anonymous::of(&cloud);
    for (role, pairs) in [("owner", true), ("admin", true), ("operator", false)] {
        let adam = alice.colleague(&cloud, role, "admin").await;
        let (_, code) = adam.pairing_code().await;
        set_role(&alice, &adam.user_id().await, role)
            .await
            .expect(200);
        let answer = anybody.exchange(&code).await;
        assert_eq!(
            answer.status == 200,
            pairs,
            "made by an admin who is {role} now"
        );
    }
    let adam = alice.colleague(&cloud, "adam", "admin").await;
    let (_, code) = adam.pairing_code().await;
    let path = member_path(&alice, &adam.user_id().await).await;
    alice.delete(&path).send().await.expect(204);
    let refused = anybody.exchange(&code).await;
    refused.expect_problem(404, "pairing_code_invalid");
    assert_eq!(alice.devices().await.len(), 2);
}
