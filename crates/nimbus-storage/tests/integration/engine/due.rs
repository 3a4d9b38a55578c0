//! Work that is due on two servers: each piece is done once, whoever scheduled it, and what a server leaves that is gone
//! the other one does.
//!
//! The work is that of an application: a document that says what is to be done, and another one for each time that it
//! was. It must not know where wake times are kept.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nimbus_storage::core::TableName;
use nimbus_storage::{Document, DueTenant, Engine, Query, StoreError, StoreResult, Tenant};

use super::servers::Servers;
use super::support::*;

/// Pieces that each of two servers schedules.
const EACH: u32 = 30;
/// Pieces that one commit does.
const AT_ONCE: usize = 3;

fn jobs() -> TableName {
    name("jobs")
}

fn done() -> TableName {
    name("done")
}

/// Schedules a piece of work in one commit.
async fn schedule(tenant: &Tenant, n: u32, at_ms: u64) -> StoreResult<()> {
    let scheduled = tenant.transact(|tx| {
        Box::pin(async move {
            tx.wake_at(at_ms);
            let job = object([("n", num(f64::from(n)))]);
            tx.insert(&jobs(), job).await.map(drop)
        })
    });
    scheduled.await
}

/// Does what there is to do in one commit; when there is more.
async fn work(tenant: &Tenant) -> StoreResult<Option<u64>> {
    let worked = tenant.transact(|tx| {
        Box::pin(async move {
            let waiting = tx.query(&Query::table(jobs())).await?;
            for job in waiting.iter().take(AT_ONCE) {
                let n = job.fields()?["n"].clone();
                tx.insert(&done(), object([("n", n)])).await?;
                tx.delete(&jobs(), job.id).await?;
            }
            Ok((waiting.len() > AT_ONCE).then_some(1))
        })
    });
    worked.await
}

/// One look at what is due, as a server takes it again and again.
async fn look(engine: &Engine) -> StoreResult<usize> {
    let due = engine.due_tenants(10, 10).await?;
    for one in &due {
        settle(engine, one).await?;
    }
    Ok(due.len())
}

async fn settle(engine: &Engine, due: &DueTenant) -> StoreResult<()> {
    let tenant = engine.due_tenant(due).await?;
    let next = work(&tenant).await?;
    // Not so: somebody scheduled more, and it is due still.
    engine.set_wake(due, next).await.map(drop)
}

/// Goes on until nothing is due once `over` says that nothing comes any more.
async fn runner(engine: &Engine, over: &AtomicBool) {
    loop {
        let nothing_comes = over.load(Ordering::SeqCst);
        match look(engine).await {
            Ok(0) if nothing_comes => return,
            Ok(_) => tokio::task::yield_now().await,
            // Both did the same at once too often.
            Err(StoreError::Conflict { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

async fn numbers(tenant: &Tenant, table: TableName) -> Vec<u32> {
    let found = tenant.query(&Query::table(table)).await.unwrap();
    let all = (0..2 * EACH).flat_map(|n| {
        let is_n = |document: &&Document| document.fields().unwrap()["n"] == num(f64::from(n));
        let times = found.iter().filter(is_n).count();
        std::iter::repeat_n(n, times)
    });
    all.collect()
}

/// Both servers schedule and both do the work, without a word to each other.
pub async fn due_work_is_done_once(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    let (over, left) = (AtomicBool::new(false), AtomicUsize::new(2));
    let scheduling = async |tenant: &Tenant, first: u32| {
        for n in first..first + EACH {
            while let Err(error) = schedule(tenant, n, 1).await {
                assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
            }
        }
        over.store(left.fetch_sub(1, Ordering::SeqCst) == 1, Ordering::SeqCst);
    };
    tokio::join!(
        scheduling(&a, 0),
        scheduling(&b, EACH),
        runner(&servers.a, &over),
        runner(&servers.b, &over),
    );
    let all: Vec<u32> = (0..2 * EACH).collect();
    assert_eq!(numbers(&a, done()).await, all);
    let left = numbers(&b, jobs()).await;
    assert!(left.is_empty(), "nobody woke for {left:?}");
    assert_consistent(&a).await;
    drop((a, b));
    servers.close().await;
}

/// Who looks between the announcement of work and its commit finds nothing, and does not put the wake off for good.
pub async fn due_work_that_is_only_announced_is_not_forgotten(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    // The tables are there, and nothing is.
    schedule(&b, 1, 5).await.unwrap();
    while look(&servers.a).await.unwrap() > 0 {}
    let gate = servers.hooks.hold_commits();
    let late = b.clone();
    let scheduling = tokio::spawn(async move { schedule(&late, 2, 7).await });
    gate.arrival().await;
    let due = servers.a.due_tenants(10, 10).await.unwrap();
    assert_eq!(due.len(), 1, "it is announced");
    settle(&servers.a, &due[0]).await.unwrap();
    assert_eq!(numbers(&a, done()).await, [1], "and not there");
    servers.hooks.clear();
    gate.open();
    scheduling.await.unwrap().unwrap();
    while look(&servers.a).await.unwrap() > 0 {}
    assert_eq!(numbers(&a, done()).await, [1, 2], "nobody woke for it");
    assert_consistent(&b).await;
    drop((a, b));
    servers.close().await;
}

/// What a server scheduled and did not do, because it is gone, is found by the other one, and so is a tenant's end.
pub async fn due_work_of_a_server_that_is_gone_is_done(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    schedule(&a, 1, 9).await.unwrap();
    schedule(&a, 2, 5_000).await.unwrap();
    drop(a);
    servers.a.close().await.unwrap();
    assert_eq!(servers.b.due_tenants(8, 10).await.unwrap(), []);
    let due = servers.b.due_tenants(9, 10).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].at_ms(), due[0].tenant()), (9, &name("t")));
    while look(&servers.b).await.unwrap() > 0 {}
    assert_eq!(numbers(&b, done()).await, [1, 2]);
    schedule(&b, 3, 9).await.unwrap();
    drop(b);
    let due = servers.b.due_tenants(9, 10).await.unwrap();
    servers.b.delete_tenant(&name("t")).await.unwrap();
    assert_eq!(servers.b.due_tenants(u64::MAX, 10).await.unwrap(), []);
    let gone = servers.b.due_tenant(&due[0]).await;
    assert!(matches!(gone, Err(StoreError::TenantNotFound { .. })));
    servers.b.close().await.unwrap();
}
