//! Several providers that keep one set of tenants: new ones at home, the others wherever they were moved to.
//!
//! A tenant is with one provider, but for the time of a move, when the other has a copy that is marked as
//! arriving. The move is decided once the provider that it comes from carries the mark `moved`: before that the copy is
//! worth nothing, after that the original is. Whoever finds such a tenant finishes what was begun. How a
//! copy is made is not known here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use nimbus_core::TenantId;
use sha2::{Digest as _, Sha256};

use super::{
    Batch, CommitError, Head, Keyspace, Provider, ProviderError, ProviderResult, TenantStore,
};

/// Meta row of a copy that is not yet the tenant: it refuses to open.
pub(crate) const ARRIVING_KEY: &[u8] = b"arriving";
/// Meta row of a tenant that is elsewhere from now on, with the name of the provider there.
pub(crate) const MOVED_KEY: &[u8] = b"moved";

/// See the module documentation.
pub struct CombinedProvider {
    /// The first one is home.
    all: Vec<Arc<dyn Provider>>,
    /// Which provider a tenant that was opened was found with: while it is open, its namespace cannot be asked.
    serving: Mutex<HashMap<TenantId, Arc<dyn Provider>>>,
}

/// What a namespace says of a move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Marks {
    arriving: bool,
    moved: Option<String>,
    shared: bool,
}

impl CombinedProvider {
    /// New tenants are made in `home`.
    ///
    /// # Errors
    /// `Settings` when two of them have the same name.
    pub fn new(
        home: Arc<dyn Provider>,
        others: Vec<Arc<dyn Provider>>,
    ) -> ProviderResult<CombinedProvider> {
        let all: Vec<_> = std::iter::once(home).chain(others).collect();
        let names: BTreeSet<_> = all.iter().map(|p| p.name()).collect();
        if names.len() < all.len() {
            let reason = "a provider of tenants is named twice".to_owned();
            return Err(ProviderError::Settings { reason });
        }
        Ok(CombinedProvider {
            all,
            serving: Mutex::default(),
        })
    }

    /// Their names, that of new tenants first.
    pub fn names(&self) -> Vec<&'static str> {
        self.all.iter().map(|p| p.name()).collect()
    }

    /// Each of them, that of new tenants first.
    pub(crate) fn all(&self) -> &[Arc<dyn Provider>] {
        &self.all
    }

    /// The one with this name.
    pub fn named(&self, name: &str) -> Option<&Arc<dyn Provider>> {
        self.all.iter().find(|p| p.name() == name)
    }

    /// The provider that a tenant was with when it was opened last.
    pub(crate) fn serving(&self, tenant: &TenantId) -> Option<Arc<dyn Provider>> {
        self.known().get(tenant).cloned()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<TenantId, Arc<dyn Provider>>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The provider that the tenant is with, `None` if there is no such tenant. Finishes a move that was decided.
    /// No store of the tenant may be open.
    ///
    /// # Errors
    /// `Settings` if two have a tenant of that name; the providers' failures.
    pub async fn holder(&self, tenant: &TenantId) -> ProviderResult<Option<Arc<dyn Provider>>> {
        let mut holders = self.holders(tenant).await?;
        if holders.len() > 1 {
            return self.settle(tenant, holders).await.map(Some);
        }
        Ok(holders.pop())
    }

    async fn holders(&self, tenant: &TenantId) -> ProviderResult<Vec<Arc<dyn Provider>>> {
        let mut holders = Vec::new();
        for provider in &self.all {
            if provider.contains(tenant).await? {
                holders.push(provider.clone());
            }
        }
        Ok(holders)
    }

    /// Of several providers that have a tenant, the one that counts.
    async fn settle(
        &self,
        tenant: &TenantId,
        holders: Vec<Arc<dyn Provider>>,
    ) -> ProviderResult<Arc<dyn Provider>> {
        let mut originals = Vec::new();
        for provider in holders {
            let marks = marks(&*provider, tenant).await?;
            if let Some(to) = &marks.moved {
                let Some(target) = self.named(to) else {
                    return Err(unsettled(tenant, format!("it was moved to {to}")));
                };
                finish(tenant, &*provider, &**target).await?;
                return Ok(target.clone());
            }
            if !marks.arriving {
                originals.push(provider);
            }
        }
        let names: Vec<_> = originals.iter().map(|p| p.name()).collect();
        match originals.pop() {
            Some(only) if originals.is_empty() => Ok(only),
            Some(_) => Err(unsettled(
                tenant,
                format!("each of {} has one of that name", names.join(" and ")),
            )),
            None => Err(unsettled(tenant, "there are only unfinished copies".into())),
        }
    }

    /// Finishes moves that were decided, and takes away copies that a process left which is gone: to be called
    /// before tenants are opened.
    ///
    /// # Errors
    /// A provider's failure to list its tenants. What fails with one tenant is logged, and found again when that
    /// is opened.
    pub async fn recover(&self) -> ProviderResult<()> {
        let mut counts: BTreeMap<TenantId, u32> = BTreeMap::new();
        for provider in &self.all {
            for tenant in provider.list().await? {
                *counts.entry(tenant).or_default() += 1;
            }
        }
        for (tenant, _) in counts.into_iter().filter(|(_, times)| *times > 1) {
            if let Err(error) = self.recover_one(&tenant).await {
                tracing::error!(%tenant, %error, "what an interrupted move left could not be put in order");
            }
        }
        Ok(())
    }

    async fn recover_one(&self, tenant: &TenantId) -> ProviderResult<()> {
        let Some(holder) = self.holder(tenant).await? else {
            return Ok(());
        };
        // Another server that shares the original may be making the copy.
        if marks(&*holder, tenant).await?.shared {
            tracing::warn!(%tenant, "an unfinished copy of this tenant is left to the next `nimbus tenants move`");
            return Ok(());
        }
        self.drop_copies(tenant, &*holder).await
    }

    /// Removes copies of a tenant that is with `holder`.
    pub(crate) async fn drop_copies(
        &self,
        tenant: &TenantId,
        holder: &dyn Provider,
    ) -> ProviderResult<()> {
        for provider in self.holders(tenant).await? {
            if provider.name() == holder.name() {
                continue;
            }
            if !marks(&*provider, tenant).await?.arriving {
                return Err(unsettled(
                    tenant,
                    format!("{} has one too", provider.name()),
                ));
            }
            gone(provider.delete(tenant).await)?;
            tracing::info!(%tenant, provider = provider.name(), "removed an unfinished copy");
        }
        Ok(())
    }

    async fn delete_all(&self, tenant: &TenantId) -> ProviderResult<()> {
        self.known().remove(tenant);
        if let Some(holder) = self.holder(tenant).await? {
            self.drop_copies(tenant, &*holder).await?;
            return holder.delete(tenant).await;
        }
        // A deletion that failed half-way can be tried again.
        for provider in &self.all {
            match provider.delete(tenant).await {
                Err(ProviderError::NotFound { .. }) => {}
                done => return done,
            }
        }
        Err(not_found(tenant))
    }

    async fn refuse_existing(&self, tenant: &TenantId) -> ProviderResult<()> {
        // Home says so itself, and what else stands in the way there.
        for provider in &self.all[1..] {
            if provider.contains(tenant).await? {
                return Err(ProviderError::AlreadyExists {
                    tenant: tenant.clone(),
                });
            }
        }
        Ok(())
    }

    async fn adopt_first(&self, tenant: &TenantId) -> ProviderResult<()> {
        if self.contains(tenant).await? {
            return Err(ProviderError::AlreadyExists {
                tenant: tenant.clone(),
            });
        }
        for provider in &self.all {
            match provider.adopt(tenant).await {
                Err(ProviderError::NotFound { .. }) => {}
                done => return done,
            }
        }
        Err(not_found(tenant))
    }
}

/// Says, for good, that the tenant is with `to` from now on. `head` is the newest commit that the copy has; it is
/// changed to one that nothing can follow, so that servers which share the original can commit no more.
///
/// # Errors
/// As [`TenantStore::commit`]; unless the outcome is unknown, nothing is decided then.
pub(crate) async fn decide(
    store: &dyn TenantStore,
    turn: Option<Box<dyn super::Turn>>,
    head: Head,
    to: &str,
) -> Result<(), CommitError> {
    let mut end = head;
    end.hash = Sha256::digest([&head.hash[..], MOVED_KEY].concat()).into();
    let row = (Keyspace::Meta, MOVED_KEY.to_vec());
    let batch = Batch {
        head: end,
        writes: BTreeMap::from([(row, Some(Bytes::copy_from_slice(to.as_bytes())))]),
    };
    match turn {
        Some(turn) => turn.commit(batch).await,
        None => store.commit(head, batch).await,
    }
}

/// Makes the copy the tenant and removes the original. May be done again.
///
/// # Errors
/// The providers' failures.
pub(crate) async fn finish(
    tenant: &TenantId,
    source: &dyn Provider,
    target: &dyn Provider,
) -> ProviderResult<()> {
    let store = target.open(tenant).await?;
    let arrived = arrive(&*store).await;
    store.close().await?;
    arrived?;
    gone(source.delete(tenant).await)
}

async fn arrive(store: &dyn TenantStore) -> ProviderResult<()> {
    let mut snapshot = store.snapshot().await?;
    let head = snapshot.head().await?;
    let mark = snapshot.get_many(Keyspace::Meta, &[ARRIVING_KEY]).await?;
    drop(snapshot);
    if mark.iter().flatten().next().is_none() {
        return Ok(());
    }
    let row = (Keyspace::Meta, ARRIVING_KEY.to_vec());
    let writes = BTreeMap::from([(row, None)]);
    let done = store.commit(head, Batch { head, writes }).await;
    done.map_err(|e| ProviderError::io("ending the arrival of a tenant", e))
}

/// A deletion that another server did first is one.
fn gone(deleted: ProviderResult<()>) -> ProviderResult<()> {
    match deleted {
        Err(ProviderError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

async fn marks(provider: &dyn Provider, tenant: &TenantId) -> ProviderResult<Marks> {
    let store = provider.open(tenant).await?;
    let read = async {
        let mut snapshot = store.snapshot().await?;
        snapshot
            .get_many(Keyspace::Meta, &[ARRIVING_KEY, MOVED_KEY])
            .await
    };
    let rows = read.await;
    let shared = store.is_shared();
    store.close().await?;
    let mut rows = rows?.into_iter();
    let arriving = rows.next().flatten().is_some();
    let moved = rows.next().flatten();
    Ok(Marks {
        arriving,
        moved: moved.map(|to| String::from_utf8_lossy(&to).into_owned()),
        shared,
    })
}

fn unsettled(tenant: &TenantId, reason: String) -> ProviderError {
    ProviderError::Settings {
        reason: format!(
            "tenant {tenant} cannot be served by these providers together: {reason}; \
             start with the one that is meant"
        ),
    }
}

fn not_found(tenant: &TenantId) -> ProviderError {
    ProviderError::NotFound {
        tenant: tenant.clone(),
    }
}

impl Provider for CombinedProvider {
    fn name(&self) -> &'static str {
        self.all[0].name()
    }

    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        async move {
            self.refuse_existing(tenant).await?;
            self.all[0].create(tenant).await
        }
        .boxed()
    }

    fn create_marked<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        async move {
            self.refuse_existing(tenant).await?;
            self.all[0].create_marked(tenant, mark).await
        }
        .boxed()
    }

    fn combined(&self) -> Option<&CombinedProvider> {
        Some(self)
    }

    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>> {
        async move {
            let holder = self.holder(tenant).await?;
            let holder = holder.ok_or_else(|| not_found(tenant))?;
            let store = holder.open(tenant).await?;
            self.known().insert(tenant.clone(), holder);
            Ok(store)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.delete_all(tenant).boxed()
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        async {
            let mut tenants = BTreeSet::new();
            for provider in &self.all {
                tenants.extend(provider.list().await?);
            }
            Ok(tenants.into_iter().collect())
        }
        .boxed()
    }

    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>> {
        async move {
            for provider in &self.all {
                if provider.contains(tenant).await? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        .boxed()
    }

    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        self.all.iter().flat_map(|p| p.owned(tenant)).collect()
    }

    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        async {
            let mut tenants = BTreeSet::new();
            for provider in &self.all {
                tenants.extend(provider.unregistered().await?);
            }
            Ok(tenants.into_iter().collect())
        }
        .boxed()
    }

    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.adopt_first(tenant).boxed()
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        async {
            for provider in &self.all {
                provider.health().await?;
            }
            Ok(())
        }
        .boxed()
    }
}
