//! The way to the thread that writes to a tenant file: commits, one at a time, and the end.
//!
//! Must not know what the thread does with them.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};

use tokio::sync::oneshot;

use crate::provider::{Batch, CommitError, Head};

/// What the thread is asked to do.
pub(in crate::provider) enum Job {
    Commit {
        expected: Head,
        batch: Batch,
        reply: oneshot::Sender<Result<(), CommitError>>,
    },
    /// Make everything durable, close the file and end.
    Stop { reply: oneshot::Sender<()> },
}

/// Jobs for one thread, which ends when this is dropped.
pub(in crate::provider) struct Jobs {
    file: PathBuf,
    /// `None` once closed.
    sender: Mutex<Option<mpsc::Sender<Job>>>,
}

impl Jobs {
    /// For the thread that has the other end.
    pub(in crate::provider) fn new(file: &Path, sender: mpsc::Sender<Job>) -> Jobs {
        Jobs {
            file: file.to_owned(),
            sender: Mutex::new(Some(sender)),
        }
    }

    /// Has a batch committed. The commit goes on without whoever waits for it.
    pub(in crate::provider) async fn commit(
        &self,
        expected: Head,
        batch: Batch,
    ) -> Result<(), CommitError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Commit {
            expected,
            batch,
            reply,
        })?;
        answer.await.unwrap_or_else(|_| {
            let reason = format!("the writer of {} ended", self.file.display());
            Err(CommitError::OutcomeUnknown { reason })
        })
    }

    fn send(&self, job: Job) -> Result<(), CommitError> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = sender.as_ref().ok_or(CommitError::Closed)?;
        sender.send(job).map_err(|_| CommitError::Closed)
    }

    /// Takes no more; the thread goes on until it is told to stop.
    pub(in crate::provider) fn close(&self) -> Closed {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        Closed(sender.take())
    }
}

/// A thread that gets no more commits; `None` if someone else closed it before.
pub(in crate::provider) struct Closed(Option<mpsc::Sender<Job>>);

impl Closed {
    /// Stops the thread, and waits until it has ended.
    pub(in crate::provider) async fn stop(self) {
        let Some(sender) = self.0 else { return };
        let (reply, ended) = oneshot::channel();
        if sender.send(Job::Stop { reply }).is_ok() {
            let _ = ended.await;
        }
    }
}
