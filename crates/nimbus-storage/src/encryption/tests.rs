//! Tests of conversions and rotations of SQLite tenants: what comes out, what is refused, and what is put
//! in order after an interruption at each step.

use std::path::PathBuf;
use std::sync::Arc;

use nimbus_core::TenantId;
use nimbus_crypto::{MasterKeyFile, WrappingKey, manifest_path};

use super::*;
use crate::control::ControlDb;
use crate::provider::sqlite::{SqliteOptions, SqliteProvider};
use crate::provider::{Batch, Head, Keyspace, Provider};

const CANARY: &[u8] = b"canary-5810-of-the-document";

struct Home {
    dir: tempfile::TempDir,
    master: Arc<MasterKeyFile>,
    keyring: Arc<Keyring>,
    subject: Subject,
}

impl Home {
    /// A tenant `demo` with one document, in plain text or encrypted.
    async fn with_tenant(encrypted: bool) -> Home {
        let master = Arc::new(MasterKeyFile::new(WrappingKey::generate().unwrap()));
        let home = Home {
            dir: tempfile::tempdir().unwrap(),
            keyring: Keyring::new(master.clone()).unwrap(),
            master,
            subject: Subject::sqlite_tenant("demo").unwrap(),
        };
        let provider = home.provider(encrypted);
        provider.create(&tenant()).await.unwrap();
        let store = provider.open(&tenant()).await.unwrap();
        let head = Head {
            sequence: 1,
            timestamp: 1,
            hash: [7; 32],
        };
        let value = Some(bytes::Bytes::from_static(CANARY));
        let writes = [((Keyspace::Docs, b"key".to_vec()), value)].into();
        store
            .commit(Head::EMPTY, Batch { head, writes })
            .await
            .unwrap();
        store.close().await.unwrap();
        home
    }

    fn provider(&self, encrypted: bool) -> SqliteProvider {
        let control = Arc::new(ControlDb::open(self.dir.path()).unwrap());
        let mut options = SqliteOptions::new(self.dir.path());
        options.keyring = encrypted.then(|| Arc::clone(&self.keyring));
        SqliteProvider::open(options, control).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("demo.sqlite3")
    }

    /// The document as the provider reads it.
    async fn document(&self, encrypted: bool) -> Option<bytes::Bytes> {
        let store = self.provider(encrypted).open(&tenant()).await.unwrap();
        let mut snapshot = store.snapshot().await.unwrap();
        let keys: [&[u8]; 1] = [b"key"];
        let found = snapshot
            .get_many(Keyspace::Docs, &keys)
            .await
            .unwrap()
            .remove(0);
        drop(snapshot);
        store.close().await.unwrap();
        found
    }

    fn migration(&self) -> Migration {
        Migration {
            source: self.file(),
            target: None,
            subject: self.subject.clone(),
            validate: true,
            retire_source: false,
            replace: false,
        }
    }

    fn migrate(&self, job: &Migration) -> AdminResult<PathBuf> {
        migrate(job, &self.keyring, &mut |_| {})
    }

    fn rotate(&self, backup: bool) -> AdminResult<()> {
        rotate_dek(
            &self.file(),
            &self.subject,
            backup,
            &self.keyring,
            &mut |_| {},
        )
    }

    fn recover(&self) -> Vec<Recovered> {
        let (done, failed) = recover(self.dir.path(), self.dir.path(), &self.keyring).unwrap();
        assert!(failed.is_empty(), "{failed:?}");
        done
    }

    /// The names that begin with the tenant's, sorted.
    fn names(&self) -> Vec<String> {
        let listing = std::fs::read_dir(self.dir.path()).unwrap();
        let names = listing.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("demo")).collect();
        names.sort();
        names
    }

    /// Writes the manifest of a rotation that was begun; both keys.
    async fn begin(&self) -> (Manifest, nimbus_crypto::Unlocked) {
        let manifest = Manifest::read(&self.file(), &self.subject).unwrap();
        let begun = manifest
            .begin_rotation(&*self.master, &self.subject)
            .await
            .unwrap();
        begun.0.replace(&self.file()).unwrap();
        begun
    }
}

fn tenant() -> TenantId {
    "demo".parse().unwrap()
}

#[tokio::test]
async fn a_migrated_copy_can_be_moved_into_place() {
    let home = Home::with_tenant(false).await;
    let target = home.migrate(&home.migration()).unwrap();
    assert_eq!(target, home.path("demo.sqlite3.encrypted"));
    assert_eq!(
        home.names(),
        [
            "demo.sqlite3",
            "demo.sqlite3.encrypted",
            "demo.sqlite3.encrypted.nimbus-enc"
        ]
    );
    let bytes = std::fs::read(&target).unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"canary"));
    std::fs::rename(&target, home.file()).unwrap();
    std::fs::rename(manifest_path(&target), manifest_path(&home.file())).unwrap();
    assert_eq!(home.document(true).await.unwrap(), CANARY);
}

#[tokio::test]
async fn a_migration_can_replace_or_retire_its_source() {
    let home = Home::with_tenant(false).await;
    let job = Migration {
        replace: true,
        ..home.migration()
    };
    assert_eq!(home.migrate(&job).unwrap(), home.file());
    assert_eq!(home.names(), ["demo.sqlite3", "demo.sqlite3.nimbus-enc"]);
    assert_eq!(home.document(true).await.unwrap(), CANARY);

    let home = Home::with_tenant(false).await;
    let job = Migration {
        retire_source: true,
        target: Some(home.path("demo-away")),
        ..home.migration()
    };
    home.migrate(&job).unwrap();
    assert_eq!(home.names(), ["demo-away", "demo-away.nimbus-enc"]);
}

#[tokio::test]
async fn what_cannot_be_migrated_is_left_as_it_is() {
    let home = Home::with_tenant(false).await;
    for name in [
        "demo.sqlite3.encrypted",
        "demo.sqlite3.encrypted.nimbus-enc",
    ] {
        std::fs::write(home.path(name), "of someone").unwrap();
        let e = home.migrate(&home.migration()).unwrap_err();
        assert!(matches!(e, AdminError::Exists { .. }), "{e:?}");
        assert_eq!(home.names(), ["demo.sqlite3", name]);
        std::fs::remove_file(home.path(name)).unwrap();
    }
    let job = |source: PathBuf| Migration {
        source,
        ..home.migration()
    };
    let e = home.migrate(&job(home.path("demo-none"))).unwrap_err();
    assert!(matches!(e, AdminError::NoSource { .. }), "{e:?}");
    std::fs::write(home.path("demo-text"), "not a database at all").unwrap();
    let e = home.migrate(&job(home.path("demo-text"))).unwrap_err();
    assert!(
        matches!(
            e,
            AdminError::NotPlain {
                manifest: false,
                ..
            }
        ),
        "{e:?}"
    );
    // A database of something else.
    let conn = rusqlite::Connection::open(home.path("demo-foreign")).unwrap();
    conn.execute_batch("CREATE TABLE t (a)").unwrap();
    drop(conn);
    let e = home.migrate(&job(home.path("demo-foreign"))).unwrap_err();
    assert!(e.to_string().contains("no Nimbus tenant file"), "{e}");
    assert_eq!(home.names(), ["demo-foreign", "demo-text", "demo.sqlite3"]);

    let home = Home::with_tenant(true).await;
    let e = home.migrate(&home.migration()).unwrap_err();
    assert!(
        matches!(e, AdminError::NotPlain { manifest: true, .. }),
        "{e:?}"
    );
    let cache = Migration {
        subject: Subject::libsql_cache("demo", "demo.sqlite3").unwrap(),
        ..home.migration()
    };
    let e = home.migrate(&cache).unwrap_err();
    assert!(
        e.to_string().contains("rebuilt from the remote primary"),
        "{e}"
    );
}

#[tokio::test]
async fn an_interrupted_migration_is_begun_again() {
    let home = Home::with_tenant(false).await;
    // In the middle of the copy, and between the two names of the target.
    for manifest in [
        "demo.sqlite3.encrypted.partial.nimbus-enc",
        "demo.sqlite3.encrypted.nimbus-enc",
    ] {
        std::fs::write(home.path(manifest), "{}").unwrap();
        std::fs::write(home.path("demo.sqlite3.encrypted.partial"), "half").unwrap();
        let target = home.migrate(&home.migration()).unwrap();
        std::fs::remove_file(&target).unwrap();
        std::fs::remove_file(manifest_path(&target)).unwrap();
        assert_eq!(home.names(), ["demo.sqlite3"]);
    }
}

#[tokio::test]
async fn an_interrupted_replacement_is_finished() {
    let home = Home::with_tenant(false).await;
    let target = home.path("demo.sqlite3.replacing");
    let job = Migration {
        target: Some(target.clone()),
        ..home.migration()
    };
    home.migrate(&job).unwrap();
    assert_eq!(home.recover(), [], "two whole copies are left alone");
    std::fs::rename(manifest_path(&target), manifest_path(&home.file())).unwrap();
    assert_eq!(home.recover(), [Recovered::Replaced(home.file())]);
    assert_eq!(home.names(), ["demo.sqlite3", "demo.sqlite3.nimbus-enc"]);
    assert_eq!(home.document(true).await.unwrap(), CANARY);
}

#[tokio::test]
async fn an_export_is_in_plain_text_and_leaves_its_source() {
    let home = Home::with_tenant(true).await;
    let job = PlainExport {
        source: home.file(),
        target: home.path("demo-plain"),
        subject: home.subject.clone(),
    };
    export(&job, &home.keyring, &mut |_| {}).unwrap();
    let bytes = std::fs::read(&job.target).unwrap();
    assert!(bytes.windows(CANARY.len()).any(|window| window == CANARY));
    assert_eq!(home.document(true).await.unwrap(), CANARY);
    let e = export(&job, &home.keyring, &mut |_| {}).unwrap_err();
    assert!(matches!(e, AdminError::Exists { .. }), "{e:?}");
    std::fs::remove_file(home.file()).unwrap();
    std::fs::remove_file(manifest_path(&home.file())).unwrap();
    std::fs::rename(&job.target, home.file()).unwrap();
    assert_eq!(home.document(false).await.unwrap(), CANARY);
}

#[tokio::test]
async fn a_rotation_gives_the_file_a_new_key_and_leaves_no_copy() {
    let home = Home::with_tenant(true).await;
    let old = home.keyring.unlock(&home.file(), &home.subject).unwrap();
    for backup in [true, false] {
        home.rotate(backup).unwrap();
        assert_eq!(home.names(), ["demo.sqlite3", "demo.sqlite3.nimbus-enc"]);
        let new = home.keyring.unlock(&home.file(), &home.subject).unwrap();
        assert!(new.current() != old.current() && new.pending().is_none());
        assert_eq!(home.document(true).await.unwrap(), CANARY);
    }
    let e = crate::provider::sqlite::convert::fits(&home.file(), old.current()).unwrap_err();
    assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
}

#[tokio::test]
async fn a_copy_of_someone_else_is_not_overwritten() {
    let home = Home::with_tenant(true).await;
    std::fs::write(home.path("demo.sqlite3.bak"), "of someone").unwrap();
    let e = home.rotate(true).unwrap_err();
    assert!(e.to_string().contains("demo.sqlite3.bak"), "{e}");
    assert_eq!(home.recover(), []);
    assert_eq!(
        std::fs::read(home.path("demo.sqlite3.bak")).unwrap(),
        b"of someone"
    );
}

/// Copies that an operator made by hand, whole and of this very file, are not a rotation's.
#[tokio::test]
async fn copies_of_the_operator_are_left_alone() {
    let home = Home::with_tenant(true).await;
    let copies = ["demo.sqlite3", "demo.sqlite3.nimbus-enc"].map(|name| {
        let copy = home.path(&format!("{name}.bak"));
        std::fs::copy(home.path(name), &copy).unwrap();
        (std::fs::read(&copy).unwrap(), copy)
    });
    assert_eq!(home.recover(), []);
    assert!(home.rotate(true).is_err());
    home.rotate(false).unwrap();
    home.begin().await;
    std::fs::write(home.file(), vec![0x5a; 8192]).unwrap();
    let (done, failed) = recover(home.dir.path(), home.dir.path(), &home.keyring).unwrap();
    assert!(done.is_empty() && failed.len() == 1, "{done:?} {failed:?}");
    for (bytes, copy) in copies {
        assert!(std::fs::read(copy).unwrap() == bytes);
    }
}

/// With `replace`, the file has to be the one of its tenant, and no manifest may be overwritten.
#[tokio::test]
async fn a_replacement_in_the_wrong_place_is_refused() {
    let home = Home::with_tenant(false).await;
    let job = Migration {
        replace: true,
        subject: Subject::sqlite_tenant("other").unwrap(),
        ..home.migration()
    };
    let e = home.migrate(&job).unwrap_err();
    assert!(matches!(e, AdminError::WrongName { .. }), "{e:?}");
    for replace in [true, false] {
        std::fs::write(home.path("demo.sqlite3.nimbus-enc"), "of another file").unwrap();
        let job = Migration {
            replace,
            ..home.migration()
        };
        let e = home.migrate(&job).unwrap_err();
        assert!(matches!(e, AdminError::Exists { .. }), "{e:?}");
        assert_eq!(home.names(), ["demo.sqlite3", "demo.sqlite3.nimbus-enc"]);
        std::fs::remove_file(home.path("demo.sqlite3.nimbus-enc")).unwrap();
    }
}

#[tokio::test]
async fn an_interrupted_rotation_is_undone_or_finished() {
    let home = Home::with_tenant(true).await;
    let (_, keys) = home.begin().await;
    assert_eq!(home.recover(), [Recovered::Undone(home.file())]);
    assert_eq!(home.document(true).await.unwrap(), CANARY);

    let (_, begun) = home.begin().await;
    assert!(begun.current == keys.current);
    let pending = begun.pending.unwrap();
    crate::provider::sqlite::convert::rekey(&home.file(), &begun.current, &pending).unwrap();
    assert_eq!(home.recover(), [Recovered::Finished(home.file())]);
    assert_eq!(home.document(true).await.unwrap(), CANARY);
    assert_eq!(home.recover(), []);
}

#[tokio::test]
async fn a_file_that_no_key_opens_comes_back_from_its_copy() {
    let home = Home::with_tenant(true).await;
    for name in ["demo.sqlite3", "demo.sqlite3.nimbus-enc"] {
        let copy = home.path(&format!("{name}.bak"));
        std::fs::copy(home.path(name), copy).unwrap();
    }
    let manifest = Manifest::read(&home.file(), &home.subject).unwrap();
    let mark = home.path("demo.sqlite3.bak-rotation");
    std::fs::write(mark, manifest.file_id().to_string()).unwrap();
    home.begin().await;
    std::fs::write(home.file(), vec![0x5a; 8192]).unwrap();
    assert_eq!(home.recover(), [Recovered::Restored(home.file())]);
    assert_eq!(home.names(), ["demo.sqlite3", "demo.sqlite3.nimbus-enc"]);
    assert_eq!(home.document(true).await.unwrap(), CANARY);
}

#[tokio::test]
async fn a_cache_gets_a_new_manifest_and_loses_its_files() {
    let home = Home::with_tenant(true).await;
    let path = home.path("cache.sqlite3");
    let subject = Subject::libsql_cache("demo", "cache.sqlite3").unwrap();
    let old = home.keyring.create(&path, &subject).unwrap();
    for ending in ["", "-wal", "-shm"] {
        std::fs::write(home.path(&format!("cache.sqlite3{ending}")), "cached").unwrap();
    }
    rotate_dek(&path, &subject, true, &home.keyring, &mut |_| {}).unwrap();
    let new = home.keyring.unlock(&path, &subject).unwrap();
    assert!(new.current() != old.current());
    assert!(!path.exists() && !home.path("cache.sqlite3-wal").exists());
}

/// SQLCipher gives zeros for a page that does not authenticate, and inside a long value they would pass.
#[tokio::test]
async fn a_changed_page_inside_a_long_value_stops_a_conversion() {
    let home = Home::with_tenant(true).await;
    let store = home.provider(true).open(&tenant()).await.unwrap();
    let (old, next) = (
        Head {
            sequence: 1,
            timestamp: 1,
            hash: [7; 32],
        },
        Head {
            sequence: 2,
            timestamp: 2,
            hash: [7; 32],
        },
    );
    let long = bytes::Bytes::from(vec![b'x'; 100_000]);
    let writes = [((Keyspace::Docs, b"long".to_vec()), Some(long))].into();
    store
        .commit(old, Batch { head: next, writes })
        .await
        .unwrap();
    store.close().await.unwrap();
    let mut bytes = std::fs::read(home.file()).unwrap();
    let at = bytes.len() - 3 * 4096;
    bytes[at] ^= 1;
    std::fs::write(home.file(), &bytes).unwrap();

    let job = PlainExport {
        source: home.file(),
        target: home.path("demo-plain"),
        subject: home.subject.clone(),
    };
    let e = export(&job, &home.keyring, &mut |_| {}).unwrap_err();
    assert!(e.to_string().contains("demo.sqlite3"), "{e}");
    home.rotate(true).unwrap_err();
    home.rotate(false).unwrap_err();
    assert_eq!(home.names(), ["demo.sqlite3", "demo.sqlite3.nimbus-enc"]);
    assert!(
        Manifest::read(&home.file(), &home.subject)
            .unwrap()
            .pending()
            .is_none()
    );
    // What is mended can be read again: nothing else was changed.
    bytes[at] ^= 1;
    let file = std::fs::read(home.file()).unwrap();
    assert_eq!(file.len(), bytes.len());
    let mut mended = file;
    mended[at] ^= 1;
    std::fs::write(home.file(), &mended).unwrap();
    assert_eq!(home.document(true).await.unwrap(), CANARY);
}
