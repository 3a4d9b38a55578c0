//! Deployments beside writers and beside each other: what happens while a push is made.
//!
//! The moment is found and not waited for: the commit with which a push declares what it adds is
//! seen at the provider, and what the test does meanwhile happens before the next snapshot.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nimbus_storage::core::Value;
use nimbus_storage::provider::{Batch, Keyspace};
use nimbus_storage::{DeployError, FilterOp, Query, StoreError, Tenant};

use super::support::*;

type Deed = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// Does something once, when a push has declared what it adds to the table `d` and not more.
fn meanwhile(world: &World, deed: impl Future<Output = ()> + Send + 'static) -> Arc<AtomicBool> {
    meanwhile_seeing(world, deed, |_| {})
}

/// As [`meanwhile`], and shows every commit.
fn meanwhile_seeing(
    world: &World,
    deed: impl Future<Output = ()> + Send + 'static,
    see: impl Fn(&Batch) + Send + Sync + 'static,
) -> Arc<AtomicBool> {
    let begun = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicBool::new(false));
    let deed: Deed = Box::new(move || deed.boxed());
    let deed = Arc::new(Mutex::new(Some(deed)));
    let declared = begun.clone();
    world.hooks.on_commit(move |batch| {
        see(&batch);
        if declares_push(&batch, "d") {
            declared.store(true, Ordering::SeqCst);
        }
        async { Verdict::Pass }
    });
    let over = done.clone();
    world.hooks.on_snapshot(move || {
        let deed = match begun.load(Ordering::SeqCst) {
            true => deed.lock().unwrap().take(),
            false => None,
        };
        let over = over.clone();
        async move {
            if let Some(deed) = deed {
                deed().await;
                over.store(true, Ordering::SeqCst);
            }
            Ok(())
        }
    });
    done
}

async fn world() -> (World, Tenant) {
    let world = World::new().await;
    let tenant = world.create("t").await;
    for n in 0..400 {
        insert(&tenant, "d", row(n)).await;
    }
    (world, tenant)
}

fn row(n: u32) -> nimbus_storage::core::Object {
    object([("a", text(&format!("{n}"))), ("n", num(f64::from(n)))])
}

fn strict() -> nimbus_storage::DeployPlan {
    let fields = [("a", of("string"), false), ("n", of("number"), false)];
    with_schema(vec![declared("d", &fields, &[("by_n", &["n"])])])
}

#[tokio::test]
async fn a_write_that_contradicts_the_push_fails_the_push() {
    let (world, tenant) = world().await;
    let writer = tenant.clone();
    let done = meanwhile(&world, async move {
        let id = insert(&writer, "d", object([("a", int(1)), ("n", num(0.0))])).await;
        // Gone again: it was there, which is enough.
        writer.delete(&name("d"), &id.to_string()).await.unwrap();
    });
    let error = tenant.deploy(strict()).await.unwrap_err();
    assert!(done.load(Ordering::SeqCst));
    let DeployError::SchemaValidation { table, failure, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(table.as_str(), "d");
    assert!(failure.contains("Path: .a\nValue: 1n"), "{failure}");
    world.hooks.clear();
    until("the push is undone", || async {
        is_unmarked(&definition(&tenant, "d").await)
    })
    .await;
    // Nothing of it stays: the next succeeds.
    deploy(&tenant, strict()).await;
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn what_is_rolled_back_or_fits_does_not_fail_the_push() {
    let (world, tenant) = world().await;
    let writer = tenant.clone();
    let done = meanwhile(&world, async move {
        let written: Result<(), StoreError> = writer
            .transact(|tx| {
                Box::pin(async move {
                    let before = tx.savepoint();
                    tx.insert(&name("d"), object([("bad", int(1))])).await?;
                    tx.roll_back(before);
                    tx.insert(&name("d"), row(1_000)).await?;
                    Ok(())
                })
            })
            .await;
        written.unwrap();
        let mut tx = writer.begin().await.unwrap();
        tx.insert(&name("d"), object([("bad", int(1))]))
            .await
            .unwrap();
        drop(tx);
    });
    deploy(&tenant, strict()).await;
    assert!(done.load(Ordering::SeqCst));
    assert_eq!(Model::of(&tenant, "d").await.0.len(), 401);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn the_old_index_serves_until_the_commit() {
    let (world, tenant) = world().await;
    let by = |fields: &[&str]| {
        let any = [("a", of("string"), false), ("n", of("number"), false)];
        with_schema(vec![declared("d", &any, &[("by_it", fields)])])
    };
    deploy(&tenant, by(&["a"])).await;
    let reader = tenant.clone();
    let done = meanwhile(&world, async move {
        let both = indexes(&reader, "d").await;
        assert_eq!(both, ["by_it [a] enabled", "by_it [n,a] backfilling"]);
        // Writes keep both.
        insert(&reader, "d", row(500)).await;
    });
    // The table's validator is as before, so only the index is declared.
    deploy(&tenant, by(&["n", "a"])).await;
    assert!(done.load(Ordering::SeqCst));
    until("the old index is gone", || async {
        indexes(&tenant, "d").await == ["by_it [n,a] enabled"]
    })
    .await;
    let asked = query("d", vec![filter("n", FilterOp::Gte, num(399.0))], None);
    assert_eq!(tenant.query(&asked).await.unwrap().len(), 2);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn there_is_one_push_at_a_time() {
    let (world, tenant) = world().await;
    let other = tenant.clone();
    let done = meanwhile(&world, async move {
        let second = other.deploy(plan(&[("b.js", "b")])).await;
        assert!(
            matches!(second, Err(DeployError::ConcurrentPush)),
            "{second:?}"
        );
        let back = other.deployment().await.unwrap();
        assert_eq!(back, None, "nothing of a push is visible before its commit");
    });
    deploy(&tenant, strict()).await;
    assert!(done.load(Ordering::SeqCst));
    deploy(&tenant, plan(&[("b.js", "b")])).await;
    assert_eq!(tenant.deployments(9).await.unwrap().len(), 2);
}

#[tokio::test]
async fn another_environment_than_expected_refuses_the_push() {
    let (world, tenant) = world().await;
    let set = |value: &str| vec![("A".to_owned(), Some(value.to_owned()))];
    tenant.update_environment(set("1")).await.unwrap();
    let mut plan = strict();
    plan.expected_environment = Some(std::collections::BTreeMap::new());
    let refused = tenant.deploy(plan.clone()).await;
    assert!(
        matches!(refused, Err(DeployError::RaceDetected)),
        "{refused:?}"
    );
    plan.expected_environment = Some(tenant.environment().await.unwrap());
    let admin = tenant.clone();
    let done = meanwhile(&world, async move {
        let change = vec![("A".to_owned(), Some("2".to_owned()))];
        admin.update_environment(change).await.unwrap();
    });
    let refused = tenant.deploy(plan.clone()).await;
    assert!(
        matches!(refused, Err(DeployError::RaceDetected)),
        "{refused:?}"
    );
    assert!(done.load(Ordering::SeqCst));
    assert_eq!(tenant.deployment().await.unwrap(), None);
    plan.expected_environment = Some(tenant.environment().await.unwrap());
    deploy(&tenant, plan).await;
}

#[tokio::test]
async fn a_push_whose_caller_goes_away_is_undone() {
    let (world, tenant) = world().await;
    let caller: Arc<Mutex<Option<tokio::task::AbortHandle>>> = Arc::default();
    let gone = caller.clone();
    let _done = meanwhile(&world, async move {
        let caller = gone.lock().unwrap().take();
        caller.unwrap().abort();
        // If this is the task, it ends here; otherwise where it waits next.
        tokio::task::yield_now().await;
    });
    let pusher = tenant.clone();
    let hold = Arc::new(tokio::sync::Notify::new());
    let go = hold.clone();
    let task = tokio::spawn(async move {
        go.notified().await;
        pusher.deploy(strict()).await
    });
    *caller.lock().unwrap() = Some(task.abort_handle());
    hold.notify_one();
    assert!(task.await.unwrap_err().is_cancelled());
    world.hooks.clear();
    until("the push is undone", || async {
        is_unmarked(&definition(&tenant, "d").await)
    })
    .await;
    insert(&tenant, "d", object([("free", int(1))])).await;
    assert_eq!(tenant.deployment().await.unwrap(), None);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn deploys_go_through_while_writers_run() {
    let (_world, tenant) = world().await;
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..4_u32)
        .map(|w| {
            let (tenant, stop, written) = (tenant.clone(), stop.clone(), written.clone());
            tokio::spawn(async move {
                let mut n = 10_000 * (w + 1);
                let mut own = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    n += 1;
                    own.push(insert(&tenant, "d", row(n)).await);
                    // A table that the first deploy finds missing and a later one declares.
                    insert(&tenant, "late", row(n)).await;
                    if n % 3 == 0 {
                        let id = own[own.len() / 2].to_string();
                        let change = object([("n", num(f64::from(n)))]);
                        tenant.patch(&name("d"), &id, change).await.unwrap();
                    }
                    written.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let fields = [("a", of("string"), false), ("n", of("number"), false)];
    let both = |by: &[&str]| {
        with_schema(vec![
            declared("d", &fields, &[("by_it", by)]),
            declared("late", &fields, &[("by_n", &["n"])]),
        ])
    };
    for by in [["n"].as_slice(), &["a"], &["n", "a"]] {
        let before = written.load(Ordering::SeqCst);
        deploy(&tenant, both(by)).await;
        until("the writers went on", || async {
            written.load(Ordering::SeqCst) > before
        })
        .await;
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    until("the old indexes are gone", || async {
        indexes(&tenant, "d").await == ["by_it [n,a] enabled"]
    })
    .await;
    let all = Model::of(&tenant, "d").await;
    assert_eq!(all.0.len(), 400 + written.load(Ordering::SeqCst));
    let late = tenant.query(&Query::table(name("late"))).await.unwrap();
    assert_eq!(late.len(), written.load(Ordering::SeqCst));
    let asked = query("d", vec![filter("n", FilterOp::Gt, num(50.0))], None);
    let found: Vec<_> = tenant
        .query(&asked)
        .await
        .unwrap()
        .iter()
        .map(|d| d.id)
        .collect();
    assert_eq!(found.len(), all.answer(&asked).len());
    assert!(matches!(
        tenant
            .insert(&name("late"), object([("n", Value::Null)]))
            .await,
        Err(StoreError::SchemaEnforcement { .. })
    ));
    assert_consistent(&tenant).await;
}

/// A document that contradicts [`strict`], and says so at length.
fn contradiction() -> nimbus_storage::core::Object {
    let long = Value::Array(vec![text(&"v".repeat(6_000)); 4]);
    object([("a", long), ("n", num(0.0))])
}

/// Writers that contradict a push leave rows: short ones, which go in commits of bounded size.
#[tokio::test]
async fn what_many_writers_left_is_removed_in_steps() {
    let (world, tenant) = world().await;
    let writer = tenant.clone();
    let largest = Arc::new(AtomicUsize::new(0));
    let removed = Arc::new(AtomicUsize::new(0));
    let (most, all) = (largest.clone(), removed.clone());
    let deed = async move {
        for _ in 0..300 {
            insert(&writer, "d", contradiction()).await;
        }
    };
    let done = meanwhile_seeing(&world, deed, move |batch| {
        let gone = batch
            .writes
            .iter()
            .filter(|((_, key), value)| key.starts_with(b"push_violation/") && value.is_none())
            .count();
        most.fetch_max(gone, Ordering::SeqCst);
        all.fetch_add(gone, Ordering::SeqCst);
    });
    let error = tenant.deploy(strict()).await.unwrap_err();
    assert!(done.load(Ordering::SeqCst));
    let DeployError::SchemaValidation { failure, .. } = &error else {
        panic!("{error}");
    };
    assert!(failure.len() <= 1_024, "{}", failure.len());
    assert_eq!(removed.load(Ordering::SeqCst), 300);
    let largest = largest.load(Ordering::SeqCst);
    assert!(largest <= 256, "{largest} in one commit");
    deploy(&tenant, plan(&[("b.js", "b")])).await;
    assert_consistent(&tenant).await;
}

/// What a write contradicts is known before the last index is filled.
#[tokio::test]
async fn a_contradiction_ends_the_filling_of_indexes() {
    let (world, tenant) = world().await;
    let filled = Arc::new(AtomicUsize::new(0));
    let seen = filled.clone();
    world.hooks.on_commit(move |batch| {
        let backfill = batch
            .writes
            .keys()
            .all(|(space, _)| *space != Keyspace::Docs);
        let entries = batch
            .writes
            .iter()
            .filter(|((space, _), v)| *space == Keyspace::Index && v.is_some())
            .count();
        if backfill {
            seen.fetch_add(entries, Ordering::SeqCst);
        }
        async { Verdict::Pass }
    });
    let (writer, begun) = (tenant.clone(), filled.clone());
    let once = Arc::new(AtomicBool::new(false));
    world.hooks.on_snapshot(move || {
        let now = begun.load(Ordering::SeqCst) > 0 && !once.swap(true, Ordering::SeqCst);
        if begun.load(Ordering::SeqCst) == 0 {
            once.store(false, Ordering::SeqCst);
        }
        let writer = writer.clone();
        async move {
            if now {
                insert(&writer, "d", contradiction()).await;
            }
            Ok(())
        }
    });
    let error = tenant.deploy(strict()).await.unwrap_err();
    assert!(
        matches!(error, DeployError::SchemaValidation { .. }),
        "{error}"
    );
    assert_eq!(filled.load(Ordering::SeqCst), 256, "of 400 documents");
}

/// A dry run tells of its own plan only.
#[tokio::test]
async fn a_dry_run_minds_no_other_push() {
    let (world, tenant) = world().await;
    insert(&tenant, "e", object([("x", text("fits"))])).await;
    let other = tenant.clone();
    let done = meanwhile(&world, async move {
        insert(&other, "d", contradiction()).await;
        let mut dry = with_schema(vec![declared("e", &[("x", of("string"), false)], &[])]);
        dry.dry_run = true;
        let report = other.deploy(dry).await.unwrap();
        assert!(report.schema_changed);
    });
    tenant.deploy(strict()).await.unwrap_err();
    assert!(done.load(Ordering::SeqCst));
}
