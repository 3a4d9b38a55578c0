//! Writing values as canonical lossless JSON (convex.md 2.1). The text writer and the serde
//! implementation give the same bytes; the first exists because bodies are written often.

use data_encoding::BASE64;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::ser::{CompactFormatter, Formatter};

use super::{CANONICAL_NAN, Object, Value};

/// From here on doubles no longer tell all integers apart, so none is written as one.
const INTEGER_LIMIT: f64 = 9_007_199_254_740_992.0;

/// How JSON can carry a float.
enum Float {
    Integer(i64),
    Plain(f64),
    Escaped(String),
}

/// The one form of each float. NaN payloads are not kept.
fn float(value: f64) -> Float {
    let negative_zero = value == 0.0 && value.is_sign_negative();
    if !value.is_finite() || negative_zero {
        let value = if value.is_nan() { CANONICAL_NAN } else { value };
        Float::Escaped(BASE64.encode(&value.to_le_bytes()))
    } else if value.fract() == 0.0 && value.abs() < INTEGER_LIMIT {
        Float::Integer(value as i64)
    } else {
        Float::Plain(value)
    }
}

pub(super) fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Int64(number) => {
            write_escape("$integer", &BASE64.encode(&number.to_le_bytes()), out)
        }
        Value::Float64(number) => write_float(*number, out),
        Value::String(text) => write_string(text, out),
        Value::Bytes(bytes) => {
            out.push_str("{\"$bytes\":\"");
            BASE64.encode_append(bytes, out);
            out.push_str("\"}");
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => write_object(fields, out),
    }
}

pub(super) fn write_object(fields: &Object, out: &mut String) {
    out.push('{');
    for (index, (name, value)) in fields.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(name, out);
        out.push(':');
        write(value, out);
    }
    out.push('}');
}

fn write_float(value: f64, out: &mut String) {
    match float(value) {
        Float::Escaped(base64) => write_escape("$float", &base64, out),
        Float::Integer(number) => print(out, |buffer| CompactFormatter.write_i64(buffer, number)),
        Float::Plain(number) => print(out, |buffer| CompactFormatter.write_f64(buffer, number)),
    }
}

/// Number text by the JSON library's own printer, so that both writers agree to the byte.
fn print(out: &mut String, number: impl FnOnce(&mut Cursor<'_>) -> std::io::Result<()>) {
    // The buffer is a String, so printing cannot fail.
    let _ = number(&mut Cursor(out));
}

/// Takes the ASCII that the number printer emits.
struct Cursor<'a>(&'a mut String);

impl std::io::Write for Cursor<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(std::io::Error::other)?;
        self.0.push_str(text);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_escape(key: &str, text: &str, out: &mut String) {
    for part in ["{\"", key, "\":\"", text, "\"}"] {
        out.push_str(part);
    }
}

/// Escapes what JSON requires and nothing else; runs of ordinary characters are copied whole.
fn write_string(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push('"');
    let mut copied = 0;
    for (index, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[copied..index]);
        copied = index + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            control => {
                out.push_str("\\u00");
                out.push(char::from(HEX[usize::from(control >> 4)]));
                out.push(char::from(HEX[usize::from(control & 15)]));
            }
        }
    }
    out.push_str(&text[copied..]);
    out.push('"');
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Int64(number) => escaped(
                serializer,
                "$integer",
                &BASE64.encode(&number.to_le_bytes()),
            ),
            Value::Float64(number) => match float(*number) {
                Float::Integer(number) => serializer.serialize_i64(number),
                Float::Plain(number) => serializer.serialize_f64(number),
                Float::Escaped(base64) => escaped(serializer, "$float", &base64),
            },
            Value::String(text) => serializer.serialize_str(text),
            Value::Bytes(bytes) => escaped(serializer, "$bytes", &BASE64.encode(bytes)),
            Value::Array(items) => serializer.collect_seq(items),
            Value::Object(fields) => serializer.collect_map(fields),
        }
    }
}

fn escaped<S: Serializer>(serializer: S, key: &str, text: &str) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(key, text)?;
    map.end()
}
