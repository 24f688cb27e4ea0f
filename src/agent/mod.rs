//! The program on the device: pairs it once, then keeps a tunnel to the cloud and serves its
//! streams from the device's own HTTP server.
//!
//! It accepts no connection and follows no redirect; it connects to the cloud, to the origin and to
//! what `--allow-tcp` lists, and to nothing else, whatever the cloud asks for.

mod address;
mod backoff;
mod config;
mod connect;
mod connect_head;
mod link;
mod pairing;
mod sample_origin;
mod serve;
mod session;
mod splice;
mod state;
mod supervisor;
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests end with their runtime, which owns their tasks"
)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use address::{Address, InvalidAddress};
pub use config::AgentConfig;
pub use connect::upgraded_websocket;
pub use link::{Exchange, Link, LinkError, Links, TrustError, host_header, shown};
pub use pairing::PairingError;
pub use sample_origin::SampleOrigin;
pub use state::StateError;

use config::is_loop;
use serve::Routes;
use session::Device;
use state::{State, StateDir};
use supervisor::Supervisor;

use crate::tunnel::{Side, TunnelSettings, WindowBudget};
use crate::types::{Clock, DeviceId};

/// Time between two heartbeats of the device; the cloud has its own.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The most streams that a proxy can be configured to open: the tunnel itself must bear them.
const TUNNEL_STREAMS: usize = 16_384;
/// Bytes by which the windows of all tunnels may grow together.
const WINDOW_BUDGET: usize = 16 * 1024 * 1024;
/// Largest WebSocket message that is taken, in bytes.
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;

/// Why the agent cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The identity on disk cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The certificates to trust cannot be read.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The cloud did not take the device.
    #[error(transparent)]
    Pairing(#[from] PairingError),
    /// There is no identity, and not enough to get one.
    #[error("the device is not paired ({file} does not exist): pass {missing}")]
    NotPaired {
        /// Where the identity would be.
        file: PathBuf,
        /// The flags that are missing.
        missing: &'static str,
    },
    /// The origin is the cloud that the device is paired with.
    #[error("the origin {0} is the cloud itself: requests would run in a circle")]
    Loop(String),
}

/// How the agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentStatus {
    /// A tunnel is being made, now or after a wait; an older one may still drain.
    Connecting,
    /// The device can be reached through the cloud.
    Connected,
    /// The cloud refuses the device; it is asked again once an hour.
    Parked,
    /// The agent was asked to end.
    Stopped,
}

/// A device with an identity, ready to connect.
pub struct Agent(Supervisor);

impl Agent {
    /// Takes the device's identity from disk, or pairs the device.
    ///
    /// # Errors
    /// When there is no identity in the end. The pairing code is unused unless the cloud took it.
    pub async fn prepare(config: AgentConfig, clock: Clock) -> Result<Self, AgentError> {
        let links = Links::new(config.ca_file.as_deref())?;
        let state = identity(&config, &links, &clock).await?;
        if is_loop(&config.origin, &state.cloud) {
            return Err(AgentError::Loop(shown(&config.origin)));
        }
        let device = Device {
            origin_host: config.origin_host(),
            routes: Routes {
                origin: Address::of_url(&config.origin).expect("checked with the command line"),
                allow_tcp: config.allow_tcp,
            },
            max_streams: config.max_streams,
        };
        let settings = TunnelSettings {
            side: Side::Device,
            subprotocol: true,
            heartbeat: HEARTBEAT,
            max_streams: TUNNEL_STREAMS,
            window_budget: WINDOW_BUDGET,
            process_budget: WindowBudget::new(WINDOW_BUDGET),
            max_message_bytes: MAX_MESSAGE_BYTES,
            clock,
        };
        Ok(Self(Supervisor {
            links,
            state,
            dir: StateDir::new(config.state_dir),
            reload: Arc::default(),
            settings,
            device: Arc::new(device),
            status: watch::Sender::new(AgentStatus::Connecting),
        }))
    }

    /// The id that the cloud gave the device.
    pub fn device_id(&self) -> &DeviceId {
        &self.0.state.device_id
    }

    /// How the agent is doing, now and later.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.0.status.subscribe()
    }

    /// Asks for a look at the state file, and for a tunnel with the token that is there now: the one
    /// before serves until that is open.
    pub fn reload(&self) -> impl Fn() + Send + 'static {
        let reload = Arc::clone(&self.0.reload);
        move || reload.notify_one()
    }

    /// Keeps the tunnel until `stop`, then closes it.
    ///
    /// # Errors
    /// None yet: whatever happens to the tunnel, another one is tried.
    pub async fn run(self, stop: CancellationToken) -> Result<(), AgentError> {
        self.0.run(stop).await;
        Ok(())
    }
}

async fn identity(config: &AgentConfig, links: &Links, clock: &Clock) -> Result<State, AgentError> {
    let dir = StateDir::new(config.state_dir.clone());
    if let Some(state) = dir.load()? {
        let device = &state.device_id;
        if config.pair.is_some() {
            tracing::warn!(%device, "the device is paired already; --pair is ignored");
        }
        if config
            .cloud
            .as_ref()
            .is_some_and(|cloud| *cloud != state.cloud)
        {
            let cloud = shown(&state.cloud);
            tracing::warn!(%device, %cloud, "the device belongs to this cloud; --cloud is ignored");
        }
        return Ok(state);
    }
    let not_paired = |missing| AgentError::NotPaired {
        file: dir.file(),
        missing,
    };
    let (cloud, code) = match (&config.cloud, &config.pair) {
        (Some(cloud), Some(code)) => (cloud, code),
        (Some(_), None) => return Err(not_paired("--pair CODE too")),
        (None, Some(_)) => return Err(not_paired("--cloud URL too")),
        (None, None) => return Err(not_paired("--cloud URL and --pair CODE")),
    };
    if is_loop(&config.origin, cloud) {
        return Err(AgentError::Loop(shown(&config.origin)));
    }
    let reservation = dir.reserve()?;
    let state = pairing::pair(links, cloud, code, clock).await?;
    reservation.commit(&state)?;
    tracing::info!(device = %state.device_id, cloud = %shown(cloud), "paired");
    Ok(state)
}
