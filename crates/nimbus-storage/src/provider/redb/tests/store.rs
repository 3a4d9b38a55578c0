//! Tests of an open store: durability, full disks, snapshots, and how it ends.

use super::*;

#[tokio::test]
async fn full_and_relaxed_durability_count_syncs() {
    for (durability, per_commit) in [(Durability::Full, 2), (Durability::Relaxed, 0)] {
        let home = Home::plain();
        let provider = home.with(|o| o.durability = durability);
        let store = made(&provider, "t").await;
        let mut head = Head::EMPTY;
        for n in 0..5_u8 {
            head = put(&store, head, &[n], b"v").await;
        }
        let stats = store.stats();
        assert_eq!(
            (stats.commits, stats.commit_syncs),
            (5, 5 * per_commit),
            "{durability:?}"
        );
        store.close().await.unwrap();
    }
}

/// What a kill leaves: with full durability everything acknowledged, opened without a scan.
#[tokio::test]
async fn a_killed_store_opens_with_every_commit() {
    for home in Home::both() {
        let provider = home.provider();
        let store = made(&provider, "t").await;
        let mut head = Head::EMPTY;
        for n in 0..20_u8 {
            head = put(&store, head, &[n], &vec![n; 5000]).await;
        }
        let killed = home.sibling();
        killed.take(&home, "t", "t");
        store.close().await.unwrap();
        let path = killed.path("t.redb");
        let key = key_of(
            killed.keyring.as_ref(),
            &path,
            &subject(&tenant("t")).unwrap(),
        )
        .unwrap();
        let file = crate::pages::open_file(&path).unwrap();
        let pages = crate::pages::pages_of(&path, file, key.as_ref()).unwrap();
        let mut builder = redb::Database::builder();
        builder.set_repair_callback(|_| panic!("it is scanned"));
        drop(builder.create_with_backend(pages).unwrap());
        let provider = killed.provider();
        provider.adopt(&tenant("t")).await.unwrap();
        let store = provider.open(&tenant("t")).await.unwrap();
        assert_eq!(super::head(&store).await, head);
        assert_eq!(rows(&store).await.len(), 20);
        store.close().await.unwrap();
    }
}

/// A killed store with relaxed durability has lost the newest commits at most, and a store that is
/// closed, or left alone for a moment, none.
#[tokio::test]
async fn relaxed_commits_become_durable() {
    for home in Home::both() {
        let provider = home.with(|o| o.durability = Durability::Relaxed);
        let store = made(&provider, "t").await;
        let mut head = put(&store, Head::EMPTY, &[0], b"v").await;
        until(&store, "a flush in the background", |s| s.checkpoints >= 1).await;
        let killed = home.sibling();
        killed.take(&home, "t", "t");
        let other = killed.provider();
        other.adopt(&tenant("t")).await.unwrap();
        let after = other.open(&tenant("t")).await.unwrap();
        assert_eq!(super::head(&after).await, head);
        after.close().await.unwrap();
        // By size, whatever the time.
        let before = store.stats().checkpoints;
        for n in 0..12_u8 {
            head = put(&store, head, &[n], &vec![n; 1 << 20]).await;
        }
        until(&store, "flushes by size", |s| s.checkpoints >= before + 2).await;
        head = put(&store, head, b"last", b"v").await;
        store.close().await.unwrap();
        let store = provider.open(&tenant("t")).await.unwrap();
        assert_eq!(super::head(&store).await, head);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_is_survived_without_restart() {
    for keyring in [None, Some(keyring())] {
        let Some(disk) = SmallDisk::new(16 << 20) else {
            return;
        };
        let control = Arc::new(ControlDb::open(disk.path()).unwrap());
        let mut options = RedbOptions::new(disk.path());
        options.keyring = keyring;
        let provider = RedbProvider::open(options, control).unwrap();
        provider.health().await.unwrap();
        let store = made(&provider, "t").await;
        let mut head = put(&store, Head::EMPTY, b"first", b"v").await;
        let ballast = disk.fill();
        let e = provider.health().await.unwrap_err();
        assert!(matches!(e, ProviderError::Full { .. }), "{e:?}");
        let mut reader = store.snapshot().await.unwrap();
        let new = next(head);
        let big = batch(new, &[(Keyspace::Docs, b"big", &[1; 500_000])]);
        for _ in 0..3 {
            let e = store.commit(head, big.clone()).await.unwrap_err();
            assert!(matches!(e, CommitError::Full { .. }), "{e:?}");
            assert!(e.to_string().contains("t.redb"), "{e}");
        }
        // Reads go on, those of a snapshot from before as well, and see no trace of what was refused.
        assert_eq!(reader.head().await.unwrap(), head);
        let found = reader.get_many(Keyspace::Docs, &[b"first", b"big"]).await;
        assert_eq!(found.unwrap()[1], None);
        drop(reader);
        assert_eq!(rows(&store).await.len(), 1);
        let e = provider.create(&tenant("u")).await.unwrap_err();
        assert!(matches!(e, ProviderError::Full { .. }), "{e:?}");
        drop(ballast);
        head = put(&store, head, b"after", b"v").await;
        made(&provider, "u").await.close().await.unwrap();
        provider.health().await.unwrap();
        store.close().await.unwrap();
        let store = provider.open(&tenant("t")).await.unwrap();
        assert_eq!(super::head(&store).await, head);
        store.close().await.unwrap();
    }
}

/// When the estimate was wrong: nothing was written, the file is opened again, and only snapshots
/// from before have ended.
#[tokio::test]
async fn a_disk_that_is_full_after_all_is_survived() {
    for keyring in [None, Some(keyring())] {
        let Some(disk) = SmallDisk::new(16 << 20) else {
            return;
        };
        let control = Arc::new(ControlDb::open(disk.path()).unwrap());
        let mut options = RedbOptions::new(disk.path());
        options.keyring = keyring;
        let provider = RedbProvider::open(options, control).unwrap();
        let store = made(&provider, "t").await;
        let path = disk.path().canonicalize().unwrap().join("t.redb");
        super::TRUSTING.lock().unwrap().push(path);
        let mut head = put(&store, Head::EMPTY, b"first", b"v").await;
        let mut reader = store.snapshot().await.unwrap();
        let ballast = disk.fill();
        let big = batch(next(head), &[(Keyspace::Docs, b"big", &[1; 3_000_000])]);
        for _ in 0..3 {
            let e = store.commit(head, big.clone()).await.unwrap_err();
            assert!(matches!(e, CommitError::Full { .. }), "{e:?}");
        }
        assert_eq!(rows(&store).await.len(), 1);
        assert_eq!(super::head(&store).await, head);
        // From memory, or not at all.
        match reader.get_many(Keyspace::Docs, &[b"first"]).await {
            Ok(found) => assert_eq!(found[0].as_deref(), Some(&b"v"[..])),
            Err(e) => assert!(matches!(e, ProviderError::Closed), "{e:?}"),
        }
        drop((reader, ballast));
        head = put(&store, head, b"after", b"v").await;
        store.close().await.unwrap();
        let store = provider.open(&tenant("t")).await.unwrap();
        assert_eq!(super::head(&store).await, head);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn closing_ends_snapshots_that_stay_open() {
    for home in Home::both() {
        let provider = home.provider();
        let store = made(&provider, "t").await;
        put(&store, Head::EMPTY, b"k", b"v").await;
        let mut kept = store.snapshot().await.unwrap();
        until(&store, "the snapshot gets older", |s| {
            s.oldest_snapshot_ms > 0
        })
        .await;
        store.close().await.unwrap();
        let closed = |e: &ProviderError| matches!(e, ProviderError::Closed);
        assert!(closed(&kept.head().await.unwrap_err()));
        let got = kept.get_many(Keyspace::Docs, &[b"k"]).await;
        assert!(closed(&got.unwrap_err()));
        let all = KeyRange::all();
        let scanned = kept.scan(Keyspace::Docs, &all, Direction::Forward, 1).await;
        assert!(closed(&scanned.unwrap_err()));
        drop(kept);
        store.close().await.unwrap();
        // Nothing holds the file: it opens at once.
        let again = provider.open(&tenant("t")).await.unwrap();
        assert_eq!(rows(&again).await.len(), 1);
        again.close().await.unwrap();
        let open_files = std::fs::read_dir("/proc/self/fd").unwrap();
        let held = open_files.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        assert_eq!(held.filter(|path| *path == home.path("t.redb")).count(), 0);
        provider.delete(&tenant("t")).await.unwrap();
        assert_eq!(home.names(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_dropped_store_lets_go_of_its_file() {
    let home = Home::encrypted();
    let provider = home.provider();
    let store = made(&provider, "t").await;
    let head = put(&store, Head::EMPTY, b"k", b"v").await;
    drop(store);
    let store = provider.open(&tenant("t")).await.unwrap();
    assert_eq!(super::head(&store).await, head);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_open_is_busy() {
    let home = Home::plain();
    let provider = home.provider();
    let store = made(&provider, "t").await;
    let e = provider.open(&tenant("t")).await.map(drop).unwrap_err();
    assert!(matches!(e, ProviderError::Busy { .. }), "{e:?}");
    store.close().await.unwrap();
}

/// A caller that goes away does not cancel its commit.
#[tokio::test]
async fn a_dropped_commit_is_made() {
    let home = Home::plain();
    let provider = home.provider();
    let store = made(&provider, "t").await;
    let new = next(Head::EMPTY);
    {
        let commit = store.commit(Head::EMPTY, batch(new, &[(Keyspace::Docs, b"k", b"v")]));
        tokio::select! {
            biased;
            _ = commit => {}
            () = std::future::ready(()) => {}
        }
    }
    until(&store, "the commit", |s| s.commits == 1).await;
    assert_eq!(super::head(&store).await, new);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_panic_in_the_writer_is_an_unknown_outcome() {
    for home in Home::both() {
        let provider = home.provider();
        let store = made(&provider, "t").await;
        let head = put(&store, Head::EMPTY, b"k", b"v").await;
        let bad = batch(next(head), &[(Keyspace::Docs, PANIC_KEY, b"")]);
        let e = store.commit(head, bad).await.unwrap_err();
        assert!(matches!(e, CommitError::OutcomeUnknown { .. }), "{e:?}");
        let refused = store.commit(head, batch(next(head), &[])).await;
        assert!(matches!(refused, Err(CommitError::Closed)), "{refused:?}");
        assert_eq!(rows(&store).await.len(), 1);
        store.close().await.unwrap();
        let store = provider.open(&tenant("t")).await.unwrap();
        put(&store, head, b"k2", b"v").await;
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_moved_head_and_own_rows_are_refused() {
    let home = Home::plain();
    let provider = home.provider();
    let store = made(&provider, "t").await;
    for key in [HEAD_KEY, FORMAT_KEY] {
        for value in [Some("x".into()), None] {
            let writes = [((Keyspace::Meta, key.to_vec()), value)].into();
            let head = next(Head::EMPTY);
            let e = store.commit(Head::EMPTY, Batch { head, writes }).await;
            let e = e.unwrap_err();
            assert!(matches!(e, CommitError::Refused { .. }), "{e:?}");
        }
    }
    let head = put(&store, Head::EMPTY, b"k", b"v").await;
    let stale = batch(next(Head::EMPTY), &[(Keyspace::Docs, b"lost", b"v")]);
    let e = store.commit(Head::EMPTY, stale).await.unwrap_err();
    assert!(
        matches!(e, CommitError::HeadMoved { actual } if actual == head),
        "{e:?}"
    );
    assert_eq!(rows(&store).await.len(), 1);
    put(&store, head, b"k2", b"v").await;
    store.close().await.unwrap();
}
