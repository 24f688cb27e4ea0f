//! Nothing is left behind: descriptors, threads and memory after all that can begin and end.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use edgecloud::device_token::DeviceToken;

use crate::support::{
    Anonymous, Browser, Device, Origin, Process, RawDevice, TestCloud, Topology, on_both_topologies,
};

on_both_topologies![rx_05_nothing_is_left_behind];

const REQUESTS: usize = 2_000;
const RECONNECTS: usize = 200;
const ABORTED: usize = 100;
const WEBSOCKETS: usize = 100;
const REFUSED: usize = 100;
/// At once.
const WORKERS: usize = 8;
/// So often in a row the same is seen when all has come to rest.
const SETTLED: usize = 20;
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Idle threads for blocking work end after ten seconds, and idle connections a little later.
const SETTLING: Duration = Duration::from_secs(60);
/// What a process may keep of all that in memory, in KiB: arenas and caches that fill up. A buffer of 16 KiB
/// left behind by each request would be as much.
const MAX_GROWTH_KIB: u64 = 32 * 1024;

/// What a process holds.
#[derive(Debug, PartialEq)]
struct Holding {
    /// What each leads to.
    descriptors: Vec<String>,
    /// The name of each.
    threads: Vec<String>,
}

impl Holding {
    fn of(process: &Process) -> Self {
        let entries = |name: &str| {
            let entries = std::fs::read_dir(format!("/proc/{}/{name}", process.id()));
            entries.expect("the process runs").flatten()
        };
        // What has gone since the directory was read is not held.
        let descriptors = entries("fd").flat_map(|entry| std::fs::read_link(entry.path()));
        let threads = entries("task").flat_map(|entry| {
            let name = std::fs::read_to_string(entry.path().join("comm"));
            name.map(|name| name.trim_end().to_owned())
        });
        Self {
            descriptors: descriptors.map(|path| path.display().to_string()).collect(),
            threads: threads.collect(),
        }
    }

    fn is_within(&self, before: &Self) -> bool {
        self.descriptors.len() <= before.descriptors.len()
            && self.threads.len() <= before.threads.len()
    }
}

struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: Device,
    _origin: Origin,
}

impl Scene {
    /// Something of every process, of the agent last.
    fn of_each<T>(&mut self, tell: impl Fn(&Process) -> T) -> Vec<T> {
        let mut told: Vec<_> = self.cloud.processes().map(&tell).collect();
        told.push(tell(self.device.process()));
        told
    }

    /// Waits until nothing begins or ends any more, with no more than there was before.
    async fn settled(&mut self, before: Option<&[Holding]>) -> Vec<Holding> {
        let (mut last, mut same) = (Vec::new(), 0);
        let settling = async {
            loop {
                let seen = self.of_each(Holding::of);
                same = if seen == last { same + 1 } else { 0 };
                let is_back = before.is_none_or(|before| {
                    let mut pairs = before.iter().zip(&seen);
                    pairs.all(|(before, seen)| seen.is_within(before))
                });
                last = seen;
                if is_back && same >= SETTLED {
                    return;
                }
                sleep(POLL_EVERY).await;
            }
        };
        let settled = timeout(SETTLING, settling).await.is_ok();
        assert!(settled, "before: {before:#?}\nnow: {last:#?}");
        last
    }

    /// Does a part of everything.
    async fn work(&self, share: usize) {
        self.request(REQUESTS / share).await;
        self.reconnect(RECONNECTS / share).await;
        for _ in 0..ABORTED / share {
            // Far more than all buffers on the way.
            let download = self.get("/do/download?bytes=100000000").open().await;
            download.expect(200).next_piece().await;
        }
        for _ in 0..WEBSOCKETS / share {
            let request = self
                .alice
                .forward_websocket(&self.device.id, "/do/websocket");
            let mut socket = request.websocket().await.expect("a WebSocket");
            assert!(socket.echoes(Message::text("here")).await);
        }
        self.be_refused(REFUSED / share).await;
    }

    fn get(&self, path: &str) -> crate::support::Request {
        self.alice.forward(&self.device.id, Method::GET, path)
    }

    async fn request(&self, count: usize) {
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let (alice, id) = (self.alice.clone(), self.device.id.clone());
            workers.spawn(async move {
                for number in 0..count / WORKERS {
                    let there = alice.forward(&id, Method::POST, "/do/reflect");
                    let body = Bytes::from(format!("{worker} {number}"));
                    let back = there.bytes(body.clone()).send().await.expect(200);
                    assert_eq!(back.body, body);
                }
            });
        }
        workers.join_all().await;
    }

    /// Half of them while the tunnel before is still there.
    async fn reconnect(&self, count: usize) {
        let device = RawDevice::pair(&self.cloud, &self.alice).await;
        for _ in 0..count / 2 {
            let older = device.connect().await;
            drop(device.connect().await);
            drop(older);
        }
        let path = format!("/api/devices/{}", device.id);
        self.alice.delete(&path).send().await.expect_success();
    }

    async fn be_refused(&self, count: usize) {
        let nobody = Anonymous::of(&self.cloud);
        for _ in 0..count {
            let stranger = Browser::new(&self.cloud);
            stranger.begin_login("/").await;
            let forged = "/api/auth/callback?code=forged&state=forged";
            stranger.open_callback(forged).await;
            assert!(!stranger.is_signed_in().await);
            nobody.get("/api/devices").send().await.expect(401);
            nobody.exchange("AAAA-AAAA").await.expect_refusal();
            let token = DeviceToken::random();
            let unknown = RawDevice::known(&self.cloud, "", token.expose());
            let refused = unknown.handshake().websocket().await.err();
            refused.expect("no tunnel without a token").expect(401);
        }
    }
}

async fn rx_05_nothing_is_left_behind(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        // What is kept for the next request is no leak, but would be in the way of counting.
        .setting("EDGECLOUD__LIMITS__IDLE_STREAMS_PER_SESSION", 0)
        .setting("EDGECLOUD__LOG__LEVEL", "warn")
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let mut scene = Scene {
        cloud,
        alice,
        device,
        _origin: origin,
    };
    // What is made once, at the first of a kind.
    scene.work(50).await;
    let before = scene.settled(None).await;
    let memory_before = scene.of_each(Process::memory_kib);
    scene.work(1).await;
    scene.settled(Some(&before)).await;
    let memory_after = scene.of_each(Process::memory_kib);
    for (before, after) in memory_before.iter().zip(&memory_after) {
        assert!(
            after.saturating_sub(*before) <= MAX_GROWTH_KIB,
            "{memory_before:?} KiB before, {memory_after:?} after"
        );
    }
}
