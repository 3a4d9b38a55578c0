//! What can go wrong with a key, whichever provider it is with.
//!
//! Must not know how a provider works; what a key service may say is in a room of its own.

use std::path::PathBuf;

use super::KmsFault;
use crate::key::Entropy;
use crate::key_file::KeyFileError;
use crate::subject::SubjectError;

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
    /// AWS KMS did not do it.
    #[error("the key of {subject}: {fault}")]
    Kms {
        /// The subject of the file.
        subject: String,
        /// What went wrong, and what to check.
        fault: KmsFault,
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

impl KeyError {
    /// Whether the same call may succeed later with nothing changed here: a key service could not
    /// be reached, was busy or failed on its side.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Kms { fault, .. } if fault.is_transient())
    }
}
