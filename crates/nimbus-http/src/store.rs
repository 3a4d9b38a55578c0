//! The one door to stored data: every call names a context that `nimbus-auth` made from a
//! verified credential (design section 1).
//!
//! No other file of this crate may name the engine. This room must not know HTTP, routes or
//! wire formats; it checks the permission and hands over.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use nimbus_auth::{
    FunctionContext, KeyClaim, KeyRecord, OperationContext, Permission, Principal, PrincipalKind,
    ServerContext,
};
use nimbus_core::TenantId;
use nimbus_policy::Surface;
use nimbus_runtime::Runtime;
use nimbus_storage::backup::{self, Backup, BackupError, Source, Summary};
use nimbus_storage::encryption::Keyring;
use nimbus_storage::{
    Engine, EngineMetrics, MoveStatus, PolicyVersion, Quota, StoreError, StoreResult, StoredKey,
    StoredPolicy, Tenant, Usage,
};

use crate::edge::gate::KeySource;
use crate::policy::authority::Authority;
use crate::policy::{Policies, Refused};

/// Why the door stayed shut, or what the engine said behind it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoorError {
    /// The context does not allow what was asked.
    #[error("this needs leave to {needed}, and the context has leave to {held}")]
    Denied {
        /// What the call needs.
        needed: Permission,
        /// What the context has.
        held: Permission,
    },
    /// The policy of the tenant does not let its keys in this way.
    #[error("the policy of this tenant does not expose `{surface}`")]
    NotExposed {
        /// The way, as a policy names it.
        surface: &'static str,
    },
    /// The tenant has as many requests as its policy allows.
    #[error("the policy of this tenant allows {rate} requests in a second")]
    TooFast {
        /// Requests in a second.
        rate: u64,
        /// When there may be another.
        retry_after: Duration,
    },
    /// Policies come from a directory and are not changed here.
    #[error(
        "policies of this server come from its --policy-dir; change the file of the tenant there"
    )]
    PoliciesFromDirectory,
    /// A backup was not begun.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The engine refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Result of a call through the door.
pub type DoorResult<T> = Result<T, DoorError>;

/// The engine behind its door. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    engine: Engine,
    /// What backups are sealed with.
    keyring: Option<Arc<Keyring>>,
    /// What tenants may do.
    policies: Arc<Policies>,
    /// What runs their functions, if there is anything that does.
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Puts the door in front of `engine`.
    pub fn new(engine: Engine) -> Store {
        Store {
            engine,
            keyring: None,
            policies: Arc::default(),
            runtime: None,
        }
    }

    /// The same door, behind which these policies hold, for functions as well.
    pub(crate) fn governed_by(self, policies: Arc<Policies>, runtime: Runtime) -> Store {
        Store {
            policies,
            runtime: Some(runtime),
            ..self
        }
    }

    /// What tenants may do.
    pub(crate) fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// What governs a tenant now; engine and runtime are told its quotas, if they are others than before.
    ///
    /// # Errors
    /// Storage errors.
    pub(crate) async fn authority(&self, id: &TenantId, tenant: &Tenant) -> StoreResult<Authority> {
        let stored = match self.policies.directory() {
            Some(_) => None,
            None => tenant.policy().await?,
        };
        let authority = self.policies.authority(id, stored.as_deref());
        self.policies.tell_quotas(id, &authority, |quotas| {
            let quota = Quota {
                documents: quotas.documents,
                bytes: quotas.storage_bytes,
            };
            self.engine.set_quota(id, quota);
            let functions = quotas.active_functions;
            let functions = functions.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
            if let Some(runtime) = &self.runtime {
                runtime.bound_tenant(id, functions);
            }
        });
        Ok(authority)
    }

    /// Opens a tenant for `principal`, as far as its policy takes requests by this way. Operators always may.
    async fn open(
        &self,
        id: &TenantId,
        principal: Option<&Principal>,
        surface: Surface,
    ) -> DoorResult<Tenant> {
        let tenant = self.engine.tenant(id).await?;
        let authority = self.authority(id, &tenant).await?;
        if principal.map(Principal::kind) != Some(PrincipalKind::Operator) {
            self.policies.take_request(id, &authority, surface)?;
        }
        Ok(tenant)
    }

    /// The same door, whose backups are sealed with keys of `keyring`: for a store that is encrypted.
    pub fn sealed_by(self, keyring: Option<Arc<Keyring>>) -> Store {
        Store { keyring, ..self }
    }

    /// Begins a backup of these tenants, or of all if none is named. It is sealed if the store is
    /// encrypted and `plain` does not say otherwise.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; [`DoorError::Backup`] for tenants that are not there, and when no key
    /// is to be had.
    pub async fn backup(
        &self,
        context: &ServerContext,
        tenants: &[TenantId],
        plain: bool,
    ) -> DoorResult<Backup> {
        check(context.permission(), Permission::ManageSystem)?;
        let keyring = self.keyring.clone().filter(|_| !plain);
        Ok(Backup::begin(&self.engine, tenants, keyring).await?)
    }

    /// The tenant of the context, opened when needed.
    ///
    /// # Errors
    /// [`DoorError::Denied`] unless the context allows `needed`; `TenantNotFound`; storage errors.
    pub async fn tenant(
        &self,
        context: &OperationContext,
        needed: Permission,
    ) -> DoorResult<Tenant> {
        check(context.permission(), needed)?;
        let principal = Some(context.principal());
        self.open(context.tenant(), principal, Surface::NativeApi)
            .await
    }

    /// Whether a tenant that was opened for the context still would be, by the policy of this moment; its quotas are
    /// in force then.
    ///
    /// # Errors
    /// [`DoorError::NotExposed`]; storage errors.
    pub(crate) async fn still_open(
        &self,
        context: &OperationContext,
        tenant: &Tenant,
    ) -> DoorResult<()> {
        let authority = self.authority(context.tenant(), tenant).await?;
        let operator = context.principal().kind() == PrincipalKind::Operator;
        match operator || authority.exposes(Surface::NativeApi) {
            true => Ok(()),
            false => Err(Refused::Surface {
                surface: Surface::NativeApi,
            }
            .into()),
        }
    }

    /// The policy that the tenant of the context keeps, its versions, and what the tenant holds.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; `TenantNotFound`; storage errors.
    pub(crate) async fn policy(
        &self,
        context: &OperationContext,
        version: Option<u64>,
    ) -> DoorResult<KeptPolicy> {
        let tenant = self.tenant(context, Permission::ManageTenants).await?;
        let current = tenant.policy().await?;
        let shown = match version {
            None => current,
            Some(version) => tenant.policy_of(version).await?.map(Arc::new),
        };
        Ok(KeptPolicy {
            shown,
            versions: tenant.policies().await?,
            tenant,
        })
    }

    /// What a tenant holds, where a quota in force counts it.
    ///
    /// # Errors
    /// Storage errors.
    pub(crate) async fn counted_usage(
        &self,
        context: &OperationContext,
        tenant: &Tenant,
    ) -> DoorResult<Option<Usage>> {
        let quotas = self.authority(context.tenant(), tenant).await?.quotas();
        match quotas.documents.or(quotas.storage_bytes) {
            Some(_) => Ok(Some(tenant.usage().await?)),
            None => Ok(None),
        }
    }

    /// Makes a text the policy of the tenant of the context.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; [`DoorError::PoliciesFromDirectory`]; as [`Tenant::put_policy`].
    pub(crate) async fn put_policy(
        &self,
        context: &OperationContext,
        text: Arc<str>,
        restored_from: Option<u64>,
        expected: Option<u64>,
    ) -> DoorResult<StoredPolicy> {
        let tenant = self.tenant(context, Permission::ManageTenants).await?;
        if self.policies.directory().is_some() {
            return Err(DoorError::PoliciesFromDirectory);
        }
        let stored = tenant.put_policy(text, restored_from, expected).await?;
        // It holds from now on, for requests that are under way as well.
        self.authority(context.tenant(), &tenant).await?;
        Ok(stored)
    }

    /// The tenant of the context, for running its functions.
    ///
    /// # Errors
    /// `TenantNotFound`; storage errors.
    pub(crate) async fn functions(&self, context: &FunctionContext) -> DoorResult<Tenant> {
        let (id, principal) = (context.tenant(), context.principal());
        self.open(id, principal, Surface::ConvexHttp).await
    }

    /// Creates a tenant.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; `TenantExists`, `TenantNameClash`, `TenantUnregistered`; storage errors.
    pub async fn create_tenant(
        &self,
        context: &ServerContext,
        tenant: &TenantId,
    ) -> DoorResult<()> {
        check(context.permission(), Permission::ManageTenants)?;
        self.engine.create_tenant(tenant).await?;
        self.forget_quotas(tenant);
        Ok(())
    }

    /// Deletes the tenant of the context with all that it owns.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; `TenantNotFound`; storage errors.
    pub async fn delete_tenant(&self, context: &OperationContext) -> DoorResult<()> {
        check(context.permission(), Permission::ManageTenants)?;
        self.engine.delete_tenant(context.tenant()).await?;
        self.forget_quotas(context.tenant());
        Ok(())
    }

    /// Forgets what a tenant of this name was told to be bounded by. Said at its end, and once more at the beginning of
    /// another one, since a request of the first may have come in between.
    fn forget_quotas(&self, tenant: &TenantId) {
        self.policies.forget(tenant);
        self.engine.set_quota(tenant, Quota::default());
        if let Some(runtime) = &self.runtime {
            runtime.bound_tenant(tenant, None);
        }
    }

    /// Takes data that is not registered in as the tenant of the context.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; `TenantExists`; `TenantNotFound` when there is no data; storage errors.
    pub async fn adopt_tenant(&self, context: &OperationContext) -> DoorResult<()> {
        check(context.permission(), Permission::ManageTenants)?;
        Ok(self.engine.adopt_tenant(context.tenant()).await?)
    }

    /// Begins to move the tenant of the context to another provider that is served.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; as [`Engine::begin_move`].
    pub async fn begin_move(&self, context: &OperationContext, to: &str) -> DoorResult<()> {
        check(context.permission(), Permission::ManageTenants)?;
        Ok(self.engine.begin_move(context.tenant(), to).await?)
    }

    /// Ends the move of the tenant of the context unless it is decided, and waits until it is over.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; as [`Engine::cancel_move`].
    pub async fn cancel_move(&self, context: &OperationContext) -> DoorResult<MoveStatus> {
        check(context.permission(), Permission::ManageTenants)?;
        Ok(self.engine.cancel_move(context.tenant()).await?)
    }

    /// Waits until the newest move of the tenant of the context is over.
    ///
    /// # Errors
    /// [`DoorError::Denied`].
    pub async fn move_ended(&self, context: &OperationContext) -> DoorResult<Option<MoveStatus>> {
        check(context.permission(), Permission::ManageTenants)?;
        Ok(self.engine.move_ended(context.tenant()).await)
    }

    /// How far the newest move of the tenant of the context is.
    ///
    /// # Errors
    /// [`DoorError::Denied`].
    pub fn move_status(&self, context: &OperationContext) -> DoorResult<Option<MoveStatus>> {
        check(context.permission(), Permission::ManageTenants)?;
        Ok(self.engine.move_status(context.tenant()))
    }

    /// Every tenant, sorted.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; storage errors.
    pub async fn list_tenants(&self, context: &ServerContext) -> DoorResult<Vec<TenantId>> {
        check(context.permission(), Permission::ManageTenants)?;
        Ok(self.engine.list_tenants().await?)
    }

    /// Makes the tenants of a backup, or those of it that are named. For a store without a server:
    /// the backup is read blocking.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; [`DoorError::Backup`], with nothing changed or nothing left of it.
    pub async fn restore(
        &self,
        context: &ServerContext,
        source: Source,
        only: &[TenantId],
    ) -> DoorResult<Summary> {
        check(context.permission(), Permission::ManageSystem)?;
        Ok(backup::restore(&self.engine, source, only).await?)
    }

    /// Counters of the whole engine; they name no tenant.
    pub(crate) fn metrics(&self) -> EngineMetrics {
        self.engine.metrics()
    }
}

/// What is known of the policy of a tenant.
pub(crate) struct KeptPolicy {
    /// The version that was asked for.
    pub shown: Option<Arc<StoredPolicy>>,
    pub versions: Vec<PolicyVersion>,
    pub tenant: Tenant,
}

impl From<Refused> for DoorError {
    fn from(refused: Refused) -> DoorError {
        match refused {
            Refused::Surface { surface } => DoorError::NotExposed {
                surface: surface.name(),
            },
            Refused::Rate { rate, retry_after } => DoorError::TooFast { rate, retry_after },
        }
    }
}

/// Keys are read before there is a context, since they are what makes one; nothing else of the
/// tenant is reached.
impl KeySource for Store {
    fn keys_of<'a>(&'a self, claim: &'a KeyClaim) -> BoxFuture<'a, StoreResult<Vec<KeyRecord>>> {
        Box::pin(async move {
            let tenant = match self.engine.tenant(claim.tenant()).await {
                Ok(tenant) => tenant,
                Err(StoreError::TenantNotFound { .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let keys = tenant.keys().await?;
            Ok(keys.into_iter().filter_map(record).collect())
        })
    }
}

/// A stored key as the comparison takes it. One that cannot be read opens nothing.
fn record(key: StoredKey) -> Option<KeyRecord> {
    let (id, scope) = (key.id.parse().ok()?, key.scope.parse().ok()?);
    Some(KeyRecord {
        id,
        scope,
        digest: key.digest,
        expires_ms: key.expires_ms,
    })
}

fn check(held: Permission, needed: Permission) -> DoorResult<()> {
    if held.includes(needed) {
        Ok(())
    } else {
        Err(DoorError::Denied { needed, held })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_permission_opens_its_own_door_only() {
        assert!(check(Permission::WriteData, Permission::ReadData).is_ok());
        assert!(check(Permission::ManageTenants, Permission::ManageTenants).is_ok());
        for (held, needed) in [
            (Permission::ReadData, Permission::WriteData),
            (Permission::ManageSystem, Permission::ReadData),
            (Permission::WriteData, Permission::ManageTenants),
            (Permission::Inspect, Permission::ManageSchema),
        ] {
            assert!(
                matches!(check(held, needed), Err(DoorError::Denied { .. })),
                "{held}: {needed}"
            );
        }
    }
}
