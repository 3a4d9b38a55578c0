//! The server itself: live token rotation, shutdown, version, OpenAPI, metrics.
//!
//! It must not touch tenants.

use std::sync::Arc;

use nimbus_auth::ServerContext;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Found, MetricsText, Spliced};
use crate::edge::gate::authenticate_bearer;
use crate::error::{ApiError, ApiResult};
use crate::route::Call;

/// Answer of a rotation; clients read the new token from its file.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Rotated {
    generation: u64,
}

pub(crate) async fn rotate(call: Call<ServerContext>, _: ()) -> ApiResult<Found<Rotated>> {
    authenticate_bearer(&call.app.authenticator, &call.headers).map_err(|failure| {
        call.exchange.deny(&failure);
        ApiError::from(failure)
    })?;
    let (verifier, path) = (Arc::clone(&call.app.verifier), call.app.token_path.clone());
    let rotation = tokio::task::spawn_blocking(move || verifier.rotate_live(&path));
    let outcome = rotation
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let generation = outcome.map_err(|error| ApiError::internal(error.to_string()))?;
    call.exchange.note("token.rotated");
    Ok(Found(Rotated { generation }))
}

/// Answer of a shutdown request, sent before the server stops.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Accepted {
    accepted: bool,
}

pub(crate) async fn shutdown(call: Call<ServerContext>, _: ()) -> ApiResult<Found<Accepted>> {
    call.exchange.note("server.shutdown_requested");
    call.app.stop.send_replace(true);
    Ok(Found(Accepted { accepted: true }))
}

/// What runs here. Nothing is ever asked of the network, so nothing newer is known.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VersionInfo {
    current: &'static str,
    latest: Option<String>,
    available: bool,
    url: Option<String>,
    published_at: Option<String>,
    host: Option<String>,
    check_status: &'static str,
    upgrade: Option<String>,
}

pub(crate) async fn version(_: Call<ServerContext>, _: ()) -> ApiResult<Found<VersionInfo>> {
    Ok(Found(VersionInfo {
        current: env!("CARGO_PKG_VERSION"),
        latest: None,
        available: false,
        url: None,
        published_at: None,
        host: None,
        check_status: "disabled",
        upgrade: None,
    }))
}

pub(crate) async fn metrics(call: Call<ServerContext>, _: ()) -> ApiResult<MetricsText> {
    let text = call
        .app
        .metrics
        .render(&call.app.store.metrics(), call.app.store.policies());
    text.map(MetricsText)
        .map_err(|error| ApiError::internal(error.to_string()))
}

pub(crate) async fn openapi(
    _: Call<ServerContext>,
    _: (),
) -> ApiResult<Spliced<serde_json::Map<String, serde_json::Value>>> {
    Ok(Spliced::new(crate::openapi::document()))
}
