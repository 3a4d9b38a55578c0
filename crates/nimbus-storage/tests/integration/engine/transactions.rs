//! Transactions one by one: they read their own writes, can go back to a savepoint, conflict
//! where they must and nowhere else, and answer only from what is durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nimbus_storage::core::{DocumentId, Object, TableName, Value};
use nimbus_storage::{
    Direction, FieldType, FilterOp, Query, StoreError, StoreResult, Tenant, Transaction,
};

use super::stage::{Stage, n, outcome, table};
use super::support::*;

const TABLE: &str = "d";

fn row(k: f64, v: f64) -> Object {
    object([("k", num(k)), ("v", num(v))])
}

fn by_k(k: f64) -> Query {
    query(TABLE, vec![filter("k", FilterOp::Eq, num(k))], None)
}

async fn indexed(world: &World) -> Tenant {
    let tenant = world.create("t").await;
    let indexes: &[(&str, &[&str])] = &[("by_k", &["k"]), ("by_v", &["v", "k"])];
    let declared = schema(TABLE, &["k", "v"], indexes);
    tenant.put_schema(declared).await.unwrap();
    tenant
}

fn ids(documents: &[nimbus_storage::Document]) -> Vec<DocumentId> {
    documents.iter().map(|d| d.id).collect()
}

/// Every query of a transaction equals the model of what it did.
async fn assert_sees(tx: &mut Transaction, model: &Model, about: &str) {
    let mut asked = vec![Query::table(table())];
    for k in 0..4 {
        asked.push(by_k(f64::from(k)));
        let above = filter("v", FilterOp::Gt, num(f64::from(k)));
        asked.push(query(TABLE, vec![above], Some(("v", Direction::Backward))));
    }
    for direction in [Direction::Forward, Direction::Backward] {
        asked.push(query(TABLE, Vec::new(), Some(("k", direction))));
        asked.push(query(TABLE, Vec::new(), Some(("_id", direction))));
    }
    for asked in asked {
        let found = tx.query(&asked).await.unwrap();
        assert_eq!(ids(&found), model.answer(&asked), "{about}: {asked:?}");
        if asked.limit.is_none() {
            let page = tx.page(&asked, 3, None).await.unwrap();
            let mut first = model.answer(&asked);
            first.truncate(3);
            assert_eq!(ids(&page.documents), first, "{about}, a page: {asked:?}");
        }
    }
}

#[tokio::test]
async fn a_transaction_reads_its_own_writes() {
    let world = World::new().await;
    for (seed, indexes) in [(1, true), (2, false)] {
        let tenant = world.create(&format!("t{seed}")).await;
        if indexes {
            let declared = schema(TABLE, &["k", "v"], &[("by_k", &["k"]), ("by_v", &["v"])]);
            tenant.put_schema(declared).await.unwrap();
        }
        let mut random = Random::new(seed);
        for i in 0..12 {
            let row = row(f64::from(i % 4), f64::from(i));
            tenant.insert(&table(), row).await.unwrap();
        }
        let mut tx = tenant.begin().await.unwrap();
        let mut model = Model::of(&tenant, TABLE).await;
        for step in 0..60 {
            let row = row(random.below(4) as f64, random.below(6) as f64);
            let known: Vec<_> = model.0.keys().copied().collect();
            let id = match random.below(4) {
                0 => tx.insert(&table(), row).await.unwrap(),
                1 => {
                    let id = *random.pick(&known);
                    tx.delete(&table(), id).await.unwrap();
                    id
                }
                2 => {
                    let id = *random.pick(&known);
                    tx.replace(&table(), id, row).await.unwrap();
                    id
                }
                _ => {
                    let id = *random.pick(&known);
                    let patch = [("k".to_owned(), Some(num(9.0))), ("v".to_owned(), None)];
                    tx.merge(&table(), id, BTreeMap::from(patch)).await.unwrap();
                    id
                }
            };
            match tx.get(id).await.unwrap() {
                Some(document) => model.0.insert(id, document.fields().unwrap()),
                None => model.0.remove(&id),
            };
            if step % 6 == 0 {
                assert_sees(&mut tx, &model, &format!("seed {seed} step {step}")).await;
            }
        }
        tenant.commit(tx).await.unwrap();
        let mut after = tenant.begin().await.unwrap();
        assert_sees(&mut after, &model, "after the commit").await;
        assert_consistent(&tenant).await;
    }
}

#[tokio::test]
async fn a_savepoint_undoes_what_came_after() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let old = tenant.insert(&table(), row(1.0, 1.0)).await.unwrap();
    let mut tx = tenant.begin().await.unwrap();
    let kept = tx.insert(&table(), row(2.0, 2.0)).await.unwrap();
    let outer = tx.savepoint();
    tx.insert(&table(), row(3.0, 3.0)).await.unwrap();
    tx.patch(&table(), old, row(3.0, 3.0)).await.unwrap();
    let inner = tx.savepoint();
    tx.delete(&table(), kept).await.unwrap();
    tx.insert(&name("new_table"), row(0.0, 0.0)).await.unwrap();
    tx.roll_back(inner);
    assert_eq!(tx.query(&by_k(3.0)).await.unwrap().len(), 2);
    assert_eq!(tx.query(&by_k(2.0)).await.unwrap().len(), 1);
    tx.roll_back(outer);
    assert!(tx.query(&by_k(3.0)).await.unwrap().is_empty());
    assert_eq!(ids(&tx.query(&by_k(1.0)).await.unwrap()), [old]);
    let sequence = tenant.commit(tx).await.unwrap();
    let page = tenant.journal(sequence - 1, 10).await.unwrap();
    let written: Vec<_> = page.records[0]
        .writes
        .iter()
        .map(|w| w.doc_id.clone())
        .collect();
    assert_eq!(written, [kept.to_string()], "no trace of what was undone");
    // The table that was rolled back does not exist: creating it works as the first time.
    let id = tenant
        .insert(&name("new_table"), row(0.0, 0.0))
        .await
        .unwrap();
    assert_ne!(id.table, kept.table);
    assert_consistent(&tenant).await;
}

/// What a transaction does after `other` committed meanwhile, and whether that is a conflict.
async fn conflicts<A, B>(tenant: &Tenant, ours: A, theirs: B) -> bool
where
    A: AsyncFnOnce(&mut Transaction),
    B: AsyncFnOnce(&mut Transaction),
{
    let mut one = tenant.begin().await.unwrap();
    ours(&mut one).await;
    let mut two = tenant.begin().await.unwrap();
    theirs(&mut two).await;
    tenant.commit(two).await.unwrap();
    match tenant.commit(one).await {
        Ok(_) => false,
        Err(StoreError::Conflict { attempts: 1, .. }) => true,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn conflicts_are_found_where_reads_were_overwritten_and_only_there() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let mut x = Vec::new();
    for i in 0..4 {
        let row = row(f64::from(i), 0.0);
        x.push(tenant.insert(&table(), row).await.unwrap());
    }
    let patch = async |tx: &mut Transaction, id: DocumentId, v: f64| {
        let patch = object([("v", num(v))]);
        tx.patch(&table(), id, patch).await.unwrap();
    };
    let put = async |tx: &mut Transaction, k: f64| {
        tx.insert(&table(), row(k, 0.0)).await.unwrap();
    };
    let read = async |tx: &mut Transaction, asked: Query| {
        tx.query(&asked).await.unwrap();
    };

    // The same document, and different ones.
    let same = conflicts(
        &tenant,
        async |tx| patch(tx, x[0], 1.0).await,
        async |tx| patch(tx, x[0], 2.0).await,
    );
    assert!(same.await, "the same document");
    let apart = conflicts(
        &tenant,
        async |tx| patch(tx, x[0], 1.0).await,
        async |tx| patch(tx, x[1], 1.0).await,
    );
    assert!(!apart.await, "different documents");
    // A range of an index, entered from outside, and a neighbouring one.
    let entered = conflicts(
        &tenant,
        async |tx| {
            read(tx, by_k(7.0)).await;
            put(tx, 8.0).await;
        },
        async |tx| put(tx, 7.0).await,
    );
    assert!(entered.await, "a phantom");
    let beside = conflicts(
        &tenant,
        async |tx| {
            read(tx, by_k(7.0)).await;
            put(tx, 8.0).await;
        },
        async |tx| put(tx, 6.0).await,
    );
    assert!(!beside.await, "a neighbour in the index");
    // Without an index the whole table was read.
    let unindexed = query(TABLE, vec![filter("z", FilterOp::Eq, num(1.0))], None);
    let scanned = conflicts(
        &tenant,
        async |tx| {
            read(tx, unindexed).await;
            put(tx, 8.0).await;
        },
        async |tx| put(tx, 6.0).await,
    );
    assert!(scanned.await, "a scan");
    // A read of nothing but what it wrote.
    let inserts = conflicts(
        &tenant,
        async |tx| put(tx, 5.0).await,
        async |tx| put(tx, 5.0).await,
    );
    assert!(!inserts.await, "two inserts");
    // A document that was not there is a read as well.
    let missing: DocumentId = x[3];
    tenant.delete(&table(), &missing.to_string()).await.unwrap();
    let absent = conflicts(
        &tenant,
        async |tx| {
            assert!(tx.get(x[2]).await.unwrap().is_some());
            put(tx, 1.0).await;
        },
        async |tx| tx.delete(&table(), x[2]).await.unwrap(),
    );
    assert!(absent.await, "a document deleted meanwhile");
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn a_limited_read_depends_on_no_more_than_it_saw() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    for k in 0..10 {
        tenant
            .insert(&table(), row(f64::from(k), 0.0))
            .await
            .unwrap();
    }
    let mut first = query(TABLE, Vec::new(), Some(("k", Direction::Forward)));
    first.limit = Some(3);
    for (k, expected) in [(1.5, true), (7.5, false)] {
        let asked = first.clone();
        let conflicted = conflicts(
            &tenant,
            async |tx| {
                tx.query(&asked).await.unwrap();
                tx.insert(&table(), row(100.0, 0.0)).await.unwrap();
            },
            async |tx| {
                tx.insert(&table(), row(k, 0.0)).await.unwrap();
            },
        );
        assert_eq!(conflicted.await, expected, "an insert at {k}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_to_create_a_table_makes_one() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let (mut one, mut two) = (tenant.begin().await.unwrap(), tenant.begin().await.unwrap());
    one.insert(&table(), n(1.0)).await.unwrap();
    two.insert(&table(), n(2.0)).await.unwrap();
    tenant.commit(one).await.unwrap();
    let late = tenant.commit(two).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
    let racers: Vec<_> = (0..16)
        .map(|i| {
            let tenant = tenant.clone();
            tokio::spawn(async move {
                let name: TableName = name(["p", "q"][i % 2]);
                tenant.insert(&name, n(i as f64)).await.unwrap().table
            })
        })
        .collect();
    let mut numbers = [Vec::new(), Vec::new()];
    for (i, racer) in racers.into_iter().enumerate() {
        numbers[i % 2].push(racer.await.unwrap());
    }
    for list in &numbers {
        assert!(list.windows(2).all(|w| w[0] == w[1]), "{list:?}");
    }
    assert_ne!(numbers[0][0], numbers[1][0]);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn a_transaction_that_always_conflicts_ends() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let id = tenant.insert(&table(), n(0.0)).await.unwrap();
    let runs = AtomicUsize::new(0);
    let result: StoreResult<()> = tenant
        .transact(|tx| {
            let (runs, tenant) = (&runs, tenant.clone());
            let run = runs.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                tx.get(id).await?;
                tenant
                    .patch(&table(), &id.to_string(), n(run as f64))
                    .await?;
                tx.patch(&table(), id, n(-1.0)).await
            })
        })
        .await;
    let runs = u32::try_from(runs.into_inner()).unwrap();
    assert!(
        matches!(result, Err(StoreError::Conflict { attempts, .. }) if attempts == runs),
        "{result:?} after {runs} runs"
    );
    assert!((10..100).contains(&runs), "{runs} runs");
}

#[tokio::test]
async fn a_transaction_sees_one_state_however_long_it_runs() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let a = tenant.insert(&table(), row(1.0, 1.0)).await.unwrap();
    let mut tx = tenant.begin().await.unwrap();
    let at = tx.read_sequence();
    tenant
        .patch(&table(), &a.to_string(), row(2.0, 2.0))
        .await
        .unwrap();
    tenant.insert(&table(), row(1.0, 3.0)).await.unwrap();
    assert_eq!(
        tx.get(a).await.unwrap().unwrap().fields().unwrap()["k"],
        num(1.0)
    );
    assert_eq!(ids(&tx.query(&by_k(1.0)).await.unwrap()), [a]);
    assert!(tx.query(&by_k(2.0)).await.unwrap().is_empty());
    assert_eq!(tx.read_sequence(), at);
    // It wrote nothing: no conflict.
    assert_eq!(tenant.commit(tx).await.unwrap(), at);
    // One that is dropped writes nothing.
    let head = tenant.metrics().mutation_journal.applied_head;
    let mut dropped = tenant.begin().await.unwrap();
    dropped.insert(&table(), row(9.0, 9.0)).await.unwrap();
    drop(dropped);
    assert!(tenant.query(&by_k(9.0)).await.unwrap().is_empty());
    assert_eq!(tenant.metrics().mutation_journal.applied_head, head);
}

/// A read-only transaction that saw a commit on its way to the disk waits for it; one that saw
/// none of it does not.
#[tokio::test]
async fn a_reader_waits_for_what_it_saw_and_for_nothing_else() {
    let stage = Stage::new(|_| Verdict::Pass).await;
    let (tenant, first) = (&stage.tenant, stage.first);
    let plug = stage.plug().await;
    // The document is not touched by what is on its way.
    let unconcerned = tenant.transact(move |tx| Box::pin(async move { tx.get(first).await }));
    soon("the unconcerned reader", unconcerned).await.unwrap();
    let all = Query::table(table());
    let concerned = {
        let tenant = tenant.clone();
        tokio::spawn(async move {
            tenant
                .transact(|tx| {
                    let all = all.clone();
                    Box::pin(async move { Ok(tx.query(&all).await?.len()) })
                })
                .await
        })
    };
    yield_often().await;
    assert!(!concerned.is_finished(), "it saw what may never be");
    stage.gate.open();
    outcome(plug).await.unwrap();
    assert_eq!(soon("the reader", concerned).await.unwrap().unwrap(), 2);
}

/// Lets every other task do what it can.
async fn yield_often() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// A closure fails because of what a commit wrote that is not durable yet.
async fn error_from_a_pending_commit(fails: bool) {
    let calls = AtomicUsize::new(0);
    let stage = Stage::new(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 if fails => disk_full(),
        _ => Verdict::Pass,
    })
    .await;
    let (tenant, first) = (stage.tenant.clone(), stage.first);
    let writing = {
        let tenant = tenant.clone();
        tokio::spawn(async move { tenant.patch(&table(), &first.to_string(), n(13.0)).await })
    };
    stage.gate.arrival().await;
    let runs = Arc::new(AtomicUsize::new(0));
    let judging = {
        let (tenant, runs) = (tenant.clone(), runs.clone());
        tokio::spawn(async move {
            tenant
                .transact(|tx| {
                    let runs = runs.clone();
                    Box::pin(async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        let found = tx.get(first).await?.unwrap().fields()?;
                        if found["n"] == num(13.0) {
                            return Err(StoreError::invalid("unlucky"));
                        }
                        Ok(())
                    })
                })
                .await
        })
    };
    until("the closure ran", || async {
        runs.load(Ordering::SeqCst) == 1
    })
    .await;
    yield_often().await;
    assert!(!judging.is_finished(), "an answer from what is not durable");
    stage.gate.open();
    assert_eq!(soon("the write", writing).await.unwrap().is_err(), fails);
    let judged = soon("the judgement", judging).await.unwrap();
    assert_eq!(judged.is_ok(), fails, "{judged:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 1 + usize::from(fails));
}

#[tokio::test]
async fn an_error_from_a_pending_commit_waits_for_it() {
    error_from_a_pending_commit(false).await;
}

#[tokio::test]
async fn an_error_from_a_commit_that_failed_is_judged_again() {
    error_from_a_pending_commit(true).await;
}

/// The same when the closure was refused by a schema that is not durable yet.
#[tokio::test]
async fn a_refusal_by_a_schema_that_failed_is_judged_again() {
    let calls = AtomicUsize::new(0);
    let stage = Stage::new(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => disk_full(),
        _ => Verdict::Pass,
    })
    .await;
    let tenant = stage.tenant.clone();
    let mut strict = schema(TABLE, &["n"], &[]);
    strict.fields[0].field_type = FieldType::String;
    strict.table = name("fresh");
    let declaring = {
        let tenant = tenant.clone();
        tokio::spawn(async move { tenant.put_schema(strict).await })
    };
    stage.gate.arrival().await;
    let views = || tenant.metrics().serving_snapshot_manager.snapshot_count;
    let before = views();
    let inserting = {
        let tenant = tenant.clone();
        tokio::spawn(async move { tenant.insert(&name("fresh"), n(1.0)).await })
    };
    until("the insert began", || async { views() > before }).await;
    yield_often().await;
    assert!(
        !inserting.is_finished(),
        "refused by a schema that may never be"
    );
    stage.gate.open();
    let declared = soon("the schema", declaring).await.unwrap();
    assert!(
        matches!(declared, Err(StoreError::StorageFull { .. })),
        "{declared:?}"
    );
    outcome(inserting).await.unwrap();
    assert_eq!(
        tenant
            .query(&Query::table(name("fresh")))
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn one_transaction_has_bounds() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let mut tx = tenant.begin().await.unwrap();
    let megabyte = "x".repeat(1_000_000);
    let mut result = Ok(());
    let mut inserted = 0;
    while result.is_ok() && inserted < 30 {
        let row = object([("s", text(&megabyte))]);
        result = tx.insert(&table(), row).await.map(drop);
        inserted += 1;
    }
    let Err(StoreError::CapExceeded { cap, limit, .. }) = result else {
        panic!("{inserted} MB went through: {result:?}");
    };
    assert_eq!((cap, limit), ("transaction_writes", 16 * 1024 * 1024));
    assert_eq!(inserted, 17);
}

#[tokio::test]
async fn what_came_and_went_in_one_transaction_is_not_in_the_journal() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let mut tx = tenant.begin().await.unwrap();
    let fleeting = tx.insert(&table(), row(1.0, 1.0)).await.unwrap();
    tx.patch(&table(), fleeting, row(2.0, 2.0)).await.unwrap();
    let lasting = tx.insert(&table(), row(3.0, 3.0)).await.unwrap();
    tx.delete(&table(), fleeting).await.unwrap();
    tx.set_execution("job-7");
    let sequence = tenant.commit(tx).await.unwrap();
    let page = tenant.journal(sequence - 1, 1).await.unwrap();
    let record = &page.records[0];
    assert_eq!(record.scheduled_execution_id.as_deref(), Some("job-7"));
    let writes: Vec<_> = record
        .writes
        .iter()
        .map(|w| (w.op_type, w.doc_id.clone()))
        .collect();
    assert_eq!(writes, [("insert", lasting.to_string())]);
    let Some(Value::String(id)) = tenant
        .get(&table(), &lasting.to_string())
        .await
        .unwrap()
        .fields()
        .unwrap()
        .remove("_id")
    else {
        panic!("a document has an id");
    };
    assert_eq!(id, lasting.to_string());
    assert_consistent(&tenant).await;
}
