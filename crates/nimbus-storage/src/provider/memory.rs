//! Tenants in memory that several engines of one process share, with everything that a shared namespace has:
//! commits of others, hints, turns, and deletion by another.
//!
//! For tests, of an embedder's too: what two servers on one database do to each other can be tried without a
//! database. It keeps nothing, syncs nothing and must not know documents.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use imbl::OrdMap;
use nimbus_core::TenantId;
use tokio::sync::{Notify, OwnedMutexGuard};

use super::{
    Batch, CommitError, Direction, HEAD_KEY, Head, KeyRange, Keyspace, Provider, ProviderError,
    ProviderResult, Row, Snapshot, StoreStats, TenantStore, Turn, Wake, WakeStore,
};
use crate::provider::wakes::WakeTable;

type Rows = OrdMap<(Keyspace, Vec<u8>), Bytes>;

/// When each open snapshot was taken.
type Views = Arc<Mutex<BTreeMap<u64, Instant>>>;

/// One namespace.
struct Space {
    rows: Mutex<Option<Rows>>,
    /// Held by a commit or a turn.
    writer: Arc<tokio::sync::Mutex<()>>,
    /// The servers that have it open.
    open: Mutex<BTreeMap<u64, Arc<Notify>>>,
}

/// What all of them share.
#[derive(Default)]
struct World {
    spaces: Mutex<HashMap<TenantId, Arc<Space>>>,
    wakes: Mutex<WakeTable>,
    stores: AtomicU64,
}

/// The provider of one engine. A clone is that of another one, over the same tenants.
#[derive(Clone, Default)]
pub struct MemoryProvider {
    world: Arc<World>,
}

impl MemoryProvider {
    /// A provider over no tenants.
    pub fn new() -> MemoryProvider {
        MemoryProvider::default()
    }

    fn find(&self, tenant: &TenantId) -> ProviderResult<Arc<Space>> {
        let found = lock(&self.world.spaces).get(tenant).cloned();
        found.ok_or_else(|| ProviderError::NotFound {
            tenant: tenant.clone(),
        })
    }

    fn make(&self, tenant: &TenantId, mark: Option<&[u8]>) -> ProviderResult<()> {
        let mut spaces = lock(&self.world.spaces);
        if spaces.contains_key(tenant) {
            let tenant = tenant.clone();
            return Err(ProviderError::AlreadyExists { tenant });
        }
        let head = Bytes::copy_from_slice(&Head::EMPTY.encode());
        let mut rows = Rows::unit((Keyspace::Meta, HEAD_KEY.to_vec()), head);
        if let Some(mark) = mark {
            rows.insert((Keyspace::Meta, mark.to_vec()), Bytes::from_static(b"{}"));
        }
        let space = Space {
            rows: Mutex::new(Some(rows)),
            writer: Arc::default(),
            open: Mutex::default(),
        };
        spaces.insert(tenant.clone(), Arc::new(space));
        Ok(())
    }
}

impl Provider for MemoryProvider {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        async { self.make(tenant, None) }.boxed()
    }

    fn create_marked<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        async { self.make(tenant, Some(mark)) }.boxed()
    }

    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>> {
        async {
            let space = self.find(tenant)?;
            let number = self.world.stores.fetch_add(1, Ordering::Relaxed);
            let hint = Arc::new(Notify::new());
            lock(&space.open).insert(number, hint.clone());
            let store = MemoryStore {
                tenant: tenant.clone(),
                space,
                number,
                hint,
                closed: AtomicBool::new(false),
                commits: AtomicU64::new(0),
                views: Views::default(),
            };
            Ok(Arc::new(store) as Arc<dyn TenantStore>)
        }
        .boxed()
    }

    fn wakes(&self) -> Option<Arc<dyn WakeStore>> {
        Some(self.world.clone())
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        async {
            let space = self.find(tenant)?;
            let _writer = space.writer.lock().await;
            lock(&self.world.spaces).remove(tenant);
            *lock(&space.rows) = None;
            space.wake(u64::MAX);
            Ok(())
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        let mut all: Vec<_> = lock(&self.world.spaces).keys().cloned().collect();
        all.sort();
        std::future::ready(Ok(all)).boxed()
    }

    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>> {
        std::future::ready(Ok(self.find(tenant).is_ok())).boxed()
    }

    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        let found = self.find(tenant).ok();
        found
            .map(|_| format!("memory:{tenant}"))
            .into_iter()
            .collect()
    }

    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        let tenant = tenant.clone();
        let answer = match self.find(&tenant) {
            Ok(_) => ProviderError::AlreadyExists { tenant },
            Err(missing) => missing,
        };
        std::future::ready(Err(answer)).boxed()
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        std::future::ready(Ok(())).boxed()
    }
}

impl WakeStore for World {
    fn lower<'a>(&'a self, tenant: &'a TenantId, at_ms: u64) -> BoxFuture<'a, ProviderResult<()>> {
        let mut wakes = lock(&self.wakes);
        let at_ms = wakes.at(tenant).map_or(at_ms, |old| old.min(at_ms));
        wakes.set(tenant, Some(at_ms));
        std::future::ready(Ok(())).boxed()
    }

    fn replace<'a>(
        &'a self,
        seen: &'a Wake,
        at_ms: Option<u64>,
    ) -> BoxFuture<'a, ProviderResult<bool>> {
        let mut wakes = lock(&self.wakes);
        let is_as_seen = wakes.is_as_seen(seen);
        if is_as_seen {
            wakes.set(&seen.tenant, at_ms);
        }
        std::future::ready(Ok(is_as_seen)).boxed()
    }

    fn get<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<Option<Wake>>> {
        std::future::ready(Ok(lock(&self.wakes).get(tenant))).boxed()
    }

    fn due(&self, now_ms: u64, limit: usize) -> BoxFuture<'_, ProviderResult<Vec<Wake>>> {
        std::future::ready(Ok(lock(&self.wakes).due(now_ms, limit))).boxed()
    }
}

impl Space {
    fn wake(&self, author: u64) {
        for (number, hint) in &*lock(&self.open) {
            if *number != author {
                hint.notify_one();
            }
        }
    }

    /// Applies a batch; whoever calls holds the writer's lock.
    fn apply(&self, expected: Head, batch: Batch, author: u64) -> Result<(), CommitError> {
        let head_key = (Keyspace::Meta, HEAD_KEY.to_vec());
        if batch.writes.contains_key(&head_key) {
            let reason = "the batch writes the head row".to_owned();
            return Err(CommitError::Refused { reason });
        }
        let mut held = lock(&self.rows);
        let rows = held.as_mut().ok_or(CommitError::Closed)?;
        let actual = head_of(rows);
        if actual != expected {
            return Err(CommitError::HeadMoved { actual });
        }
        for (key, value) in batch.writes {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        rows.insert(head_key, Bytes::copy_from_slice(&batch.head.encode()));
        drop(held);
        self.wake(author);
        Ok(())
    }
}

fn head_of(rows: &Rows) -> Head {
    let stored = rows.get(&(Keyspace::Meta, HEAD_KEY.to_vec()));
    stored
        .and_then(|stored| Head::decode(stored))
        .unwrap_or(Head::EMPTY)
}

struct MemoryStore {
    tenant: TenantId,
    space: Arc<Space>,
    number: u64,
    hint: Arc<Notify>,
    closed: AtomicBool,
    commits: AtomicU64,
    views: Views,
}

impl MemoryStore {
    fn look(&self) -> ProviderResult<MemorySnapshot> {
        let rows = self.rows()?;
        let mut views = lock(&self.views);
        let number = views.last_key_value().map_or(0, |(last, _)| last + 1);
        views.insert(number, Instant::now());
        Ok(MemorySnapshot {
            rows,
            number,
            views: self.views.clone(),
        })
    }

    fn rows(&self) -> ProviderResult<Rows> {
        if self.closed.load(Ordering::Acquire) {
            return Err(ProviderError::Closed);
        }
        let rows = lock(&self.space.rows).clone();
        rows.ok_or_else(|| ProviderError::NotFound {
            tenant: self.tenant.clone(),
        })
    }
}

impl TenantStore for MemoryStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        async { Ok(Box::new(self.look()?) as Box<dyn Snapshot>) }.boxed()
    }

    fn look_again(&self) {}

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        async move {
            // Others get to run, as they do while a database works.
            tokio::task::yield_now().await;
            let _writer = self.space.writer.lock().await;
            self.rows().map_err(|_| CommitError::Closed)?;
            self.space.apply(expected, batch, self.number)?;
            self.commits.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        .boxed()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.hint.notified().boxed()
    }

    fn turn(&self) -> BoxFuture<'_, Result<Box<dyn Turn>, CommitError>> {
        async {
            let writer = self.space.writer.clone().lock_owned().await;
            let snapshot = self.look().map_err(|_| CommitError::Closed)?;
            let turn = MemoryTurn {
                head: head_of(&snapshot.rows),
                snapshot,
                space: self.space.clone(),
                number: self.number,
                _writer: writer,
            };
            Ok(Box::new(turn) as Box<dyn Turn>)
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        self.closed.store(true, Ordering::Release);
        lock(&self.space.open).remove(&self.number);
        std::future::ready(Ok(())).boxed()
    }

    fn stats(&self) -> StoreStats {
        let views = lock(&self.views);
        let oldest = views.values().map(Instant::elapsed).max();
        StoreStats {
            commits: self.commits.load(Ordering::Relaxed),
            open_snapshots: views.len() as u64,
            oldest_snapshot_ms: oldest
                .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            ..StoreStats::default()
        }
    }
}

struct MemorySnapshot {
    rows: Rows,
    number: u64,
    views: Views,
}

impl Drop for MemorySnapshot {
    fn drop(&mut self) {
        lock(&self.views).remove(&self.number);
    }
}

impl Snapshot for MemorySnapshot {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        std::future::ready(Ok(head_of(&self.rows))).boxed()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        let found = keys
            .iter()
            .map(|key| self.rows.get(&(keyspace, key.to_vec())).cloned());
        std::future::ready(Ok(found.collect())).boxed()
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        if range.is_empty() {
            return std::future::ready(Ok(Vec::new())).boxed();
        }
        let next = Keyspace::ALL.get(keyspace as usize + 1);
        let end = match (&range.end, next) {
            (Some(end), _) => Bound::Excluded((keyspace, end.clone())),
            (None, Some(next)) => Bound::Excluded((*next, Vec::new())),
            (None, None) => Bound::Unbounded,
        };
        let start = Bound::Included((keyspace, range.start.clone()));
        let inside = self.rows.range((start, end));
        let row = |((_, key), value): (&(Keyspace, Vec<u8>), &Bytes)| (key.clone(), value.clone());
        let rows = match direction {
            Direction::Forward => inside.take(limit).map(row).collect(),
            Direction::Backward => inside.rev().take(limit).map(row).collect(),
        };
        std::future::ready(Ok(rows)).boxed()
    }
}

struct MemoryTurn {
    head: Head,
    snapshot: MemorySnapshot,
    space: Arc<Space>,
    number: u64,
    _writer: OwnedMutexGuard<()>,
}

impl Snapshot for MemoryTurn {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        self.snapshot.head()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        self.snapshot.get_many(keyspace, keys)
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        self.snapshot.scan(keyspace, range, direction, limit)
    }
}

impl Turn for MemoryTurn {
    fn commit(self: Box<Self>, batch: Batch) -> BoxFuture<'static, Result<(), CommitError>> {
        async move { self.space.apply(self.head, batch, self.number) }.boxed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic leaves them half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
