//! Signing in through the provider and out again, and everything that must not get in on the way.

use http::Method;
use serde_json::json;

use crate::hostile_provider::assert_no_login;
use crate::support::{
    Anonymous, Browser, LOGIN_COOKIE, Part, Request, TestCloud, Topology, eventually, free_addr,
    on_both_topologies, text,
};

on_both_topologies![
    a_person_signs_in_and_is_known,
    ol_01_the_provider_is_asked_with_fresh_secrets_each_time,
    ol_02_a_wrong_state_is_refused_and_signs_nobody_in,
    ol_03_a_callback_belongs_to_the_browser_that_began_it,
    ol_04_a_callback_works_once_and_a_replay_leaves_the_first_login_alone,
    ol_06_cookies_of_one_kind_are_not_taken_for_another,
    ol_18_doubled_parameters_are_refused,
    ol_19_an_error_of_the_provider_is_shown_harmlessly,
    ol_20_a_login_leads_back_to_this_host_only,
    ol_28_a_login_starts_with_a_navigation,
    two_tabs_sign_in_side_by_side,
    a_login_that_began_before_a_restart_can_be_finished_after_it,
    a_login_on_another_name_of_the_host_is_sent_to_the_public_address,
    ol_26_there_is_no_other_way_in,
    a_reload_of_a_page_without_a_login_leads_to_the_provider,
];

async fn a_person_signs_in_and_is_known(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let me = alice.me().await;
    assert!(text(&me["user"]["id"]).starts_with("usr_"), "{me}");
    assert!(
        me["user"]["name"]
            .to_string()
            .to_lowercase()
            .contains("alice")
    );
    assert!(text(&me["login"]["id"]).starts_with("lgn_"), "{me}");
    assert!(text(&me["login"]["expires_at"]).ends_with('Z'), "{me}");
    assert!(text(&me["tenant"]["id"]).starts_with("ten_"), "{me}");
    assert_eq!(me["tenant"]["role"], "owner", "of her personal tenant");
    assert_eq!(me["tenants"].as_array().map(Vec::len), Some(1), "{me}");

    let bob = Browser::sign_in(&cloud, "bob").await.me().await;
    assert_ne!(bob["user"]["id"], me["user"]["id"]);
    assert_ne!(bob["tenant"]["id"], me["tenant"]["id"]);
}

async fn ol_01_the_provider_is_asked_with_fresh_secrets_each_time(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let (first, second) = (
        browser.begin_login("/").await,
        browser.begin_login("/").await,
    );
    let callback = format!("{}/api/auth/callback", cloud.public_url());
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "edgecloud-dev"),
        ("redirect_uri", &callback),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(parameter(&first, name), value);
    }
    assert!(parameter(&first, "scope").split(' ').any(|s| s == "openid"));
    for name in ["state", "nonce", "code_challenge"] {
        assert!(parameter(&first, name).len() >= 43, "256 bits of {name}");
        assert_ne!(parameter(&first, name), parameter(&second, name));
    }
}

/// A parameter of a URL.
pub fn parameter(url: &url::Url, wanted: &str) -> String {
    let mut found = url.query_pairs().filter(|(name, _)| name == wanted);
    let (_, value) = found
        .next()
        .unwrap_or_else(|| panic!("{wanted} is missing in {url}"));
    assert!(found.next().is_none(), "{wanted} is there twice in {url}");
    value.into_owned()
}

async fn ol_02_a_wrong_state_is_refused_and_signs_nobody_in(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let authorize = browser.begin_login("/").await;
    let callback = browser.choose(&authorize, "alice").await;
    let state = parameter(&authorize, "state");
    let other = "A".repeat(state.len());
    for wrong in [
        callback.replace(&format!("state={state}"), &format!("state={other}")),
        callback.replace(&format!("state={state}"), "state="),
        callback.replace(&format!("state={state}"), "x=y"),
    ] {
        assert_ne!(wrong, callback);
        browser.open_callback(&wrong).await.expect_refusal();
        assert!(!browser.is_signed_in().await, "{wrong}");
    }
    // The provider was not asked: the code is still good.
    browser.open_callback(&callback).await.expect(303);
    assert!(browser.is_signed_in().await);
}

async fn ol_03_a_callback_belongs_to_the_browser_that_began_it(cloud: TestCloud) {
    let attacker = Browser::new(&cloud);
    let authorize = attacker.begin_login("/").await;
    let callback = attacker.choose(&authorize, "bob").await;

    let fresh = Browser::new(&cloud);
    fresh.open_callback(&callback).await.expect_refusal();
    assert!(!fresh.is_signed_in().await);

    let victim = Browser::new(&cloud);
    victim.begin_login("/").await;
    victim.open_callback(&callback).await.expect_refusal();
    assert!(!victim.is_signed_in().await);
}

async fn ol_04_a_callback_works_once_and_a_replay_leaves_the_first_login_alone(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let authorize = browser.begin_login("/").await;
    let host = browser.host().to_owned();
    let pending = pending_cookie(&browser);
    let sealed = browser.cookie(&host, &pending).expect("just seen");
    let callback = browser.choose(&authorize, "alice").await;
    browser.open_callback(&callback).await.expect(303);
    let login = browser.login_cookie();

    browser.open_callback(&callback).await.expect_refusal();
    assert!(browser.is_signed_in().await, "the first login lives on");

    let thief = Browser::new(&cloud);
    thief.plant_cookie(&host, &pending, &sealed);
    thief.open_callback(&callback).await.expect_refusal();
    assert!(!thief.is_signed_in().await);
    assert!(browser.is_signed_in().await, "the first login lives on");
    assert_eq!(browser.login_cookie(), login);
}

fn pending_cookie(browser: &Browser) -> String {
    let names = browser.cookie_names();
    let mut pending = names
        .iter()
        .filter(|name| name.contains("edgecloud-pending-"));
    let found = pending.next().expect("a login is pending").clone();
    assert!(pending.next().is_none(), "only one: {names:?}");
    found
}

async fn ol_06_cookies_of_one_kind_are_not_taken_for_another(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let host = alice.host().to_owned();
    let mallory = Browser::new(&cloud);
    let authorize = mallory.begin_login("/").await;
    let pending = pending_cookie(&mallory);
    let sealed = mallory.cookie(&host, &pending).expect("just seen");

    mallory.plant_cookie(&host, LOGIN_COOKIE, &sealed);
    assert!(!mallory.is_signed_in().await, "a pending login is no login");

    let callback = mallory.choose(&authorize, "bob").await;
    mallory.plant_cookie(&host, &pending, &alice.login_cookie());
    mallory.open_callback(&callback).await.expect_refusal();

    mallory.begin_login("/").await;
    let names = mallory.cookie_names();
    let other = names
        .iter()
        .find(|name| **name != pending && name.contains("pending"));
    let other = other.expect("another login is pending");
    let others = mallory.cookie(&host, other).expect("just seen");
    mallory.plant_cookie(&host, &pending, &others);
    mallory.open_callback(&callback).await.expect_refusal();

    // One changed character anywhere breaks the seal.
    for place in 0..sealed.len() {
        mallory.plant_cookie(&host, &pending, &with_other_char(&sealed, place));
        mallory.open_callback(&callback).await.expect_refusal();
    }
    mallory.plant_cookie(&host, &pending, &sealed);
    mallory.open_callback(&callback).await.expect(303);
}

/// A text with another character in one place.
pub fn with_other_char(text: &str, place: usize) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
    String::from_utf8(bytes).expect("still a text")
}

async fn ol_18_doubled_parameters_are_refused(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let authorize = browser.begin_login("/").await;
    let callback = browser.choose(&authorize, "alice").await;
    let state = parameter(&authorize, "state");
    for doubled in [
        format!("{callback}&code=other"),
        format!("{callback}&state={state}"),
    ] {
        browser.open_callback(&doubled).await.expect_refusal();
        assert!(!browser.is_signed_in().await, "{doubled}");
    }
}

async fn ol_19_an_error_of_the_provider_is_shown_harmlessly(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let authorize = browser.begin_login("/").await;
    let state = parameter(&authorize, "state");
    let issuer = format!("http://{}", cloud.issuer_addr());
    let query: String = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("error", "access_denied")
        .append_pair("error_description", "<script>alert(1)</script>")
        .append_pair("state", &state)
        .append_pair("iss", &issuer)
        .finish();
    let answer = browser
        .open_callback(&format!("/api/auth/callback?{query}"))
        .await
        .expect_refusal();
    assert!(answer.header("content-type").starts_with("text/html"));
    assert!(
        !answer.text().contains("<script>alert"),
        "{}",
        answer.text()
    );
    assert!(
        answer
            .header("content-security-policy")
            .contains("default-src")
    );
    assert!(answer.text().contains("href="), "there is a way back");
    assert!(!browser.is_signed_in().await);
}

async fn ol_20_a_login_leads_back_to_this_host_only(cloud: TestCloud) {
    for (asked, given) in [
        ("/devices?x=1", "/devices?x=1"),
        ("https://evil.example/", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/%5cevil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/\t//evil.example", "/"),
        ("user@evil.example", "/"),
    ] {
        let browser = Browser::new(&cloud);
        let authorize = browser.begin_login(asked).await;
        let callback = browser.choose(&authorize, "alice").await;
        let answer = browser.open_callback(&callback).await.expect(303);
        assert_eq!(answer.header("location"), given, "asked for {asked:?}");
    }
}

async fn ol_28_a_login_starts_with_a_navigation(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    for destination in ["image", "iframe", "empty", "script"] {
        let answer = browser
            .navigate("/api/auth/login", "cross-site")
            .header("sec-fetch-dest", destination)
            .send()
            .await
            .expect_refusal();
        assert!(answer.all("set-cookie").is_empty(), "{answer:?}");
    }
}

async fn two_tabs_sign_in_side_by_side(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let first = browser.begin_login("/first").await;
    let second = browser.begin_login("/second").await;
    for (authorize, return_to) in [(second, "/second"), (first, "/first")] {
        let callback = browser.choose(&authorize, "alice").await;
        let answer = browser.open_callback(&callback).await.expect(303);
        assert_eq!(answer.header("location"), return_to);
    }
    for _ in 0..12 {
        browser.begin_login("/").await;
    }
    let names = browser.cookie_names();
    let pending = names.iter().filter(|name| name.contains("pending"));
    assert!(pending.count() <= 5, "five at once: {names:?}");
}

async fn a_login_that_began_before_a_restart_can_be_finished_after_it(mut cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let authorize = browser.begin_login("/").await;
    cloud.restart(Part::Api).await;
    let callback = browser.choose(&authorize, "alice").await;
    browser.open_callback(&callback).await.expect(303);
    assert!(browser.is_signed_in().await);
}

async fn a_login_on_another_name_of_the_host_is_sent_to_the_public_address(cloud: TestCloud) {
    let addr = cloud.api_addr();
    let answer = Request::new(
        addr,
        &addr.to_string(),
        Method::GET,
        "/api/auth/login?return_to=%2Fdevices",
    )
    .header("sec-fetch-dest", "document")
    .send()
    .await
    .expect(303);
    let there = format!("{}/api/auth/login?return_to=%2Fdevices", cloud.public_url());
    assert_eq!(answer.header("location"), there);
    assert!(answer.all("set-cookie").is_empty());
}

async fn ol_26_there_is_no_other_way_in(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let cookie = format!("{LOGIN_COOKIE}={}", alice.login_cookie());
    let junk = [
        "Bearer junk",
        "Bearer ",
        "Basic YWxpY2U6YWxpY2U=",
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.",
        "Edgecloud-HMAC v1,1,2,3",
    ];
    for authorization in junk {
        for cookie in ["", &cookie] {
            let answer = Anonymous::of(&cloud)
                .get("/api/auth/me")
                .header("cookie", cookie)
                .header("authorization", authorization)
                .send()
                .await;
            assert_eq!(answer.status, 401, "{authorization}: the cookie is ignored");
        }
    }
    for target in ["/api/auth/me?access_token=x", "/api/auth/me?token=x"] {
        Anonymous::of(&cloud).get(target).send().await.expect(401);
    }
    for header in [
        "x-user",
        "x-forwarded-user",
        "edgecloud-user",
        "remote-user",
    ] {
        let request = Anonymous::of(&cloud).get("/api/auth/me");
        request.header(header, "alice").send().await.expect(401);
    }
}

async fn a_reload_of_a_page_without_a_login_leads_to_the_provider(cloud: TestCloud) {
    let nobody = Browser::new(&cloud);
    let page = nobody.navigate("/", "none").send().await.expect(200);
    assert!(page.header("content-type").starts_with("text/html"));
    let answer = nobody
        .navigate("/api/auth/me", "same-origin")
        .send()
        .await
        .expect(303);
    assert!(answer.header("location").contains("/api/auth/login"));
    nobody.get("/api/auth/me").send().await.expect(401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_25_a_provider_that_is_down_stops_new_logins_only_until_it_is_back() {
    for topology in [Topology::All, Topology::Split] {
        let provider = free_addr();
        let cloud = TestCloud::builder(topology)
            .setting("EDGECLOUD__OIDC__ISSUER", format!("http://{provider}"))
            .setting("EDGECLOUD__OIDC__CLIENT_ID", "edgecloud-dev")
            .spawn()
            .await;
        assert_no_login(&cloud).await;
        // The development issuer of another cloud does as a provider.
        let _other = TestCloud::builder(Topology::All)
            .setting("EDGECLOUD__DEV__ISSUER_LISTEN", provider)
            .spawn()
            .await;
        eventually("the login leads to the provider again", async || {
            let login = Browser::new(&cloud).navigate("/api/auth/login", "none");
            login.send().await.status.is_redirection().then_some(())
        })
        .await;
        Browser::sign_in(&cloud, "alice").await;
        let ready = Anonymous::of(&cloud).get("/readyz").send().await;
        assert_eq!(ready.expect(200).json()["degraded"], json!([]));
    }
}
