//! Several servers on one primary.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_on_an_old_head_is_told_the_new_one() {
    let world = World::new();
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let (first, second) = (fresh(&a, "t").await, b.open(&tenant("t")).await.unwrap());
    let at = put(&first, Head::EMPTY, 1, "first").await;
    let moved = second
        .commit(Head::EMPTY, batch(next(Head::EMPTY, 2), b"k", "second"))
        .await;
    let Err(CommitError::HeadMoved { actual }) = moved else {
        panic!("{moved:?}");
    };
    assert_eq!(actual, at);
    assert_eq!(get(&second, b"k").await.as_deref(), Some("first"));
    put(&second, at, 2, "second").await;
    assert_eq!(get(&first, b"k").await.as_deref(), Some("second"));
    assert!(second.is_shared());
    assert_eq!(world.primary.open_streams(), 0, "a stream was left open");
}

/// What others committed is seen within the staleness that was asked for, and at once after anything that tells of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_read_is_no_older_than_allowed() {
    let mut world = World::new();
    world.staleness = Duration::from_secs(600);
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let (first, second) = (fresh(&a, "t").await, b.open(&tenant("t")).await.unwrap());
    let at = put(&first, Head::EMPTY, 1, "first").await;
    assert_eq!(get(&first, b"k").await.as_deref(), Some("first"), "its own");
    assert_eq!(get(&second, b"k").await, None, "no need to ask yet");
    assert_eq!(
        second.freshness().unwrap().last_barrier_path,
        "already_current_cache"
    );
    second.look_again();
    assert_eq!(get(&second, b"k").await.as_deref(), Some("first"));
    assert_eq!(
        second.freshness().unwrap().last_barrier_path,
        "incremental_catch_up"
    );
    // A refused commit tells that there is something.
    let new = put(&first, at, 2, "second").await;
    let moved = second.commit(at, batch(next(at, 3), b"k", "x")).await;
    assert!(
        matches!(moved, Err(CommitError::HeadMoved { .. })),
        "{moved:?}"
    );
    assert_eq!(get(&second, b"k").await.as_deref(), Some("second"));
    // So does a commit that succeeds, and a turn.
    let at = put(&first, new, 4, "third").await;
    let mut turn = second.turn().await.unwrap();
    assert_eq!(turn.head().await.unwrap(), at);
    drop(turn);
    assert_eq!(head(&second).await, at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_shows_one_state_and_has_others_wait() {
    let mut world = World::new();
    world.timing.lease = Duration::from_secs(60);
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let (first, second) = (fresh(&a, "t").await, b.open(&tenant("t")).await.unwrap());
    let at = put(&first, Head::EMPTY, 1, "0").await;
    let mut turn = second.turn().await.unwrap();
    assert_eq!(turn.head().await.unwrap(), at);
    // Commits of both servers wait, and turns too.
    let waiting: Vec<_> = [&first, &second]
        .map(|store| {
            let store = store.clone();
            tokio::spawn(async move { store.commit(at, batch(next(at, 3), b"k", "x")).await })
        })
        .into();
    let other = {
        let first = first.clone();
        tokio::spawn(async move { first.turn().await.unwrap().head().await.unwrap() })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    let seen = turn.get_many(Keyspace::Docs, &[b"k"]).await.unwrap();
    assert_eq!(seen[0].as_deref(), Some(&b"0"[..]));
    assert!(!other.is_finished() && waiting.iter().all(|task| !task.is_finished()));
    let new = next(at, 2);
    turn.commit(batch(new, b"k", "mine")).await.unwrap();
    for task in waiting {
        let moved = task.await.unwrap();
        assert!(
            matches!(moved, Err(CommitError::HeadMoved { actual }) if actual == new),
            "{moved:?}"
        );
    }
    assert_eq!(other.await.unwrap(), new);
    // A turn that is given up holds nobody up.
    drop(second.turn().await.unwrap());
    put(&first, new, 5, "5").await;
}

/// A server that stops with a reserved turn holds others up for the time of the reservation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_ends_by_itself() {
    let mut world = World::new();
    world.timing.lease = Duration::from_millis(300);
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let (first, second) = (fresh(&a, "t").await, b.open(&tenant("t")).await.unwrap());
    let at = put(&first, Head::EMPTY, 1, "0").await;
    let reserved = second.turn().await.unwrap();
    // The other's turn comes all the same, and the stopped one is refused.
    let at = put(&first, at, 3, "2").await;
    let refused = reserved.commit(batch(next(at, 9), b"k", "late")).await;
    assert!(
        matches!(refused, Err(CommitError::Transient { .. })),
        "{refused:?}"
    );
    assert_eq!(get(&second, b"k").await.as_deref(), Some("2"));
    // The same where the other's commit leaves the head as it is, as maintenance does.
    let reserved = second.turn().await.unwrap();
    let other = first.turn().await.unwrap();
    other.commit(batch(at, b"m", "kept")).await.unwrap();
    let refused = reserved.commit(batch(at, b"m", "late")).await;
    assert!(
        matches!(refused, Err(CommitError::Transient { .. })),
        "{refused:?}"
    );
    assert_eq!(get(&second, b"m").await.as_deref(), Some("kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_others_are_told_of() {
    let world = World::new();
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let (first, second) = (fresh(&a, "t").await, b.open(&tenant("t")).await.unwrap());
    let waiting = {
        let second = second.clone();
        tokio::spawn(async move { second.changed().await })
    };
    let at = put(&first, Head::EMPTY, 1, "0").await;
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(get(&second, b"k").await.as_deref(), Some("0"));
    // Its own commits are no news, whoever applied them.
    put(&second, at, 2, "1").await;
    let told = tokio::time::timeout(Duration::from_millis(200), second.changed()).await;
    assert!(told.is_err(), "its own commit was told of");
    // News that came before the wait are not lost.
    first.look_again();
    assert_eq!(get(&first, b"k").await.as_deref(), Some("1"));
    first.changed().await;
    // The end of the tenant is news.
    first.close().await.unwrap();
    a.delete(&tenant("t")).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), second.changed())
        .await
        .unwrap();
    let gone = second.snapshot().await.err().unwrap();
    assert!(matches!(gone, ProviderError::NotFound { .. }), "{gone:?}");
}

/// Many commits from both sides at once: each is there once, in both replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_servers_lose_nothing() {
    let world = World::new();
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let stores = [fresh(&a, "t").await, b.open(&tenant("t")).await.unwrap()];
    let tasks = (0..2_u8).map(|who| {
        let store = stores[usize::from(who)].clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < 40_u8 {
                let turn = store.turn().await;
                let Ok(mut turn) = turn else { continue };
                let at = turn.head().await.unwrap();
                let row = batch(next(at, who), &[who, done], "x");
                match turn.commit(row).await {
                    Ok(()) => done += 1,
                    Err(CommitError::Transient { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    for store in &stores {
        assert_eq!(head(store).await.sequence, 80);
        for who in 0..2 {
            for n in 0..40 {
                assert!(get(store, &[who, n]).await.is_some(), "{who} {n}");
            }
        }
        assert_eq!(refreshes(store).0, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_leaves_nothing() {
    let world = World::new();
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let (first, second) = (fresh(&a, "t").await, b.open(&tenant("t")).await.unwrap());
    put(&first, Head::EMPTY, 1, "0").await;
    assert_eq!(get(&second, b"k").await.as_deref(), Some("0"));
    assert_eq!(a.owned(&tenant("t")).len(), 2);
    first.close().await.unwrap();
    second.close().await.unwrap();
    a.delete(&tenant("t")).await.unwrap();
    assert_eq!(world.namespaces(), Vec::<String>::new());
    assert_eq!(world.cached("a"), Vec::<PathBuf>::new());
    // The other server notices when it looks.
    assert!(b.open(&tenant("t")).await.is_err());
    assert_eq!(world.cached("b"), Vec::<PathBuf>::new());
    assert_eq!(a.owned(&tenant("t")), Vec::<String>::new());
}

/// An older version left metadata without a table of wake times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_without_wake_times_gets_them() {
    let world = World::new();
    let older = world.provider("a").await;
    let metadata = world.options("a").metadata_namespace;
    let script = Script::query("DROP TABLE wakes", Vec::new());
    let dropped = older.shared.http.rows(&metadata, &script).await;
    dropped.unwrap();
    let (b, c) = tokio::join!(world.provider("b"), world.provider("c"));
    let wakes = b.wakes().unwrap();
    wakes.lower(&tenant("t"), 5).await.unwrap();
    let due = c.wakes().unwrap().due(5, 9).await.unwrap();
    assert_eq!(due, [wakes.get(&tenant("t")).await.unwrap().unwrap()]);
}
