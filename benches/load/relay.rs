//! A long way in a short machine: passes connections on, each byte later by a fixed time and no faster than a rate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::http::connect;
use super::stats::print;

/// Read at once, in bytes.
const CHUNK: usize = 16 * 1024;
/// What is on its way at once beyond what the rate and the delay ask for, in bytes: the queue of a router.
const QUEUE: usize = 256 * 1024;
/// The rate that is reckoned with for the queue when there is no limit, in Mbit/s.
const UNLIMITED_MBIT: u64 = 10_000;

/// Arguments of `relay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Where to pass connections on to.
    #[arg(long, value_name = "IP:PORT")]
    to: SocketAddr,
    /// Delay of each direction, in milliseconds: half of what is added to the round trip.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Rate of each direction, in Mbit/s; 0 is no limit.
    #[arg(long, default_value_t = 0)]
    mbit: u64,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    delay: Duration,
    mbit: u64,
}

impl Link {
    fn time_of(self, bytes: usize) -> Duration {
        match self.mbit {
            0 => Duration::ZERO,
            mbit => Duration::from_nanos(bytes as u64 * 8_000 / mbit),
        }
    }

    /// Bytes that may be on their way at once.
    fn room(self) -> usize {
        let mbit = if self.mbit == 0 {
            UNLIMITED_MBIT
        } else {
            self.mbit
        };
        let in_flight = u128::from(mbit) * self.delay.as_micros() / 8;
        usize::try_from(in_flight).unwrap_or(usize::MAX / 2) + QUEUE
    }
}

/// A piece on its way, and the room that it takes.
type Piece = (Instant, Bytes, OwnedSemaphorePermit);

/// Relays until the process is ended.
pub async fn run(args: Args) -> Result<()> {
    let listener = TcpListener::bind(args.listen).await.context("listen")?;
    print(&json!({"event": "listening", "address": listener.local_addr()?.to_string()}))?;
    let link = Link {
        delay: Duration::from_millis(args.delay_ms),
        mbit: args.mbit,
    };
    let mut connections = JoinSet::new();
    loop {
        let (near, _) = listener.accept().await.context("accept")?;
        // Those that have ended need nothing more.
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            if let Err(error) = pass(near, args.to, link).await {
                eprintln!("load: a relayed connection ended: {error:#}");
            }
        });
    }
}

async fn pass(near: TcpStream, to: SocketAddr, link: Link) -> Result<()> {
    near.set_nodelay(true)?;
    let far = connect(to, None).await?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::try_join!(
        one_way(near_read, far_write, link),
        one_way(far_read, near_write, link)
    )?;
    Ok(())
}

async fn one_way(from: OwnedReadHalf, to: OwnedWriteHalf, link: Link) -> Result<()> {
    // The semaphore is the limit: a piece is never empty.
    let (sender, receiver) = mpsc::channel(link.room());
    let room = Arc::new(Semaphore::new(link.room()));
    tokio::try_join!(take(from, sender, room, link), give(to, receiver))?;
    Ok(())
}

async fn take(
    mut from: OwnedReadHalf,
    sender: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
    link: Link,
) -> Result<()> {
    let mut line_is_free = Instant::now();
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        let read = from.read_buf(&mut buffer).await.context("receive")?;
        if read == 0 {
            return Ok(());
        }
        let permits = u32::try_from(read).expect("a chunk is small");
        let taken = Arc::clone(&room).acquire_many_owned(permits).await?;
        line_is_free = line_is_free.max(Instant::now()) + link.time_of(read);
        let due = line_is_free + link.delay;
        if sender.send((due, buffer.freeze(), taken)).await.is_err() {
            return Ok(());
        }
    }
}

async fn give(mut to: OwnedWriteHalf, mut receiver: mpsc::Receiver<Piece>) -> Result<()> {
    while let Some((due, piece, taken)) = receiver.recv().await {
        // The timer is exact to a millisecond; what is due sooner than that goes now.
        if due > Instant::now() + Duration::from_millis(1) {
            sleep_until(due).await;
        }
        to.write_all(&piece).await.context("send")?;
        drop(taken);
    }
    to.shutdown().await.context("end")
}
