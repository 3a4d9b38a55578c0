//! One open tenant: a writer thread, snapshots, and the order in which they end.
//!
//! Must not know the registry: whether the tenant may be opened was decided before.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::oneshot;

use super::Durability;
use super::file::Place;
use super::held::Held;
use super::snapshots::Snapshots;
use super::writer::{self, Counters, Job};
use crate::pages::Stop;
use crate::provider::{
    Batch, CommitError, Head, ProviderResult, Snapshot, StoreStats, TenantStore,
};

/// An open tenant file.
pub(super) struct RedbStore {
    path: PathBuf,
    /// `None` once closed. The thread ends when the sender is dropped.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    snapshots: Arc<Snapshots>,
    counters: Arc<Counters>,
}

impl RedbStore {
    /// Opens the file, checks it and starts the writer. Blocks.
    pub(super) fn open(place: Place, durability: Durability) -> ProviderResult<RedbStore> {
        let path = place.path.clone();
        let stop = Stop::default();
        let held = Held::take(&path)?;
        let db = Arc::new(RwLock::new(Some(place.open(&stop)?)));
        let counters = Arc::new(Counters::default());
        let snapshots = Snapshots::new(path.clone(), db.clone());
        let jobs = writer::start((place, held), db, stop, durability, counters.clone())?;
        Ok(RedbStore {
            path,
            jobs: Mutex::new(Some(jobs)),
            snapshots,
            counters,
        })
    }

    fn send(&self, job: Job) -> Result<(), CommitError> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = jobs.as_ref().ok_or(CommitError::Closed)?;
        sender.send(job).map_err(|_| CommitError::Closed)
    }
}

impl TenantStore for RedbStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        self.snapshots.snapshot().boxed()
    }

    /// Nobody else can write to the file: it is locked.
    fn look_again(&self) {}

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        async move {
            let (reply, answer) = oneshot::channel();
            self.send(Job::Commit {
                expected,
                batch,
                reply,
            })?;
            answer.await.unwrap_or_else(|_| {
                let reason = format!("the writer of {} ended", self.path.display());
                Err(CommitError::OutcomeUnknown { reason })
            })
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        async move {
            let jobs = self
                .jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            // Snapshots first: what they hold keeps the file open.
            self.snapshots.close().await;
            if let Some(jobs) = jobs {
                let (reply, ended) = oneshot::channel();
                if jobs.send(Job::Stop { reply }).is_ok() {
                    let _ = ended.await;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn stats(&self) -> StoreStats {
        let (open_snapshots, oldest) = self.snapshots.count();
        StoreStats {
            commits: self.counters.commits.load(Ordering::Relaxed),
            commit_syncs: self.counters.syncs.load(Ordering::Relaxed),
            wal_bytes: 0,
            checkpoints: self.counters.flushes.load(Ordering::Relaxed),
            open_snapshots,
            oldest_snapshot_ms: u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
