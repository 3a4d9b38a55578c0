//! Opening connections to one tenant file, each with the settings its use needs.
//!
//! Must not know who uses them. Every connection to a tenant file is made here, so that none goes
//! without the key of an encrypted one.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OpenFlags};

use super::error::{classify, corrupt};
use super::file::TenantFile;
use super::{Durability, schema};
use crate::provider::{ProviderError, ProviderResult, files};

/// How long a statement waits for another connection's lock.
const BUSY_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5_000 });
/// Page cache of the writer, KiB.
const WRITER_CACHE_KIB: i64 = 2048;
/// Page cache of a reader, KiB.
const READER_CACHE_KIB: i64 = 1024;
/// The same of an encrypted file, where a page that is not in it costs some 10 us of decryption and not
/// a copy from the system's cache. All of them together are bounded by [`limit_heap`].
const SEALED_WRITER_CACHE_KIB: i64 = 8 << 10;
const SEALED_READER_CACHE_KIB: i64 = 64 << 10;
/// Size that the write-ahead log file is cut back to once it has started over, bytes.
const WAL_KEEP: i64 = 16 << 20;
/// Prepared statements kept: the writer has 2 per table and 5 more, a reader 5 per table and 3.
const STATEMENTS: usize = 48;

/// Bytes that the page caches of one tenant in plain text take at most: the writer's and those of its
/// readers. A checkpoint reads past its own. Those of encrypted ones share a limit of their own beyond that.
pub(super) fn largest_caches(readers: usize) -> u64 {
    let kibibytes =
        WRITER_CACHE_KIB.unsigned_abs() + READER_CACHE_KIB.unsigned_abs() * readers as u64;
    kibibytes * 1024
}

/// Bounds what SQLite keeps in memory for all connections of the process together: near the bound, caches
/// take in a page only for another.
pub(super) fn limit_heap(bytes: u64) -> ProviderResult<()> {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    Connection::open_in_memory()
        .and_then(|conn| conn.pragma_update_and_check(None, "soft_heap_limit", bytes, |_| Ok(())))
        .map_err(|e| ProviderError::io("limiting the page caches", e))
}

/// The connection that commits. Sets the file to write-ahead logging.
pub(super) fn writer(path: &TenantFile, durability: Durability) -> ProviderResult<Connection> {
    let conn = open(path)?;
    let fail = |e| classify("opening", path, e);
    let set = |name: &str, value: &dyn rusqlite::ToSql| conn.pragma_update(None, name, value);
    set_wal(&conn, path)?;
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Relaxed => "NORMAL",
    };
    set("synchronous", &synchronous).map_err(fail)?;
    let cache = match path.is_encrypted() {
        true => SEALED_WRITER_CACHE_KIB,
        false => WRITER_CACHE_KIB,
    };
    set("cache_size", &-cache).map_err(fail)?;
    // These two answer with a row.
    for (name, value) in [("wal_autocheckpoint", 0), ("journal_size_limit", WAL_KEEP)] {
        conn.pragma_update_and_check(None, name, value, |_| Ok(()))
            .map_err(fail)?;
    }
    #[cfg(test)]
    super::tests::limit_pages(&conn, path);
    Ok(conn)
}

/// A connection for snapshots. It cannot write, and it leaves the log alone when it closes.
pub(super) fn reader(path: &TenantFile) -> ProviderResult<Connection> {
    let conn = open(path)?;
    let fail = |e| classify("opening", path, e);
    conn.pragma_update(None, "query_only", true).map_err(fail)?;
    let cache = match path.is_encrypted() {
        true => SEALED_READER_CACHE_KIB,
        false => READER_CACHE_KIB,
    };
    conn.pragma_update(None, "cache_size", -cache)
        .map_err(fail)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(fail)?;
    Ok(conn)
}

/// A connection for one checkpoint, which must not make commits wait long: `patience` is how
/// long it waits for readers while it keeps the writer out.
pub(super) fn checkpointer(path: &TenantFile, patience: Duration) -> ProviderResult<Connection> {
    let conn = open(path)?;
    let fail = |e| classify("opening", path, e);
    conn.busy_timeout(patience).map_err(fail)?;
    conn.pragma_update(None, "synchronous", "FULL")
        .map_err(fail)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(fail)?;
    // A checkpoint does nothing on a connection that has not yet read the file.
    touch(&conn, path)?;
    Ok(conn)
}

/// Reads the first page, which fails for a file that the connection's key does not fit.
pub(super) fn touch(conn: &Connection, path: &Path) -> ProviderResult<()> {
    conn.pragma_query_value(None, "schema_version", |r| r.get::<_, i64>(0))
        .map(drop)
        .map_err(|e| classify("opening", path, e))
}

/// A connection to look at a file that may not be ours.
pub(super) fn inspector(path: &TenantFile) -> ProviderResult<Connection> {
    let conn = open(path)?;
    conn.pragma_update(None, "query_only", true)
        .map_err(|e| classify("opening", path, e))?;
    Ok(conn)
}

/// Turns the empty file at `path` into an empty tenant. On return all of it is in the file
/// itself, with nothing left in a log. Nothing is synced: the caller syncs once, at the end,
/// and until it has, the registry calls the tenant unfinished.
pub(super) fn create(path: &TenantFile) -> ProviderResult<()> {
    let fail = |e| classify("creating", path, e);
    let conn = open(path)?;
    conn.pragma_update(None, "synchronous", "OFF")
        .map_err(fail)?;
    set_wal(&conn, path)?;
    #[cfg(test)]
    super::tests::limit_pages(&conn, path);
    schema::create(&conn).map_err(fail)?;
    // Closing copies the log too, and says nothing when it cannot.
    conn.wal_checkpoint_v2(Some("main"), CheckpointMode::TRUNCATE)
        .map_err(fail)?;
    conn.close().map_err(|(_, e)| fail(e))
}

fn set_wal(conn: &Connection, path: &Path) -> ProviderResult<()> {
    let mode: String = conn
        .pragma_update_and_check(None, "journal_mode", "WAL", |r| r.get(0))
        .map_err(|e| classify("opening", path, e))?;
    if mode != "wal" {
        let reason = format!("its journal mode is `{mode}`, expected `wal`");
        return Err(corrupt(path, reason));
    }
    Ok(())
}

fn open(path: &TenantFile) -> ProviderResult<Connection> {
    match files::inspect(path).map_err(|e| files::error("opening", path, e))? {
        files::Entry::Regular { .. } => {}
        files::Entry::Other => return Err(corrupt(path, "it is not a regular file".into())),
        files::Entry::Absent => {
            let reason = "the file is missing; restore it from a backup, or delete the tenant";
            return Err(corrupt(path, reason.into()));
        }
    }
    // Without CREATE a missing file stays missing. NOFOLLOW refuses a link anywhere in the
    // path; the data directory was resolved before.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let fail = |e| classify("opening", path, e);
    let conn = Connection::open_with_flags(&**path, flags).map_err(fail)?;
    path.unlock(&conn)?;
    conn.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)
        .map_err(fail)?;
    // Without it a statement is planned anew whenever a bound `LIMIT` changes, which costs more
    // than a short scan.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
        .map_err(fail)?;
    conn.pragma_update(None, "trusted_schema", false)
        .map_err(fail)?;
    conn.pragma_update(None, "cell_size_check", true)
        .map_err(fail)?;
    conn.pragma_update(None, "temp_store", "MEMORY")
        .map_err(fail)?;
    conn.pragma_update_and_check(None, "mmap_size", 0, |_| Ok(()))
        .map_err(fail)?;
    // `secure_delete` stays off: deleted data is gone with the page that held it, or with the
    // file. Encryption at rest is what protects it before that.
    Ok(conn)
}
