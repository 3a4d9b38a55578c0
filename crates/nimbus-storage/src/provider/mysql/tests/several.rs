//! Several servers on one database.

use super::*;

/// Two servers with a tenant open in both.
async fn pair(world: &World) -> ([MysqlProvider; 2], [Arc<dyn TenantStore>; 2]) {
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
    let at = put(&b, at, 3, "b's").await;
    assert_eq!(get(&a, b"k").await.as_deref(), Some("b's"));
    // The same with a batch that takes several packets.
    let long = batch(next(Head::EMPTY, 4), b"k", vec![b'x'; 300_000]);
    let refused = b.commit(Head::EMPTY, long).await;
    assert!(
        matches!(refused, Err(CommitError::HeadMoved { actual }) if actual == at),
        "{refused:?}"
    );
    put(&a, at, 5, "goes on").await;
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
                let counted = batch(new, b"n", (count + 1).to_string());
                turn.commit(counted).await.unwrap();
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
    world.timing.lock = Duration::from_secs(1);
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
    put(&b, new, 2, "free").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_reads_what_was_committed_while_it_waited() {
    let world = World::new();
    let (_providers, [a, b]) = pair(&world).await;
    let turn = a.turn().await.unwrap();
    let waiting = tokio::spawn({
        let b = b.clone();
        async move {
            let mut turn = b.turn().await.unwrap();
            let rows = turn.get_many(Keyspace::Docs, &[b"k"]).await.unwrap();
            (turn.head().await.unwrap(), rows[0].clone())
        }
    });
    let new = next(Head::EMPTY, 1);
    turn.commit(batch(new, b"k", "first")).await.unwrap();
    let (head, row) = waiting.await.unwrap();
    assert_eq!((head, row.as_deref()), (new, Some(&b"first"[..])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stopped_loses_its_turn() {
    let mut world = World::new();
    world.timing.turn_idle = Duration::from_secs(1);
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
    for n in 0..10 {
        at = put(&a, at, n, "x").await;
        let woken = tokio::time::timeout(Duration::from_secs(20), b.changed());
        woken.await.unwrap();
        assert_eq!(head(&b).await, at);
    }
    // Its own are no news to it.
    for n in 10..20 {
        at = put(&b, at, n, "x").await;
    }
    let quiet = tokio::time::timeout(Duration::from_secs(1), b.changed());
    assert!(quiet.await.is_err());
    // A wait that is dropped loses none.
    at = put(&a, at, 20, "x").await;
    let mut told = false;
    for _ in 0..3 {
        // The first look may find that the poll was quicker.
        told |= tokio::time::timeout(Duration::ZERO, b.changed())
            .await
            .is_ok();
    }
    if !told {
        let woken = tokio::time::timeout(Duration::from_secs(20), b.changed());
        woken.await.unwrap();
    }
    assert_eq!(head(&b).await, at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tenant_that_is_gone_spoils_the_hints_of_no_other() {
    let world = World::new();
    let (a, b) = (world.provider().await, world.provider().await);
    let mut stores = Vec::new();
    for id in ["one", "two", "three"] {
        let first = fresh(&a, id).await;
        stores.push((first, b.open(&tenant(id)).await.unwrap()));
    }
    a.delete(&tenant("two")).await.unwrap();
    put(&stores[0].0, Head::EMPTY, 1, "x").await;
    put(&stores[2].0, Head::EMPTY, 1, "x").await;
    let all = stores.iter().map(|(_, store)| store.changed());
    let all = futures_util::future::join_all(all);
    tokio::time::timeout(Duration::from_secs(20), all)
        .await
        .unwrap();
    let read = stores[1].1.snapshot().await.err().unwrap();
    assert!(matches!(read, ProviderError::NotFound { .. }), "{read:?}");
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
    assert!(gone.is_ok() != also.is_ok(), "{gone:?} {also:?}");
    for outcome in [gone, also] {
        assert!(
            matches!(outcome, Ok(()) | Err(ProviderError::NotFound { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(b.list().await.unwrap(), [y]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_servers_recover_at_once() {
    let world = World::new();
    let first = world.provider().await;
    let metadata = &world.place.metadata;
    for n in 0..6 {
        let id = format!("t{n}");
        drop(fresh(&first, &id).await);
    }
    let interrupted = format!(
        "UPDATE `{metadata}`.tenants SET state = IF(tenant_id < 't3', 'deleting', 'creating')"
    );
    world.place.run(&interrupted).await;
    let starts = (0..3).map(|_| world.provider());
    let providers = futures_util::future::join_all(starts).await;
    assert_eq!(world.place.databases().await, Vec::<String>::new());
    for provider in &providers {
        assert_eq!(provider.list().await.unwrap(), []);
    }
}

/// An older version left metadata without a table of wake times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_without_wake_times_gets_them() {
    let world = World::new();
    drop(world.provider().await);
    let metadata = &world.place.metadata;
    let older = format!("DROP TABLE `{metadata}`.wakes");
    world.place.run(&older).await;
    let (a, b) = tokio::join!(world.provider(), world.provider());
    let wakes = a.wakes().unwrap();
    wakes.lower(&tenant("t"), 5).await.unwrap();
    let due = b.wakes().unwrap().due(5, 9).await.unwrap();
    assert_eq!(due, [wakes.get(&tenant("t")).await.unwrap().unwrap()]);
}
