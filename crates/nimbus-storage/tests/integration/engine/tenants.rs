//! Many tenants on one engine: which are open, what deleting and closing wait for, and that ids
//! which look alike share nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nimbus_storage::core::{DocumentId, Object, TableName, TenantId};
use nimbus_storage::{EngineOptions, Query, StoreError, StoreResult, Tenant};

use super::support::*;

const TABLE: &str = "d";

fn table() -> TableName {
    name(TABLE)
}

fn n(value: f64) -> Object {
    object([("n", num(value))])
}

fn open_at_most(tenants: usize) -> Settings {
    let mut options = EngineOptions::default();
    options.max_open_tenants = tenants;
    Settings {
        options,
        ..Settings::default()
    }
}

async fn count(tenant: &Tenant) -> usize {
    tenant.query(&Query::table(table())).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_tenants_share_two_places() {
    let world = World::with(open_at_most(2)).await;
    let ids: Vec<TenantId> = (0..10).map(|i| name(&format!("t{i}"))).collect();
    for id in &ids {
        world.engine().create_tenant(id).await.unwrap();
    }
    let written: Arc<Vec<AtomicU64>> = Arc::new(ids.iter().map(|_| AtomicU64::new(0)).collect());
    let users: Vec<_> = (0..6)
        .map(|seed| {
            let (engine, ids, written) = (world.engine().clone(), ids.clone(), written.clone());
            tokio::spawn(async move {
                let mut random = Random::new(seed);
                for i in 0..50 {
                    let at = random.below(ids.len());
                    let tenant = engine.tenant(&ids[at]).await.unwrap();
                    // Another use of it may come later: it must not be closed meanwhile.
                    for _ in 0..1 + random.below(3) {
                        tenant.insert(&table(), n(f64::from(i))).await.unwrap();
                        written[at].fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    for user in users {
        soon("a user", user).await.unwrap();
    }
    for (id, written) in ids.iter().zip(written.iter()) {
        let tenant = world.engine().tenant(id).await.unwrap();
        assert_eq!(
            count(&tenant).await as u64,
            written.load(Ordering::SeqCst),
            "{id}"
        );
        assert_consistent(&tenant).await;
    }
    let metrics = world.engine().metrics();
    assert!(metrics.tenants_closed > 10, "{metrics:?}");
    assert!(
        metrics.open_tenants <= 3,
        "two, and the one in hand: {metrics:?}"
    );
    assert_eq!(
        metrics.tenants_opened - metrics.tenants_closed,
        metrics.open_tenants
    );
}

#[tokio::test]
async fn whatever_is_in_use_stays_open() {
    let world = World::with(open_at_most(2)).await;
    let mut handles = Vec::new();
    for i in 0..4 {
        let tenant = world.create(&format!("t{i}")).await;
        tenant.insert(&table(), n(1.0)).await.unwrap();
        handles.push(tenant);
    }
    assert_eq!(
        world.engine().metrics().open_tenants,
        4,
        "over the budget, but in use"
    );
    for tenant in &handles {
        tenant.insert(&table(), n(2.0)).await.unwrap();
    }
    // A subscription and a clone are uses as well.
    let mut live = handles[0].subscribe(Query::table(table())).await.unwrap();
    soon("a result", live.next()).await.unwrap();
    let clone = handles[1].clone();
    handles.clear();
    let fifth = world.create("t4").await;
    assert_eq!(
        world.engine().metrics().open_tenants,
        3,
        "two in use and the new one"
    );
    clone.insert(&table(), n(3.0)).await.unwrap();
    world
        .tenant("t0")
        .await
        .insert(&table(), n(3.0))
        .await
        .unwrap();
    soon("a result", live.next()).await.unwrap();
    drop((live, clone, fifth));
    for i in 0..5 {
        world.tenant(&format!("t{i}")).await;
    }
    assert!(world.engine().metrics().open_tenants <= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_deleted_while_it_is_used() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    tenant.insert(&table(), n(0.0)).await.unwrap();
    let users: Vec<_> = (0..6)
        .map(|i| {
            let tenant = tenant.clone();
            tokio::spawn(async move {
                for round in 0..10_000 {
                    let wrote = tenant.insert(&table(), n(f64::from(round))).await;
                    let read = tenant.query(&Query::table(table())).await;
                    if let Some(error) = wrote.err().or(read.err()) {
                        assert!(matches!(error, StoreError::Closed), "user {i}: {error}");
                        return;
                    }
                }
                panic!("the tenant was never deleted");
            })
        })
        .collect();
    until("they are at work", || async {
        tenant.metrics().mutation_journal.commit_count > 20
    })
    .await;
    world.engine().delete_tenant(&name("t")).await.unwrap();
    for user in users {
        soon("a user", user).await.unwrap();
    }
    let gone = world.engine().tenant(&name("t")).await.map(drop);
    assert!(
        matches!(gone, Err(StoreError::TenantNotFound { .. })),
        "{gone:?}"
    );
    let again = world.engine().delete_tenant(&name("t")).await;
    assert!(
        matches!(again, Err(StoreError::TenantNotFound { .. })),
        "{again:?}"
    );
    // A new one of that name is empty, and the old handle does not reach it.
    let fresh = world.create("t").await;
    assert_eq!(count(&fresh).await, 0);
    assert!(fresh.journal(0, 10).await.unwrap().records.is_empty());
    let stale = tenant.insert(&table(), n(1.0)).await;
    assert!(matches!(stale, Err(StoreError::Closed)), "{stale:?}");
    assert_eq!(count(&fresh).await, 0);
    fresh.insert(&table(), n(1.0)).await.unwrap();
    assert_consistent(&fresh).await;
}

fn spawn_insert(tenant: &Tenant, value: f64) -> tokio::task::JoinHandle<StoreResult<DocumentId>> {
    let tenant = tenant.clone();
    tokio::spawn(async move { tenant.insert(&table(), n(value)).await })
}

#[tokio::test]
async fn closing_finishes_what_was_accepted_and_refuses_the_rest() {
    let mut world = World::new().await;
    let tenant = world.create("t").await;
    let id = tenant.insert(&table(), n(0.0)).await.unwrap().to_string();
    let gate = world.hooks.hold_commits();
    let flying = spawn_insert(&tenant, 1.0);
    gate.arrival().await;
    let waiting = spawn_insert(&tenant, 2.0);
    until("it is accepted", || async {
        tenant.metrics().mutation_journal.apply_lag == 2
    })
    .await;
    let closing = {
        let engine = world.engine().clone();
        tokio::spawn(async move { engine.close().await })
    };
    until("new work is refused", || async {
        !tenant.metrics().mutation_journal.worker_running
    })
    .await;
    let late = tenant.insert(&table(), n(3.0)).await;
    assert!(matches!(late, Err(StoreError::Closed)), "{late:?}");
    assert!(!closing.is_finished() && !flying.is_finished());
    gate.open();
    soon("a commit", flying).await.unwrap().unwrap();
    soon("a commit", waiting).await.unwrap().unwrap();
    soon("the end", closing).await.unwrap().unwrap();
    let refused: Vec<StoreResult<()>> = vec![
        tenant.insert(&table(), n(4.0)).await.map(drop),
        tenant.get(&table(), &id).await.map(drop),
        tenant.query(&Query::table(table())).await.map(drop),
        tenant.begin().await.map(drop),
        tenant.subscribe(Query::table(table())).await.map(drop),
        tenant.journal(0, 1).await.map(drop),
        tenant.put_schema(schema(TABLE, &[], &[])).await,
        world.engine().tenant(&name("t")).await.map(drop),
        world.engine().create_tenant(&name("u")).await,
        world.engine().delete_tenant(&name("t")).await,
    ];
    for (i, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(StoreError::Closed)), "{i}: {result:?}");
    }
    world.hooks.clear();
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    assert_eq!(count(&tenant).await, 3);
    assert_consistent(&tenant).await;
}

/// A tenant that is being opened when the engine closes must not stay open behind it.
#[tokio::test]
async fn closing_catches_a_tenant_that_is_being_opened() {
    let world = World::new().await;
    world.engine().create_tenant(&name("t")).await.unwrap();
    let gate = Gate::shut();
    let held = gate.clone();
    world.hooks.on_open(move |_| {
        let gate = held.clone();
        async move { gate.pass().await }
    });
    let opening = {
        let engine = world.engine().clone();
        tokio::spawn(async move { engine.tenant(&name("t")).await.map(drop) })
    };
    gate.arrival().await;
    let closing = {
        let engine = world.engine().clone();
        tokio::spawn(async move { engine.close().await })
    };
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    gate.open();
    soon("the end", closing).await.unwrap().unwrap();
    let opened = soon("the opening", opening).await.unwrap();
    assert!(matches!(opened, Err(StoreError::Closed)), "{opened:?}");
    assert_eq!(world.engine().metrics().open_tenants, 0);
}

/// Opening the tenant `warm` puts out another, without users, whose last commit is at the gate.
async fn eviction_under_way(world: &World) -> (Arc<Gate>, tokio::task::JoinHandle<()>) {
    let tenant = world.create("old").await;
    tenant.insert(&table(), n(0.0)).await.unwrap();
    let gate = world.hooks.hold_commits();
    let flying = spawn_insert(&tenant, 1.0);
    gate.arrival().await;
    // The caller goes away, the commit stays.
    flying.abort();
    assert!(flying.await.unwrap_err().is_cancelled());
    drop(tenant);
    let opened = world.engine().metrics().tenants_opened;
    let engine = world.engine().clone();
    let opening = tokio::spawn(async move {
        // Closing may come first.
        drop(engine.tenant(&name("warm")).await);
    });
    until("the old one is put out", || async {
        let now = world.engine().metrics();
        now.tenants_opened > opened && now.open_tenants == 1
    })
    .await;
    (gate, opening)
}

#[tokio::test]
async fn closing_waits_for_an_eviction_under_way() {
    let mut world = World::with(open_at_most(1)).await;
    // Opening a tenant for the first time is a commit; do that before commits are held.
    world.create("warm").await;
    let (gate, opening) = eviction_under_way(&world).await;
    let closing = {
        let engine = world.engine().clone();
        tokio::spawn(async move { engine.close().await })
    };
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(
        !closing.is_finished(),
        "a commit was accepted and is not durable"
    );
    gate.open();
    soon("the end", closing).await.unwrap().unwrap();
    soon("the opening", opening).await.unwrap();
    world.hooks.clear();
    world.reopen().await;
    assert_eq!(count(&world.tenant("old").await).await, 2);
}

/// The one who caused an eviction goes away in the middle of it (a client that disconnects): the
/// tenant is still closed properly before anyone opens it again.
#[tokio::test]
async fn an_eviction_outlives_the_caller_that_caused_it() {
    let world = World::with(open_at_most(1)).await;
    world.create("warm").await;
    let (gate, opening) = eviction_under_way(&world).await;
    opening.abort();
    let _ = opening.await;
    let opened = Arc::new(AtomicBool::new(false));
    let noted = opened.clone();
    world.hooks.on_open(move |_| {
        noted.store(true, Ordering::SeqCst);
        async {}
    });
    let reopening = {
        let engine = world.engine().clone();
        tokio::spawn(async move {
            let tenant = engine.tenant(&name("old")).await?;
            tenant.insert(&table(), n(2.0)).await?;
            Ok::<_, StoreError>(tenant)
        })
    };
    // Nothing announces that something does not happen.
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let opened = opened.load(Ordering::SeqCst);
        assert!(!opened, "opened again while it is being closed");
    }
    gate.open();
    let tenant = soon("the tenant", reopening).await.unwrap().unwrap();
    assert_eq!(count(&tenant).await, 3);
    assert_consistent(&tenant).await;
}

/// As above, for a deletion: it is finished, or the tenant is there and whole.
#[tokio::test]
async fn a_deletion_outlives_its_caller() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    tenant.insert(&table(), n(0.0)).await.unwrap();
    let gate = world.hooks.hold_commits();
    let flying = spawn_insert(&tenant, 1.0);
    gate.arrival().await;
    let deleting = {
        let engine = world.engine().clone();
        tokio::spawn(async move { engine.delete_tenant(&name("t")).await })
    };
    until("the tenant refuses work", || async {
        !tenant.metrics().mutation_journal.worker_running
    })
    .await;
    deleting.abort();
    let _ = deleting.await;
    gate.open();
    soon("the commit", flying).await.unwrap().unwrap();
    until("the tenant is gone or whole", || async {
        match world.engine().tenant(&name("t")).await {
            Err(StoreError::TenantNotFound { .. }) => true,
            Err(_) => false,
            Ok(tenant) => {
                assert_eq!(count(&tenant).await, 2);
                tenant.insert(&table(), n(2.0)).await.unwrap();
                true
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_transaction_commits_on_its_own_tenant_only() {
    let world = World::with(open_at_most(1)).await;
    let (a, b) = (world.create("a").await, world.create("b").await);
    let (first, _) = (
        a.insert(&table(), n(1.0)).await.unwrap(),
        b.insert(&table(), n(1.0)).await,
    );
    let mut tx = a.begin().await.unwrap();
    tx.insert(&table(), n(2.0)).await.unwrap();
    tx.patch(&table(), first, n(3.0)).await.unwrap();
    let strayed = b.commit(tx).await;
    assert!(
        matches!(strayed, Err(StoreError::InvalidInput { .. })),
        "{strayed:?}"
    );
    assert_eq!((count(&a).await, count(&b).await), (1, 1));

    // An open transaction is a use of its tenant, which is not put out.
    let mut tx = a.begin().await.unwrap();
    tx.insert(&table(), n(4.0)).await.unwrap();
    drop((a, b));
    world.create("c").await;
    world.tenant("b").await;
    let a = world.tenant("a").await;
    a.commit(tx).await.unwrap();
    assert_eq!(count(&a).await, 2);
}

/// What a transaction read is not validated against commits that the engine has forgotten.
#[tokio::test]
async fn a_transaction_does_not_outlive_the_opening_it_began_in() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let id = tenant.insert(&table(), n(1.0)).await.unwrap();
    let mut tx = tenant.begin().await.unwrap();
    tx.patch(&table(), id, n(2.0)).await.unwrap();
    world
        .hooks
        .on_commit(|_| async { Verdict::LandThen(unknown()) });
    let lost = tenant.patch(&table(), &id.to_string(), n(3.0)).await;
    assert!(
        matches!(lost, Err(StoreError::OutcomeUnknown { .. })),
        "{lost:?}"
    );
    world.hooks.clear();
    let again = world.tenant("t").await;
    let late = again.commit(tx).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
    let found = again.get(&table(), &id.to_string()).await.unwrap();
    assert_eq!(found.fields().unwrap()["n"], num(3.0));
}

fn files_of(world: &World, tenant: &str) -> Vec<String> {
    let entries = std::fs::read_dir(world.dir.path()).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names
        .filter(|file| file.starts_with(&format!("{tenant}.")))
        .collect()
}

#[tokio::test]
async fn ids_that_look_alike_share_nothing_and_leave_nothing() {
    let mut world = World::new().await;
    let long = "x".repeat(128);
    let ids = ["a-b", "a_b", "A-B", long.as_str()];
    let mut documents: Vec<DocumentId> = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let tenant = world.create(id).await;
        let indexed = schema(TABLE, &["n"], &[("by_n", &["n"])]);
        tenant.put_schema(indexed).await.unwrap();
        for k in 0..=i {
            let row = n((10 * i + k) as f64);
            documents.push(tenant.insert(&table(), row).await.unwrap());
        }
    }
    for round in 0..2 {
        for (i, id) in ids.iter().enumerate() {
            let tenant = world.tenant(id).await;
            let found = tenant.query(&Query::table(table())).await.unwrap();
            let numbers: Vec<_> = found
                .iter()
                .map(|d| d.fields().unwrap()["n"].clone())
                .collect();
            let expected: Vec<_> = (0..=i).map(|k| num((10 * i + k) as f64)).collect();
            assert_eq!(numbers, expected, "{id} round {round}");
            let own: Vec<_> = found.iter().map(|d| d.id).collect();
            for other in documents.iter().filter(|d| !own.contains(d)) {
                let stray = tenant.get(&table(), &other.to_string()).await;
                assert!(
                    matches!(stray, Err(StoreError::DocumentNotFound { .. })),
                    "{stray:?}"
                );
            }
            assert_consistent(&tenant).await;
        }
        world.reopen().await;
    }
    for (i, id) in ids.iter().enumerate() {
        assert!(!files_of(&world, id).is_empty());
        world
            .tenant(id)
            .await
            .insert(&table(), n(0.0))
            .await
            .unwrap();
        world.engine().delete_tenant(&name(id)).await.unwrap();
        assert!(
            files_of(&world, id).is_empty(),
            "{:?}",
            files_of(&world, id)
        );
        for (j, other) in ids.iter().enumerate().skip(i + 1) {
            assert_eq!(
                count(&world.tenant(other).await).await,
                j + 1,
                "{other} after {id}"
            );
        }
    }
    assert!(world.engine().list_tenants().await.unwrap().is_empty());
    let left = std::fs::read_dir(world.dir.path()).unwrap();
    let left: Vec<_> = left.map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "only the control database: {left:?}");
}
