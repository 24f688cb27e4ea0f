//! Streams: their bytes, halves, ends and windows.

use super::*;

#[tokio::test]
async fn bytes_cross_both_ways_and_halves_close_one_by_one() {
    let (proxy, mut device) = pair();
    let mut near = proxy.tunnel.open().expect("open");
    let body = vec![7u8; 3 << 20];
    let sent = body.clone();
    let writer = tokio::task::spawn(async move {
        near.write_all(&sent).await.expect("write");
        near.shutdown().await.expect("half-close");
        let mut answer = Vec::new();
        near.read_to_end(&mut answer)
            .await
            .expect("read the answer");
        answer
    });
    let mut far = device.incoming.recv().await.expect("a stream arrives");
    let mut received = Vec::new();
    far.read_to_end(&mut received)
        .await
        .expect("read to the half-close");
    assert!(received == body);
    far.write_all(b"got it")
        .await
        .expect("write after the other half closed");
    far.shutdown().await.expect("shutdown");
    assert_eq!(writer.await.expect("no panic"), b"got it");
}

#[tokio::test]
async fn a_reset_is_an_error_and_not_a_clean_end() {
    let (proxy, mut device) = pair();
    let mut near = proxy.tunnel.open().expect("open");
    near.write_all(b"hello").await.expect("write");
    let mut far = device.incoming.recv().await.expect("a stream arrives");
    far.write_all(b"half an ans").await.expect("write");
    far.flush().await.expect("flush");
    drop(far);
    let mut answer = Vec::new();
    let error = near
        .read_to_end(&mut answer)
        .await
        .expect_err("the reset shows");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(answer, b"half an ans");
}

#[tokio::test]
async fn streams_over_the_limit_are_busy_and_free_slots_are_used_again() {
    let (proxy, mut device) = pair();
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(proxy.tunnel.open().expect("open"));
    }
    assert_eq!(proxy.tunnel.open().err(), Some(OpenError::Busy));
    assert_eq!(proxy.tunnel.open_streams(), 4);
    open.clear();
    let mut stream = proxy.tunnel.open().expect("open again");
    stream.write_all(b"x").await.expect("write");
    assert_eq!(
        device
            .incoming
            .recv()
            .await
            .expect("arrives")
            .read_u8()
            .await
            .expect("read"),
        b'x'
    );
}

/// Writes of any sizes on several streams at once come out in order and complete, both ways.
#[tokio::test]
async fn streams_keep_their_bytes_apart() {
    let (proxy, mut device) = pair();
    let echo = tokio::task::spawn(async move {
        while let Some(stream) = device.incoming.recv().await {
            tokio::task::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream);
                tokio::io::copy(&mut reader, &mut writer)
                    .await
                    .expect("copy");
                writer.shutdown().await.expect("shutdown");
            });
        }
    });
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..4u8 {
        let stream = proxy.tunnel.open().expect("open");
        clients.spawn(async move {
            let body: Vec<u8> = (0..2_000_000u32)
                .map(|at| (at / 251) as u8 ^ (at % 251) as u8 ^ client)
                .collect();
            let sent = body.clone();
            let (mut reader, mut writer) = tokio::io::split(stream);
            let sending = async {
                let mut rest = &sent[..];
                let mut size = 1;
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(size.min(rest.len()));
                    writer.write_all(now).await.expect("write");
                    (rest, size) = (later, size * 3 % 200_003 + 1);
                }
                writer.shutdown().await.expect("shutdown");
            };
            let mut received = Vec::new();
            let (read, ()) = tokio::join!(reader.read_to_end(&mut received), sending);
            read.expect("to the end");
            assert!(received == body);
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("no panic");
    }
    echo.abort();
}

#[tokio::test]
async fn a_stream_whose_sender_has_ended_is_still_reset_when_its_reader_gives_up() {
    let (proxy, mut device) = pair();
    let mut near = proxy.tunnel.open().expect("open");
    near.write_all(b"x").await.expect("write");
    let mut far = device.incoming.recv().await.expect("a stream arrives");
    far.write_all(b"all").await.expect("write");
    far.shutdown().await.expect("half-close");
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.expect("a clean end");
    assert_eq!(answer, b"all");
    // An upload that breaks off after the answer must not look complete.
    drop(near);
    let mut rest = Vec::new();
    let error = far
        .read_to_end(&mut rest)
        .await
        .expect_err("the reset shows");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(rest, b"x");
}

#[tokio::test]
async fn a_window_grows_for_a_reader_that_keeps_up_and_stays_within_the_budgets() {
    let (proxy, mut device) = pair();
    within_rtt(&device).await;
    let mut near = proxy.tunnel.open().expect("open");
    let sending = tokio::task::spawn(async move { near.write_all(&vec![1; 40 << 20]).await });
    let mut far = device.incoming.recv().await.expect("a stream arrives");
    // The way is said to be long, so that this machine's speed does not matter.
    device
        .tunnel
        .shared
        .least_rtt
        .store(10_000_000, Ordering::Relaxed);
    let mut sink = vec![0; 1 << 20];
    for _ in 0..40 {
        far.read_exact(&mut sink).await.expect("read");
    }
    sending.await.expect("no panic").expect("written");
    let grown = device.tunnel.shared.grown();
    assert!((1 << 20..=16 << 20).contains(&grown), "{grown}");
    drop(far);
    assert_eq!(device.tunnel.shared.grown(), 0, "given back");
}

/// Time stands still, so that every reader is fast and nobody's last use is long ago.
#[tokio::test(start_paused = true)]
async fn on_a_short_way_a_window_shrinks_again_while_others_use_the_tunnel() {
    const MIB: usize = 1 << 20;
    let (proxy, mut device) = pair();
    within_rtt(&device).await;
    let least_rtt = &device.tunnel.shared.least_rtt;
    least_rtt.store(100, Ordering::Relaxed);
    let mut bulk = proxy.tunnel.open().expect("open");
    let sending = tokio::task::spawn(async move { bulk.write_all(&vec![1; 60 * MIB]).await });
    let mut arriving = device.incoming.recv().await.expect("a stream arrives");
    let mut sink = vec![0; MIB];
    let mut sizes = Vec::new();
    for _ in 0..20 {
        arriving.read_exact(&mut sink).await.expect("read");
    }
    sizes.push(device.tunnel.shared.grown());
    let mut small = proxy.tunnel.open().expect("open");
    for _ in 0..20 {
        small.write_all(b"x").await.expect("write");
        arriving.read_exact(&mut sink).await.expect("read");
    }
    sizes.push(device.tunnel.shared.grown());
    // A longer way needs the window to be full.
    least_rtt.store(20_000, Ordering::Relaxed);
    for _ in 0..20 {
        small.write_all(b"x").await.expect("write");
        arriving.read_exact(&mut sink).await.expect("read");
    }
    sizes.push(device.tunnel.shared.grown());
    sending.await.expect("no panic").expect("written");
    assert!(sizes[0] >= MIB, "alone: {sizes:?}");
    assert_eq!(sizes[1], 0, "in company: {sizes:?}");
    assert!(sizes[2] >= MIB, "far away: {sizes:?}");
}

async fn within_rtt(end: &End) {
    while end.tunnel.rtt().is_none() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn small_writes_go_ahead_of_bulk_that_waits() {
    let (near, far) = duplex(1024);
    let proxy = end_over(near, Side::Proxy);
    let mut bulk = [(); 2].map(|()| proxy.tunnel.open().expect("open"));
    let mut small = proxy.tunnel.open().expect("open");
    // Nobody reads: what is sent first fills every buffer, within what the windows allow.
    let full = bulk.each_mut().map(|bulk| bulk.write_all(&[0; 256 * 1024]));
    let full = futures_util::future::try_join_all(full);
    let waited = tokio::time::timeout(Duration::from_millis(100), full).await;
    assert!(waited.is_err(), "bulk has to wait");
    let written = tokio::time::timeout(Duration::from_secs(5), small.write_all(b"GET /")).await;
    written.expect("at once").expect("written");
    drop(far);
}

#[tokio::test]
async fn a_thousand_rounds_of_opening_and_dropping_keep_the_tunnel() {
    let (proxy, mut device) = pair();
    let echo = tokio::task::spawn(async move {
        while let Some(mut stream) = device.incoming.recv().await {
            let byte = stream.read_u8().await.expect("read");
            stream.write_u8(byte).await.expect("write");
            stream.flush().await.expect("flush");
        }
    });
    for round in 0..1_000u32 {
        let byte = round.to_be_bytes()[3];
        let mut stream = proxy.tunnel.open().expect("open");
        stream.write_u8(byte).await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), byte);
    }
    assert!(!proxy.tunnel.is_ended());
    drop(echo);
}

#[tokio::test]
async fn no_more_streams_are_begun_than_the_other_side_can_queue() {
    let (near, far) = duplex(64 * 1024);
    let mut raw = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    let settings = TunnelSettings {
        max_streams: 300,
        ..settings(Side::Proxy)
    };
    let (tunnel, task, _) = Tunnel::over(near, Bytes::new(), &settings);
    let driving = tokio::task::spawn(task.run());
    let mut streams: Vec<_> = (0..257).map(|_| tunnel.open().expect("open")).collect();
    let mut last = streams.pop().expect("the last one");
    for stream in &mut streams {
        stream.write_all(b"x").await.expect("write");
    }
    let mut waiting = Box::pin(last.write_all(b"x"));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    // A window update with ACK on the first stream.
    let ack = vec![0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0];
    raw.send(Message::binary(ack)).await.expect("send");
    waiting.await.expect("its turn");
    drop(streams);
    drop(driving);
}
