//! The settings of `edgecloud tcp`: the command line and the environment, checked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use url::{Host, Url};

use crate::cli::TcpArgs;
use crate::config::checks::{is_loopback, is_plain_origin};
use crate::config::{ConfigError, ConfigErrors, read_bounded};
use crate::types::DeviceId;

const CLOUD_ALLOWED: &str = "https://cloud.example.com (http on loopback only), without a path";
const ISSUER_ALLOWED: &str =
    "the provider's https URL (http on loopback only), without query and fragment";

/// The variable with the service client's secret; with `_FILE` behind it, of the file that holds it.
const SECRET: &str = "EDGECLOUD_CLIENT_SECRET";

/// How an access token is got.
#[derive(Debug, Clone)]
pub struct AccessConfig {
    /// The provider.
    pub issuer: Url,
    /// The service client there.
    pub client_id: String,
    /// Its secret.
    pub client_secret: SecretString,
    /// More parameters of the token request, such as `scope`, `resource` or `audience`.
    pub params: Vec<(String, String)>,
}

/// Checked settings of one `edgecloud tcp`.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The cloud.
    pub cloud: Url,
    /// The device.
    pub device: DeviceId,
    /// The port on the device's side.
    pub port: u16,
    /// A host in the device's network; the device itself when missing.
    pub host: Option<Host<String>>,
    /// Where to listen; standard input and output when missing.
    pub listen: Option<SocketAddr>,
    /// The certificates to trust in the place of the system's.
    pub ca_file: Option<PathBuf>,
    /// How an access token is got.
    pub access: AccessConfig,
}

impl ClientConfig {
    /// Checks the command line, and takes the secret from the environment.
    ///
    /// # Errors
    /// All mistakes, at least one.
    pub fn from_args(
        args: TcpArgs,
        environment: &[(String, String)],
    ) -> Result<Self, ConfigErrors> {
        let mut mistakes = Vec::new();
        let mut refuse = |key: &str, message: String| {
            let key = key.to_owned();
            mistakes.push(ConfigError { key, message });
        };
        if !is_plain_origin(&args.cloud, &["http", "https"])
            || (args.cloud.scheme() == "http" && !is_loopback(&args.cloud))
        {
            let cloud = &args.cloud;
            refuse(
                "--cloud",
                format!("{cloud} is not allowed: {CLOUD_ALLOWED}"),
            );
        }
        let issuer = &args.issuer;
        let secure =
            issuer.scheme() == "https" || (issuer.scheme() == "http" && is_loopback(issuer));
        if !secure || issuer.query().is_some() || issuer.fragment().is_some() {
            refuse(
                "--issuer",
                format!("{issuer} is not allowed: {ISSUER_ALLOWED}"),
            );
        }
        let device = args.device.parse();
        if device.is_err() {
            let message = "is not a device's id, which begins with dev_".to_owned();
            refuse("DEVICE", message);
        }
        let host = args.host.as_deref().map(Host::parse);
        if let Some(Err(_)) = host {
            let message = "a host name or an IP address is needed, one of IPv6 in brackets";
            refuse("--host", message.to_owned());
        }
        let mut params = Vec::new();
        for param in &args.token_param {
            match param.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    params.push((name.to_owned(), value.to_owned()));
                }
                _ => refuse(
                    "--token-param",
                    "NAME=VALUE is needed, as in scope=api".to_owned(),
                ),
            }
        }
        let client_secret = read_secret(environment);
        if let Err(message) = &client_secret {
            refuse(SECRET, message.clone());
        }
        match (device, client_secret) {
            (Ok(device), Ok(client_secret)) if mistakes.is_empty() => Ok(Self {
                cloud: args.cloud,
                device,
                port: args.port,
                host: host.and_then(Result::ok),
                listen: args.listen,
                ca_file: args.ca_file,
                access: AccessConfig {
                    issuer: args.issuer,
                    client_id: args.client_id,
                    client_secret,
                    params,
                },
            }),
            _ => Err(ConfigErrors(mistakes)),
        }
    }
}

fn read_secret(environment: &[(String, String)]) -> Result<SecretString, String> {
    let value = |wanted: &str| {
        let found = environment.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    };
    match (value(SECRET), value("EDGECLOUD_CLIENT_SECRET_FILE")) {
        (Some(secret), None) if !secret.is_empty() => Ok(SecretString::from(secret)),
        (None, Some(path)) => match read_bounded(Path::new(path)) {
            Ok(text) => Ok(SecretString::from(text.trim_end())),
            Err(error) => Err(format!("the file {path:?} cannot be read: {error}")),
        },
        (Some(_), Some(_)) => Err("and EDGECLOUD_CLIENT_SECRET_FILE are both given".to_owned()),
        _ => Err("is missing: the service client's secret".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use secrecy::ExposeSecret;

    const GOOD: [&str; 6] = [
        "--cloud=https://cloud.example",
        "--issuer=https://id.example/realm",
        "--client-id=ssh",
        "--host=10.0.0.5",
        "--token-param=scope=a b",
        "--stdio",
    ];

    fn config(device: &str, more: &[&str], env: &[(&str, &str)]) -> Result<ClientConfig, String> {
        let line = ["edgecloud", "tcp", device, "22"];
        let line = line.iter().chain(more);
        let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
        let Command::Tcp(args) = cli.command else {
            unreachable!("the command line says tcp");
        };
        let env: Vec<_> = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        ClientConfig::from_args(args, &env).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn the_command_line_and_the_secret_become_settings() {
        let device = DeviceId::random();
        let read = config(device.as_str(), &GOOD, &[(SECRET, "s3cret")]).expect("good");
        assert_eq!((read.device, read.port), (device, 22));
        assert_eq!(read.access.client_secret.expose_secret(), "s3cret");
        assert_eq!(read.access.params, [("scope".to_owned(), "a b".to_owned())]);
    }

    #[test]
    fn every_mistake_is_named_and_no_secret_is() {
        let bad = [
            "--cloud=http://cloud.example",
            "--issuer=https://id.example/?x",
            "--client-id=ssh",
            "--host=a b",
            "--token-param=scope",
        ];
        let env = [(SECRET, "s3cret"), ("EDGECLOUD_CLIENT_SECRET_FILE", "/x")];
        let mistakes = config("box", &bad, &env).expect_err("all wrong");
        for key in [
            "--cloud",
            "--issuer",
            "DEVICE",
            "--host",
            "--token-param",
            SECRET,
        ] {
            assert!(mistakes.contains(key), "{key}: {mistakes}");
        }
        assert!(!mistakes.contains("s3cret"), "{mistakes}");
        let missing = config(DeviceId::random().as_str(), &GOOD, &[]).expect_err("no secret");
        assert!(missing.contains("is missing"), "{missing}");
    }
}
