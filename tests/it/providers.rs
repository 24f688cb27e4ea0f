//! A real, certified provider: npm `oidc-provider`, with refresh tokens that are good for one use,
//! logout from both sides, and access tokens for programs.

use http::Method;
use rusqlite::params;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{
    AUDIENCE, Anonymous, Browser, Provider, Registration, TestCloud, Topology, eventually, text,
};

/// A time that was long ago, in milliseconds.
const LONG_AGO: i64 = 1;

/// Makes the provider's word about every login out of date.
pub fn make_refresh_due(cloud: &TestCloud) {
    let changed = cloud.database().execute(
        "UPDATE logins SET refresh_at = ?1, refresh_not_before = NULL",
        params![LONG_AGO],
    );
    assert!(
        changed.expect("a login can be changed") > 0,
        "nobody is signed in"
    );
}

/// Whether it still has to be asked about one.
pub fn refresh_is_due(cloud: &TestCloud) -> bool {
    let due: i64 = cloud
        .database()
        .query_row(
            "SELECT count(*) FROM logins WHERE refresh_at = ?1",
            params![LONG_AGO],
            |row| row.get(0),
        )
        .expect("logins can be read");
    due > 0
}

async fn signs_in_as(registration: Registration) {
    let (provider, cloud) = Provider::with_cloud(Topology::All, registration, |it| it).await;
    let browser = Browser::new(&cloud);
    provider.sign_in(&browser, "alice").await;
    let me = browser.me().await;
    assert_eq!(me["user"]["name"], "alice at work", "{me}");
    assert_eq!(me["user"]["email"], "alice@example.test", "{me}");
    make_refresh_due(&cloud);
    eventually("the login is refreshed", async || {
        // A lone process may notice what is changed beside it a moment later.
        browser.me().await;
        (!refresh_is_due(&cloud)).then_some(())
    })
    .await;
    let codes = provider.token_requests("authorization_code").await;
    let refreshes = provider.token_requests("refresh_token").await;
    assert_eq!((codes.len(), refreshes.len()), (1, 1));
    for request in codes.iter().chain(&refreshes) {
        let (authorization, secret) = match registration {
            Registration::Public => (Value::Null, false),
            Registration::Basic => (json!("Basic"), false),
            Registration::Post => (Value::Null, true),
        };
        assert_eq!(request["status"], 200, "{request}");
        assert_eq!(request["authorization"], authorization, "{request}");
        assert_eq!(request["client_secret_in_body"], secret, "{request}");
        let is_public = registration != Registration::Basic;
        assert_eq!(request["client_id_in_body"], is_public, "{request}");
        let is_code = request["grant_type"] == "authorization_code";
        assert_eq!(request["code_verifier"], is_code, "{request}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_09_a_public_client_sends_the_verifier_and_no_secret() {
    signs_in_as(Registration::Public).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_09_a_confidential_client_shows_its_secret_in_the_header_alone() {
    signs_in_as(Registration::Basic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_09_a_confidential_client_shows_its_secret_in_the_body_where_the_provider_wants_that() {
    signs_in_as(Registration::Post).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cs_13_a_hundred_requests_at_two_processes_cause_one_refresh_and_no_logout() {
    let (provider, cloud) =
        Provider::with_cloud(Topology::Split, Registration::Public, |it| it).await;
    let second = cloud.another("api", &[]).await;
    let browser = Browser::new(&cloud);
    provider.sign_in(&browser, "alice").await;
    // Twice: the second time with the token that the first refresh brought.
    for round in 1..=2 {
        make_refresh_due(&cloud);
        let mut requests = JoinSet::new();
        for number in 0..100 {
            let browser = match number % 2 {
                0 => browser.clone(),
                _ => browser.through(second.api_addr()),
            };
            requests.spawn(async move { browser.get("/api/auth/me").send().await.status });
        }
        for status in requests.join_all().await {
            assert_eq!(status, 200, "round {round}");
        }
        eventually("the login is refreshed", async || {
            browser.me().await;
            (!refresh_is_due(&cloud)).then_some(())
        })
        .await;
        assert_eq!(provider.token_requests("refresh_token").await.len(), round);
    }
    assert!(browser.is_signed_in().await);
    assert!(browser.through(second.api_addr()).is_signed_in().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_25_a_provider_that_is_down_ends_no_login_and_is_asked_again() {
    let (provider, cloud) = Provider::with_cloud(Topology::All, Registration::Basic, |it| it).await;
    let browser = Browser::new(&cloud);
    provider.sign_in(&browser, "alice").await;
    provider.control(Method::POST, "down").await;
    make_refresh_due(&cloud);
    let anonymous = Anonymous::of(&cloud);
    eventually("the outage is noticed", async || {
        assert!(browser.is_signed_in().await);
        let ready = anonymous.get("/readyz").send().await.expect(200).json();
        (ready["degraded"] == json!(["oidc"])).then_some(())
    })
    .await;
    let login = browser.navigate("/api/auth/login", "none").send().await;
    let page = login.expect(503).text();
    assert!(page.contains("does not answer"), "{page}");
    provider.control(Method::POST, "up").await;
    eventually("the login is refreshed after all", async || {
        cloud
            .database()
            .execute("UPDATE logins SET refresh_not_before = NULL", [])
            .expect("a login can be changed");
        browser.me().await;
        (!refresh_is_due(&cloud)).then_some(())
    })
    .await;
    assert!(browser.is_signed_in().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cs_13_a_revoked_grant_ends_the_login_and_what_it_has_open() {
    let (provider, cloud) =
        Provider::with_cloud(Topology::Split, Registration::Public, |it| it).await;
    let second = cloud.another("api", &[]).await;
    let browser = Browser::new(&cloud);
    provider.sign_in(&browser, "alice").await;
    let events = browser.through(second.api_addr()).get("/api/events");
    let mut events = events.open().await.expect(200);
    provider.control(Method::POST, "revoke-grants").await;
    make_refresh_due(&cloud);
    browser.me().await;
    events.read_until("event: bye").await;
    assert!(!browser.is_signed_in().await);
    assert!(!browser.through(second.api_addr()).is_signed_in().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lo_04_signing_out_goes_on_at_the_provider_without_a_token_in_the_browser() {
    let (provider, cloud) = Provider::with_cloud(Topology::All, Registration::Basic, |it| it).await;
    let browser = Browser::new(&cloud);
    let session = provider.sign_in(&browser, "alice").await;
    let out = browser.sign_out().await.json();
    let url = url::Url::parse(&text(&out["end_session_url"])).expect("a URL");
    let query: std::collections::BTreeMap<_, _> = url.query_pairs().into_owned().collect();
    let back = format!("{}/", cloud.public_url());
    assert_eq!(query["post_logout_redirect_uri"], back);
    assert_eq!(query["client_id"], "confidential");
    let mut names: Vec<_> = query.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["client_id", "post_logout_redirect_uri", "state"]);
    let returned = provider.follow(&session, &url, "alice").await;
    assert!(returned.as_str().starts_with(&back), "{returned}");
    assert_eq!(
        returned.query(),
        Some(format!("state={}", query["state"]).as_str())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lo_05_signing_out_at_the_provider_ends_that_sessions_logins_on_every_process() {
    let (provider, cloud) =
        Provider::with_cloud(Topology::Split, Registration::Public, |it| it).await;
    let second = cloud.another("api", &[]).await;
    let [here, elsewhere, other] = [(); 3].map(|()| Browser::new(&cloud));
    let session = provider.sign_in(&here, "alice").await;
    provider.sign_in(&elsewhere, "alice").await;
    provider.sign_in(&other, "bob").await;
    let events = here.through(second.api_addr()).get("/api/events");
    let mut events = events.open().await.expect(200);
    // Nobody asked us: the provider's own page, and then its call.
    let end = format!(
        "{}/session/end?client_id=public&post_logout_redirect_uri={}/",
        provider.issuer(),
        cloud.public_url()
    );
    let end = url::Url::parse(&end).expect("a URL");
    provider.follow(&session, &end, "alice").await;
    events.read_until("event: bye").await;
    assert!(!here.is_signed_in().await);
    assert!(!here.through(second.api_addr()).is_signed_in().await);
    assert!(elsewhere.is_signed_in().await, "another session of hers");
    assert!(other.is_signed_in().await);
}

/// Registers a program in the tenant of a browser's person.
async fn register(browser: &Browser, client_id: &str, role: &str) -> String {
    let made = browser
        .post("/api/service-clients")
        .json(&json!({"client_id": client_id, "name": client_id, "role": role}))
        .send()
        .await
        .expect(201);
    text(&made.json()["id"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_27_a_registered_program_calls_the_api_with_an_access_token() {
    let (provider, cloud) =
        Provider::with_cloud(Topology::Split, Registration::Basic, |it| it).await;
    let second = cloud.another("api", &[]).await;
    let browser = Browser::new(&cloud);
    provider.sign_in(&browser, "alice").await;
    let tenant = browser.me().await["tenant"]["id"].clone();
    let anonymous = Anonymous::of(&cloud);
    let token = provider.access_token("robot", AUDIENCE).await;
    let bearer = format!("Bearer {token}");
    let get = |target: &str| anonymous.get(target).header("authorization", &bearer);
    get("/api/devices")
        .send()
        .await
        .expect_problem(401, "unauthenticated");
    let robot = register(&browser, "robot", "operator").await;
    get("/api/devices").send().await.expect(200);
    let me = get("/api/auth/me").send().await.expect(200).json();
    assert_eq!(me["tenant"]["id"], tenant, "{me}");
    assert_eq!(me["tenant"]["role"], "operator", "{me}");
    // Its role, its tenant, and nothing that is for people.
    let codes = get("/api/pairing/codes").send().await;
    codes.expect_problem(403, "role_insufficient");
    let logins = get("/api/auth/logins").send().await;
    logins.expect_problem(403, "person_needed");
    let elsewhere =
        get("/api/devices").header("edgecloud-tenant", "ten_aaaaaaaaaaaaaaaaaaaaaaaaaa");
    elsewhere
        .send()
        .await
        .expect_problem(403, "tenant_forbidden");
    // The cookie beside it does not count.
    let both = browser
        .get("/api/auth/logins")
        .header("authorization", &bearer);
    both.send().await.expect_problem(403, "person_needed");
    for (what, bad) in [
        (
            "another API's",
            provider
                .access_token("robot", "https://other.example.test/")
                .await,
        ),
        (
            "an unregistered program's",
            provider.access_token("stranger", AUDIENCE).await,
        ),
        ("a damaged one", format!("{token}x")),
        ("a device's", format!("edt_{}", "a".repeat(58))),
    ] {
        let answer = anonymous
            .get("/api/devices")
            .header("authorization", &format!("Bearer {bad}"))
            .send()
            .await;
        assert_eq!(answer.status, 401, "{what}");
    }
    let events = anonymous.through(second.api_addr()).get("/api/events");
    let events = events.header("authorization", &bearer);
    let mut events = events.open().await.expect(200);
    let removed = browser.delete(&format!("/api/service-clients/{robot}"));
    removed.send().await.expect(204);
    get("/api/devices")
        .send()
        .await
        .expect_problem(401, "unauthenticated");
    let there = anonymous.through(second.api_addr()).get("/api/devices");
    let there = there.header("authorization", &bearer).send().await;
    there.expect_problem(401, "unauthenticated");
    events.read_until("event: bye").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_27_our_own_access_token_is_fetched_kept_and_renewed() {
    let (provider, cloud) = Provider::with_cloud(Topology::All, Registration::Public, |it| {
        it.setting("EDGECLOUD__OIDC__SERVICE_CLIENT__CLIENT_ID", "backend")
            .setting(
                "EDGECLOUD__OIDC__SERVICE_CLIENT__CLIENT_SECRET",
                "backend-secret-canary",
            )
    })
    .await;
    let count = async || provider.token_requests("client_credentials").await.len();
    eventually("it is fetched", async || (count().await == 1).then_some(())).await;
    let ready = Anonymous::of(&cloud)
        .get("/readyz")
        .send()
        .await
        .expect(200);
    assert_eq!(ready.json(), json!({"degraded": []}));
    eventually("it is renewed before its end", async || {
        (count().await == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_of_our_own_client_is_told_by_readyz() {
    let (_provider, cloud) = Provider::with_cloud(Topology::All, Registration::Public, |it| {
        it.setting("EDGECLOUD__OIDC__SERVICE_CLIENT__CLIENT_ID", "backend")
            .setting("EDGECLOUD__OIDC__SERVICE_CLIENT__CLIENT_SECRET", "wrong")
    })
    .await;
    let anonymous = Anonymous::of(&cloud);
    eventually("the missing token is told", async || {
        let ready = anonymous.get("/readyz").send().await.expect(200).json();
        (ready["degraded"] == json!(["oidc.service_client"])).then_some(())
    })
    .await;
}
