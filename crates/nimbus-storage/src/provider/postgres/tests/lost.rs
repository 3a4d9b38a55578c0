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
    [PostgresProvider; 2],
) {
    let direct = world.provider().await;
    let (proxy, url) = Proxy::start(&world.place.url).await;
    let through = world.provider_at(&url).await;
    let plain = fresh(&direct, "lost").await;
    let cut = through.open(&tenant("lost")).await.unwrap();
    (proxy, cut, plain, [direct, through])
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
    let again = providers[1].open(&tenant("lost")).await.unwrap();
    assert_eq!(head(&again).await, mine);
    assert_eq!(head(&other).await, mine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_keeps_the_head_is_done_once_or_again() {
    let world = World::new();
    let (proxy, store, other, _providers) = two(&world).await;
    let at = put(&store, Head::EMPTY, 1, "first").await;
    for cut in [Cut::Answer, Cut::Question] {
        proxy.arm(cut, MARKER.as_bytes(), false);
        let writes = [((Keyspace::Docs, b"kept".to_vec()), Some(MARKER.into()))];
        let kept = Batch {
            head: at,
            writes: writes.into(),
        };
        store.commit(at, kept).await.unwrap();
        assert!(!proxy.is_armed());
        assert_eq!(
            get(&other, b"kept").await.as_deref(),
            Some(MARKER),
            "{cut:?}"
        );
        assert_eq!(head(&other).await, at);
        let gone = [((Keyspace::Docs, b"kept".to_vec()), None)];
        store
            .commit(
                at,
                Batch {
                    head: at,
                    writes: gone.into(),
                },
            )
            .await
            .unwrap();
        assert_eq!(get(&other, b"kept").await, None);
    }
    // And one on a head that is not there any more is told.
    let stale = Batch {
        head: Head::EMPTY,
        writes: BTreeMap::new(),
    };
    let refused = store.commit(Head::EMPTY, stale).await;
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
        let new = next(at, mark);
        proxy.arm(cut, MARKER.as_bytes(), false);
        turn.commit(batch(new, b"k", MARKER)).await.unwrap();
        assert!(!proxy.is_armed());
        at = new;
        assert_eq!(head(&other).await, at, "{cut:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_died_while_nobody_used_them_are_replaced() {
    let world = World::new();
    let (_proxy, store, other, providers) = two(&world).await;
    let mut at = put(&store, Head::EMPTY, 1, "one").await;
    let app = format!("nimbus-{}", world.place.prefix);
    // A provider whose connections can be told from those of other tests.
    let url = format!("{}?application_name={app}", world.place.url);
    let named = world.provider_at(&url).await;
    let mine = named.open(&tenant("lost")).await.unwrap();
    let end = format!(
        "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE application_name = '{app}'"
    );
    for round in 0..3 {
        let several = [mine.snapshot().await, mine.snapshot().await];
        drop(several);
        assert_eq!(head(&mine).await, at);
        assert!(!world.place.ask(&end).await.is_empty());
        match round {
            0 => assert_eq!(head(&mine).await, at),
            1 => assert!(named.contains(&tenant("lost")).await.unwrap()),
            _ => {}
        }
        at = put(&mine, at, 10 + round, "again").await;
        let more = put(&other, at, 20 + round, "theirs").await;
        at = more;
    }
    drop(providers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_ended_in_a_snapshot_is_an_error_and_the_next_one_works() {
    let world = World::new();
    let provider = world.provider().await;
    let store = fresh(&provider, "ended").await;
    let at = put(&store, Head::EMPTY, 1, "one").await;
    let mut snapshot = store.snapshot().await.unwrap();
    let pid = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE state = 'idle in transaction' \
               AND query LIKE '%READ ONLY%' AND query LIKE '%PREFIX%'";
    let ended = world
        .place
        .ask(&pid.replace("PREFIX", &world.place.prefix))
        .await;
    assert_eq!(ended, ["true"]);
    for _ in 0..2 {
        let read = snapshot.get_many(Keyspace::Docs, &[b"k"]).await;
        assert!(matches!(read, Err(ProviderError::Io { .. })), "{read:?}");
    }
    drop(snapshot);
    assert_eq!(head(&store).await, at);
    assert_eq!(store.stats().open_snapshots, 0);
}
