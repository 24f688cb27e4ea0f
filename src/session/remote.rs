//! A session whose tunnel ends in another process.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;

use super::internal::InternalClient;
use super::{Handle, SessionError, SessionStream, Summary};
use crate::session::internal::Target;
use crate::types::Timestamp;

/// A session that was found in the directory.
pub struct RemoteHandle {
    /// `None`: the handle only describes the session.
    forwarder: Option<(InternalClient, Target)>,
    snapshot: Mutex<Summary>,
    closed: AtomicBool,
}

impl RemoteHandle {
    /// A handle on a session; without a forwarder it cannot open streams or close.
    pub fn new(summary: Summary, forwarder: Option<(InternalClient, Target)>) -> Self {
        Self {
            forwarder,
            snapshot: Mutex::new(summary),
            closed: AtomicBool::new(false),
        }
    }
}

impl Handle for RemoteHandle {
    fn open_stream(&self) -> BoxFuture<'_, Result<SessionStream, SessionError>> {
        Box::pin(async {
            if self.is_closed() {
                return Err(SessionError::SessionClosed);
            }
            match &self.forwarder {
                Some((client, target)) => client.open_stream(target).await,
                None => Err(SessionError::NotSupported),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), SessionError>> {
        Box::pin(async {
            if self.closed.swap(true, Ordering::AcqRel) {
                return Ok(());
            }
            match &self.forwarder {
                Some((client, target)) => client.close_session(target.clone()).await,
                None => Err(SessionError::NotSupported),
            }
        })
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn summary(&self) -> Summary {
        self.snapshot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn record_heartbeat(&self, at: Timestamp) {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        snapshot.last_heartbeat = snapshot.last_heartbeat.max(Some(at));
    }
}
