//! What a wrapped key is bound to: the fields of its manifest in one unambiguous encoding.
//!
//! Must not know providers or JSON.

use std::fmt;

use data_encoding::HEXLOWER;

use crate::cipher::Cipher;
use crate::key::{Entropy, random};
use crate::subject::Subject;

/// The version of the manifest that this code reads and writes.
pub const MANIFEST_VERSION: u32 = 1;
/// Length of a file id in bytes.
pub const FILE_ID_BYTES: usize = 16;

/// A random number that tells one protected file from another of the same subject, such as the
/// database of a tenant that was deleted and made again. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId([u8; FILE_ID_BYTES]);

impl FileId {
    /// A new id from the operating system's randomness.
    ///
    /// # Errors
    /// When the operating system gives none.
    pub fn generate() -> Result<Self, Entropy> {
        random().map(Self)
    }

    /// The id of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; FILE_ID_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; FILE_ID_BYTES] {
        &self.0
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileId({self})")
    }
}

/// Which of a manifest's two places a wrapped key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyRole {
    /// The key that the file is encrypted with.
    Current,
    /// The key that a rotation in progress re-encrypts the file with.
    Pending,
}

impl KeyRole {
    fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Pending => "pending",
        }
    }
}

/// What a data-encryption key is wrapped for. A provider binds all of it: [`KeyContext::aad`] does
/// so for an AEAD. A service with a context of its own takes version, subject and file id, which
/// never change; the manifest's own tag covers the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyContext {
    /// The file's subject.
    pub subject: Subject,
    /// The file's id.
    pub file_id: FileId,
    /// How the file is encrypted.
    pub cipher: Cipher,
    /// When the manifest was made, in seconds since 1970.
    pub created_at: u64,
    /// Which place of the manifest the key is for.
    pub role: KeyRole,
}

impl KeyContext {
    /// Associated data that binds a wrapped key to every field beside it in the manifest.
    #[must_use]
    pub fn aad(&self, provider: &str, key_id: &str, algorithm: &str) -> Vec<u8> {
        let mut fields = self.header("nimbus-enc wrapped key");
        fields.text(self.role.name());
        fields.text(provider);
        fields.text(key_id);
        fields.text(algorithm);
        fields.0
    }

    /// The fields that do not depend on a key, behind a label.
    pub(crate) fn header(&self, label: &str) -> Fields {
        let mut fields = Fields(Vec::with_capacity(512));
        fields.text(label);
        fields.bytes(&MANIFEST_VERSION.to_be_bytes());
        fields.text(self.subject.descriptor());
        fields.bytes(self.file_id.as_bytes());
        fields.text(self.cipher.name());
        fields.bytes(&self.created_at.to_be_bytes());
        fields
    }
}

/// Fields one after the other, each behind its length (u64, big-endian), so that no two lists of
/// fields have the same bytes.
pub(crate) struct Fields(pub(crate) Vec<u8>);

impl Fields {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0
            .extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }
}
