use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::net::Client;
use crate::types::{DeviceId, RequestId, TenantId, UserId};

const ORIGIN_HOST: &str = "127.0.0.1:8080";

fn caller(prefix: &str) -> Caller {
    Caller {
        tenant: TenantId::random(),
        device: DeviceId::random(),
        user: UserId::random().to_string(),
        rights: Vec::new(),
        checked: tokio::time::Instant::now(),
        request_id: RequestId::random(),
        client: Client {
            addr: IpAddr::from([203, 0, 113, 1]),
            chain: vec![
                IpAddr::from([203, 0, 113, 1]),
                "2001:db8::1".parse().expect("an address"),
            ],
            https: true,
        },
        door: Door {
            scheme: "https",
            authority: "cloud.example".into(),
            prefix: prefix.into(),
        },
        auth_time: Duration::ZERO,
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        headers.append(name, value.parse().expect("a value"));
    }
    headers
}

fn sent(prefix: &str, pairs: &[(&str, &str)]) -> HeaderMap {
    let via = HeaderValue::from_static("1.1 us");
    to_device(&headers(pairs), &caller(prefix), ORIGIN_HOST, &via, false)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).map(|value| value.to_str().expect("text"))
}

#[test]
fn fw_hop_by_hop_fields_and_those_that_connection_names_stay_here() {
    let sent = sent(
        "/p",
        &[
            ("connection", "close, X-Secret, Edgecloud-User, Host"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("proxy-authorization", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("x-kept", "2"),
        ],
    );
    for gone in [
        "connection",
        "x-secret",
        "keep-alive",
        "proxy-authorization",
        "transfer-encoding",
        "upgrade",
        "te",
    ] {
        assert_eq!(text(&sent, gone), None, "{gone}");
    }
    assert_eq!(text(&sent, "x-kept"), Some("2"));
    assert_eq!(text(&sent, "host"), Some(ORIGIN_HOST));
    assert!(text(&sent, "edgecloud-user").is_some_and(|id| id.starts_with("usr_")));
}

#[test]
fn fw_what_a_client_says_about_itself_is_replaced() {
    let sent = sent(
        "/p",
        &[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-user", "root"),
            ("forwarded", "for=1.1.1.1"),
            ("edgecloud-user", "usr_evil"),
            ("edgecloud-anything", "x"),
            ("x_forwarded_for", "1.1.1.1"),
            ("edgecloud_user", "x"),
        ],
    );
    assert_eq!(
        text(&sent, "x-forwarded-for"),
        Some("203.0.113.1, 2001:db8::1")
    );
    assert_eq!(text(&sent, "x-forwarded-host"), Some("cloud.example"));
    assert_eq!(text(&sent, "x-forwarded-proto"), Some("https"));
    assert_eq!(text(&sent, "x-forwarded-prefix"), Some("/p"));
    assert_eq!(
        text(&sent, "forwarded"),
        Some("for=203.0.113.1, for=\"[2001:db8::1]\";host=\"cloud.example\";proto=https")
    );
    assert_eq!(sent.get_all("edgecloud-user").iter().count(), 1);
    for gone in [
        "x-forwarded-user",
        "edgecloud-anything",
        "x_forwarded_for",
        "edgecloud_user",
    ] {
        assert_eq!(text(&sent, gone), None, "{gone}");
    }
}

#[test]
fn fw_the_clouds_credentials_never_cross_and_the_devices_do() {
    let pairs = [
        (
            "cookie",
            "a=1; __Host-edgecloud=secret; b=2; edgecloud-device=x",
        ),
        ("authorization", "Bearer cloud"),
        (DEVICE_AUTHORIZATION.as_str(), "Basic device"),
    ];
    let by_path = sent("/p", &pairs);
    assert_eq!(text(&by_path, "cookie"), Some("a=1; b=2"));
    assert_eq!(text(&by_path, "authorization"), Some("Basic device"));
    assert_eq!(text(&by_path, DEVICE_AUTHORIZATION.as_str()), None);
    let by_host = sent("", &pairs);
    assert_eq!(text(&by_host, "authorization"), Some("Bearer cloud"));
    assert_eq!(text(&sent("/p", &pairs[1..2]), "authorization"), None);
}

#[test]
fn origin_and_referer_that_name_us_name_the_origin() {
    let rewritten = |prefix, name, value| {
        let sent = sent(prefix, &[(name, value)]);
        text(&sent, name).expect("it is there").to_owned()
    };
    assert_eq!(
        rewritten("/p", "origin", "https://cloud.example"),
        "http://127.0.0.1:8080"
    );
    assert_eq!(
        rewritten("/p", "referer", "https://cloud.example/p/a?b"),
        "http://127.0.0.1:8080/a?b"
    );
    assert_eq!(
        rewritten("/p", "referer", "https://cloud.example/secret"),
        "http://127.0.0.1:8080/"
    );
    assert_eq!(
        rewritten("", "referer", "https://cloud.example/a"),
        "http://127.0.0.1:8080/a"
    );
    for foreign in [
        "https://cloud.example.evil",
        "https://other.example/p/x",
        "null",
    ] {
        assert_eq!(rewritten("/p", "origin", foreign), foreign);
    }
}

#[test]
fn trailers_are_asked_for_when_the_client_takes_them() {
    let sent = sent(
        "/p",
        &[("te", "trailers, deflate;q=0.5"), ("connection", "TE")],
    );
    assert_eq!(text(&sent, "te"), Some("trailers"));
    assert_eq!(text(&sent, "connection"), Some("TE"));
}

#[test]
fn only_websocket_upgrades_are_known() {
    let asks = |pairs: &[(&str, &str)]| asks_for_websocket(&headers(pairs));
    assert!(asks(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket")
    ]));
    assert!(!asks(&[("connection", "upgrade"), ("upgrade", "h2c")]));
    assert!(!asks(&[("upgrade", "websocket")]));
    assert!(!asks(&[
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("upgrade", "h2c")
    ]));
}

const PROGRAM: Asked = Asked {
    browser: false,
    head: false,
};

fn answered(prefix: &str, status: u16, asked: Asked, pairs: &[(&str, &str)]) -> HeaderMap {
    let status = StatusCode::from_u16(status).expect("a status");
    to_caller(
        &headers(pairs),
        status,
        asked,
        &caller(prefix).door,
        ORIGIN_HOST,
    )
}

fn received(prefix: &str, pairs: &[(&str, &str)]) -> HeaderMap {
    answered(prefix, 200, PROGRAM, pairs)
}

#[test]
fn fw_a_browsers_cookies_on_the_clouds_host_are_not_the_devices() {
    let pairs = [("cookie", "sso=corp"), ("sec-fetch-site", "same-origin")];
    assert_eq!(text(&sent("/p", &pairs), "cookie"), None);
    assert_eq!(text(&sent("", &pairs), "cookie"), Some("sso=corp"));
    assert_eq!(text(&sent("/p", &pairs[..1]), "cookie"), Some("sso=corp"));
    let mut foreign = HeaderMap::new();
    let value = HeaderValue::from_bytes(b"a=\xe9; edgecloud=x; b=2").expect("a value");
    foreign.insert("cookie", value);
    let via = HeaderValue::from_static("1.1 us");
    let passed = to_device(&foreign, &caller(""), ORIGIN_HOST, &via, false);
    assert_eq!(passed["cookie"].as_bytes(), b"a=\xe9; b=2");
}

#[test]
fn fw_a_length_is_taken_over_only_where_there_is_no_body_to_count() {
    let head = Asked {
        head: true,
        ..PROGRAM
    };
    let length = |status, asked, pairs: &[(&str, &str)]| {
        let got = answered("/p", status, asked, pairs);
        text(&got, "content-length").map(str::to_owned)
    };
    let five = [("content-length", "5")];
    assert_eq!(length(200, PROGRAM, &five), None);
    assert_eq!(length(200, head, &five).as_deref(), Some("5"));
    assert_eq!(length(304, PROGRAM, &five).as_deref(), Some("5"));
    let twice = [("content-length", "5"), ("content-length", "5")];
    assert_eq!(length(200, head, &twice).as_deref(), Some("5"));
    for bad in [
        &[("content-length", "4"), ("content-length", "5")][..],
        &[("content-length", "+5")],
        &[("content-length", "5, 5")],
        &[("content-length", "abc")],
        &[("content-length", "5"), ("transfer-encoding", "chunked")],
    ] {
        assert_eq!(length(200, head, bad), None, "{bad:?}");
    }
}

#[test]
fn fw_21_no_cache_shares_what_a_device_answered() {
    let told = |value| {
        let got = received(
            "",
            &[("cache-control", value), ("surrogate-control", "max-age=9")],
        );
        assert_eq!(text(&got, "surrogate-control"), None);
        text(&got, "cache-control").expect("it is there").to_owned()
    };
    assert_eq!(told("public, max-age=60"), "private, max-age=60");
    assert_eq!(told("s-maxage=9,Max-Age=1"), "private, Max-Age=1");
    assert_eq!(told("no-store"), "private, no-store");
    assert_eq!(text(&received("/p", &[]), "cache-control"), Some("private"));
}

#[test]
fn fw_a_browser_does_not_act_for_a_device_on_the_clouds_host() {
    let pairs = [
        ("refresh", "0;url=https://evil.example"),
        ("service-worker-allowed", "/"),
        ("www-authenticate", "Basic realm=x"),
    ];
    let browser = Asked {
        browser: true,
        ..PROGRAM
    };
    let by_path = answered("/p", 401, browser, &pairs);
    let by_host = answered("", 401, browser, &pairs);
    for (name, _) in pairs {
        assert_eq!(text(&by_path, name), None, "{name}");
        assert!(text(&by_host, name).is_some(), "{name}");
    }
    let program = answered("/p", 401, PROGRAM, &pairs);
    assert!(text(&program, "www-authenticate").is_some());
}

#[test]
fn on_the_clouds_host_a_device_speaks_for_nobody_else() {
    let pairs = [
        ("set-cookie", "a=1"),
        ("content-security-policy", "default-src *"),
        ("strict-transport-security", "max-age=1"),
        ("clear-site-data", "\"*\""),
        ("access-control-allow-origin", "*"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("x-content-type-options", "sniff"),
        ("etag", "\"1\""),
    ];
    let got = received("/p", &pairs);
    for gone in [
        "set-cookie",
        "strict-transport-security",
        "clear-site-data",
        "access-control-allow-origin",
        "x-hop",
        "connection",
    ] {
        assert_eq!(text(&got, gone), None, "{gone}");
    }
    let policies: Vec<_> = got.get_all("content-security-policy").iter().collect();
    assert_eq!(policies, ["default-src *", "sandbox"]);
    assert_eq!(text(&got, "x-content-type-options"), Some("nosniff"));
    assert_eq!(text(&got, "etag"), Some("\"1\""));
}

#[test]
fn on_its_own_host_a_device_sets_its_own_cookies_only() {
    let got = received(
        "",
        &[
            ("set-cookie", "session=1; HttpOnly"),
            ("set-cookie", "edgecloud-device=evil"),
            ("set-cookie", "__HOST-edgecloud=evil"),
            ("set-cookie", "x=1; domain=localhost"),
            ("set-cookie", "=edgecloud-device=2"),
            ("set-cookie", "\"edgecloud\"=9"),
            ("set-cookie", "edgecloud"),
            ("alt-svc", "h3"),
            ("access-control-allow-origin", "*"),
        ],
    );
    let cookies: Vec<_> = got.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["session=1; HttpOnly"]);
    assert_eq!(text(&got, "alt-svc"), None);
    assert_eq!(text(&got, "access-control-allow-origin"), Some("*"));
    assert_eq!(text(&got, "content-security-policy"), None);
}

#[test]
fn locations_lead_back_through_the_cloud() {
    let location = |prefix, value| {
        let got = received(prefix, &[("location", value)]);
        text(&got, "location").expect("it is there").to_owned()
    };
    assert_eq!(
        location("/p", "http://127.0.0.1:8080/a"),
        "https://cloud.example/p/a"
    );
    assert_eq!(
        location("/p", "//127.0.0.1:8080/a"),
        "https://cloud.example/p/a"
    );
    assert_eq!(location("/p", "/a?b"), "/p/a?b");
    assert_eq!(location("/p", "/p/a"), "/p/a");
    assert_eq!(
        location("/p", "https://cloud.example/a"),
        "https://cloud.example/p/a"
    );
    assert_eq!(
        location("", "http://127.0.0.1:8080/a"),
        "https://cloud.example/a"
    );
    for same in [
        "a/b",
        "?x",
        "https://other.example/",
        "//other.example/a",
        "http://127.0.0.1:80801/",
    ] {
        assert_eq!(location("/p", same), same);
    }
}

crate::fuzzing::fuzz_target!(forwarded_fields, |bytes| {
    let fields = crate::fuzzing::fields(bytes);
    let via = HeaderValue::from_static("1.1 edgecloud-test");
    let asked = Asked {
        browser: true,
        head: false,
    };
    for prefix in ["/api/devices/x/http", ""] {
        let caller = caller(prefix);
        let sent = to_device(&fields, &caller, "127.0.0.1:8080", &via, false);
        for (name, value) in &sent {
            assert!(!name.as_str().contains('_'), "{name}");
            let ours = name.as_str().starts_with("edgecloud-");
            assert!(
                !ours || sent.get_all(name).iter().count() == 1,
                "{name}: {value:?}"
            );
        }
        assert_eq!(
            sent.get("edgecloud-user").expect("set"),
            caller.user.as_str()
        );
        assert_eq!(sent.get(header::HOST).expect("set"), "127.0.0.1:8080");
        let status = StatusCode::OK;
        let answered = to_caller(&fields, status, asked, &caller.door, "127.0.0.1:8080");
        if !caller.door.is_device_host() {
            assert!(!answered.contains_key(header::SET_COOKIE));
            let mut policies = answered.get_all(header::CONTENT_SECURITY_POLICY).iter();
            assert!(policies.any(|policy| *policy == SANDBOX));
        }
    }
});
