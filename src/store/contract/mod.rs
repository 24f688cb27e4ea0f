//! What every engine must do.

mod audit;
mod database;
mod devices;
mod directory;
mod logins;
mod pairing;
mod tenancy;

use std::time::Duration;

use super::*;
use crate::types::{DeviceId, LoginId, NodeId, PairingCodeId, Role, TenantId, Timestamp, UserId};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

struct Fixture {
    store: Store,
    dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("edgecloud.db");
    let store = Store::open(Location::Sqlite(&path)).await.expect("open");
    Fixture { store, dir }
}

fn login(subject: &str, hash: u8) -> NewLogin {
    NewLogin {
        id: LoginId::random(),
        secret_hash: [hash; 32],
        issuer: "https://id.example".into(),
        subject: subject.into(),
        email: None,
        name: Some(subject.to_uppercase()),
        sid: None,
        provider_tokens: None,
        tenants: None,
        user_agent: Some("Browser/1".into()),
        remote_addr: Some("192.0.2.7".into()),
        idle_expires_at: NOW.plus(HOUR),
        expires_at: NOW.plus(HOUR * 2),
    }
}

async fn sign_in(store: &Store, subject: &str, hash: u8) -> (UserId, TenantId, LoginId) {
    let login = login(subject, hash);
    let id = login.id.clone();
    let user = store.sign_in(login, NOW).await.expect("sign in");
    let record = store
        .find_login([hash; 32], NOW)
        .await
        .expect("read")
        .expect("a login");
    (user, record.active_tenant, id)
}

fn code(by: &UserId, mac: u8) -> NewPairingCode {
    NewPairingCode {
        id: PairingCodeId::random(),
        mac: [mac; 32],
        key_id: "k".into(),
        name: Some("Till 3".into()),
        created_by: by.to_string(),
        expires_at: NOW.plus(HOUR),
    }
}

fn exchange(mac: u8, token: u8) -> Exchange {
    Exchange {
        macs: vec![[0; 32], [mac; 32]],
        device: NewDevice {
            id: DeviceId::random(),
            name: None,
            hostname: Some("box".into()),
            os: Some("linux".into()),
            arch: None,
            agent_version: None,
            remote_addr: "192.0.2.1".into(),
        },
        token_hash: [token; 32],
    }
}

async fn pair(store: &Store, tenant: &TenantId, user: &UserId, byte: u8) -> DeviceId {
    store
        .create_pairing_code(tenant, code(user, byte), 20, NOW)
        .await
        .expect("a code");
    let paired = store
        .exchange_pairing_code(exchange(byte, byte), NOW)
        .await
        .expect("exchange");
    paired.expect("the code is good").device
}

fn all() -> PageRequest {
    PageRequest {
        limit: 200,
        cursor: None,
    }
}

fn node(url: Option<&str>) -> NewNode {
    NewNode {
        id: NodeId::random(),
        internal_url: url.map(str::to_owned),
        tunnel_url: Some("wss://tunnel.example".into()),
        version: "1".into(),
    }
}

fn session(device: &DeviceId, tenant: &TenantId, node: &NodeId) -> NewSession {
    NewSession {
        device: device.clone(),
        tenant: tenant.clone(),
        token_hash: [7; 32],
        node: node.clone(),
        remote_addr: "192.0.2.7:1".into(),
        agent_version: None,
        origin_host: Some("localhost:8080".into()),
    }
}

/// A second opening of the same file, which stands for another process.
async fn another(dir: &tempfile::TempDir) -> Store {
    let path = dir.path().join("edgecloud.db");
    Store::open(Location::Sqlite(&path)).await.expect("open")
}
