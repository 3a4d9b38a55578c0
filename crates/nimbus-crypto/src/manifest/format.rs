//! The JSON of the manifest, version 1: one text for each content, and no other text is read.
//!
//! Must not know keys or files.

use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Manifest, TAG_BYTES};
use crate::cipher::Cipher;
use crate::context::{FILE_ID_BYTES, FileId, MANIFEST_VERSION};
use crate::provider::WrappedKey;
use crate::subject::{Subject, SubjectError};

/// A longer file is refused unread; a real one has about 800 bytes.
pub const MAX_MANIFEST_BYTES: usize = 16 * 1024;
/// Most characters of a JSON error that are repeated.
const MAX_MESSAGE: usize = 160;
/// Longest name of a provider, key or algorithm in bytes; an ARN of AWS KMS stays below.
const MAX_NAME: usize = 512;
/// What the field `format` says.
const FORMAT: &str = "nimbus-enc";

/// What is wrong with the content of a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestFault {
    /// More bytes than a manifest can have.
    #[error("it is longer than {MAX_MANIFEST_BYTES} bytes")]
    TooLarge,
    /// No bytes at all.
    #[error("it is empty")]
    Empty,
    /// Not JSON, or a field is unknown, repeated, missing or of another type.
    #[error("it is not the JSON of a manifest: {}", printable(.0))]
    Json(serde_json::Error),
    /// JSON of something else.
    #[error("its format is not {FORMAT:?}")]
    Format,
    /// Written by another version of Nimbus.
    #[error("its version is {found}, and this program knows version {MANIFEST_VERSION}")]
    Version {
        /// The version found.
        found: u64,
    },
    /// Its subject is none.
    #[error("its subject is wrong: {0}")]
    Subject(SubjectError),
    /// A cipher that files of its subject are not encrypted with.
    #[error("its cipher is not {expected}, which files of its subject have")]
    Cipher {
        /// The name of the right one.
        expected: Cipher,
    },
    /// Bytes that are not written as they should be.
    #[error("its field {field:?} is not {expected}")]
    Encoding {
        /// The field.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// Every field is right, and the text is not the one that Nimbus writes.
    #[error(
        "it is not written as Nimbus writes it: something was put between its fields, or they were moved"
    )]
    NotCanonical,
}

/// The message of a JSON error, which quotes the file: made short and safe for a log.
fn printable(error: &serde_json::Error) -> String {
    let safe = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let text = error.to_string();
    text.chars().map(safe).take(MAX_MESSAGE).collect()
}

/// Read first and leniently: what else is in the file depends on it.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Text {
    format: String,
    version: u32,
    subject: String,
    file_id: String,
    cipher: String,
    created_at: u64,
    current: KeyText,
    // Without its own function, serde would take a missing field for null.
    #[serde(deserialize_with = "there_or_null")]
    pending: Option<KeyText>,
    tag: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KeyText {
    provider: String,
    key_id: String,
    algorithm: String,
    wrapped_key: String,
}

fn there_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<KeyText>, D::Error> {
    Option::deserialize(from)
}

impl Manifest {
    /// The JSON text, with a newline at its end.
    ///
    /// # Errors
    /// When the JSON writer fails, which it does not for these types.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let text = Text {
            format: FORMAT.to_owned(),
            version: MANIFEST_VERSION,
            subject: self.subject.to_string(),
            file_id: self.file_id.to_string(),
            cipher: self.subject.cipher().name().to_owned(),
            created_at: self.created_at,
            current: KeyText::of(&self.current),
            pending: self.pending.as_ref().map(KeyText::of),
            tag: HEXLOWER.encode(&self.tag),
        };
        let mut bytes = serde_json::to_vec_pretty(&text)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads exactly what [`Manifest::encode`] writes. Nothing is authenticated before
    /// [`Manifest::unlock`].
    ///
    /// # Errors
    /// [`ManifestFault`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestFault> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestFault::TooLarge);
        }
        if bytes.is_empty() {
            return Err(ManifestFault::Empty);
        }
        let head: Head = serde_json::from_slice(bytes).map_err(ManifestFault::Json)?;
        if head.format != FORMAT {
            return Err(ManifestFault::Format);
        }
        if head.version != u64::from(MANIFEST_VERSION) {
            return Err(ManifestFault::Version {
                found: head.version,
            });
        }
        let text: Text = serde_json::from_slice(bytes).map_err(ManifestFault::Json)?;
        let manifest = text.parse()?;
        match manifest.encode() {
            Ok(canonical) if canonical == bytes => Ok(manifest),
            _ => Err(ManifestFault::NotCanonical),
        }
    }
}

impl Text {
    fn parse(self) -> Result<Manifest, ManifestFault> {
        let subject: Subject = self.subject.parse().map_err(ManifestFault::Subject)?;
        let expected = subject.cipher();
        if Cipher::from_name(&self.cipher) != Some(expected) {
            return Err(ManifestFault::Cipher { expected });
        }
        let file_id: [u8; FILE_ID_BYTES] = hex(&self.file_id).ok_or(ManifestFault::Encoding {
            field: "fileId",
            expected: "32 lower-case hexadecimal digits",
        })?;
        let tag: [u8; TAG_BYTES] = hex(&self.tag).ok_or(ManifestFault::Encoding {
            field: "tag",
            expected: "64 lower-case hexadecimal digits",
        })?;
        Ok(Manifest {
            subject,
            file_id: FileId::from_bytes(file_id),
            created_at: self.created_at,
            current: self.current.parse()?,
            pending: self.pending.map(KeyText::parse).transpose()?,
            tag,
        })
    }
}

impl KeyText {
    fn of(key: &WrappedKey) -> Self {
        Self {
            provider: key.provider.clone(),
            key_id: key.key_id.clone(),
            algorithm: key.algorithm.clone(),
            wrapped_key: BASE64.encode(&key.bytes),
        }
    }

    fn parse(self) -> Result<WrappedKey, ManifestFault> {
        name("provider", &self.provider)?;
        name("keyId", &self.key_id)?;
        name("algorithm", &self.algorithm)?;
        let bytes = BASE64.decode(self.wrapped_key.as_bytes());
        Ok(WrappedKey {
            provider: self.provider,
            key_id: self.key_id,
            algorithm: self.algorithm,
            bytes: bytes.map_err(|_| ManifestFault::Encoding {
                field: "wrappedKey",
                expected: "base64 with padding",
            })?,
        })
    }
}

/// Names go into errors and logs before anything is authenticated.
fn name(field: &'static str, text: &str) -> Result<(), ManifestFault> {
    let good = !text.is_empty()
        && text.len() <= MAX_NAME
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    good.then_some(()).ok_or(ManifestFault::Encoding {
        field,
        expected: "1 to 512 visible ASCII characters",
    })
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}
