//! Reads of a tenant in a shared database: snapshots, and what they have in common with a turn.
//!
//! Must not write. A transaction that ended well gives its connection back; one that was cut short takes its
//! connection with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

use super::backend::{Answer, Backend, Conn, Namespace as _, Wanted};
use super::error::{self, Kind, within};
use super::pool::{Lease, Use};
use super::snapshots::{Entered, OpenSnapshots};
use crate::provider::{
    Direction, Head, KeyRange, Keyspace, ProviderError, ProviderResult, Row, SCAN_BYTES, Snapshot,
};

/// How long a snapshot may live.
const LIFE: Duration = Duration::from_secs(30);

/// A transaction that reads one tenant.
pub(super) struct Reader<B: Backend> {
    backend: Arc<B>,
    pub(super) space: Arc<B::Space>,
    pub(super) head: Head,
    lease: Option<Lease<B::Dial>>,
    /// Whether something is under way on the connection, or failed.
    busy: bool,
    since: Instant,
    /// Of a snapshot, which is counted.
    _entered: Option<Entered>,
}

impl<B: Backend> Reader<B> {
    /// On a connection whose transaction has just begun.
    pub(super) fn new(
        backend: &Arc<B>,
        space: &Arc<B::Space>,
        head: ProviderResult<Head>,
        lease: Lease<B::Dial>,
        entered: Option<Entered>,
    ) -> ProviderResult<Reader<B>> {
        let mut reader = Reader {
            backend: backend.clone(),
            space: space.clone(),
            head: Head::EMPTY,
            lease: Some(lease),
            busy: false,
            since: Instant::now(),
            _entered: entered,
        };
        // Dropped with an error, it ends the transaction.
        reader.head = head?;
        Ok(reader)
    }

    /// The connection, for the end of the transaction, which is the caller's then.
    pub(super) fn take(&mut self) -> Option<Lease<B::Dial>> {
        self.lease.take().filter(|_| !self.busy)
    }

    /// Reads in the transaction, bounded in time. After a failure it is of no use any more.
    async fn read<'a, T>(
        &'a mut self,
        work: impl FnOnce(&'a mut Conn<B>, &'a B::Space) -> Answer<'a, T>,
    ) -> ProviderResult<T> {
        let Reader {
            backend,
            space,
            lease,
            busy,
            since,
            ..
        } = self;
        let failed = |why: &str| ProviderError::io(format!("reading {}", space.name()), why);
        if *busy {
            return Err(failed(
                "an earlier read on this snapshot failed or was given up",
            ));
        }
        if since.elapsed() > LIFE {
            let seconds = LIFE.as_secs();
            return Err(failed(&format!("the snapshot is older than {seconds} s")));
        }
        let lease = lease.as_mut().ok_or(ProviderError::Closed)?;
        *busy = true;
        let limit = backend.base().timing.statement;
        match within(limit, work(lease.conn()?, space)).await {
            Ok(value) => {
                *busy = false;
                Ok(value)
            }
            Err(e) => Err(unread::<B>(space, &e)),
        }
    }

    async fn scan_all(
        &mut self,
        keyspace: Keyspace,
        mut rest: KeyRange,
        direction: Direction,
        limit: usize,
    ) -> ProviderResult<Vec<Row>> {
        let (mut rows, mut bytes) = (Vec::<Row>::new(), 0);
        while rows.len() < limit && bytes < SCAN_BYTES && !rest.is_empty() {
            let wanted = Wanted {
                keyspace,
                range: &rest,
                direction,
                rows: limit - rows.len(),
                bytes: SCAN_BYTES - bytes,
            };
            let read = self.read(|conn, space| B::scan(conn, space, wanted));
            let (some, more) = read.await?;
            bytes += some.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
            rows.extend(some);
            let Some((last, _)) = rows.last().filter(|_| more) else {
                break;
            };
            match direction {
                Direction::Forward => {
                    rest.start.clone_from(last);
                    rest.start.push(0);
                }
                Direction::Backward => rest.end = Some(last.clone()),
            }
        }
        Ok(rows)
    }
}

impl<B: Backend> Snapshot for Reader<B> {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        std::future::ready(Ok(self.head)).boxed()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        async move {
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            self.read(|conn, space| B::get_many(conn, space, keyspace, keys))
                .await
        }
        .boxed()
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        self.scan_all(keyspace, range.clone(), direction, limit)
            .boxed()
    }
}

impl<B: Backend> Drop for Reader<B> {
    fn drop(&mut self) {
        let Some(lease) = self.take() else { return };
        let base = self.backend.base();
        let limit = base.timing.statement;
        base.runtime.spawn(end::<B>(lease, limit));
    }
}

/// Ends a transaction without effect and gives the connection back.
pub(super) async fn end<B: Backend>(mut lease: Lease<B::Dial>, limit: Duration) {
    let Ok(conn) = lease.conn() else { return };
    if within(limit, B::end(conn)).await.is_ok() {
        lease.give_back();
    }
}

fn unread<B: Backend>(space: &B::Space, e: &sqlx::Error) -> ProviderError {
    match B::kind(e) {
        Kind::Gone => space.not_found(),
        kind => error::provider(format!("reading {}", space.name()), kind, &B::text(e)),
    }
}

/// Takes a snapshot.
pub(super) async fn snapshot<B: Backend>(
    backend: &Arc<B>,
    space: &Arc<B::Space>,
    open: &Arc<OpenSnapshots>,
) -> ProviderResult<Box<dyn Snapshot>> {
    let base = backend.base();
    loop {
        let mut lease = base.pool.get(Use::Read).await?;
        let begun = B::begin_read(lease.conn()?, space);
        match within(base.timing.statement, begun).await {
            Ok(head) => {
                let entered = Some(open.enter());
                let reader = Reader::new(backend, space, head, lease, entered)?;
                return Ok(Box::new(reader));
            }
            // It died while nobody used it, and so did the others.
            Err(e) if B::kind(&e) == Kind::Lost && !lease.fresh => base.pool.forget_idle(),
            Err(e) => return Err(unread::<B>(space, &e)),
        }
    }
}
