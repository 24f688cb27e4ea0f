//! What is open on behalf of somebody, so that it can be cut when what it rests on ends: the login,
//! the place in the tenant, the service client, the device's place in the tenant.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::types::{DeviceId, IdMap, LoginId, ServiceClientId, TenantId, UserId};

/// How long an end is remembered: a request that was checked just before it may open its stream just
/// after it.
const REMEMBER_FOR: Duration = Duration::from_secs(60);
/// Ends that are remembered at once.
const MAX_REMEMBERED: u64 = 100_000;

/// Something that an open stream rests on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Right {
    /// A signed-in browser.
    Login(LoginId),
    /// A person's role in a tenant.
    Member(UserId, TenantId),
    /// A program's registration.
    ServiceClient(ServiceClientId),
    /// A device's place in its tenant.
    Device(DeviceId),
    /// The tenant: what is open in it is counted.
    Tenant(TenantId),
}

#[derive(Default)]
struct Open {
    streams: IdMap<Right, IdMap<u64, CancellationToken>>,
    next: u64,
    /// When a right ended last.
    last_end: Option<Instant>,
}

impl Open {
    fn count(&self, right: &Right) -> usize {
        self.streams.get(right).map_or(0, IdMap::len)
    }
}

struct Inner {
    open: Mutex<Open>,
    ended: Cache<Right, Instant>,
}

/// Everything that is open in this process. Cheap to clone.
#[derive(Clone)]
pub struct LiveStreams(Arc<Inner>);

impl Default for LiveStreams {
    fn default() -> Self {
        Self(Arc::new(Inner {
            open: Mutex::default(),
            ended: Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_live(REMEMBER_FOR)
                .build(),
        }))
    }
}

/// Something open; taken off the list when dropped.
pub struct LiveStream {
    streams: LiveStreams,
    number: u64,
    rights: Vec<Right>,
    ended: CancellationToken,
}

impl LiveStreams {
    fn open_streams(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something on the list that was found to be allowed at `checked`; it has ended already
    /// when a right of it has ended since.
    pub fn open(&self, rights: Vec<Right>, checked: Instant) -> LiveStream {
        self.enlist(self.open_streams(), rights, checked)
    }

    /// As [`LiveStreams::open`], for something in a tenant; `None` when the tenant has `max` things open
    /// in this process.
    pub fn open_in(
        &self,
        tenant: &TenantId,
        max: usize,
        mut rights: Vec<Right>,
        checked: Instant,
    ) -> Option<LiveStream> {
        let tenant = Right::Tenant(tenant.clone());
        let open = self.open_streams();
        if open.count(&tenant) >= max {
            return None;
        }
        rights.push(tenant);
        Some(self.enlist(open, rights, checked))
    }

    fn enlist(
        &self,
        mut open: MutexGuard<'_, Open>,
        rights: Vec<Right>,
        checked: Instant,
    ) -> LiveStream {
        let ended = CancellationToken::new();
        // Under the lock: an end comes either before this look or after the entries below.
        let too_late = open.last_end.is_some_and(|at| at >= checked)
            && rights
                .iter()
                .any(|right| self.0.ended.get(right).is_some_and(|at| at >= checked));
        if too_late {
            ended.cancel();
        }
        open.next += 1;
        let number = open.next;
        for right in &rights {
            let of_right = open.streams.entry(right.clone()).or_default();
            of_right.insert(number, ended.clone());
        }
        drop(open);
        LiveStream {
            streams: self.clone(),
            number,
            rights,
            ended,
        }
    }

    /// Cuts everything that rests on a right.
    pub fn end(&self, right: Right) {
        let mut open = self.open_streams();
        let cut = open.streams.remove(&right);
        let now = Instant::now();
        open.last_end = Some(now);
        self.0.ended.insert(right, now);
        drop(open);
        for ended in cut.into_iter().flat_map(IdMap::into_values) {
            ended.cancel();
        }
    }

    /// The logins that have something open.
    pub fn logins(&self) -> Vec<LoginId> {
        let open = self.open_streams();
        let rights = open.streams.keys();
        rights
            .filter_map(|right| match right {
                Right::Login(login) => Some(login.clone()),
                _ => None,
            })
            .collect()
    }

    /// How much is open that rests on a right.
    pub fn count(&self, right: &Right) -> usize {
        self.open_streams().count(right)
    }
}

impl LiveStream {
    /// Waits until it has to be cut.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// As [`LiveStream::ended`], for a task that does not hold the stream.
    pub fn ended_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        self.ended.clone().cancelled_owned()
    }

    /// Whether it has to be cut.
    pub fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        let mut open = self.streams.open_streams();
        for right in &self.rights {
            if let Some(of_right) = open.streams.get_mut(right) {
                of_right.remove(&self.number);
                if of_right.is_empty() {
                    open.streams.remove(right);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ending_a_login_cuts_its_streams_and_no_others_and_leaves_nothing_behind() {
        let streams = LiveStreams::default();
        let (alice, bob, device) = (
            Right::Login(LoginId::random()),
            Right::Login(LoginId::random()),
            Right::Device(DeviceId::random()),
        );
        let open =
            |login: &Right| streams.open(vec![login.clone(), device.clone()], Instant::now());
        let checked = Instant::now();
        let hers = [open(&alice), open(&alice)];
        let his = open(&bob);
        assert_eq!(streams.count(&alice), 2);
        streams.end(alice.clone());
        assert!(hers.iter().all(LiveStream::is_ended) && !his.is_ended());
        let late = streams.open(vec![alice, device.clone()], checked);
        assert!(late.is_ended(), "checked before the end, opened after it");
        let other = open(&bob);
        drop((hers, late));
        assert!(!other.is_ended());
        streams.end(device);
        assert!(other.is_ended() && his.is_ended());
        drop((other, his));
        assert!(streams.open_streams().streams.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn tn_09_a_tenant_has_so_much_open_and_no_more() {
        let streams = LiveStreams::default();
        let (one, other) = (TenantId::random(), TenantId::random());
        let open = |tenant| streams.open_in(tenant, 2, Vec::new(), Instant::now());
        let first = open(&one).expect("the first");
        let second = open(&one).expect("the second");
        assert!(open(&one).is_none());
        assert!(open(&other).is_some(), "another tenant has its own share");
        drop(first);
        assert!(open(&one).is_some(), "what has ended counts no more");
        drop(second);
        assert!(streams.open_streams().streams.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_that_was_given_again_after_its_end_holds() {
        let streams = LiveStreams::default();
        let member = Right::Member(UserId::random(), TenantId::random());
        streams.end(member.clone());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!streams.open(vec![member], Instant::now()).is_ended());
    }
}
