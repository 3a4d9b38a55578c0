//! The thread that writes to a tenant's file: one commit after the other, none cancelled half-way,
//! and none after one whose outcome is unknown.
//!
//! Must not know snapshots. Every durable commit is redb's two-phase commit with quick repair: the
//! first phase makes pages and commit slot durable, the second one makes the slot count.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use redb::{Database, ReadableTable, WriteTransaction};

use super::file::{self, Place};
use super::held::Held;
use super::snapshots::Shared;
use super::{Durability, RELAXED_FOR};
use crate::pages::Stop;
use crate::provider::local::{FORMAT_KEY, Job, decode_head};
use crate::provider::{
    Batch, CommitError, HEAD_KEY, Head, Keyspace, ProviderError, ProviderResult, files,
};

/// Bytes of keys and values that may be committed but not durable, with relaxed durability.
const RELAXED_BYTES: usize = 4 << 20;
/// Syncs that a durable commit waits for.
const SYNCS: u64 = 2;
/// Bytes on the disk that a commit leaves alone.
const SPARE_BYTES: u64 = 1 << 20;
/// Bytes that writing a row may take beside the row: its leaf, its branches, the freed pages.
const ROW_BYTES: u64 = 4 * 4096;

/// What the thread shows of itself.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) commits: AtomicU64,
    pub(super) syncs: AtomicU64,
    /// Times that relaxed commits were made durable.
    pub(super) flushes: AtomicU64,
    /// Set by a commit of unknown outcome: this store commits no more.
    failed: AtomicBool,
}

struct Writer {
    place: Place,
    db: Shared,
    stop: Stop,
    durability: Durability,
    counters: Arc<Counters>,
    /// Commits that are not durable: their bytes, and until when they may stay so.
    relaxed: Option<(usize, Instant)>,
    _held: Held,
}

/// Starts the thread.
pub(super) fn start(
    (place, held): (Place, Held),
    db: Shared,
    stop: Stop,
    durability: Durability,
    counters: Arc<Counters>,
) -> ProviderResult<mpsc::Sender<Job>> {
    let (sender, jobs) = mpsc::channel();
    let what = format!("starting the writer of {}", place.path.display());
    let writer = Writer {
        place,
        db,
        stop,
        durability,
        counters,
        relaxed: None,
        _held: held,
    };
    std::thread::Builder::new()
        .name("nimbus-commit".to_owned())
        .spawn(move || writer.run(&jobs))
        .map_err(|e| ProviderError::io(what, e))?;
    Ok(sender)
}

/// Why a batch was not committed.
enum Failure {
    /// Nothing was written, and the file is as good as before.
    Refused(CommitError),
    /// redb, or the system below it, failed.
    Database(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(e: E) -> Failure {
        Failure::Database(e.into())
    }
}

impl Writer {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        let stopped = loop {
            match self.next(jobs) {
                Ok(Job::Commit {
                    expected,
                    batch,
                    reply,
                }) => {
                    let result = self.commit_once(expected, &batch);
                    // Nobody waits any more if the caller dropped its future: the commit stands.
                    let _ = reply.send(result);
                }
                Ok(Job::Stop { reply }) => break Some(reply),
                Err(RecvTimeoutError::Timeout) => self.flush(),
                // The store was dropped without being closed.
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        self.close();
        // Whoever waits may open the file again.
        drop(self);
        if let Some(reply) = stopped {
            let _ = reply.send(());
        }
    }

    fn next(&self, jobs: &mpsc::Receiver<Job>) -> Result<Job, RecvTimeoutError> {
        match self.relaxed {
            Some((bytes, _)) if bytes >= RELAXED_BYTES => Err(RecvTimeoutError::Timeout),
            Some((_, until)) => match until.checked_duration_since(Instant::now()) {
                Some(left) => jobs.recv_timeout(left),
                None => Err(RecvTimeoutError::Timeout),
            },
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Closes the file, which makes relaxed commits durable and trims it. After a failure it is left
    /// as a crash would: the next open finds out what it holds.
    fn close(&self) {
        if self.failed() {
            self.stop.now();
        }
        let db = self
            .db
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let closed = catch_unwind(AssertUnwindSafe(|| db.map(Database::close)));
        if self.failed() {
            return;
        }
        let path = self.place.path.display();
        match closed {
            Ok(Some(Err(e))) => tracing::error!(%path, error = %e, "closing the file failed"),
            Ok(_) => {}
            Err(_) => tracing::error!(%path, "closing the file panicked"),
        }
    }

    fn failed(&self) -> bool {
        self.counters.failed.load(Ordering::Acquire)
    }

    /// This store commits no more, and writes nothing more.
    fn fail(&self) {
        self.counters.failed.store(true, Ordering::Release);
        self.stop.now();
    }

    fn commit_once(&mut self, expected: Head, batch: &Batch) -> Result<(), CommitError> {
        if self.failed() {
            return Err(CommitError::Closed);
        }
        let run = catch_unwind(AssertUnwindSafe(|| self.commit(expected, batch)));
        let result = run.unwrap_or_else(|_| {
            let reason = format!("the writer of {} panicked", self.place.path.display());
            Err(CommitError::OutcomeUnknown { reason })
        });
        match &result {
            Ok(()) => self.committed(batch),
            Err(CommitError::OutcomeUnknown { reason }) => {
                self.fail();
                let path = self.place.path.display();
                tracing::error!(%path, %reason, "commit of unknown outcome; the store takes no more commits");
            }
            Err(_) => {}
        }
        result
    }

    fn committed(&mut self, batch: &Batch) {
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        if self.durability == Durability::Full {
            self.counters.syncs.fetch_add(SYNCS, Ordering::Relaxed);
            return;
        }
        let until = Instant::now() + RELAXED_FOR;
        let (bytes, _) = self.relaxed.get_or_insert((0, until));
        *bytes += bytes_of(batch);
    }

    /// Makes relaxed commits durable.
    fn flush(&mut self) {
        self.relaxed = None;
        if self.failed() {
            return;
        }
        let flushed = catch_unwind(AssertUnwindSafe(|| {
            self.with_db(|db| {
                let mut txn = db.begin_write()?;
                txn.set_quick_repair(true);
                txn.commit()?;
                Ok(())
            })
        }));
        let path = self.place.path.display();
        match flushed {
            Ok(Ok(())) => {
                self.counters.flushes.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Err(Failure::Database(e))) => {
                tracing::error!(%path, error = %e, "relaxed commits could not be made durable; the store takes no more");
                self.fail();
            }
            Ok(Err(Failure::Refused(_))) => {}
            Err(_) => {
                tracing::error!(%path, "making relaxed commits durable panicked; the store takes no more");
                self.fail();
            }
        }
    }

    fn with_db<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, Failure> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        match db.as_ref() {
            Some(db) => work(db),
            None => Err(Failure::Refused(CommitError::Closed)),
        }
    }

    fn commit(&self, expected: Head, batch: &Batch) -> Result<(), CommitError> {
        #[cfg(test)]
        super::tests::panic_if_asked(batch);
        refuse_own_keys(batch)?;
        self.check_space(batch)?;
        let done = self.with_db(|db| {
            let mut txn = db.begin_write()?;
            match self.durability {
                Durability::Full => txn.set_quick_repair(true),
                Durability::Relaxed => txn.set_durability(redb::Durability::None)?,
            }
            match write(&txn, expected, batch, &self.place.path) {
                Ok(()) => Ok(txn.commit()?),
                Err(e) => match (e, txn.abort()) {
                    // The database refuses everything that follows.
                    (Failure::Refused(_), Err(second)) => Err(second.into()),
                    (e, _) => Err(e),
                },
            }
        });
        match done {
            Ok(()) => Ok(()),
            Err(Failure::Refused(e)) => Err(e),
            Err(Failure::Database(e)) => Err(self.explain(expected, e)),
        }
    }

    /// redb refuses all work after a failed write, so a disk that is full has to show before: an
    /// estimate of what the commit takes at most.
    fn check_space(&self, batch: &Batch) -> Result<(), CommitError> {
        let path = &self.place.path;
        #[cfg(test)]
        if super::tests::trusts_the_disk(path) {
            return Ok(());
        }
        let rows = (batch.writes.len() as u64 + 2) * ROW_BYTES + 2 * bytes_of(batch) as u64;
        let len = std::fs::symlink_metadata(path).map_or(0, |m| m.len());
        // What redb remembers of which pages are free, written with each commit.
        let needed = rows + len / 4096 + SPARE_BYTES;
        let dir = path.parent().unwrap_or(Path::new("."));
        match files::free_bytes(dir) {
            Ok(free) if free < needed => Err(CommitError::Full {
                what: format!(
                    "{}: {free} bytes are free, and the commit may need {needed}",
                    path.display()
                ),
            }),
            // A commit shows what is wrong better.
            _ => Ok(()),
        }
    }

    /// What an error in a commit means. A lack of space after all: the file is opened again, which
    /// ends the snapshots that are open, and says whether the commit is there.
    fn explain(&self, expected: Head, e: redb::Error) -> CommitError {
        let what = format!("committing to {}: {e}", self.place.path.display());
        match &e {
            redb::Error::ValueTooLarge(_) => return CommitError::Refused { reason: what },
            redb::Error::Io(e) if files::is_full(e) && self.durability == Durability::Full => {}
            _ => return CommitError::OutcomeUnknown { reason: what },
        }
        match self.reopen() {
            Ok(head) if head == expected => CommitError::Full { what },
            Ok(head) => CommitError::OutcomeUnknown {
                reason: format!("{what}; the head is {head:?}"),
            },
            Err(second) => CommitError::OutcomeUnknown {
                reason: format!("{what}; opening it again failed: {second}"),
            },
        }
    }

    fn reopen(&self) -> ProviderResult<Head> {
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = slot.take() {
            // It failed before, so there is nothing to write.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
        }
        let db = self.place.open(&self.stop)?;
        let head = file::check(&db, &self.place.path)?;
        *slot = Some(db);
        Ok(head)
    }
}

/// Bytes of keys and values.
fn bytes_of(batch: &Batch) -> usize {
    let row = |((_, key), value): (&(Keyspace, Vec<u8>), &Option<bytes::Bytes>)| {
        key.len() + value.as_ref().map_or(0, bytes::Bytes::len)
    };
    batch.writes.iter().map(row).sum()
}

/// Writes the batch into a transaction, if the head is the expected one.
fn write(
    txn: &WriteTransaction,
    expected: Head,
    batch: &Batch,
    path: &Path,
) -> Result<(), Failure> {
    {
        let mut meta = txn.open_table(file::table(Keyspace::Meta))?;
        let row = meta.get(HEAD_KEY)?.map(|row| row.value().to_vec());
        let actual = decode_head(path, row.as_deref()).map_err(|e| {
            let reason = e.to_string();
            Failure::Refused(CommitError::OutcomeUnknown { reason })
        })?;
        if actual != expected {
            return Err(Failure::Refused(CommitError::HeadMoved { actual }));
        }
        meta.insert(HEAD_KEY, batch.head.encode().as_slice())?;
    }
    for keyspace in Keyspace::ALL {
        let rows = batch.writes.range((keyspace, Vec::new())..);
        let mut rows = rows.take_while(|((k, _), _)| *k == keyspace).peekable();
        if rows.peek().is_none() {
            continue;
        }
        let mut table = txn.open_table(file::table(keyspace))?;
        for ((_, key), value) in rows {
            match value {
                Some(value) => table.insert(key.as_slice(), &value[..])?,
                None => table.remove(key.as_slice())?,
            };
        }
    }
    Ok(())
}

/// The rows that only the provider writes.
fn refuse_own_keys(batch: &Batch) -> Result<(), CommitError> {
    for own in [HEAD_KEY, FORMAT_KEY] {
        if batch.writes.contains_key(&(Keyspace::Meta, own.to_vec())) {
            let name = String::from_utf8_lossy(own);
            let reason = format!("the batch writes the provider's own row `{name}`");
            return Err(CommitError::Refused { reason });
        }
    }
    Ok(())
}
