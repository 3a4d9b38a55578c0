//! Running a body as a transaction until it commits, and views of the past for reads.
//!
//! What the body does is not known here, nor why it wants its writes dropped.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::past;
use crate::engine::commit::{self, Conflicted, Saw};
use crate::engine::tenant::{Tenant, now_ns};
use crate::engine::txn::Transaction;
use crate::error::{StoreError, StoreResult};
use crate::provider::Head;

/// Times that a conflicting transaction is run before the caller is told.
const MAX_RUNS: u32 = 24;

/// Number and time of a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitStamp {
    /// Number of the commit; 0 before the first.
    pub sequence: u64,
    /// Nanoseconds since 1970-01-01, strictly increasing with the sequence.
    pub timestamp_ns: u64,
}

impl CommitStamp {
    pub(crate) fn of(head: Head) -> CommitStamp {
        CommitStamp {
            sequence: head.sequence,
            timestamp_ns: head.timestamp,
        }
    }
}

/// How a run of a body ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran<T> {
    /// Its writes are to be committed.
    Commit(T),
    /// Its writes are to be dropped: a function that threw writes nothing.
    Discard(T),
}

impl Tenant {
    /// As [`Tenant::transact`], for bodies that may want their writes dropped, and with the stamp of
    /// the commit. `body` gets the number of its run, from 1. The stamp of a run that wrote nothing,
    /// or whose writes were dropped, is that of a durable commit after which everything was as the
    /// run read it.
    ///
    /// # Errors
    /// As [`Tenant::transact`].
    pub async fn transact_function<T, F>(&self, body: F) -> StoreResult<(T, CommitStamp)>
    where
        F: for<'t> Fn(&'t mut Transaction, u32) -> BoxFuture<'t, StoreResult<Ran<T>>>,
    {
        self.run_until_committed(body, |ran| ran).await
    }

    /// Runs `body` until its transaction is committed, or it fails, or `ended` says that its writes are
    /// to be dropped.
    pub(crate) async fn run_until_committed<R, T, F>(
        &self,
        body: F,
        ended: impl Fn(R) -> Ran<T>,
    ) -> StoreResult<(T, CommitStamp)>
    where
        F: for<'t> Fn(&'t mut Transaction, u32) -> BoxFuture<'t, StoreResult<R>>,
    {
        match self.run_and_commit(body, ended).await {
            // Whichever step found it closed.
            Err(StoreError::Closed) => Err(self.inner.why_closed().await),
            other => other,
        }
    }

    async fn run_and_commit<R, T, F>(
        &self,
        body: F,
        ended: impl Fn(R) -> Ran<T>,
    ) -> StoreResult<(T, CommitStamp)>
    where
        F: for<'t> Fn(&'t mut Transaction, u32) -> BoxFuture<'t, StoreResult<R>>,
    {
        let inner = &self.inner;
        let mut conflicted = Conflicted::default();
        for run in 1..=MAX_RUNS {
            let turn = match run {
                ..=2 => None,
                _ => Some(inner.turn.lock().await),
            };
            if run > 3 {
                tokio::time::sleep(back_off(run)).await;
            }
            let mut transaction = Transaction::new(inner.clone(), inner.untaken_view().await?);
            let ran = body(&mut transaction, run).await.map(&ended);
            if rests_on_state(&ran) {
                transaction.view.confirm().await?;
            }
            if let Some(outdated) = Conflicted::of(&transaction.view) {
                conflicted = outdated;
                inner.counters.conflicts.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let (value, accepted) = match ran {
                Ok(Ran::Commit(value)) => (value, commit::submit(inner, transaction).await?),
                // What it tells may rest on a commit that is not durable yet, or never will be.
                Ok(Ran::Discard(value)) => match given_up(transaction).durable(inner).await {
                    Some(stamp) => return Ok((value, stamp)),
                    None => continue,
                },
                Err(error) => match given_up(transaction).durable(inner).await {
                    Some(_) => return Err(error),
                    None => continue,
                },
            };
            drop(turn);
            match accepted {
                Ok(accepted) => {
                    if let Some(stamp) = accepted.durable(inner).await? {
                        return Ok((value, stamp));
                    }
                }
                Err(why) => conflicted = why,
            }
            inner.counters.conflicts.fetch_add(1, Ordering::Relaxed);
        }
        Err(conflicted.error(self, MAX_RUNS))
    }

    /// A transaction that only reads: the newest durable state, or the one at the time of a commit,
    /// `at` (ns since 1970-01-01), if it was the newest within the last 60 s. What it reads is tracked
    /// for [`Tenant::watch`].
    ///
    /// # Errors
    /// `TimestampOutOfRetention` for a time that is too old or still to come; `CapExceeded` when too
    /// much was written since; `Closed`, or the provider's failure.
    pub async fn begin_read(&self, at: Option<u64>) -> StoreResult<Transaction> {
        let view = match at {
            None => self.settled_view().await?.tracked(),
            Some(at) => past::view_at(self, at).await?,
        };
        Ok(Transaction::new(self.inner.clone(), view.read_only()))
    }

    /// Time of the newest durable commit, ns since 1970-01-01; 0 before the first. It never goes back,
    /// not even behind the time of a transaction that [`Tenant::begin_read`] gave to anyone.
    pub fn latest_timestamp(&self) -> u64 {
        self.inner.live.settled().timestamp_ns
    }

    /// A view of the newest durable state for which everybody whom its commits concern was told: a
    /// snapshot can show a commit a moment earlier.
    pub(super) async fn settled_view(&self) -> StoreResult<crate::engine::view::View> {
        loop {
            let view = self.inner.durable_view(false).await?;
            if self.inner.live.settled().sequence >= view.read_sequence
                || self
                    .inner
                    .wait_durable(view.read_sequence, view.epoch)
                    .await
            {
                return Ok(view);
            }
            if self.inner.failed.load(Ordering::Acquire) {
                return Err(StoreError::Closed);
            }
        }
    }
}

impl Transaction {
    /// Time of the state that it reads, ns since 1970-01-01; 0 before the first commit.
    pub fn timestamp(&self) -> u64 {
        self.view.timestamp
    }
}

/// Whether a run tells something about the tenant's state that no commit compares with the newest one.
fn rests_on_state<T>(ran: &StoreResult<Ran<T>>) -> bool {
    match ran {
        Ok(Ran::Commit(_)) => false,
        // It was not read, and would not be now.
        Err(StoreError::Storage(_) | StoreError::Closed | StoreError::TenantNotFound { .. }) => {
            false
        }
        Ok(Ran::Discard(_)) | Err(_) => true,
    }
}

fn given_up(transaction: Transaction) -> Saw {
    Saw::of(&transaction.view)
}

/// 5 to 50 ms, more with each run, with jitter from the clock.
fn back_off(run: u32) -> Duration {
    let jitter = now_ns() % 5_000;
    let base = 5_000 * u64::from(run.saturating_sub(3));
    Duration::from_micros((base + jitter).min(50_000))
}
