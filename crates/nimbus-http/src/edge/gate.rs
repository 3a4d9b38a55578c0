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

use super::attempts::{FailedTokens, Verdict};
use super::exchange::Exchange;
use super::origin::ADMIN_HEADER;
use crate::error::ApiError;

/// Lets a caller through to routing and records the decision in `exchange`. Failed credentials may
/// be answered late; right ones never are.
///
/// # Errors
/// 401 for any failed credential, 429 after too many of them, 503 while the audit log cannot be
/// written.
pub(crate) async fn admit(
    authenticator: &Authenticator,
    attempts: &FailedTokens,
    exchange: &Exchange,
    headers: &HeaderMap,
) -> Result<Authenticated, ApiError> {
    let caller = match authenticate(authenticator, headers) {
        Ok(caller) => caller,
        Err(failure) => return Err(refuse(failure, attempts, exchange).await),
    };
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
