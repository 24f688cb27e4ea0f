use http::header;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::agent::connect::{ConnectError, connect};
use crate::tunnel::EndReason;

fn state(tunnel_url: &str) -> State {
    let cloud = "https://cloud.example.com";
    State::checked(DeviceId::random(), TOKEN.into(), tunnel_url, cloud).expect("valid")
}

/// What the agent makes of an answer to its handshake.
async fn refusal(answer: &str) -> ConnectError {
    let cloud = Cloud::start().await;
    let links = Links::new(None).expect("the system's certificates");
    let state = state(&format!("ws://{}", cloud.addr));
    let clock = Clock::system();
    let connecting = connect(&links, &state, &clock);
    let (connected, request) = tokio::join!(within(connecting), cloud.answer(answer));
    assert!(request.starts_with("GET /tunnel HTTP/1.1\r\n"), "{request}");
    let error = connected.err().expect("no tunnel");
    assert!(!format!("{error} {error:?}").contains(TOKEN));
    error
}

#[tokio::test]
async fn the_handshake_says_who_the_device_is_and_who_speaks() {
    let cloud = Cloud::start().await;
    let mut device = Device::start(&cloud, nobody().await, &[]).await;
    let (proxy, _control, _) = cloud.session().await;
    assert_eq!(proxy.head[header::AUTHORIZATION], format!("Bearer {TOKEN}"));
    assert_eq!(proxy.head[header::SEC_WEBSOCKET_PROTOCOL], SUBPROTOCOL);
    assert_eq!(proxy.head[header::HOST], cloud.addr.to_string());
    let agent = concat!("edgecloud-agent/", env!("CARGO_PKG_VERSION"));
    assert_eq!(proxy.head["edgecloud-agent"], agent);
    assert!(!proxy.head.contains_key(header::ORIGIN));
    device.becomes(AgentStatus::Connected).await;
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let error = refusal("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    assert!(matches!(error, ConnectError::Unauthorized), "{error}");
    let error = refusal("HTTP/1.1 503 Later\r\nRetry-After: 7\r\n\r\n").await;
    let ConnectError::Later { status: 503, after } = error else {
        panic!("{error}");
    };
    assert_eq!(after, Duration::from_secs(7));
    let error = refusal("HTTP/1.1 503 Later\r\n\r\n").await;
    assert!(matches!(error, ConnectError::Unexpected(_, 503)), "{error}");
    let error = refusal("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n");
    let error = error.await;
    assert!(matches!(error, ConnectError::NotWebSocket(_)), "{error}");
    let error = refusal("SSH-2.0-OpenSSH\r\n").await;
    assert!(
        matches!(error, ConnectError::Link(LinkError::NoAnswer(..))),
        "{error}"
    );
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(32 << 10));
    let error = refusal(&endless).await;
    assert!(
        matches!(error, ConnectError::Link(LinkError::NoAnswer(..))),
        "{error}"
    );
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, addr) = listen().await;
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: http://{addr}/tunnel\r\n\r\n");
    let error = refusal(&answer).await;
    assert!(matches!(error, ConnectError::Unexpected(_, 302)), "{error}");
    assert!(futures_util::FutureExt::now_or_never(elsewhere.accept()).is_none());
}

#[tokio::test]
async fn a_refused_token_parks_the_device() {
    let cloud = Cloud::start().await;
    let mut device = Device::start(&cloud, nobody().await, &[]).await;
    cloud.answer("HTTP/1.1 401 Unauthorized\r\n\r\n").await;
    device.becomes(AgentStatus::Parked).await;
    device.stop.cancel();
    let ended = within(device.task).await.expect("no panic");
    ended.expect("a clean end");
}

#[tokio::test]
async fn a_cloud_that_is_busy_is_asked_again() {
    let cloud = Cloud::start().await;
    let mut device = Device::start(&cloud, nobody().await, &[]).await;
    cloud
        .answer("HTTP/1.1 503 Later\r\nRetry-After: 0\r\n\r\n")
        .await;
    let (_proxy, _control, _) = cloud.session().await;
    device.becomes(AgentStatus::Connected).await;
}

#[tokio::test]
async fn a_lost_tunnel_is_followed_by_another() {
    let cloud = Cloud::start().await;
    let mut device = Device::start(&cloud, nobody().await, &[]).await;
    let (proxy, control, _) = cloud.session().await;
    device.becomes(AgentStatus::Connected).await;
    proxy.tunnel.close(CloseReason::Restarting);
    device.becomes(AgentStatus::Connecting).await;
    drop((proxy, control));
    let (_proxy, _control, _) = cloud.session().await;
    device.becomes(AgentStatus::Connected).await;
}

#[tokio::test]
async fn a_move_opens_the_new_tunnel_while_the_old_one_finishes() {
    let cloud = Cloud::start().await;
    let (origin, addr) = listen().await;
    let _device = Device::start(&cloud, addr, &[]).await;
    let (old, mut old_control, _) = cloud.session().await;
    let mut stream = old.ask("GET /slow HTTP/1.1\r\n\r\n").await;
    let mut slow = accept(&origin).await;
    read_exactly(&mut slow, "GET /slow HTTP/1.1\r\n\r\n").await;
    let order = ControlMessage::Move { after_ms: 0 };
    old_control.send(&order).await.expect("send");
    let (new, _new_control, _) = cloud.session().await;
    assert!(!old.tunnel.is_ended() && !new.tunnel.is_ended());
    slow.write_all(b"HTTP/1.1 200 OK\r\n\r\nat last")
        .await
        .expect("write");
    drop(slow);
    let answer = read_to_end(&mut stream).await;
    assert_eq!(answer, "HTTP/1.1 200 OK\r\n\r\nat last");
    drop(stream);
    // Nobody needs the old one any more.
    assert_eq!(
        within(old.tunnel.ended()).await.as_str(),
        "closed_by_device"
    );
    assert!(!new.tunnel.is_ended());
}

#[tokio::test]
async fn a_new_token_is_taken_while_the_old_tunnel_finishes() {
    let cloud = Cloud::start().await;
    let mut device = Device::start(&cloud, nobody().await, &[]).await;
    let (old, _old_control, _) = cloud.session().await;
    device.becomes(AgentStatus::Connected).await;
    device.take_token("edt_rotated");
    let (new, _new_control, _) = cloud.session().await;
    assert_eq!(new.head["authorization"], "Bearer edt_rotated");
    assert!(
        !old.tunnel.is_ended(),
        "the old one serves until it is told"
    );
    device.becomes(AgentStatus::Connected).await;
}

#[tokio::test]
async fn a_parked_device_comes_back_with_a_new_token_at_once() {
    let cloud = Cloud::start().await;
    let mut device = Device::start(&cloud, nobody().await, &[]).await;
    cloud.answer("HTTP/1.1 401 Unauthorized\r\n\r\n").await;
    device.becomes(AgentStatus::Parked).await;
    device.take_token("edt_rotated");
    let (new, _control, _) = cloud.session().await;
    assert_eq!(new.head["authorization"], "Bearer edt_rotated");
}

#[tokio::test]
async fn a_revoked_device_is_parked() {
    let cloud = Cloud::start().await;
    let mut device = Device::start(&cloud, nobody().await, &[]).await;
    let (proxy, mut control, _) = cloud.session().await;
    control.send(&ControlMessage::Revoked).await.expect("send");
    proxy.tunnel.close(CloseReason::Revoked);
    device.becomes(AgentStatus::Parked).await;
}

#[tokio::test]
async fn without_the_subprotocol_the_first_stream_is_the_origins() {
    let cloud = Cloud::start().await;
    let (origin, addr) = listen().await;
    let mut device = Device::start(&cloud, addr, &[]).await;
    let proxy = cloud.tunnel(false).await;
    device.becomes(AgentStatus::Connected).await;
    let _stream = proxy.ask("GET / HTTP/1.1\r\n\r\n").await;
    let mut tcp = accept(&origin).await;
    read_exactly(&mut tcp, "GET / HTTP/1.1\r\n\r\n").await;
}

#[tokio::test]
async fn an_agent_that_is_stopped_closes_its_tunnel() {
    let cloud = Cloud::start().await;
    let mut device = Device::start(&cloud, nobody().await, &[]).await;
    let (proxy, _control, _) = cloud.session().await;
    device.becomes(AgentStatus::Connected).await;
    device.stop.cancel();
    let seen = within(proxy.tunnel.ended()).await;
    assert!(
        matches!(seen, EndReason::ClosedByPeer(1000 | 1005)),
        "{seen:?}"
    );
    let ended = within(device.task).await.expect("no panic");
    ended.expect("a clean end");
    assert_eq!(*device.status.borrow(), AgentStatus::Stopped);
}

/// A TLS server with a certificate of its own for `name`; returns what it was sent.
fn tls_server(name: &str, listener: TcpListener) -> (String, JoinHandle<Option<String>>) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let pem = made.cert.pem();
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes());
    let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key.expect("PEM"))
        .expect("they go together");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let serving = tokio::task::spawn(async move {
        let tcp = accept(&listener).await;
        let mut tls = acceptor.accept(tcp).await.ok()?;
        let mut seen = vec![0; 4096];
        let read = tls.read(&mut seen).await.unwrap_or_default();
        // Only what arrived counts.
        let _ = tls.write_all(b"HTTP/1.1 401 No\r\n\r\n").await;
        (read > 0).then(|| String::from_utf8_lossy(&seen[..read]).into_owned())
    });
    (pem, serving)
}

#[tokio::test]
async fn the_token_goes_to_a_server_with_the_right_certificate_only() {
    for (name, trusted, sent) in [
        ("localhost", true, true),
        ("localhost", false, false),
        ("cloud.example.com", true, false),
    ] {
        let (listener, addr) = listen().await;
        let (pem, serving) = tls_server(name, listener);
        let ca_file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(ca_file.path(), pem).expect("write");
        let ca_file = trusted.then(|| ca_file.path());
        let links = Links::new(ca_file).expect("certificates");
        let state = state(&format!("wss://localhost:{}", addr.port()));
        let clock = Clock::system();
        let connecting = connect(&links, &state, &clock);
        let error = within(connecting).await.err().expect("no tunnel");
        let seen = within(serving).await.expect("no panic");
        match sent {
            true => {
                assert!(matches!(error, ConnectError::Unauthorized), "{error}");
                assert!(seen.expect("a request").contains(TOKEN));
            }
            false => {
                let untrusted = matches!(error, ConnectError::Link(LinkError::Untrusted(..)));
                assert!(untrusted, "{name}: {error}");
                assert_eq!(seen, None);
            }
        }
    }
}
