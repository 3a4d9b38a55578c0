//! Tests of conversions and rotations: what they make, what they refuse, and a stop at every step.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use nimbus_crypto::{MasterKeyFile, WrappingKey};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::*;

const TABLE: TableDefinition<'static, u32, &[u8]> = TableDefinition::new("t");

struct Home {
    dir: tempfile::TempDir,
    keyring: Arc<Keyring>,
    subject: Subject,
}

impl Home {
    fn new() -> Home {
        let key = WrappingKey::generate().unwrap();
        Home {
            dir: tempfile::tempdir().unwrap(),
            keyring: Keyring::new(Arc::new(MasterKeyFile::new(key))).unwrap(),
            subject: Subject::redb_tenant("demo").unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn key(&self, name: &str) -> FileKey {
        self.keyring
            .unlock(&self.path(name), &self.subject)
            .unwrap()
    }

    /// An encrypted database, made directly, with pages that were never written.
    fn encrypted(&self, name: &str) -> FileKey {
        let key = self
            .keyring
            .create(&self.path(name), &self.subject)
            .unwrap();
        fill(&self.path(name), Some(&key));
        key
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn rotate(&self, skip_backup: bool, step: Step<'_>) -> ProviderResult<()> {
        let path = self.path("demo.redb");
        let mut bytes = 0;
        let rotated = rotate_dek_redb(
            &path,
            &self.subject,
            &self.keyring,
            skip_backup,
            &mut |n| bytes += n,
            step,
        );
        if rotated.is_ok() {
            assert!(bytes > 0 && bytes % PAGE == 0);
        }
        rotated
    }
}

fn open(path: &Path, key: Option<&FileKey>) -> ProviderResult<Database> {
    let file = files::open_or_create(path).unwrap();
    let opened = Database::builder().create_with_backend(pages_of(path, file, key)?);
    opened.map_err(|e| error("opening", path, e.into()))
}

fn fill(path: &Path, key: Option<&FileKey>) {
    let db = open(path, key).unwrap();
    for n in 0..30_u32 {
        let mut txn = db.begin_write().unwrap();
        txn.set_quick_repair(true);
        {
            let mut table = txn.open_table(TABLE).unwrap();
            let value = vec![u8::try_from(n).unwrap(); 20_000];
            table.insert(n, value.as_slice()).unwrap();
            if n > 25 {
                table.remove(n - 10).unwrap();
            }
        }
        txn.commit().unwrap();
    }
    if key.is_some() {
        // As a kill leaves it, at the length that it has grown to.
        let killed = std::fs::read(path).unwrap();
        drop(db);
        std::fs::write(path, killed).unwrap();
    }
}

fn contents(path: &Path, key: Option<&FileKey>) -> BTreeMap<u32, Vec<u8>> {
    let db = open(path, key).unwrap();
    let table = db.begin_read().unwrap().open_table(TABLE).unwrap();
    let rows = table.iter().unwrap().map(|row| row.unwrap());
    rows.map(|(k, v)| (k.value(), v.value().to_vec())).collect()
}

fn nothing(_: u64) {}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn there_and_back_is_the_same() {
    let home = Home::new();
    let (plain, encrypted, back) = (
        home.path("plain"),
        home.path("demo.redb"),
        home.path("back"),
    );
    fill(&plain, None);
    let bytes = std::fs::read(&plain).unwrap();
    let key = home.keyring.create(&encrypted, &home.subject).unwrap();
    let mut done = 0;
    encrypt_redb(&plain, &encrypted, &key, &mut |n| done += n).unwrap();
    assert_eq!(done, bytes.len() as u64);
    verify_redb(&plain, &encrypted, &key, &mut nothing).unwrap();
    let secret = std::fs::read(&encrypted).unwrap();
    assert!(!secret.windows(32).any(|w| w == [7; 32]));
    decrypt_redb(&encrypted, &key, &back, &mut nothing).unwrap();
    assert!(std::fs::read(&back).unwrap() == bytes);
    assert_eq!(std::fs::read(&encrypted).unwrap(), secret);
    assert_eq!((mode(&encrypted), mode(&back)), (0o600, 0o600));
    assert_eq!(
        home.names(),
        ["back", "demo.redb", "demo.redb.nimbus-enc", "plain"]
    );
    assert_eq!(contents(&encrypted, Some(&key)), contents(&back, None));
}

/// A database that was never converted has pages that were never written.
#[test]
fn pages_never_written_do_no_harm() {
    let home = Home::new();
    let key = home.encrypted("demo.redb");
    let source = Source::encrypted(&home.path("demo.redb"), &key).unwrap();
    let holes = (1..source.pages()).filter(|page| source.is_hole(*page).unwrap());
    assert!(holes.count() > 10);
    drop(source);
    decrypt_redb(
        &home.path("demo.redb"),
        &key,
        &home.path("back"),
        &mut nothing,
    )
    .unwrap();
    verify_redb(
        &home.path("back"),
        &home.path("demo.redb"),
        &key,
        &mut nothing,
    )
    .unwrap();
    assert_eq!(contents(&home.path("back"), None).len(), 26);
}

#[test]
fn bad_sources_and_targets_are_refused() {
    let home = Home::new();
    let key = home.encrypted("demo.redb");
    let (file, plain, target) = (home.path("demo.redb"), home.path("plain"), home.path("x"));
    fill(&plain, None);
    let text = |result: ProviderResult<()>| result.unwrap_err().to_string();
    let e = text(encrypt_redb(&file, &target, &key, &mut nothing));
    assert!(e.contains("no redb file in plain text"), "{e}");
    let e = text(decrypt_redb(&plain, &key, &target, &mut nothing));
    assert!(e.contains("damaged"), "{e}");
    std::fs::write(&target, "precious").unwrap();
    let e = text(encrypt_redb(&plain, &target, &key, &mut nothing));
    assert!(e.contains("exists already"), "{e}");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    std::fs::remove_file(&target).unwrap();
    // A live page that somebody zeroed, or changed.
    let good = std::fs::read(&file).unwrap();
    for zero in [true, false] {
        let mut bad = good.clone();
        let slots = bad[8264..].chunks_exact_mut(4124);
        for slot in slots
            .filter(|slot| slot.iter().any(|b| *b != 0))
            .skip(5)
            .take(40)
        {
            match zero {
                true => slot.fill(0),
                false => slot[2000] ^= 1,
            }
        }
        std::fs::write(&file, &bad).unwrap();
        let e = decrypt_redb(&file, &key, &target, &mut nothing).unwrap_err();
        assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
        let e = home.rotate(false, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
        assert!(std::fs::read(&file).unwrap() == bad);
    }
    std::fs::write(&file, &good).unwrap();
    assert_eq!(home.names(), ["demo.redb", "demo.redb.nimbus-enc", "plain"]);
    // A file that is open.
    let db = open(&file, Some(&key)).unwrap();
    let e = home.rotate(true, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(e, ProviderError::Busy { .. }), "{e:?}");
    drop(db);
    let db = open(&plain, None).unwrap();
    let e = encrypt_redb(&plain, &target, &key, &mut nothing).unwrap_err();
    assert!(matches!(e, ProviderError::Busy { .. }), "{e:?}");
    drop(db);
}

#[test]
fn a_copy_that_differs_is_found() {
    let home = Home::new();
    let (plain, encrypted) = (home.path("plain"), home.path("demo.redb"));
    fill(&plain, None);
    let key = home.keyring.create(&encrypted, &home.subject).unwrap();
    encrypt_redb(&plain, &encrypted, &key, &mut nothing).unwrap();
    let mut bytes = std::fs::read(&plain).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&plain, &bytes).unwrap();
    let e = verify_redb(&plain, &encrypted, &key, &mut nothing).unwrap_err();
    assert!(
        e.to_string().contains(&format!("byte {last} differs")),
        "{e}"
    );
    bytes.extend([0; PAGE_BYTES]);
    std::fs::write(&plain, &bytes).unwrap();
    let e = verify_redb(&plain, &encrypted, &key, &mut nothing).unwrap_err();
    assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
}

#[test]
fn a_rotation_leaves_a_new_key_and_nothing_else() {
    for skip_backup in [false, true] {
        let home = Home::new();
        let old = home.encrypted("demo.redb");
        let path = home.path("demo.redb");
        let before = std::fs::read(&path).unwrap();
        let mut steps = Vec::new();
        let mut note = |step: &str| {
            steps.push(step.to_owned());
            Ok(())
        };
        home.rotate(skip_backup, &mut note).unwrap();
        assert_eq!(steps.len(), if skip_backup { 6 } else { 7 });
        assert_eq!(home.names(), ["demo.redb", "demo.redb.nimbus-enc"]);
        let new = home.key("demo.redb");
        assert!(new.current() != old.current() && new.pending().is_none());
        assert_eq!(new.file_id(), old.file_id());
        assert!(open(&path, Some(&old)).is_err());
        let after = std::fs::read(&path).unwrap();
        let same = before
            .chunks(16)
            .zip(after.chunks(16))
            .filter(|(a, b)| a == b && a.iter().any(|x| *x != 0));
        assert_eq!(same.count(), 0, "something of the old file is left");
        assert_eq!(contents(&path, Some(&new)).len(), 26);
        assert_eq!(mode(&path), 0o600);
    }
}

/// Stopped before each step, the file opens, the next start recovers, and the next rotation runs.
#[test]
fn a_rotation_can_stop_anywhere() {
    let steps = |skip: bool| if skip { 6 } else { 7 };
    for (skip_backup, stop) in [true, false]
        .iter()
        .flat_map(|s| (0..steps(*s)).map(move |n| (*s, n)))
    {
        let home = Home::new();
        home.encrypted("demo.redb");
        let path = home.path("demo.redb");
        let mut at = 0;
        let mut hook = |_: &str| {
            at += 1;
            match at > stop {
                true => Err(io::Error::other("killed")),
                false => Ok(()),
            }
        };
        let e = home.rotate(skip_backup, &mut hook).unwrap_err();
        assert!(e.to_string().contains("stopped before"), "{e}");
        // With whatever keys the manifest has.
        let copy = home.path("demo.copy");
        std::fs::copy(&path, &copy).unwrap();
        let found = contents(&copy, Some(&home.key("demo.redb")));
        std::fs::remove_file(&copy).unwrap();
        assert_eq!(found.len(), 26, "{stop}");
        // And a step further, where something else is torn.
        let staged = appended(&path, ROTATING);
        if staged.exists() {
            std::fs::write(&staged, "torn").unwrap();
        }
        assert!(!home.path("demo.redb.bak.partial").exists());
        let recovered = recover_redb(&path, &home.subject, &home.keyring).unwrap();
        let expected = match skip_backup {
            true => (1..=4).contains(&stop),
            false => stop > 0,
        };
        assert_eq!(recovered, expected, "{stop}");
        assert!(home.key("demo.redb").pending().is_none());
        assert!(!recover_redb(&path, &home.subject, &home.keyring).unwrap());
        home.rotate(skip_backup, &mut |_| Ok(())).unwrap();
        assert_eq!(
            home.names(),
            ["demo.redb", "demo.redb.nimbus-enc"],
            "{stop}"
        );
        assert_eq!(contents(&path, Some(&home.key("demo.redb"))), found);
    }
}

#[test]
fn backups_of_others_are_not_overwritten() {
    let home = Home::new();
    let old = home.encrypted("demo.redb");
    for name in ["demo.redb.bak", "demo.redb.nimbus-enc.bak"] {
        std::fs::write(home.path(name), "precious").unwrap();
        let e = home.rotate(false, &mut |_| Ok(())).unwrap_err();
        assert!(e.to_string().contains("--skip-backup"), "{e}");
        assert!(home.key("demo.redb").current() == old.current());
        assert_eq!(
            std::fs::read_to_string(home.path(name)).unwrap(),
            "precious"
        );
        std::fs::remove_file(home.path(name)).unwrap();
    }
    std::fs::write(home.path("demo.redb.bak"), "precious").unwrap();
    home.rotate(true, &mut |_| Ok(())).unwrap();
    assert_eq!(
        std::fs::read_to_string(home.path("demo.redb.bak")).unwrap(),
        "precious"
    );
}
