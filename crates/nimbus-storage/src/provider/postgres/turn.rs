//! A turn: the newest state of a tenant, with its head locked, so that no other server commits meanwhile.
//!
//! Must not decide what is committed. The server ends the turn of a process that stopped.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use sqlx::{AssertSqlSafe, raw_sql};
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::commit::{self, Plan};
use super::error::{self, Kind};
use super::read::{self, Reader, within};
use super::space::Space;
use super::sql;
use super::store::Counters;
use crate::provider::external::pool::Use;
use crate::provider::{
    Batch, CommitError, Direction, Head, KeyRange, Keyspace, ProviderResult, Row, Snapshot, Turn,
};

/// A turn; see the trait.
pub(super) struct PgTurn {
    reader: Reader,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    _permit: OwnedSemaphorePermit,
}

/// Waits for the head and locks it.
pub(super) async fn turn(
    shared: &Arc<Shared>,
    space: &Arc<Space>,
    counters: &Arc<Counters>,
) -> Result<Box<dyn Turn>, CommitError> {
    let timing = shared.timing;
    let transient = |reason: String| CommitError::Transient { reason };
    let permit = shared.turns.clone().acquire_owned();
    let permit = tokio::time::timeout(timing.lock, permit).await;
    let Ok(Ok(permit)) = permit else {
        return Err(transient(format!(
            "too many turns are taken, {}",
            space.name
        )));
    };
    let (lock_ms, idle_ms) = (
        commit::millis(timing.lock),
        commit::millis(timing.turn_idle),
    );
    let begin = sql::begin_turn(&space.name, lock_ms, idle_ms);
    loop {
        let mut lease = commit::lease(shared, Use::Commit).await?;
        let Ok(conn) = lease.conn() else {
            return Err(CommitError::Closed);
        };
        let begun = raw_sql(AssertSqlSafe(begin.as_str())).fetch_all(conn);
        match within(timing.statement, begun).await {
            Ok(rows) => {
                let (s, p) = (shared.clone(), space.clone());
                let mut reader = Reader::new(s, p, Head::EMPTY, lease);
                reader.head = reader.space.head_in(&rows).map_err(commit::from_read)?;
                return Ok(Box::new(PgTurn {
                    reader,
                    shared: shared.clone(),
                    counters: counters.clone(),
                    _permit: permit,
                }));
            }
            Err(e) => match error::kind(&e) {
                Kind::Gone => return Err(CommitError::Closed),
                Kind::Lost if !lease.fresh => shared.pool.forget_idle(),
                _ => {
                    let text = error::text(&e);
                    return Err(transient(format!(
                        "taking a turn on {}: {text}",
                        space.name
                    )));
                }
            },
        }
    }
}

impl Snapshot for PgTurn {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        std::future::ready(Ok(self.reader.head)).boxed()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        self.reader.get_many(keyspace, keys).boxed()
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        self.reader.scan(keyspace, range, direction, limit).boxed()
    }
}

impl Turn for PgTurn {
    fn commit(self: Box<Self>, batch: Batch) -> BoxFuture<'static, Result<(), CommitError>> {
        // Goes on without whoever waits for it.
        let runtime = self.shared.runtime.clone();
        let task = runtime.spawn(async move { self.finish(batch).await });
        task.map(|ended| {
            ended.unwrap_or_else(|e| {
                let reason = format!("the commit of a turn ended: {e}");
                Err(CommitError::OutcomeUnknown { reason })
            })
        })
        .boxed()
    }
}

impl PgTurn {
    async fn finish(mut self, batch: Batch) -> Result<(), CommitError> {
        let (head, space) = (self.reader.head, self.reader.space.clone());
        let plan = Plan::new(&space, head, batch)?;
        let Some(mut lease) = self.reader.take() else {
            let reason = format!("the turn on {} ended before its commit", space.name);
            return Err(CommitError::Transient { reason });
        };
        let limit = self.shared.timing.statement;
        let done = commit::apply_and_end(&mut lease, &plan, limit).await;
        let result = match done {
            Ok(true) => {
                lease.give_back();
                Ok(())
            }
            // The head is locked, so only another life of the tenant explains it.
            Ok(false) => {
                read::end(lease, limit).await;
                Err(CommitError::Closed)
            }
            Err(e) => match error::kind(&e) {
                Kind::Lost => {
                    drop(lease);
                    commit::settle(&self.shared, &plan, &error::text(&e)).await
                }
                _ => {
                    read::end(lease, limit).await;
                    Err(error::commit(&space.name, &e))
                }
            },
        };
        match result {
            Ok(()) => {
                self.counters.committed();
                self.shared.outbox.committed(&space.name);
                Ok(())
            }
            // Nothing of it was written, and the turn is over.
            Err(CommitError::HeadMoved { .. }) => {
                let reason = format!("the turn on {} was lost to another server", space.name);
                Err(CommitError::Transient { reason })
            }
            other => other,
        }
    }
}
