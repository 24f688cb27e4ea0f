//! Secrets stay where they belong: after everything that uses one has happened, none is in a log at
//! TRACE level, a metric, an error, or in clear in the database.

use std::collections::BTreeSet;
use std::fs;

use http::Method;
use serde_json::{Value, json};

use crate::support::{
    AUDIENCE, Anonymous, Answer, Browser, Device, Origin, Part, Provider, Registration, Request,
    TestCloud, Topology, eventually, free_addr, text,
};

/// Shorter parts of a secret are names of keys and the like.
const SHORTEST_PART: usize = 12;

/// Secrets that have been used, and what was said about them.
#[derive(Default)]
struct Canaries {
    secrets: BTreeSet<String>,
    errors: String,
}

impl Canaries {
    /// Takes a secret, and its parts.
    fn know(&mut self, secret: &str) {
        self.secrets.insert(secret.to_owned());
        let parts = secret.split(['.', ' ']);
        let parts = parts.filter(|part| part.len() >= SHORTEST_PART);
        self.secrets.extend(parts.map(str::to_owned));
    }

    fn know_all(&mut self, secrets: &Value) {
        for secret in secrets.as_array().expect("a list") {
            // Of a JWT the signature alone: its header is the same in each.
            let secret = text(secret);
            self.know(secret.rsplit('.').next().expect("there is a last one"));
        }
    }

    fn refused(&mut self, answer: Answer) {
        let answer = answer.expect_refusal();
        for (name, value) in &answer.headers {
            self.errors += &format!("{name}: {value:?}\n");
        }
        self.errors += &answer.text();
    }

    fn are_not_in(&self, place: &str, bytes: &[u8]) {
        assert!(!bytes.is_empty(), "{place} is empty");
        for secret in &self.secrets {
            let found = bytes
                .windows(secret.len())
                .position(|window| window == secret.as_bytes());
            if let Some(at) = found {
                let around = &bytes[at.saturating_sub(200)..(at + secret.len()).min(bytes.len())];
                panic!(
                    "{place} holds a secret: {}",
                    String::from_utf8_lossy(around)
                );
            }
        }
    }
}

/// Signs people in and out, at the provider and by it.
async fn people(cloud: &TestCloud, provider: &Provider, canaries: &mut Canaries) -> Browser {
    let alice = Browser::new(cloud);
    let authorize = alice.begin_login("/").await;
    for (name, value) in authorize.query_pairs() {
        if matches!(&*name, "state" | "nonce") {
            canaries.know(&value);
        }
    }
    for name in alice.cookie_names() {
        let pending = alice.cookie(alice.host(), &name);
        canaries.know(&pending.expect("a pending cookie"));
    }
    provider.sign_in(&alice, "alice").await;
    canaries.know(&alice.login_cookie());
    let bob = Browser::new(cloud);
    provider.sign_in(&bob, "bob").await;
    canaries.know(&bob.login_cookie());
    let tenant = text(&alice.me().await["tenant"]["id"]);
    let path = format!("/api/tenants/{tenant}/invitations");
    let made = alice
        .post(&path)
        .json(&json!({"role": "viewer"}))
        .send()
        .await;
    let token = text(&made.expect(201).json()["token"]);
    canaries.know(&token);
    let accept = |body: Value| bob.post("/api/invitations/accept").json(&body);
    canaries.refused(accept(json!({"token": {"wrong": token}})).send().await);
    accept(json!({"token": token})).send().await.expect(200);
    canaries.refused(accept(json!({"token": token})).send().await);
    cloud
        .database()
        .execute("UPDATE logins SET refresh_at = 1", [])
        .expect("logins can be changed");
    alice.me().await;
    eventually("alice's login is refreshed", async || {
        let refreshes = provider.token_requests("refresh_token").await;
        (!refreshes.is_empty()).then_some(())
    })
    .await;
    bob.sign_out().await;
    alice
}

/// Pairs a device, reaches it, opens its host, and gives it a new token.
async fn devices(cloud: &TestCloud, alice: &Browser, canaries: &mut Canaries) -> Device {
    let origin = Origin::spawn().await;
    let mut device = Device::pair(cloud, alice, origin.addr()).await;
    let (_, code) = alice.pairing_code().await;
    canaries.know(&code);
    canaries.know(&code.replace('-', ""));
    let anonymous = Anonymous::of(cloud);
    let nested = json!({"code": {"wrong": code}, "device": {}});
    let exchange = anonymous.post("/api/pairing/exchange").json(&nested);
    canaries.refused(exchange.send().await);
    anonymous.exchange(&code).await.expect(200);
    canaries.refused(anonymous.exchange(&code).await);
    let state = fs::read_to_string(device.state_dir().join("agent.json")).expect("its state");
    let state: Value = serde_json::from_str(&state).expect("JSON");
    canaries.know(&text(&state["token"]));
    let forward = alice.forward(&device.id, Method::GET, "/hello").header(
        "edgecloud-device-authorization",
        "Bearer canary-for-the-device",
    );
    forward.send().await.expect_success();
    canaries.know("canary-for-the-device");
    let path = format!("/api/devices/{}/open", device.id);
    let link = alice.post(&path).json(&json!({})).send().await.expect(201);
    let link = url::Url::parse(&text(&link.json()["url"])).expect("a URL");
    let (_, ticket) = link.query_pairs().next().expect("a ticket");
    canaries.know(&ticket);
    let host = alice.enter(&device.id).await;
    // Key id and login id are no secrets; the signature is.
    let cookie = alice.cookie(&host, "edgecloud-device").expect("a cookie");
    canaries.know(cookie.rsplit('.').next().expect("a signature"));
    let path = format!("/api/devices/{}/token", device.id);
    let rotated = alice.post(&path).send().await.expect(200).json();
    canaries.know(&text(&rotated["token"]));
    device.process().check_running();
    device
}

/// Programs, and everything that is no good.
async fn programs(
    cloud: &TestCloud,
    alice: &Browser,
    provider: &Provider,
    canaries: &mut Canaries,
) {
    let token = provider.access_token("robot", AUDIENCE).await;
    let anonymous = Anonymous::of(cloud);
    let with = |name: &str, value: &str| anonymous.get("/api/devices").header(name, value);
    let bearer = format!("Bearer {token}");
    canaries.refused(with("authorization", &bearer).send().await);
    let body = json!({"client_id": "robot", "name": "robot", "role": "viewer"});
    let registered = alice.post("/api/service-clients").json(&body);
    registered.send().await.expect(201);
    with("authorization", &bearer).send().await.expect(200);
    for (name, value) in [
        ("authorization", "Bearer canary-bearer.of.nobody"),
        ("authorization", "Bearer edt_canarydevicetoken"),
        ("authorization", "Basic Y2FuYXJ5LWJhc2ljOnNlY3JldA=="),
        ("cookie", "edgecloud=canary-cookie.canary-secret.canary-mac"),
    ] {
        canaries.know(value.split_once([' ', '=']).expect("two parts").1);
        canaries.refused(with(name, value).send().await);
    }
    canaries.know("canary-logout-token");
    let logout = anonymous
        .post("/api/auth/backchannel-logout")
        .header("content-type", "application/x-www-form-urlencoded")
        .bytes("logout_token=canary-logout-token");
    canaries.refused(logout.send().await);
    canaries.know("canary-callback-code");
    canaries.know("canary-callback-state");
    let callback = "/api/auth/callback?code=canary-callback-code&state=canary-callback-state";
    canaries.refused(alice.navigate(callback, "cross-site").send().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn se_01_no_secret_is_in_a_log_a_metric_an_error_or_in_clear_in_the_database() {
    let metrics = free_addr();
    let cookie_key = "canary-cookie-key-of-more-than-32-bytes";
    let (provider, mut cloud) = Provider::with_cloud(Topology::All, Registration::Basic, |it| {
        it.without_setting("EDGECLOUD__LOG__LEVEL")
            .setting("EDGECLOUD__LOG__LEVEL", "trace")
            .setting("EDGECLOUD__METRICS__LISTEN", metrics)
            .setting("EDGECLOUD__LOGIN__COOKIE_KEY", cookie_key)
            .setting("EDGECLOUD__OIDC__SERVICE_CLIENT__CLIENT_ID", "backend")
            .setting(
                "EDGECLOUD__OIDC__SERVICE_CLIENT__CLIENT_SECRET",
                "backend-secret-canary",
            )
    })
    .await;
    let mut canaries = Canaries::default();
    for secret in [
        cookie_key,
        "confidential-secret-canary",
        "backend-secret-canary",
    ] {
        canaries.know(secret);
    }
    let alice = people(&cloud, &provider, &mut canaries).await;
    let mut device = devices(&cloud, &alice, &mut canaries).await;
    programs(&cloud, &alice, &provider, &mut canaries).await;
    let secrets = provider.control(Method::GET, "secrets").await;
    canaries.know_all(&secrets);
    assert!(canaries.secrets.len() > 30, "{}", canaries.secrets.len());

    let host = metrics.to_string();
    let shown = Request::new(metrics, &host, Method::GET, "/metrics")
        .send()
        .await;
    canaries.are_not_in("the metrics", shown.expect(200).text().as_bytes());
    canaries.are_not_in("an error", canaries.errors.as_bytes());
    for name in ["edgecloud.db", "edgecloud.db-wal"] {
        let bytes = fs::read(cloud.data_dir().join(name)).expect("a file of the database");
        canaries.are_not_in(name, &bytes);
    }
    cloud.terminate(Part::Api);
    assert!(cloud.wait_exit(Part::Api).await.success());
    let log = cloud.process(Part::Api).output();
    assert!(log.contains("DEBUG edgecloud"), "the level is set");
    canaries.are_not_in("the cloud's log", log.as_bytes());
    let log = device.process().output();
    canaries.are_not_in("the agent's log", log.as_bytes());
}
