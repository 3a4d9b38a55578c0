//! Leave to call the functions of one tenant: what anyone has, and what a verified caller has more.
//!
//! Public functions are open to everyone by their nature, so a context for them needs no
//! credential. This room must not know how functions are found or run.

use nimbus_core::TenantId;

use crate::context::{AuthFailure, Authenticated, Permission, Principal, RequestId};
use crate::keys::KeyScope;

/// Which functions a caller may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FunctionAccess {
    /// Public queries.
    PublicQueries,
    /// Public functions of every kind.
    Public,
    /// Internal functions too, and acting as a user.
    Internal,
}

/// Leave to call functions of one tenant. A function may do anything within its tenant, and nothing
/// outside; what the caller may not do is choose another one.
#[derive(Clone, Debug)]
pub struct FunctionContext {
    tenant: TenantId,
    principal: Option<Principal>,
    access: FunctionAccess,
    request_id: Option<RequestId>,
}

impl FunctionContext {
    /// The leave that everyone has: public functions.
    pub fn public(tenant: TenantId, request_id: Option<RequestId>) -> Self {
        Self {
            tenant,
            principal: None,
            access: FunctionAccess::Public,
            request_id,
        }
    }

    /// The tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Who calls; `None` for anyone.
    pub fn principal(&self) -> Option<&Principal> {
        self.principal.as_ref()
    }

    /// Which functions may be called.
    pub fn access(&self) -> FunctionAccess {
        self.access
    }

    /// The request behind it, if one was named.
    pub fn request_id(&self) -> Option<&RequestId> {
        self.request_id.as_ref()
    }
}

impl Authenticated {
    /// Leave to call the functions of `tenant`.
    ///
    /// # Errors
    /// [`AuthFailure::Foreign`] for a key of another tenant.
    pub fn function_context(&self, tenant: TenantId) -> Result<FunctionContext, AuthFailure> {
        self.check_tenant(&tenant)?;
        let access = match self.principal() {
            Principal::Operator { .. } => FunctionAccess::Internal,
            Principal::TenantKey { scope, .. } => match scope {
                KeyScope::Read => FunctionAccess::PublicQueries,
                KeyScope::Write => FunctionAccess::Public,
                KeyScope::Deploy | KeyScope::Admin => FunctionAccess::Internal,
            },
        };
        // Whoever may read data may call queries; asked here so that a new kind of principal
        // that may not has to be thought of.
        let context = self.tenant_context(tenant, Permission::ReadData)?;
        Ok(FunctionContext {
            tenant: context.tenant().clone(),
            principal: Some(context.principal().clone()),
            access,
            request_id: context.request_id().cloned(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::keys::{KeyClaim, KeyRecord, NewKey};

    #[test]
    fn a_caller_has_the_functions_of_its_scope_in_its_own_tenant() {
        let tenant: TenantId = "demo".parse().unwrap();
        let anyone = FunctionContext::public(tenant.clone(), None);
        assert_eq!(anyone.access(), FunctionAccess::Public);
        assert!(anyone.principal().is_none());
        let table = [
            (KeyScope::Read, FunctionAccess::PublicQueries),
            (KeyScope::Write, FunctionAccess::Public),
            (KeyScope::Deploy, FunctionAccess::Internal),
            (KeyScope::Admin, FunctionAccess::Internal),
        ];
        let key = NewKey::mint(&tenant).unwrap();
        for (scope, access) in table {
            let record = KeyRecord {
                id: key.id.clone(),
                scope,
                digest: key.digest,
                expires_ms: None,
            };
            let claim = KeyClaim::parse(key.expose_credential()).unwrap();
            let caller = claim.verify(&[record], 0).unwrap();
            let context = caller.function_context(tenant.clone()).unwrap();
            assert_eq!(context.access(), access, "{scope}");
            assert_eq!(context.tenant(), &tenant);
            let other = caller.function_context("demo2".parse().unwrap());
            assert!(matches!(other, Err(AuthFailure::Foreign { .. })));
        }
    }
}
