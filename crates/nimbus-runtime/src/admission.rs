//! Who may run JavaScript now: budgets per tenant, and turns between tenants.
//!
//! A running invocation holds an active slot; one that waits for a timer, the network or another function gives
//! it back and asks again. Those that go on, and calls made by functions, come before new work. Among tenants
//! the turn goes round. This room must not know what runs.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nimbus_core::TenantId;
use tokio::sync::oneshot;

use crate::config::RuntimeConfig;
use crate::error::RunError;

/// Budgets as numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budgets {
    pub instances: usize,
    pub active: usize,
    pub in_flight: usize,
    pub queued: usize,
}

impl Budgets {
    pub(crate) fn of(config: &RuntimeConfig) -> Budgets {
        Budgets {
            instances: config.instances(),
            active: config.active_per_tenant(),
            in_flight: config.in_flight_per_tenant(),
            queued: config.queued_per_tenant(),
        }
    }
}

#[derive(Default)]
struct TenantQueue {
    active: usize,
    in_flight: usize,
    /// Calls by functions in progress, whether they run or wait.
    nested: usize,
    /// Invocations that go on, and nested ones.
    urgent: VecDeque<oneshot::Sender<Granted>>,
    /// New ones.
    waiting: VecDeque<oneshot::Sender<Granted>>,
}

#[derive(Default)]
struct State {
    active: usize,
    /// Functions that single tenants may run at once, below the budgets.
    bounds: HashMap<TenantId, usize>,
    tenants: HashMap<TenantId, TenantQueue>,
    /// Tenants with somebody waiting, in the order of their turns.
    turns: VecDeque<TenantId>,
}

struct Inner {
    budgets: Budgets,
    state: Mutex<State>,
    waited_ns: AtomicU64,
    rejected: AtomicU64,
}

/// The gate of the runtime. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Admission {
    inner: Arc<Inner>,
}

/// The right to run JavaScript, until dropped.
pub(crate) struct ActiveSlot {
    gate: Admission,
    tenant: TenantId,
}

/// A place among the invocations in flight, until dropped.
pub(crate) struct InFlight {
    gate: Admission,
    tenant: TenantId,
}

/// A place among the calls by functions, until dropped.
pub(crate) struct NestedPlace {
    gate: Admission,
    tenant: TenantId,
}

/// What a waiter is sent; if it left meanwhile, dropping it gives everything back.
struct Granted {
    slot: ActiveSlot,
    in_flight: Option<InFlight>,
}

impl Admission {
    pub(crate) fn new(budgets: Budgets) -> Admission {
        Admission {
            inner: Arc::new(Inner {
                budgets,
                state: Mutex::default(),
                waited_ns: AtomicU64::new(0),
                rejected: AtomicU64::new(0),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counters and queues: consistent wherever a panic could strike.
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a new invocation of `tenant`.
    ///
    /// # Errors
    /// [`RunError::QueueFull`].
    pub(crate) async fn enter(
        &self,
        tenant: &TenantId,
    ) -> Result<(ActiveSlot, InFlight), RunError> {
        let waiter = {
            let mut state = self.state();
            let waiting = state.tenants.get(tenant).map(|q| q.waiting.iter());
            let queued = waiting.map_or(0, |all| all.filter(|w| !w.is_closed()).count());
            let free = state.may_start(tenant, &self.inner.budgets);
            if !free && queued >= self.inner.budgets.queued {
                self.inner.rejected.fetch_add(1, Ordering::Relaxed);
                return Err(RunError::QueueFull {
                    retry_after: Duration::from_secs(1),
                });
            }
            state.wait(tenant, false)
        };
        let granted = self.granted(waiter).await?;
        let in_flight = granted.in_flight.ok_or(RunError::ShuttingDown)?;
        Ok((granted.slot, in_flight))
    }

    /// Admits a call that a function of `tenant` makes, before any new one. At most `limit` are in progress, of all
    /// functions of the tenant: each may hold a process, and functions that call themselves would multiply.
    ///
    /// # Errors
    /// [`RunError::TooManyNested`].
    pub(crate) async fn enter_nested(
        &self,
        tenant: &TenantId,
        limit: u32,
    ) -> Result<(ActiveSlot, NestedPlace), RunError> {
        {
            let mut state = self.state();
            let queue = state.tenants.entry(tenant.clone()).or_default();
            if queue.nested >= limit as usize {
                return Err(RunError::TooManyNested { limit });
            }
            queue.nested += 1;
        }
        let place = NestedPlace {
            gate: self.clone(),
            tenant: tenant.clone(),
        };
        Ok((self.resume(tenant).await?, place))
    }

    /// A slot for an invocation that goes on, or for one that another made: before any new one.
    pub(crate) async fn resume(&self, tenant: &TenantId) -> Result<ActiveSlot, RunError> {
        let waiter = self.state().wait(tenant, true);
        Ok(self.granted(waiter).await?.slot)
    }

    async fn granted(&self, waiter: oneshot::Receiver<Granted>) -> Result<Granted, RunError> {
        let start = Instant::now();
        self.hand_out();
        let granted = waiter.await.map_err(|_| RunError::ShuttingDown);
        let waited = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.inner.waited_ns.fetch_add(waited, Ordering::Relaxed);
        granted
    }

    /// Bounds what a tenant has active and in flight, or leaves it to the budgets.
    pub(crate) fn bound(&self, tenant: &TenantId, functions: Option<usize>) {
        let mut state = self.state();
        match functions {
            Some(functions) => drop(state.bounds.insert(tenant.clone(), functions.max(1))),
            None => drop(state.bounds.remove(tenant)),
        }
        drop(state);
        self.hand_out();
    }

    /// Gives free slots to those whose turn it is.
    fn hand_out(&self) {
        loop {
            let next = self.state().next(&self.inner.budgets);
            let Some((tenant, waiter, new)) = next else {
                return;
            };
            let granted = Granted {
                slot: ActiveSlot {
                    gate: self.clone(),
                    tenant: tenant.clone(),
                },
                in_flight: new.then(|| InFlight {
                    gate: self.clone(),
                    tenant,
                }),
            };
            // Whoever left gives it back by dropping it here, outside the lock.
            drop(waiter.send(granted));
        }
    }

    /// Active now, waiting now, rejected so far, and the time waited so far in ns.
    pub(crate) fn counts(&self) -> (usize, usize, u64, u64) {
        let state = self.state();
        let waiting = state.tenants.values().map(|q| q.waiting.len()).sum();
        (
            state.active,
            waiting,
            self.inner.rejected.load(Ordering::Relaxed),
            self.inner.waited_ns.load(Ordering::Relaxed),
        )
    }
}

impl State {
    fn may_start(&self, tenant: &TenantId, budgets: &Budgets) -> bool {
        let idle = TenantQueue::default();
        let queue = self.tenants.get(tenant).unwrap_or(&idle);
        let (active, in_flight) = self.limits(tenant, budgets);
        self.active < budgets.instances
            && queue.active < active
            && queue.in_flight < in_flight
            && queue.waiting.is_empty()
            && queue.urgent.is_empty()
    }

    /// What a tenant may have active and in flight.
    fn limits(&self, tenant: &TenantId, budgets: &Budgets) -> (usize, usize) {
        let bound = self.bounds.get(tenant).copied().unwrap_or(usize::MAX);
        (budgets.active.min(bound), budgets.in_flight.min(bound))
    }

    fn wait(&mut self, tenant: &TenantId, urgent: bool) -> oneshot::Receiver<Granted> {
        let (sender, receiver) = oneshot::channel();
        let queue = self.tenants.entry(tenant.clone()).or_default();
        let idle = queue.urgent.is_empty() && queue.waiting.is_empty();
        match urgent {
            true => queue.urgent.push_back(sender),
            false => queue.waiting.push_back(sender),
        }
        if idle {
            self.turns.push_back(tenant.clone());
        }
        receiver
    }

    /// Takes the next waiter that may run, urgent ones of any tenant first.
    fn next(&mut self, budgets: &Budgets) -> Option<(TenantId, oneshot::Sender<Granted>, bool)> {
        if self.active >= budgets.instances {
            return None;
        }
        let turn = |urgent: bool| {
            self.turns.iter().position(|tenant| {
                self.tenants.get(tenant).is_some_and(|queue| {
                    let (active, in_flight) = self.limits(tenant, budgets);
                    let room = queue.active < active;
                    let new = !queue.waiting.is_empty() && queue.in_flight < in_flight;
                    room && if urgent {
                        !queue.urgent.is_empty()
                    } else {
                        new
                    }
                })
            })
        };
        let (at, urgent) = turn(true)
            .map(|at| (at, true))
            .or_else(|| turn(false).map(|at| (at, false)))?;
        let tenant = self.turns.remove(at)?;
        let queue = self.tenants.get_mut(&tenant)?;
        let waiter = match urgent {
            true => queue.urgent.pop_front()?,
            false => queue.waiting.pop_front()?,
        };
        queue.active += 1;
        queue.in_flight += usize::from(!urgent);
        self.active += 1;
        if !queue.urgent.is_empty() || !queue.waiting.is_empty() {
            self.turns.push_back(tenant.clone());
        }
        Some((tenant, waiter, !urgent))
    }

    fn leave(&mut self, tenant: &TenantId, change: impl FnOnce(&mut TenantQueue)) {
        if let Some(queue) = self.tenants.get_mut(tenant) {
            change(queue);
            let idle = queue.active == 0 && queue.in_flight == 0 && queue.nested == 0;
            if idle && queue.urgent.is_empty() && queue.waiting.is_empty() {
                self.tenants.remove(tenant);
            }
        }
    }
}

impl Drop for ActiveSlot {
    fn drop(&mut self) {
        {
            let mut state = self.gate.state();
            state.active -= 1;
            state.leave(&self.tenant, |queue| queue.active -= 1);
        }
        self.gate.hand_out();
    }
}

impl Drop for NestedPlace {
    fn drop(&mut self) {
        self.gate
            .state()
            .leave(&self.tenant, |queue| queue.nested -= 1);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gate
            .state()
            .leave(&self.tenant, |queue| queue.in_flight -= 1);
        self.gate.hand_out();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn gate(instances: usize, active: usize, in_flight: usize, queued: usize) -> Admission {
        Admission::new(Budgets {
            instances,
            active,
            in_flight,
            queued,
        })
    }

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn beyond_the_queue_the_answer_is_no_and_other_tenants_are_unharmed() {
        let gate = gate(2, 1, 1, 1);
        let (a, b) = (tenant("a"), tenant("b"));
        let first = gate.enter(&a).await.unwrap();
        let second = tokio::spawn({
            let (gate, a) = (gate.clone(), a.clone());
            async move { gate.enter(&a).await }
        });
        while gate.counts().1 == 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(
            gate.enter(&a).await,
            Err(RunError::QueueFull { .. })
        ));
        assert!(gate.enter(&b).await.is_ok());
        drop(first);
        assert!(second.await.unwrap().is_ok());
        assert_eq!(gate.counts().0, 0);
        assert!(gate.state().tenants.is_empty());
    }

    #[tokio::test]
    async fn tenants_take_turns_and_those_that_go_on_come_first() {
        let gate = gate(1, 1, 9, 9);
        let (a, b) = (tenant("a"), tenant("b"));
        let held = gate.enter(&a).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        let mut expected = 0;
        for (name, who, urgent) in [
            ("a1", &a, false),
            ("a2", &a, false),
            ("b1", &b, false),
            ("a-again", &a, true),
        ] {
            let (gate, who, order) = (gate.clone(), who.clone(), order.clone());
            let waiting = gate.clone();
            tasks.push(tokio::spawn(async move {
                let slot = match urgent {
                    true => (gate.resume(&who).await.unwrap(), None),
                    false => {
                        let (slot, place) = gate.enter(&who).await.unwrap();
                        (slot, Some(place))
                    }
                };
                order.lock().unwrap().push(name);
                drop(slot);
            }));
            expected += 1;
            let queued = || -> usize {
                let state = waiting.state();
                state
                    .tenants
                    .values()
                    .map(|q| q.urgent.len() + q.waiting.len())
                    .sum()
            };
            while queued() < expected {
                tokio::task::yield_now().await;
            }
        }
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["a-again", "b1", "a1", "a2"]);
    }

    #[tokio::test]
    async fn a_tenant_may_be_bound_below_the_budgets_and_set_free() {
        let gate = gate(4, 4, 8, 0);
        let (a, b) = (tenant("a"), tenant("b"));
        gate.bound(&a, Some(1));
        let held = gate.enter(&a).await.unwrap();
        assert!(matches!(
            gate.enter(&a).await,
            Err(RunError::QueueFull { .. })
        ));
        let others = [gate.enter(&b).await.unwrap(), gate.enter(&b).await.unwrap()];
        // One that waits for the network has given its slot back, and still is one.
        let (slot, place) = held;
        drop(slot);
        assert!(gate.enter(&a).await.is_err());
        gate.bound(&a, None);
        let second = gate.enter(&a).await.unwrap();
        drop((others, place, second));
        assert!(gate.state().tenants.is_empty());
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_loses_nothing() {
        let gate = gate(1, 1, 2, 2);
        let a = tenant("a");
        let held = gate.enter(&a).await.unwrap();
        let waiting = tokio::spawn({
            let (gate, a) = (gate.clone(), a.clone());
            async move { gate.enter(&a).await.map(drop) }
        });
        while gate.counts().1 == 0 {
            tokio::task::yield_now().await;
        }
        waiting.abort();
        drop(waiting.await);
        drop(held);
        assert!(gate.enter(&a).await.is_ok());
    }
}
