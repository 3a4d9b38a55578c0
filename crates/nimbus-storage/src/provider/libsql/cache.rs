//! The directory of the replicas: `<cache-dir>/<tenant>/<file>.sqlite3`, its locks, and the keys of its files.
//!
//! Must not know what a replica holds. The name of the file is a hash of the tenant's id, so two ids that one disk
//! takes for the same directory have two files all the same. All of it blocks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_core::TenantId;
use nimbus_crypto::{Dek, Subject, manifest_path};
use sha2::{Digest, Sha256};

use crate::encryption::{Keyring, refuse_manifest};
use crate::provider::files::{self, Entry, appended};
use crate::provider::lock::{DataDirLock, LOCK_FILE, LockError};
use crate::provider::sqlite::copy::names;
use crate::provider::{ProviderError, ProviderResult};

/// What is appended to the name of a replica that is being made.
const STAGING: &str = ".new";

/// The directory, held by this process.
pub(super) struct Cache {
    dir: PathBuf,
    keyring: Option<Arc<Keyring>>,
    _lock: DataDirLock,
}

/// Where the replica of a tenant is, and what unlocks it. Held by one store at a time.
pub(super) struct CacheFile {
    pub(super) path: PathBuf,
    pub(super) key: Option<Arc<Dek>>,
    /// Keeps `nimbus encryption` away.
    _lock: DataDirLock,
}

impl CacheFile {
    /// Where a new replica is made.
    pub(super) fn staging(&self) -> PathBuf {
        appended(&self.path, STAGING)
    }
}

/// The name of a tenant's file.
fn file_name(tenant: &TenantId) -> String {
    let digest = Sha256::digest(tenant.as_str());
    format!("{}.sqlite3", data_encoding::HEXLOWER.encode(&digest[..8]))
}

impl Cache {
    /// Makes the directory if it is missing, and locks it.
    ///
    /// # Errors
    /// `Busy` if another process has it, `Settings` if it cannot be one.
    pub(super) fn open(dir: &Path, keyring: Option<Arc<Keyring>>) -> ProviderResult<Cache> {
        let lock = DataDirLock::acquire(dir).map_err(locked)?;
        // SQLite follows no link in a path.
        let dir = dir
            .canonicalize()
            .map_err(|e| files::error("looking at", dir, e))?;
        Ok(Cache {
            dir,
            keyring,
            _lock: lock,
        })
    }

    fn place(&self, tenant: &TenantId) -> PathBuf {
        self.dir.join(tenant.as_str())
    }

    /// The file of a tenant, for people.
    pub(super) fn path(&self, tenant: &TenantId) -> PathBuf {
        self.place(tenant).join(file_name(tenant))
    }

    /// Locks the place of a tenant's replica and finds the key. A replica without a manifest cannot be read with
    /// one and goes.
    ///
    /// # Errors
    /// `Busy`; `Locked` and `KeyUnavailable` when the manifest cannot be opened; `Encrypted` when there is one and
    /// encryption is not configured; `Io`, `Full`.
    pub(super) fn prepare(&self, tenant: &TenantId) -> ProviderResult<CacheFile> {
        let lock = DataDirLock::acquire(&self.place(tenant)).map_err(locked)?;
        let path = self.path(tenant);
        let name = file_name(tenant);
        let subject = Subject::libsql_cache(tenant.as_str(), &name)
            .map_err(|e| ProviderError::io("naming a key", e))?;
        let key = match &self.keyring {
            None => refuse_manifest(&path).map(|()| None)?,
            Some(keyring) => {
                let manifest = manifest_path(&path);
                let found = files::inspect(&manifest);
                let key = match found.map_err(|e| files::error("looking at", &manifest, e))? {
                    Entry::Absent => {
                        remove_replica(&path)?;
                        keyring.create(&path, &subject)?
                    }
                    _ => keyring.unlock(&path, &subject)?,
                };
                Some(Arc::clone(key.current()))
            }
        };
        Ok(CacheFile {
            path,
            key,
            _lock: lock,
        })
    }

    /// Removes everything of a tenant, unless it is open.
    pub(super) fn remove(&self, tenant: &TenantId) -> ProviderResult<()> {
        let place = self.place(tenant);
        if !place.is_dir() {
            return Ok(());
        }
        let _lock = match DataDirLock::acquire(&place) {
            Ok(lock) => lock,
            Err(LockError::Held { .. }) => {
                tracing::warn!(%tenant, "the replica of a deleted tenant is open; it goes at a later start");
                return Ok(());
            }
            Err(e) => return Err(locked(e)),
        };
        let path = self.path(tenant);
        remove_replica(&path)?;
        remove_replica(&appended(&path, STAGING))?;
        let manifest = manifest_path(&path);
        let temporary = appended(&manifest, ".tmp");
        for path in [manifest, temporary, place.join(LOCK_FILE)] {
            files::remove_if_exists(&path).map_err(|e| files::error("removing", &path, e))?;
        }
        match std::fs::remove_dir(&place) {
            Ok(()) => {}
            // Of another tenant, on a disk that ignores case; or of someone else.
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(files::error("removing", &place, e)),
        }
        files::sync_dir(&self.dir).map_err(|e| files::error("syncing", &self.dir, e))
    }

    /// The tenants that there is something of.
    pub(super) fn tenants(&self) -> ProviderResult<Vec<TenantId>> {
        let fail = |e| files::error("listing", &self.dir, e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            let tenant = name.to_str().and_then(|name| name.parse().ok());
            found.extend(tenant.filter(|tenant| self.place(tenant).is_dir()));
        }
        Ok(found)
    }
}

/// Removes a replica and what SQLite has beside it.
pub(super) fn remove_replica(path: &Path) -> ProviderResult<()> {
    for path in names(path) {
        files::remove_if_exists(&path).map_err(|e| files::error("removing", &path, e))?;
    }
    Ok(())
}

/// Puts a new replica, which nobody has open, into the place of one that nobody has open. After a crash in between
/// there is none, and the next one is made.
pub(super) fn replace(staging: &Path, path: &Path) -> ProviderResult<()> {
    remove_replica(path)?;
    std::fs::rename(staging, path).map_err(|e| files::error("renaming", staging, e))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    files::sync_dir(dir).map_err(|e| files::error("syncing", dir, e))
}

fn locked(e: LockError) -> ProviderError {
    match e {
        LockError::Held { .. } => ProviderError::Busy {
            what: format!("the replica cache: {e}"),
        },
        e => ProviderError::Settings {
            reason: format!("the libSQL replica cache directory: {e}"),
        },
    }
}
