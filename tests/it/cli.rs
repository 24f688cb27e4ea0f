//! The command line: settings, exit codes, and what it says when something is wrong.

use std::net::TcpListener;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Part, TestCloud, Topology, run};

/// Settings with which `serve` starts anywhere.
const ANY_PORT: &[(&str, &str)] = &[
    ("EDGECLOUD__SERVER__API_LISTEN", "127.0.0.1:0"),
    ("EDGECLOUD__TUNNEL__LISTEN", "127.0.0.1:0"),
    ("EDGECLOUD__DEV__ISSUER_LISTEN", "127.0.0.1:0"),
];

fn home() -> TempDir {
    TempDir::new().expect("make a directory")
}

fn path_in(home: &TempDir, name: &str) -> String {
    let path = home.path().join(name);
    path.to_str().expect("a readable path").to_owned()
}

#[tokio::test]
async fn right_settings_pass_the_check_without_a_word() {
    let home = home();
    let checked = run(home.path(), &["config", "check", "--dev"], &[]).await;
    let checked = checked.expect_code(0);
    assert_eq!((checked.stdout.trim(), checked.stderr.trim()), ("", ""));
}

#[tokio::test]
async fn all_mistakes_are_reported_at_once() {
    let home = home();
    let wrong = [
        ("EDGECLOUD__SERVER__API_LISTEN", "nowhere"),
        ("EDGECLOUD__SERVER__DRAIN_TIMEOUT", "soon"),
        ("EDGECLOUD__TUNNEL__MAX_STREAMS_PER_SESSION", "0"),
        ("EDGECLOUD__LOG__FORMAT", "xml"),
        ("EDGECLOUD__SERVER__PUBLIC_URL", "http://cloud.example"),
        ("EDGECLOUD__LOGIN__COOKIE_KEY", "tooshort-canary"),
        ("EDGECLOUD__STORE__URL", "mysql://u:canary@h/d"),
    ];
    let keys = [
        "server.api_listen",
        "server.drain_timeout",
        "tunnel.max_streams_per_session",
        "log.format",
        "server.public_url",
        "login.cookie_key",
        "store.url",
    ];
    for command in [
        &["config", "check", "--dev"][..],
        &["config", "show", "--dev"],
        &["serve", "--dev"],
        &["db", "migrate", "--dev"],
    ] {
        let refused = run(home.path(), command, &wrong).await.expect_code(2);
        for key in keys {
            let lines = refused.stderr.lines().filter(|line| line.contains(key));
            assert_eq!(lines.count(), 1, "{key} in {command:?}: {}", refused.stderr);
        }
        for value in ["nowhere", "soon", "xml"] {
            assert!(refused.stderr.contains(value), "{}", refused.stderr);
        }
        assert!(!refused.stderr.contains("canary"), "{}", refused.stderr);
    }
    assert!(
        !home.path().join("edgecloud-data").exists(),
        "nothing was made"
    );
}

#[tokio::test]
async fn unknown_keys_are_mistakes() {
    let home = home();
    let misspelt = [("EDGECLOUD__SERVER__PUBLIC_ULR", "https://x.example")];
    let refused = run(home.path(), &["config", "check", "--dev"], &misspelt).await;
    let refused = refused.expect_code(2);
    assert!(refused.stderr.contains("PUBLIC_ULR"), "{}", refused.stderr);
    assert!(refused.stderr.contains("public_url"), "{}", refused.stderr);

    let file = path_in(&home, "edgecloud.toml");
    std::fs::write(&file, "[server]\nport = 1\n[tunel]\nlisten = \"x\"\n").expect("write");
    let check = ["config", "check", "--dev", "--config", &file];
    let refused = run(home.path(), &check, &[]).await.expect_code(2);
    for key in ["server.port", "tunel.listen"] {
        assert!(refused.stderr.contains(key), "{}", refused.stderr);
    }
    let by_variable = [("EDGECLOUD_CONFIG", file.as_str())];
    run(home.path(), &["config", "check", "--dev"], &by_variable)
        .await
        .expect_code(2);
}

#[tokio::test]
async fn unreadable_files_are_mistakes() {
    let home = home();
    let missing = path_in(&home, "missing.toml");
    let check = ["config", "check", "--dev", "--config", &missing];
    let refused = run(home.path(), &check, &[]).await.expect_code(2);
    assert!(
        refused.stderr.contains("missing.toml"),
        "{}",
        refused.stderr
    );
    let broken = path_in(&home, "broken.toml");
    std::fs::write(&broken, "[server\n").expect("write");
    let check = ["config", "check", "--dev", "--config", &broken];
    let refused = run(home.path(), &check, &[]).await.expect_code(2);
    assert!(refused.stderr.contains("broken.toml"), "{}", refused.stderr);
}

#[tokio::test]
async fn the_environment_wins_over_the_file_and_secrets_are_never_shown() {
    let home = home();
    let file = path_in(&home, "edgecloud.toml");
    let text = "[server]\ndrain_timeout = \"7s\"\n[tunnel]\nheartbeat = \"9s\"\n";
    std::fs::write(&file, text).expect("write");
    let secret_file = path_in(&home, "cookie.key");
    let secret = "canary-canary-canary-canary-canary-canary";
    std::fs::write(&secret_file, format!("{secret}\n")).expect("write");
    let env = [
        ("EDGECLOUD__SERVER__DRAIN_TIMEOUT", "8s"),
        ("EDGECLOUD__LOGIN__COOKIE_KEY_FILE", secret_file.as_str()),
        ("EDGECLOUD__INTERNAL__SECRET", secret),
    ];
    let show = ["config", "show", "--dev", "--config", &file];
    let shown = run(home.path(), &show, &env).await.expect_code(0);
    let settings: toml::Table = shown.stdout.parse().expect("TOML");
    assert_eq!(settings["server"]["drain_timeout"].as_str(), Some("8s"));
    assert_eq!(settings["tunnel"]["heartbeat"].as_str(), Some("9s"));
    assert!(!shown.stdout.contains("canary"), "{}", shown.stdout);
    assert!(!shown.stderr.contains("canary"), "{}", shown.stderr);
    assert!(
        settings["login"].get("cookie_key").is_some(),
        "masked, but there"
    );
}

#[tokio::test]
async fn a_secret_and_its_file_do_not_go_together() {
    let home = home();
    let missing = path_in(&home, "missing.key");
    let gone = [("EDGECLOUD__LOGIN__COOKIE_KEY_FILE", missing.as_str())];
    let refused = run(home.path(), &["config", "check", "--dev"], &gone).await;
    let refused = refused.expect_code(2);
    assert!(refused.stderr.contains("missing.key"), "{}", refused.stderr);

    let file = path_in(&home, "cookie.key");
    std::fs::write(&file, "k".repeat(40)).expect("write");
    let key = "c".repeat(40);
    let both = [
        ("EDGECLOUD__LOGIN__COOKIE_KEY_FILE", file.as_str()),
        ("EDGECLOUD__LOGIN__COOKIE_KEY", key.as_str()),
    ];
    let check = run(home.path(), &["config", "check", "--dev"], &both);
    check.await.expect_code(2);
}

#[tokio::test]
async fn production_says_what_is_missing_and_what_to_register() {
    let home = home();
    let env = [("EDGECLOUD__SERVER__PUBLIC_URL", "https://cloud.example.com")];
    let refused = run(home.path(), &["serve", "--role=all"], &env).await;
    let refused = refused.expect_code(2);
    let redirect = "https://cloud.example.com/api/auth/callback";
    for expected in ["oidc", redirect, "tunnel.public_url"] {
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
}

#[tokio::test]
async fn each_role_checks_only_what_it_uses() {
    let home = home();
    let env = [("EDGECLOUD__TUNNEL__PUBLIC_URL", "wss://tunnel.example.com")];
    let proxy = ["config", "check", "--role=proxy"];
    run(home.path(), &proxy, &env).await.expect_code(0);
    let api = ["config", "check", "--role=api"];
    let refused = run(home.path(), &api, &env).await.expect_code(2);
    assert!(!refused.stderr.contains("tunnel."), "{}", refused.stderr);
}

#[tokio::test]
async fn the_development_issuer_stays_on_loopback() {
    let home = home();
    let env = [("EDGECLOUD__DEV__ISSUER_LISTEN", "0.0.0.0:0")];
    let refused = run(home.path(), &["serve", "--dev"], &env)
        .await
        .expect_code(2);
    assert!(
        refused.stderr.contains("dev.issuer_listen"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn wrong_usage_exits_with_2() {
    let home = home();
    for args in [
        &["serve", "--role=database"][..],
        &["serve", "--port=1"],
        &["fly"],
        &[],
        &["agent"],
    ] {
        run(home.path(), args, &[]).await.expect_code(2);
    }
    run(home.path(), &["--help"], &[]).await.expect_code(0);
    let version = run(home.path(), &["--version"], &[]).await.expect_code(0);
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn a_taken_port_exits_with_1_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = taken.local_addr().expect("an address").to_string();
    for setting in [
        "EDGECLOUD__SERVER__API_LISTEN",
        "EDGECLOUD__TUNNEL__LISTEN",
        "EDGECLOUD__DEV__ISSUER_LISTEN",
    ] {
        let home = home();
        let mut env = ANY_PORT.to_vec();
        env.retain(|(name, _)| *name != setting);
        env.push((setting, &addr));
        let ready = path_in(&home, "ready.json");
        let serve = ["serve", "--dev", "--ready-file", &ready];
        let failed = run(home.path(), &serve, &env).await.expect_code(1);
        assert!(
            failed.stderr.contains(&addr),
            "{setting}: {}",
            failed.stderr
        );
        assert!(!home.path().join("ready.json").exists());
    }
}

#[tokio::test]
async fn a_database_that_is_newer_than_the_binary_is_left_alone() {
    let home = home();
    let data = path_in(&home, "data");
    let migrate = ["db", "migrate", "--dev", "--data-dir", &data];
    run(home.path(), &migrate, &[]).await.expect_code(0);
    let file = home.path().join("data").join("edgecloud.db");
    let database = rusqlite::Connection::open(&file).expect("open the database");
    database
        .pragma_update(None, "user_version", 9_999)
        .expect("pretend to be newer");
    drop(database);
    for command in ["serve", "db"] {
        let mut args = vec![command];
        if command == "db" {
            args.push("migrate");
        }
        args.extend(["--dev", "--data-dir", &data]);
        let failed = run(home.path(), &args, ANY_PORT).await.expect_code(1);
        assert!(failed.stderr.contains("newer"), "{}", failed.stderr);
    }
    let database = rusqlite::Connection::open(&file).expect("open the database");
    let version: i64 = database
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .expect("the version");
    assert_eq!(version, 9_999);
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_exits_with_1() {
    let home = home();
    // Also root cannot make a directory inside a file.
    let file = path_in(&home, "file");
    std::fs::write(&file, "not a directory").expect("write");
    let data = format!("{file}/data");
    let serve = ["serve", "--dev", "--data-dir", &data];
    let failed = run(home.path(), &serve, ANY_PORT).await.expect_code(1);
    assert!(failed.stderr.contains(&data), "{}", failed.stderr);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let home = home();
    let data = home.path().join("data");
    std::fs::create_dir(&data).expect("make a directory");
    let junk = "this is somebody's diary, not a database\n".repeat(100);
    std::fs::write(data.join("edgecloud.db"), &junk).expect("write");
    let data = path_in(&home, "data");
    let serve = ["serve", "--dev", "--data-dir", &data];
    run(home.path(), &serve, ANY_PORT).await.expect_code(1);
    let after = std::fs::read_to_string(home.path().join("data/edgecloud.db"));
    assert_eq!(after.expect("still there"), junk);
}

#[tokio::test]
async fn a_backup_is_a_database_of_its_own() {
    let cloud = TestCloud::builder(Topology::All).spawn().await;
    let alice = crate::support::Browser::sign_in(&cloud, "alice").await;
    let home = home();
    let data = cloud.data_dir();
    let data = data.to_str().expect("a readable path");
    let backup = path_in(&home, "backup.db");
    let args = ["db", "backup", &backup, "--dev", "--data-dir", data];
    run(home.path(), &args, &[]).await.expect_code(0);
    let check = ["db", "check", "--dev", "--data-dir", data];
    run(home.path(), &check, &[]).await.expect_code(0);
    let database = rusqlite::Connection::open(&backup).expect("open the backup");
    let users: i64 = database
        .query_row("SELECT count(*) FROM users", [], |row| row.get(0))
        .expect("users");
    assert_eq!(users, 1);
    assert!(alice.is_signed_in().await, "the backup was made in passing");
}

#[tokio::test]
async fn healthcheck_tells_whether_the_process_is_ready() {
    for topology in [Topology::All, Topology::Split] {
        let mut cloud = TestCloud::builder(topology).spawn().await;
        let home = home();
        for part in [Part::Api, Part::Proxy] {
            let file = cloud.ready_file(part);
            let file = file.to_str().expect("a readable path").to_owned();
            let role = match (topology, part) {
                (Topology::All, _) => "--role=all",
                (Topology::Split, Part::Api) => "--role=api",
                (Topology::Split, Part::Proxy) => "--role=proxy",
            };
            let ask = ["healthcheck", role, "--dev", "--ready-file", &file];
            run(home.path(), &ask, &[]).await.expect_code(0);
        }
        let file = cloud.ready_file(Part::Api);
        let file = file.to_str().expect("a readable path").to_owned();
        cloud.crash(Part::Api).await;
        let ask = ["healthcheck", "--dev", "--ready-file", &file];
        run(home.path(), &ask, &[]).await.expect_code(1);
    }
}

#[tokio::test]
async fn the_ready_file_names_what_the_role_has() {
    for (topology, part, names) in [
        (
            Topology::All,
            Part::Api,
            &["api", "issuer", "public_url", "tunnel"][..],
        ),
        (Topology::Split, Part::Api, &["api", "issuer", "public_url"]),
        (Topology::Split, Part::Proxy, &["internal", "tunnel"]),
    ] {
        let cloud = TestCloud::builder(topology).spawn().await;
        let text = std::fs::read_to_string(cloud.ready_file(part)).expect("a ready file");
        let ready: Value = serde_json::from_str(&text).expect("JSON");
        let mut found: Vec<_> = ready
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        found.sort_unstable();
        assert_eq!(found, names, "{topology:?} {part:?}");
        if part == Part::Api {
            let port = cloud.api_addr().port();
            assert_eq!(cloud.public_url(), format!("http://localhost:{port}"));
        }
    }
}

#[tokio::test]
async fn the_agent_refuses_what_would_give_its_secret_away() {
    let home = home();
    let origin = ["--origin", "http://127.0.0.1:1"];
    let plain = [
        "agent",
        "--cloud",
        "http://cloud.example",
        "--pair",
        "AAAA-AAAA",
        origin[0],
        origin[1],
    ];
    let refused = run(home.path(), &plain, &[]).await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("http"), "{}", refused.stderr);
    let unpaired = ["agent", origin[0], origin[1]];
    let refused = run(home.path(), &unpaired, &[]).await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
}

#[tokio::test]
async fn the_agent_ends_at_once_when_the_code_is_bad() {
    let cloud = TestCloud::builder(Topology::All).spawn().await;
    let home = home();
    let state = path_in(&home, "state");
    for code in ["AAAA-AAAA", "junk"] {
        let args = [
            "agent",
            "--cloud",
            cloud.public_url(),
            "--pair",
            code,
            "--origin",
            "http://127.0.0.1:1",
            "--state-dir",
            &state,
        ];
        let refused = run(home.path(), &args, &[]).await.expect_code(1);
        assert!(refused.stderr.contains("code"), "{}", refused.stderr);
    }
}
