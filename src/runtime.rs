//! Who owns the tasks of a process, and how it ends.
//!
//! `stop` begins the end: nothing new is accepted, what is under way may finish. `abort` is the
//! deadline: what is still there is cut.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks and the end of one process (or, in tests, of one of several in a process).
#[derive(Clone, Default)]
pub struct Lifecycle {
    /// Cancelled when nothing new is to be accepted.
    pub stop: CancellationToken,
    /// Cancelled when everything is to be cut.
    pub abort: CancellationToken,
    /// Cancelled once everything listens.
    pub ready: CancellationToken,
    /// A task that must not end has ended.
    pub failed: CancellationToken,
    tasks: TaskTracker,
    listeners: TaskTracker,
}

impl Lifecycle {
    /// Runs a task of this process, until `abort` at the latest.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                () = task => {}
            }
        })
    }

    /// Runs a task that the process cannot do without: when it ends before `stop`, the process does.
    pub fn spawn_vital(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let lifecycle = self.clone();
        self.spawn(async move {
            task.await;
            if !lifecycle.stop.is_cancelled() {
                tracing::error!(task = name, "a vital task has ended; the process stops");
                lifecycle.failed.cancel();
                lifecycle.stop.cancel();
            }
        })
    }

    /// Runs a listener: a vital task that ends by itself after `stop`, when what it has accepted is
    /// finished.
    pub fn spawn_listener(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let listener = self.listeners.track_future(task);
        self.spawn_vital(name, listener);
    }

    /// Waits until all listeners have finished what they had accepted.
    pub async fn served(&self) {
        self.listeners.close();
        self.listeners.wait().await;
    }

    /// Whether new work is welcome.
    pub fn is_ready(&self) -> bool {
        self.ready.is_cancelled() && !self.stop.is_cancelled()
    }

    /// Waits until all tasks have ended.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The signals that a process listens to.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM, SIGINT: end.
    Stop,
    /// SIGHUP: read again what can be read again.
    Reload,
}

impl Signals {
    /// Starts listening; from now on signals do not end the process by themselves.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}
