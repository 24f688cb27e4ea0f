//! Peers that break the rules, or are no longer there.

use super::*;

#[tokio::test]
async fn after_a_go_away_streams_may_end_in_peace() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    let mut stream = proxy.tunnel.open().expect("open");
    stream.write_all(b"x").await.expect("write");
    let go_away = vec![0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    raw.send(Message::binary(go_away)).await.expect("send");
    // Data with FIN on the stream, after the GoAway.
    let last = vec![0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 1, b'y'];
    raw.send(Message::binary(last)).await.expect("send");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("a clean end");
    assert_eq!(answer, b"y");
    assert_eq!(proxy.tunnel.open().err(), Some(OpenError::Ended));
    drop(stream);
    assert_eq!(proxy.tunnel.ended().await, EndReason::ClosedByPeer(1005));
}

#[tokio::test]
async fn more_than_the_window_ends_the_tunnel() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    let mut stream = proxy.tunnel.open().expect("open");
    stream.write_all(b"x").await.expect("write");
    let mut frame = vec![0, 0, 0, 0, 0, 0, 0, 1];
    frame.extend((256 * 1024 + 1u32).to_be_bytes());
    raw.send(Message::binary(frame)).await.expect("send");
    assert_eq!(close_code(&mut raw).await, 1002);
    assert_eq!(proxy.tunnel.ended().await, EndReason::Protocol("yamux"));
}

#[tokio::test]
async fn a_window_that_no_number_can_hold_ends_the_tunnel() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    let mut stream = proxy.tunnel.open().expect("open");
    stream.write_all(b"x").await.expect("write");
    let frame = vec![0, 1, 0, 2, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
    raw.send(Message::binary(frame)).await.expect("send");
    assert_eq!(close_code(&mut raw).await, 1002);
    assert_eq!(proxy.tunnel.ended().await, EndReason::Protocol("yamux"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_ends_the_tunnel_within_thirty_seconds() {
    let (near, _far) = duplex(64 * 1024);
    let proxy = end_over(near, Side::Proxy);
    let started = tokio::time::Instant::now();
    assert_eq!(proxy.tunnel.ended().await, EndReason::HeartbeatLost);
    assert!(started.elapsed() <= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_ends_the_tunnel() {
    let (near, mut far) = duplex(4 * 1024);
    let proxy = end_over(near, Side::Proxy);
    let mut stream = proxy.tunnel.open().expect("open");
    let writer = tokio::task::spawn(async move { stream.write_all(&[0; 200_000]).await });
    // The device answers pings it never read, so that only the write timeout can tell.
    let alive = tokio::task::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if far.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.is_err() {
                return;
            }
        }
    });
    assert_eq!(proxy.tunnel.ended().await, EndReason::WriteStalled);
    let _ = (writer.await, alive.await);
}

#[tokio::test]
async fn a_text_message_is_refused_with_1003() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    raw.send(Message::text("hello")).await.expect("send");
    assert_eq!(close_code(&mut raw).await, 1003);
    assert_eq!(
        proxy.tunnel.ended().await,
        EndReason::Protocol("text message")
    );
}

#[tokio::test]
async fn an_oversized_message_is_refused_with_1009() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    // The connection may go before all of the message was taken.
    let _ = raw.feed(Message::binary(vec![0; (2 << 20) + 1])).await;
    let (mut sink, mut stream) = raw.split();
    let flushing = tokio::task::spawn(async move { sink.flush().await });
    let mut code = None;
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Close(Some(frame)) = message {
            code = Some(u16::from(frame.code));
        }
    }
    assert_eq!(code, Some(1009));
    assert_eq!(
        proxy.tunnel.ended().await,
        EndReason::Protocol("message too long")
    );
    drop(flushing);
}

#[tokio::test]
async fn yamux_garbage_is_refused_with_1002() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    raw.send(Message::binary(vec![9; 64])).await.expect("send");
    assert_eq!(close_code(&mut raw).await, 1002);
    assert_eq!(proxy.tunnel.ended().await, EndReason::Protocol("yamux"));
}

#[tokio::test]
async fn a_stream_with_an_id_of_our_own_ends_the_tunnel() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    // A data frame with SYN on an odd id, which belongs to the proxy.
    raw.send(Message::binary(vec![0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0]))
        .await
        .expect("send");
    assert_eq!(close_code(&mut raw).await, 1002);
    assert_eq!(proxy.tunnel.ended().await, EndReason::Protocol("yamux"));
}

#[tokio::test]
async fn a_stream_that_the_device_opens_is_reset_and_the_tunnel_lives() {
    let (proxy, mut raw) = proxy_and_raw_device().await;
    // A window update with SYN on the even id 2.
    raw.send(Message::binary(vec![0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0]))
        .await
        .expect("send");
    let reset = async {
        while let Some(Ok(message)) = raw.next().await {
            if let Message::Binary(bytes) = message
                && bytes
                    .chunks(12)
                    .any(|frame| frame[3] & 8 != 0 && frame[7] == 2)
            {
                return true;
            }
        }
        false
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(5), reset)
            .await
            .expect("in time")
    );
    assert!(!proxy.tunnel.is_ended());
}

#[tokio::test]
async fn a_ping_flood_ends_the_tunnel() {
    let (proxy, raw) = proxy_and_raw_device().await;
    let (mut sink, mut stream) = raw.split();
    let reader = tokio::task::spawn(async move { while stream.next().await.is_some() {} });
    for _ in 0..200 {
        if sink.send(Message::Ping("x".into())).await.is_err() {
            break;
        }
    }
    assert_eq!(
        proxy.tunnel.ended().await,
        EndReason::Protocol("ping flood")
    );
    reader.await.expect("no panic");
}
