//! The SQL of a tenant file: its tables, the statements on them, and the checks that a file
//! is one of ours and of a format this server reads.
//!
//! Must not know what the rows mean, except for the head and the format row.

use std::path::Path;

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, OptionalExtension, ToSql};

use super::error::{self, corrupt};
use crate::provider::local::{self, FORMAT_KEY, decode_head, format_row};
use crate::provider::{HEAD_KEY, Head, Keyspace, ProviderResult};

/// `PRAGMA application_id`: "Nimb" in ASCII, which `file(1)` can show.
pub(super) const APPLICATION_ID: i32 = 0x4e69_6d62;
/// The statements on one table. `index` is a keyword, so names are always quoted.
pub(super) struct Sql {
    create: &'static str,
    pub(super) get: &'static str,
    pub(super) put: &'static str,
    pub(super) delete: &'static str,
    /// `?1` first key, `?2` limit.
    pub(super) from: &'static str,
    pub(super) from_backward: &'static str,
    /// `?1` first key, `?2` limit, `?3` end.
    pub(super) range: &'static str,
    pub(super) range_backward: &'static str,
}

macro_rules! sql {
    ($table:literal, $without_rowid:literal) => {
        Sql {
            create: concat!(
                "CREATE TABLE \"",
                $table,
                "\" (key BLOB PRIMARY KEY NOT NULL, value)",
                $without_rowid
            ),
            get: concat!("SELECT value FROM \"", $table, "\" WHERE key = ?1"),
            put: concat!(
                "INSERT INTO \"",
                $table,
                "\" (key, value) VALUES (?1, ?2) ",
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            ),
            delete: concat!("DELETE FROM \"", $table, "\" WHERE key = ?1"),
            from: concat!(
                "SELECT key, value FROM \"",
                $table,
                "\" WHERE key >= ?1 ORDER BY key LIMIT ?2"
            ),
            from_backward: concat!(
                "SELECT key, value FROM \"",
                $table,
                "\" WHERE key >= ?1 ORDER BY key DESC LIMIT ?2"
            ),
            range: concat!(
                "SELECT key, value FROM \"",
                $table,
                "\" WHERE key >= ?1 AND key < ?3 ORDER BY key LIMIT ?2"
            ),
            range_backward: concat!(
                "SELECT key, value FROM \"",
                $table,
                "\" WHERE key >= ?1 AND key < ?3 ORDER BY key DESC LIMIT ?2"
            ),
        }
    };
}

/// Bodies can be large, so their tables keep values out of the key's tree; the others are
/// small rows that one tree holds best.
static META: Sql = sql!("meta", " WITHOUT ROWID");
static DOCS: Sql = sql!("docs", "");
static INDEX: Sql = sql!("index", " WITHOUT ROWID");
static LOG: Sql = sql!("log", "");
static CODE: Sql = sql!("code", "");
static JOBS: Sql = sql!("jobs", " WITHOUT ROWID");
static FILES: Sql = sql!("files", "");

/// The statements on the table of a keyspace.
pub(super) fn sql(keyspace: Keyspace) -> &'static Sql {
    match keyspace {
        Keyspace::Meta => &META,
        Keyspace::Docs => &DOCS,
        Keyspace::Index => &INDEX,
        Keyspace::Log => &LOG,
        Keyspace::Code => &CODE,
        Keyspace::Jobs => &JOBS,
        Keyspace::Files => &FILES,
    }
}

/// How a value is stored: documents and the JSON rows of `meta` as text, so that an operator
/// can read them with `sqlite3`; everything else as bytes. Reading takes either.
pub(super) struct Stored<'a>(pub(super) Keyspace, pub(super) &'a [u8]);

impl ToSql for Stored<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let text = matches!(self.0, Keyspace::Docs | Keyspace::Meta)
            && std::str::from_utf8(self.1).is_ok();
        Ok(ToSqlOutput::Borrowed(if text {
            ValueRef::Text(self.1)
        } else {
            ValueRef::Blob(self.1)
        }))
    }
}

/// The bytes of a stored value or key.
pub(super) fn bytes<'a>(path: &Path, value: ValueRef<'a>) -> ProviderResult<&'a [u8]> {
    match value {
        ValueRef::Blob(b) | ValueRef::Text(b) => Ok(b),
        other => Err(corrupt(
            path,
            format!("a row holds {}, not bytes", other.data_type()),
        )),
    }
}

/// Fills an empty database: tables, format row, the head of a tenant without commits.
pub(super) fn create(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("BEGIN IMMEDIATE")?;
    for keyspace in Keyspace::ALL {
        conn.execute_batch(sql(keyspace).create)?;
    }
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.execute(
        META.put,
        (FORMAT_KEY, Stored(Keyspace::Meta, format_row().as_bytes())),
    )?;
    write_head(conn, &Head::EMPTY)?;
    conn.execute_batch("COMMIT")
}

/// Checks that the file is ours, of a known version, and holds our tables and nothing else: a
/// trigger or view in a file that was taken in would run as part of our statements.
pub(super) fn check(conn: &Connection, path: &Path) -> ProviderResult<()> {
    let fail = |e| error::read(path, e);
    let id: i32 = conn
        .pragma_query_value(None, "application_id", |r| r.get(0))
        .map_err(fail)?;
    if id != APPLICATION_ID {
        return Err(corrupt(
            path,
            "it is no Nimbus tenant file (application id differs)".into(),
        ));
    }
    check_format(conn, path)?;
    let mut statement = conn
        .prepare("SELECT type, name, sql FROM sqlite_schema")
        .map_err(fail)?;
    let mut rows = statement.query(()).map_err(fail)?;
    let mut tables = 0;
    while let Some(row) = rows.next().map_err(fail)? {
        let kind: String = row.get(0).map_err(fail)?;
        let name: String = row.get(1).map_err(fail)?;
        let text: Option<String> = row.get(2).map_err(fail)?;
        match Keyspace::from_name(&name) {
            Some(k) if kind == "table" && text.as_deref() == Some(sql(k).create) => tables += 1,
            // Implied indexes, and what an operator's ANALYZE leaves.
            None if name.starts_with("sqlite_") && matches!(&*kind, "table" | "index") => {}
            _ => return Err(corrupt(path, format!("it holds a foreign {kind} `{name}`"))),
        }
    }
    if tables != Keyspace::ALL.len() {
        return Err(corrupt(
            path,
            format!("it has {tables} of {} tables", Keyspace::ALL.len()),
        ));
    }
    Ok(())
}

fn check_format(conn: &Connection, path: &Path) -> ProviderResult<()> {
    let row: Option<Value> = conn
        .query_row(META.get, (FORMAT_KEY,), |r| r.get(0))
        .optional()
        .map_err(|e| error::read(path, e))?;
    let row = match &row {
        Some(Value::Text(text)) => Some(text.as_bytes()),
        _ => None,
    };
    local::check_format(path, row)
}

/// Reads the head row. The first read of a transaction pins what it sees.
pub(super) fn read_head(conn: &Connection, path: &Path) -> ProviderResult<Head> {
    let mut statement = conn
        .prepare_cached(META.get)
        .map_err(|e| error::read(path, e))?;
    let mut rows = statement
        .query((HEAD_KEY,))
        .map_err(|e| error::read(path, e))?;
    let row = rows.next().map_err(|e| error::read(path, e))?;
    let row = match row {
        Some(row) => {
            let value = row.get_ref(0).map_err(|e| error::read(path, e))?;
            Some(bytes(path, value)?)
        }
        None => None,
    };
    decode_head(path, row)
}

/// Writes the head row, always as bytes.
pub(super) fn write_head(conn: &Connection, head: &Head) -> rusqlite::Result<()> {
    conn.prepare_cached(META.put)?
        .execute((HEAD_KEY, head.encode().as_slice()))
        .map(drop)
}
