//! Servers that die in the middle of creating or deleting a tenant.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_is_cut_short_left_nothing_or_all() {
    let world = World::new();
    let id = tenant("born");
    for step in ["begun", "registered", "made", "filled", "created"] {
        let dying = world.provider().await;
        dying
            .shared
            .steps
            .crash_at(step, dying.create_marked(&id, b"mark"))
            .await;
        let whole = step == "created";
        let next = world.provider().await;
        // The dead server's session ends a moment later, and the creation waits for it.
        if whole {
            assert_eq!(next.list().await.unwrap(), std::slice::from_ref(&id));
            let again = next.create(&id).await;
            assert!(
                matches!(again, Err(ProviderError::AlreadyExists { .. })),
                "{again:?}"
            );
        } else {
            next.create_marked(&id, b"mark").await.unwrap();
        }
        let store = next.open(&id).await.unwrap();
        assert_eq!(head(&store).await, Head::EMPTY, "{step}");
        let mut snapshot = store.snapshot().await.unwrap();
        let mark = snapshot.get_many(Keyspace::Meta, &[b"mark"]).await.unwrap();
        assert_eq!(mark[0].as_deref(), Some(&b"{}"[..]));
        drop(snapshot);
        store.close().await.unwrap();
        next.delete(&id).await.unwrap();
        assert_eq!(next.unregistered().await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_cut_short_is_finished_by_the_next_start() {
    let world = World::new();
    let id = tenant("dying");
    for step in ["marked", "locked", "dropped", "forgotten", "deleted"] {
        let dying = world.provider().await;
        dying.create(&id).await.unwrap();
        dying.shared.steps.crash_at(step, dying.delete(&id)).await;
        let next = world.provider().await;
        assert_eq!(next.list().await.unwrap(), [], "{step}");
        assert!(!next.contains(&id).await.unwrap());
        let schemas = format!(
            "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, '{}')",
            world.place.prefix
        );
        assert!(world.place.ask(&schemas).await.is_empty(), "{step}");
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
    let other = world.provider().await;
    for step in ["marked", "locked", "dropped"] {
        let dying = world.provider().await;
        dying.create(&id).await.unwrap();
        let store = dying.open(&id).await.unwrap();
        put(&store, Head::EMPTY, 1, "old").await;
        dying.shared.steps.crash_at(step, dying.delete(&id)).await;
        drop(dying);
        // A deletion, or a creation.
        other.delete(&id).await.unwrap();
        let dying = world.provider().await;
        dying.create(&id).await.unwrap();
        dying.shared.steps.crash_at(step, dying.delete(&id)).await;
        other.create(&id).await.unwrap();
        let store = other.open(&id).await.unwrap();
        assert_eq!(head(&store).await, Head::EMPTY, "{step}");
        other.delete(&id).await.unwrap();
    }
}
