//! Commits to a shared database, and finding out what became of one when the answer was lost.
//!
//! Must not know what a batch means. Nothing is ever guessed: a commit whose answer was lost is looked up with
//! the head locked, which waits for the old session to end, and if the head is still the expected one it is
//! done there and then, so that a statement which is still on its way finds the head moved.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backend::{Backend, Goal, Namespace as _, Sent};
use super::error::{self, Kind, within};
use super::pool::{Lease, Use};
use super::reader;
use crate::provider::{CommitError, Keyspace, ProviderError};

/// How often a commit that others were in the way of is tried here.
const TRIES: u32 = 3;
/// Between two tries, and between two looks for an outcome.
const PAUSE: Duration = Duration::from_millis(50);

/// Commits a batch; see [`crate::provider::TenantStore::commit`].
pub(super) async fn commit<B: Backend>(
    backend: &Arc<B>,
    plan: &B::Plan,
) -> Result<(), CommitError> {
    let base = backend.base();
    let mut tries = 0;
    loop {
        let mut lease = lease(&**backend).await?;
        let Ok(conn) = lease.conn() else {
            return Err(CommitError::Closed);
        };
        let (error, at_end) = match backend.commit(conn, plan).await {
            Sent::Committed => {
                lease.give_back();
                return Ok(());
            }
            Sent::Moved => return Err(moved(&**backend, plan, lease).await),
            Sent::Failed { error, at_end } => (error, at_end),
        };
        tries += 1;
        let again = tries < TRIES;
        match B::kind(&error) {
            Kind::Lost if at_end => {
                drop(lease);
                return settle(backend, plan, &B::text(&error)).await;
            }
            // Nothing was done; the connection may have died while nobody used it, and others with it.
            Kind::Lost if again => base.pool.forget_idle(),
            Kind::Passing if again && !B::is_lock_timeout(&error) => {
                reader::end::<B>(lease, base.timing.statement).await;
            }
            _ => {
                reader::end::<B>(lease, base.timing.statement).await;
                return Err(refused::<B>(plan, &error));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A commit that did nothing, as the server said.
pub(super) fn refused<B: Backend>(plan: &B::Plan, e: &sqlx::Error) -> CommitError {
    error::commit(B::space(plan).name(), B::kind(e), &B::text(e))
}

/// Why the head was not the expected one. Nothing was written.
async fn moved<B: Backend>(backend: &B, plan: &B::Plan, mut lease: Lease<B::Dial>) -> CommitError {
    let space = B::space(plan);
    let Ok(conn) = lease.conn() else {
        return CommitError::Closed;
    };
    let limit = backend.base().timing.statement;
    match within(limit, B::end_and_look(conn, space)).await {
        Ok(head) => {
            lease.give_back();
            match head {
                Ok(actual) => CommitError::HeadMoved { actual },
                Err(e) => error::unread(e),
            }
        }
        Err(e) if B::kind(&e) == Kind::Gone => CommitError::Closed,
        Err(e) => CommitError::Transient {
            reason: format!("reading the head of {}: {}", space.name(), B::text(&e)),
        },
    }
}

/// Finds out what became of a batch whose answer was lost, for `why`, and does it if it was not done.
pub(super) async fn settle<B: Backend>(
    backend: &Arc<B>,
    plan: &B::Plan,
    why: &str,
) -> Result<(), CommitError> {
    let name = B::space(plan).name();
    tracing::warn!(
        namespace = name,
        error = why,
        "lost the connection in a commit; looking for its outcome"
    );
    let base = backend.base();
    base.pool.forget_idle();
    let until = Instant::now() + base.timing.settle;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let lost = match settle_once(backend, plan, left.max(PAUSE)).await {
            Ok(known) => return known,
            Err(lost) => lost,
        };
        if Instant::now() >= until {
            let reason = format!("{why}; and its outcome in {name} could not be looked up: {lost}");
            return Err(CommitError::OutcomeUnknown { reason });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One look, with the head locked, within `left`. The error says why nothing was found out.
async fn settle_once<B: Backend>(
    backend: &Arc<B>,
    plan: &B::Plan,
    left: Duration,
) -> Result<Result<(), CommitError>, String> {
    let (base, space) = (backend.base(), B::space(plan));
    let Goal { expected, new, .. } = B::goal(plan);
    let lease = tokio::time::timeout(left, base.pool.get(Use::Commit)).await;
    let lease = lease.map_err(|_| "no connection in time".to_owned())?;
    let mut lease = lease.map_err(|e| e.to_string())?;
    let conn = lease.conn().map_err(|e| e.to_string())?;
    let actual = match within(left, backend.begin_turn(conn, space, left)).await {
        Ok(Ok(head)) => head,
        Ok(Err(e @ ProviderError::NotFound { .. })) => return Ok(Err(error::unread(e))),
        Ok(Err(e)) => return Err(e.to_string()),
        Err(e) if B::kind(&e) == Kind::Gone => return Ok(Err(CommitError::Closed)),
        Err(e) => return Err(B::text(&e)),
    };
    if actual == *expected {
        // The lock is ours, so the old session is over: nothing of the batch is there, or it left the head
        // as it was and can be done again.
        return match backend.commit_turn(conn, plan).await {
            Sent::Committed => {
                lease.give_back();
                Ok(Ok(()))
            }
            Sent::Moved => Err("the head moved while it was locked".to_owned()),
            Sent::Failed { error, .. } if B::kind(&error) == Kind::Lost => Err(B::text(&error)),
            Sent::Failed { error, .. } => {
                reader::end::<B>(lease, base.timing.statement).await;
                Ok(Err(refused::<B>(plan, &error)))
            }
        };
    }
    let is_there = match actual == *new {
        true => Some(true),
        false => is_in_log(&**backend, plan, &mut lease).await?,
    };
    reader::end::<B>(lease, base.timing.statement).await;
    Ok(match is_there {
        Some(true) => Ok(()),
        Some(false) => Err(CommitError::HeadMoved { actual }),
        None => {
            let name = space.name();
            let reason = format!(
                "others committed to {name} since, and the batch wrote no record to look for"
            );
            Err(CommitError::OutcomeUnknown { reason })
        }
    })
}

/// Whether the log has the record of this batch; `None` if it wrote none.
async fn is_in_log<B: Backend>(
    backend: &B,
    plan: &B::Plan,
    lease: &mut Lease<B::Dial>,
) -> Result<Option<bool>, String> {
    let Some((key, value)) = &B::goal(plan).log else {
        return Ok(None);
    };
    let keys: [&[u8]; 1] = [key];
    let conn = lease.conn().map_err(|e| e.to_string())?;
    let read = B::get_many(conn, B::space(plan), Keyspace::Log, &keys);
    let found = within(backend.base().timing.statement, read).await;
    let found = found.map_err(|e| B::text(&e))?;
    Ok(Some(
        found
            .first()
            .is_some_and(|found| found.as_ref() == Some(value)),
    ))
}

/// A connection for a commit; nothing was sent yet.
pub(super) async fn lease<B: Backend>(backend: &B) -> Result<Lease<B::Dial>, CommitError> {
    let lease = backend.base().pool.get(Use::Commit).await;
    lease.map_err(|e| match e {
        ProviderError::Closed => CommitError::Closed,
        other => CommitError::Transient {
            reason: other.to_string(),
        },
    })
}
