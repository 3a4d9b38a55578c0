//! The provider's calls over the files of one directory, each on a thread for blocking work.
//!
//! Must not know what the calls do.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_core::TenantId;

use super::{Family, Local, NewTenant};
use crate::provider::{Provider, ProviderError, ProviderResult, TenantStore};

/// A provider that is nothing but the tenants in one directory.
pub(in crate::provider) trait Embedded: Send + Sync + 'static {
    /// Its kind of files.
    type Files: Family;

    /// Its tenants.
    fn local(&self) -> &Arc<Local<Self::Files>>;
}

impl<E: Embedded> Provider for E {
    fn name(&self) -> &'static str {
        E::Files::NAME
    }

    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        run(self, tenant, |local, tenant| {
            local.create(tenant, NewTenant::Plain)
        })
    }

    fn create_marked<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        run(self, tenant, move |local, tenant| {
            local.create(tenant, NewTenant::Marked(mark))
        })
    }

    fn create_arriving<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        run(self, tenant, move |local, tenant| {
            local.create(tenant, NewTenant::Arriving(mark))
        })
    }

    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>> {
        run(self, tenant, Local::open)
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        run(self, tenant, Local::delete)
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        async { Ok(self.local().control.list(E::Files::NAME)) }.boxed()
    }

    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>> {
        async { Ok(self.local().control.contains(tenant, E::Files::NAME)) }.boxed()
    }

    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        self.local().owned(tenant)
    }

    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        let local = Arc::clone(self.local());
        async move { blocking(move || local.unregistered()).await }.boxed()
    }

    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        run(self, tenant, Local::adopt)
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        let local = Arc::clone(self.local());
        async move { blocking(move || local.health()).await }.boxed()
    }
}

/// Runs work on one tenant, to its end even if the caller goes away.
fn run<'a, E: Embedded, T: Send + 'static>(
    provider: &E,
    tenant: &'a TenantId,
    work: impl FnOnce(&Local<E::Files>, &TenantId) -> ProviderResult<T> + Send + 'static,
) -> BoxFuture<'a, ProviderResult<T>> {
    let local = Arc::clone(provider.local());
    async move {
        let tenant = tenant.clone();
        blocking(move || work(&local, &tenant)).await
    }
    .boxed()
}

/// Runs blocking work on tokio's threads for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ProviderResult<T> + Send + 'static,
) -> ProviderResult<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(ProviderError::io("blocking work", e)),
    }
}
