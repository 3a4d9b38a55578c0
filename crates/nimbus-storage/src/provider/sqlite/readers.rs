//! Snapshots: read transactions on a small pool of connections, handed out in turn.
//!
//! Beginning and ending a transaction costs more than most reads, so a connection that comes back
//! keeps its transaction, and the next snapshot takes it over if nothing was committed since. Must
//! not know the writer, only its count of commits. A snapshot's connection sits in a slot that closing the store can
//! empty, so that nothing outlives `close`.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::checkpoint::Wal;
use super::file::TenantFile;
use super::{connection, error, schema};
use crate::provider::local::blocking;
use crate::provider::{
    Direction, Head, KeyRange, Keyspace, ProviderError, ProviderResult, Row, Snapshot,
};

/// How long a snapshot waits for a free reader.
const WAIT_FOR_READER: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5_000 });
/// How long closing waits for snapshots to be dropped before it takes their connections.
const WAIT_FOR_SNAPSHOTS: Duration = WAIT_FOR_READER;
/// Bytes of keys and values after which a scan ends (the trait's bound).
const SCAN_BYTES: usize = 4 << 20;

/// A connection that a snapshot uses, until `close` takes it.
type Slot = Arc<Mutex<Option<Connection>>>;

/// The readers of one open tenant.
pub(super) struct Readers {
    path: TenantFile,
    wal: Arc<Wal>,
    /// Fair: first come, first served. Closed with the store.
    permits: Arc<Semaphore>,
    size: u32,
    state: Mutex<State>,
}

/// A connection that nobody uses.
struct Idle {
    conn: Connection,
    /// The transaction that it is still in.
    pinned: Option<Pinned>,
}

/// What a read transaction sees.
#[derive(Clone, Copy)]
struct Pinned {
    head: Head,
    /// [`Wal::changes`] before it began: while that is the same, it sees the newest state.
    changes: u64,
}

#[derive(Default)]
struct State {
    idle: VecDeque<Idle>,
    /// By number, so the first is the oldest.
    open: BTreeMap<u64, (Slot, Instant)>,
    next: u64,
    /// Sequence of the newest state that was handed out.
    newest: u64,
    closed: bool,
}

/// Counters of open snapshots.
pub(super) struct OpenSnapshots {
    pub(super) count: u64,
    pub(super) oldest: Duration,
}

impl Readers {
    /// A pool of at most `size` connections, opened when first needed.
    pub(super) fn new(path: TenantFile, size: usize, wal: Arc<Wal>) -> Arc<Readers> {
        let size = u32::try_from(size.clamp(1, 1024)).unwrap_or(1);
        Arc::new(Readers {
            path,
            wal,
            permits: Arc::new(Semaphore::new(size as usize)),
            size,
            state: Mutex::default(),
        })
    }

    /// A snapshot of the newest durable state, pinned before this returns.
    pub(super) async fn snapshot(self: &Arc<Self>) -> ProviderResult<Box<dyn Snapshot>> {
        if self.state().closed {
            return Err(ProviderError::Closed);
        }
        let acquire = self.permits.clone().acquire_owned();
        let permit = match tokio::time::timeout(WAIT_FOR_READER, acquire).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(ProviderError::Closed),
            Err(_) => {
                let what = format!("all {} readers of {}", self.size, self.path.display());
                return Err(ProviderError::Busy { what });
            }
        };
        // Read before the transaction begins: it may see more than this says, and never less.
        let changes = self.wal.changes();
        let (idle, newest) = {
            let mut state = self.state();
            (state.idle.pop_back(), state.newest)
        };
        // A commit is visible a moment before it is counted: who has seen it must not go back.
        let current = |pinned: &Pinned| pinned.changes == changes && pinned.head.sequence >= newest;
        let conn = match idle {
            Some(Idle {
                conn,
                pinned: Some(pinned),
            }) if current(&pinned) => return self.pin(conn, pinned, permit),
            Some(idle) => match idle.ended() {
                Some(conn) => conn,
                None => self.open().await?,
            },
            None => self.open().await?,
        };
        let head = begin(&conn, &self.path)?;
        self.path.authentic(&conn)?;
        self.pin(conn, Pinned { head, changes }, permit)
    }

    async fn open(&self) -> ProviderResult<Connection> {
        let path = self.path.clone();
        blocking(move || connection::reader(&path)).await
    }

    /// Ends the transactions that nobody uses, so that they do not keep the log from starting over.
    pub(super) fn let_go(&self) {
        let mut state = self.state();
        let idle = std::mem::take(&mut state.idle);
        let ended = idle.into_iter().filter_map(Idle::ended);
        state.idle = ended.map(|conn| Idle { conn, pinned: None }).collect();
    }

    fn pin(
        self: &Arc<Self>,
        conn: Connection,
        pinned: Pinned,
        permit: OwnedSemaphorePermit,
    ) -> ProviderResult<Box<dyn Snapshot>> {
        let mut state = self.state();
        if state.closed {
            return Err(ProviderError::Closed);
        }
        let slot = Arc::new(Mutex::new(Some(conn)));
        let number = state.next;
        state.newest = state.newest.max(pinned.head.sequence);
        state.next += 1;
        state.open.insert(number, (slot.clone(), Instant::now()));
        drop(state);
        let readers = self.clone();
        Ok(Box::new(SqliteSnapshot {
            slot,
            pinned,
            number,
            readers,
            _permit: permit,
        }))
    }

    /// Refuses new snapshots, waits for those open and then closes every connection. Blocks
    /// only to close files; the wait is asynchronous.
    pub(super) async fn close(&self) {
        self.state().closed = true;
        let all = self.permits.acquire_many(self.size);
        let waited = tokio::time::timeout(WAIT_FOR_SNAPSHOTS, all).await;
        self.permits.close();
        let (idle, open) = {
            let mut state = self.state();
            (
                std::mem::take(&mut state.idle),
                std::mem::take(&mut state.open),
            )
        };
        if waited.is_err() {
            let path = self.path.display();
            tracing::warn!(%path, snapshots = open.len(), "closed with snapshots open; they end now");
        }
        let ended = blocking(move || {
            drop(idle);
            for (slot, _) in open.into_values() {
                // Waits for a read in progress, which is short.
                drop(lock(&slot).take());
            }
            Ok(())
        });
        let _ = ended.await;
    }

    pub(super) fn open_snapshots(&self) -> OpenSnapshots {
        let state = self.state();
        OpenSnapshots {
            count: state.open.len() as u64,
            oldest: state
                .open
                .first_key_value()
                .map_or(Duration::ZERO, |(_, (_, since))| since.elapsed()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a read transaction. SQLite pins what it sees at the first read, so that is done too.
fn begin(conn: &Connection, path: &Path) -> ProviderResult<Head> {
    let mut begin = conn
        .prepare_cached("BEGIN DEFERRED")
        .map_err(|e| error::read(path, e))?;
    begin.execute(()).map_err(|e| error::read(path, e))?;
    schema::read_head(conn, path)
}

impl Idle {
    /// The connection without its transaction; `None` when that cannot be ended.
    fn ended(self) -> Option<Connection> {
        if self.pinned.is_none() {
            return Some(self.conn);
        }
        let ended = self
            .conn
            .prepare_cached("ROLLBACK")
            .and_then(|mut statement| statement.execute(()))
            .is_ok();
        ended.then_some(self.conn)
    }
}

struct SqliteSnapshot {
    slot: Slot,
    pinned: Pinned,
    number: u64,
    readers: Arc<Readers>,
    // Declared last: the permit goes back after the connection.
    _permit: OwnedSemaphorePermit,
}

impl SqliteSnapshot {
    fn with<T>(
        &self,
        read: impl FnOnce(&Connection, &Path) -> ProviderResult<T>,
    ) -> ProviderResult<T> {
        let mut slot = lock(&self.slot);
        let conn = slot.as_ref().ok_or(ProviderError::Closed)?;
        let found = read(conn, &self.readers.path);
        if let Err(e) = self.readers.path.authentic(conn) {
            // Nothing can be read through it any more, not even good pages.
            slot.take();
            return Err(e);
        }
        found
    }
}

impl Snapshot for SqliteSnapshot {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        // From memory, but no longer once the store is closed.
        async move { self.with(|_, _| Ok(self.pinned.head)) }.boxed()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        async move { self.with(|conn, path| get_many(conn, path, keyspace, keys)) }.boxed()
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        async move { self.with(|conn, path| scan(conn, path, keyspace, range, direction, limit)) }
            .boxed()
    }
}

impl Drop for SqliteSnapshot {
    fn drop(&mut self) {
        let Some(conn) = lock(&self.slot).take() else {
            self.readers.state().open.remove(&self.number);
            return;
        };
        // An error may have ended the transaction.
        let lives = !conn.is_autocommit();
        let mut idle = Some(Idle {
            conn,
            pinned: lives.then_some(self.pinned),
        });
        if self.readers.wal.changes() != self.pinned.changes {
            let ended = idle.take().and_then(Idle::ended);
            idle = ended.map(|conn| Idle { conn, pinned: None });
        }
        let mut state = self.readers.state();
        state.open.remove(&self.number);
        if !state.closed {
            // Looked at under the lock: a checkpoint says so first and then takes the lock.
            if self.readers.wal.restarting() {
                let ended = idle.take().and_then(Idle::ended);
                idle = ended.map(|conn| Idle { conn, pinned: None });
            }
            state.idle.extend(idle.take());
        }
        // What is left is closed outside the lock.
        drop(state);
        drop(idle);
    }
}

fn get_many(
    conn: &Connection,
    path: &Path,
    keyspace: Keyspace,
    keys: &[&[u8]],
) -> ProviderResult<Vec<Option<Bytes>>> {
    let fail = |e| error::read(path, e);
    let mut statement = conn
        .prepare_cached(schema::sql(keyspace).get)
        .map_err(fail)?;
    let mut out = Vec::with_capacity(keys.len());
    for key in keys {
        let value = statement
            .query_row((key,), |row| {
                let value = row.get_ref(0)?;
                Ok(schema::bytes(path, value).map(Bytes::copy_from_slice))
            })
            .optional()
            .map_err(fail)?;
        out.push(value.transpose()?);
    }
    Ok(out)
}

fn scan(
    conn: &Connection,
    path: &Path,
    keyspace: Keyspace,
    range: &KeyRange,
    direction: Direction,
    limit: usize,
) -> ProviderResult<Vec<Row>> {
    if range.is_empty() || limit == 0 {
        return Ok(Vec::new());
    }
    let fail = |e| error::read(path, e);
    let sql = schema::sql(keyspace);
    let text = match (&range.end, direction) {
        (None, Direction::Forward) => sql.from,
        (None, Direction::Backward) => sql.from_backward,
        (Some(_), Direction::Forward) => sql.range,
        (Some(_), Direction::Backward) => sql.range_backward,
    };
    let mut statement = conn.prepare_cached(text).map_err(fail)?;
    let (start, rows_wanted) = (
        range.start.as_slice(),
        i64::try_from(limit).unwrap_or(i64::MAX),
    );
    let mut rows = match &range.end {
        Some(end) => statement.query((start, rows_wanted, end.as_slice())),
        None => statement.query((start, rows_wanted)),
    }
    .map_err(fail)?;
    let mut out = Vec::new();
    let mut size = 0;
    while size <= SCAN_BYTES {
        let Some(row) = rows.next().map_err(fail)? else {
            break;
        };
        let key = schema::bytes(path, row.get_ref(0).map_err(fail)?)?;
        let value = schema::bytes(path, row.get_ref(1).map_err(fail)?)?;
        size += key.len() + value.len();
        out.push((key.to_vec(), Bytes::copy_from_slice(value)));
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_scan_with_another_limit_is_not_prepared_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("a.sqlite3");
        let path = TenantFile::plain(path);
        std::fs::write(&*path, []).unwrap();
        connection::create(&path).unwrap();
        let conn = connection::reader(&path).unwrap();
        let sql = schema::sql(Keyspace::Docs);
        for (text, direction, end) in [
            (sql.from, Direction::Forward, None),
            (sql.from_backward, Direction::Backward, None),
            (sql.range, Direction::Forward, Some(vec![9])),
            (sql.range_backward, Direction::Backward, Some(vec![9])),
        ] {
            for number in 1..=5 {
                let range = KeyRange {
                    start: vec![number],
                    end: end.clone(),
                };
                let limit = usize::from(number);
                scan(&conn, &path, Keyspace::Docs, &range, direction, limit).unwrap();
            }
            let statement = conn.prepare_cached(text).unwrap();
            assert_eq!(statement.get_status(StatementStatus::Run), 5, "{text}");
            assert_eq!(
                statement.get_status(StatementStatus::RePrepare),
                0,
                "{text}"
            );
        }
    }
}
