//! Plain bytes: a TCP service that sends as many as it is asked for, and a client that receives them over one
//! stream, straight or through a WebSocket.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use data_encoding::HEXLOWER;
use ring::digest;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::bulk::{CHUNK, number, pattern};
use super::http::{Connection, Target};
use super::stats::print;
use super::websocket::ByteStream;

/// What a client sends first: how many bytes it wants, in network order.
const ASK: usize = 8;

/// Arguments of `source`.
#[derive(Debug, clap::Args)]
pub struct SourceArgs {
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
}

/// Sends to each connection what it asks for, and ends it, until the process is ended.
pub async fn source(args: SourceArgs) -> Result<()> {
    let listener = TcpListener::bind(args.listen).await.context("listen")?;
    print(&json!({"event": "listening", "address": listener.local_addr()?.to_string()}))?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        while connections.try_join_next().is_some() {}
        // A client may leave when it has seen enough.
        connections.spawn(async move { serve(stream).await.is_ok() });
    }
}

async fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut asked = [0; ASK];
    stream.read_exact(&mut asked).await?;
    let mut left = u64::from_be_bytes(asked);
    let mut chunk = pattern();
    while left > 0 {
        stream.write_all(number(&mut chunk, left)).await?;
        left = left.saturating_sub(CHUNK as u64);
    }
    Ok(stream.shutdown().await?)
}

/// Arguments of `stream`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// The way to the source is a WebSocket (at `--path`).
    #[arg(long)]
    websocket: bool,
    /// Bytes to receive.
    #[arg(long)]
    bytes: u64,
    /// Also compares the SHA-256 of what came with that of what was sent, which takes a share of the processor.
    #[arg(long)]
    sha256: bool,
    /// Breaks off after this time, in seconds, and tells how fast the second half was.
    #[arg(long, conflicts_with = "sha256")]
    at_most: Option<f64>,
}

/// Receives the bytes and prints how that went.
pub async fn run(args: Args) -> Result<()> {
    let began = Instant::now();
    let limit = args.at_most.map(Duration::from_secs_f64);
    let mut way = Way::open(&args).await?;
    way.ask(args.bytes).await?;
    let mut sum = args.sha256.then(|| digest::Context::new(&digest::SHA256));
    let (mut bytes, mut bytes_at_half) = (0_u64, 0);
    while bytes < args.bytes {
        let part = match limit {
            None => way.fill().await?,
            Some(limit) => {
                let left = limit.saturating_sub(began.elapsed());
                match tokio::time::timeout(left, way.fill()).await {
                    Ok(part) => part?,
                    Err(_) => break,
                }
            }
        };
        ensure!(!part.is_empty(), "the stream ended after {bytes} bytes");
        if let Some(sum) = &mut sum {
            sum.update(part);
        }
        let received = part.len();
        way.consume(received);
        bytes += received as u64;
        if limit.is_some_and(|limit| began.elapsed() < limit / 2) {
            bytes_at_half = bytes;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut result = json!({
        "bytes": bytes,
        "seconds": seconds,
        "mib_per_second": mib(bytes) / seconds,
    });
    if limit.is_some() {
        result["steady_mib_per_second"] = json!(mib(bytes - bytes_at_half) / (seconds / 2.0));
    } else {
        ensure!(
            way.fill().await?.is_empty(),
            "more bytes than were asked for"
        );
    }
    if let Some(sum) = sum {
        let (sent, received) = (sum_of(args.bytes), HEXLOWER.encode(sum.finish().as_ref()));
        ensure!(sent == received, "what came is not what was sent");
        result["sha256"] = json!(received);
    }
    print(&result)
}

/// The SHA-256 of what [`source`] sends.
fn sum_of(bytes: u64) -> String {
    let mut sum = digest::Context::new(&digest::SHA256);
    let mut chunk = pattern();
    let mut left = bytes;
    while left > 0 {
        sum.update(number(&mut chunk, left));
        left = left.saturating_sub(CHUNK as u64);
    }
    HEXLOWER.encode(sum.finish().as_ref())
}

/// What the bytes come by.
enum Way {
    Direct(Connection),
    WebSocket(ByteStream),
}

impl Way {
    async fn open(args: &Args) -> Result<Self> {
        Ok(match args.websocket {
            false => Self::Direct(Connection::over(args.target.connect().await?)),
            true => Self::WebSocket(ByteStream::open(&args.target).await?),
        })
    }

    async fn ask(&mut self, bytes: u64) -> Result<()> {
        let asked = bytes.to_be_bytes();
        match self {
            Self::Direct(connection) => connection.send(&asked).await,
            Self::WebSocket(stream) => stream.send(&asked).await,
        }
    }

    async fn fill(&mut self) -> Result<&[u8]> {
        match self {
            Self::Direct(connection) => connection.fill().await,
            Self::WebSocket(stream) => stream.fill().await,
        }
    }

    fn consume(&mut self, count: usize) {
        match self {
            Self::Direct(connection) => connection.consume(count),
            Self::WebSocket(stream) => stream.consume(count),
        }
    }
}
