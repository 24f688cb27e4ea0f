//! A device that a maker would write in Go: hashicorp/yamux over gorilla/websocket, in `tests/interop`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use http::Method;
use serde_json::Value;
use tempfile::TempDir;

use super::browser::Browser;
use super::cloud::TestCloud;
use super::http::Request;
use super::process::Process;
use super::wait::eventually;

/// Where Go's own packages install it, beside PATH.
const USUAL_PLACE: &str = "/usr/local/go/bin/go";

/// A paired device in Go, which runs.
pub struct GoDevice {
    /// Its id.
    pub id: String,
    home: TempDir,
    more: Vec<&'static str>,
    process: Process,
    beside: SocketAddr,
}

impl GoDevice {
    /// Pairs a new device with the tenant of `owner`, with more arguments for its program, and waits
    /// until it is online.
    pub async fn pair(cloud: &TestCloud, owner: &Browser, more: &[&'static str]) -> Self {
        let (_, code) = owner.pairing_code().await;
        let home = TempDir::new().expect("make a directory for a device");
        let pairing = ["--cloud", cloud.public_url(), "--pair", &code];
        let mut process = start(&home, &[&pairing, more].concat());
        let id = process
            .prints("its id", |line| {
                line.strip_prefix("device ").map(str::to_owned)
            })
            .await;
        let beside = listener_of(&mut process).await;
        owner.wait_for_status(&id, "online").await;
        Self {
            id,
            home,
            more: more.to_vec(),
            process,
            beside,
        }
    }

    /// The program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts the program again, which has ended; it knows its identity.
    pub async fn start_again(&mut self) {
        self.process = start(&self.home, &self.more);
        self.beside = listener_of(&mut self.process).await;
    }

    /// What the program has written down of the device.
    pub fn identity(&self) -> Value {
        let text = std::fs::read(state_file(&self.home)).expect("the device keeps its identity");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// Gives the program another identity, for its next start.
    pub fn write_identity(&self, identity: &Value) {
        std::fs::write(state_file(&self.home), identity.to_string()).expect("write a file");
    }

    /// A request that does not go through the cloud.
    pub fn beside(&self, method: Method, target: &str) -> Request {
        Request::new(self.beside, &self.beside.to_string(), method, target)
    }

    /// What the device knows of its tunnels.
    pub async fn stats(&self) -> Value {
        let answer = self.beside(Method::GET, "/stats").send().await;
        answer.expect(200).json()
    }

    /// A number of [`GoDevice::stats`].
    pub async fn stat(&self, name: &str) -> u64 {
        let stats = self.stats().await;
        let value = stats[name].as_u64();
        value.unwrap_or_else(|| panic!("no number {name} in {stats}"))
    }

    /// Waits until a number of [`GoDevice::stats`] is at least so large.
    pub async fn wait_for_stat(&self, name: &str, at_least: u64) {
        eventually(&format!("{name} of the device is {at_least}"), async || {
            (self.stat(name).await >= at_least).then_some(())
        })
        .await;
    }

    /// Lets the requests go that the device holds under a key.
    pub async fn release(&self, key: &str) {
        let target = format!("/release?key={key}");
        self.beside(Method::POST, &target).send().await.expect(200);
    }
}

async fn listener_of(process: &mut Process) -> SocketAddr {
    process
        .prints("where it listens", |line| {
            line.strip_prefix("beside ")?.parse().ok()
        })
        .await
}

fn state_file(home: &TempDir) -> PathBuf {
    home.path().join("device.json")
}

fn start(home: &TempDir, more: &[&str]) -> Process {
    let state = state_file(home);
    let state = state.to_str().expect("a readable path");
    let args = [&["--state", state], more].concat();
    Process::of_program(built(), "the Go device", home.path(), &args, &[])
}

/// The program, built once.
fn built() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-device");
        let output = Command::new(go())
            .args(["build", "-trimpath", "-buildvcs=false", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop"))
            .output()
            .expect("run go build");
        assert!(
            output.status.success(),
            "go build: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        program.to_str().expect("a readable path").to_owned()
    })
}

/// The Go command.
///
/// # Panics
/// When it is not installed; says how to install it.
fn go() -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("go"))
        .chain([USUAL_PLACE.into()])
        .find(|file| file.is_file());
    let file = found.unwrap_or_else(|| {
        panic!("Go is missing: sudo apt-get install golang-go, or from https://go.dev/dl to /usr/local/go")
    });
    file.to_str().expect("a readable path").to_owned()
}
