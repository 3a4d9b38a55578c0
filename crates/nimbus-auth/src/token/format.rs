//! The JSON of the token file, version 1 (nimbus.md 4): strict to read, pretty to look at.
//!
//! No message here may carry text of the file beyond a short field name: the file holds a secret,
//! and serde's own messages quote what they refuse.

use std::fmt;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::Serialize;
use serde_json::error::Category;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{AdminToken, MAX_FILE_BYTES, TOKEN_PREFIX, TokenFile};

/// The version that this code reads and writes.
const VERSION: u64 = 1;
/// The only scope there is.
const SCOPE: &str = "local-admin";
/// A longer field name is not repeated in an error; it might be a misplaced secret.
const MAX_NAME_SHOWN: usize = 32;

/// What is wrong with a token file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFault {
    /// More bytes than a token file can have.
    #[error("it is longer than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// No bytes at all, or white space alone.
    #[error("it is empty")]
    Empty,
    /// The JSON stops in the middle.
    #[error("the JSON ends too early, at line {line} column {column}")]
    Truncated {
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
    },
    /// Not JSON, not UTF-8, or something after the object.
    #[error("it is not JSON (line {line} column {column})")]
    Syntax {
        /// Line, from 1; 0 when the bytes are not UTF-8.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
    },
    /// JSON, but not an object.
    #[error("the JSON is not an object")]
    NotAnObject,
    /// A field that version 1 does not have.
    #[error("it has the unknown field {field:?}")]
    UnknownField {
        /// Its name; a long name is replaced by its length.
        field: String,
    },
    /// A field that must be there and is not.
    #[error("the field {field:?} is missing")]
    MissingField {
        /// Its name.
        field: &'static str,
    },
    /// A field that stands there twice.
    #[error("the field {field:?} stands there more than once")]
    RepeatedField {
        /// Its name.
        field: &'static str,
    },
    /// A field of another JSON type.
    #[error("the field {field:?} is not {expected}")]
    FieldType {
        /// Its name.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// Written by another version of the format.
    #[error("its version is {found}, and this program knows version {expected}")]
    Version {
        /// The version found.
        found: u64,
        /// The version known.
        expected: u64,
    },
    /// A token for something else.
    #[error("its scope is not {expected:?}")]
    Scope {
        /// The only scope there is.
        expected: &'static str,
    },
    /// Generations count from 1.
    #[error("its generation is 0; generations count from 1")]
    ZeroGeneration,
    /// The token does not begin as admin tokens do.
    #[error("the token does not begin with {:?}", TOKEN_PREFIX)]
    Prefix,
    /// The token is not canonical base64url without padding.
    #[error("the token is not base64url without padding")]
    Encoding,
    /// The token is shorter or longer than 32 bytes.
    #[error("the token has {found} bytes in place of {expected}")]
    Length {
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// `issuedAt` is no RFC 3339 time.
    #[error("issuedAt is not an RFC 3339 time")]
    IssuedAt,
}

/// The content of a token file.
pub(super) struct Parts {
    pub(super) token: AdminToken,
    pub(super) generation: u64,
    pub(super) issued_at: Timestamp,
    pub(super) rotated_at: Option<Timestamp>,
}

/// Reads the content of a token file.
pub(super) fn decode(bytes: &[u8]) -> Result<Parts, TokenFault> {
    if bytes.trim_ascii().is_empty() {
        return Err(TokenFault::Empty);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| TokenFault::Syntax { line: 0, column: 0 })?;
    let members: Members<'_> = serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        match error.classify() {
            Category::Eof => TokenFault::Truncated { line, column },
            Category::Data => TokenFault::NotAnObject,
            Category::Syntax | Category::Io => TokenFault::Syntax { line, column },
        }
    })?;
    members.check()
}

/// The members of the object, borrowed from the file so that no unwiped copy of the secret is made.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

impl<'a> Members<'a> {
    fn check(&self) -> Result<Parts, TokenFault> {
        // First the version: another one may have other fields.
        let version = self.required("version", "a whole number")?;
        if version != VERSION {
            return Err(TokenFault::Version {
                found: version,
                expected: VERSION,
            });
        }
        let known = [
            "version",
            "token",
            "generation",
            "issuedAt",
            "scope",
            "rotatedAt",
        ];
        if let Some((name, _)) = self
            .0
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            return Err(TokenFault::UnknownField { field: shown(name) });
        }
        if self.required::<&str>("scope", "a string")? != SCOPE {
            return Err(TokenFault::Scope { expected: SCOPE });
        }
        let generation = self.required("generation", "a whole number")?;
        if generation == 0 {
            return Err(TokenFault::ZeroGeneration);
        }
        let issued_at = parse_rfc3339(self.required("issuedAt", "a string")?);
        // A time that cannot be read counts as never rotated (nimbus.md 4).
        let rotated_at = match self.find("rotatedAt")? {
            Some(raw) => typed::<Option<&str>>(raw, "rotatedAt", "a string")?,
            None => None,
        };
        Ok(Parts {
            token: AdminToken::parse(self.required("token", "a string without escapes")?)?,
            generation,
            issued_at: issued_at.ok_or(TokenFault::IssuedAt)?,
            rotated_at: rotated_at.and_then(parse_rfc3339),
        })
    }

    fn find(&self, field: &'static str) -> Result<Option<&'a RawValue>, TokenFault> {
        let mut found = self
            .0
            .iter()
            .filter(|(name, _)| name == field)
            .map(|(_, raw)| *raw);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(TokenFault::RepeatedField { field }),
            (raw, None) => Ok(raw),
        }
    }

    fn required<T: Deserialize<'a>>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<T, TokenFault> {
        typed(
            self.find(field)?
                .ok_or(TokenFault::MissingField { field })?,
            field,
            expected,
        )
    }
}

fn typed<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    field: &'static str,
    expected: &'static str,
) -> Result<T, TokenFault> {
    // The message of serde is dropped: it quotes the value.
    serde_json::from_str(raw.get()).map_err(|_| TokenFault::FieldType { field, expected })
}

fn shown(name: &str) -> String {
    if name.len() <= MAX_NAME_SHOWN {
        name.to_owned()
    } else {
        format!("(a name of {} bytes)", name.len())
    }
}

/// RFC 3339 section 5.6 alone; jiff also takes other ISO 8601 forms.
fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let separators = [
        (4, b"--"),
        (7, b"--"),
        (10, b"Tt"),
        (13, b"::"),
        (16, b"::"),
    ];
    let shaped = bytes.len() >= 20
        && separators
            .iter()
            .all(|(at, allowed)| bytes.get(*at).is_some_and(|b| allowed.contains(b)));
    let zone = matches!(
        bytes,
        [.., b'Z' | b'z'] | [.., b'+' | b'-', _, _, b':', _, _]
    );
    let plain = bytes
        .iter()
        .all(|b| b.is_ascii_digit() || b"Tt:.Zz+-".contains(b));
    if shaped && zone && plain {
        text.parse().ok()
    } else {
        None
    }
}

/// The file as it is written. Private to the encoder: it shows the secret.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Stored<'a> {
    version: u64,
    token: &'a str,
    generation: u64,
    issued_at: String,
    scope: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotated_at: Option<String>,
}

/// Writes the content of a token file, pretty and with a final newline.
pub(crate) fn encode(file: &TokenFile) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let stored = Stored {
        version: VERSION,
        token: file.token.expose_secret(),
        generation: file.generation,
        issued_at: file.issued_at.to_string(),
        scope: SCOPE,
        rotated_at: file.rotated_at.map(|stamp| stamp.to_string()),
    };
    // Reserved in full: growing would leave copies behind that are not wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES));
    let mut writer = serde_json::Serializer::pretty(&mut *bytes);
    stored.serialize(&mut writer)?;
    bytes.push(b'\n');
    Ok(bytes)
}
