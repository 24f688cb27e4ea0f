//! Small requests in closed loops: how many a second, and how long each takes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::block_on;
use super::http::{Connection, Target};
use super::stats::{Samples, print};

/// Failures in a row after which a connection's loop gives up.
const MAX_FAILURES: u32 = 20;

/// Arguments of `rate`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Connections at once, with one request at a time on each.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How long to send requests before that, in seconds; nothing when their number is given.
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Ends after so many requests in all, whatever the time.
    #[arg(long)]
    requests: Option<usize>,
    /// Requests a second in all, at regular times; without it each follows the answer to the one before. A request
    /// that has to wait for the one before counts from when it was due.
    #[arg(long)]
    paced: Option<f64>,
    /// A new connection for each request.
    #[arg(long)]
    close: bool,
    /// Threads that share the connections.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// What one loop, or all of them, have seen.
#[derive(Debug, Default)]
struct Seen {
    samples: Samples,
    bytes: u64,
    /// All requests that succeeded, whenever that was.
    successes: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Seen {
    fn extend(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.bytes += other.bytes;
        self.successes += other.successes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// When the loops begin to count and when they end.
#[derive(Debug, Clone, Copy)]
struct Times {
    from: Instant,
    to: Instant,
    /// Requests of one loop.
    most: usize,
    /// Time from one request of a loop to the next, if they are paced.
    pace: Option<Duration>,
}

/// Runs the loops and prints what they have seen.
pub fn run(args: Args) -> Result<()> {
    let threads = args.threads.clamp(1, args.connections.max(1));
    let warmup = match args.requests {
        Some(_) => 0.0,
        None => args.warmup,
    };
    let from = Instant::now() + Duration::from_secs_f64(warmup);
    let to = match args.requests {
        Some(_) => from + Duration::from_secs(24 * 3600),
        None => from + Duration::from_secs_f64(args.seconds),
    };
    let most = args
        .requests
        .map_or(usize::MAX, |all| all.div_ceil(args.connections));
    let pace = args
        .paced
        .map(|all| Duration::from_secs_f64(args.connections as f64 / all));
    let times = Times {
        from,
        to,
        most,
        pace,
    };
    let mut seen = Seen::default();
    thread::scope(|scope| -> Result<()> {
        let running: Vec<_> = (0..threads)
            .map(|index| {
                let share =
                    args.connections / threads + usize::from(index < args.connections % threads);
                let args = &args;
                scope.spawn(move || loops(args, share, times))
            })
            .collect();
        for thread in running {
            seen.extend(thread.join().expect("a loop does not panic")?);
        }
        Ok(())
    })?;
    let seconds = match args.requests {
        Some(_) => from.elapsed().as_secs_f64(),
        None => args.seconds,
    };
    let requests = seen.samples.len();
    ensure!(
        requests > 0,
        "no request succeeded: {}",
        seen.first_error.unwrap_or_default()
    );
    let mut result = json!({
        "requests": requests,
        "all_requests": seen.successes,
        "errors": seen.errors,
        "first_error": seen.first_error,
        "seconds": seconds,
        "per_second": requests as f64 / seconds,
        "bytes": seen.bytes,
    });
    if let (Some(result), serde_json::Value::Object(latency)) =
        (result.as_object_mut(), seen.samples.summary())
    {
        result.extend(latency);
    }
    print(&result)
}

/// The loops of one thread.
fn loops(args: &Args, connections: usize, times: Times) -> Result<Seen> {
    let more = match args.close {
        true => "Connection: close\r\n",
        false => "",
    };
    let request = args.target.request("GET", more)?;
    let mut all = Seen::default();
    block_on(async {
        let mut running = JoinSet::new();
        for index in 0..connections {
            let (target, request, close) = (args.target.clone(), request.clone(), args.close);
            // Paced loops do not send all at once.
            let first = times
                .pace
                .unwrap_or_default()
                .mul_f64(index as f64 / connections as f64);
            running.spawn(async move { one_loop(&target, &request, close, times, first).await });
        }
        while let Some(seen) = running.join_next().await {
            all.extend(seen.context("a loop ended badly")?);
        }
        Ok(())
    })?;
    Ok(all)
}

async fn one_loop(
    target: &Target,
    request: &[u8],
    close: bool,
    times: Times,
    first: Duration,
) -> Seen {
    let mut seen = Seen::default();
    let mut link = Link::default();
    let mut failures = 0;
    let mut done = 0;
    let mut due = Instant::now() + first;
    loop {
        let mut began = Instant::now();
        if let Some(pace) = times.pace {
            due += pace;
            if due > began {
                // The timer is exact to a millisecond only: what it is late is not the server's doing.
                sleep_until(due.into()).await;
                began = Instant::now();
            } else {
                began = due;
            }
        }
        if began >= times.to || done >= times.most || failures >= MAX_FAILURES {
            return seen;
        }
        let exchanged = link.exchange(target, request).await;
        let ended = Instant::now();
        link.is_open &= !close;
        match exchanged {
            Ok(bytes) => {
                failures = 0;
                done += 1;
                seen.successes += 1;
                // A request that was under way at either end of the time does not count.
                if began >= times.from && ended <= times.to {
                    seen.samples.push(ended - began);
                    seen.bytes += bytes;
                }
            }
            Err(error) => {
                link.is_open = false;
                failures += 1;
                seen.errors += 1;
                seen.first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
}

/// A connection that is opened when it is needed.
#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    is_open: bool,
}

impl Link {
    /// One request and its whole answer.
    async fn exchange(&mut self, target: &Target, request: &[u8]) -> Result<u64> {
        if !self.is_open {
            let stream = target.connect().await?;
            match &mut self.connection {
                Some(connection) => connection.go_over(stream),
                None => self.connection = Some(Connection::small(stream)),
            }
            self.is_open = true;
        }
        let connection = self.connection.as_mut().expect("it was just opened");
        connection.send(request).await?;
        let head = connection.read_head().await?;
        let length = connection.read_body(head, |_| {}).await?;
        ensure!(head.status == 200, "status {}", head.status);
        self.is_open = !head.closes;
        Ok(length)
    }
}
