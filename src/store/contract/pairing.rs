//! Pairing codes.

use super::*;

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
