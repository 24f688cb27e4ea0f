//! A device is who its token says it is, whatever else it says of itself.

use std::time::Duration;

use bytes::Bytes;
use edgecloud::tunnel::control::{ControlMessage, ControlStream};
use edgecloud::tunnel::{Side, Tunnel, TunnelSettings, WindowBudget};
use edgecloud::types::Clock;
use http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    Browser, Manner, RawDevice, Request, TestCloud, eventually, on_both_topologies, text, within,
};

on_both_topologies![
    tu_18_a_handshake_that_names_another_device_is_its_tokens_device_and_audited,
    tu_18_a_hello_that_names_another_device_is_its_tokens_device_and_audited,
    tu_18_an_answer_that_names_another_device_says_nothing_to_the_caller,
];

/// Alice and Bob, each with a device.
struct Scene {
    alice: Browser,
    bob: Browser,
    device: RawDevice,
    bobs: RawDevice,
}

impl Scene {
    async fn set(cloud: &TestCloud) -> Self {
        let alice = Browser::sign_in(cloud, "alice").await;
        let bob = Browser::sign_in(cloud, "bob").await;
        Self {
            device: RawDevice::pair(cloud, &alice).await,
            bobs: RawDevice::pair(cloud, &bob).await,
            alice,
            bob,
        }
    }

    /// Alice's device is online, and Bob's never was.
    async fn only_alices_is_online(&self) {
        self.alice.wait_for_status(&self.device.id, "online").await;
        let bobs = self.bob.device(&self.bobs.id).await;
        assert_eq!(bobs["status"], "offline");
        assert_eq!(bobs["reason"], "never_connected");
    }
}

/// The ids that a person's audit says were claimed, oldest first, and by which device.
async fn claimed(person: &Browser) -> Vec<(String, String)> {
    let path = "/api/audit?action=device.claim_ignored";
    let rows = person.get(path).send().await.expect(200).items();
    let of = |row: &Value| {
        assert_eq!(row["outcome"], "denied");
        assert_eq!(row["actor"]["kind"], "device");
        (text(&row["target"]), text(&row["actor"]["id"]))
    };
    rows.iter().rev().map(of).collect()
}

async fn tu_18_a_handshake_that_names_another_device_is_its_tokens_device_and_audited(
    cloud: TestCloud,
) {
    let scene = Scene::set(&cloud).await;
    let (alices, bobs) = (scene.alice.tenant_id().await, scene.bob.tenant_id().await);
    let addr = cloud.tunnel_addr();
    let target = format!("/tunnel?device={}&tenant={alices}", scene.bobs.id);
    let handshake = Request::new(addr, &addr.to_string(), Method::GET, &target)
        .header("authorization", &format!("Bearer {}", scene.device.token))
        .header("edgecloud-tenant", &bobs)
        .header("x-device-id", &scene.device.id);
    let opened = handshake.websocket().await;
    let _opened = opened
        .map_err(|answer| format!("{answer:?}"))
        .expect("a tunnel");
    scene.only_alices_is_online().await;
    let mut expected = [scene.bobs.id.clone(), bobs];
    expected.sort();
    let told = claimed(&scene.alice).await;
    let targets: Vec<_> = told.iter().map(|(target, _)| target.clone()).collect();
    assert_eq!(targets, expected, "and not its own device and tenant");
    assert!(told.iter().all(|(_, actor)| *actor == scene.device.id));
    assert!(claimed(&scene.bob).await.is_empty(), "not Bob's business");
}

async fn tu_18_a_hello_that_names_another_device_is_its_tokens_device_and_audited(
    cloud: TestCloud,
) {
    let scene = Scene::set(&cloud).await;
    // Read byte by byte: what follows the answer's head is the tunnel's.
    let mut socket = TcpStream::connect(cloud.tunnel_addr())
        .await
        .expect("connect");
    let handshake = format!(
        "GET /tunnel HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: edgecloud.v1\r\n\r\n",
        cloud.tunnel_addr(),
        scene.device.token
    );
    socket.write_all(handshake.as_bytes()).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(
            within("the answer", socket.read_u8())
                .await
                .expect("a byte"),
        );
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
    let settings = TunnelSettings {
        side: Side::Device,
        subprotocol: true,
        heartbeat: Duration::from_secs(15),
        max_streams: 512,
        window_budget: 0,
        process_budget: WindowBudget::new(0),
        max_message_bytes: 2 << 20,
        clock: Clock::system(),
    };
    let (_tunnel, driver, mut incoming) = Tunnel::over(socket, Bytes::new(), &settings);
    let _driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(driver.run()));
    let stream = within("the control stream", incoming.recv()).await;
    let stream = stream.expect("the tunnel is open");
    let mut control = ControlStream::new(stream);
    let hello = ControlMessage::Hello {
        origin_host: None,
        node_id: None,
        device_id: Some(scene.bobs.id.clone()),
        tenant_id: Some(scene.bob.tenant_id().await),
    };
    control.send(&hello).await.expect("the hello is sent");
    scene.only_alices_is_online().await;
    let mut expected = vec![scene.bobs.id.clone(), scene.bob.tenant_id().await];
    expected.sort();
    let told = claimed(&scene.alice).await;
    let targets: Vec<_> = told.into_iter().map(|(target, _)| target).collect();
    assert_eq!(targets, expected);
}

async fn tu_18_an_answer_that_names_another_device_says_nothing_to_the_caller(cloud: TestCloud) {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nEdgecloud-Device: dev_aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\
                          Edgecloud-Tenant: ten_aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\
                          Edgecloud-User: usr_aaaaaaaaaaaaaaaaaaaaaaaaaa\r\nContent-Length: 2\r\n\r\nok";
    let scene = Scene::set(&cloud).await;
    let _served = scene.device.serve(Manner::Blurts(ANSWER)).await;
    scene.only_alices_is_online().await;
    let answer = eventually("the device answers", async || {
        let request = scene.alice.forward(&scene.device.id, Method::GET, "/");
        let answer = request.send().await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(answer.text(), "ok");
    for (name, value) in &answer.headers {
        assert!(
            !name.as_str().starts_with("edgecloud-"),
            "{name}: {value:?}"
        );
    }
}
