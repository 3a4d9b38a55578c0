//! Values and their JSON (`nimbus_core::value`, `nimbus_core::json`): what is read is read strictly,
//! and what was read is written in one form that reads back the same.

use arbitrary::Unstructured;
use nimbus_core::{JsonError, Value, json, value};

use crate::make;

/// Pieces of JSON that the reader treats in a way of its own.
pub const WORDS: &[&str] = &[
    "null",
    "true",
    "false",
    "\"$integer\":",
    "\"$float\":",
    "\"$bytes\":",
    "{\"$integer\":\"AQAAAAAAAAA=\"}",
    "{\"$float\":\"AAAAAAAA+H8=\"}",
    "{\"$bytes\":\"\"}",
    "$serde_json::private::Number",
    "\\u0024",
    "\\ud83d\\ude00",
    "9007199254740993",
    "1e400",
    "-0",
    "[[[[[[[[",
    "{\"a\":",
];

/// Longest message of an error: what it repeats of the input is bounded.
const MESSAGE: usize = 1_024;

/// Checks the bytes as JSON text, and as the recipe of a value.
pub fn check(data: &[u8]) {
    read(data);
    if let Ok(made) = make::value(&mut Unstructured::new(data)) {
        write(&made);
    }
}

fn read(data: &[u8]) {
    let strict = json::from_slice::<Value>(data);
    match &strict {
        Ok(value) => {
            write(value);
            let known = serde_json::from_slice::<serde_json::Value>(data);
            assert!(known.is_ok(), "took what is not JSON: {known:?}");
            let loose = json::from_javascript::<Value>(data);
            assert_eq!(loose.as_ref(), Ok(value), "the looser reader disagrees");
        }
        Err(error) => bounded(error),
    }
    if let Err(error) = json::from_javascript::<Value>(data) {
        bounded(&error);
    }
}

fn bounded(error: &JsonError) {
    let text = error.to_string();
    assert!(text.len() < MESSAGE, "{} bytes: {text}", text.len());
}

/// What must hold for any value that obeys the rules.
fn write(made: &Value) {
    let text = made.to_json();
    let serde = serde_json::to_string(made).expect("values are serialised");
    assert_eq!(text, serde, "the two writers differ");
    let again: Value = json::from_slice(text.as_bytes())
        .unwrap_or_else(|error| panic!("canonical JSON does not read back: {error}: {text}"));
    assert_eq!(again.to_json(), text, "the form is not canonical");
    // The payload of a NaN is not kept; keys would show it.
    if !text.contains("AAAAAAAA+H8=") {
        assert_eq!(&again, made, "another value came back: {text}");
    }
    assert_eq!(again.size(), made.size());
    assert_eq!(again.nesting(), made.nesting());
    assert_eq!(
        value::check_value(&again).is_ok(),
        value::check_value(made).is_ok()
    );
    if let Value::Object(fields) = made {
        let mut out = String::new();
        value::write_object_json(fields, &mut out);
        assert_eq!(out, text, "objects have a form of their own");
        let whole = value::check_document(fields);
        let own = value::check_user_fields(fields);
        // A document may have what a caller may not give, never the other way round.
        assert!(
            own.is_err() || whole.is_ok(),
            "a caller may give what a document may not have: {whole:?}"
        );
    }
}
