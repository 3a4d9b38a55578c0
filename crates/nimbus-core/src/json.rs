//! The strict entry for JSON that comes from outside: one scan, which keeps nothing, refuses bad
//! UTF-8, deep nesting, long arrays and objects, and integers that a double cannot hold; then serde
//! reads the type. This room knows no value rules
//! beyond numbers and no body size: the caller bounds how many bytes it hands in.

mod scan;

use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::ECHO_LIMIT;

/// Most levels of arrays and objects in one JSON text. Higher than any value may nest (64) plus
/// its envelope, and below the limit of the JSON library (128).
pub const MAX_DEPTH: usize = 100;

/// Up to this magnitude, 2^53, every integer is a double.
pub(crate) const MAX_EXACT: u64 = 1 << 53;

/// Longest message of a parser or of a type's own `Deserialize` that an error carries.
const MESSAGE_LIMIT: usize = 300;

/// Why a JSON text was refused. Lines and columns count from 1, columns in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The bytes are not UTF-8.
    #[error("the JSON text is not UTF-8 at byte {offset}")]
    Utf8 {
        /// Zero-based offset of the first byte that is wrong.
        offset: usize,
    },
    /// Arrays and objects lie too deep within each other.
    #[error("the JSON text nests more than {limit} levels deep")]
    TooDeep {
        /// The most levels allowed.
        limit: usize,
    },
    /// An array has too many elements, or an object too many members.
    #[error("{what} in the JSON text has more than {limit} {parts}")]
    TooMany {
        /// `an array` or `an object`.
        what: &'static str,
        /// `elements` or `members`.
        parts: &'static str,
        /// The most allowed.
        limit: usize,
    },
    /// An integer that a double cannot hold.
    #[error(
        "the integer {text} does not fit a double exactly; send it as `$integer` or as a string"
    )]
    InexactInteger {
        /// The integer as sent, at most 80 characters of it.
        text: String,
    },
    /// A key that the JSON library keeps for its own use.
    #[error("a key starts with `{prefix}`, which is reserved")]
    ReservedKey {
        /// The prefix.
        prefix: &'static str,
    },
    /// The text is not JSON, ends early or goes on after its end.
    #[error("not JSON at line {line}, column {column}: {message}")]
    Syntax {
        /// Line of the fault.
        line: usize,
        /// Column of the fault.
        column: usize,
        /// What the parser met.
        message: String,
    },
    /// The text is JSON but not what was asked for: a wrong type, an unknown or missing field, a
    /// value that breaks a rule.
    #[error("unexpected JSON at line {line}, column {column}: {message}")]
    Data {
        /// Line of the fault.
        line: usize,
        /// Column of the fault.
        column: usize,
        /// What was expected or is wrong; repeats at most 80 characters of the input.
        message: String,
    },
}

/// Reads `T` from untrusted bytes: UTF-8, at most [`MAX_DEPTH`] levels, no array or object longer
/// than a value may be, no integer beyond 2^53 that a double cannot hold exactly (design.md 2),
/// nothing after the value but white space.
/// A literal `-0` is the number -0, as in JavaScript.
///
/// # Errors
/// [`JsonError`]; messages repeat at most 80 characters of the input.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    read(bytes, is_exact_integer)
}

/// [`from_slice`] for text that JavaScript printed from doubles, such as requests of the Convex
/// client: an integer beyond 2^53 also passes if it is how JavaScript prints the double nearest to
/// it. `JSON.stringify(2 ** 63)` is `9223372036854776000`, which [`from_slice`] refuses.
///
/// # Errors
/// As [`from_slice`].
pub fn from_javascript<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    read(bytes, is_javascript_integer)
}

fn read<T: DeserializeOwned>(bytes: &[u8], accepts: fn(&str, f64) -> bool) -> Result<T, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|error| JsonError::Utf8 {
        offset: error.valid_up_to(),
    })?;
    scan::scan(text, accepts)?;
    serde_json::from_str(text).map_err(|error| convert(&error))
}

/// Whether `double`, the nearest one, is the integer `text` to the last digit.
pub(crate) fn is_exact_integer(text: &str, double: f64) -> bool {
    double.is_finite() && format!("{double:.0}") == text
}

/// Whether the integer `text` is exact or what JavaScript prints for `double`: its shortest
/// digits, filled up with zeros. (From 1e21 on JavaScript prints an exponent.)
pub(crate) fn is_javascript_integer(text: &str, double: f64) -> bool {
    is_exact_integer(text, double) || (double.abs() < 1e21 && double.to_string() == text)
}

fn convert(error: &serde_json::Error) -> JsonError {
    let (line, column) = (error.line(), error.column());
    let full = error.to_string();
    let place = format!(" at line {line} column {column}");
    let message = bounded(full.strip_suffix(&place).unwrap_or(&full));
    match error.classify() {
        Category::Data => JsonError::Data {
            line,
            column,
            message,
        },
        Category::Io | Category::Syntax | Category::Eof => JsonError::Syntax {
            line,
            column,
            message,
        },
    }
}

/// Shortens the part of a parser's message that repeats the input. Those messages read
/// `<kind> <input>, expected <what our types say>`; any other text is bounded as a whole.
fn bounded(message: &str) -> String {
    let repeats = [
        "unknown field ",
        "unknown variant ",
        "invalid type: ",
        "invalid value: ",
    ];
    if repeats.iter().any(|start| message.starts_with(start)) {
        let none = message.ends_with(", there are no fields");
        let end = message.rfind(if none { ", there are " } else { ", expected " });
        let (head, tail) = message.split_at(end.unwrap_or(message.len()));
        return format!("{}{}", cut(head, ECHO_LIMIT), cut(tail, MESSAGE_LIMIT));
    }
    cut(message, MESSAGE_LIMIT)
}

fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::Value;
    use crate::value::{MAX_ARRAY_LEN, MAX_OBJECT_FIELDS};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Request {
        #[allow(dead_code)]
        table: String,
        #[allow(dead_code)]
        limit: Option<u32>,
    }

    #[test]
    fn bytes_that_are_not_utf8_are_named_by_offset() {
        for (bytes, offset) in [
            (&b"\"\xff\""[..], 1),
            (b"\"ab\xed\xa0\x80\"", 3),
            (b"\"\xe2\x82", 1),
        ] {
            assert_eq!(from_slice::<Value>(bytes), Err(JsonError::Utf8 { offset }));
        }
    }

    #[test]
    fn depth_is_bounded_at_its_edge_for_every_type() {
        let text = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let deep = Err(JsonError::TooDeep { limit: 100 });
        assert!(from_slice::<Value>(text(100).as_bytes()).is_ok());
        assert_eq!(from_slice::<Value>(text(101).as_bytes()), deep);
        assert_eq!(from_slice::<Value>("[".repeat(1_000_000).as_bytes()), deep);
        assert_eq!(from_slice::<Value>("{\"a\":".repeat(101).as_bytes()), deep);
        let ignored = format!("{{\"x\":{}}}", text(100));
        assert!(from_slice::<serde::de::IgnoredAny>(ignored.as_bytes()).is_err());
        // Brackets within strings, and one after the other, do not add up.
        assert!(from_slice::<Value>(format!("[{}[]]", "[],".repeat(200)).as_bytes()).is_ok());
        assert!(from_slice::<Value>(format!("\"{}\\\"[\"", "[".repeat(200)).as_bytes()).is_ok());
    }

    #[test]
    fn arrays_and_objects_are_bounded_at_their_edge_for_every_type() {
        use serde::de::IgnoredAny;
        let array = |n: usize| format!("[0{}]", ",0".repeat(n - 1));
        let object = |n: usize| {
            let members: Vec<String> = (0..n).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        let (most, fields) = (MAX_ARRAY_LEN, MAX_OBJECT_FIELDS);
        for text in [
            array(most),
            object(fields),
            // What lies in one does not count in another, and a string has no parts.
            format!("[{},{}]", array(most), array(most)),
            format!("{{\"a\":{},\"b\":{}}}", object(fields), object(fields)),
            format!("[\"{}\"]", ",".repeat(10_000)),
        ] {
            assert!(from_slice::<Value>(text.as_bytes()).is_ok());
        }
        for (text, limit) in [
            (array(most + 1), most),
            (object(fields + 1), fields),
            (format!("[[],{}]", array(most + 1)), most),
            (
                format!("{{\"a\":[{{}}],\"b\":{}}}", object(fields + 1)),
                fields,
            ),
            (format!("[{}", "[],".repeat(1_000_000)), most),
        ] {
            let error = from_slice::<Value>(text.as_bytes()).unwrap_err();
            assert!(
                matches!(error, JsonError::TooMany { limit: found, .. } if found == limit),
                "{error}"
            );
            assert_eq!(
                from_slice::<IgnoredAny>(text.as_bytes()).unwrap_err(),
                error
            );
        }
        // Commas outside of everything are the parser's to name.
        let loose = from_slice::<Value>(",".repeat(10_000).as_bytes());
        assert!(matches!(loose, Err(JsonError::Syntax { .. })), "{loose:?}");
    }

    #[test]
    fn integers_must_be_doubles() {
        for (text, strict, javascript) in [
            ("9007199254740991", true, true),
            ("9007199254740992", true, true),
            ("9007199254740993", false, false),
            ("-9007199254740993", false, false),
            ("9007199254740994", true, true),
            ("9223372036854775807", false, false),
            ("9223372036854775808", true, true),
            ("-9223372036854775808", true, true),
            ("9223372036854776000", false, true),
            ("-9223372036854776000", false, true),
            ("9223372036854776001", false, false),
            ("18446744073709551615", false, false),
            ("18446744073709551616", true, true),
            ("18446744073709552000", false, true),
            ("123456789012345680000", false, true),
            ("123456789012345680001", false, false),
            ("10000000000000000000000", true, true),
            // JavaScript prints these two with an exponent.
            ("100000000000000000000000", false, false),
            ("1234567890123456800000", false, false),
            ("9007199254740993.0", true, true),
            ("9007199254740993e0", true, true),
            ("\"9007199254740993\"", true, true),
            ("\"\\\"9007199254740993\"", true, true),
        ] {
            let bytes = text.as_bytes();
            assert_eq!(from_slice::<Value>(bytes).is_ok(), strict, "{text}");
            assert_eq!(
                from_javascript::<Value>(bytes).is_ok(),
                javascript,
                "{text}"
            );
            // The scan knows only the text, so it guards every type.
            assert_eq!(
                from_slice::<serde_json::Value>(bytes).is_ok(),
                strict,
                "{text}"
            );
        }
        for text in [
            "[9007199254740993]",
            "{\"a\":9007199254740993}",
            "[1,\n9007199254740993 ]",
        ] {
            let error = from_slice::<Value>(text.as_bytes()).unwrap_err();
            assert_eq!(
                error,
                JsonError::InexactInteger {
                    text: "9007199254740993".to_owned()
                }
            );
        }
        // A value refuses such an integer even where the text did not pass this room.
        assert!(serde_json::from_str::<Value>("9007199254740993").is_err());
        assert!(serde_json::from_str::<Value>("-9007199254740993").is_err());
    }

    #[test]
    fn minus_zero_is_minus_zero() {
        for text in ["-0", "-0.0", "-0e5"] {
            let value: f64 = from_slice(text.as_bytes()).unwrap();
            assert_eq!(value.to_bits(), (-0.0_f64).to_bits(), "{text}");
        }
    }

    #[test]
    fn faults_of_syntax_and_of_data_are_told_apart() {
        let read = |text: &str| from_slice::<Request>(text.as_bytes()).unwrap_err();
        let error = read("{\"table\":\"a\",\n \"limit\":\"x\"}");
        let JsonError::Data {
            line: 2,
            column,
            message,
        } = error
        else {
            panic!("{error:?}")
        };
        assert_eq!(
            (column, &*message),
            (12, "invalid type: string \"x\", expected u32")
        );
        let error = read("{\"table\":\"a\",\n limit:1}");
        let JsonError::Syntax {
            line: 2,
            column: 2,
            message,
        } = error
        else {
            panic!("{error:?}")
        };
        assert_eq!(message, "key must be a string");
        for (text, says) in [
            ("{}", "missing field `table`"),
            (
                "{\"table\":\"a\",\"x\":1}",
                "unknown field `x`, expected `table` or `limit`",
            ),
            (
                "{\"table\":\"a\",\"table\":\"b\"}",
                "duplicate field `table`",
            ),
        ] {
            let error = read(text);
            let JsonError::Data { message, .. } = &error else {
                panic!("{error:?}")
            };
            assert_eq!(message, says);
        }
    }

    #[test]
    fn messages_repeat_at_most_80_characters_of_input() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}

        #[derive(Debug, Deserialize)]
        #[allow(dead_code)]
        enum Either {
            Left,
            Right,
        }

        let tricky = "z".repeat(500) + ", expected " + &"z".repeat(500);
        let key = format!("{{\"{tricky}\":1}}");
        let text = format!("\"{tricky}\"");
        let message = |error: JsonError| match error {
            JsonError::Data { message, .. } => message,
            other => panic!("{other:?}"),
        };
        let request = message(from_slice::<Request>(key.as_bytes()).unwrap_err());
        assert!(
            request.ends_with(", expected `table` or `limit`"),
            "{request}"
        );
        for message in [
            request,
            message(from_slice::<Nothing>(key.as_bytes()).unwrap_err()),
            message(from_slice::<Either>(text.as_bytes()).unwrap_err()),
            message(from_slice::<bool>(text.as_bytes()).unwrap_err()),
            message(from_slice::<u32>(text.as_bytes()).unwrap_err()),
            message(from_slice::<Value>(format!("{{\"${tricky}\":1}}").as_bytes()).unwrap_err()),
            message(from_slice::<crate::TenantId>(text.as_bytes()).unwrap_err()),
            from_slice::<Value>("9".repeat(500).as_bytes())
                .unwrap_err()
                .to_string(),
        ] {
            let repeated = message.matches(['z', '9']).count();
            assert!(repeated <= ECHO_LIMIT, "{repeated}: {message}");
        }
    }

    #[test]
    fn library_keys_cannot_smuggle_text_past_the_scan() {
        let refused = Err(JsonError::ReservedKey {
            prefix: scan::LIBRARY_PREFIX,
        });
        for text in [
            r#"{"$serde_json::private::RawValue":"9007199254740993"}"#,
            r#"[{"a":{"\u0024serde_json::private::RawValue"  :"1"}}]"#,
            r#"{"\u0024\u0073erde_json::private::Number":"1"}"#,
        ] {
            assert_eq!(
                from_slice::<serde_json::Value>(text.as_bytes()),
                refused,
                "{text}"
            );
        }
        let text = r#"["$serde_json::private::RawValue",{"\\":1}]"#;
        assert!(from_slice::<serde_json::Value>(text.as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = from_slice::<Value>(&bytes);
            let _ = from_javascript::<serde_json::Value>(&bytes);
        }

        #[test]
        fn nothing_like_json_panics(text in r#"([\[\]{}:,"\\ $u-]|-?[0-9]{1,20}|"\$(integer|float|bytes)"|"[A-H/=]{0,12}"|null|true|1e9|\PC){0,24}"#) {
            let _ = from_slice::<Value>(text.as_bytes());
        }

        #[test]
        fn what_passes_is_what_the_library_reads(text in r#"[\[\]{}:,"0-9a. ]{0,24}"#) {
            if let Ok(strict) = from_slice::<serde_json::Value>(text.as_bytes()) {
                prop_assert_eq!(strict, serde_json::from_str::<serde_json::Value>(&text).unwrap());
            }
        }

        #[test]
        fn strict_integers_keep_their_digits(number: i128) {
            let text = number.to_string();
            match from_slice::<f64>(text.as_bytes()) {
                Ok(double) => prop_assert_eq!(double as i128, number),
                Err(_) => prop_assert_ne!(number as f64 as i128, number),
            }
        }
    }
}
