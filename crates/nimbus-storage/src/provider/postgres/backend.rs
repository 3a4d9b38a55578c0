//! Postgres as the stores of shared databases use it: the statements of reads, turns and commits.
//!
//! Must not know the registry, nor what becomes of a statement that fails.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, raw_sql};

use super::Shared;
use super::connect::PgDial;
use super::error;
use super::plan::Plan;
use super::space::Space;
use super::sql;
use crate::provider::external::backend::{Answer, Backend, Base, Goal, Sent, Wanted};
use crate::provider::external::error::{Kind, within};
use crate::provider::{Batch, CommitError, Direction, Head, Keyspace, ProviderResult, Row};

/// Rows that one statement of a scan returns at most.
const SCAN_ROWS: usize = 4096;

impl Backend for Shared {
    type Dial = PgDial;
    type Space = Space;
    type Plan = Plan;

    fn base(&self) -> &Base<PgDial> {
        &self.base
    }

    fn kind(error: &sqlx::Error) -> Kind {
        error::kind(error)
    }

    fn is_lock_timeout(error: &sqlx::Error) -> bool {
        error::is_state(error, "55P03")
    }

    fn text(error: &sqlx::Error) -> String {
        error::text(error)
    }

    fn begin_read<'a>(
        conn: &'a mut PgConnection,
        space: &'a Space,
    ) -> Answer<'a, ProviderResult<Head>> {
        async move {
            let rows = raw_sql(space.begin_read()).fetch_all(conn).await?;
            Ok(space.head_in(&rows))
        }
        .boxed()
    }

    fn begin_turn<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        space: &'a Space,
        lock: Duration,
    ) -> Answer<'a, ProviderResult<Head>> {
        let idle = self.base.timing.turn_idle;
        let begin = sql::begin_turn(&space.name, millis(lock), millis(idle));
        async move {
            let rows = raw_sql(AssertSqlSafe(begin)).fetch_all(conn).await?;
            Ok(space.head_in(&rows))
        }
        .boxed()
    }

    fn end(conn: &mut PgConnection) -> Answer<'_, ()> {
        async move { raw_sql("ROLLBACK").execute(conn).await.map(drop) }.boxed()
    }

    fn end_and_look<'a>(
        conn: &'a mut PgConnection,
        space: &'a Space,
    ) -> Answer<'a, ProviderResult<Head>> {
        async move {
            // Outside a transaction it is a warning.
            raw_sql("ROLLBACK").execute(&mut *conn).await?;
            let rows = raw_sql(space.state()).fetch_all(conn).await?;
            Ok(space.head_in(&rows))
        }
        .boxed()
    }

    fn get_many<'a>(
        conn: &'a mut PgConnection,
        space: &'a Space,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> Answer<'a, Vec<Option<Bytes>>> {
        async move {
            let mut rows = sqlx::query(space.get_many(keyspace)).bind(keys).fetch(conn);
            let mut values = Vec::with_capacity(keys.len());
            while let Some(row) = rows.try_next().await? {
                let value: Option<&[u8]> = row.try_get(0)?;
                values.push(value.map(Bytes::copy_from_slice));
            }
            Ok(values)
        }
        .boxed()
    }

    fn scan<'a>(
        conn: &'a mut PgConnection,
        space: &'a Space,
        wanted: Wanted<'a>,
    ) -> Answer<'a, (Vec<Row>, bool)> {
        let backward = wanted.direction == Direction::Backward;
        let range = wanted.range;
        let sql = space.scan(wanted.keyspace, backward, range.end.is_some());
        let limit = wanted.rows.min(SCAN_ROWS);
        let as_number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let query = sqlx::query(sql)
            .bind(range.start.as_slice())
            .bind(as_number(limit))
            .bind(as_number(wanted.bytes));
        let query = match &range.end {
            Some(end) => query.bind(end.as_slice()),
            None => query,
        };
        async move {
            let mut found = query.fetch(conn);
            let mut rows = Vec::new();
            while let Some(row) = found.try_next().await? {
                let (key, value): (&[u8], &[u8]) = (row.try_get(0)?, row.try_get(1)?);
                rows.push((key.to_vec(), Bytes::copy_from_slice(value)));
            }
            // Fewer are the end of the range, or of the bytes.
            let more = rows.len() == limit;
            Ok((rows, more))
        }
        .boxed()
    }

    fn plan(&self, space: &Arc<Space>, expected: Head, batch: Batch) -> Result<Plan, CommitError> {
        Plan::new(space, expected, batch)
    }

    fn goal(plan: &Plan) -> &Goal {
        &plan.goal
    }

    fn space(plan: &Plan) -> &Arc<Space> {
        &plan.space
    }

    fn commit<'a>(&'a self, conn: &'a mut PgConnection, plan: &'a Plan) -> BoxFuture<'a, Sent> {
        async move {
            let timing = self.base.timing;
            if !plan.goal.keeps_head() {
                // In one round trip.
                return sent(within(timing.statement, plan.apply(conn)).await);
            }
            let begun = self.begin_turn(conn, &plan.space, timing.lock);
            match within(timing.statement, begun).await {
                // Whether the head is the expected one the statement finds out.
                Ok(_) => self.commit_turn(conn, plan).await,
                Err(error) => Sent::Failed {
                    error,
                    at_end: false,
                },
            }
        }
        .boxed()
    }

    fn commit_turn<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        plan: &'a Plan,
    ) -> BoxFuture<'a, Sent> {
        async move {
            let applied = within(self.base.timing.statement, async {
                let applied = plan.apply(conn).await?;
                if applied {
                    raw_sql("COMMIT").execute(conn).await?;
                }
                Ok(applied)
            });
            sent(applied.await)
        }
        .boxed()
    }

    fn committed(&self, space: &Space, _: Head) {
        self.outbox.committed(&space.name);
    }
}

fn sent(applied: Result<bool, sqlx::Error>) -> Sent {
    match applied {
        Ok(true) => Sent::Committed,
        Ok(false) => Sent::Moved,
        Err(error) => Sent::Failed {
            error,
            at_end: true,
        },
    }
}

/// For a setting of the server, which takes 0 for no limit.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, 1_000_000)
}
