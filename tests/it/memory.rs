//! What the cloud holds for peers that take nothing: no more than the buffers on the way, however much
//! there is to come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::Method;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{
    Browser, Device, Origin, Process, RawConnection, RawDevice, TestCloud, Topology, WireDevice,
    eventually, on_both_topologies, within,
};

on_both_topologies![
    tu_13_an_upload_to_a_device_that_takes_nothing_is_not_held_here,
    tu_14_a_download_that_nobody_reads_is_not_held_here,
    tu_15_a_thousand_requests_at_once_leave_the_session_alive,
];

/// How much more memory than before a process may have had in use, in bytes: the window of a session
/// (`tunnel.window_budget_bytes`, 16 MiB) and what is copied on the way.
const MAX_GROWTH: u64 = 24 << 20;
const GIBIBYTE: u64 = 1 << 30;
const PIECE: usize = 64 << 10;

/// The most memory that each process of the cloud ever had in use, in bytes.
fn peaks(cloud: &TestCloud) -> Vec<u64> {
    cloud.processes().map(Process::peak_memory).collect()
}

fn grown_by_less_than(cloud: &TestCloud, before: &[u64], allowed: u64) {
    for (before, after) in before.iter().zip(peaks(cloud)) {
        let grown = after.saturating_sub(*before);
        assert!(grown < allowed, "from {before} to {after} bytes");
    }
}

async fn tu_13_an_upload_to_a_device_that_takes_nothing_is_not_held_here(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__RESPONSE_HEADER_TIMEOUT", "3s")
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    // Reads its tunnel, but never allows the stream more than the first bytes.
    let server = WireDevice::connect(&device).await.serve();
    alice.wait_for_status(&device.id, "online").await;
    let get = || alice.forward(&device.id, Method::GET, "/").send();
    get().await.expect(200);
    let before = peaks(&cloud);

    let taken = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&taken);
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let pieces = std::iter::repeat_n(piece, (GIBIBYTE / PIECE as u64) as usize);
    let body = stream::iter(pieces.inspect(move |piece| {
        counter.fetch_add(piece.len() as u64, Ordering::SeqCst);
    }));
    let upload = alice.forward(&device.id, Method::POST, "/").stream(body);
    let answer = upload.send().await;
    answer.expect_problem(504, "origin_timeout");
    // The rest was held back in the caller, but for what fits into the buffers of two sockets.
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken < GIBIBYTE / 4, "{taken} bytes were taken");
    grown_by_less_than(&cloud, &before, MAX_GROWTH);
    // It cost its own stream only.
    assert_eq!(server.held(), 1);
    get().await.expect(200);
}

async fn tu_14_a_download_that_nobody_reads_is_not_held_here(cloud: TestCloud) {
    /// A pause of the origin's body that means that it is held back.
    const HELD_BACK: Duration = Duration::from_secs(2);
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    alice
        .forward(&device.id, Method::GET, "/")
        .send()
        .await
        .expect(200);
    let before = peaks(&cloud);

    let body = origin.drive("gibibyte");
    let mut caller = RawConnection::open(cloud.api_addr()).await;
    let head = format!(
        "GET /api/devices/{}/http/do/driven?name=gibibyte HTTP/1.1\r\nHost: {}\r\n\
         Cookie: edgecloud={}\r\n\r\n",
        device.id,
        alice.host(),
        alice.login_cookie()
    );
    caller.send(head).await;
    assert_eq!(caller.read_status().await, 200);
    // From here on nobody reads, and the origin sends what is taken.
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let mut sent = 0;
    while let Ok(taken) = timeout(HELD_BACK, body.send(piece.clone())).await {
        taken.expect("the way is still open");
        sent += PIECE as u64;
        assert!(sent < GIBIBYTE, "it should be held back");
    }
    grown_by_less_than(&cloud, &before, MAX_GROWTH);
    // Everybody else is served, and what was held back goes on.
    alice
        .forward(&device.id, Method::GET, "/")
        .send()
        .await
        .expect(200);
    let more = async {
        tokio::join!(caller.read_bytes(sent as usize), async {
            body.send(piece.clone()).await.expect("taken at last");
            drop(body);
        })
    };
    let (read, ()) = within("the rest", more).await;
    assert_eq!(read.len() as u64, sent);
}

async fn tu_15_a_thousand_requests_at_once_leave_the_session_alive(cloud: TestCloud) {
    const REQUESTS: usize = 1_000;
    /// `tunnel.max_streams_per_session`, unless it is set.
    const STREAMS: usize = 256;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let server = WireDevice::connect(&device).await.serve();
    let online = alice.wait_for_status(&device.id, "online").await;
    let mut asking = JoinSet::new();
    for _ in 0..REQUESTS {
        let request = alice.forward(&device.id, Method::GET, "/held");
        asking.spawn(request.send());
    }
    for _ in STREAMS..REQUESTS {
        let answer = asking
            .join_next()
            .await
            .expect("one more")
            .expect("no panic");
        let refused = answer.expect_problem(503, "device_busy");
        let wait = refused.header("retry-after").parse::<u64>();
        assert!(wait.expect("seconds") >= 1);
    }
    eventually("every stream is taken", async || {
        (server.held() == STREAMS).then_some(())
    })
    .await;
    server.release();
    for answer in asking.join_all().await {
        assert_eq!(answer.expect(200).text(), "wire");
    }
    // It is the same session still.
    let answer = alice.forward(&device.id, Method::GET, "/").send().await;
    assert_eq!(answer.expect(200).text(), "wire");
    let now = alice.device(&device.id).await;
    assert_eq!(
        now["session"]["connected_at"],
        online["session"]["connected_at"]
    );
    assert!(online["session"]["connected_at"].is_string(), "{online}");
}
