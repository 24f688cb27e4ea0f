//! Limits on how often something may fail, per address and for all, in bounded memory.

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

/// Counts failures per address (IPv6 by /64) and of all together.
pub struct FailureLimit {
    per_address: f64,
    all: f64,
    addresses: Cache<IpAddr, Arc<Mutex<Bucket>>>,
    everybody: Mutex<Bucket>,
}

impl FailureLimit {
    /// Failures per minute of one address and of all.
    pub fn new(per_address: usize, all: usize) -> Self {
        let (per_address, all) = (per_address as f64, all as f64);
        Self {
            per_address,
            all,
            addresses: Cache::builder()
                .max_capacity(MAX_ADDRESSES)
                .time_to_idle(WINDOW * 2)
                .build(),
            everybody: Mutex::new(Bucket::full(all)),
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
        if let Err(wait) = take(&self.everybody, self.all) {
            give_back(&own, self.per_address);
            return Err(wait);
        }
        Ok(Attempt { limit: self, own })
    }
}

/// An attempt that counts as a failure unless it succeeds.
pub struct Attempt<'a> {
    limit: &'a FailureLimit,
    own: Arc<Mutex<Bucket>>,
}

impl Attempt<'_> {
    /// The attempt was no failure.
    pub fn succeeded(self) {
        give_back(&self.own, self.limit.per_address);
        give_back(&self.limit.everybody, self.limit.all);
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
    async fn an_address_that_fails_too_often_waits_while_others_go_on() {
        let limit = FailureLimit::new(3, 100);
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
        let limit = FailureLimit::new(2, 100);
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
        let limit = FailureLimit::new(2, 5);
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
}
