//! Servers that die in the middle of creating or deleting a tenant.

use super::*;

const CREATING: [&str; 7] = [
    "registered",
    "database",
    "meta",
    "docs",
    "files",
    "filled",
    "created",
];
const DELETING: [&str; 4] = ["marked", "dropped", "forgotten", "deleted"];

async fn has_its_mark(store: &Arc<dyn TenantStore>) -> bool {
    let mut snapshot = store.snapshot().await.unwrap();
    let mark = snapshot.get_many(Keyspace::Meta, &[b"mark"]).await.unwrap();
    mark[0].as_deref() == Some(&b"{}"[..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_is_cut_short_is_undone_by_the_next_start() {
    let world = World::new();
    let id = tenant("born");
    for step in CREATING {
        let dying = world.provider().await;
        dying
            .shared
            .steps
            .crash_at(step, dying.create_marked(&id, b"mark"))
            .await;
        let whole = step == "created";
        let next = world.provider().await;
        if whole {
            let again = next.create(&id).await;
            assert!(
                matches!(again, Err(ProviderError::AlreadyExists { .. })),
                "{again:?}"
            );
            assert_eq!(next.list().await.unwrap(), std::slice::from_ref(&id));
        } else {
            assert_eq!(next.list().await.unwrap(), [], "{step}");
            assert_eq!(
                world.place.databases().await,
                Vec::<String>::new(),
                "{step}"
            );
            assert!(matches!(
                next.open(&id).await,
                Err(ProviderError::NotFound { .. })
            ));
            next.create_marked(&id, b"mark").await.unwrap();
        }
        let store = next.open(&id).await.unwrap();
        assert_eq!(head(&store).await, Head::EMPTY, "{step}");
        assert!(has_its_mark(&store).await, "{step}");
        store.close().await.unwrap();
        next.delete(&id).await.unwrap();
        assert_eq!(next.unregistered().await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_is_cut_short_is_undone_by_whoever_comes_next() {
    let world = World::new();
    let id = tenant("born");
    let (dying, other) = (world.provider().await, world.provider().await);
    for step in &CREATING[..6] {
        dying.shared.steps.crash_at(step, dying.create(&id)).await;
        assert!(!other.contains(&id).await.unwrap(), "{step}");
        // A creation, or a deletion, which finds nothing that was ever there.
        other.create_marked(&id, b"mark").await.unwrap();
        let store = other.open(&id).await.unwrap();
        assert!(has_its_mark(&store).await, "{step}");
        store.close().await.unwrap();
        other.delete(&id).await.unwrap();
        dying.shared.steps.crash_at(step, dying.create(&id)).await;
        let deleted = other.delete(&id).await;
        assert!(
            matches!(deleted, Err(ProviderError::NotFound { .. })),
            "{step}: {deleted:?}"
        );
        assert_eq!(
            world.place.databases().await,
            Vec::<String>::new(),
            "{step}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_goes_on_is_not_disturbed() {
    let mut world = World::new();
    world.timing.turn_idle = Duration::from_secs(120);
    let id = tenant("slow");
    let slow = Arc::new(world.provider().await);
    slow.shared.steps.stop_at(Some("docs"));
    let creation = tokio::spawn({
        let (slow, id) = (slow.clone(), id.clone());
        async move { slow.create(&id).await }
    });
    slow.shared.steps.stopped().await;
    // A start gives it some seconds and then leaves it alone.
    let other = world.provider().await;
    assert_eq!(world.place.databases().await.len(), 1);
    assert_eq!(other.list().await.unwrap(), []);
    // Its server dies.
    creation.abort();
    let _ = creation.await;
    other.create(&id).await.unwrap();
    assert_eq!(other.list().await.unwrap(), [id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_cut_short_is_finished_by_the_next_start() {
    let world = World::new();
    let id = tenant("dying");
    for step in DELETING {
        let dying = world.provider().await;
        dying.create(&id).await.unwrap();
        dying.shared.steps.crash_at(step, dying.delete(&id)).await;
        let next = world.provider().await;
        assert_eq!(next.list().await.unwrap(), [], "{step}");
        assert!(!next.contains(&id).await.unwrap());
        assert_eq!(
            world.place.databases().await,
            Vec::<String>::new(),
            "{step}"
        );
        assert!(matches!(
            next.open(&id).await,
            Err(ProviderError::NotFound { .. })
        ));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_cut_short_is_finished_by_whoever_comes_next() {
    let world = World::new();
    let id = tenant("dying");
    let (dying, other) = (world.provider().await, world.provider().await);
    for step in &DELETING[..2] {
        dying.create(&id).await.unwrap();
        let store = dying.open(&id).await.unwrap();
        put(&store, Head::EMPTY, 1, "old").await;
        dying.shared.steps.crash_at(step, dying.delete(&id)).await;
        other.delete(&id).await.unwrap();
        dying.create(&id).await.unwrap();
        dying.shared.steps.crash_at(step, dying.delete(&id)).await;
        other.create(&id).await.unwrap();
        let store = other.open(&id).await.unwrap();
        assert_eq!(head(&store).await, Head::EMPTY, "{step}");
        other.delete(&id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_a_creation_leaves_the_data_of_others_alone() {
    let world = World::new();
    let id = tenant("mine");
    let dying = world.provider().await;
    dying
        .shared
        .steps
        .crash_at("registered", dying.create(&id))
        .await;
    let name = database(&dying, "mine");
    world
        .place
        .run(&format!(
            "CREATE DATABASE `{name}`; CREATE TABLE `{name}`.`meta` (`key` VARBINARY(9), `value` BLOB); \
             INSERT INTO `{name}`.`meta` VALUES ('k', 'v')"
        ))
        .await;
    let next = world.provider().await;
    let kept = format!("SELECT `value` FROM `{name}`.`meta`");
    assert_eq!(world.place.ask(&kept).await, ["v"]);
    let refused = next.create(&id).await;
    assert!(
        matches!(&refused, Err(ProviderError::Unregistered { path, .. }) if path.contains(&name)),
        "{refused:?}"
    );
    assert_eq!(world.place.ask(&kept).await, ["v"]);
}
