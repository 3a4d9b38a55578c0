//! The syscalls of queries and mutations (convex.md 5.5): arguments in, JSON text out.
//!
//! Each reads its arguments, asks the transaction and writes the answer. Which of them a function
//! may use is decided before.

use std::collections::BTreeMap;

use nimbus_core::value::MAX_VALUE_MEMORY;
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

use super::call::{FunctionCall, MAX_JSON};
use super::error::CallError;
use super::reference::CallBody;
use super::service::Job;
use super::transaction::{State, TransactionHost, refused, system};

/// Queries that one function may have open: more than it may ask for is not needed.
const MAX_OPEN: usize = 4_096;
/// Memory that they may need together.
const MAX_OPEN_MEMORY: usize = MAX_VALUE_MEMORY;

type Text = Result<String, SyscallError>;

/// Queries that are being read, by the number that the function knows.
#[derive(Default)]
pub(super) struct Streams {
    /// With the memory that each may need.
    open: BTreeMap<u64, (QueryStream, usize)>,
    memory: usize,
    next: u64,
}

/// A function to run within the transaction.
pub(super) struct Sub {
    pub kind: UdfKind,
    /// Whether it reads the state at the beginning of the transaction.
    pub at_beginning: bool,
    pub call: FunctionCall,
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
    #[serde(deserialize_with = "nimbus_core::value::deserialize_patch")]
    value: BTreeMap<String, Option<Value>>,
}

#[derive(Deserialize)]
struct NameBody {
    name: String,
}

/// Reads the arguments of a syscall. They come from the package, so a fault is one in the bundle
/// or of somebody who calls `Convex.syscall` by hand.
pub(super) fn read<T: DeserializeOwned>(call: &str, args: &str) -> Result<T, SyscallError> {
    if args.len() > MAX_JSON {
        let limit = MAX_JSON >> 20;
        return Err(SyscallError::user(format!(
            "Invalid arguments for `{call}`: they have more than {limit} MiB of JSON"
        )));
    }
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

/// What a query of this text needs in memory at most, roughly: an object is a node with room for eleven fields.
fn query_memory(text: &str) -> usize {
    let cost = |byte: u8| match byte {
        b'{' => 640,
        b'[' | b',' => 64,
        _ => 1,
    };
    text.bytes().map(cost).sum()
}

impl Streams {
    /// The memory for a query of this text, if there is that much for one more.
    fn room_for(&self, text: &str) -> Result<usize, SyscallError> {
        if self.open.len() >= MAX_OPEN {
            return Err(SyscallError::user(format!(
                "a function may have at most {MAX_OPEN} queries open"
            )));
        }
        let memory = query_memory(text);
        if self.memory + memory > MAX_OPEN_MEMORY {
            let limit = MAX_OPEN_MEMORY >> 20;
            return Err(SyscallError::user(format!(
                "the queries that a function has open may need {limit} MiB of memory, and this one is too large"
            )));
        }
        Ok(memory)
    }

    fn open(&mut self, stream: QueryStream, memory: usize) -> u64 {
        let id = self.next;
        self.next += 1;
        self.memory += memory;
        self.open.insert(id, (stream, memory));
        id
    }

    /// Whether it was open.
    fn close(&mut self, id: u64) -> bool {
        let Some((_, memory)) = self.open.remove(&id) else {
            return false;
        };
        self.memory -= memory;
        true
    }
}

impl Sub {
    /// Reads the arguments of `runUdf`.
    pub(super) fn parse(args: &str) -> Result<Sub, SyscallError> {
        let body: CallBody = read("runUdf", args)?;
        let (kind, at_beginning) = match body.udf_type.as_deref() {
            Some("query") => (UdfKind::Query, false),
            Some("mutation") => (UdfKind::Mutation, false),
            Some("snapshotQuery") => (UdfKind::Query, true),
            _ => {
                let text = "`udfType` is one of query, mutation, snapshotQuery";
                return Err(SyscallError::user(text));
            }
        };
        Ok(Sub {
            kind,
            at_beginning,
            call: body.call().map_err(SyscallError::user)?,
        })
    }
}

impl State<'_> {
    pub(super) fn query_stream(&mut self, args: &str) -> Text {
        let memory = self.streams.room_for(args)?;
        let body: QueryBody = read("db.query", args)?;
        let query = FunctionQuery::parse(&body.query).map_err(refused)?;
        let stream = self.txn.open_query(&query).map_err(refused)?;
        let id = self.streams.open(stream, memory);
        Ok(json!({"queryId": id}).to_string())
    }

    pub(super) fn query_cleanup(&mut self, args: &str) -> Text {
        let body: QueryIdBody = read("queryCleanup", args)?;
        let found = self.streams.close(body.query_id);
        Ok(found.to_string())
    }

    pub(super) async fn query_next(&mut self, args: &str) -> Text {
        let body: QueryIdBody = read("queryStreamNext", args)?;
        let Some((stream, _)) = self.streams.open.get_mut(&body.query_id) else {
            return Err(SyscallError::user("the query is not open any more"));
        };
        let next = self.txn.next(stream).await.map_err(refused)?;
        Ok(match &next {
            Some(document) => format!(r#"{{"value":{},"done":false}}"#, text_of(document)?),
            None => {
                self.streams.close(body.query_id);
                r#"{"value":null,"done":true}"#.to_owned()
            }
        })
    }

    pub(super) async fn query_page(&mut self, args: &str, host: &TransactionHost<'_>) -> Text {
        self.streams.room_for(args)?;
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
        let merged = self.txn.fn_merge(&body.id, table.as_ref(), body.value);
        let merged = merged.await;
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
        // Its own decision counts, not that of the function that runs it.
        let path = self.path().unwrap_or(&job.call.path);
        let value = job.shown(&job.authority, path, &body.name, value);
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn says(error: &SyscallError, part: &str) {
        let SyscallError::User { message, .. } = error else {
            panic!("{error:?}");
        };
        assert!(message.contains(part), "{message}");
    }

    /// About half a megabyte of JSON that needs ninety times that, within an object.
    fn amplifying() -> String {
        let list = format!("[{}]", vec![r#"{"":0}"#; 8_000].join(","));
        vec![list; 15].join(",")
    }

    #[test]
    fn arguments_of_syscalls_are_bounded() {
        let long = " ".repeat(MAX_JSON + 1);
        says(&read::<NameBody>("x", &long).err().unwrap(), "48 MiB");
        let large = amplifying();
        let insert = format!(r#"{{"table":"t","value":{{"a":[{large}]}}}}"#);
        let replace = format!(r#"{{"id":"i","value":{{"a":[{large}]}}}}"#);
        let sub = format!(r#"{{"udfType":"query","name":"m:f","args":{{"a":[{large}]}}}}"#);
        for error in [
            read::<InsertBody>("db.insert", &insert).err().unwrap(),
            read::<ReplaceBody>("db.replace", &replace).err().unwrap(),
            read::<MergeBody>("db.patch", &replace).err().unwrap(),
            Sub::parse(&sub).err().unwrap(),
        ] {
            says(&error, "bytes of memory");
        }
    }

    #[test]
    fn queries_are_bounded_one_by_one_and_together() {
        let query =
            |filter: &str| format!(r#"{{"query":{{"source":{{}},"operators":[{filter}]}}}}"#);
        let mut streams = Streams::default();
        let large = query(&amplifying());
        says(&streams.room_for(&large).unwrap_err(), "64 MiB");
        let half = query(&vec!["{}"; 60_000].join(","));
        let memory = streams.room_for(&half).unwrap();
        streams.memory += memory;
        says(&streams.room_for(&half).unwrap_err(), "64 MiB");
        // As many small ones as may be open fit.
        let small = query(&[r#"{"filter":{"$eq":[{"$field":"a"},{"$literal":1}]}}"#; 3].join(","));
        assert!(streams.room_for(&small).unwrap() * MAX_OPEN < MAX_OPEN_MEMORY);
    }
}
