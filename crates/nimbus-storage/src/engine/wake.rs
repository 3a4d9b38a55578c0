//! Wake times: when does a tenant that is closed next have work to do?
//!
//! A wake time is lowered durably before the commit that schedules the work, and raised after; so a server that
//! starts finds every due tenant without opening any. Providers that servers share keep them where all of these find
//! them, the engine keeps those of the others. What the work is, the tenant itself knows.

use std::sync::Arc;

use nimbus_core::TenantId;

use super::{Engine, EngineShared, Tenant};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Provider, Wake, WakeStore};

type Keeper = Arc<dyn WakeStore>;

/// Who keeps the wake times of which tenants.
pub(crate) struct Wakes {
    provider: Arc<dyn Provider>,
    /// Of tenants whose provider keeps none.
    own: Option<Keeper>,
    /// Those that providers keep, by their names.
    shared: Vec<(&'static str, Keeper)>,
}

/// A tenant that wants to be woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueTenant {
    wake: Wake,
    /// The provider that keeps its wake time; `None`: the engine.
    kept_by: Option<&'static str>,
}

impl DueTenant {
    /// Which one.
    pub fn tenant(&self) -> &TenantId {
        &self.wake.tenant
    }

    /// When, in milliseconds since 1970-01-01.
    pub fn at_ms(&self) -> u64 {
        self.wake.at_ms
    }
}

impl Wakes {
    pub(super) fn new(provider: &Arc<dyn Provider>, own: Option<Keeper>) -> Wakes {
        let kept = |p: &dyn Provider| Some((p.name(), p.wakes()?));
        let shared = match provider.combined() {
            Some(combined) => combined.all().iter().filter_map(|p| kept(&**p)).collect(),
            None => kept(&**provider).into_iter().collect(),
        };
        Wakes {
            provider: provider.clone(),
            own,
            shared,
        }
    }

    fn kept_by(&self, name: Option<&str>) -> Option<(Option<&'static str>, &Keeper)> {
        let of = |(kept, _): &&(&'static str, _)| Some(*kept) == name;
        match self.shared.iter().find(of) {
            Some((name, store)) => Some((Some(*name), store)),
            None => self.own.as_ref().map(|own| (None, own)),
        }
    }

    /// Makes the wake time of an open tenant at most `at_ms`, durably.
    ///
    /// # Errors
    /// `InvalidInput` if nobody keeps wake times of such tenants; the store's failure.
    pub(crate) async fn lower(&self, tenant: &TenantId, at_ms: u64) -> StoreResult<()> {
        let serving = match self.provider.combined() {
            Some(combined) => combined.serving(tenant),
            None => Some(self.provider.clone()),
        };
        let (_, kept) = self
            .kept_by(serving.map(|provider| provider.name()))
            .ok_or_else(none_kept)?;
        Ok(kept.lower(tenant, at_ms).await?)
    }

    /// Has the wake time go with a tenant from one provider to another. Until it is there for good, the tenant must be
    /// closed for work; then [`Wakes::carried`] is to be called.
    pub(super) async fn carry(
        &self,
        tenant: &TenantId,
        (from, to): (&dyn Provider, &dyn Provider),
    ) -> StoreResult<()> {
        if let Some((old, new)) = self.differ(from, to)
            && let Some(wake) = old.get(tenant).await?
        {
            new.lower(tenant, wake.at_ms).await?;
        }
        Ok(())
    }

    /// What is left behind then only wakes a tenant too early.
    pub(super) async fn carried(
        &self,
        tenant: &TenantId,
        (from, to): (&dyn Provider, &dyn Provider),
    ) {
        if let Some((old, _)) = self.differ(from, to)
            && let Err(error) = old.forget(tenant).await
        {
            tracing::warn!(%tenant, %error, "forgetting a wake time that went with its tenant");
        }
    }

    fn differ(&self, from: &dyn Provider, to: &dyn Provider) -> Option<(&Keeper, &Keeper)> {
        let (from, old) = self.kept_by(Some(from.name()))?;
        let (to, new) = self.kept_by(Some(to.name()))?;
        (from != to).then_some((old, new))
    }

    fn all(&self) -> impl Iterator<Item = (Option<&'static str>, &Keeper)> {
        let own = self.own.iter().map(|own| (None, own));
        own.chain(self.shared.iter().map(|(name, kept)| (Some(*name), kept)))
    }
}

fn none_kept() -> StoreError {
    StoreError::invalid("this engine was made without a store for wake times")
}

impl EngineShared {
    /// See [`Wakes::lower`].
    pub(crate) async fn lower_wake(&self, tenant: &TenantId, at_ms: u64) -> StoreResult<()> {
        self.wakes.lower(tenant, at_ms).await
    }
}

impl Engine {
    /// Tenants that want to be woken by now, earliest first: those of this server, and of all servers that share a
    /// provider. Several may be told of the same tenant; that its work is done once is for its transactions to see to.
    ///
    /// # Errors
    /// `InvalidInput` if nobody keeps wake times; a store's failure.
    pub async fn due_tenants(&self, now_ms: u64, limit: usize) -> StoreResult<Vec<DueTenant>> {
        let wakes = &self.inner.shared.wakes;
        if wakes.all().next().is_none() {
            return Err(none_kept());
        }
        let mut due = Vec::new();
        for (kept_by, store) in wakes.all() {
            let found = store.due(now_ms, limit).await?;
            due.extend(found.into_iter().map(|wake| DueTenant { wake, kept_by }));
        }
        due.sort_by(|a, b| (a.at_ms(), a.tenant()).cmp(&(b.at_ms(), b.tenant())));
        due.truncate(limit);
        Ok(due)
    }

    /// The tenant, opened if need be, with all the work that was scheduled when it was told to be due: a replica is
    /// brought up to date first.
    ///
    /// # Errors
    /// As [`Engine::tenant`].
    pub async fn due_tenant(&self, due: &DueTenant) -> StoreResult<Tenant> {
        let tenant = self.tenant(due.tenant()).await?;
        tenant.inner.store.look_again();
        Ok(tenant)
    }

    /// Sets or clears the wake time of a tenant from [`Engine::due_tenant`] after its work was done. False if somebody
    /// scheduled work since it was told: then nothing is changed, and the tenant is due still.
    ///
    /// # Errors
    /// As [`Engine::due_tenants`].
    pub async fn set_wake(&self, due: &DueTenant, at_ms: Option<u64>) -> StoreResult<bool> {
        let wakes = &self.inner.shared.wakes;
        let (_, kept) = wakes.kept_by(due.kept_by).ok_or_else(none_kept)?;
        Ok(kept.replace(&due.wake, at_ms).await?)
    }

    /// A tenant that was deleted has no work any more.
    pub(super) async fn forget_wake(&self, tenant: &TenantId) {
        for (_, kept) in self.inner.shared.wakes.all() {
            // Left behind, it wakes nobody.
            if let Err(error) = kept.forget(tenant).await {
                tracing::warn!(%tenant, %error, "forgetting the wake time of a deleted tenant");
            }
        }
    }
}
