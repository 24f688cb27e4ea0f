//! Where the way to a device ends, step by step, and what is known of a device from its echoes.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    Browser, Device, Manner, Origin, Part, RawDevice, RawOrigin, TestCloud, Topology, WireDevice,
    eventually, on_both_topologies, text, within, yamux,
};

on_both_topologies![
    a_device_without_a_free_stream_is_busy,
    a_device_that_takes_no_new_streams_refuses_them,
    a_device_that_is_lost_meanwhile_is_said_to_be_offline,
    an_origin_that_never_answers_times_out,
    a_frozen_agent_looks_like_an_origin_that_never_answers,
    a_slow_origin_is_reachable_and_called_slow,
    the_round_trip_is_that_of_real_echoes,
    tu_17_a_frozen_agent_is_offline_until_it_goes_on,
    a_device_that_is_listed_as_online_takes_requests,
];

const WHOLE_WAY: &[&str] = &["session", "node", "stream", "origin"];

struct Diagnosis {
    reachable: bool,
    reason: String,
    /// Name and milliseconds; all but the last one were good.
    steps: Vec<(String, f64)>,
    whole: Value,
}

impl Diagnosis {
    async fn of(person: &Browser, device: &str) -> Self {
        let path = format!("/api/devices/{device}/diagnose");
        let whole = person.post(&path).send().await.expect(200).json();
        let steps = whole["steps"].as_array().expect("steps").clone();
        let (last, before) = steps.split_last().expect("a step");
        assert!(before.iter().all(|step| step["ok"] == true), "{whole}");
        assert_eq!(last["ok"], whole["reachable"], "{whole}");
        let steps = steps.iter();
        Self {
            reachable: whole["reachable"] == true,
            reason: whole["reason"].as_str().unwrap_or_default().to_owned(),
            steps: steps
                .map(|step| (text(&step["name"]), step["ms"].as_f64().expect("a number")))
                .collect(),
            whole,
        }
    }

    /// It went this far and failed there, for this reason.
    #[track_caller]
    fn fails_at(&self, way: &[&str], reason: &str) {
        let names: Vec<_> = self.steps.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            (names.as_slice(), self.reason.as_str()),
            (way, reason),
            "{}",
            self.whole
        );
        assert!(!self.reachable, "{}", self.whole);
    }

    /// How long the last step took.
    fn last_step(&self) -> Duration {
        let (_, millis) = self.steps.last().expect("a step");
        Duration::from_secs_f64(millis / 1e3)
    }
}

async fn a_device_without_a_free_stream_is_busy(topology: Topology) {
    const STREAMS: usize = 3;
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__TUNNEL__MAX_STREAMS_PER_SESSION", STREAMS)
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let server = WireDevice::connect(&device).await.serve();
    alice.wait_for_status(&device.id, "online").await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let request = alice.forward(&device.id, Method::GET, "/held");
        asking.spawn(request.send());
    }
    eventually("every stream is taken", async || {
        (server.held() == STREAMS).then_some(())
    })
    .await;
    let found = Diagnosis::of(&alice, &device.id).await;
    found.fails_at(&["session", "node", "stream"], "device_busy");
    server.release();
    for answer in asking.join_all().await {
        answer.expect(200);
    }
}

async fn impatient(topology: Topology) -> TestCloud {
    TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__RESPONSE_HEADER_TIMEOUT", "1s")
        .spawn()
        .await
}

async fn a_device_that_takes_no_new_streams_refuses_them(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let mut wire = WireDevice::connect(&device).await;
    alice.wait_for_status(&device.id, "online").await;
    // A stream that is open keeps the session alive.
    let asking = tokio::spawn(alice.forward(&device.id, Method::GET, "/held").send());
    wire.take_stream().await;
    let goes_away = yamux::header(yamux::GO_AWAY, 0, 0, 0);
    let ping = yamux::header(yamux::PING, yamux::SYN, 0, 7);
    assert!(wire.send([goes_away, ping].concat()).await);
    within("the answer to what came behind it", async {
        while wire.frame().await.expect("the tunnel lives").kind != yamux::PING {}
    })
    .await;
    let found = Diagnosis::of(&alice, &device.id).await;
    found.fails_at(&["session", "node", "stream"], "stream_refused");
    wire.leave().await;
    // The request was a GET, which is tried once more.
    asking
        .await
        .expect("no panic")
        .expect_problem(503, "device_offline");
}

async fn a_device_that_is_lost_meanwhile_is_said_to_be_offline(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = RawOrigin::spawn(|stream, _| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    let id = device.id.clone();
    let asking = Diagnosis::of(&alice, &id);
    let losing = async {
        eventually("the origin is asked", async || {
            (origin.requests() == 1).then_some(())
        })
        .await;
        device.process().signal(Signal::SIGKILL);
    };
    let (found, ()) = tokio::join!(asking, losing);
    found.fails_at(WHOLE_WAY, "device_offline");
}

async fn an_origin_that_never_answers_times_out(topology: Topology) {
    let cloud = impatient(topology).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = RawOrigin::spawn(|stream, _| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let found = Diagnosis::of(&alice, &device.id).await;
    found.fails_at(WHOLE_WAY, "origin_timeout");
    // The time is on the step that took it.
    assert!(
        found.last_step() >= Duration::from_secs(1),
        "{}",
        found.whole
    );
    assert_eq!(origin.requests(), 1);
}

async fn a_frozen_agent_looks_like_an_origin_that_never_answers(topology: Topology) {
    let cloud = impatient(topology).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    device.process().signal(Signal::SIGSTOP);
    let found = Diagnosis::of(&alice, &device.id).await;
    found.fails_at(WHOLE_WAY, "origin_timeout");
    device.process().signal(Signal::SIGCONT);
    eventually("the device answers again", async || {
        let found = Diagnosis::of(&alice, &device.id).await;
        found.reachable.then_some(())
    })
    .await;
}

async fn a_slow_origin_is_reachable_and_called_slow(cloud: TestCloud) {
    /// A little more than what is still taken for fast.
    const PAUSE: Duration = Duration::from_millis(2_100);
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = RawOrigin::spawn(|mut stream, _| async move {
        tokio::time::sleep(PAUSE).await;
        let answer = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let found = Diagnosis::of(&alice, &device.id).await;
    assert_eq!((found.reachable, found.reason.as_str()), (true, "slow"));
    assert!(found.last_step() >= PAUSE, "{}", found.whole);
}

/// A way to an address on which everything takes so long, in each direction.
async fn slow_way(to: SocketAddr, delay: Duration) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        let mut ways = tokio::task::JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await.expect("the other end");
            let (near_reads, near_writes) = near.into_split();
            let (far_reads, far_writes) = far.into_split();
            ways.spawn(pass_on(near_reads, far_writes, delay));
            ways.spawn(pass_on(far_reads, near_writes, delay));
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

async fn pass_on<R, W>(mut from: R, mut to: W, delay: Duration)
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(1_024);
    let reading = async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + delay;
            if sender.send((due, buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

async fn the_round_trip_is_that_of_real_echoes(topology: Topology) {
    const DELAY: Duration = Duration::from_millis(150);
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__TUNNEL__HEARTBEAT", "1s")
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let (way, _relay) = slow_way(cloud.tunnel_addr(), DELAY).await;
    let _served = device.through(way).serve(Manner::Says("far")).await;
    alice.wait_for_status(&device.id, "online").await;
    let path = format!("/api/devices/{}/session", device.id);
    let measured = async |after: &Value| {
        eventually("an echo", async || {
            let shown = alice.get(&path).send().await.expect(200).json();
            let is_new = shown["last_heartbeat"] != *after && shown["rtt_ms"].is_number();
            is_new.then_some(shown)
        })
        .await
    };
    let mut last = Value::Null;
    // Each echo is told, and none came faster than the way allows.
    for _ in 0..3 {
        let shown = measured(&last).await;
        let rtt = shown["rtt_ms"].as_f64().expect("a number");
        assert!(rtt >= 2.0 * DELAY.as_secs_f64() * 1e3, "{shown}");
        last = shown["last_heartbeat"].clone();
    }
    let found = Diagnosis::of(&alice, &device.id).await;
    let detail = text(&found.whole["steps"][1]["detail"]);
    let rtt = detail
        .split(' ')
        .rev()
        .nth(1)
        .and_then(|ms| ms.parse::<f64>().ok());
    assert!(
        rtt >= Some(2.0 * DELAY.as_secs_f64() * 1e3),
        "{}",
        found.whole
    );
    assert!(found.last_step() >= 2 * DELAY, "{}", found.whole);
}

async fn tu_17_a_frozen_agent_is_offline_until_it_goes_on(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__TUNNEL__HEARTBEAT", "1s")
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    let pending = alice.forward(&device.id, Method::POST, "/do/hang").send();
    let pending = tokio::spawn(pending);
    eventually("the request is at the origin", async || {
        (origin.count("/do/hang") == 1).then_some(())
    })
    .await;
    device.process().signal(Signal::SIGSTOP);
    // The connection stays open: only the missing echoes tell.
    let shown = alice.wait_for_status(&device.id, "offline").await;
    assert_eq!(shown["reason"], "disconnected");
    assert_eq!(shown["session"], Value::Null);
    let answer = within("the request ends", pending).await.expect("no panic");
    assert!(matches!(answer.status.as_u16(), 502 | 504), "{answer:?}");
    device.process().signal(Signal::SIGCONT);
    alice.wait_for_status(&device.id, "online").await;
    let request = alice.forward(&device.id, Method::GET, "/");
    request.send().await.expect(200);
}

async fn a_device_that_is_listed_as_online_takes_requests(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    for _ in 0..20 {
        let served = device.serve(Manner::Says("here")).await;
        // As soon as somebody can know.
        while alice.device(&device.id).await["status"] != "online" {}
        let answer = alice.forward(&device.id, Method::POST, "/").send().await;
        assert_eq!(answer.expect(200).text(), "here");
        drop(served);
        alice.wait_for_status(&device.id, "offline").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_gone_or_frozen_is_said_to_be_lost() {
    let mut cloud = TestCloud::builder(Topology::Split).spawn().await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    assert!(Diagnosis::of(&alice, &device.id).await.reachable);
    // As long as its lease runs the directory knows nothing of it.
    cloud.process(Part::Proxy).signal(Signal::SIGSTOP);
    let found = Diagnosis::of(&alice, &device.id).await;
    found.fails_at(&["session", "node"], "node_lost");
    // Then it does.
    let shown = alice.wait_for_status(&device.id, "offline").await;
    assert_eq!(shown["reason"], "node_lost");
    let found = Diagnosis::of(&alice, &device.id).await;
    found.fails_at(&["session"], "node_lost");
    cloud.process(Part::Proxy).signal(Signal::SIGCONT);
    eventually("the device is reachable again", async || {
        let found = Diagnosis::of(&alice, &device.id).await;
        found.reachable.then_some(())
    })
    .await;
    cloud.crash(Part::Proxy).await;
    let found = Diagnosis::of(&alice, &device.id).await;
    found.fails_at(&["session", "node"], "node_lost");
}
