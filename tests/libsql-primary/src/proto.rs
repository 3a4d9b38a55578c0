//! The JSON of Hrana 2 and 3 as Rust types. It must not know SQLite, HTTP or what a stream is.

use data_encoding::{BASE64, BASE64_NOPAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

#[derive(Debug, Deserialize)]
pub(crate) struct Pipeline {
    pub(crate) baton: Option<String>,
    pub(crate) requests: Vec<Request>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Cursor {
    pub(crate) baton: Option<String>,
    pub(crate) batch: Batch,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Request {
    Close,
    Execute { stmt: Stmt },
    Batch { batch: Batch },
    Sequence(Sql),
    Describe(Sql),
    StoreSql { sql_id: i32, sql: String },
    CloseSql { sql_id: i32 },
    GetAutocommit,
}

/// A text, or the number of one that was stored.
#[derive(Debug, Deserialize)]
pub(crate) struct Sql {
    pub(crate) sql: Option<String>,
    pub(crate) sql_id: Option<i32>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Stmt {
    #[serde(flatten)]
    pub(crate) sql: Sql,
    #[serde(default)]
    pub(crate) args: Vec<Value>,
    #[serde(default)]
    pub(crate) named_args: Vec<NamedArg>,
    pub(crate) want_rows: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NamedArg {
    pub(crate) name: String,
    pub(crate) value: Value,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Batch {
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Step {
    pub(crate) condition: Option<Condition>,
    pub(crate) stmt: Stmt,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Condition {
    Ok { step: usize },
    Error { step: usize },
    Not { cond: Box<Condition> },
    And { conds: Vec<Condition> },
    Or { conds: Vec<Condition> },
    IsAutocommit,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Value {
    Null,
    /// As text, since a number of JSON may lose digits above 2^53.
    Integer {
        #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
        value: i64,
    },
    Float {
        value: f64,
    },
    Text {
        value: String,
    },
    Blob {
        #[serde(serialize_with = "as_base64", deserialize_with = "from_base64")]
        base64: Vec<u8>,
    },
}

#[derive(Debug, Serialize)]
pub(crate) struct PipelineAnswer {
    pub(crate) baton: Option<String>,
    pub(crate) base_url: Option<String>,
    pub(crate) results: Vec<Outcome>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Outcome {
    Ok { response: Response },
    Error { error: Error },
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Response {
    Close,
    Execute { result: StmtResult },
    Batch { result: BatchResult },
    Sequence,
    Describe { result: Description },
    StoreSql,
    CloseSql,
    GetAutocommit { is_autocommit: bool },
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Error {
    pub(crate) message: String,
    pub(crate) code: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) decltype: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct StmtResult {
    pub(crate) cols: Vec<Column>,
    pub(crate) rows: Vec<Vec<Value>>,
    pub(crate) affected_row_count: u64,
    #[serde(serialize_with = "as_text_or_null")]
    pub(crate) last_insert_rowid: Option<i64>,
    pub(crate) replication_index: Option<String>,
    pub(crate) rows_read: u64,
    pub(crate) rows_written: u64,
    pub(crate) query_duration_ms: f64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct BatchResult {
    pub(crate) step_results: Vec<Option<StmtResult>>,
    pub(crate) step_errors: Vec<Option<Error>>,
    pub(crate) replication_index: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Description {
    pub(crate) params: Vec<Parameter>,
    pub(crate) cols: Vec<Column>,
    pub(crate) is_explain: bool,
    pub(crate) is_readonly: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Parameter {
    pub(crate) name: Option<String>,
}

/// A line of a cursor after the first.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Entry<'a> {
    StepBegin {
        step: usize,
        cols: &'a [Column],
    },
    Row {
        row: &'a [Value],
    },
    StepEnd {
        affected_row_count: u64,
        #[serde(serialize_with = "as_text_or_null")]
        last_insert_rowid: Option<i64>,
    },
    StepError {
        step: usize,
        error: &'a Error,
    },
}

fn as_text<S: Serializer>(value: &i64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

fn as_text_or_null<S: Serializer>(value: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => as_text(value, to),
        None => to.serialize_none(),
    }
}

fn from_text<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(de::Error::custom)
}

fn as_base64<S: Serializer>(value: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&BASE64_NOPAD.encode(value))
}

fn from_base64<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    let padded = text.ends_with('=');
    let form = if padded { BASE64 } else { BASE64_NOPAD };
    form.decode(text.as_bytes()).map_err(de::Error::custom)
}
