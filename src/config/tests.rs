use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;

fn flags(role: ConfigRole, dev: bool) -> Flags {
    Flags {
        role,
        dev,
        ..Flags::default()
    }
}

fn load(flags: &Flags, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::load(
        flags,
        env.iter()
            .map(|(name, value)| (name.to_string(), value.to_string())),
    )
}

fn mistakes(flags: &Flags, env: &[(&str, &str)]) -> String {
    load(flags, env).expect_err("mistakes").to_string()
}

fn with_file(flags: Flags, text: &str) -> (Flags, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("write");
    (
        Flags {
            config: Some(file.path().to_owned()),
            ..flags
        },
        file,
    )
}

const DEV: Flags = Flags {
    role: ConfigRole::All,
    dev: true,
    data_dir: None,
    ready_file: None,
    config: None,
};

#[test]
fn development_needs_no_settings() {
    let config = load(&DEV, &[]).expect("defaults");
    assert_eq!(config.server.api_listen.to_string(), "127.0.0.1:3721");
    assert_eq!(config.tunnel.listen.to_string(), "127.0.0.1:3800");
    assert_eq!(config.server.device_domain.as_deref(), Some("localhost"));
    assert_eq!(config.tunnel.heartbeat, Duration::from_secs(15));
    assert!(config.internal.listen.is_none() && config.oidc.is_none());
    let proxy = load(&flags(ConfigRole::Proxy, true), &[]).expect("defaults");
    assert_eq!(
        proxy
            .internal
            .listen
            .map(|addr| addr.to_string())
            .as_deref(),
        Some("127.0.0.1:3801")
    );
}

#[test]
fn the_environment_wins_over_the_file_and_flags_over_both() {
    let (flags, _file) = with_file(DEV, "[tunnel]\nheartbeat = \"20s\"\nmax_sessions = 7\n");
    let config = load(&flags, &[("EDGECLOUD__TUNNEL__HEARTBEAT", "2s")]).expect("good");
    assert_eq!(config.tunnel.heartbeat, Duration::from_secs(2));
    assert_eq!(config.tunnel.max_sessions, 7);
    let by_env = [("EDGECLOUD_CONFIG", "/does/not/exist")];
    assert!(load(&flags, &by_env).is_ok(), "--config wins");
    assert!(mistakes(&DEV, &by_env).contains("/does/not/exist: cannot be read"));
}

#[test]
fn all_mistakes_are_told_at_once_with_key_value_and_what_is_allowed() {
    let (flags, _file) = with_file(
        DEV,
        "[server]\napi_listen = \"everywhere\"\npublik_url = \"x\"\n[tunnel]\nheartbeat = \"1h\"\n[log]\nlevel = \"loud\"\nformat = \"xml\"\n",
    );
    let told = mistakes(
        &flags,
        &[
            ("EDGECLOUD__TUNNEL__MAX_SESSIONS", "-1"),
            ("EDGECLOUD__NOPE", "1"),
            ("EDGECLOUD_SERVER__API_LISTEN", "127.0.0.1:1"),
            ("EDGECLOUD_SERVICE_HOST", "set by somebody else"),
        ],
    );
    let expected = [
        "EDGECLOUD__NOPE: there is no such setting",
        "EDGECLOUD_SERVER__API_LISTEN: there is no such setting; did you mean EDGECLOUD__SERVER__API_LISTEN?",
        "server.publik_url: there is no such setting; did you mean server.public_url?",
        "server.api_listen: \"everywhere\" is not allowed; allowed: an address and a port",
        "tunnel.heartbeat: \"1h\" is not allowed; allowed: a duration from 1s to 5m",
        "tunnel.max_sessions: \"-1\" is not allowed; allowed: a whole number from 1 to 1000000",
        "log.level: \"loud\" is not allowed",
        "log.format: \"xml\" is not allowed; allowed: text or json",
    ];
    for line in expected {
        assert!(told.contains(line), "{line:?} is missing in\n{told}");
    }
    assert_eq!(told.lines().count(), expected.len(), "{told}");
}

#[test]
fn a_file_that_is_not_toml_says_where() {
    let (flags, _file) = with_file(DEV, "[server\n");
    let told = mistakes(&flags, &[]);
    assert!(
        told.contains("is not TOML") && told.contains("line 1"),
        "{told}"
    );
}

#[test]
fn secrets_come_from_files_and_are_shown_nowhere() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "canary-canary-canary-canary-canary\n").expect("write");
    let path = file.path().to_string_lossy().into_owned();
    let config = load(&DEV, &[("EDGECLOUD__LOGIN__COOKIE_KEY_FILE", &path)]).expect("good");
    assert_eq!(
        config.login.cookie_key[0].expose_secret(),
        "canary-canary-canary-canary-canary"
    );
    assert!(config.show().contains("cookie_key = \"***\""));
    assert!(!config.show().contains("canary") && !format!("{config:?}").contains("canary"));
    let both = [
        ("EDGECLOUD__LOGIN__COOKIE_KEY_FILE", path.as_str()),
        ("EDGECLOUD__LOGIN__COOKIE_KEY", "canary"),
    ];
    let told = mistakes(&DEV, &both);
    assert!(
        told.contains("only one of them") && told.contains("at least 32 bytes"),
        "{told}"
    );
    assert!(!told.contains("canary"), "{told}");
}

#[test]
fn production_says_what_is_missing_and_which_redirect_uri_to_register() {
    let env = [("EDGECLOUD__SERVER__PUBLIC_URL", "https://cloud.example.com")];
    let told = mistakes(&flags(ConfigRole::Api, false), &env);
    assert!(told.contains("oidc.issuer: is missing"), "{told}");
    assert!(
        told.contains("https://cloud.example.com/api/auth/callback"),
        "{told}"
    );
    let told = mistakes(&flags(ConfigRole::All, false), &[]);
    assert!(told.contains("server.public_url: is missing"), "{told}");
    assert!(told.contains("tunnel.public_url: is missing"), "{told}");
}

#[test]
fn plain_http_is_for_loopback_only() {
    let told = mistakes(
        &DEV,
        &[("EDGECLOUD__SERVER__PUBLIC_URL", "http://cloud.example.com")],
    );
    assert!(told.contains("http on loopback only"), "{told}");
    for good in [
        "http://localhost:80",
        "http://127.0.0.1:1",
        "http://[::1]:1",
    ] {
        assert!(
            load(&DEV, &[("EDGECLOUD__SERVER__PUBLIC_URL", good)]).is_ok(),
            "{good}"
        );
    }
    let path = mistakes(
        &DEV,
        &[("EDGECLOUD__SERVER__PUBLIC_URL", "https://x.example/path")],
    );
    assert!(path.contains("without a path"), "{path}");
}

#[test]
fn devices_live_on_another_site() {
    let production = flags(ConfigRole::Api, false);
    let base = [
        ("EDGECLOUD__SERVER__PUBLIC_URL", "https://cloud.example.com"),
        ("EDGECLOUD__OIDC__ISSUER", "https://id.example.com"),
        ("EDGECLOUD__OIDC__CLIENT_ID", "edgecloud"),
    ];
    let with = |domain: &'static str| {
        let mut env = base.to_vec();
        env.push(("EDGECLOUD__SERVER__DEVICE_DOMAIN", domain));
        env
    };
    assert!(
        load(&production, &base)
            .expect("good")
            .server
            .device_domain
            .is_none()
    );
    assert!(load(&production, &with("devices.example.net")).is_ok());
    for same in [
        "cloud.example.com",
        "devices.cloud.example.com",
        "example.com",
        "d.example.com",
    ] {
        assert!(
            mistakes(&production, &with(same)).contains("shares a site"),
            "{same}"
        );
    }
    let mut accepted = with("devices.example.com");
    accepted.push(("EDGECLOUD__SERVER__DEVICE_DOMAIN_SAME_SITE", "true"));
    assert!(load(&production, &accepted).is_ok());
}

#[test]
fn cs_08_postgres_needs_configured_keys() {
    let mut env = vec![("EDGECLOUD__STORE__URL", "postgres://u:canary@db/x")];
    let told = mistakes(&flags(ConfigRole::Api, true), &env);
    assert!(told.contains("login.cookie_key: is missing"), "{told}");
    assert!(
        told.contains("internal.secret: is missing") && !told.contains("canary"),
        "{told}"
    );
    let key = "k".repeat(32);
    env.push(("EDGECLOUD__LOGIN__COOKIE_KEY", &key));
    env.push(("EDGECLOUD__INTERNAL__SECRET", &key));
    let config = load(&flags(ConfigRole::Api, true), &env).expect("good");
    assert!(matches!(config.store, StoreUrl::Postgres(_)));
}

#[test]
fn a_role_checks_only_what_it_uses_but_no_role_takes_unknown_keys() {
    let proxy = flags(ConfigRole::Proxy, true);
    for (name, value) in [
        ("EDGECLOUD__OIDC__ALLOWED_ALGS", "none"),
        ("EDGECLOUD__LOGIN__COOKIE_KEY", "x"),
        ("EDGECLOUD__LIMITS__CONNECTIONS", "many"),
        ("EDGECLOUD__SERVER__API_LISTEN", "everywhere"),
    ] {
        assert!(load(&proxy, &[(name, value)]).is_ok(), "{name}");
    }
    let heartbeat = [("EDGECLOUD__TUNNEL__HEARTBEAT", "bad")];
    assert!(load(&flags(ConfigRole::Api, true), &heartbeat).is_ok());
    assert!(load(&proxy, &heartbeat).is_err());
    assert!(mistakes(&DEV, &[("EDGECLOUD__OIDC__ALLOWED_ALGS", "none")]).contains("none"));
    assert!(mistakes(&proxy, &[("EDGECLOUD__OIDC__ISUER", "x")]).contains("oidc.issuer?"));
}

#[test]
fn the_development_issuer_stays_on_loopback() {
    let told = mistakes(&DEV, &[("EDGECLOUD__DEV__ISSUER_LISTEN", "0.0.0.0:3790")]);
    assert!(told.contains("loopback"), "{told}");
}

#[test]
fn lists_and_tables_come_from_variables_too() {
    let env = [
        ("EDGECLOUD__OIDC__ISSUER", "https://id.example.com"),
        ("EDGECLOUD__OIDC__CLIENT_ID", "edgecloud"),
        ("EDGECLOUD__OIDC__SCOPES", "openid, offline_access"),
        (
            "EDGECLOUD__OIDC__AUTHORIZE_PARAMS",
            "{ prompt = \"login\" }",
        ),
        ("EDGECLOUD__SERVER__TRUSTED_PROXIES", "10.0.0.0/8,192.0.2.1"),
    ];
    let oidc = load(&DEV, &env).expect("good").oidc.expect("configured");
    assert_eq!(oidc.scopes, ["openid", "offline_access"]);
    assert_eq!(oidc.authorize_params["prompt"], "login");
    assert!(
        mistakes(
            &DEV,
            &[("EDGECLOUD__SERVER__TRUSTED_PROXIES", "10.0.0.0/40")]
        )
        .contains("/40")
    );
}

#[test]
fn log_levels_are_levels_and_modules_with_levels() {
    for good in [
        "info",
        "OFF",
        "warn,edgecloud::forward=debug",
        "a=trace, info",
    ] {
        assert!(
            load(&DEV, &[("EDGECLOUD__LOG__LEVEL", good)]).is_ok(),
            "{good}"
        );
    }
    for bad in ["", "7", "loud", "info,loud", "a=b=info", "=info", "info,"] {
        let told = mistakes(&DEV, &[("EDGECLOUD__LOG__LEVEL", bad)]);
        assert!(told.contains("log.level"), "{bad:?}: {told}");
    }
}

#[test]
fn an_idle_timeout_fits_into_the_absolute_one() {
    let env = [("EDGECLOUD__LOGIN__IDLE_TIMEOUT", "8d")];
    assert!(mistakes(&DEV, &env).contains("login.idle_timeout: is longer"));
    let told = mistakes(&DEV, &[("EDGECLOUD__LOGIN__IDLE_TIMEOUT", "100d")]);
    assert!(told.contains("a duration from 1m to 90d"), "{told}");
}

#[test]
fn certificates_that_cannot_be_read_are_mistakes() {
    let env = [
        ("EDGECLOUD__TLS__CERT", "/does/not/exist"),
        ("EDGECLOUD__TLS__KEY", "/dev/null"),
    ];
    let told = mistakes(&DEV, &env);
    assert!(told.contains("tls.cert: the file /does/not/exist cannot be read"));
    assert_eq!(told.lines().count(), 1);
}

#[test]
fn what_is_shown_can_be_read_back() {
    let config = load(&DEV, &[]).expect("good");
    let (flags, _file) = with_file(DEV, config.show());
    let again = load(&flags, &[]).expect("what is shown is a valid file");
    assert_eq!(again.show(), config.show());
}

const EXAMPLE: &str = include_str!("../../config/edgecloud.example.toml");

/// The example file with its settings un-commented, and the keys that it has, in its order.
fn uncommented_example() -> (String, Vec<String>) {
    let (mut text, mut keys, mut section) = (String::new(), Vec::new(), "");
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
        }
        let setting = line.strip_prefix("# ").and_then(|setting| {
            let (name, _) = setting.split_once(" = ")?;
            let is_name = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            is_name.then(|| keys.push(format!("{section}.{name}")))?;
            Some(setting)
        });
        text.push_str(setting.unwrap_or(line));
        text.push('\n');
    }
    (text, keys)
}

/// The settings in effect, by key.
fn shown(config: &Config) -> Vec<(String, toml::Value)> {
    let table: toml::Table = config.show().parse().expect("TOML");
    let mut found = Vec::new();
    let mut open = vec![(String::new(), toml::Value::Table(table))];
    while let Some((key, value)) = open.pop() {
        match value {
            toml::Value::Table(table) if !keys::KEYS.contains(&key.as_str()) => {
                let dot = if key.is_empty() { "" } else { "." };
                open.extend(
                    table
                        .into_iter()
                        .map(|(k, v)| (format!("{key}{dot}{k}"), v)),
                );
            }
            value => found.push((key, value)),
        }
    }
    found
}

#[test]
fn the_example_has_every_key_once_and_no_other() {
    let (_, keys) = uncommented_example();
    assert_eq!(keys, keys::KEYS);
    let (flags, _file) = with_file(DEV, EXAMPLE);
    let as_it_is = load(&flags, &[]).expect("comments only");
    assert_eq!(as_it_is.show(), load(&DEV, &[]).expect("good").show());
}

#[test]
fn the_example_states_the_defaults_and_loads_but_for_its_placeholders() {
    let production = flags(ConfigRole::All, false);
    let (with_example, _file) = with_file(production.clone(), &uncommented_example().0);
    let told = mistakes(&with_example, &[]);
    let about: Vec<_> = told.lines().map(|line| line.split(':').next()).collect();
    let placeholders = ["internal.secret", "tls.cert", "tls.key", "login.cookie_key"].map(Some);
    assert_eq!(about, placeholders, "{told}");
    let secret = "s".repeat(32);
    let secrets = [
        ("EDGECLOUD__TLS__CERT", "/dev/null"),
        ("EDGECLOUD__TLS__KEY", "/dev/null"),
        ("EDGECLOUD__INTERNAL__SECRET", secret.as_str()),
        ("EDGECLOUD__LOGIN__COOKIE_KEY", secret.as_str()),
    ];
    let example = load(&with_example, &secrets).expect("the rest is right");
    let stated = shown(&example);
    // What has no default has to be given; everything else that is shown is one.
    let given = [
        ("EDGECLOUD__SERVER__PUBLIC_URL", "https://cloud.example.com"),
        ("EDGECLOUD__TUNNEL__PUBLIC_URL", "wss://tunnel.example.com"),
        ("EDGECLOUD__OIDC__ISSUER", "https://id.example.com"),
        ("EDGECLOUD__OIDC__CLIENT_ID", "edgecloud"),
    ];
    for role in [ConfigRole::All, ConfigRole::Proxy] {
        let defaults = load(&flags(role, false), &given).expect("good");
        for (key, value) in shown(&defaults) {
            let variable = format!("EDGECLOUD__{}", key.to_uppercase().replace('.', "__"));
            if given.iter().all(|(name, _)| *name != variable) {
                assert!(
                    stated.contains(&(key.clone(), value.clone())),
                    "{key} is {value}"
                );
            }
        }
    }
    let default = load(&production, &given).expect("good");
    let path = |config: &Config| match &config.store {
        StoreUrl::Sqlite(path) => path.clone(),
        StoreUrl::Postgres(_) => PathBuf::new(),
    };
    assert_eq!(path(&example), path(&default));
}
