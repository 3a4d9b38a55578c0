//! Commits: the head is compared and swapped first, and what became of a commit is found out when the answer
//! was lost.
//!
//! Must not know what a batch means. Nothing is ever guessed: a commit whose answer was lost is looked up with
//! the head locked, which waits for the old session to end, and if the head is still the expected one it is
//! done there and then, so that a packet which is still on its way finds the head moved.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::connect::{Lease, SESSION_IDLE_S, rows, seconds};
use super::error::{self, Kind, column};
use super::plan::{Failed, Plan};
use super::read;
use super::sql;
use crate::provider::external::pool::Use;
use crate::provider::{CommitError, Keyspace, ProviderError};

/// How often a commit that others were in the way of is tried here.
const TRIES: u32 = 3;
/// Between two tries, and between two looks for an outcome.
const PAUSE: Duration = Duration::from_millis(50);

/// Commits a batch; see [`crate::provider::TenantStore::commit`].
pub(super) async fn commit(shared: &Arc<Shared>, plan: &Plan) -> Result<(), CommitError> {
    let mut tries = 0;
    loop {
        let mut lease = lease(shared, Use::Commit).await?;
        let failed = match attempt(shared, plan, &mut lease).await {
            Ok(()) => {
                lease.give_back();
                return Ok(());
            }
            Err(failed) => failed,
        };
        tries += 1;
        let kind = error::kind(failed.error());
        match (kind, failed) {
            (Kind::Lost, Failed::AtEnd(e)) => {
                drop(lease);
                return settle(shared, plan, &error::text(&e)).await;
            }
            // Nothing was done; the connection may have died while nobody used it, and others with it.
            (Kind::Lost, Failed::Before(_)) if tries < TRIES => shared.pool.forget_idle(),
            (Kind::Moved, _) => return Err(moved(shared, plan, lease).await),
            (Kind::Passing, failed)
                if tries < TRIES
                    // Waiting for a lock took long enough.
                    && !error::is_number(failed.error(), error::LOCK_TIMEOUT) =>
            {
                read::end(lease, shared.timing.statement).await;
            }
            (_, failed) => {
                read::end(lease, shared.timing.statement).await;
                return Err(error::commit(&plan.space.name, failed.error()));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn attempt(shared: &Arc<Shared>, plan: &Plan, lease: &mut Lease) -> Result<(), Failed> {
    let timing = &shared.timing;
    let Ok(conn) = lease.conn() else {
        return Err(Failed::Before(sqlx::Error::PoolClosed));
    };
    let begin = sql::begin(seconds(timing.turn_idle));
    // A batch that leaves the head as it is locks it first: it could otherwise be done a second time by a packet
    // that was still on its way.
    let one_packet = !plan.keeps_head();
    plan.apply(conn, timing.statement, begin, one_packet).await
}

/// Why the head was not the expected one. Nothing was written.
async fn moved(shared: &Arc<Shared>, plan: &Plan, mut lease: Lease) -> CommitError {
    let space = &plan.space;
    let end = sql::end("ROLLBACK", SESSION_IDLE_S);
    let sql = format!("{end};{}", sql::state(&space.name));
    let read = match lease.conn() {
        Ok(conn) => rows(conn, shared.timing.statement, sql).await,
        Err(_) => return CommitError::Closed,
    };
    match read {
        Ok(rows) => {
            lease.give_back();
            match space.head_in(&rows) {
                Ok(actual) => CommitError::HeadMoved { actual },
                Err(e) => from_read(e),
            }
        }
        Err(e) if error::kind(&e) == Kind::Gone => CommitError::Closed,
        Err(e) => CommitError::Transient {
            reason: format!("reading the head of {}: {}", space.name, error::text(&e)),
        },
    }
}

/// Finds out what became of a batch whose answer was lost, for `why`, and does it if it was not done.
pub(super) async fn settle(
    shared: &Arc<Shared>,
    plan: &Plan,
    why: &str,
) -> Result<(), CommitError> {
    let name = &plan.space.name;
    tracing::warn!(database = %name, error = why, "lost the connection in a commit; looking for its outcome");
    shared.pool.forget_idle();
    let until = Instant::now() + shared.timing.settle;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let lost = match settle_once(shared, plan, left.max(PAUSE)).await {
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
async fn settle_once(
    shared: &Arc<Shared>,
    plan: &Plan,
    left: Duration,
) -> Result<Result<(), CommitError>, String> {
    let (space, timing) = (&plan.space, &shared.timing);
    let text = |e: sqlx::Error| error::text(&e);
    let lease = tokio::time::timeout(left, shared.pool.get(Use::Commit)).await;
    let lease = lease.map_err(|_| "no connection in time".to_owned())?;
    let mut lease = lease.map_err(|e| e.to_string())?;
    let conn = lease.conn().map_err(|e| e.to_string())?;
    let begin = sql::begin_turn(&space.name, seconds(timing.turn_idle));
    let found = match rows(conn, left, begin).await {
        Ok(rows) => rows,
        Err(e) if error::kind(&e) == Kind::Gone => return Ok(Err(CommitError::Closed)),
        Err(e) => return Err(text(e)),
    };
    let actual = match space.head_in(&found) {
        Ok(head) => head,
        Err(e @ ProviderError::NotFound { .. }) => return Ok(Err(from_read(e))),
        Err(e) => return Err(e.to_string()),
    };
    if actual == plan.expected {
        // The lock is ours, so the old session is over: nothing of the batch is there, or it left the head
        // as it was and can be done again.
        let begun = String::new();
        let done = plan.apply(conn, timing.statement, begun, false).await;
        return match done.map_err(Failed::into_error) {
            Ok(()) => {
                lease.give_back();
                Ok(Ok(()))
            }
            Err(e) if error::kind(&e) == Kind::Lost => Err(text(e)),
            Err(e) => {
                read::end(lease, timing.statement).await;
                Ok(Err(error::commit(&space.name, &e)))
            }
        };
    }
    let is_there = match actual == plan.new {
        true => Some(true),
        false => is_in_log(shared, plan, &mut lease).await.map_err(text)?,
    };
    read::end(lease, timing.statement).await;
    Ok(match is_there {
        Some(true) => Ok(()),
        Some(false) => Err(CommitError::HeadMoved { actual }),
        None => {
            let name = &space.name;
            let reason = format!(
                "others committed to {name} since, and the batch wrote no record to look for"
            );
            Err(CommitError::OutcomeUnknown { reason })
        }
    })
}

/// Whether the log has the record of this batch; `None` if it wrote none.
async fn is_in_log(
    shared: &Shared,
    plan: &Plan,
    lease: &mut Lease,
) -> Result<Option<bool>, sqlx::Error> {
    let Some((key, value)) = &plan.log else {
        return Ok(None);
    };
    let Ok(conn) = lease.conn() else {
        return Err(sqlx::Error::PoolClosed);
    };
    let sql = sql::get_many(&plan.space.name, Keyspace::Log, &[key]);
    let found = rows(conn, shared.timing.statement, sql).await?;
    let mut same = false;
    for row in &found {
        let stored: &[u8] = column(row, 1)?;
        same |= stored == &value[..];
    }
    Ok(Some(same))
}

/// A connection for a commit; nothing was sent yet.
pub(super) async fn lease(shared: &Shared, r#use: Use) -> Result<Lease, CommitError> {
    let pool = &shared.pool;
    pool.get(r#use).await.map_err(|e| match e {
        ProviderError::Closed => CommitError::Closed,
        other => CommitError::Transient {
            reason: other.to_string(),
        },
    })
}

/// A head that could not be read, before anything was written.
pub(super) fn from_read(e: ProviderError) -> CommitError {
    match e {
        ProviderError::NotFound { .. } | ProviderError::Closed => CommitError::Closed,
        other => CommitError::Refused {
            reason: other.to_string(),
        },
    }
}
