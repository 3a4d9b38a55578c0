//! Bulk import in chunks: documents of numbered lines, inserted once however often a chunk is
//! sent. Exports need no route of their own: they are pages of a query.
//!
//! It must not know file formats; callers turn theirs into rows.

use nimbus_auth::{OperationContext, Permission};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Found, NoContent};
use crate::error::ApiResult;
use crate::extract::Json;
use crate::route::Call;
use crate::wire::ImportBody;

/// Answer to a chunk.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Imported {
    /// Documents that this chunk inserted; fewer than its rows when some were there already.
    inserted: u64,
}

/// How far an import is.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Progress {
    /// Lines done; 0 for an import that is not known.
    lines: u64,
}

pub(crate) async fn chunk(
    call: Call<OperationContext>,
    Json(body): Json<ImportBody>,
) -> ApiResult<Found<Imported>> {
    let table = call.params.name("table")?;
    let store = &call.app.store;
    let tenant = store.tenant(&call.context, Permission::WriteData).await?;
    let (import, last_line) = (body.import.clone(), body.last_line);
    let inserted = tenant
        .import_chunk(&table, &import, body.into_rows(), last_line)
        .await?;
    Ok(Found(Imported { inserted }))
}

pub(crate) async fn progress(call: Call<OperationContext>, _: ()) -> ApiResult<Found<Progress>> {
    let table = call.params.name("table")?;
    let store = &call.app.store;
    let tenant = store.tenant(&call.context, Permission::ReadData).await?;
    let import = call.params.text("import")?;
    let lines = tenant.import_progress(&table, import).await?;
    Ok(Found(Progress { lines }))
}

pub(crate) async fn finish(call: Call<OperationContext>, _: ()) -> ApiResult<NoContent> {
    let table = call.params.name("table")?;
    let store = &call.app.store;
    let tenant = store.tenant(&call.context, Permission::WriteData).await?;
    let import = call.params.text("import")?;
    tenant.finish_import(&table, import).await?;
    Ok(NoContent)
}
