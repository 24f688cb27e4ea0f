//! What every answer of the API listener must and must not say, whoever asks for whatever.

use std::collections::BTreeMap;

use http::Method;
use rusqlite::types::Value as Cell;
use serde_json::{Value, json};

use crate::support::{
    Anonymous, Answer, Authority, Browser, Manner, RawConnection, RawDevice, Request, TestCloud,
    Topology, on_both_topologies,
};

on_both_topologies![
    ch_04_no_get_changes_what_is_stored,
    ch_06_another_site_cannot_read_what_a_browser_gets,
    ch_07_no_route_allows_another_origin,
    ch_09_errors_carry_the_headers_that_protect_them,
    ch_10_no_address_is_made_of_what_a_caller_says,
    ch_11_odd_methods_and_pages_of_operators_are_closed,
    rx_02_heads_and_bodies_of_any_size_are_refused_cheaply,
];

/// Method and path of every documented operation, with ids of a device and of nothing.
async fn operations(cloud: &TestCloud, device: &str) -> Vec<(Method, String)> {
    let document = Anonymous::of(cloud).get("/api/openapi.json").send().await;
    let document = document.expect(200).json();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, _) in item.as_object().expect("a path item") {
            let Ok(method) = method.to_uppercase().parse::<Method>() else {
                continue;
            };
            if matches!(method.as_str(), "PARAMETERS" | "SUMMARY" | "DESCRIPTION") {
                continue;
            }
            let filled: Vec<_> = path
                .split('/')
                .map(|segment| match segment {
                    "{id}" if path.starts_with("/api/devices/") => device,
                    segment if segment.starts_with('{') => "x",
                    segment => segment,
                })
                .collect();
            all.push((method, filled.join("/")));
        }
    }
    assert!(all.len() > 40, "the document is whole: {}", all.len());
    all
}

/// Everything that is stored, but for what processes and their tunnels note by themselves and for when
/// a login was used last.
fn stored(cloud: &TestCloud) -> BTreeMap<String, Vec<Vec<Cell>>> {
    const VOLATILE: &[&str] = &["nodes", "sessions", "used_states", "usage"];
    let database = cloud.database();
    let mut tables = database
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        .expect("list the tables");
    let names: Vec<String> = tables
        .query_map([], |row| row.get(0))
        .expect("list the tables")
        .collect::<Result<_, _>>()
        .expect("names");
    let names = names
        .into_iter()
        .filter(|name| !VOLATILE.iter().any(|volatile| name.starts_with(volatile)));
    names
        .map(|name| {
            let mut all = database
                .prepare(&format!("SELECT * FROM {name}"))
                .expect("a table");
            let columns: Vec<String> = all.column_names().map(str::to_owned).collect();
            let kept: Vec<usize> = (0..columns.len())
                .filter(|at| columns[*at] != "idle_expires_at" && columns[*at] != "last_used_at")
                .collect();
            let rows = all
                .query_map([], |row| kept.iter().map(|at| row.get(*at)).collect())
                .expect("read a table")
                .collect::<Result<_, _>>()
                .expect("rows");
            (name, rows)
        })
        .collect()
}

async fn ch_04_no_get_changes_what_is_stored(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let before = stored(&cloud);
    assert!(before["devices"].len() == 1 && before["logins"].len() == 1);
    for (_, path) in operations(&cloud, &device.id).await {
        if path.contains("/auth/login") || path.starts_with("/api/events") {
            continue;
        }
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let request = alice
                .request(method, &format!("{path}?_method=DELETE&method=POST"))
                .header("x-http-method-override", "DELETE")
                .header("x-http-method", "DELETE")
                .header("x-method-override", "POST");
            // Whatever the answer is.
            request.send().await;
        }
    }
    let after = stored(&cloud);
    for (table, rows) in &before {
        assert_eq!(Some(rows), after.get(table), "{table}");
    }
    assert!(alice.is_signed_in().await);
}

async fn ch_06_another_site_cannot_read_what_a_browser_gets(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let _served = device.serve(Manner::Says("hello")).await;
    alice.wait_for_status(&device.id, "online").await;
    let forwarded = format!("/api/devices/{}/http/", device.id);
    for path in ["/api/auth/me", "/api/devices", "/api/events", &forwarded] {
        for mode in ["no-cors", "cors", "websocket"] {
            let answer = alice
                .get(path)
                .header("sec-fetch-site", "cross-site")
                .header("sec-fetch-mode", mode)
                .header("origin", "https://evil.example")
                .open()
                .await;
            let protected = match answer.headers.get("cross-origin-resource-policy") {
                Some(policy) => policy == "same-origin",
                None => false,
            };
            let refused = answer.status == 403;
            assert!(refused || protected, "{path} {mode}: {}", answer.status);
            let allowed = answer.headers.get("access-control-allow-origin");
            assert_eq!(allowed, None, "{path} {mode}");
        }
    }
}

async fn ch_07_no_route_allows_another_origin(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let mut operations = operations(&cloud, &device.id).await;
    operations.push((Method::GET, "/".to_owned()));
    operations.push((Method::GET, "/nothing".to_owned()));
    for (method, path) in operations {
        for origin in ["https://evil.example", "null"] {
            for (method, asked) in [(&method, "GET"), (&Method::OPTIONS, method.as_str())] {
                // Unsafe ones are refused before anything happens.
                let request = alice
                    .request_on(alice.host(), method.clone(), &path)
                    .header("origin", origin)
                    .header("sec-fetch-site", "cross-site")
                    .header("access-control-request-method", asked)
                    .header("access-control-request-headers", "edgecloud-csrf");
                let answer = request.open().await;
                for (name, _) in &answer.headers {
                    let name = name.as_str();
                    let told = format!("{method} {path}: {name}");
                    assert!(!name.starts_with("access-control-"), "{told}");
                }
            }
        }
    }
    assert_eq!(alice.device(&device.id).await["id"], *device.id);
}

#[track_caller]
fn assert_protected(answer: &Answer) {
    let told = format!("{answer:?}");
    let policy = answer.header("content-security-policy");
    for rule in [
        "default-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(rule), "{rule}: {told}");
    }
    let hsts = answer.header("strict-transport-security");
    let age = hsts
        .strip_prefix("max-age=")
        .and_then(|rest| rest.split(';').next())
        .and_then(|age| age.parse::<u64>().ok());
    assert!(age.is_some_and(|age| age >= 31_536_000), "a year: {told}");
    assert!(hsts.contains("includeSubDomains"), "{told}");
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
        ("server", ""),
        ("x-powered-by", ""),
    ] {
        assert_eq!(answer.header(name), value, "{name}: {told}");
    }
    assert_ne!(answer.header("content-type"), "", "{told}");
    assert_ne!(answer.header("x-request-id"), "", "{told}");
}

async fn ch_09_errors_carry_the_headers_that_protect_them(topology: Topology) {
    let authority = Authority::new();
    authority.issue("localhost");
    let cloud = TestCloud::builder(topology)
        .tls(&authority)
        .setting("EDGECLOUD__LIMITS__JSON_BODY_BYTES", 1024)
        .setting("EDGECLOUD__LIMITS__FAILED_CALLBACKS_PER_MINUTE", 1)
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let nobody = Anonymous::of(&cloud);
    let codes = "/api/pairing/codes";
    let long = json!({"name": "x".repeat(2000)});
    let forwarded = format!("/api/devices/{}/http/", device.id);
    let callback = || nobody.get("/api/auth/callback?code=a&state=b");
    let elsewhere = alice.request_on("other.example", Method::GET, "/");
    let forged = alice.post(codes).header("sec-fetch-site", "cross-site");
    let typed = alice.post(codes).header("content-type", "text/plain");
    for (status, request) in [
        (401, nobody.get("/api/auth/me")),
        (401, nobody.get("/api/nothing")),
        (403, forged.json(&json!({}))),
        (404, alice.get("/api/nothing")),
        (404, nobody.get("/nothing")),
        (405, alice.delete("/api/auth/me")),
        (413, alice.post(codes).json(&long)),
        (415, typed.bytes("{}")),
        (421, elsewhere),
        (422, alice.post(codes).json(&json!({"ttl_secs": 1}))),
        (400, alice.post(codes).json(&json!({"x": 1}))),
        (400, callback()),
        (429, callback()),
        (503, alice.get(&forwarded)),
    ] {
        assert_protected(&request.send().await.expect(status));
    }
}

async fn ch_10_no_address_is_made_of_what_a_caller_says(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let lying = |request: Request| {
        request
            .header("x-forwarded-host", "evil.example")
            .header("x-forwarded-server", "evil.example")
            .header("x-host", "evil.example")
            .header("x-original-url", "https://evil.example/")
            .header("forwarded", "host=evil.example;proto=https")
            .header("x-forwarded-proto", "https")
            .send()
    };
    let path = format!("/api/devices/{}/open", device.id);
    for request in [
        alice.navigate("/api/auth/login", "none"),
        alice.navigate("/api/devices", "none"),
        alice.post(&path).json(&json!({})),
        alice.get("/api/openapi.json"),
        alice.get("/api/nothing"),
        alice.post("/api/auth/logout"),
    ] {
        let answer = lying(request).await;
        let whole = format!("{:?} {}", answer.headers, answer.text());
        assert!(!whole.contains("evil.example"), "{whole}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "evil.example@localhost",
        "",
    ] {
        let mut caller = RawConnection::open(cloud.api_addr()).await;
        caller
            .send(format!(
                "GET /api/auth/login HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        let answer = String::from_utf8_lossy(&caller.read_to_end().await).into_owned();
        let location = answer
            .lines()
            .find_map(|line| line.strip_prefix("location: "));
        if let Some(location) = location {
            assert!(location.starts_with(cloud.public_url()), "{host}: {answer}");
        }
        assert!(!answer.to_lowercase().contains("set-cookie"), "{answer}");
    }
}

async fn ch_11_odd_methods_and_pages_of_operators_are_closed(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let cookie = format!("edgecloud={}", alice.login_cookie());
    for method in ["TRACE", "TRACK", "PROPFIND", "DEBUG", "get", "X"] {
        for path in ["/api/devices", "/api/auth/me", "/", "/healthz", "/nothing"] {
            for credentials in ["x-nothing: 1", &format!("cookie: {cookie}")] {
                let mut caller = RawConnection::open(cloud.api_addr()).await;
                let host = cloud.public_host();
                caller
                    .send(format!(
                        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nX-Canary: canary\r\n\
                         Edgecloud-Csrf: 1\r\n{credentials}\r\nConnection: close\r\n\r\n"
                    ))
                    .await;
                let answer = String::from_utf8_lossy(&caller.read_to_end().await).into_owned();
                let status = answer.split(' ').nth(1).unwrap_or_default();
                let closed = matches!(status, "400" | "401" | "403" | "404" | "405" | "501");
                assert!(closed, "{method} {path}: {answer}");
                assert!(!answer.contains("canary"), "nothing is echoed: {answer}");
            }
        }
    }
    for path in [
        "/metrics",
        "/debug",
        "/debug/pprof/",
        "/server-status",
        "/.git/config",
        "/.env",
        "/actuator",
        "/swagger.json",
        "/assets/",
        "/backup.db",
        "/edgecloud.db",
    ] {
        alice.get(path).send().await.expect(404);
    }
    let version = env!("CARGO_PKG_VERSION");
    for path in ["/", "/healthz", "/readyz", "/nothing", "/api/auth/me"] {
        let answer = Anonymous::of(&cloud).get(path).send().await;
        let whole = format!("{:?} {}", answer.headers, answer.text());
        for banner in [&format!("edgecloud/{version}"), "hyper", "axum"] {
            assert!(!whole.contains(banner), "{path}: {whole}");
        }
    }
}

async fn rx_02_heads_and_bodies_of_any_size_are_refused_cheaply(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let headers: String = (0..200).map(|n| format!("X-H{n}: x\r\n")).collect();
    let mut caller = RawConnection::open(cloud.api_addr()).await;
    let host = cloud.public_host();
    let head = format!("GET /api/auth/me HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    caller.send_what_is_taken(head).await;
    assert_eq!(caller.read_status().await, 431);

    const DEEP: usize = 100_000;
    let codes = "/api/pairing/codes";
    let nested = [
        format!("{{\"name\":{}{}}}", "[".repeat(DEEP), "]".repeat(DEEP)),
        format!("{}1{}", "{\"a\":".repeat(DEEP), "}".repeat(DEEP)),
        "[".repeat(DEEP),
    ];
    for body in nested {
        let request = alice.post(codes).header("content-type", "application/json");
        let answer = request.bytes(body).send().await.expect(400);
        let problem: Value = answer.json();
        assert!(answer.text().len() < 2_000, "{problem}");
    }
    let codes = alice.get(codes).send().await.expect(200);
    assert_eq!(codes.items(), Vec::<Value>::new());
}
