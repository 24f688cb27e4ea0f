//! A provider that misbehaves, and callbacks that no provider sent: what reaches the provider, what does
//! not, and that nobody gets in.

use http::Method;
use serde_json::{Value, json};
use url::{Position, Url};

use crate::support::{
    Anonymous, Answer, Browser, Endpoint, HostileProvider, Part, RawOrigin, Script, TestCloud,
    TokenAnswer, Topology, free_addr, text,
};

/// A cloud at a provider that does what the test says.
pub struct Scene {
    pub provider: HostileProvider,
    pub cloud: TestCloud,
}

impl Scene {
    /// A public client of an honest provider.
    pub async fn set() -> Self {
        Self::with(&[]).await
    }

    /// As [`Scene::set`], with more settings of the cloud.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        Self::at(HostileProvider::spawn().await, settings).await
    }

    /// A cloud at this provider.
    pub async fn at(provider: HostileProvider, settings: &[(&str, &str)]) -> Self {
        let cloud = TestCloud::builder(Topology::All)
            .setting("EDGECLOUD__OIDC__ISSUER", provider.issuer())
            .setting("EDGECLOUD__OIDC__CLIENT_ID", "edgecloud");
        let with_all = settings.iter();
        let cloud = with_all.fold(cloud, |cloud, (name, value)| cloud.setting(name, value));
        Self {
            provider,
            cloud: cloud.spawn().await,
        }
    }

    /// Signs somebody in, as the script says; returns the answer to the callback.
    pub async fn attempt(&self, browser: &Browser, script: Script) -> Answer {
        let authorize = browser.begin_login("/").await;
        let callback = self.provider.grant(&authorize, script);
        browser.open_callback(&callback).await
    }

    /// Fails the test unless the script signs somebody in.
    pub async fn sign_in(&self, script: Script) -> Browser {
        let browser = Browser::new(&self.cloud);
        let answer = self.attempt(&browser, script).await.expect(303);
        assert_eq!(answer.header("location"), "/");
        browser
    }

    /// Fails the test unless the script ends on a page that says no more than it should.
    pub async fn is_refused(&self, script: Script) {
        self.fails(script, 400).await;
    }

    async fn fails(&self, script: Script, status: u16) {
        let told = format!("{script:?}");
        let browser = Browser::new(&self.cloud);
        let answer = self.attempt(&browser, script).await;
        assert_eq!(answer.status, status, "{told}: {}", answer.text());
        assert_is_notice(&answer);
        assert_eq!(browser.cookie_names(), Vec::<String>::new(), "{told}");
        assert!(!browser.is_signed_in().await, "{told}");
    }
}

fn assert_is_notice(answer: &Answer) {
    let page = answer.text();
    assert!(answer.header("content-type").starts_with("text/html"));
    assert!(page.contains("href=\"/\""), "there is a way back: {page}");
    for hidden in ["canary", "127.0.0.1", "<script", "panicked"] {
        assert!(!page.contains(hidden), "{page}");
    }
    let policy = answer.header("content-security-policy");
    assert!(policy.contains("default-src 'none'"), "{policy}");
    assert_eq!(answer.header("referrer-policy"), "no-referrer");
    assert!(answer.header("cache-control").contains("no-store"));
}

fn with_parameter(callback: &str, name: &str, value: Option<&str>) -> String {
    let url = Url::parse("http://any.example").expect("a URL");
    let mut url = url.join(callback).expect("a path");
    let others: Vec<(String, String)> = url
        .query_pairs()
        .into_owned()
        .filter(|(of, _)| of != name)
        .collect();
    let mut query = url.query_pairs_mut();
    query.clear().extend_pairs(others);
    if let Some(value) = value {
        query.append_pair(name, value);
    }
    drop(query);
    url[Position::BeforePath..].to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_02_a_wrong_state_asks_nothing_of_the_provider() {
    let scene = Scene::set().await;
    let browser = Browser::new(&scene.cloud);
    let authorize = browser.begin_login("/").await;
    let callback = scene.provider.grant(&authorize, Script::default());
    for state in [None, Some(""), Some("A"), Some(&"A".repeat(43)[..])] {
        let wrong = with_parameter(&callback, "state", state);
        let answer = browser.open_callback(&wrong).await.expect(400);
        assert_is_notice(&answer);
        assert!(!browser.is_signed_in().await, "{wrong}");
    }
    assert_eq!(scene.provider.hits(Endpoint::Token), 0);
    browser.open_callback(&callback).await.expect(303);
    assert!(browser.is_signed_in().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_03_a_code_in_another_browser_asks_nothing_of_the_provider() {
    let scene = Scene::set().await;
    let attacker = Browser::new(&scene.cloud);
    let authorize = attacker.begin_login("/").await;
    let callback = scene.provider.grant(&authorize, Script::of("mallory"));
    let fresh = Browser::new(&scene.cloud);
    let victim = Browser::new(&scene.cloud);
    victim.begin_login("/").await;
    for browser in [fresh, victim] {
        browser.open_callback(&callback).await.expect(400);
        assert!(!browser.is_signed_in().await);
    }
    assert_eq!(scene.provider.hits(Endpoint::Token), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_04_a_replay_asks_nothing_of_the_provider() {
    let scene = Scene::set().await;
    let browser = Browser::new(&scene.cloud);
    let authorize = browser.begin_login("/").await;
    let pending = browser.cookie_names().remove(0);
    let sealed = browser.cookie(browser.host(), &pending).expect("just set");
    let callback = scene.provider.grant(&authorize, Script::default());
    browser.open_callback(&callback).await.expect(303);
    let login = browser.login_cookie();
    for _ in 0..3 {
        browser.plant_cookie(browser.host(), &pending, &sealed);
        let answer = browser.open_callback(&callback).await.expect(400);
        assert_is_notice(&answer);
    }
    assert_eq!(scene.provider.hits(Endpoint::Token), 1);
    assert_eq!(browser.login_cookie(), login);
    assert!(browser.is_signed_in().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_08_a_provider_without_s256_gets_nothing_from_a_public_client() {
    for methods in [json!(["plain"]), json!([]), Value::Null, json!(["s256"])] {
        let provider = HostileProvider::spawn().await;
        provider.say_of_itself(json!({"code_challenge_methods_supported": methods}));
        let scene = Scene::at(provider, &[]).await;
        assert_no_login(&scene.cloud).await;
        assert!(scene.provider.hits(Endpoint::Discovery) > 0);
        assert_eq!(scene.provider.hits(Endpoint::Token), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_09_a_public_client_sends_its_id_and_no_secret() {
    let scene = Scene::set().await;
    scene.sign_in(Script::default()).await;
    let asked = scene.provider.last_token_request();
    assert_eq!(asked.form["client_id"], "edgecloud");
    assert_eq!(asked.form["grant_type"], "authorization_code");
    assert!(!asked.form.contains_key("client_secret"), "{asked:?}");
    assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
    assert_eq!(asked.target, "/token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_09_a_confidential_client_sends_its_secret_in_one_place() {
    const SECRET: &str = "canary of a client's secret";
    for (methods, in_header) in [
        (Value::Null, true),
        (json!(["client_secret_basic", "client_secret_post"]), true),
        (json!(["client_secret_post"]), false),
    ] {
        let provider = HostileProvider::spawn().await;
        provider.say_of_itself(json!({"token_endpoint_auth_methods_supported": methods}));
        let settings = [
            ("EDGECLOUD__OIDC__CLIENT_SECRET", SECRET),
            ("EDGECLOUD__LOG__LEVEL", "trace"),
        ];
        let scene = Scene::at(provider, &settings).await;
        let browser = Browser::new(&scene.cloud);
        let authorize = browser.begin_login("/").await;
        assert!(!authorize.as_str().contains("canary"), "{authorize}");
        let callback = scene.provider.grant(&authorize, Script::default());
        browser.open_callback(&callback).await.expect(303);
        let asked = scene.provider.last_token_request();
        let in_body = asked.form.get("client_secret").map(String::as_str);
        assert_eq!(in_body, (!in_header).then_some(SECRET));
        assert_eq!(asked.headers.contains_key("authorization"), in_header);
        assert_eq!(asked.target, "/token", "nothing in the URL");
        for process in scene.cloud.processes() {
            assert!(!process.output().contains("canary"), "not in the log");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_07_a_code_that_the_provider_refuses_signs_nobody_in() {
    let scene = Scene::set().await;
    for error in ["invalid_grant", "invalid_client", "server_error", "canary"] {
        let script = Script {
            answer: TokenAnswer::Error(error),
            ..Script::default()
        };
        scene.is_refused(script).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_16_an_answer_of_another_provider_asks_nothing_of_ours() {
    let scene = Scene::set().await;
    let issuer = scene.provider.issuer().to_owned();
    let ours = format!("iss={}", urlencoded(&issuer));
    for wrong in [
        Some("https://evil.example"),
        Some(&format!("{issuer}/")),
        Some(&issuer.to_uppercase()),
        Some(""),
        None,
    ] {
        let browser = Browser::new(&scene.cloud);
        let authorize = browser.begin_login("/").await;
        let callback = scene.provider.grant(&authorize, Script::default());
        assert!(callback.contains(&ours), "{callback}");
        let answer = browser
            .open_callback(&with_parameter(&callback, "iss", wrong))
            .await
            .expect(400);
        assert_is_notice(&answer);
        assert!(!browser.is_signed_in().await);
    }
    let browser = Browser::new(&scene.cloud);
    let authorize = browser.begin_login("/").await;
    let callback = scene.provider.grant(&authorize, Script::default());
    let twice = format!("{callback}&{ours}");
    browser.open_callback(&twice).await.expect(400);
    assert_eq!(scene.provider.hits(Endpoint::Token), 0);
}

fn urlencoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_17_a_provider_whose_name_differs_by_one_character_is_not_used() {
    let names: [fn(&str) -> String; 5] = [
        |issuer| format!("{issuer}/"),
        |issuer| issuer.to_uppercase(),
        |issuer| issuer.replace("http:", "https:"),
        |issuer| issuer[..issuer.len() - 1].to_owned(),
        |_| String::new(),
    ];
    for name in names {
        let provider = HostileProvider::spawn().await;
        let name = name(provider.issuer());
        provider.say_of_itself(json!({ "issuer": name }));
        let scene = Scene::at(provider, &[]).await;
        assert_no_login(&scene.cloud).await;
        assert!(scene.provider.hits(Endpoint::Discovery) > 0);
        assert_eq!(scene.provider.hits(Endpoint::Keys), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_18_doubled_parameters_ask_nothing_of_the_provider() {
    let scene = Scene::set().await;
    for doubled in ["code", "state", "iss", "error"] {
        let browser = Browser::new(&scene.cloud);
        let authorize = browser.begin_login("/").await;
        let callback = scene.provider.grant(&authorize, Script::default());
        let twice = format!("{callback}&{doubled}=a&{doubled}=a");
        let answer = browser.open_callback(&twice).await.expect(400);
        assert_is_notice(&answer);
        assert!(!browser.is_signed_in().await, "{twice}");
    }
    assert_eq!(scene.provider.hits(Endpoint::Token), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_19_an_error_uses_the_sign_in_up() {
    let scene = Scene::set().await;
    let browser = Browser::new(&scene.cloud);
    let authorize = browser.begin_login("/").await;
    let pending = browser.cookie_names().remove(0);
    let sealed = browser.cookie(browser.host(), &pending).expect("just set");
    let callback = scene.provider.grant(&authorize, Script::default());
    let error = with_parameter(&callback, "code", None)
        + "&error=%3Cscript%3Ecanary&error_description=%3Cscript%3Ecanary"
        + "&error_uri=javascript%3Acanary";
    let answer = browser.open_callback(&error).await.expect(400);
    assert_is_notice(&answer);
    assert_eq!(browser.cookie_names(), Vec::<String>::new());
    browser.plant_cookie(browser.host(), &pending, &sealed);
    browser.open_callback(&callback).await.expect(400);
    assert!(!browser.is_signed_in().await);
    assert_eq!(scene.provider.hits(Endpoint::Token), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_21_code_and_state_stay_between_browser_and_cloud() {
    let scene = Scene::set().await;
    let browser = Browser::new(&scene.cloud);
    let authorize = browser.begin_login("/devices?x=1").await;
    let callback = scene.provider.grant(&authorize, Script::default());
    let answer = browser.open_callback(&callback).await.expect(303);
    assert_eq!(answer.header("location"), "/devices?x=1", "a clean URL");
    assert_eq!(answer.header("referrer-policy"), "no-referrer");
    assert!(answer.header("cache-control").contains("no-store"));
    assert!(answer.body.is_empty(), "nothing of others: {answer:?}");
    let code = Url::parse("http://any.example")
        .and_then(|url| url.join(&callback))
        .expect("a URL");
    let secrets: Vec<String> = code.query_pairs().map(|(_, value)| value.into()).collect();
    for process in scene.cloud.processes() {
        let log = process.output();
        assert!(!log.contains(&secrets[0]) && !log.contains(&secrets[1]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_22_token_endpoints_that_misbehave_are_given_up() {
    const MANY: usize = 50 << 20;
    let mut scene = Scene::set().await;
    scene.sign_in(Script::default()).await;
    let attacker = RawOrigin::spawn(|_, _| async {}).await;
    let elsewhere = format!("http://{}/", attacker.addr());
    let before = scene.cloud.process(Part::Api).peak_memory();
    let answers = [
        (TokenAnswer::Redirect(302, elsewhere.clone()), 400),
        (TokenAnswer::Redirect(307, elsewhere.clone()), 400),
        (TokenAnswer::Redirect(308, elsewhere), 400),
        (TokenAnswer::Page, 400),
        (TokenAnswer::NoIdToken, 400),
        (TokenAnswer::Huge(MANY), 503),
        (TokenAnswer::Silence, 503),
    ];
    for (answer, status) in answers {
        let script = Script {
            answer,
            ..Script::default()
        };
        scene.fails(script, status).await;
    }
    assert_eq!(attacker.requests(), 0, "no redirect is followed");
    let grown = scene.cloud.process(Part::Api).peak_memory() - before;
    assert!(grown < MANY as u64 / 2, "{grown} bytes more");
    scene.sign_in(Script::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_25_existing_logins_outlive_their_provider() {
    let provider = HostileProvider::at(free_addr()).await;
    let mut scene = Scene::at(provider, &[]).await;
    let alice = scene.sign_in(Script::of("alice")).await;
    let late = Browser::new(&scene.cloud);
    let authorize = late.begin_login("/").await;
    let callback = scene.provider.grant(&authorize, Script::of("late"));
    drop(scene.provider);
    let answer = late.open_callback(&callback).await.expect(503);
    assert_is_notice(&answer);
    assert!(!late.is_signed_in().await);
    alice.get("/api/devices").send().await.expect(200);
    // A process that never saw the provider.
    scene.cloud.restart(Part::Api).await;
    assert_no_login(&scene.cloud).await;
    alice.get("/api/devices").send().await.expect(200);
    alice.pairing_code().await;
    let out = alice.sign_out().await.json();
    assert!(out["end_session_url"].is_null(), "{out}");
    assert!(!alice.is_signed_in().await);
}

/// Nobody can begin a sign-in: a page says so, and nothing is remembered in the browser.
pub async fn assert_no_login(cloud: &TestCloud) {
    let nobody = Browser::new(cloud);
    let login = nobody.navigate("/api/auth/login", "none");
    let answer = login.send().await.expect(503);
    assert_is_notice(&answer);
    assert_eq!(answer.header("location"), "");
    assert_eq!(nobody.cookie_names(), Vec::<String>::new());
    let ready = Anonymous::of(cloud).get("/readyz").send().await;
    assert_eq!(ready.expect(200).json()["degraded"], json!(["oidc"]));
    let me = Anonymous::of(cloud).get("/api/auth/me").send().await;
    me.expect(401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lo_04_signing_out_keeps_what_the_providers_address_has() {
    let scene = Scene::set().await;
    let alice = scene.sign_in(Script::default()).await;
    let out = alice.sign_out().await.json();
    let url = Url::parse(&text(&out["end_session_url"])).expect("a URL");
    assert!(url.as_str().starts_with(scene.provider.issuer()), "{url}");
    let mut names: Vec<String> = url.query_pairs().map(|(name, _)| name.into()).collect();
    names.sort();
    let expected = ["client_id", "keep", "post_logout_redirect_uri", "state"];
    assert_eq!(names, expected, "no token: {url}");
    let back = url
        .query_pairs()
        .find(|(name, _)| name == "post_logout_redirect_uri")
        .map(|(_, value)| value.into_owned());
    assert_eq!(back, Some(format!("{}/", scene.cloud.public_url())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cs_11_no_answer_holds_a_token_of_the_provider() {
    let scene = Scene::set().await;
    let browser = Browser::new(&scene.cloud);
    let authorize = browser.begin_login("/").await;
    let callback = scene.provider.grant(&authorize, Script::default());
    let mut answers = vec![browser.open_callback(&callback).await.expect(303)];
    for path in [
        "/",
        "/api/auth/me",
        "/api/auth/logins",
        "/api/devices",
        "/api/pairing/codes",
        "/api/audit",
        "/api/tenants",
        "/api/nothing",
    ] {
        answers.push(browser.get(path).send().await);
    }
    answers.push(
        browser
            .request(Method::POST, "/api/auth/logout")
            .send()
            .await,
    );
    for answer in answers {
        let whole = format!("{:?} {}", answer.headers, answer.text());
        for secret in ["canary", "eyJ", "id_token", "access_token"] {
            assert!(!whole.contains(secret), "{secret} in {whole}");
        }
    }
}
