//! Limits on how often something may be tried or fail, per address and for all, in bounded memory.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

/// Addresses that are remembered at once; at the limit the least used is forgotten.
const MAX_ADDRESSES: u64 = 100_000;
const WINDOW: Duration = Duration::from_secs(60);

/// A bucket that holds a minute's worth and fills evenly.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(size: f64) -> Self {
        Self {
            left: size,
            at: Instant::now(),
        }
    }

    fn fill(&mut self, size: f64, now: Instant) {
        let share = now.duration_since(self.at).as_secs_f64() / WINDOW.as_secs_f64();
        self.left = (self.left + share * size).min(size);
        self.at = now;
    }
}

/// Counts attempts, or only those that fail, per address (IPv6 by /64) and perhaps of all together.
/// Each process counts for itself.
pub struct RateLimit {
    per_address: f64,
    addresses: Cache<IpAddr, Arc<Mutex<Bucket>>>,
    all: Option<(f64, Mutex<Bucket>)>,
}

impl RateLimit {
    /// So many per minute of one address.
    pub fn per_address(per_minute: usize) -> Self {
        Self {
            per_address: per_minute as f64,
            addresses: Cache::builder()
                .max_capacity(MAX_ADDRESSES)
                .time_to_idle(WINDOW * 2)
                .build(),
            all: None,
        }
    }

    /// And so many per minute of all addresses together.
    #[must_use]
    pub fn and_of_all(self, per_minute: usize) -> Self {
        let size = per_minute as f64;
        Self {
            all: Some((size, Mutex::new(Bucket::full(size)))),
            ..self
        }
    }

    fn bucket(&self, address: IpAddr) -> Arc<Mutex<Bucket>> {
        let full = || Arc::new(Mutex::new(Bucket::full(self.per_address)));
        self.addresses.get_with(network(address), full)
    }

    /// Takes one attempt of an address, before it is known how it ends: attempts at the same moment
    /// must not all find the last one free.
    ///
    /// # Errors
    /// The time to wait, at least a second; then nothing was taken.
    pub fn attempt(&self, address: IpAddr) -> Result<Attempt<'_>, Duration> {
        let own = self.bucket(address);
        take(&own, self.per_address)?;
        if let Some((size, everybody)) = &self.all
            && let Err(wait) = take(everybody, *size)
        {
            give_back(&own, self.per_address);
            return Err(wait);
        }
        Ok(Attempt { limit: self, own })
    }

    /// Counts what has happened at an address already. Who never fails is never held up by those
    /// who do.
    ///
    /// # Errors
    /// As [`RateLimit::attempt`].
    pub fn count(&self, address: IpAddr) -> Result<(), Duration> {
        self.attempt(address).map(|_counted| ())
    }
}

/// An attempt that counts unless it succeeds.
pub struct Attempt<'a> {
    limit: &'a RateLimit,
    own: Arc<Mutex<Bucket>>,
}

impl Attempt<'_> {
    /// The attempt was no failure.
    pub fn succeeded(self) {
        give_back(&self.own, self.limit.per_address);
        if let Some((size, everybody)) = &self.limit.all {
            give_back(everybody, *size);
        }
    }
}

fn take(bucket: &Mutex<Bucket>, size: f64) -> Result<(), Duration> {
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    bucket.fill(size, Instant::now());
    if bucket.left >= 1.0 {
        bucket.left -= 1.0;
        return Ok(());
    }
    let seconds = (1.0 - bucket.left) / size * WINDOW.as_secs_f64();
    Err(Duration::from_secs_f64(
        seconds.clamp(1.0, WINDOW.as_secs_f64()),
    ))
}

fn give_back(bucket: &Mutex<Bucket>, size: f64) {
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    bucket.left = (bucket.left + 1.0).min(size);
}

/// One customer has at least a whole /64 of IPv6 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rl_01_an_address_that_fails_too_often_waits_while_others_go_on() {
        let limit = RateLimit::per_address(3).and_of_all(100);
        let guesser: IpAddr = "2001:db8::1".parse().expect("an address");
        let neighbour: IpAddr = "2001:db8::ffff".parse().expect("an address");
        let other: IpAddr = "2001:db8:0:1::1".parse().expect("an address");
        // All at the same moment: each takes before any has ended.
        let attempts: Vec<_> = (0..10).map(|_| limit.attempt(guesser)).collect();
        assert_eq!(attempts.iter().filter(|attempt| attempt.is_ok()).count(), 3);
        drop(attempts);
        let wait = limit.attempt(guesser).err().expect("too many");
        assert!(wait >= Duration::from_secs(1) && wait <= WINDOW);
        assert!(limit.attempt(neighbour).is_err(), "the same /64");
        assert!(limit.attempt(other).is_ok());
        tokio::time::advance(wait + Duration::from_millis(10)).await;
        assert!(limit.attempt(guesser).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn success_costs_nothing() {
        let limit = RateLimit::per_address(2).and_of_all(100);
        let address = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..50 {
            let Ok(attempt) = limit.attempt(address) else {
                panic!("nothing was used up");
            };
            attempt.succeeded();
        }
        assert!(limit.attempt(address).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn rl_03_an_address_at_its_limit_takes_nothing_from_the_others() {
        let limit = RateLimit::per_address(2).and_of_all(5);
        let guesser = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..100 {
            drop(limit.attempt(guesser));
        }
        for last in 2..5 {
            assert!(limit.attempt(IpAddr::from([198, 51, 100, last])).is_ok());
        }
        assert!(
            limit.attempt(IpAddr::from([198, 51, 100, 9])).is_err(),
            "all together"
        );
    }

    #[test]
    fn rl_02_no_more_addresses_are_remembered_than_there_is_room_for() {
        let limit = RateLimit::per_address(1);
        let many = u32::try_from(MAX_ADDRESSES).expect("fewer") * 2;
        for number in 0..many {
            let address = IpAddr::V4(number.into());
            limit.count(address).expect("the first of its address");
        }
        limit.addresses.run_pending_tasks();
        assert!(limit.addresses.entry_count() <= MAX_ADDRESSES);
        let last = IpAddr::V4((many + 1).into());
        limit.count(last).expect("the first of its address");
        limit.count(last).expect_err("the second");
    }
}
