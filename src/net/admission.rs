//! Lets so much new work begin as can be done, and says to the rest when to come back. Knows nothing of
//! what the work is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The longest that anybody is told to wait, before the jitter.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Bounds how much begins in a second and how much is being worked on at once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    at_once: usize,
    working: AtomicUsize,
    pace: Mutex<Pace>,
}

impl Admission {
    /// Lets `per_second` begin in a second (the first second's worth at once), and none while `at_once`
    /// are being worked on.
    pub fn new(per_second: usize, at_once: usize) -> Self {
        Self(Arc::new(Inner {
            at_once,
            working: AtomicUsize::new(0),
            pace: Mutex::new(Pace::new(per_second, Instant::now())),
        }))
    }

    /// Begins something new. `random`, spread over the whole of `u64`, is for the jitter.
    ///
    /// # Errors
    /// How long to wait, in whole seconds, when too much is under way.
    pub fn enter(&self, random: u64) -> Result<Entered, Duration> {
        let work = self.resume();
        let now = Instant::now();
        let mut pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = self.0.working.load(Ordering::Relaxed) > self.0.at_once;
        match !is_full && pace.take(now) {
            true => Ok(Entered { work }),
            false => Err(pace.put_off(now, random)),
        }
    }

    /// Goes on with what was let in and has waited for its peer meanwhile. It is never refused, but counts:
    /// nothing new begins while there is too much of it.
    pub fn resume(&self) -> Work {
        self.0.working.fetch_add(1, Ordering::Relaxed);
        Work(Arc::clone(&self.0))
    }
}

/// Counts as being worked on until it is dropped.
#[derive(Debug)]
pub struct Work(Arc<Inner>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Something that was let in.
#[derive(Debug)]
pub struct Entered {
    work: Work,
}

impl Entered {
    /// It was none of those that the rate is for: others need not wait on its account.
    pub fn give_back(self) {
        let inner = &self.work.0;
        let mut pace = inner.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.give_back();
    }
}

/// A bucket that holds a second's worth, and a queue of those who were told to come back: each gets a
/// moment of its own, so that a fleet does not return as a crowd.
#[derive(Debug)]
struct Pace {
    per_second: f64,
    left: f64,
    at: Instant,
    /// When the last of those who were put off has its turn.
    promised: Instant,
}

impl Pace {
    fn new(per_second: usize, now: Instant) -> Self {
        let per_second = per_second as f64;
        Self {
            per_second,
            left: per_second,
            at: now,
            promised: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.per_second);
        self.at = now;
        let has_one = self.left >= 1.0;
        if has_one {
            self.left -= 1.0;
        }
        has_one
    }

    fn give_back(&mut self) {
        self.left = (self.left + 1.0).min(self.per_second);
    }

    /// Whole seconds, at least one, later by up to a half and a second more.
    fn put_off(&mut self, now: Instant, random: u64) -> Duration {
        let turn = self.promised.max(now) + Duration::from_secs_f64(1.0 / self.per_second);
        self.promised = turn.min(now + LONGEST_WAIT);
        let wait = (self.promised - now).as_secs_f64();
        let jitter = (wait / 2.0 + 1.0) * (random as f64 / u64::MAX as f64);
        Duration::from_secs((wait + jitter).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIDDLE: u64 = u64::MAX / 2;

    #[tokio::test(start_paused = true)]
    async fn a_second_lets_a_seconds_worth_in() {
        let admission = Admission::new(3, 100);
        for _ in 0..3 {
            admission.enter(MIDDLE).expect("there is room");
        }
        let wait = admission.enter(MIDDLE).expect_err("that is all");
        assert!(wait >= Duration::from_secs(1), "{wait:?}");
        tokio::time::advance(Duration::from_millis(340)).await;
        admission.enter(MIDDLE).expect("a third of a second later");
        admission.enter(MIDDLE).expect_err("one only");
        tokio::time::advance(Duration::from_secs(60)).await;
        let entered = (0..10).filter(|_| admission.enter(MIDDLE).is_ok()).count();
        assert_eq!(entered, 3, "nothing is saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_begins_while_too_much_is_under_way() {
        let admission = Admission::new(1_000, 2);
        let first = admission.enter(MIDDLE).expect("there is room");
        let second = admission.resume();
        admission.enter(MIDDLE).expect_err("two are under way");
        let third = admission.resume();
        drop(first);
        admission.enter(MIDDLE).expect_err("still two");
        drop((second, third));
        admission.enter(MIDDLE).expect("all is done");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_can_be_taken_again() {
        let admission = Admission::new(1, 100);
        for _ in 0..10 {
            admission
                .enter(MIDDLE)
                .expect("nothing is used up")
                .give_back();
        }
        admission.enter(MIDDLE).expect("there is one");
        admission.enter(MIDDLE).expect_err("no more");
    }

    proptest! {
        #[test]
        fn a_crowd_is_spread_over_the_time_that_it_takes(
            per_second in 1usize..5_000,
            crowd in 1usize..2_000,
            random in prop::collection::vec(any::<u64>(), 2_000),
        ) {
            let now = Instant::now();
            let mut pace = Pace::new(per_second, now);
            let mut last = Duration::ZERO;
            for random in &random[..crowd] {
                let wait = pace.put_off(now, *random);
                prop_assert!(wait >= Duration::from_secs(1));
                prop_assert!(wait <= LONGEST_WAIT * 3 / 2 + Duration::from_secs(1));
                last = wait;
            }
            let takes = Duration::from_secs_f64(crowd as f64 / per_second as f64);
            // Rounding of a billionth at each step.
            prop_assert!(last + Duration::from_millis(1) >= takes.min(LONGEST_WAIT));
        }
    }
}
