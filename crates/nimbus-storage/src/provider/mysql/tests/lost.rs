//! Connections that are lost: idle ones, and in the middle of a commit.

use super::proxy::{Cut, Proxy};
use super::*;

const MARKER: &str = "a marker for the proxy";

/// A store behind a proxy, and one that is not.
async fn two(
    world: &World,
) -> (
    Proxy,
    Arc<dyn TenantStore>,
    Arc<dyn TenantStore>,
    [MysqlProvider; 2],
) {
    let direct = world.provider().await;
    let (proxy, url) = Proxy::start(&world.place.url).await;
    let through = world.provider_at(&url).await;
    let plain = fresh(&direct, "lost").await;
    let cut = through.open(&tenant("lost")).await.unwrap();
    (proxy, cut, plain, [direct, through])
}

/// A value that needs a packet of its own.
fn long() -> String {
    MARKER.repeat(20_000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_looked_up_and_nothing_is_done_twice() {
    let world = World::new();
    let (proxy, store, other, _providers) = two(&world).await;
    let mut at = put(&store, Head::EMPTY, 1, "first").await;
    for (mark, cut) in [(2, Cut::Answer), (3, Cut::Question)] {
        proxy.arm(cut, MARKER.as_bytes(), false);
        at = put(&store, at, mark, MARKER).await;
        assert!(!proxy.is_armed(), "the connection was cut");
        assert_eq!(head(&other).await, at, "{cut:?}");
        assert_eq!(get(&other, b"k").await.as_deref(), Some(MARKER));
        at = put(&store, at, mark + 10, "more").await;
    }
    assert_eq!(store.stats().commits, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_several_packets_that_is_cut_before_its_end_is_begun_again() {
    let mut world = World::new();
    world.timing.turn_idle = Duration::from_secs(1);
    let (proxy, store, other, _providers) = two(&world).await;
    let mut at = put(&store, Head::EMPTY, 1, "first").await;
    for (mark, cut) in [(2, Cut::Question), (3, Cut::Answer)] {
        // The session of the second still holds the head, until the server ends it.
        proxy.arm(cut, MARKER.as_bytes(), false);
        at = put(&store, at, mark, &long()).await;
        assert!(!proxy.is_armed(), "the connection was cut");
        assert_eq!(head(&other).await, at, "{cut:?}");
        assert_eq!(get(&other, b"k").await, Some(long()));
    }
    assert_eq!(store.stats().commits, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_several_packets_whose_last_answer_was_lost_is_looked_up() {
    let mut world = World::new();
    world.timing.turn_idle = Duration::from_secs(1);
    let (proxy, store, other, _providers) = two(&world).await;
    let mut at = put(&store, Head::EMPTY, 1, "first").await;
    for (mark, cut) in [(2, Cut::Answer), (3, Cut::Question)] {
        proxy.arm(cut, b"COMMIT", false);
        at = put(&store, at, mark, &long()).await;
        assert!(!proxy.is_armed(), "the connection was cut");
        assert_eq!(head(&other).await, at, "{cut:?}");
    }
    assert_eq!(store.stats().commits, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outcome_is_found_although_others_committed_since() {
    let world = World::new();
    let (proxy, store, other, _providers) = two(&world).await;
    let at = put(&store, Head::EMPTY, 1, "first").await;

    // It arrived: its record is in the log.
    proxy.arm(Cut::Answer, MARKER.as_bytes(), true);
    let mine = next(at, 2);
    let lost = tokio::spawn({
        let store = store.clone();
        async move { store.commit(at, batch(mine, b"k", MARKER)).await }
    });
    soon("the commit", async || head(&other).await == mine).await;
    let theirs = put(&other, mine, 3, "theirs").await;
    proxy.release();
    lost.await.unwrap().unwrap();

    // It did not: the log has another record.
    proxy.arm(Cut::Question, MARKER.as_bytes(), true);
    let lost = tokio::spawn({
        let (store, batch) = (store.clone(), batch(next(theirs, 4), b"k", MARKER));
        async move { store.commit(theirs, batch).await }
    });
    soon("the cut", async || !proxy.is_armed()).await;
    let last = put(&other, theirs, 5, "theirs").await;
    proxy.release();
    match lost.await.unwrap() {
        Err(CommitError::HeadMoved { actual }) => assert_eq!(actual, last),
        other => panic!("{other:?}"),
    }
    assert_eq!(get(&other, b"k").await.as_deref(), Some("theirs"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_cannot_be_found_out_is_unknown() {
    let mut world = World::new();
    world.timing.settle = Duration::from_millis(500);
    world.timing.wait = Duration::from_millis(300);
    let (proxy, store, other, providers) = two(&world).await;
    proxy.arm(Cut::Answer, MARKER.as_bytes(), true);
    let mine = next(Head::EMPTY, 1);
    let lost = store.commit(Head::EMPTY, batch(mine, b"k", MARKER)).await;
    assert!(
        matches!(lost, Err(CommitError::OutcomeUnknown { .. })),
        "{lost:?}"
    );
    // Nothing more is taken until it is opened again, which shows what happened.
    let refused = store.commit(mine, batch(next(mine, 2), b"k", "x")).await;
    assert!(matches!(refused, Err(CommitError::Closed)), "{refused:?}");
    store.close().await.unwrap();
    proxy.release();
    soon("the commit", async || head(&other).await == mine).await;
    let again = providers[1].open(&tenant("lost")).await.unwrap();
    assert_eq!(head(&again).await, mine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_keeps_the_head_is_done_once_or_again() {
    let world = World::new();
    let (proxy, store, other, _providers) = two(&world).await;
    let at = put(&store, Head::EMPTY, 1, "first").await;
    let keeping = |head, value: Option<&'static str>| Batch {
        head,
        writes: BTreeMap::from([((Keyspace::Docs, b"kept".to_vec()), value.map(Bytes::from))]),
    };
    for (cut, what) in [
        (Cut::Answer, MARKER.as_bytes()),
        (Cut::Question, MARKER.as_bytes()),
        (Cut::Answer, b"COMMIT"),
        (Cut::Question, b"COMMIT"),
    ] {
        proxy.arm(cut, what, false);
        store.commit(at, keeping(at, Some(MARKER))).await.unwrap();
        assert!(!proxy.is_armed());
        let found = get(&other, b"kept").await;
        assert_eq!(found.as_deref(), Some(MARKER), "{cut:?}");
        assert_eq!(head(&other).await, at);
        store.commit(at, keeping(at, None)).await.unwrap();
        assert_eq!(get(&other, b"kept").await, None);
    }
    // And one on a head that is not there any more is told.
    let refused = store.commit(Head::EMPTY, keeping(Head::EMPTY, None)).await;
    assert!(
        matches!(refused, Err(CommitError::HeadMoved { actual }) if actual == at),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_whose_answer_was_lost_is_looked_up() {
    let world = World::new();
    let (proxy, store, other, _providers) = two(&world).await;
    let mut at = Head::EMPTY;
    for (mark, cut) in [(1, Cut::Answer), (2, Cut::Question)] {
        let mut turn = store.turn().await.unwrap();
        assert_eq!(turn.head().await.unwrap(), at);
        proxy.arm(cut, b"COMMIT", false);
        let new = next(at, mark);
        turn.commit(batch(new, b"k", MARKER)).await.unwrap();
        assert!(!proxy.is_armed());
        assert_eq!(head(&other).await, new, "{cut:?}");
        at = new;
    }
    assert_eq!(store.stats().commits, 2);
    // One that was cut before its end was sent did nothing.
    let turn = store.turn().await.unwrap();
    proxy.arm(Cut::Question, MARKER.as_bytes(), false);
    let lost = turn.commit(batch(next(at, 3), b"k", MARKER)).await;
    assert!(
        matches!(lost, Err(CommitError::Transient { .. })),
        "{lost:?}"
    );
    assert_eq!(head(&other).await, at);
}

/// Ends every session of a database user but this one.
async fn end_sessions(world: &World, user: &str) {
    let listed = format!(
        "SELECT CONCAT('KILL ', id) FROM information_schema.processlist WHERE user='{user}'"
    );
    for kill in world.place.ask(&listed).await {
        // One that ended by itself is an error.
        let mut conn = world.place.connect().await;
        let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(kill))
            .execute(&mut conn)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_the_server_ended_are_replaced_unseen() {
    let world = World::new();
    let (user, url) = refused::user(&world, refused::LEAST).await;
    let provider = world.provider_at(&url).await;
    let store = fresh(&provider, "killed").await;
    let mut at = put(&store, Head::EMPTY, 1, "x").await;
    for round in 0..3 {
        end_sessions(&world, &user).await;
        let found = get(&store, b"k").await;
        assert!(found.is_some(), "a read");
        end_sessions(&world, &user).await;
        at = put(&store, at, 10 + round, "y").await;
        end_sessions(&world, &user).await;
        let turn = store.turn().await.unwrap();
        let new = next(at, 20 + round);
        turn.commit(batch(new, b"k", "z")).await.unwrap();
        at = new;
        end_sessions(&world, &user).await;
        assert_eq!(provider.list().await.unwrap(), [tenant("killed")]);
        end_sessions(&world, &user).await;
        provider.health().await.unwrap();
        end_sessions(&world, &user).await;
        provider.create(&tenant("other")).await.unwrap();
        end_sessions(&world, &user).await;
        provider.delete(&tenant("other")).await.unwrap();
    }
    // In the middle of a snapshot it is an error, and the next snapshot is good.
    let mut snapshot = store.snapshot().await.unwrap();
    end_sessions(&world, &user).await;
    let read = snapshot.get_many(Keyspace::Docs, &[b"k"]).await;
    assert!(matches!(read, Err(ProviderError::Io { .. })), "{read:?}");
    assert_eq!(head(&store).await, at);
    drop((snapshot, store, provider));
    refused::forget(&world, &user).await;
}
