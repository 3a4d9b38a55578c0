//! Keys of a tenant: make, list, revoke.
//!
//! The secret of a key is in the answer that makes it and nowhere else. This room must not compare
//! keys; the gate does.

use nimbus_auth::{KeyId, KeyScope, NewKey, OperationContext, Permission};
use nimbus_core::ErrorCode;
use nimbus_storage::StoredKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::answer::{Created, Found, NoContent};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, JsonBody};
use crate::route::Call;

/// Longest name of a key, in characters.
const MAX_NAME: usize = 128;

/// Body of `POST keys`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CreateKey {
    /// What the key may do: read, write, deploy or admin, each with those before it.
    pub scope: String,
    /// For people; at most 128 characters, empty by default.
    #[serde(default)]
    pub name: Option<String>,
    /// Milliseconds until the key is no longer accepted; never without it.
    #[serde(default)]
    pub expires_in_ms: Option<u64>,
}

impl JsonBody for CreateKey {
    const EXAMPLE: &'static str = r#"{"scope":"deploy","name":"ci","expiresInMs":86400000}"#;
}

/// A key as operators see it.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyInfo {
    id: String,
    scope: String,
    name: String,
    /// Milliseconds since 1970.
    created_ms: u64,
    /// Milliseconds since 1970; null for a key without an end.
    expires_ms: Option<u64>,
}

/// A key that was just made, with its secret.
#[derive(Serialize, JsonSchema)]
pub(crate) struct MadeKey {
    /// `{tenant}|{secret}`; shown this once.
    key: String,
    #[serde(flatten)]
    info: KeyInfo,
}

/// Answer of `GET keys`, oldest first.
#[derive(Serialize, JsonSchema)]
pub(crate) struct KeyList {
    keys: Vec<KeyInfo>,
}

impl From<StoredKey> for KeyInfo {
    fn from(key: StoredKey) -> KeyInfo {
        KeyInfo {
            id: key.id,
            scope: key.scope,
            name: key.name,
            created_ms: key.created_ms,
            expires_ms: key.expires_ms,
        }
    }
}

pub(crate) async fn create(
    call: Call<OperationContext>,
    Json(body): Json<CreateKey>,
) -> ApiResult<Created<MadeKey>> {
    let invalid = |error: nimbus_auth::KeyScopeError| ApiError::invalid(error.to_string());
    let scope: KeyScope = body.scope.parse().map_err(invalid)?;
    check_name(body.name.as_deref())?;
    let created_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    let expires_ms = body.expires_in_ms.map(|ms| created_ms.checked_add(ms));
    let expires_ms = match expires_ms {
        Some(None) => return Err(ApiError::invalid("`expiresInMs` is too large")),
        Some(Some(end)) if end == created_ms => {
            return Err(ApiError::invalid("`expiresInMs` must be above 0"));
        }
        end => end.flatten(),
    };
    let (app, context) = (&call.app, &call.context);
    let tenant = app.store.tenant(context, Permission::ManageKeys).await?;
    let key = NewKey::mint(context.tenant())
        .map_err(|error| ApiError::internal(format!("no random bytes for a key: {error}")))?;
    let stored = StoredKey {
        id: key.id.to_string(),
        name: body.name.unwrap_or_default(),
        scope: scope.to_string(),
        digest: key.digest,
        created_ms,
        expires_ms,
    };
    tenant.put_key(stored.clone()).await?;
    call.exchange.note("key.created");
    Ok(Created(MadeKey {
        key: key.expose_credential().to_owned(),
        info: stored.into(),
    }))
}

fn check_name(name: Option<&str>) -> ApiResult<()> {
    let Some(name) = name else { return Ok(()) };
    if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        let text = format!("the name of a key has at most {MAX_NAME} printable characters");
        return Err(ApiError::invalid(text));
    }
    Ok(())
}

pub(crate) async fn list(call: Call<OperationContext>, _: ()) -> ApiResult<Found<KeyList>> {
    let (app, context) = (&call.app, &call.context);
    let tenant = app.store.tenant(context, Permission::ManageKeys).await?;
    let mut keys = tenant.keys().await?;
    keys.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
    let keys = keys.into_iter().map(KeyInfo::from).collect();
    Ok(Found(KeyList { keys }))
}

pub(crate) async fn revoke(call: Call<OperationContext>, _: ()) -> ApiResult<NoContent> {
    let id: Result<KeyId, _> = call.params.text("key")?.parse();
    let id = id.map_err(|error| ApiError::invalid(error.to_string()))?;
    let (app, context) = (&call.app, &call.context);
    let tenant = app.store.tenant(context, Permission::ManageKeys).await?;
    if !tenant.remove_key(id.as_str()).await? {
        let text = format!("the tenant has no key {id}");
        return Err(ApiError::new(ErrorCode::OpNotFound, text));
    }
    call.exchange.note("key.revoked");
    Ok(NoContent)
}
