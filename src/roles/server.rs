//! `serve`: start, run until a signal, drain, end.
//!
//! The start: database and keys, then all listeners, then the node's entry in the directory, then
//! serving, then the ready file. The end: not ready, no new connections, devices are told to move,
//! what is under way finishes or is told to part at `server.drain_timeout`, everything else is cut.

use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::time::{Instant, timeout, timeout_at};

use super::database_lock::DatabaseLock;
use super::ready_file::{self, Addresses};
use super::{Failure, load_config, runtime};
use crate::config::{Config, Flags, StoreUrl};
use crate::keys::KeyRing;
use crate::net::{HttpLimits, Listener, TlsFiles, serve_http};
use crate::runtime::{Asked, Lifecycle, Signals};
use crate::session::internal::InternalClient;
#[cfg(feature = "proxy")]
use crate::session::node::Node;
use crate::store::{Location, Store, StoreError};
use crate::telemetry::{Telemetry, render_metrics};
use crate::types::Clock;

/// How long last words may take after the drain.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What every role has.
pub struct Process {
    /// The checked settings.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// The wall clock.
    pub clock: Clock,
    /// The tasks and the end of the process.
    pub lifecycle: Lifecycle,
    /// Sign and seal cookies.
    pub cookie_keys: KeyRing,
    /// Sign calls between processes.
    pub internal_keys: KeyRing,
    /// The certificate of the public listeners.
    pub tls: Option<TlsFiles>,
    /// Keeps processes apart that could not reach each other's devices.
    _lock: Option<DatabaseLock>,
}

impl Process {
    async fn open(config: Config) -> Result<Self, Failure> {
        let location = match &config.store {
            StoreUrl::Sqlite(path) => Location::Sqlite(path),
            StoreUrl::Postgres(_) => Location::Postgres,
        };
        let store = match Store::open(location).await {
            Err(error @ StoreError::EngineNotBuilt(_)) => {
                return Err(Failure::Usage(format!("store.url: {error}")));
            }
            opened => opened.context("open the database")?,
        };
        let lock = match &config.store {
            StoreUrl::Sqlite(path) => Some(DatabaseLock::take(path, &config)?),
            StoreUrl::Postgres(_) => None,
        };
        if lock.as_ref().is_some_and(|lock| lock.is_alone) {
            store.set_alone();
        }
        let tls = config
            .tls
            .as_ref()
            .map(|tls| TlsFiles::load(&tls.cert, &tls.key));
        Ok(Self {
            cookie_keys: ring(&config, &config.login.cookie_key, "cookie.key")?,
            internal_keys: ring(&config, &config.internal.secret, "internal.key")?,
            tls: tls.transpose().context("read tls.cert and tls.key")?,
            lifecycle: Lifecycle::default(),
            clock: Clock::system(),
            store,
            config,
            _lock: lock,
        })
    }
}

/// The configured keys, else the one in a file of the data directory, which is made if need be.
pub fn ring(
    config: &Config,
    secrets: &[secrecy::SecretString],
    file: &str,
) -> anyhow::Result<KeyRing> {
    if !secrets.is_empty() {
        return KeyRing::from_secrets(secrets).context("prepare a key");
    }
    make_private_dir(&config.data_dir)?;
    KeyRing::load_or_create(&config.data_dir.join(file)).context("prepare a key")
}

fn make_private_dir(dir: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("make the data directory {}", dir.display()))
}

/// A process that serves.
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    process: Process,
    #[cfg(feature = "api")]
    app: Option<crate::api::AppState>,
    #[cfg(feature = "proxy")]
    node: Option<(Node, tokio_util::task::TaskTracker)>,
    internal: InternalClient,
}

/// Runs `serve`.
pub fn run(flags: &Flags) -> Result<(), Failure> {
    let config = load_config(flags)?;
    let telemetry = Telemetry::start(&config.log);
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::listen().context("listen for signals")?;
        let running = start(config).await?;
        running
            .until_stopped(&mut signals, flags, &telemetry)
            .await?;
        running.shut_down_or(&mut signals).await;
        Ok(())
    });
    // Whatever blocks in the background does not hold the process up.
    runtime.shutdown_timeout(LAST_WORDS);
    ended
}

/// Starts the role of a configuration; returns once everything listens.
pub async fn start(config: Config) -> Result<Running, Failure> {
    let role = config.role;
    if (role.has_api() && cfg!(not(feature = "api")))
        || (role.has_tunnels() && cfg!(not(feature = "proxy")))
    {
        let mistake = format!("--role={role}: this build of edgecloud does not have this role");
        return Err(Failure::Usage(mistake));
    }
    if let Some(path) = &config.ready_file {
        ready_file::remove(path);
    }
    // The first call starts recording.
    drop(render_metrics());
    let process = Process::open(config).await?;
    let internal = InternalClient::new(process.internal_keys.clone(), process.clock.clone());
    let mut addresses = Addresses::default();
    #[cfg(feature = "api")]
    let api = match role.has_api() {
        true => Some(super::api::ApiListeners::bind(&process, &mut addresses)?),
        false => None,
    };
    #[cfg(feature = "proxy")]
    let proxy = match role.has_tunnels() {
        true => Some(super::proxy::ProxyListeners::bind(
            &process,
            &mut addresses,
        )?),
        false => None,
    };
    serve_metrics(&process, &mut addresses)?;
    #[cfg(feature = "proxy")]
    let node = match proxy {
        Some(listeners) => {
            let node = listeners.register(&process).await?;
            let sessions = listeners.serve(&process, &node);
            Some((node, sessions))
        }
        None => None,
    };
    #[cfg(feature = "api")]
    let app = match api {
        Some(listeners) => {
            #[cfg(feature = "proxy")]
            let local = node
                .as_ref()
                .map(|(node, _)| crate::session::LocalSessions(node.registry().clone()));
            #[cfg(not(feature = "proxy"))]
            let local = None;
            let sessions =
                crate::session::ProxySessions::new(local, process.store.clone(), internal.clone());
            Some(listeners.serve(&process, sessions, &addresses)?)
        }
        None => None,
    };
    if let Some(path) = &process.config.ready_file {
        ready_file::write(path, &addresses)?;
    }
    process.lifecycle.ready.cancel();
    let running = Running {
        addresses,
        process,
        #[cfg(feature = "api")]
        app,
        #[cfg(feature = "proxy")]
        node,
        internal,
    };
    running.log_start();
    Ok(running)
}

fn serve_metrics(process: &Process, addresses: &mut Addresses) -> anyhow::Result<()> {
    let Some(addr) = process.config.metrics_listen else {
        return Ok(());
    };
    let listener = Listener::bind(addr, process.config.server.reuse_port, None)
        .with_context(|| format!("bind metrics.listen {addr}"))?;
    addresses.metrics = Some(listener.addr());
    let limits = HttpLimits {
        head_bytes: 16 * 1024,
        headers: 64,
        header_read_timeout: Duration::from_secs(10),
        connections: 64,
    };
    let router = axum::Router::new()
        .route("/metrics", axum::routing::get(async || render_metrics()))
        .route("/healthz", axum::routing::get(async || "ok\n"));
    let abort = process.lifecycle.abort.clone();
    let serve = serve_http(listener, router, limits, abort.clone(), abort);
    process.lifecycle.spawn_vital("metrics listener", serve);
    Ok(())
}

impl Running {
    fn log_start(&self) {
        let (process, addresses) = (&self.process, &self.addresses);
        let shown = |addr: Option<std::net::SocketAddr>| addr.map(|addr| addr.to_string());
        tracing::info!(
            role = %process.config.role,
            version = env!("CARGO_PKG_VERSION"),
            public_url = addresses.public_url,
            api = shown(addresses.api),
            tunnel = shown(addresses.tunnel),
            internal = shown(addresses.internal),
            issuer = shown(addresses.issuer),
            metrics = shown(addresses.metrics),
            "ready"
        );
        if process.config.dev && addresses.issuer.is_some() {
            tracing::warn!(
                "development mode: whoever reaches the issuer on this machine can sign in as anybody"
            );
        }
    }

    /// The tasks and the end of the process.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.process.lifecycle
    }

    /// Waits for a signal that asks for the end, or a task that failed.
    async fn until_stopped(
        &self,
        signals: &mut Signals,
        flags: &Flags,
        telemetry: &Telemetry,
    ) -> Result<(), Failure> {
        loop {
            let asked = tokio::select! {
                asked = signals.next() => asked,
                () = self.lifecycle().failed.cancelled() => {
                    return Err(anyhow!("a part of the process has ended; see the log").into());
                }
            };
            match asked {
                Asked::Stop => return Ok(()),
                Asked::Reload => self.reload(flags, telemetry),
            }
        }
    }

    /// Reads certificates, secrets and the log level again; what is wrong stays as it was.
    fn reload(&self, flags: &Flags, telemetry: &Telemetry) {
        let config = match load_config(flags) {
            Ok(config) => config,
            Err(Failure::Usage(mistakes)) => {
                return tracing::error!(%mistakes, "the settings are wrong; the old ones stay");
            }
            Err(Failure::Failed(error)) => {
                return tracing::error!(%error, "the settings cannot be read; the old ones stay");
            }
        };
        telemetry.set_level(&config.log.level);
        let process = &self.process;
        for (ring, secrets) in [
            (&process.cookie_keys, &config.login.cookie_key),
            (&process.internal_keys, &config.internal.secret),
        ] {
            if !secrets.is_empty()
                && let Err(error) = ring.replace(secrets)
            {
                tracing::error!(%error, "a secret stays as it was");
            }
        }
        if let Some(tls) = &process.tls
            && let Err(error) = tls.reload()
        {
            tracing::error!(%error, "the certificate stays as it was");
        }
        tracing::info!("settings were read again");
    }

    /// Drains; a second signal ends that at once.
    async fn shut_down_or(self, signals: &mut Signals) {
        tracing::info!("stopping");
        tokio::select! {
            () = self.shut_down() => tracing::info!("stopped"),
            _ = signals.next() => tracing::warn!("stopped at once, as asked"),
        }
    }

    /// Drains and ends.
    pub async fn shut_down(self) {
        let lifecycle = self.process.lifecycle.clone();
        let deadline = Instant::now() + self.process.config.server.drain_timeout;
        lifecycle.stop.cancel();
        // What is under way finishes, or its time is over.
        let _ = timeout_at(deadline, self.finish_work(deadline)).await;
        #[cfg(feature = "api")]
        if let Some(app) = &self.app {
            app.0.forwarder.close_websockets();
            let _ = timeout(LAST_WORDS, app.0.forwarder.drain()).await;
            let _ = timeout(LAST_WORDS, app.finish_records()).await;
        }
        #[cfg(feature = "proxy")]
        if let Some((node, sessions)) = &self.node {
            node.drain(Instant::now()).await;
            sessions.close();
            let _ = timeout(LAST_WORDS, sessions.wait()).await;
            node.leave().await;
        }
        if let Some(path) = &self.process.config.ready_file {
            ready_file::remove(path);
        }
        let _ = timeout(LAST_WORDS, self.internal.finish()).await;
        lifecycle.abort.cancel();
        if timeout(LAST_WORDS, lifecycle.finish()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
    }

    async fn finish_work(&self, deadline: Instant) {
        let requests = async {
            #[cfg(feature = "api")]
            if let Some(app) = &self.app {
                app.0.forwarder.drain().await;
            }
        };
        let sessions = async {
            #[cfg(feature = "proxy")]
            if let Some((node, _)) = &self.node {
                node.drain(deadline).await;
            }
            #[cfg(not(feature = "proxy"))]
            let _ = deadline;
        };
        tokio::join!(requests, sessions, self.process.lifecycle.served());
    }
}
