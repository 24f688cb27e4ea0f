//! Tenants, members and invitations.

use super::*;
use crate::types::InvitationId;

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

fn claims(hash: u8, tenants: &[(&str, Role)]) -> NewLogin {
    let tenants = tenants
        .iter()
        .map(|(name, role)| ((*name).to_owned(), *role));
    NewLogin {
        tenants: Some(tenants.collect()),
        ..login("alice", hash)
    }
}

async fn place(store: &Store, tenant: &TenantId, user: &UserId) -> Option<Role> {
    let found = store.find_member(tenant, user).await.expect("read");
    found.map(|member| member.role)
}

#[tokio::test]
async fn a_claim_that_changed_is_followed_where_everybody_sees_it() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (bob, shop, _) = sign_in(&store, "bob", 9).await;
    let first = claims(
        1,
        &[
            ("acme", Role::Admin),
            ("lab", Role::Viewer),
            ("yard", Role::Viewer),
        ],
    );
    let alice = store.sign_in(first, NOW).await.expect("sign in");
    invite(&store, &shop, &bob, Role::Viewer, 5).await;
    let joined = store.accept_invitation([5; 32], &alice, NOW).await;
    assert!(matches!(joined.expect("write"), Acceptance::Joined(_)));
    let record = store
        .find_login([1; 32], NOW)
        .await
        .expect("read")
        .expect("a login");
    let named = |name: &str| {
        let found = record.memberships.iter().find(|of| of.name == name);
        found.expect("a membership").id.clone()
    };
    let (acme, lab, yard) = (named("acme"), named("lab"), named("yard"));

    let before = store.latest_change().await.expect("read");
    let second = claims(2, &[("lab", Role::Operator), ("yard", Role::Viewer)]);
    store.sign_in(second, NOW).await.expect("sign in");
    assert_eq!(place(&store, &acme, &alice).await, None);
    assert_eq!(place(&store, &lab, &alice).await, Some(Role::Operator));
    assert_eq!(
        place(&store, &shop, &alice).await,
        Some(Role::Viewer),
        "no claim gave it"
    );
    let changes = store.list_changes(before, 10).await.expect("read");
    let mut told: Vec<_> = changes
        .into_iter()
        .filter(|change| change.kind == ChangeKind::MemberChanged)
        .map(|change| change.detail.expect("a tenant"))
        .collect();
    told.sort();
    let mut expected = [acme.to_string(), lab.to_string()];
    expected.sort();
    assert_eq!(told, expected, "the place in {yard} is as it was");

    let by_hand = store.set_member_role(&lab, &alice, Role::Owner, NOW).await;
    assert_eq!(by_hand.expect("write"), MemberChange::Claimed);
    let by_hand = store.delete_member(&lab, &alice, NOW).await;
    assert_eq!(by_hand.expect("write"), MemberChange::Claimed);
}

async fn invite(store: &Store, tenant: &TenantId, by: &UserId, role: Role, hash: u8) {
    let invitation = NewInvitation {
        id: InvitationId::random(),
        token_hash: [hash; 32],
        role,
        email: None,
        created_by: by.to_string(),
        expires_at: NOW.plus(HOUR),
    };
    let made = store.create_invitation(tenant, invitation, 100, NOW).await;
    made.expect("an invitation");
}

#[tokio::test]
async fn of_two_owners_who_demote_each_other_at_once_one_stays() {
    let Fixture { store, dir } = fixture().await;
    let other = another(&dir).await;
    let (alice, tenant, _) = sign_in(&store, "alice", 1).await;
    let (bob, ..) = sign_in(&store, "bob", 2).await;
    invite(&store, &tenant, &alice, Role::Owner, 3).await;
    store
        .accept_invitation([3; 32], &bob, NOW)
        .await
        .expect("join");
    for round in 0..20 {
        let (one, two) = tokio::join!(
            store.set_member_role(&tenant, &alice, Role::Admin, NOW),
            async {
                match round % 2 {
                    0 => other.set_member_role(&tenant, &bob, Role::Admin, NOW).await,
                    _ => other.delete_member(&tenant, &bob, NOW).await,
                }
            }
        );
        let (one, two) = (one.expect("write"), two.expect("write"));
        let is_last = |change: &MemberChange| *change == MemberChange::LastOwner;
        assert!(is_last(&one) != is_last(&two), "{round}: {one:?}, {two:?}");
        for user in [&alice, &bob] {
            let there = place(&store, &tenant, user).await.is_some();
            if !there {
                let hash = 100 + round;
                invite(&store, &tenant, &alice, Role::Owner, hash).await;
                store
                    .accept_invitation([hash; 32], user, NOW)
                    .await
                    .expect("join");
            }
            let owner = store.set_member_role(&tenant, user, Role::Owner, NOW).await;
            owner.expect("both are owners again");
        }
    }
}

#[tokio::test]
async fn of_twenty_who_accept_one_invitation_at_once_one_joins() {
    let Fixture { store, dir } = fixture().await;
    let other = another(&dir).await;
    let (alice, tenant, _) = sign_in(&store, "alice", 1).await;
    invite(&store, &tenant, &alice, Role::Viewer, 7).await;
    let mut attempts = tokio::task::JoinSet::new();
    for number in 100..120u8 {
        let (user, ..) = sign_in(&store, &format!("person {number}"), number).await;
        let store = if number % 2 == 0 { &store } else { &other }.clone();
        attempts.spawn(async move { store.accept_invitation([7; 32], &user, NOW).await });
    }
    let mut joined = 0;
    for attempt in attempts.join_all().await {
        match attempt.expect("no error") {
            Acceptance::Joined(_) => joined += 1,
            other => assert_eq!(other, Acceptance::Invalid),
        }
    }
    assert_eq!(joined, 1);
    let members = store.list_members(&tenant, all()).await.expect("list");
    assert_eq!(members.items.len(), 2);
}

#[tokio::test]
async fn a_removed_tenant_tells_what_went_with_it() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (alice, tenant, login) = sign_in(&store, "alice", 1).await;
    let device = pair(&store, &tenant, &alice, 7).await;
    let before = store.latest_change().await.expect("read");
    let removed = store.delete_tenant(&tenant, NOW).await.expect("write");
    let removed = removed.expect("there was one");
    assert_eq!(
        (removed.devices, removed.members),
        (vec![device], vec![alice])
    );
    let changes = store.list_changes(before, 10).await.expect("read");
    let ended =
        |change: &Change| change.kind == ChangeKind::LoginEnded && change.subject == login.as_str();
    assert!(changes.iter().any(ended), "it was her only tenant");
    assert_eq!(
        store.delete_tenant(&tenant, NOW).await.expect("write"),
        None
    );
}

#[tokio::test]
async fn a_cursor_belongs_to_its_tenant() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (alice, tenant, _) = sign_in(&store, "alice", 1).await;
    let (bob, foreign, _) = sign_in(&store, "bob", 2).await;
    for byte in [10, 11] {
        pair(&store, &tenant, &alice, byte).await;
        pair(&store, &foreign, &bob, byte + 10).await;
    }
    let page = |cursor| PageRequest { limit: 1, cursor };
    let list = |of, cursor| store.list_devices(of, DeviceFilter::default(), page(cursor));
    let first = list(&tenant, None).await.expect("list");
    assert!(first.next_cursor.is_some());
    let own = list(&tenant, first.next_cursor.clone())
        .await
        .expect("list");
    assert_eq!(own.items.len(), 1);
    let stolen = list(&foreign, first.next_cursor).await;
    assert!(matches!(stolen, Err(StoreError::BadCursor)));
}
