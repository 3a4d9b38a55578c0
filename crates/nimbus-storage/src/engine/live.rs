//! Live queries: a subscription is a query with the read set of its last run.
//!
//! A durable commit finds the queries whose read set it touches through an interval index;
//! only those run again, identical queries run once, and an unchanged result is not sent.
//! Each subscriber holds at most one undelivered result, the newest. Sockets and wire formats
//! are not known here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::function::CommitStamp;
use super::interval::IntervalIndex;
use super::query::Query;
use super::readset::{ReadSet, SpaceKey};
use super::state::Committed;
use super::tenant::{Tenant, TenantInner};
use super::{Document, txn};
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

/// Pause after the provider failed a live query.
const RETRY: Duration = Duration::from_millis(200);

/// One state of a live query's result.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveResult {
    /// The commit at which the result was read.
    pub sequence: u64,
    /// The documents, or why the query cannot be answered now.
    pub documents: Result<Arc<[Document]>, Arc<StoreError>>,
    /// Counts the results of the query that differ.
    revision: u64,
}

impl LiveResult {
    fn same(&self, other: &LiveResult) -> bool {
        match (&self.documents, &other.documents) {
            (Ok(a), Ok(b)) => a == b,
            (Err(a), Err(b)) => a.to_string() == b.to_string(),
            _ => false,
        }
    }
}

/// A live query of one subscriber. Dropping it ends the subscription.
pub struct Subscription {
    group: u64,
    results: watch::Receiver<Option<Arc<LiveResult>>>,
    /// What was acknowledged when it began: an older result is not for it.
    not_before: u64,
    /// Revision that was delivered last.
    delivered: Option<u64>,
    tenant: Tenant,
}

impl Subscription {
    /// The first result, which has everything that was acknowledged before, then each newer
    /// result that differs. A subscriber that is slower than the commits gets the newest.
    /// `None` once the tenant is closed or deleted.
    pub async fn next(&mut self) -> Option<Arc<LiveResult>> {
        loop {
            self.results.changed().await.ok()?;
            let newest = self.results.borrow_and_update().clone();
            if let Some(result) = newest
                && result.sequence >= self.not_before
                && self.delivered != Some(result.revision)
            {
                self.delivered = Some(result.revision);
                return Some(result);
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.tenant.inner.live.leave(self.group);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Queued,
    Running,
    /// Touched while running: run again.
    RunningAgain,
}

struct Group {
    query: Arc<Query>,
    reads: ReadSet,
    results: watch::Sender<Option<Arc<LiveResult>>>,
    subscribers: usize,
    stage: Stage,
    /// A subscriber waits for a result at this commit or after, even if nothing changed.
    owed: u64,
}

/// A read set that somebody watches without a query behind it.
struct Watched {
    reads: ReadSet,
    /// Told once, when something in it was written: how long it was valid.
    ended: watch::Sender<Option<CommitStamp>>,
}

type QueryKey = ([u8; 32], Option<u32>);

#[derive(Default)]
struct Registry {
    groups: HashMap<u64, Group>,
    /// Numbered together with the groups.
    watched: HashMap<u64, Watched>,
    by_query: HashMap<QueryKey, u64>,
    points: HashMap<SpaceKey, HashSet<u64>>,
    ranges: [IntervalIndex; Keyspace::ALL.len()],
    queue: VecDeque<u64>,
    next_id: u64,
    /// Newest commit for which the queries that it touches were queued.
    settled: CommitStamp,
    worker: bool,
    closed: bool,
}

/// The live queries of one tenant.
#[derive(Default)]
pub(crate) struct Live {
    registry: Mutex<Registry>,
    work: Notify,
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn new(settled: CommitStamp) -> Live {
        let registry = Registry {
            settled,
            ..Registry::default()
        };
        Live {
            registry: Mutex::new(registry),
            work: Notify::new(),
        }
    }

    /// The newest commit for which everything that it touches was told so.
    pub(crate) fn settled(&self) -> CommitStamp {
        self.lock().settled
    }

    /// Whether somebody waits to be told of commits.
    pub(crate) fn is_watched(&self) -> bool {
        let registry = self.lock();
        !registry.groups.is_empty() || !registry.watched.is_empty()
    }

    /// Watches a read set until the first commit after this that touches it. Returns its number,
    /// and where its end will be told; `None` once the tenant is closed.
    pub(crate) fn watch(
        &self,
        reads: ReadSet,
    ) -> Option<(u64, watch::Receiver<Option<CommitStamp>>)> {
        let mut registry = self.lock();
        if registry.closed {
            return None;
        }
        let id = registry.next_id;
        registry.next_id += 1;
        registry.note(id, &reads);
        let (ended, receiver) = watch::channel(None);
        registry.watched.insert(id, Watched { reads, ended });
        Some((id, receiver))
    }

    /// Ends a watch that its owner has no use for any more.
    pub(crate) fn unwatch(&self, id: u64) {
        self.lock().take_watched(id);
    }

    /// Queues every query that these durable commits touch; `settled` is the newest of them.
    pub(crate) fn invalidate(&self, committed: &[Committed], settled: CommitStamp) {
        let mut registry = self.lock();
        let before = std::mem::replace(&mut registry.settled, settled);
        if registry.groups.is_empty() && registry.watched.is_empty() {
            return;
        }
        let mut touched = HashSet::new();
        for key in committed.iter().flat_map(|c| c.keys.iter()) {
            registry.touched_by(key, &mut touched);
        }
        for id in touched {
            match registry.take_watched(id) {
                Some(watched) => {
                    watched.ended.send_replace(Some(before));
                }
                None => registry.mark(id),
            }
        }
        if !registry.queue.is_empty() {
            self.work.notify_one();
        }
    }

    /// Queues every query and ends every watch: nobody knows what commits up to `settled` touched.
    pub(crate) fn invalidate_all(&self, settled: CommitStamp) {
        let mut registry = self.lock();
        let before = std::mem::replace(&mut registry.settled, settled);
        let watched: Vec<u64> = registry.watched.keys().copied().collect();
        for id in watched {
            if let Some(watched) = registry.take_watched(id) {
                watched.ended.send_replace(Some(before));
            }
        }
        let groups: Vec<u64> = registry.groups.keys().copied().collect();
        for id in groups {
            registry.mark(id);
        }
        self.work.notify_one();
    }

    /// Ends every subscription.
    pub(crate) fn close(&self) {
        let mut registry = self.lock();
        registry.closed = true;
        registry.groups.clear();
        registry.watched.clear();
        registry.queue.clear();
        self.work.notify_one();
    }

    /// Subscriptions and distinct queries now.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let registry = self.lock();
        let subscribers = registry.groups.values().map(|g| g.subscribers).sum();
        (subscribers, registry.groups.len(), registry.queue.len())
    }

    fn leave(&self, id: u64) {
        let mut registry = self.lock();
        let Some(group) = registry.groups.get_mut(&id) else {
            return;
        };
        group.subscribers -= 1;
        if group.subscribers == 0 {
            registry.drop_group(id);
            self.work.notify_one();
        }
    }
}

impl Registry {
    fn touched_by(&self, key: &SpaceKey, out: &mut HashSet<u64>) {
        if let Some(ids) = self.points.get(key) {
            out.extend(ids);
        }
        self.ranges[key.0 as usize].stab(&key.1, &mut |id| {
            out.insert(id);
        });
    }

    fn mark(&mut self, id: u64) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        match group.stage {
            Stage::Idle => {
                group.stage = Stage::Queued;
                self.queue.push_back(id);
            }
            Stage::Running => group.stage = Stage::RunningAgain,
            Stage::Queued | Stage::RunningAgain => {}
        }
    }

    /// Takes over what a query's newest run read; nothing if everyone left meanwhile.
    fn register(&mut self, id: u64, reads: ReadSet) {
        if !self.groups.contains_key(&id) {
            return;
        }
        self.unregister(id);
        self.note(id, &reads);
        if let Some(group) = self.groups.get_mut(&id) {
            group.reads = reads;
        }
    }

    fn note(&mut self, id: u64, reads: &ReadSet) {
        for key in reads.points() {
            self.points.entry(key.clone()).or_default().insert(id);
        }
        for (space, range) in reads.ranges() {
            self.ranges[space as usize].insert(range.start, range.end, id);
        }
    }

    fn take_watched(&mut self, id: u64) -> Option<Watched> {
        let watched = self.watched.remove(&id)?;
        self.forget(id, &watched.reads);
        Some(watched)
    }

    fn unregister(&mut self, id: u64) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let reads = std::mem::take(&mut group.reads);
        self.forget(id, &reads);
    }

    fn forget(&mut self, id: u64, reads: &ReadSet) {
        for key in reads.points() {
            if let Some(ids) = self.points.get_mut(key) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.points.remove(key);
                }
            }
        }
        for (space, range) in reads.ranges() {
            self.ranges[space as usize].remove(&range.start, id);
        }
    }

    fn drop_group(&mut self, id: u64) {
        if let Some(group) = self.groups.remove(&id) {
            self.forget(id, &group.reads);
            self.by_query
                .remove(&(group.query.digest(), group.query.limit));
        }
    }
}

impl Tenant {
    /// Subscribes to a query: its result now, then again whenever a durable commit changes it.
    ///
    /// # Errors
    /// As [`Query::check`]; `Closed` when the tenant is closing.
    pub async fn subscribe(&self, query: Query) -> StoreResult<Subscription> {
        query.check()?;
        let key = (query.digest(), query.limit);
        let mut registry = self.inner.live.lock();
        if registry.closed {
            return Err(StoreError::Closed);
        }
        let known = registry.by_query.get(&key).copied();
        let id = known.unwrap_or_else(|| {
            let id = registry.next_id;
            registry.next_id += 1;
            let group = Group {
                query: Arc::new(query),
                reads: ReadSet::default(),
                results: watch::Sender::new(None),
                subscribers: 0,
                stage: Stage::Idle,
                owed: 0,
            };
            registry.groups.insert(id, group);
            registry.by_query.insert(key, id);
            registry.mark(id);
            id
        });
        let settled = registry.settled.sequence;
        let Some(group) = registry.groups.get_mut(&id) else {
            return Err(StoreError::Closed);
        };
        group.subscribers += 1;
        let mut results = group.results.subscribe();
        // A known result is current unless the query is to run again.
        let not_before = if group.stage == Stage::Idle {
            results.mark_changed();
            0
        } else {
            group.owed = settled;
            settled
        };
        if !registry.worker {
            registry.worker = true;
            tokio::spawn(work(self.inner.clone()));
        }
        drop(registry);
        self.inner.live.work.notify_one();
        self.inner.begin_to_follow();
        Ok(Subscription {
            group: id,
            results,
            not_before,
            delivered: None,
            tenant: self.clone(),
        })
    }
}

/// Runs queued queries until no subscription is left.
async fn work(tenant: Arc<TenantInner>) {
    loop {
        let next = {
            let mut registry = tenant.live.lock();
            let next = registry.queue.pop_front();
            if next.is_none() && registry.groups.is_empty() {
                registry.worker = false;
                return;
            }
            next
        };
        match next {
            Some(id) => {
                if let Err(error) = run_one(&tenant, id).await {
                    tracing::warn!(tenant = %tenant.id, %error, inside = error.inside(), "a live query is tried again");
                    tokio::time::sleep(RETRY).await;
                }
            }
            None => tenant.live.work.notified().await,
        }
    }
}

/// Runs a query and publishes its result if it changed.
///
/// # Errors
/// The provider's failure: the query is queued again, since no commit may come to do that.
async fn run_one(tenant: &Arc<TenantInner>, id: u64) -> Result<(), Arc<StoreError>> {
    let query = {
        let mut registry = tenant.live.lock();
        let Some(group) = registry.groups.get_mut(&id) else {
            return Ok(());
        };
        group.stage = Stage::Running;
        group.query.clone()
    };
    tenant
        .counters
        .reevaluations
        .fetch_add(1, Ordering::Relaxed);
    let (result, reads) = evaluate(tenant, &query).await;
    let sequence = result.sequence;
    let failure = match &result.documents {
        Err(error) if matches!(**error, StoreError::Storage(_)) => Some(error.clone()),
        _ => None,
    };
    {
        let mut registry = tenant.live.lock();
        // What a failed run read says nothing about what the query depends on.
        if failure.is_none() {
            registry.register(id, reads);
        }
        let Some(group) = registry.groups.get_mut(&id) else {
            return Ok(());
        };
        group.publish(result);
    }
    // Commits that became durable after the view was taken and before the new read set was
    // registered were not seen by `invalidate`; every later one is.
    let (covered, missed) = {
        let state = tenant.state();
        let durable = state.durable.sequence;
        if durable > sequence {
            let missed = state.committed_between(sequence, durable);
            (state.covers(sequence), missed)
        } else {
            (true, Vec::new())
        }
    };
    let mut registry = tenant.live.lock();
    let Some(group) = registry.groups.get_mut(&id) else {
        return Ok(());
    };
    let touched = missed.iter().flat_map(|c| c.keys.iter());
    let again = failure.is_some()
        || group.stage == Stage::RunningAgain
        || !covered
        || touched.into_iter().any(|key| group.reads.contains(key));
    group.stage = Stage::Idle;
    if again {
        registry.mark(id);
    } else {
        group.settle_debt();
    }
    failure.map_or(Ok(()), Err)
}

impl Group {
    fn publish(&self, mut result: LiveResult) {
        self.results.send_if_modified(|newest| {
            if let Some(old) = newest {
                if old.same(&result) {
                    return false;
                }
                result.revision = old.revision + 1;
            }
            *newest = Some(Arc::new(result));
            true
        });
    }

    /// Nothing touched the query up to the newest commit: those who wait for a result that
    /// recent get the one that is known.
    fn settle_debt(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        self.results.send_if_modified(|newest| match newest {
            Some(known) if known.sequence < owed => {
                *newest = Some(Arc::new(LiveResult {
                    sequence: owed,
                    documents: known.documents.clone(),
                    revision: known.revision,
                }));
                true
            }
            _ => false,
        });
    }
}

async fn evaluate(tenant: &Arc<TenantInner>, query: &Query) -> (LiveResult, ReadSet) {
    let mut view = match tenant.durable_view(true).await {
        Ok(view) => view,
        Err(error) => {
            let sequence = tenant.state().durable.sequence;
            let documents = Err(Arc::new(error));
            return (
                LiveResult {
                    sequence,
                    documents,
                    revision: 0,
                },
                ReadSet::default(),
            );
        }
    };
    let sequence = view.read_sequence;
    let documents = match txn::query_all(&mut view, query).await {
        Ok(documents) => Ok(documents.into()),
        Err(error) => Err(Arc::new(error)),
    };
    (
        LiveResult {
            sequence,
            documents,
            revision: 0,
        },
        view.reads,
    )
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
