//! Signing in through the provider and out again, and everything that must not get in on the way.

use std::sync::Arc;

use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{
    Anonymous, Browser, LOGIN_COOKIE, Part, RawOrigin, Request, TestCloud, TestCloudBuilder,
    Topology, eventually, free_addr, on_both_topologies, text,
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
    cs_01_the_cookies_have_the_attributes_that_protect_them,
    cs_03_every_sign_in_gets_a_new_login,
    cs_04_a_cookie_that_nobody_issued_is_nobody,
    cs_05_a_login_that_is_not_used_is_over,
    cs_05_a_login_is_over_in_any_case_some_day,
    cs_05_a_login_that_is_used_goes_on,
    cs_09_a_doubled_login_cookie_is_nobody,
    ch_01_to_03_requests_that_another_site_makes_a_browser_send_change_nothing,
    ch_07_no_other_origin_may_read_answers,
    ol_26_there_is_no_other_way_in,
    lo_01_signing_out_ends_the_login_on_the_server,
    lo_04_signing_out_leads_to_the_provider_without_a_token,
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

fn parameter(url: &url::Url, wanted: &str) -> String {
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

    // One changed character anywhere breaks the seal; every eighth place is tried.
    for place in (0..sealed.len()).step_by(8) {
        mallory.plant_cookie(&host, &pending, &with_other_char(&sealed, place));
        mallory.open_callback(&callback).await.expect_refusal();
    }
    mallory.plant_cookie(&host, &pending, &sealed);
    mallory.open_callback(&callback).await.expect(303);
}

fn with_other_char(text: &str, place: usize) -> String {
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

async fn cs_01_the_cookies_have_the_attributes_that_protect_them(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let answer = browser
        .navigate("/api/auth/login", "same-origin")
        .send()
        .await;
    let pending = answer.all("set-cookie");
    let [pending] = pending[..] else {
        panic!("one cookie: {answer:?}");
    };
    assert!(pending.contains("edgecloud-pending-"), "{pending}");
    for attribute in ["HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(pending.contains(attribute), "{pending}");
    }
    let authorize = url::Url::parse(answer.header("location")).expect("a URL");
    let callback = browser.choose(&authorize, "alice").await;
    let answer = browser.open_callback(&callback).await.expect(303);
    let cookies = answer.all("set-cookie");
    let login = cookies
        .iter()
        .find(|cookie| cookie.starts_with(&format!("{LOGIN_COOKIE}=")))
        .expect("the login's cookie");
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(login.contains(attribute), "{login}");
    }
    for cookie in cookies {
        assert!(!cookie.to_lowercase().contains("domain="), "{cookie}");
    }
    assert!(answer.header("cache-control").contains("no-store"));
    assert_eq!(answer.header("referrer-policy"), "no-referrer", "OL-21");
}

async fn cs_03_every_sign_in_gets_a_new_login(cloud: TestCloud) {
    let browser = Browser::sign_in(&cloud, "alice").await;
    let (before, cookie) = (browser.me().await, browser.login_cookie());
    browser.sign_in_again("alice").await;
    let (after, new_cookie) = (browser.me().await, browser.login_cookie());
    assert_eq!(before["user"]["id"], after["user"]["id"]);
    assert_ne!(before["login"]["id"], after["login"]["id"]);
    assert_ne!(cookie, new_cookie);

    let old = Browser::new(&cloud);
    old.plant_cookie(browser.host(), LOGIN_COOKIE, &cookie);
    assert!(!old.is_signed_in().await, "the login before is over");
}

async fn cs_04_a_cookie_that_nobody_issued_is_nobody(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let cookie = alice.login_cookie();
    let mallory = Browser::new(&cloud);
    for place in [0, cookie.len() / 2, cookie.len() - 1] {
        let forged = with_other_char(&cookie, place);
        mallory.plant_cookie(alice.host(), LOGIN_COOKIE, &forged);
        // The last character may hold spare bits, but then the text is not the one we issued.
        assert!(!mallory.is_signed_in().await, "changed at {place}");
    }
    for junk in ["", "x", "..", "a.b.c", &"A".repeat(4096)] {
        mallory.plant_cookie(alice.host(), LOGIN_COOKIE, junk);
        assert!(!mallory.is_signed_in().await, "{junk:?}");
    }
    assert!(alice.is_signed_in().await);
}

async fn cs_05_a_login_that_is_not_used_is_over(cloud: TestCloud) {
    a_login_is_over_after(&cloud, "idle_expires_at").await;
}

async fn cs_05_a_login_is_over_in_any_case_some_day(cloud: TestCloud) {
    a_login_is_over_after(&cloud, "expires_at").await;
}

async fn a_login_is_over_after(cloud: &TestCloud, end: &str) {
    let alice = Browser::sign_in(cloud, "alice").await;
    let elsewhere = Browser::sign_in(cloud, "alice").await;
    let login = text(&alice.me().await["login"]["id"]);
    let a_minute_ago = Timestamp::now() - SignedDuration::from_secs(60);
    move_end(cloud, &login, end, a_minute_ago);
    for _ in 0..2 {
        assert!(!alice.is_signed_in().await, "no request brings it back");
    }
    assert!(elsewhere.is_signed_in().await, "her other login lives on");
    alice.sign_in_again("alice").await;
    assert!(alice.is_signed_in().await);
}

async fn cs_05_a_login_that_is_used_goes_on(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let login = text(&alice.me().await["login"]["id"]);
    let in_a_minute = Timestamp::now() + SignedDuration::from_secs(60);
    move_end(&cloud, &login, "idle_expires_at", in_a_minute);
    let absolute = end_of(&cloud, &login, "expires_at");
    assert!(alice.is_signed_in().await);
    let idle = end_of(&cloud, &login, "idle_expires_at");
    assert!(idle > in_a_minute.as_millisecond(), "its use is noted");
    assert_eq!(end_of(&cloud, &login, "expires_at"), absolute);
}

/// Logins live for minutes at least, which is too long for a test: an end is moved in the database.
pub fn move_end(cloud: &TestCloud, login: &str, end: &str, to: Timestamp) {
    let sql = format!("UPDATE logins SET {end} = ?1 WHERE id = ?2");
    let changed = cloud
        .database()
        .execute(&sql, (to.as_millisecond(), login))
        .expect("move the login's end");
    assert_eq!(changed, 1);
}

fn end_of(cloud: &TestCloud, login: &str, end: &str) -> i64 {
    let sql = format!("SELECT {end} FROM logins WHERE id = ?1");
    let found = cloud.database().query_row(&sql, [login], |row| row.get(0));
    found.expect("the login is there")
}

async fn cs_09_a_doubled_login_cookie_is_nobody(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let cookie = format!("{LOGIN_COOKIE}={}", alice.login_cookie());
    let me = |cookies: String| {
        let request = Anonymous::of(&cloud).get("/api/auth/me");
        request.header("cookie", &cookies).send()
    };
    me(cookie.clone()).await.expect(200);
    me(format!("theme=dark; {cookie}")).await.expect(200);
    me(format!("{cookie}; {cookie}")).await.expect(401);
    me(format!("{LOGIN_COOKIE}=tossed; {cookie}"))
        .await
        .expect(401);
}

async fn ch_01_to_03_requests_that_another_site_makes_a_browser_send_change_nothing(
    cloud: TestCloud,
) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = alice.origin();
    let https = origin.replace("http:", "https:");
    let attempt = |headers: &[(&str, &str)]| {
        let bare = alice.request_on(alice.host(), Method::POST, "/api/pairing/codes");
        headers
            .iter()
            .fold(bare.json(&json!({})), |request, (name, value)| {
                request.header(name, value)
            })
            .send()
    };
    let forged: &[&[(&str, &str)]] = &[
        &[],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "same-site"), ("edgecloud-csrf", "1")],
        &[("sec-fetch-site", "cross-site"), ("origin", &origin)],
        &[("origin", "null")],
        &[("origin", "https://evil.example")],
        &[("origin", "http://localhost:1")],
        &[("origin", &https)],
        &[("origin", &format!("{origin}.evil.example"))],
    ];
    for headers in forged {
        let answer = attempt(headers).await;
        assert_eq!(answer.status, 403, "{headers:?}: {}", answer.text());
    }
    let codes = alice.get("/api/pairing/codes").send().await.expect(200);
    assert_eq!(codes.items(), Vec::<Value>::new(), "nothing has happened");

    for honest in [
        &[("sec-fetch-site", "same-origin")][..],
        &[("sec-fetch-site", "none")],
        &[("origin", &origin)],
        &[("edgecloud-csrf", "1")],
    ] {
        let answer = attempt(honest).await;
        assert_eq!(answer.status, 201, "{honest:?}: {}", answer.text());
    }
}

async fn ch_07_no_other_origin_may_read_answers(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    for origin in ["https://evil.example", "null"] {
        for method in [Method::GET, Method::OPTIONS] {
            let answer = alice
                .request(method, "/api/auth/me")
                .header("sec-fetch-site", "cross-site")
                .header("origin", origin)
                .header("access-control-request-method", "GET")
                .send()
                .await;
            assert_eq!(answer.header("access-control-allow-origin"), "");
        }
    }
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

async fn lo_01_signing_out_ends_the_login_on_the_server(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let elsewhere = Browser::sign_in(&cloud, "alice").await;
    let stolen = alice.login_cookie();
    alice.get("/api/auth/logout").send().await.expect(405);
    assert!(alice.is_signed_in().await, "a link signs nobody out");

    let answer = alice.sign_out().await;
    let cleared = answer.all("set-cookie");
    assert!(
        cleared
            .iter()
            .any(|cookie| cookie.starts_with("edgecloud=") && cookie.contains("Max-Age=0")),
        "{cleared:?}"
    );
    assert!(!alice.is_signed_in().await);
    let thief = Browser::new(&cloud);
    thief.plant_cookie(alice.host(), LOGIN_COOKIE, &stolen);
    eventually("the stolen cookie is worthless", async || {
        (!thief.is_signed_in().await).then_some(())
    })
    .await;
    assert!(elsewhere.is_signed_in().await, "her other login lives on");
}

async fn lo_04_signing_out_leads_to_the_provider_without_a_token(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let answer = alice.sign_out().await.json();
    let url = url::Url::parse(&text(&answer["end_session_url"])).expect("a URL");
    assert_eq!(url.authority(), cloud.issuer_addr().to_string());
    assert_eq!(parameter(&url, "client_id"), "edgecloud-dev");
    let back = parameter(&url, "post_logout_redirect_uri");
    assert!(back.starts_with(cloud.public_url()), "{back}");
    assert!(!parameter(&url, "state").is_empty());
    assert!(!url.as_str().contains("id_token_hint"), "{url}");
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

/// A provider that says about itself what `describe` makes of its address.
async fn provider(describe: impl Fn(&mut Value) + Send + Sync + 'static) -> RawOrigin {
    let describe = Arc::new(describe);
    RawOrigin::spawn(move |mut stream, head| {
        let describe = Arc::clone(&describe);
        async move {
        let host = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("host: ").map(str::to_owned))
            .expect("a host");
        let issuer = format!("http://{host}");
        let mut metadata = json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "jwks_uri": format!("{issuer}/jwks"),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "code_challenge_methods_supported": ["S256"],
        });
        describe(&mut metadata);
        let body = match head.starts_with("GET /jwks ") {
            true => json!({"keys": []}).to_string(),
            false => metadata.to_string(),
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await
}

fn cloud_with(provider: &RawOrigin) -> TestCloudBuilder {
    let issuer = format!("http://{}", provider.addr());
    TestCloud::builder(Topology::All)
        .setting("EDGECLOUD__OIDC__ISSUER", issuer)
        .setting("EDGECLOUD__OIDC__CLIENT_ID", "edgecloud")
}

#[tokio::test]
async fn ol_17_a_provider_that_is_as_it_should_be_is_believed() {
    let honest = provider(|_| {}).await;
    let cloud = cloud_with(&honest).spawn().await;
    let authorize = Browser::new(&cloud).begin_login("/").await;
    assert_eq!(authorize.authority(), honest.addr().to_string());
}

#[tokio::test]
async fn ol_17_a_provider_that_names_itself_otherwise_is_not_believed() {
    let liar = provider(|metadata| metadata["issuer"] = json!("https://other.example")).await;
    let cloud = cloud_with(&liar)
        .setting("EDGECLOUD__OIDC__CLIENT_SECRET", "a canary of a secret")
        .spawn()
        .await;
    assert_no_login(&cloud).await;
    assert!(liar.requests() > 0, "the provider was asked");
}

#[tokio::test]
async fn ol_17_a_provider_without_s256_is_refused_to_a_public_client() {
    for methods in [json!(["plain"]), json!([])] {
        let old = provider(move |metadata| {
            metadata["code_challenge_methods_supported"] = methods.clone();
        })
        .await;
        let cloud = cloud_with(&old).spawn().await;
        assert_no_login(&cloud).await;
        assert!(old.requests() > 0, "the provider was asked");
    }
}

async fn assert_no_login(cloud: &TestCloud) {
    let nobody = Browser::new(cloud);
    let answer = nobody
        .navigate("/api/auth/login", "none")
        .send()
        .await
        .expect(503);
    assert!(answer.header("content-type").starts_with("text/html"));
    let page = answer.text();
    assert!(page.contains("href=\"/\""), "there is a way back: {page}");
    for hidden in ["canary", "other.example", "127.0.0.1"] {
        assert!(!page.contains(hidden), "{page}");
    }
    assert_eq!(nobody.cookie_names(), Vec::<String>::new());
    let ready = Anonymous::of(cloud).get("/readyz").send().await;
    assert_eq!(ready.expect(200).json()["degraded"], json!(["oidc"]));
    Anonymous::of(cloud)
        .get("/api/auth/me")
        .send()
        .await
        .expect(401);
    for process in cloud.processes() {
        assert!(!process.output().contains("canary"), "not in the log");
    }
}
