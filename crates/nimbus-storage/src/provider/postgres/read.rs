//! Reads: snapshots, and what they have in common with a turn.
//!
//! Must not write. A transaction that ended well gives its connection back; one that was cut short takes its
//! connection with it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use sqlx::{PgConnection, Row as _, raw_sql};

use super::Shared;
use super::connect::Lease;
use super::error::{self, Kind};
use super::space::Space;
use crate::provider::external::pool::Use;
use crate::provider::external::snapshots::{Entered, OpenSnapshots};
use crate::provider::{
    Direction, Head, KeyRange, Keyspace, ProviderError, ProviderResult, Row, SCAN_BYTES, Snapshot,
};

/// Rows that one statement of a scan returns at most.
const SCAN_ROWS: usize = 4096;
/// How long a snapshot may live.
const LIFE: Duration = Duration::from_secs(30);

/// A transaction that reads one tenant.
pub(super) struct Reader {
    shared: Arc<Shared>,
    pub(super) space: Arc<Space>,
    pub(super) head: Head,
    lease: Option<Lease>,
    /// Whether something is under way on the connection, or failed.
    busy: bool,
    since: Instant,
}

impl Reader {
    /// On a connection whose transaction has just begun.
    pub(super) fn new(shared: Arc<Shared>, space: Arc<Space>, head: Head, lease: Lease) -> Reader {
        Reader {
            shared,
            space,
            head,
            lease: Some(lease),
            busy: false,
            since: Instant::now(),
        }
    }

    /// The connection, for the end of the transaction, which is the caller's then.
    pub(super) fn take(&mut self) -> Option<Lease> {
        self.lease.take().filter(|_| !self.busy)
    }

    pub(super) async fn get_many(
        &mut self,
        keyspace: Keyspace,
        keys: &[&[u8]],
    ) -> ProviderResult<Vec<Option<Bytes>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (sql, limit) = (self.space.get_many(keyspace), self.shared.timing.statement);
        let conn = self.begin()?;
        let read = within(limit, async {
            let mut rows = sqlx::query(sql).bind(keys).fetch(conn);
            let mut values = Vec::with_capacity(keys.len());
            while let Some(row) = rows.try_next().await? {
                let value: Option<&[u8]> = row.try_get(0)?;
                values.push(value.map(Bytes::copy_from_slice));
            }
            Ok(values)
        });
        let read = read.await;
        self.finish(read)
    }

    pub(super) async fn scan(
        &mut self,
        keyspace: Keyspace,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> ProviderResult<Vec<Row>> {
        let (mut rest, mut rows, mut bytes) = (range.clone(), Vec::new(), 0);
        while rows.len() < limit && bytes < SCAN_BYTES && !rest.is_empty() {
            let wanted = (limit - rows.len()).min(SCAN_ROWS);
            let some = self
                .scan_some(keyspace, &rest, direction, (wanted, SCAN_BYTES - bytes))
                .await?;
            let got = some.len();
            bytes += some.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
            rows.extend(some);
            if got < wanted {
                // The end of the range, or of the bytes.
                break;
            }
            let Some((last, _)) = rows.last() else { break };
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

    async fn scan_some(
        &mut self,
        keyspace: Keyspace,
        range: &KeyRange,
        direction: Direction,
        (rows, bytes): (usize, usize),
    ) -> ProviderResult<Vec<Row>> {
        let backward = direction == Direction::Backward;
        let sql = self.space.scan(keyspace, backward, range.end.is_some());
        let limit = self.shared.timing.statement;
        let conn = self.begin()?;
        let as_number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let query = sqlx::query(sql)
            .bind(range.start.as_slice())
            .bind(as_number(rows))
            .bind(as_number(bytes));
        let query = match &range.end {
            Some(end) => query.bind(end.as_slice()),
            None => query,
        };
        let read = within(limit, async {
            let mut found = query.fetch(conn);
            let mut rows = Vec::new();
            while let Some(row) = found.try_next().await? {
                let (key, value): (&[u8], &[u8]) = (row.try_get(0)?, row.try_get(1)?);
                rows.push((key.to_vec(), Bytes::copy_from_slice(value)));
            }
            Ok(rows)
        });
        let read = read.await;
        self.finish(read)
    }

    /// The connection for a read, which ends with [`Reader::finish`]; else it is of no use any more.
    fn begin(&mut self) -> ProviderResult<&mut PgConnection> {
        let name = &self.space.name;
        if self.busy {
            let why = "an earlier read on this snapshot failed or was given up";
            return Err(ProviderError::io(format!("reading {name}"), why));
        }
        if self.since.elapsed() > LIFE {
            let why = format!("the snapshot is older than {} s", LIFE.as_secs());
            return Err(ProviderError::io(format!("reading {name}"), why));
        }
        let Some(lease) = &mut self.lease else {
            return Err(ProviderError::Closed);
        };
        self.busy = true;
        lease.conn()
    }

    fn finish<T>(&mut self, read: Result<T, sqlx::Error>) -> ProviderResult<T> {
        match read {
            Ok(value) => {
                self.busy = false;
                Ok(value)
            }
            Err(e) => Err(match error::kind(&e) {
                Kind::Gone => self.space.not_found(),
                _ => error::provider(format!("reading {}", self.space.name), e),
            }),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let (runtime, limit) = (self.shared.runtime.clone(), self.shared.timing.statement);
        let Some(lease) = self.take() else { return };
        runtime.spawn(async move { end(lease, limit).await });
    }
}

/// Ends a transaction without effect and gives the connection back.
pub(super) async fn end(mut lease: Lease, limit: Duration) {
    let Ok(conn) = lease.conn() else { return };
    if within(limit, raw_sql("ROLLBACK").execute(conn))
        .await
        .is_ok()
    {
        lease.give_back();
    }
}

/// A statement, bounded in time. One that took too long counts as a lost connection.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => {
            let why = format!(
                "no answer from the database within {} s",
                limit.as_secs_f64()
            );
            Err(sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                why,
            )))
        }
    }
}

/// A snapshot; see the trait.
pub(super) struct PgSnapshot {
    reader: Reader,
    _entered: Entered,
}

/// Takes a snapshot.
pub(super) async fn snapshot(
    shared: &Arc<Shared>,
    space: &Arc<Space>,
    open: &Arc<OpenSnapshots>,
) -> ProviderResult<Box<dyn Snapshot>> {
    loop {
        let mut lease = shared.pool.get(Use::Read).await?;
        let begun = raw_sql(space.begin_read()).fetch_all(lease.conn()?);
        match within(shared.timing.statement, begun).await {
            Ok(rows) => {
                let (shared, space) = (shared.clone(), space.clone());
                let mut reader = Reader::new(shared, space, Head::EMPTY, lease);
                reader.head = reader.space.head_in(&rows)?;
                return Ok(Box::new(PgSnapshot {
                    reader,
                    _entered: open.enter(),
                }));
            }
            Err(e) => match error::kind(&e) {
                Kind::Gone => return Err(space.not_found()),
                // It died while nobody used it, and so did the others.
                Kind::Lost if !lease.fresh => shared.pool.forget_idle(),
                _ => return Err(error::provider(format!("reading {}", space.name), e)),
            },
        }
    }
}

impl Snapshot for PgSnapshot {
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
