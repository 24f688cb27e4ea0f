//! Where requests to a device may lead: to the one origin that its agent was given, and never back into
//! the cloud.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use edgecloud::keys::KeyRing;
use edgecloud::session::internal::credential::{Covered, sign};
use edgecloud::types::Clock;
use http::Method;
use secrecy::SecretString;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    Browser, Device, Origin, RawConnection, ServiceClient, TestCloud, Topology, on_both_topologies,
    run, text,
};

on_both_topologies![
    fw_15_nothing_in_a_request_names_another_service,
    fw_22_a_cloud_that_forwards_to_itself_stops_at_once,
    fw_22_an_agent_does_not_lead_to_its_own_cloud,
];

async fn fw_15_nothing_in_a_request_names_another_service(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (origin, other) = (Origin::spawn().await, Origin::spawn().await);
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let wanted = other.addr().to_string();
    // By a field or by the path: what arrives, arrives at the origin, with the origin's own host.
    for name in [
        "x-forwarded-host",
        "x-forwarded-server",
        "x-host",
        "x-original-url",
        "x-rewrite-url",
        "forwarded",
        "edgecloud-target",
        "edgecloud-origin",
        "edgecloud-host",
    ] {
        for value in [
            wanted.clone(),
            format!("http://{wanted}/"),
            format!("host={wanted}"),
        ] {
            let request = alice.forward(&device.id, Method::GET, "/x");
            request.header(name, &value).send().await.expect(200);
            let host = origin.last().header("host").to_owned();
            assert_eq!(host, origin.addr().to_string(), "{name}: {value}");
        }
    }
    for path in [
        format!("//{wanted}/x"),
        format!("/http://{wanted}/x"),
        format!("/@{wanted}/x"),
        format!("/..//{wanted}/x"),
        format!("/x?url=http://{wanted}/"),
    ] {
        let answer = alice.forward(&device.id, Method::GET, &path).send().await;
        assert_eq!(answer.expect(200).json()["target"], *path);
    }
    // By the request's own target or host: refused, or taken for the cloud's own, where that is on
    // loopback as the other service is.
    let cookie = format!("Cookie: edgecloud={}\r\n", alice.login_cookie());
    let path = format!("/api/devices/{}/http/x", device.id);
    for (head, expected) in [
        (
            format!("GET {path} HTTP/1.1\r\nHost: other.example\r\n"),
            421,
        ),
        (format!("GET {path} HTTP/1.1\r\nHost: {wanted}\r\n"), 200),
        (
            format!("GET http://other.example{path} HTTP/1.1\r\nHost: other.example\r\n"),
            421,
        ),
        (
            format!("CONNECT {wanted} HTTP/1.1\r\nHost: {wanted}\r\n"),
            405,
        ),
    ] {
        let mut caller = RawConnection::open(cloud.api_addr()).await;
        caller.send(format!("{head}{cookie}\r\n")).await;
        assert_eq!(caller.read_status().await, expected, "{head}");
        assert_eq!(origin.last().header("host"), origin.addr().to_string());
    }
    for path in [
        format!("/api/devices/{wanted}/http/x"),
        format!("{path}:{wanted}@/x"),
    ] {
        let method = Method::CONNECT;
        let answer = alice.request(method, &path).send().await;
        assert!(answer.status.is_client_error(), "{path}: {}", answer.status);
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fw_15_the_agent_refuses_what_it_was_not_given() {
    const SECRET: &str = "an internal secret that only this test uses";
    let cloud = TestCloud::builder(Topology::Split)
        .setting("EDGECLOUD__INTERNAL__SECRET", SECRET)
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (origin, other) = (Origin::spawn().await, Origin::spawn().await);
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let wanted = other.addr();
    // As one of the cloud's processes, which writes to the agent whatever it likes.
    for (head, expected) in [
        (
            format!("CONNECT {wanted} HTTP/1.1\r\nHost: {wanted}\r\n\r\n"),
            403,
        ),
        (
            format!(
                "CONNECT {wanted} HTTP/1.1\r\nHost: {}\r\n\r\n",
                origin.addr()
            ),
            403,
        ),
        (
            format!("CONNECT localhost:{} HTTP/1.1\r\n\r\n", wanted.port()),
            403,
        ),
        (format!("CONNECT http://{wanted}/ HTTP/1.1\r\n\r\n"), 400),
        (
            format!("GET http://{wanted}/x HTTP/1.1\r\nHost: {wanted}\r\n\r\n"),
            200,
        ),
        (
            format!("GET /x HTTP/1.1\r\nHost: {wanted}\r\nX-Forwarded-Host: {wanted}\r\n\r\n"),
            200,
        ),
    ] {
        let before = origin.seen().len();
        let mut stream = open_stream(&cloud, &alice, &device.id, SECRET).await;
        stream.send(&head).await;
        assert_eq!(stream.read_status().await, expected, "{head}");
        let grown = origin.seen().len() - before;
        assert_eq!(grown, usize::from(expected == 200), "{head}");
    }
    assert_eq!(other.connections(), 0);
}

/// A fresh stream to a device's agent, as another process of the cloud opens it.
async fn open_stream(
    cloud: &TestCloud,
    owner: &Browser,
    device: &str,
    secret: &str,
) -> RawConnection {
    let shown = owner.device(device).await;
    let node = text(&shown["session"]["node_id"])
        .parse()
        .expect("a node's id");
    let tenant = owner.tenant_id().await;
    let path = format!("/internal/v1/sessions/{device}/stream");
    let keys = KeyRing::from_secrets(&[SecretString::from(secret.to_owned())]);
    let covered = Covered {
        method: &Method::POST,
        path: &path,
        node: &node,
        tenant: &tenant,
        epoch: "",
    };
    let credential = sign(&keys.expect("long enough"), &Clock::system(), covered);
    let addr = cloud.internal_addr();
    let mut stream = RawConnection::open(addr).await;
    stream
        .send(format!(
            "POST {path} HTTP/1.1\r\nHost: {addr}\r\nAuthorization: {credential}\r\n\
             Edgecloud-Tenant: {tenant}\r\nConnection: Upgrade\r\nUpgrade: edgecloud-stream\r\n\r\n"
        ))
        .await;
    assert_eq!(stream.read_status().await, 101);
    stream
}

/// Passes connections on to the cloud, so that its agent cannot tell where its origin leads.
struct Relay {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("a bound address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut pairs = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                pairs.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(target).await {
                        // Either end may go first.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self {
            addr,
            connections,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

async fn fw_22_a_cloud_that_forwards_to_itself_stops_at_once(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let relay = Relay::to(cloud.api_addr()).await;
    let host = cloud.public_host().to_owned();
    let device = Device::pair_with(&cloud, &alice, relay.addr, &["--host-header", &host]).await;
    let robot = ServiceClient::register(&cloud, &alice, "loop", "operator").await;
    let credential = format!("Bearer {}", robot.token);
    let once = format!("/api/devices/{}/http", device.id);
    for target in [format!("{once}/"), once.repeat(5)] {
        let before = relay.connections.load(Ordering::SeqCst);
        // With credentials that are good inside too: nothing but the loop stops it.
        let request = alice.forward(&device.id, Method::GET, &target);
        let request = request.header("edgecloud-device-authorization", &credential);
        let answer = request.send().await;
        answer.expect_problem(508, "loop_detected");
        let hops = relay.connections.load(Ordering::SeqCst) - before;
        assert!(hops <= 1, "{target}: {hops} hops");
    }
    // A `Via` of somebody else's is no loop.
    let request = alice.forward(&device.id, Method::GET, "/healthz");
    let request = request.header("via", "1.1 edgecloud-elsewhere");
    request.send().await.expect(200);
    alice.wait_for_status(&device.id, "online").await;
}

async fn fw_22_an_agent_does_not_lead_to_its_own_cloud(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, code) = alice.pairing_code().await;
    let home = TempDir::new().expect("make a directory");
    let state = home.path().join("state");
    let port = cloud.api_addr().port();
    for origin in [
        format!("http://localhost:{port}"),
        format!("http://127.0.0.1:{port}"),
    ] {
        let args = [
            "agent",
            "--cloud",
            cloud.public_url(),
            "--pair",
            &code,
            "--origin",
            &origin,
            "--state-dir",
            state.to_str().expect("a readable path"),
        ];
        let refused = run(home.path(), &args, &[]).await.expect_code(2);
        assert!(refused.stderr.contains("--origin"), "{}", refused.stderr);
    }
    assert_eq!(alice.devices().await.len(), 0, "the code was not used");
}
