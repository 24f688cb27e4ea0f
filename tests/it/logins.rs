//! A person's own logins, and the tenant that requests are about.

use http::Method;
use serde_json::json;

use crate::support::{Browser, TestCloud, on_both_topologies, text};

on_both_topologies![
    cs_07_a_person_sees_their_logins_and_ends_one_from_another,
    cs_07_a_person_ends_all_other_logins,
    cs_07_another_persons_login_looks_like_one_that_does_not_exist,
    tn_03_the_active_tenant_is_one_of_the_persons_own,
];

async fn login_of(browser: &Browser) -> String {
    let me = browser
        .get("/api/auth/me")
        .send()
        .await
        .expect_success()
        .json();
    text(&me["login"]["id"]).to_owned()
}

async fn cs_07_a_person_sees_their_logins_and_ends_one_from_another(cloud: TestCloud) {
    let here = Browser::sign_in(&cloud, "alice").await;
    let there = Browser::sign_in(&cloud, "alice").await;
    let listed = here
        .get("/api/auth/logins")
        .send()
        .await
        .expect_success()
        .json();
    let items = listed["items"].as_array().expect("a list");
    assert_eq!(items.len(), 2, "{listed}");
    let (mine, other) = (login_of(&here).await, login_of(&there).await);
    for item in items {
        assert_eq!(item["current"] == true, item["id"] == mine, "{item}");
        assert_eq!(item["remote_addr"], "127.0.0.1", "{item}");
        assert!(item["created_at"].is_string() && item["expires_at"].is_string());
    }
    let ended = here
        .delete(&format!("/api/auth/logins/{other}"))
        .send()
        .await;
    assert_eq!(ended.status, 204);
    assert_eq!(there.get("/api/auth/me").send().await.status, 401);
    assert_eq!(here.get("/api/auth/me").send().await.status, 200);
}

async fn cs_07_a_person_ends_all_other_logins(cloud: TestCloud) {
    let here = Browser::sign_in(&cloud, "alice").await;
    let others = [
        Browser::sign_in(&cloud, "alice").await,
        Browser::sign_in(&cloud, "alice").await,
    ];
    let bob = Browser::sign_in(&cloud, "bob").await;
    assert_eq!(here.delete("/api/auth/logins").send().await.status, 204);
    for other in &others {
        assert_eq!(other.get("/api/auth/me").send().await.status, 401);
    }
    assert_eq!(here.get("/api/auth/me").send().await.status, 200);
    assert_eq!(bob.get("/api/auth/me").send().await.status, 200);
}

async fn cs_07_another_persons_login_looks_like_one_that_does_not_exist(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let hers = login_of(&alice).await;
    for id in [hers.as_str(), "lgn_aaaaaaaaaaaaaaaaaaaaaaaaaa", "nonsense"] {
        let answer = bob.delete(&format!("/api/auth/logins/{id}")).send().await;
        assert_eq!(answer.status, 404, "{id}");
        assert_eq!(answer.json()["code"], "not_found", "{id}");
    }
    assert_eq!(alice.get("/api/auth/me").send().await.status, 200);
}

async fn tn_03_the_active_tenant_is_one_of_the_persons_own(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let tenant_of = async |browser: &Browser| {
        let me = browser
            .get("/api/auth/me")
            .send()
            .await
            .expect_success()
            .json();
        text(&me["tenant"]["id"]).to_owned()
    };
    let (hers, his) = (tenant_of(&alice).await, tenant_of(&bob).await);
    let put = async |tenant: &str| {
        let request = alice.request(Method::PUT, "/api/auth/tenant");
        request.json(&json!({"tenant_id": tenant})).send().await
    };
    let chosen = put(&hers).await;
    assert_eq!(chosen.status, 200);
    assert_eq!(chosen.json()["tenant"]["id"], hers);
    for foreign in [his.as_str(), "ten_aaaaaaaaaaaaaaaaaaaaaaaaaa", "nonsense"] {
        let refused = put(foreign).await;
        assert_eq!(refused.status, 403, "{foreign}");
        assert_eq!(refused.json()["code"], "tenant_forbidden", "{foreign}");
    }
    assert_eq!(tenant_of(&alice).await, hers);
}
