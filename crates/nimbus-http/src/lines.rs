//! JSON lines: one document a line, as imports read them and exports write them. The command line
//! uses the same rules, so a file means the same on both ways in.
//!
//! It must not know requests; who reads a file or a body counts the lines.

use nimbus_core::value::deserialize_within_document;
use nimbus_core::{JsonError, Object, Value, json};

use crate::cells::SYSTEM_COLUMNS;

/// The media type.
pub const MEDIA: &str = "application/x-ndjson";

/// Longest line in bytes, its end included: a document of 1 MiB with every byte escaped, and room
/// to spare.
pub const MAX_LINE_BYTES: usize = 8 * 1024 * 1024;

/// Why a line is no document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// It is longer than [`MAX_LINE_BYTES`].
    #[error("the line is longer than {MAX_LINE_BYTES} bytes")]
    TooLong {
        /// Bytes seen so far.
        bytes: usize,
    },
    /// It is no JSON value of ours.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// It is another value.
    #[error("expected a JSON object, found {found}")]
    NotAnObject {
        /// The type of the value.
        found: &'static str,
    },
}

/// The fields without those that an imported document gets anew.
pub fn without_system_fields(mut fields: Object) -> Object {
    for name in SYSTEM_COLUMNS {
        fields.remove(name);
    }
    fields
}

/// A line's value, given up as soon as it is larger than a document may be: the memory of values is
/// many times that of their text.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Line(#[serde(deserialize_with = "deserialize_within_document")] Value);

/// The fields of the document on a line; `None` when the line is blank.
///
/// `_id` and `_creationTime` are left out, because an imported document gets new ones: so an
/// export can be imported as it is.
///
/// # Errors
/// [`LineError`]; the caller knows the line's number.
pub fn fields(line: &[u8]) -> Result<Option<Object>, LineError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(LineError::TooLong { bytes: line.len() });
    }
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    match json::from_slice::<Line>(line)?.0 {
        Value::Object(fields) => Ok(Some(without_system_fields(fields))),
        other => Err(LineError::NotAnObject {
            found: other.type_name(),
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_or_blank() {
        for blank in ["", "\n", " \t\r\n"] {
            assert_eq!(fields(blank.as_bytes()).unwrap(), None);
        }
        let found = fields(b"{\"_id\":\"k\",\"_creationTime\":1,\"a\":1}\r\n").unwrap();
        let a = Object::from([("a".to_owned(), Value::Float64(1.0))]);
        assert_eq!(found, Some(a));
        assert!(matches!(
            fields(b"[]"),
            Err(LineError::NotAnObject { found: "array" })
        ));
        assert!(matches!(fields(b"{\"a\":\xff}"), Err(LineError::Json(_))));
        assert!(matches!(fields(b"{} {}"), Err(LineError::Json(_))));
        // Small as text, and many times that in memory.
        let many = format!("{{\"a\":[{}{{}}]}}", "{},".repeat(4_000));
        let much = format!("{{\"a\":[{}[]]}}", format!("{many},").repeat(400));
        assert!(much.len() < MAX_LINE_BYTES);
        let told = fields(much.as_bytes()).err().map(|error| error.to_string());
        assert!(told.is_some_and(|told| told.contains("1048576")));
        let long = vec![b' '; MAX_LINE_BYTES + 1];
        assert!(matches!(fields(&long), Err(LineError::TooLong { .. })));
    }
}
