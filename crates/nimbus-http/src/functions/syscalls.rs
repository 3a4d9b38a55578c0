//! The syscalls of queries and mutations (convex.md 5.5): arguments in, JSON text out.
//!
//! Each reads its arguments, asks the transaction and writes the answer. Which of them a function
//! may use is decided before.

use std::collections::BTreeMap;

use nimbus_core::{Object, TableName, Value};
use nimbus_runtime::{SyscallError, UdfKind};
use nimbus_storage::{
    Document, FunctionQuery, MAX_FUNCTION_BYTES_READ, MAX_FUNCTION_BYTES_WRITTEN,
    MAX_FUNCTION_DOCUMENTS_READ, MAX_FUNCTION_DOCUMENTS_WRITTEN, MAX_FUNCTION_QUERIES, PageRequest,
    QueryStream,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::error::CallError;
use super::path::FunctionPath;
use super::reference::Reference;
use super::service::Job;
use super::transaction::{State, TransactionHost, refused, system};

/// Queries that one function may have open: more than it may ask for is not needed.
const MAX_OPEN: usize = 4_096;

type Text = Result<String, SyscallError>;

/// Queries that are being read, by the number that the function knows.
#[derive(Default)]
pub(super) struct Streams {
    open: BTreeMap<u64, QueryStream>,
    next: u64,
}

/// A function to run within the transaction.
pub(super) struct Sub {
    pub kind: UdfKind,
    /// Whether it reads the state at the beginning of the transaction.
    pub at_beginning: bool,
    pub path: FunctionPath,
    pub args: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubBody {
    udf_type: String,
    args: Value,
    #[serde(flatten)]
    reference: Reference,
}

#[derive(Deserialize)]
struct QueryBody {
    query: Json,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct QueryIdBody {
    query_id: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageBody {
    query: Json,
    cursor: Option<String>,
    #[serde(default)]
    end_cursor: Option<String>,
    page_size: f64,
    #[serde(default)]
    maximum_rows_read: Option<f64>,
    #[serde(default)]
    maximum_bytes_read: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NormalizeBody {
    table: String,
    id_string: String,
}

#[derive(Deserialize)]
struct IdBody {
    id: String,
    #[serde(default)]
    table: Option<String>,
}

#[derive(Deserialize)]
struct TableBody {
    table: String,
}

#[derive(Deserialize)]
struct InsertBody {
    table: String,
    #[serde(deserialize_with = "nimbus_core::value::deserialize_object")]
    value: Object,
}

#[derive(Deserialize)]
struct ReplaceBody {
    id: String,
    #[serde(default)]
    table: Option<String>,
    #[serde(deserialize_with = "nimbus_core::value::deserialize_object")]
    value: Object,
}

#[derive(Deserialize)]
struct MergeBody {
    id: String,
    #[serde(default)]
    table: Option<String>,
    value: BTreeMap<String, Json>,
}

#[derive(Deserialize)]
struct NameBody {
    name: String,
}

/// Reads the arguments of a syscall. They come from the package, so a fault is one in the bundle
/// or of somebody who calls `Convex.syscall` by hand.
pub(super) fn read<T: DeserializeOwned>(call: &str, args: &str) -> Result<T, SyscallError> {
    nimbus_core::json::from_javascript(args.as_bytes())
        .map_err(|error| SyscallError::user(format!("Invalid arguments for `{call}`: {error}")))
}

fn table_of(call: &str, name: Option<String>) -> Result<Option<TableName>, SyscallError> {
    let Some(name) = name else { return Ok(None) };
    let parsed = name.parse().map_err(|error| {
        SyscallError::user(format!("Invalid argument `table` for `{call}`: {error}"))
    });
    parsed.map(Some)
}

fn text_of(document: &Document) -> Result<&str, SyscallError> {
    std::str::from_utf8(&document.json).map_err(|error| {
        system(CallError::Damaged(format!(
            "document {}: {error}",
            document.id
        )))
    })
}

fn document_text(document: Option<&Document>) -> Text {
    match document {
        None => Ok("null".to_owned()),
        Some(document) => text_of(document).map(str::to_owned),
    }
}

/// A number as the package sends it, as a count.
fn count_of(number: f64) -> u64 {
    // Saturates; what is not a number is 0, which the store refuses.
    number as u64
}

impl Sub {
    /// Reads the arguments of `runUdf`.
    pub(super) fn parse(args: &str) -> Result<Sub, SyscallError> {
        let body: SubBody = read("runUdf", args)?;
        let (kind, at_beginning) = match body.udf_type.as_str() {
            "query" => (UdfKind::Query, false),
            "mutation" => (UdfKind::Mutation, false),
            "snapshotQuery" => (UdfKind::Query, true),
            _ => {
                let text = "`udfType` is one of query, mutation, snapshotQuery";
                return Err(SyscallError::user(text));
            }
        };
        let args = match body.args {
            args @ Value::Object(_) => args,
            _ => {
                return Err(SyscallError::user(
                    "the arguments of a function are an object",
                ));
            }
        };
        Ok(Sub {
            kind,
            at_beginning,
            path: body.reference.path().map_err(SyscallError::user)?,
            args,
        })
    }
}

impl State<'_> {
    pub(super) fn query_stream(&mut self, args: &str) -> Text {
        let body: QueryBody = read("db.query", args)?;
        let query = FunctionQuery::parse(&body.query).map_err(refused)?;
        if self.streams.open.len() >= MAX_OPEN {
            return Err(SyscallError::user(format!(
                "a function may have at most {MAX_OPEN} queries open"
            )));
        }
        let stream = self.txn.open_query(&query).map_err(refused)?;
        let id = self.streams.next;
        self.streams.next += 1;
        self.streams.open.insert(id, stream);
        Ok(json!({"queryId": id}).to_string())
    }

    pub(super) fn query_cleanup(&mut self, args: &str) -> Text {
        let body: QueryIdBody = read("queryCleanup", args)?;
        let found = self.streams.open.remove(&body.query_id).is_some();
        Ok(found.to_string())
    }

    pub(super) async fn query_next(&mut self, args: &str) -> Text {
        let body: QueryIdBody = read("queryStreamNext", args)?;
        let Some(stream) = self.streams.open.get_mut(&body.query_id) else {
            return Err(SyscallError::user("the query is not open any more"));
        };
        let next = self.txn.next(stream).await.map_err(refused)?;
        Ok(match &next {
            Some(document) => format!(r#"{{"value":{},"done":false}}"#, text_of(document)?),
            None => {
                self.streams.open.remove(&body.query_id);
                r#"{"value":null,"done":true}"#.to_owned()
            }
        })
    }

    pub(super) async fn query_page(&mut self, args: &str, host: &TransactionHost<'_>) -> Text {
        let body: PageBody = read("paginate", args)?;
        self.begin_page()?;
        let query = FunctionQuery::parse(&body.query).map_err(refused)?;
        // A subscription that runs again keeps the end that its page had (convex.md 6.3).
        let kept = host.job.journal.clone().filter(|_| self.is_outermost());
        let request = PageRequest {
            cursor: body.cursor,
            end_cursor: body.end_cursor.or(kept),
            page_size: count_of(body.page_size),
            max_rows: body.maximum_rows_read.map(count_of),
            max_bytes: body.maximum_bytes_read.map(count_of),
        };
        let found = self.txn.fn_page(&query, &request).await.map_err(refused)?;
        if self.is_outermost() {
            host.facts().set_journal(&found.continue_cursor);
        }
        let mut out = String::from("{\"page\":[");
        for (at, document) in found.page.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(text_of(document)?);
        }
        let rest = json!({
            "isDone": found.is_done,
            "continueCursor": found.continue_cursor,
            "splitCursor": found.split_cursor,
            "pageStatus": found.page_status.map(|status| status.name()),
        });
        let rest = rest.to_string();
        out.push_str("],");
        out.push_str(rest.strip_prefix('{').unwrap_or(&rest));
        Ok(out)
    }

    pub(super) fn normalize_id(&mut self, args: &str) -> Text {
        let body: NormalizeBody = read("db.normalizeId", args)?;
        let id = self.txn.normalize_id(&body.table, &body.id_string);
        Ok(json!({"id": id}).to_string())
    }

    pub(super) async fn get(&mut self, args: &str) -> Text {
        let body: IdBody = read("db.get", args)?;
        let table = table_of("db.get", body.table)?;
        let found = self.txn.fn_get(&body.id, table.as_ref()).await;
        document_text(found.map_err(refused)?.as_ref())
    }

    pub(super) async fn count(&mut self, args: &str) -> Text {
        let body: TableBody = read("db.count", args)?;
        let count = self.txn.fn_count(&body.table).await.map_err(refused)?;
        Ok(count.to_string())
    }

    pub(super) async fn insert(&mut self, args: &str) -> Text {
        let body: InsertBody = read("db.insert", args)?;
        let inserted = self.txn.fn_insert(&body.table, body.value).await;
        let id = inserted.map_err(refused)?;
        Ok(json!({"_id": id.to_string()}).to_string())
    }

    pub(super) async fn merge(&mut self, args: &str) -> Text {
        let body: MergeBody = read("db.patch", args)?;
        let table = table_of("db.patch", body.table)?;
        let undefined = json!({"$undefined": null});
        let mut patch = BTreeMap::new();
        for (name, value) in body.value {
            let value = match value {
                value if value == undefined => None,
                value => Some(Value::deserialize(value).map_err(|error| {
                    let text = format!("Invalid argument `value` for `db.patch`: {error}");
                    SyscallError::user(text)
                })?),
            };
            patch.insert(name, value);
        }
        let merged = self.txn.fn_merge(&body.id, table.as_ref(), patch).await;
        document_text(Some(&merged.map_err(refused)?))
    }

    pub(super) async fn replace(&mut self, args: &str) -> Text {
        let body: ReplaceBody = read("db.replace", args)?;
        let table = table_of("db.replace", body.table)?;
        let replaced = self.txn.fn_replace(&body.id, table.as_ref(), body.value);
        document_text(Some(&replaced.await.map_err(refused)?))
    }

    pub(super) async fn remove(&mut self, args: &str) -> Text {
        let body: IdBody = read("db.delete", args)?;
        let table = table_of("db.delete", body.table)?;
        let removed = self.txn.fn_remove(&body.id, table.as_ref()).await;
        document_text(Some(&removed.map_err(refused)?))
    }

    /// An environment variable; those of the system are the host's.
    pub(super) async fn env(&mut self, args: &str, job: &Job) -> Text {
        let body: NameBody = read("process.env", args)?;
        if let Some(known) = job.system_env(&body.name) {
            return Ok(Value::String(known).to_json());
        }
        let value = self.txn.env(&body.name).await;
        let value = value.map_err(|error| system(CallError::Store(error)))?;
        Ok(value.map_or(Value::Null, Value::String).to_json())
    }

    pub(super) fn metrics(&mut self) -> String {
        let used = self.txn.usage();
        let of =
            |used: u64, limit: u64| json!({"used": used, "remaining": limit.saturating_sub(used)});
        let none = json!({"used": 0, "remaining": 0});
        json!({
            "bytesRead": of(used.bytes_read, MAX_FUNCTION_BYTES_READ),
            "bytesWritten": of(used.bytes_written, MAX_FUNCTION_BYTES_WRITTEN),
            "databaseQueries": of(used.database_queries, MAX_FUNCTION_QUERIES),
            "documentsRead": of(used.documents_read, MAX_FUNCTION_DOCUMENTS_READ),
            "documentsWritten": of(used.documents_written, MAX_FUNCTION_DOCUMENTS_WRITTEN),
            "functionsScheduled": none,
            "scheduledFunctionArgsBytes": none,
            "filesRead": none,
            "fileReadBytes": none,
            "filesWritten": none,
            "fileWriteBytes": none,
        })
        .to_string()
    }
}
