//! Nodes and sessions.

use super::*;

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
