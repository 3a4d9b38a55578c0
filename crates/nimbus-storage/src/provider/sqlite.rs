//! The SQLite provider: one file per tenant, `<data-dir>/<tenant>.sqlite3`.
//!
//! It knows files, SQLite and where keys come from. It must not know documents. The life of the
//! files is that of all embedded providers (`local`).

mod checkpoint;
mod connection;
pub(crate) mod convert;
#[cfg(feature = "libsql")]
pub(super) mod copy;
mod error;
mod file;
mod readers;
mod recovery;
mod schema;
mod store;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak, mpsc};

use nimbus_core::TenantId;

pub use super::Durability;
use super::files::{self, appended};
use super::local::{self, Beside, Embedded, Family, Local, claim, new_key};
use super::{ProviderResult, TenantStore};
use crate::control::{ControlDb, TenantEntry};
use crate::encryption::Keyring;
use crate::survey::TenantFiles;
use checkpoint::Wal;
use file::TenantFile;
use store::SqliteStore;
use writer::Role;

/// The provider's name, on the command line and in the registry.
const NAME: &str = "sqlite";
/// Endings that SQLite adds for the files beside it.
const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Default of [`SqliteOptions::heap_limit`], bytes.
const HEAP_LIMIT: u64 = 512 << 20;

/// Settings of the [`SqliteProvider`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// Where the tenant files are. Exists, and is locked by the caller.
    pub data_dir: PathBuf,
    /// What a commit waits for.
    pub durability: Durability,
    /// Snapshots that one tenant can have open at once; 1 to 1,024.
    pub readers: usize,
    /// Whether the disk ignores the case of names; `None` finds out.
    pub case_insensitive: Option<bool>,
    /// Keys of the files, which are then encrypted with SQLCipher; `None` keeps plain text.
    pub keyring: Option<Arc<Keyring>>,
    /// With a keyring: bytes that SQLite may keep in memory for all connections of the process together,
    /// mostly decrypted pages.
    pub heap_limit: u64,
}

impl SqliteOptions {
    /// Full durability, four readers, and a probe of the disk.
    pub fn new(data_dir: impl Into<PathBuf>) -> SqliteOptions {
        SqliteOptions {
            data_dir: data_dir.into(),
            durability: Durability::Full,
            readers: 4,
            case_insensitive: None,
            keyring: None,
            heap_limit: HEAP_LIMIT,
        }
    }

    /// Bytes that the page caches of one open tenant take at most, for a budget of memory.
    pub fn largest_caches(&self) -> u64 {
        connection::largest_caches(self.readers)
    }
}

/// Tenants in SQLite files. See the module.
///
/// Two calls for the same tenant that change it (create, delete, adopt, open) must not run at
/// once; the engine runs them in turn.
pub struct SqliteProvider {
    inner: Arc<Local<SqliteFiles>>,
}

impl SqliteProvider {
    /// Prepares the data directory: finds out whether it ignores case, undoes creations and
    /// finishes deletions that a crash interrupted. Opens no tenant. Blocks.
    ///
    /// # Errors
    /// `Full`, or `Io` if the directory is missing or not writable, or if the remains of a
    /// deletion cannot be removed.
    pub fn open(options: SqliteOptions, control: Arc<ControlDb>) -> ProviderResult<SqliteProvider> {
        if options.keyring.is_some() {
            connection::limit_heap(options.heap_limit)?;
        }
        let family = SqliteFiles {
            durability: options.durability,
            readers: options.readers,
            keyring: options.keyring,
            checkpoints: checkpoint::start()?,
        };
        let inner = Local::start(&options.data_dir, options.case_insensitive, control, family)?;
        Ok(SqliteProvider { inner })
    }
}

impl Embedded for SqliteProvider {
    type Files = SqliteFiles;

    fn local(&self) -> &Arc<Local<SqliteFiles>> {
        &self.inner
    }
}

/// Compares the files in `dir` with the registry's entries, without opening any of them: opening and
/// closing a database file would drop SQLite's locks of this process.
///
/// # Errors
/// `Io` when the directory cannot be listed or a name in it cannot be looked at.
pub fn survey(dir: &Path, entries: &[(TenantId, TenantEntry)]) -> ProviderResult<TenantFiles> {
    local::survey::<SqliteFiles>(dir, entries)
}

/// What tenant files are on this provider.
pub(super) struct SqliteFiles {
    durability: Durability,
    readers: usize,
    keyring: Option<Arc<Keyring>>,
    checkpoints: mpsc::Sender<Weak<Wal>>,
}

impl SqliteFiles {
    fn locate(&self, tenant: &TenantId, path: &Path) -> ProviderResult<TenantFile> {
        TenantFile::locate(path.to_owned(), tenant, self.keyring.as_ref())
    }
}

impl Family for SqliteFiles {
    const NAME: &'static str = NAME;
    const ENDING: &'static str = ".sqlite3";
    const BESIDE: &'static [(&'static str, Beside)] = &[
        (SIDECARS[0], Beside::Part),
        (SIDECARS[1], Beside::Part),
        (SIDECARS[2], Beside::Part),
        (".nimbus-enc.tmp", Beside::Step),
        (".nimbus-enc", Beside::Manifest),
    ];

    fn make(&self, tenant: &TenantId, path: &Path, ours: &mut Vec<PathBuf>) -> ProviderResult<()> {
        let subject = file::subject(tenant)?;
        let key = new_key(self.keyring.as_deref(), (tenant, &subject), path, ours)?;
        drop(claim(tenant, path, ours)?);
        // What SQLite puts beside a file that is ours is ours.
        ours.extend(SIDECARS.map(|ending| appended(path, ending)));
        let key = key.map(|key| Arc::clone(key.current()));
        connection::create(&TenantFile::with_key(path.to_owned(), key))?;
        // No connection is open any more, so opening the file here releases no lock.
        files::open_existing(path)
            .and_then(|file| file.sync_all())
            .map_err(|e| files::error("syncing", path, e))
    }

    fn open(&self, tenant: &TenantId, path: &Path) -> ProviderResult<Arc<dyn TenantStore>> {
        let file = self.locate(tenant, path)?;
        let checkpoints = self.checkpoints.clone();
        let file = (file, Role::Tenant);
        let store = SqliteStore::open(file, self.durability, self.readers, checkpoints)?;
        Ok(Arc::new(store))
    }

    fn is_unborn(&self, tenant: &TenantId, path: &Path) -> ProviderResult<bool> {
        recovery::is_unborn(self.keyring.as_ref(), tenant, path)
    }

    fn check(&self, tenant: &TenantId, path: &Path) -> ProviderResult<()> {
        recovery::quick_check(&self.locate(tenant, path)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
