//! The commit log as a journal, and the outcome of one commit (nimbus.md 2.8).
//!
//! It must not know how records are stored or pruned.

use nimbus_auth::{OperationContext, Permission};
use nimbus_storage::{Bootstrap, CommitId, JournalRecord};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::Found;
use crate::error::{ApiError, ApiResult};
use crate::extract::{QueryField, QueryKind};
use crate::route::Call;
use crate::wire::CommitOutcome;

/// Parameters of `GET journal`.
pub(crate) const PARAMETERS: &[QueryField] = &[
    QueryField {
        name: "after",
        kind: QueryKind::Number(None),
        summary: "Sequence after which to begin; the oldest that is retained when it is left out.",
    },
    QueryField {
        name: "limit",
        kind: QueryKind::Number(Some(100)),
        summary: "Most records returned, 1 to 1,000.",
    },
];

/// One page of the journal.
#[derive(Serialize, JsonSchema)]
pub(crate) struct JournalAnswer {
    #[schemars(with = "Vec<ShownRecord>")]
    records: Vec<JournalRecord>,
    /// Send it back as `after`.
    next_cursor: u64,
    latest_sequence: u64,
    /// Oldest sequence that `after` may name.
    cursor_floor: u64,
    has_more: bool,
}

/// A commit record.
#[derive(JsonSchema)]
#[schemars(rename = "JournalRecord")]
#[allow(dead_code, reason = "read by the schema generator alone")]
struct ShownRecord {
    version: u32,
    sequence: u64,
    timestamp: u64,
    commit_id: String,
    writes: Vec<ShownWrite>,
    scheduled_execution_id: Option<String>,
    integrity_sha256: String,
}

/// One write of a commit.
#[derive(JsonSchema)]
#[schemars(rename = "JournalWrite")]
#[allow(dead_code, reason = "read by the schema generator alone")]
struct ShownWrite {
    table: String,
    /// insert, update or delete.
    op_type: String,
    doc_id: String,
    previous: Option<serde_json::Value>,
    current: Option<serde_json::Value>,
}

pub(crate) async fn page(call: Call<OperationContext>, _: ()) -> ApiResult<Found<JournalAnswer>> {
    let after = call.query.number("after")?;
    let limit = call.query.number("limit")?.unwrap_or_default();
    let limit = u32::try_from(limit).map_err(|_| ApiError::invalid("`limit` must be 1 to 1000"))?;
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ReadData)
        .await?;
    let page = match after {
        Some(after) => tenant.journal(after, limit).await?,
        None => tenant.journal_start(limit).await?,
    };
    Ok(Found(JournalAnswer {
        records: page.records,
        next_cursor: page.next_cursor,
        latest_sequence: page.latest_sequence,
        cursor_floor: page.cursor_floor,
        has_more: page.has_more,
    }))
}

/// The whole tenant at one sequence, from which a replica can follow the journal.
#[derive(Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "serde_json::Map<String, serde_json::Value>")]
pub(crate) struct BootstrapAnswer(Bootstrap);

pub(crate) async fn bootstrap(
    call: Call<OperationContext>,
    _: (),
) -> ApiResult<Found<BootstrapAnswer>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ReadData)
        .await?;
    Ok(Found(BootstrapAnswer(tenant.journal_bootstrap().await?)))
}

pub(crate) async fn commit(call: Call<OperationContext>, _: ()) -> ApiResult<Found<CommitOutcome>> {
    let commit: CommitId = call.params.text("commit")?.parse()?;
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ReadData)
        .await?;
    let sequence = tenant.commit_status(commit).await?;
    Ok(Found(CommitOutcome {
        committed: sequence.is_some(),
        sequence,
    }))
}
