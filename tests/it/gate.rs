//! The gate before every endpoint: who gets in, in which order things are checked, and what every
//! answer carries.

use std::collections::HashSet;

use http::Method;
use serde_json::{Value, json};

use crate::access_matrix;
use crate::support::{
    Anonymous, Answer, Browser, LOGIN_COOKIE, Part, RawConnection, RawDevice, TestCloud, Topology,
    on_both_topologies, run,
};

on_both_topologies![
    tn_10_every_endpoint_that_is_not_public_requires_credentials,
    ol_26_no_header_and_no_broken_credential_opens_any_endpoint,
    what_is_unknown_is_401_without_credentials_and_404_with_them,
    ch_08_no_spelling_of_a_path_gets_around_the_gate,
    a_wrong_method_is_405_and_the_right_ones_are_named,
    the_checks_come_in_their_order,
    rx_02_a_body_that_is_too_large_is_413,
    a_problem_has_its_shape,
    every_answer_has_its_request_id,
    ch_09_answers_carry_the_headers_that_protect_them,
    head_works_wherever_get_does,
    ch_04_safe_methods_change_nothing,
    the_document_says_the_same_everywhere,
    the_version_is_told_to_those_who_are_signed_in,
    health_needs_no_credentials,
    rx_02_a_head_that_is_too_large_is_431,
    the_console_is_public_and_shows_nothing_of_anybody,
    fw_10_a_request_from_an_untrusted_peer_says_nothing_about_its_address,
];

/// The complete list of what needs no credentials.
const PUBLIC: &[(&str, &str)] = &[
    ("GET", "/api/auth/login"),
    ("GET", "/api/auth/callback"),
    ("POST", "/api/auth/backchannel-logout"),
    ("POST", "/api/pairing/exchange"),
    ("GET", "/api/openapi.json"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
];

/// A method and a path with its parameters filled in.
struct Route {
    method: Method,
    path: String,
}

/// Every route that is not public, with `device` and ids that nobody has in the place of parameters.
async fn closed_routes(cloud: &TestCloud, device: &str) -> Vec<Route> {
    let operations = access_matrix::documented(cloud).await;
    let found: HashSet<_> = operations
        .iter()
        .map(|(method, path)| (method.as_str(), path.as_str()))
        .collect();
    for row in access_matrix::rows() {
        let expected = (row.method, row.path);
        assert!(found.contains(&expected), "{expected:?} is not documented");
    }
    let mut routes: Vec<_> = found
        .iter()
        .filter(|operation| !PUBLIC.contains(operation))
        .map(|(method, path)| Route {
            method: method.parse().expect("a method"),
            path: filled(path, device),
        })
        .collect();
    assert!(
        routes.len() >= 51,
        "{} operations need a login",
        routes.len()
    );
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"] {
        routes.push(Route {
            method: method.parse().expect("a method"),
            path: format!("/api/devices/{device}/http/some/path"),
        });
    }
    routes
}

fn filled(path: &str, device: &str) -> String {
    path.split('/')
        .map(|segment| match segment {
            "{id}" if path.starts_with("/api/devices/") => device,
            "{path}" | "{*path}" => "x",
            "{port}" => "22",
            _ if segment.starts_with('{') => "pc_aaaaaaaaaaaaaaaaaaaaaaaaaa",
            _ => segment,
        })
        .collect::<Vec<_>>()
        .join("/")
}

async fn tn_10_every_endpoint_that_is_not_public_requires_credentials(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    for route in closed_routes(&cloud, &device.id).await {
        let request = Anonymous::of(&cloud).request(route.method.clone(), &route.path);
        let answer = request.send().await;
        assert_closed(&route, &answer);
    }
    assert_eq!(alice.device(&device.id).await["id"], *device.id);
}

fn assert_closed(route: &Route, answer: &Answer) {
    let Route { method, path } = route;
    assert_eq!(answer.status, 401, "{method} {path}: {}", answer.text());
    if *method != Method::HEAD {
        let problem = answer.json();
        assert_eq!(problem["status"], 401, "{method} {path}");
    }
}

async fn ol_26_no_header_and_no_broken_credential_opens_any_endpoint(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let cookie = format!("{LOGIN_COOKIE}={}", alice.login_cookie());
    let broken = format!("{cookie}x");
    let me = alice.me().await;
    let user = me["user"]["id"].as_str().expect("an id");
    let device_token = format!("Bearer {}", device.token);
    let attempts: &[&[(&str, &str)]] = &[
        &[("cookie", &broken)],
        &[("authorization", "Bearer eyJhbGciOiJFUzI1NiJ9.e30.c2ln")],
        &[("authorization", "Basic YWxpY2U6YWxpY2U=")],
        &[("authorization", &device_token)],
        &[("authorization", "Bearer junk"), ("cookie", &cookie)],
        &[("x-user", user), ("x-forwarded-user", user)],
        &[("edgecloud-user", user), ("edgecloud_user", user)],
        &[(
            "edgecloud-tenant",
            me["tenant"]["id"].as_str().expect("an id"),
        )],
        &[("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")],
        &[
            ("user-agent", "kube-probe/1.33"),
            ("x-original-url", "/healthz"),
        ],
        &[
            ("x-http-method-override", "GET"),
            ("x-rewrite-url", "/healthz"),
        ],
        &[("sec-fetch-site", "same-origin"), ("edgecloud-csrf", "1")],
    ];
    for route in closed_routes(&cloud, &device.id).await {
        for headers in attempts {
            let bare = Anonymous::of(&cloud).request(route.method.clone(), &route.path);
            let request = headers
                .iter()
                .fold(bare, |request, (name, value)| request.header(name, value));
            let answer = request.send().await;
            assert_eq!(
                answer.status,
                401,
                "{} {} with {headers:?}: {}",
                route.method,
                route.path,
                answer.text()
            );
        }
    }
}

async fn what_is_unknown_is_401_without_credentials_and_404_with_them(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    for path in ["/api", "/api/", "/api/x", "/api/devices/", "/api/auth/me/"] {
        Anonymous::of(&cloud).get(path).send().await.expect(401);
        alice.get(path).send().await.expect(404);
        alice.post(path).json(&json!({})).send().await.expect(404);
    }
    let options = Anonymous::of(&cloud).request(Method::OPTIONS, "/api/devices");
    options.send().await.expect(401);
    for path in ["/x", "/index.php", "/healthz/", "/.env", "/metrics", "//"] {
        Anonymous::of(&cloud).get(path).send().await.expect(404);
    }
}

async fn ch_08_no_spelling_of_a_path_gets_around_the_gate(cloud: TestCloud) {
    for path in [
        "/api/devices?/healthz",
        "/api/devices?x=/api/auth/login",
        "/api/devices%23/healthz",
        "/api/devices;/healthz",
        "/api//devices",
        "/api/./devices",
        "/api/auth/../devices",
        "/api/auth/login/../../devices",
        "/healthz/../api/devices",
        "/API/devices",
        "/api/Devices",
        "/api/%64evices",
        "//api/devices",
        "/api/devices%00",
        "/api/devices\\x",
        "/api/auth/login/",
        "/api/auth/login/x",
    ] {
        let mut caller = RawConnection::open(cloud.api_addr()).await;
        let host = cloud.public_host();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        caller.send(request).await;
        let answer = caller.read_to_end().await;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "401" | "404" | "400"), "{path}: {answer}");
        assert!(!answer.contains("\"items\""), "{path}: {answer}");
    }
}

async fn a_wrong_method_is_405_and_the_right_ones_are_named(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    for (method, path, allowed) in [
        (Method::DELETE, "/api/auth/me", &["GET"][..]),
        (Method::GET, "/api/auth/logout", &["POST"]),
        (Method::PUT, "/api/pairing/codes", &["GET", "POST"]),
        (Method::POST, "/api/devices", &["GET"]),
    ] {
        let answer = alice.request(method.clone(), path).json(&json!({}));
        let answer = answer.send().await.expect(405);
        let allow = answer.header("allow").to_owned();
        let named: Vec<_> = allow.split(',').map(str::trim).collect();
        for allowed in allowed {
            assert!(named.contains(allowed), "{method} {path}: {allow}");
        }
        assert!(!named.contains(&method.as_str()), "{path}: {allow}");
    }
    let wrong = Anonymous::of(&cloud).get("/api/pairing/exchange").send();
    let status = wrong.await.status;
    assert!(status == 405 || status == 401, "{status}");
}

async fn the_checks_come_in_their_order(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let codes = "/api/pairing/codes";
    let nobody = Anonymous::of(&cloud).post(codes).bytes("{not json");
    nobody.send().await.expect(401);
    let missing = "/api/devices/dev_aaaaaaaaaaaaaaaaaaaaaaaaaa";
    let request = alice.patch(missing).header("content-type", "text/plain");
    request.bytes("{not json").send().await.expect(404);
    let forged = alice.request_on(alice.host(), Method::POST, codes);
    let forged = forged.header("content-type", "text/plain");
    forged.bytes("{not json").send().await.expect(403);

    let plain = alice.post(codes).header("content-type", "text/plain");
    plain.bytes("{not json").send().await.expect(415);
    let json = |body: &'static str| {
        let request = alice.post(codes);
        request
            .header("content-type", "application/json")
            .bytes(body)
    };
    json("{not json").send().await.expect(400);
    json("{\"name\": 7}").send().await.expect(400);
    json("{\"unknown\": 7, \"ttl_secs\": 1}")
        .send()
        .await
        .expect(400);
    json("{\"ttl_secs\": 1}").send().await.expect(422);
    json("[]").send().await.expect(400);
    json("{\"name\":\"a\",\"name\":\"b\"}")
        .send()
        .await
        .expect(400);
    json("{} {}").send().await.expect(400);
    let listed = alice.get(codes).send().await.expect(200);
    assert_eq!(listed.items().len(), 0, "nothing has happened");
    let with_charset = alice.post(codes);
    let with_charset = with_charset.header("content-type", "application/json; charset=utf-8");
    with_charset.bytes("{}").send().await.expect(201);
}

async fn rx_02_a_body_that_is_too_large_is_413(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__JSON_BODY_BYTES", 2048)
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let body = json!({"name": "x".repeat(3000)}).to_string();
    let request = |path: &str| {
        let request = alice.post(path);
        request.header("content-type", "application/json")
    };
    let declared = request("/api/pairing/codes").bytes(body.clone());
    declared.send().await.expect(413);
    let pieces: Vec<_> = body
        .as_bytes()
        .chunks(100)
        .map(bytes::Bytes::copy_from_slice)
        .collect();
    let chunked = request("/api/pairing/codes").stream(futures_util::stream::iter(pieces));
    chunked.send().await.expect(413);
    let public = Anonymous::of(&cloud).post("/api/pairing/exchange");
    let public = public
        .header("content-type", "application/json")
        .bytes(body);
    public.send().await.expect(413);
}

async fn a_problem_has_its_shape(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let invalid = json!({"ttl_secs": 1});
    for answer in [
        Anonymous::of(&cloud)
            .get("/api/auth/me")
            .send()
            .await
            .expect(401),
        alice.get("/api/nothing").send().await.expect(404),
        alice.delete("/api/auth/me").send().await.expect(405),
        alice
            .post("/api/pairing/codes")
            .json(&invalid)
            .send()
            .await
            .expect(422),
    ] {
        let kind = answer.header("content-type");
        assert!(kind.starts_with("application/problem+json"), "{kind}");
        let problem = answer.json();
        assert_eq!(problem["status"], answer.status.as_u16());
        assert_eq!(problem["request_id"], answer.header("x-request-id"));
        for field in ["type", "title", "code"] {
            assert!(problem[field].is_string(), "{field} in {problem}");
        }
        let uri = problem["type"].as_str().expect("a text");
        assert!(uri.starts_with('/'), "a stable path: {uri}");
    }
    let nobody = Anonymous::of(&cloud).get("/api/auth/me").send().await;
    assert_ne!(nobody.header("www-authenticate"), "", "RFC 9110 §11.6.1");
}

async fn every_answer_has_its_request_id(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let mut seen = HashSet::new();
    for answer in [
        alice.get("/api/auth/me").send().await,
        alice
            .get("/api/auth/me")
            .header("x-request-id", "forged")
            .send()
            .await,
        alice.get("/api/nothing").send().await,
        Anonymous::of(&cloud).get("/").send().await,
        Anonymous::of(&cloud).get("/nothing").send().await,
        Anonymous::of(&cloud).get("/api/auth/me").send().await,
        Anonymous::of(&cloud).get("/api/openapi.json").send().await,
    ] {
        let id = answer.header("x-request-id").to_owned();
        assert!(!id.is_empty() && id != "forged", "{answer:?}");
        assert!(seen.insert(id), "every request has its own");
    }
}

async fn ch_09_answers_carry_the_headers_that_protect_them(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let page = Anonymous::of(&cloud).get("/").send().await.expect(200);
    let policy = page.header("content-security-policy").to_owned();
    for rule in [
        "object-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ] {
        let by_default = rule.starts_with("object-src") && policy.contains("default-src 'none'");
        assert!(policy.contains(rule) || by_default, "{rule} in {policy}");
    }
    assert!(!policy.contains("unsafe-inline") && !policy.contains("unsafe-eval"));
    for answer in [
        page,
        alice.get("/api/auth/me").send().await,
        alice.get("/api/nothing").send().await,
        Anonymous::of(&cloud).get("/api/auth/me").send().await,
        Anonymous::of(&cloud).get("/nothing").send().await,
    ] {
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_ne!(answer.header("referrer-policy"), "", "{answer:?}");
        assert_ne!(answer.header("content-security-policy"), "", "{answer:?}");
        assert_eq!(answer.header("server"), "", "no banner");
        assert_eq!(answer.header("x-powered-by"), "", "no banner");
    }
    for path in ["/api/auth/me", "/api/devices", "/api/nothing"] {
        let answer = alice.get(path).send().await;
        assert!(
            answer.header("cache-control").contains("no-store"),
            "{path}"
        );
    }
}

async fn head_works_wherever_get_does(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    for path in [
        "/api/auth/me",
        "/api/devices",
        "/api/openapi.json",
        "/",
        "/healthz",
        "/readyz",
    ] {
        let get = alice.get(path).send().await.expect(200);
        let head = alice.request(Method::HEAD, path).send().await.expect(200);
        assert!(head.body.is_empty(), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"));
    }
}

async fn ch_04_safe_methods_change_nothing(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let path = format!("/api/devices/{}", device.id);
    for method in [Method::GET, Method::HEAD] {
        alice
            .request(method, &format!("{path}?_method=DELETE"))
            .header("x-http-method-override", "DELETE")
            .header("x-method-override", "DELETE")
            .send()
            .await
            .expect(200);
    }
    assert_eq!(alice.devices().await.len(), 1);
}

async fn the_document_says_the_same_everywhere(cloud: TestCloud) {
    let served = Anonymous::of(&cloud).get("/api/openapi.json").send().await;
    let served = served.expect(200).json();
    assert!(
        served["openapi"]
            .as_str()
            .expect("a version")
            .starts_with("3.1")
    );
    let home = tempfile::TempDir::new().expect("a directory");
    let printed = run(home.path(), &["openapi"], &[]).await.expect_code(0);
    let printed: Value = serde_json::from_str(&printed.stdout).expect("JSON");
    assert_eq!(printed, served);
    // And the server serves what the document says: no documented route is unknown to it.
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let all = access_matrix::documented(&cloud).await;
    for (method, path) in &all {
        if path.contains("{path}") || path.contains("{*path}") {
            continue;
        }
        let wrong = ["PUT", "DELETE", "PATCH", "POST"]
            .into_iter()
            .find(|other| !all.contains(&((*other).to_owned(), path.clone())));
        if let Some(wrong) = wrong {
            let wrong: Method = wrong.parse().expect("a method");
            let answer = alice.request(wrong, &filled(path, &device.id)).send().await;
            let known = answer.status == 405 || path.contains("{id}");
            assert!(known, "{method} {path}: {}", answer.status);
        }
    }
}

async fn the_version_is_told_to_those_who_are_signed_in(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    Anonymous::of(&cloud)
        .get("/api/version")
        .send()
        .await
        .expect(401);
    let answer = alice.get("/api/version").send().await.expect(200);
    assert!(answer.text().contains(env!("CARGO_PKG_VERSION")));
}

async fn health_needs_no_credentials(mut cloud: TestCloud) {
    let anybody = Anonymous::of(&cloud);
    anybody.get("/healthz").send().await.expect(200);
    let ready = anybody.get("/readyz").send().await.expect(200);
    assert_eq!(ready.json()["degraded"], json!([]));
    cloud.process(Part::Api).check_running();
}

async fn rx_02_a_head_that_is_too_large_is_431(cloud: TestCloud) {
    let mut caller = RawConnection::open(cloud.api_addr()).await;
    let host = cloud.public_host();
    let cookies = "a=b; ".repeat(40_000);
    caller
        .send(format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nCookie: {cookies}"
        ))
        .await;
    let answer = caller.read_to_end().await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    Anonymous::of(&cloud)
        .get("/healthz")
        .send()
        .await
        .expect(200);
}

async fn the_console_is_public_and_shows_nothing_of_anybody(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let hers = alice.get("/").send().await.expect(200);
    let anybodys = Anonymous::of(&cloud).get("/").send().await.expect(200);
    assert_eq!(hers.body, anybodys.body);
    assert!(hers.header("content-type").starts_with("text/html"));
    for file in assets(&hers.text()) {
        let answer = Anonymous::of(&cloud).get(&file).send().await.expect(200);
        let tag = answer.header("etag").to_owned();
        assert_ne!(tag, "", "{file}");
        let again = Anonymous::of(&cloud)
            .get(&file)
            .header("if-none-match", &tag);
        again.send().await.expect(304);
    }
}

/// The files of this host that a page names.
fn assets(html: &str) -> Vec<String> {
    let files: Vec<_> = ["src=\"/", "href=\"/"]
        .iter()
        .flat_map(|start| html.split(start).skip(1))
        .filter_map(|rest| rest.split('"').next())
        .filter(|path| path.contains('.'))
        .map(|path| format!("/{path}"))
        .collect();
    assert!(!files.is_empty(), "the page has a script and a style");
    files
}

async fn fw_10_a_request_from_an_untrusted_peer_says_nothing_about_its_address(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let answer = browser
        .navigate("/api/auth/login", "none")
        .header("x-forwarded-host", "evil.example")
        .header("x-forwarded-proto", "https")
        .header("forwarded", "host=evil.example;proto=https")
        .send()
        .await;
    let location = answer.header("location");
    assert!(!location.contains("evil.example"), "{location}");
    assert!(!location.contains("https%3A%2F%2Flocalhost"), "{location}");
}
