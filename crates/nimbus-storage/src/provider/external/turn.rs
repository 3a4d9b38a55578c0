//! A turn: the newest state of a tenant, with its head locked, so that no other server commits meanwhile.
//!
//! Must not decide what is committed. The server ends the turn of a process that stopped.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::OwnedSemaphorePermit;

use super::backend::{Backend, Namespace as _, Sent};
use super::commit;
use super::error::{self, Kind, within};
use super::reader::{self, Reader};
use super::store::Counters;
use crate::provider::{
    Batch, CommitError, Direction, Head, KeyRange, Keyspace, ProviderResult, Row, Snapshot, Turn,
};

/// A turn; see the trait.
struct Locked<B: Backend> {
    reader: Reader<B>,
    backend: Arc<B>,
    counters: Arc<Counters>,
    _permit: OwnedSemaphorePermit,
}

/// Waits for the head and locks it.
pub(super) async fn turn<B: Backend>(
    backend: &Arc<B>,
    space: &Arc<B::Space>,
    counters: &Arc<Counters>,
) -> Result<Box<dyn Turn>, CommitError> {
    let (base, name) = (backend.base(), space.name());
    let timing = base.timing;
    let transient = |reason: String| CommitError::Transient { reason };
    let permit = base.turns.clone().acquire_owned();
    let permit = tokio::time::timeout(timing.lock, permit).await;
    let Ok(Ok(permit)) = permit else {
        return Err(transient(format!("too many turns are taken, {name}")));
    };
    loop {
        let mut lease = commit::lease(&**backend).await?;
        let Ok(conn) = lease.conn() else {
            return Err(CommitError::Closed);
        };
        let begun = backend.begin_turn(conn, space, timing.lock);
        match within(timing.statement, begun).await {
            Ok(head) => {
                let reader = Reader::new(backend, space, head, lease, None);
                return Ok(Box::new(Locked {
                    reader: reader.map_err(error::unread)?,
                    backend: backend.clone(),
                    counters: counters.clone(),
                    _permit: permit,
                }));
            }
            Err(e) => match B::kind(&e) {
                Kind::Gone => return Err(CommitError::Closed),
                Kind::Lost if !lease.fresh => base.pool.forget_idle(),
                _ => {
                    let text = B::text(&e);
                    return Err(transient(format!("taking a turn on {name}: {text}")));
                }
            },
        }
    }
}

impl<B: Backend> Snapshot for Locked<B> {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        self.reader.head()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        self.reader.get_many(keyspace, keys)
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        self.reader.scan(keyspace, range, direction, limit)
    }
}

impl<B: Backend> Turn for Locked<B> {
    fn commit(self: Box<Self>, batch: Batch) -> BoxFuture<'static, Result<(), CommitError>> {
        // Goes on without whoever waits for it.
        let runtime = self.backend.base().runtime.clone();
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

impl<B: Backend> Locked<B> {
    async fn finish(mut self, batch: Batch) -> Result<(), CommitError> {
        let (head, new, space) = (self.reader.head, batch.head, self.reader.space.clone());
        let plan = self.backend.plan(&space, head, batch)?;
        let over = |why: &str| CommitError::Transient {
            reason: format!(
                "the turn on {} ended before its commit: {why}",
                space.name()
            ),
        };
        let Some(mut lease) = self.reader.take() else {
            return Err(over("a read failed"));
        };
        let limit = self.backend.base().timing.statement;
        let Ok(conn) = lease.conn() else {
            return Err(CommitError::Closed);
        };
        let done = match self.backend.commit_turn(conn, &plan).await {
            Sent::Committed => {
                lease.give_back();
                Ok(())
            }
            // The head is locked, so only another life of the tenant explains it.
            Sent::Moved => {
                reader::end::<B>(lease, limit).await;
                Err(CommitError::Closed)
            }
            Sent::Failed { error, at_end } => match B::kind(&error) {
                Kind::Lost if at_end => {
                    drop(lease);
                    commit::settle(&self.backend, &plan, &B::text(&error)).await
                }
                Kind::Lost => Err(over(&B::text(&error))),
                _ => {
                    reader::end::<B>(lease, limit).await;
                    Err(commit::refused::<B>(&plan, &error))
                }
            },
        };
        match done {
            Ok(()) => {
                self.counters.committed();
                self.backend.committed(&space, new);
                Ok(())
            }
            // Nothing of it was written.
            Err(CommitError::HeadMoved { .. }) => Err(over("another server committed")),
            Err(other) => Err(other),
        }
    }
}
