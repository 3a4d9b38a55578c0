//! Tests of an open store: durability, full disks, checkpoints, readers, and how it ends.

use super::*;

#[tokio::test]
async fn full_and_relaxed_durability_count_syncs() {
    for (durability, per_commit) in [(Durability::Full, 1), (Durability::Relaxed, 0)] {
        let home = Home::new();
        let provider = home.with(|o| o.durability = durability);
        provider.create(&tenant("t")).await.unwrap();
        let store = provider.open(&tenant("t")).await.unwrap();
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

/// What a crash left in the log is in the file itself before the store answers from it.
#[tokio::test]
async fn a_left_over_log_is_copied_when_the_store_opens() {
    let donor = Home::new();
    let provider = donor.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let head = put(&store, Head::EMPTY, b"k", b"v").await;
    let home = Home::new();
    for name in ["nimbus-control.db", "t.sqlite3", "t.sqlite3-wal"] {
        std::fs::copy(donor.path(name), home.path(name)).unwrap();
    }
    store.close().await.unwrap();
    let store = home.provider().open(&tenant("t")).await.unwrap();
    // The main file alone has the commit.
    let alone = Home::new();
    std::fs::copy(home.path("t.sqlite3"), alone.path("t.sqlite3")).unwrap();
    let conn = Connection::open(alone.path("t.sqlite3")).unwrap();
    let found = schema::read_head(&conn, Path::new("alone")).unwrap();
    assert_eq!(found, head);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_full_file_refuses_commits_and_recovers() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    set_page_limit(&home.path("t.sqlite3"), 100);
    let store = provider.open(&tenant("t")).await.unwrap();
    let head = put(&store, Head::EMPTY, b"k", b"v").await;
    for _ in 0..2 {
        let big = batch(next(head), &[(Keyspace::Docs, b"big", &[1; 500_000])]);
        let e = store.commit(head, big).await.unwrap_err();
        assert!(matches!(e, CommitError::Full { .. }), "{e:?}");
        assert!(e.to_string().contains("t.sqlite3"), "{e}");
        assert_eq!(rows(&store).await.len(), 1, "nothing of it was written");
    }
    let head = put(&store, head, b"small", b"v").await;
    assert_eq!(store.snapshot().await.unwrap().head().await.unwrap(), head);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_survived_without_restart() {
    let Some(disk) = SmallDisk::new(16 << 20) else {
        return;
    };
    let control = Arc::new(ControlDb::open(disk.path()).unwrap());
    let provider = SqliteProvider::open(SqliteOptions::new(disk.path()), control).unwrap();
    provider.create(&tenant("t")).await.unwrap();
    provider.health().await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let mut head = put(&store, Head::EMPTY, b"first", b"v").await;
    let ballast = disk.fill();
    let e = provider.health().await.unwrap_err();
    assert!(matches!(e, ProviderError::Full { .. }), "{e:?}");
    let mut refused = 0;
    for n in 0..1000_u32 {
        let new = next(head);
        let value = [b'x'; 50_000];
        let rows = batch(new, &[(Keyspace::Docs, &n.to_be_bytes(), &value)]);
        match store.commit(head, rows).await {
            Ok(()) => head = new,
            Err(CommitError::Full { .. }) => {
                refused += 1;
                if refused == 3 {
                    break;
                }
            }
            Err(e) => panic!("{e:?}"),
        }
    }
    assert_eq!(refused, 3, "the disk never was full");
    // Reads go on, and see no trace of what was refused.
    let mut snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.head().await.unwrap(), head);
    drop(snapshot);
    let e = provider.create(&tenant("u")).await.unwrap_err();
    assert!(matches!(e, ProviderError::Full { .. }), "{e:?}");
    drop(ballast);
    put(&store, head, b"after", b"v").await;
    provider.create(&tenant("u")).await.unwrap();
    provider.health().await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn the_log_is_checkpointed_and_cut_back() {
    let home = Home::new();
    let provider = home.with(|o| o.durability = Durability::Relaxed);
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let mut head = Head::EMPTY;
    // Unlike the one before, since SQLite writes no page that stays the same.
    let value = |n: u8| vec![n; 1 << 20];
    let mut n = 0;
    for _ in 0..3 {
        n += 1;
        head = put(&store, head, &[n % 4], &value(n)).await;
    }
    assert_eq!(store.stats().checkpoints, 0, "below 4 MiB");
    // A snapshot keeps the log from starting over.
    let snapshot = store.snapshot().await.unwrap();
    for _ in 0..30 {
        n += 1;
        head = put(&store, head, &[n % 4], &value(n)).await;
    }
    until(&store, "a checkpoint past 4 MiB", |s| s.checkpoints >= 1).await;
    let grown = store.stats().wal_bytes;
    assert!(grown > 25 << 20, "{grown}");
    assert_eq!(store.stats().open_snapshots, 1);
    until(&store, "the snapshot gets older", |s| {
        s.oldest_snapshot_ms > 0
    })
    .await;
    drop(snapshot);
    // The log starts over at the first commit after a checkpoint that copied all of it, and is
    // then cut back. How many commits that takes is up to the threads.
    let begin = Instant::now();
    while store.stats().wal_bytes > 17 << 20 {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{grown} before, {:?}",
            store.stats()
        );
        n = n.wrapping_add(1);
        head = put(&store, head, &[n % 4], &value(n)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.close().await.unwrap();
    assert_eq!(store.stats().wal_bytes, 0);
    assert_eq!(home.names(), ["t.sqlite3"]);
    let store = provider.open(&tenant("t")).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().head().await.unwrap(), head);
    store.close().await.unwrap();
}

/// The head and one value that a new snapshot sees.
async fn seen(store: &Arc<dyn TenantStore>, key: &[u8]) -> (Head, Option<Vec<u8>>) {
    let mut snapshot = store.snapshot().await.unwrap();
    let head = snapshot.head().await.unwrap();
    let found = snapshot.get_many(Keyspace::Docs, &[key]).await.unwrap();
    (head, found[0].as_ref().map(|value| value.to_vec()))
}

#[tokio::test]
async fn a_kept_transaction_is_used_until_the_next_commit() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let mut head = Head::EMPTY;
    for n in 0..5_u8 {
        head = put(&store, head, b"k", &[n]).await;
        for _ in 0..3 {
            assert_eq!(seen(&store, b"k").await, (head, Some(vec![n])));
        }
        // Several at once, which come back in another order than a commit between them.
        let old = [
            store.snapshot().await.unwrap(),
            store.snapshot().await.unwrap(),
        ];
        head = put(&store, head, b"k", &[n + 100]).await;
        assert_eq!(seen(&store, b"k").await, (head, Some(vec![n + 100])));
        for mut snapshot in old {
            let found = snapshot.get_many(Keyspace::Docs, &[b"k"]).await.unwrap();
            assert_eq!(found[0].as_deref(), Some(&[n][..]), "a snapshot moved");
        }
        assert_eq!(seen(&store, b"k").await, (head, Some(vec![n + 100])));
    }
    // What others write is seen when that is asked for.
    let raw = Connection::open(home.path("t.sqlite3")).unwrap();
    raw.execute("UPDATE docs SET value = x'09'", ()).unwrap();
    store.look_again();
    assert_eq!(seen(&store, b"k").await, (head, Some(vec![9])));
    store.close().await.unwrap();
}

#[tokio::test]
async fn kept_transactions_do_not_keep_the_log_from_starting_over() {
    let home = Home::new();
    let provider = home.with(|o| o.durability = Durability::Relaxed);
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let mut head = put(&store, Head::EMPTY, b"k", b"v").await;
    // Readers that come and go all the time, so that transactions come back while a checkpoint runs.
    let reading = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                let both = (store.snapshot().await, store.snapshot().await);
                drop(both);
                tokio::task::yield_now().await;
            }
        }
    });
    let begin = Instant::now();
    let mut n = 0_u8;
    // Past the size from which the log starts over, several times.
    for _ in 0..100 {
        n = n.wrapping_add(1);
        head = put(&store, head, &[n % 4], &vec![n; 1 << 20]).await;
    }
    while store.stats().wal_bytes > 17 << 20 {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{:?}",
            store.stats()
        );
        n = n.wrapping_add(1);
        head = put(&store, head, &[n % 4], &vec![n; 1 << 20]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    reading.abort();
    assert!(reading.await.unwrap_err().is_cancelled());
    store.close().await.unwrap();
}

#[tokio::test]
async fn readers_are_limited_and_waiting_ends() {
    let home = Home::new();
    let provider = home.with(|o| o.readers = 2);
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let first = store.snapshot().await.unwrap();
    let second = store.snapshot().await.unwrap();
    let e = store.snapshot().await.map(drop).unwrap_err();
    assert!(matches!(e, ProviderError::Busy { .. }), "{e:?}");
    // A commit needs no reader.
    put(&store, Head::EMPTY, b"k", b"v").await;
    let (third, ()) = tokio::join!(store.snapshot(), async { drop(first) });
    drop((second, third.unwrap()));
    store.close().await.unwrap();
}

#[tokio::test]
async fn closing_ends_snapshots_that_stay_open() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    put(&store, Head::EMPTY, b"k", b"v").await;
    let mut kept = store.snapshot().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(home.names(), ["t.sqlite3"], "no file is held");
    let closed = |e: &ProviderError| matches!(e, ProviderError::Closed);
    assert!(closed(&kept.head().await.unwrap_err()));
    assert!(closed(
        &kept.get_many(Keyspace::Docs, &[b"k"]).await.unwrap_err()
    ));
    let all = KeyRange::all();
    let scanned = kept.scan(Keyspace::Docs, &all, Direction::Forward, 1).await;
    assert!(closed(&scanned.unwrap_err()));
    drop(kept);
    store.close().await.unwrap();
    provider.delete(&tenant("t")).await.unwrap();
    assert_eq!(home.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_dropped_store_lets_go_of_its_files() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    put(&store, Head::EMPTY, b"k", b"v").await;
    drop(store);
    let begin = Instant::now();
    while home.names() != ["t.sqlite3"] {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{:?}",
            home.names()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn another_writer_is_a_passing_failure() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let conn = Connection::open(home.path("t.sqlite3")).unwrap();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let e = store
        .commit(Head::EMPTY, batch(next(Head::EMPTY), &[]))
        .await
        .unwrap_err();
    assert!(matches!(e, CommitError::Transient { .. }), "{e:?}");
    conn.execute_batch("ROLLBACK").unwrap();
    put(&store, Head::EMPTY, b"k", b"v").await;
    store.close().await.unwrap();
}

/// After an unknown outcome the store commits no more, still reads, and opens again.
#[tokio::test]
async fn an_unknown_outcome_ends_commits_until_reopened() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let head = put(&store, Head::EMPTY, b"k", b"v").await;
    let conn = Connection::open(home.path("t.sqlite3")).unwrap();
    let set_head = |value: &[u8]| {
        conn.execute(
            "UPDATE meta SET value = ?1 WHERE key = ?2",
            (value, HEAD_KEY),
        )
        .unwrap();
    };
    set_head(b"broken");
    let e = store
        .commit(head, batch(next(head), &[]))
        .await
        .unwrap_err();
    assert!(matches!(e, CommitError::OutcomeUnknown { .. }), "{e:?}");
    set_head(&head.encode());
    let e = store
        .commit(head, batch(next(head), &[]))
        .await
        .unwrap_err();
    assert!(matches!(e, CommitError::Closed), "{e:?}");
    assert_eq!(rows(&store).await.len(), 1);
    store.close().await.unwrap();
    drop(conn);
    let store = provider.open(&tenant("t")).await.unwrap();
    put(&store, head, b"k2", b"v").await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_panic_in_the_writer_is_an_unknown_outcome() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
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

#[tokio::test]
async fn the_providers_own_rows_cannot_be_written() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    for key in [HEAD_KEY, FORMAT_KEY] {
        for value in [Some("x".into()), None] {
            let writes = [((Keyspace::Meta, key.to_vec()), value)].into();
            let e = store.commit(
                Head::EMPTY,
                Batch {
                    head: next(Head::EMPTY),
                    writes,
                },
            );
            let e = e.await.unwrap_err();
            assert!(matches!(e, CommitError::Refused { .. }), "{e:?}");
        }
    }
    store.close().await.unwrap();
}
