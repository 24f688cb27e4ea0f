//! `agent`: the program on the device.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::{Failure, small_runtime};
use crate::agent::{Agent, AgentConfig, AgentError};
use crate::cli::AgentArgs;
use crate::config::{LogConfig, environment};
use crate::runtime::{Asked, Signals};
use crate::telemetry::Telemetry;
use crate::types::Clock;

/// Runs the agent until a signal.
pub fn run(args: AgentArgs) -> Result<(), Failure> {
    let config = AgentConfig::from_args(args, default_state_dir())
        .map_err(|mistakes| Failure::Usage(mistakes.to_string()))?;
    Telemetry::start(&LogConfig {
        level: "info".to_owned(),
        ..LogConfig::default()
    });
    small_runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let stop = CancellationToken::new();
        let agent = tokio::select! {
            agent = Agent::prepare(config, Clock::system()) => agent.map_err(failure)?,
            () = asked_to_stop(&mut signals, || {}) => return Ok(()),
        };
        let reload = agent.reload();
        let running = agent.run(stop.clone());
        let stopping = async {
            asked_to_stop(&mut signals, reload).await;
            stop.cancel();
            // A second signal does not wait for a polite end.
            asked_to_stop(&mut signals, || {}).await;
        };
        tokio::select! {
            ended = running => Ok(ended?),
            () = stopping => Ok(()),
        }
    })
}

/// What another command line would mend is wrong usage.
fn failure(error: AgentError) -> Failure {
    match error {
        AgentError::NotPaired { .. } | AgentError::Trust(_) | AgentError::Loop(_) => {
            Failure::Usage(error.to_string())
        }
        AgentError::State(_) | AgentError::Pairing(_) => error.into(),
    }
}

async fn asked_to_stop(signals: &mut Signals, reload: impl Fn()) {
    while signals.next().await == Asked::Reload {
        reload();
    }
}

/// `$XDG_STATE_HOME/edgecloud`, by default `~/.local/state/edgecloud` (XDG Base Directory).
fn default_state_dir() -> Option<PathBuf> {
    let environment = environment();
    let value = |wanted: &str| {
        let found = environment.iter().find(|(name, _)| name == wanted);
        found
            .map(|(_, value)| PathBuf::from(value))
            .filter(|path| path.is_absolute())
    };
    let state_home = value("XDG_STATE_HOME").or_else(|| Some(value("HOME")?.join(".local/state")));
    Some(state_home?.join("edgecloud"))
}
