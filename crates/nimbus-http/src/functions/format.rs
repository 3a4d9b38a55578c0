//! The formats of values in answers of the function API (convex.md 1.3): lossless, and plain JSON.

use data_encoding::BASE64;
use nimbus_core::Value;

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `$integer`, `$bytes` and `$float` where plain JSON would lose something (convex.md 2.1).
    Encoded,
    /// Plain JSON: int64 as decimal text, bytes as base64 text, NaN and infinities as words.
    Clean,
}

impl Format {
    /// The format of this name.
    pub(crate) fn named(name: &str) -> Option<Format> {
        match name {
            "convex_encoded_json" | "convex_json" => Some(Format::Encoded),
            "json" | "convex_clean_json" => Some(Format::Clean),
            _ => None,
        }
    }

    /// Appends `value`.
    pub(crate) fn write(self, value: &Value, out: &mut String) {
        match self {
            Format::Encoded => write_with(value, encoded_leaf, out),
            Format::Clean => write_with(value, clean_leaf, out),
        }
    }
}

/// Writes arrays and objects; `leaf` writes what they hold.
fn write_with(value: &Value, leaf: fn(&Value, &mut String), out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_with(item, leaf, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (at, (name, item)) in fields.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                Value::String(name.clone()).write_json(out);
                out.push(':');
                write_with(item, leaf, out);
            }
            out.push('}');
        }
        other => leaf(other, out),
    }
}

/// A whole float64 with `.0`: the Python client takes a number without it for no float64.
fn encoded_leaf(value: &Value, out: &mut String) {
    let plain = match value {
        // -0 and what is not finite have a form of their own.
        Value::Float64(number) if *number != 0.0 || number.is_sign_positive() => {
            serde_json::Number::from_f64(*number)
        }
        _ => None,
    };
    match plain {
        Some(number) => out.push_str(&number.to_string()),
        None => value.write_json(out),
    }
}

fn clean_leaf(value: &Value, out: &mut String) {
    match value {
        Value::Int64(number) => {
            out.push('"');
            out.push_str(&number.to_string());
            out.push('"');
        }
        Value::Float64(number) if number.is_nan() => out.push_str("\"NaN\""),
        Value::Float64(number) if number.is_infinite() => {
            out.push_str(if *number > 0.0 {
                "\"Infinity\""
            } else {
                "\"-Infinity\""
            });
        }
        Value::Float64(number) if *number == 0.0 && number.is_sign_negative() => {
            out.push_str("-0.0");
        }
        Value::Bytes(bytes) => {
            out.push('"');
            BASE64.encode_append(bytes, out);
            out.push('"');
        }
        other => other.write_json(out),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_write_every_kind_of_value() {
        let table = [
            ("null", "null"),
            ("true", "true"),
            ("1.5", "1.5"),
            ("1.0", "1"),
            ("0.0", "0"),
            ("1e+300", "1e+300"),
            (r#"{"$float":"AAAAAAAAAIA="}"#, "-0.0"),
            (r#"{"$float":"AAAAAAAA+H8="}"#, r#""NaN""#),
            (r#"{"$float":"AAAAAAAA8H8="}"#, r#""Infinity""#),
            (r#"{"$float":"AAAAAAAA8P8="}"#, r#""-Infinity""#),
            (r#"{"$integer":"BQAAAAAAAAA="}"#, r#""5""#),
            (
                r#"{"$integer":"AAAAAAAAAIA="}"#,
                r#""-9223372036854775808""#,
            ),
            (r#"{"$bytes":"AP8="}"#, r#""AP8=""#),
            (r#""a\"b\n""#, r#""a\"b\n""#),
            (
                r#"{"a":[1.0,{"$integer":"AQAAAAAAAAA="}],"b \"":{}}"#,
                r#"{"a":[1,"1"],"b \"":{}}"#,
            ),
        ];
        for (encoded, clean) in table {
            let value: Value = nimbus_core::json::from_slice(encoded.as_bytes()).unwrap();
            let written = |format: Format| {
                let mut out = String::new();
                format.write(&value, &mut out);
                out
            };
            assert_eq!(written(Format::Encoded), encoded);
            assert_eq!(written(Format::Clean), clean);
            serde_json::from_str::<serde_json::Value>(clean).unwrap();
        }
    }

    #[test]
    fn formats_have_the_documented_names() {
        for name in ["convex_encoded_json", "convex_json"] {
            assert_eq!(Format::named(name), Some(Format::Encoded));
        }
        for name in ["json", "convex_clean_json"] {
            assert_eq!(Format::named(name), Some(Format::Clean));
        }
        for name in ["", "JSON", "export_json", "xml"] {
            assert_eq!(Format::named(name), None, "{name}");
        }
    }
}
