//! The thread that makes lines durable, keeps the anchor, the reserve and the number of segments.
//!
//! It must not write entries; it only follows the pen.

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::anchor::Anchor;
use super::chain::Point;
use super::log::Shared;
use super::{AuditError, recover};
use crate::private_fs::{PrivateFileError, allocate};

/// Pause between two tries to allocate the reserve on a full disk.
const RESERVE_EVERY: Duration = Duration::from_secs(5);

/// Starts the thread. `floor` is the point before the oldest entry.
pub(super) fn spawn(shared: Arc<Shared>, floor: Point) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("nimbus-audit".to_owned())
        .spawn(move || {
            let mut keeper = Keeper::new(shared, floor);
            while keeper.turn() {}
            keeper.shared.progress.send_modify(|now| now.closed = true);
        })
}

/// What the thread knows.
struct Keeper {
    shared: Arc<Shared>,
    /// Before the oldest entry.
    floor: Point,
    /// Everything up to here is durable.
    synced: Point,
    anchored: Anchor,
    anchored_at: Instant,
    /// When the reserve is looked after next; `None` while it is whole.
    reserve_at: Option<Instant>,
    /// Whether the operator was told that there is no reserve.
    warned: bool,
}

/// What one sync covers.
struct Round {
    file: Arc<File>,
    retired: Vec<Arc<File>>,
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
    fn new(shared: Arc<Shared>, floor: Point) -> Keeper {
        let origin = shared.key.origin();
        let nothing = Anchor {
            floor,
            head: origin,
        };
        Keeper {
            floor,
            synced: origin,
            anchored: nothing,
            anchored_at: Instant::now(),
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
            let waited_for = pen.wanted > self.synced.seq;
            let sync_now = waited_for || (pen.closing && pen.dirty_since.is_some());
            if sync_now || sync_at.is_some_and(|at| at <= now) {
                pen.dirty_since = None;
                return Next::Sync(Round {
                    file: Arc::clone(&pen.file),
                    retired: std::mem::take(&mut pen.retired),
                    target: pen.last,
                });
            }
            if pen.closing {
                return Next::End;
            }
            let behind = self.synced.seq > self.anchored.head.seq;
            // The first one at once: until then a cut end would not be noticed at all.
            let pause = match self.anchored.head.seq {
                0 => Duration::ZERO,
                _ => shared.options.anchor_every,
            };
            let anchor_at = behind.then(|| self.anchored_at + pause);
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
        let done = self.sync_files(&round);
        match done {
            Ok(()) => {
                self.synced = round.target;
                self.shared.progress.send_modify(|now| {
                    now.synced = round.target.seq;
                });
                if !round.retired.is_empty() {
                    self.anchor();
                    self.prune();
                }
            }
            Err(error) => self.sync_failed(round, error),
        }
    }

    /// Full segments come first: a line that is durable needs all lines before it.
    fn sync_files(&self, round: &Round) -> io::Result<()> {
        for file in &round.retired {
            // What is allocated beyond the last line is given back.
            file.set_len(file.metadata()?.len())?;
            file.sync_data()?;
        }
        if !round.retired.is_empty() {
            self.shared.place.dir.sync().map_err(io::Error::other)?;
        }
        round.file.sync_data()
    }

    fn sync_failed(&self, round: Round, error: io::Error) {
        tracing::error!(%error, "the audit log could not be synced");
        let mut pen = self.shared.pen();
        let newer = std::mem::replace(&mut pen.retired, round.retired);
        pen.retired.extend(newer);
        pen.wanted = self.synced.seq;
        pen.dirty_since.get_or_insert_with(Instant::now);
        if pen.closing {
            // Nobody is left to wait for another try.
            pen.dirty_since = None;
        }
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
        self.anchored_at = Instant::now();
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
        spare
            .set_len(0)
            .and_then(|()| allocate(&spare, room))
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
        let segments = place.full_segments()?;
        let mut total = 0;
        for segment in &segments {
            total += place.dir.len(&segment.name)?;
        }
        for segment in &segments {
            let dead = segment.first <= self.floor.seq;
            if !dead && total <= keep {
                return Ok(());
            }
            let len = place.dir.len(&segment.name)?;
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
