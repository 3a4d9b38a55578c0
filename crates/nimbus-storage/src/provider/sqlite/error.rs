//! SQLite's result codes, told apart as far as the engine acts on them.
//!
//! Must not know which call failed beyond reading, opening, or a phase of a commit.

use std::path::Path;

use rusqlite::ffi;

use crate::provider::{CommitError, ProviderError};

/// Damage in the file at `path`.
pub(super) fn corrupt(path: &Path, reason: String) -> ProviderError {
    ProviderError::Corrupt {
        what: path.display().to_string(),
        reason,
    }
}

fn code(e: &rusqlite::Error) -> Option<ffi::ErrorCode> {
    e.sqlite_error_code()
}

/// Failure of a read.
pub(super) fn read(path: &Path, e: rusqlite::Error) -> ProviderError {
    classify("reading", path, e)
}

/// Failure of opening a file or of changing it outside a commit.
pub(super) fn classify(doing: &str, path: &Path, e: rusqlite::Error) -> ProviderError {
    let what = format!("{doing} {}", path.display());
    match code(&e) {
        Some(ffi::ErrorCode::DatabaseCorrupt | ffi::ErrorCode::NotADatabase) => {
            corrupt(path, e.to_string())
        }
        Some(ffi::ErrorCode::DatabaseBusy | ffi::ErrorCode::DatabaseLocked) => {
            ProviderError::Busy { what }
        }
        Some(ffi::ErrorCode::DiskFull) => ProviderError::Full { what },
        _ => ProviderError::io(what, e),
    }
}

/// Where in a commit a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Before COMMIT.
    Before,
    /// In COMMIT.
    Commit,
}

/// Failure of a call in a commit, if the transaction could be rolled back afterwards.
///
/// SQLite reports `FULL` only for a write that was cut short, and COMMIT writes nothing after
/// the frame that makes the transaction count: so `FULL` means that it does not count. Any
/// other failure in COMMIT may come from the sync or after it.
pub(super) fn commit(path: &Path, phase: Phase, e: rusqlite::Error) -> CommitError {
    // The extended code tells a failed sync from a failed write; the message does not.
    let extended = e.sqlite_error().map_or(0, |e| e.extended_code);
    let what = || {
        format!(
            "committing to {}: {e} (SQLite code {extended})",
            path.display()
        )
    };
    match (code(&e), phase) {
        (Some(ffi::ErrorCode::DiskFull), _) => CommitError::Full { what: what() },
        (Some(ffi::ErrorCode::TooBig | ffi::ErrorCode::ConstraintViolation), Phase::Before) => {
            CommitError::Refused { reason: what() }
        }
        (Some(ffi::ErrorCode::DatabaseBusy | ffi::ErrorCode::DatabaseLocked), Phase::Before) => {
            CommitError::Transient { reason: what() }
        }
        // A failed read or write before COMMIT leaves nothing behind, but the file is not to be
        // trusted before it has been opened again, and that is what this error asks for.
        _ => CommitError::OutcomeUnknown { reason: what() },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn failure(extended: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(extended), None)
    }

    #[test]
    fn commit_failures_are_told_apart() {
        use Phase::{Before, Commit};
        let path = Path::new("/data/a.sqlite3");
        let name = |extended, phase| match commit(path, phase, failure(extended)) {
            CommitError::Full { .. } => "full",
            CommitError::Refused { .. } => "refused",
            CommitError::Transient { .. } => "transient",
            CommitError::OutcomeUnknown { .. } => "unknown",
            other => panic!("{other}"),
        };
        for (extended, phase, expected) in [
            (ffi::SQLITE_FULL, Before, "full"),
            (ffi::SQLITE_FULL, Commit, "full"),
            (ffi::SQLITE_TOOBIG, Before, "refused"),
            (ffi::SQLITE_CONSTRAINT_NOTNULL, Before, "refused"),
            (ffi::SQLITE_BUSY, Before, "transient"),
            (ffi::SQLITE_BUSY_SNAPSHOT, Before, "transient"),
            (ffi::SQLITE_LOCKED, Before, "transient"),
            (ffi::SQLITE_IOERR_FSYNC, Commit, "unknown"),
            (ffi::SQLITE_IOERR_WRITE, Commit, "unknown"),
            (ffi::SQLITE_IOERR_SHMSIZE, Commit, "unknown"),
            (ffi::SQLITE_BUSY, Commit, "unknown"),
            (ffi::SQLITE_IOERR_READ, Before, "unknown"),
            (ffi::SQLITE_CORRUPT, Before, "unknown"),
            (ffi::SQLITE_NOMEM, Before, "unknown"),
        ] {
            assert_eq!(name(extended, phase), expected, "{extended} {phase:?}");
        }
    }

    #[test]
    fn other_failures_are_told_apart() {
        let path = Path::new("/data/a.sqlite3");
        let name = |e: &ProviderError| match e {
            ProviderError::Corrupt { .. } => "corrupt",
            ProviderError::Full { .. } => "full",
            ProviderError::Busy { .. } => "busy",
            ProviderError::Io { .. } => "io",
            other => panic!("{other}"),
        };
        for (extended, expected) in [
            (ffi::SQLITE_CORRUPT, "corrupt"),
            (ffi::SQLITE_CORRUPT_INDEX, "corrupt"),
            (ffi::SQLITE_NOTADB, "corrupt"),
            (ffi::SQLITE_FULL, "full"),
            (ffi::SQLITE_BUSY, "busy"),
            (ffi::SQLITE_LOCKED, "busy"),
            (ffi::SQLITE_IOERR_READ, "io"),
            (ffi::SQLITE_CANTOPEN, "io"),
        ] {
            let e = read(path, failure(extended));
            assert_eq!(name(&e), expected, "{extended}");
            assert!(e.to_string().contains("/data/a.sqlite3"), "{e}");
        }
    }
}
