//! From the head of a request to the leave to call functions of its tenant.
//!
//! A request without a credential has the leave that everyone has. One with a credential that fails
//! is refused, and the refusal is audited and slowed down like one of the admin surface.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Query;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Uri};
use nimbus_auth::token::TOKEN_PREFIX;
use nimbus_auth::{
    AuthFailure, AuthMethod, Claim, Credentials, FunctionAccess, FunctionContext, KeyClaim,
    MalformedCredential,
};
use nimbus_core::{ErrorCode, TenantId};
use nimbus_storage::Tenant;

use super::client::Client;
use crate::app::App;
use crate::edge::exchange::Exchange;
use crate::edge::gate::{refusal, single};
use crate::edge::origin::ADMIN_HEADER;
use crate::error::{ApiError, ApiResult};
use crate::extract::PathParams;
use crate::functions::Caller;
use crate::functions::identity::Identity;
use crate::route::ConvexCall;

/// Shortest value of `Authorization` that is looked at (convex.md 1.2).
const MIN_AUTHORIZATION: usize = 7;
/// Deployment types that tools write before a key.
const TYPES: [&str; 3] = ["prod:", "dev:", "preview:"];

/// A request whose caller is known.
pub(crate) struct Entered {
    pub app: Arc<App>,
    pub exchange: Arc<Exchange>,
    pub tenant: Tenant,
    pub caller: Caller,
    pub client: Client,
    pub headers: HeaderMap,
    pub params: PathParams,
    pub uri: Uri,
}

/// A credential as it was presented, and the user to act as.
struct Presented {
    claim: Result<Claim, AuthFailure>,
    acting_as: Option<String>,
}

/// Finds out who calls, and opens the tenant. The body is given back unread.
///
/// # Errors
/// 400 for malformed headers; 401 for a credential that fails; 404 for a tenant that is not there,
/// and for one that is not the key's own; 403 for acting as a user without leave.
pub(crate) async fn enter(call: ConvexCall) -> ApiResult<(Entered, Body)> {
    let ConvexCall {
        app,
        exchange,
        headers,
        params,
        uri,
        body,
    } = call;
    let named = params.text("tenant")?.parse::<TenantId>();
    let client = Client::of(&headers)?;
    let presented = presented(&app, &headers, &uri)?;
    // Nothing that could not be created is there.
    let tenant = named.map_err(|_| missing())?;
    let caller = match presented {
        None => Caller {
            context: FunctionContext::public(tenant, exchange.shared_id().cloned()),
            identity: None,
        },
        Some(presented) => verified(&app, &exchange, tenant, presented).await?,
    };
    let opened = app.store.functions(&caller.context).await;
    let tenant = opened.map_err(|error| match error {
        crate::store::DoorError::Store(nimbus_storage::StoreError::TenantNotFound { .. }) => {
            missing()
        }
        other => other.into(),
    })?;
    let entered = Entered {
        app,
        exchange,
        tenant,
        caller,
        client,
        headers,
        params,
        uri,
    };
    Ok((entered, body))
}

/// The one answer for tenants that are not there, or not for this caller. It names none, so that
/// all are alike.
fn missing() -> ApiError {
    let text = "there is no such tenant on this server";
    ApiError::convex("TenantNotFound", ErrorCode::SessionTenantNotFound, text)
}

async fn verified(
    app: &App,
    exchange: &Exchange,
    tenant: TenantId,
    presented: Presented,
) -> ApiResult<Caller> {
    exchange.audit();
    let gate = app.gate();
    let proved = gate.prove(presented.claim, exchange).await;
    let proved = proved.map_err(|error| match error.code() {
        ErrorCode::AuthUnauthorized => {
            let text = "The provided admin key was invalid for this instance";
            ApiError::convex("BadDeployKey", ErrorCode::AuthUnauthorized, text)
        }
        _ => error,
    })?;
    let denied = |failure: AuthFailure| {
        exchange.deny(&failure);
        match failure {
            AuthFailure::Foreign { .. } => missing(),
            other => refusal(other, &tenant),
        }
    };
    proved.check_tenant(&tenant).map_err(denied)?;
    let caller = gate.enter(proved, exchange)?;
    let context = caller.function_context(tenant.clone()).map_err(denied)?;
    let identity = match presented.acting_as {
        None => None,
        Some(_) if context.access() != FunctionAccess::Internal => {
            exchange.forbid();
            let text = "this key may not act as a user; a key with the scope deploy may";
            return Err(ApiError::new(ErrorCode::AuthPermissionDenied, text));
        }
        Some(text) => {
            let identity = Identity::from_base64(&text).map_err(|error| {
                let code = ErrorCode::OpInvalidInput;
                ApiError::convex("InvalidActingAs", code, error.to_string())
            })?;
            Some(Arc::new(identity))
        }
    };
    Ok(Caller { context, identity })
}

/// The credential of a request, wherever it is: the admin header, `Authorization`, or `?adminKey=`.
fn presented(app: &App, headers: &HeaderMap, uri: &Uri) -> ApiResult<Option<Presented>> {
    let admin_method = AuthMethod::LocalAdminHeader;
    let admin = match single(headers, &ADMIN_HEADER, admin_method) {
        Err(failure) => return Ok(Some(failed(failure))),
        Ok(admin) => admin,
    };
    if admin.is_some() {
        let credentials = Credentials {
            authorization: None,
            admin_header: admin,
        };
        return Ok(Some(Presented {
            claim: app.authenticator.claim(&credentials),
            acting_as: None,
        }));
    }
    match single(headers, &AUTHORIZATION, AuthMethod::LocalAdminBearer) {
        Err(failure) => Ok(Some(failed(failure))),
        Ok(Some(value)) => authorization(app, value).map(Some),
        Ok(None) => Ok(admin_key(uri)?.map(|key| key_form(app, &key))),
    }
}

fn failed(failure: AuthFailure) -> Presented {
    Presented {
        claim: Err(failure),
        acting_as: None,
    }
}

fn authorization(app: &App, value: &str) -> ApiResult<Presented> {
    let value = value.trim_matches([' ', '\t']);
    let (scheme, credential) = value.split_once([' ', '\t']).unwrap_or((value, ""));
    let credential = credential.trim_matches([' ', '\t']);
    if value.len() < MIN_AUTHORIZATION {
        return Err(bad_header());
    }
    if scheme.eq_ignore_ascii_case("Convex") {
        return Ok(key_form(app, credential));
    }
    if !scheme.eq_ignore_ascii_case("Bearer") {
        return Err(bad_header());
    }
    if credential.starts_with(TOKEN_PREFIX) || credential.contains('|') {
        return Ok(key_form(app, credential));
    }
    // Logins of applications come later; until then no issuer is known.
    let text = "No auth provider found matching the given token: this deployment has no application login configured.";
    Err(ApiError::convex(
        "NoAuthProvider",
        ErrorCode::AuthUnauthorized,
        text,
    ))
}

fn bad_header() -> ApiError {
    let text =
        "the header `Authorization` must be `Bearer` and a token, or `Convex` and an admin key";
    ApiError::convex("InvalidHeaderFailure", ErrorCode::OpInvalidInput, text)
}

/// `key` or `key:base64`, the key being one of a tenant or the admin token (convex.md 4.8).
fn key_form(app: &App, text: &str) -> Presented {
    let text = TYPES
        .iter()
        .find_map(|kind| text.strip_prefix(kind))
        .unwrap_or(text);
    let (key, acting_as) = match text.split_once(':') {
        Some((key, user)) => (key, Some(user.to_owned())),
        None => (text, None),
    };
    let claim = if key.contains('|') {
        // An id or a secret with a blank in it would not be one anyway.
        KeyClaim::parse(key).map(Claim::Key)
    } else if key.is_empty() {
        let (method, fault) = (AuthMethod::TenantKey, MalformedCredential::Empty);
        Err(AuthFailure::Malformed { method, fault })
    } else {
        let bearer = zeroize::Zeroizing::new(format!("Bearer {key}"));
        app.authenticator.claim(&Credentials {
            authorization: Some(&bearer),
            admin_header: None,
        })
    };
    Presented { claim, acting_as }
}

fn admin_key(uri: &Uri) -> ApiResult<Option<String>> {
    if !uri.query().is_some_and(|query| query.contains("adminKey")) {
        return Ok(None);
    }
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| ApiError::invalid("the query string is malformed"))?;
    let mut keys = pairs.0.into_iter().filter(|(name, _)| name == "adminKey");
    match (keys.next(), keys.next()) {
        (Some(_), Some(_)) => Err(ApiError::invalid("`adminKey` is repeated")),
        (first, _) => Ok(first.map(|(_, key)| key)),
    }
}
