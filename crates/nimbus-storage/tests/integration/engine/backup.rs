//! Backups: what goes in comes out, sealed or plain; what was changed, cut or is locked makes no
//! tenant and says why.

use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nimbus_crypto::{KeyDir, MasterKeyFile, WrappingKey};
use nimbus_storage::backup::{Backup, BackupError, Source, Summary, restore, verify};
use nimbus_storage::core::{TableName, TenantId};
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::Keyspace;
use nimbus_storage::{Direction, FilterOp, IndexState, StoreError, Tenant};

use super::support::*;

/// Stands in every document; nobody may read it in a sealed backup.
const CANARY: &str = "correct horse battery staple";

fn table() -> TableName {
    name("notes")
}

fn ids(names: &[&str]) -> Vec<TenantId> {
    names.iter().map(|n| name(n)).collect()
}

fn keyring() -> Arc<Keyring> {
    let provider = MasterKeyFile::new(WrappingKey::generate().unwrap());
    Keyring::new(Arc::new(provider)).unwrap()
}

async fn fill(tenant: &Tenant, count: usize) {
    let fields = ["n", "s"];
    let indexes: &[(&str, &[&str])] = &[("by_n", &["n"]), ("by_s_n", &["s", "n"])];
    let declared = schema("notes", &fields, indexes);
    tenant.put_schema(declared).await.unwrap();
    for n in 0..count {
        let s = format!("{CANARY} {}", "x".repeat(n * 40));
        let fields = object([("n", num(n as f64)), ("s", text(&s))]);
        tenant.insert(&table(), fields).await.unwrap();
    }
}

/// Three tenants, one of them without a commit.
async fn world() -> World {
    let world = World::new().await;
    fill(&world.create("a").await, 30).await;
    world.create("b").await;
    fill(&world.create("c").await, 3).await;
    world
}

async fn bytes_of(world: &World, tenants: &[&str], keyring: Option<Arc<Keyring>>) -> Vec<u8> {
    let begun = Backup::begin(world.engine(), &ids(tenants), keyring).await;
    let mut backup = begun.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = backup.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    assert!(backup.next().await.unwrap().is_none());
    bytes
}

fn open(bytes: &[u8], keyring: Option<&Arc<Keyring>>) -> Result<Source, BackupError> {
    let input = Cursor::new(bytes.to_vec());
    let keyring = keyring.cloned();
    // Not within an asynchronous task, which the key provider must not block.
    std::thread::spawn(move || Source::open(input, keyring.as_deref()))
        .join()
        .unwrap()
}

fn check(bytes: &[u8], keyring: Option<&Arc<Keyring>>) -> Result<Summary, BackupError> {
    open(bytes, keyring).and_then(verify)
}

async fn restored(
    world: &World,
    bytes: &[u8],
    keyring: Option<&Arc<Keyring>>,
    only: &[&str],
) -> Result<Summary, BackupError> {
    restore(world.engine(), open(bytes, keyring)?, &ids(only)).await
}

async fn contents(tenant: &Tenant) -> Vec<String> {
    let mut export = tenant.export(&table()).await.unwrap();
    let mut all = Vec::new();
    loop {
        let step = export.next().await.unwrap();
        if step.is_empty() {
            return all;
        }
        all.extend(jsons(&step));
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

#[tokio::test]
async fn what_goes_in_comes_out_sealed_or_plain() {
    let origin = world().await;
    let key = keyring();
    for keyring in [None, Some(&key)] {
        let bytes = bytes_of(&origin, &[], keyring.cloned()).await;
        assert_eq!(contains(&bytes, CANARY), keyring.is_none());
        assert_eq!(contains(&bytes, "cursor_key"), keyring.is_none());
        let summary = check(&bytes, keyring).unwrap();
        assert_eq!(summary.sealed, keyring.is_some());
        let counts: Vec<_> = summary.tenants.iter().map(|t| t.documents).collect();
        assert_eq!(counts, [30, 0, 3]);

        let copy = World::new().await;
        copy.create("other").await;
        assert_eq!(
            restored(&copy, &bytes, keyring, &[]).await.unwrap(),
            summary
        );
        for id in ["a", "c"] {
            let (from, to) = (origin.tenant(id).await, copy.tenant(id).await);
            assert_eq!(contents(&to).await, contents(&from).await);
            assert_consistent(&to).await;
            let late = vec![filter("n", FilterOp::Gte, num(2.0))];
            let indexed = query("notes", late, Some(("n", Direction::Backward)));
            assert_eq!(
                jsons(&to.query(&indexed).await.unwrap()),
                jsons(&from.query(&indexed).await.unwrap())
            );
            let journal = async |t: &Tenant| {
                let page = t.journal_start(1_000).await.unwrap();
                serde_json::to_value(page).unwrap()
            };
            assert_eq!(journal(&to).await, journal(&from).await);
        }
        let after = copy.tenant("a").await;
        let fresh = object([("n", num(1.0)), ("s", text("new"))]);
        after.insert(&table(), fresh).await.unwrap();
        assert_consistent(&copy.tenant("b").await).await;
    }
}

#[tokio::test]
async fn some_of_the_tenants_both_ways() {
    let origin = world().await;
    let bytes = bytes_of(&origin, &["c", "a", "c"], None).await;
    let names =
        |s: &Summary| -> Vec<String> { s.tenants.iter().map(|t| t.tenant.to_string()).collect() };
    assert_eq!(names(&check(&bytes, None).unwrap()), ["a", "c"]);
    let copy = World::new().await;
    let summary = restored(&copy, &bytes, None, &["c"]).await.unwrap();
    assert_eq!(names(&summary), ["c"]);
    assert_eq!(copy.engine().list_tenants().await.unwrap(), ids(&["c"]));

    let error = restored(&copy, &bytes, None, &["b", "d"])
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "nothing was changed: no tenant of this name is there: b, d"
    );
    let error = Backup::begin(origin.engine(), &ids(&["x", "a"]), None).await;
    let error = error.err().unwrap();
    assert!(error.to_string().ends_with("is there: x"), "{error}");
}

#[tokio::test]
async fn tenants_that_are_there_are_all_named_and_left_as_they_are() {
    let origin = world().await;
    let bytes = bytes_of(&origin, &[], None).await;
    let copy = World::new().await;
    for id in ["a", "c"] {
        copy.create(id).await;
    }
    let error = restored(&copy, &bytes, None, &[]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "nothing was changed: tenants a, c are there already; delete them first \
         (`nimbus tenants delete`), or restore the others with --tenant b"
    );
    assert_eq!(
        copy.engine().list_tenants().await.unwrap(),
        ids(&["a", "c"])
    );
    assert_eq!(
        copy.tenant("a")
            .await
            .journal(0, 1)
            .await
            .unwrap()
            .latest_sequence,
        0
    );
}

#[tokio::test]
async fn a_backup_that_is_not_whole_leaves_nothing_behind() {
    let origin = world().await;
    let key = keyring();
    let bytes = bytes_of(&origin, &[], Some(key.clone())).await;
    let copy = World::new().await;
    copy.create("other").await;
    let mut random = Random::new(5);
    for _ in 0..12 {
        let length = bytes.len() / 2 + random.below(bytes.len() / 2);
        let error = restored(&copy, &bytes[..length], Some(&key), &[]).await;
        let error = error.unwrap_err();
        assert!(matches!(error, BackupError::Truncated { .. }), "{error:?}");
        assert_eq!(copy.engine().list_tenants().await.unwrap(), ids(&["other"]));
        assert_eq!(copy.engine().unregistered().await.unwrap(), []);
    }
    restored(&copy, &bytes, Some(&key), &[]).await.unwrap();
    assert_consistent(&copy.tenant("a").await).await;
}

#[tokio::test]
async fn a_sealed_backup_with_any_bit_changed_is_refused() {
    let origin = world().await;
    let key = keyring();
    let good = bytes_of(&origin, &["b", "c"], Some(key.clone())).await;
    check(&good, Some(&key)).unwrap();
    let mut random = Random::new(7);
    // Preamble, manifest and the stream's header whole, and a sample of the rest.
    let front = (0..1_200 * 8).step_by(3);
    let rest = (0..600).map(|_| random.below(good.len() * 8));
    let mut refused = 0;
    for bit in front.chain(rest.collect::<Vec<_>>()) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        match check(&bad, Some(&key)) {
            Err(BackupError::Damaged { .. } | BackupError::Truncated { .. }) => {}
            Err(BackupError::Key(_)) if bit / 8 >= 16 => {}
            Err(BackupError::NotABackup) if bit / 8 < 8 => {}
            Err(BackupError::NewerVersion { .. }) if bit / 8 < 10 => {}
            other => panic!("bit {bit}: {other:?}"),
        }
        refused += 1;
    }
    assert_eq!(refused, 3_200 + 600);
}

#[tokio::test]
async fn a_key_that_does_not_fit_is_named() {
    let origin = world().await;
    let key = keyring();
    let bytes = bytes_of(&origin, &["c"], Some(key)).await;
    let told = |error: BackupError| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            text.push_str(&format!("; {next}"));
            cause = next.source();
        }
        text
    };
    let error = check(&bytes, None).unwrap_err();
    assert!(matches!(error, BackupError::KeyNeeded { .. }), "{error:?}");
    let text = told(error);
    assert!(text.contains("provider master-key-file (sha256:"), "{text}");
    let error = told(check(&bytes, Some(&keyring())).unwrap_err());
    assert!(error.contains("wrong key for artifact:backup"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let other = Keyring::new(Arc::new(KeyDir::open(dir.path()).unwrap())).unwrap();
    let error = told(check(&bytes, Some(&other)).unwrap_err());
    assert!(
        error.contains("wrapped by the provider master-key-file, and key-dir is configured"),
        "{error}"
    );
    // A key provider does not keep plain backups from being read.
    let plain = bytes_of(&origin, &["c"], None).await;
    assert!(!check(&plain, Some(&other)).unwrap().sealed);
}

#[tokio::test]
async fn what_is_no_backup_or_of_another_version_is_told_apart() {
    for text in ["", "{}", "SQLite format 3\0"] {
        let error = check(text.as_bytes(), None).unwrap_err();
        assert!(matches!(error, BackupError::NotABackup), "{error:?}");
    }
    let error = check(b"NIMBUSBK\x00\x02\x00\x00\x00\x00\x00\x00", None).unwrap_err();
    assert!(error.to_string().contains("format version 2"), "{error}");
    assert!(matches!(error, BackupError::NewerVersion { found: 2 }));
    let error = check(b"NIMBUSBK\x00\x01", None).unwrap_err();
    assert!(matches!(error, BackupError::Truncated { at: 0 }));
}

#[tokio::test]
async fn tenants_that_go_while_a_backup_is_made() {
    let origin = world().await;
    let mut backup = Backup::begin(origin.engine(), &[], None).await.unwrap();
    origin.engine().delete_tenant(&name("b")).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = backup.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    let summary = check(&bytes, None).unwrap();
    assert_eq!(summary.deleted, ids(&["b"]));
    let copy = World::new().await;
    let done = restored(&copy, &bytes, None, &[]).await.unwrap();
    assert_eq!(done, summary);
    assert_eq!(
        copy.engine().list_tenants().await.unwrap(),
        ids(&["a", "c"])
    );
}

#[tokio::test]
async fn an_unfinished_restore_is_no_tenant_and_the_next_one_begins_anew() {
    let origin = world().await;
    let bytes = bytes_of(&origin, &["a", "c"], None).await;
    let mut copy = World::new().await;
    // As in a crash, nobody tidies up: once with both tenants begun, once with the first.
    for length in [bytes.len() - 41, bytes.len() / 2] {
        let input = Crash(Cursor::new(bytes[..length].to_vec()));
        let source = Source::open(input, None).unwrap();
        let engine = copy.engine().clone();
        let crash = tokio::spawn(async move { restore(&engine, source, &[]).await.map(drop) });
        assert!(crash.await.unwrap_err().is_panic());
        copy.reopen().await;
        let refused = copy.engine().tenant(&name("a")).await.err().unwrap();
        assert!(matches!(refused, StoreError::RestoreUnfinished { .. }));
        assert_eq!(
            refused.to_string(),
            "the restore of tenant a was not finished; run `nimbus backup restore` again, \
             or `nimbus tenants delete a`"
        );
    }
    restored(&copy, &bytes, None, &[]).await.unwrap();
    for id in ["a", "c"] {
        let (from, to) = (origin.tenant(id).await, copy.tenant(id).await);
        assert_eq!(contents(&to).await, contents(&from).await);
    }

    // Or else it can be deleted.
    let input = Crash(Cursor::new(bytes[..bytes.len() / 2].to_vec()));
    let source = Source::open(input, None).unwrap();
    let copy = World::new().await;
    let engine = copy.engine().clone();
    let crash = tokio::spawn(async move { restore(&engine, source, &[]).await.map(drop) });
    assert!(crash.await.unwrap_err().is_panic());
    copy.engine().delete_tenant(&name("a")).await.unwrap();
    copy.create("a").await;
}

/// Ends with a panic where a file would end.
struct Crash(Cursor<Vec<u8>>);

impl Read for Crash {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => panic!("a crash"),
            read => Ok(read),
        }
    }
}

/// An index that was being filled or removed goes on being so, as after a crash.
#[tokio::test]
async fn indexes_that_were_under_way_are_completed() {
    let origin = World::new().await;
    let tenant = origin.create("a").await;
    fill(&tenant, 20).await;
    // The schema's own commit goes in, its background work does not.
    origin.hooks.on_commit(|batch| async move {
        let index_only = batch.writes.keys().all(|(s, _)| *s == Keyspace::Index);
        if index_only {
            transient()
        } else {
            Verdict::Pass
        }
    });
    let declared = schema("notes", &["n", "s"], &[("by_s", &["s"])]);
    tenant.put_schema(declared).await.unwrap();
    let bytes = bytes_of(&origin, &["a"], None).await;
    let index = &tenant.table_schema(&table()).await.unwrap().indexes[0];
    assert_eq!(index.state, Some(IndexState::Backfilling));
    let copy = World::new().await;
    restored(&copy, &bytes, None, &[]).await.unwrap();
    indexes_ready(&copy.tenant("a").await, "notes").await;
    assert_consistent(&copy.tenant("a").await).await;
}

#[tokio::test]
async fn a_disk_that_fills_up_leaves_no_tenant() {
    let origin = world().await;
    let bytes = bytes_of(&origin, &[], None).await;
    let copy = World::new().await;
    for commits in 0.. {
        let left = Arc::new(AtomicUsize::new(commits));
        copy.hooks.on_commit(move |_| {
            let full = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            async move {
                if full.is_err() {
                    disk_full()
                } else {
                    Verdict::Pass
                }
            }
        });
        let outcome = restored(&copy, &bytes, None, &[]).await;
        copy.hooks.clear();
        match outcome {
            Ok(_) => {
                // Rows, head and the end of the mark, for each tenant.
                assert!(commits >= 8, "{commits}");
                return;
            }
            Err(BackupError::Store { source, .. }) => {
                assert!(
                    matches!(source, StoreError::StorageFull { .. }),
                    "{source:?}"
                );
            }
            Err(other) => panic!("{other:?}"),
        }
        // Full at the very end: what is whole stays, and what is not is no tenant.
        let left = copy.engine().list_tenants().await.unwrap();
        for tenant in left {
            match copy.engine().tenant(&tenant).await {
                Ok(whole) => assert_consistent(&whole).await,
                Err(error) => assert!(matches!(error, StoreError::RestoreUnfinished { .. })),
            }
            copy.engine().delete_tenant(&tenant).await.unwrap();
        }
    }
}
