//! Reports for operators (nimbus.md 2.10), those of later features in their disabled form.
//!
//! It must never show key material or data of documents.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nimbus_auth::{OperationContext, Permission, ServerContext};
use nimbus_core::TenantId;
use nimbus_storage::{ConsistencyReport, TenantMetrics};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::Found;
use crate::encryption::EncryptionReport;
use crate::error::{ApiError, ApiResult};
use crate::functions::CacheMetrics;
use crate::route::Call;

/// Any JSON object, where the shape is the engine's to define.
type AnyObject = serde_json::Map<String, serde_json::Value>;

/// The consistency report of nimbus.md 2.10.
#[derive(Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "AnyObject")]
pub(crate) struct Consistency(ConsistencyReport);

pub(crate) async fn consistency(
    call: Call<OperationContext>,
    _: (),
) -> ApiResult<Found<Consistency>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::Inspect)
        .await?;
    Ok(Found(Consistency(tenant.consistency().await?)))
}

/// Counters of one open tenant.
#[derive(Serialize, JsonSchema)]
pub(crate) struct EngineReport {
    #[schemars(with = "String")]
    tenant_id: TenantId,
    #[schemars(with = "AnyObject")]
    diagnostics: TenantMetrics,
}

pub(crate) async fn engine_metrics(
    call: Call<OperationContext>,
    _: (),
) -> ApiResult<Found<EngineReport>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::Inspect)
        .await?;
    Ok(Found(EngineReport {
        tenant_id: call.context.tenant().clone(),
        diagnostics: tenant.metrics(),
    }))
}

pub(crate) async fn encryption(
    call: Call<ServerContext>,
    _: (),
) -> ApiResult<Found<EncryptionReport>> {
    Ok(Found(call.app.encryption.clone()))
}

/// Licence: the community one, on which nothing here depends.
#[derive(Serialize, JsonSchema)]
pub(crate) struct LicenseStatus {
    source: LicenseSource,
    kind: &'static str,
    status: &'static str,
    entitlements: BTreeMap<&'static str, bool>,
    usage: LicenseUsage,
    warnings: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
struct LicenseSource {
    kind: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct LicenseUsage {
    /// Calendar month in UTC, as `2026-06`.
    month: String,
    month_start_unix_ms: i64,
    monthly_active_users: u64,
}

const ENTITLEMENTS: [&str; 8] = [
    "hosted_service",
    "oem_embedding",
    "premium_support",
    "custom_terms",
    "sso",
    "audit_logs",
    "backup_api",
    "multi_node",
];

pub(crate) async fn license(_: Call<ServerContext>, _: ()) -> ApiResult<Found<LicenseStatus>> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let start = today.first_of_month().to_zoned(TimeZone::UTC);
    let start = start.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Found(LicenseStatus {
        source: LicenseSource {
            kind: "community_default",
        },
        kind: "community",
        status: "community",
        entitlements: ENTITLEMENTS.iter().map(|name| (*name, false)).collect(),
        usage: LicenseUsage {
            month: start.strftime("%Y-%m").to_string(),
            month_start_unix_ms: start.timestamp().as_millisecond(),
            monthly_active_users: 0,
        },
        warnings: Vec::new(),
    }))
}

/// Function runtime: its budgets and counters, those of the query cache included.
#[derive(Serialize, JsonSchema)]
pub(crate) struct RuntimeReport {
    #[schemars(with = "AnyObject")]
    limits: nimbus_runtime::Limits,
    /// A realm is made for each call, so there is nothing to reset.
    reset_capabilities: Option<AnyObject>,
    #[schemars(with = "AnyObject")]
    metrics: RuntimeCounters,
    /// There are no lanes: one pool serves all.
    lanes: Vec<AnyObject>,
}

#[derive(Serialize)]
struct RuntimeCounters {
    #[serde(flatten)]
    runtime: nimbus_runtime::Metrics,
    #[serde(flatten)]
    cache: CacheMetrics,
}

pub(crate) async fn runtime(call: Call<ServerContext>, _: ()) -> ApiResult<Found<RuntimeReport>> {
    let functions = &call.app.functions;
    Ok(Found(RuntimeReport {
        limits: functions.runtime().limits(),
        reset_capabilities: None,
        metrics: RuntimeCounters {
            runtime: functions.runtime().metrics(),
            cache: functions.cache_metrics(),
        },
        lanes: Vec::new(),
    }))
}
