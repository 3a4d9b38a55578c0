//! Commits: one statement that compares the head and swaps it, and finding out what became of it when the
//! answer was lost.
//!
//! Must not know what a batch means. Nothing is ever guessed: a commit whose answer was lost is looked up with
//! the head locked, which waits for the old session to end, and if the head is still the expected one it is
//! done there and then, so that a statement which is still on its way finds the head moved.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::{AssertSqlSafe, PgConnection, Row as _, raw_sql};

use super::Shared;
use super::connect::Lease;
use super::error::{self, Kind};
use super::read::{self, within};
use super::space::{Space, Text};
use super::sql::{self, Touched};
use crate::provider::external::FORMAT_KEY;
use crate::provider::external::pool::Use;
use crate::provider::{Batch, CommitError, HEAD_KEY, Head, Keyspace, ProviderError};

/// How often a commit that others were in the way of is tried again here.
const TRIES: u32 = 3;
/// Between two tries, and between two looks for an outcome.
const PAUSE: Duration = Duration::from_millis(50);

/// A batch as the statement takes it.
pub(super) struct Plan {
    space: Arc<Space>,
    expected: Head,
    new: Head,
    sql: Text,
    puts: Vec<(Vec<Vec<u8>>, Vec<Bytes>)>,
    deletes: Vec<Vec<Vec<u8>>>,
    /// A row of the log that this batch alone writes.
    log: Option<(Vec<u8>, Bytes)>,
}

impl Plan {
    /// # Errors
    /// `Refused` for a batch that writes rows of the provider.
    pub(super) fn new(
        space: &Arc<Space>,
        expected: Head,
        batch: Batch,
    ) -> Result<Plan, CommitError> {
        let mut puts: [(Vec<Vec<u8>>, Vec<Bytes>); Keyspace::ALL.len()] = Default::default();
        let mut deletes: [Vec<Vec<u8>>; Keyspace::ALL.len()] = Default::default();
        let mut log = None;
        for ((keyspace, key), value) in batch.writes {
            if keyspace == Keyspace::Meta && (key == HEAD_KEY || key == FORMAT_KEY) {
                let key = String::from_utf8_lossy(&key);
                let reason = format!("the row {key} of meta belongs to the provider");
                return Err(CommitError::Refused { reason });
            }
            match value {
                Some(value) => {
                    if keyspace == Keyspace::Log && log.is_none() {
                        log = Some((key.clone(), value.clone()));
                    }
                    let (keys, values) = &mut puts[keyspace as usize];
                    keys.push(key);
                    values.push(value);
                }
                None => deletes[keyspace as usize].push(key),
            }
        }
        let touched = Touched {
            puts: puts.each_ref().map(|(keys, _)| !keys.is_empty()),
            deletes: deletes.each_ref().map(|keys| !keys.is_empty()),
        };
        Ok(Plan {
            sql: space.commit(touched),
            space: space.clone(),
            expected,
            new: batch.head,
            puts: puts.into_iter().filter(|(k, _)| !k.is_empty()).collect(),
            deletes: deletes.into_iter().filter(|k| !k.is_empty()).collect(),
            log,
        })
    }

    /// Whether it leaves the head as it is, so that the head cannot tell whether it was done.
    fn keeps_head(&self) -> bool {
        self.expected == self.new
    }

    /// Runs the statement; whether the head was the expected one.
    async fn apply(&self, conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let (new, expected) = (self.new.encode(), self.expected.encode());
        let mut query = sqlx::query(AssertSqlSafe(self.sql.clone()))
            .bind(new.to_vec())
            .bind(expected.to_vec())
            .bind(self.space.format.as_slice());
        for (keys, values) in &self.puts {
            let values: Vec<&[u8]> = values.iter().map(|v| &v[..]).collect();
            query = query.bind(keys.as_slice()).bind(values);
        }
        for keys in &self.deletes {
            query = query.bind(keys.as_slice());
        }
        // Ends when the server is ready again: the commit itself comes after the answer to the statement.
        Ok(query.execute(conn).await?.rows_affected() == 1)
    }
}

/// Applies a batch in the transaction that the connection is in, and commits; false without a commit.
pub(super) async fn apply_and_end(
    lease: &mut Lease,
    plan: &Plan,
    limit: Duration,
) -> Result<bool, sqlx::Error> {
    let Ok(conn) = lease.conn() else {
        return Err(sqlx::Error::PoolClosed);
    };
    within(limit, async {
        let applied = plan.apply(conn).await?;
        if applied {
            raw_sql("COMMIT").execute(conn).await?;
        }
        Ok(applied)
    })
    .await
}

/// Commits a batch; see [`crate::provider::TenantStore::commit`].
pub(super) async fn commit(shared: &Arc<Shared>, plan: &Plan) -> Result<(), CommitError> {
    let mut tries = 0;
    loop {
        let lease = lease(shared, Use::Commit).await?;
        let error = match plan.keeps_head() {
            true => in_transaction(shared, plan, lease).await,
            false => alone(shared, plan, lease).await,
        };
        let error = match error {
            Ok(done) => return done,
            Err(e) => e,
        };
        tries += 1;
        // Waiting for a lock took long enough.
        let again = error::kind(&error) == Kind::Passing && !error::is_state(&error, "55P03");
        if !again || tries == TRIES {
            return Err(error::commit(&plan.space.name, &error));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

type Outcome = Result<Result<(), CommitError>, sqlx::Error>;

/// In one round trip. An error means that the server said that nothing was done.
async fn alone(shared: &Arc<Shared>, plan: &Plan, mut lease: Lease) -> Outcome {
    let limit = shared.timing.statement;
    let Ok(conn) = lease.conn() else {
        return Ok(Err(CommitError::Closed));
    };
    match within(limit, plan.apply(conn)).await {
        Ok(true) => {
            lease.give_back();
            Ok(Ok(()))
        }
        Ok(false) => Ok(Err(moved(shared, plan, lease).await)),
        Err(e) if error::kind(&e) == Kind::Lost => {
            drop(lease);
            Ok(settle(shared, plan, &error::text(&e)).await)
        }
        Err(e) => {
            lease.give_back();
            Err(e)
        }
    }
}

/// With the head locked first: a batch that leaves the head as it is could otherwise be done a second time by a
/// statement that was still on its way.
async fn in_transaction(shared: &Arc<Shared>, plan: &Plan, mut lease: Lease) -> Outcome {
    let timing = shared.timing;
    let (lock, idle) = (millis(timing.lock), millis(timing.turn_idle));
    let begin = sql::begin_turn(&plan.space.name, lock, idle);
    let Ok(conn) = lease.conn() else {
        return Ok(Err(CommitError::Closed));
    };
    let begun = raw_sql(AssertSqlSafe(begin.as_str())).execute(conn);
    match within(timing.statement, begun).await {
        Ok(_) => {}
        // Nothing of the batch was sent.
        Err(e) if error::kind(&e) == Kind::Lost => {
            drop(lease);
            return Ok(settle(shared, plan, &error::text(&e)).await);
        }
        Err(e) => return Err(e),
    }
    match apply_and_end(&mut lease, plan, timing.statement).await {
        Ok(true) => {
            lease.give_back();
            Ok(Ok(()))
        }
        Ok(false) => {
            read::end(lease, timing.statement).await;
            let lease = match self::lease(shared, Use::Commit).await {
                Ok(lease) => lease,
                Err(e) => return Ok(Err(e)),
            };
            Ok(Err(moved(shared, plan, lease).await))
        }
        Err(e) if error::kind(&e) == Kind::Lost => {
            drop(lease);
            Ok(settle(shared, plan, &error::text(&e)).await)
        }
        Err(e) => {
            read::end(lease, timing.statement).await;
            Err(e)
        }
    }
}

/// Why the head was not the expected one. Nothing was written.
async fn moved(shared: &Arc<Shared>, plan: &Plan, mut lease: Lease) -> CommitError {
    let Ok(conn) = lease.conn() else {
        return CommitError::Closed;
    };
    let read = raw_sql(plan.space.state()).fetch_all(conn);
    match within(shared.timing.statement, read).await {
        Ok(rows) => {
            lease.give_back();
            match plan.space.head_in(&rows) {
                Ok(actual) => CommitError::HeadMoved { actual },
                Err(e) => from_read(e),
            }
        }
        Err(e) => {
            let reason = format!(
                "reading the head of {}: {}",
                plan.space.name,
                error::text(&e)
            );
            match error::kind(&e) {
                Kind::Gone => CommitError::Closed,
                _ => CommitError::Transient { reason },
            }
        }
    }
}

/// Finds out what became of a batch whose answer was lost, for `why`, and does it if it was not done.
pub(super) async fn settle(
    shared: &Arc<Shared>,
    plan: &Plan,
    why: &str,
) -> Result<(), CommitError> {
    let name = &plan.space.name;
    tracing::warn!(schema = %name, error = why, "lost the connection in a commit; looking for its outcome");
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

/// One look, with the head locked. The error says why nothing was found out.
async fn settle_once(
    shared: &Arc<Shared>,
    plan: &Plan,
    left: Duration,
) -> Result<Result<(), CommitError>, String> {
    let space = &plan.space;
    let limit = shared.timing.statement;
    let text = |e: sqlx::Error| error::text(&e);
    let mut lease = shared
        .pool
        .get(Use::Commit)
        .await
        .map_err(|e| e.to_string())?;
    let begin = sql::begin_turn(&space.name, millis(left), millis(shared.timing.turn_idle));
    let rows = {
        let conn = lease.conn().map_err(|e| e.to_string())?;
        within(
            limit,
            raw_sql(AssertSqlSafe(begin.as_str())).fetch_all(conn),
        )
        .await
    };
    let rows = match rows {
        Ok(rows) => rows,
        Err(e) if error::kind(&e) == Kind::Gone => return Ok(Err(CommitError::Closed)),
        Err(e) => return Err(text(e)),
    };
    let actual = match space.head_in(&rows) {
        Ok(head) => head,
        Err(e @ ProviderError::NotFound { .. }) => return Ok(Err(from_read(e))),
        Err(e) => return Err(e.to_string()),
    };
    if actual == plan.expected {
        // The lock is ours, so the old session is over: nothing of the batch is there, or it left the head
        // as it was and can be done again.
        return match apply_and_end(&mut lease, plan, limit).await {
            Ok(true) => {
                lease.give_back();
                Ok(Ok(()))
            }
            Ok(false) => Err("the head moved while it was locked".to_owned()),
            Err(e) if error::kind(&e) == Kind::Lost => Err(text(e)),
            Err(e) => {
                read::end(lease, limit).await;
                Ok(Err(error::commit(&space.name, &e)))
            }
        };
    }
    let found = match actual == plan.new {
        true => Ok(Some(true)),
        false => {
            let conn = lease.conn().map_err(|e| e.to_string())?;
            within(limit, is_in_log(plan, conn)).await.map_err(text)
        }
    };
    let found = found?;
    read::end(lease, limit).await;
    Ok(match found {
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
async fn is_in_log(plan: &Plan, conn: &mut PgConnection) -> Result<Option<bool>, sqlx::Error> {
    let Some((key, value)) = &plan.log else {
        return Ok(None);
    };
    let keys: &[&[u8]] = &[key];
    let row = sqlx::query(plan.space.get_many(Keyspace::Log))
        .bind(keys)
        .fetch_one(conn)
        .await?;
    let found: Option<&[u8]> = row.try_get(0)?;
    Ok(Some(found == Some(&value[..])))
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

/// For a setting of the server, which takes 0 for no limit.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, 1_000_000)
}
