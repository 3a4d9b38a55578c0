//! Views that begin without a snapshot: what makes them take one, and what they show then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nimbus_core::{DocumentId, Object, TableName, TenantId, Value};

use super::*;
use crate::engine::test_world::world;
use crate::engine::txn::{Transaction, lookup};
use crate::engine::{Engine, EngineOptions, Tenant};
use crate::provider::memory::MemoryProvider;

/// Two servers with one tenant.
async fn two() -> (Engine, Tenant, Engine, Tenant) {
    let provider = MemoryProvider::new();
    let engine = || Engine::new(Arc::new(provider.clone()), EngineOptions::default());
    let (a, b) = (engine(), engine());
    let id: TenantId = "t".parse().unwrap();
    a.create_tenant(&id).await.unwrap();
    let (on_a, on_b) = (a.tenant(&id).await.unwrap(), b.tenant(&id).await.unwrap());
    (a, on_a, b, on_b)
}

fn table(name: &str) -> TableName {
    name.parse().unwrap()
}

fn row(n: f64) -> Object {
    Object::from([("n".to_owned(), Value::Float64(n))])
}

async fn begin(tenant: &Tenant) -> Transaction {
    let view = tenant.inner.untaken_view().await.unwrap();
    Transaction::new(tenant.inner.clone(), view)
}

fn snapshots(tenant: &Tenant) -> u64 {
    tenant.inner.counters.snapshots.load(Ordering::Relaxed)
}

async fn insert(tenant: &Tenant, n: f64) -> DocumentId {
    tenant.insert(&table("t"), row(n)).await.unwrap()
}

#[tokio::test]
async fn only_what_nothing_else_answers_takes_a_snapshot() {
    let (_a, a, _b, b) = two().await;
    insert(&a, 0.0).await;
    b.catch_up().await.unwrap();
    let stored = insert(&b, 1.0).await;
    let before = snapshots(&b);
    let mut tx = begin(&b).await;
    let own = tx.insert(&table("t"), row(2.0)).await.unwrap();
    assert!(tx.get(own).await.unwrap().is_some(), "its own write");
    assert_eq!(snapshots(&b), before);
    assert!(!tx.view.has_snapshot());
    assert!(tx.get(stored).await.unwrap().is_some());
    assert_eq!(snapshots(&b), before + 1);
    let range = KeyRange::all();
    let mut scan = Scan::new(Keyspace::Docs, range, Direction::Forward);
    assert_eq!(tx.view.scan_next(&mut scan, 10).await.unwrap().len(), 3);
    assert_eq!(snapshots(&b), before + 1, "one is enough");
    b.commit(tx).await.unwrap();
    assert_eq!(snapshots(&b), before + 1);
}

#[tokio::test]
async fn where_a_snapshot_is_near_one_is_taken_at_the_start() {
    let world = world();
    let tenant = world.tenant("t").await;
    assert!(begin(&tenant).await.view.has_snapshot());
}

/// A commit of another server between the start and the first read: what is read, and what commits are told.
#[tokio::test]
async fn the_first_read_shows_the_newest_state() {
    let (_a, a, _b, b) = two().await;
    let id = insert(&a, 0.0).await;
    b.catch_up().await.unwrap();
    let mut tx = begin(&b).await;
    tx.insert(&table("t"), row(1.0)).await.unwrap();
    let (sequence, timestamp) = (tx.read_sequence(), tx.timestamp());
    a.patch(&table("t"), &id.to_string(), row(7.0))
        .await
        .unwrap();
    // The document is not relied on yet: that it changed is no conflict, and it is read as it is now.
    let found = tx.get(id).await.unwrap().unwrap().fields().unwrap();
    assert_eq!(found["n"], Value::Float64(7.0));
    assert_eq!(tx.read_sequence(), sequence + 1);
    assert!(tx.timestamp() > timestamp);
    assert_eq!(tx.view.answered_at(), sequence + 1);
    b.commit(tx).await.unwrap();
}

/// The table's definition was relied on and changes before the first read: no read is answered any more, and
/// the commit is refused, although nothing that it would compare changed since the snapshot.
#[tokio::test]
async fn what_changed_before_the_first_read_is_a_conflict() {
    let (_a, a, _b, b) = two().await;
    let id = insert(&a, 0.0).await;
    b.catch_up().await.unwrap();
    let mut tx = begin(&b).await;
    tx.insert(&table("t"), row(1.0)).await.unwrap();
    let declared = crate::engine::TableSchema {
        table: table("t"),
        fields: Vec::new(),
        indexes: Vec::new(),
    };
    a.put_schema(declared).await.unwrap();
    for _ in 0..2 {
        let refused = tx.get(id).await.unwrap_err();
        let StoreError::Conflict { attempts, table } = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((attempts, table), (1, Some("t".parse().unwrap())));
    }
    let refused = b.commit(tx).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }));
    assert_eq!(
        a.query(&crate::engine::Query::table(table("t")))
            .await
            .unwrap()
            .len(),
        1
    );
}

/// A reader that fetches ahead records later what it used: the state must not change under it.
#[tokio::test]
async fn what_is_fetched_ahead_comes_from_the_snapshot() {
    let (_a, a, _b, b) = two().await;
    insert(&a, 0.0).await;
    b.catch_up().await.unwrap();
    let mut tx = begin(&b).await;
    let own = tx.insert(&table("t"), row(1.0)).await.unwrap();
    let key = own.key();
    let ahead = tx.view.get_ahead(Keyspace::Docs, &[&key]).await.unwrap();
    assert!(ahead[0].is_some());
    assert!(tx.view.has_snapshot());
}

/// A transaction that leaves nothing behind looks again before it answers from the catalogue.
#[tokio::test]
async fn answers_of_the_catalogue_alone_are_confirmed() {
    let (_a, a, _b, b) = two().await;
    insert(&a, 0.0).await;
    b.catch_up().await.unwrap();
    let before = snapshots(&b);
    let tx = begin(&b).await;
    b.commit(tx).await.unwrap();
    assert_eq!(snapshots(&b), before, "it relied on nothing");
    let mut same = begin(&b).await;
    assert!(lookup(&mut same.view, &table("t")).is_some());
    assert_eq!(b.commit(same).await.unwrap(), head(&a));
    assert_eq!(snapshots(&b), before + 1);
    let mut old = begin(&b).await;
    assert!(lookup(&mut old.view, &table("u")).is_none());
    a.insert(&table("u"), row(1.0)).await.unwrap();
    let refused = b.commit(old).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }));
}

/// Who relied on nothing that is not durable yet need not run again when its batch fails.
#[tokio::test]
async fn a_proposal_names_the_newest_commit_that_it_relies_on() {
    let (_a, a, _b, b) = two().await;
    insert(&a, 0.0).await;
    b.catch_up().await.unwrap();
    let durable = head(&b);
    // Nothing becomes durable while somebody has the turn.
    let turn = b.inner.store.turn().await.unwrap();
    let mut pending = begin(&b).await;
    pending.insert(&table("u"), row(1.0)).await.unwrap();
    let pending = crate::engine::commit::submit(&b.inner, pending)
        .await
        .unwrap();
    assert!(pending.is_ok());
    assert_eq!(b.inner.state().head.sequence, durable + 1);
    for (relied_on, expected) in [("t", durable), ("u", durable + 1)] {
        let mut tx = begin(&b).await;
        tx.insert(&table(relied_on), row(2.0)).await.unwrap();
        assert!(!tx.view.has_snapshot());
        assert_eq!(tx.read_sequence(), durable + 1);
        let proposal = tx.into_proposal(crate::error::CommitId([0; 16]));
        assert_eq!(proposal.read_sequence, expected, "{relied_on}");
    }
    drop(turn);
}

fn head(tenant: &Tenant) -> u64 {
    tenant.inner.state().durable.sequence
}
