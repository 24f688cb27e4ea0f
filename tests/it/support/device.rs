//! A device: the real agent, in front of an origin of the test.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use tempfile::TempDir;

use super::browser::{Browser, text};
use super::cloud::TestCloud;
use super::process::Process;
use super::wait::eventually;

/// A device with a running agent.
pub struct Device {
    /// Its id.
    pub id: String,
    home: TempDir,
    origin: SocketAddr,
    process: Process,
}

impl Device {
    /// Pairs a new device with the tenant of `owner`, and waits until it is online.
    pub async fn pair(cloud: &TestCloud, owner: &Browser, origin: SocketAddr) -> Self {
        Self::pair_with(cloud, owner, origin, &[]).await
    }

    /// As [`Device::pair`], with more arguments.
    pub async fn pair_with(
        cloud: &TestCloud,
        owner: &Browser,
        origin: SocketAddr,
        more: &[&str],
    ) -> Self {
        let known: Vec<_> = owner.devices().await;
        let (_, code) = owner.pairing_code().await;
        let home = TempDir::new().expect("make a directory for a device");
        let mut pairing = vec!["--cloud", cloud.public_url(), "--pair", &code];
        pairing.extend(more);
        let mut process = start(&home, origin, &pairing);
        let id = eventually("the new device is listed", async || {
            process.check_running();
            let devices = owner.devices().await;
            let is_known = |id: &str| known.iter().any(|known| known["id"] == *id);
            devices
                .iter()
                .map(|device| text(&device["id"]))
                .find(|id| !is_known(id))
        })
        .await;
        let device = Self {
            id,
            home,
            origin,
            process,
        };
        owner.wait_for_status(&device.id, "online").await;
        device
    }

    /// The agent.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Where the device keeps its identity.
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.home)
    }

    /// Starts the agent again, which has ended; it knows its identity.
    pub fn start_again(&mut self) {
        self.process = start(&self.home, self.origin, &[]);
    }

    /// Starts the agent again, which has ended, with more arguments.
    pub fn start_again_with(&mut self, args: &[&str]) {
        self.process = start(&self.home, self.origin, args);
    }
}

fn state_dir(home: &TempDir) -> PathBuf {
    home.path().join("state")
}

fn start(home: &TempDir, origin: SocketAddr, more: &[&str]) -> Process {
    let mut args: Vec<OsString> = vec!["agent".into(), "--origin".into()];
    args.push(format!("http://{origin}").into());
    args.push("--state-dir".into());
    args.push(state_dir(home).into());
    args.extend(more.iter().map(OsString::from));
    Process::spawn("agent", home.path(), &args, &[])
}
