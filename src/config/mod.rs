//! The only reader of settings: a TOML file, the environment and flags become one checked [`Config`].
//!
//! Flags win over the environment, the environment over the file, the file over defaults. All
//! mistakes are found in one go; each is one line that names the key, the value (unless it is
//! secret) and what is allowed.

pub(crate) mod checks;
mod keys;
mod reader;
mod sections;
mod settings;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

pub use settings::{
    ConfigRole, InternalConfig, LimitsConfig, LogConfig, LogFormat, LoginConfig, OidcConfig,
    ServerConfig, ServiceClientConfig, StoreUrl, TlsConfig, TunnelConfig,
};

use reader::Reader;
#[cfg(feature = "agent")]
pub(crate) use reader::read_bounded;
use sections::read_sections;

/// Checked settings of one process.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the process does.
    pub role: ConfigRole,
    /// Whether development defaults and the built-in issuer are in use.
    pub dev: bool,
    /// Where the database and generated keys are kept.
    pub data_dir: PathBuf,
    /// Where the bound addresses are written.
    pub ready_file: Option<PathBuf>,
    /// `[server]`.
    pub server: ServerConfig,
    /// `[tunnel]`.
    pub tunnel: TunnelConfig,
    /// `[internal]`.
    pub internal: InternalConfig,
    /// `[tls]`.
    pub tls: Option<TlsConfig>,
    /// `[store]`.
    pub store: StoreUrl,
    /// `[oidc]`; `None` where the development issuer or nobody signs people in.
    pub oidc: Option<OidcConfig>,
    /// `[login]`.
    pub login: LoginConfig,
    /// `[limits]`.
    pub limits: LimitsConfig,
    /// `[log]`.
    pub log: LogConfig,
    /// `metrics.listen`.
    pub metrics_listen: Option<std::net::SocketAddr>,
    /// `dev.issuer_listen`.
    pub dev_issuer_listen: std::net::SocketAddr,
    shown: String,
}

/// Settings from the command line.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--role`.
    pub role: ConfigRole,
    /// `--dev`.
    pub dev: bool,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--ready-file`.
    pub ready_file: Option<PathBuf>,
    /// `--config`.
    pub config: Option<PathBuf>,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The key, or where the mistake is.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// All mistakes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}: {}", error.key, error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The environment of this process; variables that are not UTF-8 are nobody's settings.
#[expect(
    clippy::disallowed_methods,
    reason = "this is where the environment is read"
)]
pub fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

impl Config {
    /// Reads and checks everything. `env` is the environment.
    ///
    /// # Errors
    /// All mistakes, at least one.
    pub fn load(
        flags: &Flags,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(flags, env);
        let config = read_sections(&mut reader, flags);
        reader.finish(config)
    }

    /// The settings in effect, as TOML, secrets masked.
    pub fn show(&self) -> &str {
        &self.shown
    }
}
