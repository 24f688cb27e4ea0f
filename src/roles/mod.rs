//! The composition root: puts the parts together for each command and role. Nothing else in the
//! crate knows which role runs.

#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "api")]
mod api;
#[cfg(feature = "_server")]
mod audit;
#[cfg(feature = "_server")]
mod database_lock;
#[cfg(all(
    feature = "api",
    feature = "proxy",
    feature = "agent",
    feature = "sqlite",
    feature = "dev-issuer"
))]
mod demo;
#[cfg(feature = "_server")]
mod healthcheck;
#[cfg(feature = "_server")]
mod maintenance;
#[cfg(feature = "proxy")]
mod proxy;
#[cfg(feature = "_server")]
mod ready_file;
#[cfg(feature = "_server")]
mod server;
#[cfg(feature = "_server")]
mod service_client;
#[cfg(feature = "agent")]
mod tcp;

use std::io::Write;
use std::process::ExitCode;

use crate::cli::{Cli, Command};

/// The command line or the configuration is wrong.
const USAGE: u8 = 2;
/// Something failed while running.
const FAILED: u8 = 1;

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let ended = match cli.command {
        #[cfg(feature = "_server")]
        Command::Serve(args) => server::run(&args.into()),
        #[cfg(all(
            feature = "api",
            feature = "proxy",
            feature = "agent",
            feature = "sqlite",
            feature = "dev-issuer"
        ))]
        Command::Demo(args) => demo::run(args),
        #[cfg(feature = "agent")]
        Command::Agent(args) => agent::run(args),
        #[cfg(feature = "agent")]
        Command::Tcp(args) => tcp::run(args),
        #[cfg(feature = "_server")]
        Command::Config { command } => maintenance::config(command),
        #[cfg(feature = "_server")]
        Command::Db { command } => maintenance::db(command),
        #[cfg(feature = "_server")]
        Command::Audit { command } => audit::run(command),
        #[cfg(feature = "_server")]
        Command::ServiceClient { command } => service_client::run(command),
        #[cfg(feature = "api")]
        Command::Openapi => print(crate::api::openapi::text()).map_err(Failure::from),
        #[cfg(feature = "_server")]
        Command::Healthcheck(args) => healthcheck::run(&args.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(mistakes)) => {
            tell(&mistakes);
            ExitCode::from(USAGE)
        }
        Err(Failure::Failed(error)) => {
            tell(&format!("edgecloud: {error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

/// How a command did not succeed.
#[derive(Debug)]
enum Failure {
    /// Wrong usage or configuration, one mistake a line.
    Usage(String),
    /// It failed while running.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Writes to standard output.
#[cfg(feature = "_server")]
fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes a line to standard error.
fn tell(line: &str) {
    // When nobody can be told there is nothing left to do.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The runtime of a command that serves one device or one person: one thread (ADR 0019).
#[cfg(feature = "agent")]
fn small_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// The runtime of a long-running command.
#[cfg(feature = "_server")]
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}

#[cfg(feature = "_server")]
fn load_config(flags: &crate::config::Flags) -> Result<crate::config::Config, Failure> {
    crate::config::Config::load(flags, crate::config::environment())
        .map_err(|mistakes| Failure::Usage(mistakes.to_string()))
}
