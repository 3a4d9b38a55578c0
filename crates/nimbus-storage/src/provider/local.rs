//! The life of tenants that are files in one directory: creating, opening, deleting and adopting,
//! bracketed by registry states, so that a start after a crash undoes the one and finishes the other.
//!
//! Must not know what is in the files but two rows (`format`), nor touch one that the registry does not name. What differs
//! between such providers is a [`Family`].

mod case;
mod format;
mod jobs;
mod serve;
mod survey;

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_core::TenantId;
use nimbus_crypto::{ManifestError, Subject, manifest_path};

use super::files::appended;
use super::{ProviderError, ProviderResult, TenantStore, files, write_mark};
use crate::control::{ControlDb, Distinct, TenantState};
use crate::encryption::{FileKey, Keyring};
use crate::pages::error::corrupt;
pub(super) use format::{FORMAT_KEY, check_format, decode_head, format_row};
pub(super) use jobs::{Job, Jobs};
pub(super) use serve::Embedded;
pub(crate) use serve::blocking;
pub(super) use survey::survey;

/// Files of one kind.
pub(super) trait Family: Send + Sync + 'static {
    /// The provider's name, on the command line and in the registry.
    const NAME: &'static str;
    /// Ending of a tenant file.
    const ENDING: &'static str;
    /// What is appended to that for everything that may be beside it. Removed in this order, after
    /// the file; the manifest last: a file without it is of no use, a manifest without a file does
    /// no harm.
    const BESIDE: &'static [(&'static str, Beside)];

    /// Makes the file of a new tenant, durably but for its name, and lists in `ours` each name
    /// that it has made. See [`new_key`] and [`claim`].
    fn make(&self, tenant: &TenantId, path: &Path, ours: &mut Vec<PathBuf>) -> ProviderResult<()>;

    /// Opens it.
    fn open(&self, tenant: &TenantId, path: &Path) -> ProviderResult<Arc<dyn TenantStore>>;

    /// Whether what an interrupted creation left may go: it has no commit. An error when that
    /// cannot be found out now.
    fn is_unborn(&self, tenant: &TenantId, path: &Path) -> ProviderResult<bool>;

    /// Checks a regular file that is not registered, changing nothing.
    fn check(&self, tenant: &TenantId, path: &Path) -> ProviderResult<()>;
}

/// What a file beside a tenant file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// A part of it, of no use without it.
    Part,
    /// A step of ours that a crash cut short.
    Step,
    /// Holds its key, and is kept even without it: the file may come back from a backup.
    Manifest,
}

/// What a tenant is created for.
#[derive(Clone, Copy)]
pub(super) enum NewTenant {
    /// To be used.
    Plain,
    /// See [`super::Provider::create_marked`].
    Marked(&'static [u8]),
    /// See [`super::Provider::create_arriving`].
    Arriving(&'static [u8]),
}

impl NewTenant {
    fn mark(self) -> Option<&'static [u8]> {
        match self {
            NewTenant::Plain => None,
            NewTenant::Marked(mark) | NewTenant::Arriving(mark) => Some(mark),
        }
    }
}

/// The tenants in one directory.
pub(super) struct Local<F> {
    pub(super) dir: PathBuf,
    pub(super) distinct: Distinct,
    pub(super) control: Arc<ControlDb>,
    pub(super) family: F,
}

impl<F: Family> Local<F> {
    /// Prepares the directory: finds out whether it ignores case, unless that is known, undoes
    /// creations and finishes deletions that a crash interrupted. Opens no tenant. Blocks.
    pub(super) fn start(
        data_dir: &Path,
        ignores_case: Option<bool>,
        control: Arc<ControlDb>,
        family: F,
    ) -> ProviderResult<Arc<Local<F>>> {
        // Resolved once: every symbolic link that appears later is then refused.
        let dir =
            std::fs::canonicalize(data_dir).map_err(|e| files::error("resolving", data_dir, e))?;
        let ignores_case = match ignores_case {
            Some(known) => known,
            None => case::ignores_case(&dir)?,
        };
        let distinct = match ignores_case {
            true => Distinct::IgnoringCase,
            false => Distinct::Exactly,
        };
        let local = Local {
            dir,
            distinct,
            control,
            family,
        };
        local.recover()?;
        Ok(Arc::new(local))
    }

    /// Undoes creations and finishes deletions that a crash interrupted. Blocks.
    fn recover(&self) -> ProviderResult<()> {
        for (tenant, entry) in self.control.entries() {
            if entry.provider != F::NAME {
                continue;
            }
            match entry.state {
                TenantState::Ready => {}
                TenantState::Creating => self.undo_interrupted(&tenant)?,
                TenantState::Deleting => {
                    self.remove_files(&self.all_paths(&tenant))?;
                    self.control.remove(&tenant, F::NAME)?;
                    tracing::info!(%tenant, "finished an interrupted deletion");
                }
            }
        }
        Ok(())
    }

    /// A tenant that was never acknowledged has no commit. Anything else under its name was put
    /// there by someone else since, and is left to be adopted.
    fn undo_interrupted(&self, tenant: &TenantId) -> ProviderResult<()> {
        let path = self.path(tenant);
        match self.family.is_unborn(tenant, &path) {
            Ok(true) => {
                self.remove_files(&self.all_paths(tenant))?;
                tracing::info!(%tenant, "undid an interrupted creation");
            }
            Ok(false) => {
                let path = path.display();
                tracing::warn!(%tenant, %path, "an interrupted creation left a file with data, which is kept");
            }
            Err(e @ (ProviderError::KeyUnavailable { .. } | ProviderError::Locked { .. })) => {
                tracing::warn!(%tenant, error = %e, "undoing an interrupted creation is left to a later start");
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        self.control.remove(tenant, F::NAME).map(drop)
    }

    fn path(&self, tenant: &TenantId) -> PathBuf {
        self.dir.join(format!("{tenant}{}", F::ENDING))
    }

    /// Every name that the tenant may have on disk.
    fn all_paths(&self, tenant: &TenantId) -> Vec<PathBuf> {
        let path = self.path(tenant);
        let beside = F::BESIDE.iter().map(|(ending, _)| appended(&path, ending));
        std::iter::once(path.clone()).chain(beside).collect()
    }

    /// Those of them that exist.
    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        let there = |path: &PathBuf| !matches!(files::inspect(path), Ok(files::Entry::Absent));
        let all = self.all_paths(tenant).into_iter().filter(there);
        all.map(|path| path.display().to_string()).collect()
    }

    /// On a thread for blocking work.
    fn create(&self, tenant: &TenantId, kind: NewTenant) -> ProviderResult<()> {
        // Before the registry knows the tenant: after a crash, whatever lies under a name that
        // is being created counts as ours. A left-over log or journal would be replayed into
        // the new file, so those count as well.
        if let Err(e) = self.refuse_existing(tenant) {
            // The entry comes before the file, so a file made by someone at the same time shows;
            // and on a disk that ignores case the file may be that of another tenant.
            if !matches!(kind, NewTenant::Arriving(_)) {
                self.control.check_free(tenant, F::NAME, self.distinct)?;
            }
            return Err(e);
        }
        let register = match kind {
            NewTenant::Arriving(_) => ControlDb::register_moving,
            NewTenant::Plain | NewTenant::Marked(_) => ControlDb::register,
        };
        let begun = TenantState::Creating;
        register(&self.control, tenant, F::NAME, self.distinct, begun)?;
        let mut ours = Vec::new();
        let made = self.make(tenant, &mut ours);
        if let Err(e) = made.and_then(|()| self.mark(tenant, kind.mark())) {
            let e = self.explain(e);
            self.undo_create(tenant, &ours);
            return Err(e);
        }
        self.control
            .put_state(tenant, F::NAME, TenantState::Ready)
            .map_err(|e| self.undo_ready(tenant, &ours, e))
    }

    fn make(&self, tenant: &TenantId, ours: &mut Vec<PathBuf>) -> ProviderResult<()> {
        self.family.make(tenant, &self.path(tenant), ours)?;
        files::sync_dir(&self.dir).map_err(|e| files::error("syncing", &self.dir, e))
    }

    /// Commits the mark, before the tenant is ready.
    fn mark(&self, tenant: &TenantId, mark: Option<&[u8]>) -> ProviderResult<()> {
        let Some(mark) = mark else { return Ok(()) };
        let store = self.family.open(tenant, &self.path(tenant))?;
        tokio::runtime::Handle::current().block_on(write_mark(&*store, mark))
    }

    /// After a failure to call the tenant ready, which the disk may have taken in all the same:
    /// its file must not go before the disk calls it unfinished again.
    fn undo_ready(
        &self,
        tenant: &TenantId,
        ours: &[PathBuf],
        cause: ProviderError,
    ) -> ProviderError {
        match self
            .control
            .put_state(tenant, F::NAME, TenantState::Creating)
        {
            Ok(()) => {
                self.undo_create(tenant, ours);
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

    fn refuse_existing(&self, tenant: &TenantId) -> ProviderResult<()> {
        for path in self.all_paths(tenant) {
            match files::inspect(&path).map_err(|e| files::error("looking at", &path, e))? {
                files::Entry::Absent => {}
                _ => return Err(unregistered(tenant, &path)),
            }
        }
        Ok(())
    }

    /// Leaves no entry and none of our files, the newest going first. What fails here is left to
    /// the next start.
    fn undo_create(&self, tenant: &TenantId, ours: &[PathBuf]) {
        let newest_first: Vec<_> = ours.iter().rev().cloned().collect();
        let undone = self.remove_files(&newest_first);
        if let Err(e) = undone.and_then(|()| self.control.remove(tenant, F::NAME)) {
            tracing::warn!(%tenant, error = %e, "undoing a failed creation is left to the next start");
        }
    }

    fn open(&self, tenant: &TenantId) -> ProviderResult<Arc<dyn TenantStore>> {
        if !self.control.contains(tenant, F::NAME) {
            return Err(not_found(tenant));
        }
        let opened = self.family.open(tenant, &self.path(tenant));
        opened.map_err(|e| self.explain(e))
    }

    fn delete(&self, tenant: &TenantId) -> ProviderResult<()> {
        match self.control.get_of(tenant, F::NAME).map(|e| e.state) {
            Some(TenantState::Ready) => {
                self.control
                    .put_state(tenant, F::NAME, TenantState::Deleting)?;
            }
            // A deletion that failed half-way can be tried again without a restart.
            Some(TenantState::Deleting) => {}
            _ => return Err(not_found(tenant)),
        }
        self.remove_files(&self.all_paths(tenant))?;
        self.control.remove(tenant, F::NAME).map(drop)
    }

    /// Removes names, durably.
    fn remove_files(&self, paths: &[PathBuf]) -> ProviderResult<()> {
        for path in paths {
            files::remove_if_exists(path).map_err(|e| files::error("removing", path, e))?;
        }
        files::sync_dir(&self.dir).map_err(|e| files::error("syncing", &self.dir, e))
    }

    fn unregistered(&self) -> ProviderResult<Vec<TenantId>> {
        let fail = |e| files::error("listing", &self.dir, e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            if let Some(tenant) = tenant_of(&name, F::ENDING)
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
            files::Entry::Absent => return Err(not_found(tenant)),
            files::Entry::Other => return Err(corrupt(&path, "it is not a regular file")),
            files::Entry::Regular { .. } => {}
        }
        self.family.check(tenant, &path)?;
        files::open_existing(&path)
            .and_then(|file| files::make_private(&file))
            .map_err(|e| files::error("changing the mode of", &path, e))?;
        self.control
            .register(tenant, F::NAME, self.distinct, TenantState::Ready)
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

    /// A lack of space is not always reported as one.
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

fn not_found(tenant: &TenantId) -> ProviderError {
    ProviderError::NotFound {
        tenant: tenant.clone(),
    }
}

/// The key of a new tenant file, if files are encrypted. Its manifest is written first, durably, and
/// listed in `ours` unless it is someone else's. Blocks.
pub(super) fn new_key(
    keyring: Option<&Keyring>,
    (tenant, subject): (&TenantId, &Subject),
    path: &Path,
    ours: &mut Vec<PathBuf>,
) -> ProviderResult<Option<FileKey>> {
    let Some(keyring) = keyring else {
        return Ok(None);
    };
    let manifest = manifest_path(path);
    match keyring.create(path, subject) {
        Err(ProviderError::Locked { source, .. })
            if matches!(*source, ManifestError::Exists { .. }) =>
        {
            Err(unregistered(tenant, &manifest))
        }
        made => {
            ours.push(manifest);
            made.map(Some)
        }
    }
}

/// Makes an empty file under the tenant's name, and lists it in `ours` unless someone else's has it.
pub(super) fn claim(
    tenant: &TenantId,
    path: &Path,
    ours: &mut Vec<PathBuf>,
) -> ProviderResult<File> {
    let file = files::create_new(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => unregistered(tenant, path),
        _ => files::error("creating", path, e),
    })?;
    ours.push(path.to_owned());
    Ok(file)
}

/// The tenant whose file has this name.
fn tenant_of(name: &OsStr, ending: &str) -> Option<TenantId> {
    name.to_str()?.strip_suffix(ending)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
