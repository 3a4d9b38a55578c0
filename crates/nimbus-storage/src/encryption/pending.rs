//! The beginning and the end of a rotation in the manifest: a second key beside the first, and then one of
//! them alone.
//!
//! Must not know how the file is encrypted meanwhile, nor which key it has.

use std::path::Path;
use std::sync::Arc;

use nimbus_crypto::{Manifest, Subject};

use super::{FileKey, Keyring, Keys};
use crate::provider::{ProviderError, ProviderResult};

/// Reads the manifest of a file.
pub(super) fn read(path: &Path, subject: &Subject) -> ProviderResult<Manifest> {
    Manifest::read(path, subject).map_err(|e| ProviderError::locked(path, e))
}

fn replace(manifest: &Manifest, path: &Path) -> ProviderResult<()> {
    manifest
        .replace(path)
        .map_err(|e| ProviderError::locked(path, e))
}

/// Writes a manifest with a pending key beside the current one, and gives the current one and the new one.
pub(super) fn begin(
    path: &Path,
    subject: &Subject,
    keyring: &Keyring,
) -> ProviderResult<(FileKey, FileKey)> {
    let (manifest, wanted) = (read(path, subject)?, subject.clone());
    let file_id = manifest.file_id();
    let (next, keys) = keyring.ask(path, move |provider| {
        Box::pin(async move { manifest.begin_rotation(&*provider, &wanted).await })
    })?;
    replace(&next, path)?;
    let pending = keys.pending.ok_or_else(|| {
        let what = format!("rotating the key of {}", path.display());
        ProviderError::io(what, "no new key")
    })?;
    let alone = |dek| {
        FileKey(Arc::new(Keys {
            subject: subject.clone(),
            file_id,
            current: Arc::new(dek),
            pending: None,
        }))
    };
    Ok((alone(keys.current), alone(pending)))
}

/// Which of its two keys a manifest keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// The one that it had: the file was not changed.
    Current,
    /// The new one, which the whole file has.
    Pending,
}

/// Writes a manifest with one key alone.
pub(super) fn end(
    path: &Path,
    subject: &Subject,
    keyring: &Keyring,
    keep: Keep,
) -> ProviderResult<Manifest> {
    let (manifest, wanted) = (read(path, subject)?, subject.clone());
    let next = keyring.ask(path, move |provider| {
        Box::pin(async move {
            match keep {
                Keep::Current => manifest.abandon_rotation(&*provider, &wanted).await,
                Keep::Pending => manifest.finish_rotation(&*provider, &wanted).await,
            }
        })
    })?;
    replace(&next, path)?;
    Ok(next)
}
