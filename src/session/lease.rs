//! When a node must stop trusting itself. Pure: the time is passed in.
//!
//! Other processes count a node as dead 15 s after its last renewal by the database's clock. The
//! node measures by its own monotonic clock from *before* each renewal was sent and gives up at
//! 10 s, so that it always stops first.

use std::time::Duration;

use tokio::time::Instant;

/// How often a node renews.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How long others count on a node after a renewal.
pub const LEASE: Duration = Duration::from_secs(15);
/// How long a node counts on itself after a renewal.
pub const FENCE_AFTER: Duration = Duration::from_secs(10);

/// Whether a node may take new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// The lease was renewed lately.
    Held,
    /// It was not: others may count this node as dead, so it takes nothing new.
    Fenced,
}

/// A node's view of its own lease.
#[derive(Debug, Clone)]
pub struct Lease {
    renewed_at: Instant,
    /// The only process on its database: nobody else could take over.
    sole: bool,
}

impl Lease {
    /// A lease that was taken by a request sent at `sent_at`.
    pub fn taken(sent_at: Instant, sole: bool) -> Self {
        Self {
            renewed_at: sent_at,
            sole,
        }
    }

    /// Notes a successful renewal by a request that was sent at `sent_at`.
    pub fn renewed(&mut self, sent_at: Instant) {
        self.renewed_at = self.renewed_at.max(sent_at);
    }

    /// Whether the node may take new work at `now`.
    pub fn state(&self, now: Instant) -> LeaseState {
        match self.sole || now.duration_since(self.renewed_at) < FENCE_AFTER {
            true => LeaseState::Held,
            false => LeaseState::Fenced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sole_process_never_fences() {
        let start = Instant::now();
        let lease = Lease::taken(start, true);
        assert_eq!(
            lease.state(start + Duration::from_secs(3600)),
            LeaseState::Held
        );
    }

    proptest! {
        /// Whatever the schedule of renewals, delays and losses: at no time does a node trust
        /// itself when others may already count it dead.
        #[test]
        fn a_node_stops_before_others_count_it_dead(
            // Gap before the request, time until the database applied it, then until the answer.
            schedule in proptest::collection::vec(
                (0u64..8_000, 0u64..6_000, 0u64..6_000, any::<bool>()), 1..40),
            probes in proptest::collection::vec(0u64..400_000, 1..40),
        ) {
            let start = Instant::now();
            let mut lease = Lease::taken(start, false);
            let mut now = start;
            // (time, whether the node holds itself alive, until when others do)
            let mut others_until = start + LEASE;
            let mut history = vec![(start, lease.clone(), others_until)];
            for (gap, apply, answer, lost) in schedule {
                now += Duration::from_millis(gap);
                let sent_at = now;
                let applied = now + Duration::from_millis(apply);
                now = applied + Duration::from_millis(answer);
                others_until = others_until.max(applied + LEASE);
                history.push((applied, lease.clone(), others_until));
                if !lost {
                    lease.renewed(sent_at);
                }
                history.push((now, lease.clone(), others_until));
            }
            for probe in probes {
                let at = start + Duration::from_millis(probe);
                let Some((_, lease, others_until)) =
                    history.iter().rev().find(|(since, ..)| *since <= at) else { continue };
                if lease.state(at) == LeaseState::Held {
                    prop_assert!(at < *others_until);
                }
            }
        }
    }
}
