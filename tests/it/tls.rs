//! TLS on the public listeners, without anything in front of the cloud.

use http::Method;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Anonymous, Authority, Browser, Device, Origin, Part, TestCloud, Topology, eventually,
    on_both_topologies, run, within,
};

on_both_topologies![
    cs_01_the_cookies_are_secure_where_people_come_by_https,
    a_process_with_tls_is_healthy,
    a_device_trusts_the_authority_it_is_given,
    pa_12_an_agent_that_does_not_trust_the_cloud_keeps_its_code,
    pa_12_a_certificate_of_another_host_is_refused_until_it_is_changed,
];

/// A cloud with TLS, and who has made its certificate.
struct Scene {
    cloud: TestCloud,
    authority: Authority,
}

impl Scene {
    async fn set(topology: Topology) -> Self {
        let authority = Authority::new();
        authority.issue("localhost");
        let cloud = TestCloud::builder(topology).tls(&authority).spawn().await;
        Self { cloud, authority }
    }

    fn ca_file(&self) -> String {
        let file = self.authority.ca_file();
        file.to_str().expect("a readable path").to_owned()
    }

    async fn device(&self, alice: &Browser, origin: &Origin) -> Device {
        let ca_file = self.ca_file();
        let trusting = ["--ca-file", ca_file.as_str()];
        Device::pair_with(&self.cloud, alice, origin.addr(), &trusting).await
    }
}

async fn cs_01_the_cookies_are_secure_where_people_come_by_https(topology: Topology) {
    let scene = Scene::set(topology).await;
    let browser = Browser::new(&scene.cloud);
    let answer = browser.navigate("/api/auth/login", "none").send().await;
    let pending = answer.header("set-cookie");
    for attribute in ["edgecloud-pending-", "HttpOnly", "Secure", "SameSite=Lax"] {
        assert!(pending.contains(attribute), "{pending}");
    }
    let authorize = url::Url::parse(answer.header("location")).expect("a URL");
    let callback = browser.choose(&authorize, "alice").await;
    let answer = browser.open_callback(&callback).await.expect(303);
    let cookies = answer.all("set-cookie");
    let login = cookies
        .iter()
        .find(|cookie| cookie.starts_with("__Host-edgecloud="))
        .expect("the login's cookie");
    for attribute in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/"] {
        assert!(login.contains(attribute), "{login}");
    }
    assert!(!login.to_lowercase().contains("domain="), "{login}");
    let me = browser.get("/api/auth/me").send().await.expect(200);
    assert!(me.header("strict-transport-security").contains("max-age="));

    // The name without the prefix can be tossed from elsewhere, and means nothing here.
    let host = browser.host().to_owned();
    let secret = browser.cookie(&host, "__Host-edgecloud").expect("just set");
    let other = Browser::new(&scene.cloud);
    other.plant_cookie(&host, "edgecloud", &secret);
    assert!(!other.is_signed_in().await);
}

async fn a_process_with_tls_is_healthy(topology: Topology) {
    let scene = Scene::set(topology).await;
    let home = TempDir::new().expect("make a directory");
    for part in [Part::Api, Part::Proxy] {
        let file = scene.cloud.ready_file(part);
        let file = file.to_str().expect("a readable path");
        let role = match (topology, part) {
            (Topology::All, _) => "--role=all",
            (Topology::Split, Part::Api) => "--role=api",
            (Topology::Split, Part::Proxy) => "--role=proxy",
        };
        let ask = ["healthcheck", role, "--dev", "--ready-file", file];
        let settings = scene.cloud.settings();
        run(home.path(), &ask, &settings).await.expect_code(0);
    }
}

async fn a_device_trusts_the_authority_it_is_given(topology: Topology) {
    let scene = Scene::set(topology).await;
    let alice = Browser::sign_in(&scene.cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = scene.device(&alice, &origin).await;
    let answer = alice.forward(&device.id, Method::GET, "/hello").send();
    assert_eq!(answer.await.expect(200).json()["target"], "/hello");
    let seen = origin.last();
    assert_eq!(seen.header("x-forwarded-proto"), "https");
    let handshake = alice.forward_websocket(&device.id, "/do/websocket");
    let mut opened = handshake.secure_websocket().await.expect("a WebSocket");
    assert!(opened.echoes(Message::text("hello")).await);
    assert!(opened.echoes(Message::binary(vec![7; 2 << 20])).await);
}

async fn pa_12_an_agent_that_does_not_trust_the_cloud_keeps_its_code(topology: Topology) {
    let scene = Scene::set(topology).await;
    let alice = Browser::sign_in(&scene.cloud, "alice").await;
    let (_, code) = alice.pairing_code().await;
    let home = TempDir::new().expect("make a directory");
    let stranger = Authority::new();
    let stranger = stranger.ca_file();
    let stranger = stranger.to_str().expect("a readable path");
    let pair = [
        "agent",
        "--origin",
        "http://127.0.0.1:1",
        "--cloud",
        scene.cloud.public_url(),
        "--pair",
        &code,
    ];
    for more in [&[][..], &["--ca-file", stranger]] {
        let refused = run(home.path(), &[&pair[..], more].concat(), &[]).await;
        let refused = refused.expect_code(1);
        assert!(refused.stderr.contains("certificate"), "{}", refused.stderr);
        assert!(!refused.stderr.contains(&code), "{}", refused.stderr);
    }
    assert_eq!(alice.devices().await.len(), 0);
    let box_ = Anonymous::of(&scene.cloud);
    box_.exchange(&code).await.expect(200);
}

async fn pa_12_a_certificate_of_another_host_is_refused_until_it_is_changed(topology: Topology) {
    let mut scene = Scene::set(topology).await;
    let alice = Browser::sign_in(&scene.cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = scene.device(&alice, &origin).await;
    let ca_file = scene.ca_file();
    scene.authority.issue("other.example");
    scene.cloud.process(Part::Proxy).signal(Signal::SIGHUP);
    let reloaded = |line: &str| line.contains("settings were read again").then_some(());
    let proxy = scene.cloud.process(Part::Proxy);
    proxy.prints("that it has reloaded", reloaded).await;
    directory_says(&scene, &device, "online").await;

    device.process().crash().await;
    directory_says(&scene, &device, "offline").await;
    device.start_again_with(&["--ca-file", &ca_file]);
    let refused = |line: &str| line.contains("certificate is refused").then_some(());
    device
        .process()
        .prints("why it is not let in", refused)
        .await;
    directory_says(&scene, &device, "offline").await;

    scene.authority.issue("localhost");
    scene.cloud.process(Part::Proxy).signal(Signal::SIGHUP);
    directory_says(&scene, &device, "online").await;
}

/// People's browsers refuse the certificate too, so that nobody can be asked but the database.
async fn directory_says(scene: &Scene, device: &Device, status: &str) {
    eventually(&format!("the device is {status}"), async || {
        let sessions: u32 = scene
            .cloud
            .database()
            .query_row(
                "SELECT count(*) FROM sessions WHERE device_id = ?1",
                [&device.id],
                |row| row.get(0),
            )
            .expect("count the sessions");
        ((sessions == 1) == (status == "online")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pa_12_a_token_is_told_to_the_right_host_only() {
    let mut scene = Scene::set(Topology::All).await;
    let alice = Browser::sign_in(&scene.cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = scene.device(&alice, &origin).await;
    let tunnel = scene.cloud.tunnel_addr();
    scene.cloud.crash(Part::Proxy).await;
    // Somebody takes the cloud's place, with a good certificate for another host.
    let impostor = TcpListener::bind(tunnel).await.expect("bind");
    scene.authority.issue("other.example");
    let server = scene.authority.server();
    for _ in 0..2 {
        let (stream, _) = within("the agent", impostor.accept())
            .await
            .expect("accept");
        let shaken = within("the handshake", server.accept(stream)).await;
        assert!(shaken.is_err(), "the agent breaks off before it speaks");
    }
    scene.authority.issue("localhost");
    let server = scene.authority.server();
    let (stream, _) = within("the agent", impostor.accept())
        .await
        .expect("accept");
    let mut stream = server.accept(stream).await.expect("trusted");
    let mut head = vec![0; 4096];
    let read = within("its request", stream.read(&mut head)).await;
    head.truncate(read.expect("a request"));
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.contains("authorization: bearer edt_"), "{head}");
    device.process().check_running();
}
