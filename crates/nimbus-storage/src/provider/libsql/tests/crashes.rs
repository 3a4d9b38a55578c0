//! Servers that die in the middle of creating or deleting a tenant, or of making a replica.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_is_cut_short_left_nothing_or_all() {
    let world = World::new();
    let id = tenant("born");
    for step in ["named", "entered", "namespace", "filled", "created"] {
        let dying = world.provider("a").await;
        crash_at(&dying, step, dying.create_marked(&id, b"mark")).await;
        drop(dying);
        let next = world.provider("a").await;
        if step == "created" {
            assert_eq!(next.list().await.unwrap(), std::slice::from_ref(&id));
            let again = next.create(&id).await;
            assert!(
                matches!(again, Err(ProviderError::AlreadyExists { .. })),
                "{again:?}"
            );
        } else {
            assert_eq!(next.list().await.unwrap(), [], "{step}");
            next.create_marked(&id, b"mark").await.unwrap();
        }
        assert_eq!(world.namespaces().len(), 1, "{step}");
        let store = next.open(&id).await.unwrap();
        assert_eq!(head(&store).await, Head::EMPTY, "{step}");
        let mut snapshot = store.snapshot().await.unwrap();
        let mark = snapshot.get_many(Keyspace::Meta, &[b"mark"]).await.unwrap();
        assert_eq!(mark[0].as_deref(), Some(&b"{}"[..]));
        drop(snapshot);
        store.close().await.unwrap();
        drop(store);
        next.delete(&id).await.unwrap();
        assert_eq!(world.namespaces(), Vec::<String>::new(), "{step}");
        assert_eq!(world.cached("a"), Vec::<PathBuf>::new(), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_cut_short_is_finished_by_the_next_start() {
    let world = World::new();
    let id = tenant("dying");
    for step in ["marked", "dropped", "cache removed", "forgotten"] {
        let dying = world.provider("a").await;
        let store = fresh(&dying, "dying").await;
        put(&store, Head::EMPTY, 1, "old").await;
        store.close().await.unwrap();
        drop(store);
        crash_at(&dying, step, dying.delete(&id)).await;
        drop(dying);
        let next = world.provider("a").await;
        assert_eq!(next.list().await.unwrap(), [], "{step}");
        assert!(!next.contains(&id).await.unwrap());
        assert_eq!(world.namespaces(), Vec::<String>::new(), "{step}");
        assert_eq!(world.cached("a"), Vec::<PathBuf>::new(), "{step}");
        let opened = next.open(&id).await.err().unwrap();
        assert!(
            matches!(opened, ProviderError::NotFound { .. }),
            "{opened:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_cut_short_is_finished_by_whoever_comes_next() {
    let world = World::new();
    let id = tenant("dying");
    let other = world.provider("b").await;
    for step in ["marked", "dropped", "cache removed"] {
        let dying = world.provider("a").await;
        dying.create(&id).await.unwrap();
        crash_at(&dying, step, dying.delete(&id)).await;
        drop(dying);
        // A deletion, or a creation.
        other.delete(&id).await.unwrap();
        let dying = world.provider("a").await;
        dying.create(&id).await.unwrap();
        crash_at(&dying, step, dying.delete(&id)).await;
        other.create(&id).await.unwrap();
        let store = other.open(&id).await.unwrap();
        assert_eq!(head(&store).await, Head::EMPTY, "{step}");
        store.close().await.unwrap();
        other.delete(&id).await.unwrap();
        assert_eq!(world.namespaces(), Vec::<String>::new(), "{step}");
    }
}

/// A server that slept through its own creation of a tenant, which another took for dead, takes nothing away from the
/// tenant that was created since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_comes_late_undoes_itself_alone() {
    let world = World::new();
    let id = tenant("late");
    for step in ["entered", "namespace", "filled"] {
        let (slow, other) = (world.provider("a").await, world.provider("b").await);
        *slow.shared.stop_at.lock().unwrap() = Some(step);
        let slow = Arc::new(slow);
        let late = {
            let (slow, id) = (slow.clone(), id.clone());
            tokio::spawn(async move {
                tokio::select! {
                    done = slow.create(&id) => done,
                    () = slow.shared.stopped.notified() => Err(ProviderError::Closed),
                }
            })
        };
        // Its requests so far are all that it does.
        assert!(late.await.unwrap().is_err(), "{step}");
        tokio::time::sleep(world.timing.stale_creation * 2).await;
        let store = fresh(&other, "late").await;
        put(&store, Head::EMPTY, 1, "new").await;
        assert_eq!(get(&store, b"k").await.as_deref(), Some("new"));
        store.close().await.unwrap();
        assert_eq!(
            world.namespaces().len(),
            1,
            "{step}: what the dead one made"
        );
        other.delete(&id).await.unwrap();
    }
}

/// Where making a replica can end: it is made when the tenant is opened next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_not_finished_is_made_anew() {
    let mut world = World::new();
    for encrypted in [false, true] {
        world.keyring = encrypted.then(super::rebuilt::keyring);
        let (server, id) = match encrypted {
            true => ("sealed", "t2"),
            false => ("plain", "t1"),
        };
        let writer = world.provider("writer").await;
        let store = fresh(&writer, id).await;
        let mut at = Head::EMPTY;
        for n in 0..5 {
            at = put(&store, at, n, &format!("value {n}")).await;
        }
        for step in [
            "begun",
            "copied",
            "completed",
            "built",
            "old one closed",
            "replaced",
        ] {
            let dying = world.provider(server).await;
            crash_at(&dying, step, async {
                dying.open(&tenant(id)).await.map(drop)
            })
            .await;
            drop(dying);
            at = put(&store, at, 9, &format!("after {step}")).await;
            let replica = world.dir.path().join(server).join(id);
            soon("the end of the dead server's threads", async || {
                !is_open(&replica)
            })
            .await;
            let next = world.provider(server).await;
            let reader = reopened(&next, id).await;
            assert_eq!(head(&reader).await, at, "{step}");
            assert_eq!(get(&reader, b"k").await, Some(format!("after {step}")));
            let made_anew = u64::from(step != "replaced");
            assert_eq!(refreshes(&reader).0, made_anew, "{step}");
            reader.close().await.unwrap();
            let made = world.replica(server, id);
            std::fs::remove_file(made).unwrap();
        }
        store.close().await.unwrap();
    }
}

/// Where taking in changes can end: the replica goes on from where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_goes_on_from_where_it_was() {
    let world = World::new();
    let writer = world.provider("writer").await;
    let store = fresh(&writer, "t").await;
    let mut at = put(&store, Head::EMPTY, 1, "first").await;
    for step in ["fetched", "applied"] {
        let dying = world.provider("a").await;
        let reader = reopened(&dying, "t").await;
        assert_eq!(head(&reader).await, at);
        at = put(&store, at, 2, step).await;
        crash_at(&dying, step, async { reader.snapshot().await.map(drop) }).await;
        drop((reader, dying));
        let replica = world.replica("a", "t");
        soon("the end of the dead server's threads", async || {
            !is_open(&replica)
        })
        .await;
        let next = world.provider("a").await;
        let reader = reopened(&next, "t").await;
        assert_eq!(get(&reader, b"k").await.as_deref(), Some(step));
        assert_eq!(refreshes(&reader).0, 0, "{step}: it was not made anew");
        reader.close().await.unwrap();
    }
    store.close().await.unwrap();
}
