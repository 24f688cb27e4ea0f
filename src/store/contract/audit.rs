//! The audit.

use super::*;
use crate::types::GroupId;

fn entry(tenant: &TenantId, by: &UserId, action: &'static str) -> AuditEntry {
    let actor = AuditActor::User(by.clone());
    AuditEntry::new(NOW, Some(tenant.clone()), actor, action)
}

async fn actions(store: &Store, tenant: &TenantId) -> Vec<String> {
    let found = store
        .list_audit(tenant, AuditFilter::default(), all())
        .await;
    let rows = found.expect("list").items.into_iter();
    rows.map(|row| row.action).collect()
}

#[tokio::test]
async fn a_write_is_written_down_when_it_did_something_and_only_then() {
    let Fixture { store, dir: _dir } = fixture().await;
    let (alice, tenant, _) = sign_in(&store, "alice", 1).await;
    let (_, foreign, _) = sign_in(&store, "bob", 2).await;
    let group = GroupId::random();
    let audited = |action| store.audited(entry(&tenant, &alice, action));
    let made = audited("group.created")
        .create_group(&tenant, (&group, "line"), 10, NOW)
        .await;
    made.expect("a group");
    let again = GroupId::random();
    let taken = audited("group.created")
        .create_group(&tenant, (&again, "line"), 10, NOW)
        .await;
    taken.expect_err("the name is taken");
    let removed = audited("group.removed")
        .delete_group(&foreign, &group)
        .await;
    assert!(!removed.expect("write"), "it is another tenant's");
    let same = audited("member.role_changed")
        .set_member_role(&tenant, &alice, Role::Owner, NOW)
        .await;
    assert!(matches!(same.expect("write"), MemberChange::Unchanged(_)));
    assert_eq!(
        actions(&store, &tenant).await,
        ["group.created", "login.signed_in"]
    );
    assert_eq!(actions(&store, &foreign).await, ["login.signed_in"]);
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_done() {
    let Fixture { store, dir } = fixture().await;
    let (alice, tenant, _) = sign_in(&store, "alice", 1).await;
    let raw = rusqlite::Connection::open(dir.path().join("edgecloud.db")).expect("open");
    raw.execute_batch(
        "CREATE TRIGGER broken BEFORE INSERT ON audit
         BEGIN SELECT RAISE(ABORT, 'injected'); END",
    )
    .expect("inject the fault");
    let audited = store.audited(entry(&tenant, &alice, "group.created"));
    let group = GroupId::random();
    let made = audited.create_group(&tenant, (&group, "line"), 10, NOW);
    made.await.expect_err("the fault shows");
    let groups = store.list_groups(&tenant, all()).await.expect("list");
    assert!(groups.items.is_empty());
}

#[tokio::test]
async fn no_row_and_no_checkpoint_is_changed_or_removed() {
    let Fixture { store, dir } = fixture().await;
    sign_in(&store, "alice", 1).await;
    let checkpoint = AuditCheckpoint {
        up_to: 1,
        at: NOW,
        hash: [1; 32],
        key_id: "k".into(),
        mac: [2; 32],
    };
    let made = store.create_audit_checkpoint(0, checkpoint.clone()).await;
    assert!(made.expect("write"));
    let late = AuditCheckpoint {
        up_to: 2,
        ..checkpoint
    };
    let made = store.create_audit_checkpoint(0, late).await;
    assert!(!made.expect("write"), "another process was faster");
    let raw = rusqlite::Connection::open(dir.path().join("edgecloud.db")).expect("open");
    for sql in [
        "UPDATE audit SET action = 'x'",
        "DELETE FROM audit",
        "UPDATE audit_checkpoints SET up_to = 7",
        "DELETE FROM audit_checkpoints",
    ] {
        let refused = raw.execute(sql, []).expect_err("it is append-only");
        assert!(refused.to_string().contains("append-only"), "{refused}");
    }
}
