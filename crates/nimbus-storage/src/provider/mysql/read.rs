//! Reads: snapshots, and what they have in common with a turn.
//!
//! Must not write. A transaction that ended well gives its connection back; one that was cut short takes its
//! connection with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, raw_sql};

use super::Shared;
use super::connect::{Lease, SESSION_IDLE_S, rows, run, within};
use super::error::{self, Kind, column};
use super::space::Space;
use super::sql;
use crate::provider::external::pool::Use;
use crate::provider::external::snapshots::{Entered, OpenSnapshots};
use crate::provider::{
    Direction, Head, KeyRange, Keyspace, ProviderError, ProviderResult, Row, SCAN_BYTES, Snapshot,
};

/// Rows that one statement of a scan returns at most. Values longer than their share of [`SCAN_BYTES`] are
/// fetched after that, as many as are wanted: the server cannot stop at a number of bytes by itself.
const SCAN_ROWS: usize = 1024;
/// Keys that one statement looks up.
const KEYS: usize = 500;
/// How long a snapshot may live.
const LIFE: Duration = Duration::from_secs(30);
/// After how many seconds of silence the server ends it, if its process stopped.
const IDLE_S: u64 = 35;

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

/// A row of a scan whose value may be still to come.
struct Found {
    key: Vec<u8>,
    bytes: usize,
    value: Option<Bytes>,
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
        let found = self.look_up(keyspace, keys).await?;
        Ok(keys.iter().map(|key| found.get(*key).cloned()).collect())
    }

    async fn look_up(
        &mut self,
        keyspace: Keyspace,
        keys: &[&[u8]],
    ) -> ProviderResult<HashMap<Vec<u8>, Bytes>> {
        let mut found = HashMap::with_capacity(keys.len());
        for some in keys.chunks(KEYS) {
            let sql = sql::get_many(&self.space.name, keyspace, some);
            self.each(sql, |row| {
                let (key, value): (&[u8], &[u8]) = (column(row, 0)?, column(row, 1)?);
                found.insert(key.to_vec(), Bytes::copy_from_slice(value));
                Ok(())
            })
            .await?;
        }
        Ok(found)
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
            let mut some = self.scan_some(keyspace, &rest, direction, wanted).await?;
            let got = some.len();
            let mut kept = 0;
            for found in &some {
                if bytes >= SCAN_BYTES {
                    break;
                }
                bytes += found.key.len() + found.bytes;
                kept += 1;
            }
            some.truncate(kept);
            self.complete(keyspace, some, &mut rows).await?;
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
        wanted: usize,
    ) -> ProviderResult<Vec<Found>> {
        let backward = direction == Direction::Backward;
        let inline = SCAN_BYTES / wanted.max(1);
        let (name, size) = (&self.space.name, (wanted, inline));
        let sql = sql::scan(name, keyspace, range, backward, size);
        let mut found = Vec::new();
        self.each(sql, |row| {
            let key: &[u8] = column(row, 0)?;
            let bytes: i64 = column(row, 1)?;
            let value: Option<&[u8]> = column(row, 2)?;
            found.push(Found {
                key: key.to_vec(),
                bytes: usize::try_from(bytes).unwrap_or(0),
                value: value.map(Bytes::copy_from_slice),
            });
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Fetches the values that are missing.
    async fn complete(
        &mut self,
        keyspace: Keyspace,
        found: Vec<Found>,
        rows: &mut Vec<Row>,
    ) -> ProviderResult<()> {
        let missing = found.iter().filter(|f| f.value.is_none());
        let missing: Vec<&[u8]> = missing.map(|f| f.key.as_slice()).collect();
        let mut values = self.look_up(keyspace, &missing).await?;
        for Found { key, value, .. } in found {
            let value = value.or_else(|| values.remove(&key)).ok_or_else(|| {
                let what = format!("reading {}", self.space.name);
                ProviderError::io(what, "a row went away in the middle of a snapshot")
            })?;
            rows.push((key, value));
        }
        Ok(())
    }

    /// Reads the rows of a statement, bounded in time; after a failure the transaction is of no use.
    async fn each(
        &mut self,
        sql: String,
        mut take: impl FnMut(&MySqlRow) -> Result<(), sqlx::Error> + Send,
    ) -> ProviderResult<()> {
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
        let conn = lease.conn()?;
        let done = within(self.shared.timing.statement, async {
            let mut rows = raw_sql(AssertSqlSafe(sql)).fetch(conn);
            while let Some(row) = rows.try_next().await? {
                take(&row)?;
            }
            Ok(())
        });
        match done.await {
            Ok(()) => {
                self.busy = false;
                Ok(())
            }
            Err(e) => Err(match error::kind(&e) {
                Kind::Gone => self.space.not_found(),
                _ => error::provider(format!("reading {name}"), e),
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
    let rollback = sql::end("ROLLBACK", SESSION_IDLE_S);
    if run(conn, limit, rollback).await.is_ok() {
        lease.give_back();
    }
}

/// A snapshot; see the trait.
pub(super) struct MySnapshot {
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
        let begin = sql::begin_read(&space.name, IDLE_S);
        match rows(lease.conn()?, shared.timing.statement, begin).await {
            Ok(rows) => {
                let (shared, space) = (shared.clone(), space.clone());
                let mut reader = Reader::new(shared, space, Head::EMPTY, lease);
                reader.head = reader.space.head_in(&rows)?;
                return Ok(Box::new(MySnapshot {
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

impl Snapshot for MySnapshot {
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
