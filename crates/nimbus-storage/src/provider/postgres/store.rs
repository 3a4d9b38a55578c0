//! One open tenant: a queue of commits that are done in turn, and the way to reads and turns.
//!
//! Must not know the registry: whether the tenant may be opened was decided before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Shared;
use super::commit::{self, Plan};
use super::read;
use super::space::Space;
use super::turn;
use crate::provider::external::hints::Hints;
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
pub(super) struct PgStore {
    shared: Arc<Shared>,
    space: Arc<Space>,
    counters: Arc<Counters>,
    snapshots: Arc<OpenSnapshots>,
    hints: Hints,
    /// `None` once closed.
    open: Mutex<Option<Open>>,
}

impl PgStore {
    pub(super) fn new(shared: Arc<Shared>, space: Space) -> PgStore {
        let space = Arc::new(space);
        let counters = Arc::<Counters>::default();
        let hints = shared.bus.subscribe(&space.name);
        let (jobs, waiting) = mpsc::unbounded_channel();
        let worker = work(shared.clone(), space.clone(), counters.clone(), waiting);
        let worker = shared.runtime.spawn(worker);
        PgStore {
            shared,
            space,
            counters,
            snapshots: Arc::default(),
            hints,
            open: Mutex::new(Some(Open { jobs, worker })),
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.open().is_none()
    }

    async fn commit(&self, expected: Head, batch: Batch) -> Result<(), CommitError> {
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
            let reason = format!("the committer of {} ended", self.space.name);
            Err(CommitError::OutcomeUnknown { reason })
        })
    }
}

/// Does the commits of one store, one after the other. A commit goes on without whoever waits for it.
async fn work(
    shared: Arc<Shared>,
    space: Arc<Space>,
    counters: Arc<Counters>,
    mut waiting: mpsc::UnboundedReceiver<Job>,
) {
    let mut unknown = false;
    while let Some(job) = waiting.recv().await {
        let result = match unknown {
            true => Err(CommitError::Closed),
            false => match Plan::new(&space, job.expected, job.batch) {
                Ok(plan) => commit::commit(&shared, &plan).await,
                Err(e) => Err(e),
            },
        };
        if result.is_ok() {
            counters.committed();
            shared.outbox.committed(&space.name);
        }
        // Until the store is opened again, which looks at the head.
        unknown |= matches!(result, Err(CommitError::OutcomeUnknown { .. }));
        // Whoever asked may be gone.
        let _ = job.reply.send(result);
    }
}

impl TenantStore for PgStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        async move {
            if self.is_closed() {
                return Err(ProviderError::Closed);
            }
            read::snapshot(&self.shared, &self.space, &self.snapshots).await
        }
        .boxed()
    }

    /// Nothing is kept of earlier reads.
    fn look_again(&self) {}

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        self.commit(expected, batch).boxed()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.hints.next().boxed()
    }

    fn turn(&self) -> BoxFuture<'_, Result<Box<dyn Turn>, CommitError>> {
        async move {
            if self.is_closed() {
                return Err(CommitError::Closed);
            }
            turn::turn(&self.shared, &self.space, &self.counters).await
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
            worker
                .await
                .map_err(|e| ProviderError::io(format!("closing {}", self.space.name), e))
        }
        .boxed()
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
