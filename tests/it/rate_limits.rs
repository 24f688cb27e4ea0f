//! Limits on what costs the cloud or a provider something, per address, and that nobody can use them
//! against anybody else.

use http::Method;
use serde_json::json;

use crate::support::{
    Anonymous, Answer, Browser, RawDevice, Request, TestCloud, Topology, on_both_topologies,
};

on_both_topologies![
    rl_01_sign_ins_that_are_begun_are_limited,
    rl_01_callbacks_that_fail_are_limited,
    rl_01_wrong_device_tokens_are_limited,
    rl_01_wrong_pairing_codes_are_limited,
];

const ALLOWED: usize = 5;

/// A cloud behind a trusted proxy, where one thing may happen [`ALLOWED`] times.
async fn cloud_with(topology: Topology, limit: &str) -> TestCloud {
    TestCloud::builder(topology)
        .setting(&format!("EDGECLOUD__LIMITS__{limit}"), ALLOWED)
        .setting("EDGECLOUD__SERVER__TRUSTED_PROXIES", "127.0.0.1")
        .spawn()
        .await
}

#[track_caller]
fn assert_limited(answer: &Answer) {
    assert_eq!(answer.status, 429, "{answer:?}");
    let wait: u64 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    assert!(answer.all("set-cookie").is_empty(), "{answer:?}");
}

fn from(request: Request, address: &str) -> Request {
    request.header("x-forwarded-for", address)
}

/// Lets one address use up what it may do; shows who shares its limit and who does not.
async fn is_limited_by_address(attempt: impl AsyncFn(&str) -> Answer, usual: u16) {
    for _ in 0..ALLOWED {
        let answer = attempt("192.0.2.1").await;
        assert_eq!(answer.status, usual, "{answer:?}");
    }
    assert_limited(&attempt("192.0.2.1").await);
    // What stands before the address that the proxy saw was written by the client.
    for forged in ["203.0.113.1, 192.0.2.1", "unknown, 192.0.2.1", "192.0.2.1"] {
        assert_limited(&attempt(forged).await);
    }
    assert_eq!(attempt("192.0.2.2").await.status, usual, "another address");

    for place in 0..ALLOWED {
        let answer = attempt(&format!("2001:db8::{place}")).await;
        assert_eq!(answer.status, usual, "{answer:?}");
    }
    assert_limited(&attempt("2001:db8::ffff:1").await);
    assert_eq!(attempt("2001:db8:0:1::1").await.status, usual);
}

async fn rl_01_sign_ins_that_are_begun_are_limited(topology: Topology) {
    let cloud = cloud_with(topology, "SIGN_IN_STARTS_PER_MINUTE").await;
    let attempt = async |address: &str| {
        let login = Browser::new(&cloud).navigate("/api/auth/login", "none");
        from(login, address).send().await
    };
    is_limited_by_address(attempt, 303).await;
    // Nobody else is locked out.
    let elsewhere = Browser::sign_in(&cloud, "alice").await;
    assert!(elsewhere.is_signed_in().await, "RL-03");
}

async fn rl_01_callbacks_that_fail_are_limited(topology: Topology) {
    let cloud = cloud_with(topology, "FAILED_CALLBACKS_PER_MINUTE").await;
    let attempt = async |address: &str| {
        let target = "/api/auth/callback?code=a&state=b";
        let callback = Browser::new(&cloud).navigate(target, "cross-site");
        from(callback, address).send().await
    };
    is_limited_by_address(attempt, 400).await;
    // Not even at the same address is anybody locked out who comes back with the right answer.
    let alice = Browser::new(&cloud);
    let authorize = alice.begin_login("/").await;
    let callback = alice.choose(&authorize, "alice").await;
    let callback = alice.navigate(&callback, "cross-site");
    from(callback, "192.0.2.1").send().await.expect(303);
    assert!(alice.is_signed_in().await, "RL-03");
    assert_limited(&attempt("192.0.2.1").await);
}

async fn rl_01_wrong_device_tokens_are_limited(topology: Topology) {
    let cloud = cloud_with(topology, "FAILED_DEVICE_TOKENS_PER_MINUTE").await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let removed = RawDevice::pair(&cloud, &alice).await;
    let path = format!("/api/devices/{}", removed.id);
    alice.delete(&path).send().await.expect_success();
    let attempt = async |address: &str| {
        // Well-formed, known once, and of nobody now.
        let refused = from(removed.handshake(), address).websocket().await;
        *refused.err().expect("nobody's token opens no tunnel")
    };
    is_limited_by_address(attempt, 401).await;
    for junk in ["Bearer edt_junk", "Basic YTpi", ""] {
        let request = RawDevice::anonymous(&cloud, "/tunnel");
        let request = from(request.header("authorization", junk), "192.0.2.1");
        assert_limited(&request.send().await);
    }
    let handshake = from(device.handshake(), "192.0.2.1");
    let opened = handshake.websocket().await;
    assert!(opened.is_ok(), "the right token is never refused (RL-03)");
}

async fn rl_01_wrong_pairing_codes_are_limited(topology: Topology) {
    let cloud = cloud_with(topology, "PAIRING_ATTEMPTS_PER_MINUTE").await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let exchange = async |code: &str, address: &str| {
        let request = Anonymous::of(&cloud).request(Method::POST, "/api/pairing/exchange");
        let request = request.json(&json!({"code": code, "device": {}}));
        from(request, address).send().await
    };
    is_limited_by_address(
        async |address: &str| exchange("AAAA-AAAA", address).await,
        404,
    )
    .await;
    let (_, code) = alice.pairing_code().await;
    assert_limited(&exchange(&code, "192.0.2.1").await);
    exchange(&code, "198.51.100.1").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rl_01_without_a_trusted_proxy_nobody_chooses_an_address() {
    let cloud = TestCloud::builder(Topology::All)
        .setting("EDGECLOUD__LIMITS__FAILED_CALLBACKS_PER_MINUTE", ALLOWED)
        .setting("EDGECLOUD__LIMITS__SIGN_IN_STARTS_PER_MINUTE", ALLOWED)
        .setting(
            "EDGECLOUD__LIMITS__FAILED_DEVICE_TOKENS_PER_MINUTE",
            ALLOWED,
        )
        .spawn()
        .await;
    for (target, usual) in [
        ("/api/auth/callback?code=a&state=b", 400),
        ("/api/auth/login", 303),
    ] {
        let attempt = async |number: usize| {
            let request = Browser::new(&cloud).navigate(target, "none");
            let address = format!("198.51.100.{number}");
            from(request.header("x-real-ip", &address), &address)
                .send()
                .await
        };
        for number in 0..ALLOWED {
            assert_eq!(attempt(number).await.status, usual);
        }
        assert_limited(&attempt(ALLOWED).await);
    }
    let attempt = async |number: usize| {
        let request = RawDevice::anonymous(&cloud, "/tunnel");
        from(request, &format!("198.51.100.{number}")).send().await
    };
    for number in 0..ALLOWED {
        assert_eq!(attempt(number).await.status, 401);
    }
    assert_limited(&attempt(ALLOWED).await);
}
