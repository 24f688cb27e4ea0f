//! A request through the cloud to a device's own HTTP server, and its answer back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::{
    Anonymous, Answer, Browser, Device, Manner, Origin, Part, Pattern, RawConnection, RawDevice,
    RawOrigin, TestCloud, Topology, eventually, length, on_both_topologies, random_token, text,
    within,
};

on_both_topologies![
    any_method_reaches_the_device,
    fw_14_path_and_query_arrive_byte_by_byte,
    fw_01_headers_of_one_hop_end_there,
    fw_02_a_caller_cannot_make_the_cloud_drop_its_own_headers,
    fw_09_the_clouds_credentials_never_reach_the_device,
    fw_10_what_the_cloud_says_about_the_caller_cannot_be_forged,
    the_origins_own_host_stands_for_the_clouds,
    fw_11_what_a_device_says_to_browsers_is_filtered_on_the_clouds_host,
    fw_13_an_answer_on_the_clouds_host_is_sandboxed,
    answers_without_a_body_have_none,
    a_range_of_a_file_comes_as_one,
    bodies_stream_both_ways,
    an_answer_is_passed_on_while_the_request_still_goes_on,
    fw_17_server_sent_events_pass_one_by_one,
    fw_17_the_device_learns_that_the_caller_is_gone,
    fw_17_a_websocket_passes_both_ways,
    fw_17_close_codes_pass_both_ways,
    fw_17_a_websocket_keeps_its_extensions,
    fw_17_long_messages_pass_both_ways,
    ug_02_a_websocket_is_told_when_the_service_restarts,
    ch_05_a_websocket_needs_the_clouds_origin,
    fw_16_the_origin_decides_about_expected_bodies,
    fw_16_an_answer_before_the_end_of_the_upload_arrives,
    trailers_arrive,
    an_upload_that_the_caller_cuts_off_is_not_complete_for_the_origin,
    fw_19_an_answer_that_the_origin_cuts_off_is_not_complete_for_the_caller,
    fw_03_ambiguous_requests_reach_nobody,
    fw_04_a_malformed_answer_is_the_origins_fault,
    fw_05_what_an_origin_says_unasked_reaches_nobody,
    fw_18_a_request_that_may_have_been_done_is_not_sent_twice,
    fw_20_an_origin_that_is_not_there_is_named_as_the_cause,
    fw_20_an_origin_that_says_nothing_times_out,
    tu_15_one_request_too_many_is_refused_and_the_tunnel_stays,
    fw_20_an_offline_device_is_unavailable_and_the_answer_says_why,
    a_device_that_does_not_exist_is_not_found,
    fw_08_odd_request_targets_lead_nowhere,
    streams_to_a_device_are_used_again,
    fw_06_each_answer_goes_to_its_own_request,
    fw_21_each_request_reaches_the_device,
];

/// Alice, her device and its origin.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: Device,
    origin: Origin,
}

impl Scene {
    async fn set(cloud: TestCloud) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let origin = Origin::spawn().await;
        let device = Device::pair(&cloud, &alice, origin.addr()).await;
        Self {
            cloud,
            alice,
            device,
            origin,
        }
    }

    fn request(&self, method: Method, path: &str) -> crate::support::Request {
        self.alice.forward(&self.device.id, method, path)
    }

    async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path).send().await
    }

    fn prefix(&self) -> String {
        format!("/api/devices/{}/http", self.device.id)
    }

    /// The head of a raw request, without its last line end.
    fn raw_head(&self, method: &str, path: &str) -> String {
        format!(
            "{method} {}{path} HTTP/1.1\r\nHost: {}\r\nCookie: edgecloud={}\r\nSec-Fetch-Site: same-origin\r\n",
            self.prefix(),
            self.alice.host(),
            self.alice.login_cookie(),
        )
    }
}

/// Alice, and a device whose origin treats connections in its own way.
async fn device_of(cloud: &TestCloud, origin: std::net::SocketAddr) -> (Browser, Device) {
    let alice = Browser::sign_in(cloud, "alice").await;
    let device = Device::pair(cloud, &alice, origin).await;
    (alice, device)
}

async fn any_method_reaches_the_device(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT", "BREW",
    ] {
        let method: Method = method.parse().expect("a method");
        let answer = scene.request(method.clone(), "/any").bytes("12345");
        let seen = answer.send().await.expect(200).json();
        assert_eq!(seen["method"], method.as_str());
        assert_eq!(seen["target"], "/any");
        assert_eq!(seen["body_bytes"], 5, "{method}");
    }
    scene.request(Method::HEAD, "/any").send().await.expect(200);
    assert_eq!(scene.origin.last().method, Method::HEAD);
}

async fn fw_14_path_and_query_arrive_byte_by_byte(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    for path in [
        "/",
        "/a/b",
        "/a//b///c",
        "//",
        "//evil.example/x",
        "/a/../b",
        "/../../api/auth/me",
        "/..",
        "/./x/.",
        "/%2e%2e/x",
        "/%2E%2E%2Fapi",
        "/a%2fb%2Fc",
        "/%00",
        "/%25%2525",
        "/a;v=1/b;w",
        "/a=b&c",
        "/~user/$x!*'(),@:",
        "/x?",
        "/x?a=1&a=2&b",
        "/x?q=a+b%20c&u=/../%2e?d",
        "/%C3%BC?%FF",
        "/x?q=[1]|{2}",
    ] {
        let seen = scene.get(path).await.expect(200).json();
        assert_eq!(seen["target"], path);
    }
    let root = scene.get("").await.expect(200).json();
    assert_eq!(root["target"], "/");
    let query_only = scene.get("?a=1").await.expect(200).json();
    assert_eq!(query_only["target"], "/?a=1");
}

async fn fw_01_headers_of_one_hop_end_there(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let head = scene.raw_head("GET", "/hop");
    let mut connection = RawConnection::open(scene.cloud.api_addr()).await;
    connection
        .send(format!(
            "{head}Connection: close, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
             TE: gzip\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\n\
             X-Public: 2\r\n\r\n"
        ))
        .await;
    assert_eq!(connection.read_status().await, 200);
    let seen = scene.origin.last();
    for hidden in [
        "x-private",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
    ] {
        assert_eq!(seen.header(hidden), "", "{hidden}");
    }
    assert!(!seen.header("te").contains("gzip"));
    assert!(!seen.header("connection").contains("x-private"));
    assert_eq!(seen.header("x-public"), "2");

    let answer = scene
        .get("/do/answer?connection=x-private&x-private=1&keep-alive=timeout%3D5&proxy-authenticate=Basic&x-public=2")
        .await
        .expect(200);
    for hidden in ["x-private", "keep-alive", "proxy-authenticate"] {
        assert_eq!(answer.header(hidden), "", "{hidden}");
    }
    assert_eq!(answer.header("x-public"), "2");
}

async fn fw_02_a_caller_cannot_make_the_cloud_drop_its_own_headers(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    scene
        .request(Method::GET, "/x")
        .header(
            "connection",
            "x-forwarded-for, edgecloud-user, edgecloud-tenant, cookie, host",
        )
        .send()
        .await
        .expect(200);
    let seen = scene.origin.last();
    assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
    assert_ne!(seen.header("edgecloud-user"), "");
    assert_ne!(seen.header("edgecloud-tenant"), "");
    assert_eq!(seen.header("host"), scene.origin.addr().to_string());
    assert_eq!(seen.header("cookie"), "");
}

async fn fw_09_the_clouds_credentials_never_reach_the_device(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let secret = scene.alice.login_cookie();
    let cookies = format!("edgecloud={secret}; __Host-edgecloud=x; edgecloud-pending-abcdefgh=y");
    scene
        .request(Method::GET, "/x")
        .header("cookie", &cookies)
        .header("edgecloud-device-authorization", "Basic ZGV2aWNl")
        .send()
        .await
        .expect(200);
    let plain = scene.origin.last();
    assert_eq!(plain.header("authorization"), "Basic ZGV2aWNl");

    let handshake = scene
        .alice
        .forward_websocket(&scene.device.id, "/do/websocket")
        .header("cookie", &cookies);
    handshake.websocket().await.map(drop).expect("a WebSocket");
    for seen in scene.origin.seen() {
        for (name, value) in &seen.headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            assert!(!value.contains(&secret), "{name}: {value}");
            assert!(!value.contains("edgecloud-pending"), "{name}: {value}");
            assert_ne!(name, "edgecloud-device-authorization");
        }
    }
    assert_eq!(scene.origin.seen().len(), 2);
}

async fn fw_10_what_the_cloud_says_about_the_caller_cannot_be_forged(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let forged = "6.6.6.6";
    let names = [
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-prefix",
        "forwarded",
        "edgecloud-user",
        "edgecloud-tenant",
        "edgecloud-request-id",
    ];
    let mut request = scene.request(Method::GET, "/x");
    for name in names.iter().filter(|name| **name != "edgecloud-tenant") {
        request = request
            .another_header(name, forged)
            .another_header(name, forged);
    }
    let answer = request
        .header("edgecloud_user", forged)
        .header("x_forwarded_for", forged)
        .send()
        .await
        .expect(200);
    let seen = scene.origin.last();
    for name in names {
        let values: Vec<_> = seen.headers.get_all(name).iter().collect();
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        assert!(!seen.header(name).contains(forged), "{name}");
    }
    for name in seen.headers.keys() {
        assert!(!name.as_str().contains('_'), "{name}");
    }
    let me = scene.alice.me().await;
    assert_eq!(seen.header("edgecloud-user"), text(&me["user"]["id"]));
    assert_eq!(seen.header("edgecloud-tenant"), text(&me["tenant"]["id"]));
    let request_id = answer.header("x-request-id");
    assert_eq!(seen.header("edgecloud-request-id"), request_id);
    assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(seen.header("x-forwarded-proto"), "http");
    assert_eq!(seen.header("x-forwarded-host"), scene.alice.host());
    assert_eq!(seen.header("x-forwarded-prefix"), scene.prefix());
    assert!(seen.header("forwarded").contains("127.0.0.1"));
}

async fn the_origins_own_host_stands_for_the_clouds(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let ours = scene.alice.origin();
    let theirs = format!("http://{}", scene.origin.addr());
    scene
        .request(Method::GET, "/x")
        .header("origin", &ours)
        .header("referer", &format!("{ours}{}/page?x=1", scene.prefix()))
        .send()
        .await
        .expect(200);
    let seen = scene.origin.last();
    assert_eq!(seen.header("host"), scene.origin.addr().to_string());
    assert_eq!(seen.header("origin"), theirs);
    assert!(seen.header("referer").starts_with(&theirs));
    assert!(!seen.header("referer").contains(scene.alice.host()));

    let foreign = "https://elsewhere.example";
    let answer = scene.request(Method::GET, "/x").header("referer", foreign);
    answer.send().await.expect(200);
    assert!(scene.origin.last().header("referer").starts_with(foreign));

    let moved = |to: &str| {
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("status", "302")
            .append_pair("location", to)
            .finish();
        format!("/do/answer?{query}")
    };
    let answer = scene.get(&moved(&format!("{theirs}/next?x=1"))).await;
    let base = url::Url::parse(&ours).expect("a URL");
    let location = base
        .join(answer.expect(302).header("location"))
        .expect("a URL");
    assert_eq!(
        location.as_str(),
        format!("{ours}{}/next?x=1", scene.prefix())
    );
    let answer = scene.get(&moved("https://elsewhere.example/x")).await;
    assert_eq!(
        answer.expect(302).header("location"),
        "https://elsewhere.example/x"
    );
}

async fn fw_11_what_a_device_says_to_browsers_is_filtered_on_the_clouds_host(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let answer = scene
        .get("/do/answer?set-cookie=a%3D1&set-cookie=edgecloud%3Devil&x-mine=1&etag=%22v1%22")
        .await
        .expect(200);
    assert!(answer.all("set-cookie").is_empty(), "{answer:?}");
    assert_eq!(answer.header("x-mine"), "1");
    assert_eq!(answer.header("etag"), "\"v1\"");
    assert!(scene.alice.is_signed_in().await);
}

async fn fw_13_an_answer_on_the_clouds_host_is_sandboxed(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let own = "default-src%20'self'%3B%20sandbox%20allow-same-origin%20allow-scripts";
    for path in [
        "/".to_owned(),
        "/do/answer?status=404".to_owned(),
        format!("/do/answer?content-type=text/html&content-security-policy={own}"),
    ] {
        let answer = scene.get(&path).await;
        let policies = answer.all("content-security-policy");
        let ours = policies
            .iter()
            .flat_map(|policy| policy.split(','))
            .any(|policy| policy.trim() == "sandbox");
        assert!(ours, "a policy that is only ours: {policies:?}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
    let answer = scene
        .get(&format!("/do/answer?content-security-policy={own}"))
        .await;
    let policies = answer.all("content-security-policy").join(",");
    assert!(policies.contains("default-src 'self'"), "{policies}");
}

async fn answers_without_a_body_have_none(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let head = scene
        .request(Method::HEAD, "/do/download?bytes=1234&length=1")
        .send()
        .await
        .expect(200);
    assert_eq!(head.header("content-length"), "1234");
    assert!(head.body.is_empty());
    for status in [204, 304] {
        let answer = scene
            .get(&format!("/do/answer?status={status}&etag=%22v1%22"))
            .await
            .expect(status);
        assert!(answer.body.is_empty());
        assert_eq!(answer.header("etag"), "\"v1\"");
        assert_eq!(answer.header("transfer-encoding"), "");
    }
    // The stream is still in step.
    let next = scene.get("/do/answer?body=next").await.expect(200);
    assert_eq!(next.text(), "next");
}

async fn a_range_of_a_file_comes_as_one(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let answer = scene
        .request(Method::GET, "/do/range")
        .header("range", "bytes=2-5")
        .send()
        .await
        .expect(206);
    assert_eq!(answer.text(), "2345");
    assert_eq!(answer.header("content-range"), "bytes 2-5/10");
}

fn pattern(total: u64) -> impl futures_util::Stream<Item = Bytes> + Send {
    stream::unfold(Pattern::default(), move |mut pattern| async move {
        let left = total - pattern.position();
        (left > 0).then(|| (pattern.next(left), pattern))
    })
}

async fn bodies_stream_both_ways(cloud: TestCloud) {
    const BYTES: u64 = 5_000_001;
    let scene = Scene::set(cloud).await;
    for framing in ["&length=1", ""] {
        let answer = scene
            .get(&format!("/do/download?bytes={BYTES}{framing}"))
            .await
            .expect(200);
        assert_eq!(answer.body.len() as u64, BYTES);
        assert!(Pattern::default().accepts(&answer.body));
    }
    for framing in [Some(BYTES.to_string()), None] {
        let mut request = scene.request(Method::POST, "/do/upload");
        if let Some(length) = &framing {
            request = request.header("content-length", length);
        }
        let told = request.stream(pattern(BYTES)).send().await.expect(200);
        let whole = json!({"bytes": BYTES, "intact": true, "complete": true});
        assert_eq!(told.json(), whole);
        let seen = scene.origin.last();
        assert_eq!(
            seen.header("content-length"),
            framing.as_deref().unwrap_or("")
        );
    }
}

async fn an_answer_is_passed_on_while_the_request_still_goes_on(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let body = stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    sender.send("first".into()).await.expect("taken");
    let request = scene.request(Method::POST, "/do/reflect").stream(body);
    let mut answer = request.open().await.expect(200);
    assert_eq!(answer.read_until("first").await, "first");
    sender.send("second".into()).await.expect("taken");
    assert_eq!(answer.read_until("second").await, "second");
    drop(sender);
    assert!(answer.next().await.is_none(), "a clean end");
}

async fn fw_17_server_sent_events_pass_one_by_one(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let events = scene.origin.drive("events");
    let mut answer = scene
        .request(Method::GET, "/do/driven?name=events&type=text/event-stream")
        .header("accept", "text/event-stream")
        .open()
        .await
        .expect(200);
    for number in 0..5 {
        let event = format!("id: {number}\ndata: {{\"n\":{number}}}\n\n");
        events.send(event.clone().into()).await.expect("taken");
        // The next event is sent only when this one has arrived.
        assert_eq!(answer.read_until("\n\n").await, event);
    }
    drop(events);
    assert!(answer.next().await.is_none(), "a clean end");
}

async fn fw_17_the_device_learns_that_the_caller_is_gone(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let events = scene.origin.drive("events");
    let target = "/do/driven?name=events&type=text/event-stream";
    let mut answer = scene.request(Method::GET, target).open().await.expect(200);
    events.send("data: 1\n\n".into()).await.expect("taken");
    answer.read_until("data: 1").await;
    drop(answer);
    within("the origin's side ends", async {
        while events.send("data: 2\n\n".into()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn fw_17_a_websocket_passes_both_ways(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let mut opened = scene
        .alice
        .forward_websocket(&scene.device.id, "/do/websocket?room=1")
        .header("sec-websocket-protocol", "chat.v2, chat.v1")
        .websocket()
        .await
        .expect("a WebSocket");
    assert_eq!(opened.headers["sec-websocket-protocol"], "chat.v2");
    let seen = scene.origin.last();
    assert_eq!(seen.target, "/do/websocket?room=1");
    assert_eq!(
        seen.header("origin"),
        format!("http://{}", scene.origin.addr())
    );
    for message in [
        Message::text("hello"),
        Message::text("☕ and more"),
        Message::binary(vec![0u8; 0]),
        Message::binary(vec![7u8; 300_000]),
    ] {
        opened.socket.send(message.clone()).await.expect("sent");
        let back = within("the message comes back", opened.socket.next()).await;
        assert_eq!(back.expect("open").expect("a message"), message);
    }
}

async fn fw_17_close_codes_pass_both_ways(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let open = async || {
        let handshake = scene
            .alice
            .forward_websocket(&scene.device.id, "/do/websocket");
        handshake.websocket().await.expect("a WebSocket")
    };
    for code in [4000, 4321] {
        let mut closed_there = open().await;
        let please = Message::text(format!("close {code} enough for today"));
        closed_there.socket.send(please).await.expect("sent");
        let told = closed_there.closed().await;
        assert_eq!(told, (code, "enough for today".to_owned()));
    }
    for code in [4000, 4567] {
        let mut closed_here = open().await;
        let frame = CloseFrame {
            code: code.into(),
            reason: "bye for now".into(),
        };
        closed_here.socket.close(Some(frame)).await.expect("sent");
        eventually("the origin has code and reason", async || {
            let closes = scene.origin.closes();
            closes
                .contains(&(code, "bye for now".to_owned()))
                .then_some(())
        })
        .await;
    }
}

async fn fw_17_a_websocket_keeps_its_extensions(cloud: TestCloud) {
    let origin = RawOrigin::spawn(|mut stream, head| async move {
        let offered = "sec-websocket-extensions: permessage-deflate; client_max_window_bits";
        let offered = head.to_lowercase().contains(offered);
        let key = head
            .lines()
            .find_map(|line| {
                line.split_once(": ")
                    .filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
            })
            .map_or("", |(_, key)| key);
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
             X-Offered: {offered}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        // Bytes that only ends which agreed on an extension can read.
        let _ = stream.write_all(&[0xc1, 1, 0x55]).await;
        std::future::pending::<()>().await;
    })
    .await;
    let (alice, device) = device_of(&cloud, origin.addr()).await;
    let mut caller = RawConnection::open(cloud.api_addr()).await;
    caller
        .send(format!(
            "GET /api/devices/{}/http/ HTTP/1.1\r\nHost: {}\r\nOrigin: {}\r\n\
             Cookie: edgecloud={}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
            device.id,
            alice.host(),
            alice.origin(),
            alice.login_cookie(),
        ))
        .await;
    let head = caller.read_head().await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(
        head.contains("\r\nsec-websocket-extensions: permessage-deflate\r\n"),
        "{head}"
    );
    assert!(
        head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nx-offered: true\r\n"), "{head}");
    assert_eq!(caller.read_bytes(3).await, [0xc1, 1, 0x55]);
}

async fn fw_17_long_messages_pass_both_ways(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let handshake = scene
        .alice
        .forward_websocket(&scene.device.id, "/do/websocket");
    let mut opened = handshake.websocket().await.expect("a WebSocket");
    let mut pattern = Pattern::default();
    let long: Vec<u8> = (0..50).flat_map(|_| pattern.next(u64::MAX)).collect();
    assert!(long.len() > 3 << 20);
    assert!(opened.echoes(Message::binary(long)).await);
    let text = "☕".repeat(700_000);
    assert!(opened.echoes(Message::text(text)).await);
}

async fn ug_02_a_websocket_is_told_when_the_service_restarts(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__SERVER__DRAIN_TIMEOUT", "1s")
        .spawn()
        .await;
    let mut scene = Scene::set(cloud).await;
    let handshake = scene
        .alice
        .forward_websocket(&scene.device.id, "/do/websocket");
    let mut opened = handshake.websocket().await.expect("a WebSocket");
    assert!(opened.echoes(Message::text("hello")).await);
    scene.cloud.terminate(Part::Api);
    let (code, _) = opened.closed().await;
    assert!(code == 1012 || code == 1001, "{code}");
    let status = scene.cloud.wait_exit(Part::Api).await;
    assert_eq!(status.code(), Some(0));
    eventually("the device was told too", async || {
        let closes = scene.origin.closes();
        closes
            .iter()
            .any(|(code, _)| matches!(code, 1001 | 1012))
            .then_some(())
    })
    .await;
}

async fn ch_05_a_websocket_needs_the_clouds_origin(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let ours = scene.alice.origin();
    for origin in [
        None,
        Some("null".to_owned()),
        Some("https://evil.example".to_owned()),
        Some(format!("{ours}.evil.example")),
        Some("http://localhost:1".to_owned()),
        Some("http://localhost".to_owned()),
        Some(ours.replace("http:", "https:")),
    ] {
        let handshake = scene
            .alice
            .forward_websocket(&scene.device.id, "/do/websocket");
        let handshake = match &origin {
            Some(origin) => handshake.header("origin", origin),
            None => handshake.without("origin"),
        };
        let refused = handshake.websocket().await.err().expect("no 101");
        assert_eq!(refused.status, 403, "{origin:?}");
    }
    let anonymous = Anonymous::of(&scene.cloud);
    let target = format!("{}/do/websocket", scene.prefix());
    let handshake = anonymous.get(&target).header("origin", &ours);
    assert_eq!(
        handshake.websocket().await.err().expect("no 101").status,
        401
    );
    assert_eq!(scene.origin.seen().len(), 0);
}

async fn fw_16_the_origin_decides_about_expected_bodies(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let body = Pattern::default().next(1000);
    let head = scene.raw_head("POST", "/do/upload");
    let mut wanted = RawConnection::open(scene.cloud.api_addr()).await;
    wanted
        .send(format!(
            "{head}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .await;
    assert_eq!(wanted.read_status().await, 100);
    wanted.send(&body).await;
    assert_eq!(wanted.read_status().await, 200);
    assert!(scene.origin.uploads()[0].complete);

    let head = scene.raw_head("POST", "/do/refuse-body");
    let mut refused = RawConnection::open(scene.cloud.api_addr()).await;
    refused
        .send(format!(
            "{head}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            1_000_000_000
        ))
        .await;
    assert_eq!(refused.read_status().await, 417, "and no 100 before it");
}

async fn fw_16_an_answer_before_the_end_of_the_upload_arrives(cloud: TestCloud) {
    let origin = RawOrigin::spawn(|mut stream, _| async move {
        let answer = "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 8\r\n\r\ntoo much";
        let _ = stream.write_all(answer.as_bytes()).await;
        // Some of the body is read, the rest never.
        let _ = stream.read_exact(&mut [0; 1000]).await;
        std::future::pending::<()>().await;
    })
    .await;
    let (alice, device) = device_of(&cloud, origin.addr()).await;
    let endless = stream::unfold(Pattern::default(), |mut pattern| async {
        Some((pattern.next(u64::MAX), pattern))
    });
    let answer = alice
        .forward(&device.id, Method::POST, "/")
        .stream(endless)
        .open()
        .await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.finish().await.text(), "too much");
}

async fn trailers_arrive(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let answer = scene
        .request(Method::GET, "/do/trailers")
        .header("te", "trailers")
        .send()
        .await
        .expect(200);
    assert_eq!(answer.text(), "body");
    let trailers = answer.trailers.expect("trailers");
    assert_eq!(trailers["x-checksum"], "of the body");
}

async fn an_upload_that_the_caller_cuts_off_is_not_complete_for_the_origin(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let start = Pattern::default().next(1000);
    let declared = scene.raw_head("POST", "/do/upload") + "Content-Length: 5000\r\n\r\n";
    let chunked = scene.raw_head("POST", "/do/upload")
        + &format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", start.len());
    for head in [declared, chunked] {
        let before = scene.origin.uploads().len();
        let mut caller = RawConnection::open(scene.cloud.api_addr()).await;
        caller.send(head).await;
        caller.send(&start).await;
        eventually("the request has reached the origin", async || {
            (scene.origin.count("/do/upload") > before).then_some(())
        })
        .await;
        drop(caller);
        let upload = eventually("the origin's body ends", async || {
            scene.origin.uploads().get(before).copied()
        })
        .await;
        assert!(!upload.complete, "{upload:?}");
        assert!(upload.intact, "{upload:?}");
    }
}

async fn fw_19_an_answer_that_the_origin_cuts_off_is_not_complete_for_the_caller(cloud: TestCloud) {
    let origin = RawOrigin::spawn(|mut stream, head| async move {
        let answer = if head.contains("/chunked") {
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        } else if head.contains("/declared") {
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello"
        } else {
            "HTTP/1.1 200 OK\r\n\r\nhello"
        };
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    })
    .await;
    let (alice, device) = device_of(&cloud, origin.addr()).await;
    for path in ["/declared", "/chunked"] {
        let request = alice.forward(&device.id, Method::GET, path);
        let mut answer = request.open().await.expect(200);
        answer.read_until("hello").await;
        let rest = answer.next().await;
        assert!(matches!(rest, Some(Err(_))), "{path} is cut off: {rest:?}");
    }
    let request = alice.forward(&device.id, Method::GET, "/until-closed");
    let whole = request.send().await.expect(200);
    assert_eq!(
        whole.text(),
        "hello",
        "the end is the end of the connection"
    );
    alice.wait_for_status(&device.id, "online").await;
}

async fn fw_03_ambiguous_requests_reach_nobody(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for headers in [
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "Content-Length: +5\r\n\r\nhello",
        "Content-Length: 5,6\r\n\r\nhello",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nx",
        "X-Folded: a\r\n b\r\n\r\n",
        "X-Space : a\r\n\r\n",
        "X-Nul: a\0b\r\n\r\n",
    ] {
        let head = scene.raw_head("POST", "/ambiguous");
        let mut caller = RawConnection::open(scene.cloud.api_addr()).await;
        caller.send(format!("{head}{headers}")).await;
        caller.send(smuggled).await;
        let answer = caller.read_to_end().await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{headers:?}: {answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1").count().max(1), 1, "{answer}");
    }
    // Both lengths: refused, or framed anew by us and the connection closed.
    let head = scene.raw_head("POST", "/both");
    let mut caller = RawConnection::open(scene.cloud.api_addr()).await;
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    caller.send(format!("{head}{both}{smuggled}")).await;
    let answer = caller.read_to_end().await;
    let answers = String::from_utf8_lossy(&answer).matches("HTTP/1.1").count();
    assert_eq!(answers, 1, "{}", String::from_utf8_lossy(&answer));

    assert_eq!(scene.origin.count("/smuggled"), 0);
    assert!(scene.origin.count("/both") <= 1);
    let next = scene.get("/do/answer?body=in-step").await.expect(200);
    assert_eq!(next.text(), "in-step");
}

async fn fw_04_a_malformed_answer_is_the_origins_fault(cloud: TestCloud) {
    let origin = RawOrigin::spawn(|mut stream, head| async move {
        let answer = if head.contains("/garbage") {
            "\u{1}\u{2}SSH-2.0-OpenSSH\r\n\r\n"
        } else if head.contains("/length ") {
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello"
        } else if head.contains("/lengths ") {
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"
        } else {
            ""
        };
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    })
    .await;
    let (alice, device) = device_of(&cloud, origin.addr()).await;
    for path in ["/garbage", "/length", "/lengths"] {
        let answer = alice.forward(&device.id, Method::POST, path).send().await;
        answer.expect_problem(502, "origin_invalid");
    }
    // Closed without a word.
    let request = alice.forward(&device.id, Method::POST, "/nothing");
    request.send().await.expect(502);
    alice.wait_for_status(&device.id, "online").await;
}

async fn fw_05_what_an_origin_says_unasked_reaches_nobody(cloud: TestCloud) {
    let origin = RawOrigin::spawn(|mut stream, _| async move {
        let asked = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nasked";
        let unasked = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nunasked";
        let both = format!("{asked}{unasked}");
        let _ = stream.write_all(both.as_bytes()).await;
        std::future::pending::<()>().await;
    })
    .await;
    let (alice, device) = device_of(&cloud, origin.addr()).await;
    for _ in 0..5 {
        let answer = alice.forward(&device.id, Method::GET, "/").send().await;
        assert_eq!(answer.expect(200).text(), "asked");
    }
    assert_eq!(origin.requests(), 5, "each on a stream of its own");
}

async fn fw_18_a_request_that_may_have_been_done_is_not_sent_twice(cloud: TestCloud) {
    // Takes every request and ends the connection without an answer.
    let origin = RawOrigin::spawn(|stream, _| async move { drop(stream) }).await;
    let (alice, device) = device_of(&cloud, origin.addr()).await;
    let request = alice.forward(&device.id, Method::POST, "/order");
    request.bytes("one coffee").send().await.expect(502);
    assert_eq!(origin.requests(), 1);
}

async fn fw_20_an_origin_that_is_not_there_is_named_as_the_cause(cloud: TestCloud) {
    let gone = Origin::spawn().await;
    let addr = gone.addr();
    let (alice, device) = device_of(&cloud, addr).await;
    drop(gone);
    for method in [Method::GET, Method::POST] {
        let answer = alice.forward(&device.id, method, "/").send().await;
        let problem = answer.expect_problem(502, "origin_refused");
        assert!(
            problem
                .header("content-type")
                .starts_with("application/problem+json")
        );
        assert_eq!(problem.header("edgecloud-agent-error"), "");
    }
    alice.wait_for_status(&device.id, "online").await;
}

async fn fw_20_an_origin_that_says_nothing_times_out(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__RESPONSE_HEADER_TIMEOUT", "1s")
        .spawn()
        .await;
    let scene = Scene::set(cloud).await;
    let answer = scene.get("/do/hang").await;
    answer.expect_problem(504, "origin_timeout");
    scene.get("/").await.expect(200);
}

async fn tu_15_one_request_too_many_is_refused_and_the_tunnel_stays(topology: Topology) {
    const STREAMS: usize = 4;
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__TUNNEL__MAX_STREAMS_PER_SESSION", STREAMS)
        .spawn()
        .await;
    let scene = Scene::set(cloud).await;
    let mut held = Vec::new();
    for number in 0..STREAMS {
        let name = format!("held-{number}");
        let sender = scene.origin.drive(&name);
        sender.send("held".into()).await.expect("taken");
        let target = format!("/do/driven?name={name}");
        let mut answer = scene.request(Method::GET, &target).open().await.expect(200);
        answer.read_until("held").await;
        held.push((sender, answer));
    }
    let refused = scene.get("/").await.expect_problem(503, "device_busy");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!(wait >= 1);
    for (sender, mut answer) in held {
        drop(sender);
        assert!(answer.next().await.is_none(), "a clean end");
    }
    eventually("there is room again", async || {
        (scene.get("/").await.status == 200).then_some(())
    })
    .await;
}

async fn fw_20_an_offline_device_is_unavailable_and_the_answer_says_why(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let answer = alice.forward(&device.id, Method::GET, "/").send().await;
    let problem = answer.expect_problem(503, "device_offline").json();
    assert_eq!(problem["reason"], "never_connected");
    assert_eq!(problem["last_seen"], Value::Null);

    let served = device.serve(Manner::Says("hello")).await;
    alice.wait_for_status(&device.id, "online").await;
    drop(served);
    alice.wait_for_status(&device.id, "offline").await;
    let problem = eventually("the cloud knows", async || {
        let answer = alice.forward(&device.id, Method::GET, "/").send().await;
        (answer.status == 503).then_some(answer)
    })
    .await
    .expect_problem(503, "device_offline")
    .json();
    assert_eq!(problem["reason"], "disconnected");
    assert!(problem["last_seen"].is_string(), "{problem}");
}

async fn a_device_that_does_not_exist_is_not_found(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let encoded = scene.device.id.replacen('_', "%5F", 1);
    for id in [
        "dev_aaaaaaaaaaaaaaaaaaaaaaaaaa",
        "nonsense",
        "..",
        "%2e%2e",
        &scene.device.id.to_uppercase(),
        &encoded,
    ] {
        let answer = scene.alice.forward(id, Method::GET, "/x").send().await;
        assert_eq!(answer.status, 404, "{id}: {}", answer.text());
    }
    assert_eq!(scene.origin.seen().len(), 0);
}

async fn fw_08_odd_request_targets_lead_nowhere(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    scene.request(Method::TRACE, "/x").send().await.expect(405);
    let cookie = format!("Cookie: edgecloud={}\r\n", scene.alice.login_cookie());
    let origin = scene.origin.addr();
    for request in [
        format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n{cookie}\r\n"),
        format!("GET {}/x HTTP/1.1\r\n{cookie}\r\n", scene.prefix()),
        format!(
            "GET {}/x HTTP/1.1\r\nHost: {}\r\nHost: {origin}\r\n{cookie}\r\n",
            scene.prefix(),
            scene.alice.host()
        ),
        format!("GET http://{origin}/x HTTP/1.1\r\nHost: {origin}\r\n{cookie}\r\n"),
    ] {
        let mut caller = RawConnection::open(scene.cloud.api_addr()).await;
        caller.send(&request).await;
        let status = caller.read_status().await;
        assert!((400..500).contains(&status), "{request}: {status}");
    }
    assert_eq!(scene.origin.seen().len(), 0);
}

async fn streams_to_a_device_are_used_again(cloud: TestCloud) {
    const REQUESTS: usize = 30;
    let scene = Scene::set(cloud).await;
    scene.get("/").await.expect(200);
    let before = scene.origin.connections();
    for _ in 0..REQUESTS {
        scene.get("/").await.expect(200);
    }
    let grown = scene.origin.connections() - before;
    assert!(grown < REQUESTS / 2, "{grown} new connections");
}

async fn fw_06_each_answer_goes_to_its_own_request(cloud: TestCloud) {
    let tenants = length(10, 3);
    let callers_of_each = length(100, 20);
    let seconds = length(600, 2);
    let end = Instant::now() + Duration::from_secs(seconds as u64);
    let origin = Origin::spawn().await;
    let mut devices = Vec::new();
    let mut callers = tokio::task::JoinSet::new();
    for tenant in 0..tenants {
        let owner = Browser::sign_in_new(&cloud, &format!("owner {tenant}")).await;
        let device = Device::pair(&cloud, &owner, origin.addr()).await;
        for _ in 0..callers_of_each {
            let (owner, id) = (owner.clone(), device.id.clone());
            callers.spawn(async move {
                let mut answered = 0;
                while answered < 3 || Instant::now() < end {
                    answered += usize::from(asks_for_a_nonce(&owner, &id).await);
                }
                answered
            });
        }
        devices.push(device);
    }
    let answered = callers.join_all().await;
    assert_eq!(answered.len(), tenants * callers_of_each);
}

/// Gives up at any moment, every fourth time, and before that now and then half way through a large answer; tells
/// whether it was answered.
async fn asks_for_a_nonce(owner: &Browser, device: &str) -> bool {
    let nonce = random_token();
    let [chance, patience] = edgecloud::types::random_bytes();
    if chance < 16 {
        let target = "/do/download?bytes=300000";
        let answer = owner.forward(device, Method::GET, target).open().await;
        drop(answer.expect(200));
    }
    let target = format!("/do/answer?body={nonce}");
    let asking = owner.forward(device, Method::GET, &target).send();
    if chance >= 64 {
        assert_eq!(asking.await.expect(200).text(), nonce);
        return true;
    }
    let patience = Duration::from_micros(u64::from(patience) * 100);
    match tokio::time::timeout(patience, asking).await {
        Ok(answer) => {
            assert_eq!(answer.expect(200).text(), nonce);
            true
        }
        Err(_) => false,
    }
}

async fn fw_21_each_request_reaches_the_device(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let target = "/do/answer?body=x&cache-control=public%2Cmax-age%3D3600";
    for _ in 0..2 {
        scene.get(target).await.expect(200);
    }
    assert_eq!(scene.origin.count(target), 2);
    let answer = scene.alice.get("/api/auth/me/x.css").send().await;
    answer.expect(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tu_14_a_caller_that_reads_nothing_holds_up_nobody_else() {
    let cloud = TestCloud::builder(Topology::Split).spawn().await;
    let scene = Scene::set(cloud).await;
    // Far more than all buffers on the way hold together.
    let target = "/do/download?bytes=1000000000";
    let stalled = scene.request(Method::GET, target).open().await.expect(200);
    for _ in 0..50 {
        scene.get("/").await.expect(200);
    }
    drop(stalled);
    scene.get("/").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_survives_longer_than_the_limit_of_a_plain_answer() {
    let cloud = TestCloud::builder(Topology::All)
        .setting("EDGECLOUD__LIMITS__RESPONSE_IDLE_TIMEOUT", "1s")
        .spawn()
        .await;
    let scene = Scene::set(cloud).await;
    let plain = scene.origin.drive("plain");
    let events = scene.origin.drive("events");
    plain.send("start".into()).await.expect("taken");
    events.send("data: start\n\n".into()).await.expect("taken");
    let target = "/do/driven?name=plain";
    let mut cut = scene.request(Method::GET, target).open().await.expect(200);
    cut.read_until("start").await;
    let target = "/do/driven?name=events&type=text/event-stream";
    let mut kept = scene.request(Method::GET, target).open().await.expect(200);
    kept.read_until("start").await;
    // The plain answer pauses too long and is cut; by then the events have paused as long.
    let rest = cut.next().await;
    assert!(matches!(rest, Some(Err(_))), "cut off: {rest:?}");
    events.send("data: more\n\n".into()).await.expect("taken");
    kept.read_until("more").await;
}
