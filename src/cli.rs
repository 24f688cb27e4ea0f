//! The command line, as types.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use secrecy::SecretString;
use url::Url;

use crate::config::{ConfigRole, Flags};

/// Self-hosted cloud back end for fleets of edge AI boxes behind NAT.
#[derive(Debug, Parser)]
#[command(name = "edgecloud", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the cloud, or one role of it.
    #[cfg(feature = "_server")]
    Serve(ServeArgs),
    /// Try everything in one command: the cloud in development mode, a sample origin and an agent
    /// that is already paired.
    #[cfg(all(
        feature = "api",
        feature = "proxy",
        feature = "agent",
        feature = "sqlite",
        feature = "dev-issuer"
    ))]
    Demo(CommonArgs),
    /// Run on a device: pair it once, then keep its tunnel.
    #[cfg(feature = "agent")]
    Agent(AgentArgs),
    /// Open a TCP port of a device from here, as a program (a service client).
    #[cfg(feature = "agent")]
    Tcp(TcpArgs),
    /// Check or show the settings.
    #[cfg(feature = "_server")]
    Config {
        /// What to do with them.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Look after the database.
    #[cfg(feature = "_server")]
    Db {
        /// What to do with it.
        #[command(subcommand)]
        command: DbCommand,
    },
    /// Look after the audit.
    #[cfg(feature = "_server")]
    Audit {
        /// What to do with it.
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Look after the programs that call the API.
    #[cfg(feature = "_server")]
    ServiceClient {
        /// What to do with them.
        #[command(subcommand)]
        command: ServiceClientCommand,
    },
    /// Print the OpenAPI document.
    #[cfg(feature = "api")]
    Openapi,
    /// Exit with 0 when the process with the same settings on this machine is ready.
    #[cfg(feature = "_server")]
    Healthcheck(ServeArgs),
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Everything in one process.
    All,
    /// REST, sign-in, console and forwarding.
    Api,
    /// Tunnels from devices.
    Proxy,
}

impl From<RoleArg> for ConfigRole {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::All => Self::All,
            RoleArg::Api => Self::Api,
            RoleArg::Proxy => Self::Proxy,
        }
    }
}

/// Settings of every command that reads the configuration.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Configuration file [env: EDGECLOUD_CONFIG].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the database and generated keys are kept [default: ./edgecloud-data].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Write the bound addresses to this file once everything listens.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// Settings of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// What this process does.
    #[arg(long, value_enum, default_value = "all")]
    pub role: RoleArg,
    /// Development: plain http on loopback, and a built-in OpenID provider without passwords.
    #[arg(long)]
    pub dev: bool,
    /// The rest.
    #[command(flatten)]
    pub common: CommonArgs,
}

impl From<ServeArgs> for Flags {
    fn from(args: ServeArgs) -> Self {
        Self {
            role: args.role.into(),
            dev: args.dev,
            ..args.common.into()
        }
    }
}

impl From<CommonArgs> for Flags {
    fn from(args: CommonArgs) -> Self {
        Self {
            config: args.config,
            data_dir: args.data_dir,
            ready_file: args.ready_file,
            ..Self::default()
        }
    }
}

/// Settings of `agent`.
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// The cloud, as in `https://cloud.example.com`; needed until the device is paired.
    #[arg(long, value_name = "URL", value_parser = url)]
    pub cloud: Option<Url>,
    /// The pairing code; ignored once the device is paired.
    #[arg(
        long,
        value_name = "CODE",
        env = "EDGECLOUD_PAIR",
        hide_env_values = true
    )]
    pub pair: Option<SecretString>,
    /// The device's own HTTP server, as in http://127.0.0.1:8080.
    #[arg(long, value_name = "URL", value_parser = url)]
    pub origin: Url,
    /// Where the device's identity is kept [default: $XDG_STATE_HOME/edgecloud].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// A further address that may be reached through the cloud; may be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    pub allow_tcp: Vec<String>,
    /// PEM file of the certificates to trust in the place of the system's.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The Host header for the origin [default: the origin's own].
    #[arg(long, value_name = "NAME")]
    pub host_header: Option<String>,
    /// Streams at once; each is a connection to the origin. Far more than the 256 that a cloud opens unless told
    /// otherwise, since a stream may end later here than there.
    #[arg(long, value_name = "NUMBER", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..=16_384))]
    pub max_streams: u16,
}

/// Settings of `tcp`.
#[derive(Debug, Clone, Args)]
pub struct TcpArgs {
    /// The device's id.
    pub device: String,
    /// The port on the device; its agent must list it with --allow-tcp.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// A host in the device's network, in the place of the device itself.
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Take connections at this address, each for a connection to the device.
    #[arg(long, value_name = "ADDR", conflicts_with = "stdio")]
    pub listen: Option<std::net::SocketAddr>,
    /// Serve one connection on standard input and output, as an ssh ProxyCommand [the default].
    #[arg(long)]
    pub stdio: bool,
    /// The cloud, as in `https://cloud.example.com`.
    #[arg(long, value_name = "URL", env = "EDGECLOUD_CLOUD", value_parser = url)]
    pub cloud: Url,
    /// The OpenID provider that gives the access token.
    #[arg(long, value_name = "URL", env = "EDGECLOUD_ISSUER", value_parser = url)]
    pub issuer: Url,
    /// The service client's id at the provider; its secret comes from EDGECLOUD_CLIENT_SECRET, or from
    /// the file that EDGECLOUD_CLIENT_SECRET_FILE names.
    #[arg(long, value_name = "ID", env = "EDGECLOUD_CLIENT_ID")]
    pub client_id: String,
    /// A further parameter of the token request, as in scope=api; may be given several times.
    #[arg(long, value_name = "NAME=VALUE")]
    pub token_param: Vec<String>,
    /// PEM file of the certificates to trust in the place of the system's.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// Reads a URL; says what one looks like when it is none.
fn url(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|_| "a URL is needed, as in http://127.0.0.1:8080".to_owned())
}

/// What to do with the settings.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Say nothing when they are right, everything that is wrong otherwise.
    Check(ServeArgs),
    /// Print the settings in effect, secrets masked.
    Show(ServeArgs),
}

/// What to do with the database.
#[derive(Debug, Clone, Subcommand)]
pub enum DbCommand {
    /// Bring the schema up to date.
    Migrate(ServeArgs),
    /// Copy the database to a new file while it is in use.
    Backup {
        /// The new file.
        file: PathBuf,
        /// The rest.
        #[command(flatten)]
        args: ServeArgs,
    },
    /// Look for damage.
    Check(ServeArgs),
}

/// What to do with the audit.
#[derive(Debug, Clone, Subcommand)]
pub enum AuditCommand {
    /// Check that no row was changed, removed or put in since it was sealed.
    Verify {
        /// The hash that an earlier check printed, in hexadecimal: must be part of the chain.
        #[arg(long, value_name = "HASH")]
        expect: Option<String>,
        /// The rest.
        #[command(flatten)]
        args: ServeArgs,
    },
}

/// What to do with the programs that call the API.
#[derive(Debug, Clone, Subcommand)]
pub enum ServiceClientCommand {
    /// Take a client id away from the tenant that has registered it, and cut what the program has open.
    Remove {
        /// The OAuth client id at the provider.
        client_id: String,
        /// The rest.
        #[command(flatten)]
        args: ServeArgs,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[cfg(feature = "agent")]
    #[test]
    fn a_pairing_code_is_not_shown() {
        let args = [
            "edgecloud",
            "agent",
            "--origin",
            "http://127.0.0.1:1",
            "--pair",
            "ABCD-EFGH",
        ];
        let cli = Cli::parse_from(args);
        assert!(!format!("{cli:?}").contains("ABCD"));
    }
}
