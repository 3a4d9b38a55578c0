//! Creating, deleting and opening tenants.
//!
//! Statements that make or drop a database commit by themselves, so the registry says first what is under way:
//! `creating`, then `ready`; `deleting`, then nothing. Whoever changes a tenant holds the server's lock of its
//! name (`GET_LOCK`) on the very connection that makes the changes: the lock goes when the connection does, so one
//! who has it and finds `creating` or `deleting` knows that the other is gone, and finishes. Must not touch a
//! database that the registry does not name, but to look whose it is.

use std::time::Duration;

use nimbus_core::TenantId;
use sha2::{Digest as _, Sha256};
use sqlx::MySqlConnection;

use super::Shared;
use super::connect::{Lease, SESSION_IDLE_S, rows, run, seconds};
use super::error::{self, Kind, column, text_column};
use super::registry::Entry;
use super::space::{Space, State, state_rows};
use super::sql::{self, quoted, word};
use super::trouble::{Step, Trouble};
use crate::control::{RandomId, TenantState};
use crate::provider::external::pool::Use;
use crate::provider::external::{FORMAT_KEY, check_format, decode_head, format_row, tenant_of};
use crate::provider::{HEAD_KEY, Head, Keyspace, ProviderError, ProviderResult};

/// How often something that others were in the way of, or whose answer was lost, is tried.
pub(super) const TRIES: u32 = 5;
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// Seconds that a change waits for another of the same tenant, and that a start does.
pub(super) const LOCK_S: u64 = 10;
const LOCK_AT_START_S: u64 = 3;
/// How long a deletion waits for readers of the tenant, which live 30 s at most.
const DROP_WAIT_S: u64 = 40;
const DROP_LIMIT: Duration = Duration::from_secs(60);

/// A new tenant.
struct Birth<'a> {
    tenant: &'a TenantId,
    namespace: String,
    life: RandomId,
    mark: Option<&'a [u8]>,
}

/// What came of a change.
pub(super) enum Outcome {
    Done,
    Exists,
    Missing,
    /// There is a database that the registry does not know.
    Stray,
}

/// Does something that may be done twice, once more if the connection had died while nobody used it.
macro_rules! read {
    ($shared:expr, |$conn:ident| $read:expr) => {
        loop {
            let mut lease = $shared.base.pool.get(Use::Commit).await?;
            let $conn = lease.conn()?;
            match $read.await {
                Ok(value) => {
                    lease.give_back();
                    break Ok::<_, ProviderError>(value);
                }
                Err(trouble) if trouble.kind() == Some(Kind::Lost) && !lease.fresh => {
                    $shared.base.pool.forget_idle();
                }
                Err(trouble) => break Err(trouble.into_provider()),
            }
        }
    };
}

pub(super) use read;

/// The registry's entry of a tenant.
pub(super) async fn entry(shared: &Shared, tenant: &TenantId) -> ProviderResult<Option<Entry>> {
    read!(shared, |conn| shared.registry.get(conn, tenant))
}

/// Every entry of the registry.
pub(super) async fn entries(shared: &Shared) -> ProviderResult<Vec<(TenantId, Entry)>> {
    read!(shared, |conn| shared.registry.entries(conn))
}

/// The lock of a tenant. Names of locks are of the whole server.
fn lock_name(shared: &Shared, tenant: &TenantId) -> String {
    let namespace = shared.names.namespace(tenant);
    let digest = Sha256::digest(format!("nimbus {namespace}"));
    let digest = data_encoding::HEXLOWER.encode(&digest[..16]);
    word(&format!("nimbus_{digest}"))
}

/// Waits for the lock of a tenant; `None` if it was not had. It ends with the connection, also when this process
/// stops for some seconds.
pub(super) async fn lock(
    shared: &Shared,
    tenant: &TenantId,
    wait_s: u64,
) -> ProviderResult<Option<Lease>> {
    let timing = &shared.base.timing;
    let name = lock_name(shared, tenant);
    let idle_s = seconds(timing.turn_idle);
    let sql = format!(
        "SET SESSION wait_timeout={idle_s},lock_wait_timeout={DROP_WAIT_S};SELECT GET_LOCK({name},{wait_s})"
    );
    loop {
        let mut lease = shared.base.pool.get(Use::Commit).await?;
        let got = rows(lease.conn()?, timing.statement, sql.clone()).await;
        let got = got.and_then(|rows| match rows.first() {
            Some(row) => column::<Option<i64>>(row, 0),
            None => Ok(None),
        });
        match got {
            Ok(Some(1)) => return Ok(Some(lease)),
            Ok(_) => {
                unlock(shared, tenant, lease).await;
                return Ok(None);
            }
            Err(e) if error::kind(&e) == Kind::Lost && !lease.fresh => {
                shared.base.pool.forget_idle()
            }
            Err(e) => return Err(error::provider(format!("locking tenant {tenant}"), e)),
        }
    }
}

pub(super) async fn unlock(shared: &Shared, tenant: &TenantId, mut lease: Lease) {
    let (name, lock_s) = (lock_name(shared, tenant), seconds(shared.base.timing.lock));
    let sql = format!(
        "DO RELEASE_LOCK({name});SET SESSION wait_timeout={SESSION_IDLE_S},lock_wait_timeout={lock_s}"
    );
    let Ok(conn) = lease.conn() else { return };
    if run(conn, shared.base.timing.statement, sql).await.is_ok() {
        lease.give_back();
    }
}

/// Changes a tenant with its lock held, again if the connection was lost.
macro_rules! change {
    ($shared:expr, $tenant:expr, |$conn:ident, $attempt:ident| $change:expr) => {
        'change: {
            for $attempt in 0.. {
                let Some(mut lease) = lock($shared, $tenant, LOCK_S).await? else {
                    break 'change Err(busy($tenant));
                };
                let $conn = lease.conn()?;
                let trouble = match $change.await {
                    Ok(outcome) => {
                        unlock($shared, $tenant, lease).await;
                        break 'change Ok::<Outcome, ProviderError>(outcome);
                    }
                    Err(trouble) => trouble,
                };
                match trouble.kind() {
                    Some(Kind::Lost) if $attempt < TRIES => {
                        drop(lease);
                        $shared.base.pool.forget_idle();
                    }
                    Some(Kind::Passing) if $attempt < TRIES && !trouble.is_lock_timeout() => {
                        unlock($shared, $tenant, lease).await;
                    }
                    _ => {
                        unlock($shared, $tenant, lease).await;
                        break 'change Err(trouble.into_provider());
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(ProviderError::Closed)
        }
    };
}

pub(super) use change;

pub(super) fn busy(tenant: &TenantId) -> ProviderError {
    let what = format!("another server is creating or deleting tenant {tenant}");
    ProviderError::Busy { what }
}

/// Makes a tenant; with a `mark`, that of [`crate::provider::Provider::create_marked`].
pub(super) async fn create(
    shared: &Shared,
    tenant: &TenantId,
    mark: Option<&[u8]>,
) -> ProviderResult<()> {
    let birth = Birth {
        tenant,
        namespace: shared.names.namespace(tenant),
        life: RandomId::generate()?,
        mark,
    };
    let made = change!(shared, tenant, |conn, _attempt| make(shared, &birth, conn));
    answer(tenant, &birth.namespace, made?)
}

pub(super) fn answer(tenant: &TenantId, namespace: &str, outcome: Outcome) -> ProviderResult<()> {
    let tenant = tenant.clone();
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Exists => Err(ProviderError::AlreadyExists { tenant }),
        Outcome::Missing => Err(ProviderError::NotFound { tenant }),
        Outcome::Stray => Err(ProviderError::Unregistered {
            tenant,
            path: format!("database {namespace}"),
        }),
    }
}

async fn make(shared: &Shared, birth: &Birth<'_>, conn: &mut MySqlConnection) -> Step<Outcome> {
    let Birth {
        tenant,
        namespace,
        life,
        ..
    } = birth;
    if let Some(entry) = shared.registry.get(conn, tenant).await? {
        if entry.state == TenantState::Ready {
            // The answer to this very call was lost.
            let ours = entry.life == life.to_string();
            return Ok(if ours { Outcome::Done } else { Outcome::Exists });
        }
        finish(shared, tenant, &entry, conn).await?;
    }
    if is_there(shared, conn, namespace).await? {
        return Ok(Outcome::Stray);
    }
    let entry = (namespace.as_str(), *life, TenantState::Creating);
    shared.registry.insert(conn, tenant, entry).await?;
    shared.steps.reached("registered").await;
    let failed = match fill(shared, birth, conn).await {
        Ok(()) => return Ok(Outcome::Done),
        Err(failed) => failed,
    };
    if matches!(&failed, Trouble::Sql(_, e) if error::is_number(e, error::DATABASE_EXISTS)) {
        // Someone made it just now.
        shared
            .registry
            .remove(conn, tenant, &life.to_string())
            .await?;
        return Ok(Outcome::Stray);
    }
    if failed.kind() != Some(Kind::Lost)
        && let Some(entry) = shared.registry.get(conn, tenant).await?
        && let Err(e) = finish(shared, tenant, &entry, conn).await
    {
        let error = e.into_provider();
        tracing::warn!(%tenant, %error, "undoing a failed creation is left to a later one");
    }
    Err(failed)
}

/// Makes the database and its rows.
async fn fill(shared: &Shared, birth: &Birth<'_>, conn: &mut MySqlConnection) -> Step<()> {
    let (name, limit) = (&birth.namespace, shared.base.timing.statement);
    let doing = || Trouble::sql(format!("creating database {name}"));
    let sql = format!("CREATE DATABASE {}", quoted(name));
    run(conn, limit, sql).await.map_err(doing())?;
    shared.steps.reached("database").await;
    for keyspace in Keyspace::ALL {
        let sql = sql::create_table(name, keyspace);
        run(conn, limit, sql).await.map_err(doing())?;
        shared.steps.reached(keyspace.name()).await;
    }
    let format = format_row(birth.tenant, birth.life);
    let head = Head::EMPTY.encode();
    let mut all: Vec<(&[u8], &[u8])> = vec![(FORMAT_KEY, format.as_bytes()), (HEAD_KEY, &head)];
    all.extend(birth.mark.map(|mark| (mark, &b"{}"[..])));
    let mut insert = sql::put(name, Keyspace::Meta);
    for (n, (key, value)) in all.into_iter().enumerate() {
        insert.push_str(if n > 0 { ",(" } else { "(" });
        sql::literal(&mut insert, key);
        insert.push(',');
        sql::literal(&mut insert, value);
        insert.push(')');
    }
    run(conn, limit, insert).await.map_err(doing())?;
    shared.steps.reached("filled").await;
    let (life, tenant) = (birth.life.to_string(), birth.tenant);
    let ready = (life.as_str(), TenantState::Ready);
    shared.registry.set(conn, tenant, ready).await?;
    shared.steps.reached("created").await;
    Ok(())
}

/// Whether there is a database of that name that this user can see.
async fn is_there(shared: &Shared, conn: &mut MySqlConnection, namespace: &str) -> Step<bool> {
    let sql = format!(
        "SELECT 1 FROM information_schema.schemata WHERE schema_name={}",
        word(namespace)
    );
    let found = rows(conn, shared.base.timing.statement, sql).await;
    let found = found.map_err(Trouble::sql("looking for databases"))?;
    Ok(!found.is_empty())
}

/// Deletes a tenant and everything it owns.
pub(super) async fn delete(shared: &Shared, tenant: &TenantId) -> ProviderResult<()> {
    let gone = change!(shared, tenant, |conn, attempt| unmake(
        shared,
        tenant,
        conn,
        attempt > 0
    ));
    answer(tenant, "", gone?)
}

/// `again` if an earlier try may have done it.
async fn unmake(
    shared: &Shared,
    tenant: &TenantId,
    conn: &mut MySqlConnection,
    again: bool,
) -> Step<Outcome> {
    let Some(mut entry) = shared.registry.get(conn, tenant).await? else {
        return Ok(if again {
            Outcome::Done
        } else {
            Outcome::Missing
        });
    };
    let was = entry.state;
    if was == TenantState::Ready {
        entry.state = TenantState::Deleting;
        let deleting = (entry.life.as_str(), TenantState::Deleting);
        shared.registry.set(conn, tenant, deleting).await?;
        shared.steps.reached("marked").await;
    }
    finish(shared, tenant, &entry, conn).await?;
    shared.steps.reached("deleted").await;
    // One that was never whole was never there.
    Ok(match was {
        TenantState::Creating => Outcome::Missing,
        _ => Outcome::Done,
    })
}

/// Finishes a deletion, or undoes a creation, that was cut short. With the lock held.
pub(super) async fn finish(
    shared: &Shared,
    tenant: &TenantId,
    entry: &Entry,
    conn: &mut MySqlConnection,
) -> Step<()> {
    let name = &entry.namespace;
    let (is_there, ours) = match entry.state {
        TenantState::Ready => return Ok(()),
        TenantState::Deleting => (true, true),
        // A user without rights on it sees none, and made none.
        TenantState::Creating => match is_there(shared, conn, name).await? {
            true => (true, is_unfinished(shared, entry, conn).await?),
            false => (false, false),
        },
    };
    if ours {
        let sql = format!("DROP DATABASE IF EXISTS {}", quoted(name));
        let dropped = run(conn, DROP_LIMIT, sql).await;
        dropped.map_err(Trouble::sql(format!("dropping database {name}")))?;
        shared.steps.reached("dropped").await;
    } else if is_there {
        tracing::warn!(%tenant, database = %name, "it is not of the creation that was cut short and is left alone");
    }
    shared.registry.remove(conn, tenant, &entry.life).await?;
    shared.steps.reached("forgotten").await;
    Ok(())
}

/// Whether a database is what a creation left that was cut short: of this life, or without any row.
async fn is_unfinished(shared: &Shared, entry: &Entry, conn: &mut MySqlConnection) -> Step<bool> {
    let (name, limit) = (&entry.namespace, shared.base.timing.statement);
    let doing = || Trouble::sql(format!("looking at database {name}"));
    if let Some(State { format, .. }) = state(shared, conn, name).await?
        && format.is_some()
    {
        let life = tenant_of(format.as_deref()).map(|(_, life)| life.to_string());
        return Ok(life.as_ref() == Some(&entry.life));
    }
    let sql = format!(
        "SELECT table_name FROM information_schema.tables WHERE table_schema={}",
        word(name)
    );
    let tables = rows(conn, limit, sql).await.map_err(doing())?;
    for row in &tables {
        let table = text_column(row, 0).map_err(doing())?;
        let Some(keyspace) = Keyspace::from_name(&table) else {
            return Ok(false);
        };
        let table = sql::table(name, keyspace);
        let any = rows(conn, limit, format!("SELECT 1 FROM {table} LIMIT 1")).await;
        if !any.map_err(doing())?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Finishes what a crash interrupted. What fails is left to a later start.
pub(super) async fn recover(shared: &Shared) -> ProviderResult<()> {
    for (tenant, entry) in entries(shared).await? {
        if entry.state == TenantState::Ready {
            shared.known.note(&tenant, true);
            continue;
        }
        match recover_one(shared, &tenant).await {
            Ok(true) => {
                tracing::info!(%tenant, "finished a creation or deletion that was cut short");
            }
            Ok(false) => tracing::info!(%tenant, "another server is creating or deleting it"),
            Err(error) => {
                tracing::warn!(%tenant, %error, "finishing its creation or deletion is left to a later start");
            }
        }
    }
    Ok(())
}

async fn recover_one(shared: &Shared, tenant: &TenantId) -> ProviderResult<bool> {
    let Some(mut lease) = lock(shared, tenant, LOCK_AT_START_S).await? else {
        return Ok(false);
    };
    let conn = lease.conn()?;
    let finished = async {
        match shared.registry.get(conn, tenant).await? {
            Some(entry) => finish(shared, tenant, &entry, conn).await,
            None => Ok(()),
        }
    };
    finished.await.map_err(Trouble::into_provider)?;
    unlock(shared, tenant, lease).await;
    Ok(true)
}

/// Opens a registered tenant; with its head.
pub(super) async fn open(shared: &Shared, tenant: &TenantId) -> ProviderResult<(Space, Head)> {
    let entry = entry(shared, tenant).await?;
    let Some(entry) = entry.filter(|e| e.state == TenantState::Ready) else {
        return Err(ProviderError::NotFound {
            tenant: tenant.clone(),
        });
    };
    let name = entry.namespace;
    let found = read!(shared, |conn| state(shared, conn, &name))?;
    let Some(State { head, format }) = found else {
        // The registry is the truth, so something took the database away.
        return Err(ProviderError::Corrupt {
            what: format!("database {name}"),
            reason: format!("it is missing, and tenant {tenant} is registered"),
        });
    };
    check_format(&name, tenant, format.as_deref())?;
    let head = decode_head(&name, head.as_deref())?;
    let (tenant, format) = (tenant.clone(), format.unwrap_or_default());
    Ok((
        Space {
            tenant,
            name,
            format,
        },
        head,
    ))
}

/// The head and the format row; `None` if there is no database or no table.
pub(super) async fn state(
    shared: &Shared,
    conn: &mut MySqlConnection,
    namespace: &str,
) -> Step<Option<State>> {
    let found = rows(conn, shared.base.timing.statement, sql::state(namespace)).await;
    match found {
        Ok(found) => Ok(Some(state_rows(namespace, &found)?)),
        Err(e) if error::kind(&e) == Kind::Gone => Ok(None),
        Err(e) => Err(Trouble::Sql(format!("reading database {namespace}"), e)),
    }
}
