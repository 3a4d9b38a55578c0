//! A file of redb on disk, in plain text or encrypted, behind one type.
//!
//! Must not know what the database holds.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Database, StorageBackend};

use super::error::{corrupt, error, guarded};
use super::{EncryptedPages, Scratch};
use crate::encryption::FileKey;
use crate::provider::{ProviderError, ProviderResult, files};

/// Page cache of a check, bytes.
const CHECK_CACHE: usize = 8 << 20;

/// Where redb's pages are.
#[derive(Debug)]
pub(crate) enum Pages<B> {
    /// As they are.
    Plain(B),
    /// Encrypted.
    Encrypted(Box<EncryptedPages<B>>),
}

impl<B: StorageBackend> Pages<B> {
    /// Encrypted where there is a key.
    pub(crate) fn over(inner: B, key: Option<&FileKey>) -> Pages<B> {
        match key {
            Some(key) => Pages::Encrypted(Box::new(EncryptedPages::new(inner, key))),
            None => Pages::Plain(inner),
        }
    }

    fn as_backend(&self) -> &dyn StorageBackend {
        match self {
            Pages::Plain(inner) => inner,
            Pages::Encrypted(pages) => &**pages,
        }
    }
}

/// The pages of an open file, which redb locks as it locks its own.
pub(crate) fn pages_of(
    path: &Path,
    file: File,
    key: Option<&FileKey>,
) -> ProviderResult<Pages<FileBackend>> {
    let backend = FileBackend::new(file).map_err(|e| error("opening", path, e.into()))?;
    Ok(Pages::over(backend, key))
}

/// Opens a file with every check that redb has, in memory: opening writes, and a damaged file, or one of
/// somebody else, stays exactly as it was found. What `then` reads of it is guarded as well. Blocks.
pub(crate) fn checked<T>(
    path: &Path,
    key: Option<&FileKey>,
    then: impl FnOnce(&Database) -> ProviderResult<T>,
) -> ProviderResult<T> {
    let scratch = Scratch::new(pages_of(path, open_file_to_read(path)?, key)?);
    guarded(path, || {
        let mut builder = Database::builder();
        builder
            .set_cache_size(CHECK_CACHE)
            .set_check_integrity_on_open(true);
        let db = builder
            .create_with_backend(scratch)
            .map_err(|e| error("checking", path, e.into()))?;
        then(&db)
    })
}

/// Opens a database file that must be there: no link is followed, and an empty one is refused, which
/// redb would take for a new one.
pub(crate) fn open_file(path: &Path) -> ProviderResult<File> {
    let file = files::open_existing(path).map_err(|e| opening(path, e))?;
    not_empty(path, file)
}

/// The same for reading only.
pub(crate) fn open_file_to_read(path: &Path) -> ProviderResult<File> {
    let file = files::open_read_only(path).map_err(|e| opening(path, e))?;
    not_empty(path, file)
}

fn opening(path: &Path, e: io::Error) -> ProviderError {
    match e {
        e if files::is_symlink_refusal(&e) => corrupt(path, "it is a symbolic link"),
        e if e.kind() == io::ErrorKind::InvalidInput => corrupt(path, "it is not a regular file"),
        e => files::error("opening", path, e),
    }
}

fn not_empty(path: &Path, file: File) -> ProviderResult<File> {
    let metadata = file
        .metadata()
        .map_err(|e| files::error("opening", path, e))?;
    match metadata.len() {
        0 => Err(corrupt(path, "it is empty")),
        _ => Ok(file),
    }
}

/// Ends all writing of a database from outside: what redb would still do when it is closed does
/// not reach the file, which stays as a crash would leave it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on, every write fails.
    pub(crate) fn now(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Acquire) {
            true => Err(io::Error::other("the database takes no more writes")),
            false => Ok(()),
        }
    }
}

/// A backend that can be stopped.
#[derive(Debug)]
pub(crate) struct Stoppable<B> {
    inner: B,
    stop: Stop,
}

impl<B: StorageBackend> Stoppable<B> {
    pub(crate) fn new(inner: B, stop: Stop) -> Stoppable<B> {
        Stoppable { inner, stop }
    }

    fn as_backend(&self) -> &dyn StorageBackend {
        &self.inner
    }
}

/// Hands everything but writes on.
macro_rules! hand_on {
    () => {
        fn len(&self) -> io::Result<u64> {
            self.as_backend().len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.as_backend().read(offset, out)
        }

        fn close(&self) -> io::Result<()> {
            self.as_backend().close()
        }

        fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.as_backend().try_lock_range(start, end)
        }

        fn try_lock_shared_range(
            &self,
            start: Bound<u64>,
            end: Bound<u64>,
        ) -> Result<bool, BackendError> {
            self.as_backend().try_lock_shared_range(start, end)
        }

        fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.as_backend().lock_range(start, end)
        }

        fn lock_shared_range(
            &self,
            start: Bound<u64>,
            end: Bound<u64>,
        ) -> Result<(), BackendError> {
            self.as_backend().lock_shared_range(start, end)
        }

        fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.as_backend().unlock_range(start, end)
        }

        fn query_lock_range(
            &self,
            start: Bound<u64>,
            end: Bound<u64>,
        ) -> Result<bool, BackendError> {
            self.as_backend().query_lock_range(start, end)
        }
    };
}

impl<B: StorageBackend> StorageBackend for Pages<B> {
    hand_on!();

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.as_backend().set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.as_backend().sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.as_backend().write(offset, data)
    }
}

impl<B: StorageBackend> StorageBackend for Stoppable<B> {
    hand_on!();

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.stop.check()?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.stop.check()?;
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.stop.check()?;
        self.inner.write(offset, data)
    }
}
