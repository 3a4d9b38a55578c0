//! The open log: entries are appended here, one at a time, by whoever has one.
//!
//! The caller's thread writes its line into the page cache under one lock, which takes a few
//! microseconds and orders the chain; the thread of `sync` makes lines durable, for many callers
//! at once. This room must not know when a caller needs that.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::anchor::{Anchor, AnchorStore};
use super::chain::{ChainKey, Point, seal};
use super::recover::{self, Recovered};
use super::segments::Place;
use super::{AuditEntry, AuditError, key, line, sync};
use crate::private_fs::PrivateFileError;

/// How much longer a segment grows when it could not be exchanged, before the next try, bytes.
const OVERGROWTH: u64 = 1 << 20;

/// How a log is kept.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuditOptions {
    /// Length in bytes from which a segment is full, and the room that is kept allocated for the
    /// next one. Default 64 MiB.
    pub segment_bytes: u64,
    /// Bytes that all segments may have together; beyond, the oldest full ones are deleted. `None`
    /// keeps all. Default 4 GiB.
    pub keep_bytes: Option<u64>,
    /// Longest time for which a line stays in memory that nobody waits for. Default 500 ms.
    pub sync_every: Duration,
    /// Shortest time between two anchors, but at the end of a segment and of the log. Default 5 s.
    pub anchor_every: Duration,
}

impl Default for AuditOptions {
    fn default() -> AuditOptions {
        AuditOptions {
            segment_bytes: 64 << 20,
            keep_bytes: Some(4 << 30),
            sync_every: Duration::from_millis(500),
            anchor_every: Duration::from_secs(5),
        }
    }
}

/// The open audit log. Share it in an `Arc`; all methods take `&self`. Dropping it makes every line
/// durable and writes the last anchor.
#[derive(Debug)]
pub struct AuditLog {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Released when the log is dropped.
    _lock: File,
}

/// What the writers and the syncing thread have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) place: Place,
    pub(super) key: ChainKey,
    pub(super) anchors: Arc<dyn AnchorStore>,
    pub(super) options: AuditOptions,
    pub(super) pen: Mutex<Pen>,
    /// Wakes the syncing thread.
    pub(super) work: Condvar,
    pub(super) progress: watch::Sender<Progress>,
}

/// How far lines are durable.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// Number of the last durable entry.
    pub(super) synced: u64,
    /// Counts failed syncs.
    pub(super) failures: u64,
    /// Why the last one failed; `None` once one has succeeded again.
    pub(super) error: Option<Arc<io::Error>>,
    /// Whether the thread has ended.
    pub(super) closed: bool,
}

/// The end of the log. Whoever holds it may write.
#[derive(Debug)]
pub(super) struct Pen {
    /// The segment, with its position at `len` unless `astray`.
    pub(super) file: Arc<File>,
    len: u64,
    /// Length at which it is exchanged for the next.
    full_at: u64,
    /// Number of its first entry.
    first: u64,
    pub(super) last: Point,
    /// The line being made; kept so that an entry costs no allocation.
    buffer: Vec<u8>,
    /// Whether a write failed, so that position and length of the file are not certain.
    astray: bool,
    /// The allocated file of the next segment.
    pub(super) spare: Option<File>,
    /// Up to here the segment is durable.
    pub(super) synced_len: u64,
    /// Full segments that are not durable yet.
    pub(super) retired: Vec<Unsynced>,
    /// Since when there is a line that is not durable.
    pub(super) dirty_since: Option<Instant>,
    /// The highest number that a caller waits for.
    pub(super) wanted: u64,
    pub(super) closing: bool,
}

/// A segment, or its end, that is not durable yet.
#[derive(Clone, Debug)]
pub(super) struct Unsynced {
    pub(super) file: Arc<File>,
    /// Up to here it is.
    pub(super) from: u64,
    pub(super) len: u64,
}

impl AuditLog {
    /// Opens the log at `path` for writing, with its key beside the admin token's file `token`.
    /// Missing files are made 0600, missing directories 0700. An error is logged when entries are
    /// missing; the server starts all the same, since the log keeps the gap for ever.
    ///
    /// # Errors
    /// [`AuditError::Open`] when a file or directory is a link, is open to others, belongs to another
    /// user or is of another kind; [`AuditError::Held`], [`AuditError::KeyMissing`],
    /// [`AuditError::KeyInvalid`], [`AuditError::Foreign`], [`AuditError::Anchor`],
    /// [`AuditError::AnchorFault`].
    pub fn open(
        path: &Path,
        token: &Path,
        anchors: Arc<dyn AnchorStore>,
        options: AuditOptions,
    ) -> Result<(AuditLog, Recovered), AuditError> {
        let place = Place::create(path)?;
        let lock = place.dir.try_lock(&place.lock())?;
        let lock = lock.ok_or_else(|| AuditError::Held {
            path: path.to_path_buf(),
        })?;
        let (key, new_chain) = open_key(&place, token)?;
        let anchor = Anchor::load(anchors.as_ref(), &key)?;
        let mut start = recover::start(&place, &key, key::beside(token), anchor)?;
        start.recovered.new_chain = new_chain;
        report(path, &start.recovered);
        let anchor = anchor.unwrap_or_else(|| Anchor::origin(&key));
        // What lies behind the anchor may be in the page cache only, and marked clean there by a
        // sync that failed: it is written again.
        let doubtful = start.last != anchor.head;
        let full = start.full.filter(|_| doubtful);
        let retired = full.map(|(file, len)| Unsynced {
            file: Arc::new(file),
            from: 0,
            len,
        });
        let pen = Pen {
            file: Arc::new(start.file),
            len: start.len,
            synced_len: if doubtful { 0 } else { start.len },
            full_at: options.segment_bytes,
            first: start.first,
            last: start.last,
            buffer: Vec::with_capacity(1024),
            astray: false,
            spare: None,
            retired: retired.into_iter().collect(),
            dirty_since: doubtful.then(Instant::now),
            wanted: 0,
            closing: false,
        };
        let shared = Arc::new(Shared {
            place,
            key,
            anchors,
            options,
            pen: Mutex::new(pen),
            work: Condvar::new(),
            progress: watch::Sender::new(Progress {
                synced: anchor.head.seq,
                ..Progress::default()
            }),
        });
        let thread = sync::spawn(Arc::clone(&shared), anchor, doubtful)
            .map_err(PrivateFileError::io("start the thread of", path))?;
        let log = AuditLog {
            shared,
            thread: Mutex::new(Some(thread)),
            _lock: lock,
        };
        Ok((log, start.recovered))
    }

    /// Appends one line, in one write, and returns its number. It is then in the page cache of the
    /// system, safe from a crash of this process; [`AuditLog::durable`] waits until it is safe from a
    /// power loss, which it is after [`AuditOptions::sync_every`] in any case.
    ///
    /// # Errors
    /// [`AuditError::Write`], for example when the disk is full and the reserve is spent; the entry
    /// is then not in the log. [`AuditError::Closed`].
    pub fn record(&self, entry: &AuditEntry<'_>) -> Result<u64, AuditError> {
        let mut pen = self.shared.pen();
        if pen.closing {
            return Err(self.shared.closed());
        }
        pen.append(entry, &self.shared)?;
        let seq = pen.last.seq;
        let idle = pen.dirty_since.is_none();
        pen.dirty_since.get_or_insert_with(Instant::now);
        if pen.len >= pen.full_at {
            pen.exchange(&self.shared);
        }
        drop(pen);
        if idle {
            self.shared.work.notify_one();
        }
        Ok(seq)
    }

    /// Waits until the entry with this number, and all before it, are durable. Callers that wait at
    /// the same time share one sync.
    ///
    /// # Errors
    /// [`AuditError::Sync`]; lines recorded before may then be lost in a power loss.
    /// [`AuditError::Closed`].
    pub async fn durable(&self, seq: u64) -> Result<(), AuditError> {
        let mut progress = self.shared.progress.subscribe();
        let failures = progress.borrow().failures;
        {
            let mut pen = self.shared.pen();
            pen.wanted = pen.wanted.max(seq);
        }
        self.shared.work.notify_one();
        let settled = progress
            .wait_for(|now| now.synced >= seq || now.failures != failures || now.closed)
            .await
            .map_err(|_| self.shared.closed())?;
        if settled.synced >= seq {
            return Ok(());
        }
        match &settled.error {
            Some(source) if settled.failures != failures => Err(AuditError::Sync {
                path: self.shared.place.path.clone(),
                source: Arc::clone(source),
            }),
            _ => Err(self.shared.closed()),
        }
    }

    /// Whether the last sync failed: lines that were written since may not outlive a power loss.
    pub fn is_failing(&self) -> bool {
        self.shared.progress.borrow().error.is_some()
    }

    /// Makes every line durable, writes the last anchor and ends. Later entries are refused.
    pub fn close(&self) {
        self.shared.pen().closing = true;
        self.shared.work.notify_one();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the audit log panicked");
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shared.place.path
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// The key, and whether it was made just now.
fn open_key(place: &Place, token: &Path) -> Result<(ChainKey, bool), AuditError> {
    if let Some(key) = ChainKey::load(token)? {
        return Ok((key, false));
    }
    if !recover::is_empty(place)? {
        return Err(AuditError::KeyMissing {
            key: key::beside(token),
            log: place.path.clone(),
        });
    }
    Ok((ChainKey::create(token)?, true))
}

fn report(path: &Path, found: &Recovered) {
    if let Some(torn) = &found.torn {
        tracing::warn!(log = %path.display(), kept = %torn.display(), "the audit log ended within a line, which the check could not read; the piece was moved");
    }
    if let Some((from, to)) = found.missing {
        tracing::error!(log = %path.display(), from, to, "audit entries that were durable are missing at the end of the log; `nimbus audit verify` tells where");
    }
}

impl Shared {
    /// A poisoned lock is taken over: the buffer is cleared before each use.
    pub(super) fn pen(&self) -> MutexGuard<'_, Pen> {
        self.pen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> AuditError {
        AuditError::Closed {
            path: self.place.path.clone(),
        }
    }
}

impl Pen {
    /// All that is not durable, the segment in use last.
    pub(super) fn unsynced(&self) -> Vec<Unsynced> {
        let mut all = self.retired.clone();
        all.push(Unsynced {
            file: Arc::clone(&self.file),
            from: self.synced_len,
            len: self.len,
        });
        all
    }

    /// Notes that `done`, as [`Pen::unsynced`] gave it, is durable.
    pub(super) fn synced(&mut self, done: &[Unsynced]) {
        for part in done {
            if Arc::ptr_eq(&part.file, &self.file) {
                self.synced_len = part.len;
            }
            for retired in &mut self.retired {
                if Arc::ptr_eq(&part.file, &retired.file) {
                    retired.from = part.len;
                }
            }
        }
        self.retired.retain(|retired| retired.from < retired.len);
    }

    fn append(&mut self, entry: &AuditEntry<'_>, shared: &Shared) -> Result<(), AuditError> {
        self.buffer.clear();
        let seq = self.last.seq + 1;
        line::append(entry, seq, &mut self.buffer).map_err(AuditError::Encode)?;
        let next = seal(&shared.key, &self.last, &mut self.buffer, 0);
        let (written, outcome) = self.write();
        if let Err(source) = outcome {
            self.astray = true;
            return Err(AuditError::Write {
                path: shared.place.path.clone(),
                written,
                expected: self.buffer.len(),
                source,
            });
        }
        self.len += self.buffer.len() as u64;
        self.last = next;
        Ok(())
    }

    /// Writes the line; returns how much of it was written in any case.
    fn write(&mut self) -> (usize, io::Result<()>) {
        if self.astray {
            if let Err(error) = self.find_back() {
                return (0, Err(error));
            }
            self.astray = false;
        }
        write_line(&mut &*self.file, &self.buffer)
    }

    /// Cuts off what a failed write left.
    fn find_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.len)?;
        (&*self.file).seek(SeekFrom::Start(self.len))?;
        Ok(())
    }

    /// Goes over to the next segment. When that fails, the present one grows on.
    fn exchange(&mut self, shared: &Shared) {
        match self.try_exchange(&shared.place) {
            Ok(next) => {
                self.retired.push(Unsynced {
                    file: std::mem::replace(&mut self.file, Arc::new(next)),
                    from: self.synced_len,
                    len: self.len,
                });
                self.len = 0;
                self.synced_len = 0;
                self.first = self.last.seq + 1;
                self.full_at = shared.options.segment_bytes;
            }
            Err(error) => {
                tracing::error!(%error, "the audit log could not go over to its next segment");
                self.full_at = self.len + OVERGROWTH;
            }
        }
    }

    fn try_exchange(&mut self, place: &Place) -> Result<File, PrivateFileError> {
        let full = place.full(self.first);
        place.dir.rename(place.active(), &full)?;
        let next = match self.spare.take() {
            Some(spare) => place
                .dir
                .rename(&place.spare(), place.active())
                .map(|()| spare),
            None => place.dir.open_update(place.active()),
        };
        if next.is_err() {
            place.dir.rename(&full, place.active())?;
        }
        next
    }
}

/// Writes a whole line in one call; what a short write leaves is written after it. Returns how
/// much was written in any case.
fn write_line(file: &mut impl io::Write, line: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = line.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
