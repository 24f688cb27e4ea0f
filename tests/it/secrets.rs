//! Tokens, codes and keys: how long they are, how they are kept, and where they never stand.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use edgecloud::device_token::sha256;
use edgecloud::keys::KeyRing;
use http::Method;
use secrecy::SecretString;
use serde_json::json;
use url::Url;

use crate::support::{
    Anonymous, Browser, Device, Origin, Part, Provider, RawDevice, Registration, ServiceClient,
    TestCloud, Topology, on_both_topologies, run, text,
};

on_both_topologies![
    tk_01_a_token_is_shown_once_and_kept_as_its_hash,
    tk_01_a_token_counts_in_its_field_only,
    pa_07_codes_are_kept_as_keyed_macs_and_stand_in_no_log,
    se_02_what_the_cloud_keeps_is_for_its_owner_only,
    se_02_a_key_file_that_others_can_read_stops_the_start,
];

const KEY: &str = "the cookie key of these tests is long enough";

fn holds(bytes: &[u8], text: &str) -> bool {
    let mut windows = bytes.windows(text.len());
    windows.any(|window| window == text.as_bytes())
}

/// The files of the database, with everything that was written so far.
fn database_files(cloud: &TestCloud) -> Vec<(PathBuf, Vec<u8>)> {
    let files = ["edgecloud.db", "edgecloud.db-wal"].map(|name| cloud.data_dir().join(name));
    let read = |path: PathBuf| {
        (
            path.clone(),
            fs::read(path).expect("a file of the database"),
        )
    };
    files.into_iter().map(read).collect()
}

#[track_caller]
fn assert_absent(what: &str, bytes: &[u8], secrets: &[String]) {
    for secret in secrets {
        assert!(!holds(bytes, secret), "{what} holds {secret}");
    }
}

/// One token of each kind that the cloud makes.
struct Tokens {
    alice: Browser,
    device: RawDevice,
    rotated: String,
    invitation: String,
    ticket: String,
}

impl Tokens {
    async fn make(cloud: &TestCloud) -> Self {
        let alice = Browser::sign_in(cloud, "alice").await;
        let device = RawDevice::pair(cloud, &alice).await;
        let path = format!("/api/devices/{}", device.id);
        let rotated = alice.post(&format!("{path}/token")).send().await;
        let rotated = text(&rotated.expect(200).json()["token"]);
        let (_, invitation) = alice.invite("viewer").await;
        let link = alice.post(&format!("{path}/open")).json(&json!({}));
        let link = text(&link.send().await.expect(201).json()["url"]);
        let link = Url::parse(&link).expect("a URL");
        let mut query = link.query_pairs();
        let ticket = query.find(|(name, _)| name == "ticket");
        let ticket = ticket.expect("a ticket").1.into_owned();
        Self {
            alice,
            device,
            rotated,
            invitation,
            ticket,
        }
    }

    fn all(&self) -> Vec<String> {
        vec![
            self.device.token.clone(),
            self.rotated.clone(),
            self.invitation.clone(),
            self.ticket.clone(),
        ]
    }
}

/// Every GET of the API's document but those that lead elsewhere or never end; ids are those of a
/// device and of a tenant.
async fn readable(cloud: &TestCloud, device: &str, tenant: &str) -> Vec<String> {
    let document = Anonymous::of(cloud).get("/api/openapi.json").send().await;
    let document = document.expect(200).json();
    let paths = document["paths"].as_object().expect("paths");
    let has_get = paths.iter().filter(|(_, item)| item.get("get").is_some());
    let paths = has_get.map(|(path, _)| path.clone());
    paths
        .filter(|path| !matches!(path.as_str(), "/api/events" | "/api/auth/login"))
        .map(|path| match path.starts_with("/api/tenants/") {
            true => path.replace("{id}", tenant),
            false => path.replace("{id}", device),
        })
        .collect()
}

async fn tk_01_a_token_is_shown_once_and_kept_as_its_hash(cloud: TestCloud) {
    let tokens = Tokens::make(&cloud).await;
    for token in [&tokens.device.token, &tokens.rotated] {
        let secret = token.strip_prefix("edt_").expect("its kind");
        assert!(secret.len() >= 52, "256 bits in base32: {token}");
    }
    for token in [&tokens.invitation, &tokens.ticket] {
        let secret = BASE64URL_NOPAD.decode(token.as_bytes()).expect("base64");
        assert_eq!(secret.len(), 32, "256 bits: {token}");
    }
    let all = tokens.all();
    let paths = readable(&cloud, &tokens.device.id, &tokens.alice.tenant_id().await).await;
    assert!(paths.len() > 20, "{paths:?}");
    for path in paths {
        let answer = tokens.alice.get(&path).send().await;
        assert_absent(&path, answer.text().as_bytes(), &all);
        let header = format!("{:?}", answer.headers);
        assert_absent(&path, header.as_bytes(), &all);
    }

    for (path, bytes) in database_files(&cloud) {
        assert_absent(&path.display().to_string(), &bytes, &all);
    }
    let is_kept = |table: &str, column: &str, hash: [u8; 32]| -> bool {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {column} = ?1)");
        let found = cloud
            .database()
            .query_row(&sql, [hash], |row| row.get::<_, bool>(0));
        found.expect("look for a hash")
    };
    for token in [&tokens.device.token, &tokens.rotated] {
        assert!(is_kept("device_tokens", "hash", sha256(token.as_bytes())));
    }
    let of_bytes = |token: &str| sha256(&BASE64URL_NOPAD.decode(token.as_bytes()).expect("base64"));
    let invitation = of_bytes(&tokens.invitation);
    assert!(is_kept("invitations", "token_hash", invitation));
    assert!(is_kept("tickets", "hash", of_bytes(&tokens.ticket)));
}

async fn tk_01_a_token_counts_in_its_field_only(cloud: TestCloud) {
    let tokens = Tokens::make(&cloud).await;
    let robot = ServiceClient::register(&cloud, &tokens.alice, "robot", "admin").await;
    let program = robot.request(Method::GET, "/api/devices").send().await;
    program.expect(200);
    for token in [&robot.token, &tokens.device.token] {
        for name in ["access_token", "token", "bearer_token", "authorization"] {
            let target = format!("/api/devices?{name}={token}");
            Anonymous::of(&cloud).get(&target).send().await.expect(401);
            let cookie = format!("{name}={token}");
            let request = Anonymous::of(&cloud).get("/api/devices");
            request.header("cookie", &cookie).send().await.expect(401);
            let form = Anonymous::of(&cloud)
                .post("/api/pairing/codes")
                .header("content-type", "application/x-www-form-urlencoded")
                .bytes(cookie);
            form.send().await.expect(401);
        }
    }
    let device = &tokens.device.token;
    for target in [
        format!("/tunnel?access_token={device}"),
        format!("/tunnel?token={device}"),
        format!("/tunnel/{device}"),
    ] {
        let handshake = RawDevice::anonymous(&cloud, &target).websocket();
        let refused = handshake.await.err().expect("no tunnel");
        assert!(refused.status.is_client_error(), "{refused:?}");
    }
    for (name, value) in [
        ("cookie", format!("token={device}")),
        ("sec-websocket-protocol", format!("edgecloud.v1, {device}")),
        ("x-api-key", device.clone()),
    ] {
        let handshake = RawDevice::anonymous(&cloud, "/tunnel").header(name, &value);
        let refused = handshake.websocket().await.err().expect("no tunnel");
        assert_eq!(refused.status, 401, "{name}");
    }
    let bob = Browser::sign_in(&cloud, "bob").await;
    let accept = format!("/api/invitations/accept?token={}", tokens.invitation);
    bob.post(&accept)
        .json(&json!({}))
        .send()
        .await
        .expect_refusal();
    bob.accept(&tokens.invitation).await.expect(200);
    tokens.device.connect().await;
}

async fn pa_07_codes_are_kept_as_keyed_macs_and_stand_in_no_log(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .without_setting("EDGECLOUD__LOG__LEVEL")
        .setting("EDGECLOUD__LOG__LEVEL", "trace")
        .setting("EDGECLOUD__LOGIN__COOKIE_KEY", KEY)
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (id, code) = alice.pairing_code().await;
    let bare = code.replace('-', "");
    let sql = "SELECT mac, key_id FROM pairing_codes WHERE id = ?1";
    let kept: (Vec<u8>, String) = cloud
        .database()
        .query_row(sql, [&id], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("the code is there");
    let keys = |key: &str| {
        let keys = KeyRing::from_secrets(&[SecretString::from(key.to_owned())]);
        keys.expect("long enough")
    };
    let signed = keys(KEY).sign("pairing-code", bare.as_bytes());
    assert_eq!(kept, (signed.mac.to_vec(), signed.key_id));
    // 40 bits can be tried out in an hour by whoever needs no key for it.
    let other = keys(&KEY.to_uppercase()).sign("pairing-code", bare.as_bytes());
    assert_ne!(kept.0, other.mac);
    assert_ne!(kept.0, sha256(bare.as_bytes()));

    let box_ = Anonymous::of(&cloud);
    let by_address = format!("/api/pairing/exchange?code={code}");
    for body in [json!({}), json!({"device": {}})] {
        box_.post(&by_address).json(&body).send().await.expect(400);
    }
    box_.exchange(&format!("{code}-more")).await.expect(404);
    box_.exchange(&code).await.expect(200);
    box_.exchange(&code).await.expect(404);
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    let codes = vec![code, bare];
    let shown = alice.get("/api/pairing/codes").send().await.expect(200);
    assert_absent("the list of codes", shown.text().as_bytes(), &codes);
    for (path, bytes) in database_files(&cloud) {
        assert_absent(&path.display().to_string(), &bytes, &codes);
    }
    let logs: String = cloud.processes().map(|of| of.output()).collect();
    assert!(logs.contains("path=\"/api/pairing/exchange\""), "{logs}");
    assert_absent("the cloud's log", logs.as_bytes(), &codes);
    device.process().check_running();
    let log = device.process().output();
    assert!(log.contains("paired"), "{log}");
    // The agent's own code, which is unknown here, has the form of all codes.
    let is_code = |word: &str| {
        let half = |half: &str| half.len() == 4 && half.bytes().all(|b| b.is_ascii_alphanumeric());
        word.split_once('-')
            .is_some_and(|(left, right)| half(left) && half(right))
    };
    let words = log.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    assert_eq!(words.filter(|word| is_code(word)).count(), 0, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn se_02_refresh_tokens_are_sealed_and_client_secrets_are_not_kept() {
    let (provider, cloud) = Provider::with_cloud(Topology::All, Registration::Basic, |it| it).await;
    let alice = Browser::new(&cloud);
    provider.sign_in(&alice, "alice").await;
    let sql = "SELECT provider_tokens FROM logins";
    let sealed: Vec<u8> = cloud
        .database()
        .query_row(sql, [], |row| row.get(0))
        .expect("a login with a refresh token");
    let sealed = String::from_utf8(sealed).expect("a text");
    let (key_id, sealed) = sealed.split_once('.').expect("the name of a key");
    assert_eq!(key_id.len(), 8, "{key_id}");
    let mut secrets = vec!["confidential-secret-canary".to_owned()];
    let issued = provider.control(Method::GET, "secrets").await;
    for secret in issued.as_array().expect("a list") {
        // Of a JWT the signature alone: its header is the same in each.
        let secret = text(secret);
        secrets.extend(secret.rsplit('.').next().map(str::to_owned));
    }
    assert!(secrets.len() > 2, "a refresh token was issued");
    let opened = BASE64URL_NOPAD.decode(sealed.as_bytes()).expect("base64");
    assert_absent("what is sealed", &opened, &secrets);
    let home = tempfile::TempDir::new().expect("make a directory");
    let backup = home.path().join("backup.db");
    make_backup(&cloud, home.path(), &backup).await;
    for entry in fs::read_dir(cloud.data_dir()).expect("the data directory") {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("a file");
        assert_absent(&path.display().to_string(), &bytes, &secrets);
    }
    let bytes = fs::read(&backup).expect("the backup");
    assert!(holds(&bytes, sealed), "the backup is of this database");
    assert_absent("the backup", &bytes, &secrets);
}

async fn make_backup(cloud: &TestCloud, home: &Path, to: &Path) {
    let (data, to) = (cloud.data_dir(), to.to_str().expect("a readable path"));
    let data = data.to_str().expect("a readable path");
    let args = ["db", "backup", to, "--dev", "--data-dir", data];
    run(home, &args, &[]).await.expect_code(0);
}

fn mode(path: &Path) -> u32 {
    let data = path.metadata().expect("its mode");
    data.permissions().mode() & 0o777
}

async fn se_02_what_the_cloud_keeps_is_for_its_owner_only(cloud: TestCloud) {
    Browser::sign_in(&cloud, "alice").await;
    let data = cloud.data_dir();
    assert_eq!(mode(&data), 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(&data).expect("the data directory") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        let name = path.file_name().expect("a name").to_string_lossy();
        names.push(name.into_owned());
    }
    for kept in [
        "cookie.key",
        "internal.key",
        "edgecloud.db",
        "edgecloud.db-wal",
    ] {
        assert!(names.iter().any(|name| name == kept), "{names:?}");
    }
    let home = tempfile::TempDir::new().expect("make a directory");
    let backup = home.path().join("backup.db");
    make_backup(&cloud, home.path(), &backup).await;
    assert_eq!(mode(&backup), 0o600);
}

async fn se_02_a_key_file_that_others_can_read_stops_the_start(mut cloud: TestCloud) {
    let data = cloud.data_dir();
    let keys: Vec<PathBuf> = fs::read_dir(&data)
        .expect("the data directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "key"))
        .collect();
    assert!(keys.len() >= 2, "{keys:?}");
    cloud.crash(Part::Api).await;
    let home = tempfile::TempDir::new().expect("make a directory");
    let data = data.to_str().expect("a readable path");
    let start = ["serve", "--dev", "--role=api", "--data-dir", data];
    let env = [
        ("EDGECLOUD__SERVER__API_LISTEN", "127.0.0.1:0"),
        ("EDGECLOUD__DEV__ISSUER_LISTEN", "127.0.0.1:0"),
    ];
    for key in &keys {
        for open in [0o644, 0o640, 0o604] {
            let set = fs::set_permissions(key, fs::Permissions::from_mode(open));
            set.expect("open the file to others");
            let told = run(home.path(), &start, &env).await.expect_code(1).stderr;
            let name = key.file_name().expect("a name").to_string_lossy();
            assert!(told.contains(&*name) && told.contains("0600"), "{told}");
            let secret = fs::read_to_string(key).expect("the key");
            assert!(!told.contains(secret.trim()), "{told}");
        }
        let set = fs::set_permissions(key, fs::Permissions::from_mode(0o600));
        set.expect("close the file again");
    }
    cloud.start_again(Part::Api).await;
    Browser::sign_in(&cloud, "alice").await;
}
