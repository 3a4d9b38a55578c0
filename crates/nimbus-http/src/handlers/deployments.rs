//! Deployments of a tenant: make, list, go back. And the environment that its functions read.
//!
//! It must not know what a bundle means or how it is kept; it reads what was sent and writes what became of it.

use axum::body::Body;
use http::HeaderMap;
use nimbus_auth::{OperationContext, Permission};
use nimbus_core::ErrorCode;
use nimbus_storage::{Deployment, DeploymentId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::answer::{Found, NoContent};
use crate::error::{ApiError, ApiResult};
use crate::extract::{BodyDoc, Input, Json, JsonBody, check_content_type, read_body};
use crate::functions::deploy::{DeployFailure, Deployed};
use crate::functions::diff::DeploymentDiff;
use crate::functions::push::PushBody;
use crate::route::Call;

/// Bytes of a deployment at most (convex.md 0, `MAX_PUSH_BYTES`).
const MAX_PUSH_BYTES: usize = 200 * 1024 * 1024;
/// Deployments that are listed: as many as are kept.
const LISTED: usize = nimbus_storage::KEPT_DEPLOYMENTS;
/// Variables that one request changes at most.
const MAX_CHANGES: usize = 512;

/// A body that may be longer than others, and whose handling takes as long as the tenant is large.
pub(crate) struct Pushed(PushBody);

impl Input for Pushed {
    // Documents are checked and indexes filled before the answer; the runtime bounds what runs code.
    const STREAMS: bool = true;

    fn doc() -> Option<BodyDoc> {
        Json::<PushBody>::doc()
    }

    async fn take(headers: &HeaderMap, body: Body, limit: usize) -> ApiResult<Pushed> {
        check_content_type(headers, "application/json")?;
        let body = read_body(headers, body, limit.max(MAX_PUSH_BYTES)).await?;
        // Reading what is that long would hold up the requests of others.
        let parsing = tokio::task::spawn_blocking(move || Json::<PushBody>::parse(&body));
        let parsed = parsing
            .await
            .map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(Pushed(parsed?.0))
    }
}

/// No body, and as much time as the tenant needs.
pub(crate) struct Unhurried;

impl Input for Unhurried {
    const STREAMS: bool = true;

    fn doc() -> Option<BodyDoc> {
        None
    }

    async fn take(_: &HeaderMap, _: Body, _: usize) -> ApiResult<Unhurried> {
        Ok(Unhurried)
    }
}

/// A deployment as it is listed.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeploymentInfo {
    /// Its name.
    id: String,
    /// Counts the deployments of the tenant.
    generation: u64,
    /// Milliseconds since 1970.
    created_ms: u64,
    /// What was said about it.
    message: Option<String>,
    /// How many modules it has, shared chunks included.
    modules: usize,
}

impl From<&Deployment> for DeploymentInfo {
    fn from(deployment: &Deployment) -> DeploymentInfo {
        DeploymentInfo {
            id: deployment.id.to_string(),
            generation: deployment.generation,
            created_ms: deployment.created_ms,
            message: deployment.message.clone(),
            modules: deployment.modules.len(),
        }
    }
}

/// Answer to a deployment.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeployAnswer {
    /// Whether nothing was changed.
    dry_run: bool,
    /// The new deployment; null after a dry run.
    deployment: Option<DeploymentInfo>,
    /// Generation of the deployment before; null for the first.
    previous_generation: Option<u64>,
    /// What differs from it.
    diff: DeploymentDiff,
}

/// Answer of `GET deployments`, newest first; the first one runs.
#[derive(Serialize, JsonSchema)]
pub(crate) struct DeploymentList {
    deployments: Vec<DeploymentInfo>,
}

pub(crate) async fn create(
    call: Call<OperationContext>,
    Pushed(body): Pushed,
) -> ApiResult<Found<DeployAnswer>> {
    let (app, context) = (&call.app, &call.context);
    let tenant = app.store.tenant(context, Permission::Deploy).await?;
    let push = body.check().map_err(DeployFailure::from)?;
    let dry_run = push.dry_run;
    let done = app
        .functions
        .deploy(context.tenant(), &tenant, push)
        .await?;
    if dry_run {
        call.exchange.note("deployment.checked");
    } else {
        call.exchange
            .note(format!("deployment.created {}", done.deployment.id));
    }
    Ok(Found(answer(&done, dry_run)))
}

pub(crate) async fn list(call: Call<OperationContext>, _: ()) -> ApiResult<Found<DeploymentList>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::Deploy)
        .await?;
    let kept = tenant.deployments(LISTED).await?;
    Ok(Found(DeploymentList {
        deployments: kept
            .iter()
            .map(|deployment| DeploymentInfo::from(&**deployment))
            .collect(),
    }))
}

pub(crate) async fn roll_back(
    call: Call<OperationContext>,
    _: Unhurried,
) -> ApiResult<Found<DeployAnswer>> {
    let to: DeploymentId = call.params.text("deployment")?.parse()?;
    let (app, context) = (&call.app, &call.context);
    let tenant = app.store.tenant(context, Permission::Deploy).await?;
    let done = app.functions.roll_back(&tenant, &to).await?;
    call.exchange.note(format!(
        "deployment.rolled_back {to} {}",
        done.deployment.id
    ));
    Ok(Found(answer(&done, false)))
}

fn answer(done: &Deployed, dry_run: bool) -> DeployAnswer {
    DeployAnswer {
        dry_run,
        deployment: (!dry_run).then(|| DeploymentInfo::from(&*done.deployment)),
        previous_generation: done.previous_generation,
        diff: done.diff.clone(),
    }
}

impl From<DeployFailure> for ApiError {
    fn from(failure: DeployFailure) -> ApiError {
        let message = failure.to_string();
        match failure {
            DeployFailure::Push(error) => {
                ApiError::invalid(message).with_detail(json!({"pushCode": error.code}))
            }
            DeployFailure::Raced { code, .. } => {
                ApiError::new(ErrorCode::OpConflict, message).with_detail(json!({"pushCode": code}))
            }
            DeployFailure::Unknown(_) => ApiError::new(ErrorCode::OpNotFound, message),
            DeployFailure::Call(error) => error.into(),
        }
    }
}

/// A variable.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Variable {
    /// Its name.
    name: String,
    /// Its value.
    value: String,
}

/// Answer of `GET environment`, by name.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Variables {
    variables: Vec<Variable>,
}

/// Body of `POST environment`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeVariables {
    /// At most 512, all in one commit.
    pub changes: Vec<VariableChange>,
}

/// What becomes of one variable.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VariableChange {
    /// Its name: at most 256 letters, digits and `_`, not beginning with a digit or `CONVEX_`.
    pub name: String,
    /// Its value, of at most 8 KiB; null removes the variable.
    #[serde(default)]
    pub value: Option<String>,
}

impl JsonBody for ChangeVariables {
    const EXAMPLE: &'static str = r#"{"changes":[{"name":"ISSUER","value":"https://id.example"}]}"#;
}

pub(crate) async fn variables(call: Call<OperationContext>, _: ()) -> ApiResult<Found<Variables>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::Deploy)
        .await?;
    let all = tenant.environment().await?.into_iter();
    Ok(Found(Variables {
        variables: all.map(|(name, value)| Variable { name, value }).collect(),
    }))
}

pub(crate) async fn change_variables(
    call: Call<OperationContext>,
    Json(body): Json<ChangeVariables>,
) -> ApiResult<NoContent> {
    if body.changes.len() > MAX_CHANGES {
        return Err(ApiError::invalid(format!(
            "a request changes at most {MAX_CHANGES} variables"
        )));
    }
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::Deploy)
        .await?;
    let names: Vec<&str> = body
        .changes
        .iter()
        .map(|change| change.name.as_str())
        .collect();
    // Of a refused request the names may be anything, so they are noted once it went through.
    let note = format!("environment.changed {}", names.join(","));
    let changes = body
        .changes
        .into_iter()
        .map(|change| (change.name, change.value));
    tenant.update_environment(changes.collect()).await?;
    call.exchange.note(note);
    Ok(NoContent)
}
