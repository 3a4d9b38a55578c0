//! MySQL and MariaDB as the stores of shared databases use them: the statements of reads, turns and commits.
//!
//! Must not know the registry, nor what becomes of a statement that fails. The server ends the transaction of a process
//! that stopped: it closes a session that is silent for too long, as `wait_timeout` of the session says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, MySqlConnection, raw_sql};

use super::Shared;
use super::connect::{MyDial, SESSION_IDLE_S, seconds};
use super::error::{self, column};
use super::plan::Plan;
use super::space::Space;
use super::sql;
use crate::provider::external::backend::{Answer, Backend, Base, Goal, Sent, Wanted};
use crate::provider::external::error::Kind;
use crate::provider::{
    Batch, CommitError, Direction, Head, Keyspace, ProviderResult, Row, SCAN_BYTES,
};

/// Rows that one statement of a scan returns at most. Values longer than their share of [`SCAN_BYTES`] are
/// fetched after that, as many as are wanted: the server cannot stop at a number of bytes by itself.
const SCAN_ROWS: usize = 1024;
/// Keys that one statement looks up.
const KEYS: usize = 500;
/// After how many seconds of silence the server ends a read, if its process stopped.
const IDLE_S: u64 = 35;

impl Backend for Shared {
    type Dial = MyDial;
    type Space = Space;
    type Plan = Plan;

    fn base(&self) -> &Base<MyDial> {
        &self.base
    }

    fn kind(error: &sqlx::Error) -> Kind {
        error::kind(error)
    }

    fn is_lock_timeout(error: &sqlx::Error) -> bool {
        error::is_number(error, error::LOCK_TIMEOUT)
    }

    fn text(error: &sqlx::Error) -> String {
        error::text(error)
    }

    fn begin_read<'a>(
        conn: &'a mut MySqlConnection,
        space: &'a Space,
    ) -> Answer<'a, ProviderResult<Head>> {
        head(conn, space, sql::begin_read(&space.name, IDLE_S))
    }

    /// How long it waits for the lock is a setting of the session.
    fn begin_turn<'a>(
        &'a self,
        conn: &'a mut MySqlConnection,
        space: &'a Space,
        _: Duration,
    ) -> Answer<'a, ProviderResult<Head>> {
        let idle = seconds(self.base.timing.turn_idle);
        head(conn, space, sql::begin_turn(&space.name, idle))
    }

    fn end(conn: &mut MySqlConnection) -> Answer<'_, ()> {
        let sql = sql::end("ROLLBACK", SESSION_IDLE_S);
        async move { raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop) }.boxed()
    }

    fn end_and_look<'a>(
        conn: &'a mut MySqlConnection,
        space: &'a Space,
    ) -> Answer<'a, ProviderResult<Head>> {
        let (end, state) = (
            sql::end("ROLLBACK", SESSION_IDLE_S),
            sql::state(&space.name),
        );
        head(conn, space, format!("{end};{state}"))
    }

    fn get_many<'a>(
        conn: &'a mut MySqlConnection,
        space: &'a Space,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> Answer<'a, Vec<Option<Bytes>>> {
        async move {
            let found = look_up(conn, space, keyspace, keys).await?;
            Ok(keys.iter().map(|key| found.get(*key).cloned()).collect())
        }
        .boxed()
    }

    fn scan<'a>(
        conn: &'a mut MySqlConnection,
        space: &'a Space,
        wanted: Wanted<'a>,
    ) -> Answer<'a, (Vec<Row>, bool)> {
        scan(conn, space, wanted).boxed()
    }

    fn plan(&self, space: &Arc<Space>, expected: Head, batch: Batch) -> Result<Plan, CommitError> {
        Plan::new(space, expected, batch, self.max_packet)
    }

    fn goal(plan: &Plan) -> &Goal {
        &plan.goal
    }

    fn space(plan: &Plan) -> &Arc<Space> {
        &plan.space
    }

    fn commit<'a>(&'a self, conn: &'a mut MySqlConnection, plan: &'a Plan) -> BoxFuture<'a, Sent> {
        let timing = self.base.timing;
        let begin = sql::begin(seconds(timing.turn_idle));
        let one_packet = !plan.goal.keeps_head();
        plan.apply(conn, timing.statement, begin, one_packet)
            .boxed()
    }

    fn commit_turn<'a>(
        &'a self,
        conn: &'a mut MySqlConnection,
        plan: &'a Plan,
    ) -> BoxFuture<'a, Sent> {
        // The end is sent alone, so that a turn that the server ended is told from one whose answer was lost.
        let limit = self.base.timing.statement;
        plan.apply(conn, limit, String::new(), false).boxed()
    }

    fn committed(&self, space: &Space, head: Head) {
        self.seen.saw(&space.name, head);
    }
}

/// Runs statements that read the head.
fn head<'a>(
    conn: &'a mut MySqlConnection,
    space: &'a Space,
    sql: String,
) -> Answer<'a, ProviderResult<Head>> {
    async move {
        let rows = raw_sql(AssertSqlSafe(sql)).fetch_all(conn).await?;
        Ok(space.head_in(&rows))
    }
    .boxed()
}

/// Reads the rows of a statement.
async fn each(
    conn: &mut MySqlConnection,
    sql: String,
    mut take: impl FnMut(&MySqlRow) -> Result<(), sqlx::Error> + Send,
) -> Result<(), sqlx::Error> {
    let mut rows = raw_sql(AssertSqlSafe(sql)).fetch(conn);
    while let Some(row) = rows.try_next().await? {
        take(&row)?;
    }
    Ok(())
}

async fn look_up(
    conn: &mut MySqlConnection,
    space: &Space,
    keyspace: Keyspace,
    keys: &[&[u8]],
) -> Result<HashMap<Vec<u8>, Bytes>, sqlx::Error> {
    let mut found = HashMap::with_capacity(keys.len());
    for some in keys.chunks(KEYS) {
        let sql = sql::get_many(&space.name, keyspace, some);
        each(conn, sql, |row| {
            let (key, value): (&[u8], &[u8]) = (column(row, 0)?, column(row, 1)?);
            found.insert(key.to_vec(), Bytes::copy_from_slice(value));
            Ok(())
        })
        .await?;
    }
    Ok(found)
}

/// A row of a scan whose value may be still to come.
struct Found {
    key: Vec<u8>,
    bytes: usize,
    value: Option<Bytes>,
}

async fn scan(
    conn: &mut MySqlConnection,
    space: &Space,
    wanted: Wanted<'_>,
) -> Result<(Vec<Row>, bool), sqlx::Error> {
    let limit = wanted.rows.min(SCAN_ROWS);
    let backward = wanted.direction == Direction::Backward;
    let size = (limit, SCAN_BYTES / limit.max(1));
    let sql = sql::scan(&space.name, wanted.keyspace, wanted.range, backward, size);
    let mut found = Vec::new();
    each(conn, sql, |row| {
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
    let more = found.len() == limit;
    let (mut kept, mut bytes) = (0, 0);
    while let Some(next) = found.get(kept).filter(|_| bytes < wanted.bytes) {
        bytes += next.key.len() + next.bytes;
        kept += 1;
    }
    found.truncate(kept);
    let rows = complete(conn, space, wanted.keyspace, found).await?;
    Ok((rows, more))
}

/// Fetches the values that are missing.
async fn complete(
    conn: &mut MySqlConnection,
    space: &Space,
    keyspace: Keyspace,
    found: Vec<Found>,
) -> Result<Vec<Row>, sqlx::Error> {
    let missing = found.iter().filter(|f| f.value.is_none());
    let missing: Vec<&[u8]> = missing.map(|f| f.key.as_slice()).collect();
    let mut values = look_up(conn, space, keyspace, &missing).await?;
    let whole = found.into_iter().map(|Found { key, value, .. }| {
        let value = value.or_else(|| values.remove(&key));
        let lost =
            || sqlx::Error::Protocol("a row went away in the middle of a snapshot".to_owned());
        Ok((key, value.ok_or_else(lost)?))
    });
    whole.collect()
}
