//! Cookies as an attacker brings them, and every cookie that the cloud sets.

use cookie::{Cookie, SameSite};
use edgecloud::auth::cookies::Cookies;
use edgecloud::keys::KeyRing;
use http::Method;
use secrecy::SecretString;
use serde_json::json;
use url::Url;

use crate::support::{
    Anonymous, Answer, Authority, Browser, LOGIN_COOKIE, Part, RawConnection, RawDevice, Request,
    TestCloud, Topology, on_both_topologies, text,
};

on_both_topologies![
    cs_01_every_cookie_is_protected_where_people_come_by_https,
    cs_04_a_cookie_of_the_right_key_but_of_no_login_is_nobody,
    cs_08_a_cookie_of_another_key_is_nobody,
    cs_09_a_cookie_of_a_name_that_others_can_set_is_ignored,
    cs_10_a_flood_of_cookies_is_cheap,
    cs_11_a_login_is_in_no_address,
    cs_14_what_the_database_holds_opens_nothing,
    lo_02_the_cookie_of_a_login_that_is_over_is_forgotten,
    tk_04_malformed_tokens_look_alike,
];

const KEY: &str = "the cookie key of these tests is long enough";

async fn secure(topology: Topology) -> (TestCloud, Authority) {
    let authority = Authority::new();
    authority.issue("localhost");
    let cloud = TestCloud::builder(topology).tls(&authority).spawn().await;
    (cloud, authority)
}

/// Checks every cookie of an answer, and returns how many there are.
#[track_caller]
fn protected(answer: &Answer) -> usize {
    let set = answer.all("set-cookie");
    for text in &set {
        let cookie = Cookie::parse((*text).to_owned()).expect("a cookie");
        assert!(cookie.name().starts_with("__Host-edgecloud"), "{text}");
        assert_eq!(cookie.secure(), Some(true), "{text}");
        assert_eq!(cookie.http_only(), Some(true), "{text}");
        assert_eq!(cookie.path(), Some("/"), "{text}");
        assert_eq!(cookie.domain(), None, "{text}");
        let wanted = match cookie.name() {
            "__Host-edgecloud" => SameSite::Strict,
            _ => SameSite::Lax,
        };
        assert_eq!(cookie.same_site(), Some(wanted), "{text}");
    }
    set.len()
}

async fn cs_01_every_cookie_is_protected_where_people_come_by_https(topology: Topology) {
    let (cloud, _authority) = secure(topology).await;
    let browser = Browser::new(&cloud);
    let begun = browser.navigate("/api/auth/login", "none").send().await;
    assert_eq!(protected(&begun), 1);
    let authorize = Url::parse(begun.header("location")).expect("a URL");
    let callback = browser.choose(&authorize, "alice").await;
    let signed_in = browser.open_callback(&callback).await.expect(303);
    assert_eq!(protected(&signed_in), 2, "the login, and the pending one");
    let replayed = browser.open_callback(&callback).await.expect(400);
    protected(&replayed);

    let device = RawDevice::pair(&cloud, &browser).await;
    let path = format!("/api/devices/{}/open", device.id);
    let opened = browser.post(&path).json(&json!({})).send().await;
    assert_eq!(protected(&opened), 0);
    let url = Url::parse(&text(&opened.expect(201).json()["url"])).expect("a URL");
    let target = &url[url::Position::BeforePath..];
    let entered = browser
        .request_on(url.authority(), Method::GET, target)
        .header("sec-fetch-dest", "document")
        .header("sec-fetch-mode", "navigate");
    assert_eq!(protected(&entered.send().await.expect(303)), 1);

    for path in ["/", "/api/auth/me", "/api/nothing", "/api/openapi.json"] {
        assert_eq!(protected(&browser.get(path).send().await), 0, "{path}");
    }
    let stale = Browser::new(&cloud);
    stale.plant_cookie(browser.host(), "__Host-edgecloud", "stale");
    let told = stale.get("/api/auth/me").send().await.expect(401);
    assert_eq!(protected(&told), 1);
    assert_eq!(protected(&browser.sign_out().await), 1);
}

fn issued_by(key: &str) -> String {
    let keys = KeyRing::from_secrets(&[SecretString::from(key.to_owned())]);
    let (cookie, _) = Cookies::new(keys.expect("long enough"), false).issue_login();
    cookie.value().to_owned()
}

fn count(cloud: &TestCloud, table: &str) -> u32 {
    let sql = format!("SELECT count(*) FROM {table}");
    let counted = cloud.database().query_row(&sql, [], |row| row.get(0));
    counted.expect("count the rows")
}

async fn cs_04_a_cookie_of_the_right_key_but_of_no_login_is_nobody(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LOGIN__COOKIE_KEY", KEY)
        .spawn()
        .await;
    Browser::sign_in(&cloud, "alice").await;
    let mallory = Browser::new(&cloud);
    mallory.plant_cookie(mallory.host(), LOGIN_COOKIE, &issued_by(KEY));
    assert!(!mallory.is_signed_in().await);
    assert_eq!(count(&cloud, "logins"), 1, "no login is made of a cookie");
}

async fn cs_08_a_cookie_of_another_key_is_nobody(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LOGIN__COOKIE_KEY", KEY)
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let cookie = alice.login_cookie();
    let (key_id, rest) = cookie.split_once('.').expect("a key's name is first");
    let foreign = issued_by(&KEY.to_uppercase());
    let (foreign_key_id, _) = foreign.split_once('.').expect("a key's name is first");
    assert_ne!(key_id, foreign_key_id);
    for forged in [
        foreign.clone(),
        format!("{foreign_key_id}.{rest}"),
        format!(".{rest}"),
        rest.to_owned(),
    ] {
        let mallory = Browser::new(&cloud);
        mallory.plant_cookie(alice.host(), LOGIN_COOKIE, &forged);
        assert!(!mallory.is_signed_in().await, "{forged}");
    }
    assert!(alice.is_signed_in().await);
}

async fn cs_09_a_cookie_of_a_name_that_others_can_set_is_ignored(topology: Topology) {
    let (cloud, _authority) = secure(topology).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let host = alice.host().to_owned();
    let secret = alice.cookie(&host, "__Host-edgecloud").expect("just set");
    let me = |cookies: &str| {
        let request = Anonymous::of(&cloud).get("/api/auth/me");
        request.header("cookie", cookies).send()
    };
    let right = format!("__Host-edgecloud={secret}");
    me(&right).await.expect(200);
    // Without the prefix, or with it in letters that browsers do not protect.
    for name in ["edgecloud", "__host-edgecloud", "__Secure-edgecloud"] {
        me(&format!("{name}={secret}")).await.expect(401);
        me(&format!("{name}=tossed; {right}")).await.expect(200);
    }
    me(&format!("{right}; {right}")).await.expect(401);
    let (before, after) = (format!("{right}; {right}x"), format!("{right}x; {right}"));
    me(&before).await.expect(401);
    me(&after).await.expect(401);
}

async fn cs_10_a_flood_of_cookies_is_cheap(mut cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let right = format!("{LOGIN_COOKIE}={}", alice.login_cookie());
    let before = cloud.process(Part::Api).peak_memory();
    let pairs: String = (0..5_000).map(|n| format!("c{n}=x; ")).collect();
    let stripes: String = (0..1_500).map(|n| format!("edgecloud-{n}=x; ")).collect();
    let pending: String = (0..1_500)
        .map(|n| format!("edgecloud-pending-{n}=k.AAAA; "))
        .collect();
    for flood in [&pairs, &stripes, &pending] {
        for _ in 0..20 {
            let bare = Anonymous::of(&cloud);
            let nobody = bare.get("/api/auth/me").header("cookie", flood);
            nobody.send().await.expect(401);
            let callback = bare.get("/api/auth/callback?code=a&state=b");
            callback.header("cookie", flood).send().await.expect(400);
            let login = bare.get("/api/auth/login").header("cookie", flood);
            let begun = login.send().await.expect(303);
            assert!(begun.all("set-cookie").len() < 30, "a bounded answer");
        }
        let among = Anonymous::of(&cloud).get("/api/auth/me");
        let among = among.header("cookie", &format!("{flood}{right}"));
        among.send().await.expect(200);
    }
    // The server may see the end of a head that is a little too long before it sees that it is.
    for size in [128 << 10, 1 << 20] {
        let mut caller = RawConnection::open(cloud.api_addr()).await;
        let host = cloud.public_host();
        let cookie = "x".repeat(size);
        caller
            .send_what_is_taken(format!(
                "GET /api/auth/me HTTP/1.1\r\nHost: {host}\r\nCookie: a={cookie}\r\n\r\n"
            ))
            .await;
        let answer = String::from_utf8_lossy(&caller.read_to_end().await).into_owned();
        assert!(answer.is_empty() || answer.contains(" 431 "), "{answer}");
    }
    let grown = cloud.process(Part::Api).peak_memory() - before;
    assert!(grown < 32 << 20, "{grown} bytes more");
}

async fn cs_11_a_login_is_in_no_address(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let cookie = alice.login_cookie();
    let id = text(&alice.me().await["login"]["id"]);
    for value in [&cookie, &id] {
        for name in [LOGIN_COOKIE, "sid", "session", "token", "access_token"] {
            let target = format!("/api/auth/me?{name}={value}");
            Anonymous::of(&cloud).get(&target).send().await.expect(401);
        }
    }
    for path in ["/", "/api/auth/me", "/api/auth/logins", "/api/audit"] {
        let page = alice.get(path).send().await.text();
        let secret = cookie.split('.').nth(1).expect("three parts");
        assert!(!page.contains(secret), "{path}: {page}");
    }
}

async fn cs_14_what_the_database_holds_opens_nothing(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LOGIN__COOKIE_KEY", KEY)
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let (_, code) = alice.pairing_code().await;
    let blob = |sql: &str| -> Vec<u8> {
        let found = cloud.database().query_row(sql, [], |row| row.get(0));
        found.expect("a row")
    };
    let keys = KeyRing::from_secrets(&[SecretString::from(KEY.to_owned())]).expect("long enough");
    let encode = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
    let hash = blob("SELECT secret_hash FROM logins");
    // Even who has the key too cannot make the cookie of the hash.
    let signature = keys.sign("login-cookie", &hash);
    let cookie = format!(
        "{}.{}.{}",
        signature.key_id,
        encode(&hash),
        encode(&signature.mac)
    );
    let thief = Browser::new(&cloud);
    thief.plant_cookie(alice.host(), LOGIN_COOKIE, &cookie);
    assert!(!thief.is_signed_in().await);

    let hash = blob("SELECT hash FROM device_tokens");
    let mac = blob("SELECT mac FROM pairing_codes WHERE used_at IS NULL");
    for token in [encode(&hash), format!("edt_{}", encode(&hash))] {
        let request = device
            .handshake()
            .header("authorization", &format!("Bearer {token}"));
        request.send().await.expect(401);
    }
    for stolen in [encode(&mac), encode(&mac)[..8].to_owned()] {
        Anonymous::of(&cloud).exchange(&stolen).await.expect(404);
    }
    let dump = std::fs::read(cloud.data_dir().join("edgecloud.db")).expect("read the database");
    let log = std::fs::read(cloud.data_dir().join("edgecloud.db-wal")).unwrap_or_default();
    let bare = code.replace('-', "");
    let secret = alice.login_cookie();
    let secret = secret.split('.').nth(1).expect("three parts");
    for canary in [&*device.token, &*code, &*bare, secret] {
        for file in [&dump, &log] {
            let found = file.windows(canary.len()).any(|at| at == canary.as_bytes());
            assert!(!found, "{canary} is in the database (PA-07, TK-01)");
        }
        for process in cloud.processes() {
            assert!(!process.output().contains(canary), "{canary} is in the log");
        }
    }
}

async fn lo_02_the_cookie_of_a_login_that_is_over_is_forgotten(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let elsewhere = Browser::sign_in(&cloud, "alice").await;
    let id = text(&elsewhere.me().await["login"]["id"]);
    let path = format!("/api/auth/logins/{id}");
    alice.delete(&path).send().await.expect_success();
    let told = elsewhere.get("/api/auth/me").send().await.expect(401);
    let out = alice.sign_out().await;
    for answer in [&told, &out] {
        let [cookie] = answer.all("set-cookie")[..] else {
            panic!("one cookie: {answer:?}");
        };
        let cookie = Cookie::parse(cookie.to_owned()).expect("a cookie");
        assert_eq!((cookie.name(), cookie.value()), (LOGIN_COOKIE, ""));
        assert!(cookie.max_age().is_some_and(|age| age.is_zero()));
        assert_eq!(cookie.path(), Some("/"));
        assert_eq!(cookie.http_only(), Some(true));
        assert_eq!(cookie.same_site(), Some(SameSite::Strict));
        assert_eq!(cookie.domain(), None);
    }
    // "cookies" would clear those of every host of the registrable domain.
    assert_eq!(out.header("clear-site-data"), "\"cache\", \"storage\"");
    assert!(alice.cookie_names().is_empty() && elsewhere.cookie_names().is_empty());
}

async fn tk_04_malformed_tokens_look_alike(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let right = device.token.clone();
    let mut flipped = right.clone();
    flipped.replace_range(10..11, if &right[10..11] == "A" { "B" } else { "A" });
    let long = "x".repeat(6_000);
    let tokens = [
        String::new(),
        "x".to_owned(),
        "edt_".to_owned(),
        right[..right.len() - 1].to_owned(),
        format!("{right}A"),
        right.replace("edt_", "etd_"),
        right.to_uppercase(),
        flipped,
        "ünïcode".to_owned(),
        long,
    ];
    let mut told = Vec::new();
    for token in &tokens {
        let authorization = format!("Bearer {token}");
        let tunnel = device.handshake().header("authorization", &authorization);
        let tunnel = tunnel.send().await.expect(401);
        let api = Anonymous::of(&cloud).get("/api/devices");
        let api = api.header("authorization", &authorization).send().await;
        told.push((tunnel.text(), api.expect(401).without_request_id()));
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    for target in ["/tunnel", "/tunnel?token=", "/tunnel?access_token="] {
        let request = RawDevice::anonymous(&cloud, &format!("{target}{right}"));
        let refused = request.websocket().await.err().expect("TK-01: no tunnel");
        assert!(refused.status.is_client_error());
    }
    megabyte_of_token(&cloud, cloud.api_addr(), "/api/devices").await;
    megabyte_of_token(&cloud, cloud.tunnel_addr(), "/tunnel").await;
    assert!(device.handshake().websocket().await.is_ok());
}

async fn megabyte_of_token(cloud: &TestCloud, addr: std::net::SocketAddr, path: &str) {
    let mut caller = RawConnection::open(addr).await;
    let (host, token) = (cloud.public_host(), "x".repeat(1 << 20));
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n");
    caller.send_what_is_taken(head).await;
    let answer = String::from_utf8_lossy(&caller.read_to_end().await).into_owned();
    assert!(answer.is_empty() || answer.contains(" 431 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cs_03_the_old_login_is_over_at_every_process() {
    let cloud = TestCloud::builder(Topology::Split).spawn().await;
    let second = cloud.another("api", &[]).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let before = alice.login_cookie();
    alice.sign_in_again("alice").await;
    assert_ne!(alice.login_cookie(), before);
    for api in [cloud.api_addr(), second.api_addr()] {
        let cookie = format!("{LOGIN_COOKIE}={before}");
        let thief = Request::new(api, alice.host(), Method::GET, "/api/auth/me");
        thief.header("cookie", &cookie).send().await.expect(401);
        assert!(alice.through(api).is_signed_in().await);
    }
}
