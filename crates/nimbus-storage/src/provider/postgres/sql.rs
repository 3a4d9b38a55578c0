//! The SQL of a tenant's schema. Every name is qualified and quoted; no value is ever part of the text.
//!
//! Must not send anything.

use std::fmt::Write as _;

use crate::provider::Keyspace;

/// [`crate::provider::HEAD_KEY`] as a literal.
const HEAD: &str = "'\\x68656164'::bytea";
/// [`crate::provider::external::FORMAT_KEY`] as a literal.
const FORMAT: &str = "'\\x666f726d6174'::bytea";

/// The keyspaces that a batch writes to and deletes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Touched {
    pub(super) puts: [bool; Keyspace::ALL.len()],
    pub(super) deletes: [bool; Keyspace::ALL.len()],
}

/// A quoted name. Names have no quotes (`external::names`); one that did would stay one name.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The table of a keyspace.
pub(super) fn table(namespace: &str, keyspace: Keyspace) -> String {
    format!("{}.{}", quoted(namespace), quoted(keyspace.name()))
}

/// Makes the schema of a new tenant. Its rows are inserted after that.
pub(super) fn create(namespace: &str) -> String {
    let schema = quoted(namespace);
    let mut sql = format!("CREATE SCHEMA {schema};");
    for keyspace in Keyspace::ALL {
        let table = table(namespace, keyspace);
        // The head row changes with every commit: room for its next version on the same page.
        let with = match keyspace {
            Keyspace::Meta => " WITH (fillfactor = 50)",
            _ => "",
        };
        // Cannot fail: it writes to a string.
        let _ = write!(
            sql,
            "CREATE TABLE {table} (key bytea PRIMARY KEY, value bytea NOT NULL){with};"
        );
    }
    let docs = table(namespace, Keyspace::Docs);
    // `json`, since `jsonb` refuses U+0000. Keys are a table number of 4 bytes and an id of 16.
    let _ = write!(
        sql,
        "CREATE VIEW {schema}.documents AS SELECT \
         ('x' || encode(substring(key FROM 1 FOR 4), 'hex'))::bit(32)::bigint AS table_number, \
         substring(key FROM 5) AS id, convert_from(value, 'UTF8')::json AS document \
         FROM {docs} WHERE octet_length(key) = 20;"
    );
    sql
}

/// Inserts `(key, value)` rows of `meta`: two arrays.
pub(super) fn insert_meta(namespace: &str) -> String {
    let meta = table(namespace, Keyspace::Meta);
    format!(
        "INSERT INTO {meta} (key, value) SELECT r.k, r.v FROM unnest($1::bytea[], $2::bytea[]) AS r(k, v)"
    )
}

/// Begins a read and reads the head: one round trip.
pub(super) fn begin_read(namespace: &str) -> String {
    let state = state(namespace);
    format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {state}")
}

/// Begins a turn, and waits for the head: one round trip. A process that stops loses its turn.
pub(super) fn begin_turn(namespace: &str, lock_ms: u64, idle_ms: u64) -> String {
    let (state, meta) = (state(namespace), table(namespace, Keyspace::Meta));
    // What is read after the lock is had is read anew: a statement that waited shows its other rows as they were.
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {lock_ms}; \
         SET LOCAL idle_in_transaction_session_timeout = {idle_ms}; \
         SELECT key, value FROM {meta} WHERE key = {HEAD} FOR UPDATE; {state}"
    )
}

/// Reads the head and the format row.
pub(super) fn state(namespace: &str) -> String {
    let meta = table(namespace, Keyspace::Meta);
    format!("SELECT key, value FROM {meta} WHERE key IN ({FORMAT}, {HEAD})")
}

/// The values of an array of keys, in its order.
pub(super) fn get_many(namespace: &str, keyspace: Keyspace) -> String {
    let table = table(namespace, keyspace);
    format!(
        "SELECT t.value FROM unnest($1::bytea[]) WITH ORDINALITY AS asked(key, n) \
         LEFT JOIN {table} AS t ON t.key = asked.key ORDER BY asked.n"
    )
}

/// Rows of a range: `$1` its start, `$2` the most rows, `$3` bytes after which it stops, `$4` its end if it
/// has one. The row that reaches the bytes is the last, so that no more than it is sent.
pub(super) fn scan(namespace: &str, keyspace: Keyspace, backward: bool, bounded: bool) -> String {
    let table = table(namespace, keyspace);
    let order = if backward { "DESC" } else { "ASC" };
    let end = if bounded { " AND key < $4" } else { "" };
    format!(
        "SELECT key, value FROM (SELECT key, value, \
         sum(octet_length(key) + octet_length(value)) OVER (ORDER BY key {order} \
         ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before \
         FROM (SELECT key, value FROM {table} WHERE key >= $1{end} ORDER BY key {order} LIMIT $2) AS picked) \
         AS sized WHERE coalesce(before, 0) < $3 ORDER BY key {order}"
    )
}

/// A commit in one statement: `$1` the new head, `$2` the expected one, `$3` the format row, then for every keyspace the keys and
/// values to put, then for every keyspace the keys to delete. It returns a row if the head was the expected
/// one, and does nothing otherwise: every part waits for `h`, which locks the head.
pub(super) fn commit(namespace: &str, touched: Touched) -> String {
    let meta = table(namespace, Keyspace::Meta);
    let mut sql = format!(
        "WITH h AS (UPDATE {meta} SET value = $1 WHERE key = {HEAD} AND value = $2 \
         AND EXISTS (SELECT 1 FROM {meta} AS f WHERE f.key = {FORMAT} AND f.value = $3) RETURNING 1)"
    );
    let mut next = 4;
    for (keyspace, _) in Keyspace::ALL
        .into_iter()
        .zip(touched.puts)
        .filter(|(_, t)| *t)
    {
        let (table, name) = (table(namespace, keyspace), keyspace.name());
        let (keys, values) = (next, next + 1);
        next += 2;
        let _ = write!(
            sql,
            ", put_{name} AS (INSERT INTO {table} (key, value) SELECT r.k, r.v \
             FROM unnest(${keys}::bytea[], ${values}::bytea[]) AS r(k, v) WHERE EXISTS (SELECT 1 FROM h) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value)"
        );
    }
    for (keyspace, _) in Keyspace::ALL
        .into_iter()
        .zip(touched.deletes)
        .filter(|(_, t)| *t)
    {
        let (table, name) = (table(namespace, keyspace), keyspace.name());
        let _ = write!(
            sql,
            ", del_{name} AS (DELETE FROM {table} WHERE key = ANY(${next}::bytea[]) \
             AND EXISTS (SELECT 1 FROM h))"
        );
        next += 1;
    }
    sql.push_str(" SELECT 1 FROM h");
    sql
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::provider::HEAD_KEY;
    use crate::provider::external::FORMAT_KEY;

    #[test]
    fn names_stay_names_and_parameters_are_numbered() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert!(HEAD.contains(&data_encoding::HEXLOWER.encode(HEAD_KEY)));
        assert!(FORMAT.contains(&data_encoding::HEXLOWER.encode(FORMAT_KEY)));
        let mut touched = Touched {
            puts: [false; 7],
            deletes: [false; 7],
        };
        assert_eq!(
            commit("t", touched),
            "WITH h AS (UPDATE \"t\".\"meta\" SET value = $1 WHERE key = '\\x68656164'::bytea AND value = $2 \
             AND EXISTS (SELECT 1 FROM \"t\".\"meta\" AS f WHERE f.key = '\\x666f726d6174'::bytea AND f.value = $3) \
             RETURNING 1) SELECT 1 FROM h"
        );
        touched.puts = [true; 7];
        touched.deletes = [true; 7];
        let all = commit("t", touched);
        assert!(
            all.contains("$24::bytea[]") && !all.contains("$25"),
            "{all}"
        );
        assert!(all.contains("\"t\".\"index\""));
    }
}
