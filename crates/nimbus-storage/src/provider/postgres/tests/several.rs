//! Several servers on one database.

use super::proxy::Proxy;
use super::*;

/// Two servers with a tenant open in both.
async fn pair(world: &World) -> ([PostgresProvider; 2], [Arc<dyn TenantStore>; 2]) {
    let (a, b) = (world.provider().await, world.provider().await);
    let first = fresh(&a, "both").await;
    let second = b.open(&tenant("both")).await.unwrap();
    ([a, b], [first, second])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_does_not_know_of_another_server_s_is_refused() {
    let world = World::new();
    let (_providers, [a, b]) = pair(&world).await;
    assert!(a.is_shared());
    let at = put(&a, Head::EMPTY, 1, "a's").await;
    let refused = b
        .commit(Head::EMPTY, batch(next(Head::EMPTY, 2), b"k", "b's"))
        .await;
    assert!(
        matches!(refused, Err(CommitError::HeadMoved { actual }) if actual == at),
        "{refused:?}"
    );
    assert_eq!(get(&b, b"k").await.as_deref(), Some("a's"));
    put(&b, at, 3, "b's").await;
    assert_eq!(get(&a, b"k").await.as_deref(), Some("b's"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_commits_on_two_servers_are_a_hundred_commits() {
    let world = World::new();
    let (_providers, stores) = pair(&world).await;
    let tasks = [(0, stores[0].clone()), (1, stores[1].clone())].map(|(server, store)| {
        tokio::spawn(async move {
            for n in 0..50_u8 {
                let mut turn = store.turn().await.unwrap();
                let at = turn.head().await.unwrap();
                let count = turn.get_many(Keyspace::Docs, &[b"n"]).await.unwrap()[0].clone();
                let count: u64 = count.map_or(0, |c| String::from_utf8_lossy(&c).parse().unwrap());
                let new = next(at, server * 100 + n);
                turn.commit(batch(new, b"n", &(count + 1).to_string()))
                    .await
                    .unwrap();
            }
        })
    });
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(get(&stores[0], b"n").await.as_deref(), Some("100"));
    assert_eq!(head(&stores[1]).await.sequence, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_keeps_others_out_until_it_ends() {
    let mut world = World::new();
    world.timing.lock = Duration::from_millis(300);
    let (_providers, [a, b]) = pair(&world).await;
    let mut turn = a.turn().await.unwrap();
    let at = turn.head().await.unwrap();
    let blocked = b.turn().await.err().unwrap();
    assert!(
        matches!(blocked, CommitError::Transient { .. }),
        "{blocked:?}"
    );
    let blocked = b.commit(at, batch(next(at, 9), b"k", "no")).await;
    assert!(
        matches!(blocked, Err(CommitError::Transient { .. })),
        "{blocked:?}"
    );
    // Reads go on.
    assert_eq!(get(&b, b"k").await, None);
    let new = next(at, 1);
    turn.commit(batch(new, b"k", "in turn")).await.unwrap();
    assert_eq!(a.stats().commits, 1);
    // One that is dropped gives its turn up.
    drop(a.turn().await.unwrap());
    let end = async || {
        b.commit(new, batch(next(new, 2), b"k", "free"))
            .await
            .is_ok()
    };
    soon("the end of the turn", end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stopped_loses_its_turn() {
    let mut world = World::new();
    world.timing.turn_idle = Duration::from_millis(500);
    let (_providers, [a, b]) = pair(&world).await;
    let mut turn = a.turn().await.unwrap();
    let at = turn.head().await.unwrap();
    let new = put(&b, at, 1, "meanwhile").await;
    let read = turn.get_many(Keyspace::Docs, &[b"k"]).await;
    assert!(matches!(read, Err(ProviderError::Io { .. })), "{read:?}");
    let lost = turn.commit(batch(next(at, 2), b"k", "too late")).await;
    assert!(
        matches!(lost, Err(CommitError::Transient { .. })),
        "{lost:?}"
    );
    // The same without a read, which would have shown it.
    let mut turn = a.turn().await.unwrap();
    assert_eq!(turn.head().await.unwrap(), new);
    let newest = put(&b, new, 3, "again").await;
    let lost = turn.commit(batch(next(new, 4), b"k", "too late")).await;
    assert!(
        matches!(lost, Err(CommitError::Transient { .. })),
        "{lost:?}"
    );
    assert_eq!(head(&a).await, newest);
    assert_eq!(get(&a, b"k").await.as_deref(), Some("again"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_wakes_the_other_server() {
    let world = World::new();
    let (_providers, [a, b]) = pair(&world).await;
    let mut at = Head::EMPTY;
    for n in 0..20 {
        at = put(&a, at, n, "x").await;
        // Hints come for nothing too: it counts that the newest is seen in the end.
        let woken = async {
            while head(&b).await != at {
                b.changed().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), woken)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_lost_its_connection_wakes_everyone() {
    let world = World::new();
    let app = format!("nimbus-{}", world.place.prefix);
    let provider = world
        .provider_at(&format!("{}?application_name={app}", world.place.url))
        .await;
    let store = fresh(&provider, "woken").await;
    let listening = format!(
        "SELECT pid::text FROM pg_stat_activity WHERE application_name = '{app}' AND query LIKE 'LISTEN %'"
    );
    soon("listening", async || {
        !world.place.ask(&listening).await.is_empty()
    })
    .await;
    // Those of the start.
    while tokio::time::timeout(Duration::from_millis(300), store.changed())
        .await
        .is_ok()
    {}
    let end = listening.replace("pid::text", "pg_terminate_backend(pid)::text");
    world.place.ask(&end).await;
    tokio::time::timeout(Duration::from_secs(20), store.changed())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_another_server_deletes_is_gone_here() {
    let world = World::new();
    let ([a, b], [first, second]) = pair(&world).await;
    let at = put(&second, Head::EMPTY, 1, "x").await;
    first.close().await.unwrap();
    // Readers there delay the deletion and do not stop it.
    let mut held = second.snapshot().await.unwrap();
    held.get_many(Keyspace::Docs, &[b"k"]).await.unwrap();
    let id = tenant("both");
    let deletion = tokio::spawn(async move { (a.delete(&tenant("both")).await, a) });
    soon("the tenant is not ready", async || {
        !b.contains(&id).await.unwrap()
    })
    .await;
    drop(held);
    let (deleted, a) = deletion.await.unwrap();
    deleted.unwrap();
    let gone = async |store: &Arc<dyn TenantStore>| {
        let read = store.snapshot().await.err().unwrap();
        assert!(matches!(read, ProviderError::NotFound { .. }), "{read:?}");
        let commit = store.commit(at, batch(next(at, 2), b"k", "y")).await;
        assert!(matches!(commit, Err(CommitError::Closed)), "{commit:?}");
        let commit = store
            .commit(Head::EMPTY, batch(next(Head::EMPTY, 2), b"k", "y"))
            .await;
        assert!(matches!(commit, Err(CommitError::Closed)), "{commit:?}");
        assert!(matches!(store.turn().await, Err(CommitError::Closed)));
    };
    gone(&second).await;
    assert_eq!(b.list().await.unwrap(), []);
    assert!(matches!(
        b.open(&id).await,
        Err(ProviderError::NotFound { .. })
    ));
    // Another life of it is not this one.
    a.create(&id).await.unwrap();
    gone(&second).await;
    let new = b.open(&id).await.unwrap();
    assert_eq!(head(&new).await, Head::EMPTY);
    put(&new, Head::EMPTY, 3, "new life").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_that_start_at_once_make_one_registry() {
    let world = World::new();
    let (a, b) = tokio::join!(world.provider(), world.provider());
    let (x, y) = (tenant("x"), tenant("y"));
    let (made, also) = tokio::join!(a.create(&x), b.create(&x));
    assert!(made.is_ok() != also.is_ok(), "{made:?} {also:?}");
    let lost = made.err().or(also.err()).unwrap();
    assert!(
        matches!(lost, ProviderError::AlreadyExists { .. }),
        "{lost:?}"
    );
    b.create(&y).await.unwrap();
    assert_eq!(a.list().await.unwrap(), [x.clone(), y.clone()]);
    let (gone, also) = tokio::join!(a.delete(&x), b.delete(&x));
    assert!(gone.is_ok() || also.is_ok(), "{gone:?} {also:?}");
    for outcome in [gone, also] {
        assert!(
            matches!(outcome, Ok(()) | Err(ProviderError::NotFound { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(b.list().await.unwrap(), [y]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_notification_arrives_it_is_polled() {
    let world = World::new();
    let direct = world.provider().await;
    let (proxy, url) = Proxy::start(&world.place.url).await;
    proxy.drop_answers_with(hints::channel(installation('a')).as_bytes());
    let deaf = world.provider_at(&url).await;
    let plain = fresh(&direct, "polled").await;
    let store = deaf.open(&tenant("polled")).await.unwrap();
    let mut at = Head::EMPTY;
    for n in 0..5 {
        at = put(&plain, at, n, "x").await;
        let woken = async {
            // The first one may be that of the start.
            store.changed().await;
            store.changed().await;
        };
        tokio::time::timeout(Duration::from_secs(20), woken)
            .await
            .unwrap();
        assert_eq!(head(&store).await, at);
    }
}

/// An older version left metadata without a table of wake times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_without_wake_times_gets_them() {
    let world = World::new();
    drop(world.provider().await);
    let metadata = &world.place.metadata;
    world
        .place
        .run(&format!("DROP TABLE {metadata}.wakes"))
        .await;
    let (a, b) = tokio::join!(world.provider(), world.provider());
    let wakes = a.wakes().unwrap();
    wakes.lower(&tenant("t"), 5).await.unwrap();
    let due = b.wakes().unwrap().due(5, 9).await.unwrap();
    assert_eq!(due, [wakes.get(&tenant("t")).await.unwrap().unwrap()]);
}
