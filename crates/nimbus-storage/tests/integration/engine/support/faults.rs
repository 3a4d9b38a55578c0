//! Planted faults: a provider that hands everything on to another, unless a hook says
//! otherwise, and a gate that holds work until the test lets it through.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use nimbus_storage::core::TenantId;
use nimbus_storage::provider::{
    Batch, Direction, Head, KeyRange, Keyspace, ProviderResult, Row, Snapshot, StoreStats,
    TenantStore, Turn, WakeStore,
};
use nimbus_storage::{CommitError, Provider};
use tokio::sync::Semaphore;

use super::soon;

/// What the wrapper does with a commit.
pub enum Verdict {
    /// Hands it to the provider.
    Pass,
    /// Answers with the error without handing it on.
    Fail(CommitError),
    /// Hands it on and, once it is durable, answers with the error all the same.
    LandThen(CommitError),
}

impl Verdict {
    /// What comes of the commit that `work` makes.
    async fn over<F>(self, work: impl FnOnce() -> F) -> Result<(), CommitError>
    where
        F: Future<Output = Result<(), CommitError>>,
    {
        match self {
            Verdict::Pass => work().await,
            Verdict::Fail(error) => Err(error),
            Verdict::LandThen(error) => {
                work().await?;
                Err(error)
            }
        }
    }
}

/// Whether a batch writes a document that holds the text.
fn holds_text(batch: &Batch, needle: &str) -> bool {
    batch.writes.iter().any(|((space, _), value)| {
        let text = value.as_ref().map(|v| String::from_utf8_lossy(v));
        *space == Keyspace::Docs && text.is_some_and(|t| t.contains(needle))
    })
}

pub fn refuse_marked(batch: &Batch) -> Verdict {
    if holds_text(batch, "poison") {
        let reason = "a marked document".into();
        return Verdict::Fail(CommitError::Refused { reason });
    }
    Verdict::Pass
}

pub fn disk_full() -> Verdict {
    let what = "the test's disk".into();
    Verdict::Fail(CommitError::Full { what })
}

pub fn transient() -> Verdict {
    let reason = "the test's lock".into();
    Verdict::Fail(CommitError::Transient { reason })
}

pub fn unknown() -> CommitError {
    let reason = "the test's sync".into();
    CommitError::OutcomeUnknown { reason }
}

type Hook<I, O> = Arc<dyn Fn(I) -> BoxFuture<'static, O> + Send + Sync>;

/// Faults that a test plants; all absent at first.
#[derive(Default)]
pub struct Hooks {
    commit: Mutex<Option<Hook<Batch, Verdict>>>,
    snapshot: Mutex<Option<Hook<(), ProviderResult<()>>>>,
    open: Mutex<Option<Hook<TenantId, ()>>>,
}

fn get<T: Clone>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn set<T>(slot: &Mutex<Option<T>>, hook: T) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
}

impl Hooks {
    async fn verdict(&self, batch: &Batch) -> Verdict {
        match get(&self.commit) {
            Some(hook) => hook(batch.clone()).await,
            None => Verdict::Pass,
        }
    }

    /// Asks `hook` before every commit.
    pub fn on_commit<F>(&self, hook: impl Fn(Batch) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Verdict> + Send + 'static,
    {
        set(&self.commit, Arc::new(move |batch| hook(batch).boxed()));
    }

    /// Runs `hook` before every snapshot.
    pub fn on_snapshot<F>(&self, hook: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = ProviderResult<()>> + Send + 'static,
    {
        set(&self.snapshot, Arc::new(move |()| hook().boxed()));
    }

    /// Runs `hook` after the provider opened a tenant and before the engine is told.
    #[allow(
        dead_code,
        reason = "for tests of the open-tenant cache, which are being written"
    )]
    pub fn on_open<F>(&self, hook: impl Fn(TenantId) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        set(&self.open, Arc::new(move |tenant| hook(tenant).boxed()));
    }

    pub fn clear(&self) {
        *self.commit.lock().unwrap() = None;
        *self.snapshot.lock().unwrap() = None;
        *self.open.lock().unwrap() = None;
    }

    /// Every commit waits at the gate, which is returned.
    pub fn hold_commits(&self) -> Arc<Gate> {
        let gate = Gate::shut();
        let held = gate.clone();
        self.on_commit(move |_| {
            let gate = held.clone();
            async move {
                gate.pass().await;
                Verdict::Pass
            }
        });
        gate
    }
}

/// A gate at which work stops until the test lets it through.
pub struct Gate {
    arrived: Semaphore,
    through: Semaphore,
}

impl Gate {
    pub fn shut() -> Arc<Gate> {
        Arc::new(Gate {
            arrived: Semaphore::new(0),
            through: Semaphore::new(0),
        })
    }

    /// Called by what is held.
    pub async fn pass(&self) {
        self.arrived.add_permits(1);
        self.through.acquire().await.unwrap().forget();
    }

    /// Waits until one more has come to the gate.
    pub async fn arrival(&self) {
        soon("something to come to the gate", self.arrived.acquire())
            .await
            .unwrap()
            .forget();
    }

    /// Lets one through.
    pub fn let_one(&self) {
        self.through.add_permits(1);
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.through.add_permits(1 << 20);
    }
}

/// The provider that the engine gets.
pub struct Wrapper {
    pub inner: Arc<dyn Provider>,
    pub hooks: Arc<Hooks>,
}

impl Provider for Wrapper {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.inner.create(tenant)
    }

    fn create_marked<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        self.inner.create_marked(tenant, mark)
    }

    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>> {
        async move {
            let inner = self.inner.open(tenant).await?;
            if let Some(hook) = get(&self.hooks.open) {
                hook(tenant.clone()).await;
            }
            let hooks = self.hooks.clone();
            Ok(Arc::new(WrappedStore { inner, hooks }) as Arc<dyn TenantStore>)
        }
        .boxed()
    }

    fn wakes(&self) -> Option<Arc<dyn WakeStore>> {
        self.inner.wakes()
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.inner.delete(tenant)
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

struct WrappedStore {
    inner: Arc<dyn TenantStore>,
    hooks: Arc<Hooks>,
}

impl TenantStore for WrappedStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        async move {
            if let Some(hook) = get(&self.hooks.snapshot) {
                hook(()).await?;
            }
            self.inner.snapshot().await
        }
        .boxed()
    }

    fn look_again(&self) {
        self.inner.look_again();
    }

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        async move {
            let verdict = self.hooks.verdict(&batch).await;
            verdict.over(|| self.inner.commit(expected, batch)).await
        }
        .boxed()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.inner.changed()
    }

    fn turn(&self) -> BoxFuture<'_, Result<Box<dyn Turn>, CommitError>> {
        async move {
            let turn: Box<dyn Turn> = Box::new(WrappedTurn {
                inner: self.inner.turn().await?,
                hooks: self.hooks.clone(),
            });
            Ok(turn)
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        self.inner.close()
    }

    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }
}

/// A turn whose commit the hooks see as well.
struct WrappedTurn {
    inner: Box<dyn Turn>,
    hooks: Arc<Hooks>,
}

impl Snapshot for WrappedTurn {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        self.inner.head()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        self.inner.get_many(keyspace, keys)
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        self.inner.scan(keyspace, range, direction, limit)
    }
}

impl Turn for WrappedTurn {
    fn commit(self: Box<Self>, batch: Batch) -> BoxFuture<'static, Result<(), CommitError>> {
        async move {
            let verdict = self.hooks.verdict(&batch).await;
            let inner = self.inner;
            verdict.over(|| inner.commit(batch)).await
        }
        .boxed()
    }
}
