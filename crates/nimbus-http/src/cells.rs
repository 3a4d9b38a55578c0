//! Documents as comma-separated values: a header with field names, then a record for each
//! document. The command line uses the same rules, so an export means the same on both ways out.
//!
//! It must not know where documents come from or go to.

use nimbus_core::{Object, Value};

/// The media type.
pub const MEDIA: &str = "text/csv";

/// Columns that every document has, in front of those of the schema.
pub const SYSTEM_COLUMNS: [&str; 2] = ["_id", "_creationTime"];

/// The header of a table whose schema declares these fields.
pub fn default_columns(declared: impl IntoIterator<Item = String>) -> Vec<String> {
    let system = SYSTEM_COLUMNS.map(str::to_owned);
    system.into_iter().chain(declared).collect()
}

/// The record of a document under a header of `columns`: a string as it is, null and a missing
/// field as nothing, anything else as JSON.
pub fn record(columns: &[String], document: &Object) -> impl Iterator<Item = String> {
    columns
        .iter()
        .map(|name| document.get(name).map(cell).unwrap_or_default())
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_json(),
    }
}
