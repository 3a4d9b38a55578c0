//! The policy of a tenant: what is in force, its versions, and putting another in force.
//!
//! It must not know how decisions are enforced.

use std::sync::Arc;

use nimbus_auth::{OperationContext, ServerContext};
use nimbus_core::ErrorCode;
use nimbus_policy::{DiffReport, ExplainReport, Policy, Source, compile, diff};
use nimbus_storage::{PolicyVersion, StoreError, StoredPolicy, Usage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::answer::Found;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, JsonBody, QueryField, QueryKind};
use crate::policy::Policies;
use crate::route::Call;
use crate::store::{DoorError, KeptPolicy};

/// What errors call the text of a request.
const NAME: &str = "policy";

/// Parameters of `GET policy`.
pub(crate) const PARAMETERS: &[QueryField] = &[QueryField {
    name: "version",
    kind: QueryKind::Number(None),
    summary: "The version to show; the current one when it is left out.",
}];

/// Body of `PUT policy`: a policy, or the version to go back to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PutPolicy {
    /// The policy file, YAML; at most 1 MiB.
    #[serde(default)]
    pub policy: Option<String>,
    /// An earlier version, to put in force again as a new one.
    #[serde(default)]
    pub restore_version: Option<u64>,
    /// The version that must be current, 0 for none; 412 if another is.
    #[serde(default)]
    pub expected_version: Option<u64>,
    /// Whether to say what would change and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl JsonBody for PutPolicy {
    const EXAMPLE: &'static str = r#"{"policy":"schema_version: 1\ntenant: demo\nworkloads:\n- {kind: http_request, name: native_api}\n","expectedVersion":0,"dryRun":true}"#;
}

/// Where a policy comes from.
#[derive(Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PolicySource {
    /// Nowhere: the flags of the server hold.
    None,
    /// `PUT policy`.
    Tenant,
    /// A file in the directory that `--policy-dir` names.
    Directory,
}

/// Answer of `GET policy`.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyAnswer {
    source: PolicySource,
    /// Of a policy that was put.
    version: Option<u64>,
    /// When it was put, in milliseconds since 1970.
    created_ms: Option<u64>,
    /// The version that it repeats.
    restored_from: Option<u64>,
    /// The file.
    policy: Option<String>,
    /// What it grants, as `nimbus policy explain -f json` says it; null where nothing is granted.
    explanation: Option<ExplainReport>,
    /// What the tenant holds, where a quota counts it.
    #[schemars(with = "Option<ShownUsage>")]
    usage: Option<Usage>,
    /// The newest versions that were put, newest first.
    #[schemars(with = "Vec<ShownVersion>")]
    versions: Vec<PolicyVersion>,
}

/// What a tenant holds.
#[derive(JsonSchema)]
#[schemars(rename = "PolicyUsage")]
#[allow(dead_code, reason = "read by the schema generator alone")]
struct ShownUsage {
    documents: u64,
    bytes: u64,
}

/// A version that was put.
#[derive(JsonSchema)]
#[schemars(rename = "PolicyVersion")]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "read by the schema generator alone")]
struct ShownVersion {
    version: u64,
    created_ms: u64,
    restored_from: Option<u64>,
    bytes: u64,
}

/// Answer of `PUT policy`.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PutAnswer {
    dry_run: bool,
    /// The version that is in force now; null of a dry run.
    version: Option<u64>,
    previous_version: Option<u64>,
    /// What changed, as `nimbus policy diff -f json` says it; null if there was no policy before.
    changes: Option<DiffReport>,
    /// What is granted, as `nimbus policy explain -f json` says it.
    explanation: ExplainReport,
}

pub(crate) async fn get(call: Call<OperationContext>, _: ()) -> ApiResult<Found<PolicyAnswer>> {
    let (context, store) = (&call.context, &call.app.store);
    let version = call.query.number("version")?;
    let kept = store.policy(context, version).await?;
    if let Some(version) = version
        && kept.shown.is_none()
    {
        return Err(no_version(version));
    }
    let directory = store.policies().directory().filter(|_| version.is_none());
    let file = directory.and_then(|directory| {
        let loaded = directory.loaded();
        loaded.files.get(context.tenant()).cloned()
    });
    let stored = kept.shown.filter(|_| directory.is_none());
    let (text, explanation) = match (&file, &stored) {
        // It is compiled already.
        (Some(file), _) => (
            Some(&file.text),
            file.authority.policy().map(ExplainReport::new),
        ),
        (None, Some(stored)) => (
            Some(&stored.text),
            read(&stored.text).ok().as_ref().map(ExplainReport::new),
        ),
        (None, None) => (None, None),
    };
    Ok(Found(PolicyAnswer {
        source: match (directory, &stored) {
            (Some(_), _) => PolicySource::Directory,
            (None, Some(_)) => PolicySource::Tenant,
            (None, None) => PolicySource::None,
        },
        version: stored.as_ref().map(|stored| stored.version),
        created_ms: stored.as_ref().map(|stored| stored.created_ms),
        restored_from: stored.as_ref().and_then(|stored| stored.restored_from),
        policy: text.map(|text| text.to_string()),
        explanation,
        usage: store.counted_usage(context, &kept.tenant).await?,
        versions: kept.versions,
    }))
}

fn no_version(version: u64) -> ApiError {
    let text = format!("the policy has no version {version}, or it is not kept any more");
    ApiError::new(ErrorCode::OpNotFound, text)
}

fn read(text: &str) -> Result<Policy, ApiError> {
    let source = Source::new(NAME, text.as_bytes().to_vec());
    compile(&source).map_err(|invalid| {
        let report = invalid.report();
        let text = format!("this is no valid policy:\n{}", invalid.render(false));
        ApiError::invalid(text).with_detail(json!({ "policy": report }))
    })
}

pub(crate) async fn put(
    call: Call<OperationContext>,
    Json(body): Json<PutPolicy>,
) -> ApiResult<Found<PutAnswer>> {
    let (context, store) = (&call.context, &call.app.store);
    if store.policies().directory().is_some() {
        return Err(DoorError::PoliciesFromDirectory.into());
    }
    let kept = store.policy(context, None).await?;
    let (text, restored_from) = wanted(&kept, &body).await?;
    let policy = read(&text)?;
    if policy.tenant() != context.tenant() {
        let (found, tenant) = (policy.tenant(), context.tenant());
        let text = format!("the policy is for the tenant `{found}`, not `{tenant}`");
        return Err(ApiError::invalid(text));
    }
    let before = kept.shown.as_deref();
    let previous_version = before.map(|before| before.version);
    let changes = changes(before, &policy);
    let explanation = ExplainReport::new(&policy);
    let version = match body.dry_run {
        true => {
            expect(body.expected_version, &kept)?;
            None
        }
        false => {
            // Unless the caller says which one, the version that the changes are told against.
            let expected = body
                .expected_version
                .or(Some(previous_version.unwrap_or(0)));
            let put = store.put_policy(context, text, restored_from, expected);
            Some(put.await?.version)
        }
    };
    Ok(Found(PutAnswer {
        dry_run: body.dry_run,
        version,
        previous_version,
        changes,
        explanation,
    }))
}

/// The text to put in force, and the version that it comes from.
async fn wanted(kept: &KeptPolicy, body: &PutPolicy) -> ApiResult<(Arc<str>, Option<u64>)> {
    match (&body.policy, body.restore_version) {
        (Some(text), None) => Ok((text.as_str().into(), None)),
        (None, Some(version)) => {
            let found = kept.tenant.policy_of(version).await?;
            let found = found.ok_or_else(|| no_version(version))?;
            Ok((found.text, Some(version)))
        }
        _ => Err(ApiError::invalid(
            "send either `policy` or `restoreVersion`",
        )),
    }
}

/// What the store would say of the version that is expected, for a dry run.
fn expect(expected: Option<u64>, kept: &KeptPolicy) -> ApiResult<()> {
    let current = kept.shown.as_ref().map_or(0, |shown| shown.version);
    match expected {
        Some(expected) if expected != current => {
            Err(StoreError::PolicyVersion { expected, current }.into())
        }
        _ => Ok(()),
    }
}

fn changes(before: Option<&StoredPolicy>, after: &Policy) -> Option<DiffReport> {
    // What cannot be read any more grants nothing, like no policy that could be compared.
    let before = before.and_then(|before| read(&before.text).ok())?;
    Some(diff(&before, after))
}

/// Which policies are in force.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyStatus {
    source: PolicySource,
    /// Of `--policy-dir`.
    directory: Option<String>,
    /// Loads of the directory that changed what is in force, from 1.
    generation: Option<u64>,
    /// When that was, RFC 3339.
    loaded_at: Option<String>,
    last_reload: Option<ReloadStatus>,
    /// Of a directory all that have a file; else those that had a policy when they were last used.
    tenants: Vec<TenantPolicyStatus>,
    /// What policies refused since the start.
    refusals: std::collections::BTreeMap<&'static str, u64>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ReloadStatus {
    /// RFC 3339.
    at: String,
    /// `applied`, or `refused`: then what was last good is in force.
    outcome: &'static str,
    /// What is wrong with the candidate.
    problem: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct TenantPolicyStatus {
    tenant_id: String,
    /// Of a policy that was put.
    version: Option<u64>,
    /// Null of a policy that this server cannot read: then nothing is granted.
    decision_count: Option<usize>,
}

pub(crate) async fn status(call: Call<ServerContext>, _: ()) -> ApiResult<Found<PolicyStatus>> {
    Ok(Found(PolicyStatus::of(call.app.store.policies())))
}

impl PolicyStatus {
    fn of(policies: &Policies) -> PolicyStatus {
        let counted = |authority: &crate::policy::authority::Authority| {
            authority.policy().map(|policy| policy.decisions().len())
        };
        let refusals = policies.refusals().into_iter().collect();
        let Some(directory) = policies.directory() else {
            let tenants: Vec<TenantPolicyStatus> = policies
                .kept()
                .into_iter()
                .map(|(tenant, version, authority)| TenantPolicyStatus {
                    tenant_id: tenant.to_string(),
                    version: Some(version),
                    decision_count: counted(&authority),
                })
                .collect();
            return PolicyStatus {
                source: PolicySource::Tenant,
                directory: None,
                generation: None,
                loaded_at: None,
                last_reload: None,
                tenants,
                refusals,
            };
        };
        let loaded = directory.loaded();
        let reload = directory.reloads().0;
        PolicyStatus {
            source: PolicySource::Directory,
            directory: Some(directory.path().display().to_string()),
            generation: Some(loaded.generation),
            loaded_at: Some(loaded.at.to_string()),
            last_reload: reload.map(|reload| ReloadStatus {
                at: reload.at.to_string(),
                outcome: match reload.problem {
                    None => "applied",
                    Some(_) => "refused",
                },
                problem: reload.problem,
            }),
            tenants: loaded
                .files
                .iter()
                .map(|(tenant, file)| TenantPolicyStatus {
                    tenant_id: tenant.to_string(),
                    version: None,
                    decision_count: counted(&file.authority),
                })
                .collect(),
            refusals,
        }
    }
}
