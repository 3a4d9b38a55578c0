//! A tenant whose commits wait at a gate, so that a test decides what shares a batch and what
//! becomes of it.

use std::sync::Arc;

use nimbus_storage::core::{DocumentId, Object, TableName};
use nimbus_storage::provider::Batch;
use nimbus_storage::{Query, StoreResult, Tenant, Transaction};
use tokio::task::JoinHandle;

use super::support::*;

pub const TABLE: &str = "d";

pub fn table() -> TableName {
    name(TABLE)
}

pub fn n(value: f64) -> Object {
    object([("n", num(value))])
}

pub fn marked(value: f64) -> Object {
    object([("n", num(value)), ("mark", text("poison"))])
}

/// A tenant with one table and one document, whose commits wait at a gate.
pub struct Stage {
    pub world: World,
    pub tenant: Tenant,
    pub gate: Arc<Gate>,
    pub first: DocumentId,
    pub base: u64,
}

impl Stage {
    pub async fn new(verdict: impl Fn(&Batch) -> Verdict + Send + Sync + 'static) -> Stage {
        let world = World::new().await;
        let tenant = world.create("t").await;
        let first = tenant.insert(&table(), n(0.0)).await.unwrap();
        let base = tenant.metrics().mutation_journal.durable_head;
        let gate = Gate::shut();
        let (held, verdict) = (gate.clone(), Arc::new(verdict));
        world.hooks.on_commit(move |batch| {
            let (gate, verdict) = (held.clone(), verdict.clone());
            async move {
                gate.pass().await;
                verdict(&batch)
            }
        });
        Stage {
            world,
            tenant,
            gate,
            first,
            base,
        }
    }

    /// A commit that stands at the gate, so that what follows gathers in one batch.
    pub async fn plug(&self) -> JoinHandle<StoreResult<DocumentId>> {
        let plug = self.insert(n(-1.0));
        self.gate.arrival().await;
        plug
    }

    pub fn insert(&self, fields: Object) -> JoinHandle<StoreResult<DocumentId>> {
        let tenant = self.tenant.clone();
        tokio::spawn(async move { tenant.insert(&table(), fields).await })
    }

    /// Inserts in this order into the batch being built.
    pub async fn queue(&self, rows: Vec<Object>) -> Vec<JoinHandle<StoreResult<DocumentId>>> {
        let mut tasks = Vec::new();
        for row in rows {
            let head = self.accepted();
            tasks.push(self.insert(row));
            until("the insert is accepted", || async {
                self.accepted() > head
            })
            .await;
        }
        tasks
    }

    /// As [`Stage::queue`], but all begin before any is accepted, so none has read another, and
    /// none runs again.
    pub async fn queue_apart(&self, rows: Vec<Object>) -> Vec<JoinHandle<StoreResult<u64>>> {
        let mut transactions = Vec::new();
        for row in rows {
            let mut transaction = self.tenant.begin().await.unwrap();
            transaction.insert(&table(), row).await.unwrap();
            transactions.push(transaction);
        }
        let mut tasks = Vec::new();
        for transaction in transactions {
            tasks.push(self.commit(transaction).await);
        }
        tasks
    }

    /// Commits into the batch being built.
    pub async fn commit(&self, transaction: Transaction) -> JoinHandle<StoreResult<u64>> {
        let (tenant, head) = (self.tenant.clone(), self.accepted());
        let task = tokio::spawn(async move { tenant.commit(transaction).await });
        until("the commit is accepted", || async {
            self.accepted() > head
        })
        .await;
        task
    }

    pub fn accepted(&self) -> u64 {
        self.tenant.metrics().mutation_journal.applied_head
    }

    pub fn durable(&self) -> u64 {
        self.tenant.metrics().mutation_journal.durable_head
    }

    /// Opens the engine again and checks what the disk holds.
    pub async fn verify(mut self, expected: &[f64]) {
        self.world.hooks.clear();
        assert_table(&self.world.tenant("t").await, expected).await;
        drop(self.tenant);
        self.world.reopen().await;
        assert_table(&self.world.tenant("t").await, expected).await;
    }
}

/// The table holds documents with exactly these numbers, and all is consistent.
pub async fn assert_table(tenant: &Tenant, expected: &[f64]) {
    let found = tenant.query(&Query::table(table())).await.unwrap();
    let mut numbers: Vec<_> = found
        .iter()
        .map(|d| d.fields().unwrap().remove("n").unwrap())
        .collect();
    numbers.sort();
    let mut expected: Vec<_> = expected.iter().map(|v| num(*v)).collect();
    expected.sort();
    assert_eq!(numbers, expected);
    assert_consistent(tenant).await;
}

pub async fn outcome<T>(task: JoinHandle<StoreResult<T>>) -> StoreResult<T> {
    soon("an outcome", task).await.unwrap()
}
