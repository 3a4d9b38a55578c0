//! The control database as a file, in plain text or encrypted: made whole or not at all, and checked in
//! memory before the file itself is opened for writing, so that a damaged one is refused untouched.
//!
//! Must not know what the tables mean beyond reading them into the mirror.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use nimbus_core::TenantId;
use nimbus_crypto::{Subject, manifest_path};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable};

use super::{
    ANCHORS, ControlLook as Look, META, MOVING, Mirror, RandomId, TENANTS, TenantEntry, WAKES,
    WAKES_BY_TIME,
};
use crate::encryption::{FileKey, Keyring, key_of, refuse_manifest};
use crate::pages::error::{corrupt, error};
use crate::pages::{checked, open_file, pages_of};
use crate::provider::{ProviderResult, files};

/// Name of the control database inside the data directory.
pub const CONTROL_FILE: &str = "nimbus-control.db";
/// Name under which a new one is made before it is renamed.
pub(crate) const NEW_FILE: &str = "nimbus-control.db.new";
/// Value of `format` in the `meta` table.
const FORMAT: &str = "1";
/// Page cache, bytes. redb's default is 1 GiB.
const CACHE: usize = 8 << 20;
/// A larger file is not checked first, bytes.
const MAX_REHEARSAL: u64 = 256 << 20;

/// What an opened file holds.
pub(super) struct Contents {
    pub(super) installation: RandomId,
    pub(super) mirror: Mirror,
}

/// Finds the key of the file, and makes the file if it is absent: under another name that is then changed, so
/// that a crash leaves none or a whole one. Its manifest comes first; one that a crash left is used.
pub(super) fn prepare(
    dir: &Path,
    path: &Path,
    keyring: Option<&Arc<Keyring>>,
) -> ProviderResult<Option<FileKey>> {
    let new = dir.join(NEW_FILE);
    let left_over = files::remove_if_exists(&new).map_err(|e| files::error("removing", &new, e))?;
    match files::inspect(path).map_err(|e| files::error("looking at", path, e))? {
        files::Entry::Absent => {}
        files::Entry::Regular { .. } => return key_of(keyring, path, &Subject::control()),
        files::Entry::Other => return Err(corrupt(path, "it is not a regular file")),
    }
    if left_over {
        tracing::info!(path = %new.display(), "removed a control database that was not finished");
    }
    let key = new_key(path, keyring)?;
    let made = create(&new, key.as_ref())
        .and_then(|()| {
            std::fs::rename(&new, path).map_err(|e| files::error("renaming to", path, e))
        })
        .and_then(|()| files::sync_dir(dir).map_err(|e| files::error("syncing", dir, e)));
    if made.is_err() {
        let _ = files::remove_if_exists(&new);
    }
    made.map(|()| key)
}

fn new_key(path: &Path, keyring: Option<&Arc<Keyring>>) -> ProviderResult<Option<FileKey>> {
    let Some(keyring) = keyring else {
        return refuse_manifest(path).map(|()| None);
    };
    let manifest = manifest_path(path);
    let there = files::inspect(&manifest).map_err(|e| files::error("looking at", &manifest, e))?;
    let key = match there {
        files::Entry::Absent => keyring.create(path, &Subject::control()),
        _ => keyring.unlock(path, &Subject::control()),
    };
    key.map(Some)
}

fn create(new: &Path, key: Option<&FileKey>) -> ProviderResult<()> {
    let file = files::create_new(new).map_err(|e| files::error("creating", new, e))?;
    let kept = file
        .try_clone()
        .map_err(|e| files::error("creating", new, e))?;
    let installation = RandomId::generate()?.to_string();
    let pages = pages_of(new, file, key)?;
    (|| -> Result<(), redb::Error> {
        let db = builder().create_with_backend(pages)?;
        let mut txn = db.begin_write()?;
        txn.set_two_phase_commit(true);
        {
            let mut meta = txn.open_table(META)?;
            meta.insert("format", FORMAT)?;
            meta.insert("installation", installation.as_str())?;
            txn.open_table(TENANTS)?;
            txn.open_table(WAKES)?;
            txn.open_table(WAKES_BY_TIME)?;
            txn.open_table(ANCHORS)?;
        }
        txn.commit()?;
        db.close()?;
        Ok(())
    })()
    .map_err(|e| error("creating", new, e))?;
    kept.sync_all().map_err(|e| files::error("syncing", new, e))
}

/// Opens the file and reads all of it.
pub(super) fn open(path: &Path, key: Option<&FileKey>) -> ProviderResult<(Database, Contents)> {
    let file = open_file(path)?;
    let metadata = file
        .metadata()
        .map_err(|e| files::error("opening", path, e))?;
    if metadata.len() <= MAX_REHEARSAL {
        rehearse(path, key)?;
    }
    files::make_private(&file).map_err(|e| files::error("opening", path, e))?;
    let pages = pages_of(path, file, key)?;
    let db = builder()
        .create_with_backend(pages)
        .map_err(|e| error("opening", path, e.into()))?;
    let contents = read(path, &db)?;
    Ok((db, contents))
}

/// Reads the file as it is; it is neither opened for writing nor locked.
pub(super) fn look(path: &Path, keyring: Option<&Arc<Keyring>>) -> ProviderResult<Look> {
    Ok(match look_at(path, keyring)? {
        Looked::Absent => Look::Absent,
        Looked::TooLarge { len } => Look::TooLarge { len },
        Looked::Contents(contents) => Look::Entries(contents.mirror.sorted()),
    })
}

/// Reads one anchor in the same way.
pub(super) fn look_anchor(
    path: &Path,
    log: &str,
    keyring: Option<&Arc<Keyring>>,
) -> ProviderResult<Option<String>> {
    match look_at(path, keyring)? {
        Looked::Absent => Ok(None),
        Looked::TooLarge { len } => Err(corrupt(path, format!("{len} bytes is no size for it"))),
        Looked::Contents(contents) => Ok(contents.mirror.anchors.get(log).cloned()),
    }
}

/// What a look at the file finds.
enum Looked {
    Absent,
    TooLarge { len: u64 },
    Contents(Box<Contents>),
}

fn look_at(path: &Path, keyring: Option<&Arc<Keyring>>) -> ProviderResult<Looked> {
    match files::inspect(path).map_err(|e| files::error("looking at", path, e))? {
        files::Entry::Absent => return Ok(Looked::Absent),
        files::Entry::Other => return Err(corrupt(path, "it is not a regular file")),
        files::Entry::Regular { len: 0 } => return Err(corrupt(path, "it is empty")),
        files::Entry::Regular { len } if len > MAX_REHEARSAL => {
            return Ok(Looked::TooLarge { len });
        }
        files::Entry::Regular { .. } => {}
    }
    let key = key_of(keyring, path, &Subject::control())?;
    Ok(Looked::Contents(Box::new(rehearse(path, key.as_ref())?)))
}

/// Opens the file with every check redb has, without changing it. Opening writes: doing it in memory
/// first leaves a damaged file exactly as it was found.
fn rehearse(path: &Path, key: Option<&FileKey>) -> ProviderResult<Contents> {
    checked(path, key, |db| read(path, db))
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE)
        .set_check_integrity_on_open(true);
    builder
}

fn read(path: &Path, db: &Database) -> ProviderResult<Contents> {
    let fail = |e: redb::Error| error("reading", path, e);
    let txn = db.begin_read().map_err(|e| fail(e.into()))?;
    let meta = txn.open_table(META).map_err(|e| fail(e.into()))?;
    let text = |key: &str| -> ProviderResult<String> {
        let value = meta.get(key).map_err(|e| fail(e.into()))?;
        value
            .map(|v| v.value().to_owned())
            .ok_or_else(|| corrupt(path, format!("`{key}` is missing")))
    };
    let format = text("format")?;
    if format != FORMAT {
        let reason = format!(
            "its format version is {format} and this server reads version {FORMAT}; \
             use the version of Nimbus that wrote it"
        );
        return Err(corrupt(path, &reason));
    }
    let installation = RandomId::try_from(text("installation")?)
        .map_err(|e| corrupt(path, format!("`installation`: {e}")))?;

    let mut mirror = Mirror::default();
    let tenant = |id: &str| {
        id.parse::<TenantId>()
            .map_err(|e| corrupt(path, format!("tenant id: {e}")))
    };
    let rows = |table: ReadOnlyTable<&'static str, &'static str>| {
        let mut entries = BTreeMap::new();
        for row in table.iter().map_err(|e| fail(e.into()))? {
            let (id, json) = row.map_err(|e| fail(e.into()))?;
            let entry: TenantEntry = serde_json::from_str(json.value())
                .map_err(|e| corrupt(path, format!("entry of tenant {}: {e}", id.value())))?;
            entries.insert(tenant(id.value())?, entry);
        }
        ProviderResult::Ok(entries)
    };
    mirror.tenants = rows(txn.open_table(TENANTS).map_err(|e| fail(e.into()))?)?;
    match txn.open_table(MOVING) {
        // Made with the first move from one embedded provider to another.
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        opened => mirror.moving = rows(opened.map_err(|e| fail(e.into()))?)?,
    }
    let wakes = txn.open_table(WAKES).map_err(|e| fail(e.into()))?;
    for row in wakes.iter().map_err(|e| fail(e.into()))? {
        let (id, at) = row.map_err(|e| fail(e.into()))?;
        mirror.wakes.set(&tenant(id.value())?, Some(at.value()));
    }
    let anchors = match txn.open_table(ANCHORS) {
        // A database that was made before there were anchors.
        Err(redb::TableError::TableDoesNotExist(_)) => None,
        opened => Some(opened.map_err(|e| fail(e.into()))?),
    };
    if let Some(anchors) = anchors {
        for row in anchors.iter().map_err(|e| fail(e.into()))? {
            let (log, text) = row.map_err(|e| fail(e.into()))?;
            let (log, text) = (log.value().to_owned(), text.value().to_owned());
            mirror.anchors.insert(log, text);
        }
    }
    let by_time = txn.open_table(WAKES_BY_TIME).map_err(|e| fail(e.into()))?;
    let mut stored = 0;
    for row in by_time.iter().map_err(|e| fail(e.into()))? {
        let (key, _) = row.map_err(|e| fail(e.into()))?;
        let (at, id) = key.value();
        if !mirror.wakes.times().contains(&(at, tenant(id)?)) {
            return Err(corrupt(
                path,
                format!("the two wake tables differ on tenant {id}"),
            ));
        }
        stored += 1;
    }
    if stored != mirror.wakes.times().len() {
        return Err(corrupt(path, "the two wake tables differ in length"));
    }
    Ok(Contents {
        installation,
        mirror,
    })
}
