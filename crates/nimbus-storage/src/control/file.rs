//! The control database as a file: made whole or not at all, and checked in memory before the
//! file itself is opened for writing, so that a damaged one is refused untouched.
//!
//! Must not know what the tables mean beyond reading them into the mirror.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use nimbus_core::TenantId;
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend};

use super::{
    ANCHORS, ControlLook as Look, META, Mirror, RandomId, TENANTS, TenantEntry, WAKES,
    WAKES_BY_TIME,
};
use crate::provider::{ProviderError, ProviderResult, files};

/// Name of the control database inside the data directory.
pub const CONTROL_FILE: &str = "nimbus-control.db";
/// Name under which a new one is made before it is renamed.
pub(crate) const NEW_FILE: &str = "nimbus-control.db.new";
/// Value of `format` in the `meta` table.
const FORMAT: &str = "1";
/// Page cache, bytes. redb's default is 1 GiB.
const CACHE: usize = 8 << 20;
/// A larger file is not checked in memory first, bytes.
const MAX_REHEARSAL: u64 = 256 << 20;

/// What an opened file holds.
pub(super) struct Contents {
    pub(super) installation: RandomId,
    pub(super) mirror: Mirror,
}

/// Makes the file under another name and renames it, so that a crash leaves none or a whole one.
pub(super) fn create_if_absent(dir: &Path, path: &Path) -> ProviderResult<()> {
    let new = dir.join(NEW_FILE);
    let left_over = files::remove_if_exists(&new).map_err(|e| files::error("removing", &new, e))?;
    match files::inspect(path).map_err(|e| files::error("looking at", path, e))? {
        files::Entry::Absent => {}
        files::Entry::Regular { .. } => return Ok(()),
        files::Entry::Other => return Err(corrupt(path, "it is not a regular file")),
    }
    if left_over {
        tracing::info!(path = %new.display(), "removed a control database that was not finished");
    }
    let made = create(&new)
        .and_then(|()| {
            std::fs::rename(&new, path).map_err(|e| files::error("renaming to", path, e))
        })
        .and_then(|()| files::sync_dir(dir).map_err(|e| files::error("syncing", dir, e)));
    if made.is_err() {
        let _ = files::remove_if_exists(&new);
    }
    made
}

fn create(new: &Path) -> ProviderResult<()> {
    let file = files::create_new(new).map_err(|e| files::error("creating", new, e))?;
    let kept = file
        .try_clone()
        .map_err(|e| files::error("creating", new, e))?;
    let installation = RandomId::generate()?.to_string();
    (|| -> Result<(), redb::Error> {
        let db = builder().create_with_backend(FileBackend::new(file)?)?;
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
pub(super) fn open(path: &Path) -> ProviderResult<(Database, Contents)> {
    let mut file = files::open_existing(path).map_err(|e| match e {
        e if files::is_symlink_refusal(&e) => corrupt(path, "it is a symbolic link"),
        e => files::error("opening", path, e),
    })?;
    let len = file
        .metadata()
        .map_err(|e| files::error("opening", path, e))?
        .len();
    if len == 0 {
        return Err(corrupt(path, "it is empty"));
    }
    if len <= MAX_REHEARSAL {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|e| files::error("reading", path, e))?;
        rehearse(path, &bytes)?;
    }
    files::make_private(&file).map_err(|e| files::error("opening", path, e))?;
    let opened = (|| -> Result<Database, redb::Error> {
        Ok(builder().create_with_backend(FileBackend::new(file)?)?)
    })();
    let db = opened.map_err(|e| error("opening", path, e))?;
    let contents = read(path, &db)?;
    Ok((db, contents))
}

/// Reads the file as it is, through a copy in memory; it is neither opened for writing nor locked.
pub(super) fn look(path: &Path) -> ProviderResult<Look> {
    Ok(match look_at(path)? {
        Looked::Absent => Look::Absent,
        Looked::TooLarge { len } => Look::TooLarge { len },
        Looked::Contents(contents) => Look::Entries(contents.mirror.tenants.into_iter().collect()),
    })
}

/// Reads one anchor in the same way.
pub(super) fn look_anchor(path: &Path, log: &str) -> ProviderResult<Option<String>> {
    match look_at(path)? {
        Looked::Absent => Ok(None),
        Looked::TooLarge { len } => Err(corrupt(path, &format!("{len} bytes is no size for it"))),
        Looked::Contents(contents) => Ok(contents.mirror.anchors.get(log).cloned()),
    }
}

/// What a look at the file finds.
enum Looked {
    Absent,
    TooLarge { len: u64 },
    Contents(Box<Contents>),
}

fn look_at(path: &Path) -> ProviderResult<Looked> {
    match files::inspect(path).map_err(|e| files::error("looking at", path, e))? {
        files::Entry::Absent => return Ok(Looked::Absent),
        files::Entry::Other => return Err(corrupt(path, "it is not a regular file")),
        files::Entry::Regular { len: 0 } => return Err(corrupt(path, "it is empty")),
        files::Entry::Regular { len } if len > MAX_REHEARSAL => {
            return Ok(Looked::TooLarge { len });
        }
        files::Entry::Regular { .. } => {}
    }
    let mut bytes = Vec::new();
    files::open_read_only(path)
        .and_then(|file| file.take(MAX_REHEARSAL).read_to_end(&mut bytes))
        .map_err(|e| files::error("reading", path, e))?;
    Ok(Looked::Contents(Box::new(rehearse(path, &bytes)?)))
}

/// Opens a copy in memory with every check redb has. Opening writes: doing it on a copy first
/// leaves a damaged file exactly as it was found.
fn rehearse(path: &Path, bytes: &[u8]) -> ProviderResult<Contents> {
    let checked = catch_unwind(AssertUnwindSafe(|| -> Result<Database, redb::Error> {
        let backend = InMemoryBackend::new();
        backend.set_len(bytes.len() as u64)?;
        backend.write(0, bytes)?;
        Ok(builder().create_with_backend(backend)?)
    }));
    match checked {
        Ok(Ok(db)) => read(path, &db),
        // Memory has no I/O errors of its own: the file points outside itself.
        Ok(Err(redb::Error::Io(e))) => Err(corrupt(path, &e.to_string())),
        Ok(Err(e)) => Err(error("checking", path, e)),
        // redb panics on some damage instead of reporting it.
        Err(_) => Err(corrupt(path, "reading it failed; the log has the cause")),
    }
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
            .ok_or_else(|| corrupt(path, &format!("`{key}` is missing")))
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
        .map_err(|e| corrupt(path, &format!("`installation`: {e}")))?;

    let mut mirror = Mirror::default();
    let tenant = |id: &str| {
        id.parse::<TenantId>()
            .map_err(|e| corrupt(path, &format!("tenant id: {e}")))
    };
    let tenants = txn.open_table(TENANTS).map_err(|e| fail(e.into()))?;
    for row in tenants.iter().map_err(|e| fail(e.into()))? {
        let (id, json) = row.map_err(|e| fail(e.into()))?;
        let entry: TenantEntry = serde_json::from_str(json.value())
            .map_err(|e| corrupt(path, &format!("entry of tenant {}: {e}", id.value())))?;
        mirror.tenants.insert(tenant(id.value())?, entry);
    }
    let wakes = txn.open_table(WAKES).map_err(|e| fail(e.into()))?;
    for row in wakes.iter().map_err(|e| fail(e.into()))? {
        let (id, at) = row.map_err(|e| fail(e.into()))?;
        mirror.set_wake(&tenant(id.value())?, Some(at.value()));
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
        if !mirror.wakes_by_time.contains(&(at, tenant(id)?)) {
            return Err(corrupt(
                path,
                &format!("the two wake tables differ on tenant {id}"),
            ));
        }
        stored += 1;
    }
    if stored != mirror.wakes_by_time.len() {
        return Err(corrupt(path, "the two wake tables differ in length"));
    }
    Ok(Contents {
        installation,
        mirror,
    })
}

fn corrupt(path: &Path, reason: &str) -> ProviderError {
    ProviderError::Corrupt {
        what: path.display().to_string(),
        reason: reason.to_owned(),
    }
}

/// redb's errors, told apart as far as anyone acts on them.
pub(super) fn error(doing: &str, path: &Path, e: redb::Error) -> ProviderError {
    let what = || format!("{doing} {}", path.display());
    match e {
        redb::Error::Io(e) => match e.kind() {
            // Wrong magic number, or shorter than its header says.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                corrupt(path, &e.to_string())
            }
            _ => files::error(doing, path, e),
        },
        redb::Error::Corrupted(reason) => corrupt(path, &reason),
        redb::Error::UpgradeRequired(version) => corrupt(
            path,
            &format!("it has redb's file format {version}, which is too old"),
        ),
        e @ (redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TypeDefinitionChanged { .. }) => corrupt(path, &e.to_string()),
        redb::Error::DatabaseAlreadyOpen => ProviderError::Busy {
            what: format!("another process has {} open", path.display()),
        },
        e => ProviderError::io(what(), e),
    }
}
