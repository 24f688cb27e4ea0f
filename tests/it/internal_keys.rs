//! The internal API while its keys are changed, and under garbage.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use edgecloud::keys::KeyRing;
use edgecloud::session::internal::credential::{Covered, sign};
use edgecloud::types::{Clock, NodeId};
use http::Method;
use nix::sys::signal::Signal;
use secrecy::SecretString;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::{
    Browser, Manner, Part, RawConnection, RawDevice, Request, ServedDevice, TestCloud, Topology,
    eventually, text,
};

const OLD: &str = "the old internal secret of these tests, long enough";
const NEW: &str = "the new internal secret of these tests, long enough";
const READ_AGAIN: &str = "settings were read again";

/// Two processes whose internal secret is in a file, and a device that is reached from one through
/// the other.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: RawDevice,
    _served: ServedDevice,
    node: NodeId,
    tenant: String,
    file: PathBuf,
    _home: TempDir,
}

fn write(file: &Path, secrets: &[&str]) {
    let text = format!("[internal]\nsecret = {secrets:?}\n");
    std::fs::write(file, text).expect("write the settings");
}

impl Scene {
    async fn set() -> Self {
        let home = TempDir::new().expect("make a directory");
        let file = home.path().join("edgecloud.toml");
        write(&file, &[OLD]);
        let cloud = TestCloud::builder(Topology::Split)
            .setting("EDGECLOUD_CONFIG", file.display())
            // Each request is a new call of the internal API.
            .setting("EDGECLOUD__LIMITS__IDLE_STREAMS_PER_SESSION", 0)
            .spawn()
            .await;
        let alice = Browser::sign_in(&cloud, "alice").await;
        let device = RawDevice::pair(&cloud, &alice).await;
        let served = device.serve(Manner::Says("hello")).await;
        let shown = alice.wait_for_status(&device.id, "online").await;
        Self {
            node: text(&shown["session"]["node_id"]).parse().expect("an id"),
            tenant: text(&alice.me().await["tenant"]["id"]),
            _served: served,
            cloud,
            alice,
            device,
            file,
            _home: home,
        }
    }

    /// Gives both processes new secrets, one after the other.
    async fn rotate(&mut self, secrets: &[&str]) {
        write(&self.file, secrets);
        for part in [Part::Proxy, Part::Api] {
            let process = self.cloud.process(part);
            let times = |output: &str| output.matches(READ_AGAIN).count();
            let before = times(&process.output());
            process.signal(Signal::SIGHUP);
            eventually("the settings were read again", async || {
                process.check_running();
                (times(&process.output()) > before).then_some(())
            })
            .await;
        }
    }

    fn path(&self) -> String {
        format!("/internal/v1/sessions/{}", self.device.id)
    }

    fn credential(&self, secret: &str, method: &Method, path: &str) -> String {
        let keys = KeyRing::from_secrets(&[SecretString::from(secret.to_owned())]);
        let covered = Covered {
            method,
            path,
            node: &self.node,
            tenant: &self.tenant,
            epoch: "",
        };
        sign(&keys.expect("long enough"), &Clock::system(), covered)
    }

    /// What a call with a secret is answered.
    async fn status_with(&self, secret: &str) -> u16 {
        let addr = self.cloud.internal_addr();
        let path = self.path();
        let credential = self.credential(secret, &Method::GET, &path);
        let call = Request::new(addr, &addr.to_string(), Method::GET, &path)
            .header("authorization", &credential)
            .header("edgecloud-tenant", &self.tenant);
        call.send().await.status.as_u16()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_04_internal_keys_are_rotated_under_load_without_an_error() {
    let mut scene = Scene::set().await;
    let (served, is_over) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let mut load = JoinSet::new();
    for _ in 0..4 {
        let (alice, device) = (scene.alice.clone(), scene.device.id.clone());
        let (served, is_over) = (Arc::clone(&served), Arc::clone(&is_over));
        load.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                // A POST: nothing tries it again behind the caller's back.
                let answer = alice.forward(&device, Method::POST, "/").send().await;
                assert_eq!(answer.expect(200).text(), "hello");
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let goes_on = async || {
        let before = served.load(Ordering::Relaxed);
        eventually("more requests are answered", async || {
            (served.load(Ordering::Relaxed) >= before + 20).then_some(())
        })
        .await;
    };
    goes_on().await;
    assert_eq!(scene.status_with(OLD).await, 200);
    assert_eq!(scene.status_with(NEW).await, 401);
    // First everybody learns the new one, then everybody uses it, then the old one goes.
    for (secrets, old, new) in [
        (&[OLD, NEW][..], 200, 200),
        (&[NEW, OLD], 200, 200),
        (&[NEW], 401, 200),
    ] {
        scene.rotate(secrets).await;
        goes_on().await;
        assert_eq!(scene.status_with(OLD).await, old, "{}", secrets.len());
        assert_eq!(scene.status_with(NEW).await, new, "{}", secrets.len());
    }
    is_over.store(true, Ordering::Relaxed);
    // A request that failed has ended its task with a panic.
    load.join_all().await;
}

/// Numbers that look random and are the same in each run (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    /// Changes, removes, doubles and puts in a few bytes.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        const PIECES: &[&[u8]] = &[
            b"\r\n",
            b"\0",
            b"\xff\xc3",
            b",",
            b"v1",
            b"%00",
            b"..",
            b": ",
            b"\xc3\xa4",
            b"99999999999999999999",
            b"-1",
            b"HTTP/1.1",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Authorization: Edgecloud-HMAC v1,1,2,3\r\n",
        ];
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(24)).min(bytes.len());
            match self.below(4) {
                0 => bytes[at] = self.next().to_le_bytes()[0],
                1 if end - at < bytes.len() => drop(bytes.drain(at..end)),
                2 => {
                    let doubled = bytes[at..end].to_vec();
                    bytes.splice(at..at, doubled);
                }
                _ => {
                    let piece = PIECES[self.below(PIECES.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_04_garbage_makes_the_internal_api_neither_panic_nor_end() {
    const SEED: u64 = 0x0005_eed0_f1e5_0001;
    const ROUNDS: usize = 600;
    let mut scene = Scene::set().await;
    let mut numbers = Numbers(SEED);
    for round in 0..ROUNDS {
        let (method, path) = match round % 4 {
            0 => (Method::GET, "/internal/v1/sessions".to_owned()),
            1 => (Method::GET, scene.path()),
            2 => (Method::GET, "/metrics".to_owned()),
            _ => (Method::POST, format!("{}/stream", scene.path())),
        };
        let credential = scene.credential(OLD, &method, &path);
        let mut bytes = format!(
            "{method} {path} HTTP/1.1\r\nHost: node\r\nAuthorization: {credential}\r\n\
             Edgecloud-Tenant: {}\r\nEdgecloud-Epoch: 1\r\nConnection: upgrade\r\n\
             Upgrade: edgecloud-stream\r\n\r\n",
            scene.tenant
        )
        .into_bytes();
        if round % 8 == 7 {
            // A stream that is open gets garbage for a request.
            bytes.extend(std::iter::repeat_with(|| numbers.next().to_le_bytes()[0]).take(512));
        } else {
            numbers.spoil(&mut bytes);
        }
        let mut caller = RawConnection::open(scene.cloud.internal_addr()).await;
        caller.send_what_is_taken(&bytes).await;
    }
    // What is not contained in one connection shows here; so does what is.
    assert_eq!(scene.status_with(OLD).await, 200);
    let answer = scene.alice.forward(&scene.device.id, Method::GET, "/");
    answer.send().await.expect(200);
    let process = scene.cloud.process(Part::Proxy);
    process.check_running();
    assert!(!process.output().contains("panicked"), "seed {SEED:#x}");
}
