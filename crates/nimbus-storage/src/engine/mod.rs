//! Tables, indexes, transactions, the commit log and live queries: everything that is
//! written once above the provider traits.
//!
//! [`Engine`] keeps tenants open within a budget; [`Tenant`] is where work happens. Nothing
//! here knows which provider is underneath, who the caller is, or what HTTP is.

mod app;
mod archive;
mod asof;
mod bulk;
mod catalog;
mod check;
mod commit;
mod cursor;
mod exec;
mod export;
mod follow;
mod function;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod interval;
mod live;
mod log;
mod metrics;
mod moving;
mod overlay;
mod query;
mod quota;
mod readset;
mod rebase;
mod record;
mod replay;
mod restore;
mod rowcheck;
mod schema_change;
mod schema_turn;
mod state;
mod tally;
mod tenant;
#[cfg(test)]
mod test_world;
mod txn;
mod upkeep;
mod view;
mod wake;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use nimbus_core::{DocumentId, TenantId};
use tokio::task::JoinHandle;

pub use crate::provider::{Wake, WakeStore};
pub use app::{
    DeployError, DeployPlan, DeployReport, Deployment, DeploymentId, IndexChange, KEPT_DEPLOYMENTS,
    KEPT_POLICIES, MAX_DEPLOY_BYTES, MAX_KEYS, MAX_MODULE_BYTES, MAX_MODULES, MAX_POLICY_BYTES,
    ModuleRef, ModuleSource, NewModule, PolicyVersion, StoredKey, StoredPolicy, TransactionTables,
};
pub use bulk::{ImportRow, MAX_IMPORT_CHUNK, MAX_IMPORT_NAME};
pub use catalog::{
    FieldSchema, FieldType, IndexSchema, IndexState, MAX_INDEX_FIELDS, MAX_INDEXES,
    MAX_SCHEMA_FIELDS, TableSchema,
};
pub use check::{Bootstrap, BootstrapCut, BootstrapSnapshot, ConsistencyReport, Mismatch, Scope};
pub use export::Export;
pub use function::{
    CommitStamp, FunctionError, FunctionPage, FunctionQuery, FunctionResult,
    MAX_FUNCTION_BYTES_READ, MAX_FUNCTION_BYTES_WRITTEN, MAX_FUNCTION_DOCUMENTS_READ,
    MAX_FUNCTION_DOCUMENTS_WRITTEN, MAX_FUNCTION_QUERIES, PageRequest, PageStatus, QueryStream,
    Ran, ReadWatch, ReadsAt, TransactionUsage,
};
pub use live::{LiveResult, Subscription};
pub use log::{JournalPage, JournalRecord, JournalWrite, LogPin, MAX_JOURNAL_LIMIT};
pub use metrics::{
    AdmissionMetrics, EngineMetrics, JournalMetrics, PlanningMetrics, ReadMetrics, SnapshotMetrics,
    SubscriptionMetrics, TenantMetrics,
};
pub use moving::{MovePhase, MoveStatus};
pub use query::{
    Filter, FilterOp, MAX_FILTERS, MAX_PAGE_SIZE, MAX_RESULT_BYTES, MAX_RESULT_DOCUMENTS, Order,
    Query,
};
pub use quota::{Quota, Usage};
pub use tenant::Tenant;
pub use txn::{Transaction, TransactionSavepoint};
pub use wake::DueTenant;

pub(crate) use archive::Archive;
pub(crate) use log::Floor;
pub(crate) use restore::Restore;
pub(crate) use rowcheck::RowCheck;

use app::POLICY_KEY;
use catalog::{COUNTERS_KEY, Catalog, TABLE_PREFIX};
use cursor::CursorKey;
use log::FLOOR_KEY;
use record::Record;
use state::State;
use tenant::TenantInner;

use crate::error::{StoreError, StoreResult};
use crate::provider::combined::{ARRIVING_KEY, MOVED_KEY};
use crate::provider::{
    Batch, CommitError, Direction, Head, KeyRange, Keyspace, Provider, ProviderError, Snapshot,
    TenantStore,
};

/// Meta row with the tenant's secret for cursors: 32 random bytes.
const CURSOR_KEY: &[u8] = b"cursor_key";

/// Meta row of a tenant that a restore has not finished: it refuses to open.
pub(crate) const RESTORING_KEY: &[u8] = b"restoring";

/// A document as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// Its id.
    pub id: DocumentId,
    /// The whole document as canonical JSON text, `_id` and `_creationTime` included.
    pub json: Bytes,
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Document({}, {} bytes)", self.id, self.json.len())
    }
}

impl Document {
    /// The document as values.
    ///
    /// # Errors
    /// `Corrupt` if the stored text does not parse.
    pub fn fields(&self) -> StoreResult<nimbus_core::Object> {
        exec::parse(&self.json)
    }
}

impl From<exec::Hit> for Document {
    fn from(hit: exec::Hit) -> Document {
        Document {
            id: hit.id,
            json: hit.body,
        }
    }
}

/// One page of a query's result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The documents, in the query's order.
    pub documents: Vec<Document>,
    /// Where the next page starts; `None` on the last.
    pub next_cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// How an [`Engine`] behaves.
#[derive(Clone)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Tenants kept open; the least recently used idle one is closed beyond that.
    pub max_open_tenants: usize,
    /// Log records older than this are dropped: 10 minutes (design section 2).
    pub log_retention: Duration,
    /// Log bytes kept per tenant at most, whichever is less: 256 MiB.
    pub log_retention_bytes: u64,
    /// Where wake times are kept of tenants whose provider keeps none, if anywhere.
    pub wakes: Option<Arc<dyn WakeStore>>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            max_open_tenants: 1_024,
            log_retention: Duration::from_secs(600),
            log_retention_bytes: 256 * 1024 * 1024,
            wakes: None,
        }
    }
}

/// What every tenant of an engine shares.
pub(crate) struct EngineShared {
    pub(crate) options: EngineOptions,
    pub(crate) wakes: wake::Wakes,
    /// Counts uses, to order tenants by the last one.
    pub(crate) clock: AtomicU64,
    /// Tells this engine from others that share its tenants. Random, so it dies with the process.
    pub(crate) server: Arc<str>,
}

struct OpenTenant {
    inner: Arc<TenantInner>,
    tasks: Vec<JoinHandle<()>>,
}

struct EngineInner {
    provider: Arc<dyn Provider>,
    shared: Arc<EngineShared>,
    open: Mutex<HashMap<TenantId, OpenTenant>>,
    /// Serialises opening, closing, creating and deleting of one tenant.
    gates: Mutex<HashMap<TenantId, Weak<tokio::sync::Mutex<()>>>>,
    closing: AtomicBool,
    opened: AtomicU64,
    closed: AtomicU64,
    /// What closed tenants counted.
    past: Mutex<EngineMetrics>,
    moves: moving::Moves,
    /// Of tenants that are limited. Locked after `open`.
    quotas: Mutex<HashMap<TenantId, Quota>>,
}

/// Many tenants over one provider. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<EngineInner>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fills a buffer with random bytes of the operating system.
pub(crate) fn fill_random(buffer: &mut [u8]) -> StoreResult<()> {
    getrandom::fill(buffer).map_err(|e| {
        StoreError::Storage(crate::provider::ProviderError::io(
            "reading random bytes",
            e.to_string(),
        ))
    })
}

impl Engine {
    /// An engine over `provider`. Call within a tokio runtime: open tenants run tasks on it.
    pub fn new(provider: Arc<dyn Provider>, options: EngineOptions) -> Engine {
        let wakes = wake::Wakes::new(&provider, options.wakes.clone());
        Engine {
            inner: Arc::new(EngineInner {
                provider,
                shared: Arc::new(EngineShared {
                    options,
                    wakes,
                    clock: AtomicU64::new(0),
                    server: server_name(),
                }),
                open: Mutex::new(HashMap::new()),
                gates: Mutex::new(HashMap::new()),
                closing: AtomicBool::new(false),
                opened: AtomicU64::new(0),
                closed: AtomicU64::new(0),
                past: Mutex::new(EngineMetrics::default()),
                moves: moving::Moves::default(),
                quotas: Mutex::default(),
            }),
        }
    }

    /// The provider.
    pub fn provider(&self) -> &Arc<dyn Provider> {
        &self.inner.provider
    }

    /// Creates a tenant, durably.
    ///
    /// # Errors
    /// `TenantExists`, `TenantUnregistered`, `TenantNameClash`, `StorageFull`.
    pub async fn create_tenant(&self, tenant: &TenantId) -> StoreResult<()> {
        self.refuse_when_closing()?;
        let gate = self.gate(tenant);
        let _held = gate.lock().await;
        Ok(self.inner.provider.create(tenant).await?)
    }

    /// Deletes a tenant and everything it owns: first refuses new work and ends what runs,
    /// then drops the storage. Irreversible.
    ///
    /// # Errors
    /// `TenantNotFound`.
    pub async fn delete_tenant(&self, tenant: &TenantId) -> StoreResult<()> {
        self.refuse_when_closing()?;
        let (engine, tenant) = (self.clone(), tenant.clone());
        to_its_end(async move { engine.delete_in_turn(&tenant).await }).await
    }

    async fn delete_in_turn(&self, tenant: &TenantId) -> StoreResult<()> {
        // Not within the gate, which the end of a move passes too. One that begins after this finds the tenant gone.
        self.end_move(tenant, "the tenant is being deleted").await;
        let gate = self.gate(tenant);
        let _held = gate.lock().await;
        if !self.inner.provider.contains(tenant).await? {
            return Err(StoreError::TenantNotFound {
                tenant: tenant.clone(),
            });
        }
        let open = lock(&self.inner.open).remove(tenant);
        if let Some(open) = open {
            self.shut(open).await;
        }
        let wakes = &self.inner.shared.wakes;
        // As they are now: whoever makes the tenant again may schedule work at once.
        let left = wakes.of(tenant).await;
        self.inner.provider.delete(tenant).await?;
        lock(&self.inner.quotas).remove(tenant);
        wakes.clear(&left).await;
        Ok(())
    }

    /// Every tenant, sorted.
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn list_tenants(&self) -> StoreResult<Vec<TenantId>> {
        Ok(self.inner.provider.list().await?)
    }

    /// Takes in tenant data that lies in storage without being registered.
    ///
    /// # Errors
    /// `TenantExists`, `TenantNotFound` if there is none.
    pub async fn adopt_tenant(&self, tenant: &TenantId) -> StoreResult<()> {
        self.refuse_when_closing()?;
        let gate = self.gate(tenant);
        let _held = gate.lock().await;
        Ok(self.inner.provider.adopt(tenant).await?)
    }

    /// Tenant data that lies in storage without being registered.
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn unregistered(&self) -> StoreResult<Vec<TenantId>> {
        Ok(self.inner.provider.unregistered().await?)
    }

    /// Whether storage can serve.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn health(&self) -> StoreResult<()> {
        Ok(self.inner.provider.health().await?)
    }

    /// A tenant, opened if need be.
    ///
    /// # Errors
    /// `TenantNotFound`, `Closed` during shutdown, the provider's failure.
    pub async fn tenant(&self, tenant: &TenantId) -> StoreResult<Tenant> {
        self.refuse_when_closing()?;
        if let Some(open) = self.open_now(tenant) {
            return Ok(open);
        }
        let (engine, tenant) = (self.clone(), tenant.clone());
        to_its_end(async move { engine.open_in_turn(&tenant).await }).await
    }

    async fn open_in_turn(&self, tenant: &TenantId) -> StoreResult<Tenant> {
        if !self.inner.provider.contains(tenant).await? {
            // Another server may have deleted it while it was open here.
            self.retire_failed(tenant).await;
            return Err(StoreError::TenantNotFound {
                tenant: tenant.clone(),
            });
        }
        let gate = self.gate(tenant);
        let held = gate.lock().await;
        if let Some(open) = self.open_now(tenant) {
            return Ok(open);
        }
        self.retire_failed(tenant).await;
        self.refuse_when_closing()?;
        let handle = self.open(tenant).await?;
        drop(held);
        self.evict().await;
        Ok(handle)
    }

    fn open_now(&self, tenant: &TenantId) -> Option<Tenant> {
        let open = lock(&self.inner.open);
        let found = open.get(tenant)?;
        let usable = !found.inner.failed.load(Ordering::Acquire);
        usable.then(|| Tenant::lease(found.inner.clone()))
    }

    /// Closes a tenant whose last commit failed, so that it can be opened again.
    async fn retire_failed(&self, tenant: &TenantId) {
        let failed = {
            let mut open = lock(&self.inner.open);
            let failed = open
                .get(tenant)
                .is_some_and(|t| t.inner.failed.load(Ordering::Acquire));
            if failed { open.remove(tenant) } else { None }
        };
        if let Some(failed) = failed {
            let lost = failed.inner.state().durable;
            tracing::warn!(%tenant, head = ?lost, "opening the tenant again after a failed commit");
            self.shut(failed).await;
        }
    }

    async fn open(&self, tenant: &TenantId) -> StoreResult<Tenant> {
        let store = self.inner.provider.open(tenant).await?;
        let shared = self.inner.shared.clone();
        let loaded = load(tenant, store.clone(), shared, Unfinished::Refused).await;
        let handle = loaded.and_then(|inner| self.admit(tenant, Arc::new(inner)));
        if handle.is_err()
            && let Err(error) = store.close().await
        {
            tracing::warn!(%tenant, %error, "closing a tenant store that was not to be used");
        }
        handle
    }

    /// Sets a loaded tenant to work, unless the engine began to close meanwhile.
    fn admit(&self, tenant: &TenantId, inner: Arc<TenantInner>) -> StoreResult<Tenant> {
        let mut open = lock(&self.inner.open);
        // `close` says so before it takes the tenants out, under this lock.
        self.refuse_when_closing()?;
        let quota = lock(&self.inner.quotas).get(tenant).copied();
        inner.state().tally.set_quota(quota.unwrap_or_default());
        let tasks = vec![
            tokio::spawn(commit::run(inner.clone())),
            tokio::spawn(schema_change::run(inner.clone())),
        ];
        let handle = Tenant::lease(inner.clone());
        open.insert(tenant.clone(), OpenTenant { inner, tasks });
        self.inner.opened.fetch_add(1, Ordering::Relaxed);
        Ok(handle)
    }

    /// Closes idle tenants, least recently used first, until the budget holds.
    async fn evict(&self) {
        loop {
            let victim = {
                let mut open = lock(&self.inner.open);
                if open.len() <= self.inner.shared.options.max_open_tenants {
                    return;
                }
                let idle = open
                    .iter()
                    .filter(|(_, t)| t.inner.leases.load(Ordering::Acquire) == 0)
                    .min_by_key(|(_, t)| t.inner.last_used.load(Ordering::Relaxed))
                    .map(|(id, _)| id.clone());
                // Everything is in use: over budget for now.
                let Some(id) = idle else { return };
                let gate = self.gate(&id);
                let Ok(held) = gate.try_lock_owned() else {
                    return;
                };
                open.remove(&id).map(|tenant| (held, tenant))
            };
            if let Some((held, tenant)) = victim {
                self.shut(tenant).await;
                drop(held);
            }
        }
    }

    /// Refuses new work, ends subscriptions, waits for what was accepted, closes the store.
    async fn shut(&self, tenant: OpenTenant) {
        let inner = tenant.inner;
        inner.state().closed = true;
        inner.live.close();
        inner.room.notify_waiters();
        inner.work.notify_one();
        inner.background.notify_one();
        for task in tenant.tasks {
            if let Err(error) = task.await {
                tracing::error!(tenant = %inner.id, %error, "a tenant task ended badly");
            }
        }
        if let Err(error) = inner.store.close().await {
            tracing::warn!(tenant = %inner.id, %error, "closing the tenant store");
        }
        lock(&self.inner.past).add(&inner);
        self.inner.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// Refuses new work, finishes what was accepted and closes every tenant.
    ///
    /// # Errors
    /// None today; failures to close are logged.
    pub async fn close(&self) -> StoreResult<()> {
        self.inner.closing.store(true, Ordering::Release);
        let engine = self.clone();
        to_its_end(async move {
            engine.close_all().await;
            Ok(())
        })
        .await
    }

    async fn close_all(&self) {
        let all: Vec<OpenTenant> = lock(&self.inner.open).drain().map(|(_, t)| t).collect();
        for tenant in all {
            self.shut(tenant).await;
        }
        // Whatever is being opened, deleted or put out holds its gate until that is over.
        let gates: Vec<_> = lock(&self.inner.gates)
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        for gate in gates {
            drop(gate.lock().await);
        }
    }

    /// Totals since the engine started.
    pub fn metrics(&self) -> EngineMetrics {
        let mut total = *lock(&self.inner.past);
        total.tenants_opened = self.inner.opened.load(Ordering::Relaxed);
        total.tenants_closed = self.inner.closed.load(Ordering::Relaxed);
        for tenant in lock(&self.inner.open).values() {
            total.add(&tenant.inner);
            total.add_open(&tenant.inner);
        }
        total
    }

    fn refuse_when_closing(&self) -> StoreResult<()> {
        if self.inner.closing.load(Ordering::Acquire) {
            Err(StoreError::Closed)
        } else {
            Ok(())
        }
    }

    fn gate(&self, tenant: &TenantId) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = lock(&self.inner.gates);
        if let Some(gate) = gates.get(tenant).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(tokio::sync::Mutex::new(()));
        gates.insert(tenant.clone(), Arc::downgrade(&gate));
        gate
    }
}

/// 16 hexadecimal digits; without random numbers, what tells processes of one machine apart.
fn server_name() -> Arc<str> {
    let mut random = [0; 8];
    match fill_random(&mut random) {
        Ok(()) => data_encoding::HEXLOWER.encode(&random).into(),
        Err(_) => format!("{}-{}", std::process::id(), tenant::now_ns()).into(),
    }
}

/// Runs work to its end even if the caller goes away, as clients that disconnect do: a tenant
/// that is closed half-way could be opened a second time beside what is left of the first.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = StoreResult<T>> + Send + 'static,
) -> StoreResult<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => Err(StoreError::Closed),
        },
    }
}

/// What to do with a tenant that a restore has not finished.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// It is not opened.
    Refused,
    /// It is opened by the restore itself, to be checked.
    Allowed,
}

/// What an open tenant keeps in memory, as storage has it.
pub(crate) struct Loaded {
    pub(crate) head: Head,
    pub(crate) catalog: Catalog,
    /// Log bytes written up to the head.
    pub(crate) log_offset: u64,
    pub(crate) floor: Floor,
    /// `None` for a tenant that was never opened.
    pub(crate) cursor_key: Option<CursorKey>,
    /// It is not, or not yet, to be used.
    unfinished: Option<Unready>,
}

/// Why a tenant is not to be used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unready {
    Restoring,
    Arriving,
}

impl Loaded {
    /// Reads it.
    ///
    /// # Errors
    /// `Corrupt`; the provider's failure.
    pub(crate) async fn read(snapshot: &mut dyn Snapshot) -> StoreResult<Loaded> {
        let head = snapshot.head().await?;
        let keys = [
            CURSOR_KEY,
            FLOOR_KEY,
            COUNTERS_KEY,
            RESTORING_KEY,
            ARRIVING_KEY,
            POLICY_KEY,
        ];
        let rows = snapshot.get_many(Keyspace::Meta, &keys).await?;
        let [cursor_key, floor, counters, restoring, arriving, policy] =
            <[Option<Bytes>; 6]>::try_from(rows).map_err(|_| StoreError::corrupt("meta rows"))?;
        let unfinished = match (restoring, arriving) {
            (Some(_), _) => Some(Unready::Restoring),
            (None, Some(_)) => Some(Unready::Arriving),
            (None, None) => None,
        };
        let mut catalog = Catalog::default();
        catalog.apply(COUNTERS_KEY, counters.as_deref())?;
        catalog.apply(POLICY_KEY, policy.as_deref())?;
        let mut range = KeyRange::prefix(TABLE_PREFIX);
        loop {
            let rows = snapshot
                .scan(Keyspace::Meta, &range, Direction::Forward, 1_000)
                .await?;
            let Some((last, _)) = rows.last() else { break };
            range.start = [last.as_slice(), &[0]].concat();
            for (key, value) in &rows {
                catalog.apply(key, Some(value))?;
            }
        }
        let floor = Floor::decode(floor.as_deref())?;
        let log_offset = match newest_record(snapshot, head).await? {
            Some(record) => record.offset + record.size,
            None if head.sequence == floor.sequence => floor.offset,
            None => {
                return Err(StoreError::corrupt(format!(
                    "the log ends before the head {head:?}"
                )));
            }
        };
        let cursor_key = cursor_key.map(|stored| CursorKey::decode(&stored));
        Ok(Loaded {
            head,
            catalog,
            log_offset,
            floor,
            cursor_key: cursor_key.transpose()?,
            unfinished,
        })
    }
}

/// Reads what an open tenant keeps in memory, and makes what a new one still lacks.
async fn load(
    tenant: &TenantId,
    store: Arc<dyn TenantStore>,
    shared: Arc<EngineShared>,
    unfinished: Unfinished,
) -> StoreResult<TenantInner> {
    let mut snapshot = store.snapshot().await?;
    // Before anything else is looked at: its head is none that a log leads to.
    let moved = snapshot.get_many(Keyspace::Meta, &[MOVED_KEY]).await?;
    if let Some(to) = moved.into_iter().next().flatten() {
        return Err(StoreError::TenantMoved {
            tenant: tenant.clone(),
            to: String::from_utf8_lossy(&to).into_owned(),
        });
    }
    let loaded = Loaded::read(&mut *snapshot).await?;
    drop(snapshot);
    if unfinished == Unfinished::Refused
        && let Some(unready) = loaded.unfinished
    {
        let tenant = tenant.clone();
        return Err(match unready {
            Unready::Restoring => StoreError::RestoreUnfinished { tenant },
            Unready::Arriving => StoreError::TenantArriving { tenant },
        });
    }
    let cursor_key = match loaded.cursor_key {
        Some(key) => key,
        None if store.is_shared() => shared_cursor_key(&*store).await?,
        None => new_cursor_key(&*store, loaded.head).await?,
    };
    let state = State::new(loaded.head, loaded.catalog, loaded.log_offset);
    Ok(TenantInner::new(
        tenant.clone(),
        store,
        shared,
        cursor_key,
        state,
        loaded.floor,
    ))
}

/// The record of the head, whose end is the end of the log.
async fn newest_record(snapshot: &mut dyn Snapshot, head: Head) -> StoreResult<Option<Record>> {
    let range = KeyRange {
        start: record::part_key(head.sequence, 0),
        end: Some(record::key_after(head.sequence)),
    };
    let mut text = Vec::new();
    let mut range = range;
    loop {
        let rows = snapshot
            .scan(Keyspace::Log, &range, Direction::Forward, 64)
            .await?;
        let Some((last, _)) = rows.last() else { break };
        range.start = [last.as_slice(), &[0]].concat();
        for (_, part) in &rows {
            text.extend_from_slice(part);
        }
    }
    if text.is_empty() {
        return Ok(None);
    }
    let record = Record::decode(&text)?;
    if record.hash != head.hash || record.sequence != head.sequence {
        return Err(StoreError::corrupt(
            "the newest commit record is not the head's",
        ));
    }
    Ok(Some(record))
}

/// As [`new_cursor_key`], once for all servers that share the tenant.
async fn shared_cursor_key(store: &dyn TenantStore) -> StoreResult<CursorKey> {
    let failed = |e: CommitError| {
        let what = format!("writing the cursor key: {e}");
        StoreError::Storage(ProviderError::Busy { what })
    };
    let mut turn = store.turn().await.map_err(failed)?;
    let head = turn.head().await?;
    let stored = turn.get_many(Keyspace::Meta, &[CURSOR_KEY]).await?;
    if let Some(stored) = stored.into_iter().next().flatten() {
        return CursorKey::decode(&stored);
    }
    let mut key = [0; 32];
    fill_random(&mut key)?;
    let value = Bytes::copy_from_slice(&key);
    let row = ((Keyspace::Meta, CURSOR_KEY.to_vec()), Some(value));
    let writes = std::collections::BTreeMap::from([row]);
    turn.commit(Batch { head, writes }).await.map_err(failed)?;
    Ok(CursorKey(key))
}

/// Gives a tenant its secret for cursors. It is no commit of the tenant's: the log, which
/// operators read, never holds it.
async fn new_cursor_key(store: &dyn TenantStore, head: Head) -> StoreResult<CursorKey> {
    let mut key = [0; 32];
    fill_random(&mut key)?;
    let mut writes = std::collections::BTreeMap::new();
    let value = Bytes::copy_from_slice(&key);
    writes.insert((Keyspace::Meta, CURSOR_KEY.to_vec()), Some(value));
    match store.commit(head, Batch { head, writes }).await {
        Ok(()) => Ok(CursorKey(key)),
        Err(crate::provider::CommitError::Full { what }) => {
            Err(StoreError::StorageFull { inside: what })
        }
        Err(other) => Err(StoreError::Storage(crate::provider::ProviderError::io(
            "writing the cursor key",
            other.to_string(),
        ))),
    }
}
