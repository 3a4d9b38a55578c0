//! Moving committed pages from a tenant's write-ahead log into its file, away from commits.
//!
//! One thread per provider does it, on a connection of its own. Must not know what a commit
//! holds. A checkpoint that fails is logged and tried again after more commits; it never
//! fails a commit.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak, mpsc};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::wal::CheckpointMode;

use super::connection;
use super::file::TenantFile;
use super::readers::Readers;
use crate::provider::files::appended;
use crate::provider::{ProviderError, ProviderResult, files};

/// Page size of the files that we create, bytes.
const PAGE: u64 = 4096;
/// Log growth after which pages are copied as far as readers allow (design section 4), frames.
const PASSIVE_FRAMES: u64 = (4 << 20) / PAGE;
/// Log size from which readers are waited for, so that the log can start over, frames.
const RESTART_FRAMES: u64 = (if cfg!(test) { 16 } else { 64 } << 20) / PAGE;
/// How long they are waited for. Commits wait as long, so it is short; the next attempt comes
/// after another 4 MiB.
const RESTART_PATIENCE: Duration = Duration::from_millis(100);

/// The write-ahead log of one open tenant.
pub(super) struct Wal {
    path: TenantFile,
    me: Weak<Wal>,
    queue: mpsc::Sender<Weak<Wal>>,
    /// Frames in the log after the newest commit.
    frames: AtomicU64,
    /// Frames in the log when a checkpoint was last asked for.
    asked_at: AtomicU64,
    queued: AtomicBool,
    finished: AtomicU64,
    changes: AtomicU64,
    /// Whether transactions that come back must end, since a checkpoint waits for readers.
    restarting: AtomicBool,
    /// Whose idle transactions end before a checkpoint.
    readers: OnceLock<Weak<Readers>>,
    /// A checkpoint failed at reading, writing or syncing.
    unsound: AtomicBool,
    /// Held while a checkpoint runs; true once the store closes.
    closing: Mutex<bool>,
}

impl Wal {
    pub(super) fn new(path: TenantFile, queue: mpsc::Sender<Weak<Wal>>) -> Arc<Wal> {
        Arc::new_cyclic(|me| Wal {
            path,
            me: me.clone(),
            queue,
            frames: AtomicU64::new(0),
            asked_at: AtomicU64::new(0),
            queued: AtomicBool::new(false),
            finished: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            restarting: AtomicBool::new(false),
            readers: OnceLock::new(),
            unsound: AtomicBool::new(false),
            closing: Mutex::new(false),
        })
    }

    /// Names the readers that share this log. Once.
    pub(super) fn shared_with(&self, readers: &Arc<Readers>) {
        let _ = self.readers.set(Arc::downgrade(readers));
    }

    /// Counts what may have changed the file. Called before a commit is answered, whatever became
    /// of it.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// How often [`Wal::changed`] was called.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether the log is about to start over, which no transaction may hinder.
    pub(super) fn restarting(&self) -> bool {
        self.restarting.load(Ordering::Acquire)
    }

    fn let_go(&self) {
        if let Some(readers) = self.readers.get().and_then(Weak::upgrade) {
            readers.let_go();
        }
    }

    /// Notes the length of the log after a commit, in frames.
    pub(super) fn committed(&self, frames: u64) {
        self.frames.store(frames, Ordering::Relaxed);
    }

    /// Asks for a checkpoint if the log grew enough since the last time. Does not wait.
    pub(super) fn request_checkpoint(&self) {
        let frames = self.frames.load(Ordering::Relaxed);
        let mut asked_at = self.asked_at.load(Ordering::Relaxed);
        if frames < asked_at {
            // The log started over.
            asked_at = 0;
            self.asked_at.store(0, Ordering::Relaxed);
        }
        if frames - asked_at >= PASSIVE_FRAMES && !self.queued.swap(true, Ordering::AcqRel) {
            self.asked_at.store(frames, Ordering::Relaxed);
            let _ = self.queue.send(self.me.clone());
        }
    }

    /// Whether a sync of the log may have failed. Its commits were then never synced where each
    /// waits for none of its own, and a later sync would not know of them.
    pub(super) fn unsound(&self) -> bool {
        self.unsound.load(Ordering::Acquire)
    }

    /// Checkpoints finished.
    pub(super) fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    /// Bytes of the log on disk now.
    pub(super) fn bytes(&self) -> u64 {
        std::fs::symlink_metadata(appended(&self.path, "-wal")).map_or(0, |m| m.len())
    }

    fn run(&self) {
        self.queued.store(false, Ordering::Release);
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        if *closing {
            return;
        }
        if let Err(e) = self.checkpoint() {
            if matches!(e, ProviderError::Io { .. }) {
                self.unsound.store(true, Ordering::Release);
            }
            let path = self.path.display();
            tracing::warn!(%path, error = %e, "checkpoint failed; it is tried again after more commits");
        }
    }

    fn checkpoint(&self) -> ProviderResult<()> {
        let conn = connection::checkpointer(&self.path, RESTART_PATIENCE)?;
        self.let_go();
        let frames = copy(&conn, &self.path, CheckpointMode::PASSIVE)?;
        self.finished.fetch_add(1, Ordering::Relaxed);
        if frames >= RESTART_FRAMES {
            self.restarting.store(true, Ordering::Release);
            self.let_go();
            let restarted = copy(&conn, &self.path, CheckpointMode::RESTART);
            self.restarting.store(false, Ordering::Release);
            match restarted {
                Err(ProviderError::Busy { .. }) => {
                    let path = self.path.display();
                    tracing::debug!(%path, frames, "readers keep the log from starting over");
                }
                other => drop(other?),
            }
        }
        Ok(())
    }
}

/// Runs one checkpoint; the number of frames in the log.
fn copy(conn: &Connection, path: &Path, mode: CheckpointMode) -> ProviderResult<u64> {
    let (frames, _copied) = conn
        .wal_checkpoint_v2(Some("main"), mode)
        .map_err(|e| super::error::classify("checkpointing", path, e))?;
    Ok(u64::try_from(frames).unwrap_or(0))
}

/// Starts the thread. It ends when the last sender is gone.
pub(super) fn start() -> ProviderResult<mpsc::Sender<Weak<Wal>>> {
    let (sender, receiver) = mpsc::channel::<Weak<Wal>>();
    std::thread::Builder::new()
        .name("nimbus-checkpoint".to_owned())
        .spawn(move || {
            while let Ok(wal) = receiver.recv() {
                if let Some(wal) = wal.upgrade() {
                    wal.run();
                }
            }
        })
        .map_err(|e| ProviderError::io("starting the checkpoint thread", e))?;
    Ok(sender)
}

/// Called before a store opens its file. A log that is there is what a crash or a failed sync
/// left: what can be read from it may be in the page cache only, and a server that answers from
/// it must not lose it to a power cut. A sync alone would not do: one that failed has left its
/// pages marked clean, and the next one writes nothing and succeeds. So the log is written
/// again, byte for byte, and then synced.
///
/// # Errors
/// `Full`, `Io`: nothing may be read from the file then.
pub(super) fn secure_log(path: &Path) -> ProviderResult<()> {
    let log = appended(path, "-wal");
    match files::inspect(&log).map_err(|e| files::error("looking at", &log, e))? {
        files::Entry::Absent | files::Entry::Regular { len: 0 } => return Ok(()),
        files::Entry::Regular { .. } => {}
        files::Entry::Other => {
            return Err(super::error::corrupt(
                &log,
                "it is not a regular file".into(),
            ));
        }
    }
    // The locks of a database are on other files, so this one may be opened and closed.
    files::open_existing(&log)
        .and_then(|file| {
            rewrite(&file)?;
            file.sync_all()
        })
        .map_err(|e| files::error("securing", &log, e))?;
    let dir = log.parent().unwrap_or(Path::new("."));
    files::sync_dir(dir).map_err(|e| files::error("syncing", dir, e))
}

/// Writes what a file holds to where it is.
fn rewrite(file: &File) -> std::io::Result<()> {
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let len = match file.read_at(&mut block, at) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        file.write_all_at(&block[..len], at)?;
        at += len as u64;
    }
}

/// Called when a store opens: copies what a crash left in the log, so that it does not grow from
/// there. If it fails (a full disk) the store opens all the same, and the next checkpoint makes
/// up for it.
pub(super) fn after_crash(conn: &Connection, path: &Path) {
    let left = std::fs::symlink_metadata(appended(path, "-wal")).map_or(0, |m| m.len());
    if left == 0 {
        return;
    }
    match copy(conn, path, CheckpointMode::PASSIVE) {
        Ok(frames) => {
            tracing::info!(path = %path.display(), frames, "recovered the write-ahead log");
        }
        Err(e) => {
            tracing::warn!(path = %path.display(), error = %e, "checkpoint at open failed");
        }
    }
}

/// The last checkpoint of a store, on the writer's own connection when it commits no more. False
/// if it failed, and then closing must not try again: SQLite would take the second sync for true
/// and remove the log.
pub(super) fn last(conn: &Connection, path: &Path, wal: &Wal) -> bool {
    let mut closing = wal.closing.lock().unwrap_or_else(PoisonError::into_inner);
    *closing = true;
    match copy(conn, path, CheckpointMode::TRUNCATE) {
        Ok(_) => {
            wal.finished.fetch_add(1, Ordering::Relaxed);
            true
        }
        Err(e) => {
            tracing::warn!(path = %path.display(), error = %e, "last checkpoint failed; the log is kept");
            false
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_asked_for_every_four_mebibytes() {
        let (queue, asked) = mpsc::channel();
        let wal = Wal::new(TenantFile::plain("/nowhere/a.sqlite3".into()), queue);
        let count = |frames: u64| {
            wal.committed(frames);
            wal.request_checkpoint();
            let n = asked.try_iter().count();
            if n > 0 {
                wal.queued.store(false, Ordering::Release); // as the thread does
            }
            n
        };
        assert_eq!(count(PASSIVE_FRAMES - 1), 0);
        assert_eq!(count(PASSIVE_FRAMES), 1);
        assert_eq!(count(PASSIVE_FRAMES + 1), 0);
        assert_eq!(count(2 * PASSIVE_FRAMES - 1), 0);
        assert_eq!(count(2 * PASSIVE_FRAMES), 1);
        // The log starts over.
        assert_eq!(count(5), 0);
        assert_eq!(count(PASSIVE_FRAMES), 1);
    }

    #[test]
    fn a_log_is_secured_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sqlite3");
        secure_log(&path).unwrap();
        let log = appended(&path, "-wal");
        for len in [0, 1, 4096, (1 << 20) + 17] {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            std::fs::write(&log, &bytes).unwrap();
            secure_log(&path).unwrap();
            assert!(std::fs::read(&log).unwrap() == bytes, "{len}");
        }
        std::fs::remove_file(&log).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &log).unwrap();
        let e = secure_log(&path).unwrap_err();
        assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
    }

    #[test]
    fn one_request_is_queued_at_a_time() {
        let (queue, asked) = mpsc::channel();
        let wal = Wal::new(TenantFile::plain("/nowhere/a.sqlite3".into()), queue);
        for n in 1..=10 {
            wal.committed(n * PASSIVE_FRAMES);
            wal.request_checkpoint();
        }
        assert_eq!(asked.try_iter().count(), 1);
    }
}
