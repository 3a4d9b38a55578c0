//! Transactions on documents with a list and a balance, and a note of what each step saw and put there.
//! Must not judge what it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nimbus_storage::core::{DocumentId, Object, Value};
use nimbus_storage::{Document, Query, StoreResult, Tenant, Transaction};

use super::{Element, Key, Put, Seen, Step};
use crate::engine::support::*;

const TABLE: &str = "lists";
/// What each balance begins with.
pub const INITIAL: i64 = 100;

/// What a transaction is to do, in turn.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Read(Key),
    Append(Key),
    /// Between two documents that differ.
    Transfer {
        from: Key,
        to: Key,
        amount: i64,
    },
}

/// The documents of a history, and what its clients share.
pub struct Lists {
    pub ids: Vec<DocumentId>,
    elements: AtomicU32,
    clock: AtomicU64,
}

impl Lists {
    /// New documents.
    pub async fn create(tenant: &Tenant, documents: usize) -> Arc<Lists> {
        let made = tenant.transact(|tx| {
            Box::pin(async move {
                let mut ids = Vec::new();
                for _ in 0..documents {
                    let empty = fields(&[], INITIAL);
                    ids.push(tx.insert(&name(TABLE), empty).await?);
                }
                Ok(ids)
            })
        });
        Arc::new(Lists {
            ids: made.await.unwrap(),
            elements: AtomicU32::new(1),
            clock: AtomicU64::new(0),
        })
    }

    /// A moment after every one that was given before.
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn element(&self) -> Element {
        self.elements.fetch_add(1, Ordering::Relaxed)
    }

    /// Looks at a document.
    pub async fn look(&self, tx: &mut Transaction, key: Key) -> StoreResult<Seen> {
        let found = tx.get(self.ids[key]).await?;
        Ok(found.map_or_else(Seen::default, |document| seen(&document)))
    }

    /// Looks at a document, and adds a new element to its list and an amount to its balance.
    pub async fn put(&self, tx: &mut Transaction, key: Key, amount: i64) -> StoreResult<Step> {
        let put = Put {
            element: self.element(),
            amount,
        };
        self.put_this(tx, key, put).await
    }

    /// As [`Lists::put`], with an element that is given.
    pub async fn put_this(&self, tx: &mut Transaction, key: Key, put: Put) -> StoreResult<Step> {
        let seen = self.look(tx, key).await?;
        let mut list = seen.list.clone();
        list.push(put.element);
        let patch = fields(&list, seen.balance + put.amount);
        tx.patch(&name(TABLE), self.ids[key], patch).await?;
        Ok(Step {
            key,
            seen,
            put: Some(put),
        })
    }

    /// Looks at a document and no more.
    pub async fn read(&self, tx: &mut Transaction, key: Key) -> StoreResult<Step> {
        Ok(Step {
            key,
            seen: self.look(tx, key).await?,
            put: None,
        })
    }

    /// Does what the orders say. What it did until an error is in `steps` all the same: an attempt that fails
    /// must leave nothing.
    pub async fn perform(
        &self,
        tx: &mut Transaction,
        orders: &[Order],
        steps: &mut Vec<Step>,
    ) -> StoreResult<()> {
        for order in orders {
            match *order {
                Order::Read(key) => steps.push(self.read(tx, key).await?),
                Order::Append(key) => steps.push(self.put(tx, key, 0).await?),
                Order::Transfer { from, to, amount } => {
                    let element = self.element();
                    for (key, amount) in [(from, -amount), (to, amount)] {
                        let put = Put { element, amount };
                        steps.push(self.put_this(tx, key, put).await?);
                    }
                }
            }
        }
        Ok(())
    }

    /// A look at one document, outside any transaction.
    pub async fn plain(&self, tenant: &Tenant, key: Key) -> StoreResult<Step> {
        let id = self.ids[key].to_string();
        let found = tenant.get(&name(TABLE), &id).await?;
        Ok(Step {
            key,
            seen: seen(&found),
            put: None,
        })
    }

    /// All documents, by one query.
    pub async fn all(&self, tenant: &Tenant) -> Vec<Seen> {
        let found = tenant.query(&Query::table(name(TABLE))).await.unwrap();
        let of = |id: &DocumentId| seen(found.iter().find(|d| d.id == *id).unwrap());
        self.ids.iter().map(of).collect()
    }
}

/// Whole numbers below 2^53 are themselves as float64, and short as JSON.
fn number(n: i64) -> Value {
    Value::Float64(n as f64)
}

fn fields(list: &[Element], balance: i64) -> Object {
    let list = list.iter().map(|&e| number(e.into())).collect();
    object([("list", Value::Array(list)), ("balance", number(balance))])
}

fn seen(document: &Document) -> Seen {
    let fields = document.fields().unwrap();
    let whole = |value: &Value| match value {
        Value::Float64(n) => *n as i64,
        other => panic!("{other:?} is no number"),
    };
    let Some(Value::Array(list)) = fields.get("list") else {
        panic!("no list in {}", json(document));
    };
    Seen {
        list: list
            .iter()
            .map(|e| Element::try_from(whole(e)).unwrap())
            .collect(),
        balance: whole(&fields["balance"]),
    }
}
