//! Creating, deleting and opening tenants.
//!
//! The registry says first what is about to be done, and last that it is done; a namespace has a name that no other
//! life of the tenant has, so a request that comes late can hit nobody else. What a crash leaves is finished by whoever
//! comes next: a start, or a later creation or deletion. libSQL's admin API lists no namespaces, so tenant data that the
//! registry does not name can be neither found nor adopted: the metadata namespace belongs into every backup.

use std::time::Instant;

use nimbus_core::TenantId;

use super::hrana::Script;
use super::http::{Fault, Made};
use super::primary::{self, Row, State};
use super::registry::{Entry, committed};
use super::{PAUSE, Shared, sql};
use crate::control::{RandomId, TenantState};
use crate::provider::external::{FORMAT_KEY, check_format, format_row};
use crate::provider::local::blocking;
use crate::provider::{HEAD_KEY, Head, Keyspace, ProviderError, ProviderResult};

/// Makes a tenant; with a `mark`, that of [`crate::provider::Provider::create_marked`]. The name of its namespace.
pub(super) async fn create(
    shared: &Shared,
    tenant: &TenantId,
    mark: Option<&[u8]>,
) -> ProviderResult<String> {
    let turn = shared.one_at_a_time(tenant);
    let _turn = turn.lock().await;
    let life = RandomId::generate()?;
    let namespace = shared.names.namespace_of_life(tenant, life);
    shared.reached("named").await;
    enter(shared, tenant, (&namespace, life)).await?;
    shared.reached("entered").await;
    let (http, timing, registry) = (&shared.http, &shared.timing, &shared.registry);
    if let Err(e) = make(shared, tenant, (&namespace, life), mark).await {
        undo(shared, tenant, (&namespace, life)).await;
        return Err(e);
    }
    shared.reached("filled").await;
    let entry = registry
        .change(http, timing, sql::SET_READY, (tenant, life))
        .await?;
    shared.reached("created").await;
    match entry {
        Some(entry) if entry.life == life && entry.state == TenantState::Ready => Ok(namespace),
        _ => {
            // This took so long that another server took it for dead. The namespace is of this life alone.
            undo(shared, tenant, (&namespace, life)).await;
            let what = format!("another server undid the creation of tenant {tenant}");
            Err(ProviderError::Busy { what })
        }
    }
}

/// Enters a tenant as being created. Waits for another server that is at it.
async fn enter(
    shared: &Shared,
    tenant: &TenantId,
    (namespace, life): (&str, RandomId),
) -> ProviderResult<()> {
    let (http, timing) = (&shared.http, &shared.timing);
    let until = Instant::now() + timing.stale_creation + timing.barrier;
    loop {
        let entry = shared
            .registry
            .add(http, timing, tenant, (namespace, life))
            .await?;
        let Some(entry) = entry else { continue };
        match entry.state {
            _ if entry.life == life => return Ok(()),
            TenantState::Ready => {
                let tenant = tenant.clone();
                return Err(ProviderError::AlreadyExists { tenant });
            }
            TenantState::Creating if !shared.is_stale(&entry) => tokio::time::sleep(PAUSE).await,
            _ => finish(shared, &entry).await?,
        }
        if Instant::now() >= until {
            let what = format!("another server is creating tenant {tenant}");
            return Err(ProviderError::Busy { what });
        }
    }
}

async fn make(
    shared: &Shared,
    tenant: &TenantId,
    (namespace, life): (&str, RandomId),
    mark: Option<&[u8]>,
) -> ProviderResult<()> {
    let (http, timing) = (&shared.http, &shared.timing);
    let what = || format!("creating namespace {namespace}");
    let made = again!(timing, http.create_namespace(namespace));
    if made.map_err(|e| e.provider(what()))? == Made::Exists {
        // Made by a request of this very creation whose answer was lost, or not ours at all.
        let script = Script::query(sql::COUNT_OBJECTS, Vec::new());
        let found = again!(timing, http.rows(namespace, &script));
        let found = found.map_err(|e| e.provider(what()))?;
        let row = found.into_iter().flatten().next().unwrap_or_default();
        if Row::new(row).integer().map_err(|e| e.provider(what()))? > 0 {
            return Err(ProviderError::Unregistered {
                tenant: tenant.clone(),
                path: format!("namespace {namespace}"),
            });
        }
    }
    shared.reached("namespace").await;
    let (script, commit) = fill(tenant, life, mark);
    let filled = again!(timing, async {
        let done = match http.run(namespace, &script).await {
            Ok(outcomes) => committed(outcomes, commit).map(drop),
            Err(fault) => Err(fault),
        };
        let Err(fault) = done else { return Ok(()) };
        // The tables may be there by a request whose answer was lost.
        match primary::state(http, namespace).await {
            Ok(state) if state.life == life => Ok(()),
            Err(other) if other.may_pass() => Err(other),
            _ => Err(fault),
        }
    });
    filled.map_err(|e| e.provider(what()))
}

/// All of a new tenant in one transaction.
fn fill(tenant: &TenantId, life: RandomId, mark: Option<&[u8]>) -> (Script, usize) {
    let mut script = Script::default();
    let begun = script.begin();
    for table in sql::create_tables() {
        script.then(table, Vec::new());
    }
    let format = format_row(tenant, life);
    let head = Head::EMPTY.encode();
    let mut rows = vec![(FORMAT_KEY, format.as_bytes()), (HEAD_KEY, &head[..])];
    rows.extend(mark.map(|mark| (mark, &b"{}"[..])));
    let args = rows
        .iter()
        .flat_map(|(key, value)| [(*key).into(), (*value).into()]);
    script.then(sql::put(Keyspace::Meta, rows.len()), args.collect());
    let life = life.to_string();
    script.then(sql::create_feed(), vec![life.as_str().into()]);
    let commit = script.commit(begun);
    (script, commit)
}

/// Takes back a creation that failed. What fails here is left to a later start.
async fn undo(shared: &Shared, tenant: &TenantId, (namespace, life): (&str, RandomId)) {
    let entry = Entry {
        tenant: tenant.clone(),
        namespace: namespace.to_owned(),
        state: TenantState::Deleting,
        life,
        age_ms: 0,
    };
    if let Err(error) = finish(shared, &entry).await {
        tracing::warn!(%tenant, %error, "undoing a failed creation is left to a later start");
    }
}

/// Deletes a tenant and everything it owns.
pub(super) async fn delete(shared: &Shared, tenant: &TenantId) -> ProviderResult<()> {
    let turn = shared.one_at_a_time(tenant);
    let _turn = turn.lock().await;
    let entry = shared.registry.get(&shared.http, &shared.timing, tenant);
    let entry = entry.await?.ok_or_else(|| not_found(tenant))?;
    finish(shared, &entry).await
}

/// Deletes one life of a tenant, or what there is of it.
async fn finish(shared: &Shared, entry: &Entry) -> ProviderResult<()> {
    let (http, timing, registry) = (&shared.http, &shared.timing, &shared.registry);
    let (tenant, life) = (&entry.tenant, entry.life);
    registry
        .change(http, timing, sql::SET_DELETING, (tenant, life))
        .await?;
    shared.reached("marked").await;
    let dropped = again!(timing, http.delete_namespace(&entry.namespace));
    dropped.map_err(|e| e.provider(format!("deleting namespace {}", entry.namespace)))?;
    shared.reached("dropped").await;
    forget_cache(shared, tenant).await?;
    shared.reached("cache removed").await;
    registry
        .change(http, timing, sql::FORGET, (tenant, life))
        .await?;
    shared.reached("forgotten").await;
    Ok(())
}

/// Removes the replica of a tenant, unless it is open here.
async fn forget_cache(shared: &Shared, tenant: &TenantId) -> ProviderResult<()> {
    let (cache, tenant) = (shared.cache.clone(), tenant.clone());
    blocking(move || cache.remove(&tenant)).await
}

/// Finishes what a crash interrupted, and removes replicas of tenants that are not there any more. What fails is left to
/// a later start. The tenants that are ready, with their namespaces.
pub(super) async fn recover(shared: &Shared) -> ProviderResult<Vec<(TenantId, String)>> {
    let entries = shared
        .registry
        .entries(&shared.http, &shared.timing)
        .await?;
    let mut ready = Vec::new();
    for entry in &entries {
        match entry.state {
            TenantState::Ready => {
                ready.push((entry.tenant.clone(), entry.namespace.clone()));
                continue;
            }
            TenantState::Creating if !shared.is_stale(entry) => continue,
            _ => {}
        }
        let tenant = &entry.tenant;
        match finish(shared, entry).await {
            Ok(()) => tracing::info!(%tenant, "finished an interrupted creation or deletion"),
            Err(error) => {
                tracing::warn!(%tenant, %error, "finishing a deletion is left to a later start");
            }
        }
    }
    let cache = shared.cache.clone();
    let cached = blocking(move || cache.tenants()).await?;
    for tenant in cached {
        if !entries.iter().any(|entry| entry.tenant == tenant)
            && let Err(error) = forget_cache(shared, &tenant).await
        {
            tracing::warn!(%tenant, %error, "the replica of a deleted tenant is left to a later start");
        }
    }
    Ok(ready)
}

/// The entry and the state of a tenant that is to be opened.
pub(super) async fn open(shared: &Shared, tenant: &TenantId) -> ProviderResult<(Entry, State)> {
    let entry = ready(shared, tenant).await?;
    let namespace = &entry.namespace;
    let mut script = Script::query(sql::format_row(), Vec::new());
    script.then(sql::state(), Vec::new());
    let read = again!(shared.timing, shared.http.rows(namespace, &script));
    let mut answers = match read {
        Ok(answers) => answers.into_iter(),
        Err(Fault::Gone) => {
            // The registry is the truth, unless it changed a moment ago.
            ready(shared, tenant).await?;
            return Err(ProviderError::Corrupt {
                what: format!("namespace {namespace}"),
                reason: format!("it is missing, and tenant {tenant} is registered"),
            });
        }
        Err(e) => return Err(e.provider(format!("opening namespace {namespace}"))),
    };
    let corrupt = |e: Fault| ProviderError::Corrupt {
        what: format!("namespace {namespace}"),
        reason: e.to_string(),
    };
    let row = answers.next().unwrap_or_default().into_iter().next();
    let format = match row {
        Some(row) => Row::new(row).bytes().map_err(corrupt)?,
        None => None,
    };
    check_format(namespace, tenant, format.as_deref())?;
    let state =
        primary::state_in(namespace, answers.next().unwrap_or_default()).map_err(corrupt)?;
    if state.life != entry.life {
        return Err(ProviderError::Corrupt {
            what: format!("namespace {namespace}"),
            reason: "it is of another life of the tenant than the registry says".to_owned(),
        });
    }
    Ok((entry, state))
}

async fn ready(shared: &Shared, tenant: &TenantId) -> ProviderResult<Entry> {
    let entry = shared.registry.get(&shared.http, &shared.timing, tenant);
    match entry.await? {
        Some(entry) if entry.state == TenantState::Ready => Ok(entry),
        Some(_) => Err(not_found(tenant)),
        None => {
            // Deleted through another server.
            forget_cache(shared, tenant).await?;
            Err(not_found(tenant))
        }
    }
}

pub(super) fn not_found(tenant: &TenantId) -> ProviderError {
    ProviderError::NotFound {
        tenant: tenant.clone(),
    }
}

impl Shared {
    /// Whether whoever creates this tenant has to be taken for dead.
    fn is_stale(&self, entry: &Entry) -> bool {
        u128::try_from(entry.age_ms).is_ok_and(|age| age > self.timing.stale_creation.as_millis())
    }
}
