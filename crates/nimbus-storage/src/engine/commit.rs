//! The way from a transaction to durable: submitting, and the committer that drives batches.
//!
//! Validation happens when a transaction is submitted; the committer only moves batches.
//! While batch N syncs, batch N+1 gathers. No timer delays a batch.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::catalog::IndexState;
use super::follow;
use super::function::CommitStamp;
use super::quota;
use super::readset::SpaceKey;
use super::state::{Member, Outcome, Proposal, Submitted, TakenBatch};
use super::tenant::{Tenant, TenantInner, WaitTicket, now_ns};
use super::txn::Transaction;
use super::view::View;
use crate::error::{CommitId, StoreError, StoreResult};
use crate::provider::{CommitError, Keyspace};

/// Times that a batch is offered again after a passing failure (lock timeout, deadlock).
const TRANSIENT_TRIES: u32 = 6;

/// A validated transaction on its way to the disk.
pub(crate) enum Accepted {
    /// It wrote something; the receiver tells the outcome.
    Written {
        commit: CommitId,
        outcome: oneshot::Receiver<Outcome>,
    },
    /// It wrote nothing; what it saw may not be durable yet.
    ReadOnly(Saw),
}

/// What a transaction that leaves nothing behind saw.
pub(crate) struct Saw {
    seen: u64,
    epoch: u64,
    /// A commit after which everything was as it was read.
    sequence: u64,
    durable_timestamp: u64,
    timestamp: u64,
}

impl Saw {
    pub(crate) fn of(view: &View) -> Saw {
        Saw {
            seen: view.seen,
            epoch: view.epoch,
            sequence: view.answered_at(),
            durable_timestamp: view.durable_timestamp,
            timestamp: view.timestamp,
        }
    }

    /// Waits until it is durable. `None`: it never will be.
    pub(crate) async fn durable(self, tenant: &TenantInner) -> Option<CommitStamp> {
        if self.seen == 0 {
            return Some(CommitStamp {
                sequence: self.sequence,
                timestamp_ns: self.durable_timestamp,
            });
        }
        if !tenant.wait_durable(self.seen, self.epoch).await {
            return None;
        }
        // The time of the commit seen is not kept: it is none later than these two.
        let durable = tenant.state().durable.timestamp;
        Some(CommitStamp {
            sequence: self.sequence,
            timestamp_ns: self.timestamp.min(durable),
        })
    }
}

/// Why a transaction was not accepted.
#[derive(Default)]
pub(crate) struct Conflicted {
    /// What it read and another wrote, if it is known.
    key: Option<SpaceKey>,
}

impl Conflicted {
    /// Of a transaction that found so itself, before it asked to be committed.
    pub(crate) fn of(view: &View) -> Option<Conflicted> {
        let key = view.outdated()?.clone();
        Some(Conflicted { key })
    }

    /// The error after the last of `attempts` runs, with the table whose documents changed.
    pub(crate) fn error(&self, tenant: &Tenant, attempts: u32) -> StoreError {
        let table = self.key.as_ref().and_then(|(space, key)| {
            let catalog = tenant.catalog();
            catalog.table_of(*space, key)
        });
        StoreError::Conflict { attempts, table }
    }
}

impl Accepted {
    /// Waits for the end. `None`: nothing was written and the transaction may run again.
    pub(crate) async fn durable(self, tenant: &TenantInner) -> StoreResult<Option<CommitStamp>> {
        match self {
            Accepted::ReadOnly(saw) => Ok(saw.durable(tenant).await),
            Accepted::Written { commit, outcome } => match outcome.await {
                Ok(Outcome::Durable(stamp)) => Ok(Some(stamp)),
                Ok(Outcome::Rerun) => Ok(None),
                Ok(Outcome::Failed(error)) => Err(error),
                Err(_) => Err(StoreError::OutcomeUnknown {
                    commit,
                    inside: "the committer panicked".into(),
                }),
            },
        }
    }
}

/// Submits and waits.
pub(crate) async fn commit(
    tenant: &Arc<TenantInner>,
    transaction: Transaction,
) -> StoreResult<Result<CommitStamp, Conflicted>> {
    match submit(tenant, transaction).await? {
        Ok(accepted) => Ok(accepted
            .durable(tenant)
            .await?
            .ok_or_else(Conflicted::default)),
        Err(conflicted) => Ok(Err(conflicted)),
    }
}

/// Validates a transaction and queues its writes.
///
/// From here on the commit happens whether or not the caller goes on waiting.
pub(crate) async fn submit(
    tenant: &Arc<TenantInner>,
    mut transaction: Transaction,
) -> StoreResult<Result<Accepted, Conflicted>> {
    if transaction.view.writes.is_empty() {
        transaction.view.confirm().await?;
    }
    let scheduled = transaction.meet_fence();
    let view = &transaction.view;
    if let Some(outdated) = Conflicted::of(view) {
        return Ok(Err(outdated));
    }
    if view.writes.is_empty() {
        return Ok(Ok(Accepted::ReadOnly(Saw::of(view))));
    }
    tenant
        .counters
        .documents_read
        .fetch_add(view.documents_read, Ordering::Relaxed);
    let mut commit = [0; 16];
    super::fill_random(&mut commit)?;
    // Lets go of the snapshot before anything is waited for.
    let proposal = transaction.into_proposal(CommitId(commit));
    super::wake::announce(tenant, scheduled).await?;
    enqueue(tenant, proposal).await
}

/// Queues a proposal, waiting for room in the batch, and for a count of what the tenant holds if its quota needs one.
pub(crate) async fn enqueue(
    tenant: &Arc<TenantInner>,
    mut proposal: Proposal,
) -> StoreResult<Result<Accepted, Conflicted>> {
    let _ticket = WaitTicket::take(&tenant.waiting)?;
    loop {
        let room = tenant.room.notified();
        tokio::pin!(room);
        room.as_mut().enable();
        let commit = proposal.commit;
        let submitted = tenant.state().submit(proposal, now_ns())?;
        match submitted {
            Submitted::Accepted(outcome) => {
                tenant.counters.transactions.fetch_add(1, Ordering::Relaxed);
                tenant.work.notify_one();
                return Ok(Ok(Accepted::Written { commit, outcome }));
            }
            Submitted::Conflict(key) => return Ok(Err(Conflicted { key })),
            Submitted::Closed => return Err(StoreError::Closed),
            Submitted::Wait(back) => proposal = back,
            Submitted::Uncounted(back) => {
                quota::counted(tenant, Some(quota::PATIENCE)).await?;
                proposal = back;
                continue;
            }
        }
        room.await;
    }
}

/// What the committer has to do.
enum Work {
    Write(TakenBatch),
    /// Another server may have committed.
    Follow,
    /// The tenant is closed, and everything accepted is answered.
    End,
}

/// Drives batches until the tenant is closed and everything accepted is answered.
pub(crate) async fn run(tenant: Arc<TenantInner>) {
    drive(&tenant).await;
    // Nobody looks for commits of others any more.
    tenant.followed.send_modify(|times| *times += 1);
}

async fn drive(tenant: &TenantInner) {
    loop {
        let work = next_work(tenant).await;
        if matches!(work, Work::End) {
            return;
        }
        // The members of a batch that panics are dropped unanswered: their outcome is unknown.
        let done = AssertUnwindSafe(perform(tenant, work)).catch_unwind().await;
        if done.is_err() {
            tracing::error!(tenant = %tenant.id, "the committer panicked; the tenant is closed");
            give_up(tenant);
        }
        if tenant.failed.load(Ordering::Acquire) {
            return;
        }
    }
}

async fn next_work(tenant: &TenantInner) -> Work {
    loop {
        // Let every task that is ready to submit do so first: they then share this sync.
        tokio::task::yield_now().await;
        let (batch, closed) = {
            let mut state = tenant.state();
            (state.take_batch(), state.closed)
        };
        if let Some(batch) = batch {
            tenant.room.notify_waiters();
            return Work::Write(batch);
        }
        if closed {
            return Work::End;
        }
        if tenant.follow_wanted.swap(false, Ordering::AcqRel) {
            return Work::Follow;
        }
        if !tenant.store.is_shared() || !tenant.live.is_watched() {
            tenant.work.notified().await;
            continue;
        }
        // Only where somebody waits to be told: other reads ask for themselves.
        tokio::select! {
            () = tenant.work.notified() => {}
            () = tenant.store.changed() => return Work::Follow,
        }
    }
}

async fn perform(tenant: &TenantInner, work: Work) {
    match work {
        Work::Write(batch) => write(tenant, batch).await,
        Work::Follow => follow::follow(tenant).await,
        Work::End => {}
    }
}

async fn write(tenant: &TenantInner, taken: TakenBatch) {
    if tenant.store.is_shared() && meets_a_fill(tenant, &taken) {
        return follow::commit_in_turn(tenant, taken).await;
    }
    match offer(tenant, &taken).await {
        Err(CommitError::HeadMoved { .. }) if tenant.store.is_shared() => {
            follow::commit_in_turn(tenant, taken).await;
        }
        Err(CommitError::Refused { reason }) if taken.members.len() > 1 => {
            one_by_one(tenant, taken.members, &reason).await;
        }
        result => conclude(tenant, taken, result),
    }
}

/// Whether a batch removes entries of an index that is being filled. That is done in turns which leave the head as it is, so
/// a commit that waited for one goes on, and a database may look for its rows as they were before it waited: an entry that
/// the turn made would stay. In a turn of its own it sees them.
fn meets_a_fill(tenant: &TenantInner, taken: &TakenBatch) -> bool {
    let writes = taken.batch.writes.iter();
    let removed = writes.filter(|((space, _), value)| *space == Keyspace::Index && value.is_none());
    let mut removed = removed.map(|((_, key), _)| key).peekable();
    if removed.peek().is_none() {
        return false;
    }
    let catalog = tenant.state().catalog();
    let indexes = catalog.tables().flat_map(|table| &table.indexes);
    let filling = indexes.filter(|index| index.state == IndexState::Backfilling);
    let filling: Vec<_> = filling.map(|index| index.id.to_be_bytes()).collect();
    removed.any(|key| filling.iter().any(|id| key.starts_with(id)))
}

/// Offers a batch to the provider, again after passing failures.
async fn offer(tenant: &TenantInner, taken: &TakenBatch) -> Result<(), CommitError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let offered = tenant.store.commit(taken.expected, taken.batch.clone());
        match offered.await {
            Err(CommitError::Transient { reason }) if tries < TRANSIENT_TRIES => {
                tracing::warn!(tenant = %tenant.id, reason, "commit is tried again");
                tokio::time::sleep(Duration::from_millis(5 << tries)).await;
            }
            other => return other,
        }
    }
}

/// Answers the members of a batch as the provider decided.
pub(super) fn conclude(tenant: &TenantInner, taken: TakenBatch, result: Result<(), CommitError>) {
    let members = taken.members;
    match result {
        // Another server came in between, for one of the members of a refused batch.
        Err(CommitError::HeadMoved { .. }) if tenant.store.is_shared() => {
            tenant.want_follow();
            let waiting = reset(tenant);
            for member in members.into_iter().chain(waiting) {
                let _ = member.reply.send(Outcome::Rerun);
            }
        }
        Ok(()) => settle(tenant, taken.batch.head, members),
        Err(CommitError::Full { what }) => {
            abort(tenant, members, |_| StoreError::StorageFull {
                inside: what.clone(),
            });
        }
        Err(CommitError::Refused { reason }) => abort(tenant, members, |_| refused(&reason)),
        Err(CommitError::Transient { reason }) => abort(tenant, members, |_| {
            StoreError::Storage(crate::provider::ProviderError::Busy {
                what: reason.clone(),
            })
        }),
        Err(error) => fail(tenant, members, &error),
    }
}

/// The batch is durable: answer, and tell live queries.
fn settle(tenant: &TenantInner, head: crate::provider::Head, members: Vec<Member>) {
    let (before, epoch, committed) = {
        let mut state = tenant.state();
        let before = state.durable.sequence;
        let committed = state.committed_between(before, head.sequence);
        state.settle(head, &members);
        (before, state.epoch, committed)
    };
    // Before anyone can answer from the new state: who answers from an older one, since nothing
    // that it read changed, then answers as of a time before this commit.
    tenant.live.invalidate(&committed, CommitStamp::of(head));
    tenant.durable.send_replace((head.sequence, epoch));
    tenant.counters.batches.fetch_add(1, Ordering::Relaxed);
    tenant
        .counters
        .commits
        .fetch_add(head.sequence - before, Ordering::Relaxed);
    for member in members {
        tenant.counters.note_writes(&member.proposal.writes);
        // A caller that went away does not undo its commit.
        let _ = member
            .reply
            .send(Outcome::Durable(CommitStamp::of(member.head)));
    }
    tenant.log.note_commit(tenant);
}

/// Nothing of the batch was written: its members are told why, those behind them run again.
fn abort(tenant: &TenantInner, members: Vec<Member>, error: impl Fn(&Member) -> StoreError) {
    for member in members {
        let told = error(&member);
        let _ = member.reply.send(Outcome::Failed(told));
    }
    for member in reset(tenant) {
        let _ = member.reply.send(Outcome::Rerun);
    }
}

/// Throws away what is validated but not durable; returns the members that were waiting.
fn reset(tenant: &TenantInner) -> Vec<Member> {
    let (waiting, durable, epoch) = {
        let mut state = tenant.state();
        (state.reset(), state.durable.sequence, state.epoch)
    };
    tenant.durable.send_replace((durable, epoch));
    tenant.room.notify_waiters();
    waiting
}

/// The provider refuses something in the batch: each member gets a batch of its own, so
/// that only the one at fault fails. Nothing else is numbered meanwhile. A member that read
/// another's write runs again, since nobody knows yet whether that write will be.
async fn one_by_one(tenant: &TenantInner, members: Vec<Member>, reason: &str) {
    tracing::warn!(tenant = %tenant.id, reason, members = members.len(), "batch refused; committing one by one");
    let durable = {
        let mut state = tenant.state();
        state.one_by_one = true;
        state.durable.sequence
    };
    let mut rerun = reset(tenant);
    for member in members {
        if tenant.failed.load(Ordering::Acquire) || member.proposal.read_sequence > durable {
            rerun.push(member);
            continue;
        }
        let resubmitted = tenant.state().resubmit(member, now_ns());
        match resubmitted {
            Ok(taken) => {
                let result = offer(tenant, &taken).await;
                conclude(tenant, taken, result);
            }
            Err(member) => rerun.push(*member),
        }
    }
    tenant.state().one_by_one = false;
    tenant.room.notify_waiters();
    for member in rerun {
        let _ = member.reply.send(Outcome::Rerun);
    }
}

fn refused(reason: &str) -> StoreError {
    StoreError::Storage(crate::provider::ProviderError::io(
        "commit",
        reason.to_owned(),
    ))
}

/// The members of a batch are told that it failed, and the tenant is closed.
fn fail(tenant: &TenantInner, members: Vec<Member>, error: &CommitError) {
    tracing::error!(tenant = %tenant.id, %error, "the tenant is closed after a failed commit");
    give_up(tenant);
    for member in members {
        let told = match error {
            CommitError::OutcomeUnknown { .. } => StoreError::OutcomeUnknown {
                commit: member.proposal.commit,
                inside: error.to_string(),
            },
            _ => StoreError::Closed,
        };
        let _ = member.reply.send(Outcome::Failed(told));
    }
}

/// The store can no longer be trusted to agree with memory: the tenant is closed, and the next
/// caller opens it again and sees what the disk holds.
pub(super) fn give_up(tenant: &TenantInner) {
    tenant.failed.store(true, Ordering::Release);
    tenant.state().closed = true;
    for member in reset(tenant) {
        let _ = member.reply.send(Outcome::Failed(StoreError::Closed));
    }
    tenant.live.close();
}
