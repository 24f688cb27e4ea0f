//! The load tool of the measuring harness: everything that puts load on a tunnel or stands at its ends.
//!
//! Each subcommand does one thing and prints one JSON object a line on standard output; `benches/run` starts them
//! and puts the figures together. Secrets (cookies, device tokens) come by file and are never printed.

mod bulk;
mod certificate;
mod device;
mod fleet;
mod frames;
mod http;
mod pair;
mod rate;
mod relay;
mod sse;
mod stats;
mod stream;
mod websocket;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Puts load on tunnels.
#[derive(Debug, Parser)]
#[command(name = "load")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Given by `cargo bench` to what it starts; without meaning here.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Small requests over and over, each connection with one at a time.
    Rate(rate::Args),
    /// One large body after the other on one connection.
    Bulk(bulk::Args),
    /// Plain bytes over one stream.
    Stream(stream::Args),
    /// A TCP service that sends plain bytes.
    Source(stream::SourceArgs),
    /// Passes connections on, later and slower.
    Relay(relay::Args),
    /// Pairs devices.
    Pair(pair::Args),
    /// A device's own server of server-sent events.
    Origin(sse::OriginArgs),
    /// Subscribers to server-sent events.
    Subscribe(sse::SubscribeArgs),
    /// Makes a certificate for TLS on loopback.
    Certificate(certificate::Args),
    /// Simulated devices that keep their tunnels.
    Devices(fleet::Args),
}

fn main() -> ExitCode {
    let done = run(Cli::parse().command);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Rate(args) => rate::run(args),
        Command::Bulk(args) => block_on(bulk::run(args)),
        Command::Stream(args) => block_on(stream::run(args)),
        Command::Source(args) => block_on(stream::source(args)),
        Command::Relay(args) => block_on(relay::run(args)),
        Command::Pair(args) => block_on(pair::run(args)),
        Command::Origin(args) => block_on(sse::origin(args)),
        Command::Subscribe(args) => block_on(sse::subscribe(args)),
        Command::Certificate(args) => certificate::run(&args),
        Command::Devices(args) => block_on(fleet::run(args)),
    }
}

/// Runs on this thread alone: the load tool is to take as little from what it measures as it can.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
