//! Why a backup was not made, read or restored. Texts are for operators and say what to do next.

use nimbus_core::TenantId;

use super::format::BACKUP_VERSION;
use crate::error::StoreError;
use crate::provider::ProviderError;

/// Result of a call about backups.
pub type BackupResult<T> = Result<T, BackupError>;

/// Failure of a call about backups.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The bytes contradict the format or themselves.
    #[error("the backup is damaged at byte {at} of its content: {reason}; use another copy of it")]
    Damaged {
        /// Bytes of the (unsealed) content before the place.
        at: u64,
        /// What was found.
        reason: String,
    },
    /// Reading or writing the bytes failed.
    #[error("reading the backup: {0}")]
    Io(#[source] std::io::Error),
    /// The key of a sealed backup is not to be had.
    #[error("the key of the backup: {0}")]
    Key(#[source] ProviderError),
    /// The backup is sealed, and no key provider is configured.
    #[error(
        "the backup is sealed with a key of the provider {provider} ({key_id}), and no key provider is configured; set the encryption settings of the server that made it, for example NIMBUS_ENCRYPTION_KEY_PROVIDER={provider}"
    )]
    KeyNeeded {
        /// The provider that wrapped the key.
        provider: String,
        /// Its name of the wrapping key.
        key_id: String,
    },
    /// Made by a later version.
    #[error(
        "the backup has format version {found}, and this program knows {BACKUP_VERSION}; use the version of nimbus that made it, or a later one"
    )]
    NewerVersion {
        /// The version found.
        found: u16,
    },
    /// The first bytes are not those of a backup.
    #[error("this is not a backup: it does not begin like one that `nimbus backup create` wrote")]
    NotABackup,
    /// The tenant engine or its storage failed.
    #[error("{}{source}", .tenant.as_ref().map(|t| format!("tenant {t}: ")).unwrap_or_default())]
    Store {
        /// The tenant that it was about.
        tenant: Option<TenantId>,
        /// The failure.
        #[source]
        source: StoreError,
    },
    /// Tenants that a restore would make are there already.
    #[error("nothing was changed: {} there already; delete {} first (`nimbus tenants delete`){}", if let [one] = &.existing[..] { format!("tenant {one} is") } else { format!("tenants {} are", names(.existing)) }, if .existing.len() == 1 { "it" } else { "them" }, flags(.others))]
    TenantsExist {
        /// Those that are there.
        existing: Vec<TenantId>,
        /// Those of the backup that are not.
        others: Vec<TenantId>,
    },
    /// Tenants that were asked for are not in the backup, or not on the server.
    #[error("nothing was changed: no tenant of this name is there: {}", names(.missing))]
    TenantsMissing {
        /// Those asked for in vain.
        missing: Vec<TenantId>,
    },
    /// The backup ends before its end.
    #[error(
        "the backup is cut off after {at} bytes of content; use another copy of it, or make it again"
    )]
    Truncated {
        /// Bytes of (unsealed) content that are there.
        at: u64,
    },
}

impl BackupError {
    pub(super) fn of(tenant: &TenantId, source: StoreError) -> BackupError {
        BackupError::Store {
            tenant: Some(tenant.clone()),
            source,
        }
    }
}

impl From<StoreError> for BackupError {
    fn from(source: StoreError) -> BackupError {
        BackupError::Store {
            tenant: None,
            source,
        }
    }
}

impl From<ProviderError> for BackupError {
    fn from(e: ProviderError) -> BackupError {
        StoreError::from(e).into()
    }
}

fn names(tenants: &[TenantId]) -> String {
    let names: Vec<&str> = tenants.iter().map(TenantId::as_str).collect();
    names.join(", ")
}

fn flags(tenants: &[TenantId]) -> String {
    if tenants.is_empty() {
        return String::new();
    }
    let named: Vec<String> = tenants.iter().map(|t| format!("--tenant {t}")).collect();
    format!(", or restore the others with {}", named.join(" "))
}
