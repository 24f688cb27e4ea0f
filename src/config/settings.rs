//! The checked settings, section by section.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConfigRole {
    /// Everything in one process.
    #[default]
    All,
    /// REST, sign-in, console and forwarding.
    Api,
    /// Tunnels from devices.
    Proxy,
}

impl ConfigRole {
    /// Whether the process serves the API.
    pub fn has_api(self) -> bool {
        self != Self::Proxy
    }

    /// Whether the process terminates tunnels.
    pub fn has_tunnels(self) -> bool {
        self != Self::Api
    }
}

impl fmt::Display for ConfigRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Api => "api",
            Self::Proxy => "proxy",
        })
    }
}

/// `[server]`.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where people reach the cloud; `None` with `--dev`: `http://localhost:<api port>`.
    pub public_url: Option<Url>,
    /// The API's listener.
    pub api_listen: SocketAddr,
    /// Networks whose `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<String>,
    /// How long open streams may go on at the end of the process.
    pub drain_timeout: Duration,
    /// Whether several processes may share the port.
    pub reuse_port: bool,
    /// The domain under which each device has its own host.
    pub device_domain: Option<String>,
}

/// `[tunnel]`.
#[derive(Debug, Clone)]
pub struct TunnelConfig {
    /// The tunnel listener.
    pub listen: SocketAddr,
    /// Where devices reach it; `None` with `--dev`: `ws://127.0.0.1:<tunnel port>`.
    pub public_url: Option<Url>,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Sessions of this process at once.
    pub max_sessions: usize,
    /// Sessions that may begin in a second.
    pub new_sessions_per_second: usize,
    /// Handshakes that may be worked on at once.
    pub handshakes_at_once: usize,
    /// Streams of one session at once.
    pub max_streams_per_session: usize,
    /// Largest WebSocket message, in bytes.
    pub max_message_bytes: usize,
    /// How far the windows of one session may grow together, in bytes.
    pub window_budget_bytes: usize,
    /// How far the windows of all sessions may grow together, in bytes.
    pub process_window_budget_bytes: usize,
}

/// `[internal]`.
#[derive(Debug, Clone)]
pub struct InternalConfig {
    /// The internal API's listener.
    pub listen: Option<SocketAddr>,
    /// Where the other processes reach it; `None`: the bound address.
    pub advertise_url: Option<Url>,
    /// The first signs, all verify; empty: a generated one in the data directory.
    pub secret: Vec<SecretString>,
}

/// `[tls]`.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// PEM file with the certificate chain.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// `store.url`.
#[derive(Debug, Clone)]
pub enum StoreUrl {
    /// A file.
    Sqlite(PathBuf),
    /// A server; the URL holds a password.
    Postgres(SecretString),
}

/// `[oidc.service_client]`.
#[derive(Debug, Clone)]
pub struct ServiceClientConfig {
    /// The back end's own client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: SecretString,
    /// What it asks for.
    pub scopes: Vec<String>,
}

/// `[oidc]`.
#[derive(Debug, Clone)]
pub struct OidcConfig {
    /// The provider, exactly as it names itself.
    pub issuer: String,
    /// Our client there.
    pub client_id: String,
    /// Without it we are a public client.
    pub client_secret: Option<SecretString>,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// More parameters of the authorization request.
    pub authorize_params: BTreeMap<String, String>,
    /// The claim that names a person's tenants.
    pub tenant_claim: Option<String>,
    /// Signature algorithms of ID tokens.
    pub allowed_algs: Vec<String>,
    /// Certificates to trust in the place of the system's.
    pub ca_file: Option<PathBuf>,
    /// The back end's own client_credentials client.
    pub service_client: Option<ServiceClientConfig>,
    /// What access tokens of service clients must be meant for.
    pub api_audience: Option<String>,
}

/// `[login]`.
#[derive(Debug, Clone)]
pub struct LoginConfig {
    /// The first signs, all verify; empty: a generated one in the data directory.
    pub cookie_key: Vec<SecretString>,
    /// A login that is not used this long is over.
    pub idle_timeout: Duration,
    /// A login this old is over.
    pub absolute_timeout: Duration,
}

/// `[limits]`.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Largest request head, in bytes.
    pub request_head_bytes: usize,
    /// Largest JSON body, in bytes.
    pub json_body_bytes: usize,
    /// How long a request head may take.
    pub header_read_timeout: Duration,
    /// How long a JSON body may take.
    pub body_read_timeout: Duration,
    /// How long a caller may take nothing of what waits for it.
    pub write_timeout: Duration,
    /// Connections of a listener at once.
    pub connections: usize,
    /// Wrong pairing codes and tokens of invitations that one address may try in a minute.
    pub pairing_attempts_per_minute: usize,
    /// Wrong pairing codes and tokens of invitations that all may try in a minute.
    pub pairing_attempts_global_per_minute: usize,
    /// Sign-ins that one address may begin in a minute.
    pub sign_in_starts_per_minute: usize,
    /// Callbacks of one address in a minute that sign nobody in and are still told why.
    pub failed_callbacks_per_minute: usize,
    /// Wrong device tokens of one address in a minute that are still told so.
    pub failed_device_tokens_per_minute: usize,
    /// How long opening a stream to a device may take.
    pub stream_open_timeout: Duration,
    /// How long a device may take for its response head.
    pub response_header_timeout: Duration,
    /// How long a plain response may pause.
    pub response_idle_timeout: Duration,
    /// Kept-alive streams of one session.
    pub idle_streams_per_session: usize,
    /// Requests that one tenant may have open in a process.
    pub open_requests_per_tenant: usize,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]`.
#[derive(Debug, Clone, Default)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// Which lines are written, as in `info` or `info,edgecloud::forward=debug`.
    pub level: String,
}
