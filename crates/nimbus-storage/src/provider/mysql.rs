//! The MySQL provider: one database per tenant, a registry in a metadata database, several servers at once.
//!
//! It knows what MySQL 8 and MariaDB have in common. It must not know documents. What it has in common with other
//! shared databases is in `external`.

mod adopt;
mod backend;
mod connect;
mod error;
mod lifecycle;
mod options;
mod plan;
mod poll;
mod registry;
mod space;
mod sql;
mod trouble;
mod wakes;

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_core::TenantId;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use self::options::MysqlOptions;
pub use super::external::{DatabaseUrl, PoolSize};

use self::connect::{MyDial, Pool};
use self::poll::Seen;
use self::registry::Registry;
use self::wakes::Wakes;
use super::external::backend::{Base, Tasks, Timing};
use super::external::hints::HintBus;
use super::external::pool::{self, Use};
use super::external::steps::Steps;
use super::external::store::Store;
use super::external::{Known, Names};
use super::{Durability, Provider, ProviderError, ProviderResult, TenantStore, WakeStore};
use crate::control::{RandomId, TenantState};

/// The provider's name, on the command line and in the registry.
const NAME: &str = "mysql";

/// What the provider and its stores share.
struct Shared {
    base: Base<MyDial>,
    names: Names,
    registry: Registry,
    known: Known,
    seen: Arc<Seen>,
    durability: Durability,
    /// Bytes of the longest packet that the server takes.
    max_packet: u64,
    tasks: Tasks,
    steps: Steps,
}

/// Tenants in databases of a MySQL or MariaDB server. See the module.
///
/// Two calls for the same tenant that change it (create, delete, adopt, open) must not run at once on one server;
/// the engine runs them in turn. Servers need not know of each other.
pub struct MysqlProvider {
    shared: Arc<Shared>,
}

impl MysqlProvider {
    /// Connects, makes the metadata if it is missing, and finishes creations and deletions that a crash interrupted.
    /// `installation` is this server's ([`crate::control::ControlDb::installation`]).
    ///
    /// # Errors
    /// `Settings` for settings that cannot work and servers that are not fit, `OtherInstallation`, `Io` if the server
    /// cannot be reached or refuses the user, `Busy`, `Corrupt`.
    pub async fn connect(
        options: MysqlOptions,
        installation: RandomId,
    ) -> ProviderResult<MysqlProvider> {
        MysqlProvider::connect_with(options, installation, Timing::default()).await
    }

    /// Connects once and tells which version answers, changing nothing; for checks before a start.
    ///
    /// # Errors
    /// As [`MysqlProvider::connect`], but for `OtherInstallation`.
    pub async fn probe(options: &MysqlOptions) -> ProviderResult<String> {
        let (_, client) = options.check()?;
        let dial = MyDial::new(client, options, &Timing::default());
        let mut conn = pool::Dial::dial(&dial).await?;
        let version = match dial.check_server(&mut conn, options.durability).await {
            Ok(_) => dial.version(&mut conn).await,
            Err(error) => Err(error),
        };
        <MyDial as pool::Dial>::hang_up(conn).await;
        version
    }

    pub(crate) async fn connect_with(
        options: MysqlOptions,
        installation: RandomId,
        timing: Timing,
    ) -> ProviderResult<MysqlProvider> {
        let (names, client) = options.check()?;
        let dial = MyDial::new(client, &options, &timing);
        let pool = Pool::new(dial, options.pool, timing.wait);
        let registry = Registry::new(&options.metadata_database, timing.statement);

        let mut lease = pool.get(Use::Commit).await?;
        let durability = options.durability;
        let fitness = pool.dial().check_server(lease.conn()?, durability).await?;
        let ids = (installation, options.join_installation);
        registry.enter(lease.conn()?, ids, names.prefix()).await?;
        lease.give_back();

        let (bus, seen) = (Arc::<HintBus>::default(), Arc::<Seen>::default());
        let poll = poll::poll(pool.clone(), bus.clone(), seen.clone());
        let tend = poll::tend(pool.clone(), bus.clone(), seen.clone());
        let tasks = [
            tokio::spawn(poll).abort_handle(),
            tokio::spawn(tend).abort_handle(),
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
            seen,
            durability,
            max_packet: fitness.max_packet,
            tasks: Tasks(tasks.into()),
            steps: Steps::default(),
        };
        lifecycle::recover(&shared).await?;
        Ok(MysqlProvider {
            shared: Arc::new(shared),
        })
    }

    /// Ends its tasks and connections. Stores that are open fail from then on.
    pub async fn close(&self) {
        self.shared.tasks.end();
        self.shared.base.pool.close().await;
    }

    async fn ready(&self) -> ProviderResult<Vec<TenantId>> {
        let entries = lifecycle::entries(&self.shared).await?.into_iter();
        let ready = entries.filter(|(_, entry)| entry.state == TenantState::Ready);
        let ready: Vec<TenantId> = ready.map(|(tenant, _)| tenant).collect();
        self.shared.known.replace(&ready);
        Ok(ready)
    }

    async fn is_ready(&self, tenant: &TenantId) -> ProviderResult<bool> {
        let entry = lifecycle::entry(&self.shared, tenant).await?;
        let is_ready = entry.is_some_and(|e| e.state == TenantState::Ready);
        self.shared.known.note(tenant, is_ready);
        Ok(is_ready)
    }

    async fn look(&self) -> ProviderResult<()> {
        let pool = &self.shared.base.pool;
        loop {
            let mut lease = pool.get(Use::Commit).await?;
            let dial = pool.dial();
            match dial
                .check_server(lease.conn()?, self.shared.durability)
                .await
            {
                Ok(_) => {
                    lease.give_back();
                    return Ok(());
                }
                // It may have died while nobody used it.
                Err(ProviderError::Io { .. }) if !lease.fresh => pool.forget_idle(),
                Err(e) => return Err(e),
            }
        }
    }

    /// Remembers whether a tenant is there, after a change that succeeded.
    fn noted(&self, tenant: &TenantId, is_ready: bool) {
        self.shared.known.note(tenant, is_ready);
    }
}

impl Provider for MysqlProvider {
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
            let (space, head) = lifecycle::open(&self.shared, tenant).await?;
            self.noted(tenant, true);
            let namespace = space.name.clone();
            let store: Arc<dyn TenantStore> = Arc::new(Store::new(self.shared.clone(), space));
            self.shared.seen.saw(&namespace, head);
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
            true => vec![format!("database {}", self.shared.names.namespace(tenant))],
            false => Vec::new(),
        }
    }

    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        adopt::unregistered(&self.shared).boxed()
    }

    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        let adopted = adopt::adopt(&self.shared, tenant);
        async move { adopted.await.map(|()| self.noted(tenant, true)) }.boxed()
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        self.look().boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
