//! A tenant file: its tables, how it is created and opened, and the checks that it is one of ours.
//!
//! Must not know what the rows mean, except for the head and the format row.

use std::fs::File;
use std::path::{Path, PathBuf};

use redb::{
    Database, ReadTransaction, ReadableDatabase, StorageBackend, TableDefinition, TableHandle,
};

use crate::encryption::FileKey;
use crate::pages::error::{corrupt, error, guarded};
use crate::pages::{Stop, Stoppable, open_file, pages_of};
use crate::provider::local::{self, FORMAT_KEY, decode_head, format_row};
use crate::provider::{HEAD_KEY, Head, Keyspace, ProviderResult, files};

/// Page cache while a file is created, bytes.
const SMALL_CACHE: usize = 1 << 20;

/// Keys and values of every table.
pub(super) type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// The table of a keyspace.
pub(super) fn table(keyspace: Keyspace) -> Table {
    TableDefinition::new(keyspace.name())
}

/// Where a tenant file is and how it is opened.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) key: Option<FileKey>,
    /// Page cache, bytes.
    pub(super) cache: usize,
}

impl Place {
    /// Opens the file and checks that it is ours. After a crash nothing is scanned: every commit
    /// has left what redb needs.
    pub(super) fn open(&self, stop: &Stop) -> ProviderResult<Database> {
        let file = open_file(&self.path)?;
        files::make_private(&file).map_err(|e| files::error("opening", &self.path, e))?;
        let pages = pages_of(&self.path, file, self.key.as_ref())?;
        let backend = Stoppable::new(pages, stop.clone());
        guarded(&self.path, || {
            let db = database(self.cache, backend)
                .map_err(|e| error("opening", &self.path, e.into()))?;
            check(&db, &self.path)?;
            Ok(db)
        })
    }
}

/// Opens a database, or makes one where there is nothing.
pub(super) fn database(
    cache: usize,
    backend: impl StorageBackend,
) -> Result<Database, redb::DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(cache).create_with_backend(backend)
}

/// Fills the empty file of a new tenant, durably but for its name.
pub(super) fn create(path: &Path, file: File, key: Option<&FileKey>) -> ProviderResult<()> {
    let kept = file
        .try_clone()
        .map_err(|e| files::error("creating", path, e))?;
    let pages = pages_of(path, file, key)?;
    fill(pages).map_err(|e| error("creating", path, e))?;
    kept.sync_all()
        .map_err(|e| files::error("syncing", path, e))
}

/// Tables, format row, the head of a tenant without commits.
pub(super) fn fill(backend: impl StorageBackend) -> Result<(), redb::Error> {
    let db = database(SMALL_CACHE, backend)?;
    let mut txn = db.begin_write()?;
    txn.set_quick_repair(true);
    for keyspace in Keyspace::ALL {
        txn.open_table(table(keyspace))?;
    }
    {
        let mut meta = txn.open_table(table(Keyspace::Meta))?;
        meta.insert(FORMAT_KEY, format_row().as_bytes())?;
        meta.insert(HEAD_KEY, Head::EMPTY.encode().as_slice())?;
    }
    txn.commit()?;
    db.close()?;
    Ok(())
}

/// Checks that the file is ours, of a known version, and holds our tables and nothing else.
pub(super) fn check(db: &impl ReadableDatabase, path: &Path) -> ProviderResult<Head> {
    let fail = |e: redb::Error| error("reading", path, e);
    let txn = db.begin_read().map_err(|e| fail(e.into()))?;
    let tables = txn.list_tables().map_err(|e| fail(e.into()))?;
    let names: Vec<String> = tables.map(|table| table.name().to_owned()).collect();
    if !names.iter().any(|name| name == Keyspace::Meta.name()) {
        return Err(corrupt(
            path,
            "it is no Nimbus tenant file (it has no table `meta`)",
        ));
    }
    check_format(&txn, path)?;
    let strange = names
        .iter()
        .find(|name| Keyspace::from_name(name).is_none());
    let multimaps = txn.list_multimap_tables().map_err(|e| fail(e.into()))?;
    let mut multimaps = multimaps.map(|table| redb::MultimapTableHandle::name(&table).to_owned());
    if let Some(name) = strange.cloned().or_else(|| multimaps.next()) {
        return Err(corrupt(path, format!("it holds a foreign table `{name}`")));
    }
    for keyspace in Keyspace::ALL {
        txn.open_table(table(keyspace))
            .map_err(|e| fail(e.into()))?;
    }
    read_head(&txn, path)
}

fn check_format(txn: &ReadTransaction, path: &Path) -> ProviderResult<()> {
    let row = meta_row(txn, path, FORMAT_KEY)?;
    local::check_format(path, row.as_deref())
}

/// Reads the head row.
pub(super) fn read_head(txn: &ReadTransaction, path: &Path) -> ProviderResult<Head> {
    let row = meta_row(txn, path, HEAD_KEY)?;
    decode_head(path, row.as_deref())
}

fn meta_row(txn: &ReadTransaction, path: &Path, key: &[u8]) -> ProviderResult<Option<Vec<u8>>> {
    let read = || -> Result<_, redb::Error> {
        let meta = txn.open_table(table(Keyspace::Meta))?;
        Ok(meta.get(key)?.map(|row| row.value().to_vec()))
    };
    read().map_err(|e| error("reading", path, e))
}
