//! The admin gate: who may go on to routing under a gated prefix.
//!
//! Decides from header values alone, before any route or tenant is looked at, so the answer is
//! the same for what exists and what does not. It must not read the body.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use nimbus_auth::{
    AuthFailure, AuthMethod, AuthScope, Authenticated, Authenticator, Credentials,
    MalformedCredential,
};
use nimbus_core::ErrorCode;

use super::exchange::Exchange;
use super::origin::ADMIN_HEADER;
use crate::error::ApiError;

/// Lets a caller through to routing and records the decision in `exchange`.
///
/// # Errors
/// 401 for any failed credential, 503 while the audit log cannot be written.
pub(crate) fn admit(
    authenticator: &Authenticator,
    exchange: &Exchange,
    headers: &HeaderMap,
) -> Result<Authenticated, ApiError> {
    let caller = authenticate(authenticator, headers).map_err(|failure| {
        exchange.deny(&failure);
        ApiError::from(failure)
    })?;
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

/// Verifies the two credential headers. A repeated header is malformed: which of its values a
/// proxy in front has looked at cannot be known.
fn authenticate(
    authenticator: &Authenticator,
    headers: &HeaderMap,
) -> Result<Authenticated, AuthFailure> {
    let admin_header = single(headers, &ADMIN_HEADER, AuthMethod::LocalAdminHeader)?;
    let authorization = single(headers, &AUTHORIZATION, AuthMethod::LocalAdminBearer)?;
    authenticator.authenticate(&Credentials {
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

fn single<'a>(
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
