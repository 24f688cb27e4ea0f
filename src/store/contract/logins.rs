//! People and their logins.

use super::*;

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
async fn a_state_is_used_once() {
    let Fixture { store, dir: _dir } = fixture().await;
    assert!(
        store
            .use_once([1; 32], NOW.plus(HOUR))
            .await
            .expect("write")
    );
    assert!(
        !store
            .use_once([1; 32], NOW.plus(HOUR))
            .await
            .expect("write")
    );
    store.delete_expired(NOW.plus(HOUR)).await.expect("clean");
    assert!(
        store
            .use_once([1; 32], NOW.plus(HOUR))
            .await
            .expect("write")
    );
}
