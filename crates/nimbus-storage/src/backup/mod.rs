//! Backups: tenants as one stream of bytes, sealed or plain, and tenants made again from it.
//!
//! A backup holds each tenant as it was at one commit of its own, knows no storage provider, and is
//! written and read in constant memory. `docs/backup.md` has the format. Files, sockets and who may
//! ask for a backup are not known here.
//!
//! **Make one**: [`Backup::begin`], then [`Backup::next`] until the end; bytes that end before that
//! are no backup. **Check one**: [`Source::open`] and [`verify()`]. **Make tenants of it**:
//! [`restore()`].

mod create;
mod error;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod restore;
mod seal;
mod summary;
mod verify;

pub use create::Backup;
pub use error::{BackupError, BackupResult};
pub use format::{BACKUP_VERSION, Header, MAX_FRAME_BYTES};
pub use restore::restore;
pub use seal::{Source, is_sealed};
pub use summary::{Summary, TenantSummary};
pub use verify::verify;
