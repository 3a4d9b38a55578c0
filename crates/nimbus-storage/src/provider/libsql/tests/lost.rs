//! A primary that goes away, answers late or not at all: commits that it did are found, others are not there, and no
//! read shows what may be stale.

use super::*;

/// The number of open streams: each request closes its own.
fn assert_no_streams(world: &World) {
    assert_eq!(world.primary.open_streams(), 0, "a stream was left open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_cut_is_found() {
    let world = World::new();
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    let mut at = put(&store, Head::EMPTY, 1, "0").await;
    for n in 0..5 {
        world.primary.faults().cut_after_commit(1);
        let before = world.primary.faults().commits();
        at = put(&store, at, n, &format!("cut {n}")).await;
        assert_eq!(get(&store, b"k").await, Some(format!("cut {n}")));
        assert_eq!(head(&store).await, at);
        // The commit, and the look for it.
        assert_eq!(world.primary.faults().commits() - before, 2);
    }
    assert_no_streams(&world);
    store.close().await.unwrap();
}

/// The same where the head stays, as in maintenance, and others commit at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_whose_answer_was_cut_is_found() {
    let world = World::new();
    let (a, b) = (world.provider("a").await, world.provider("b").await);
    let (first, second) = (fresh(&a, "t").await, b.open(&tenant("t")).await.unwrap());
    let at = put(&first, Head::EMPTY, 1, "0").await;
    for n in 0..3 {
        let turn = first.turn().await.unwrap();
        world.primary.faults().cut_after_commit(1);
        turn.commit(batch(at, b"kept", &n.to_string()))
            .await
            .unwrap();
        for store in [&first, &second] {
            assert_eq!(get(store, b"kept").await, Some(n.to_string()));
            assert_eq!(head(store).await, at);
        }
    }
    // The other server knows an older fence now, and is not disturbed.
    put(&second, at, 2, "1").await;
    assert_eq!(get(&first, b"k").await.as_deref(), Some("1"));
}

/// An answer that comes too late is looked for; a request that did not get there is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_answer_is_found_and_an_unsent_request_is_not() {
    let mut world = World::new();
    world.timing.request = Duration::from_millis(700);
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    let at = put(&store, Head::EMPTY, 1, "0").await;
    // The commit is done, and looked for in vain until answers come in time again.
    world.primary.faults().delay_answers(Duration::from_secs(2));
    let pending = {
        let store = store.clone();
        tokio::spawn(async move { store.commit(at, batch(next(at, 2), b"k", "late")).await })
    };
    let before = world.primary.faults().commits();
    soon("the commit", async || {
        world.primary.faults().commits() > before
    })
    .await;
    world.primary.faults().delay_answers(Duration::ZERO);
    pending.await.unwrap().unwrap();
    assert_eq!(get(&store, b"k").await.as_deref(), Some("late"));

    // The primary stops before it: nothing is sent.
    world.primary.stop();
    let at = next(at, 2);
    let refused = store.commit(at, batch(next(at, 3), b"k", "never")).await;
    assert!(
        matches!(refused, Err(CommitError::Transient { .. })),
        "{refused:?}"
    );
    world.primary.resume().unwrap();
    assert_eq!(get(&store, b"k").await.as_deref(), Some("late"));
    put(&store, at, 3, "after").await;
    store.close().await.unwrap();
}

/// The fence: a commit that was given up is refused if it arrives after all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_comes_after_the_look_for_it_fails() {
    let world = World::new();
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    let at = put(&store, Head::EMPTY, 1, "0").await;
    run(&provider, "t", sql::RAISE_FENCE).await;
    // This server does not know of it, is told so, and knows that nothing was written.
    let at = put(&store, at, 2, "1").await;
    assert_eq!(head(&store).await, at);
    let rows = run(&provider, "t", "SELECT count(*) FROM changes").await;
    assert_eq!(rows[0][0], Value::Integer(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_cannot_be_looked_up_is_unknown() {
    let mut world = World::new();
    world.timing.settle = Duration::from_millis(300);
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    let at = put(&store, Head::EMPTY, 1, "0").await;
    world.primary.faults().delay_answers(Duration::from_secs(1));
    let before = world.primary.faults().commits();
    let pending = {
        let store = store.clone();
        tokio::spawn(async move { store.commit(at, batch(next(at, 2), b"k", "1")).await })
    };
    soon("the commit", async || {
        world.primary.faults().commits() > before
    })
    .await;
    world.primary.stop();
    let unknown = pending.await.unwrap();
    assert!(
        matches!(unknown, Err(CommitError::OutcomeUnknown { .. })),
        "{unknown:?}"
    );
    world.primary.faults().delay_answers(Duration::ZERO);
    world.primary.resume().unwrap();
    let refused = store.commit(at, batch(next(at, 3), b"k", "2")).await;
    assert!(matches!(refused, Err(CommitError::Closed)), "{refused:?}");
    store.close().await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    assert_eq!(get(&store, b"k").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_fail_while_the_primary_is_away_and_work_again_after() {
    let mut world = World::new();
    world.timing.barrier = Duration::from_millis(400);
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    put(&store, Head::EMPTY, 1, "0").await;
    world.primary.stop();
    for _ in 0..3 {
        let refused = store.snapshot().await.err().unwrap();
        assert!(matches!(refused, ProviderError::Busy { .. }), "{refused:?}");
    }
    let health = provider.health().await.unwrap_err();
    assert!(matches!(health, ProviderError::Busy { .. }), "{health:?}");
    assert!(store.freshness().unwrap().last_refresh_error.is_some());
    world.primary.resume().unwrap();
    soon("a read", async || store.snapshot().await.is_ok()).await;
    assert_eq!(get(&store, b"k").await.as_deref(), Some("0"));
    provider.health().await.unwrap();
    let freshness = store.freshness().unwrap();
    assert_eq!(freshness.last_refresh_error, None);
    assert_eq!(
        (
            freshness.required_sequence,
            freshness.local_applied_sequence
        ),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_primary_takes_nothing_and_loses_nothing() {
    let world = World::new();
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    let at = put(&store, Head::EMPTY, 1, "0").await;
    for writes in 1..5 {
        world.primary.faults().fail_writes(writes);
        for _ in 0..writes {
            let full = store.commit(at, batch(next(at, 2), b"k", "1")).await;
            assert!(matches!(full, Err(CommitError::Full { .. })), "{full:?}");
        }
        assert_eq!(get(&store, b"k").await.as_deref(), Some("0"));
        assert_eq!(head(&store).await, at);
    }
    put(&store, at, 2, "1").await;
    assert_no_streams(&world);
}

/// Another writer that keeps the lock: the primary ends its transaction, or the commit is told to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_primary_is_a_passing_failure() {
    let world = World::with(Options {
        lock_timeout: Duration::from_millis(200),
        ..Options::default()
    });
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    let at = put(&store, Head::EMPTY, 1, "0").await;
    let namespace = provider.shared.known().get(&tenant("t")).unwrap().clone();
    let path = world
        .dir
        .path()
        .join(format!("primary/{namespace}.sqlite3"));
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let busy = store.commit(at, batch(next(at, 2), b"k", "1")).await;
    assert!(
        matches!(busy, Err(CommitError::Transient { .. })),
        "{busy:?}"
    );
    other.execute_batch("ROLLBACK").unwrap();
    put(&store, at, 2, "1").await;
}
