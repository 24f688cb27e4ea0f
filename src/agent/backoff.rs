//! When to try again. Pure: how things went, how long they lasted and the random bits are passed in.

use std::time::Duration;

/// Upper end of the first wait after a failure.
pub const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Upper end of every wait after many failures.
pub const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long a tunnel must have lived for the failures before it to be forgotten.
pub const GOOD_SESSION: Duration = Duration::from_secs(60);
/// The most that the cloud can make a device wait.
pub const LONGEST_ASKED: Duration = Duration::from_secs(3600);
/// How long a device waits whose token is refused.
pub const PARKED: Duration = Duration::from_secs(3600);

/// How an attempt, or the tunnel that came of it, went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was no tunnel.
    Failed,
    /// There was no tunnel, and the cloud said when to come back.
    AskedToWait(Duration),
    /// There was a tunnel for this long.
    Lost(Duration),
    /// The cloud asked for another tunnel.
    Moved {
        /// How long to wait first.
        after: Duration,
        /// How long the tunnel has lived so far.
        lived: Duration,
    },
    /// The device is not welcome.
    Refused,
}

/// Exponential backoff with full jitter between [`FIRST_WAIT`] and [`LONGEST_WAIT`].
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait now. `random` is spread over the whole of `u64`.
    pub fn wait_after(&mut self, outcome: Outcome, random: u64) -> Duration {
        match outcome {
            Outcome::Failed => self.fail(random),
            Outcome::Lost(lived) => {
                self.forget_after(lived);
                self.fail(random)
            }
            // Never sooner than asked, and not all devices of a fleet at the same moment.
            Outcome::AskedToWait(asked) => {
                let asked = asked.clamp(FIRST_WAIT, LONGEST_ASKED);
                (asked + share(asked / 8, random)).min(LONGEST_ASKED)
            }
            // The cloud has spread the fleet already. Only one that moves a device again and again
            // is slowed down; the device stays reachable meanwhile.
            Outcome::Moved { after, lived } => {
                self.forget_after(lived);
                let asked = after.min(LONGEST_ASKED);
                match lived < GOOD_SESSION {
                    true => self.fail(random).max(asked),
                    false => asked,
                }
            }
            Outcome::Refused => PARKED,
        }
    }

    fn forget_after(&mut self, lived: Duration) {
        if lived >= GOOD_SESSION {
            self.failures = 0;
        }
    }

    fn fail(&mut self, random: u64) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let ceiling = FIRST_WAIT.saturating_mul(factor).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        share(ceiling, random)
    }
}

/// A part of `whole`: nothing at 0, nearly all at the largest `random`.
fn share(whole: Duration, random: u64) -> Duration {
    let nanos = whole.as_nanos().saturating_mul(u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcomes() -> impl Strategy<Value = Outcome> {
        let time = (0..=u64::MAX / 2).prop_map(Duration::from_nanos);
        prop_oneof![
            Just(Outcome::Failed),
            time.clone().prop_map(Outcome::AskedToWait),
            time.clone().prop_map(Outcome::Lost),
            (time.clone(), time).prop_map(|(after, lived)| Outcome::Moved { after, lived }),
            Just(Outcome::Refused),
        ]
    }

    proptest! {
        #[test]
        fn every_wait_is_within_its_bounds(
            history in prop::collection::vec((outcomes(), any::<u64>()), 1..100),
        ) {
            let mut backoff = Backoff::default();
            for (outcome, random) in history {
                let wait = backoff.wait_after(outcome, random);
                match outcome {
                    Outcome::Failed | Outcome::Lost(_) => prop_assert!(wait <= LONGEST_WAIT),
                    Outcome::AskedToWait(asked) => {
                        prop_assert!(wait >= asked.min(LONGEST_ASKED));
                        prop_assert!((FIRST_WAIT..=LONGEST_ASKED).contains(&wait));
                    }
                    Outcome::Moved { after, lived } => {
                        let asked = after.min(LONGEST_ASKED);
                        prop_assert!(wait == asked || lived < GOOD_SESSION);
                        prop_assert!(wait >= asked && wait <= asked.max(LONGEST_WAIT));
                    }
                    Outcome::Refused => prop_assert_eq!(wait, PARKED),
                }
            }
        }

        #[test]
        fn the_ceiling_doubles_from_the_first_wait_to_the_longest(failures in 0usize..200) {
            let mut backoff = Backoff::default();
            let mut last = Duration::ZERO;
            for _ in 0..=failures {
                last = backoff.wait_after(Outcome::Failed, u64::MAX);
            }
            let doubled = FIRST_WAIT.saturating_mul(1 << failures.min(20));
            let ceiling = doubled.min(LONGEST_WAIT);
            prop_assert!(ceiling - last <= Duration::from_nanos(1), "{last:?} of {ceiling:?}");
        }

        #[test]
        fn the_jitter_is_full(random in any::<u64>()) {
            let mut backoff = Backoff::default();
            for _ in 0..20 {
                backoff.wait_after(Outcome::Failed, 0);
            }
            let wait = backoff.wait_after(Outcome::Failed, random).as_secs_f64();
            let expected = LONGEST_WAIT.as_secs_f64() * (random as f64 / u64::MAX as f64);
            prop_assert!((wait - expected).abs() < 0.001);
        }

        #[test]
        fn only_a_good_session_makes_the_failures_forgotten(
            failures in 3usize..50,
            lived in 0u64..120,
        ) {
            let mut backoff = Backoff::default();
            for _ in 0..failures {
                backoff.wait_after(Outcome::Failed, 0);
            }
            let lived = Duration::from_secs(lived);
            let wait = backoff.wait_after(Outcome::Lost(lived), u64::MAX);
            prop_assert_eq!(wait <= FIRST_WAIT, lived >= GOOD_SESSION);
        }
    }
}
