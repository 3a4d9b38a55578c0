//! The Postgres provider: one schema per tenant, a registry in a metadata schema, several servers at once.
//!
//! It knows Postgres. It must not know documents. What it has in common with other shared databases is in
//! `external`.

mod backend;
mod connect;
mod error;
mod hints;
mod lifecycle;
mod options;
mod plan;
mod pooler;
mod registry;
mod space;
mod sql;
mod wakes;

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_core::TenantId;
use sqlx::Row as _;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use self::options::PostgresOptions;
pub use super::external::{DatabaseUrl, PoolSize};

use self::connect::{PgDial, Pool};
use self::hints::Outbox;
use self::registry::Registry;
use self::wakes::Wakes;
use super::external::backend::{Base, Tasks, Timing};
use super::external::hints::HintBus;
use super::external::pool::{self, Use};
use super::external::steps::Steps;
use super::external::store::Store;
use super::external::{Known, Names};
use super::{Provider, ProviderError, ProviderResult, TenantStore, WakeStore};
use crate::control::{RandomId, TenantState};

/// The provider's name, on the command line and in the registry.
const NAME: &str = "postgres";

/// What the provider and its stores share.
struct Shared {
    base: Base<PgDial>,
    names: Names,
    registry: Registry,
    known: Known,
    outbox: Arc<Outbox>,
    tasks: Tasks,
    steps: Steps,
}

/// Tenants in schemas of a Postgres database. See the module.
///
/// Two calls for the same tenant that change it (create, delete, adopt, open) must not run at once on one server;
/// the engine runs them in turn. Servers need not know of each other.
pub struct PostgresProvider {
    shared: Arc<Shared>,
}

impl PostgresProvider {
    /// Connects, makes the metadata if it is missing, and finishes deletions that a crash interrupted.
    /// `installation` is this server's ([`crate::control::ControlDb::installation`]).
    ///
    /// # Errors
    /// `Settings` for settings that cannot work and servers that are not fit, `OtherInstallation`, `Io` if the server
    /// cannot be reached or refuses the role, `Busy`, `Corrupt`.
    pub async fn connect(
        options: PostgresOptions,
        installation: RandomId,
    ) -> ProviderResult<PostgresProvider> {
        PostgresProvider::connect_with(options, installation, Timing::default()).await
    }

    pub(crate) async fn connect_with(
        options: PostgresOptions,
        installation: RandomId,
        timing: Timing,
    ) -> ProviderResult<PostgresProvider> {
        let (names, client) = options.check()?;
        let lock_ms = backend::millis(timing.lock);
        let dial = PgDial::new(client, options.url.clone(), options.durability, lock_ms);
        let pool = Pool::new(dial, options.pool, timing.wait);
        let registry = Registry::new(&options.metadata_schema);

        let mut lease = pool.get(Use::Commit).await?;
        let mut second = pool.get(Use::Commit).await?;
        pooler::check(&pool.dial().shown(), lease.conn()?, second.conn()?).await?;
        second.give_back();
        pool.dial().check_server(lease.conn()?).await?;
        let ids = (installation, options.join_installation);
        let installation = registry.enter(lease.conn()?, ids, names.prefix()).await?;
        lease.give_back();

        let (bus, outbox) = (Arc::<HintBus>::default(), Arc::<Outbox>::default());
        let (client, channel) = (pool.dial().options(), hints::channel(installation));
        let send = hints::send(client.clone(), channel.clone(), outbox.clone());
        let listen = hints::listen(client, channel, outbox.clone(), bus.clone());
        let tasks = [
            tokio::spawn(send).abort_handle(),
            tokio::spawn(listen).abort_handle(),
            tokio::spawn(hints::tend(pool.clone())).abort_handle(),
        ];
        let turns = (options.pool.pooled() / 2).max(1) as usize;
        let base = Base {
            pool,
            bus,
            turns: Arc::new(Semaphore::new(turns)),
            timing,
            runtime: Handle::current(),
        };
        let shared = Shared {
            base,
            names,
            registry,
            known: Known::default(),
            outbox,
            tasks: Tasks(tasks.into()),
            steps: Steps::default(),
        };
        lifecycle::recover(&shared).await?;
        Ok(PostgresProvider {
            shared: Arc::new(shared),
        })
    }

    /// Connects once and tells which version answers, changing nothing; for checks before a start.
    ///
    /// # Errors
    /// As [`PostgresProvider::connect`], but for `OtherInstallation`.
    pub async fn probe(options: &PostgresOptions) -> ProviderResult<String> {
        let (_, client) = options.check()?;
        let dial = PgDial::new(client, options.url.clone(), options.durability, 1_000);
        let mut conn = pool::Dial::dial(&dial).await?;
        let mut second = pool::Dial::dial(&dial).await?;
        let version = match pooler::check(&dial.shown(), &mut conn, &mut second).await {
            Ok(()) => dial.check_server(&mut conn).await,
            Err(refused) => Err(refused),
        };
        <PgDial as pool::Dial>::hang_up(conn).await;
        <PgDial as pool::Dial>::hang_up(second).await;
        version
    }

    /// Ends its tasks and connections. Stores that are open fail from then on.
    pub async fn close(&self) {
        self.shared.tasks.end();
        self.shared.base.pool.close().await;
    }

    async fn ready(&self) -> ProviderResult<Vec<TenantId>> {
        let shared = &self.shared;
        let entries = lifecycle::with_lease!(shared, |conn| shared.registry.entries(conn));
        let ready = entries?.into_iter();
        let ready = ready.filter(|(_, entry)| entry.state == TenantState::Ready);
        let ready: Vec<TenantId> = ready.map(|(tenant, _)| tenant).collect();
        shared.known.replace(&ready);
        Ok(ready)
    }

    async fn is_ready(&self, tenant: &TenantId) -> ProviderResult<bool> {
        let entry = lifecycle::entry(&self.shared, tenant).await?;
        let is_ready = entry.is_some_and(|e| e.state == TenantState::Ready);
        self.shared.known.note(tenant, is_ready);
        Ok(is_ready)
    }

    async fn look(&self) -> ProviderResult<()> {
        let shared = &self.shared;
        let what = || format!("looking at {}", shared.base.pool.dial().shown());
        let standby = lifecycle::with_lease!(shared, |conn| async {
            let row = sqlx::query("SELECT pg_is_in_recovery()").fetch_one(conn);
            let row = row.await.and_then(|row| row.try_get(0));
            row.map_err(|e| error::provider(what(), e))
        });
        match standby? {
            true => {
                let why = "it is a standby now, which takes no writes";
                Err(ProviderError::io(what(), why))
            }
            false => Ok(()),
        }
    }

    /// Remembers whether a tenant is there, after a change that succeeded.
    fn noted(&self, tenant: &TenantId, is_ready: bool) {
        self.shared.known.note(tenant, is_ready);
    }
}

impl Provider for PostgresProvider {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        let made = lifecycle::create(&self.shared, tenant, None);
        async move { made.await.map(|()| self.noted(tenant, true)) }.boxed()
    }

    fn create_marked<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        let made = lifecycle::create(&self.shared, tenant, Some(mark));
        async move { made.await.map(|()| self.noted(tenant, true)) }.boxed()
    }

    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>> {
        async move {
            let space = lifecycle::open(&self.shared, tenant).await?;
            self.noted(tenant, true);
            let store: Arc<dyn TenantStore> = Arc::new(Store::new(self.shared.clone(), space));
            Ok(store)
        }
        .boxed()
    }

    fn wakes(&self) -> Option<Arc<dyn WakeStore>> {
        Some(Arc::new(Wakes(self.shared.clone())))
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        let deleted = lifecycle::delete(&self.shared, tenant);
        async move { deleted.await.map(|()| self.noted(tenant, false)) }.boxed()
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        self.ready().boxed()
    }

    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>> {
        self.is_ready(tenant).boxed()
    }

    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        match self.shared.known.contains(tenant) {
            true => vec![format!("schema {}", self.shared.names.namespace(tenant))],
            false => Vec::new(),
        }
    }

    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        lifecycle::unregistered(&self.shared).boxed()
    }

    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        let adopted = lifecycle::adopt(&self.shared, tenant);
        async move { adopted.await.map(|()| self.noted(tenant, true)) }.boxed()
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        self.look().boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
