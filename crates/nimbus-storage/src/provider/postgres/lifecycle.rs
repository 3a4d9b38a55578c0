//! Creating, deleting and adopting tenants.
//!
//! A tenant is made in one transaction, so a crash leaves all of it or nothing. Deleting first says so in the
//! registry, so that other servers let go, and is finished by whoever comes next: a start, or a later creation or
//! deletion. Must not touch a schema that the registry does not name, but to look whose it is.

use std::time::Duration;

use bytes::Bytes;
use nimbus_core::TenantId;
use sqlx::{AssertSqlSafe, PgConnection, Row, raw_sql};

use super::Shared;
use super::connect::Lease;
use super::error::{self, Kind};
use super::registry::lock_number;
use super::space::{Space, State, state_rows};
use super::sql;
use crate::control::{RandomId, TenantState};
use crate::provider::external::pool::Use;
use crate::provider::external::{FORMAT_KEY, check_format, decode_head, format_row, tenant_of};
use crate::provider::{HEAD_KEY, Head, Keyspace, ProviderError, ProviderResult};

/// How often something that others were in the way of, or whose answer was lost, is tried.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// How long a deletion waits for readers of the tenant, which live 30 s at most.
const DROP_WAIT_MS: u64 = 40_000;

/// Does something on a connection, once more if the connection had died while nobody used it. Not a function,
/// since the compiler cannot tell that what such a closure makes may change threads.
macro_rules! with_lease {
    ($shared:expr, |$conn:ident| $work:expr) => {
        loop {
            let mut lease = $shared
                .base
                .pool
                .get($crate::provider::external::pool::Use::Commit)
                .await?;
            let $conn = lease.conn()?;
            match $work.await {
                Ok(value) => {
                    lease.give_back();
                    break Ok(value);
                }
                Err($crate::provider::ProviderError::Io { .. }) if !lease.fresh => {
                    $shared.base.pool.forget_idle();
                }
                Err(e) => break Err(e),
            }
        }
    };
}
pub(super) use with_lease;

/// A new tenant.
struct Birth<'a> {
    tenant: &'a TenantId,
    namespace: String,
    life: RandomId,
    mark: Option<&'a [u8]>,
}

/// Makes a tenant; with a `mark`, that of [`crate::provider::Provider::create_marked`].
pub(super) async fn create(
    shared: &Shared,
    tenant: &TenantId,
    mark: Option<&[u8]>,
) -> ProviderResult<()> {
    let namespace = shared.names.namespace(tenant);
    let birth = Birth {
        tenant,
        namespace,
        life: RandomId::generate()?,
        mark,
    };
    for attempt in 0.. {
        if is_there(shared, &birth).await? {
            return Ok(());
        }
        let mut lease = shared.base.pool.get(Use::Commit).await?;
        let made = make(shared, &birth, lease.conn()?).await;
        let e = match made {
            Ok(true) => {
                lease.give_back();
                return Ok(());
            }
            // Another server was first: the next look says so.
            Ok(false) if attempt < TRIES => {
                lease.give_back();
                continue;
            }
            Ok(false) => {
                return Err(ProviderError::Corrupt {
                    what: "the registry of tenants".to_owned(),
                    reason: format!("another tenant has schema {}", birth.namespace),
                });
            }
            Err(e) => e,
        };
        drop(lease);
        if error::is_state(&e, "42P06") {
            return Err(ProviderError::Unregistered {
                tenant: tenant.clone(),
                path: format!("schema {}", birth.namespace),
            });
        }
        match error::kind(&e) {
            // Whether it was made shows in the registry.
            Kind::Lost | Kind::Passing if attempt < TRIES => {
                shared.base.pool.forget_idle();
                tokio::time::sleep(PAUSE).await;
            }
            _ => {
                let hint = match error::is_state(&e, "42501") {
                    true => " (the role needs CREATE on the database)",
                    false => "",
                };
                let what = format!("creating schema {}{hint}", birth.namespace);
                return Err(error::provider(what, e));
            }
        }
    }
    Err(ProviderError::Closed)
}

/// Whether the tenant was made by this very call.
///
/// # Errors
/// `AlreadyExists` if it was by another.
async fn is_there(shared: &Shared, birth: &Birth<'_>) -> ProviderResult<bool> {
    let tenant = birth.tenant;
    match entry(shared, tenant).await? {
        None => Ok(false),
        Some(entry) if entry.life == birth.life.to_string() => Ok(true),
        Some(entry) if entry.state == TenantState::Ready => Err(ProviderError::AlreadyExists {
            tenant: tenant.clone(),
        }),
        Some(_) => finish(shared, tenant).await.map(|()| false),
    }
}

/// The registry's entry, on a connection that may have died while nobody used it.
pub(super) async fn entry(
    shared: &Shared,
    tenant: &TenantId,
) -> ProviderResult<Option<super::registry::Entry>> {
    with_lease!(shared, |conn| shared.registry.get(conn, tenant))
}

/// False if the registry has the tenant; then nothing was done, and the transaction is over.
async fn make(
    shared: &Shared,
    birth: &Birth<'_>,
    conn: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    raw_sql("BEGIN").execute(&mut *conn).await?;
    shared.steps.reached("begun").await;
    let entry = (birth.namespace.as_str(), birth.life);
    if !shared.registry.insert(conn, birth.tenant, entry).await? {
        raw_sql("ROLLBACK").execute(conn).await?;
        return Ok(false);
    }
    shared.steps.reached("registered").await;
    raw_sql(AssertSqlSafe(sql::create(&birth.namespace)))
        .execute(&mut *conn)
        .await?;
    shared.steps.reached("made").await;
    let format = format_row(birth.tenant, birth.life);
    let head = Head::EMPTY.encode();
    let mut keys = vec![FORMAT_KEY, HEAD_KEY];
    let mut values = vec![format.as_bytes(), &head[..]];
    if let Some(mark) = birth.mark {
        keys.push(mark);
        values.push(b"{}");
    }
    sqlx::query(AssertSqlSafe(sql::insert_meta(&birth.namespace)))
        .bind(keys)
        .bind(values)
        .execute(&mut *conn)
        .await?;
    shared.steps.reached("filled").await;
    raw_sql("COMMIT").execute(conn).await?;
    shared.steps.reached("created").await;
    Ok(true)
}

/// Deletes a tenant and everything it owns.
pub(super) async fn delete(shared: &Shared, tenant: &TenantId) -> ProviderResult<()> {
    let marked = with_lease!(shared, |conn| shared.registry.mark_deleting(conn, tenant))?;
    if !marked {
        return Err(ProviderError::NotFound {
            tenant: tenant.clone(),
        });
    }
    shared.outbox.committed(&shared.names.namespace(tenant));
    shared.steps.reached("marked").await;
    finish(shared, tenant).await
}

/// Finishes the deletion of a tenant, unless someone else did.
pub(super) async fn finish(shared: &Shared, tenant: &TenantId) -> ProviderResult<()> {
    for attempt in 0.. {
        let mut lease = shared.base.pool.get(Use::Commit).await?;
        let e = match drop_all(shared, tenant, lease.conn()?).await? {
            Ok(()) => {
                lease.give_back();
                return Ok(());
            }
            Err(e) => e,
        };
        drop(lease);
        match error::kind(&e) {
            Kind::Lost | Kind::Passing if attempt < TRIES => {
                shared.base.pool.forget_idle();
                tokio::time::sleep(PAUSE).await;
            }
            _ => return Err(error::provider(format!("deleting tenant {tenant}"), e)),
        }
    }
    Err(ProviderError::Closed)
}

async fn drop_all(
    shared: &Shared,
    tenant: &TenantId,
    conn: &mut PgConnection,
) -> ProviderResult<Result<(), sqlx::Error>> {
    let lock = lock_number(&shared.names.namespace(tenant));
    let begin = format!(
        "BEGIN; SET LOCAL lock_timeout = {DROP_WAIT_MS}; SELECT pg_advisory_xact_lock({lock})"
    );
    if let Err(e) = raw_sql(AssertSqlSafe(begin)).execute(&mut *conn).await {
        return Ok(Err(e));
    }
    shared.steps.reached("locked").await;
    // Another server may have finished it, and the tenant may be there again.
    let entry = shared.registry.get(conn, tenant).await?;
    let entry = entry.filter(|e| e.state != TenantState::Ready);
    let dropped = async {
        if let Some(entry) = entry {
            let schema = sql::quoted(&entry.namespace);
            let sql = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
            raw_sql(AssertSqlSafe(sql)).execute(&mut *conn).await?;
            shared.steps.reached("dropped").await;
            shared.registry.remove(conn, tenant).await?;
            shared.steps.reached("forgotten").await;
        }
        raw_sql("COMMIT").execute(conn).await.map(drop)
    };
    let dropped = dropped.await;
    shared.steps.reached("deleted").await;
    Ok(dropped)
}

/// Finishes what a crash interrupted. What fails is left to a later start.
pub(super) async fn recover(shared: &Shared) -> ProviderResult<()> {
    let entries = with_lease!(shared, |conn| shared.registry.entries(conn))?;
    for (tenant, entry) in entries {
        if entry.state == TenantState::Ready {
            shared.known.note(&tenant, true);
            continue;
        }
        match finish(shared, &tenant).await {
            Ok(()) => tracing::info!(%tenant, "finished an interrupted deletion"),
            Err(error) => {
                tracing::warn!(%tenant, %error, "finishing a deletion is left to a later start");
            }
        }
    }
    Ok(())
}

/// Opens a registered tenant.
pub(super) async fn open(shared: &Shared, tenant: &TenantId) -> ProviderResult<Space> {
    let not_found = || ProviderError::NotFound {
        tenant: tenant.clone(),
    };
    let entry = entry(shared, tenant).await?;
    let Some(entry) = entry.filter(|e| e.state == TenantState::Ready) else {
        return Err(not_found());
    };
    let state = with_lease!(shared, |conn| state(conn, &entry.namespace))?;
    let Some((head, format)) = state else {
        // The registry is the truth, so something took the schema away.
        return Err(ProviderError::Corrupt {
            what: format!("schema {}", entry.namespace),
            reason: format!("it is missing, and tenant {tenant} is registered"),
        });
    };
    check_format(&entry.namespace, tenant, format.as_deref())?;
    decode_head(&entry.namespace, head.as_deref())?;
    let format = format.unwrap_or_default();
    Ok(Space::new(tenant.clone(), entry.namespace, format))
}

/// The head and the format row; `None` if there is no schema or no table.
async fn state(conn: &mut PgConnection, namespace: &str) -> ProviderResult<Option<State>> {
    let rows = raw_sql(AssertSqlSafe(sql::state(namespace)))
        .fetch_all(conn)
        .await;
    match rows {
        Ok(rows) => state_rows(namespace, &rows).map(Some),
        Err(e) if error::kind(&e) == Kind::Gone => Ok(None),
        Err(e) => Err(error::provider(format!("reading schema {namespace}"), e)),
    }
}

/// Tenants whose schema is there and that the registry does not know.
pub(super) async fn unregistered(shared: &Shared) -> ProviderResult<Vec<TenantId>> {
    let schemas = with_lease!(shared, |conn| schemas(shared, conn))?;
    let mut found = Vec::new();
    for schema in schemas {
        let row = with_lease!(shared, |conn| state(conn, &schema));
        let format = match row {
            Ok(state) => state.and_then(|(_, format)| format),
            Err(error) => {
                tracing::warn!(schema, %error, "looking at a schema that is not registered");
                None
            }
        };
        match tenant_of(format.as_deref()) {
            Some((tenant, _)) if shared.names.namespace(&tenant) == schema => found.push(tenant),
            _ => tracing::warn!(
                schema,
                "it has the prefix of tenants and is none; it is left alone"
            ),
        }
    }
    found.sort();
    Ok(found)
}

async fn schemas(shared: &Shared, conn: &mut PgConnection) -> ProviderResult<Vec<String>> {
    let read = |e| error::provider("listing schemas", e);
    let rows = sqlx::query("SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, $1)")
        .bind(shared.names.prefix())
        .fetch_all(&mut *conn)
        .await
        .map_err(read)?;
    let known = shared.registry.entries(conn).await?;
    let mut schemas = Vec::new();
    for row in rows {
        let schema: String = row.try_get(0).map_err(read)?;
        let registered = known.iter().any(|(_, entry)| entry.namespace == schema);
        if !registered && shared.names.looks_like_one(&schema) {
            schemas.push(schema);
        }
    }
    Ok(schemas)
}

/// Takes the schema of an unregistered tenant in after checking it.
pub(super) async fn adopt(shared: &Shared, tenant: &TenantId) -> ProviderResult<()> {
    let exists = || ProviderError::AlreadyExists {
        tenant: tenant.clone(),
    };
    if entry(shared, tenant).await?.is_some() {
        return Err(exists());
    }
    let namespace = shared.names.namespace(tenant);
    let state = with_lease!(shared, |conn| state(conn, &namespace))?;
    let Some((head, format)) = state else {
        return Err(ProviderError::NotFound {
            tenant: tenant.clone(),
        });
    };
    check_format(&namespace, tenant, format.as_deref())?;
    decode_head(&namespace, head.as_deref())?;
    let Some((_, life)) = tenant_of(format.as_deref()) else {
        return Err(ProviderError::Closed);
    };
    let mut lease: Lease = shared.base.pool.get(Use::Commit).await?;
    check_tables(lease.conn()?, &namespace).await?;
    let entry = (namespace.as_str(), life);
    let done = shared.registry.insert(lease.conn()?, tenant, entry).await;
    let done = done.map_err(|e| error::provider(format!("adopting schema {namespace}"), e))?;
    lease.give_back();
    match done {
        true => Ok(()),
        false => Err(exists()),
    }
}

/// Reads a row of every table as rows are read.
async fn check_tables(conn: &mut PgConnection, namespace: &str) -> ProviderResult<()> {
    for keyspace in Keyspace::ALL {
        let table = sql::table(namespace, keyspace);
        let sql = format!("SELECT key, value FROM {table} LIMIT 1");
        let read = sqlx::query(AssertSqlSafe(sql)).fetch_optional(&mut *conn);
        let read = read.await.and_then(|row| match row {
            Some(row) => {
                let (_, value): (&[u8], &[u8]) = (row.try_get(0)?, row.try_get(1)?);
                Ok(Some(Bytes::copy_from_slice(value)))
            }
            None => Ok(None),
        });
        if let Err(e) = read {
            return Err(ProviderError::Corrupt {
                what: format!("schema {namespace}"),
                reason: format!("reading its table {}: {}", keyspace.name(), error::text(&e)),
            });
        }
    }
    Ok(())
}
