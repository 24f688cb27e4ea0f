use std::io::ErrorKind;

use super::*;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: box\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A device with its origin and the cloud's end of its tunnel.
struct Setup {
    _device: Device,
    origin: TcpListener,
    proxy: Proxy,
    _control: ControlStream<TunnelStream>,
}

async fn setup() -> Setup {
    let (origin, addr) = listen().await;
    setup_with(origin, addr, &[]).await
}

async fn setup_with(origin: TcpListener, addr: SocketAddr, allow_tcp: &[SocketAddr]) -> Setup {
    let cloud = Cloud::start().await;
    let device = Device::start(&cloud, addr, allow_tcp).await;
    let (proxy, control, origin_host) = cloud.session().await;
    assert_eq!(origin_host, Some(addr.to_string()));
    Setup {
        _device: device,
        origin,
        proxy,
        _control: control,
    }
}

#[tokio::test]
async fn two_requests_on_one_stream_use_one_connection() {
    let setup = setup().await;
    // A stream on which nothing is asked holds no connection: the first one is another's.
    let mut idle = setup.proxy.tunnel.open().expect("open");
    let announced = idle.write(&[]).await.expect("its first frame leaves");
    assert_eq!(announced, 0);
    let mut stream = setup.proxy.ask(REQUEST).await;
    let mut origin = accept(&setup.origin).await;
    for _ in 0..2 {
        read_exactly(&mut origin, REQUEST).await;
        origin.write_all(ANSWER.as_bytes()).await.expect("write");
        read_exactly(&mut stream, ANSWER).await;
        stream.write_all(REQUEST.as_bytes()).await.expect("write");
    }
    read_exactly(&mut origin, REQUEST).await;
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let setup = setup().await;
    let body = "x".repeat(1 << 20);
    let mut stream = setup.proxy.ask("POST ").await;
    let mut origin = accept(&setup.origin).await;
    let sent = body.clone();
    let upload = tokio::task::spawn(async move {
        stream.write_all(sent.as_bytes()).await.expect("write");
        stream.shutdown().await.expect("half-close");
        stream
    });
    let received = read_to_end(&mut origin).await;
    assert!(received == format!("POST {body}"));
    let mut stream = upload.await.expect("no panic");
    origin.write_all(ANSWER.as_bytes()).await.expect("write");
    origin.shutdown().await.expect("half-close");
    assert_eq!(read_to_end(&mut stream).await, ANSWER);
}

#[tokio::test]
async fn an_origin_that_is_not_there_is_reported() {
    let (listener, addr) = listen().await;
    let Setup {
        origin,
        proxy,
        _control,
        _device,
    } = setup_with(listener, addr, &[]).await;
    drop(origin);
    let upload = format!("POST / HTTP/1.1\r\n\r\n{}", "x".repeat(100_000));
    for (request, body) in [
        (REQUEST, true),
        (upload.as_str(), true),
        ("HEAD / HTTP/1.1\r\n\r\n", false),
    ] {
        let mut stream = proxy.ask(request).await;
        let answer = read_to_end(&mut stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
            "{answer}"
        );
        assert!(answer.contains("\r\nEdgecloud-Agent-Error: refused\r\n"));
        assert!(answer.contains("\r\nConnection: close\r\n"));
        assert_eq!(answer.ends_with("nothing listens at this address\n"), body);
    }
}

#[tokio::test]
async fn connect_reaches_the_origin_and_what_is_allowed() {
    let (origin, addr) = listen().await;
    let (other, other_addr) = listen().await;
    let setup = setup_with(origin, addr, &[other_addr]).await;
    for (listener, target) in [
        (&setup.origin, addr.to_string()),
        (&setup.origin, format!("localhost:{}", addr.port())),
        (&other, other_addr.to_string()),
    ] {
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\nearly");
        let mut stream = setup.proxy.ask(&head).await;
        let mut tcp = accept(listener).await;
        read_exactly(&mut tcp, "early").await;
        tcp.write_all(b"raw").await.expect("write");
        tcp.shutdown().await.expect("half-close");
        let answer = read_to_end(&mut stream).await;
        assert_eq!(answer, "HTTP/1.1 200 Connection established\r\n\r\nraw");
        stream.write_all(b"late").await.expect("write");
        stream.shutdown().await.expect("half-close");
        assert_eq!(read_to_end(&mut tcp).await, "late");
    }
}

#[tokio::test]
async fn connect_to_anything_else_is_refused() {
    let (other, other_addr) = listen().await;
    let gone = nobody().await;
    let (origin, addr) = listen().await;
    let setup = setup_with(origin, addr, &[gone]).await;
    let long = format!("{addr} HTTP/1.1\r\nX: {}", "x".repeat(8 << 10));
    for (target, status) in [
        (format!("{other_addr} HTTP/1.1"), "403 Forbidden"),
        ("169.254.169.254:80 HTTP/1.1".into(), "403 Forbidden"),
        (format!("{gone} HTTP/1.1"), "502 Bad Gateway"),
        ("box HTTP/1.1".into(), "400 Bad Request"),
        (long, "400 Bad Request"),
    ] {
        let mut stream = setup.proxy.ask(&format!("CONNECT {target}\r\n\r\n")).await;
        let answer = read_to_end(&mut stream).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{target:.60}: {answer}"
        );
    }
    assert!(futures_util::FutureExt::now_or_never(other.accept()).is_none());
}

#[tokio::test]
async fn an_origin_that_breaks_off_resets_the_stream() {
    let setup = setup().await;
    let mut stream = setup.proxy.ask(REQUEST).await;
    let mut origin = accept(&setup.origin).await;
    read_exactly(&mut origin, REQUEST).await;
    let half = "HTTP/1.1 200 OK\r\n\r\nhalf an ans";
    origin.write_all(half.as_bytes()).await.expect("write");
    read_exactly(&mut stream, half).await;
    origin.set_zero_linger().expect("it is open");
    drop(origin);
    let error = within(stream.read_u8()).await.expect_err("cut off");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_opener_that_breaks_off_resets_the_origins_connection() {
    let setup = setup().await;
    let stream = setup.proxy.ask("POST / HTTP/1.1\r\n\r\nhalf a bo").await;
    let mut origin = accept(&setup.origin).await;
    read_exactly(&mut origin, "POST / HTTP/1.1\r\n\r\nhalf a bo").await;
    drop(stream);
    let error = within(origin.read_u8()).await.expect_err("cut off");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_tunnel_that_is_lost_resets_the_origins_connection() {
    let setup = setup().await;
    let _stream = setup.proxy.ask("POST / HTTP/1.1\r\n\r\nhalf a bo").await;
    let mut origin = accept(&setup.origin).await;
    read_exactly(&mut origin, "POST / HTTP/1.1\r\n\r\nhalf a bo").await;
    setup.proxy.tunnel.close(CloseReason::Restarting);
    let error = within(origin.read_u8()).await.expect_err("cut off");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_arrives_whole() {
    let setup = setup().await;
    let mut stream = setup.proxy.ask("POST / HTTP/1.1\r\n\r\n").await;
    let mut origin = accept(&setup.origin).await;
    read_exactly(&mut origin, "POST / HTTP/1.1\r\n\r\n").await;
    origin.write_all(ANSWER.as_bytes()).await.expect("write");
    origin.shutdown().await.expect("half-close");
    drop(origin);
    stream.write_all(&[b'x'; 100_000]).await.expect("write");
    assert_eq!(read_to_end(&mut stream).await, ANSWER);
}
