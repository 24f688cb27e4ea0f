//! The internal API of a proxy: nobody but the cloud's own processes may use it.

use edgecloud::keys::KeyRing;
use edgecloud::session::internal::credential::{Covered, sign};
use edgecloud::types::{Clock, NodeId};
use http::Method;
use secrecy::SecretString;

use crate::support::{
    Anonymous, Browser, LOGIN_COOKIE, Manner, RawDevice, Request, ServedDevice, ServiceClient,
    TestCloud, Topology, eventually, run, text,
};

const SECRET: &str = "an internal secret that only these tests use";
const SESSIONS: &str = "/internal/v1/sessions";

/// Alice and a device of hers on a proxy whose secret is known.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: RawDevice,
    served: ServedDevice,
    node: NodeId,
    tenant: String,
}

impl Scene {
    async fn set() -> Self {
        let cloud = TestCloud::builder(Topology::Split)
            .setting("EDGECLOUD__INTERNAL__SECRET", SECRET)
            .spawn()
            .await;
        let alice = Browser::sign_in(&cloud, "alice").await;
        let device = RawDevice::pair(&cloud, &alice).await;
        let served = device.serve(Manner::Says("hello")).await;
        let shown = alice.wait_for_status(&device.id, "online").await;
        let node = text(&shown["session"]["node_id"]);
        let tenant = text(&alice.me().await["tenant"]["id"]);
        Self {
            cloud,
            alice,
            device,
            served,
            node: node.parse().expect("a node's id"),
            tenant,
        }
    }

    fn request(&self, method: Method, path: &str) -> Request {
        let addr = self.cloud.internal_addr();
        Request::new(addr, &addr.to_string(), method, path)
    }

    fn path(&self) -> String {
        format!("{SESSIONS}/{}", self.device.id)
    }

    fn sign(&self, secret: &str, method: &Method, path: &str, tenant: &str) -> String {
        let keys = KeyRing::from_secrets(&[SecretString::from(secret.to_owned())]);
        let covered = Covered {
            method,
            path,
            node: &self.node,
            tenant,
            epoch: "",
        };
        sign(&keys.expect("long enough"), &Clock::system(), covered)
    }

    fn signed(&self, method: Method, path: &str, tenant: &str) -> Request {
        let credential = self.sign(SECRET, &method, path, tenant);
        self.request(method, path)
            .header("authorization", &credential)
            .header("edgecloud-tenant", tenant)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_01_nothing_but_the_credential_opens_the_internal_api() {
    let scene = Scene::set().await;
    let path = scene.path();
    let paths = [
        SESSIONS,
        &path,
        &format!("{path}/stream"),
        "/metrics",
        "/",
        "/x",
    ];
    let methods = [Method::GET, Method::POST, Method::DELETE];
    let wrong = scene.sign(&"x".repeat(40), &Method::GET, &path, &scene.tenant);
    let cookie = format!("edgecloud={}", scene.alice.login_cookie());
    let device = format!("Bearer {}", scene.device.token);
    for path in paths {
        for method in &methods {
            for (header, value) in [
                ("x-nothing", "1"),
                ("cookie", &cookie),
                ("authorization", &device),
                ("authorization", &wrong),
                ("authorization", "Edgecloud-HMAC v1,,,"),
            ] {
                let answer = scene.request(method.clone(), path).header(header, value);
                let answer = answer.send().await;
                assert_eq!(answer.status, 401, "{method} {path} with {header}");
                assert!(answer.all("set-cookie").is_empty());
            }
        }
    }
    for free in ["/healthz", "/readyz"] {
        scene.request(Method::GET, free).send().await.expect(200);
    }
    assert!(!scene.served.is_ended());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_credential_opens_it() {
    let scene = Scene::set().await;
    let path = scene.path();
    let one = scene.signed(Method::GET, &path, &scene.tenant).send().await;
    assert!(one.expect(200).text().contains(&scene.device.id));
    let all = scene
        .signed(Method::GET, SESSIONS, &scene.tenant)
        .send()
        .await;
    assert!(all.expect(200).text().contains(&scene.device.id));
    let metrics = scene.signed(Method::GET, "/metrics", &scene.tenant).send();
    metrics.await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_01_a_credential_is_for_its_very_request() {
    let scene = Scene::set().await;
    let path = scene.path();
    let credential = scene.sign(SECRET, &Method::GET, &path, &scene.tenant);
    let with = |method: Method, path: &str, tenant: &str| {
        scene
            .request(method, path)
            .header("authorization", &credential)
            .header("edgecloud-tenant", tenant)
            .send()
    };
    let stream = format!("{path}/stream");
    let other = "ten_aaaaaaaaaaaaaaaaaaaaaaaaaa";
    with(Method::DELETE, &path, &scene.tenant).await.expect(401);
    with(Method::GET, SESSIONS, &scene.tenant).await.expect(401);
    with(Method::POST, &stream, &scene.tenant).await.expect(401);
    with(Method::GET, &path, other).await.expect(401);
    with(Method::GET, &path, &scene.tenant).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_02_a_change_cannot_be_replayed() {
    let scene = Scene::set().await;
    let path = scene.path();
    let credential = scene.sign(SECRET, &Method::DELETE, &path, &scene.tenant);
    let close = || {
        scene
            .request(Method::DELETE, &path)
            .header("authorization", &credential)
            .header("edgecloud-tenant", &scene.tenant)
            .send()
    };
    close().await.expect(204);
    scene.served.ended().await;
    let back = scene.device.serve(Manner::Says("back")).await;
    eventually("the device is back", async || {
        let path = scene.path();
        let answer = scene.signed(Method::GET, &path, &scene.tenant).send().await;
        (answer.status == 200).then_some(())
    })
    .await;
    close().await.expect(401);
    assert!(!back.is_ended());
    let again = scene.signed(Method::DELETE, &path, &scene.tenant).send();
    again.await.expect(204);
    back.ended().await;
    let none = scene.signed(Method::DELETE, &path, &scene.tenant).send();
    none.await.expect(204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_03_the_proxy_checks_whose_device_it_is() {
    let scene = Scene::set().await;
    let bob = Browser::sign_in(&scene.cloud, "bob").await;
    let bobs = text(&bob.me().await["tenant"]["id"]);
    let path = scene.path();
    let read = scene.signed(Method::GET, &path, &bobs).send().await;
    read.expect(404);
    let stream = scene
        .signed(Method::POST, &format!("{path}/stream"), &bobs)
        .header("connection", "upgrade")
        .header("upgrade", "edgecloud-stream");
    stream.send().await.expect(404);
    let close = scene.signed(Method::DELETE, &path, &bobs).send().await;
    close.expect(204);
    assert!(!scene.served.is_ended(), "not bob's to close");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tk_02_no_kind_of_credential_is_good_in_the_place_of_another() {
    let scene = Scene::set().await;
    let robot = ServiceClient::register(&scene.cloud, &scene.alice, "robot", "operator").await;
    let path = scene.path();
    let internal = scene.sign(SECRET, &Method::GET, &path, &scene.tenant);
    let cookie = format!("{LOGIN_COOKIE}={}", scene.alice.login_cookie());
    let bearer = |token: &str| format!("Bearer {token}");
    let credentials = [
        ("a login", "cookie", cookie),
        ("a device", "authorization", bearer(&scene.device.token)),
        ("a program", "authorization", bearer(&robot.token)),
        ("a process", "authorization", internal),
    ];
    let people = Anonymous::of(&scene.cloud);
    let forwarded = format!("/api/devices/{}/http/", scene.device.id);
    for (kind, name, value) in &credentials {
        let people_and_programs = matches!(*kind, "a login" | "a program");
        for target in ["/api/devices", forwarded.as_str()] {
            let answer = people.get(target).header(name, value).send().await;
            let expected = if people_and_programs { 200 } else { 401 };
            assert_eq!(answer.status, expected, "{kind} at {target}");
        }
        let handshake = scene.device.handshake().without("authorization");
        let opened = handshake.header(name, value).websocket().await;
        let status = opened.map_or_else(|answer| answer.status.as_u16(), |_| 101);
        let expected = if *kind == "a device" { 101 } else { 401 };
        assert_eq!(status, expected, "{kind} at the tunnel listener");
        let request = scene.request(Method::GET, &path).header(name, value);
        let answer = request.header("edgecloud-tenant", &scene.tenant).send();
        // The device's second tunnel of above may just be taking the first one's place.
        let opened = matches!(answer.await.status.as_u16(), 200 | 404);
        assert_eq!(opened, *kind == "a process", "{kind} at the internal API");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_03_a_credential_is_for_one_node() {
    let mut scene = Scene::set().await;
    let path = scene.path();
    let right = std::mem::replace(&mut scene.node, NodeId::random());
    for method in [Method::GET, Method::DELETE] {
        let request = scene.signed(method, &path, &scene.tenant);
        request.send().await.expect(401);
    }
    assert!(!scene.served.is_ended());
    scene.node = right;
    let request = scene.signed(Method::GET, &path, &scene.tenant);
    request.send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_01_an_address_that_others_reach_needs_a_configured_secret() {
    let home = tempfile::TempDir::new().expect("make a directory");
    let listen = ("EDGECLOUD__INTERNAL__LISTEN", "0.0.0.0:0");
    let start = ["serve", "--dev", "--role", "proxy"];
    for more in [None, Some(""), Some("short")] {
        let mut env = vec![listen, ("EDGECLOUD__TUNNEL__LISTEN", "127.0.0.1:0")];
        env.extend(more.map(|secret| ("EDGECLOUD__INTERNAL__SECRET", secret)));
        let refused = run(home.path(), &start, &env).await.expect_code(2);
        let told = refused.stderr;
        assert!(told.contains("internal.secret"), "{told}");
    }
}
