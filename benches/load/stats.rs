//! Percentiles, and how results leave the tool.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Durations that were measured, in microseconds.
#[derive(Debug, Default)]
pub struct Samples(Vec<u32>);

impl Samples {
    /// Takes one in; anything over an hour counts as that.
    pub fn push(&mut self, duration: Duration) {
        self.0
            .push(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX));
    }

    /// Takes all of another one in.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The usual percentiles, in microseconds; nothing but `null` when there are no samples.
    pub fn summary(mut self) -> Value {
        self.0.sort_unstable();
        json!({
            "p50_us": self.percentile(50.0),
            "p90_us": self.percentile(90.0),
            "p99_us": self.percentile(99.0),
            "max_us": self.0.last(),
        })
    }

    /// The smallest sample that at least so many of a hundred do not exceed. The samples must be sorted.
    fn percentile(&self, percent: f64) -> Option<u32> {
        let rank = (self.0.len() as f64 * percent / 100.0).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied()
    }
}

/// Prints one result.
pub fn print(result: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{result}")
        .and_then(|()| out.flush())
        .context("write a result")
}
