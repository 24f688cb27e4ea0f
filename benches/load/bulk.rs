//! Large bodies on one connection: how fast, and whether every byte arrives as it was sent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use data_encoding::HEXLOWER;
use ring::digest;
use serde_json::json;

use super::http::{Connection, Head, Target};
use super::stats::print;
use super::websocket::ByteStream;

/// Sent at once, in bytes.
pub const CHUNK: usize = 256 * 1024;

/// Arguments of `bulk`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Sends a body of so many bytes (PUT) in the place of receiving one (GET).
    #[arg(long, value_name = "BYTES")]
    upload: Option<u64>,
    /// Reaches the server through a WebSocket at this path, which carries the bytes of a TCP connection.
    #[arg(long, value_name = "PATH", conflicts_with = "upload")]
    websocket: Option<String>,
    /// Also computes the SHA-256 of the body, which takes a share of the processor.
    #[arg(long)]
    sha256: bool,
    /// Begins another body as long as this time is not over, in seconds.
    #[arg(long, default_value_t = 0.0)]
    seconds: f64,
    /// And as long as fewer bytes than these have been transferred.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    at_least: u64,
    /// Breaks the transfer off after this time, in seconds, and tells how fast its second half was.
    #[arg(long, conflicts_with_all = ["upload", "sha256", "seconds"])]
    at_most: Option<f64>,
}

/// Transfers the bodies and prints how that went.
pub async fn run(args: Args) -> Result<()> {
    if let Some(seconds) = args.at_most {
        return download_for(&args, Duration::from_secs_f64(seconds)).await;
    }
    let mut way = Way::open(&args).await?;
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(args.seconds);
    let (mut bytes, mut bodies) = (0, 0);
    let sum = loop {
        let mut sum = args.sha256.then(|| digest::Context::new(&digest::SHA256));
        bytes += match args.upload {
            Some(length) => way.upload(&args.target, length, &mut sum).await?,
            None => {
                let see = |part: &[u8]| {
                    if let Some(sum) = &mut sum {
                        sum.update(part);
                    }
                };
                way.download(&args.target, see).await?
            }
        };
        bodies += 1;
        if Instant::now() >= until && bytes >= args.at_least {
            break sum;
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    print(&json!({
        "bytes": bytes,
        "bodies": bodies,
        "seconds": seconds,
        "mib_per_second": bytes as f64 / seconds / f64::from(1 << 20),
        "sha256": sum.map(|sum| HEXLOWER.encode(sum.finish().as_ref())),
    }))
}

/// Downloads for a time, from the opening of the connection on.
async fn download_for(args: &Args, time: Duration) -> Result<()> {
    let began = Instant::now();
    let (mut bytes, mut bytes_at_half) = (0_u64, 0);
    let mut see = |part: &[u8]| {
        bytes += part.len() as u64;
        if began.elapsed() < time / 2 {
            bytes_at_half = bytes;
        }
    };
    let downloads = async {
        let mut way = Way::open(args).await?;
        loop {
            way.download(&args.target, &mut see).await?;
        }
    };
    if let Ok(failed) = tokio::time::timeout(time, downloads).await {
        return failed;
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let seconds = time.as_secs_f64();
    print(&json!({
        "bytes": bytes,
        "seconds": seconds,
        "mib_per_second": mib(bytes) / seconds,
        "steady_mib_per_second": mib(bytes - bytes_at_half) / (seconds / 2.0),
    }))
}

type Sum = Option<digest::Context>;

/// What the bodies go through.
enum Way {
    Direct(Connection),
    WebSocket(ByteStream),
}

impl Way {
    async fn open(args: &Args) -> Result<Self> {
        Ok(match &args.websocket {
            None => Self::Direct(Connection::over(args.target.connect().await?)),
            Some(path) => {
                let target = Target {
                    path: path.clone(),
                    ..args.target.clone()
                };
                Self::WebSocket(ByteStream::open(&target).await?)
            }
        })
    }

    async fn download(&mut self, target: &Target, see: impl FnMut(&[u8])) -> Result<u64> {
        match self {
            Self::Direct(connection) => {
                connection.send(&target.request("GET", "")?).await?;
                let head = connection.read_head().await?;
                ensure!(head.status == 200, "status {}", head.status);
                connection.read_body(head, see).await
            }
            Self::WebSocket(stream) => {
                // The cookie is for the WebSocket; what is inside goes to the device.
                let inside = Target {
                    headers: None,
                    ..target.clone()
                };
                stream.send(&inside.request("GET", "")?).await?;
                read_inside(stream, see).await
            }
        }
    }

    async fn upload(&mut self, target: &Target, length: u64, sum: &mut Sum) -> Result<u64> {
        let Self::Direct(connection) = self else {
            bail!("uploads go over HTTP only");
        };
        let more = format!("Content-Length: {length}\r\nEdgecloud-Csrf: 1\r\n");
        connection.send(&target.request("PUT", &more)?).await?;
        let mut chunk = pattern();
        let mut left = length;
        while left > 0 {
            let part = number(&mut chunk, left);
            if let Some(sum) = sum {
                sum.update(part);
            }
            connection.send(part).await?;
            left -= part.len() as u64;
        }
        let head = connection.read_head().await?;
        connection.read_body(head, |_| {}).await?;
        ensure!(
            (200..300).contains(&head.status),
            "the upload was answered with status {}",
            head.status
        );
        Ok(length)
    }
}

/// Reads an answer that comes as the payload of a WebSocket.
async fn read_inside(stream: &mut ByteStream, mut see: impl FnMut(&[u8])) -> Result<u64> {
    let mut head = Vec::new();
    let head: Head = loop {
        let part = stream.fill().await?;
        ensure!(!part.is_empty(), "the stream ended before the answer");
        let had = head.len();
        head.extend_from_slice(part);
        let end = head.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(end) = end {
            stream.consume(end + 4 - had);
            break Head::parse(&head[..end + 4])?;
        }
        let used = part.len();
        stream.consume(used);
    };
    ensure!(head.status == 200, "status {}", head.status);
    let length = head.length.context("the answer does not tell its length")?;
    let mut left = length;
    while left > 0 {
        let part = stream.fill().await?;
        ensure!(!part.is_empty(), "the body ended {left} bytes early");
        let take = part.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        see(&part[..take]);
        stream.consume(take);
        left -= take as u64;
    }
    Ok(length)
}

/// Bytes that do not repeat within a chunk.
pub fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..CHUNK / 8).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    });
    words.flatten().collect()
}

/// The next chunk of a body of which so many bytes are left. No two are alike: one that is lost, doubled or out of
/// place shows in the sum.
pub fn number(chunk: &mut [u8], left: u64) -> &[u8] {
    chunk[..8].copy_from_slice(&left.to_be_bytes());
    let take = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    &chunk[..take]
}
