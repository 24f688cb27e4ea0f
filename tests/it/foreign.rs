//! Two tenants side by side: neither reaches the other's devices, by any door, name or cache.

use std::net::SocketAddr;

use http::{Method, header};
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{
    Answer, Browser, Device, Origin, RawDevice, Request, TestCloud, eventually, on_both_topologies,
    text, within,
};

on_both_topologies![
    tn_05_a_foreign_device_is_404_by_its_id,
    tn_05_a_foreign_device_is_404_on_its_own_host,
    tn_07_the_same_requests_of_two_tenants_at_once_stay_apart,
    tn_07_one_login_in_two_tenants_gets_what_it_asked_for,
    tn_08_a_name_is_never_taken_for_an_id_or_a_host,
    tn_08_the_host_of_a_removed_device_is_nobodys,
];

/// Alice and Bob, each with a device that is online, and the origins of these.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    bob: Browser,
    device: Device,
    origin: Origin,
    bobs: Device,
    bobs_origin: Origin,
}

impl Scene {
    async fn set(cloud: TestCloud) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let bob = Browser::sign_in(&cloud, "bob").await;
        let (origin, bobs_origin) = (Origin::spawn().await, Origin::spawn().await);
        Self {
            device: Device::pair(&cloud, &alice, origin.addr()).await,
            bobs: Device::pair(&cloud, &bob, bobs_origin.addr()).await,
            cloud,
            alice,
            bob,
            origin,
            bobs_origin,
        }
    }

    /// A request of Bob's on a host of a device.
    fn on_host(&self, host: &str, method: Method, target: &str) -> Request {
        self.bob
            .request_on(host, method, target)
            .header("origin", &format!("http://{host}"))
            .header("sec-fetch-mode", "cors")
            .header("sec-fetch-site", "same-origin")
    }
}

/// The kinds of requests to a device: method, path and the media type that is asked for.
const KINDS: [(&str, &str, &str); 5] = [
    ("GET", "/", "*/*"),
    ("POST", "/do/upload", "*/*"),
    ("HEAD", "/", "*/*"),
    ("OPTIONS", "/", "*/*"),
    (
        "GET",
        "/do/driven?name=x&type=text/event-stream",
        "text/event-stream",
    ),
];

async fn tn_05_a_foreign_device_is_404_by_its_id(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let connections = scene.origin.connections();
    for (method, path, accept) in KINDS {
        let method: Method = method.parse().expect("a method");
        let request = scene.bob.forward(&scene.device.id, method, path);
        let answer = request.header("accept", accept).bytes("12345").send().await;
        assert_eq!(answer.status, 404, "{path}");
    }
    let socket = scene
        .bob
        .forward_websocket(&scene.device.id, "/do/websocket");
    let refused = socket.websocket().await.err().expect("no WebSocket");
    refused.expect_problem(404, "not_found");
    let path = format!("/api/devices/{}/open", scene.device.id);
    let link = scene.bob.post(&path).json(&json!({})).send().await;
    link.expect_problem(404, "not_found");
    assert_eq!(scene.origin.seen().len(), 0);
    assert_eq!(scene.origin.connections(), connections, "not a byte");
    // The same requests are good for the own device.
    for (method, path, _) in &KINDS[..4] {
        let method: Method = method.parse().expect("a method");
        let request = scene.bob.forward(&scene.bobs.id, method, path);
        request.bytes("12345").send().await.expect(200);
    }
}

async fn tn_05_a_foreign_device_is_404_on_its_own_host(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    // Bob was let in once, so that his browser has the host's cookie; then he was taken out again.
    let own = scene.bob.tenant_id().await;
    scene.alice.take_in(&scene.bob, "operator").await;
    let host = scene.bob.enter(&scene.device.id).await;
    let inside = scene.on_host(&host, Method::GET, "/").send().await;
    inside.expect(200);
    let tenant = scene.alice.tenant_id().await;
    let member = format!(
        "/api/tenants/{tenant}/members/{}",
        scene.bob.user_id().await
    );
    scene.alice.delete(&member).send().await.expect_success();
    scene.bob.enter_tenant(&own).await;
    let (seen, connections) = (scene.origin.seen().len(), scene.origin.connections());
    for (method, path, accept) in KINDS {
        let method: Method = method.parse().expect("a method");
        let request = scene.on_host(&host, method, path);
        let answer = request.header("accept", accept).bytes("12345").send().await;
        assert_eq!(answer.status, 404, "{path}");
    }
    let socket = scene.on_host(&host, Method::GET, "/do/websocket");
    let refused = socket.websocket().await.err().expect("no WebSocket");
    assert_eq!(refused.status, 404);

    // The cookie of the own device's host, taken to the other one, is none there.
    let at_home = scene.bob.enter(&scene.bobs.id).await;
    let name = "edgecloud-device";
    let cookie = scene.bob.cookie(&at_home, name).expect("the cookie");
    let astray = Browser::new(&scene.cloud);
    astray.plant_cookie(&host, name, &cookie);
    for target in ["/", "/do/driven?name=x&type=text/event-stream"] {
        let request = astray.request_on(&host, Method::GET, target);
        request.send().await.expect(401);
    }
    assert_eq!(scene.origin.seen().len(), seen);
    assert_eq!(scene.origin.connections(), connections, "not a byte");
}

async fn tn_07_the_same_requests_of_two_tenants_at_once_stay_apart(cloud: TestCloud) {
    const ROUNDS: usize = 25;
    let scene = Scene::set(cloud).await;
    for (person, device) in [(&scene.alice, &scene.device), (&scene.bob, &scene.bobs)] {
        let path = format!("/api/devices/{}", device.id);
        let renamed = person.patch(&path).json(&json!({"name": "the same"}));
        renamed.send().await.expect(200);
    }
    let mut callers = JoinSet::new();
    for _ in 0..3 {
        for (person, own, foreign, addr) in [
            (
                &scene.alice,
                &scene.device,
                &scene.bobs,
                scene.origin.addr(),
            ),
            (
                &scene.bob,
                &scene.bobs,
                &scene.device,
                scene.bobs_origin.addr(),
            ),
        ] {
            let (person, own, foreign) = (person.clone(), own.id.clone(), foreign.id.clone());
            callers.spawn(async move {
                for _ in 0..ROUNDS {
                    // All that a cache could take for a key is the same in both tenants.
                    let same = |request: Request| {
                        request
                            .header("x-request-id", "the-same")
                            .header("if-none-match", "\"the-same\"")
                            .send()
                    };
                    let mine = same(person.forward(&own, Method::GET, "/same")).await;
                    assert_reached(&mine.expect(200), addr);
                    // The other's session has just been used, in this very process.
                    let theirs = same(person.forward(&foreign, Method::GET, "/same")).await;
                    theirs.expect(404);
                    let listed = same(person.get("/api/devices?name=the+same")).await;
                    let listed = listed.expect(200).items();
                    let ids: Vec<_> = listed.iter().map(|device| text(&device["id"])).collect();
                    assert_eq!(ids, [own.as_str()]);
                }
            });
        }
    }
    within("all callers are served", callers.join_all()).await;
    for (origin, tenant) in [
        (&scene.origin, scene.alice.tenant_id().await),
        (&scene.bobs_origin, scene.bob.tenant_id().await),
    ] {
        let seen = origin.seen();
        assert_eq!(seen.len(), 3 * ROUNDS);
        assert!(
            seen.iter()
                .all(|seen| seen.header("edgecloud-tenant") == tenant)
        );
    }
}

async fn tn_07_one_login_in_two_tenants_gets_what_it_asked_for(cloud: TestCloud) {
    const ROUNDS: usize = 25;
    let scene = Scene::set(cloud).await;
    let own = scene.bob.tenant_id().await;
    scene.alice.take_in(&scene.bob, "operator").await;
    let mut callers = JoinSet::new();
    for (tenant, device, other) in [
        (own, &scene.bobs, &scene.device),
        (scene.alice.tenant_id().await, &scene.device, &scene.bobs),
    ] {
        let (bob, device, other) = (scene.bob.clone(), device.id.clone(), other.id.clone());
        callers.spawn(async move {
            // One cookie and one path; only the field differs.
            let of = |request: Request| request.header("edgecloud-tenant", &tenant).send();
            for _ in 0..ROUNDS {
                let listed = of(bob.get("/api/devices")).await.expect(200);
                assert!(listed.text().contains(&device), "{tenant}");
                assert!(!listed.text().contains(&other), "{tenant}");
                of(bob.forward(&device, Method::GET, "/")).await.expect(200);
                of(bob.forward(&other, Method::GET, "/")).await.expect(404);
            }
        });
    }
    within("all callers are served", callers.join_all()).await;
}

/// Fails the test unless the answer is that of the origin at an address.
#[track_caller]
fn assert_reached(answer: &Answer, origin: SocketAddr) {
    let host = json!(["host", origin.to_string()]);
    let headers = answer.json()["headers"].as_array().cloned();
    assert!(
        headers.is_some_and(|headers| headers.contains(&host)),
        "{answer:?}"
    );
}

/// The first label of a device's own host.
fn label(id: &str) -> String {
    id.replacen('_', "-", 1)
}

async fn tn_08_a_name_is_never_taken_for_an_id_or_a_host(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let port = scene.cloud.api_addr().port();
    let host = scene.alice.enter(&scene.device.id).await;
    let path = format!("/api/devices/{}", scene.bobs.id);
    for name in [
        "api".to_owned(),
        "www".to_owned(),
        "localhost".to_owned(),
        scene.device.id.clone(),
        label(&scene.device.id),
        host.clone(),
        scene.alice.tenant_id().await,
    ] {
        let named = scene.bob.patch(&path).json(&json!({"name": &name}));
        named.send().await.expect(200);
        // Bob's device has its own host still, whatever its name is.
        let at_home = scene.bob.enter(&scene.bobs.id).await;
        assert_eq!(
            at_home,
            format!("{}.localhost:{port}", label(&scene.bobs.id))
        );
        // Alice's host, id and list lead to her own.
        let shown = scene
            .alice
            .request_on(&host, Method::GET, "/")
            .header("sec-fetch-site", "same-origin")
            .send()
            .await;
        assert_reached(&shown.expect(200), scene.origin.addr());
        let forwarded = scene.alice.forward(&scene.device.id, Method::GET, "/");
        assert_reached(&forwarded.send().await.expect(200), scene.origin.addr());
        assert_eq!(scene.alice.devices().await.len(), 1);
        // The name opens nothing to its owner: no path, and no host but one that is somebody's anyway.
        let by_name = scene.bob.forward(&name, Method::GET, "/").send().await;
        assert_eq!(by_name.status, 404, "{name}");
        for subdomain in [format!("{name}.localhost:{port}"), name.clone()] {
            if subdomain.parse::<header::HeaderValue>().is_err() || subdomain.contains('_') {
                continue;
            }
            let answer = scene
                .bob
                .request_on(&subdomain, Method::GET, "/x")
                .send()
                .await;
            let shut = matches!(answer.status.as_u16(), 401 | 404 | 421);
            assert!(shut, "{subdomain}: {}", answer.status);
        }
    }
    let last = scene.bobs_origin.seen().len();
    assert_eq!(last, 0, "nothing of Alice's went to Bob");
}

async fn tn_08_the_host_of_a_removed_device_is_nobodys(cloud: TestCloud) {
    let scene = Scene::set(cloud).await;
    let host = scene.alice.enter(&scene.device.id).await;
    let path = format!("/api/devices/{}", scene.device.id);
    let name = text(&scene.alice.device(&scene.device.id).await["name"]);
    scene.alice.delete(&path).send().await.expect_success();
    let next = RawDevice::pair(&scene.cloud, &scene.bob).await;
    let renamed = scene.bob.patch(&format!("/api/devices/{}", next.id));
    renamed
        .json(&json!({"name": name}))
        .send()
        .await
        .expect(200);
    assert_ne!(next.id, scene.device.id, "an id is random and used once");
    let gone = eventually("the device is gone everywhere", async || {
        let request = scene.alice.request_on(&host, Method::GET, "/");
        let answer = request.header("sec-fetch-site", "same-origin").send().await;
        (answer.status == 404).then_some(answer)
    });
    gone.await.expect_problem(404, "not_found");
    let gone = scene.on_host(&host, Method::GET, "/").send().await;
    gone.expect(401);
}
