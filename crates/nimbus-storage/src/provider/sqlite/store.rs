//! One open tenant: a writer thread, a pool of readers, and the order in which they end.
//!
//! Must not know the registry: whether the tenant may be opened was decided before.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak, mpsc};

use futures_util::future::{BoxFuture, FutureExt};

use super::Durability;
use super::checkpoint::Wal;
use super::file::TenantFile;
use super::readers::Readers;
use super::writer::{self, Counters, Role};
use crate::provider::local::Jobs;
use crate::provider::{
    Batch, CommitError, Head, ProviderResult, Snapshot, StoreStats, TenantStore,
};

/// An open tenant file.
pub(super) struct SqliteStore {
    jobs: Jobs,
    readers: Arc<Readers>,
    counters: Arc<Counters>,
    wal: Arc<Wal>,
}

impl SqliteStore {
    /// Opens the file, checks it and starts the writer. Blocks.
    pub(super) fn open(
        (path, role): (TenantFile, Role),
        durability: Durability,
        readers: usize,
        checkpoints: mpsc::Sender<Weak<Wal>>,
    ) -> ProviderResult<SqliteStore> {
        let counters = Arc::new(Counters::default());
        let wal = Wal::new(path.clone(), checkpoints);
        let jobs = writer::start(
            (path.clone(), role),
            durability,
            counters.clone(),
            wal.clone(),
        )?;
        let readers = Readers::new(path.clone(), readers, wal.clone());
        wal.shared_with(&readers);
        Ok(SqliteStore {
            jobs: Jobs::new(&path, jobs),
            readers,
            counters,
            wal,
        })
    }
}

impl TenantStore for SqliteStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        self.readers.snapshot().boxed()
    }

    fn look_again(&self) {
        self.readers.let_go();
    }

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        self.jobs.commit(expected, batch).boxed()
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        async move {
            let jobs = self.jobs.close();
            // Readers first: the last checkpoint then finds nobody in its way, and the writer's
            // connection, being the last, removes the log.
            self.readers.close().await;
            jobs.stop().await;
            Ok(())
        }
        .boxed()
    }

    fn stats(&self) -> StoreStats {
        let snapshots = self.readers.open_snapshots();
        StoreStats {
            commits: self.counters.commits.load(Ordering::Relaxed),
            commit_syncs: self.counters.syncs.load(Ordering::Relaxed),
            wal_bytes: self.wal.bytes(),
            checkpoints: self.wal.finished(),
            open_snapshots: snapshots.count,
            oldest_snapshot_ms: u64::try_from(snapshots.oldest.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
