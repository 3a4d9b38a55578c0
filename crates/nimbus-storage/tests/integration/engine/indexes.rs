//! The life of an index: declared, filled beside writers, resumed after a crash, replaced,
//! dropped; consistent at every step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nimbus_storage::core::{DocumentId, Object, TableName};
use nimbus_storage::provider::Keyspace;
use nimbus_storage::{Direction, FilterOp, IndexState, Query, StoreError, Tenant};

use super::support::*;

const TABLE: &str = "d";

fn table() -> TableName {
    name(TABLE)
}

fn row(a: f64, b: f64) -> Object {
    object([("a", num(a)), ("b", num(b))])
}

async fn fill(tenant: &Tenant, count: usize) -> Vec<DocumentId> {
    let mut ids = Vec::new();
    for start in (0..count).step_by(200) {
        let some = start..count.min(start + 200);
        let inserted = tenant
            .transact(|tx| {
                let some = some.clone();
                Box::pin(async move {
                    let mut ids = Vec::new();
                    for i in some {
                        let row = row((i % 17) as f64, (i % 5) as f64);
                        ids.push(tx.insert(&table(), row).await?);
                    }
                    Ok(ids)
                })
            })
            .await
            .unwrap();
        ids.extend(inserted);
    }
    ids
}

async fn declare(tenant: &Tenant, indexes: &[(&str, &[&str])]) {
    let declared = schema(TABLE, &["a", "b"], indexes);
    tenant.put_schema(declared).await.unwrap();
}

async fn states(tenant: &Tenant) -> Vec<(String, IndexState)> {
    let schema = tenant.table_schema(&table()).await.unwrap();
    let indexes = schema.indexes.into_iter();
    indexes
        .map(|i| (i.name.to_string(), i.state.unwrap()))
        .collect()
}

/// Rows of the index keyspace, as another program sees them.
fn stored_entries(world: &World) -> usize {
    raw_rows(&world.raw("t"), Keyspace::Index).len()
}

/// The indexes answer as the model does.
async fn assert_answers(tenant: &Tenant) {
    let model = Model::of(tenant, TABLE).await;
    for a in 0..17 {
        let filters = vec![filter("a", FilterOp::Eq, num(f64::from(a)))];
        for order in [None, Some(("b", Direction::Backward))] {
            let asked = query(TABLE, filters.clone(), order);
            let found = tenant.query(&asked).await.unwrap();
            let found: Vec<_> = found.iter().map(|d| d.id).collect();
            assert_eq!(found, model.answer(&asked), "{asked:?}");
        }
    }
}

async fn write(tenant: Tenant, ids: Vec<DocumentId>, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = Random::new(seed);
    let mut mine = ids;
    while !stop.load(Ordering::SeqCst) {
        let new = row(random.below(17) as f64, random.below(5) as f64);
        match random.below(5) {
            0 => mine.push(tenant.insert(&table(), new).await.unwrap()),
            1 if mine.len() > 20 => {
                let id = mine.swap_remove(random.below(mine.len())).to_string();
                tenant.delete(&table(), &id).await.unwrap();
            }
            _ => {
                let id = random.pick(&mine).to_string();
                tenant.patch(&table(), &id, new).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_filled_beside_writers() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let ids = fill(&tenant, 1_200).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4u64)
        .map(|w| {
            let own = ids.iter().skip(w as usize).step_by(4).copied().collect();
            tokio::spawn(write(tenant.clone(), own, w, stop.clone()))
        })
        .collect();
    declare(&tenant, &[("by_a", &["a", "b"]), ("by_b", &["b"])]).await;
    let mut before = IndexState::Backfilling;
    soon("the indexes", async {
        loop {
            let now = states(&tenant).await[0].1;
            assert!(
                now == before || now == IndexState::Enabled,
                "{before:?} then {now:?}"
            );
            before = now;
            let report = tenant.consistency().await.unwrap();
            assert!(report.ok, "{:#?}", report.mismatches);
            if states(&tenant)
                .await
                .iter()
                .all(|(_, s)| *s == IndexState::Enabled)
            {
                return;
            }
        }
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    assert_consistent(&tenant).await;
    assert_answers(&tenant).await;
    let left = Model::of(&tenant, TABLE).await.0.len();
    assert_eq!(stored_entries(&world), 2 * left);
}

/// One document that changes in every batch must not keep an index from being completed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_document_does_not_hold_up_an_index() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let hot = fill(&tenant, 300).await[150];
    let stop = Arc::new(AtomicBool::new(false));
    // Each batch takes until a change of that document waits for the next one: at no time is
    // its newest state durable.
    let watched = (tenant.clone(), stop.clone());
    world.hooks.on_commit(move |batch| {
        let (tenant, stop) = watched.clone();
        async move {
            until("the next change is accepted", || async {
                let newest = tenant.metrics().mutation_journal.applied_head;
                newest > batch.head.sequence || stop.load(Ordering::SeqCst)
            })
            .await;
            Verdict::Pass
        }
    });
    let feeder = tokio::spawn(change_often(tenant.clone(), hot, stop.clone()));
    until("the hot document changes", || async {
        tenant.metrics().mutation_journal.commit_count > 20
    })
    .await;
    declare(&tenant, &[("by_a", &["a"])]).await;
    indexes_ready(&tenant, TABLE).await;
    stop.store(true, Ordering::SeqCst);
    feeder.await.unwrap();
    until("the last change is durable", || async {
        tenant.metrics().mutation_journal.apply_lag == 0
    })
    .await;
    assert_consistent(&tenant).await;
    assert_answers(&tenant).await;
}

/// Changes a document again and again, without waiting for durability.
async fn change_often(tenant: Tenant, hot: DocumentId, stop: Arc<AtomicBool>) {
    let mut n = 0.0;
    while !stop.load(Ordering::SeqCst) {
        n += 1.0;
        let mut transaction = tenant.begin().await.unwrap();
        let patch = row(n % 17.0, 0.0);
        transaction.patch(&table(), hot, patch).await.unwrap();
        let committing = {
            let tenant = tenant.clone();
            tokio::spawn(async move { tenant.commit(transaction).await })
        };
        let before = tenant.metrics().mutation_journal.applied_head;
        until("it is accepted, or conflicts", || async {
            let now = tenant.metrics().mutation_journal;
            let accepted = now.applied_head > before || committing.is_finished();
            accepted && now.apply_lag < 4
        })
        .await;
    }
}

/// Commits that write index entries only (a step of filling or clearing) wait at the gate.
fn hold_steps(world: &World) -> Arc<Gate> {
    let gate = Gate::shut();
    let held = gate.clone();
    world.hooks.on_commit(move |batch| {
        let gate = held.clone();
        async move {
            if batch
                .writes
                .keys()
                .all(|(space, _)| *space == Keyspace::Index)
            {
                gate.pass().await;
            }
            Verdict::Pass
        }
    });
    gate
}

/// The process dies while an index is half filled: no runtime, no close.
#[test]
fn filling_resumes_after_a_crash() {
    let dir = Arc::new(Site::new());
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().unwrap()
    };
    let dying = runtime();
    dying.block_on(async {
        let world = World::at(dir.clone(), Settings::default()).await;
        let tenant = world.create("t").await;
        let ids = fill(&tenant, 700).await;
        let gate = hold_steps(&world);
        declare(&tenant, &[("by_a", &["a", "b"])]).await;
        gate.arrival().await;
        gate.let_one();
        gate.arrival().await;
        assert_eq!(states(&tenant).await[0].1, IndexState::Backfilling);
        assert_eq!(stored_entries(&world), 256, "one step is in");
        drop(ids);
    });
    dying.shutdown_timeout(Duration::from_secs(10));
    runtime().block_on(async {
        let mut world = World::at(dir, Settings::default()).await;
        let gate = hold_steps(&world);
        let tenant = world.tenant("t").await;
        gate.arrival().await;
        assert_eq!(states(&tenant).await[0].1, IndexState::Backfilling);
        assert_consistent(&tenant).await;
        gate.open();
        indexes_ready(&tenant, TABLE).await;
        assert_consistent(&tenant).await;
        assert_answers(&tenant).await;
        assert_eq!(stored_entries(&world), 700);
        drop(tenant);
        world.hooks.clear();
        world.reopen().await;
        assert_consistent(&world.tenant("t").await).await;
    });
}

async fn no_index_left(world: &World, tenant: &Tenant) {
    until("the entries are gone", || async {
        stored_entries(world) == 0
    })
    .await;
    assert_consistent(tenant).await;
}

#[tokio::test]
async fn a_dropped_index_leaves_no_entry() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    fill(&tenant, 600).await;
    declare(&tenant, &[("by_a", &["a"]), ("by_b", &["b", "a"])]).await;
    indexes_ready(&tenant, TABLE).await;
    assert_eq!(stored_entries(&world), 1_200);
    let kept = tenant.table_schema(&table()).await.unwrap();
    // Declaring the same again changes nothing.
    declare(&tenant, &[("by_a", &["a"]), ("by_b", &["b", "a"])]).await;
    assert_eq!(tenant.table_schema(&table()).await.unwrap(), kept);
    declare(&tenant, &[("by_b", &["b", "a"])]).await;
    assert_eq!(
        states(&tenant).await,
        [("by_b".to_owned(), IndexState::Enabled)]
    );
    until("the entries are gone", || async {
        stored_entries(&world) == 600
    })
    .await;
    assert_consistent(&tenant).await;
    tenant.delete_schema(&table()).await.unwrap();
    assert!(matches!(
        tenant.table_schema(&table()).await,
        Err(StoreError::SchemaNotFound { .. })
    ));
    no_index_left(&world, &tenant).await;
    let all = tenant.query(&Query::table(table())).await.unwrap();
    assert_eq!(all.len(), 600, "documents stay");
    let again = tenant.delete_schema(&table()).await;
    assert!(matches!(again, Err(StoreError::SchemaNotFound { .. })));
}

#[tokio::test]
async fn a_name_may_be_given_to_other_fields() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    fill(&tenant, 300).await;
    declare(&tenant, &[("i", &["a"])]).await;
    indexes_ready(&tenant, TABLE).await;
    let old = tenant.table_schema(&table()).await.unwrap().indexes[0].id;
    declare(&tenant, &[("i", &["b", "a"])]).await;
    assert_consistent(&tenant).await;
    assert_answers(&tenant).await;
    indexes_ready(&tenant, TABLE).await;
    let new = tenant.table_schema(&table()).await.unwrap();
    assert_ne!(new.indexes[0].id, old, "numbers are never used again");
    until("the old entries are gone", || async {
        stored_entries(&world) == 300
    })
    .await;
    assert_consistent(&tenant).await;
    assert_answers(&tenant).await;
}

#[tokio::test]
async fn an_index_may_be_dropped_while_it_is_filled() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    fill(&tenant, 700).await;
    let gate = hold_steps(&world);
    declare(&tenant, &[("by_a", &["a"])]).await;
    gate.arrival().await;
    gate.let_one();
    gate.arrival().await;
    let dropping = {
        let tenant = tenant.clone();
        tokio::spawn(async move { declare(&tenant, &[]).await })
    };
    until("the change is accepted", || async {
        tenant.metrics().mutation_journal.apply_lag > 0
    })
    .await;
    gate.open();
    soon("the change", dropping).await.unwrap();
    no_index_left(&world, &tenant).await;
    until("the definition is gone", || async {
        tenant.metrics().mutation_journal.apply_lag == 0
    })
    .await;
    declare(&tenant, &[("by_a", &["a"])]).await;
    indexes_ready(&tenant, TABLE).await;
    assert_eq!(stored_entries(&world), 700);
    assert_consistent(&tenant).await;
}

/// A schema that existing documents contradict leaves nothing behind, and neither does one whose
/// check was cut off by a crash.
#[test]
fn a_schema_change_that_a_crash_cut_off_is_forgotten() {
    let dir = Arc::new(Site::new());
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().unwrap()
    };
    let strict = || {
        let mut strict = schema(TABLE, &["a", "b"], &[("by_a", &["a"])]);
        strict.fields[0].required = true;
        strict
    };
    let dying = runtime();
    dying.block_on(async {
        let world = World::at(dir.clone(), Settings::default()).await;
        let tenant = world.create("t").await;
        fill(&tenant, 10).await;
        let gate = world.hooks.hold_commits();
        let changing = {
            let tenant = tenant.clone();
            tokio::spawn(async move { tenant.put_schema(strict()).await })
        };
        // The change is introduced, then finished: the second commit never gets through.
        gate.arrival().await;
        gate.let_one();
        gate.arrival().await;
        assert!(!changing.is_finished());
    });
    dying.shutdown_timeout(Duration::from_secs(10));
    runtime().block_on(async {
        let world = World::at(dir, Settings::default()).await;
        let tenant = world.tenant("t").await;
        let schema = tenant.table_schema(&table()).await;
        assert!(
            matches!(schema, Err(StoreError::SchemaNotFound { .. })),
            "{schema:?}"
        );
        until("the change is forgotten", || async {
            let row = object([("b", num(1.0))]);
            tenant.insert(&table(), row).await.is_ok()
        })
        .await;
        assert_consistent(&tenant).await;
    });
}
