//! Tenants that are moved from one provider to another while they are used: nothing acknowledged is lost, nothing
//! appears twice, and whatever is cut off leaves the tenant in one place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use futures_util::future::BoxFuture;
use nimbus_storage::control::{ControlDb, LocalWakes};
use nimbus_storage::core::{DocumentId, TableName, TenantId, Value};
use nimbus_storage::provider::combined::CombinedProvider;
use nimbus_storage::provider::memory::MemoryProvider;
use nimbus_storage::provider::redb::{RedbOptions, RedbProvider};
use nimbus_storage::provider::sqlite::{SqliteOptions, SqliteProvider};
use nimbus_storage::provider::{
    Batch, CommitError, Head, Keyspace, Provider, ProviderError, ProviderResult, Snapshot,
    StoreStats, TenantStore, Turn, WakeStore,
};
use nimbus_storage::{
    Engine, EngineOptions, FilterOp, MovePhase, MoveStatus, Quota, StoreError, Tenant,
};

use crate::engine::support::{filter, int, name, object, query, schema, text};
use crate::local_fixture::keyring;

const TENANT: &str = "acme";

/// Where tenants can be; the same over several lives of an engine.
struct Yard {
    dir: tempfile::TempDir,
    memory: MemoryProvider,
    keyring: Option<Arc<nimbus_storage::encryption::Keyring>>,
}

impl Yard {
    fn new() -> Yard {
        Yard {
            dir: tempfile::tempdir().unwrap(),
            memory: MemoryProvider::new(),
            keyring: None,
        }
    }

    /// The task that tells how a move ended holds it a little longer than the move.
    fn control(&self) -> ControlDb {
        loop {
            match ControlDb::open_with(self.dir.path(), self.keyring.as_ref()) {
                Err(ProviderError::Busy { .. }) => std::thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }

    /// Providers of these names; all of a process at once, since they share the control database.
    fn open(&self, names: &[&str]) -> Vec<Arc<dyn Provider>> {
        self.open_with(names, &Arc::new(self.control()))
    }

    fn open_with(&self, names: &[&str], control: &Arc<ControlDb>) -> Vec<Arc<dyn Provider>> {
        let one = |name: &&str| -> Arc<dyn Provider> {
            match *name {
                "sqlite" => {
                    let mut options = SqliteOptions::new(self.dir.path());
                    options.keyring.clone_from(&self.keyring);
                    Arc::new(SqliteProvider::open(options, control.clone()).unwrap())
                }
                "redb" => {
                    let mut options = RedbOptions::new(self.dir.path());
                    options.keyring.clone_from(&self.keyring);
                    Arc::new(RedbProvider::open(options, control.clone()).unwrap())
                }
                _ => Arc::new(self.memory.clone()),
            }
        };
        names.iter().map(one).collect()
    }

    fn engine(&self, names: &[&str]) -> Engine {
        engine_over(self.open(names))
    }

    /// An engine that keeps wake times, over these providers as `wrap` makes them.
    fn waking(
        &self,
        names: &[&str],
        wrap: impl Fn(Arc<dyn Provider>) -> Arc<dyn Provider>,
    ) -> Engine {
        let control = Arc::new(self.control());
        let providers = self.open_with(names, &control);
        let providers = providers.into_iter().map(wrap).collect();
        Engine::new(combined(providers), waking(control))
    }

    /// Names of the files of tenants, but for those beside them.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|n| n.starts_with(TENANT)).collect();
        names.sort();
        names
    }
}

fn engine_over(providers: Vec<Arc<dyn Provider>>) -> Engine {
    Engine::new(combined(providers), EngineOptions::default())
}

fn waking(control: Arc<ControlDb>) -> EngineOptions {
    let mut options = EngineOptions::default();
    options.wakes = Some(Arc::new(LocalWakes::new(control)));
    options
}

/// Commits a note about work at a time.
async fn schedule(engine: &Engine, at_ms: u64) -> DocumentId {
    let tenant = engine.tenant(&tenant_id()).await.unwrap();
    let scheduled = tenant.transact(|tx| {
        Box::pin(async move {
            tx.wake_at(at_ms);
            tx.insert(&notes(), object([("n", int(-1))])).await
        })
    });
    scheduled.await.unwrap()
}

async fn is_due(engine: &Engine, at_ms: u64) -> bool {
    let due = engine.due_tenants(at_ms, 9).await.unwrap();
    due.iter()
        .any(|due| (due.at_ms(), due.tenant()) == (at_ms, &tenant_id()))
}

fn combined(mut providers: Vec<Arc<dyn Provider>>) -> Arc<dyn Provider> {
    let home = providers.remove(0);
    Arc::new(CombinedProvider::new(home, providers).unwrap())
}

fn tenant_id() -> TenantId {
    name(TENANT)
}

fn notes() -> TableName {
    name("notes")
}

/// A tenant with an indexed table, whose documents include some that are too large for the log.
async fn filled(engine: &Engine, documents: i64) -> BTreeMap<DocumentId, i64> {
    engine.create_tenant(&tenant_id()).await.unwrap();
    let tenant = engine.tenant(&tenant_id()).await.unwrap();
    let fields = schema(
        "notes",
        &["n", "by"],
        &[("by_n", &["n"]), ("by_by", &["by"])],
    );
    tenant.put_schema(fields).await.unwrap();
    let mut known = BTreeMap::new();
    for n in 0..documents {
        known.insert(insert(&tenant, -1, n).await.unwrap(), n);
    }
    known
}

async fn insert(tenant: &Tenant, by: i64, n: i64) -> Result<DocumentId, StoreError> {
    let size = if n % 40 == 7 { 70_000 } else { 20 };
    let fields = object([
        ("n", int(n)),
        ("by", int(by)),
        ("body", text(&"x".repeat(size))),
    ]);
    tenant.insert(&notes(), fields).await
}

/// Calls until they are answered: a tenant that was closed is opened again.
async fn answered<T, F>(engine: &Engine, call: impl Fn(Tenant) -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        let tenant = engine.tenant(&tenant_id()).await.unwrap();
        match call(tenant).await {
            Ok(value) => return value,
            // Nothing was written.
            Err(StoreError::Closed | StoreError::Conflict { .. }) => {}
            Err(other) => panic!("{other}: {:?}", other.inside()),
        }
    }
}

/// Inserts, changes and deletes documents of its own until it is told to stop; what is there at the end.
async fn write(engine: Engine, by: i64, stop: Arc<AtomicBool>) -> BTreeMap<DocumentId, i64> {
    let mut own: BTreeMap<DocumentId, i64> = BTreeMap::new();
    let mut n = 0;
    while !stop.load(Ordering::Acquire) {
        n += 1;
        let made = |tenant| async move { insert(&tenant, by, n).await };
        let id = answered(&engine, made).await;
        own.insert(id, n);
        if n % 50 == 0 {
            // A table that is made while the tenant is moved.
            let made = |tenant: Tenant| async move {
                let table = name(&format!("later_{by}_{n}"));
                tenant.insert(&table, object([("n", int(n))])).await
            };
            answered(&engine, made).await;
        }
        if n % 3 == 0 {
            let id = *own.first_key_value().unwrap().0;
            let changed = |tenant: Tenant| async move {
                let fields = object([("n", int(-n))]);
                tenant.patch(&notes(), &id.to_string(), fields).await
            };
            answered(&engine, changed).await;
            own.insert(id, -n);
        }
        if n % 5 == 0 {
            let id = *own.last_key_value().unwrap().0;
            let deleted =
                |tenant: Tenant| async move { tenant.delete(&notes(), &id.to_string()).await };
            answered(&engine, deleted).await;
            own.remove(&id);
        }
    }
    own
}

/// What the tenant has, by reading the table and by its index.
async fn stored(tenant: &Tenant) -> BTreeMap<DocumentId, i64> {
    let all = tenant.query(&query("notes", vec![], None)).await.unwrap();
    let mut found = BTreeMap::new();
    for document in &all {
        let Some(Value::Int64(n)) = document.fields().unwrap().get("n").cloned() else {
            panic!("no number in {document:?}");
        };
        found.insert(document.id, n);
    }
    let floor = filter("n", FilterOp::Gte, int(i64::MIN));
    let indexed = tenant.query(&query("notes", vec![floor], None)).await;
    assert_eq!(indexed.unwrap().len(), all.len(), "by the index");
    found
}

async fn moved(engine: &Engine, to: &str) -> MoveStatus {
    engine.begin_move(&tenant_id(), to).await.unwrap();
    engine.move_ended(&tenant_id()).await.unwrap()
}

async fn check(engine: &Engine, expected: &BTreeMap<DocumentId, i64>) {
    let tenant = engine.tenant(&tenant_id()).await.unwrap();
    assert_eq!(&stored(&tenant).await, expected);
    let report = tenant.consistency().await.unwrap();
    assert!(report.ok, "{report:?}");
}

/// Which of the providers have the tenant.
async fn holders(providers: &[Arc<dyn Provider>]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for provider in providers {
        if provider.contains(&tenant_id()).await.unwrap() {
            names.push(provider.name());
        }
    }
    names
}

async fn under_load(yard: &Yard, from: &str, to: &str) {
    let providers = yard.open(&[from, to]);
    let engine = engine_over(providers.clone());
    let mut expected = filled(&engine, 300).await;
    let first = engine.tenant(&tenant_id()).await.unwrap();
    let began = first.journal_start(1).await.unwrap().records[0]
        .integrity_sha256
        .clone();
    drop(first);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|by| tokio::spawn(write(engine.clone(), by, stop.clone())))
        .collect();
    let status = moved(&engine, to).await;
    assert_eq!(status.phase, MovePhase::Done, "{status:?}");
    assert!(status.rows > 300 && status.bytes > 70_000, "{status:?}");
    stop.store(true, Ordering::Release);
    for writer in writers {
        expected.extend(writer.await.unwrap());
    }
    check(&engine, &expected).await;
    assert_eq!(holders(&providers).await, [to]);
    // The history goes on where it was.
    let tenant = engine.tenant(&tenant_id()).await.unwrap();
    let journal = tenant.journal_start(1).await.unwrap();
    assert_eq!(journal.records[0].integrity_sha256, began);
    drop(tenant);
    engine.close().await.unwrap();
    drop((engine, providers));

    // Whoever serves the new provider alone has it.
    let engine = Engine::new(yard.open(&[to]).remove(0), EngineOptions::default());
    check(&engine, &expected).await;
    engine.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn from_sqlite_to_redb_and_back_under_load() {
    let yard = Yard::new();
    under_load(&yard, "sqlite", "redb").await;
    assert_eq!(yard.files(), ["acme.redb"]);
    let yard = Yard::new();
    under_load(&yard, "redb", "sqlite").await;
    assert_eq!(yard.files(), ["acme.sqlite3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_tenants_get_keys_of_their_own() {
    let yard = Yard {
        keyring: keyring(),
        ..Yard::new()
    };
    under_load(&yard, "sqlite", "redb").await;
    assert_eq!(
        yard.files().len(),
        2,
        "the file and its manifest: {:?}",
        yard.files()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn to_and_from_a_database_that_is_shared() {
    under_load(&Yard::new(), "sqlite", "memory").await;
    let yard = Yard::new();
    under_load(&yard, "memory", "sqlite").await;
}

/// Another server that shares the original writes all the time; it is told that the tenant is gone, and nothing that it
/// was told before is lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_acknowledged_moves_too() {
    let yard = Yard::new();
    let mover = yard.engine(&["memory", "redb"]);
    let other = Engine::new(Arc::new(yard.memory.clone()), EngineOptions::default());
    let mut expected = filled(&mover, 200).await;
    let writer = tokio::spawn(async move {
        let mut own = BTreeMap::new();
        for n in 1.. {
            let tenant = match other.tenant(&tenant_id()).await {
                Ok(tenant) => tenant,
                Err(error) => return (own, error),
            };
            match insert(&tenant, 9, n).await {
                Ok(id) => drop(own.insert(id, n)),
                Err(StoreError::Closed | StoreError::Conflict { .. }) => {}
                Err(error) => return (own, error),
            }
        }
        unreachable!()
    });
    let status = moved(&mover, "redb").await;
    assert_eq!(status.phase, MovePhase::Done, "{status:?}");
    let (own, told) = writer.await.unwrap();
    let gone = matches!(
        told,
        StoreError::TenantMoved { .. } | StoreError::TenantNotFound { .. }
    );
    assert!(gone, "{told}: {:?}", told.inside());
    assert!(!own.is_empty());
    expected.extend(own);
    check(&mover, &expected).await;
}

/// Work that is due goes with the tenant, to a database that is not registered here too, and ends with it.
#[tokio::test]
async fn wake_times_move() {
    let yard = Yard::new();
    let engine = yard.waking(&["sqlite", "redb", "memory"], |inner| inner);
    filled(&engine, 10).await;
    schedule(&engine, 1_000).await;
    for to in ["redb", "memory", "sqlite"] {
        let status = moved(&engine, to).await;
        assert_eq!(status.phase, MovePhase::Done, "{status:?}");
        assert!(is_due(&engine, 1_000).await, "{to}");
    }
    let due = engine.due_tenants(u64::MAX, 9).await.unwrap();
    assert_eq!(due.len(), 1, "nothing is left where it was");
    engine.delete_tenant(&tenant_id()).await.unwrap();
    assert_eq!(engine.due_tenants(u64::MAX, 9).await.unwrap(), []);
    engine.close().await.unwrap();
}

/// Puts the next version of the tenant's policy.
async fn put_policy(engine: &Engine, version: u64) {
    let put = |tenant: Tenant| async move {
        let text = format!("text {version}").into();
        tenant.put_policy(text, None, Some(version - 1)).await
    };
    assert_eq!(answered(engine, put).await.version, version);
}

/// Every version of the policy that is kept, those put meanwhile too; and the quota knows what the copy holds.
#[tokio::test(flavor = "multi_thread")]
async fn policies_move_and_quotas_hold_where_they_went() {
    for (from, to) in [("sqlite", "redb"), ("memory", "sqlite")] {
        let yard = Yard::new();
        let engine = yard.engine(&[from, to]);
        let known = filled(&engine, 100).await;
        for version in 1..=22 {
            put_policy(&engine, version).await;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn({
            let (engine, stop) = (engine.clone(), stop.clone());
            async move {
                let mut version = 22;
                while !stop.load(Ordering::Acquire) {
                    version += 1;
                    put_policy(&engine, version).await;
                }
                version
            }
        });
        let quota = Quota {
            documents: Some(102),
            bytes: None,
        };
        engine.set_quota(&tenant_id(), quota);
        let before = engine.tenant(&tenant_id()).await.unwrap();
        let usage = before.usage().await.unwrap();
        drop(before);
        let status = moved(&engine, to).await;
        assert_eq!(status.phase, MovePhase::Done, "{status:?}");
        stop.store(true, Ordering::Release);
        let last = writer.await.unwrap();
        assert!(last > 22);
        let tenant = engine.tenant(&tenant_id()).await.unwrap();
        let kept = tenant.policies().await.unwrap();
        assert_eq!((kept.len(), kept[0].version), (20, last));
        for listed in kept {
            let version = listed.version;
            let policy = tenant.policy_of(version).await.unwrap().unwrap();
            assert_eq!(policy.text.as_ref(), format!("text {version}"));
        }
        assert_eq!(tenant.policy().await.unwrap().unwrap().version, last);
        assert_eq!(tenant.usage().await.unwrap(), usage);
        insert(&tenant, 1, 1).await.unwrap();
        insert(&tenant, 1, 2).await.unwrap();
        let full = insert(&tenant, 1, 3).await.unwrap_err();
        assert!(
            matches!(full, StoreError::QuotaExceeded { observed: 103, .. }),
            "{full:?}"
        );
        assert_eq!(stored(&tenant).await.len(), known.len() + 2);
        assert!(tenant.consistency().await.unwrap().ok);
        drop(tenant);
        engine.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_moved_is_refused_and_stays() {
    let yard = Yard::new();
    let engine = yard.engine(&["sqlite", "redb"]);
    let expected = filled(&engine, 3).await;
    let refused = async |tenant: &str, to: &str| {
        let refused = engine.begin_move(&name(tenant), to).await;
        refused.unwrap_err().to_string()
    };
    let text = refused(TENANT, "postgres").await;
    assert!(text.contains("it serves sqlite, redb"), "{text}");
    let text = refused(TENANT, "sqlite").await;
    assert!(text.contains("is with sqlite already"), "{text}");
    let text = refused("nobody", "redb").await;
    assert!(text.contains("does not exist"), "{text}");
    check(&engine, &expected).await;
    assert!(engine.move_status(&tenant_id()).is_none());
    engine.close().await.unwrap();

    let alone = Engine::new(Arc::new(MemoryProvider::new()), EngineOptions::default());
    alone.create_tenant(&tenant_id()).await.unwrap();
    let text = alone.begin_move(&tenant_id(), "redb").await.unwrap_err();
    assert!(
        text.to_string().contains("--also-tenant-provider"),
        "{text}"
    );
}

/// A tenant of the same name that somebody made there is not taken for a copy.
#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_of_that_name_is_left_alone() {
    let yard = Yard::new();
    let other = Engine::new(Arc::new(yard.memory.clone()), EngineOptions::default());
    let theirs = filled(&other, 5).await;
    let alone = Engine::new(yard.open(&["sqlite"]).remove(0), EngineOptions::default());
    let ours = filled(&alone, 7).await;
    alone.close().await.unwrap();
    drop(alone);
    let both = yard.engine(&["sqlite", "memory"]);
    let refused = both.tenant(&tenant_id()).await.map(drop).unwrap_err();
    let inside = refused.inside().unwrap_or_default();
    assert!(inside.contains("each of sqlite and memory"), "{inside}");
    assert!(both.begin_move(&tenant_id(), "memory").await.is_err());
    assert!(both.delete_tenant(&tenant_id()).await.is_err());
    both.close().await.unwrap();
    drop(both);
    check(&other, &theirs).await;
    let alone = Engine::new(yard.open(&["sqlite"]).remove(0), EngineOptions::default());
    check(&alone, &ours).await;
}

/// Fails every change after so many, as if the process had died there; or writes other documents than it is told.
struct Brittle {
    inner: Arc<dyn Provider>,
    left: Arc<AtomicI64>,
    bends: bool,
}

struct BrittleStore {
    inner: Arc<dyn TenantStore>,
    left: Arc<AtomicI64>,
    bends: bool,
}

/// Changes a document where no index and no log tells.
fn bend(batch: &mut Batch) {
    for ((space, _), value) in &mut batch.writes {
        if *space == Keyspace::Docs
            && let Some(value) = value
        {
            let text = String::from_utf8(value.to_vec()).unwrap();
            *value = text.replacen("xxxx", "xxxy", 1).into_bytes().into();
        }
    }
}

fn spend(left: &AtomicI64) -> bool {
    left.fetch_sub(1, Ordering::SeqCst) > 0
}

fn died() -> ProviderError {
    ProviderError::io("a change", "the process died")
}

impl Provider for Brittle {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.inner.create(tenant)
    }

    fn create_arriving<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        match spend(&self.left) {
            true => self.inner.create_arriving(tenant, mark),
            false => Box::pin(async { Err(died()) }),
        }
    }

    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>> {
        Box::pin(async move {
            let store = BrittleStore {
                inner: self.inner.open(tenant).await?,
                left: self.left.clone(),
                bends: self.bends,
            };
            Ok(Arc::new(store) as Arc<dyn TenantStore>)
        })
    }

    fn wakes(&self) -> Option<Arc<dyn WakeStore>> {
        self.inner.wakes()
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        match spend(&self.left) {
            true => self.inner.delete(tenant),
            false => Box::pin(async { Err(died()) }),
        }
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        self.inner.list()
    }

    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>> {
        self.inner.contains(tenant)
    }

    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        self.inner.owned(tenant)
    }

    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        self.inner.unregistered()
    }

    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.inner.adopt(tenant)
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        self.inner.health()
    }
}

impl TenantStore for BrittleStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        self.inner.snapshot()
    }

    fn look_again(&self) {
        self.inner.look_again();
    }

    fn commit(&self, expected: Head, mut batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        if self.bends {
            bend(&mut batch);
        }
        match spend(&self.left) {
            true => self.inner.commit(expected, batch),
            false => Box::pin(async {
                let reason = "the process died".into();
                Err(CommitError::OutcomeUnknown { reason })
            }),
        }
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.inner.changed()
    }

    fn turn(&self) -> BoxFuture<'_, Result<Box<dyn Turn>, CommitError>> {
        match spend(&self.left) {
            true => self.inner.turn(),
            false => Box::pin(async {
                let reason = "the process died".into();
                Err(CommitError::Refused { reason })
            }),
        }
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        self.inner.close()
    }

    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }
}

/// After each change that a move makes, in turn, the process dies. The next one finds the whole tenant in one
/// place, and can move it.
async fn dies_at_each_step(from: &str, to: &str) {
    let mut seen = [false; 2];
    for changes in 0.. {
        let yard = Yard::new();
        let alone = yard.waking(&[from], |inner| inner);
        let mut expected = filled(&alone, 20).await;
        expected.insert(schedule(&alone, 1_000).await, -1);
        alone.close().await.unwrap();
        drop(alone);

        let left = Arc::new(AtomicI64::new(i64::MAX));
        let brittle = |inner| -> Arc<dyn Provider> {
            Arc::new(Brittle {
                inner,
                left: left.clone(),
                bends: false,
            })
        };
        let engine = yard.waking(&[from, to], brittle);
        drop(engine.tenant(&tenant_id()).await.unwrap());
        left.store(changes, Ordering::SeqCst);
        let status = moved(&engine, to).await;
        engine.close().await.unwrap();
        drop(engine);

        let control = Arc::new(yard.control());
        let providers = yard.open_with(&[from, to], &control);
        let mut both = providers.clone();
        let combined = CombinedProvider::new(both.remove(0), both).unwrap();
        combined.recover().await.unwrap();
        let engine = Engine::new(Arc::new(combined), waking(control));
        check(&engine, &expected).await;
        assert!(
            is_due(&engine, 1_000).await,
            "{changes}: the wake time is lost"
        );
        let found = holders(&providers).await;
        let shared = from == "memory";
        assert!(
            found.len() == 1 || shared && found.len() == 2,
            "{changes}: {found:?}"
        );
        let arrived = !found.contains(&from);
        seen[usize::from(arrived)] = true;
        assert_eq!(
            status.phase == MovePhase::Done,
            arrived && left.load(Ordering::SeqCst) >= 0
        );
        // The turn to change tables that a dead server had lasts ten seconds longer: once is enough.
        let again = !arrived && (!shared || changes == 2);
        if again {
            let status = moved(&engine, to).await;
            assert_eq!(status.phase, MovePhase::Done, "{changes}: {status:?}");
            check(&engine, &expected).await;
        }
        assert!(is_due(&engine, 1_000).await, "{changes}: it is lost then");
        if arrived || again {
            assert_eq!(holders(&providers).await, [to]);
        }
        engine.close().await.unwrap();
        if status.phase == MovePhase::Done {
            assert_eq!(seen, [true, true]);
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_between_files() {
    dies_at_each_step("sqlite", "redb").await;
    dies_at_each_step("redb", "sqlite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_between_a_file_and_a_database() {
    dies_at_each_step("sqlite", "memory").await;
    dies_at_each_step("memory", "redb").await;
}

/// The copy is well-formed, and wrong: only comparing it with what was written finds that.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_differs_is_not_taken() {
    let yard = Yard::new();
    let mut providers = yard.open(&["sqlite", "redb"]);
    providers[1] = Arc::new(Brittle {
        inner: providers[1].clone(),
        left: Arc::new(AtomicI64::new(i64::MAX)),
        bends: true,
    });
    let engine = engine_over(providers.clone());
    let expected = filled(&engine, 10).await;
    let tenant = engine.tenant(&tenant_id()).await.unwrap();
    tenant.prune_log().await.unwrap();
    drop(tenant);
    let status = moved(&engine, "redb").await;
    assert_eq!(status.phase, MovePhase::Failed);
    check(&engine, &expected).await;
    assert_eq!(holders(&providers).await, ["sqlite"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_deleted_while_it_is_moved_is_gone() {
    let yard = Yard::new();
    let providers = yard.open(&["sqlite", "redb"]);
    let engine = engine_over(providers.clone());
    filled(&engine, 500).await;
    engine.begin_move(&tenant_id(), "redb").await.unwrap();
    let again = engine.begin_move(&tenant_id(), "redb").await;
    assert!(
        again
            .unwrap_err()
            .to_string()
            .contains("is being moved already")
    );
    engine.delete_tenant(&tenant_id()).await.unwrap();
    let status = engine.move_ended(&tenant_id()).await.unwrap();
    if status.phase == MovePhase::Failed {
        assert_eq!(status.error.as_deref(), Some("the tenant is being deleted"));
    }
    let missing = engine.tenant(&tenant_id()).await.map(drop).unwrap_err();
    assert!(
        matches!(missing, StoreError::TenantNotFound { .. }),
        "{status:?}"
    );
    assert_eq!(holders(&providers).await, [""; 0]);
    assert_eq!(yard.files(), [""; 0]);
    // The name can be used again.
    filled(&engine, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_cancelled_leaves_the_tenant_where_it_was() {
    let yard = Yard::new();
    let providers = yard.open(&["sqlite", "redb"]);
    let engine = engine_over(providers.clone());
    let refused = engine.cancel_move(&tenant_id()).await.unwrap_err();
    assert!(refused.to_string().contains("is not being moved"));
    let expected = filled(&engine, 500).await;
    // A move may be decided before it can be cancelled; then it is tried the other way.
    let (mut from, mut to) = ("sqlite", "redb");
    let mut status;
    loop {
        engine.begin_move(&tenant_id(), to).await.unwrap();
        status = engine.cancel_move(&tenant_id()).await;
        match &status {
            Ok(status) if status.phase == MovePhase::Failed => break,
            // It was over before it was asked to end, or when it was.
            Ok(_) | Err(StoreError::InvalidInput { .. }) => std::mem::swap(&mut from, &mut to),
            Err(other) => panic!("{other}"),
        }
    }
    let error = status.unwrap().error;
    assert_eq!(error.as_deref(), Some("the move was cancelled"));
    assert_eq!(holders(&providers).await, [from]);
    check(&engine, &expected).await;
    let again = engine.cancel_move(&tenant_id()).await.unwrap_err();
    assert!(matches!(again, StoreError::InvalidInput { .. }), "{again}");
    // Nothing of it is in the way of the next.
    let status = moved(&engine, to).await;
    assert_eq!(status.phase, MovePhase::Done);
    check(&engine, &expected).await;
}
