//! A turn without a lock: it remembers the newest state, and its commit succeeds only if nothing came after.
//!
//! So that turns are seldom lost, one is reserved on the primary for a short time, in which commits of others wait. A
//! reservation is a courtesy: it ends by itself, and nothing relies on it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::OwnedMutexGuard;

use super::hrana::Script;
use super::http::Fault;
use super::primary::{Tag, state_in};
use super::store::Desk;
use super::{PAUSE, commit, sql};
use crate::provider::{
    Batch, CommitError, Direction, Head, KeyRange, Keyspace, ProviderError, ProviderResult, Row,
    Snapshot, Turn,
};

/// A turn; see the trait.
struct LibsqlTurn {
    desk: Arc<Desk>,
    head: Head,
    position: i64,
    /// `None` once its commit began.
    snapshot: Option<Box<dyn Snapshot>>,
    /// Names it to others.
    id: Tag,
    /// Whether the reservation has to be given back.
    reserved: bool,
    /// Turns of this server queue here.
    _first: OwnedMutexGuard<()>,
}

/// Looks at the newest state.
pub(super) async fn turn(desk: &Arc<Desk>) -> Result<Box<dyn Turn>, CommitError> {
    let transient = |reason: String| CommitError::Transient { reason };
    let queue = desk.turns.clone().lock_owned();
    let first = tokio::time::timeout(desk.shared.timing.turn_wait, queue).await;
    let first = first.map_err(|_| {
        let name = &desk.space.name;
        transient(format!(
            "this server has had the turn on {name} all the time"
        ))
    })?;
    let id = commit::random().map_err(transient)?;
    reserve(desk, &id).await?;
    let newest = desk.replica.newest().await;
    let newest = newest.map_err(|e| match e {
        ProviderError::NotFound { .. } | ProviderError::Closed => CommitError::Closed,
        other => transient(other.to_string()),
    });
    let newest = newest.inspect_err(|_| release(desk, id));
    let (mark, snapshot) = newest?;
    Ok(Box::new(LibsqlTurn {
        desk: desk.clone(),
        head: mark.head,
        position: mark.position,
        snapshot: Some(snapshot),
        id,
        reserved: true,
        _first: first,
    }))
}

/// Waits until nobody else has a turn, and has others wait.
async fn reserve(desk: &Desk, id: &Tag) -> Result<(), CommitError> {
    let (timing, space) = (&desk.shared.timing, &desk.space);
    let until = Instant::now() + timing.turn_wait;
    let lease = i64::try_from(timing.lease.as_millis()).unwrap_or(i64::MAX);
    loop {
        let mut script = Script::query(sql::reserve(), vec![id[..].into(), lease.into()]);
        script.then(sql::state(), Vec::new());
        let tried = desk.shared.http.rows(&space.name, &script).await;
        let state = tried.and_then(|mut answers| {
            let rows = answers.pop().unwrap_or_default();
            state_in(&space.name, rows)
        });
        match state {
            Ok(state) if state.life != space.life => return Err(CommitError::Closed),
            Ok(state) if state.holder.as_deref() == Some(id) => return Ok(()),
            Ok(_) => {}
            Err(Fault::Busy(_) | Fault::Lost(_)) => {}
            Err(fault) => return Err(commit::failed(&space.name, &fault)),
        }
        if Instant::now() >= until {
            let reason = format!("others have the turn on {}", space.name);
            return Err(CommitError::Transient { reason });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl LibsqlTurn {
    fn snapshot(&mut self) -> ProviderResult<&mut Box<dyn Snapshot>> {
        self.snapshot.as_mut().ok_or(ProviderError::Closed)
    }

    async fn finish(mut self: Box<Self>, batch: Batch) -> Result<(), CommitError> {
        self.snapshot = None;
        let (head, position) = (self.head, self.position);
        let result = self
            .desk
            .commit((head, batch), Some((position, self.id)))
            .await;
        // Ended by the commit, if it was done.
        self.reserved = result.is_err();
        result.map_err(|e| match e {
            // Nothing of it was written, and the turn is over.
            CommitError::HeadMoved { .. } => {
                let name = &self.desk.space.name;
                let reason = format!("the turn on {name} was lost to another server");
                CommitError::Transient { reason }
            }
            e => e,
        })
    }
}

impl Snapshot for LibsqlTurn {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        std::future::ready(Ok(self.head)).boxed()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        async move { self.snapshot()?.get_many(keyspace, keys).await }.boxed()
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        async move {
            let snapshot = self.snapshot()?;
            snapshot.scan(keyspace, range, direction, limit).await
        }
        .boxed()
    }
}

impl Turn for LibsqlTurn {
    fn commit(self: Box<Self>, batch: Batch) -> BoxFuture<'static, Result<(), CommitError>> {
        // Goes on without whoever waits for it.
        let task = tokio::spawn(self.finish(batch));
        task.map(|ended| {
            ended.unwrap_or_else(|e| {
                let reason = format!("the commit of a turn ended: {e}");
                Err(CommitError::OutcomeUnknown { reason })
            })
        })
        .boxed()
    }
}

impl Drop for LibsqlTurn {
    fn drop(&mut self) {
        if self.reserved {
            release(&self.desk, self.id);
        }
    }
}

/// Gives a reservation back, so that others need not wait for its end. It ends by itself otherwise.
fn release(desk: &Arc<Desk>, id: Tag) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    let desk = desk.clone();
    runtime.spawn(async move {
        let script = Script::query(sql::RELEASE, vec![id[..].into()]);
        if let Err(error) = desk.shared.http.run(&desk.space.name, &script).await {
            tracing::debug!(namespace = %desk.space.name, %error, "giving a turn back");
        }
    });
}
