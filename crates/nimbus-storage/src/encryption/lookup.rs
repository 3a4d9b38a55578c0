//! Which key a file has: none, or the one of its manifest. A file whose manifest and configuration
//! disagree is refused. Must not know how files are encrypted.

use std::path::Path;
use std::sync::Arc;

use nimbus_crypto::{Subject, manifest_path};

use super::{FileKey, Keyring};
use crate::provider::{ProviderError, ProviderResult, files};

/// The key of a file that is there; `None` when encryption is not configured and the file has no
/// manifest. Blocks.
///
/// # Errors
/// As [`Keyring::unlock`], a missing manifest included; `Encrypted` when there is a manifest and
/// encryption is not configured.
pub(crate) fn key_of(
    keyring: Option<&Arc<Keyring>>,
    file: &Path,
    subject: &Subject,
) -> ProviderResult<Option<FileKey>> {
    match keyring {
        Some(keyring) => keyring.unlock(file, subject).map(Some),
        None => refuse_manifest(file).map(|()| None),
    }
}

/// That a file has no manifest, for a server without encryption.
pub(crate) fn refuse_manifest(file: &Path) -> ProviderResult<()> {
    let manifest = manifest_path(file);
    match files::inspect(&manifest).map_err(|e| files::error("looking at", &manifest, e))? {
        files::Entry::Absent => Ok(()),
        _ => Err(ProviderError::Encrypted {
            what: file.display().to_string(),
            manifest: manifest.display().to_string(),
        }),
    }
}
