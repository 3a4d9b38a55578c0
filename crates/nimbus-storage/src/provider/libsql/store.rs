//! One open tenant: a queue of commits that are done in turn, the replica that reads go to, and the way to turns.
//!
//! Must not know the registry: whether the tenant may be opened was decided before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::runtime::Handle;

use super::Shared;
use super::commit::{self, Plan, Space};
use super::primary::Tag;
use super::replica::Replica;
use super::turn;
use crate::provider::external::queue::CommitQueue;
use crate::provider::{
    Batch, CommitError, Head, ProviderError, ProviderResult, ReplicaFreshness, Snapshot,
    StoreStats, TenantStore, Turn,
};

/// What a store's commits and turns share.
pub(super) struct Desk {
    pub(super) shared: Arc<Shared>,
    pub(super) space: Arc<Space>,
    pub(super) replica: Arc<Replica>,
    commits: AtomicU64,
    /// Held by the turn of this server.
    pub(super) turns: Arc<tokio::sync::Mutex<()>>,
}

impl Desk {
    /// Commits a batch on the primary and applies it here; `turn`: the position that it saw and its name.
    pub(super) async fn commit(
        &self,
        batch: (Head, Batch),
        turn: Option<(i64, Tag)>,
    ) -> Result<(), CommitError> {
        let plan = Plan::new(&self.space, batch, turn, self.replica.required())?;
        self.replica.begins(&plan);
        let (http, timing) = (&self.shared.http, &self.shared.timing);
        match commit::commit(http, timing, &plan).await {
            Ok(committed) => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                self.replica.committed(plan, committed).await;
                Ok(())
            }
            Err(e) => {
                // Others may have committed.
                self.replica.look_again();
                Err(e)
            }
        }
    }
}

/// An open tenant.
pub(super) struct LibsqlStore {
    desk: Arc<Desk>,
    commits: CommitQueue,
}

impl LibsqlStore {
    pub(super) fn new(
        shared: Arc<Shared>,
        space: Arc<Space>,
        replica: Arc<Replica>,
    ) -> LibsqlStore {
        let desk = Arc::new(Desk {
            shared,
            space,
            replica,
            commits: AtomicU64::new(0),
            turns: Arc::default(),
        });
        let committer = desk.clone();
        let runtime = Handle::current();
        let commits = CommitQueue::start(&runtime, &desk.space.name, move |expected, batch| {
            let desk = committer.clone();
            async move { desk.commit((expected, batch), None).await }
        });
        LibsqlStore { desk, commits }
    }
}

impl TenantStore for LibsqlStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        async move {
            match self.commits.is_closed() {
                true => Err(ProviderError::Closed),
                false => self.desk.replica.snapshot().await,
            }
        }
        .boxed()
    }

    fn look_again(&self) {
        self.desk.replica.look_again();
    }

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        self.commits.commit(expected, batch).boxed()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.desk.replica.changed().boxed()
    }

    fn turn(&self) -> BoxFuture<'_, Result<Box<dyn Turn>, CommitError>> {
        async move {
            match self.commits.is_closed() {
                true => Err(CommitError::Closed),
                false => turn::turn(&self.desk).await,
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        async move {
            let ended = self.commits.close().await;
            self.desk.replica.close().await?;
            ended
        }
        .boxed()
    }

    fn stats(&self) -> StoreStats {
        let commits = self.desk.commits.load(Ordering::Relaxed);
        StoreStats {
            commits,
            commit_syncs: commits,
            ..self.desk.replica.stats()
        }
    }

    fn freshness(&self) -> Option<ReplicaFreshness> {
        Some(self.desk.replica.freshness())
    }
}
