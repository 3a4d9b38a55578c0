//! Names: tenants, tables, indexes and dotted field paths (convex.md 2.2, nimbus.md 2.3). This
//! room parses text into types that cannot hold a bad name; it does not know what exists.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::echo;

/// Longest tenant id in characters (nimbus.md 2.3).
pub const MAX_TENANT_ID: usize = 128;
/// Longest table, index or function name in characters (convex.md 2.2).
pub const MAX_IDENTIFIER: usize = 64;
/// Most segments of a field path: the deepest a document goes (convex.md 2.2).
pub const MAX_PATH_SEGMENTS: usize = 16;
/// Longest field name in characters (convex.md 2.2).
pub const MAX_FIELD_NAME: usize = 1024;

const WORD: &str = "ASCII letters, digits, `_` and `-`";
const IDENTIFIER: &str = "ASCII letters, digits and `_`, not a digit first";
const FIELD: &str = "printable ASCII, no `.` within a segment and no `$` before one";

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name, or one segment of the path, is empty.
    #[error("the {what} is empty or has an empty part")]
    Empty {
        /// The kind of name.
        what: &'static str,
    },
    /// The name is too long.
    #[error("the {what} has {length} characters, at most {limit} are allowed")]
    TooLong {
        /// The kind of name.
        what: &'static str,
        /// Length found, in bytes (characters where the name is ASCII).
        length: usize,
        /// The longest allowed.
        limit: usize,
    },
    /// The path has too many segments.
    #[error("the {what} has {segments} segments, at most {limit} are allowed")]
    TooManySegments {
        /// The kind of name.
        what: &'static str,
        /// Segments found.
        segments: usize,
        /// The most allowed.
        limit: usize,
    },
    /// A character that is not allowed.
    #[error("the {what} has a character that is not allowed; allowed: {allowed}")]
    Characters {
        /// The kind of name.
        what: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The name belongs to the system.
    #[error("the {what} `{name}` is reserved; choose one without a leading `_`")]
    Reserved {
        /// The kind of name.
        what: &'static str,
        /// The name, at most 80 characters of it.
        name: String,
    },
    /// The name is one of those that every table has.
    #[error("the {what} `{name}` is built in; choose another")]
    BuiltIn {
        /// The kind of name.
        what: &'static str,
        /// The name.
        name: String,
    },
}

/// A checked name held in an `Arc<str>`: the traits that each of the four has.
macro_rules! name {
    ($type:ident, $check:path) => {
        impl $type {
            /// The text of the name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                $check(text)?;
                Ok($type(Arc::from(text)))
            }
        }

        impl TryFrom<&str> for $type {
            type Error = NameError;

            fn try_from(text: &str) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// A tenant id: 1 to 128 of `[A-Za-z0-9_-]`, not starting with `_` (nimbus.md 2.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Arc<str>);
name!(TenantId, check_tenant);

/// The name of a user table: an identifier not starting with `_` (convex.md 2.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName(Arc<str>);
name!(TableName, check_table);

/// The name of a declared index: an identifier not starting with `_`, and neither `by_id` nor
/// `by_creation_time`, which every table has (convex.md 2.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexName(Arc<str>);
name!(IndexName, check_index);

/// A dotted path to a field: 1 to 16 non-empty segments of printable ASCII, none starting with
/// `$`. At the top level only `_id` and `_creationTime` may start with `_`, and they hold no fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(Arc<str>);
name!(FieldPath, check_path);

impl FieldPath {
    /// The field names from the top of the document down.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        self.0.split('.')
    }

    /// Whether the path is `_id`.
    #[must_use]
    pub fn is_id(&self) -> bool {
        &*self.0 == "_id"
    }

    /// Whether the path is `_creationTime`.
    #[must_use]
    pub fn is_creation_time(&self) -> bool {
        &*self.0 == "_creationTime"
    }
}

fn check_length(what: &'static str, text: &str, limit: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > limit {
        return Err(NameError::TooLong {
            what,
            length: text.len(),
            limit,
        });
    }
    Ok(())
}

fn check_unreserved(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.starts_with('_') {
        return Err(NameError::Reserved {
            what,
            name: echo(text),
        });
    }
    Ok(())
}

fn check_tenant(text: &str) -> Result<(), NameError> {
    let what = "tenant id";
    check_length(what, text, MAX_TENANT_ID)?;
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    {
        return Err(NameError::Characters {
            what,
            allowed: WORD,
        });
    }
    check_unreserved(what, text)
}

/// The identifier rule. A name of underscores only is caught as reserved.
fn check_identifier(what: &'static str, text: &str) -> Result<(), NameError> {
    check_length(what, text, MAX_IDENTIFIER)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if text.starts_with(|first: char| first.is_ascii_digit()) || !text.bytes().all(allowed) {
        return Err(NameError::Characters {
            what,
            allowed: IDENTIFIER,
        });
    }
    check_unreserved(what, text)
}

fn check_table(text: &str) -> Result<(), NameError> {
    check_identifier("table name", text)
}

fn check_index(text: &str) -> Result<(), NameError> {
    let what = "index name";
    check_identifier(what, text)?;
    if matches!(text, "by_id" | "by_creation_time") {
        return Err(NameError::BuiltIn {
            what,
            name: text.to_owned(),
        });
    }
    Ok(())
}

fn check_path(text: &str) -> Result<(), NameError> {
    let what = "field path";
    let segments = text.split('.').count();
    if segments > MAX_PATH_SEGMENTS {
        return Err(NameError::TooManySegments {
            what,
            segments,
            limit: MAX_PATH_SEGMENTS,
        });
    }
    for segment in text.split('.') {
        check_length(what, segment, MAX_FIELD_NAME)?;
        let printable = segment.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
        if !printable || segment.starts_with('$') {
            return Err(NameError::Characters {
                what,
                allowed: FIELD,
            });
        }
    }
    if matches!(text, "_id" | "_creationTime") {
        return Ok(());
    }
    check_unreserved(what, text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::{Debug, Display};

    use proptest::prelude::*;

    use super::*;

    /// The kind of the failure, or "" for a name that passes and prints as it was given.
    fn kind<T: FromStr<Err = NameError> + Display + Debug>(text: &str) -> String {
        match text.parse::<T>() {
            Ok(name) => {
                assert_eq!(name.to_string(), text);
                String::new()
            }
            Err(error) => {
                assert!(error.to_string().chars().count() <= 80 + 80, "{error}");
                format!("{error:?}")
                    .split([' ', '{'])
                    .next()
                    .unwrap()
                    .to_owned()
            }
        }
    }

    #[test]
    fn tenant_ids() {
        for (text, expected) in [
            ("a", ""),
            ("-", ""),
            ("0-9_A", ""),
            ("a_", ""),
            (&"x".repeat(128), ""),
            ("", "Empty"),
            (&"x".repeat(129), "TooLong"),
            ("_a", "Reserved"),
            ("_", "Reserved"),
            (&"_".repeat(128), "Reserved"),
            ("a.b", "Characters"),
            ("a/b", "Characters"),
            ("..", "Characters"),
            ("a b", "Characters"),
            ("a\0", "Characters"),
            ("\u{e9}", "Characters"),
            ("_\n", "Characters"),
        ] {
            assert_eq!(kind::<TenantId>(text), expected, "{text:?}");
        }
    }

    #[test]
    fn table_and_index_names() {
        for (text, table, index) in [
            ("messages", "", ""),
            ("A9_", "", ""),
            (&"x".repeat(64), "", ""),
            ("by_id", "", "BuiltIn"),
            ("by_creation_time", "", "BuiltIn"),
            ("by_id2", "", ""),
            ("", "Empty", "Empty"),
            (&"x".repeat(65), "TooLong", "TooLong"),
            ("9a", "Characters", "Characters"),
            ("a-b", "Characters", "Characters"),
            ("a.b", "Characters", "Characters"),
            ("\u{e9}", "Characters", "Characters"),
            ("\u{664}a", "Characters", "Characters"),
            ("_storage", "Reserved", "Reserved"),
            ("___", "Reserved", "Reserved"),
        ] {
            assert_eq!(kind::<TableName>(text), table, "{text:?}");
            assert_eq!(kind::<IndexName>(text), index, "{text:?}");
        }
    }

    #[test]
    fn field_paths() {
        let deep = vec!["a"; 16].join(".");
        for (text, expected) in [
            ("a", ""),
            ("a.b.c", ""),
            (&deep, ""),
            ("_id", ""),
            ("_creationTime", ""),
            ("a._b", ""),
            ("a b.c$", ""),
            (&"x".repeat(1024), ""),
            (&format!("{deep}.a"), "TooManySegments"),
            ("", "Empty"),
            (".", "Empty"),
            ("a.", "Empty"),
            (".a", "Empty"),
            ("a..b", "Empty"),
            (&"x".repeat(1025), "TooLong"),
            ("$a", "Characters"),
            ("a.$b", "Characters"),
            ("a.\u{e9}", "Characters"),
            ("a\t", "Characters"),
            ("_a", "Reserved"),
            ("_id.a", "Reserved"),
            ("_creationTime.a", "Reserved"),
            ("__id", "Reserved"),
        ] {
            assert_eq!(kind::<FieldPath>(text), expected, "{text:?}");
        }
    }

    #[test]
    fn paths_know_the_system_fields() {
        let path = |text: &str| text.parse::<FieldPath>().unwrap();
        assert!(path("_id").is_id() && !path("_id").is_creation_time());
        assert!(path("_creationTime").is_creation_time() && !path("id").is_id());
        assert_eq!(
            path("a.b c.d").segments().collect::<Vec<_>>(),
            ["a", "b c", "d"]
        );
    }

    #[test]
    fn errors_repeat_little_of_a_long_name() {
        let error = format!("_{}", "x".repeat(1023))
            .parse::<FieldPath>()
            .unwrap_err();
        let NameError::Reserved { name, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(name.len(), 80);
    }

    #[test]
    fn serde_and_maps_use_the_text() {
        let id: TenantId = serde_json::from_str("\"acme-1\"").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"acme-1\"");
        let error = serde_json::from_str::<TableName>("\"_x\"")
            .unwrap_err()
            .to_string();
        assert!(error.contains("the table name `_x` is reserved"), "{error}");
        assert_eq!(TenantId::try_from("acme-1".to_owned()), Ok(id.clone()));
        assert_eq!(BTreeMap::from([(id, 1)]).get("acme-1"), Some(&1));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text: String, long in "[_a$.]{0,40}") {
            for text in [text, long] {
                let _ = (kind::<TenantId>(&text), kind::<TableName>(&text));
                let _ = (kind::<IndexName>(&text), kind::<FieldPath>(&text));
            }
        }
    }
}
