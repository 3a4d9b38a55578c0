//! One open tenant: a writer thread, snapshots, and the order in which they end.
//!
//! Must not know the registry: whether the tenant may be opened was decided before.

use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};

use futures_util::future::{BoxFuture, FutureExt};

use super::Durability;
use super::file::Place;
use super::held::Held;
use super::snapshots::Snapshots;
use super::writer::{self, Counters};
use crate::pages::Stop;
use crate::provider::local::Jobs;
use crate::provider::{
    Batch, CommitError, Head, ProviderResult, Snapshot, StoreStats, TenantStore,
};

/// An open tenant file.
pub(super) struct RedbStore {
    jobs: Jobs,
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
            jobs: Jobs::new(&path, jobs),
            snapshots,
            counters,
        })
    }
}

impl TenantStore for RedbStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        self.snapshots.snapshot().boxed()
    }

    /// Nobody else can write to the file: it is locked.
    fn look_again(&self) {}

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        self.jobs.commit(expected, batch).boxed()
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        async move {
            let jobs = self.jobs.close();
            // Snapshots first: what they hold keeps the file open.
            self.snapshots.close().await;
            jobs.stop().await;
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
