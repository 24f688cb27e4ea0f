//! Keeps one tunnel open: connects, follows the cloud's wish to move, waits as [`Backoff`] says.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::AgentStatus;
use super::backoff::{Backoff, Outcome};
use super::connect::{ConnectError, connect};
use super::link::Links;
use super::session::{Device, Notice, Session};
use super::state::{State, StateDir};
use crate::tunnel::{CloseReason, EndReason, TunnelSettings};
use crate::types::random_bytes;

/// Tunnels that may drain beside the one in use.
const MAX_DRAINING: usize = 3;
/// How long the tunnels may take to close when the agent stops.
const STOP_GRACE: Duration = Duration::from_secs(4);

/// Everything that keeping a tunnel takes.
pub struct Supervisor {
    pub links: Links,
    pub state: State,
    /// Where a new token may be found.
    pub dir: StateDir,
    /// Asks for another look there.
    pub reload: Arc<Notify>,
    pub settings: TunnelSettings,
    pub device: Arc<Device>,
    pub status: watch::Sender<AgentStatus>,
}

/// The tunnels of a device: the last is in use, the others drain.
#[derive(Default)]
struct Sessions {
    held: Vec<Session>,
    tasks: JoinSet<()>,
}

impl Supervisor {
    /// Works until `stop`, then closes what is open.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut sessions = Sessions::default();
        let mut backoff = Backoff::default();
        let mut wait = Duration::ZERO;
        loop {
            let turn = async {
                tokio::select! {
                    () = sleep(wait) => {}
                    () = self.reload.notified() => {}
                }
                self.read_state();
                self.hold_a_tunnel(&mut sessions).await
            };
            let (outcome, why) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                turn = turn => turn,
            };
            wait = backoff.wait_after(outcome, u64::from_ne_bytes(random_bytes()));
            self.report(outcome, &why, wait);
        }
        self.status.send_replace(AgentStatus::Stopped);
        sessions.close().await;
    }

    /// Takes a token that was written to the state file meanwhile. What cannot be used changes nothing.
    fn read_state(&mut self) {
        match self.dir.load() {
            Ok(Some(found)) if found.device_id == self.state.device_id => self.state = found,
            Ok(Some(found)) => {
                let device = &found.device_id;
                tracing::warn!(%device, "the state file is another device's; it is not used");
            }
            Ok(None) => tracing::warn!("the state file is gone; what it said is used on"),
            Err(error) => tracing::warn!(%error, "the state file is not used"),
        }
    }

    /// Connects and stays until it is time for another tunnel; tells why it is.
    async fn hold_a_tunnel(&self, sessions: &mut Sessions) -> (Outcome, String) {
        let clock = &self.settings.clock;
        let connected = match connect(&self.links, &self.state, clock).await {
            Ok(connected) => connected,
            Err(error) => return (outcome_of(&error), error.to_string()),
        };
        let began = Instant::now();
        let device = Arc::clone(&self.device);
        let session = sessions.begin(connected, &self.settings, device);
        loop {
            let notice = tokio::select! {
                notice = session.notices.recv() => notice,
                () = self.reload.notified() => {
                    let (after, lived) = (Duration::ZERO, began.elapsed());
                    return (Outcome::Moved { after, lived }, "asked to".to_owned());
                }
            };
            let Some(notice) = notice else {
                break;
            };
            match notice {
                Notice::Connected(node) => {
                    let device = &self.state.device_id;
                    let node = node.as_ref().map_or("unnamed", |node| node.as_str());
                    tracing::info!(%device, node, "connected");
                    self.status.send_replace(AgentStatus::Connected);
                }
                Notice::Move(after) => {
                    let lived = began.elapsed();
                    return (
                        Outcome::Moved { after, lived },
                        "the cloud moves it".to_owned(),
                    );
                }
                Notice::Revoked => {
                    session.tunnel.close(CloseReason::Done);
                    return (Outcome::Refused, "revoked".to_owned());
                }
            }
        }
        let reason = session.tunnel.ended().await;
        let outcome = match reason {
            EndReason::ClosedByPeer(4401) => Outcome::Refused,
            _ => Outcome::Lost(began.elapsed()),
        };
        (outcome, reason_of(&reason).to_owned())
    }

    /// One line for what happened, and what comes next.
    fn report(&self, outcome: Outcome, why: &str, wait: Duration) {
        let device = &self.state.device_id;
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        match outcome {
            Outcome::Moved { .. } => {
                return tracing::info!(%device, wait_ms, "moving to another tunnel");
            }
            Outcome::Refused => {
                self.status.send_replace(AgentStatus::Parked);
                tracing::error!(
                    %device, reason = why, wait_ms,
                    "parked: the device was removed or has a new token; put that into its state file and \
                     send SIGHUP, or remove the file and pair again. Until then it tries once an hour"
                );
                return;
            }
            Outcome::Lost(_) => tracing::warn!(%device, reason = why, wait_ms, "disconnected"),
            Outcome::Failed | Outcome::AskedToWait(_) => {
                tracing::warn!(%device, reason = why, wait_ms, "no tunnel");
            }
        }
        self.status.send_replace(AgentStatus::Connecting);
    }
}

impl Sessions {
    /// Begins a tunnel; the ones before it have nothing new to expect.
    fn begin(
        &mut self,
        connected: super::connect::Connected,
        settings: &TunnelSettings,
        device: Arc<Device>,
    ) -> &mut Session {
        while self.tasks.try_join_next().is_some() {}
        self.held.retain(|session| !session.tunnel.is_ended());
        for older in &self.held {
            older.followed.cancel();
        }
        if self.held.len() > MAX_DRAINING {
            let oldest = self.held.remove(0);
            oldest.tunnel.close(CloseReason::Done);
        }
        let session = Session::begin(connected, settings, device, &mut self.tasks);
        self.held.push(session);
        self.held.last_mut().expect("one was just added")
    }

    async fn close(mut self) {
        for session in &self.held {
            session.tunnel.close(CloseReason::Done);
        }
        let closed = async { while self.tasks.join_next().await.is_some() {} };
        // What is not closed by then is cut.
        let _ = timeout(STOP_GRACE, closed).await;
    }
}

fn outcome_of(error: &ConnectError) -> Outcome {
    match error {
        ConnectError::Unauthorized => Outcome::Refused,
        ConnectError::Later { after, .. } => Outcome::AskedToWait(*after),
        _ => Outcome::Failed,
    }
}

/// The words of [`EndReason::as_str`] are the cloud's; on the device its peer is the cloud.
fn reason_of(reason: &EndReason) -> &'static str {
    match reason {
        EndReason::ClosedByPeer(1012) => "cloud_restarting",
        EndReason::ClosedByPeer(4401) => "revoked",
        EndReason::ClosedByPeer(_) => "closed_by_cloud",
        _ => reason.as_str(),
    }
}
