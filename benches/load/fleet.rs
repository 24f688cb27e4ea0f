//! Many simulated devices: how fast they are let in, and how long it takes until all are back.

use std::fs::File;
use std::io::BufReader;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;

use super::device::{Cloud, End, Tunnel};
use super::stats::print;

/// Bounds of a device's backoff, as in the agent.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A tunnel that lived so long makes the failures before it forgotten.
const GOOD_SESSION: Duration = Duration::from_secs(60);
const PROGRESS: Duration = Duration::from_secs(1);

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the tunnel listener.
    #[arg(long, value_name = "IP:PORT")]
    tunnel: SocketAddr,
    /// File with a device's id and token on each line, or a token alone; the last one is used again when there are
    /// not enough.
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,
    /// Lines of it to leave out.
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Devices.
    #[arg(long)]
    count: usize,
    /// Addresses of this machine that devices connect from, in turn.
    #[arg(
        long,
        value_name = "IP",
        value_delimiter = ',',
        default_value = "127.0.0.1"
    )]
    from: Vec<IpAddr>,
    /// Handshakes at once in the beginning; what comes back later is not held up.
    #[arg(long, default_value_t = 128)]
    handshakes: usize,
    /// Speaks TLS and trusts the certificates in this file.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Leaves the subprotocol out: for servers that are not edgecloud.
    #[arg(long)]
    plain: bool,
    /// Ends so many tunnels, as they come, and lets their devices connect again at once.
    #[arg(long, default_value_t = 0)]
    reconnects: usize,
}

/// What all devices know.
struct Fleet {
    cloud: Cloud,
    count: usize,
    began: Instant,
    connected: AtomicUsize,
    attempts: AtomicUsize,
    later: AtomicUsize,
    failed: AtomicUsize,
    reconnects_left: AtomicUsize,
    /// Held while a line is printed, so that they are in order.
    complete: Mutex<bool>,
    first: Semaphore,
}

/// Keeps the devices until the process is ended.
pub async fn run(args: Args) -> Result<()> {
    let tokens = read_tokens(&args.tokens, args.skip, args.count)?;
    let tls = args.ca.as_deref().map(trust).transpose()?;
    let fleet = Arc::new(Fleet {
        cloud: Cloud {
            tunnel: args.tunnel,
            tls,
            subprotocol: !args.plain,
        },
        count: args.count,
        began: Instant::now(),
        connected: AtomicUsize::new(0),
        attempts: AtomicUsize::new(0),
        later: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        reconnects_left: AtomicUsize::new(args.reconnects),
        complete: Mutex::new(false),
        first: Semaphore::new(args.handshakes),
    });
    let mut devices = JoinSet::new();
    for (index, token) in tokens.into_iter().enumerate() {
        let from = SocketAddr::new(args.from[index % args.from.len()], 0);
        let fleet = Arc::clone(&fleet);
        devices.spawn(async move { fleet.keep(&token, from, index as u64).await });
    }
    loop {
        tokio::select! {
            Some(refused) = devices.join_next() => refused.context("a device ended badly")?,
            () = sleep(PROGRESS) => fleet.report("progress")?,
        }
    }
}

impl Fleet {
    /// One device's life; ends only when the cloud does not want the device.
    async fn keep(&self, token: &str, from: SocketAddr, seed: u64) {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut failures = 0_u32;
        let mut is_first = true;
        loop {
            let began = Instant::now();
            match self
                .hold_a_tunnel(token, from, std::mem::take(&mut is_first))
                .await
            {
                None => failures = 0,
                Some(End::Refused) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Some(End::Later(asked)) => {
                    self.later.fetch_add(1, Ordering::Relaxed);
                    sleep(asked + random.share(asked / 8)).await;
                }
                Some(End::Moved(after)) => sleep(after).await,
                Some(End::Failed) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    if began.elapsed() >= GOOD_SESSION {
                        failures = 0;
                    }
                    let ceiling = FIRST_WAIT * 2_u32.pow(failures.min(6));
                    failures += 1;
                    sleep(random.share(ceiling.min(LONGEST_WAIT))).await;
                }
            }
        }
    }

    /// `None` when this side ended the tunnel, to open another one at once.
    async fn hold_a_tunnel(&self, token: &str, from: SocketAddr, is_first: bool) -> Option<End> {
        let permit = match is_first {
            true => Some(self.first.acquire().await.expect("it is never closed")),
            false => None,
        };
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let tunnel = match Tunnel::open(&self.cloud, token, from).await {
            Ok(tunnel) => tunnel,
            Err(end) => return Some(end),
        };
        let (sender, entered) = oneshot::channel();
        let place = Place {
            fleet: self,
            taken: AtomicBool::new(false),
        };
        let serving = tunnel.serve(|| {
            place.take();
            drop(permit);
            // Nobody waits when the tunnel is not to be ended.
            let _ = sender.send(());
        });
        tokio::select! {
            end = serving => Some(end),
            () = self.churn(entered) => None,
        }
    }

    /// Waits for the entry of a tunnel that is to be ended; for ever when it is not.
    async fn churn(&self, entered: oneshot::Receiver<()>) {
        if entered.await.is_ok() && take_one(&self.reconnects_left) {
            return;
        }
        std::future::pending().await
    }

    /// Says when the fleet has become complete, or is not any more.
    fn change(&self, complete: bool) {
        let mut was = self.complete.lock().unwrap_or_else(PoisonError::into_inner);
        if *was != complete {
            *was = complete;
            let event = if complete { "complete" } else { "incomplete" };
            // Nothing can be done about a reader that has gone.
            let _ = self.report(event);
        }
    }

    fn report(&self, event: &str) -> Result<()> {
        let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        print(&json!({
            "event": event,
            "at": jiff::Timestamp::now().as_millisecond(),
            "seconds": self.began.elapsed().as_secs_f64(),
            "connected": of(&self.connected),
            "attempts": of(&self.attempts),
            "later": of(&self.later),
            "failed": of(&self.failed),
            "reconnects_left": of(&self.reconnects_left),
        }))
    }
}

/// A device's place among the connected ones; given back when dropped.
struct Place<'f> {
    fleet: &'f Fleet,
    taken: AtomicBool,
}

impl Place<'_> {
    fn take(&self) {
        self.taken.store(true, Ordering::Relaxed);
        let connected = self.fleet.connected.fetch_add(1, Ordering::Relaxed) + 1;
        if connected == self.fleet.count {
            self.fleet.change(true);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.taken.load(Ordering::Relaxed) {
            self.fleet.connected.fetch_sub(1, Ordering::Relaxed);
            self.fleet.change(false);
        }
    }
}

/// Takes one from a counter, if there is one.
fn take_one(counter: &AtomicUsize) -> bool {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok()
}

struct Random(u64);

impl Random {
    /// A random part of a time (xorshift: good enough to spread devices).
    fn share(&mut self, whole: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        whole.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

fn read_tokens(file: &Path, skip: usize, count: usize) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let all: Vec<_> = text
        .lines()
        .filter_map(|line| line.split(' ').next_back())
        .map(str::to_owned)
        .collect();
    ensure!(!all.is_empty(), "there is no token in {}", file.display());
    let last = all.len() - 1;
    Ok((skip..skip + count)
        .map(|index| all[index.min(last)].clone())
        .collect())
}

fn trust(file: &Path) -> Result<Arc<TlsConnector>> {
    let mut roots = rustls::RootCertStore::empty();
    let pem = File::open(file).with_context(|| format!("open {}", file.display()))?;
    for certificate in CertificateDer::pem_reader_iter(BufReader::new(pem)) {
        roots.add(certificate.context("read a certificate")?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(TlsConnector::from(Arc::new(config))))
}
