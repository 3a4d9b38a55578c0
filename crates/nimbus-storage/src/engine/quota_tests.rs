//! Counting: not without need, beside writers, and never for longer than a commit should wait.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nimbus_core::{DocumentId, Object, TableName, Value};

use super::*;
use crate::engine::Query;
use crate::engine::test_world::{World, world};

fn table() -> TableName {
    "t".parse().unwrap()
}

fn body(len: usize) -> Object {
    Object::from([("s".to_owned(), Value::String("x".repeat(len)))])
}

async fn insert(tenant: &Tenant, len: usize) -> StoreResult<DocumentId> {
    tenant.insert(&table(), body(len)).await
}

/// What there is, read as anyone reads it.
async fn found(tenant: &Tenant) -> Usage {
    let all = tenant.query(&Query::table(table())).await.unwrap();
    let bytes = all.iter().map(|d| d.id.key().len() + d.json.len());
    Usage {
        documents: all.len() as u64,
        bytes: bytes.sum::<usize>() as u64,
    }
}

fn counts(tenant: &Tenant) -> u64 {
    tenant.inner.counting.ended.borrow().times
}

fn limited(world: &World, tenant: &Tenant, documents: u64) {
    let quota = Quota {
        documents: Some(documents),
        bytes: None,
    };
    world.engine.set_quota(tenant.id(), quota);
}

#[tokio::test]
async fn nothing_is_counted_without_need_and_then_once() {
    let world = world();
    let tenant = world.tenant("a").await;
    for len in 0..5 {
        insert(&tenant, len).await.unwrap();
    }
    assert_eq!(counts(&tenant), 0);
    assert!(tenant.inner.state().tally.usage().is_none());
    let usage = tenant.usage().await.unwrap();
    assert_eq!(usage, found(&tenant).await);
    assert_eq!(usage.documents, 5);
    insert(&tenant, 9).await.unwrap();
    assert_eq!(tenant.usage().await.unwrap(), found(&tenant).await);
    limited(&world, &tenant, 7);
    insert(&tenant, 9).await.unwrap();
    assert!(insert(&tenant, 9).await.is_err());
    assert_eq!(counts(&tenant), 1);
    // Without a limit nobody keeps it up to date any more.
    world.engine.set_quota(tenant.id(), Quota::default());
    insert(&tenant, 9).await.unwrap();
    assert!(tenant.inner.state().tally.usage().is_none());
    assert_eq!(tenant.usage().await.unwrap(), found(&tenant).await);
    assert_eq!(counts(&tenant), 2);
}

#[tokio::test]
async fn a_commit_does_not_wait_for_ever_for_a_count() {
    let world = world();
    let tenant = world.tenant("a").await;
    let first = insert(&tenant, 1).await.unwrap();
    let second = insert(&tenant, 1).await.unwrap();
    limited(&world, &tenant, 2);
    // A count that does not end.
    tenant.inner.counting.running.store(true, Ordering::Release);
    let busy = insert(&tenant, 1).await.unwrap_err();
    assert!(matches!(busy, StoreError::Storage(_)), "{busy:?}");
    assert_eq!(found(&tenant).await.documents, 2, "nothing was written");
    // What does not make more does not wait.
    let (first, second) = (first.to_string(), second.to_string());
    tenant.patch(&table(), &first, body(0)).await.unwrap();
    tenant.delete(&table(), &second).await.unwrap();
    assert_eq!(counts(&tenant), 0);
    tenant
        .inner
        .counting
        .running
        .store(false, Ordering::Release);
    insert(&tenant, 1).await.unwrap();
    let full = insert(&tenant, 1).await.unwrap_err();
    assert!(matches!(full, StoreError::QuotaExceeded { .. }), "{full:?}");
}

#[tokio::test]
async fn a_count_ends_with_its_tenant() {
    let world = world();
    let tenant = world.tenant("a").await;
    insert(&tenant, 1).await.unwrap();
    tenant.inner.counting.running.store(true, Ordering::Release);
    let waiting = tokio::spawn({
        let tenant = tenant.clone();
        async move { tenant.usage().await }
    });
    tokio::task::yield_now().await;
    world.engine.close().await.unwrap();
    // The count notices that the tenant is closed.
    drop(Running {
        tenant: tenant.clone(),
        failed: true,
    });
    let told = waiting.await.unwrap();
    assert!(matches!(told, Err(StoreError::Closed)), "{told:?}");
    assert!(matches!(tenant.usage().await, Err(StoreError::Closed)));
}

/// Scans of four documents a step, while others insert, change and delete what was scanned and what is to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_beside_writers_find_the_truth() {
    let world = world();
    let tenant = world.tenant("a").await;
    for len in 0..100 {
        insert(&tenant, len).await.unwrap();
    }
    let writers: Vec<_> = (0..4usize)
        .map(|writer| {
            let tenant = tenant.clone();
            tokio::spawn(async move {
                let all = tenant.query(&Query::table(table())).await.unwrap();
                for n in 0..60 {
                    let id = insert(&tenant, n).await.unwrap().to_string();
                    tenant.patch(&table(), &id, body(n * 3)).await.unwrap();
                    if n % 3 == 0 {
                        tenant.delete(&table(), &id).await.unwrap();
                    }
                    let old = all[n + writer * 10].id.to_string();
                    match tenant.patch(&table(), &old, body(n + writer)).await {
                        Ok(_) | Err(StoreError::Conflict { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        })
        .collect();
    let mut seen = Vec::new();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        seen.push(tenant.usage().await.unwrap());
        // To be counted again.
        tenant.inner.state().tally.forget();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    seen.dedup();
    assert!(
        seen.len() > 2,
        "nothing was written beside a count: {seen:?}"
    );
    // The last count, begun among the commits, and what was kept up to date since.
    let usage = tenant.usage().await.unwrap();
    assert_eq!(usage, found(&tenant).await);
    assert_eq!(usage.documents, 100 + 4 * 40);
}
