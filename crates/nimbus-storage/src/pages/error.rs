//! redb's errors, told apart as far as anyone acts on them. Must not know which database it is.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::provider::{ProviderError, ProviderResult, files};

/// Damage in the file at `path`.
pub(crate) fn corrupt(path: &Path, reason: impl Into<String>) -> ProviderError {
    ProviderError::Corrupt {
        what: path.display().to_string(),
        reason: reason.into(),
    }
}

/// Failure of what was being done to the database at `path`.
pub(crate) fn error(doing: &str, path: &Path, e: redb::Error) -> ProviderError {
    let what = || format!("{doing} {}", path.display());
    match e {
        redb::Error::Io(e) => match e.kind() {
            // Wrong magic number, shorter than its header says, or a page that does not authenticate.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                corrupt(path, e.to_string())
            }
            _ => files::error(doing, path, e),
        },
        redb::Error::Corrupted(reason) => corrupt(path, reason),
        redb::Error::UpgradeRequired(version) => corrupt(
            path,
            format!("it has redb's file format {version}, which is too old"),
        ),
        e @ (redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TypeDefinitionChanged { .. }) => corrupt(path, e.to_string()),
        redb::Error::DatabaseAlreadyOpen => ProviderError::Busy {
            what: format!("another process has {} open", path.display()),
        },
        redb::Error::DatabaseClosed => ProviderError::Closed,
        e => ProviderError::io(what(), e),
    }
}

/// Runs what reads a database that may be damaged: redb panics on some damage instead of reporting it.
pub(crate) fn guarded<T>(
    path: &Path,
    read: impl FnOnce() -> ProviderResult<T>,
) -> ProviderResult<T> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(corrupt(path, "reading it failed; the log has the cause")))
}
