//! Wake times in the metadata database, where every server on it finds them.
//!
//! Must not touch a tenant's database. A change whose idle connection turns out to be dead is made again; of a
//! replacement that was done the repetition says that it was not, upon which the caller looks again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt as _;
use nimbus_core::TenantId;
use sqlx::MySqlConnection;

use super::Shared;
use super::connect::{rows, run};
use super::error::{Kind, column, text_column};
use super::lifecycle::read;
use super::sql::word;
use super::trouble::{Step, Trouble};
use crate::provider::external::pool::Use;
use crate::provider::external::wakes::{signed, wake_of, wake_store};
use crate::provider::{ProviderError, Wake};

/// The table.
pub(super) struct Table {
    name: String,
    limit: Duration,
}

impl Table {
    /// `database` is quoted; `limit` bounds every statement.
    pub(super) fn new(database: &str, limit: Duration) -> Table {
        let name = format!("{database}.`wakes`");
        Table { name, limit }
    }

    /// Makes the table where it is missing: metadata of an older version has none.
    pub(super) async fn make(&self, conn: &mut MySqlConnection) -> Step<()> {
        let name = &self.name;
        // A server that only goes on needs no right to make tables.
        match self.select(conn, "LIMIT 0").await {
            Err(trouble) if trouble.kind() == Some(Kind::Gone) => {}
            found => return found.map(drop),
        }
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS {name} (`tenant_id` VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL \
             PRIMARY KEY, `at_ms` BIGINT NOT NULL, `mark` BIGINT NOT NULL, \
             INDEX `by_time` (`at_ms`,`tenant_id`)) ENGINE=InnoDB"
        );
        self.run(conn, sql).await.map(drop)
    }

    async fn lower(
        &self,
        conn: &mut MySqlConnection,
        (tenant, at_ms, mark): (&TenantId, u64, i64),
    ) -> Step<()> {
        let (name, tenant, at_ms) = (&self.name, word(tenant.as_str()), signed(at_ms));
        let sql = format!(
            "INSERT INTO {name} (`tenant_id`,`at_ms`,`mark`) VALUES ({tenant},{at_ms},{mark}) \
             ON DUPLICATE KEY UPDATE `at_ms`=LEAST(`at_ms`,{at_ms}),`mark`={mark}"
        );
        self.run(conn, sql).await.map(drop)
    }

    async fn replace(
        &self,
        conn: &mut MySqlConnection,
        seen: &Wake,
        new: Option<(u64, i64)>,
    ) -> Step<bool> {
        let (name, tenant, mark) = (&self.name, word(seen.tenant.as_str()), signed(seen.mark));
        let which = format!("WHERE `tenant_id`={tenant} AND `mark`={mark}");
        let sql = match new {
            Some((at_ms, mark)) => {
                let at_ms = signed(at_ms);
                format!("UPDATE {name} SET `at_ms`={at_ms},`mark`={mark} {which}")
            }
            None => format!("DELETE FROM {name} {which}"),
        };
        Ok(self.run(conn, sql).await? == 1)
    }

    async fn select(&self, conn: &mut MySqlConnection, which: &str) -> Step<Vec<Wake>> {
        let name = &self.name;
        let sql = format!("SELECT `tenant_id`,`at_ms`,`mark` FROM {name} {which}");
        let found = rows(conn, self.limit, sql).await;
        let found = found.map_err(self.trouble())?;
        let mut wakes = Vec::with_capacity(found.len());
        for row in &found {
            let number = |index| column::<i64>(row, index).map_err(self.trouble());
            let tenant = text_column(row, 0).map_err(self.trouble())?;
            let (at_ms, mark) = (number(1)?, number(2)?);
            let wake = wake_of(&tenant, at_ms, mark).ok_or_else(|| ProviderError::Corrupt {
                what: name.clone(),
                reason: format!("the wake time of {tenant:?} is {at_ms}, its mark {mark}"),
            });
            wakes.push(wake?);
        }
        Ok(wakes)
    }

    async fn get(&self, conn: &mut MySqlConnection, tenant: &TenantId) -> Step<Option<Wake>> {
        let which = format!("WHERE `tenant_id`={}", word(tenant.as_str()));
        Ok(self.select(conn, &which).await?.pop())
    }

    async fn due(&self, conn: &mut MySqlConnection, now_ms: u64, limit: usize) -> Step<Vec<Wake>> {
        let now_ms = signed(now_ms);
        let which = format!("WHERE `at_ms`<={now_ms} ORDER BY `at_ms`,`tenant_id` LIMIT {limit}");
        self.select(conn, &which).await
    }

    async fn run(&self, conn: &mut MySqlConnection, sql: String) -> Step<u64> {
        run(conn, self.limit, sql).await.map_err(self.trouble())
    }

    fn trouble(&self) -> impl FnOnce(sqlx::Error) -> Trouble + use<> {
        Trouble::sql(format!("keeping wake times in {}", self.name))
    }
}

/// The wake times of one server.
pub(super) struct Wakes(pub(super) Arc<Shared>);

impl Wakes {
    fn table(&self) -> &Table {
        self.0.registry.wakes()
    }
}

wake_store!(Wakes, read);
