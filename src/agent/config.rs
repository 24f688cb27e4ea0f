//! The agent's settings: the values of the command line, checked.

use std::fmt::Display;
use std::path::PathBuf;

use secrecy::SecretString;
use url::Url;

use super::address::Address;
use crate::cli::AgentArgs;
use crate::config::checks::{is_loopback, is_plain_origin};
use crate::config::{ConfigError, ConfigErrors};

/// Longest `Host` that a proxy passes on, in bytes.
const MAX_HOST_BYTES: usize = 255;

const CLOUD_ALLOWED: &str = "https://cloud.example.com (http on loopback only), without a path";
const ORIGIN_ALLOWED: &str = "http://HOST:PORT, without a path; an https origin is not supported";
const ADDRESS_ALLOWED: &str = "HOST:PORT, as in 192.168.1.5:502 or [fd00::5]:22";
const HOST_ALLOWED: &str = "a host name, perhaps with a port, of at most 255 bytes";

/// Checked settings of one agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The cloud to pair with; not needed once paired.
    pub cloud: Option<Url>,
    /// The pairing code; not needed once paired.
    pub pair: Option<SecretString>,
    /// The device's own HTTP server.
    pub origin: Url,
    /// Where the device's identity is kept.
    pub state_dir: PathBuf,
    /// What may be reached by raw TCP besides the origin.
    pub allow_tcp: Vec<Address>,
    /// The certificates to trust in the place of the system's.
    pub ca_file: Option<PathBuf>,
    /// The `Host` for the origin in the place of its own.
    pub host_header: Option<String>,
    /// Streams that are served at once.
    pub max_streams: usize,
}

impl AgentConfig {
    /// Checks the command line. `default_state_dir` is where the identity is kept unless told
    /// otherwise, `None` when the environment names no such place.
    ///
    /// # Errors
    /// All mistakes, at least one.
    pub fn from_args(
        args: AgentArgs,
        default_state_dir: Option<PathBuf>,
    ) -> Result<Self, ConfigErrors> {
        let mut mistakes = Mistakes::default();
        if let Some(cloud) = &args.cloud {
            mistakes.check_cloud(cloud);
        }
        mistakes.check_origin(&args.origin, args.cloud.as_ref());
        let allow_tcp = mistakes.parse_addresses(&args.allow_tcp);
        if let Some(host) = &args.host_header
            && !is_host(host)
        {
            mistakes.refuse("--host-header", host, HOST_ALLOWED);
        }
        let state_dir = args.state_dir.or(default_state_dir);
        if state_dir.is_none() {
            let message = "is missing: neither XDG_STATE_HOME nor HOME names a place for it";
            mistakes.add("--state-dir", message.to_owned());
        }
        match state_dir {
            Some(state_dir) if mistakes.0.is_empty() => Ok(Self {
                cloud: args.cloud,
                pair: args.pair,
                origin: args.origin,
                state_dir,
                allow_tcp,
                ca_file: args.ca_file,
                host_header: args.host_header,
                max_streams: args.max_streams.into(),
            }),
            _ => Err(ConfigErrors(mistakes.0)),
        }
    }

    /// The `Host` that the origin expects.
    pub fn origin_host(&self) -> String {
        match (&self.host_header, self.origin.host(), self.origin.port()) {
            (Some(host), _, _) => host.clone(),
            (None, Some(host), Some(port)) => format!("{host}:{port}"),
            (None, Some(host), None) => host.to_string(),
            (None, None, _) => "localhost".to_owned(),
        }
    }
}

/// Whether an origin is the cloud itself: each request would come back for ever.
pub(super) fn is_loop(origin: &Url, cloud: &Url) -> bool {
    match (Address::of_url(origin), Address::of_url(cloud)) {
        (Some(origin), Some(cloud)) => origin.is_same_place(&cloud),
        _ => false,
    }
}

/// Whether a text can stand in a `Host` header.
fn is_host(text: &str) -> bool {
    let authority = text.parse::<http::uri::Authority>();
    authority.is_ok() && !text.contains('@') && text.len() <= MAX_HOST_BYTES
}

#[derive(Default)]
struct Mistakes(Vec<ConfigError>);

impl Mistakes {
    fn add(&mut self, key: &str, message: String) {
        let key = key.to_owned();
        self.0.push(ConfigError { key, message });
    }

    fn refuse(&mut self, key: &str, value: impl Display, allowed: &str) {
        let value = value.to_string();
        self.add(key, format!("{value:?} is not allowed: {allowed}"));
    }

    /// URLs are shown without the password that one may carry by mistake.
    fn refuse_url(&mut self, key: &str, url: &Url, allowed: &str) {
        let mut shown = url.clone();
        if shown.password().is_some() && shown.set_password(Some("***")).is_err() {
            return self.refuse(key, "the value", allowed);
        }
        self.refuse(key, shown, allowed);
    }

    fn check_cloud(&mut self, cloud: &Url) {
        let plain = cloud.scheme() == "http";
        if !is_plain_origin(cloud, &["http", "https"]) || (plain && !is_loopback(cloud)) {
            self.refuse_url("--cloud", cloud, CLOUD_ALLOWED);
        }
    }

    fn check_origin(&mut self, origin: &Url, cloud: Option<&Url>) {
        if !is_plain_origin(origin, &["http"]) || Address::of_url(origin).is_none() {
            return self.refuse_url("--origin", origin, ORIGIN_ALLOWED);
        }
        if cloud.is_some_and(|cloud| is_loop(origin, cloud)) {
            self.refuse_url("--origin", origin, "another server than the cloud itself");
        }
    }

    fn parse_addresses(&mut self, texts: &[String]) -> Vec<Address> {
        let mut addresses = Vec::new();
        for text in texts {
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => self.refuse("--allow-tcp", text, ADDRESS_ALLOWED),
            }
        }
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(cloud: Option<&str>, origin: &str) -> AgentArgs {
        AgentArgs {
            cloud: cloud.map(|url| url.parse().expect("a URL")),
            pair: Some("ABCD-EFGH".into()),
            origin: origin.parse().expect("a URL"),
            state_dir: None,
            allow_tcp: Vec::new(),
            ca_file: None,
            host_header: None,
            max_streams: 1024,
        }
    }

    fn check(args: AgentArgs) -> Result<AgentConfig, String> {
        AgentConfig::from_args(args, Some("/state".into())).map_err(|errors| errors.to_string())
    }

    #[test]
    fn the_usual_command_lines_are_right() {
        for (cloud, origin) in [
            (Some("https://cloud.example.com"), "http://127.0.0.1:8080"),
            (Some("http://localhost:3721"), "http://192.168.1.5/"),
            (Some("http://[::1]:3721"), "http://[::1]:8080"),
            (None, "http://box.local:8080"),
        ] {
            let config = check(args(cloud, origin)).expect("right");
            assert_eq!(config.state_dir, PathBuf::from("/state"));
        }
    }

    #[test]
    fn plain_http_to_another_machine_is_refused() {
        let told = check(args(Some("http://cloud.example.com"), "http://127.0.0.1:1"))
            .expect_err("the token would be readable on its way");
        assert_eq!(
            told,
            "--cloud: \"http://cloud.example.com/\" is not allowed: https://cloud.example.com (http on loopback only), without a path"
        );
    }

    #[test]
    fn every_mistake_is_one_line_that_names_flag_and_value() {
        let wrong = AgentArgs {
            allow_tcp: vec!["box:22".into(), "box".into(), "box:0".into()],
            host_header: Some("a b".into()),
            ..args(
                Some("https://cloud.example.com/api"),
                "https://127.0.0.1:8443",
            )
        };
        let told = AgentConfig::from_args(wrong, None)
            .expect_err("wrong")
            .to_string();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 6, "{told}");
        for (line, start) in lines.iter().zip([
            "--cloud: \"https://cloud.example.com/api\"",
            "--origin: \"https://127.0.0.1:8443/\"",
            "--allow-tcp: \"box\"",
            "--allow-tcp: \"box:0\"",
            "--host-header: \"a b\"",
            "--state-dir: is missing",
        ]) {
            assert!(line.starts_with(start), "{line}");
        }
        assert!(lines[1].contains("https origin is not supported"));
    }

    #[test]
    fn an_origin_is_an_http_server_and_nothing_more() {
        for origin in [
            "http://127.0.0.1:8080/path",
            "http://127.0.0.1:8080/?q",
            "http://user@127.0.0.1:8080",
            "http://127.0.0.1:0",
            "localhost:8080",
            "unix:/run/box.sock",
        ] {
            assert!(check(args(None, origin)).is_err(), "{origin}");
        }
    }

    #[test]
    fn the_cloud_itself_is_no_origin() {
        for (cloud, origin) in [
            ("http://localhost:3721", "http://localhost:3721"),
            ("http://localhost:3721", "http://127.0.0.1:3721"),
            ("https://cloud.example.com:80", "http://cloud.example.com"),
        ] {
            let told = check(args(Some(cloud), origin)).expect_err("a loop");
            assert!(told.starts_with("--origin"), "{told}");
        }
        assert!(check(args(Some("http://localhost:3721"), "http://localhost:3722")).is_ok());
    }

    #[test]
    fn the_host_for_the_origin_is_its_own_unless_told_otherwise() {
        let host = |origin, host_header: Option<&str>| {
            let mut args = args(None, origin);
            args.host_header = host_header.map(str::to_owned);
            check(args).expect("right").origin_host()
        };
        assert_eq!(host("http://127.0.0.1:8080", None), "127.0.0.1:8080");
        assert_eq!(host("http://[::1]:8080", None), "[::1]:8080");
        assert_eq!(host("http://box.local:80", None), "box.local");
        assert_eq!(host("http://127.0.0.1:8080", Some("box")), "box");
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = check(args(None, "http://127.0.0.1:1")).expect("right");
        assert!(!format!("{config:?}").contains("ABCD"));
        let told = check(args(Some("https://me:hunter2@c.example"), "http://b:1"))
            .expect_err("no credentials in the URL");
        assert!(!told.contains("hunter2"), "{told}");
    }
}
