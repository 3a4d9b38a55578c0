//! The metadata database: which installation it belongs to, and which tenants exist.
//!
//! The only truth about tenants. Must not touch a tenant's database.

use std::time::Duration;

use nimbus_core::TenantId;
use sqlx::MySqlConnection;
use sqlx::mysql::MySqlRow;

use super::connect::{rows, run};
use super::error::{Kind, column, text_column};
use super::sql::{quoted, word};
use super::trouble::{Step, Trouble};
use super::wakes::Table as Wakes;
use crate::control::{RandomId, TenantState};
use crate::provider::external::{Ownership, ownership, state_name, state_of};
use crate::provider::{ProviderError, ProviderResult};

/// Version of the metadata.
const FORMAT: i64 = 1;

/// SQL about the metadata database.
pub(super) struct Registry {
    database: String,
    installation: String,
    tenants: String,
    wakes: Wakes,
    limit: Duration,
}

/// What the registry says of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) namespace: String,
    pub(super) state: TenantState,
    /// Another each time that the tenant is created.
    pub(super) life: String,
}

impl Registry {
    /// `limit` bounds every statement.
    pub(super) fn new(database: &str, limit: Duration) -> Registry {
        let quoted = quoted(database);
        Registry {
            database: database.to_owned(),
            installation: format!("{quoted}.`installation`"),
            tenants: format!("{quoted}.`tenants`"),
            wakes: Wakes::new(&quoted, limit),
            limit,
        }
    }

    /// Makes the metadata if it is missing, and checks whose it is.
    ///
    /// # Errors
    /// `OtherInstallation`, `Settings`, `Corrupt` for a format that is not known, `Io`.
    pub(super) async fn enter(
        &self,
        conn: &mut MySqlConnection,
        (ours, join): (RandomId, Option<RandomId>),
        prefix: &str,
    ) -> ProviderResult<RandomId> {
        let place = format!("the metadata database {}", self.database);
        let stored = self.stored(conn, prefix).await?;
        let id = match ownership(&place, stored, ours, join)? {
            Ownership::Ours(id) => id,
            Ownership::Claim(id) => {
                let made = self.make(conn, id, prefix).await;
                made.map_err(Trouble::into_provider)?;
                // Another server may have been first.
                let stored = self.stored(conn, prefix).await?;
                match ownership(&place, stored, ours, join)? {
                    Ownership::Ours(id) => id,
                    Ownership::Claim(_) => return Err(self.corrupt("its installation is missing")),
                }
            }
        };
        let made = self.wakes.make(conn).await;
        made.map_err(Trouble::into_provider)?;
        Ok(id)
    }

    /// Where wake times are.
    pub(super) fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    async fn stored(
        &self,
        conn: &mut MySqlConnection,
        prefix: &str,
    ) -> ProviderResult<Option<RandomId>> {
        let sql = format!("SELECT `format`,`id`,`prefix` FROM {}", self.installation);
        let found = match self.ask(conn, "reading the installation", sql).await {
            Ok(found) => found,
            Err(trouble) if trouble.kind() == Some(Kind::Gone) => return Ok(None),
            Err(trouble) => return Err(trouble.into_provider()),
        };
        let Some(row) = found.first() else {
            return Ok(None);
        };
        let read = |e| self.trouble("reading the installation")(e).into_provider();
        let format: i64 = column(row, 0).map_err(read)?;
        let id = text_column(row, 1).map_err(read)?;
        let theirs = text_column(row, 2).map_err(read)?;
        if format != FORMAT {
            return Err(self.corrupt(format!(
                "its format is {format} and this server reads {FORMAT}; use the version of Nimbus that \
                 wrote it"
            )));
        }
        let id = RandomId::try_from(id).map_err(|e| self.corrupt(format!("its id: {e}")))?;
        if theirs != prefix {
            let reason = format!(
                "the tenants of metadata database {} have the prefix {theirs}, and this server is told to use \
                 {prefix}",
                self.database
            );
            return Err(ProviderError::Settings { reason });
        }
        Ok(Some(id))
    }

    /// Every statement may be run by several servers at once.
    async fn make(&self, conn: &mut MySqlConnection, id: RandomId, prefix: &str) -> Step<()> {
        let (installation, tenants) = (&self.installation, &self.tenants);
        let (id, prefix) = (word(&id.to_string()), word(prefix));
        let ascii = "CHARACTER SET ascii COLLATE ascii_bin NOT NULL";
        let sql = format!(
            "CREATE DATABASE IF NOT EXISTS {};\
             CREATE TABLE IF NOT EXISTS {installation} (`only_row` TINYINT NOT NULL PRIMARY KEY, \
             `format` BIGINT NOT NULL, `id` VARCHAR(32) {ascii}, `prefix` VARCHAR(64) {ascii}, \
             `created_at` TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) ENGINE=InnoDB;\
             CREATE TABLE IF NOT EXISTS {tenants} (`tenant_id` VARCHAR(128) {ascii} PRIMARY KEY, \
             `database_name` VARCHAR(64) {ascii} UNIQUE, `state` VARCHAR(16) {ascii}, \
             `life` VARCHAR(32) {ascii}, \
             `created_at` TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) ENGINE=InnoDB;\
             INSERT INTO {installation} (`only_row`,`format`,`id`,`prefix`) VALUES (1,{FORMAT},{id},{prefix}) \
             ON DUPLICATE KEY UPDATE `only_row`=1",
            quoted(&self.database)
        );
        self.run(conn, "making the metadata", sql).await.map(drop)
    }

    /// The entry of a tenant, in whatever state.
    pub(super) async fn get(
        &self,
        conn: &mut MySqlConnection,
        tenant: &TenantId,
    ) -> Step<Option<Entry>> {
        let condition = format!("WHERE `tenant_id`={}", word(tenant.as_str()));
        let entries = self.select(conn, &condition).await?;
        Ok(entries.into_iter().next().map(|(_, entry)| entry))
    }

    /// Every entry, sorted by tenant.
    pub(super) async fn entries(&self, conn: &mut MySqlConnection) -> Step<Vec<(TenantId, Entry)>> {
        self.select(conn, "ORDER BY `tenant_id`").await
    }

    async fn select(
        &self,
        conn: &mut MySqlConnection,
        which: &str,
    ) -> Step<Vec<(TenantId, Entry)>> {
        let doing = "reading the registry";
        let sql = format!(
            "SELECT `tenant_id`,`database_name`,`state`,`life` FROM {} {which}",
            self.tenants
        );
        let found = self.ask(conn, doing, sql).await?;
        let mut entries = Vec::with_capacity(found.len());
        for row in &found {
            let text = |index| text_column(row, index).map_err(self.trouble(doing));
            let (tenant, state) = (text(0)?, text(2)?);
            let tenant: TenantId = tenant
                .parse()
                .map_err(|e| self.corrupt(format!("it names tenant {tenant:?}: {e}")))?;
            let state = state_of(&state)
                .ok_or_else(|| self.corrupt(format!("tenant {tenant} is in state {state:?}")))?;
            let (namespace, life) = (text(1)?, text(3)?);
            let entry = Entry {
                namespace,
                state,
                life,
            };
            entries.push((tenant, entry));
        }
        Ok(entries)
    }

    /// Enters a tenant that has no entry.
    pub(super) async fn insert(
        &self,
        conn: &mut MySqlConnection,
        tenant: &TenantId,
        (namespace, life, state): (&str, RandomId, TenantState),
    ) -> Step<()> {
        let values = [
            tenant.as_str(),
            namespace,
            state_name(state),
            &life.to_string(),
        ];
        let values = values.map(word).join(",");
        let sql = format!(
            "INSERT INTO {} (`tenant_id`,`database_name`,`state`,`life`) VALUES ({values})",
            self.tenants
        );
        self.run(conn, "writing the registry", sql).await.map(drop)
    }

    /// Changes the state of one life of a tenant.
    pub(super) async fn set(
        &self,
        conn: &mut MySqlConnection,
        tenant: &TenantId,
        (life, state): (&str, TenantState),
    ) -> Step<()> {
        let state = word(state_name(state));
        let sql = format!(
            "UPDATE {} SET `state`={state} WHERE {}",
            self.tenants,
            one(tenant, life)
        );
        self.run(conn, "writing the registry", sql).await.map(drop)
    }

    /// Takes one life of a tenant out.
    pub(super) async fn remove(
        &self,
        conn: &mut MySqlConnection,
        tenant: &TenantId,
        life: &str,
    ) -> Step<()> {
        let sql = format!("DELETE FROM {} WHERE {}", self.tenants, one(tenant, life));
        self.run(conn, "writing the registry", sql).await.map(drop)
    }

    async fn ask(
        &self,
        conn: &mut MySqlConnection,
        doing: &str,
        sql: String,
    ) -> Step<Vec<MySqlRow>> {
        let found = rows(conn, self.limit, sql).await;
        found.map_err(self.trouble(doing))
    }

    async fn run(&self, conn: &mut MySqlConnection, doing: &str, sql: String) -> Step<u64> {
        let done = run(conn, self.limit, sql).await;
        done.map_err(self.trouble(doing))
    }

    fn trouble(&self, doing: &str) -> impl FnOnce(sqlx::Error) -> Trouble + use<> {
        Trouble::sql(format!("{doing} in database {}", self.database))
    }

    fn corrupt(&self, reason: impl Into<String>) -> ProviderError {
        ProviderError::Corrupt {
            what: format!("the metadata database {}", self.database),
            reason: reason.into(),
        }
    }
}

fn one(tenant: &TenantId, life: &str) -> String {
    let (tenant, life) = (word(tenant.as_str()), word(life));
    format!("`tenant_id`={tenant} AND `life`={life}")
}
