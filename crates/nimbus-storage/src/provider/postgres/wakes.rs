//! Wake times in the metadata schema, where every server on the database finds them.
//!
//! Must not touch a tenant's schema. A change whose idle connection turns out to be dead is made again; of a
//! replacement that was done the repetition says that it was not, upon which the caller looks again.

use std::sync::Arc;

use futures_util::future::FutureExt as _;
use nimbus_core::TenantId;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _, raw_sql};

use super::lifecycle::with_lease;
use super::registry::lock_number;
use super::{Shared, error};
use crate::provider::external::wakes::{signed, wake_of, wake_store};
use crate::provider::{ProviderError, ProviderResult, Wake};

/// The table.
pub(super) struct Table {
    name: String,
    lock: i64,
}

impl Table {
    /// `schema` is quoted.
    pub(super) fn new(schema: &str) -> Table {
        let name = format!("{schema}.wakes");
        let lock = lock_number(&name);
        Table { name, lock }
    }

    fn error(&self, doing: &str, e: sqlx::Error) -> ProviderError {
        error::provider(format!("{doing} wake times in {}", self.name), e)
    }

    /// Makes the table where it is missing: metadata of an older version has none.
    ///
    /// # Errors
    /// `Io`.
    pub(super) async fn make(&self, conn: &mut PgConnection) -> ProviderResult<()> {
        let failed = |e| {
            let hint = match error::is_state(&e, "42501") {
                true => "preparing (the role needs CREATE on the schema)",
                false => "preparing",
            };
            self.error(hint, e)
        };
        let look = sqlx::query("SELECT to_regclass($1) IS NOT NULL").bind(&self.name);
        let row = look.fetch_one(&mut *conn).await.map_err(failed)?;
        if row.try_get(0).map_err(failed)? {
            return Ok(());
        }
        let (name, lock) = (&self.name, self.lock);
        let sql = format!(
            "BEGIN; SELECT pg_advisory_xact_lock({lock}); \
             CREATE TABLE IF NOT EXISTS {name} (tenant_id text COLLATE \"C\" PRIMARY KEY, at_ms bigint NOT NULL, \
             mark bigint NOT NULL); \
             CREATE INDEX IF NOT EXISTS wakes_by_time ON {name} (at_ms, tenant_id); COMMIT"
        );
        let made = raw_sql(AssertSqlSafe(sql)).execute(conn).await;
        made.map(drop).map_err(failed)
    }

    async fn lower(
        &self,
        conn: &mut PgConnection,
        (tenant, at_ms, mark): (&TenantId, u64, i64),
    ) -> ProviderResult<()> {
        let name = &self.name;
        let sql = format!(
            "INSERT INTO {name} AS kept (tenant_id, at_ms, mark) VALUES ($1, $2, $3) ON CONFLICT (tenant_id) \
             DO UPDATE SET at_ms = least(kept.at_ms, excluded.at_ms), mark = excluded.mark"
        );
        let lower = sqlx::query(AssertSqlSafe(sql))
            .bind(tenant.as_str())
            .bind(signed(at_ms))
            .bind(mark);
        let done = lower.execute(conn).await;
        done.map(drop).map_err(|e| self.error("lowering", e))
    }

    async fn replace(
        &self,
        conn: &mut PgConnection,
        seen: &Wake,
        new: Option<(u64, i64)>,
    ) -> ProviderResult<bool> {
        let (name, which) = (&self.name, "WHERE tenant_id = $1 AND mark = $2");
        let sql = match new {
            Some(_) => format!("UPDATE {name} SET at_ms = $3, mark = $4 {which}"),
            None => format!("DELETE FROM {name} {which}"),
        };
        let mut replace = sqlx::query(AssertSqlSafe(sql))
            .bind(seen.tenant.as_str())
            .bind(signed(seen.mark));
        if let Some((at_ms, mark)) = new {
            replace = replace.bind(signed(at_ms)).bind(mark);
        }
        let done = replace.execute(conn).await;
        let done = done.map_err(|e| self.error("replacing", e))?;
        Ok(done.rows_affected() == 1)
    }

    async fn get(
        &self,
        conn: &mut PgConnection,
        tenant: &TenantId,
    ) -> ProviderResult<Option<Wake>> {
        let name = &self.name;
        let sql = format!("SELECT tenant_id, at_ms, mark FROM {name} WHERE tenant_id = $1");
        let get = sqlx::query(AssertSqlSafe(sql)).bind(tenant.as_str());
        let row = get.fetch_optional(conn).await;
        let row = row.map_err(|e| self.error("reading", e))?;
        row.map(|row| self.wake(&row)).transpose()
    }

    async fn due(
        &self,
        conn: &mut PgConnection,
        now_ms: u64,
        limit: usize,
    ) -> ProviderResult<Vec<Wake>> {
        let sql = format!(
            "SELECT tenant_id, at_ms, mark FROM {} WHERE at_ms <= $1 ORDER BY at_ms, tenant_id LIMIT $2",
            self.name
        );
        let due = sqlx::query(AssertSqlSafe(sql))
            .bind(signed(now_ms))
            .bind(signed(limit as u64));
        let rows = due.fetch_all(conn).await;
        let rows = rows.map_err(|e| self.error("reading", e))?;
        rows.iter().map(|row| self.wake(row)).collect()
    }

    fn wake(&self, row: &PgRow) -> ProviderResult<Wake> {
        let read = |e| self.error("reading", e);
        let tenant: String = row.try_get(0).map_err(read)?;
        let (at_ms, mark) = (row.try_get(1).map_err(read)?, row.try_get(2).map_err(read)?);
        wake_of(&tenant, at_ms, mark).ok_or_else(|| ProviderError::Corrupt {
            what: self.name.clone(),
            reason: format!("the wake time of {tenant:?} is {at_ms}, its mark {mark}"),
        })
    }
}

/// The wake times of one database.
pub(super) struct Wakes(pub(super) Arc<Shared>);

impl Wakes {
    fn table(&self) -> &Table {
        self.0.registry.wakes()
    }
}

wake_store!(Wakes, with_lease);
