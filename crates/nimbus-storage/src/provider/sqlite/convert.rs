//! Whole tenant files from plain text to SQLCipher and back, and from one key to another.
//!
//! Nothing else has the files open. Must not know manifests, names or the order in which files are
//! replaced: `encryption` does. What it writes is synced when it returns.

use std::path::Path;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use nimbus_crypto::Dek;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OpenFlags};
use zeroize::Zeroizing;

use super::error::{classify, corrupt};
use super::file::{authentic, explain, give_key};
use super::{SIDECARS, schema};
use crate::encryption::{FileKey, Progress};
use crate::provider::files::appended;
use crate::provider::{Keyspace, ProviderError, ProviderResult, files};

/// Instructions of SQLite between two looks at how far a copy is.
const PROGRESS_STEPS: i32 = 200_000;

/// Copies a tenant file to `target`, which must not exist, from one key to another; `None` is plain
/// text. The write-ahead log of the source is copied into it first and gone afterwards.
///
/// # Errors
/// `Corrupt` when the source is no tenant file or its key does not fit, `Full`, `Io`. What was written
/// of the target is left to the caller.
pub(crate) fn copy(
    source: &Path,
    from: Option<&Dek>,
    target: &Path,
    to: Option<&Dek>,
    progress: Progress<'_>,
) -> ProviderResult<()> {
    let mut conn = open(source, from)?;
    settle(&conn, source)?;
    schema::check(&conn, source)?;
    let file = files::create_new(target).map_err(|e| files::error("creating", target, e))?;
    drop(file);
    attach(&conn, target, to)?;
    let exported = export(&mut conn, target, progress);
    if from.is_some() {
        // What SQLite made of the zeros, if anything, is not the cause.
        authentic(&conn, source)?;
    }
    exported?;
    conn.close()
        .map_err(|(_, e)| classify("closing", source, e))?;
    files::open_existing(target)
        .and_then(|file| file.sync_all())
        .map_err(|e| files::error("syncing", target, e))
}

fn attach(conn: &Connection, target: &Path, key: Option<&Dek>) -> ProviderResult<()> {
    let fail = |e| classify("opening", target, e);
    let text = target.to_str().ok_or_else(|| {
        ProviderError::io(
            format!("opening {}", target.display()),
            "the path is not UTF-8",
        )
    })?;
    // An empty key is plain text.
    let key = Zeroizing::new(key.map_or_else(String::new, |key| {
        let hex = Zeroizing::new(HEXLOWER.encode(key.expose_secret()));
        format!("x'{}'", *hex)
    }));
    conn.execute("ATTACH DATABASE ?1 AS target KEY ?2", (text, &*key))
        .map_err(fail)?;
    // Until the one sync at the end the copy counts for nothing.
    conn.pragma_update(Some("target"), "synchronous", "OFF")
        .and_then(|()| {
            let discard = |_: &rusqlite::Row<'_>| Ok(());
            conn.pragma_update_and_check(Some("target"), "journal_mode", "OFF", discard)
        })
        .map_err(fail)
}

fn export(conn: &mut Connection, target: &Path, progress: Progress<'_>) -> ProviderResult<()> {
    let fail = |e| classify("copying to", target, e);
    // A handler has to be 'static, so the bytes written are counted outside of it.
    let (sender, ticks) = std::sync::mpsc::channel();
    let handler = move || sender.send(()).is_err();
    conn.progress_handler(PROGRESS_STEPS, Some(handler))
        .map_err(fail)?;
    let exported = std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            for () in ticks {
                progress(std::fs::metadata(target).map_or(0, |found| found.len()));
            }
        });
        let exported = conn.query_row("SELECT sqlcipher_export('target')", (), |_| Ok(()));
        // Drops the handler and with it the sender, which ends the watch.
        let removed = conn.progress_handler(0, None::<fn() -> bool>);
        let ended = watch.join();
        debug_assert!(ended.is_ok());
        exported.and(removed)
    });
    exported.map_err(fail)?;
    for name in ["application_id", "user_version"] {
        let value: i32 = conn
            .pragma_query_value(Some("main"), name, |row| row.get(0))
            .map_err(fail)?;
        conn.pragma_update(Some("target"), name, value)
            .map_err(fail)?;
    }
    conn.execute_batch("DETACH DATABASE target").map_err(fail)
}

/// Compares two tenant files row by row, after a check of every page of the second.
///
/// # Errors
/// `Corrupt`, naming what differs; `Io`.
pub(crate) fn compare(
    one: (&Path, Option<&Dek>),
    other: (&Path, Option<&Dek>),
) -> ProviderResult<()> {
    let (first, second) = (open(one.0, one.1)?, open(other.0, other.1)?);
    schema::check(&second, other.0)?;
    check_pages(&second, other)?;
    for keyspace in Keyspace::ALL {
        compare_table(&first, one.0, &second, other.0, keyspace)?;
    }
    for (conn, (path, key)) in [(first, one), (second, other)] {
        if key.is_some() {
            authentic(&conn, path)?;
        }
        conn.close()
            .map_err(|(_, e)| classify("closing", path, e))?;
    }
    Ok(())
}

/// Every page authenticates and every tree is whole.
fn check_pages(conn: &Connection, file: (&Path, Option<&Dek>)) -> ProviderResult<()> {
    let fail = |e| classify("checking", file.0, e);
    let checks: &[&str] = match file.1 {
        Some(_) => &["PRAGMA cipher_integrity_check", "PRAGMA integrity_check"],
        None => &["PRAGMA integrity_check"],
    };
    for check in checks {
        let mut statement = conn.prepare(check).map_err(fail)?;
        let mut rows = statement.query(()).map_err(fail)?;
        while let Some(row) = rows.next().map_err(fail)? {
            let found: String = row.get(0).map_err(fail)?;
            if found != "ok" {
                return Err(corrupt(file.0, found));
            }
        }
    }
    Ok(())
}

fn compare_table(
    one: &Connection,
    one_path: &Path,
    other: &Connection,
    other_path: &Path,
    keyspace: Keyspace,
) -> ProviderResult<()> {
    let sql = format!(
        "SELECT key, value FROM \"{}\" ORDER BY key",
        keyspace.name()
    );
    let (fail_one, fail_other) = (
        |e| classify("reading", one_path, e),
        |e| classify("reading", other_path, e),
    );
    let mut first = one.prepare(&sql).map_err(fail_one)?;
    let mut second = other.prepare(&sql).map_err(fail_other)?;
    let mut first = first.query(()).map_err(fail_one)?;
    let mut second = second.query(()).map_err(fail_other)?;
    loop {
        let (a, b) = (
            first.next().map_err(fail_one)?,
            second.next().map_err(fail_other)?,
        );
        let same = match (a, b) {
            (None, None) => return Ok(()),
            (Some(a), Some(b)) => same_cell(a, b, 0) && same_cell(a, b, 1),
            _ => false,
        };
        if !same {
            let reason = format!(
                "its table {} differs from that of {}",
                keyspace.name(),
                one_path.display()
            );
            return Err(corrupt(other_path, reason));
        }
    }
}

/// Equal in type and content; a cell that cannot be read equals none.
fn same_cell(a: &rusqlite::Row<'_>, b: &rusqlite::Row<'_>, n: usize) -> bool {
    matches!((a.get_ref(n), b.get_ref(n)), (Ok(a), Ok(b)) if a == b)
}

/// Encrypts a file again, in place, under another key. Atomic: after a crash SQLite's rollback journal
/// puts back all of it or nothing.
///
/// # Errors
/// `Corrupt` when `old` does not fit; `Full`, `Io`.
pub(crate) fn rekey(path: &Path, old: &Dek, new: &Dek) -> ProviderResult<()> {
    let fail = |e| classify("encrypting", path, e);
    let conn = open(path, Some(old))?;
    settle(&conn, path)?;
    conn.pragma_update(None, "synchronous", "EXTRA")
        .map_err(fail)?;
    let hex = Zeroizing::new(HEXLOWER.encode(new.expose_secret()));
    let sql = Zeroizing::new(format!("PRAGMA rekey = \"x'{}'\"", *hex));
    conn.execute_batch(&sql).map_err(fail)?;
    authentic(&conn, path)?;
    conn.close()
        .map_err(|(_, e)| classify("closing", path, e))?;
    fits(path, new)
}

/// The one of a file's keys that opens it: after an interrupted rotation it may be the pending one. The
/// file is not looked at when there is one key alone.
///
/// # Errors
/// `Corrupt` when neither does; `Io`.
pub(crate) fn fitting(path: &Path, keys: &FileKey) -> ProviderResult<Arc<Dek>> {
    let current = keys.current();
    let Some(pending) = keys.pending() else {
        return Ok(Arc::clone(current));
    };
    match fits(path, current) {
        Err(ProviderError::Corrupt { .. }) => fits(path, pending).map(|()| Arc::clone(pending)),
        outcome => outcome.map(|()| Arc::clone(current)),
    }
}

/// Whether a key opens the file.
///
/// # Errors
/// `Corrupt` when it does not; `Io`.
pub(crate) fn fits(path: &Path, key: &Dek) -> ProviderResult<()> {
    let conn = open(path, Some(key))?;
    super::connection::touch(&conn, path)?;
    conn.close().map_err(|(_, e)| classify("closing", path, e))
}

/// Moves the write-ahead log of a file into it, so that a copy of the file is one of all of it.
///
/// # Errors
/// `Corrupt` when the key does not fit, `Busy` when the file is in use; `Full`, `Io`.
pub(crate) fn settle_file(path: &Path, key: &Dek) -> ProviderResult<()> {
    let conn = open(path, Some(key))?;
    settle(&conn, path)?;
    conn.close().map_err(|(_, e)| classify("closing", path, e))
}

/// Moves the write-ahead log into the file and leaves write-ahead logging, so that the file alone is the
/// database.
fn settle(conn: &Connection, path: &Path) -> ProviderResult<()> {
    let fail = |e| classify("preparing", path, e);
    conn.wal_checkpoint_v2(Some("main"), CheckpointMode::TRUNCATE)
        .map_err(fail)?;
    let mode: String = conn
        .pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get(0))
        .map_err(fail)?;
    if mode == "delete" {
        return Ok(());
    }
    Err(ProviderError::Busy {
        what: format!("{} is in use", path.display()),
    })
}

/// The files that SQLite keeps beside `path`.
pub(crate) fn sidecars(path: &Path) -> [std::path::PathBuf; 3] {
    SIDECARS.map(|ending| appended(path, ending))
}

fn open(path: &Path, key: Option<&Dek>) -> ProviderResult<Connection> {
    let fail = |e| classify("opening", path, e);
    match files::inspect(path).map_err(|e| files::error("looking at", path, e))? {
        files::Entry::Regular { .. } => {}
        files::Entry::Other => return Err(corrupt(path, "it is not a regular file".into())),
        files::Entry::Absent => return Err(corrupt(path, "it does not exist".into())),
    }
    let resolved = std::fs::canonicalize(path).map_err(|e| files::error("resolving", path, e))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let conn = Connection::open_with_flags(resolved, flags).map_err(fail)?;
    if let Some(key) = key {
        give_key(&conn, key).map_err(fail)?;
    }
    for (name, value) in [
        ("temp_store", "MEMORY"),
        ("trusted_schema", "OFF"),
        ("cell_size_check", "ON"),
    ] {
        conn.pragma_update(None, name, value).map_err(fail)?;
    }
    super::connection::touch(&conn, path).map_err(|e| explain(path, key.is_some(), e))?;
    Ok(conn)
}
