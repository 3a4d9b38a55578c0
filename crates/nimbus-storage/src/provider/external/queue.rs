//! The commits of one open tenant of a shared database, done one after the other.
//!
//! Must not know how a commit is done. A commit goes on without whoever waits for it; once one ended with an unknown
//! outcome no other begins, until the tenant is opened again, which looks at the head.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::provider::{Batch, CommitError, Head, ProviderError, ProviderResult};

struct Job {
    expected: Head,
    batch: Batch,
    reply: oneshot::Sender<Result<(), CommitError>>,
}

/// What is there until the queue is closed.
struct Open {
    jobs: mpsc::UnboundedSender<Job>,
    worker: JoinHandle<()>,
}

/// See the module.
pub(crate) struct CommitQueue {
    /// What the tenant is called in the database, for errors.
    name: String,
    open: Mutex<Option<Open>>,
}

impl CommitQueue {
    /// A queue whose commits are done by `commit`.
    pub(crate) fn start<F>(
        runtime: &Handle,
        name: &str,
        mut commit: impl FnMut(Head, Batch) -> F + Send + 'static,
    ) -> CommitQueue
    where
        F: Future<Output = Result<(), CommitError>> + Send,
    {
        let (jobs, mut waiting) = mpsc::unbounded_channel::<Job>();
        let worker = async move {
            let mut unknown = false;
            while let Some(job) = waiting.recv().await {
                let result = match unknown {
                    true => Err(CommitError::Closed),
                    false => commit(job.expected, job.batch).await,
                };
                unknown |= matches!(result, Err(CommitError::OutcomeUnknown { .. }));
                // Whoever asked may be gone.
                let _ = job.reply.send(result);
            }
        };
        let worker = runtime.spawn(worker);
        CommitQueue {
            name: name.to_owned(),
            open: Mutex::new(Some(Open { jobs, worker })),
        }
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.open().is_none()
    }

    /// Commits a batch after those that came before; see [`crate::provider::TenantStore::commit`].
    pub(crate) async fn commit(&self, expected: Head, batch: Batch) -> Result<(), CommitError> {
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
            let reason = format!("the committer of {} ended", self.name);
            Err(CommitError::OutcomeUnknown { reason })
        })
    }

    /// Takes no more commits and waits for those that it has.
    ///
    /// # Errors
    /// `Io` if the committer ended badly.
    pub(crate) async fn close(&self) -> ProviderResult<()> {
        let open = self.open().take();
        let Some(Open { jobs, worker }) = open else {
            return Ok(());
        };
        drop(jobs);
        let ended = worker.await;
        ended.map_err(|e| ProviderError::io(format!("closing {}", self.name), e))
    }
}
