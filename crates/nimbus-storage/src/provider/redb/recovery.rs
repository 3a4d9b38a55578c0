//! Checks of files that are not open, none of which changes them: what an interrupted creation
//! left, and files that are taken in.
//!
//! Must not remove anything: it says what is there.

use std::path::Path;
use std::sync::Arc;

use nimbus_crypto::{ManifestError, Subject};

use super::file;
use crate::encryption::{FileKey, Keyring, key_of};
use crate::pages::checked;
use crate::provider::{Head, ProviderError, ProviderResult, files};

/// Bytes that an empty tenant can have on disk, with what redb allocates before it is trimmed.
const MAX_UNBORN: u64 = 2 << 20;

/// Opens a copy in memory with every check that redb has, and gives the head.
pub(super) fn full_check(path: &Path, key: Option<&FileKey>) -> ProviderResult<Head> {
    checked(path, key, |db| file::check(db, path))
}

/// Whether there is nothing that a tenant was ever told of: no file, or a small one that was not
/// finished, or one without a commit.
pub(super) fn is_unborn(
    keyring: Option<&Arc<Keyring>>,
    subject: &Subject,
    path: &Path,
) -> ProviderResult<bool> {
    match files::inspect(path).map_err(|e| files::error("looking at", path, e))? {
        files::Entry::Absent | files::Entry::Regular { len: 0 } => return Ok(true),
        files::Entry::Regular { len } if len <= MAX_UNBORN => {}
        files::Entry::Regular { .. } | files::Entry::Other => return Ok(false),
    }
    let key = match key_of(keyring, path, subject) {
        Ok(key) => key,
        // We write the manifest first, so a file without one is not ours.
        Err(ProviderError::Locked { source, .. })
            if matches!(*source, ManifestError::Missing { .. }) =>
        {
            return Ok(false);
        }
        Err(
            e @ (ProviderError::Locked { .. }
            | ProviderError::KeyUnavailable { .. }
            | ProviderError::Io { .. }),
        ) => return Err(e),
        // Encrypted, while encryption is not configured.
        Err(_) => return Ok(false),
    };
    Ok(!matches!(full_check(path, key.as_ref()), Ok(head) if head != Head::EMPTY))
}
