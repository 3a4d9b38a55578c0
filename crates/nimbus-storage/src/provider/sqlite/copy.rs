//! Files that are copies of a database elsewhere: the same tables, commits and snapshots as a tenant file, and a
//! format row that says what they are a copy of.
//!
//! Must not know where the original is. A copy can be made again, so its commits wait for no sync.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak, mpsc};

use nimbus_crypto::Dek;

use super::checkpoint::{self, Wal};
use super::file::TenantFile;
use super::store::SqliteStore;
use super::writer::Role;
use super::{Durability, SIDECARS, connection};
use crate::provider::files::{self, appended};
use crate::provider::{ProviderResult, TenantStore};

/// Makes and opens copies; they share the thread of checkpoints.
pub(in crate::provider) struct Copies {
    checkpoints: mpsc::Sender<Weak<Wal>>,
    readers: usize,
}

impl Copies {
    /// `heap_limit`: bytes that SQLite may keep in memory for encrypted files.
    ///
    /// # Errors
    /// `Io` when the system gives no thread.
    pub(in crate::provider) fn start(
        readers: usize,
        heap_limit: Option<u64>,
    ) -> ProviderResult<Copies> {
        if let Some(limit) = heap_limit {
            connection::limit_heap(limit)?;
        }
        Ok(Copies {
            checkpoints: checkpoint::start()?,
            readers,
        })
    }

    /// Makes an empty copy where no file is. Blocks.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub(in crate::provider) fn create(
        &self,
        path: &Path,
        key: Option<Arc<Dek>>,
    ) -> ProviderResult<()> {
        drop(files::create_new(path).map_err(|e| files::error("creating", path, e))?);
        connection::create(&TenantFile::with_key(path.to_owned(), key))
    }

    /// Opens a copy. Its batches may write the format row. Blocks.
    ///
    /// # Errors
    /// `Corrupt` for what is no copy, or is damaged, or is encrypted with another key; `Full`, `Io`.
    pub(in crate::provider) fn open(
        &self,
        path: &Path,
        key: Option<Arc<Dek>>,
    ) -> ProviderResult<Arc<dyn TenantStore>> {
        let file = TenantFile::with_key(path.to_owned(), key);
        let checkpoints = self.checkpoints.clone();
        let file = (file, Role::Copy);
        let store = SqliteStore::open(file, Durability::Relaxed, self.readers, checkpoints)?;
        Ok(Arc::new(store))
    }
}

/// A file and what SQLite puts beside it, in the order in which they are to be removed: a log must not
/// outlive its file, since it would be taken for that of the next one.
pub(in crate::provider) fn names(path: &Path) -> [PathBuf; 4] {
    let [wal, shm, journal] = SIDECARS.map(|ending| appended(path, ending));
    [path.to_owned(), wal, shm, journal]
}
