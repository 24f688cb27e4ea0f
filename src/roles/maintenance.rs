//! `config`, `db` and `healthcheck`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;

use super::{Failure, load_config, print, ready_file, runtime, tell};
use crate::cli::{ConfigCommand, DbCommand};
use crate::config::{Config, Flags, StoreUrl};
use crate::store::{Location, Store};

/// How long a process may take to say that it is ready.
const HEALTH_DEADLINE: Duration = Duration::from_secs(3);

/// `config check|show`.
pub fn config(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(args) => load_config(&args.into()).map(drop),
        ConfigCommand::Show(args) => Ok(print(load_config(&args.into())?.show())?),
    }
}

/// `db migrate|backup|check`.
pub fn db(command: DbCommand) -> Result<(), Failure> {
    let (DbCommand::Migrate(args) | DbCommand::Check(args) | DbCommand::Backup { args, .. }) =
        &command;
    let config = load_config(&args.clone().into())?;
    runtime()?.block_on(async {
        // Opening brings the schema up to date.
        let store = open(&config).await?;
        match command {
            DbCommand::Migrate(_) => {}
            DbCommand::Backup { file, .. } => {
                let backed_up = store.backup(&file).await;
                backed_up.with_context(|| format!("back up to {}", file.display()))?;
            }
            DbCommand::Check(_) => {
                let damage = store.check().await.context("check the database")?;
                damage.iter().for_each(|line| tell(line));
                if !damage.is_empty() {
                    bail!("the database is damaged");
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}

async fn open(config: &Config) -> anyhow::Result<Store> {
    let location = match &config.store {
        StoreUrl::Sqlite(path) => Location::Sqlite(path),
        StoreUrl::Postgres(_) => Location::Postgres,
    };
    Store::open(location).await.context("open the database")
}

/// `healthcheck`.
pub fn healthcheck(flags: &Flags) -> Result<(), Failure> {
    let addr = match &flags.ready_file {
        Some(path) => {
            let addresses = ready_file::read(path)?;
            let addr = addresses.api.or(addresses.tunnel);
            addr.context("the ready file names no listener")?
        }
        None => {
            let config = load_config(flags)?;
            match config.role.has_api() {
                true => config.server.api_listen,
                false => config.tunnel.listen,
            }
        }
    };
    let addr = match addr.ip().is_unspecified() {
        true => SocketAddr::from((Ipv4Addr::LOCALHOST, addr.port())),
        false => addr,
    };
    runtime()?.block_on(async {
        let asked = tokio::time::timeout(HEALTH_DEADLINE, readiness(addr)).await;
        match asked.context("the process does not answer in time")?? {
            StatusCode::OK => Ok(()),
            status => bail!("the process at {addr} is not ready: {status}"),
        }
    })?;
    Ok(())
}

async fn readiness(addr: SocketAddr) -> anyhow::Result<StatusCode> {
    let stream = tokio::net::TcpStream::connect(addr).await;
    let stream = stream.with_context(|| format!("connect to {addr}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/readyz")
        .header(header::HOST, addr.to_string())
        .body(Empty::<Bytes>::new())?;
    tokio::select! {
        response = sender.send_request(request) => Ok(response?.status()),
        ended = connection => {
            ended.context("ask the process")?;
            bail!("the process at {addr} closed the connection")
        }
    }
}
