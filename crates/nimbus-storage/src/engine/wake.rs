//! Wake times: when does a tenant that is closed next have work to do?
//!
//! A wake time is lowered durably before the commit that schedules the work, and raised
//! lazily after; so a server that starts finds every due tenant without opening any. What
//! the work is, the tenant itself knows.

use std::sync::Arc;

use nimbus_core::TenantId;

use super::{Engine, EngineShared};
use crate::control::ControlDb;
use crate::error::{StoreError, StoreResult};
use crate::provider::{ProviderError, ProviderResult};

/// Keeps one wake time per tenant, in milliseconds since 1970-01-01.
pub trait WakeStore: Send + Sync + 'static {
    /// Makes the wake time at most `at_ms`, durably. Blocks.
    ///
    /// # Errors
    /// When it could not be made durable.
    fn lower(&self, tenant: &TenantId, at_ms: u64) -> ProviderResult<()>;

    /// Replaces the wake time; need not be durable at once. Blocks.
    ///
    /// # Errors
    /// When it could not be written.
    fn set(&self, tenant: &TenantId, at_ms: Option<u64>) -> ProviderResult<()>;

    /// Tenants whose wake time is not after `now_ms`, earliest first, at most `limit`.
    ///
    /// # Errors
    /// When it cannot be read.
    fn due(&self, now_ms: u64, limit: usize) -> ProviderResult<Vec<(u64, TenantId)>>;
}

impl WakeStore for ControlDb {
    fn lower(&self, tenant: &TenantId, at_ms: u64) -> ProviderResult<()> {
        self.lower_wake(tenant, at_ms).map(|_| ())
    }

    fn set(&self, tenant: &TenantId, at_ms: Option<u64>) -> ProviderResult<()> {
        self.set_wake(tenant, at_ms)
    }

    fn due(&self, now_ms: u64, limit: usize) -> ProviderResult<Vec<(u64, TenantId)>> {
        Ok(self.due(now_ms, limit))
    }
}

impl EngineShared {
    /// See [`WakeStore::lower`].
    pub(crate) async fn lower_wake(&self, tenant: &TenantId, at_ms: u64) -> StoreResult<()> {
        let tenant = tenant.clone();
        self.with_wakes(move |wakes| wakes.lower(&tenant, at_ms))
            .await
    }

    async fn with_wakes<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn WakeStore) -> ProviderResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let wakes: Arc<dyn WakeStore> = self.options.wakes.clone().ok_or_else(|| {
            StoreError::invalid("this engine was made without a store for wake times")
        })?;
        let done = tokio::task::spawn_blocking(move || work(&*wakes)).await;
        let done = done.map_err(|e| ProviderError::io("wake times", e.to_string()))?;
        Ok(done?)
    }
}

impl Engine {
    /// Tenants that want to be woken by now, earliest first.
    ///
    /// # Errors
    /// `InvalidInput` if the engine has no store for wake times; the store's failure.
    pub async fn due_tenants(
        &self,
        now_ms: u64,
        limit: usize,
    ) -> StoreResult<Vec<(u64, TenantId)>> {
        self.inner
            .shared
            .with_wakes(move |wakes| wakes.due(now_ms, limit))
            .await
    }

    /// Raises or clears a tenant's wake time after its work was done.
    ///
    /// # Errors
    /// As [`Engine::due_tenants`].
    pub async fn set_wake(&self, tenant: &TenantId, at_ms: Option<u64>) -> StoreResult<()> {
        let tenant = tenant.clone();
        self.inner
            .shared
            .with_wakes(move |wakes| wakes.set(&tenant, at_ms))
            .await
    }

    /// A tenant that was deleted has no work any more. A database elsewhere does not know of wake times.
    pub(super) async fn forget_wake(&self, tenant: &TenantId) {
        if self.inner.shared.options.wakes.is_none() {
            return;
        }
        // Left behind, it wakes nobody.
        if let Err(error) = self.set_wake(tenant, None).await {
            tracing::warn!(%tenant, %error, "forgetting the wake time of a deleted tenant");
        }
    }
}
