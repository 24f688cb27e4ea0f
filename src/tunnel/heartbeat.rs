//! Decides when to ping and when the other side is dead. Pure: the time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// How long an answer may take before it counts as a miss.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Misses in a row that end the tunnel.
const MISSES: u8 = 2;

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Beat {
    /// Nothing before this time.
    Wait(Instant),
    /// Send a ping with this nonce.
    Ping([u8; 8]),
    /// Give the tunnel up.
    Dead,
}

#[derive(Debug)]
struct Outstanding {
    nonce: [u8; 8],
    sent_at: Instant,
    heard_since: bool,
}

/// The liveness of one tunnel.
#[derive(Debug)]
pub struct Heartbeat {
    interval: Duration,
    next_ping: Instant,
    outstanding: Option<Outstanding>,
    misses: u8,
}

impl Heartbeat {
    /// Starts with a ping at once, so that the round-trip time is known early.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            next_ping: now,
            outstanding: None,
            misses: 0,
        }
    }

    /// Any received byte is a sign of life.
    pub fn heard(&mut self) {
        self.misses = 0;
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.heard_since = true;
        }
    }

    /// Takes the answer to a ping; returns the round-trip time when it answers the current one.
    pub fn pong(&mut self, payload: &[u8], now: Instant) -> Option<Duration> {
        let outstanding = self.outstanding.take_if(|ping| ping.nonce == payload)?;
        self.misses = 0;
        self.next_ping = outstanding.sent_at + self.interval;
        Some(now.duration_since(outstanding.sent_at))
    }

    /// Decides; `nonce` is asked for when a ping is due.
    pub fn tick(&mut self, now: Instant, nonce: impl FnOnce() -> [u8; 8]) -> Beat {
        if let Some(outstanding) = &self.outstanding {
            let deadline = outstanding.sent_at + ANSWER_WITHIN;
            if now < deadline {
                return Beat::Wait(deadline);
            }
            if outstanding.heard_since {
                // Busy rather than dead: the answer waits behind data.
                self.next_ping = (outstanding.sent_at + self.interval).max(now);
            } else {
                self.misses += 1;
                self.next_ping = now;
            }
            self.outstanding = None;
            if self.misses >= MISSES {
                return Beat::Dead;
            }
        }
        if now < self.next_ping {
            return Beat::Wait(self.next_ping);
        }
        let nonce = nonce();
        self.outstanding = Some(Outstanding {
            nonce,
            sent_at: now,
            heard_since: false,
        });
        Beat::Ping(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(15);

    fn secs(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    #[test]
    fn an_answer_gives_the_round_trip_time_and_schedules_the_next_ping() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(INTERVAL, start);
        assert_eq!(heartbeat.tick(start, || [1; 8]), Beat::Ping([1; 8]));
        assert_eq!(heartbeat.tick(start, || [2; 8]), Beat::Wait(secs(start, 5)));
        let rtt = heartbeat.pong(&[1; 8], secs(start, 1));
        assert_eq!(rtt, Some(Duration::from_secs(1)));
        assert_eq!(
            heartbeat.tick(secs(start, 2), || [3; 8]),
            Beat::Wait(secs(start, 15))
        );
        assert_eq!(
            heartbeat.tick(secs(start, 15), || [4; 8]),
            Beat::Ping([4; 8])
        );
    }

    #[test]
    fn a_silent_peer_is_dead_after_two_misses_in_a_row() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(INTERVAL, start);
        heartbeat.tick(start, || [1; 8]);
        assert_eq!(
            heartbeat.tick(secs(start, 5), || [2; 8]),
            Beat::Ping([2; 8])
        );
        assert_eq!(heartbeat.tick(secs(start, 10), || [3; 8]), Beat::Dead);
    }

    #[test]
    fn any_byte_counts_as_life_but_gives_no_round_trip_time() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(INTERVAL, start);
        heartbeat.tick(start, || [1; 8]);
        heartbeat.heard();
        assert_eq!(
            heartbeat.tick(secs(start, 5), || [2; 8]),
            Beat::Wait(secs(start, 15))
        );
    }

    #[test]
    fn a_wrong_or_late_nonce_measures_nothing() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(INTERVAL, start);
        heartbeat.tick(start, || [1; 8]);
        assert_eq!(heartbeat.pong(&[9; 8], secs(start, 1)), None);
        assert_eq!(heartbeat.pong(&[], secs(start, 1)), None);
        heartbeat.tick(secs(start, 5), || [2; 8]);
        assert_eq!(heartbeat.pong(&[1; 8], secs(start, 6)), None);
        assert!(heartbeat.pong(&[2; 8], secs(start, 6)).is_some());
    }
}
