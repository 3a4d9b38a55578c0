//! Tests of the control database: what it keeps over a restart and over a crash, and how it
//! refuses a file that it cannot trust.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::provider::files::small_disk::SmallDisk;

fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

fn register(db: &ControlDb, id: &str) -> TenantEntry {
    db.register(&tenant(id), "sqlite", Distinct::Exactly, TenantState::Ready)
        .unwrap()
}

/// Opens a copy of the file as it is on disk now, as after a kill.
fn after_kill(dir: &Path) -> (tempfile::TempDir, ControlDb) {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join(CONTROL_FILE), copy.path().join(CONTROL_FILE)).unwrap();
    let db = ControlDb::open(copy.path()).unwrap();
    (copy, db)
}

#[test]
fn a_new_file_is_private_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    let mode = std::fs::metadata(db.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(db.path(), dir.path().join("nimbus-control.db"));
    let installation = db.installation();
    assert_eq!(installation.to_string().len(), 32);
    drop(db);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(
        ControlDb::open(dir.path()).unwrap().installation(),
        installation
    );
    let other = tempfile::tempdir().unwrap();
    assert_ne!(
        ControlDb::open(other.path()).unwrap().installation(),
        installation
    );
}

#[test]
fn a_wide_mode_is_narrowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = ControlDb::open(dir.path()).unwrap().path().to_owned();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    ControlDb::open(dir.path()).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o600
    );
}

#[test]
fn the_registry_survives_a_restart_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    let a = register(&db, "a");
    let creating = db.register(
        &tenant("b"),
        "sqlite",
        Distinct::Exactly,
        TenantState::Creating,
    );
    let b = creating.unwrap();
    register(&db, "c");
    let other = db
        .register(&tenant("d"), "redb", Distinct::Exactly, TenantState::Ready)
        .unwrap();
    assert_ne!(a.incarnation, b.incarnation);
    assert!(a.created_at_ms > 1_600_000_000_000);
    db.put_state(&tenant("c"), "sqlite", TenantState::Deleting)
        .unwrap();
    let check = |db: &ControlDb| {
        assert_eq!(db.get(&tenant("a")), Some(a.clone()));
        assert_eq!(db.get(&tenant("b")), Some(b.clone()));
        assert_eq!(db.get(&tenant("c")).unwrap().state, TenantState::Deleting);
        assert_eq!(db.list("sqlite"), [tenant("a")]);
        assert_eq!(db.list("redb"), [tenant("d")]);
        assert!(db.contains(&tenant("a"), "sqlite") && !db.contains(&tenant("a"), "redb"));
        assert!(!db.contains(&tenant("b"), "sqlite") && !db.contains(&tenant("c"), "sqlite"));
        assert_eq!(db.get(&tenant("d")), Some(other.clone()));
        assert_eq!(db.entries().len(), 4);
    };
    check(&db);
    check(&after_kill(dir.path()).1);
    drop(db);
    let db = ControlDb::open(dir.path()).unwrap();
    check(&db);
    assert!(db.remove(&tenant("a"), "sqlite").unwrap());
    assert!(!db.remove(&tenant("a"), "sqlite").unwrap());
    assert_eq!(after_kill(dir.path()).1.get(&tenant("a")), None);
}

#[test]
fn registering_refuses_doubles_and_clashes() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    register(&db, "a-b");
    for provider in ["sqlite", "redb"] {
        for state in [TenantState::Creating, TenantState::Ready] {
            let e = db
                .register(&tenant("a-b"), provider, Distinct::Exactly, state)
                .unwrap_err();
            assert!(matches!(e, ProviderError::AlreadyExists { .. }), "{e:?}");
        }
    }
    let ready = TenantState::Ready;
    let e = db
        .register(&tenant("A-B"), "sqlite", Distinct::IgnoringCase, ready)
        .unwrap_err();
    assert!(matches!(&e, ProviderError::NameClash { existing, .. } if *existing == tenant("a-b")));
    // Another provider's files have another ending.
    db.register(&tenant("A-b"), "redb", Distinct::IgnoringCase, ready)
        .unwrap();
    db.register(&tenant("a_b"), "sqlite", Distinct::IgnoringCase, ready)
        .unwrap();
    db.register(&tenant("A-B"), "sqlite", Distinct::Exactly, ready)
        .unwrap();
    let e = db.put_state(&tenant("x"), "sqlite", ready).unwrap_err();
    assert!(matches!(e, ProviderError::NotFound { .. }), "{e:?}");
}

#[test]
fn wakes_are_ordered_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    assert_eq!(db.next_wake(), None);
    for (id, at) in [("c", 30), ("a", 20), ("b", 20), ("d", u64::MAX), ("e", 0)] {
        assert!(db.lower_wake(&tenant(id), at).unwrap());
    }
    let due = |now, limit| -> Vec<(u64, String)> {
        db.due(now, limit)
            .into_iter()
            .map(|wake| (wake.at_ms, wake.tenant.to_string()))
            .collect()
    };
    let row = |at: u64, id: &str| (at, id.to_owned());
    assert_eq!(db.next_wake(), Some(0));
    assert_eq!(due(19, 10), [row(0, "e")]);
    assert_eq!(
        due(30, 10),
        [row(0, "e"), row(20, "a"), row(20, "b"), row(30, "c")]
    );
    assert_eq!(due(30, 2), [row(0, "e"), row(20, "a")]);
    assert_eq!(due(u64::MAX, 10).len(), 5);
    assert_eq!(due(30, 0), []);
    db.set_wake(&tenant("e"), None).unwrap();
    db.set_wake(&tenant("a"), Some(40)).unwrap();
    assert_eq!(due(40, 10), [row(20, "b"), row(30, "c"), row(40, "a")]);
    assert_eq!(db.wake(&tenant("e")), None);
    assert_eq!(db.next_wake(), Some(20));
}

#[test]
fn lowering_writes_only_when_it_lowers() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    let t = tenant("t");
    assert!(db.lower_wake(&t, 100).unwrap());
    let before = std::fs::read(db.path()).unwrap();
    assert!(!db.lower_wake(&t, 100).unwrap());
    assert!(!db.lower_wake(&t, 101).unwrap());
    assert_eq!(std::fs::read(db.path()).unwrap(), before);
    assert!(db.lower_wake(&t, 99).unwrap());
    assert_eq!(db.wake(&t), Some(99));
}

#[tokio::test]
async fn wakes_are_replaced_by_those_who_saw_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let control = Arc::new(ControlDb::open(dir.path()).unwrap());
    let kept = crate::conformance::keeps_wake_times(&LocalWakes::new(control)).await;
    kept.unwrap();
}

/// The file is opened again and may have an older time; who saw one before that may not raise it.
#[test]
fn wakes_are_in_order_after_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    let t = tenant("t");
    db.lower_wake(&t, 5).unwrap();
    let seen = db.due(5, 1).remove(0);
    db.set_wake(&t, Some(10)).unwrap();
    db.writer().db = None;
    db.lower_wake(&t, 7).unwrap();
    assert!(!db.replace_wake(&seen, None).unwrap());
    assert_eq!(db.due(u64::MAX, 9).len(), 1);
    db.check().unwrap();
    let kept = after_kill(dir.path()).1;
    assert_eq!(kept.wake(&t), Some(7));
    drop(db);
    assert_eq!(ControlDb::open(dir.path()).unwrap().wake(&t), Some(7));
}

/// A change that failed may be in the file all the same: what is announced next is looked up there.
#[test]
fn a_wake_that_may_be_gone_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    let t = tenant("t");
    db.lower_wake(&t, 5).unwrap();
    db.set_wake(&t, None).unwrap();
    // As if that had failed: the mirror has it still, and the file is closed.
    db.mirror().wakes.set(&t, Some(5));
    db.writer().db = None;
    assert!(db.lower_wake(&t, 7).unwrap());
    assert_eq!(after_kill(dir.path()).1.wake(&t), Some(7));
}

/// Whatever happened, a crash never leaves a wake later than the last one promised.
#[test]
fn a_kill_never_leaves_a_later_wake() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    let t = tenant("t");
    enum Op {
        Lower(u64),
        Set(Option<u64>),
    }
    use Op::{Lower, Set};
    let ops = [
        (Lower(100), 100),
        (Set(Some(200)), 200),
        (Lower(150), 150),
        (Lower(180), 150),
        (Set(None), u64::MAX),
        (Lower(500), 500),
        (Set(Some(400)), 400), // a lowering, so durable
        (Set(Some(900)), 900),
        (Lower(900), 900),
        (Set(None), u64::MAX),
        (Set(Some(1000)), 1000),
    ];
    for (n, (op, promised)) in ops.into_iter().enumerate() {
        match op {
            Lower(at) => drop(db.lower_wake(&t, at).unwrap()),
            Set(at) => db.set_wake(&t, at).unwrap(),
        }
        if promised != u64::MAX {
            let (_dir, copy) = after_kill(dir.path());
            let kept = copy.wake(&t).expect("a promised wake is kept");
            assert!(
                kept <= promised,
                "step {n}: kept {kept}, promised {promised}"
            );
        }
    }
    drop(db);
    assert_eq!(ControlDb::open(dir.path()).unwrap().wake(&t), Some(1000));
}

#[test]
fn lazy_raises_do_not_grow_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    let t = tenant("t");
    for at in 0..300 {
        db.set_wake(&t, Some(at)).unwrap();
    }
    let size = std::fs::metadata(db.path()).unwrap().len();
    for at in 300..1500 {
        db.set_wake(&t, Some(at)).unwrap();
    }
    assert!(std::fs::metadata(db.path()).unwrap().len() <= 2 * size);
    // At most so many raises are lost.
    let kept = after_kill(dir.path()).1.wake(&t).unwrap();
    assert!(kept >= 1499 - u64::from(LAZY_COMMITS) - 1, "{kept}");
}

#[test]
fn anchors_survive_a_restart_and_are_read_without_opening() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(look_anchor(dir.path(), "log", None).unwrap(), None);
    let db = ControlDb::open(dir.path()).unwrap();
    assert_eq!(db.anchor("log"), None);
    for text in ["1", "2"] {
        db.set_anchor("log", text).unwrap();
        db.set_anchor("other", "9").unwrap();
        let (_copy, copied) = after_kill(dir.path());
        for db in [&db, &copied] {
            assert_eq!(db.anchor("log").as_deref(), Some(text));
        }
    }
    assert_eq!(db.anchors(""), ["log", "other"]);
    assert_eq!(db.anchors("lo"), ["log"]);
    drop(db);
    let before = std::fs::read(dir.path().join(CONTROL_FILE)).unwrap();
    assert_eq!(
        look_anchor(dir.path(), "log", None).unwrap().as_deref(),
        Some("2")
    );
    assert_eq!(look_anchor(dir.path(), "none", None).unwrap(), None);
    assert_eq!(
        std::fs::read(dir.path().join(CONTROL_FILE)).unwrap(),
        before
    );
    std::fs::write(dir.path().join(CONTROL_FILE), &before[..100]).unwrap();
    assert!(look_anchor(dir.path(), "log", None).is_err());
}

#[test]
fn the_wake_of_a_tenant_outlives_its_entry() {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    register(&db, "a");
    db.lower_wake(&tenant("a"), 5).unwrap();
    db.remove(&tenant("a"), "sqlite").unwrap();
    assert!(db.get(&tenant("a")).is_none());
    assert_eq!((db.next_wake(), db.wake(&tenant("a"))), (Some(5), Some(5)));
    let kept = after_kill(dir.path()).1;
    assert_eq!(kept.due(5, 9)[0].tenant, tenant("a"));
}

/// Opening must fail with `Corrupt`, name the file and leave it as it is.
fn refused(dir: &Path, bytes: &[u8]) -> String {
    let path = dir.join(CONTROL_FILE);
    std::fs::write(&path, bytes).unwrap();
    let e = ControlDb::open(dir).unwrap_err();
    assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
    assert!(e.to_string().contains("nimbus-control.db"), "{e}");
    assert!(
        std::fs::read(&path).unwrap() == bytes,
        "the file was changed"
    );
    e.to_string()
}

fn good_file() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let db = ControlDb::open(dir.path()).unwrap();
    for n in 0..50 {
        register(&db, &format!("tenant-{n}"));
        db.lower_wake(&tenant(&format!("tenant-{n}")), n).unwrap();
    }
    let path = db.path().to_owned();
    drop(db);
    std::fs::read(path).unwrap()
}

#[test]
fn damaged_files_are_refused_untouched() {
    let good = good_file();
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), b"");
    refused(dir.path(), b"not a database");
    refused(dir.path(), &vec![0; good.len()]);
    refused(dir.path(), b"SQLite format 3\0");
    for len in [1, 100, 319, 4096, good.len() / 2, good.len() - 1] {
        refused(dir.path(), &good[..len]);
    }
    std::fs::write(dir.path().join(CONTROL_FILE), &good).unwrap();
    ControlDb::open(dir.path()).unwrap();
}

#[test]
fn a_flipped_byte_is_refused_or_irrelevant() {
    let good = good_file();
    // The part that holds data; the rest of the file is free.
    let used = good.iter().rposition(|b| *b != 0).unwrap();
    let (mut detected, mut irrelevant) = (0, 0);
    for at in (0..used).step_by(used / 150) {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONTROL_FILE);
        std::fs::write(&path, &bad).unwrap();
        match ControlDb::open(dir.path()) {
            Ok(db) => {
                assert_eq!(
                    db.list("sqlite").len(),
                    50,
                    "byte {at} loses tenants unnoticed"
                );
                assert_eq!(
                    db.due(u64::MAX, 100).len(),
                    50,
                    "byte {at} loses wakes unnoticed"
                );
                irrelevant += 1;
            }
            Err(ProviderError::Corrupt { .. }) => {
                assert!(
                    std::fs::read(&path).unwrap() == bad,
                    "byte {at}: the file was changed"
                );
                detected += 1;
            }
            Err(e) => panic!("byte {at}: {e:?}"),
        }
    }
    assert!(detected > 0, "{detected} detected, {irrelevant} irrelevant");
}

#[test]
fn unknown_formats_and_contents_are_refused() {
    let edit = |change: &dyn Fn(&WriteTransaction)| {
        let dir = tempfile::tempdir().unwrap();
        let path = ControlDb::open(dir.path()).unwrap().path().to_owned();
        let db = Database::open(&path).unwrap();
        let txn = db.begin_write().unwrap();
        change(&txn);
        txn.commit().unwrap();
        drop(db);
        let bytes = std::fs::read(&path).unwrap();
        refused(dir.path(), &bytes)
    };
    let text = edit(&|txn| drop(txn.open_table(META).unwrap().insert("format", "2").unwrap()));
    assert!(
        text.contains("format version is 2 and this server reads version 1"),
        "{text}"
    );
    edit(&|txn| drop(txn.open_table(META).unwrap().remove("format").unwrap()));
    edit(&|txn| {
        drop(
            txn.open_table(META)
                .unwrap()
                .insert("installation", "xyz")
                .unwrap(),
        )
    });
    edit(&|txn| drop(txn.open_table(TENANTS).unwrap().insert("a", "{}").unwrap()));
    edit(&|txn| assert!(txn.delete_table(TENANTS).unwrap()));
    edit(&|txn| drop(txn.open_table(WAKES).unwrap().insert("../a", 1).unwrap()));
    let text = edit(&|txn| drop(txn.open_table(WAKES).unwrap().insert("a", 1).unwrap()));
    assert!(text.contains("differ"), "{text}");
    edit(&|txn| {
        drop(
            txn.open_table(WAKES_BY_TIME)
                .unwrap()
                .insert((1, "a"), ())
                .unwrap(),
        )
    });
}

#[test]
fn symbolic_links_and_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    std::fs::write(&target, "precious").unwrap();
    std::os::unix::fs::symlink(&target, dir.path().join(CONTROL_FILE)).unwrap();
    let e = ControlDb::open(dir.path()).unwrap_err();
    assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    // A dangling link must not make its target.
    std::fs::remove_file(&target).unwrap();
    ControlDb::open(dir.path()).unwrap_err();
    assert!(!target.exists());
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(CONTROL_FILE)).unwrap();
    assert!(matches!(
        ControlDb::open(dir.path()),
        Err(ProviderError::Corrupt { .. })
    ));
}

#[test]
fn a_crash_while_it_is_made_leaves_nothing_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("nimbus-control.db.new"), "half").unwrap();
    ControlDb::open(dir.path()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_second_open_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let _db = ControlDb::open(dir.path()).unwrap();
    let e = ControlDb::open(dir.path()).unwrap_err();
    assert!(matches!(e, ProviderError::Busy { .. }), "{e:?}");
}

#[test]
fn a_full_disk_is_reported_and_survived() {
    let Some(disk) = SmallDisk::new(8 << 20) else {
        return;
    };
    let db = ControlDb::open(disk.path()).unwrap();
    register(&db, "before");
    db.check().unwrap();
    let ballast = disk.fill();
    let mut refused = 0;
    let mut made = 1;
    for n in 0..20_000 {
        let id = tenant(&format!("tenant-{n}"));
        match db.register(&id, "sqlite", Distinct::Exactly, TenantState::Ready) {
            Ok(_) => made += 1,
            Err(ProviderError::Full { .. }) => {
                refused += 1;
                if refused == 3 {
                    break;
                }
            }
            Err(e) => panic!("{e:?}"),
        }
    }
    assert_eq!(refused, 3, "the disk never was full");
    assert!(db.contains(&tenant("before"), "sqlite"));
    assert_eq!(db.list("sqlite").len(), made);
    drop(ballast);
    // No restart is needed.
    db.check().unwrap();
    register(&db, "after");
    assert_eq!(db.list("sqlite").len(), made + 1);
    let path = disk.path().to_owned();
    drop(db);
    assert_eq!(
        ControlDb::open(&path).unwrap().list("sqlite").len(),
        made + 1
    );
}

fn keyring() -> Arc<Keyring> {
    let key = nimbus_crypto::WrappingKey::generate().unwrap();
    Keyring::new(Arc::new(nimbus_crypto::MasterKeyFile::new(key))).unwrap()
}

/// What the file says, before and after it was closed or killed.
#[test]
fn an_encrypted_database_is_one_like_any_other() {
    let (dir, keyring) = (tempfile::tempdir().unwrap(), keyring());
    let keyring = Some(&keyring);
    let db = ControlDb::open_with(dir.path(), keyring).unwrap();
    let installation = db.installation();
    for n in 0..20_u64 {
        let tenant: TenantId = format!("canary-{n}").parse().unwrap();
        db.register(&tenant, "redb", Distinct::Exactly, TenantState::Ready)
            .unwrap();
        db.lower_wake(&tenant, 1000 - n).unwrap();
        db.set_wake(&tenant, Some(5000)).unwrap();
    }
    db.set_anchor("log", "text").unwrap();
    db.check().unwrap();
    let killed = tempfile::tempdir().unwrap();
    for name in [CONTROL_FILE, "nimbus-control.db.nimbus-enc"] {
        std::fs::copy(dir.path().join(name), killed.path().join(name)).unwrap();
    }
    drop(db);
    for dir in [dir.path(), killed.path()] {
        let bytes = std::fs::read(dir.join(CONTROL_FILE)).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"canary"));
        let ControlLook::Entries(entries) = look(dir, keyring).unwrap() else {
            panic!("no entries");
        };
        assert_eq!(entries.len(), 20);
        let anchor = look_anchor(dir, "log", keyring).unwrap();
        assert_eq!(anchor.as_deref(), Some("text"));
        assert_eq!(std::fs::read(dir.join(CONTROL_FILE)).unwrap(), bytes);
        let db = ControlDb::open_with(dir, keyring).unwrap();
        assert_eq!(db.installation(), installation);
        assert_eq!(db.list("redb").len(), 20);
        assert_eq!(db.due(u64::MAX, 100).len(), 20);
    }
}

#[test]
fn encryption_and_the_file_must_agree() {
    // In plain text, and now there is a key.
    let (plain, keyring) = (tempfile::tempdir().unwrap(), keyring());
    drop(ControlDb::open(plain.path()).unwrap());
    let before = std::fs::read(plain.path().join(CONTROL_FILE)).unwrap();
    let refused = [
        ControlDb::open_with(plain.path(), Some(&keyring)).map(drop),
        look(plain.path(), Some(&keyring)).map(drop),
        look_anchor(plain.path(), "log", Some(&keyring)).map(drop),
    ];
    for e in refused {
        let e = e.unwrap_err();
        assert!(matches!(e, ProviderError::Locked { .. }), "{e:?}");
        assert!(e.to_string().contains("sidecar manifest is missing"), "{e}");
        assert!(e.to_string().contains("nimbus encryption migrate"), "{e}");
    }
    assert_eq!(
        std::fs::read(plain.path().join(CONTROL_FILE)).unwrap(),
        before
    );

    // Encrypted, and there is none, or another one.
    let dir = tempfile::tempdir().unwrap();
    drop(ControlDb::open_with(dir.path(), Some(&keyring)).unwrap());
    for e in [
        ControlDb::open(dir.path()).map(drop),
        look(dir.path(), None).map(drop),
    ] {
        let e = e.unwrap_err();
        assert!(
            e.to_string().contains("encryption is not configured"),
            "{e}"
        );
    }
    let e = ControlDb::open_with(dir.path(), Some(&self::keyring())).unwrap_err();
    assert!(matches!(e, ProviderError::Locked { .. }), "{e:?}");

    // A file in plain text under a manifest, and one of another manifest.
    let path = dir.path().join(CONTROL_FILE);
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &before).unwrap();
    let e = ControlDb::open_with(dir.path(), Some(&keyring)).unwrap_err();
    assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
    let other = tempfile::tempdir().unwrap();
    drop(ControlDb::open_with(other.path(), Some(&keyring)).unwrap());
    std::fs::copy(other.path().join(CONTROL_FILE), &path).unwrap();
    let e = ControlDb::open_with(dir.path(), Some(&keyring)).unwrap_err();
    assert!(
        e.to_string().contains("page 0 does not authenticate"),
        "{e}"
    );
    std::fs::write(&path, good).unwrap();
    ControlDb::open_with(dir.path(), Some(&keyring)).unwrap();
}

/// The manifest comes first, so that is what a crash can leave alone.
#[test]
fn a_manifest_without_a_file_is_used() {
    let (dir, keyring) = (tempfile::tempdir().unwrap(), keyring());
    let path = dir.path().join(CONTROL_FILE);
    let subject = nimbus_crypto::Subject::control();
    let key = keyring.create(&path, &subject).unwrap();
    std::fs::write(dir.path().join(NEW_FILE), "half").unwrap();
    let e = ControlDb::open(dir.path()).unwrap_err();
    assert!(
        e.to_string().contains("encryption is not configured"),
        "{e}"
    );
    drop(ControlDb::open_with(dir.path(), Some(&keyring)).unwrap());
    assert_eq!(
        keyring.unlock(&path, &subject).unwrap().file_id(),
        key.file_id()
    );
}

#[test]
fn damage_to_an_encrypted_file_is_found_or_heals() {
    let (dir, keyring) = (tempfile::tempdir().unwrap(), keyring());
    let db = ControlDb::open_with(dir.path(), Some(&keyring)).unwrap();
    for n in 0..20 {
        let tenant: TenantId = format!("t{n}").parse().unwrap();
        db.register(&tenant, "redb", Distinct::Exactly, TenantState::Ready)
            .unwrap();
    }
    drop(db);
    let path = dir.path().join(CONTROL_FILE);
    let good = std::fs::read(&path).unwrap();
    let mut found = [0, 0];
    for at in (0..good.len()).step_by(good.len() / 97) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bad).unwrap();
        match ControlDb::open_with(dir.path(), Some(&keyring)) {
            Ok(db) => {
                assert_eq!(db.list("redb").len(), 20, "{at}");
                found[0] += 1;
            }
            Err(e) => {
                assert!(matches!(e, ProviderError::Corrupt { .. }), "{at}: {e:?}");
                assert!(std::fs::read(&path).unwrap() == bad, "{at}");
                found[1] += 1;
            }
        }
    }
    assert!(found[0] > 0 && found[1] > 0, "{found:?}");
}
