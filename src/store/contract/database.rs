//! The database as a whole.

use super::*;

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
