//! The redb provider: one file per tenant, `<data-dir>/<tenant>.redb`, in plain text or on encrypted
//! pages.
//!
//! It knows files, redb and where keys come from. It must not know documents. The life of the
//! files is that of all embedded providers (`local`).

mod file;
mod held;
mod recovery;
mod snapshots;
mod store;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nimbus_core::TenantId;
use nimbus_crypto::Subject;

pub use super::Durability;
use super::local::{self, Beside, Embedded, Family, Local, claim, new_key};
use super::{ProviderError, ProviderResult, TenantStore};
use crate::control::{ControlDb, TenantEntry};
use crate::encryption::{Keyring, key_of};
use crate::survey::TenantFiles;
use store::RedbStore;

/// The provider's name, on the command line and in the registry.
const NAME: &str = "redb";
/// Page cache of one open tenant unless said otherwise, bytes.
const CACHE_BYTES: usize = 4 << 20;
/// How long acknowledged commits may be in memory only, with relaxed durability.
const RELAXED_FOR: Duration = Duration::from_millis(500);

/// Settings of the [`RedbProvider`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RedbOptions {
    /// Where the tenant files are. Exists, and is locked by the caller.
    pub data_dir: PathBuf,
    /// What a commit waits for.
    pub durability: Durability,
    /// Page cache of one open tenant, bytes.
    pub cache_bytes: usize,
    /// Encrypts new files and unlocks those that are there; without one, encrypted files are refused.
    pub keyring: Option<Arc<Keyring>>,
    /// Whether the disk ignores the case of names; `None` finds out.
    pub case_insensitive: Option<bool>,
}

impl RedbOptions {
    /// Full durability, 4 MiB of cache, no encryption, and a probe of the disk.
    pub fn new(data_dir: impl Into<PathBuf>) -> RedbOptions {
        RedbOptions {
            data_dir: data_dir.into(),
            durability: Durability::Full,
            cache_bytes: CACHE_BYTES,
            keyring: None,
            case_insensitive: None,
        }
    }

    /// Bytes that the page cache of one open tenant takes at most, for a budget of memory.
    pub fn largest_caches(&self) -> u64 {
        self.cache_bytes as u64
    }
}

/// Tenants in redb files. See the module.
///
/// Two calls for the same tenant that change it (create, delete, adopt, open) must not run at
/// once; the engine runs them in turn.
pub struct RedbProvider {
    inner: Arc<Local<RedbFiles>>,
}

impl RedbProvider {
    /// Prepares the data directory: finds out whether it ignores case, undoes creations and
    /// finishes deletions that a crash interrupted. Opens no tenant. Blocks.
    ///
    /// # Errors
    /// `Full`, or `Io` if the directory is missing or not writable, or if the remains of a
    /// deletion cannot be removed.
    pub fn open(options: RedbOptions, control: Arc<ControlDb>) -> ProviderResult<RedbProvider> {
        let family = RedbFiles {
            durability: options.durability,
            cache: options.cache_bytes,
            keyring: options.keyring,
        };
        let inner = Local::start(&options.data_dir, options.case_insensitive, control, family)?;
        Ok(RedbProvider { inner })
    }
}

impl Embedded for RedbProvider {
    type Files = RedbFiles;

    fn local(&self) -> &Arc<Local<RedbFiles>> {
        &self.inner
    }
}

/// Compares the files in `dir` with the registry's entries, without opening any of them.
///
/// # Errors
/// `Io` when the directory cannot be listed or a name in it cannot be looked at.
pub fn survey(dir: &Path, entries: &[(TenantId, TenantEntry)]) -> ProviderResult<TenantFiles> {
    local::survey::<RedbFiles>(dir, entries)
}

/// What tenant files are on this provider.
pub(super) struct RedbFiles {
    durability: Durability,
    cache: usize,
    keyring: Option<Arc<Keyring>>,
}

impl Family for RedbFiles {
    const NAME: &'static str = NAME;
    const ENDING: &'static str = ".redb";
    const BESIDE: &'static [(&'static str, Beside)] = &[
        (".rotating", Beside::Step),
        (".nimbus-enc.tmp", Beside::Step),
        (".nimbus-enc", Beside::Manifest),
    ];

    fn make(&self, tenant: &TenantId, path: &Path, ours: &mut Vec<PathBuf>) -> ProviderResult<()> {
        let subject = subject(tenant)?;
        let key = new_key(self.keyring.as_deref(), (tenant, &subject), path, ours)?;
        file::create(path, claim(tenant, path, ours)?, key.as_ref())
    }

    fn open(&self, tenant: &TenantId, path: &Path) -> ProviderResult<Arc<dyn TenantStore>> {
        let key = key_of(self.keyring.as_ref(), path, &subject(tenant)?)?;
        let place = file::Place {
            path: path.to_owned(),
            key,
            cache: self.cache,
        };
        Ok(Arc::new(RedbStore::open(place, self.durability)?))
    }

    fn is_unborn(&self, tenant: &TenantId, path: &Path) -> ProviderResult<bool> {
        recovery::is_unborn(self.keyring.as_ref(), &subject(tenant)?, path)
    }

    fn check(&self, tenant: &TenantId, path: &Path) -> ProviderResult<()> {
        let key = key_of(self.keyring.as_ref(), path, &subject(tenant)?)?;
        recovery::full_check(path, key.as_ref()).map(drop)
    }
}

/// What the key of a tenant's file is bound to.
fn subject(tenant: &TenantId) -> ProviderResult<Subject> {
    Subject::redb_tenant(tenant.as_str())
        .map_err(|e| ProviderError::io(format!("naming the key of tenant {tenant}"), e))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
