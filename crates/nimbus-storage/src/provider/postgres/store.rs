//! One open tenant: a queue of commits that are done in turn, and the way to reads and turns.
//!
//! Must not know the registry: whether the tenant may be opened was decided before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::{BoxFuture, FutureExt};

use super::Shared;
use super::commit::{self, Plan};
use super::read;
use super::space::Space;
use super::turn;
use crate::provider::external::hints::Hints;
use crate::provider::external::queue::CommitQueue;
use crate::provider::external::snapshots::OpenSnapshots;
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
pub(super) struct PgStore {
    shared: Arc<Shared>,
    space: Arc<Space>,
    counters: Arc<Counters>,
    snapshots: Arc<OpenSnapshots>,
    hints: Hints,
    commits: CommitQueue,
}

impl PgStore {
    pub(super) fn new(shared: Arc<Shared>, space: Space) -> PgStore {
        let space = Arc::new(space);
        let counters = Arc::<Counters>::default();
        let hints = shared.bus.subscribe(&space.name);
        let (committer, place, count) = (shared.clone(), space.clone(), counters.clone());
        let commits = CommitQueue::start(&shared.runtime, &space.name, move |expected, batch| {
            let (shared, space, counters) = (committer.clone(), place.clone(), count.clone());
            async move { commit(&shared, &space, &counters, (expected, batch)).await }
        });
        PgStore {
            shared,
            space,
            counters,
            snapshots: Arc::default(),
            hints,
            commits,
        }
    }
}

async fn commit(
    shared: &Arc<Shared>,
    space: &Arc<Space>,
    counters: &Counters,
    (expected, batch): (Head, Batch),
) -> Result<(), CommitError> {
    let plan = Plan::new(space, expected, batch)?;
    commit::commit(shared, &plan).await?;
    counters.committed();
    shared.outbox.committed(&space.name);
    Ok(())
}

impl TenantStore for PgStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        async move {
            if self.commits.is_closed() {
                return Err(ProviderError::Closed);
            }
            read::snapshot(&self.shared, &self.space, &self.snapshots).await
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
            if self.commits.is_closed() {
                return Err(CommitError::Closed);
            }
            turn::turn(&self.shared, &self.space, &self.counters).await
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
