//! Replicas that are of no use any more: they are made anew, and nothing else is.

use nimbus_crypto::{MasterKeyFile, Subject, WrappingKey, manifest_path};

use crate::encryption::rotate_dek;
use crate::provider::KeyRange;

use super::*;

pub(super) fn keyring() -> Arc<Keyring> {
    let key = WrappingKey::generate().unwrap();
    Keyring::new(Arc::new(MasterKeyFile::new(key))).unwrap()
}

/// Everything that a store shows.
async fn contents(store: &Arc<dyn TenantStore>) -> BTreeMap<(Keyspace, Vec<u8>), Bytes> {
    let mut snapshot = store.snapshot().await.unwrap();
    let mut all = BTreeMap::new();
    for keyspace in Keyspace::ALL {
        let mut range = KeyRange::all();
        loop {
            let direction = crate::provider::Direction::Forward;
            let rows = snapshot
                .scan(keyspace, &range, direction, 100)
                .await
                .unwrap();
            let Some((last, _)) = rows.last() else { break };
            range.start = [last.as_slice(), &[0]].concat();
            all.extend(
                rows.into_iter()
                    .map(|(key, value)| ((keyspace, key), value)),
            );
        }
    }
    // What a replica says of itself.
    all.remove(&(Keyspace::Meta, b"format".to_vec()));
    all
}

/// Rows of every kind: empty keys and values, many, long, and one that does not come in one piece.
async fn fill(store: &Arc<dyn TenantStore>) -> Head {
    let mut at = Head::EMPTY;
    for (number, keyspace) in (1..).zip(Keyspace::ALL) {
        let key = |n: u32| match n {
            0 if keyspace != Keyspace::Meta => Vec::new(),
            n => [b"t/", &n.to_be_bytes()[..], &[0xff, 0]].concat(),
        };
        let value = |n: u32| match n {
            0 => Bytes::new(),
            7 if keyspace == Keyspace::Code => Bytes::from(vec![0; (3 << 20) + 5]),
            n => Bytes::from(format!("{n} \0 {}", "x".repeat(n as usize % 900))),
        };
        let rows = (0..300).map(|n| ((keyspace, key(n)), Some(value(n))));
        let head = next(at, number);
        let writes = rows.collect();
        store.commit(at, Batch { head, writes }).await.unwrap();
        at = head;
    }
    let gone = (
        Keyspace::Docs,
        [b"t/", &3_u32.to_be_bytes()[..], &[0xff, 0]].concat(),
    );
    let head = next(at, 99);
    let writes = BTreeMap::from([(gone, None)]);
    store.commit(at, Batch { head, writes }).await.unwrap();
    head
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_and_catching_up_give_the_same_rows() {
    let world = World::new();
    let (a, b, c) = (
        world.provider("a").await,
        world.provider("b").await,
        world.provider("c").await,
    );
    let writer = fresh(&a, "t").await;
    let follower = b.open(&tenant("t")).await.unwrap();
    assert_eq!(refreshes(&follower).0, 1);
    let at = fill(&writer).await;
    let copier = c.open(&tenant("t")).await.unwrap();
    let expected = contents(&writer).await;
    assert_eq!(expected.len(), 7 * 300 - 1 + 1, "rows, and the head");
    for store in [&follower, &copier] {
        assert_eq!(head(store).await, at);
        assert!(contents(store).await == expected, "another state");
        assert_eq!(refreshes(store).0, 1, "made once");
    }
    let freshness = follower.freshness().unwrap();
    assert_eq!(freshness.last_refresh_cause, Some("durable_journal_replay"));
    assert_eq!(freshness.last_refresh_path, Some("incremental_catch_up"));
    let freshness = copier.freshness().unwrap();
    assert_eq!(freshness.full_snapshot_rebuild_count, 1);
    assert_eq!(
        writer.freshness().unwrap().local_applied_sequence,
        at.sequence
    );
}

/// Commits go on while everything is copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_made_under_writes_is_exact() {
    let world = World::new();
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let writer = fresh(&a, "t").await;
    let mut at = fill(&writer).await;
    let opening = tokio::spawn(async move {
        let store = b.open(&tenant("t")).await.unwrap();
        (b, store)
    });
    let mut n = 0_u32;
    while !opening.is_finished() || n < 50 {
        let head = next(at, 5);
        let key = [b"t/", &(n % 350).to_be_bytes()[..], &[0xff, 0]].concat();
        let value = (!n.is_multiple_of(3)).then(|| Bytes::from(format!("again {n}")));
        let writes = Keyspace::ALL
            .map(|k| ((k, key.clone()), value.clone()))
            .into();
        writer.commit(at, Batch { head, writes }).await.unwrap();
        at = head;
        n += 1;
    }
    let (_b, reader) = opening.await.unwrap();
    assert!(
        contents(&reader).await == contents(&writer).await,
        "after {n}"
    );
    assert_eq!(head(&reader).await, at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruned_changes_make_a_replica_anew() {
    let mut world = World::new();
    world.timing.prune_every = 1;
    world.timing.keep_bytes = 300;
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let writer = fresh(&a, "t").await;
    let sleeper = b.open(&tenant("t")).await.unwrap();
    let mut at = put(&writer, Head::EMPTY, 1, "first").await;
    assert_eq!(get(&sleeper, b"k").await.as_deref(), Some("first"));
    assert_eq!(refreshes(&sleeper).0, 1, "one change is not pruned at once");
    for n in 0..40 {
        at = put(&writer, at, n, &format!("value {n}")).await;
    }
    let rows = run(&a, "t", "SELECT count(*) FROM changes").await;
    let Value::Integer(left) = rows[0][0] else {
        panic!("{rows:?}");
    };
    assert!((1..10).contains(&left), "{left} changes are kept");
    assert_eq!(get(&sleeper, b"k").await.as_deref(), Some("value 39"));
    assert_eq!(head(&sleeper).await, at);
    assert_eq!(refreshes(&sleeper).0, 2, "made anew");
    assert_eq!(refreshes(&writer).0, 1, "its own commits need no changes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_life_makes_a_replica_anew() {
    let world = World::new();
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let id = tenant("t");
    let first = fresh(&a, "t").await;
    let other = b.open(&id).await.unwrap();
    put(&first, Head::EMPTY, 1, "old").await;
    assert_eq!(get(&other, b"k").await.as_deref(), Some("old"));
    first.close().await.unwrap();
    a.delete(&id).await.unwrap();
    let first = fresh(&a, "t").await;
    put(&first, Head::EMPTY, 2, "new").await;
    // The store of the old life ends.
    let gone = other.snapshot().await.err().unwrap();
    assert!(matches!(gone, ProviderError::NotFound { .. }), "{gone:?}");
    let refused = other
        .commit(Head::EMPTY, batch(next(Head::EMPTY, 1), b"k", "x"))
        .await;
    assert!(matches!(refused, Err(CommitError::Closed)), "{refused:?}");
    other.close().await.unwrap();
    let other = b.open(&id).await.unwrap();
    assert_eq!(get(&other, b"k").await.as_deref(), Some("new"));
}

/// A primary that was restored from a backup, and committed something else since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_history_makes_a_replica_anew() {
    let world = World::new();
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let writer = fresh(&a, "t").await;
    let reader = b.open(&tenant("t")).await.unwrap();
    let at = put(&writer, Head::EMPTY, 1, "kept").await;
    assert_eq!(head(&reader).await, at);
    let namespace = a.shared.known().get(&tenant("t")).unwrap().clone();
    world.primary.stop();
    let file = world
        .dir
        .path()
        .join(format!("primary/{namespace}.sqlite3"));
    let backup = std::fs::read(&file).unwrap();
    world.primary.resume().unwrap();
    let lost = put(&writer, at, 2, "lost").await;
    assert_eq!(head(&reader).await, lost);
    world.primary.stop();
    std::fs::write(&file, backup).unwrap();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(file.with_extension(format!("sqlite3{end}")));
    }
    world.primary.resume().unwrap();
    // It went back.
    assert_eq!(get(&reader, b"k").await.as_deref(), Some("kept"));
    assert_eq!(head(&reader).await, at);
    assert_eq!(get(&writer, b"k").await.as_deref(), Some("kept"));
    let made = refreshes(&reader).0;
    assert_eq!(made, 2);
    put(&writer, at, 3, "else").await;
    assert_eq!(get(&reader, b"k").await.as_deref(), Some("else"));
    assert_eq!(refreshes(&reader).0, made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_made_anew() {
    let mut world = World::new();
    for sealed in [false, true] {
        world.keyring = sealed.then(keyring);
        let server = if sealed { "sealed" } else { "plain" };
        let provider = world.provider(server).await;
        let store = fresh(&provider, server).await;
        let at = fill(&store).await;
        let expected = contents(&store).await;
        store.close().await.unwrap();
        let path = world.replica(server, server);
        let whole = std::fs::read(&path).unwrap();
        let damages: [(&str, Vec<u8>); 5] = [
            ("empty", Vec::new()),
            ("no database", b"this is no database at all".repeat(1000)),
            ("cut", whole[..whole.len() / 2].to_vec()),
            ("first page", {
                let mut bytes = whole.clone();
                bytes[20..4000].fill(0x5a);
                bytes
            }),
            ("another's", {
                let other = world.dir.path().join("other.sqlite3");
                let _ = std::fs::remove_file(&other);
                let conn = rusqlite::Connection::open(&other).unwrap();
                conn.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
                    .unwrap();
                drop(conn);
                std::fs::read(other).unwrap()
            }),
        ];
        for (what, bytes) in damages {
            std::fs::write(&path, bytes).unwrap();
            let store = provider.open(&tenant(server)).await.unwrap();
            // Some damage shows only when the page is read.
            soon("a whole replica", async || {
                let Ok(mut snapshot) = store.snapshot().await else {
                    return false;
                };
                for keyspace in Keyspace::ALL {
                    let direction = crate::provider::Direction::Forward;
                    let all = KeyRange::all();
                    let read = snapshot.scan(keyspace, &all, direction, 9_999).await;
                    if read.is_err() {
                        return false;
                    }
                }
                true
            })
            .await;
            assert!(contents(&store).await == expected, "{server}: {what}");
            assert_eq!(head(&store).await, at);
            assert_eq!(refreshes(&store).0, 1, "{server}: {what}");
            store.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_encrypted_and_needs_its_key() {
    let mut world = World::new();
    world.keyring = Some(keyring());
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    let canary = "a canary that would be seen ".repeat(40);
    let at = put(&store, Head::EMPTY, 1, &canary).await;
    store.close().await.unwrap();
    let path = world.replica("a", "t");
    let seen = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(8).any(|w| w == b"a canary") || bytes.starts_with(b"SQLite format")
    };
    assert!(!seen(&path), "it is in plain text");
    drop((store, provider));

    // Another key: said clearly, and nothing is thrown away.
    let right = world.keyring.replace(keyring());
    let other = world.provider("a").await;
    let locked = other.open(&tenant("t")).await.err().unwrap();
    assert!(matches!(locked, ProviderError::Locked { .. }), "{locked:?}");
    assert!(path.exists() && locked.to_string().contains("cannot be unlocked"));
    drop(other);
    // None at all.
    world.keyring = None;
    let other = world.provider("a").await;
    let refused = other.open(&tenant("t")).await.err().unwrap();
    assert!(
        matches!(refused, ProviderError::Encrypted { .. }),
        "{refused:?}"
    );
    drop(other);

    world.keyring = right;
    let provider = world.provider("a").await;
    let store = reopened(&provider, "t").await;
    assert_eq!(refreshes(&store).0, 0, "it was used as it was");
    store.close().await.unwrap();
    // A file in plain text, or one whose manifest is lost, is made anew under a new key.
    std::fs::remove_file(manifest_path(&path)).unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    assert_eq!(get(&store, b"k").await.as_deref(), Some(&*canary));
    assert_eq!(head(&store).await, at);
    assert_eq!(refreshes(&store).0, 1);
    store.close().await.unwrap();
    assert!(manifest_path(&path).exists() && !seen(&path));
}

/// `nimbus encryption rotate-dek --provider libsql-cache`, with the instance stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_makes_a_replica_anew() {
    let mut world = World::new();
    let keyring = keyring();
    world.keyring = Some(keyring.clone());
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    let at = put(&store, Head::EMPTY, 1, "value").await;
    let path = world.replica("a", "t");
    // The command locks the file's directory, which an open tenant holds.
    let held = crate::provider::lock::DataDirLock::acquire(path.parent().unwrap());
    assert!(held.is_err(), "a command may change an open replica");
    store.close().await.unwrap();
    drop((store, provider));
    let before = std::fs::read(&path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let subject = Subject::libsql_cache("t", name).unwrap();
    let old = keyring.unlock(&path, &subject).unwrap();
    rotate_dek(&path, &subject, false, &keyring, &mut |_| {}).unwrap();
    assert!(!path.exists(), "the old file is gone");
    let new = keyring.unlock(&path, &subject).unwrap();
    assert!(new.current() != old.current());

    let provider = world.provider("a").await;
    let store = reopened(&provider, "t").await;
    assert_eq!(get(&store, b"k").await.as_deref(), Some("value"));
    assert_eq!(head(&store).await, at);
    assert_eq!(refreshes(&store).0, 1);
    store.close().await.unwrap();
    assert!(std::fs::read(&path).unwrap() != before);
    assert!(keyring.unlock(&path, &subject).unwrap().current() == new.current());
}
