//! Sixty-four clients that read, append and transfer at random until enough was committed.
//! Must not judge what they are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nimbus_storage::{StoreError, StoreResult, Tenant};

use super::transact::{INITIAL, Lists, Order};
use super::{History, Key, Step, Told};
use crate::engine::support::Random;

pub const CLIENTS: usize = 64;
/// Documents that are in use at a time. Few, so that transactions meet.
const WINDOW: usize = 64;
/// How many of them most writes go to.
const HOT: usize = 8;
/// Operations after which a document leaves the window and a new one comes: what keeps lists short.
const TURNOVER: usize = 60;
/// Operations of a transaction, at most.
const LONGEST: usize = 12;
/// Documents that a reader looks at.
const LOOKS: usize = 8;
/// A run that commits less than one in so many of the operations that it tried gives up.
const PATIENCE: usize = 200;

/// One of the clients.
struct Client {
    number: usize,
    tenant: Tenant,
    lists: Arc<Lists>,
    random: Random,
    told: Vec<Told>,
    /// Operations committed by all clients, and tried by them.
    committed: Arc<AtomicUsize>,
    tried: Arc<AtomicU64>,
    wanted: usize,
}

/// Runs the clients, each on one of the handles in turn, until together they committed that many operations;
/// then reads every document through every handle.
pub async fn run(tenants: &[Tenant], seed: u64, operations: usize) -> History {
    let lists = Lists::create(&tenants[0], operations / TURNOVER + WINDOW).await;
    let committed: Arc<AtomicUsize> = Arc::default();
    let tried: Arc<AtomicU64> = Arc::default();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = Client {
                number,
                tenant: tenants[number % tenants.len()].clone(),
                lists: lists.clone(),
                random: Random::new(seed.wrapping_mul(1_000).wrapping_add(number as u64)),
                told: Vec::new(),
                committed: committed.clone(),
                tried: tried.clone(),
                wanted: operations,
            };
            tokio::spawn(client.run())
        })
        .collect();
    let mut history = History {
        initial: INITIAL,
        ..History::default()
    };
    for client in clients {
        history.told.extend(client.await.unwrap());
    }
    history.end(&lists, tenants).await;
    history
}

impl History {
    /// Reads every document through every handle: the first answer is how the history ends, the others are
    /// readers like any.
    pub async fn end(&mut self, lists: &Lists, tenants: &[Tenant]) {
        self.last = lists.all(&tenants[0]).await;
        for (number, tenant) in tenants.iter().enumerate() {
            let began = lists.now();
            let all = lists.all(tenant).await.into_iter().enumerate();
            self.told.push(Told {
                label: format!("everything through handle {number}"),
                began,
                ended: lists.now(),
                committed: true,
                steps: all
                    .map(|(key, seen)| Step {
                        key,
                        seen,
                        put: None,
                    })
                    .collect(),
                operations: 0,
            });
        }
    }
}

impl Client {
    async fn run(mut self) -> Vec<Told> {
        while self.committed.load(Ordering::Relaxed) < self.wanted {
            let tried = self.tried.load(Ordering::Relaxed);
            assert!(
                tried < (self.wanted * PATIENCE) as u64,
                "{tried} operations tried, and too few committed"
            );
            match self.random.below(8) {
                0 => self.plain().await,
                1 => self.reader().await,
                2..=4 => self.session().await,
                _ => self.transact().await,
            }
        }
        self.told
    }

    fn note(&mut self, what: &str, began: u64, committed: bool, steps: Vec<Step>, count: usize) {
        self.tried.fetch_add(count.max(1) as u64, Ordering::Relaxed);
        if committed {
            self.committed.fetch_add(count, Ordering::Relaxed);
        }
        self.told.push(Told {
            label: format!("client {} {what} {}", self.number, self.told.len()),
            began,
            ended: self.lists.now(),
            committed,
            steps,
            operations: count,
        });
    }

    /// A document of the window, one of the hot ones mostly.
    fn key(&mut self, hot: bool) -> Key {
        let base = self.committed.load(Ordering::Relaxed) / TURNOVER;
        let width = if hot && !self.random.one_in(4) {
            HOT
        } else {
            WINDOW
        };
        (base + self.random.below(width)).min(self.lists.ids.len() - 1)
    }

    fn orders(&mut self) -> Vec<Order> {
        let count = 1 + self.random.below(LONGEST);
        // Some stay away from where everybody writes, so that not all of them meet.
        let hot = self.random.one_in(2);
        (0..count).map(|_| self.order(hot)).collect()
    }

    fn order(&mut self, hot: bool) -> Order {
        let key = self.key(hot);
        match self.random.below(5) {
            0 | 1 => Order::Read(key),
            2 | 3 => Order::Append(key),
            _ => {
                let to = self.key(hot);
                if key == to {
                    return Order::Append(key);
                }
                let amount = 1 + i64::try_from(self.random.below(9)).unwrap();
                Order::Transfer {
                    from: key,
                    to,
                    amount,
                }
            }
        }
    }

    /// One look outside any transaction.
    async fn plain(&mut self) {
        let (key, began) = (self.key(true), self.lists.now());
        let step = self.lists.plain(&self.tenant, key).await;
        let step = step.unwrap_or_else(|e| panic!("{e} {:?}", e.inside()));
        self.note("plain", began, true, vec![step], 1);
    }

    /// Several looks at one durable state, as functions' queries have.
    async fn reader(&mut self) {
        let keys: Vec<Key> = (0..LOOKS).map(|_| self.key(true)).collect();
        let began = self.lists.now();
        let read = async {
            let mut tx = self.tenant.begin_read(None).await?;
            let mut steps = Vec::new();
            for key in keys {
                steps.push(self.lists.read(&mut tx, key).await?);
                tokio::task::yield_now().await;
            }
            Ok::<_, StoreError>(steps)
        };
        let steps = read
            .await
            .unwrap_or_else(|e| panic!("{e} {:?}", e.inside()));
        self.note("reader", began, true, steps, LOOKS);
    }

    /// A transaction that is not run again when it conflicts.
    async fn session(&mut self) {
        let orders = self.orders();
        let began = self.lists.now();
        let mut steps = Vec::new();
        let done = self.attempt(&orders, &mut steps).await;
        self.answered("session", began, done, steps, orders.len());
    }

    async fn attempt(&self, orders: &[Order], steps: &mut Vec<Step>) -> StoreResult<()> {
        let mut tx = self.tenant.begin().await?;
        self.lists.perform(&mut tx, orders, steps).await?;
        tokio::task::yield_now().await;
        self.tenant.commit(tx).await.map(drop)
    }

    /// A transaction as mutations have it, run again until it commits or is given up.
    async fn transact(&mut self) {
        let orders = Arc::new(self.orders());
        let began = self.lists.now();
        let attempts: Arc<Mutex<Vec<Vec<Step>>>> = Arc::default();
        let done = self.tenant.transact(|tx| {
            let (lists, orders, attempts) = (self.lists.clone(), orders.clone(), attempts.clone());
            Box::pin(async move {
                let mut steps = Vec::new();
                let done = lists.perform(tx, &orders, &mut steps).await;
                attempts
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(steps);
                done
            })
        });
        let done = done.await;
        let mut attempts = std::mem::take(&mut *attempts.lock().unwrap());
        let last = attempts.pop().unwrap_or_default();
        for steps in attempts {
            self.note("run that conflicted", began, false, steps, orders.len());
        }
        self.answered("mutation", began, done, last, orders.len());
    }

    fn answered(
        &mut self,
        what: &str,
        began: u64,
        done: StoreResult<()>,
        steps: Vec<Step>,
        count: usize,
    ) {
        match done {
            Ok(()) => self.note(what, began, true, steps, count),
            Err(StoreError::Conflict { .. }) => self.note(what, began, false, steps, count),
            Err(other) => panic!("{what}: {other} {:?}", other.inside()),
        }
    }
}
