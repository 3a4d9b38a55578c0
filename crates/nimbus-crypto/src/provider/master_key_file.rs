//! The provider `master-key-file`: one key of the operator for everything.
//!
//! Must not know how keys are wrapped.

use std::path::Path;

use super::{KeyFuture, KeyProvider, WrappedKey, wrap};
use crate::context::KeyContext;
use crate::key::{Dek, WrappingKey};
use crate::key_file::{KeyFileError, read_key_file};
use crate::subject::Subject;

/// The provider `master-key-file`: one key of the operator, from which each subject's wrapping key
/// is derived with HKDF-SHA256.
#[derive(Debug)]
pub struct MasterKeyFile {
    pub(super) key: WrappingKey,
}

impl MasterKeyFile {
    /// The provider's name.
    pub const NAME: &'static str = "master-key-file";

    /// Reads the key file, once.
    ///
    /// # Errors
    /// As [`read_key_file`].
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        read_key_file(path).map(Self::new)
    }

    /// The provider with this master key.
    #[must_use]
    pub fn new(key: WrappingKey) -> Self {
        Self { key }
    }
}

impl KeyProvider for MasterKeyFile {
    fn name(&self) -> &str {
        Self::NAME
    }

    /// The same for every subject: the fingerprint of the master key.
    fn key_id<'a>(&'a self, _subject: &'a Subject) -> KeyFuture<'a, String> {
        Box::pin(async move { Ok(self.key.fingerprint().to_string()) })
    }

    fn wrap_key<'a>(&'a self, context: &'a KeyContext, dek: &'a Dek) -> KeyFuture<'a, WrappedKey> {
        Box::pin(async move {
            let key = self.key.for_subject(&context.subject);
            wrap::wrap(&key, Self::NAME, &self.key.fingerprint(), context, dek)
        })
    }

    fn unwrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
    ) -> KeyFuture<'a, Dek> {
        Box::pin(async move {
            let key = self.key.for_subject(&context.subject);
            wrap::unwrap(&key, Self::NAME, &self.key.fingerprint(), context, wrapped)
        })
    }
}
