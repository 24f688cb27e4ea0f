//! Server-sent events to many subscribers: an origin that sends them, and subscribers that measure how long each
//! takes to arrive.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::http::{Connection, Target, connect};
use super::stats::{Samples, print};

/// How long the subscribers may take to subscribe, and each event to reach them all.
const PATIENCE: Duration = Duration::from_secs(60);
/// Subscribers at once that do not have their answer yet.
const SUBSCRIBING: usize = 256;
/// Events of the origin that a subscriber has not been sent yet.
const QUEUE: usize = 64;

/// Arguments of `origin`.
#[derive(Debug, clap::Args)]
pub struct OriginArgs {
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
}

/// Serves `GET` with an endless event stream, and sends an event to all for each `POST`, until the process is ended.
pub async fn origin(args: OriginArgs) -> Result<()> {
    let listener = TcpListener::bind(args.listen).await.context("listen")?;
    print(&json!({"event": "listening", "address": listener.local_addr()?.to_string()}))?;
    let (events, _) = broadcast::channel(QUEUE);
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        while connections.try_join_next().is_some() {}
        let events = events.clone();
        connections.spawn(async move {
            // A subscriber that has gone is no mistake.
            let _ = serve(stream, events).await;
        });
    }
}

async fn serve(mut stream: TcpStream, events: broadcast::Sender<()>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut head).await? > 0, "no request");
    }
    if head.starts_with(b"POST ") {
        // Nobody may have subscribed.
        let _ = events.send(());
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return Ok(stream.write_all(answer).await?);
    }
    let mut mine = events.subscribe();
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head).await?;
    let mut more = [0; 1];
    loop {
        tokio::select! {
            event = mine.recv() => event?,
            // A subscriber says nothing more: this is its end.
            ended = stream.read(&mut more) => return Ok(ended.map(drop)?),
        }
        stream
            .write_all(b"10\r\ndata: something\n\r\n1\r\n\n\r\n")
            .await?;
    }
}

/// Arguments of `subscribe`.
#[derive(Debug, clap::Args)]
pub struct SubscribeArgs {
    #[command(flatten)]
    target: Target,
    /// Subscribers.
    #[arg(long)]
    count: usize,
    /// Addresses of this machine that subscribers connect from, in turn.
    #[arg(
        long,
        value_name = "IP",
        value_delimiter = ',',
        default_value = "127.0.0.1"
    )]
    from: Vec<IpAddr>,
    /// More files with header lines, used in turn: logins with their own limit of streams.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    logins: Vec<PathBuf>,
    /// Where an event is caused.
    #[arg(long, value_name = "IP:PORT")]
    cause: SocketAddr,
    /// File with header lines for that.
    #[arg(long, value_name = "FILE")]
    cause_headers: Option<PathBuf>,
    /// Path for that; `{n}` is the number of the event.
    #[arg(long)]
    cause_path: String,
    /// Method for that.
    #[arg(long, default_value = "POST")]
    cause_method: String,
    /// JSON body for that; `{n}` is the number of the event.
    #[arg(long, default_value = "")]
    cause_body: String,
    /// Events.
    #[arg(long, default_value_t = 10)]
    events: usize,
}

/// Subscribes, causes events one by one and prints how long they took to reach everybody.
pub async fn subscribe(args: SubscribeArgs) -> Result<()> {
    let subscribed = Arc::new(AtomicUsize::new(0));
    let turns = Arc::new(Semaphore::new(SUBSCRIBING));
    let (caused, seen) = watch::channel(Instant::now());
    let (arrivals, mut arrived) = tokio::sync::mpsc::channel(args.count);
    let mut subscribers = JoinSet::new();
    for index in 0..args.count {
        let mut target = args.target.clone();
        if !args.logins.is_empty() {
            target.headers = Some(args.logins[index % args.logins.len()].clone());
        }
        let from = SocketAddr::new(args.from[index % args.from.len()], 0);
        let (subscribed, seen, arrivals) =
            (Arc::clone(&subscribed), seen.clone(), arrivals.clone());
        let turns = Arc::clone(&turns);
        subscribers.spawn(async move {
            let turn = turns.acquire_owned().await?;
            let connection = begin(&target, from).await.context("a subscriber")?;
            drop(turn);
            subscribed.fetch_add(1, Ordering::Relaxed);
            let done = listen(connection, &seen, &arrivals).await;
            done.context("a subscriber")
        });
    }
    let began = Instant::now();
    while subscribed.load(Ordering::Relaxed) < args.count {
        ensure!(began.elapsed() < PATIENCE, "not all subscribed in time");
        if let Ok(Some(ended)) = timeout(Duration::from_millis(10), subscribers.join_next()).await {
            ended??;
        }
    }
    let subscribing = began.elapsed();
    let mut samples = Samples::default();
    for number in 0..args.events {
        caused.send_replace(Instant::now());
        cause(&args, number).await?;
        for _ in 0..args.count {
            let latency = timeout(PATIENCE, arrived.recv()).await;
            let latency: Duration = latency
                .context("an event did not reach everybody in time")?
                .context("the subscribers have ended")?;
            samples.push(latency);
        }
    }
    let deliveries = samples.len();
    let mut result = samples.summary();
    if let Some(result) = result.as_object_mut() {
        result.insert("deliveries".to_owned(), json!(deliveries));
        result.insert(
            "subscribing_seconds".to_owned(),
            json!(subscribing.as_secs_f64()),
        );
    }
    print(&result)
}

/// Subscribes.
async fn begin(target: &Target, from: SocketAddr) -> Result<Connection> {
    let stream = connect(target.target, Some(from)).await?;
    let mut connection = Connection::small(stream);
    connection
        .send(&target.request("GET", "Accept: text/event-stream\r\n")?)
        .await?;
    let head = connection.read_head().await?;
    ensure!(head.status == 200, "status {}", head.status);
    Ok(connection)
}

/// One subscriber: tells how long after its cause each event came.
async fn listen(
    mut connection: Connection,
    caused: &watch::Receiver<Instant>,
    arrivals: &tokio::sync::mpsc::Sender<Duration>,
) -> Result<()> {
    let mut tail = Vec::new();
    loop {
        let part = connection.fill().await?;
        ensure!(!part.is_empty(), "the event stream ended");
        tail.extend_from_slice(part);
        let length = part.len();
        connection.consume(length);
        const DATA: &[u8] = b"data:";
        while let Some(at) = tail.windows(DATA.len()).position(|bytes| bytes == DATA) {
            tail.drain(..at + DATA.len());
            let latency = caused.borrow().elapsed();
            if arrivals.send(latency).await.is_err() {
                return Ok(());
            }
        }
        // What could still become the word when more comes.
        let kept = tail.len().saturating_sub(DATA.len() - 1);
        tail.drain(..kept);
    }
}

async fn cause(args: &SubscribeArgs, number: usize) -> Result<()> {
    let number = number.to_string();
    let target = Target {
        target: args.cause,
        path: args.cause_path.replace("{n}", &number),
        headers: args.cause_headers.clone(),
    };
    let body = args.cause_body.replace("{n}", &number);
    let mut more = format!("Content-Length: {}\r\nConnection: close\r\n", body.len());
    if !body.is_empty() {
        more.push_str("Content-Type: application/json\r\n");
    }
    let mut request = target.request(&args.cause_method, &more)?;
    request.extend_from_slice(body.as_bytes());
    let mut connection = Connection::small(target.connect().await?);
    connection.send(&request).await?;
    let head = connection.read_head().await?;
    ensure!(
        (200..300).contains(&head.status),
        "causing an event is answered with status {}",
        head.status
    );
    Ok(())
}
