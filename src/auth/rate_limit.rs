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
                .time_to_idle(WINDOW)
                .build(),
            everybody: Mutex::new(Bucket::full(all)),
        }
    }

    fn bucket(&self, address: IpAddr) -> Arc<Mutex<Bucket>> {
        let full = || Arc::new(Mutex::new(Bucket::full(self.per_address)));
        self.addresses.get_with(network(address), full)
    }

    /// Whether an address may try now; else how long it must wait.
    ///
    /// # Errors
    /// The time to wait, at least a second.
    pub fn check(&self, address: IpAddr) -> Result<(), Duration> {
        wait_for(&self.everybody, self.all)?;
        wait_for(&self.bucket(address), self.per_address)
    }

    /// Notes a failure.
    pub fn failed(&self, address: IpAddr) {
        for bucket in [&*self.bucket(address), &self.everybody] {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).left -= 1.0;
        }
    }
}

fn wait_for(bucket: &Mutex<Bucket>, size: f64) -> Result<(), Duration> {
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    bucket.fill(size, Instant::now());
    if bucket.left >= 1.0 {
        return Ok(());
    }
    let seconds = (1.0 - bucket.left) / size * WINDOW.as_secs_f64();
    Err(Duration::from_secs_f64(
        seconds.clamp(1.0, WINDOW.as_secs_f64()),
    ))
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
        for _ in 0..3 {
            assert_eq!(limit.check(guesser), Ok(()));
            limit.failed(guesser);
        }
        let wait = limit.check(guesser).expect_err("too many");
        assert!(wait >= Duration::from_secs(1) && wait <= WINDOW);
        assert!(limit.check(neighbour).is_err(), "the same /64");
        assert_eq!(limit.check(other), Ok(()));
        tokio::time::advance(wait + Duration::from_millis(10)).await;
        assert_eq!(limit.check(guesser), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn all_addresses_together_have_a_limit() {
        let limit = FailureLimit::new(10, 5);
        for last in 0..5 {
            limit.failed(IpAddr::from([192, 0, 2, last]));
        }
        assert!(limit.check(IpAddr::from([198, 51, 100, 1])).is_err());
    }
}
