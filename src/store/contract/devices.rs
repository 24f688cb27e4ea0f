//! Devices, their tokens and tickets, and what another tenant sees of them.

use super::*;

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
            .rename_device(&foreign, &device, "mine", NOW)
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

#[tokio::test]
async fn a_token_is_good_until_a_newer_one_is_used_or_ten_minutes_have_passed() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (user, tenant, _) = sign_in(&store, "alice", 1).await;
    let (_, foreign, _) = sign_in(&store, "bob", 2).await;
    let device = pair(&store, &tenant, &user, 7).await;
    let node = node(None);
    store
        .register_node(node.clone(), HOUR)
        .await
        .expect("register");
    let good = async |at: Timestamp| {
        let mut good = Vec::new();
        for byte in [7u8, 8, 9] {
            let found = store.find_device_by_token([byte; 32], at).await;
            if found.expect("read").is_some() {
                good.push(byte);
            }
        }
        good
    };
    let until = NOW.plus(Duration::from_secs(600));
    let rotate =
        |tenant, byte: u8| store.rotate_device_token(tenant, &device, [byte; 32], until, NOW);
    assert_eq!(rotate(&foreign, 8).await.expect("write"), None);
    assert_eq!(rotate(&tenant, 8).await.expect("write"), Some(until));
    assert_eq!(good(NOW).await, [7, 8]);
    assert_eq!(good(until).await, [8]);
    rotate(&tenant, 9).await.expect("write");
    assert_eq!(good(NOW).await, [7, 9], "nobody has used the one between");
    let connect = async |byte: u8| {
        let new = NewSession {
            token_hash: [byte; 32],
            ..session(&device, &tenant, &node.id)
        };
        let begun = store.begin_session(new, NOW).await.expect("write");
        begun.expect("the device is there");
    };
    connect(7).await;
    assert_eq!(good(NOW).await, [7, 9], "it does not know the new one yet");
    connect(9).await;
    assert_eq!(good(NOW).await, [9]);
}
