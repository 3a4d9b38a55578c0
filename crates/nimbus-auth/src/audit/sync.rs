//! The thread that makes lines durable, keeps the anchor, the reserve and the number of segments.
//!
//! It must not write entries; it only follows the pen.

use std::io;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::anchor::Anchor;
use super::chain::Point;
use super::log::{Shared, Unsynced};
use super::{AuditError, recover};
use crate::private_fs::{PrivateFileError, allocate, rewrite};

/// Pause between two tries to allocate the reserve on a full disk.
const RESERVE_EVERY: Duration = Duration::from_secs(5);

/// Starts the thread. `anchor` is the one that is kept, and `doubtful` whether there are lines
/// behind it.
pub(super) fn spawn(
    shared: Arc<Shared>,
    anchor: Anchor,
    doubtful: bool,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("nimbus-audit".to_owned())
        .spawn(move || {
            let _ended = Ended(Arc::clone(&shared));
            let mut keeper = Keeper::new(shared, anchor, doubtful);
            while keeper.turn() {}
        })
}

/// Tells everybody who waits, and who would write, that the thread is gone; by a panic, too.
pub(super) struct Ended(Arc<Shared>);

#[cfg(test)]
pub(super) fn ended(shared: Arc<Shared>) -> Ended {
    Ended(shared)
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.pen().closing = true;
        self.0.progress.send_modify(|now| now.closed = true);
    }
}

/// What the thread knows.
struct Keeper {
    shared: Arc<Shared>,
    /// Before the oldest entry.
    floor: Point,
    /// Everything up to here is durable.
    synced: Point,
    anchored: Anchor,
    /// When that was last tried.
    anchored_at: Option<Instant>,
    /// Whether what was not synced must be written again: a sync failed, or somebody else's may
    /// have.
    distrust: bool,
    /// When the reserve is looked after next; `None` while it is whole.
    reserve_at: Option<Instant>,
    /// Whether the operator was told that there is no reserve.
    warned: bool,
}

/// What one sync covers.
struct Round {
    parts: Vec<Unsynced>,
    target: Point,
}

/// What to do next.
enum Next {
    Sync(Round),
    Anchor,
    Reserve,
    End,
}

impl Keeper {
    fn new(shared: Arc<Shared>, anchor: Anchor, doubtful: bool) -> Keeper {
        Keeper {
            floor: anchor.floor,
            synced: anchor.head,
            anchored: anchor,
            anchored_at: None,
            distrust: doubtful,
            reserve_at: Some(Instant::now()),
            warned: false,
            shared,
        }
    }

    /// Does one thing; `false` when all is done.
    fn turn(&mut self) -> bool {
        match self.wait() {
            Next::Sync(round) => self.sync(round),
            Next::Anchor => self.anchor(),
            Next::Reserve => self.reserve(),
            Next::End => {
                if self.synced.seq > self.anchored.head.seq {
                    self.anchor();
                }
                return false;
            }
        }
        true
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Next {
        let shared = Arc::clone(&self.shared);
        let mut pen = shared.pen();
        loop {
            let now = Instant::now();
            let sync_at = pen.dirty_since.map(|at| at + shared.options.sync_every);
            let waited_for = pen.wanted.min(pen.last.seq) > self.synced.seq;
            let sync_now = waited_for || (pen.closing && pen.dirty_since.is_some());
            if sync_now || sync_at.is_some_and(|at| at <= now) {
                pen.dirty_since = None;
                return Next::Sync(Round {
                    parts: pen.unsynced(),
                    target: pen.last,
                });
            }
            if pen.closing {
                return Next::End;
            }
            let behind = self.synced.seq > self.anchored.head.seq;
            // The first one at once: until then a cut end would not be noticed at all.
            let anchor_at = behind.then(|| match self.anchored_at {
                None => now,
                Some(at) => at + shared.options.anchor_every,
            });
            if anchor_at.is_some_and(|at| at <= now) {
                return Next::Anchor;
            }
            // A spent spare is a new segment: the reserve is made anew, once.
            let reserve_at = self.reserve_at.or(pen.spare.is_none().then_some(now));
            if reserve_at.is_some_and(|at| at <= now) {
                return Next::Reserve;
            }
            let due = [sync_at, anchor_at, reserve_at];
            pen = match due.into_iter().flatten().min() {
                Some(at) => {
                    let waited = shared.work.wait_timeout(pen, at.duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => shared
                    .work
                    .wait(pen)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn sync(&mut self, round: Round) {
        if let Err(error) = self.sync_files(&round) {
            return self.sync_failed(error);
        }
        self.distrust = false;
        self.synced = round.target;
        self.shared.pen().synced(&round.parts);
        self.shared.progress.send_modify(|now| {
            now.synced = round.target.seq;
            now.error = None;
        });
        if round.parts.len() > 1 {
            self.anchor();
            self.prune();
        }
    }

    /// Full segments come first: a line that is durable needs all lines before it.
    fn sync_files(&self, round: &Round) -> io::Result<()> {
        let Some((active, full)) = round.parts.split_last() else {
            return Ok(());
        };
        for part in full {
            self.sync_part(part)?;
            // What is allocated beyond the last line is given back.
            part.file.set_len(part.len)?;
        }
        if !full.is_empty() {
            self.shared.place.dir.sync().map_err(io::Error::other)?;
        }
        self.sync_part(active)
    }

    fn sync_part(&self, part: &Unsynced) -> io::Result<()> {
        if self.distrust {
            rewrite(&part.file, part.from, part.len)?;
        }
        part.file.sync_data()
    }

    fn sync_failed(&mut self, error: io::Error) {
        tracing::error!(%error, "the audit log could not be synced");
        self.distrust = true;
        let mut pen = self.shared.pen();
        pen.wanted = self.synced.seq;
        // Nobody is left to wait for another try when the log closes.
        pen.dirty_since = (!pen.closing).then(Instant::now);
        drop(pen);
        self.shared.progress.send_modify(|now| {
            now.failures += 1;
            now.error = Some(Arc::new(error));
        });
    }

    fn anchor(&mut self) {
        let anchor = Anchor {
            floor: self.floor,
            head: self.synced,
        };
        let key = &self.shared.key;
        self.anchored_at = Some(Instant::now());
        match self.shared.anchors.store(key.id(), &anchor.encode(key)) {
            Ok(()) => self.anchored = anchor,
            Err(error) => {
                tracing::error!(%error, "the anchor of the audit log could not be kept; a cut end would not be noticed");
            }
        }
    }

    /// Allocates the next segment, as long as the disk has room.
    fn reserve(&mut self) {
        let missing = self.shared.pen().spare.is_none();
        let made = match missing {
            true => self.make_spare(),
            false => self.allocate_active(),
        };
        match made {
            // The rest of the segment in use is allocated in the turn after.
            Ok(()) if missing => self.reserve_at = Some(Instant::now()),
            Ok(()) => {
                self.reserve_at = None;
                if std::mem::take(&mut self.warned) {
                    tracing::info!("the audit log has its reserve again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!(%error, "no room could be reserved for the audit log; when the disk is full, protected calls will be refused");
                }
                self.reserve_at = Some(Instant::now() + RESERVE_EVERY);
            }
        }
    }

    fn make_spare(&self) -> Result<(), PrivateFileError> {
        let place = &self.shared.place;
        let spare = place.dir.open_update(&place.spare())?;
        let room = self.shared.options.segment_bytes;
        // Cutting gives the room away, which a full disk might not give back.
        let cut = match spare.metadata() {
            Ok(found) if found.len() == 0 => Ok(()),
            _ => spare.set_len(0),
        };
        cut.and_then(|()| allocate(&spare, room))
            .map_err(PrivateFileError::io(
                "allocate",
                &place.path_of(&place.spare()),
            ))?;
        self.shared.pen().spare = Some(spare);
        Ok(())
    }

    fn allocate_active(&self) -> Result<(), PrivateFileError> {
        let file = Arc::clone(&self.shared.pen().file);
        allocate(&file, self.shared.options.segment_bytes)
            .map_err(PrivateFileError::io("allocate", &self.shared.place.path))?;
        Ok(())
    }

    /// Deletes the oldest full segments while all together are too long.
    fn prune(&mut self) {
        let Some(keep) = self.shared.options.keep_bytes else {
            return;
        };
        if let Err(error) = self.try_prune(keep) {
            tracing::error!(%error, "old segments of the audit log could not be deleted");
        }
    }

    fn try_prune(&mut self, keep: u64) -> Result<(), AuditError> {
        let shared = Arc::clone(&self.shared);
        let place = &shared.place;
        let mut segments = Vec::new();
        for segment in place.full_segments()? {
            let len = place.dir.len(&segment.name)?;
            segments.push((segment, len));
        }
        let mut total: u64 = segments.iter().map(|(_, len)| len).sum();
        for (segment, len) in &segments {
            let dead = segment.first <= self.floor.seq;
            if !dead && total <= keep {
                return Ok(());
            }
            // It would be missed by a check that knows an older floor only.
            if dead && self.anchored.floor != self.floor {
                return Ok(());
            }
            if !dead {
                let known = [shared.key.origin(), self.floor];
                let end = recover::end_of(place, Some(segment), &shared.key, &known)?;
                // Never below the floor, and not at all if its end cannot be told.
                let Some(end) = end.filter(|end| end.seq > self.floor.seq) else {
                    return Ok(());
                };
                self.floor = end;
                // The anchor first: a segment that is gone must not be missed.
                self.anchor();
                if self.anchored.floor != end {
                    return Ok(());
                }
            }
            place.dir.remove(&segment.name)?;
            total -= len;
            tracing::info!(name = %segment.name.to_string_lossy(), "deleted the oldest segment of the audit log");
        }
        Ok(place.dir.sync()?)
    }
}
