//! What can go wrong in a provider, told apart as far as the engine acts on it.
//!
//! Texts here are inside texts: they may name paths and are logged, never sent to callers.

use nimbus_core::TenantId;
use thiserror::Error;

use super::Head;
use crate::control::RandomId;

/// Failure of any provider call but `commit`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The tenant is registered already.
    #[error("tenant {tenant} exists already")]
    AlreadyExists {
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// Every reader or connection stayed in use for the whole waiting time.
    #[error("storage is busy: {what}")]
    Busy {
        /// What was waited for.
        what: String,
    },
    /// The store was closed, by deletion, shutdown or a failed sync.
    #[error("the tenant store is closed")]
    Closed,
    /// Stored bytes contradict the format.
    #[error("storage of {what} is damaged: {reason}")]
    Corrupt {
        /// File or namespace.
        what: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// No space was left; nothing was written.
    #[error("no space left: {what}")]
    Full {
        /// File or namespace.
        what: String,
    },
    /// The operating system or the database reported a failure.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is encrypted and no key provider is configured.
    #[error(
        "{what} is encrypted, as {manifest} says, and encryption is not configured: give --encryption-key-provider and its settings"
    )]
    Encrypted {
        /// The file.
        what: String,
        /// Its manifest.
        manifest: String,
    },
    /// The key provider did not answer or refused for a reason of its own; it may do so later.
    #[error("the key of {what} is not available: {source}")]
    KeyUnavailable {
        /// The file.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file cannot be unlocked: its manifest is missing, foreign or changed, or the key is another.
    #[error("{what} cannot be unlocked: {source}")]
    Locked {
        /// The file.
        what: String,
        /// The cause, with what to do about it.
        #[source]
        source: Box<nimbus_crypto::ManifestError>,
    },
    /// A tenant whose id differs only by case exists, and the disk ignores case.
    #[error("tenant {existing} exists and this disk does not tell upper from lower case")]
    NameClash {
        /// The tenant asked for.
        tenant: TenantId,
        /// The registered one.
        existing: TenantId,
    },
    /// The metadata in the database belongs to another installation, which does not share it.
    #[error(
        "{place} belongs to installation {installation}, which is not this one; give --join-installation \
         {installation} to share its tenants on purpose, or choose other names"
    )]
    OtherInstallation {
        /// The database and where its metadata is.
        place: String,
        /// Whose it is.
        installation: RandomId,
    },
    /// The tenant is not registered.
    #[error("tenant {tenant} does not exist")]
    NotFound {
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// Settings of the provider that cannot work, or a database that is not fit; nothing was changed.
    #[error("{reason}")]
    Settings {
        /// Which, and what was expected. Holds no password.
        reason: String,
    },
    /// Data of that name exists without a registry entry; it is left alone.
    #[error("{path} exists but is not registered; `nimbus tenants adopt {tenant}` takes it in")]
    Unregistered {
        /// The tenant asked for.
        tenant: TenantId,
        /// The file or namespace found.
        path: String,
    },
}

impl ProviderError {
    /// An [`ProviderError::Io`] with what was being done.
    pub fn io(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ProviderError {
        ProviderError::Io {
            what: what.into(),
            source: source.into(),
        }
    }
}

/// Failure of a commit.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The store was closed before the batch was begun; nothing was written.
    #[error("the tenant store is closed")]
    Closed,
    /// No space was left; nothing was written.
    #[error("no space left for the commit: {what}")]
    Full {
        /// File or namespace.
        what: String,
    },
    /// Someone else committed since `expected`; nothing was written.
    #[error("the head moved to {actual:?}")]
    HeadMoved {
        /// The stored head.
        actual: Head,
    },
    /// Whether the batch is durable is not known (failed sync, lost connection).
    /// The store refuses further commits until it is opened again.
    #[error("outcome of the commit is unknown: {reason}")]
    OutcomeUnknown {
        /// The cause.
        reason: String,
    },
    /// The backend refuses this very content; nothing was written, and trying again will
    /// fail again.
    #[error("the storage backend refuses the batch: {reason}")]
    Refused {
        /// The cause.
        reason: String,
    },
    /// A passing failure before anything was written (lock timeout, deadlock).
    #[error("storage is busy: {reason}")]
    Transient {
        /// The cause.
        reason: String,
    },
}
