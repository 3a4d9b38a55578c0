//! One open tenant: a queue of commits that are done in turn, the replica that reads go to, and the way to turns.
//!
//! Must not know the registry: whether the tenant may be opened was decided before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Shared;
use super::commit::{self, Plan, Space};
use super::primary::Tag;
use super::replica::Replica;
use super::turn;
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

struct Job {
    expected: Head,
    batch: Batch,
    reply: oneshot::Sender<Result<(), CommitError>>,
}

/// What is there until the store is closed.
struct Open {
    jobs: mpsc::UnboundedSender<Job>,
    worker: JoinHandle<()>,
}

/// An open tenant.
pub(super) struct LibsqlStore {
    desk: Arc<Desk>,
    /// `None` once closed.
    open: Mutex<Option<Open>>,
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
        let (jobs, waiting) = mpsc::unbounded_channel();
        let worker = tokio::spawn(work(desk.clone(), waiting));
        LibsqlStore {
            desk,
            open: Mutex::new(Some(Open { jobs, worker })),
        }
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.open().is_none()
    }

    /// Queues a commit. It goes on without whoever waits for it.
    async fn queue(&self, expected: Head, batch: Batch) -> Result<(), CommitError> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            expected,
            batch,
            reply,
        };
        let sent = match &*self.open() {
            Some(open) => open.jobs.send(job).is_ok(),
            None => false,
        };
        if !sent {
            return Err(CommitError::Closed);
        }
        answer.await.unwrap_or_else(|_| {
            let reason = format!("the committer of {} ended", self.desk.space.name);
            Err(CommitError::OutcomeUnknown { reason })
        })
    }
}

/// Does the commits of one store, one after the other.
async fn work(desk: Arc<Desk>, mut waiting: mpsc::UnboundedReceiver<Job>) {
    let mut unknown = false;
    while let Some(job) = waiting.recv().await {
        let result = match unknown {
            true => Err(CommitError::Closed),
            false => desk.commit((job.expected, job.batch), None).await,
        };
        // Until the store is opened again, which looks at the head.
        unknown |= matches!(result, Err(CommitError::OutcomeUnknown { .. }));
        // Whoever asked may be gone.
        let _ = job.reply.send(result);
    }
}

impl TenantStore for LibsqlStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        async move {
            match self.is_closed() {
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
        self.queue(expected, batch).boxed()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.desk.replica.changed().boxed()
    }

    fn turn(&self) -> BoxFuture<'_, Result<Box<dyn Turn>, CommitError>> {
        async move {
            match self.is_closed() {
                true => Err(CommitError::Closed),
                false => turn::turn(&self.desk).await,
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        async move {
            let open = self.open().take();
            let Some(Open { jobs, worker }) = open else {
                return Ok(());
            };
            // It ends after the commits that it was given.
            drop(jobs);
            let ended = worker.await;
            self.desk.replica.close().await?;
            ended.map_err(|e| ProviderError::io(format!("closing {}", self.desk.space.name), e))
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
