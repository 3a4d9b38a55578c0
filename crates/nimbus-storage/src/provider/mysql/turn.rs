//! A turn: the newest state of a tenant, with its head locked, so that no other server commits meanwhile.
//!
//! Must not decide what is committed. The server ends the turn of a process that stopped: it closes a session
//! that is silent for too long, as `wait_timeout` of the session says.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::commit;
use super::connect::{rows, seconds};
use super::error::{self, Kind};
use super::plan::{Failed, Plan};
use super::read::{self, Reader};
use super::space::Space;
use super::sql;
use super::store::Counters;
use crate::provider::external::pool::Use;
use crate::provider::{
    Batch, CommitError, Direction, Head, KeyRange, Keyspace, ProviderResult, Row, Snapshot, Turn,
};

/// A turn; see the trait.
pub(super) struct MyTurn {
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
    let name = &space.name;
    let transient = |reason: String| CommitError::Transient { reason };
    let permit = shared.turns.clone().acquire_owned();
    let permit = tokio::time::timeout(timing.lock, permit).await;
    let Ok(Ok(permit)) = permit else {
        return Err(transient(format!("too many turns are taken, {name}")));
    };
    loop {
        let mut lease = commit::lease(shared, Use::Commit).await?;
        let Ok(conn) = lease.conn() else {
            return Err(CommitError::Closed);
        };
        let begin = sql::begin_turn(name, seconds(timing.turn_idle));
        match rows(conn, timing.statement, begin).await {
            Ok(rows) => {
                let (s, p) = (shared.clone(), space.clone());
                let mut reader = Reader::new(s, p, Head::EMPTY, lease);
                reader.head = reader.space.head_in(&rows).map_err(commit::from_read)?;
                return Ok(Box::new(MyTurn {
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
                    return Err(transient(format!("taking a turn on {name}: {text}")));
                }
            },
        }
    }
}

impl Snapshot for MyTurn {
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

impl Turn for MyTurn {
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

impl MyTurn {
    async fn finish(mut self, batch: Batch) -> Result<(), CommitError> {
        let (head, new, space) = (self.reader.head, batch.head, self.reader.space.clone());
        let plan = Plan::new(&space, head, batch, self.shared.max_packet)?;
        let over = |why: &str| CommitError::Transient {
            reason: format!("the turn on {} ended before its commit: {why}", space.name),
        };
        let Some(mut lease) = self.reader.take() else {
            return Err(over("a read failed"));
        };
        let limit = self.shared.timing.statement;
        let Ok(conn) = lease.conn() else {
            return Err(CommitError::Closed);
        };
        // The end is sent alone, so that a turn that the server ended is told from one whose answer was lost.
        let failed = match plan.apply(conn, limit, String::new(), false).await {
            Ok(()) => {
                lease.give_back();
                self.committed(new);
                return Ok(());
            }
            Err(failed) => failed,
        };
        match (error::kind(failed.error()), failed) {
            (Kind::Lost, Failed::Before(e)) => Err(over(&error::text(&e))),
            (Kind::Lost, Failed::AtEnd(e)) => {
                drop(lease);
                let settled = commit::settle(&self.shared, &plan, &error::text(&e)).await;
                match settled {
                    Ok(()) => {
                        self.committed(new);
                        Ok(())
                    }
                    // Nothing of it was written.
                    Err(CommitError::HeadMoved { .. }) => Err(over("another server committed")),
                    other => other,
                }
            }
            // The head is locked, so only another life of the tenant explains it.
            (Kind::Moved, _) => {
                read::end(lease, limit).await;
                Err(CommitError::Closed)
            }
            (_, failed) => {
                read::end(lease, limit).await;
                Err(error::commit(&space.name, failed.error()))
            }
        }
    }

    fn committed(&self, head: Head) {
        self.counters.committed();
        self.shared.seen.saw(&self.reader.space.name, head);
    }
}
