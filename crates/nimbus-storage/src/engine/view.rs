//! One consistent state of a tenant, as a transaction or a query reads it.
//!
//! Three layers lie over each other: the provider's snapshot, commits that are validated but
//! not durable (for transactions that write), and the transaction's own writes. What is read
//! is recorded. Documents and queries are not known here; keys and values are.
//!
//! Where a snapshot is a journey to another machine, a transaction has none until it reads what
//! only a snapshot can answer: one that only inserts never does.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::catalog::Catalog;
use super::overlay::{self, Overlay};
use super::readset::{ReadSet, SpaceKey};
use super::record::Write;
use super::state::{State, Writes};
use super::tenant::TenantInner;
use crate::error::{StoreError, StoreResult};
use crate::provider::{Direction, KeyRange, Keyspace, Row, SCAN_BYTES, Snapshot};

/// Documents that one transaction or query may read (scanned, not only returned): 250,000, and
/// few in tests.
pub(crate) const MAX_READ_DOCUMENTS: u64 = if cfg!(test) { 2_000 } else { 250_000 };
/// Bytes that one transaction or query may read: 256 MiB, and little in tests.
pub(crate) const MAX_READ_BYTES: u64 = if cfg!(test) { 8 } else { 256 } * 1024 * 1024;
/// Keys that one transaction may write, index entries included.
pub(crate) const MAX_WRITES: usize = 128_000;
/// Bytes that one transaction may write: 16 MiB of values.
pub(crate) const MAX_WRITE_BYTES: usize = 16 * 1024 * 1024;

/// Work after which a task lets others run: a few hundred small rows.
const PACE: usize = 4_096;

/// The lowest layer.
enum Base {
    Snapshot(Box<dyn Snapshot>),
    /// Nothing was read yet that only a snapshot can answer.
    Untaken(Arc<TenantInner>),
    /// When the snapshot was to be taken, what had been relied on was not so any more: this key, if it is
    /// known which.
    Outdated(Option<SpaceKey>),
}

/// See the module documentation.
pub(crate) struct View {
    base: Base,
    overlay: Overlay,
    pub(crate) catalog: Arc<Catalog>,
    /// The catalog without the view's own writes.
    found: Arc<Catalog>,
    pub(crate) writes: Writes,
    pub(crate) reads: ReadSet,
    /// Newest commit visible.
    pub(crate) read_sequence: u64,
    /// Newest commit in the snapshot itself; the layer above it holds those up to
    /// `read_sequence`.
    durable: u64,
    pub(crate) epoch: u64,
    /// Newest commit that an answer depends on and that was not durable when read.
    pub(crate) seen: u64,
    track: bool,
    /// Time of the newest commit visible, ns since 1970-01-01.
    pub(crate) timestamp: u64,
    /// Time of the newest commit in the snapshot itself.
    pub(crate) durable_timestamp: u64,
    /// A view that only reads refuses every write.
    pub(crate) read_only: bool,
    /// Counts the changes to `writes`, so that who read ahead notices them.
    pub(crate) write_version: u64,
    /// Whether reads are counted against [`MAX_READ_BYTES`].
    bounded: bool,
    /// For a state of the past: the time of the snapshot, whose code rows it shows.
    newest: Option<u64>,
    /// Work since the task last let others run.
    unpaced: usize,
    write_bytes: usize,
    pub(crate) documents_read: u64,
    pub(crate) bytes_read: u64,
}

/// A range scan in progress.
pub(crate) struct Scan {
    pub(crate) space: Keyspace,
    pub(crate) remaining: KeyRange,
    pub(crate) direction: Direction,
    pub(crate) done: bool,
}

impl Scan {
    pub(crate) fn new(space: Keyspace, range: KeyRange, direction: Direction) -> Scan {
        let done = range.is_empty();
        Scan {
            space,
            remaining: range,
            direction,
            done,
        }
    }

    /// Takes the part up to and including `last` (or everything) out of the remaining range.
    fn advance(&mut self, last: Option<&[u8]>) -> KeyRange {
        let Some(last) = last else {
            self.done = true;
            return self.remaining.clone();
        };
        match self.direction {
            Direction::Forward => {
                let next = [last, &[0]].concat();
                let covered = KeyRange {
                    start: self.remaining.start.clone(),
                    end: Some(next.clone()),
                };
                self.remaining.start = next;
                covered
            }
            Direction::Backward => {
                let covered = KeyRange {
                    start: last.to_vec(),
                    end: self.remaining.end.clone(),
                };
                self.remaining.end = Some(last.to_vec());
                covered
            }
        }
    }
}

impl View {
    pub(crate) fn new(
        snapshot: Box<dyn Snapshot>,
        overlay: Overlay,
        catalog: Arc<Catalog>,
        (durable, read_sequence): (u64, u64),
        epoch: u64,
        track: bool,
    ) -> View {
        let base = Base::Snapshot(snapshot);
        View::over(
            base,
            overlay,
            catalog,
            (durable, read_sequence),
            epoch,
            track,
        )
    }

    /// The newest state without a snapshot, for a transaction: one is taken when it is needed.
    pub(crate) fn untaken(tenant: Arc<TenantInner>, state: &State) -> View {
        let mut view = View::over(
            Base::Untaken(tenant),
            state.overlay.clone(),
            state.catalog(),
            (state.durable.sequence, state.head.sequence),
            state.epoch,
            true,
        );
        view.timestamp = state.head.timestamp;
        view.durable_timestamp = state.durable.timestamp;
        view
    }

    fn over(
        base: Base,
        overlay: Overlay,
        catalog: Arc<Catalog>,
        (durable, read_sequence): (u64, u64),
        epoch: u64,
        track: bool,
    ) -> View {
        View {
            base,
            overlay,
            found: catalog.clone(),
            catalog,
            writes: Writes::new(),
            reads: ReadSet::default(),
            read_sequence,
            durable,
            epoch,
            seen: 0,
            track,
            timestamp: 0,
            durable_timestamp: 0,
            read_only: false,
            write_version: 0,
            bounded: true,
            newest: None,
            unpaced: 0,
            write_bytes: 0,
            documents_read: 0,
            bytes_read: 0,
        }
    }

    /// Whether its snapshot was taken.
    pub(crate) fn has_snapshot(&self) -> bool {
        matches!(self.base, Base::Snapshot(_))
    }

    /// Whether it found that what it relied on is not so any more: its transaction is to be run again. Within,
    /// the key that changed, if it is known.
    pub(crate) fn outdated(&self) -> Option<&Option<SpaceKey>> {
        match &self.base {
            Base::Outdated(key) => Some(key),
            _ => None,
        }
    }

    /// Takes the snapshot unless that is done. The view then shows the newest state, in which everything is
    /// as it was when it was relied on.
    ///
    /// # Errors
    /// `Conflict` if it is not; else the provider's failure, after which this may be tried again.
    pub(crate) async fn take_snapshot(&mut self) -> StoreResult<()> {
        let tenant = match &self.base {
            Base::Snapshot(_) => return Ok(()),
            Base::Outdated(key) => return Err(self.conflict(key.as_ref())),
            Base::Untaken(tenant) => tenant.clone(),
        };
        let relied_on = (self.epoch, self.answered_at());
        match tenant.view_after(&self.reads, relied_on).await? {
            Ok(newer) => {
                self.rise_to(newer);
                Ok(())
            }
            Err(key) => {
                let error = self.conflict(key.as_ref());
                self.base = Base::Outdated(key);
                Err(error)
            }
        }
    }

    fn conflict(&self, key: Option<&SpaceKey>) -> StoreError {
        StoreError::Conflict {
            attempts: 1,
            table: key.and_then(|(space, key)| self.catalog.table_of(*space, key)),
        }
    }

    /// Puts the layers of a newer view below the own writes, none of which are of the catalog.
    fn rise_to(&mut self, newer: View) {
        self.base = newer.base;
        self.overlay = newer.overlay;
        self.found = newer.found;
        self.catalog = newer.catalog;
        self.read_sequence = newer.read_sequence;
        self.durable = newer.durable;
        self.epoch = newer.epoch;
        self.timestamp = newer.timestamp;
        self.durable_timestamp = newer.durable_timestamp;
    }

    /// Compares what was relied on with the newest state, for a transaction that leaves nothing behind: no
    /// commit does it. [`View::outdated`] tells the result.
    ///
    /// # Errors
    /// The provider's failure.
    pub(crate) async fn confirm(&mut self) -> StoreResult<()> {
        if self.reads.is_empty() {
            return Ok(());
        }
        match self.take_snapshot().await {
            Err(StoreError::Conflict { .. }) => Ok(()),
            taken => taken,
        }
    }

    /// The view for work on a whole tenant or its log, which keeps little of what it reads.
    pub(crate) fn unbounded(mut self) -> View {
        self.bounded = false;
        self
    }

    /// The view with its reads recorded from now on.
    pub(crate) fn tracked(mut self) -> View {
        self.track = true;
        self
    }

    /// The view for function reads that write nothing.
    pub(crate) fn read_only(mut self) -> View {
        self.read_only = true;
        self
    }

    /// Bounds the reads again after [`View::unbounded`], from here on.
    pub(crate) fn bound_again(&mut self) {
        self.bounded = true;
        self.documents_read = 0;
        self.bytes_read = 0;
    }

    /// Lets other tasks run now and then: reads run on the caller's task and need not wait for
    /// anything. To be called for each row, with the operations on it and its bytes.
    pub(crate) async fn pace(&mut self, operations: usize, bytes: usize) {
        self.unpaced += 16 + operations + bytes / 256;
        if self.unpaced >= PACE {
            self.unpaced = 0;
            tokio::task::yield_now().await;
        }
    }

    /// The keys of a range that the transaction itself wrote, with whether they are there.
    pub(crate) fn own_writes(&self, space: Keyspace, range: &KeyRange) -> Vec<(Bytes, bool)> {
        let start = (space, Bytes::copy_from_slice(&range.start));
        self.writes
            .range(start..)
            .take_while(|((s, key), _)| *s == space && range.contains(key))
            .map(|((_, key), write)| (key.clone(), write.after.is_some()))
            .collect()
    }

    /// The error for a code row that is not there any more, if the view is of the past.
    pub(crate) fn code_gone(&self) -> Option<StoreError> {
        self.newest
            .map(|newest| StoreError::TimestampOutOfRetention {
                requested: self.timestamp,
                newest,
            })
    }

    /// Lays what was undone over a view of which nothing was read yet: it then shows the state
    /// after the commit `sequence`, code rows excepted, and tracks what is read from now on.
    pub(crate) fn put_back(
        &mut self,
        undone: Overlay,
        catalog: Arc<Catalog>,
        (sequence, timestamp): (u64, u64),
    ) {
        self.newest = Some(self.timestamp);
        self.overlay = undone;
        self.catalog = catalog;
        self.read_sequence = sequence;
        self.durable = sequence;
        self.timestamp = timestamp;
        self.durable_timestamp = timestamp;
        self.track = true;
        self.reads = ReadSet::default();
        self.bound_again();
    }

    /// The newest commit that what was read depends on: the reads are those of the state after
    /// it. Commits above it did not touch what was read, and may yet be thrown away.
    pub(crate) fn answered_at(&self) -> u64 {
        self.durable.max(self.seen)
    }

    /// Records that the caller relied on a key that the catalog answered for.
    pub(crate) fn rely_on(&mut self, space: Keyspace, key: &[u8]) {
        self.note_point(space, key);
        if let Some(pending) = self.overlay.get(space, key) {
            self.seen = self.seen.max(pending.sequence);
        }
    }

    /// Records that one key was read.
    pub(crate) fn note_point(&mut self, space: Keyspace, key: &[u8]) {
        if self.track {
            self.reads.add_point(space, key);
        }
    }

    /// Records that a range was read.
    pub(crate) fn note_range(&mut self, space: Keyspace, range: &KeyRange) {
        if self.track {
            self.reads.add_range(space, range);
        }
    }

    /// Whether a key lies in what was read.
    pub(crate) fn has_read(&self, space: Keyspace, key: &[u8]) -> bool {
        self.reads.contains(&(space, Bytes::copy_from_slice(key)))
    }

    /// The value of one key.
    pub(crate) async fn get(&mut self, space: Keyspace, key: &[u8]) -> StoreResult<Option<Bytes>> {
        let mut found = self.get_many(space, &[key]).await?;
        Ok(found.pop().flatten())
    }

    /// The value of each key, in the order asked.
    pub(crate) async fn get_many(
        &mut self,
        space: Keyspace,
        keys: &[&[u8]],
    ) -> StoreResult<Vec<Option<Bytes>>> {
        // Before they count as read: that they changed until now is no conflict.
        if !self.has_snapshot() && !keys.iter().all(|key| self.knows(space, key)) {
            self.take_snapshot().await?;
        }
        for key in keys {
            self.note_point(space, key);
        }
        self.look_up(space, keys).await
    }

    /// As [`View::get_many`], for a reader that records what it uses of this by itself.
    pub(crate) async fn get_ahead(
        &mut self,
        space: Keyspace,
        keys: &[&[u8]],
    ) -> StoreResult<Vec<Option<Bytes>>> {
        // A later snapshot could show something else, and nothing here says that this was read.
        self.take_snapshot().await?;
        self.look_up(space, keys).await
    }

    async fn look_up(
        &mut self,
        space: Keyspace,
        keys: &[&[u8]],
    ) -> StoreResult<Vec<Option<Bytes>>> {
        let mut out = Vec::with_capacity(keys.len());
        let mut missing = Vec::new();
        for key in keys {
            match self.layered(space, key) {
                Some(value) => out.push(value),
                None => {
                    missing.push((out.len(), *key));
                    out.push(None);
                }
            }
        }
        if !missing.is_empty() {
            let asked: Vec<&[u8]> = missing.iter().map(|(_, k)| *k).collect();
            let stored = self.snapshot()?.get_many(space, &asked).await?;
            for ((slot, _), value) in missing.into_iter().zip(stored) {
                out[slot] = value;
            }
        }
        self.account(space, out.iter().flatten().map(Bytes::len))?;
        Ok(out)
    }

    /// The snapshot, once it is taken.
    fn snapshot(&mut self) -> StoreResult<&mut dyn Snapshot> {
        match &mut self.base {
            Base::Snapshot(snapshot) => Ok(&mut **snapshot),
            _ => Err(StoreError::corrupt("a read before its snapshot")),
        }
    }

    /// Whether the layers above the snapshot know the key.
    fn knows(&self, space: Keyspace, key: &[u8]) -> bool {
        self.overlay.get(space, key).is_some()
            || self
                .writes
                .contains_key(&(space, Bytes::copy_from_slice(key)))
    }

    /// The value in the layers above the snapshot; `None` when they do not know the key.
    fn layered(&mut self, space: Keyspace, key: &[u8]) -> Option<Option<Bytes>> {
        if !self.writes.is_empty()
            && let Some(write) = self.writes.get(&(space, Bytes::copy_from_slice(key)))
        {
            return Some(write.after.clone());
        }
        let pending = self.overlay.get(space, key)?;
        self.seen = self.seen.max(pending.sequence);
        Some(pending.value.clone())
    }

    /// The next rows of a scan, at most about `limit`; empty rows do not mean the end,
    /// `scan.done` does.
    pub(crate) async fn scan_next(
        &mut self,
        scan: &mut Scan,
        limit: usize,
    ) -> StoreResult<Vec<Row>> {
        if scan.done {
            return Ok(Vec::new());
        }
        let (rows, covered) = self.scan_ahead(scan, limit).await?;
        self.note_range(scan.space, &covered);
        Ok(rows)
    }

    /// As [`View::scan_next`] with the range that the rows cover, for a reader that records what
    /// it uses of this by itself. Not for a scan that is done.
    pub(crate) async fn scan_ahead(
        &mut self,
        scan: &mut Scan,
        limit: usize,
    ) -> StoreResult<(Vec<Row>, KeyRange)> {
        self.take_snapshot().await?;
        let rows = self
            .snapshot()?
            .scan(scan.space, &scan.remaining, scan.direction, limit)
            .await?;
        let bytes: usize = rows.iter().map(|(k, v)| k.len() + v.len()).sum();
        let exhausted = rows.len() < limit && bytes < SCAN_BYTES;
        let last = if exhausted {
            None
        } else {
            rows.last().map(|(k, _)| k.as_slice())
        };
        let covered = scan.advance(last);
        let changes = self.changes(scan.space, &covered, scan.direction);
        let rows = overlay::merge(rows, changes, scan.direction);
        self.account(scan.space, rows.iter().map(|(_, v)| v.len()))?;
        Ok((rows, covered))
    }

    /// What the layers above the snapshot change within `range`.
    fn changes(
        &mut self,
        space: Keyspace,
        range: &KeyRange,
        direction: Direction,
    ) -> Vec<(Vec<u8>, Option<Bytes>)> {
        if self.overlay.is_empty() && self.writes.is_empty() {
            return Vec::new();
        }
        let mut changes = BTreeMap::new();
        let mut seen = self.seen;
        for (key, pending) in self.overlay.range(space, range) {
            seen = seen.max(pending.sequence);
            changes.insert(key.to_vec(), pending.value.clone());
        }
        self.seen = seen;
        let start = (space, Bytes::copy_from_slice(&range.start));
        for ((s, key), write) in self.writes.range(start..) {
            if *s != space || !range.contains(key) {
                break;
            }
            changes.insert(key.to_vec(), write.after.clone());
        }
        match direction {
            Direction::Forward => changes.into_iter().collect(),
            Direction::Backward => changes.into_iter().rev().collect(),
        }
    }

    fn account(&mut self, space: Keyspace, sizes: impl Iterator<Item = usize>) -> StoreResult<()> {
        for size in sizes {
            self.bytes_read += size as u64;
            if space == Keyspace::Docs {
                self.documents_read += 1;
            }
        }
        if self.bounded && self.bytes_read > MAX_READ_BYTES {
            return Err(StoreError::CapExceeded {
                cap: "read_bytes",
                limit: MAX_READ_BYTES,
                observed: self.bytes_read,
                advice: "narrow the query or declare an index that it can use",
            });
        }
        Ok(())
    }

    /// Writes a key whose value until now was `before`.
    ///
    /// # Errors
    /// As [`View::put_all`].
    pub(crate) fn put(
        &mut self,
        space: Keyspace,
        key: &[u8],
        before: Option<Bytes>,
        after: Option<Bytes>,
    ) -> StoreResult<()> {
        self.put_all(vec![(space, key.to_vec(), Write { before, after })])
    }

    /// Writes keys, or none of them.
    ///
    /// # Errors
    /// `CapExceeded` when the transaction would write too much; `InvalidInput` in one that only reads.
    pub(crate) fn put_all(&mut self, puts: Vec<(Keyspace, Vec<u8>, Write)>) -> StoreResult<()> {
        if self.read_only {
            return Err(StoreError::invalid(
                "a transaction that only reads cannot write",
            ));
        }
        let puts: Vec<(SpaceKey, Write)> = puts
            .into_iter()
            .map(|(space, key, write)| ((space, Bytes::from(key)), write))
            .collect();
        let new = puts
            .iter()
            .filter(|(key, _)| !self.writes.contains_key(key));
        let keys = self.writes.len() + new.count();
        let values = puts.iter().filter_map(|(_, write)| write.after.as_ref());
        let bytes = self.write_bytes + values.map(Bytes::len).sum::<usize>();
        if keys > MAX_WRITES {
            return Err(StoreError::CapExceeded {
                cap: "transaction_keys",
                limit: MAX_WRITES as u64,
                observed: keys as u64,
                advice: "split the work into several transactions, or use fewer indexes",
            });
        }
        if bytes > MAX_WRITE_BYTES {
            return Err(StoreError::CapExceeded {
                cap: "transaction_writes",
                limit: MAX_WRITE_BYTES as u64,
                observed: bytes as u64,
                advice: "split the work into several transactions",
            });
        }
        self.write_bytes = bytes;
        self.write_version += 1;
        for (key, write) in puts {
            match self.writes.get_mut(&key) {
                Some(known) => known.after = write.after,
                None => {
                    self.writes.insert(key, write);
                }
            }
        }
        Ok(())
    }

    /// Reads and writes so far, to return to if a nested step fails.
    pub(crate) fn savepoint(&self) -> Savepoint {
        Savepoint {
            writes: self.writes.clone(),
            catalog: self.has_snapshot().then(|| self.catalog.clone()),
            write_bytes: self.write_bytes,
        }
    }

    /// Undoes writes since the savepoint. Reads stay recorded: they did happen.
    pub(crate) fn roll_back(&mut self, savepoint: Savepoint) {
        self.write_version += 1;
        self.writes = savepoint.writes;
        self.catalog = savepoint.catalog.unwrap_or_else(|| self.found.clone());
        self.write_bytes = savepoint.write_bytes;
    }
}

/// See [`View::savepoint`].
pub(crate) struct Savepoint {
    writes: Writes,
    /// `None` before the snapshot was taken: no own writes are of the catalog yet, and that of the
    /// snapshot may be a newer one.
    catalog: Option<Arc<Catalog>>,
    write_bytes: usize,
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
