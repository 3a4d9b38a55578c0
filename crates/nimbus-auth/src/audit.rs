//! The audit log: one JSON line for each authentication decision on the admin surface (seed 000).
//!
//! Lines are printable ASCII, never hold a token, and form a chain: each carries its number and an
//! HMAC-SHA256 over the HMAC before it and its own text, under a key beside the admin token. So a
//! line that was edited, moved, inserted or taken out is found, with its position, by [`verify()`].
//! What a chain alone cannot show, lines missing at its end, is found by the [`Anchor`] that is kept
//! elsewhere (design section 7).
//!
//! | file beside the log | what it is |
//! |---|---|
//! | `access.jsonl` | the segment that is being written, at most 64 MiB |
//! | `access-<first number>.jsonl` | a full segment |
//! | `access.next` | the next segment: 64 MiB of allocated room, so that a full disk leaves some |
//! | `access.torn-<time>` | what a crash left of a line |
//! | `access.lock` | held by the server that writes |
//!
//! This room must not know routes or what was decided and why; it writes down what it is told.

mod anchor;
mod chain;
mod entry;
mod key;
pub(crate) mod line;
mod log;
mod look;
mod recover;
mod segments;
mod sync;
mod tail;
mod verify;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::private_fs::PrivateFileError;

pub use anchor::{Anchor, AnchorCopy, AnchorFault, AnchorStore, MemoryAnchors};
#[cfg(feature = "fuzzing")]
pub(crate) use chain::seal;
pub use chain::{ChainId, ChainKey, Mac, Point};
pub use entry::{AuditEntry, AuthScope, MAX_METHOD, MAX_ORIGIN, MAX_PATH, MAX_REASON, RouteFamily};
pub use log::{AuditLog, AuditOptions};
pub use look::{AuditLook, LastLine, look};
pub use recover::Recovered;
pub use tail::Tail;
#[cfg(feature = "fuzzing")]
pub(crate) use verify::verify_bytes;
pub use verify::{Break, BreakKind, Step, Verification, verify};

/// Why the audit log failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file or its directory was refused, or the system failed.
    #[error("the audit log cannot be opened: {0}")]
    Open(#[from] PrivateFileError),
    /// Another server writes to this log; two would spoil the chain.
    #[error(
        "the audit log {} is written by another server: give this one a log of its own with XDG_STATE_HOME, or stop the other",
        .path.display()
    )]
    Held {
        /// The log.
        path: PathBuf,
    },
    /// There are lines, and the key of their chain is gone.
    #[error(
        "the key of the audit log, {}, is missing: restore it from a backup; if it is lost, move the files {} away, and a new chain begins",
        .key.display(), .log.with_file_name("access*").display()
    )]
    KeyMissing {
        /// Where the key was looked for.
        key: PathBuf,
        /// The log.
        log: PathBuf,
    },
    /// The key file does not hold a key.
    #[error("the key of the audit log, {}, cannot be used: {fault}; restore it from a backup", .path.display())]
    KeyInvalid {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// No line near the end belongs to the chain of the key.
    #[error(
        "the end of the audit log {} was not written with the key {}: put the key that belongs to it back; if that is lost, keep the files {} as evidence elsewhere, and a new chain begins",
        .log.display(), .key.display(), .log.with_file_name("access*").display()
    )]
    Foreign {
        /// The log.
        log: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// A segment went away while the log was read.
    #[error("the segment {} went away while the log was read: run it again", .path.display())]
    Vanished {
        /// The segment.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("the operating system gave no random bytes for the key of the audit log: {0}")]
    Entropy(#[source] getrandom::Error),
    /// The place where the anchor is kept failed.
    #[error("the anchor of the audit log cannot be read: {0}")]
    Anchor(#[source] io::Error),
    /// The anchor is not one that was written with the key.
    #[error("the anchor of the audit log cannot be trusted: {0}; run `nimbus audit verify`")]
    AnchorFault(#[from] AnchorFault),
    /// The entry could not be written as JSON.
    #[error("an audit entry cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// The system took only a part of the line, or nothing. The entry is not in the log.
    #[error("the audit log {} took {written} of {expected} bytes: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Bytes of the line that were written.
        written: usize,
        /// Bytes of the line.
        expected: usize,
        /// The reason given by the system.
        #[source]
        source: io::Error,
    },
    /// Written lines could not be made durable.
    #[error("the audit log {} cannot be synced: {source}", .path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// The reason given by the system.
        #[source]
        source: Arc<io::Error>,
    },
    /// The thread that makes lines durable has ended.
    #[error("the audit log {} is closed", .path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
}

#[cfg(test)]
pub(crate) mod tests;
