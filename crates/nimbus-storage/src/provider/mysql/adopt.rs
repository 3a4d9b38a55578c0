//! Tenants whose database is there and that the registry does not know: reporting them, and taking them in.
//!
//! Must not change a database, nor take in one that cannot be read as a tenant's.

use std::time::Duration;

use nimbus_core::TenantId;
use sqlx::MySqlConnection;

use super::Shared;
use super::connect::rows;
use super::error::{self, Kind, column, text_column};
use super::lifecycle::{
    LOCK_S, Outcome, PAUSE, TRIES, answer, busy, change, entries, finish, lock, read, state, unlock,
};
use super::space::State;
use super::sql::{self, word};
use super::trouble::{Step, Trouble};
use crate::control::TenantState;
use crate::provider::external::pool::Use;
use crate::provider::external::{check_format, decode_head, tenant_of};
use crate::provider::{Keyspace, ProviderError, ProviderResult};

/// Tenants whose database is there and that the registry does not know.
pub(super) async fn unregistered(shared: &Shared) -> ProviderResult<Vec<TenantId>> {
    let mut found = Vec::new();
    for database in strays(shared).await? {
        let state = read!(shared, |conn| state(shared, conn, &database));
        let format = match state {
            Ok(state) => state.and_then(|s| s.format),
            Err(error) => {
                tracing::warn!(database, %error, "looking at a database that is not registered");
                None
            }
        };
        match tenant_of(format.as_deref()) {
            Some((tenant, _)) if shared.names.namespace(&tenant) == database => found.push(tenant),
            _ => tracing::warn!(
                database,
                "it has the prefix of tenants and is none; it is left alone"
            ),
        }
    }
    found.sort();
    Ok(found)
}

async fn strays(shared: &Shared) -> ProviderResult<Vec<String>> {
    let (prefix, limit) = (shared.names.prefix(), shared.base.timing.statement);
    let sql = format!(
        "SELECT schema_name FROM information_schema.schemata WHERE LEFT(schema_name,{})={}",
        prefix.len(),
        word(prefix)
    );
    let listed = read!(shared, |conn| listed(conn, limit, sql.clone()))?;
    let known = entries(shared).await?;
    let is_stray = |name: &String| {
        let registered = known.iter().any(|(_, entry)| entry.namespace == *name);
        !registered && shared.names.looks_like_one(name)
    };
    Ok(listed.into_iter().filter(is_stray).collect())
}

async fn listed(conn: &mut MySqlConnection, limit: Duration, sql: String) -> Step<Vec<String>> {
    let doing = || Trouble::sql("listing databases");
    let found = rows(conn, limit, sql).await.map_err(doing())?;
    let names: Result<_, sqlx::Error> = found.iter().map(|row| text_column(row, 0)).collect();
    names.map_err(doing())
}

/// Takes the database of an unregistered tenant in after checking it.
pub(super) async fn adopt(shared: &Shared, tenant: &TenantId) -> ProviderResult<()> {
    let adopted = change!(shared, tenant, |conn, attempt| take_in(
        shared,
        tenant,
        conn,
        attempt > 0
    ));
    answer(tenant, "", adopted?)
}

async fn take_in(
    shared: &Shared,
    tenant: &TenantId,
    conn: &mut MySqlConnection,
    again: bool,
) -> Step<Outcome> {
    if let Some(entry) = shared.registry.get(conn, tenant).await? {
        if entry.state == TenantState::Ready {
            return Ok(if again {
                Outcome::Done
            } else {
                Outcome::Exists
            });
        }
        finish(shared, tenant, &entry, conn).await?;
    }
    let name = shared.names.namespace(tenant);
    let Some(State { head, format }) = state(shared, conn, &name).await? else {
        return Ok(Outcome::Missing);
    };
    check_format(&name, tenant, format.as_deref())?;
    decode_head(&name, head.as_deref())?;
    let Some((_, life)) = tenant_of(format.as_deref()) else {
        return Ok(Outcome::Missing);
    };
    check_tables(shared, conn, &name).await?;
    let entry = (name.as_str(), life, TenantState::Ready);
    shared.registry.insert(conn, tenant, entry).await?;
    Ok(Outcome::Done)
}

/// Reads a row of every table as rows are read.
async fn check_tables(shared: &Shared, conn: &mut MySqlConnection, namespace: &str) -> Step<()> {
    for keyspace in Keyspace::ALL {
        let table = sql::table(namespace, keyspace);
        let sql = format!("SELECT `key`,`value` FROM {table} LIMIT 1");
        let read = rows(conn, shared.base.timing.statement, sql).await;
        let read = read.and_then(|rows| match rows.first() {
            Some(row) => column::<&[u8]>(row, 0)
                .and(column::<&[u8]>(row, 1))
                .map(drop),
            None => Ok(()),
        });
        match read {
            Ok(()) => {}
            Err(e) if error::kind(&e) == Kind::Lost => {
                return Err(Trouble::Sql(format!("reading database {namespace}"), e));
            }
            Err(e) => {
                return Err(Trouble::Known(ProviderError::Corrupt {
                    what: format!("database {namespace}"),
                    reason: format!("reading its table {}: {}", keyspace.name(), error::text(&e)),
                }));
            }
        }
    }
    Ok(())
}
