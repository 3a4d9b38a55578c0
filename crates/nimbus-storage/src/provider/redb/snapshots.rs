//! Snapshots: read transactions of redb, which cost no connection and hold nobody up.
//!
//! Must not know the writer. What a snapshot reads from sits in a slot that closing the store can empty, so
//! that nothing outlives `close`.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::file;
use crate::pages::error::{error, guarded};
use crate::provider::local::blocking;
use crate::provider::{
    Direction, Head, KeyRange, Keyspace, ProviderError, ProviderResult, Row, SCAN_BYTES, Snapshot,
};

/// How long closing waits for snapshots to be dropped before it ends them.
const WAIT_FOR_SNAPSHOTS: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5_000 });
/// More snapshots than any server has open. Each takes a permit, so closing can wait for all.
const MOST: u32 = 1 << 20;

/// The open database of a store; `None` once closed, or while it is opened again.
pub(super) type Shared = Arc<RwLock<Option<Database>>>;

type Slot = Arc<Mutex<Option<Reader>>>;

/// The snapshots of one open tenant.
pub(super) struct Snapshots {
    path: PathBuf,
    db: Shared,
    permits: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By number, so the first is the oldest.
    open: BTreeMap<u64, (Slot, Instant)>,
    next: u64,
    closed: bool,
}

/// A read transaction and the tables that it has used.
struct Reader {
    txn: ReadTransaction,
    tables: [Option<ReadOnlyTable<&'static [u8], &'static [u8]>>; Keyspace::ALL.len()],
}

impl Reader {
    fn table(
        &mut self,
        keyspace: Keyspace,
    ) -> Result<&ReadOnlyTable<&'static [u8], &'static [u8]>, redb::Error> {
        let place = &mut self.tables[keyspace as usize];
        let table = match place.take() {
            Some(table) => table,
            None => self.txn.open_table(file::table(keyspace))?,
        };
        Ok(place.insert(table))
    }
}

impl Snapshots {
    pub(super) fn new(path: PathBuf, db: Shared) -> Arc<Snapshots> {
        Arc::new(Snapshots {
            path,
            db,
            permits: Arc::new(Semaphore::new(MOST as usize)),
            state: Mutex::default(),
        })
    }

    /// A snapshot of the newest state, pinned before this returns.
    pub(super) async fn snapshot(self: &Arc<Self>) -> ProviderResult<Box<dyn Snapshot>> {
        if self.state().closed {
            return Err(ProviderError::Closed);
        }
        let acquired = self.permits.clone().acquire_owned().await;
        let permit = acquired.map_err(|_| ProviderError::Closed)?;
        let txn = {
            let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
            let db = db.as_ref().ok_or(ProviderError::Closed)?;
            guarded(&self.path, || {
                db.begin_read()
                    .map_err(|e| error("reading", &self.path, e.into()))
            })?
        };
        let head = guarded(&self.path, || file::read_head(&txn, &self.path))?;
        self.register(txn, head, permit)
    }

    fn register(
        self: &Arc<Self>,
        txn: ReadTransaction,
        head: Head,
        permit: OwnedSemaphorePermit,
    ) -> ProviderResult<Box<dyn Snapshot>> {
        let mut state = self.state();
        if state.closed {
            return Err(ProviderError::Closed);
        }
        let reader = Reader {
            txn,
            tables: Default::default(),
        };
        let slot = Arc::new(Mutex::new(Some(reader)));
        let number = state.next;
        state.next += 1;
        state.open.insert(number, (slot.clone(), Instant::now()));
        Ok(Box::new(RedbSnapshot {
            slot,
            head,
            number,
            snapshots: self.clone(),
            _permit: permit,
        }))
    }

    /// Refuses new snapshots, waits for those that are open, and ends what is left then.
    pub(super) async fn close(&self) {
        self.state().closed = true;
        let all = self.permits.acquire_many(MOST);
        let waited = tokio::time::timeout(WAIT_FOR_SNAPSHOTS, all).await;
        self.permits.close();
        let open = std::mem::take(&mut self.state().open);
        if waited.is_err() {
            let path = self.path.display();
            tracing::warn!(%path, snapshots = open.len(), "closed with snapshots open; they end now");
        }
        let ended = blocking(move || {
            for (slot, _) in open.into_values() {
                // Waits for a read in progress, which is short.
                drop(lock(&slot).take());
            }
            Ok(())
        });
        let _ = ended.await;
    }

    /// How many are open, and for how long the oldest has been.
    pub(super) fn count(&self) -> (u64, Duration) {
        let state = self.state();
        let oldest = state.open.first_key_value();
        let oldest = oldest.map_or(Duration::ZERO, |(_, (_, since))| since.elapsed());
        (state.open.len() as u64, oldest)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct RedbSnapshot {
    slot: Slot,
    head: Head,
    number: u64,
    snapshots: Arc<Snapshots>,
    // Declared last: the permit goes back after the transaction.
    _permit: OwnedSemaphorePermit,
}

impl RedbSnapshot {
    fn with<T>(
        &self,
        read: impl FnOnce(&mut Reader) -> Result<T, redb::Error>,
    ) -> ProviderResult<T> {
        let path = &self.snapshots.path;
        match lock(&self.slot).as_mut() {
            Some(reader) => guarded(path, || read(reader).map_err(|e| error("reading", path, e))),
            None => Err(ProviderError::Closed),
        }
    }
}

impl Snapshot for RedbSnapshot {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        // From memory, but no longer once the store is closed.
        async move { self.with(|_| Ok(self.head)) }.boxed()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        async move { self.with(|reader| get_many(reader, keyspace, keys)) }.boxed()
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        async move { self.with(|reader| scan(reader, keyspace, range, direction, limit)) }.boxed()
    }
}

impl Drop for RedbSnapshot {
    fn drop(&mut self) {
        drop(lock(&self.slot).take());
        self.snapshots.state().open.remove(&self.number);
    }
}

fn get_many(
    reader: &mut Reader,
    keyspace: Keyspace,
    keys: &[&[u8]],
) -> Result<Vec<Option<Bytes>>, redb::Error> {
    let table = reader.table(keyspace)?;
    let mut out = Vec::with_capacity(keys.len());
    for key in keys {
        let value = table.get(*key)?;
        out.push(value.map(|value| Bytes::copy_from_slice(value.value())));
    }
    Ok(out)
}

fn scan(
    reader: &mut Reader,
    keyspace: Keyspace,
    range: &KeyRange,
    direction: Direction,
    limit: usize,
) -> Result<Vec<Row>, redb::Error> {
    if range.is_empty() || limit == 0 {
        return Ok(Vec::new());
    }
    let end = range.end.as_deref();
    let bounds = (
        Bound::Included(range.start.as_slice()),
        end.map_or(Bound::Unbounded, Bound::Excluded),
    );
    let mut rows = reader.table(keyspace)?.range::<&[u8]>(bounds)?;
    let mut out = Vec::new();
    let mut size = 0;
    while size <= SCAN_BYTES && out.len() < limit {
        let row = match direction {
            Direction::Forward => rows.next(),
            Direction::Backward => rows.next_back(),
        };
        let Some(row) = row else { break };
        let (key, value) = row?;
        let (key, value) = (key.value(), value.value());
        size += key.len() + value.len();
        out.push((key.to_vec(), Bytes::copy_from_slice(value)));
    }
    Ok(out)
}
