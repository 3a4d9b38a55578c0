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
mod survey;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_core::TenantId;
use nimbus_crypto::{ManifestError, Subject, manifest_path};

use super::local::{Family, Local, blocking};
use super::{Provider, ProviderError, ProviderResult, TenantStore, files};
use crate::control::{ControlDb, Distinct};
use crate::encryption::{Keyring, key_of};
use store::RedbStore;
pub use survey::survey;

/// The provider's name, on the command line and in the registry.
const NAME: &str = "redb";
/// Page cache of one open tenant unless said otherwise, bytes.
const CACHE_BYTES: usize = 4 << 20;
/// How long acknowledged commits may be in memory only, with relaxed durability.
const RELAXED_FOR: Duration = Duration::from_millis(500);

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Acknowledged means on disk: two syncs per commit.
    #[default]
    Full,
    /// No sync: a crash or a power cut takes at most the commits of the last half second, or the last
    /// 4 MiB of them, never order or consistency.
    Relaxed,
}

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
        let dir = std::fs::canonicalize(&options.data_dir)
            .map_err(|e| files::error("resolving", &options.data_dir, e))?;
        let ignores_case = match options.case_insensitive {
            Some(known) => known,
            None => super::sqlite::ignores_case(&dir)?,
        };
        let inner = Local {
            dir,
            distinct: if ignores_case {
                Distinct::IgnoringCase
            } else {
                Distinct::Exactly
            },
            control,
            family: RedbFiles {
                durability: options.durability,
                cache: options.cache_bytes,
                keyring: options.keyring,
            },
        };
        inner.recover()?;
        Ok(RedbProvider {
            inner: Arc::new(inner),
        })
    }

    /// Runs blocking work on the shared state, to its end even if the caller goes away.
    fn run<'a, T: Send + 'static>(
        &self,
        tenant: &'a TenantId,
        work: fn(&Local<RedbFiles>, &TenantId) -> ProviderResult<T>,
    ) -> BoxFuture<'a, ProviderResult<T>> {
        let inner = self.inner.clone();
        async move {
            let tenant = tenant.clone();
            blocking(move || work(&inner, &tenant)).await
        }
        .boxed()
    }
}

impl Provider for RedbProvider {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.run(tenant, |inner, tenant| inner.create(tenant, None))
    }

    fn create_marked<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        let inner = self.inner.clone();
        async move {
            let tenant = tenant.clone();
            blocking(move || inner.create(&tenant, Some(mark))).await
        }
        .boxed()
    }

    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>> {
        self.run(tenant, Local::open)
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.run(tenant, Local::delete)
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        async { Ok(self.inner.control.list(NAME)) }.boxed()
    }

    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>> {
        async { Ok(self.inner.control.contains(tenant, NAME)) }.boxed()
    }

    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        self.inner.owned(tenant)
    }

    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        let inner = self.inner.clone();
        async move { blocking(move || inner.unregistered()).await }.boxed()
    }

    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.run(tenant, Local::adopt)
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        let inner = self.inner.clone();
        async move { blocking(move || inner.health()).await }.boxed()
    }
}

/// What tenant files are on this provider.
struct RedbFiles {
    durability: Durability,
    cache: usize,
    keyring: Option<Arc<Keyring>>,
}

impl Family for RedbFiles {
    const NAME: &'static str = NAME;
    const ENDING: &'static str = ".redb";
    /// The manifest last: a file without it is of no use, a manifest without a file does no harm.
    const BESIDE: &'static [&'static str] = &[".rotating", ".nimbus-enc.tmp", ".nimbus-enc"];

    fn make(&self, tenant: &TenantId, path: &Path, ours: &mut Vec<PathBuf>) -> ProviderResult<()> {
        let key = match &self.keyring {
            Some(keyring) => {
                let made = keyring.create(path, &subject(tenant)?);
                let foreign = matches!(&made, Err(ProviderError::Locked { source, .. })
                    if matches!(**source, ManifestError::Exists { .. }));
                if !foreign {
                    ours.push(manifest_path(path));
                }
                Some(made?)
            }
            None => None,
        };
        file::create(path, key.as_ref(), ours)
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
