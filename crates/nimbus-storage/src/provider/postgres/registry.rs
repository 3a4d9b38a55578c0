//! The metadata schema: which installation it belongs to, and which tenants exist.
//!
//! The only truth about tenants. Must not touch a tenant's schema.

use nimbus_core::TenantId;
use sqlx::{AssertSqlSafe, PgConnection, Row, raw_sql};

use super::error;
use super::sql::quoted;
use super::wakes::Table as Wakes;
use crate::control::{RandomId, TenantState};
use crate::provider::external::{Ownership, ownership, state_name, state_of};
use crate::provider::{ProviderError, ProviderResult};

/// Version of the metadata schema.
const FORMAT: i32 = 1;

/// SQL about the metadata schema.
pub(super) struct Registry {
    schema: String,
    installation: String,
    tenants: String,
    wakes: Wakes,
    /// The number of the advisory lock on making it.
    lock: i64,
}

/// What the registry says of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) namespace: String,
    pub(super) state: TenantState,
    /// Another each time that the tenant is created.
    pub(super) life: String,
}

/// A number for an advisory lock, the same on every server.
pub(super) fn lock_number(name: &str) -> i64 {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(format!("nimbus {name}"));
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

impl Registry {
    pub(super) fn new(schema: &str) -> Registry {
        let quoted = quoted(schema);
        Registry {
            schema: schema.to_owned(),
            installation: format!("{quoted}.installation"),
            tenants: format!("{quoted}.tenants"),
            wakes: Wakes::new(&quoted),
            lock: lock_number(schema),
        }
    }

    fn error(&self, doing: &str, e: sqlx::Error) -> ProviderError {
        let hint = match error::is_state(&e, "42501") {
            true => " (the role needs CREATE on the database)",
            false => "",
        };
        error::provider(format!("{doing} in schema {}{hint}", self.schema), e)
    }

    /// Makes the metadata if it is missing, and checks whose it is.
    ///
    /// # Errors
    /// `OtherInstallation`, `Settings`, `Corrupt` for a format that is not known, `Io`.
    pub(super) async fn enter(
        &self,
        conn: &mut PgConnection,
        (ours, join): (RandomId, Option<RandomId>),
        prefix: &str,
    ) -> ProviderResult<RandomId> {
        let place = format!("the metadata schema {}", self.schema);
        let stored = match self.exists(conn).await? {
            true => self.stored(conn, prefix).await?,
            false => None,
        };
        let id = match ownership(&place, stored, ours, join)? {
            Ownership::Ours(id) => id,
            Ownership::Claim(id) => {
                self.make(conn, id, prefix).await?;
                // Another server may have been first.
                let stored = self.stored(conn, prefix).await?;
                match ownership(&place, stored, ours, join)? {
                    Ownership::Ours(id) => id,
                    Ownership::Claim(_) => return Err(self.corrupt("its installation is missing")),
                }
            }
        };
        self.wakes.make(conn).await?;
        Ok(id)
    }

    /// Where wake times are.
    pub(super) fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    async fn exists(&self, conn: &mut PgConnection) -> ProviderResult<bool> {
        let row = sqlx::query("SELECT to_regclass($1) IS NOT NULL")
            .bind(&self.installation)
            .fetch_one(conn)
            .await
            .map_err(|e| self.error("looking for the metadata", e))?;
        row.try_get(0)
            .map_err(|e| self.error("looking for the metadata", e))
    }

    async fn stored(
        &self,
        conn: &mut PgConnection,
        prefix: &str,
    ) -> ProviderResult<Option<RandomId>> {
        let sql = format!("SELECT format, id, prefix FROM {}", self.installation);
        let read = |e| self.error("reading the installation", e);
        let row = sqlx::query(AssertSqlSafe(sql))
            .fetch_optional(conn)
            .await
            .map_err(read)?;
        let Some(row) = row else { return Ok(None) };
        let format: i32 = row.try_get(0).map_err(read)?;
        let id: String = row.try_get(1).map_err(read)?;
        let theirs: String = row.try_get(2).map_err(read)?;
        if format != FORMAT {
            return Err(self.corrupt(format!(
                "its format is {format} and this server reads {FORMAT}; use the version of Nimbus that \
                 wrote it"
            )));
        }
        let id = RandomId::try_from(id).map_err(|e| self.corrupt(format!("its id: {e}")))?;
        if theirs != prefix {
            let reason = format!(
                "the tenants of schema {} have the prefix {theirs}, and this server is told to use {prefix}",
                self.schema
            );
            return Err(ProviderError::Settings { reason });
        }
        Ok(Some(id))
    }

    async fn make(
        &self,
        conn: &mut PgConnection,
        id: RandomId,
        prefix: &str,
    ) -> ProviderResult<()> {
        let schema = quoted(&self.schema);
        // An operator may have made the schema, and then the role needs no right to make one of this name.
        let (lock, installation, tenants) = (self.lock, &self.installation, &self.tenants);
        let name = &self.schema;
        let sql = format!(
            "BEGIN; SELECT pg_advisory_xact_lock({lock}); \
             DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = '{name}') \
             THEN CREATE SCHEMA {schema}; END IF; END $$; \
             CREATE TABLE IF NOT EXISTS {installation} (only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row), \
             format integer NOT NULL, id text NOT NULL, prefix text NOT NULL, \
             created_at timestamptz NOT NULL DEFAULT now()); \
             CREATE TABLE IF NOT EXISTS {tenants} (tenant_id text COLLATE \"C\" PRIMARY KEY, \
             schema_name text COLLATE \"C\" NOT NULL UNIQUE, \
             state text NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')), life text NOT NULL, \
             created_at timestamptz NOT NULL DEFAULT now()); \
             INSERT INTO {installation} (format, id, prefix) VALUES ({FORMAT}, '{id}', '{prefix}') \
             ON CONFLICT DO NOTHING; COMMIT"
        );
        let made = raw_sql(AssertSqlSafe(sql)).execute(&mut *conn).await;
        made.map(drop)
            .map_err(|e| self.error("making the metadata", e))
    }

    /// The entry of a tenant, in whatever state.
    pub(super) async fn get(
        &self,
        conn: &mut PgConnection,
        tenant: &TenantId,
    ) -> ProviderResult<Option<Entry>> {
        let sql = format!(
            "SELECT schema_name, state, life FROM {} WHERE tenant_id = $1",
            self.tenants
        );
        let read = |e| self.error("reading the registry", e);
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(tenant.as_str())
            .fetch_optional(conn)
            .await
            .map_err(read)?;
        let Some(row) = row else { return Ok(None) };
        let namespace = row.try_get(0).map_err(read)?;
        let state: String = row.try_get(1).map_err(read)?;
        let state = self.state(tenant, &state)?;
        let life = row.try_get(2).map_err(read)?;
        Ok(Some(Entry {
            namespace,
            state,
            life,
        }))
    }

    /// Every entry, sorted by tenant.
    pub(super) async fn entries(
        &self,
        conn: &mut PgConnection,
    ) -> ProviderResult<Vec<(TenantId, Entry)>> {
        let sql = format!(
            "SELECT tenant_id, schema_name, state, life FROM {} ORDER BY tenant_id",
            self.tenants
        );
        let read = |e| self.error("listing the registry", e);
        let rows = sqlx::query(AssertSqlSafe(sql))
            .fetch_all(conn)
            .await
            .map_err(read)?;
        let mut entries = Vec::with_capacity(rows.len());
        for row in rows {
            let tenant: String = row.try_get(0).map_err(read)?;
            let tenant: TenantId = tenant
                .parse()
                .map_err(|e| self.corrupt(format!("it names tenant {tenant:?}: {e}")))?;
            let namespace = row.try_get(1).map_err(read)?;
            let state: String = row.try_get(2).map_err(read)?;
            let state = self.state(&tenant, &state)?;
            let life = row.try_get(3).map_err(read)?;
            let entry = Entry {
                namespace,
                state,
                life,
            };
            entries.push((tenant, entry));
        }
        Ok(entries)
    }

    /// Enters a tenant as ready; false if it or its schema has an entry already. In the caller's transaction.
    pub(super) async fn insert(
        &self,
        conn: &mut PgConnection,
        tenant: &TenantId,
        (namespace, life): (&str, RandomId),
    ) -> Result<bool, sqlx::Error> {
        let (tenants, ready) = (&self.tenants, state_name(TenantState::Ready));
        let sql = format!(
            "INSERT INTO {tenants} (tenant_id, schema_name, state, life) VALUES ($1, $2, '{ready}', $3) \
             ON CONFLICT DO NOTHING"
        );
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(tenant.as_str())
            .bind(namespace)
            .bind(life.to_string())
            .execute(conn)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Says that a tenant is being deleted; false if it has no entry.
    pub(super) async fn mark_deleting(
        &self,
        conn: &mut PgConnection,
        tenant: &TenantId,
    ) -> ProviderResult<bool> {
        let (tenants, deleting) = (&self.tenants, state_name(TenantState::Deleting));
        let sql = format!("UPDATE {tenants} SET state = '{deleting}' WHERE tenant_id = $1");
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(tenant.as_str())
            .execute(conn)
            .await
            .map_err(|e| self.error("writing the registry", e))?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes an entry out. In the caller's transaction.
    pub(super) async fn remove(
        &self,
        conn: &mut PgConnection,
        tenant: &TenantId,
    ) -> Result<(), sqlx::Error> {
        let sql = format!("DELETE FROM {} WHERE tenant_id = $1", self.tenants);
        sqlx::query(AssertSqlSafe(sql))
            .bind(tenant.as_str())
            .execute(conn)
            .await
            .map(drop)
    }

    fn state(&self, tenant: &TenantId, text: &str) -> ProviderResult<TenantState> {
        state_of(text).ok_or_else(|| self.corrupt(format!("tenant {tenant} is in state {text:?}")))
    }

    fn corrupt(&self, reason: impl Into<String>) -> ProviderError {
        ProviderError::Corrupt {
            what: format!("the metadata schema {}", self.schema),
            reason: reason.into(),
        }
    }
}
