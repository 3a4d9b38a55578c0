//! Key providers: who wraps and unwraps data-encryption keys.
//!
//! The trait is asynchronous because a key service is a network call away; the providers here
//! answer at once. A provider must not know where manifests lie or what a file holds.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use crate::context::KeyContext;
use crate::key::{Dek, Entropy, WrappingKey};
use crate::key_file::{KeyFileError, read_key_file};
use crate::subject::SubjectError;

mod key_dir;
mod wrap;

pub use key_dir::KeyDir;
pub use wrap::{AES_256_GCM_SIV, WRAPPED_BYTES};

/// What a provider's call gives, later.
pub type KeyFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, KeyError>> + Send + 'a>>;

/// A data-encryption key as a manifest holds it. Nothing here is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// [`KeyProvider::name`] of the provider that wrapped it.
    pub provider: String,
    /// Which of the provider's keys wrapped it: a fingerprint, or the id in a key service; never a
    /// path, since key files may move.
    pub key_id: String,
    /// How it is wrapped, such as [`AES_256_GCM_SIV`].
    pub algorithm: String,
    /// The wrapped key.
    pub bytes: Vec<u8>,
}

/// Wraps and unwraps data-encryption keys.
///
/// There is a call that makes a key beside the one that wraps one, because a key service hands out
/// new keys and does not need the right to encrypt given ones.
pub trait KeyProvider: Send + Sync + fmt::Debug {
    /// The provider's name in manifests and on the command line: visible ASCII, at most 512 bytes,
    /// as are the other names in a [`WrappedKey`].
    fn name(&self) -> &str;

    /// Makes a new data-encryption key and wraps it.
    fn generate_key<'a>(&'a self, context: &'a KeyContext) -> KeyFuture<'a, (Dek, WrappedKey)> {
        Box::pin(async move {
            let dek = Dek::generate()?;
            let wrapped = self.wrap_key(context, &dek).await?;
            Ok((dek, wrapped))
        })
    }

    /// Wraps a data-encryption key, bound to all of `context`.
    fn wrap_key<'a>(&'a self, context: &'a KeyContext, dek: &'a Dek) -> KeyFuture<'a, WrappedKey>;

    /// Unwraps a key that was wrapped for exactly this context.
    fn unwrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
    ) -> KeyFuture<'a, Dek>;
}

/// Why a provider did not wrap or unwrap a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key file cannot be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The subject cannot have a key file.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] Entropy),
    /// The key directory cannot be used.
    #[error("the key directory {} {fault}", .path.display())]
    Directory {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        fault: DirectoryFault,
    },
    /// Another provider wrapped the key.
    #[error(
        "the key of {subject} was wrapped by the provider {found}, and {expected} is configured"
    )]
    OtherProvider {
        /// The subject of the file.
        subject: String,
        /// The provider that is configured.
        expected: String,
        /// The provider that the manifest names.
        found: String,
    },
    /// Another key of this provider wrapped the key.
    #[error(
        "wrong key for {subject}: it was wrapped under {found}, and the configured one is {expected}"
    )]
    WrongKey {
        /// The subject of the file.
        subject: String,
        /// Fingerprint of the configured key.
        expected: String,
        /// The key that the manifest names.
        found: String,
    },
    /// A provider beyond this crate, such as a key service, failed in a way of its own.
    #[error("the key provider {provider} failed for {subject}: {source}")]
    Service {
        /// The provider's name.
        provider: String,
        /// The subject of the file.
        subject: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Wrapped in a way that this provider does not know.
    #[error("the key of {subject} is wrapped with {found:?}, and this provider knows {expected:?}")]
    Algorithm {
        /// The subject of the file.
        subject: String,
        /// The algorithm known.
        expected: &'static str,
        /// The algorithm that the manifest names.
        found: String,
    },
    /// The wrapped key has a length that none can have.
    #[error("the wrapped key of {subject} has {found} bytes in place of {expected}")]
    WrappedSize {
        /// The subject of the file.
        subject: String,
        /// Bytes expected.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// The key is the right one by its fingerprint, and the wrapped key or a field that it is bound
    /// to was changed.
    #[error(
        "the manifest of {subject} was changed: its wrapped key does not authenticate. Restore file and manifest from one backup"
    )]
    Tampered {
        /// The subject of the file.
        subject: String,
    },
}

/// What is wrong with a key directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryFault {
    /// Nothing there.
    #[error("does not exist")]
    Missing,
    /// Not a directory.
    #[error("is not a directory")]
    NotDirectory,
    /// Others could put key files of theirs into it.
    #[error("may be changed by others (mode {mode:04o}): run `chmod go-w` on it")]
    Loose {
        /// The mode found.
        mode: u32,
    },
    /// The system refused.
    #[error("cannot be read: {0}")]
    Io(std::io::Error),
}

/// The provider `master-key-file`: one key of the operator, from which each subject's wrapping key
/// is derived with HKDF-SHA256.
#[derive(Debug)]
pub struct MasterKeyFile {
    key: WrappingKey,
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

#[cfg(test)]
#[path = "provider_tests.rs"]
mod tests;
