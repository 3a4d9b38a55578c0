//! The one door to stored data: every call names a context that `nimbus-auth` made from a
//! verified credential (design section 1).
//!
//! No other file of this crate may name the engine. This room must not know HTTP, routes or
//! wire formats; it checks the permission and hands over.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use nimbus_auth::{
    FunctionContext, KeyClaim, KeyRecord, OperationContext, Permission, ServerContext,
};
use nimbus_core::TenantId;
use nimbus_storage::StoredKey;
use nimbus_storage::backup::{self, Backup, BackupError, Source, Summary};
use nimbus_storage::encryption::Keyring;
use nimbus_storage::{Engine, EngineMetrics, MoveStatus, StoreError, StoreResult, Tenant};

use crate::edge::gate::KeySource;

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
        }
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
        Ok(self.engine.tenant(context.tenant()).await?)
    }

    /// The tenant of the context, for running its functions.
    ///
    /// # Errors
    /// `TenantNotFound`; storage errors.
    pub(crate) async fn functions(&self, context: &FunctionContext) -> DoorResult<Tenant> {
        Ok(self.engine.tenant(context.tenant()).await?)
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
        Ok(self.engine.create_tenant(tenant).await?)
    }

    /// Deletes the tenant of the context with all that it owns.
    ///
    /// # Errors
    /// [`DoorError::Denied`]; `TenantNotFound`; storage errors.
    pub async fn delete_tenant(&self, context: &OperationContext) -> DoorResult<()> {
        check(context.permission(), Permission::ManageTenants)?;
        Ok(self.engine.delete_tenant(context.tenant()).await?)
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
