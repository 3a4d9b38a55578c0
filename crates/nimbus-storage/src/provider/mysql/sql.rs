//! The SQL of a tenant's database. Every name is qualified and quoted.
//!
//! Must not send anything. Values travel as hexadecimal literals, which hold nothing but digits, so that a whole
//! commit is one round trip; long ones are bound. Nothing here is understood by only one of MySQL and MariaDB.

use std::fmt::Write as _;

use crate::provider::external::FORMAT_KEY;
use crate::provider::{HEAD_KEY, Head, KeyRange, Keyspace};

/// The longest key, as the tables have it. It needs the row format DYNAMIC and pages of 16 KiB or more, where an
/// index takes 3,072 bytes.
const KEY_BYTES: usize = nimbus_core::key::MAX_STORED_KEY;

/// A quoted name. Names have no quotes (`external::names`); one that did would stay one name.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A quoted word of the registry: an id, a name, a state.
pub(super) fn word(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// The table of a keyspace.
pub(super) fn table(namespace: &str, keyspace: Keyspace) -> String {
    format!("{}.{}", quoted(namespace), quoted(keyspace.name()))
}

/// Appends bytes as a literal.
pub(super) fn literal(sql: &mut String, bytes: &[u8]) {
    sql.push_str("x'");
    data_encoding::HEXLOWER.encode_append(bytes, sql);
    sql.push('\'');
}

fn hex(bytes: &[u8]) -> String {
    let mut sql = String::new();
    literal(&mut sql, bytes);
    sql
}

/// Makes the table of a keyspace.
pub(super) fn create_table(namespace: &str, keyspace: Keyspace) -> String {
    let table = table(namespace, keyspace);
    format!(
        "CREATE TABLE {table} (`key` VARBINARY({KEY_BYTES}) NOT NULL PRIMARY KEY, `value` LONGBLOB NOT NULL) \
         ENGINE=InnoDB ROW_FORMAT=DYNAMIC"
    )
}

/// Begins a read: its view is taken here, and the head is read in it. `idle_s` ends it if nobody asks.
pub(super) fn begin_read(namespace: &str, idle_s: u64) -> String {
    let state = state(namespace);
    format!(
        "SET SESSION wait_timeout={idle_s};SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;\
         START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY;{state}"
    )
}

/// Begins a transaction that writes. A process that stops for `idle_s` seconds loses it.
pub(super) fn begin(idle_s: u64) -> String {
    format!("SET SESSION wait_timeout={idle_s};START TRANSACTION;")
}

/// Begins a turn, and waits for the head: one round trip. The first result is the locked head alone.
pub(super) fn begin_turn(namespace: &str, idle_s: u64) -> String {
    let (begin, state) = (begin(idle_s), state(namespace));
    let (meta, head) = (table(namespace, Keyspace::Meta), hex(HEAD_KEY));
    // What is read after the lock is had is read anew.
    format!("{begin}SELECT `key`,`value` FROM {meta} WHERE `key`={head} FOR UPDATE;{state}")
}

/// Ends a transaction and lets the connection idle for `idle_s` seconds again.
pub(super) fn end(how: &str, idle_s: u64) -> String {
    format!("{how};SET SESSION wait_timeout={idle_s}")
}

/// Reads the head and the format row.
pub(super) fn state(namespace: &str) -> String {
    let meta = table(namespace, Keyspace::Meta);
    let (format, head) = (hex(FORMAT_KEY), hex(HEAD_KEY));
    format!("SELECT `key`,`value` FROM {meta} WHERE `key` IN ({format},{head})")
}

/// Moves the head if it is the expected one, in a database with this format row. Otherwise it fails with the
/// error for a NULL, so that the statements after it in the same packet are not done.
pub(super) fn guard(namespace: &str, expected: &Head, new: &Head, format: &[u8]) -> String {
    let meta = table(namespace, Keyspace::Meta);
    let (head_key, format_key) = (hex(HEAD_KEY), hex(FORMAT_KEY));
    let (expected, new) = (hex(&expected.encode()), hex(&new.encode()));
    let format = hex(format);
    // One row is locked, the one that a turn locks: two in whatever order the server takes them deadlock with
    // turns. The limit keeps the inner table apart, which the statement may not change and read at once; it has
    // no long value, which would be a file.
    format!(
        "UPDATE {meta} SET `value`=IF(`value`={expected} AND (SELECT COUNT(*) FROM (SELECT 1 FROM {meta} WHERE \
         `key`={format_key} AND `value`={format} LIMIT 1) AS `f`)=1,{new},NULL) WHERE `key`={head_key}"
    )
}

/// The beginning of a statement that puts rows; `(key,value)` pairs and [`PUT_END`] follow.
pub(super) fn put(namespace: &str, keyspace: Keyspace) -> String {
    let table = table(namespace, keyspace);
    format!("INSERT INTO {table} (`key`,`value`) VALUES ")
}

/// The end of a statement that puts rows.
pub(super) const PUT_END: &str = " ON DUPLICATE KEY UPDATE `value`=VALUES(`value`)";

/// The beginning of a statement that deletes rows; keys and `)` follow.
pub(super) fn delete(namespace: &str, keyspace: Keyspace) -> String {
    let table = table(namespace, keyspace);
    format!("DELETE FROM {table} WHERE `key` IN (")
}

/// Rows with some keys, in no order.
pub(super) fn get_many(namespace: &str, keyspace: Keyspace, keys: &[&[u8]]) -> String {
    let table = table(namespace, keyspace);
    let mut sql =
        format!("SELECT `key`,`value` FROM {table} FORCE INDEX (PRIMARY) WHERE `key` IN (");
    for (n, key) in keys.iter().enumerate() {
        if n > 0 {
            sql.push(',');
        }
        literal(&mut sql, key);
    }
    sql.push(')');
    sql
}

/// Rows of a range: key, bytes of the value, and the value if it is not longer than `inline` bytes.
pub(super) fn scan(
    namespace: &str,
    keyspace: Keyspace,
    range: &KeyRange,
    backward: bool,
    (rows, inline): (usize, usize),
) -> String {
    let table = table(namespace, keyspace);
    let mut sql = format!(
        "SELECT `key`,LENGTH(`value`),IF(LENGTH(`value`)<={inline},`value`,NULL) FROM {table} \
         FORCE INDEX (PRIMARY) WHERE `key`>="
    );
    literal(&mut sql, &range.start);
    if let Some(end) = &range.end {
        sql.push_str(" AND `key`<");
        literal(&mut sql, end);
    }
    let order = if backward { " DESC" } else { "" };
    // Cannot fail: it writes to a string.
    let _ = write!(sql, " ORDER BY `key`{order} LIMIT {rows}");
    sql
}

/// The heads of some databases, each with its number in the list.
pub(super) fn heads(namespaces: &[String]) -> String {
    let head = hex(HEAD_KEY);
    let one = |(n, namespace): (usize, &String)| {
        let meta = table(namespace, Keyspace::Meta);
        format!("SELECT {n},`value` FROM {meta} WHERE `key`={head}")
    };
    let all: Vec<String> = namespaces.iter().enumerate().map(one).collect();
    all.join(" UNION ALL ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_stay_what_they_are() {
        assert_eq!(quoted("a`b"), "`a``b`");
        assert_eq!(word("a'b\\c"), "'a''b\\\\c'");
        assert_eq!(table("t", Keyspace::Index), "`t`.`index`");
        let mut sql = String::new();
        literal(&mut sql, b"'; DROP\0\xff");
        assert_eq!(sql, "x'273b2044524f5000ff'");
        sql.clear();
        literal(&mut sql, b"");
        assert_eq!(sql, "x''");
    }

    #[test]
    fn statements() {
        let range = KeyRange {
            start: vec![1],
            end: Some(vec![2]),
        };
        assert_eq!(
            scan("t", Keyspace::Docs, &range, true, (7, 100)),
            "SELECT `key`,LENGTH(`value`),IF(LENGTH(`value`)<=100,`value`,NULL) FROM `t`.`docs` \
             FORCE INDEX (PRIMARY) WHERE `key`>=x'01' AND `key`<x'02' ORDER BY `key` DESC LIMIT 7"
        );
        assert_eq!(
            get_many("t", Keyspace::Log, &[b"a", b""]),
            "SELECT `key`,`value` FROM `t`.`log` FORCE INDEX (PRIMARY) WHERE `key` IN (x'61',x'')"
        );
        assert_eq!(
            heads(&["a".into(), "b".into()]),
            "SELECT 0,`value` FROM `a`.`meta` WHERE `key`=x'68656164' UNION ALL \
             SELECT 1,`value` FROM `b`.`meta` WHERE `key`=x'68656164'"
        );
        assert_eq!(end("COMMIT", 9), "COMMIT;SET SESSION wait_timeout=9");
    }
}
