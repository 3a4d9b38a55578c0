//! Bulk import: documents of numbered lines, inserted once however often they are sent, in chunks
//! that a caller makes or as a stream of JSON lines.
//!
//! It must not know how progress is kept; the store does.

use std::time::Duration;

use nimbus_auth::{OperationContext, Permission};
use nimbus_core::{ErrorCode, TableName};
use nimbus_storage::{ImportRow, Tenant};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use crate::answer::{Found, NoContent};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, QueryField, QueryKind};
use crate::lines::{self, LineError, MAX_LINE_BYTES};
use crate::route::Call;
use crate::status::Special;
use crate::stream::Lines;
use crate::wire::ImportBody;

/// Documents that a chunk of a stream has at most.
const CHUNK_ROWS: usize = 1_000;
/// Bytes of lines after which a chunk of a stream ends.
const CHUNK_BYTES: usize = 2 * 1024 * 1024;

/// Parameters of the streaming route.
pub(crate) const PARAMETERS: &[QueryField] = &[QueryField {
    name: "first_line",
    kind: QueryKind::Number(Some(1)),
    summary: "Number of the body's first line in the source.",
}];

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

/// Answer to a stream.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Streamed {
    /// Documents that this request inserted.
    inserted: u64,
    /// Lines of the import that are done now.
    lines: u64,
    /// Lines that were done before, and passed over.
    resumed_after: u64,
}

pub(crate) async fn lines(call: Call<OperationContext>, body: Lines) -> ApiResult<Found<Streamed>> {
    let table = call.params.name("table")?;
    let import = call.params.text("import")?;
    let first = call.query.number("first_line")?.unwrap_or_default();
    let store = &call.app.store;
    let tenant = store.tenant(&call.context, Permission::WriteData).await?;
    let resumed_after = tenant.import_progress(&table, import).await?;
    check_first(first, resumed_after)?;
    let mut stream = Stream {
        tenant,
        table,
        import: import.to_owned(),
        body,
        read: first - 1,
        done: resumed_after,
        inserted: 0,
        limit: call.app.config.request_timeout,
        stop: call.app.stop.subscribe(),
    };
    loop {
        // It may go on for long, and what was taken back meanwhile is.
        store.still_open(&call.context, &stream.tenant).await?;
        match stream.step().await {
            Ok(true) => {}
            Ok(false) => break,
            // A program can go on from there, or send everything again.
            Err(error) => {
                return Err(error
                    .with_member("lines", stream.done)
                    .with_member("inserted", stream.inserted));
            }
        }
    }
    Ok(Found(Streamed {
        inserted: stream.inserted,
        lines: stream.done,
        resumed_after,
    }))
}

/// A gap would lose the lines in it.
fn check_first(first: u64, done: u64) -> ApiResult<()> {
    if first == 0 {
        return Err(ApiError::invalid("`first_line` counts from 1"));
    }
    if first > done.saturating_add(1) {
        let text = format!(
            "the import has {done} lines, so the body must begin with line {} or one before it",
            done.saturating_add(1)
        );
        let error = ApiError::new(ErrorCode::OpPreconditionFailed, text);
        return Err(error.with_detail(json!({"lines": done})));
    }
    Ok(())
}

/// An import whose lines come in as they are inserted.
struct Stream {
    tenant: Tenant,
    table: TableName,
    import: String,
    body: Lines,
    /// Number of the last line read.
    read: u64,
    /// Lines of the import that are done.
    done: u64,
    inserted: u64,
    /// Longest time for a commit.
    limit: Duration,
    /// Becomes true when the server stops.
    stop: watch::Receiver<bool>,
}

impl Stream {
    /// Inserts the next chunk; `false` at the end.
    async fn step(&mut self) -> ApiResult<bool> {
        let (rows, more) = self.chunk().await?;
        if self.read <= self.done {
            return Ok(more);
        }
        let last_line = self.read;
        let inserting = self
            .tenant
            .import_chunk(&self.table, &self.import, rows, last_line);
        let Ok(inserted) = tokio::time::timeout(self.limit, inserting).await else {
            let text = "a chunk takes too long to write, and its outcome is not known; ask how many \
                        lines are done before going on";
            return Err(ApiError::special(Special::OutcomeUnknown, text));
        };
        self.inserted += inserted?;
        self.done = last_line;
        Ok(more)
    }

    /// Documents of the next lines, and whether there may be more.
    async fn chunk(&mut self) -> ApiResult<(Vec<ImportRow>, bool)> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while rows.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            let next = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => {
                    let text = "the server is stopping; send the import again when it is back";
                    return Err(ApiError::new(ErrorCode::ServiceUnavailable, text));
                }
                next = self.body.next() => next?,
            };
            let Some(text) = next else {
                return Ok((rows, false));
            };
            self.read += 1;
            if self.read <= self.done {
                continue;
            }
            bytes += text.len();
            let line = self.read;
            let fields =
                lines::fields(&text).map_err(|error| ApiError::from(error).at_line(line))?;
            rows.extend(fields.map(|fields| ImportRow { line, fields }));
        }
        Ok((rows, true))
    }
}

impl From<LineError> for ApiError {
    fn from(error: LineError) -> ApiError {
        match error {
            LineError::Json(error) => error.into(),
            LineError::TooLong { bytes } => {
                let detail =
                    json!({"cap": "line_bytes", "observed": bytes, "limit": MAX_LINE_BYTES});
                ApiError::new(ErrorCode::OpCapExceeded, error.to_string()).with_detail(detail)
            }
            LineError::NotAnObject { .. } => ApiError::invalid(error.to_string()),
        }
    }
}
