//! What every engine must do.

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
        created_by: by.clone(),
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

#[tokio::test]
async fn a_person_sees_and_ends_their_own_logins_only() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (alice, _, first) = sign_in(&store, "alice", 1).await;
    let (_, _, second) = sign_in(&store, "alice", 2).await;
    let (bob, _, his) = sign_in(&store, "bob", 3).await;
    let shown = store.list_logins(&alice, NOW).await.expect("read");
    let ids: Vec<_> = shown.iter().map(|login| login.id.clone()).collect();
    assert!(ids.len() == 2 && ids.contains(&first) && ids.contains(&second));
    assert_eq!(shown[0].user_agent.as_deref(), Some("Browser/1"));
    assert_eq!(shown[0].remote_addr.as_deref(), Some("192.0.2.7"));
    let later = NOW.plus(HOUR);
    assert!(
        store
            .list_logins(&alice, later)
            .await
            .expect("read")
            .is_empty()
    );

    assert!(!store.end_login_of(&bob, &first, NOW).await.expect("write"));
    let ended = store
        .end_other_logins(&alice, &second, NOW)
        .await
        .expect("write");
    assert_eq!(ended, std::slice::from_ref(&first));
    let changes = store.list_changes(0, 100).await.expect("read");
    let told = |id: &LoginId| changes.iter().any(|change| change.subject == id.as_str());
    assert!(told(&first) && !told(&second) && !told(&his));
    assert!(
        store
            .end_login_of(&alice, &second, NOW)
            .await
            .expect("write")
    );
    assert!(
        store
            .find_login([2; 32], NOW)
            .await
            .expect("read")
            .is_none()
    );
    assert!(
        store
            .find_login([3; 32], NOW)
            .await
            .expect("read")
            .is_some()
    );
}

#[tokio::test]
async fn the_active_tenant_is_one_of_the_persons_and_stays_for_the_next_login() {
    let Fixture { store, dir: _dir } = fixture().await;
    let member_of = |hash, tenants: &[&str]| NewLogin {
        tenants: Some(
            tenants
                .iter()
                .map(|name| ((*name).to_owned(), Role::Viewer))
                .collect(),
        ),
        ..login("alice", hash)
    };
    store
        .sign_in(member_of(1, &["one", "two"]), NOW)
        .await
        .expect("sign in");
    let record = store
        .find_login([1; 32], NOW)
        .await
        .expect("read")
        .expect("a login");
    let other = record
        .memberships
        .iter()
        .find(|of| of.id != record.active_tenant);
    let other = other.expect("two tenants").id.clone();
    let foreign = TenantId::random();
    assert!(
        !store
            .set_active_tenant(&record.id, &foreign)
            .await
            .expect("write")
    );
    assert!(
        store
            .set_active_tenant(&record.id, &other)
            .await
            .expect("write")
    );
    store
        .sign_in(member_of(2, &["one", "two"]), NOW)
        .await
        .expect("sign in");
    for hash in [1, 2] {
        let found = store.find_login([hash; 32], NOW).await.expect("read");
        assert_eq!(found.expect("a login").active_tenant, other);
    }
}

#[tokio::test]
async fn a_person_is_known_by_issuer_and_subject_and_gets_one_tenant() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (first, tenant, _) = sign_in(&store, "alice", 1).await;
    let (again, same_tenant, _) = sign_in(&store, "alice", 2).await;
    assert_eq!((first, &tenant), (again, &same_tenant));
    let (_, other, _) = sign_in(&store, "bob", 3).await;
    assert_ne!(tenant, other);
    let record = store
        .find_login([1; 32], NOW)
        .await
        .expect("read")
        .expect("live");
    assert_eq!(record.memberships[0].role, Role::Owner);
    assert_eq!(record.memberships[0].name, "ALICE's devices");
}

#[tokio::test]
async fn a_login_ends_by_idleness_by_age_and_by_hand() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (_, _, id) = sign_in(&store, "alice", 1).await;
    let found = |at: Timestamp| store.find_login([1; 32], at);
    assert!(found(NOW.plus(HOUR)).await.expect("read").is_none());
    store
        .touch_login(&id, NOW.plus(HOUR * 9))
        .await
        .expect("touch");
    assert!(found(NOW.plus(HOUR)).await.expect("read").is_some());
    assert!(found(NOW.plus(HOUR * 2)).await.expect("read").is_none());
    let before = store.latest_change().await.expect("read");
    assert!(store.end_login(&id, NOW).await.expect("end"));
    assert!(!store.end_login(&id, NOW).await.expect("end again"));
    assert!(found(NOW).await.expect("read").is_none());
    let changes = store.list_changes(before, 10).await.expect("read");
    assert_eq!(changes.len(), 1);
    assert_eq!(
        (changes[0].kind, changes[0].subject.as_str()),
        (ChangeKind::LoginEnded, id.as_str())
    );
}

#[tokio::test]
async fn a_login_whose_time_is_over_is_ended_where_everybody_sees_it() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (_, _, idle) = sign_in(&store, "alice", 1).await;
    let (_, _, used) = sign_in(&store, "alice", 2).await;
    store
        .touch_login(&used, NOW.plus(HOUR * 9))
        .await
        .expect("touch");
    let before = store.latest_change().await.expect("read");
    let ended = async |at: Timestamp| {
        store.end_expired_logins(at).await.expect("end");
        let changes = store.list_changes(before, 10).await.expect("read");
        let ended = changes.into_iter().map(|change| {
            assert_eq!(change.kind, ChangeKind::LoginEnded);
            change.subject
        });
        ended.collect::<Vec<_>>()
    };
    assert_eq!(ended(NOW).await, Vec::<String>::new());
    assert_eq!(ended(NOW.plus(HOUR)).await, [idle.as_str()]);
    let both = [idle.as_str(), used.as_str()];
    assert_eq!(ended(NOW.plus(HOUR * 2)).await, both);
    assert_eq!(ended(NOW.plus(HOUR * 3)).await, both, "once each");
}

#[tokio::test]
async fn claimed_tenants_replace_what_the_claim_gave_before() {
    let Fixture { store, dir: _dir } = fixture().await;
    let with = |hash, tenants: &[(&str, Role)]| NewLogin {
        tenants: Some(
            tenants
                .iter()
                .map(|(name, role)| (name.to_string(), *role))
                .collect(),
        ),
        ..login("alice", hash)
    };
    store
        .sign_in(
            with(1, &[("acme", Role::Admin), ("lab", Role::Viewer)]),
            NOW,
        )
        .await
        .expect("in");
    store
        .sign_in(with(2, &[("lab", Role::Operator)]), NOW)
        .await
        .expect("in");
    let record = store
        .find_login([1; 32], NOW)
        .await
        .expect("read")
        .expect("live");
    assert_eq!(record.memberships.len(), 1);
    assert_eq!(record.memberships[0].name, "lab");
    assert_eq!(record.memberships[0].role, Role::Operator);
    assert_eq!(record.active_tenant, record.memberships[0].id);
    let refused = store.sign_in(with(3, &[]), NOW).await;
    assert!(matches!(refused, Err(StoreError::Conflict("no_tenant"))));
}

#[tokio::test]
async fn a_state_is_used_once() {
    let Fixture { store, dir: _dir } = fixture().await;
    assert!(
        store
            .use_state([1; 32], NOW.plus(HOUR))
            .await
            .expect("write")
    );
    assert!(
        !store
            .use_state([1; 32], NOW.plus(HOUR))
            .await
            .expect("write")
    );
    store.delete_expired(NOW.plus(HOUR)).await.expect("clean");
    assert!(
        store
            .use_state([1; 32], NOW.plus(HOUR))
            .await
            .expect("write")
    );
}

#[tokio::test]
async fn of_a_hundred_exchanges_of_one_code_one_wins() {
    let Fixture { store, dir } = fixture().await;
    let (user, tenant, _) = sign_in(&store, "alice", 1).await;
    store
        .create_pairing_code(&tenant, code(&user, 7), 20, NOW)
        .await
        .expect("a code");
    // A second opening of the file stands for another process.
    let path = dir.path().join("edgecloud.db");
    let other = Store::open(Location::Sqlite(&path))
        .await
        .expect("open again");
    let tries = (0..100u8).map(|token| {
        let store = if token % 2 == 0 {
            store.clone()
        } else {
            other.clone()
        };
        tokio::task::spawn(
            async move { store.exchange_pairing_code(exchange(7, token), NOW).await },
        )
    });
    let mut won = 0;
    for attempt in tries.collect::<Vec<_>>() {
        won += usize::from(
            attempt
                .await
                .expect("no panic")
                .expect("no error")
                .is_some(),
        );
    }
    assert_eq!(won, 1);
    let devices = store
        .list_devices(&tenant, DeviceFilter::default(), all())
        .await
        .expect("list");
    assert_eq!(devices.items.len(), 1);
}

#[tokio::test]
async fn when_marking_a_code_used_fails_nothing_stays_valid() {
    let Fixture { store, dir } = fixture().await;
    let (user, tenant, _) = sign_in(&store, "alice", 1).await;
    store
        .create_pairing_code(&tenant, code(&user, 7), 20, NOW)
        .await
        .expect("a code");
    let raw = rusqlite::Connection::open(dir.path().join("edgecloud.db")).expect("open");
    raw.execute_batch(
        "CREATE TRIGGER broken BEFORE UPDATE OF used_at ON pairing_codes
         BEGIN SELECT RAISE(ABORT, 'injected'); END",
    )
    .expect("inject the fault");
    store
        .exchange_pairing_code(exchange(7, 9), NOW)
        .await
        .expect_err("the fault shows");
    assert_eq!(
        store
            .find_device_by_token([9; 32], NOW)
            .await
            .expect("read"),
        None
    );
    let devices = store
        .list_devices(&tenant, DeviceFilter::default(), all())
        .await
        .expect("list");
    assert!(devices.items.is_empty());
    raw.execute_batch("DROP TRIGGER broken").expect("mend");
    let paired = store
        .exchange_pairing_code(exchange(7, 9), NOW)
        .await
        .expect("no error");
    assert!(paired.is_some(), "the code is still good");
}

#[tokio::test]
async fn a_code_that_is_used_expired_revoked_or_unknown_pairs_nothing() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (user, tenant, _) = sign_in(&store, "alice", 1).await;
    pair(&store, &tenant, &user, 7).await;
    let revoked = code(&user, 8);
    store
        .create_pairing_code(&tenant, revoked.clone(), 20, NOW)
        .await
        .expect("a code");
    assert!(
        store
            .revoke_pairing_code(&tenant, &revoked.id, NOW)
            .await
            .expect("revoke")
    );
    store
        .create_pairing_code(&tenant, code(&user, 9), 20, NOW)
        .await
        .expect("a code");
    let later = NOW.plus(HOUR);
    for (mac, at) in [(7, NOW), (8, NOW), (9, later), (10, NOW)] {
        let paired = store
            .exchange_pairing_code(exchange(mac, 200), at)
            .await
            .expect("no error");
        assert_eq!(paired, None, "code {mac}");
    }
    let codes = store
        .list_pairing_codes(&tenant, all(), later)
        .await
        .expect("list");
    let mut statuses: Vec<_> = codes
        .items
        .iter()
        .map(|code| format!("{:?}", code.status))
        .collect();
    statuses.sort();
    assert_eq!(statuses, ["Expired", "Revoked", "Used"]);
    let used = codes
        .items
        .iter()
        .find(|code| code.status == CodeStatus::Used)
        .expect("one");
    assert_eq!(
        used.device.as_ref().map(|device| device.name.as_str()),
        Some("Till 3")
    );
}

#[tokio::test]
async fn a_tenant_has_a_limit_of_open_codes() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (user, tenant, _) = sign_in(&store, "alice", 1).await;
    for mac in 0..2 {
        store
            .create_pairing_code(&tenant, code(&user, mac), 2, NOW)
            .await
            .expect("a code");
    }
    let refused = store
        .create_pairing_code(&tenant, code(&user, 2), 2, NOW)
        .await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))));
}

#[tokio::test]
async fn another_tenants_things_do_not_exist() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (alice, tenant, _) = sign_in(&store, "alice", 1).await;
    let (_, foreign, _) = sign_in(&store, "bob", 2).await;
    let device = pair(&store, &tenant, &alice, 7).await;
    let codes = store
        .list_pairing_codes(&tenant, all(), NOW)
        .await
        .expect("list")
        .items;
    assert_eq!(
        store.find_device(&foreign, &device).await.expect("read"),
        None
    );
    assert_eq!(
        store
            .rename_device(&foreign, &device, "mine")
            .await
            .expect("write"),
        None
    );
    assert!(
        !store
            .delete_device(&foreign, &device, NOW)
            .await
            .expect("write")
    );
    assert_eq!(
        store.find_session(&foreign, &device).await.expect("read"),
        None
    );
    assert_eq!(
        store
            .find_pairing_code(&foreign, &codes[0].id, NOW)
            .await
            .expect("read"),
        None
    );
    assert!(
        !store
            .revoke_pairing_code(&foreign, &codes[0].id, NOW)
            .await
            .expect("write")
    );
    let listed = store
        .list_devices(&foreign, DeviceFilter::default(), all())
        .await
        .expect("list");
    assert!(listed.items.is_empty());
    assert!(
        store
            .find_device(&tenant, &device)
            .await
            .expect("read")
            .is_some()
    );
}

#[tokio::test]
async fn a_removed_device_takes_its_tokens_along() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (user, tenant, login) = sign_in(&store, "alice", 1).await;
    let device = pair(&store, &tenant, &user, 7).await;
    let ticket = store
        .create_ticket([5; 32], &tenant, &device, &login, NOW.plus(HOUR))
        .await;
    ticket.expect("a ticket");
    assert!(
        store
            .find_device_by_token([7; 32], NOW)
            .await
            .expect("read")
            .is_some()
    );
    assert!(
        store
            .delete_device(&tenant, &device, NOW)
            .await
            .expect("delete")
    );
    assert_eq!(
        store
            .find_device_by_token([7; 32], NOW)
            .await
            .expect("read"),
        None
    );
    assert_eq!(
        store
            .redeem_ticket([5; 32], &device, NOW)
            .await
            .expect("redeem"),
        None
    );
    let late = store
        .create_ticket([6; 32], &tenant, &device, &login, NOW.plus(HOUR))
        .await;
    assert!(matches!(late, Err(StoreError::Conflict(_))));
}

#[tokio::test]
async fn a_ticket_opens_one_device_once_and_for_a_while() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (user, tenant, login) = sign_in(&store, "alice", 1).await;
    let device = pair(&store, &tenant, &user, 7).await;
    let other = pair(&store, &tenant, &user, 8).await;
    for hash in [1, 2] {
        let made = store
            .create_ticket([hash; 32], &tenant, &device, &login, NOW.plus(HOUR))
            .await;
        made.expect("a ticket");
    }
    let redeem = |hash, device, at| store.redeem_ticket([hash; 32], device, at);
    assert_eq!(redeem(1, &other, NOW).await.expect("redeem"), None);
    assert_eq!(
        redeem(1, &device, NOW).await.expect("redeem"),
        Some((login, tenant))
    );
    assert_eq!(redeem(1, &device, NOW).await.expect("redeem"), None);
    assert_eq!(
        redeem(2, &device, NOW.plus(HOUR)).await.expect("redeem"),
        None
    );
}

#[tokio::test]
async fn lists_are_cut_into_pages_that_miss_and_repeat_nothing() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (user, tenant, _) = sign_in(&store, "alice", 1).await;
    let mut made = Vec::new();
    for byte in 10..17 {
        made.push(pair(&store, &tenant, &user, byte).await);
    }
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let request = PageRequest { limit: 3, cursor };
        let page = store
            .list_devices(&tenant, DeviceFilter::default(), request)
            .await
            .expect("list");
        assert!(page.items.len() <= 3);
        seen.extend(page.items.into_iter().map(|device| device.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    made.sort();
    assert_eq!(seen, made);
    let bad = PageRequest {
        limit: 3,
        cursor: Some("!".into()),
    };
    let refused = store
        .list_devices(&tenant, DeviceFilter::default(), bad)
        .await;
    assert!(matches!(refused, Err(StoreError::BadCursor)));
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
        node: node.clone(),
        remote_addr: "192.0.2.7:1".into(),
        agent_version: None,
        origin_host: Some("localhost:8080".into()),
    }
}

#[tokio::test]
async fn the_newest_session_of_a_device_wins_and_ends_alone() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (user, tenant, _) = sign_in(&store, "alice", 1).await;
    let device = pair(&store, &tenant, &user, 7).await;
    let (one, two) = (
        node(Some("http://127.0.0.1:1")),
        node(Some("http://127.0.0.1:2")),
    );
    for node in [&one, &two] {
        store
            .register_node(node.clone(), HOUR)
            .await
            .expect("register");
    }
    let found = store
        .find_device(&tenant, &device)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(found.offline_reason(), Some("never_connected"));
    let begin = |node: &NewNode| store.begin_session(session(&device, &tenant, &node.id), NOW);
    let first = begin(&one)
        .await
        .expect("write")
        .expect("the device is there");
    let before = store.latest_change().await.expect("read");
    let second = begin(&two)
        .await
        .expect("write")
        .expect("the device is there");
    assert!(second.epoch > first.epoch);
    let changes = store.list_changes(before, 10).await.expect("read");
    assert_eq!(changes[0].kind, ChangeKind::SessionMoved);
    assert_eq!(changes[0].detail, Some(second.epoch.to_string()));
    assert!(
        !store
            .end_session(&device, first.epoch, "late", NOW)
            .await
            .expect("write")
    );
    let row = store
        .find_session(&tenant, &device)
        .await
        .expect("read")
        .expect("a session");
    assert_eq!((&row.node, row.node_alive), (&two.id, true));
    let echo = Echo {
        device: device.clone(),
        epoch: second.epoch,
        at: NOW,
        rtt_ms: Some(1.5),
    };
    store
        .record_echoes(&two.id, vec![echo])
        .await
        .expect("write");
    let row = store
        .find_session(&tenant, &device)
        .await
        .expect("read")
        .expect("a session");
    assert_eq!((row.last_echo_at, row.rtt_ms), (Some(NOW), Some(1.5)));
    assert!(
        store
            .end_session(&device, second.epoch, "closed", NOW)
            .await
            .expect("write")
    );
    let found = store
        .find_device(&tenant, &device)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(found.offline_reason(), Some("disconnected"));
    assert_eq!(found.disconnect_reason.as_deref(), Some("closed"));
}

#[tokio::test]
async fn a_node_whose_lease_ran_out_holds_nothing() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (user, tenant, _) = sign_in(&store, "alice", 1).await;
    let device = pair(&store, &tenant, &user, 7).await;
    let lost = node(Some("http://127.0.0.1:1"));
    store
        .register_node(lost.clone(), Duration::ZERO)
        .await
        .expect("register");
    assert_eq!(store.tunnel_url().await.expect("read"), None);
    store
        .begin_session(session(&device, &tenant, &lost.id), NOW)
        .await
        .expect("write");
    let found = store
        .find_device(&tenant, &device)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(found.offline_reason(), Some("node_lost"));
    assert!(
        store
            .renew_node(&lost.id, HOUR, false)
            .await
            .expect("renew")
    );
    let url = store.tunnel_url().await.expect("read");
    assert_eq!(url.as_deref(), Some("wss://tunnel.example"));
    store.renew_node(&lost.id, HOUR, true).await.expect("renew");
    assert_eq!(
        store.tunnel_url().await.expect("read"),
        None,
        "it is on its way out"
    );
    store.remove_node(&lost.id).await.expect("remove");
    assert!(
        !store
            .renew_node(&lost.id, HOUR, false)
            .await
            .expect("renew")
    );
    assert_eq!(
        store.find_session(&tenant, &device).await.expect("read"),
        None
    );
}

#[tokio::test]
async fn a_sole_process_clears_its_predecessor_away() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (before, after) = (node(None), node(None));
    store
        .register_node(before.clone(), HOUR)
        .await
        .expect("register");
    store
        .register_node(after.clone(), HOUR)
        .await
        .expect("register");
    assert!(
        !store
            .renew_node(&before.id, HOUR, false)
            .await
            .expect("renew")
    );
    assert!(
        store
            .renew_node(&after.id, HOUR, false)
            .await
            .expect("renew")
    );
}

#[tokio::test]
async fn a_failing_write_harms_no_other_in_its_group() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (user, tenant, _) = sign_in(&store, "alice", 1).await;
    let writes = (0..200u8).map(|mac| {
        let (store, tenant) = (store.clone(), tenant.clone());
        // Every second code repeats the one before, which the database refuses.
        let code = code(&user, mac / 2);
        tokio::task::spawn(async move { store.create_pairing_code(&tenant, code, 500, NOW).await })
    });
    let mut made = 0;
    for write in writes.collect::<Vec<_>>() {
        made += usize::from(write.await.expect("no panic").is_ok());
    }
    assert_eq!(made, 100);
}

#[tokio::test]
async fn a_newer_a_damaged_and_an_unwritable_database_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = async |name: &str| {
        Store::open(Location::Sqlite(&dir.path().join(name)))
            .await
            .err()
    };
    assert!(open("newer.db").await.is_none());
    let raw = rusqlite::Connection::open(dir.path().join("newer.db")).expect("open");
    raw.pragma_update(None, "user_version", 99).expect("set");
    assert!(matches!(
        open("newer.db").await,
        Some(StoreError::NewerSchema { found: 99, .. })
    ));
    std::fs::write(dir.path().join("garbage.db"), "no database ".repeat(500)).expect("write");
    assert!(matches!(
        open("garbage.db").await,
        Some(StoreError::Unusable { .. })
    ));
    std::fs::create_dir(dir.path().join("folder.db")).expect("a folder");
    assert!(matches!(
        open("folder.db").await,
        Some(StoreError::Unusable { .. })
    ));
}

#[tokio::test]
async fn a_backup_is_whole_and_never_overwrites() {
    let Fixture { store, dir } = fixture().await;
    let (_, tenant, _) = sign_in(&store, "alice", 1).await;
    let copy = dir.path().join("copy.db");
    store.backup(&copy).await.expect("backup");
    assert!(matches!(
        store.backup(&copy).await,
        Err(StoreError::Unusable { .. })
    ));
    let restored = Store::open(Location::Sqlite(&copy))
        .await
        .expect("open the copy");
    assert_eq!(restored.check().await.expect("check"), Vec::<String>::new());
    let record = restored
        .find_login([1; 32], NOW)
        .await
        .expect("read")
        .expect("a login");
    assert_eq!(record.active_tenant, tenant);
}

#[tokio::test]
async fn the_database_is_private() {
    use std::os::unix::fs::MetadataExt;
    let Fixture { store, dir } = fixture().await;
    store.ping().await.expect("ping");
    for name in ["edgecloud.db", "edgecloud.db-wal"] {
        let mode = std::fs::metadata(dir.path().join(name))
            .expect("it exists")
            .mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}
