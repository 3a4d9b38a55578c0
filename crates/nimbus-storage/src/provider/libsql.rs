//! The libSQL provider `libsql-replica`: one namespace per tenant on a libSQL primary, which takes the writes, and a
//! replica of it in a local SQLite file, which reads go to. Several servers may share one primary.
//!
//! It knows Hrana over HTTP, libSQL's admin API and SQLite. It must not know documents: a commit appends what it wrote,
//! whole rows, to a table of changes, and replicas repeat that.
//!
//! # What it promises
//!
//! - **Writes are serializable and durable on the primary** when they are acknowledged. A commit is one request with one
//!   conditional batch; no lock is held while a server thinks. A commit whose answer was lost is looked up, never guessed.
//! - **A server reads what it committed, and what it has read before**, at once. What another server committed it reads at
//!   the latest [`LibsqlOptions::max_staleness`] (250 ms) later; a transaction that read something older and writes runs
//!   again. With a staleness of zero every read asks the primary, and reads are linearizable.
//! - **A read whose freshness cannot be confirmed within 5 s fails as busy**, rather than show what may be stale: so all
//!   reads do soon after the primary is gone.
//! - **A replica is made anew when in doubt**: if it is missing, damaged or of another life of the tenant, or the changes
//!   that it needs are pruned (they are kept for a day, and for 64 MiB), or the primary's history is not the one that it
//!   followed. Meanwhile reads fail as busy; opening a tenant waits for it.
//!
//! # What was not tried
//!
//! **Not yet run against sqld**, libSQL's own server, which is in no package registry: the tests have a small primary that
//! speaks what it speaks (`tests/libsql-primary`). Nothing of libSQL's own SQL is used.

/// Tries something that is no harm to do twice until it works, or fails for good, or the time is up. A macro, since a
/// closure that gives futures hides from the compiler that they can be sent.
macro_rules! again {
    ($timing:expr, $work:expr) => {{
        let until = std::time::Instant::now() + $timing.barrier;
        loop {
            match $work.await {
                Err(e) if e.may_pass() && std::time::Instant::now() < until => {
                    tokio::time::sleep($crate::provider::libsql::PAUSE).await;
                }
                done => break done,
            }
        }
    }};
}

mod cache;
mod commit;
mod feed;
mod hrana;
mod http;
mod lifecycle;
mod options;
mod primary;
mod record;
mod registry;
mod replica;
mod sql;
mod store;
mod turn;
mod wakes;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_core::TenantId;

pub use self::options::{LibsqlOptions, Secret};

use self::cache::Cache;
use self::commit::Space;
use self::http::Http;
use self::registry::Registry;
use self::replica::Replica;
use self::store::LibsqlStore;
use super::external::Names;
use super::local::blocking;
use super::sqlite::copy::Copies;
use super::{Provider, ProviderError, ProviderResult, TenantStore, WakeStore};
use crate::control::{RandomId, TenantState};

/// The provider's name, on the command line and in the registry.
const NAME: &str = "libsql-replica";
/// Between two tries of something.
const PAUSE: Duration = Duration::from_millis(20);

/// How long things may take, and how much is kept. Shorter and less in tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Making a connection.
    pub(crate) connect: Duration,
    /// An answer; longer counts as lost.
    pub(crate) request: Duration,
    /// Confirming that a replica is fresh, and trying again what may pass.
    pub(crate) barrier: Duration,
    /// Between two looks for commits of others while somebody waits for them.
    pub(crate) poll: Duration,
    /// Finding out what became of a commit.
    pub(crate) settle: Duration,
    /// Waiting for the turns of others.
    pub(crate) turn_wait: Duration,
    /// How long a turn is reserved.
    pub(crate) lease: Duration,
    /// After which a creation is taken for one that a crash interrupted.
    pub(crate) stale_creation: Duration,
    /// Commits between two prunings of the changes.
    pub(crate) prune_every: u64,
    /// Bytes of changes that are kept.
    pub(crate) keep_bytes: i64,
    /// Seconds for which they are kept.
    pub(crate) keep_seconds: i64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(20),
            barrier: Duration::from_secs(5),
            poll: Duration::from_millis(250),
            settle: Duration::from_secs(15),
            turn_wait: Duration::from_secs(10),
            lease: Duration::from_secs(2),
            stale_creation: Duration::from_secs(30),
            prune_every: 64,
            keep_bytes: 64 << 20,
            keep_seconds: 24 * 3600,
        }
    }
}

impl Timing {
    /// For a look that is not repeated.
    fn probe() -> Timing {
        Timing {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(2),
            barrier: Duration::ZERO,
            ..Timing::default()
        }
    }
}

/// What the provider and its stores share.
struct Shared {
    http: Http,
    names: Names,
    registry: Registry,
    cache: Arc<Cache>,
    copies: Copies,
    timing: Timing,
    max_staleness: Duration,
    /// Tenants that were ready when this server last looked, with their namespaces.
    known: Mutex<BTreeMap<TenantId, String>>,
    /// Tenants that are being created or deleted here.
    changing: Mutex<HashMap<TenantId, Weak<tokio::sync::Mutex<()>>>>,
    #[cfg(test)]
    stop_at: Mutex<Option<&'static str>>,
    #[cfg(test)]
    stopped: tokio::sync::Notify,
    #[cfg(test)]
    killed: tokio::sync::Notify,
}

impl Shared {
    /// A step at which tests stop as a crash would.
    #[cfg(test)]
    #[allow(clippy::unwrap_used, clippy::panic)]
    async fn reached(&self, step: &'static str) {
        let stop_at = *self.stop_at.lock().unwrap();
        if stop_at == Some(step) {
            self.stopped.notify_one();
            // A task of its own is not dropped with whoever waits for it.
            self.killed.notified().await;
            panic!("a crash at {step}, as a test asked for");
        }
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_async)]
    async fn reached(&self, _step: &'static str) {}

    /// The lock of whoever creates or deletes a tenant on this server.
    fn one_at_a_time(&self, tenant: &TenantId) -> Arc<tokio::sync::Mutex<()>> {
        let mut changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        changing.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = changing.get(tenant).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::<tokio::sync::Mutex<()>>::default();
        changing.insert(tenant.clone(), Arc::downgrade(&lock));
        lock
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<TenantId, String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tenants in namespaces of a libSQL primary. See the module.
///
/// Two calls for the same tenant that change it (create, delete, adopt, open) must not run at once on one server;
/// the engine runs them in turn. Servers need not know of each other.
pub struct LibsqlProvider {
    shared: Arc<Shared>,
}

impl LibsqlProvider {
    /// Locks the cache directory, makes the metadata on the primary if it is missing, and finishes what a crash
    /// interrupted. `installation` is this server's ([`crate::control::ControlDb::installation`]).
    ///
    /// # Errors
    /// `Settings` for settings that cannot work, a token or header that is refused, and a primary that does not speak
    /// Hrana over HTTP; `OtherInstallation`; `Busy` if the primary cannot be reached or another process has the
    /// directory; `Corrupt`, `Full`, `Io`.
    pub async fn connect(
        options: LibsqlOptions,
        installation: RandomId,
    ) -> ProviderResult<LibsqlProvider> {
        LibsqlProvider::connect_with(options, installation, Timing::default()).await
    }

    /// Asks the primary and its admin API without changing anything, each once and within seconds; which version of
    /// Hrana it speaks, and whether Nimbus has been there. For checks before a start.
    ///
    /// # Errors
    /// As [`LibsqlProvider::connect`], but for `OtherInstallation` and the cache directory, which is not looked at.
    pub async fn probe(options: &LibsqlOptions) -> ProviderResult<String> {
        let (names, targets) = options.check()?;
        let timing = Timing::probe();
        let http = Http::new(targets, (timing.connect, timing.request))?;
        let registry = Registry::new(&options.metadata_namespace, names.prefix());
        registry.probe(&http, &timing).await
    }

    pub(crate) async fn connect_with(
        options: LibsqlOptions,
        installation: RandomId,
        timing: Timing,
    ) -> ProviderResult<LibsqlProvider> {
        let (names, targets) = options.check()?;
        let (dir, keyring) = (options.cache_dir.clone(), options.keyring.clone());
        let (readers, limit) = (options.readers, options.heap_limit);
        let heap_limit = keyring.is_some().then_some(limit);
        let local = blocking(move || {
            let cache = Cache::open(&dir, keyring)?;
            Ok((cache, Copies::start(readers, heap_limit)?))
        });
        let (cache, copies) = local.await?;
        let registry = Registry::new(&options.metadata_namespace, names.prefix());
        let shared = Shared {
            http: Http::new(targets, (timing.connect, timing.request))?,
            names,
            registry,
            cache: Arc::new(cache),
            copies,
            timing,
            max_staleness: options.max_staleness,
            known: Mutex::default(),
            changing: Mutex::default(),
            #[cfg(test)]
            stop_at: Mutex::default(),
            #[cfg(test)]
            stopped: tokio::sync::Notify::new(),
            #[cfg(test)]
            killed: tokio::sync::Notify::new(),
        };
        let ids = (installation, options.join_installation);
        shared.registry.enter(&shared.http, &timing, ids).await?;
        let ready = lifecycle::recover(&shared).await?;
        *shared.known() = ready.into_iter().collect();
        Ok(LibsqlProvider {
            shared: Arc::new(shared),
        })
    }

    async fn create_with(&self, tenant: &TenantId, mark: Option<&[u8]>) -> ProviderResult<()> {
        let namespace = lifecycle::create(&self.shared, tenant, mark).await?;
        self.shared.known().insert(tenant.clone(), namespace);
        Ok(())
    }

    async fn open_store(&self, tenant: &TenantId) -> ProviderResult<Arc<dyn TenantStore>> {
        let shared = &self.shared;
        let (entry, state) = lifecycle::open(shared, tenant).await?;
        shared
            .known()
            .insert(tenant.clone(), entry.namespace.clone());
        let space = Arc::new(Space {
            tenant: tenant.clone(),
            name: entry.namespace,
            life: entry.life,
            fence: AtomicI64::new(state.fence),
            pruning: commit::Pruning::default(),
        });
        let replica = Replica::open(shared, &space).await?;
        Ok(Arc::new(LibsqlStore::new(shared.clone(), space, replica)))
    }

    async fn ready(&self) -> ProviderResult<Vec<TenantId>> {
        let shared = &self.shared;
        let entries = shared
            .registry
            .entries(&shared.http, &shared.timing)
            .await?;
        let ready = entries
            .into_iter()
            .filter(|e| e.state == TenantState::Ready);
        let ready: BTreeMap<_, _> = ready.map(|e| (e.tenant, e.namespace)).collect();
        let tenants = ready.keys().cloned().collect();
        *shared.known() = ready;
        Ok(tenants)
    }

    async fn is_ready(&self, tenant: &TenantId) -> ProviderResult<bool> {
        let shared = &self.shared;
        let entry = shared
            .registry
            .get(&shared.http, &shared.timing, tenant)
            .await?;
        let ready = entry.filter(|e| e.state == TenantState::Ready);
        let is_ready = ready.is_some();
        match ready {
            Some(entry) => shared.known().insert(tenant.clone(), entry.namespace),
            None => shared.known().remove(tenant),
        };
        Ok(is_ready)
    }
}

impl Provider for LibsqlProvider {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.create_with(tenant, None).boxed()
    }

    fn create_marked<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        self.create_with(tenant, Some(mark)).boxed()
    }

    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>> {
        self.open_store(tenant).boxed()
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        async move {
            lifecycle::delete(&self.shared, tenant).await?;
            self.shared.known().remove(tenant);
            Ok(())
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        self.ready().boxed()
    }

    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>> {
        self.is_ready(tenant).boxed()
    }

    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        let namespace = self.shared.known().get(tenant).cloned();
        let Some(namespace) = namespace else {
            return Vec::new();
        };
        let replica = self.shared.cache.path(tenant);
        vec![
            format!("namespace {namespace}"),
            replica.display().to_string(),
        ]
    }

    fn wakes(&self) -> Option<Arc<dyn WakeStore>> {
        Some(Arc::new(wakes::Wakes(self.shared.clone())))
    }

    /// None: the admin API lists no namespaces.
    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    /// Refuses: a namespace that the registry does not name cannot be found.
    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        async move {
            let shared = &self.shared;
            match shared
                .registry
                .get(&shared.http, &shared.timing, tenant)
                .await?
            {
                Some(_) => Err(ProviderError::AlreadyExists {
                    tenant: tenant.clone(),
                }),
                None => Err(lifecycle::not_found(tenant)),
            }
        }
        .boxed()
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        async move {
            let shared = &self.shared;
            shared.registry.look(&shared.http).await
        }
        .boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
