//! Several processes of one cloud: what began at one goes on at another, and devices find those that
//! are left.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::Method;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

use crate::support::{
    Anonymous, Another, Browser, Device, Manner, Origin, Part, RawDevice, Streaming, TestCloud,
    Topology, eventually, run, text,
};

/// A cloud of an api and a proxy process.
async fn split() -> TestCloud {
    TestCloud::builder(Topology::Split).spawn().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_05_a_login_that_began_at_one_process_is_finished_at_another() {
    let cloud = split().await;
    let second = cloud.another("api", &[]).await;
    let here = Browser::new(&cloud);
    let there = here.through(second.api_addr());
    let authorize = here.begin_login("/devices").await;
    let callback = here.choose(&authorize, "alice").await;
    let answer = there.open_callback(&callback).await.expect(303);
    assert_eq!(answer.header("location"), "/devices");
    assert_eq!(here.me().await, there.me().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_05_of_two_callbacks_at_the_same_moment_exactly_one_signs_in() {
    const ROUNDS: u32 = 100;
    let cloud = split().await;
    let second = cloud.another("api", &[]).await;
    for round in 1..=ROUNDS {
        let here = Browser::new(&cloud);
        let there = here.through(second.api_addr());
        let authorize = here.begin_login("/").await;
        // A person has fifty logins at most.
        let user = ["alice", "bob"][round as usize % 2];
        let callback = here.choose(&authorize, user).await;
        let (one, other) = tokio::join!(
            here.open_callback(&callback),
            there.open_callback(&callback)
        );
        let loser = match (one.status.as_u16(), other.status.as_u16()) {
            (303, 400) => other,
            (400, 303) => one,
            both => panic!("one of them in round {round}: {both:?}"),
        };
        // The provider, which might end the first login too, has not heard of it.
        assert!(loser.text().contains("completed before"), "{loser:?}");
        assert!(here.is_signed_in().await && there.is_signed_in().await);
        let logins: u32 = cloud
            .database()
            .query_row("SELECT count(*) FROM logins", [], |row| row.get(0))
            .expect("count the logins");
        assert_eq!(logins, round);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lo_01_a_login_is_valid_at_every_process_and_ends_at_all_of_them() {
    let cloud = split().await;
    let second = cloud.another("api", &[]).await;
    let here = Browser::sign_in(&cloud, "alice").await;
    let stolen = here.login_cookie();
    let thief = Browser::at(second.api_addr(), cloud.public_host());
    thief.plant_cookie(here.host(), crate::support::LOGIN_COOKIE, &stolen);
    assert_eq!(thief.me().await, here.me().await);
    here.sign_out().await;
    // What a process remembers of a login is void with the next change of the database.
    assert!(!thief.is_signed_in().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pa_03_of_many_exchanges_at_two_processes_exactly_one_wins() {
    let cloud = split().await;
    let second = cloud.another("api", &[]).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, code) = alice.pairing_code().await;
    let mut racers = JoinSet::new();
    for racer in 0..50 {
        let box_ = Anonymous::of(&cloud);
        let box_ = match racer % 2 {
            0 => box_,
            _ => box_.through(second.api_addr()),
        };
        let code = code.clone();
        racers.spawn(async move { box_.exchange(&code).await.status.as_u16() });
    }
    let mut statuses = racers.join_all().await;
    statuses.sort_unstable();
    assert_eq!(statuses.remove(0), 200);
    assert!(statuses.iter().all(|status| *status == 404), "{statuses:?}");
    assert_eq!(alice.devices().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_is_kept_for_when_there_is_a_proxy() {
    let mut cloud = TestCloud::builder(Topology::Split)
        .without_proxy()
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (id, code) = alice.pairing_code().await;
    let box_ = Anonymous::of(&cloud);
    let answer = box_.exchange(&code).await.expect(503);
    let wait: u64 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    let open = alice.get("/api/pairing/codes").send().await.expect(200);
    assert_eq!(open.items()[0]["id"], *id);
    assert_eq!(alice.devices().await.len(), 0);

    cloud.start_proxy().await;
    let paired = box_.exchange(&code).await.expect(200).json();
    let tunnel = format!("ws://{}", cloud.tunnel_addr());
    assert_eq!(paired["tunnel_url"], tunnel);
    box_.exchange(&code).await.expect(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tu_19_the_newest_session_wins_across_proxies() {
    let cloud = TestCloud::builder(Topology::Split)
        .setting("EDGECLOUD__SERVER__DRAIN_TIMEOUT", "1s")
        .spawn()
        .await;
    let second = cloud.another("proxy", &[]).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let ask = async || {
        let answer = alice.forward(&device.id, Method::GET, "/").send().await;
        answer.expect(200).text()
    };
    let old = device.serve(Manner::Says("old")).await;
    alice.wait_for_status(&device.id, "online").await;
    assert_eq!(ask().await, "old");
    let there = device.through(second.tunnel_addr());
    let new = there.serve(Manner::Says("new")).await;
    eventually("the new session answers", async || {
        (ask().await == "new").then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(ask().await, "new");
    }
    old.ended().await;
    assert!(!new.is_ended());
    assert_eq!(ask().await, "new");
    assert_eq!(alice.device(&device.id).await["status"], "online");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_a_device_of_a_killed_proxy_is_offline_because_its_node_is_lost() {
    let mut cloud = split().await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let _served = device.serve(Manner::Says("hello")).await;
    alice.wait_for_status(&device.id, "online").await;
    cloud.crash(Part::Proxy).await;
    let lost = async || {
        let answer = alice.forward(&device.id, Method::GET, "/").send().await;
        let answer = answer.expect_problem(503, "device_offline").json();
        assert_eq!(answer["reason"], "node_lost", "{answer}");
        assert!(answer["last_seen"].is_string(), "{answer}");
    };
    lost().await;
    // A lease lives 15 seconds: its end is moved in the database.
    let changed = cloud
        .database()
        .execute("UPDATE nodes SET lease_expires_at = 1", [])
        .expect("end the lease");
    assert_eq!(changed, 1);
    lost().await;
    let shown = alice.wait_for_status(&device.id, "offline").await;
    assert_eq!(shown["reason"], "node_lost");
}

/// Two proxies behind one tunnel address, as behind a load balancer; the device is at the first.
struct Pair {
    cloud: TestCloud,
    second: Another,
    alice: Browser,
    device: Device,
    origin: Origin,
    first_node: String,
}

impl Pair {
    async fn set(drain_timeout: &str) -> Self {
        let cloud = TestCloud::builder(Topology::Split)
            .setting("EDGECLOUD__SERVER__REUSE_PORT", true)
            .setting("EDGECLOUD__SERVER__DRAIN_TIMEOUT", drain_timeout)
            .spawn()
            .await;
        let alice = Browser::sign_in(&cloud, "alice").await;
        let origin = Origin::spawn().await;
        let device = Device::pair(&cloud, &alice, origin.addr()).await;
        let first_node = node_of(&alice, &device).await;
        let tunnel = cloud.tunnel_addr().to_string();
        let same_address = [("EDGECLOUD__TUNNEL__LISTEN", tunnel.as_str())];
        let second = cloud.another("proxy", &same_address).await;
        Self {
            cloud,
            second,
            alice,
            device,
            origin,
            first_node: first_node.expect("the device is online"),
        }
    }

    async fn open_events(&self) -> (Sender<Bytes>, Streaming) {
        let events = self.origin.drive("events");
        let target = "/do/driven?name=events&type=text/event-stream";
        let request = self.alice.forward(&self.device.id, Method::GET, target);
        let mut answer = request.open().await.expect(200);
        events.send("data: 1\n\n".into()).await.expect("taken");
        answer.read_until("data: 1\n\n").await;
        (events, answer)
    }

    async fn device_moves(&self) {
        eventually("the device is at the other proxy", async || {
            let node = node_of(&self.alice, &self.device).await?;
            (node != self.first_node).then_some(())
        })
        .await;
    }
}

async fn node_of(person: &Browser, device: &Device) -> Option<String> {
    let shown = person.device(&device.id).await;
    shown["session"]["node_id"].as_str().map(str::to_owned)
}

/// Requests that go on until they are asked how they went.
struct Load {
    stop: Arc<AtomicBool>,
    askers: JoinSet<Vec<u16>>,
}

impl Load {
    fn start(person: &Browser, device: &str) -> Self {
        const ASKERS: usize = 3;
        let stop = Arc::new(AtomicBool::new(false));
        let mut askers = JoinSet::new();
        for asker in 0..ASKERS {
            let (person, device) = (person.clone(), device.to_owned());
            let stop = Arc::clone(&stop);
            askers.spawn(async move {
                let mut statuses = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let path = format!("/load/{asker}/{}", statuses.len());
                    let answer = person.forward(&device, Method::GET, &path).send().await;
                    if answer.status == 200 {
                        assert_eq!(answer.json()["target"], path, "its own answer");
                    }
                    statuses.push(answer.status.as_u16());
                }
                statuses
            });
        }
        Self { stop, askers }
    }

    /// Fails the test unless every request succeeded.
    async fn all_succeeded(self) {
        self.stop.store(true, Ordering::Relaxed);
        let statuses = self.askers.join_all().await.concat();
        assert!(statuses.len() > 20, "enough to mean something");
        let failed: Vec<_> = statuses.iter().filter(|status| **status != 200).collect();
        assert!(failed.is_empty(), "{failed:?} of {}", statuses.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_proxy_that_ends_hands_its_devices_over_and_no_request_fails() {
    let mut pair = Pair::set("20s").await;
    let (events, mut answer) = pair.open_events().await;
    let load = Load::start(&pair.alice, &pair.device.id);
    pair.cloud.terminate(Part::Proxy);
    pair.device_moves().await;
    events.send("data: 2\n\n".into()).await.expect("taken");
    answer.read_until("data: 2\n\n").await;
    drop(events);
    assert!(answer.next().await.is_none(), "a clean end");
    let status = pair.cloud.wait_exit(Part::Proxy).await;
    assert_eq!(status.code(), Some(0));
    load.all_succeeded().await;
    pair.alice.wait_for_status(&pair.device.id, "online").await;
    assert!(pair.device.process().output().contains("moving"));
    pair.second.process.check_running();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_stream_that_outlives_the_drain_is_cut_visibly() {
    let mut pair = Pair::set("4s").await;
    let (events, mut answer) = pair.open_events().await;
    pair.cloud.terminate(Part::Proxy);
    pair.device_moves().await;
    events.send("data: 2\n\n".into()).await.expect("taken");
    answer.read_until("data: 2\n\n").await;
    let rest = answer.next().await;
    assert!(matches!(rest, Some(Err(_))), "cut off, visibly: {rest:?}");
    let status = pair.cloud.wait_exit(Part::Proxy).await;
    assert_eq!(status.code(), Some(0));
    let again = pair.alice.forward(&pair.device.id, Method::GET, "/after");
    again.send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_of_role_all_is_told_what_it_needs() {
    let cloud = TestCloud::builder(Topology::All).spawn().await;
    let data_dir = cloud.data_dir();
    let data_dir = data_dir.to_str().expect("a readable path");
    let home = tempfile::TempDir::new().expect("make a directory");
    let second = ["serve", "--dev", "--role", "all", "--data-dir", data_dir];
    let any_port = [
        ("EDGECLOUD__SERVER__API_LISTEN", "127.0.0.1:0"),
        ("EDGECLOUD__TUNNEL__LISTEN", "127.0.0.1:0"),
        ("EDGECLOUD__DEV__ISSUER_LISTEN", "127.0.0.1:0"),
    ];
    let refused = run(home.path(), &second, &any_port).await.expect_code(1);
    assert!(
        refused.stderr.contains("internal.listen"),
        "{}",
        refused.stderr
    );
    Browser::sign_in(&cloud, "alice").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_role_all_that_listen_for_each_other_reach_each_others_devices() {
    let listens = ("EDGECLOUD__INTERNAL__LISTEN", "127.0.0.1:0");
    let cloud = TestCloud::builder(Topology::All)
        .setting(listens.0, listens.1)
        .spawn()
        .await;
    let second = cloud.another("all", &[]).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let here = RawDevice::pair(&cloud, &alice).await;
    let there = RawDevice::pair(&cloud, &alice).await;
    let there = there.through(second.tunnel_addr());
    let _served = (
        here.serve(Manner::Says("here")).await,
        there.serve(Manner::Says("there")).await,
    );
    let mut nodes = HashSet::new();
    for device in [&here, &there] {
        let shown = alice.wait_for_status(&device.id, "online").await;
        nodes.insert(text(&shown["session"]["node_id"]));
    }
    assert_eq!(nodes.len(), 2, "each at its own process");
    for person in [&alice, &alice.through(second.api_addr())] {
        for (device, words) in [(&here, "here"), (&there, "there")] {
            let answer = person.forward(&device.id, Method::GET, "/").send().await;
            assert_eq!(answer.expect(200).text(), words);
        }
    }
}
