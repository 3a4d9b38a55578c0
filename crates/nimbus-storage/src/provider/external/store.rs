//! One open tenant of a shared database: its queue of commits, and the way to reads and turns.
//!
//! Must not know the registry: whether the tenant may be opened was decided before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::{BoxFuture, FutureExt};

use super::backend::{Backend, Namespace as _};
use super::hints::Hints;
use super::queue::CommitQueue;
use super::snapshots::OpenSnapshots;
use super::{commit, reader, turn};
use crate::provider::{
    Batch, CommitError, Head, ProviderError, ProviderResult, Snapshot, StoreStats, TenantStore,
    Turn,
};

/// Counters of one store.
#[derive(Default)]
pub(super) struct Counters {
    commits: AtomicU64,
}

impl Counters {
    /// A batch was committed.
    pub(super) fn committed(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }
}

/// An open tenant.
pub(crate) struct Store<B: Backend> {
    backend: Arc<B>,
    space: Arc<B::Space>,
    counters: Arc<Counters>,
    snapshots: Arc<OpenSnapshots>,
    hints: Hints,
    commits: CommitQueue,
}

impl<B: Backend> Store<B> {
    pub(crate) fn new(backend: Arc<B>, space: B::Space) -> Store<B> {
        let space = Arc::new(space);
        let counters = Arc::<Counters>::default();
        let base = backend.base();
        let hints = base.bus.subscribe(space.name());
        let (committer, place, count) = (backend.clone(), space.clone(), counters.clone());
        let commits = CommitQueue::start(&base.runtime, space.name(), move |expected, batch| {
            let (backend, space, counters) = (committer.clone(), place.clone(), count.clone());
            async move {
                let head = batch.head;
                let plan = backend.plan(&space, expected, batch)?;
                commit::commit(&backend, &plan).await?;
                counters.committed();
                backend.committed(&space, head);
                Ok(())
            }
        });
        Store {
            backend,
            space,
            counters,
            snapshots: Arc::default(),
            hints,
            commits,
        }
    }
}

impl<B: Backend> TenantStore for Store<B> {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        async move {
            match self.commits.is_closed() {
                true => Err(ProviderError::Closed),
                false => reader::snapshot(&self.backend, &self.space, &self.snapshots).await,
            }
        }
        .boxed()
    }

    /// Nothing is kept of earlier reads.
    fn look_again(&self) {}

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        self.commits.commit(expected, batch).boxed()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.hints.next().boxed()
    }

    fn turn(&self) -> BoxFuture<'_, Result<Box<dyn Turn>, CommitError>> {
        async move {
            match self.commits.is_closed() {
                true => Err(CommitError::Closed),
                false => turn::turn(&self.backend, &self.space, &self.counters).await,
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        self.commits.close().boxed()
    }

    fn stats(&self) -> StoreStats {
        let (open_snapshots, oldest_snapshot_ms) = self.snapshots.count();
        let commits = self.counters.commits.load(Ordering::Relaxed);
        StoreStats {
            commits,
            commit_syncs: commits,
            open_snapshots,
            oldest_snapshot_ms,
            ..StoreStats::default()
        }
    }
}
