//! The admin gate: who may go on to routing under a gated prefix.
//!
//! Decides from header values alone, before any route or the tenant of the path is looked at, so
//! the answer is the same for what exists and what does not. It must not read the body.

use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use nimbus_auth::{
    AuthFailure, AuthMethod, AuthScope, Authenticated, Authenticator, Claim, Credentials, KeyClaim,
    KeyRecord, MalformedCredential, Permission, RouteFamily,
};
use nimbus_core::{ErrorCode, TenantId};
use nimbus_storage::{StoreError, StoreResult};

use super::attempts::{FailedTokens, Verdict};
use super::exchange::Exchange;
use super::origin::ADMIN_HEADER;
use super::surface::Target;
use crate::error::ApiError;

/// Where the keys of tenants are kept.
pub(crate) trait KeySource: Sync {
    /// The keys of the tenant that `claim` names; none for a tenant that is not there.
    fn keys_of<'a>(&'a self, claim: &'a KeyClaim) -> BoxFuture<'a, StoreResult<Vec<KeyRecord>>>;
}

/// What a credential is checked with.
#[derive(Clone, Copy)]
pub(crate) struct Gate<'a> {
    pub authenticator: &'a Authenticator,
    pub attempts: &'a FailedTokens,
    pub keys: &'a dyn KeySource,
}

impl Gate<'_> {
    /// Lets a caller through to routing and records the decision in `exchange`. Failed credentials
    /// may be answered late; right ones never are.
    ///
    /// # Errors
    /// 401 for any failed credential, 429 after too many of them, 503 while the audit log cannot be
    /// written; for a key of a tenant anywhere but below `/api/tenants/{own}`, the answer for a
    /// tenant that does not exist, or 403 where none is named.
    pub(crate) async fn admit(
        self,
        exchange: &Exchange,
        headers: &HeaderMap,
    ) -> Result<Authenticated, ApiError> {
        let claim = claim(self.authenticator, headers);
        let caller = self.prove(claim, exchange).await?;
        if let Err(failure) = confine(&caller, &exchange.target) {
            exchange.deny(&failure);
            return Err(match &exchange.target.tenant {
                Some(tenant) => refusal(failure, tenant),
                None => failure.into(),
            });
        }
        self.enter(caller, exchange)
    }

    /// Verifies a claim; what failed is recorded and slowed down.
    ///
    /// # Errors
    /// 401, 429; what the store of the key's tenant says.
    pub(crate) async fn prove(
        self,
        claim: Result<Claim, AuthFailure>,
        exchange: &Exchange,
    ) -> Result<Authenticated, ApiError> {
        let proved = match claim {
            Ok(Claim::Verified(caller)) => Ok(caller),
            Ok(Claim::Key(key)) => {
                let known = self.keys.keys_of(&key).await.inspect_err(|_| {
                    exchange.refuse(AuthScope::ServerAccess, "auth.keys_unavailable");
                })?;
                key.verify(&known, now_ms())
            }
            Err(failure) => Err(failure),
        };
        match proved {
            Ok(caller) => Ok(caller),
            Err(failure) => Err(refuse(failure, self.attempts, exchange).await),
        }
    }

    /// Records that a verified caller was let through.
    ///
    /// # Errors
    /// 503 while the audit log cannot be written.
    pub(crate) fn enter(
        self,
        caller: Authenticated,
        exchange: &Exchange,
    ) -> Result<Authenticated, ApiError> {
        if exchange.audit_is_failing() {
            exchange.refuse(AuthScope::ServerAccess, "audit.unavailable");
            let text = "the audit log could not be written; nothing was done; try again";
            return Err(ApiError::new(ErrorCode::ServiceUnavailable, text));
        }
        exchange.allow(caller.method());
        Ok(match exchange.shared_id() {
            Some(id) => caller.with_request_id(id.clone()),
            None => caller,
        })
    }
}

/// What a caller is told who may not act on `tenant`: to a stranger it is not there.
pub(crate) fn refusal(failure: AuthFailure, tenant: &TenantId) -> ApiError {
    match failure {
        AuthFailure::Foreign { .. } => {
            let tenant = tenant.clone();
            StoreError::TenantNotFound { tenant }.into()
        }
        other => other.into(),
    }
}

/// A key acts below `/api/tenants/{own}` and nowhere else. The routes ask again with the tenant
/// that they were given.
fn confine(caller: &Authenticated, target: &Target) -> Result<(), AuthFailure> {
    match (&target.tenant, target.family) {
        (Some(tenant), RouteFamily::NativeApi) => caller.check_tenant(tenant),
        // For a key the answer is one, whatever is or is not here.
        _ => caller.server_context(Permission::Inspect).map(drop),
    }
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// The answer to a failed credential. A request without any is no try to guess one.
async fn refuse(failure: AuthFailure, attempts: &FailedTokens, exchange: &Exchange) -> ApiError {
    exchange.deny(&failure);
    let verdict = match failure {
        AuthFailure::Missing => Verdict::Answer,
        _ => attempts.slow_down(exchange.client()).await,
    };
    match verdict {
        Verdict::Answer => failure.into(),
        Verdict::TooMany => {
            exchange.note("auth.too_many_failures");
            let text = "too many failed credentials; wait a second before the next";
            ApiError::new(ErrorCode::RateResourceExhausted, text)
        }
    }
}

/// Reads the two credential headers. A repeated header is malformed: which of its values a
/// proxy in front has looked at cannot be known.
pub(crate) fn claim(
    authenticator: &Authenticator,
    headers: &HeaderMap,
) -> Result<Claim, AuthFailure> {
    let admin_header = single(headers, &ADMIN_HEADER, AuthMethod::LocalAdminHeader)?;
    let authorization = single(headers, &AUTHORIZATION, AuthMethod::LocalAdminBearer)?;
    authenticator.claim(&Credentials {
        authorization,
        admin_header,
    })
}

/// Verifies the bearer form alone, for the route that insists on it (nimbus.md 2.2).
pub(crate) fn authenticate_bearer(
    authenticator: &Authenticator,
    headers: &HeaderMap,
) -> Result<Authenticated, AuthFailure> {
    let authorization = single(headers, &AUTHORIZATION, AuthMethod::LocalAdminBearer)?;
    authenticator.authenticate(&Credentials {
        authorization,
        admin_header: None,
    })
}

pub(crate) fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    method: AuthMethod,
) -> Result<Option<&'a str>, AuthFailure> {
    let malformed = AuthFailure::Malformed {
        method,
        fault: MalformedCredential::Characters,
    };
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| malformed),
        (Some(_), Some(_)) => Err(malformed),
    }
}
