//! Raw TCP through the cloud: the WebSocket, what the agent allows, and `edgecloud tcp`.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::{
    Anonymous, Browser, Device, Origin, Process, Request, ServiceClient, TestCloud, WebSocket,
    converse, free_addr, on_both_topologies, text, within,
};

on_both_topologies![
    bytes_pass_both_ways_and_each_direction_ends_on_its_own,
    a_service_that_speaks_first_is_heard,
    only_what_the_agent_allows_is_reached,
    fw_15_no_spelling_of_an_address_gets_around_the_agents_list,
    an_address_that_makes_no_sense_is_refused,
    a_plain_request_is_told_what_is_needed,
    ch_05_a_tcp_websocket_needs_the_clouds_origin,
    tn_05_another_tenants_ports_do_not_exist,
    lo_03_the_end_of_the_login_ends_the_connection,
    a_reset_on_the_devices_side_is_no_clean_end,
    what_a_caller_wrote_before_it_left_arrives,
    each_opening_is_in_the_audit,
    the_client_serves_standard_input_and_output,
    the_client_listens_and_each_connection_is_its_own,
    the_client_says_what_is_wrong,
];

/// Two seconds are promised; the rest is slack for a busy machine.
const SOON: Duration = Duration::from_secs(4);

/// A TCP service on the device's side.
struct Service {
    addr: SocketAddr,
    tasks: JoinSet<()>,
}

impl Service {
    async fn spawn<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(tcp));
            }
        });
        Self { addr, tasks }
    }

    /// Sends back what comes, as it comes, and ends when it has ended.
    async fn echo() -> Self {
        Self::spawn(async |mut tcp: TcpStream| {
            let (mut from, mut to) = tcp.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        })
        .await
    }

    /// Answers with how much came, once it has ended.
    async fn count() -> Self {
        Self::spawn(async |mut tcp: TcpStream| {
            let mut all = Vec::new();
            if tcp.read_to_end(&mut all).await.is_ok() {
                let answer = format!("{} bytes", all.len());
                let _ = tcp.write_all(answer.as_bytes()).await;
            }
        })
        .await
    }

    fn port(&self) -> u16 {
        self.addr.port()
    }
}

struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: Device,
    service: Service,
    _origin: Origin,
}

impl Scene {
    async fn set(cloud: TestCloud, service: Service) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let origin = Origin::spawn().await;
        let allowed = service.addr.to_string();
        let more = ["--allow-tcp", allowed.as_str()];
        let device = Device::pair_with(&cloud, &alice, origin.addr(), &more).await;
        Self {
            cloud,
            alice,
            device,
            service,
            _origin: origin,
        }
    }

    fn target(&self, rest: &str) -> String {
        format!("/api/devices/{}/tcp/{rest}", self.device.id)
    }

    fn handshake(&self, rest: &str) -> Request {
        let request = self.alice.request(Method::GET, &self.target(rest));
        request.header("origin", &self.alice.origin())
    }

    async fn open(&self) -> WebSocket {
        let port = self.service.port().to_string();
        let opened = self.handshake(&port).websocket().await;
        opened.unwrap_or_else(|answer| panic!("no connection: {answer:?}"))
    }
}

/// A body whose bytes are known from their places.
fn pattern(len: usize) -> Vec<u8> {
    (0_u8..251).cycle().take(len).collect()
}

/// All bytes until the other direction ends.
async fn rest(socket: &mut WebSocket) -> Vec<u8> {
    within("the end of the bytes", async {
        let mut all = Vec::new();
        loop {
            match socket.socket.next().await {
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => return all,
                Some(Ok(Message::Binary(bytes))) => all.extend_from_slice(&bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("bytes should come: {other:?}"),
            }
        }
    })
    .await
}

async fn send(socket: &mut WebSocket, bytes: impl Into<Vec<u8>>) {
    let message = Message::binary(bytes.into());
    within("the bytes are taken", socket.socket.send(message))
        .await
        .expect("sent");
}

async fn bytes_pass_both_ways_and_each_direction_ends_on_its_own(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::count().await).await;
    let mut socket = scene.open().await;
    let sent = pattern(3_000_000);
    for piece in sent.chunks(250_000) {
        send(&mut socket, piece).await;
    }
    // The end of this direction, and the answer that comes only then.
    send(&mut socket, []).await;
    assert_eq!(rest(&mut socket).await, b"3000000 bytes");
    assert_eq!(socket.closed().await.0, 1000);

    let echo = Scene::set(scene.cloud, Service::echo().await).await;
    let mut socket = echo.open().await;
    send(&mut socket, &sent[..700_000]).await;
    send(&mut socket, []).await;
    assert!(
        rest(&mut socket).await == sent[..700_000],
        "every byte, in order"
    );
    assert_eq!(socket.closed().await.0, 1000);
}

async fn a_service_that_speaks_first_is_heard(cloud: TestCloud) {
    let greeting = Service::spawn(async |mut tcp: TcpStream| {
        tcp.write_all(b"SSH-2.0-test\r\n").await.expect("written");
        let _ = tcp.read(&mut [0; 1]).await;
    });
    let scene = Scene::set(cloud, greeting.await).await;
    let mut socket = scene.open().await;
    let first = within("the greeting", socket.socket.next()).await;
    let first = first.expect("open").expect("a message");
    assert_eq!(first.into_data(), b"SSH-2.0-test\r\n"[..]);
}

async fn only_what_the_agent_allows_is_reached(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::echo().await).await;
    let secret = Service::echo().await;
    let refused = scene
        .handshake(&secret.port().to_string())
        .websocket()
        .await;
    refused
        .map(drop)
        .expect_err("it is not on the list")
        .expect_problem(403, "address_not_allowed");
    let Service { addr, mut tasks } = scene.service;
    tasks.shutdown().await;
    let path = format!("/api/devices/{}/tcp/{}", scene.device.id, addr.port());
    let request = scene.alice.request(Method::GET, &path);
    let gone = request.header("origin", &scene.alice.origin()).websocket();
    gone.await
        .map(drop)
        .expect_err("nothing listens there any more")
        .expect_problem(502, "origin_refused");
}

async fn fw_15_no_spelling_of_an_address_gets_around_the_agents_list(cloud: TestCloud) {
    let touched = Service::spawn(async |_| panic!("nobody may get here")).await;
    let scene = Scene::set(cloud, Service::echo().await).await;
    let port = touched.port();
    let good = scene.service.port();
    for rest in [
        format!("{port}"),
        format!("{port}?host=127.0.0.1"),
        format!("{port}?host=LOCALHOST"),
        format!("{port}?host=%5B::1%5D"),
        format!("{port}?host=0.0.0.0"),
        format!("{good}?host=192.0.2.1"),
        format!("{good}?host=example.com"),
    ] {
        let refused = scene.handshake(&rest).websocket().await;
        refused
            .map(drop)
            .expect_err(&rest)
            .expect_problem(403, "address_not_allowed");
    }
    // Nor does a header name another one.
    let named = scene
        .handshake(&good.to_string())
        .header("edgecloud-target", &touched.addr.to_string())
        .header("x-forwarded-host", &touched.addr.to_string());
    let mut socket = named.websocket().await.expect("the port of the path");
    assert!(socket.echoes(Message::binary(b"here".to_vec())).await);
}

async fn an_address_that_makes_no_sense_is_refused(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::echo().await).await;
    for bad in ["0", "65536", "ssh", "-1", "22?host=a%20b", "22?host="] {
        let refused = scene.handshake(bad).websocket().await;
        let answer = refused.map(drop).expect_err(bad);
        answer.expect_problem(422, "invalid_field");
    }
    let unknown = scene.handshake("22?port=23").websocket().await;
    let answer = unknown.map(drop).expect_err("an unknown parameter");
    answer.expect(400);
}

async fn a_plain_request_is_told_what_is_needed(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::echo().await).await;
    let target = scene.target(&scene.service.port().to_string());
    let answer = scene.alice.get(&target).send().await;
    let answer = answer.expect_problem(426, "upgrade_required");
    assert_eq!(answer.header("upgrade"), "websocket");
    assert_eq!(answer.header("sec-websocket-version"), "13");
    scene.alice.post(&target).send().await.expect(405);
}

async fn ch_05_a_tcp_websocket_needs_the_clouds_origin(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::echo().await).await;
    let target = scene.target(&scene.service.port().to_string());
    for origin in ["https://evil.example", "null", ""] {
        let request = scene.alice.request(Method::GET, &target);
        let request = match origin {
            "" => request.without("origin"),
            origin => request.header("origin", origin),
        };
        let answer = request.websocket().await.map(drop).expect_err(origin);
        answer.expect_problem(403, "cross_origin");
    }
    let anonymous = Anonymous::of(&scene.cloud).request(Method::GET, &target);
    let answer = anonymous.websocket().await.map(drop).expect_err("nobody");
    answer.expect(401);
}

async fn tn_05_another_tenants_ports_do_not_exist(cloud: TestCloud) {
    let touched = Service::spawn(async |_| panic!("no byte may get here")).await;
    let scene = Scene::set(cloud, touched).await;
    let bob = Browser::sign_in(&scene.cloud, "bob").await;
    let target = scene.target(&scene.service.port().to_string());
    let request = bob.request(Method::GET, &target);
    let refused = request.header("origin", &bob.origin()).websocket().await;
    let answer = refused.map(drop).expect_err("not hers");
    answer.expect_problem(404, "not_found");
}

async fn lo_03_the_end_of_the_login_ends_the_connection(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::echo().await).await;
    let mut socket = scene.open().await;
    assert!(socket.echoes(Message::binary(b"open".to_vec())).await);
    scene.alice.sign_out().await;
    let told = timeout(SOON, socket.closed())
        .await
        .expect("it is told soon");
    assert_eq!(told.0, 4401);
}

async fn a_reset_on_the_devices_side_is_no_clean_end(cloud: TestCloud) {
    let breaking = Service::spawn(async |mut tcp: TcpStream| {
        tcp.write_all(b"half of it").await.expect("written");
        let _ = tcp.read(&mut [0; 1]).await;
        tcp.set_zero_linger().expect("set");
    });
    let scene = Scene::set(cloud, breaking.await).await;
    let mut socket = scene.open().await;
    let first = within("the first half", socket.socket.next()).await;
    assert_eq!(first.expect("open").expect("bytes").len(), 10);
    send(&mut socket, *b"x").await;
    assert_eq!(socket.closed().await.0, 4502);
}

async fn what_a_caller_wrote_before_it_left_arrives(cloud: TestCloud) {
    let (written, mut got) = tokio::sync::mpsc::channel(1);
    let sink = Service::spawn(move |mut tcp: TcpStream| {
        let written = written.clone();
        async move {
            let mut all = Vec::new();
            let ended = tcp.read_to_end(&mut all).await;
            written.send((ended.is_ok(), all)).await.expect("awaited");
        }
    });
    let scene = Scene::set(cloud, sink.await).await;
    let mut socket = scene.open().await;
    let sent = pattern(400_000);
    send(&mut socket, sent.as_slice()).await;
    let close = CloseFrame {
        code: 1000.into(),
        reason: "".into(),
    };
    let closing = socket.socket.close(Some(close));
    within("the close", closing).await.expect("said");
    let (whole, all) = within("what arrived", got.recv())
        .await
        .expect("a connection");
    assert!(
        whole && all == sent,
        "{} bytes, clean end: {whole}",
        all.len()
    );
}

async fn each_opening_is_in_the_audit(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::echo().await).await;
    let port = scene.service.port();
    drop(scene.open().await);
    let refused = scene.handshake("1").websocket().await;
    refused.map(drop).expect_err("not allowed").expect(403);
    let entries = scene.alice.get("/api/audit?action=tcp.opened").send().await;
    let found: Vec<Value> = entries.expect(200).items();
    let told: Vec<_> = found
        .iter()
        .map(|entry| {
            json!([
                entry["outcome"],
                entry["target"],
                entry["detail"]["address"]
            ])
        })
        .collect();
    let device = &scene.device.id;
    assert_eq!(
        told,
        [
            json!(["denied", device, "localhost:1"]),
            json!(["success", device, format!("localhost:{port}")]),
        ]
    );
}

/// The arguments and the environment of `edgecloud tcp` for a program that alice has registered.
async fn client(scene: &Scene, more: &[&str]) -> (Vec<String>, Vec<(String, String)>) {
    ServiceClient::register(&scene.cloud, &scene.alice, "ssh", "operator").await;
    let mut args: Vec<String> = ["tcp", &scene.device.id].map(str::to_owned).into();
    args.push(scene.service.port().to_string());
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    let env = [
        ("EDGECLOUD_CLOUD", scene.cloud.public_url().to_owned()),
        (
            "EDGECLOUD_ISSUER",
            format!("http://{}", scene.cloud.issuer_addr()),
        ),
        ("EDGECLOUD_CLIENT_ID", "edgecloud-dev-ssh".to_owned()),
        ("EDGECLOUD_CLIENT_SECRET", "edgecloud-dev-secret".to_owned()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value));
    (args, env.into())
}

async fn the_client_serves_standard_input_and_output(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::count().await).await;
    let home = TempDir::new().expect("a directory");
    let (args, env) = client(&scene, &["--stdio"]).await;
    let said = converse(home.path(), &args, &env, &pattern(1_000_000)).await;
    let said = said.expect_code(0);
    assert_eq!(said.stdout, "1000000 bytes");
    assert!(!said.stderr.contains("edgecloud-dev-secret"), "{said:?}");
}

async fn the_client_listens_and_each_connection_is_its_own(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::echo().await).await;
    let home = TempDir::new().expect("a directory");
    let listen = free_addr();
    let (args, env) = client(&scene, &["--listen", &listen.to_string()]).await;
    let mut process = Process::spawn("tcp", home.path(), &args, &env);
    process
        .prints("its address", |line| {
            line.contains("listening").then_some(())
        })
        .await;
    let connect = async || TcpStream::connect(listen).await.expect("connect");
    let (mut one, mut other) = (connect().await, connect().await);
    for (tcp, word) in [(&mut one, b"one"), (&mut other, b"two")] {
        within("written", tcp.write_all(word)).await.expect("sent");
        let mut back = [0; 3];
        within("the echo", tcp.read_exact(&mut back))
            .await
            .expect("received");
        assert_eq!(&back, word);
    }
    one.shutdown().await.expect("this direction ends");
    let mut rest = Vec::new();
    within("the other direction ends", one.read_to_end(&mut rest))
        .await
        .expect("a clean end");
    // A cut is a reset here, never a clean end.
    let session = format!("/api/devices/{}/session", scene.device.id);
    scene.alice.delete(&session).send().await.expect(204);
    within("the cut", other.read(&mut [0; 1]))
        .await
        .expect_err("a reset");
}

async fn the_client_says_what_is_wrong(cloud: TestCloud) {
    let scene = Scene::set(cloud, Service::echo().await).await;
    let home = TempDir::new().expect("a directory");
    let (args, env) = client(&scene, &[]).await;
    let run = async |change: &[(&str, &str)], args: &[String]| {
        let mut env = env.clone();
        for (name, value) in change {
            env.retain(|(of, _)| of != name);
            env.push(((*name).to_owned(), (*value).to_owned()));
        }
        converse(home.path(), args, &env, b"").await
    };
    let mut elsewhere = args.clone();
    elsewhere[2] = "1".to_owned();
    let refused = run(&[], &elsewhere).await.expect_code(1);
    assert!(
        refused.stderr.contains("address_not_allowed"),
        "{refused:?}"
    );
    let secret = [("EDGECLOUD_CLIENT_SECRET", "a-wrong-secret")];
    let wrong = run(&secret, &args).await.expect_code(1);
    assert!(wrong.stderr.contains("invalid_client"), "{wrong:?}");
    assert!(!wrong.stderr.contains("a-wrong-secret"), "{wrong:?}");
    let stranger = [("EDGECLOUD_CLIENT_ID", "edgecloud-dev-stranger")];
    let unknown = run(&stranger, &args).await.expect_code(1);
    assert!(unknown.stderr.contains("service client"), "{unknown:?}");
    let cloud = [("EDGECLOUD_CLOUD", "ftp://cloud.example")];
    let usage = run(&cloud, &args).await.expect_code(2);
    assert!(usage.stderr.contains("--cloud"), "{usage:?}");
    let nobody = format!("http://{}", free_addr());
    let away = [("EDGECLOUD_CLOUD", nobody.as_str())];
    let away = run(&away, &args).await.expect_code(1);
    assert!(away.stderr.contains("cannot be reached"), "{away:?}");
    assert_eq!(
        text(&scene.alice.device(&scene.device.id).await["status"]),
        "online"
    );
}
