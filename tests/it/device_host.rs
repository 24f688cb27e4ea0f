//! A device's own web host: the way in, its cookie, and what passes there.

use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use url::Url;

use crate::support::{
    Anonymous, Answer, Browser, Device, Origin, Request, TestCloud, eventually, on_both_topologies,
    text,
};

on_both_topologies![
    a_person_opens_a_device_on_its_own_host,
    a_person_opens_a_certain_page_of_a_device,
    a_ticket_is_good_once,
    a_ticket_and_a_cookie_are_good_for_their_device_only,
    a_device_host_without_a_ticket_shows_nothing,
    the_way_in_dies_with_the_login,
    fw_11_a_devices_headers_pass_but_for_what_would_reach_beyond_it,
    a_device_may_have_credentials_of_its_own,
    fw_09_the_clouds_cookies_do_not_reach_the_device,
    ch_10_a_host_that_is_not_served_is_refused,
    websockets_pass_on_the_devices_host,
];

struct Opened {
    host: String,
    /// Path and query of the link.
    ticket: String,
}

async fn open(person: &Browser, device: &str, body: serde_json::Value) -> Opened {
    let path = format!("/api/devices/{device}/open");
    let answer = person.post(&path).json(&body).send().await;
    let answer = answer.expect(201).json();
    let until: Timestamp = text(&answer["expires_at"]).parse().expect("RFC 3339");
    assert!(until <= Timestamp::now() + SignedDuration::from_secs(61));
    let url = Url::parse(&text(&answer["url"])).expect("a URL");
    Opened {
        host: url.authority().to_owned(),
        ticket: url[url::Position::BeforePath..url::Position::AfterQuery].to_owned(),
    }
}

fn page(person: &Browser, host: &str, target: &str) -> Request {
    person
        .request_on(host, Method::GET, target)
        .header("sec-fetch-dest", "document")
        .header("sec-fetch-mode", "navigate")
        .header("sec-fetch-site", "cross-site")
}

fn script(person: &Browser, host: &str, method: Method, target: &str) -> Request {
    person
        .request_on(host, method, target)
        .header("sec-fetch-dest", "empty")
        .header("sec-fetch-mode", "cors")
        .header("sec-fetch-site", "same-origin")
}

/// Follows the link to the end and returns the path that it led to.
async fn enter(person: &Browser, opened: &Opened) -> String {
    let answer = page(person, &opened.host, &opened.ticket).send().await;
    assert!(answer.status.is_redirection(), "{answer:?}");
    let here = Url::parse(&format!("http://{}", opened.host)).expect("a URL");
    let next = here.join(answer.header("location")).expect("a URL");
    assert_eq!(next.authority(), opened.host, "the link stays on its host");
    next[url::Position::BeforePath..url::Position::AfterQuery].to_owned()
}

/// Alice inside her device's host.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: Device,
    origin: Origin,
    host: String,
}

impl Scene {
    async fn set(cloud: TestCloud) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let origin = Origin::spawn().await;
        let device = Device::pair(&cloud, &alice, origin.addr()).await;
        let opened = open(&alice, &device.id, json!({})).await;
        enter(&alice, &opened).await;
        Self {
            cloud,
            alice,
            device,
            origin,
            host: opened.host,
        }
    }

    async fn get(&self, target: &str) -> Answer {
        script(&self.alice, &self.host, Method::GET, target)
            .send()
            .await
    }
}

async fn a_person_opens_a_device_on_its_own_host(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let opened = open(&alice, &device.id, json!({})).await;
    let port = cloud.api_addr().port();
    let label = device.id.replacen('_', "-", 1);
    assert_eq!(opened.host, format!("{label}.localhost:{port}"));

    let answer = page(&alice, &opened.host, &opened.ticket).send().await;
    let cookies = answer.all("set-cookie");
    let [cookie] = cookies[..] else {
        panic!("one cookie: {cookies:?}");
    };
    for attribute in ["HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.to_lowercase().contains("domain="), "{cookie}");
    assert!(answer.header("cache-control").contains("no-store"));
    assert_eq!(origin.seen().len(), 0, "a ticket is not for the device");

    let shown = page(&alice, &opened.host, "/").send().await.expect(200);
    assert_eq!(shown.json()["target"], "/");
    assert_eq!(origin.last().header("host"), origin.addr().to_string());
    let api = script(&alice, &opened.host, Method::GET, "/api/auth/me")
        .send()
        .await;
    assert_eq!(
        api.expect(200).json()["target"],
        "/api/auth/me",
        "the device's"
    );
    let odd = script(&alice, &opened.host, Method::GET, "/a/../%2e//b?x=%2f")
        .send()
        .await;
    assert_eq!(odd.expect(200).json()["target"], "/a/../%2e//b?x=%2f");
}

async fn a_person_opens_a_certain_page_of_a_device(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let opened = open(
        &scene.alice,
        &scene.device.id,
        json!({"path": "/cameras?id=2"}),
    )
    .await;
    assert_eq!(enter(&scene.alice, &opened).await, "/cameras?id=2");
    for tricky in [
        "//evil.example/",
        "https://evil.example/",
        "/\\evil.example",
        "x",
    ] {
        let path = format!("/api/devices/{}/open", scene.device.id);
        let answer = scene.alice.post(&path).json(&json!({"path": tricky}));
        let answer = answer.send().await;
        if answer.status == 201 {
            let url = Url::parse(&text(&answer.json()["url"])).expect("a URL");
            let opened = Opened {
                host: url.authority().to_owned(),
                ticket: url[url::Position::BeforePath..url::Position::AfterQuery].to_owned(),
            };
            assert_eq!(opened.host, scene.host);
            enter(&scene.alice, &opened).await;
        } else {
            answer.expect(422);
        }
    }
}

/// Fails the test unless the answer comes from the cloud and lets nobody in.
#[track_caller]
fn assert_shut_out(answer: &Answer) {
    let from_the_device = answer.text().contains("\"target\"");
    assert!(!from_the_device, "{answer:?}");
    for cookie in answer.all("set-cookie") {
        assert!(cookie.contains("Max-Age=0"), "no way in: {cookie}");
    }
}

async fn a_ticket_is_good_once(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let before = scene.origin.seen().len();
    let opened = open(&scene.alice, &scene.device.id, json!({})).await;
    enter(&scene.alice, &opened).await;
    let thief = Browser::new(&scene.cloud);
    let answer = page(&thief, &opened.host, &opened.ticket).send().await;
    assert_shut_out(&answer);
    let answer = script(&thief, &opened.host, Method::GET, "/").send().await;
    answer.expect(401);
    let made_up = "?ticket=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let path = opened.ticket.split('?').next().unwrap_or("/");
    let answer = page(&thief, &opened.host, &format!("{path}{made_up}"))
        .send()
        .await;
    assert_shut_out(&answer);
    assert_eq!(scene.origin.seen().len(), before);
}

async fn a_ticket_and_a_cookie_are_good_for_their_device_only(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let second_origin = Origin::spawn().await;
    let second = Device::pair(&scene.cloud, &scene.alice, second_origin.addr()).await;
    let other_host = scene.host.replacen(
        &scene.device.id.replacen('_', "-", 1),
        &second.id.replacen('_', "-", 1),
        1,
    );
    assert_ne!(other_host, scene.host);

    let opened = open(&scene.alice, &scene.device.id, json!({})).await;
    let astray = Browser::new(&scene.cloud);
    assert_shut_out(&page(&astray, &other_host, &opened.ticket).send().await);

    let name = "edgecloud-device";
    let cookie = scene.alice.cookie(&scene.host, name).expect("the cookie");
    astray.plant_cookie(&other_host, name, &cookie);
    assert_shut_out(&script(&astray, &other_host, Method::GET, "/").send().await);
    assert_eq!(second_origin.seen().len(), 0);

    astray.plant_cookie(&scene.host, name, &cookie);
    script(&astray, &scene.host, Method::GET, "/")
        .send()
        .await
        .expect(200);
    // It opens nothing of the cloud.
    astray.plant_cookie(scene.alice.host(), "edgecloud", &cookie);
    assert!(!astray.is_signed_in().await);
}

async fn a_device_host_without_a_ticket_shows_nothing(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let before = scene.origin.seen().len();
    let nobody = Browser::new(&scene.cloud);
    let answer = script(&nobody, &scene.host, Method::GET, "/").send().await;
    answer.expect(401);
    // The login's own cookie is not one of this host, wherever it comes from.
    nobody.plant_cookie(&scene.host, "edgecloud", &scene.alice.login_cookie());
    let answer = script(&nobody, &scene.host, Method::GET, "/").send().await;
    answer.expect(401);
    let answer = script(&nobody, &scene.host, Method::GET, "/")
        .header("authorization", "Bearer junk")
        .send()
        .await;
    assert_shut_out(&answer);
    assert_eq!(scene.origin.seen().len(), before);
}

async fn the_way_in_dies_with_the_login(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    scene.get("/").await.expect(200);
    let unused = open(&scene.alice, &scene.device.id, json!({})).await;
    scene.alice.sign_out().await;
    eventually("the device's host is shut", async || {
        (scene.get("/").await.status != 200).then_some(())
    })
    .await;
    let before = scene.origin.seen().len();
    assert_shut_out(&scene.get("/").await);
    let late = Browser::new(&scene.cloud);
    assert_shut_out(&page(&late, &unused.host, &unused.ticket).send().await);
    assert_eq!(scene.origin.seen().len(), before);
}

async fn fw_11_a_devices_headers_pass_but_for_what_would_reach_beyond_it(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let query: String = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("set-cookie", "theme=dark; Path=/")
        .append_pair("set-cookie", "edgecloud=evil; Path=/")
        .append_pair("set-cookie", "__Host-edgecloud=evil; Path=/; Secure")
        .append_pair("set-cookie", "edgecloud-device=evil; Path=/")
        .append_pair("set-cookie", "wide=1; Domain=localhost; Path=/")
        .append_pair("strict-transport-security", "max-age=1")
        .append_pair("alt-svc", "h3=\":1\"")
        .append_pair("nel", "{}")
        .append_pair("report-to", "{}")
        .append_pair("clear-site-data", "\"cookies\"")
        .append_pair("content-security-policy", "default-src 'self'")
        .append_pair("x-own", "1")
        .finish();
    let answer = scene.get(&format!("/do/answer?{query}")).await.expect(200);
    assert_eq!(answer.all("set-cookie"), ["theme=dark; Path=/"]);
    for dropped in [
        "strict-transport-security",
        "alt-svc",
        "nel",
        "report-to",
        "clear-site-data",
    ] {
        assert_eq!(answer.header(dropped), "", "{dropped}");
    }
    assert_eq!(answer.header("x-own"), "1");
    let policies = answer.all("content-security-policy").join(",");
    assert!(policies.contains("default-src 'self'"), "{policies}");
    assert!(!policies.contains("sandbox"), "it has a host of its own");
}

async fn a_device_may_have_credentials_of_its_own(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    scene.alice.plant_cookie(&scene.host, "theme", "dark");
    script(&scene.alice, &scene.host, Method::GET, "/private")
        .header("authorization", "Basic ZGV2aWNl")
        .send()
        .await
        .expect(200);
    let seen = scene.origin.last();
    assert_eq!(seen.header("authorization"), "Basic ZGV2aWNl");
    assert_eq!(seen.header("cookie"), "theme=dark");
    let challenge = "/do/answer?status=401&www-authenticate=Basic%20realm%3D%22box%22";
    let answer = scene.get(challenge).await.expect(401);
    assert_eq!(answer.header("www-authenticate"), "Basic realm=\"box\"");
}

async fn fw_09_the_clouds_cookies_do_not_reach_the_device(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    scene.alice.plant_cookie(&scene.host, "edgecloud", "tossed");
    let name = "edgecloud-device";
    let secret = scene.alice.cookie(&scene.host, name).expect("the cookie");
    scene.get("/").await.expect(200);
    for (name, value) in &scene.origin.last().headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        assert!(!value.contains(&secret), "{name}: {value}");
        assert!(!value.contains("tossed"), "{name}: {value}");
    }
}

async fn ch_10_a_host_that_is_not_served_is_refused(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let port = cloud.api_addr().port();
    for host in [
        "evil.example".to_owned(),
        format!("dev-aaaaaaaaaaaaaaaaaaaaaaaaaa.evil.example:{port}"),
        format!("dev-nonsense.localhost:{port}"),
        format!("api.localhost:{port}"),
    ] {
        for target in ["/", "/api/auth/me"] {
            let cookie = format!("edgecloud={}", alice.login_cookie());
            let answer = Request::new(cloud.api_addr(), &host, Method::GET, target)
                .header("cookie", &cookie)
                .header("x-forwarded-host", alice.host())
                .send()
                .await;
            assert!(
                answer.status == 404 || answer.status == 421,
                "{host}{target}: {answer:?}"
            );
        }
        let health = Request::new(cloud.api_addr(), &host, Method::GET, "/healthz");
        health.send().await.expect(200);
    }
    Anonymous::of(&cloud)
        .get("/healthz")
        .send()
        .await
        .expect(200);
}

async fn websockets_pass_on_the_devices_host(cloud: TestCloud) {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let scene = Scene::set(cloud).await;
    let own = format!("http://{}", scene.host);
    let handshake = |origin: &str| {
        scene
            .alice
            .request_on(&scene.host, Method::GET, "/do/websocket")
            .header("origin", origin)
            .websocket()
    };
    let mut opened = handshake(&own).await.expect("a WebSocket");
    opened
        .socket
        .send(Message::text("hello"))
        .await
        .expect("sent");
    let back = crate::support::within("the message comes back", opened.socket.next()).await;
    assert_eq!(
        back.expect("open").expect("a message"),
        Message::text("hello")
    );
    for foreign in ["https://evil.example", "null", &scene.alice.origin()] {
        let refused = handshake(foreign).await.err().expect("no 101");
        assert_eq!(refused.status, 403, "{foreign}");
    }
}
