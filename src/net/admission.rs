//! Lets so much new work begin as can be done, and says to the rest when to come back. Knows nothing of
//! what the work is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// The longest that anybody is told to wait, before the jitter.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long somebody stands in line before being told to come back: no longer than coming back takes at least.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many stand in line for each that may be worked on.
const IN_LINE: usize = 4;
/// How many get their turn in a second at each place where one is worked on. Whoever is promised a turn too early
/// comes in vain, and what that costs is lost to the others.
const TURNS_PER_PLACE: usize = 4;

/// Bounds how much begins in a second and how much is being worked on at once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    at_once: usize,
    working: AtomicUsize,
    in_line: AtomicUsize,
    /// Calls the first in line.
    done: Notify,
    pace: Mutex<Pace>,
}

impl Admission {
    /// Lets `per_second` begin in a second (the first second's worth at once), and none while `at_once`
    /// are being worked on.
    pub fn new(per_second: usize, at_once: usize) -> Self {
        Self(Arc::new(Inner {
            at_once,
            working: AtomicUsize::new(0),
            in_line: AtomicUsize::new(0),
            done: Notify::new(),
            pace: Mutex::new(Pace::new(per_second, at_once, Instant::now())),
        }))
    }

    /// Begins something new, after a second in line at most. `random`, spread over the whole of `u64`, is for the
    /// jitter.
    ///
    /// # Errors
    /// How long to wait, in whole seconds, when too much is under way.
    pub async fn enter(&self, random: u64) -> Result<Entered, Duration> {
        let nobody_before = self.0.in_line.load(Ordering::Relaxed) == 0;
        let decided = match nobody_before {
            true => self.try_enter(),
            false => Err(Refusal::Full),
        };
        match decided {
            Ok(entered) => return Ok(entered),
            Err(Refusal::TooFast) => {}
            Err(Refusal::Full) => {
                if let Some(_place) = InLine::at_the_end_of(&self.0)
                    && let Ok(Ok(entered)) = timeout(PATIENCE, self.stand_in_line()).await
                {
                    return Ok(entered);
                }
            }
        }
        Err(self.0.pace().put_off(Instant::now(), random))
    }

    async fn stand_in_line(&self) -> Result<Entered, Refusal> {
        loop {
            let done = self.0.done.notified();
            match self.try_enter() {
                Err(Refusal::Full) => done.await,
                decided => return decided,
            }
        }
    }

    fn try_enter(&self) -> Result<Entered, Refusal> {
        let working = &self.0.working;
        if working.fetch_add(1, Ordering::Relaxed) >= self.0.at_once {
            working.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Full);
        }
        let work = Work(Arc::clone(&self.0));
        match self.0.pace().take(Instant::now()) {
            true => Ok(Entered { work }),
            false => Err(Refusal::TooFast),
        }
    }

    /// Goes on with what was let in and has waited for its peer meanwhile. It is never refused, but counts:
    /// nothing new begins while there is too much of it.
    pub fn resume(&self) -> Work {
        self.0.working.fetch_add(1, Ordering::Relaxed);
        Work(Arc::clone(&self.0))
    }
}

impl Inner {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nothing new may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Too much is being worked on.
    Full,
    /// Enough has begun in this second.
    TooFast,
}

/// A place in line.
struct InLine<'a>(&'a Inner);

impl<'a> InLine<'a> {
    /// `None` when the line is as long as it may be.
    fn at_the_end_of(inner: &'a Inner) -> Option<Self> {
        let place = Self(inner);
        let before = inner.in_line.fetch_add(1, Ordering::Relaxed);
        (before < IN_LINE * inner.at_once).then_some(place)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.in_line.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts as being worked on until it is dropped.
#[derive(Debug)]
pub struct Work(Arc<Inner>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::Relaxed);
        self.0.done.notify_one();
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
        self.work.0.pace().give_back();
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
    /// How many of them have their turn in a second.
    turns: f64,
}

impl Pace {
    fn new(per_second: usize, at_once: usize, now: Instant) -> Self {
        let per_second = per_second as f64;
        Self {
            per_second,
            left: per_second,
            at: now,
            promised: now,
            turns: per_second.min((TURNS_PER_PLACE * at_once) as f64),
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
        let turn = self.promised.max(now) + Duration::from_secs_f64(1.0 / self.turns);
        self.promised = turn.min(now + LONGEST_WAIT);
        let wait = (self.promised - now).as_secs_f64();
        let jitter = (wait / 2.0 + 1.0) * (random as f64 / u64::MAX as f64);
        Duration::from_secs((wait + jitter).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use proptest::prelude::*;

    const MIDDLE: u64 = u64::MAX / 2;

    #[tokio::test(start_paused = true)]
    async fn a_second_lets_a_seconds_worth_in() {
        let admission = Admission::new(3, 100);
        for _ in 0..3 {
            admission.enter(MIDDLE).await.expect("there is room");
        }
        let wait = admission.enter(MIDDLE).await.expect_err("that is all");
        assert!(wait >= Duration::from_secs(1), "{wait:?}");
        tokio::time::advance(Duration::from_millis(340)).await;
        admission
            .enter(MIDDLE)
            .await
            .expect("a third of a second later");
        admission.enter(MIDDLE).await.expect_err("one only");
        tokio::time::advance(Duration::from_secs(60)).await;
        for _ in 0..3 {
            admission.enter(MIDDLE).await.expect("there is room");
        }
        admission
            .enter(MIDDLE)
            .await
            .expect_err("nothing is saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_begins_while_too_much_is_under_way() {
        let admission = Admission::new(1_000, 2);
        let first = admission.enter(MIDDLE).await.expect("there is room");
        let second = admission.resume();
        admission
            .enter(MIDDLE)
            .await
            .expect_err("two are under way");
        let third = admission.resume();
        drop(first);
        admission.enter(MIDDLE).await.expect_err("still two");
        drop((second, third));
        admission.enter(MIDDLE).await.expect("all is done");
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_in_line_gets_the_first_place_that_is_free() {
        let admission = Admission::new(1_000, 1);
        let first = admission.enter(MIDDLE).await.expect("there is room");
        let mut waiting = std::pin::pin!(admission.enter(MIDDLE));
        assert!(waiting.as_mut().now_or_never().is_none(), "in line");
        drop(first);
        let second = waiting.await.expect("its turn");
        let began = Instant::now();
        admission.enter(MIDDLE).await.expect_err("nothing ends");
        assert_eq!(began.elapsed(), PATIENCE);
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_has_an_end() {
        let admission = Admission::new(1_000, 2);
        let _all = [admission.resume(), admission.resume()];
        let mut line: Vec<_> = (0..2 * IN_LINE)
            .map(|_| Box::pin(admission.enter(MIDDLE)))
            .collect();
        for waiting in &mut line {
            assert!(waiting.as_mut().now_or_never().is_none(), "in line");
        }
        let refused = admission.enter(MIDDLE).now_or_never();
        refused.expect("at once").expect_err("too long a line");
        drop(line);
        let again = admission.enter(MIDDLE).now_or_never();
        assert!(again.is_none(), "they have left");
    }

    #[test]
    fn turns_are_not_promised_faster_than_places_become_free() {
        let now = Instant::now();
        let mut pace = Pace::new(10_000, 100, now);
        let waits: Vec<_> = (0..4_000).map(|_| pace.put_off(now, 0)).collect();
        assert_eq!(waits[398], Duration::from_secs(1));
        assert_eq!(waits[3_998], Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_can_be_taken_again() {
        let admission = Admission::new(1, 100);
        for _ in 0..10 {
            admission
                .enter(MIDDLE)
                .await
                .expect("nothing is used up")
                .give_back();
        }
        admission.enter(MIDDLE).await.expect("there is one");
        admission.enter(MIDDLE).await.expect_err("no more");
    }

    proptest! {
        #[test]
        fn a_crowd_is_spread_over_the_time_that_it_takes(
            per_second in 1usize..5_000,
            crowd in 1usize..2_000,
            random in prop::collection::vec(any::<u64>(), 2_000),
        ) {
            let now = Instant::now();
            let mut pace = Pace::new(per_second, 2_000, now);
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
