//! Pairs many devices the way that people do: a code each, exchanged for a token.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::http::{Connection, Target};
use super::stats::print;

/// Pairings at once: a tenant may have twenty open codes.
const AT_ONCE: usize = 16;

/// Arguments of `pair`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Devices to pair.
    #[arg(long)]
    count: usize,
    /// File to write each device's id and token to.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Pairs the devices and writes their tokens down.
pub async fn run(args: Args) -> Result<()> {
    let began = std::time::Instant::now();
    let left = Arc::new(AtomicUsize::new(args.count));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (target, left) = (args.target.clone(), Arc::clone(&left));
        workers.spawn(async move { pair_some(&target, &left).await });
    }
    let mut lines = Vec::with_capacity(args.count);
    while let Some(paired) = workers.join_next().await {
        lines.extend(paired.context("a worker ended badly")??);
    }
    write_private(&args.out, &lines)?;
    let seconds = began.elapsed().as_secs_f64();
    print(
        &json!({"paired": lines.len(), "seconds": seconds, "per_second": lines.len() as f64 / seconds}),
    )
}

async fn pair_some(target: &Target, left: &AtomicUsize) -> Result<Vec<String>> {
    let mut connection = Connection::small(target.connect().await?);
    let mut lines = Vec::new();
    let take = |left: usize| left.checked_sub(1);
    while left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        .is_ok()
    {
        let code = post(&mut connection, target, "/api/pairing/codes", &json!({})).await?;
        let asked = json!({"code": code["code"], "device": {"hostname": "load"}});
        let paired = post(&mut connection, target, "/api/pairing/exchange", &asked).await?;
        let text = |field: &str| paired[field].as_str().context("an incomplete answer");
        lines.push(format!("{} {}\n", text("device_id")?, text("token")?));
    }
    Ok(lines)
}

async fn post(
    connection: &mut Connection,
    target: &Target,
    path: &str,
    body: &Value,
) -> Result<Value> {
    let target = Target {
        path: path.to_owned(),
        ..target.clone()
    };
    let body = body.to_string();
    let more = format!(
        "Content-Type: application/json\r\nEdgecloud-Csrf: 1\r\nContent-Length: {}\r\n",
        body.len()
    );
    let mut request = target.request("POST", &more)?;
    request.extend_from_slice(body.as_bytes());
    connection.send(&request).await?;
    let head = connection.read_head().await?;
    let mut answer = Vec::new();
    connection
        .read_body(head, |part| answer.extend_from_slice(part))
        .await?;
    ensure!(
        (200..300).contains(&head.status),
        "{path} answers with status {}",
        head.status
    );
    serde_json::from_slice(&answer).context("an answer that is no JSON")
}

/// Writes a file that only this user can read.
fn write_private(file: &Path, lines: &[String]) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options
        .open(file)
        .with_context(|| format!("write {}", file.display()))?;
    for line in lines {
        file.write_all(line.as_bytes())
            .context("write the tokens")?;
    }
    Ok(())
}
