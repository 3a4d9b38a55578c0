//! The SQLite provider: one file per tenant, `<data-dir>/<tenant>.sqlite3`.
//!
//! It knows files, SQLite and the registry of the control database. It must not know
//! documents, nor open a file that the registry does not name. Creating and deleting are
//! bracketed by registry states, so that a start after a crash undoes the one and finishes the
//! other; a file without an entry is never touched.

mod checkpoint;
mod connection;
pub(crate) mod convert;
mod error;
mod file;
mod readers;
mod recovery;
mod schema;
mod store;
mod survey;
mod writer;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak, mpsc};

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_core::TenantId;
use nimbus_crypto::{ManifestError, manifest_path};

use super::{Provider, ProviderError, ProviderResult, TenantStore, files, write_mark};
use crate::control::{ControlDb, Distinct, TenantState};
use crate::encryption::Keyring;
use checkpoint::Wal;
use error::corrupt;
use file::TenantFile;
pub(super) use recovery::ignores_case;
use store::SqliteStore;
pub use survey::survey;

/// The provider's name, on the command line and in the registry.
const NAME: &str = "sqlite";
/// Ending of a tenant file.
const SUFFIX: &str = ".sqlite3";
/// Endings that SQLite adds for the files beside it.
const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// One sync per commit: acknowledged means on disk (`synchronous=FULL`).
    #[default]
    Full,
    /// No sync: a power cut may take the newest commits, never order or consistency
    /// (`synchronous=NORMAL`).
    Relaxed,
}

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
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    durability: Durability,
    readers: usize,
    distinct: Distinct,
    control: Arc<ControlDb>,
    keyring: Option<Arc<Keyring>>,
    checkpoints: mpsc::Sender<Weak<Wal>>,
}

impl SqliteProvider {
    /// Prepares the data directory: finds out whether it ignores case, undoes creations and
    /// finishes deletions that a crash interrupted. Opens no tenant. Blocks.
    ///
    /// # Errors
    /// `Full`, or `Io` if the directory is missing or not writable, or if the remains of a
    /// deletion cannot be removed.
    pub fn open(options: SqliteOptions, control: Arc<ControlDb>) -> ProviderResult<SqliteProvider> {
        // Resolved once: SQLite then refuses every symbolic link that appears later.
        let dir = std::fs::canonicalize(&options.data_dir)
            .map_err(|e| files::error("resolving", &options.data_dir, e))?;
        let ignores_case = match options.case_insensitive {
            Some(known) => known,
            None => recovery::ignores_case(&dir)?,
        };
        let inner = Inner {
            dir,
            durability: options.durability,
            readers: options.readers,
            distinct: if ignores_case {
                Distinct::IgnoringCase
            } else {
                Distinct::Exactly
            },
            control,
            keyring: options.keyring,
            checkpoints: checkpoint::start()?,
        };
        recovery::finish(&inner)?;
        Ok(SqliteProvider {
            inner: Arc::new(inner),
        })
    }

    /// Runs blocking work on the shared state, to its end even if the caller goes away.
    fn run<'a, T: Send + 'static>(
        &self,
        tenant: &'a TenantId,
        work: fn(&Inner, &TenantId) -> ProviderResult<T>,
    ) -> BoxFuture<'a, ProviderResult<T>> {
        let inner = self.inner.clone();
        async move {
            let tenant = tenant.clone();
            blocking(move || work(&inner, &tenant)).await
        }
        .boxed()
    }
}

impl Provider for SqliteProvider {
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
        self.run(tenant, Inner::open)
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.run(tenant, Inner::delete)
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        async { Ok(self.inner.control.list(NAME)) }.boxed()
    }

    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>> {
        async { Ok(self.inner.control.contains(tenant, NAME)) }.boxed()
    }

    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        let there = |path: &PathBuf| !matches!(files::inspect(path), Ok(files::Entry::Absent));
        let all = self.inner.all_paths(tenant);
        all.into_iter()
            .filter(there)
            .map(|p| p.display().to_string())
            .collect()
    }

    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        let inner = self.inner.clone();
        async move { blocking(move || inner.unregistered()).await }.boxed()
    }

    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.run(tenant, Inner::adopt)
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        let inner = self.inner.clone();
        async move { blocking(move || inner.health()).await }.boxed()
    }
}

impl Inner {
    fn path(&self, tenant: &TenantId) -> PathBuf {
        self.dir.join(format!("{tenant}{SUFFIX}"))
    }

    /// The tenant file, everything SQLite may put beside it, and last its manifest: without that the
    /// rest is of no use.
    fn all_paths(&self, tenant: &TenantId) -> Vec<PathBuf> {
        let path = self.path(tenant);
        let beside = SIDECARS.iter().map(|s| sidecar(&path, s));
        let mut all: Vec<PathBuf> = std::iter::once(path.clone()).chain(beside).collect();
        let manifest = manifest_path(&path);
        all.push(sidecar(&manifest, ".tmp"));
        all.push(manifest);
        all
    }

    fn locate(&self, tenant: &TenantId) -> ProviderResult<TenantFile> {
        TenantFile::locate(self.path(tenant), tenant, self.keyring.as_deref())
    }

    fn create(&self, tenant: &TenantId, mark: Option<&[u8]>) -> ProviderResult<()> {
        // Before the registry knows the tenant: after a crash, whatever lies under a name that
        // is being created counts as ours. A left-over log or journal would be replayed into
        // the new file, so those count as well.
        if let Err(e) = self.refuse_existing(tenant) {
            // The entry comes before the file, so a file made by someone at the same time shows;
            // and on a disk that ignores case the file may be that of another tenant.
            self.control.check_free(tenant, NAME, self.distinct)?;
            return Err(e);
        }
        self.control
            .register(tenant, NAME, self.distinct, TenantState::Creating)?;
        let path = self.path(tenant);
        let mut ours = false;
        let made = self.create_file(tenant, &path, &mut ours);
        if let Err(e) = made.and_then(|()| self.mark(tenant, mark)) {
            let e = self.explain(e);
            self.undo_create(tenant, ours);
            return Err(e);
        }
        self.control
            .put_state(tenant, TenantState::Ready)
            .map_err(|e| self.undo_ready(tenant, e))
    }

    /// Commits the row of [`Provider::create_marked`], before the tenant is ready. On a thread for
    /// blocking work.
    fn mark(&self, tenant: &TenantId, mark: Option<&[u8]>) -> ProviderResult<()> {
        let Some(mark) = mark else { return Ok(()) };
        let store = self.open_store(tenant)?;
        tokio::runtime::Handle::current().block_on(write_mark(&*store, mark))
    }

    /// After a failure to call the tenant ready, which the disk may have taken in all the same:
    /// its file must not go before the disk calls it unfinished again.
    fn undo_ready(&self, tenant: &TenantId, cause: ProviderError) -> ProviderError {
        match self.control.put_state(tenant, TenantState::Creating) {
            Ok(()) => {
                self.undo_create(tenant, true);
                cause
            }
            // Not `Full`, which would say that nothing was written.
            Err(e) => {
                tracing::warn!(%tenant, error = %e, "undoing a failed creation is left to the next start");
                let what = format!("whether tenant {tenant} was created shows at the next start");
                ProviderError::io(what, cause)
            }
        }
    }

    fn create_file(&self, tenant: &TenantId, path: &Path, ours: &mut bool) -> ProviderResult<()> {
        let file = TenantFile::create(path.to_owned(), tenant, self.keyring.as_deref());
        let file = file.map_err(|e| match e {
            ProviderError::Locked { ref source, .. }
                if matches!(**source, ManifestError::Exists { .. }) =>
            {
                unregistered(tenant, &manifest_path(path))
            }
            e => e,
        })?;
        // From here on the manifest is ours, and the name of the file was free.
        *ours = true;
        match files::create_new(path) {
            Ok(file) => drop(file),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                *ours = false;
                self.remove_manifest(path);
                return Err(unregistered(tenant, path));
            }
            Err(e) => return Err(files::error("creating", path, e)),
        }
        connection::create(&file)?;
        // No connection is open any more, so opening the file here releases no lock.
        files::open_existing(path)
            .and_then(|file| file.sync_all())
            .map_err(|e| files::error("syncing", path, e))?;
        files::sync_dir(&self.dir).map_err(|e| files::error("syncing", &self.dir, e))
    }

    /// Takes back the manifest that was made for a name that someone else's file has taken since.
    fn remove_manifest(&self, path: &Path) {
        let manifest = manifest_path(path);
        let removed = match self.keyring {
            Some(_) => files::remove_if_exists(&manifest),
            None => Ok(false),
        };
        if let Err(e) = removed {
            let path = manifest.display();
            tracing::warn!(%path, error = %e, "a manifest that belongs to no file was left");
        }
    }

    fn refuse_existing(&self, tenant: &TenantId) -> ProviderResult<()> {
        for path in self.all_paths(tenant) {
            match files::inspect(&path).map_err(|e| files::error("looking at", &path, e))? {
                files::Entry::Absent => {}
                _ => return Err(unregistered(tenant, &path)),
            }
        }
        Ok(())
    }

    /// Leaves no entry and, where the file was ours, no file. What fails here is left to the
    /// next start.
    fn undo_create(&self, tenant: &TenantId, ours: bool) {
        let undone = if ours {
            self.remove_files(tenant)
        } else {
            Ok(())
        };
        if let Err(e) = undone.and_then(|()| self.control.remove(tenant)) {
            tracing::warn!(%tenant, error = %e, "undoing a failed creation is left to the next start");
        }
    }

    fn open(&self, tenant: &TenantId) -> ProviderResult<Arc<dyn TenantStore>> {
        if !self.control.contains(tenant, NAME) {
            return Err(ProviderError::NotFound {
                tenant: tenant.clone(),
            });
        }
        self.open_store(tenant)
    }

    fn open_store(&self, tenant: &TenantId) -> ProviderResult<Arc<dyn TenantStore>> {
        let checkpoints = self.checkpoints.clone();
        let opened = SqliteStore::open(
            self.locate(tenant)?,
            self.durability,
            self.readers,
            checkpoints,
        );
        opened
            .map(|store| Arc::new(store) as Arc<dyn TenantStore>)
            .map_err(|e| self.explain(e))
    }

    fn delete(&self, tenant: &TenantId) -> ProviderResult<()> {
        match self.control.get(tenant) {
            Some(e) if e.provider == NAME && e.state == TenantState::Ready => {
                self.control.put_state(tenant, TenantState::Deleting)?;
            }
            // A deletion that failed half-way can be tried again without a restart.
            Some(e) if e.provider == NAME && e.state == TenantState::Deleting => {}
            _ => {
                return Err(ProviderError::NotFound {
                    tenant: tenant.clone(),
                });
            }
        }
        self.remove_files(tenant)?;
        self.control.remove(tenant).map(drop)
    }

    /// Removes the tenant's names, durably.
    fn remove_files(&self, tenant: &TenantId) -> ProviderResult<()> {
        for path in self.all_paths(tenant) {
            files::remove_if_exists(&path).map_err(|e| files::error("removing", &path, e))?;
        }
        files::sync_dir(&self.dir).map_err(|e| files::error("syncing", &self.dir, e))
    }

    fn unregistered(&self) -> ProviderResult<Vec<TenantId>> {
        let fail = |e| files::error("listing", &self.dir, e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            if let Some(tenant) = tenant_of(&name)
                && self.control.get(&tenant).is_none()
            {
                found.push(tenant);
            }
        }
        found.sort();
        Ok(found)
    }

    fn adopt(&self, tenant: &TenantId) -> ProviderResult<()> {
        if self.control.get(tenant).is_some() {
            return Err(ProviderError::AlreadyExists {
                tenant: tenant.clone(),
            });
        }
        let path = self.path(tenant);
        match files::inspect(&path).map_err(|e| files::error("looking at", &path, e))? {
            files::Entry::Absent => {
                return Err(ProviderError::NotFound {
                    tenant: tenant.clone(),
                });
            }
            files::Entry::Other => return Err(corrupt(&path, "it is not a regular file".into())),
            files::Entry::Regular { .. } => {}
        }
        recovery::quick_check(&self.locate(tenant)?)?;
        files::open_existing(&path)
            .and_then(|file| files::make_private(&file))
            .map_err(|e| files::error("changing the mode of", &path, e))?;
        self.control
            .register(tenant, NAME, self.distinct, TenantState::Ready)
            .map(drop)
    }

    fn health(&self) -> ProviderResult<()> {
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|e| files::error("looking at", &self.dir, e.into()))?;
        if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            let what = format!("writing to {}", self.dir.display());
            return Err(ProviderError::io(what, "it is mounted read-only"));
        }
        if stat.f_bavail == 0 {
            return Err(ProviderError::Full {
                what: self.dir.display().to_string(),
            });
        }
        self.control.check()
    }

    /// SQLite reports a lack of space for its shared-memory file as an I/O error.
    fn explain(&self, e: ProviderError) -> ProviderError {
        match (&e, files::free_bytes(&self.dir)) {
            (ProviderError::Io { .. }, Ok(0)) => ProviderError::Full {
                what: e.to_string(),
            },
            _ => e,
        }
    }
}

fn unregistered(tenant: &TenantId, path: &Path) -> ProviderError {
    ProviderError::Unregistered {
        tenant: tenant.clone(),
        path: path.display().to_string(),
    }
}

/// The path of a file that SQLite keeps beside `path`.
fn sidecar(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The tenant whose file has this name.
fn tenant_of(name: &OsStr) -> Option<TenantId> {
    name.to_str()?.strip_suffix(SUFFIX)?.parse().ok()
}

/// Runs blocking work on tokio's threads for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ProviderResult<T> + Send + 'static,
) -> ProviderResult<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(ProviderError::io("blocking work", e)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
