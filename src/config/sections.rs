//! How each section is read, and what is allowed in it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::checks;
use super::reader::Reader;
use super::{
    Config, ConfigRole, Flags, InternalConfig, LimitsConfig, LogConfig, LogFormat, LoginConfig,
    OidcConfig, ServerConfig, ServiceClientConfig, StoreUrl, TlsConfig, TunnelConfig,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const API_LISTEN: &str = "127.0.0.1:3721";
/// Shortest cookie key and internal secret, in bytes.
const MIN_KEY_BYTES: usize = 32;

/// Reads everything that the role uses.
pub fn read_sections(reader: &mut Reader, flags: &Flags) -> Config {
    let role = flags.role;
    let data_dir = flags
        .data_dir
        .clone()
        .unwrap_or_else(|| "./edgecloud-data".into());
    let unused = &mut Reader::unused();
    let server = read_server(reader, flags);
    let tunnel = match role.has_tunnels() {
        true => read_tunnel(reader, flags),
        false => read_tunnel(unused, flags),
    };
    let store = read_store(reader, &data_dir);
    let postgres = matches!(store, StoreUrl::Postgres(_));
    let internal = read_internal(reader, role, postgres);
    let tls = read_tls(reader);
    let of_api = match role.has_api() {
        true => &mut *reader,
        false => &mut *unused,
    };
    let oidc = match role.has_api() {
        true => read_oidc(of_api, flags, &server),
        false => None,
    };
    let login = read_login(of_api, role, postgres);
    let failed_device_tokens = match role.has_tunnels() {
        true => read_failed_device_tokens(reader),
        false => read_failed_device_tokens(unused),
    };
    let of_api = match role.has_api() {
        true => &mut *reader,
        false => unused,
    };
    let limits = read_limits(of_api, failed_device_tokens);
    let dev_issuer_listen = read_issuer_listen(of_api, flags);
    Config {
        role,
        dev: flags.dev,
        data_dir,
        ready_file: flags.ready_file.clone(),
        server,
        tunnel,
        internal,
        tls,
        store,
        oidc,
        login,
        limits,
        log: read_log(reader),
        metrics_listen: reader.optional("metrics.listen", "an address and a port"),
        dev_issuer_listen,
        shown: String::new(),
    }
}

fn read_server(reader: &mut Reader, flags: &Flags) -> ServerConfig {
    let api = flags.role.has_api();
    let public_url = match api {
        true => checks::http_origin(reader, "server.public_url"),
        false => None,
    };
    if api && !flags.dev && !reader.has("server.public_url") {
        let message = "is missing: the address at which people reach the cloud, as in https://cloud.example.com (or start with --dev)";
        reader.mistake("server.public_url", message);
    }
    let device_domain = match api {
        true => checks::device_domain(reader, flags.dev, public_url.as_ref()),
        false => None,
    };
    ServerConfig {
        public_url,
        api_listen: match api {
            true => reader.addr("server.api_listen", API_LISTEN),
            false => Reader::unused().addr("server.api_listen", API_LISTEN),
        },
        trusted_proxies: checks::networks(reader, "server.trusted_proxies"),
        drain_timeout: reader.duration("server.drain_timeout", 30 * SECOND, Duration::ZERO..=HOUR),
        reuse_port: reader.value("server.reuse_port", false, "true or false"),
        device_domain,
    }
}

fn read_tunnel(reader: &mut Reader, flags: &Flags) -> TunnelConfig {
    let public_url = match flags.role.has_tunnels() {
        true => checks::websocket_origin(reader, "tunnel.public_url"),
        false => None,
    };
    if flags.role.has_tunnels() && !flags.dev && !reader.has("tunnel.public_url") {
        let message = "is missing: the address at which devices reach the tunnel listener, as in wss://tunnel.example.com";
        reader.mistake("tunnel.public_url", message);
    }
    TunnelConfig {
        listen: reader.addr("tunnel.listen", "127.0.0.1:3800"),
        public_url,
        heartbeat: reader.duration("tunnel.heartbeat", 15 * SECOND, SECOND..=5 * MINUTE),
        max_sessions: reader.count("tunnel.max_sessions", 50_000, 1..=1_000_000),
        new_sessions_per_second: reader.count(
            "tunnel.new_sessions_per_second",
            10_000,
            1..=1_000_000,
        ),
        handshakes_at_once: reader.count("tunnel.handshakes_at_once", 512, 1..=100_000),
        max_streams_per_session: reader.count("tunnel.max_streams_per_session", 256, 1..=16_384),
        max_message_bytes: reader.count(
            "tunnel.max_message_bytes",
            2 << 20,
            (64 << 10)..=(64 << 20),
        ),
        window_budget_bytes: reader.count("tunnel.window_budget_bytes", 16 << 20, 0..=(1 << 30)),
        process_window_budget_bytes: reader.count(
            "tunnel.process_window_budget_bytes",
            512 << 20,
            0..=(1 << 36),
        ),
    }
}

fn read_internal(reader: &mut Reader, role: ConfigRole, postgres: bool) -> InternalConfig {
    let listen = match role {
        ConfigRole::Api => None,
        ConfigRole::Proxy => Some(reader.addr("internal.listen", "127.0.0.1:3801")),
        ConfigRole::All => reader.optional(
            "internal.listen",
            "an address and a port, as in 127.0.0.1:3801",
        ),
    };
    let secret = reader.secrets("internal.secret", MIN_KEY_BYTES);
    let used = role != ConfigRole::All || listen.is_some();
    if used && postgres && secret.is_empty() {
        reader.mistake("internal.secret", checks::KEY_FOR_POSTGRES);
    }
    if listen.is_some_and(|addr| !addr.ip().is_loopback()) && secret.is_empty() {
        let message = "is missing: an internal.listen that is not loopback needs a secret of at least 32 bytes";
        reader.mistake("internal.secret", message);
    }
    let advertise_url = reader.optional(
        "internal.advertise_url",
        "a URL, as in http://10.0.0.5:3801",
    );
    if let Some(url) = &advertise_url
        && !checks::is_plain_origin(url, &["http"])
    {
        reader.refuse(
            "internal.advertise_url",
            url,
            "http, a host and a port, nothing more",
        );
    }
    InternalConfig {
        listen,
        advertise_url,
        secret,
    }
}

fn read_tls(reader: &mut Reader) -> Option<TlsConfig> {
    let cert = reader
        .optional::<String>("tls.cert", "a file")
        .map(PathBuf::from);
    let key = reader
        .optional::<String>("tls.key", "a file")
        .map(PathBuf::from);
    match (cert, key) {
        (Some(cert), Some(key)) => {
            for (name, path) in [("tls.cert", &cert), ("tls.key", &key)] {
                if let Err(error) = std::fs::File::open(path) {
                    let path = path.display();
                    reader.mistake(name, format!("the file {path} cannot be read: {error}"));
                }
            }
            Some(TlsConfig { cert, key })
        }
        (None, None) => None,
        (Some(_), None) => {
            reader.mistake("tls.key", "is missing: tls.cert and tls.key go together");
            None
        }
        (None, Some(_)) => {
            reader.mistake("tls.cert", "is missing: tls.cert and tls.key go together");
            None
        }
    }
}

fn read_store(reader: &mut Reader, data_dir: &std::path::Path) -> StoreUrl {
    let default = StoreUrl::Sqlite(data_dir.join("edgecloud.db"));
    let Some(url) = reader.secret("store.url") else {
        let path = data_dir.join("edgecloud.db");
        reader.show_text("store.url", format!("sqlite:{}", path.display()));
        return default;
    };
    let text = url.expose_secret();
    if let Some(path) = text.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
        let data_dir = data_dir.to_string_lossy();
        let path = path.replace("DATA_DIR", &data_dir);
        reader.show_text("store.url", format!("sqlite:{path}"));
        return StoreUrl::Sqlite(path.into());
    }
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        return StoreUrl::Postgres(url);
    }
    reader.refuse(
        "store.url",
        "",
        "sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE",
    );
    default
}

fn read_oidc(reader: &mut Reader, flags: &Flags, server: &ServerConfig) -> Option<OidcConfig> {
    let issuer = reader.optional::<String>("oidc.issuer", "a URL");
    let client_id = reader.optional::<String>("oidc.client_id", "a text");
    let client_secret = reader.secret("oidc.client_secret");
    let oidc = OidcConfig {
        issuer: issuer.clone().unwrap_or_default(),
        client_id: client_id.clone().unwrap_or_default(),
        client_secret,
        scopes: reader.list("oidc.scopes", &["openid", "profile", "email"]),
        authorize_params: reader.table("oidc.authorize_params"),
        tenant_claim: reader.optional("oidc.tenant_claim", "the name of a claim"),
        allowed_algs: checks::algorithms(reader),
        ca_file: reader
            .optional::<String>("oidc.ca_file", "a file")
            .map(PathBuf::from),
        service_client: read_service_client(reader),
        api_audience: reader.optional("oidc.api.audience", "a text"),
    };
    if !oidc.scopes.iter().any(|scope| scope == "openid") {
        reader.mistake("oidc.scopes", "must contain openid");
    }
    match (&issuer, &client_id) {
        (None, None) if flags.dev => return None,
        (None, _) => {
            let origin = match &server.public_url {
                Some(url) => url.origin().ascii_serialization(),
                None => "<server.public_url>".to_owned(),
            };
            reader.mistake("oidc.issuer", format!(
                "is missing: the URL of your OpenID Connect provider; register this redirect URI there: {origin}/api/auth/callback"
            ));
        }
        (Some(_), None) => reader.mistake(
            "oidc.client_id",
            "is missing: our client's id at the provider",
        ),
        (Some(_), Some(_)) => {}
    }
    if let Some(issuer) = &issuer
        && !checks::is_issuer(issuer)
    {
        let allowed = "an https URL without query and fragment (http on loopback only)";
        reader.refuse("oidc.issuer", issuer, allowed);
    }
    Some(oidc)
}

fn read_service_client(reader: &mut Reader) -> Option<ServiceClientConfig> {
    let client_id = reader.optional::<String>("oidc.service_client.client_id", "a text");
    let client_secret = reader.secret("oidc.service_client.client_secret");
    let scopes = match reader.has("oidc.service_client.scopes") {
        true => reader.list("oidc.service_client.scopes", &[]),
        false => Vec::new(),
    };
    match (client_id, client_secret) {
        (Some(client_id), Some(client_secret)) => Some(ServiceClientConfig {
            client_id,
            client_secret,
            scopes,
        }),
        (None, None) => None,
        _ => {
            let message = "needs both client_id and client_secret";
            reader.mistake("oidc.service_client", message);
            None
        }
    }
}

fn read_login(reader: &mut Reader, role: ConfigRole, postgres: bool) -> LoginConfig {
    let cookie_key = reader.secrets("login.cookie_key", MIN_KEY_BYTES);
    if role.has_api() && postgres && cookie_key.is_empty() {
        reader.mistake("login.cookie_key", checks::KEY_FOR_POSTGRES);
    }
    let idle_timeout = reader.duration("login.idle_timeout", 12 * HOUR, MINUTE..=90 * DAY);
    let absolute_timeout = reader.duration("login.absolute_timeout", 7 * DAY, MINUTE..=90 * DAY);
    if reader.has("login.idle_timeout") && idle_timeout > absolute_timeout {
        let message = "is longer than login.absolute_timeout, which ends a login in any case";
        reader.mistake("login.idle_timeout", message);
    }
    LoginConfig {
        cookie_key,
        idle_timeout,
        absolute_timeout,
    }
}

/// The one limit of the tunnel listener.
fn read_failed_device_tokens(reader: &mut Reader) -> usize {
    let key = "limits.failed_device_tokens_per_minute";
    reader.count(key, 60, 1..=10_000)
}

fn read_limits(reader: &mut Reader, failed_device_tokens_per_minute: usize) -> LimitsConfig {
    let minute = 60 * SECOND;
    LimitsConfig {
        request_head_bytes: reader.count(
            "limits.request_head_bytes",
            64 << 10,
            (8 << 10)..=(1 << 20),
        ),
        json_body_bytes: reader.count("limits.json_body_bytes", 1 << 20, 1024..=(64 << 20)),
        header_read_timeout: reader.duration(
            "limits.header_read_timeout",
            10 * SECOND,
            SECOND..=HOUR,
        ),
        body_read_timeout: reader.duration("limits.body_read_timeout", 10 * SECOND, SECOND..=HOUR),
        write_timeout: reader.duration("limits.write_timeout", 5 * MINUTE, SECOND..=HOUR),
        connections: reader.count("limits.connections", 20_000, 1..=1_000_000),
        pairing_attempts_per_minute: reader.count(
            "limits.pairing_attempts_per_minute",
            10,
            1..=10_000,
        ),
        pairing_attempts_global_per_minute: reader.count(
            "limits.pairing_attempts_global_per_minute",
            600,
            1..=1_000_000,
        ),
        sign_in_starts_per_minute: reader.count("limits.sign_in_starts_per_minute", 60, 1..=10_000),
        failed_callbacks_per_minute: reader.count(
            "limits.failed_callbacks_per_minute",
            30,
            1..=10_000,
        ),
        failed_device_tokens_per_minute,
        stream_open_timeout: reader.duration(
            "limits.stream_open_timeout",
            10 * SECOND,
            SECOND..=minute,
        ),
        response_header_timeout: reader.duration(
            "limits.response_header_timeout",
            minute,
            SECOND..=HOUR,
        ),
        response_idle_timeout: reader.duration(
            "limits.response_idle_timeout",
            5 * MINUTE,
            SECOND..=DAY,
        ),
        idle_streams_per_session: reader.count("limits.idle_streams_per_session", 256, 0..=4096),
        open_requests_per_tenant: reader.count(
            "limits.open_requests_per_tenant",
            2_000,
            1..=1_000_000,
        ),
    }
}

fn read_log(reader: &mut Reader) -> LogConfig {
    let format = reader.value("log.format", "text".to_owned(), "text or json");
    let format = match format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            reader.refuse("log.format", other, "text or json");
            LogFormat::Text
        }
    };
    let level = reader.value("log.level", "info".to_owned(), "a level");
    if !level.split(',').all(is_log_directive) {
        let allowed = "off, error, warn, info, debug or trace, or more exactly as in info,edgecloud::forward=debug";
        reader.refuse("log.level", &level, allowed);
    }
    LogConfig { format, level }
}

/// A level, or a module and its level. (The filter itself takes any other word for a module, and says
/// nothing about all the others.)
fn is_log_directive(text: &str) -> bool {
    let level = text.rsplit('=').next().unwrap_or_default().trim();
    let known = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = known.iter().any(|known| level.eq_ignore_ascii_case(known));
    is_level && text.matches('=').count() <= 1 && !text.trim_start().starts_with('=')
}

fn read_issuer_listen(reader: &mut Reader, flags: &Flags) -> SocketAddr {
    let addr = reader.addr("dev.issuer_listen", "127.0.0.1:3790");
    if flags.dev && !addr.ip().is_loopback() {
        reader.refuse(
            "dev.issuer_listen",
            addr,
            "a loopback address: the development issuer has no passwords",
        );
    }
    addr
}
