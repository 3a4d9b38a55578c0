//! The SQL that is sent to the primary. Names of tables are ours, values are always bound.
//!
//! Must not know what becomes of the answers. Written for SQLite 3.35 and later, with nothing of libSQL's own.

use crate::provider::external::FORMAT_KEY;
use crate::provider::{HEAD_KEY, Keyspace};

/// Layout of the table `feed` and of those that it speaks of.
pub(super) const FEED_VERSION: i64 = 1;

/// The primary's clock, in milliseconds since 1970.
const NOW_MS: &str = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)";
const NOW_S: &str = "CAST(strftime('%s', 'now') AS INTEGER)";

/// The table of a keyspace. `index` is a keyword, so names are quoted.
pub(super) fn table(keyspace: Keyspace) -> String {
    format!("\"{}\"", keyspace.name())
}

fn hex(key: &[u8]) -> String {
    format!("x'{}'", data_encoding::HEXLOWER.encode(key))
}

/// Makes the tables of a tenant.
///
/// `feed` is one row: the life of the tenant, the newest position of `changes`, the sum of its bytes since the
/// beginning, the tag of the newest change, the fence that a commit must know, and who has the turn until when.
pub(super) fn create_tables() -> Vec<String> {
    let tables = Keyspace::ALL.map(|keyspace| {
        let table = table(keyspace);
        format!(
            "CREATE TABLE {table} (key BLOB PRIMARY KEY NOT NULL, value BLOB NOT NULL) WITHOUT ROWID"
        )
    });
    let own = [
        "CREATE TABLE changes (position INTEGER PRIMARY KEY, at INTEGER NOT NULL, total INTEGER NOT NULL, \
         previous BLOB NOT NULL, tag BLOB NOT NULL, data BLOB NOT NULL)",
        "CREATE TABLE feed (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), version INTEGER NOT NULL, \
         life TEXT NOT NULL, position INTEGER NOT NULL, total INTEGER NOT NULL, tag BLOB NOT NULL, \
         fence INTEGER NOT NULL, holder BLOB NOT NULL, until INTEGER NOT NULL)",
    ];
    tables.into_iter().chain(own.map(str::to_owned)).collect()
}

/// The first row of `feed`: `?1` life.
pub(super) fn create_feed() -> String {
    format!(
        "INSERT INTO feed (only_row, version, life, position, total, tag, fence, holder, until) \
         VALUES (1, {FEED_VERSION}, ?1, 0, 0, zeroblob(16), 0, zeroblob(0), 0)"
    )
}

/// How many tables and indexes a namespace has.
pub(super) const COUNT_OBJECTS: &str = "SELECT count(*) FROM sqlite_master";

/// Adds `rows` rows to a table, over those that are there.
pub(super) fn put(keyspace: Keyspace, rows: usize) -> String {
    let table = table(keyspace);
    let values = list("(?, ?)", rows);
    format!(
        "INSERT INTO {table} (key, value) VALUES {values} ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    )
}

/// Removes `rows` rows.
pub(super) fn delete(keyspace: Keyspace, rows: usize) -> String {
    let table = table(keyspace);
    format!("DELETE FROM {table} WHERE key IN ({})", list("?", rows))
}

fn list(item: &str, count: usize) -> String {
    let mut text = String::with_capacity((item.len() + 2) * count);
    for number in 0..count {
        if number > 0 {
            text.push_str(", ");
        }
        text.push_str(item);
    }
    text
}

/// The state of a tenant in one row: head, life, position, tag, fence, whose turn it is, version of the layout.
pub(super) fn state() -> String {
    let head = hex(HEAD_KEY);
    format!(
        "SELECT (SELECT value FROM \"meta\" WHERE key = {head}), life, position, tag, fence, \
         CASE WHEN until > {NOW_MS} THEN holder END, version FROM feed"
    )
}

/// The format row.
pub(super) fn format_row() -> String {
    format!("SELECT value FROM \"meta\" WHERE key = {}", hex(FORMAT_KEY))
}

/// Swaps the head: `?1` new, `?2` expected.
pub(super) fn swap_head() -> String {
    let head = hex(HEAD_KEY);
    format!("UPDATE \"meta\" SET value = ?1 WHERE key = {head} AND value = ?2")
}

/// Goes on with the feed, right after [`swap_head`]; fails on `NOT NULL` unless that changed a row, and life, fence
/// and position are the expected ones and nobody else has the turn: `?1` life, `?2` fence, `?3` position or null,
/// `?4` who commits, `?5` positions, `?6` bytes.
pub(super) fn guard() -> String {
    format!(
        "UPDATE feed SET position = CASE WHEN changes() = 1 AND life = ?1 AND fence = ?2 \
         AND (?3 IS NULL OR position = ?3) AND (until <= {NOW_MS} OR holder = ?4) THEN position + ?5 END, \
         total = total + ?6, until = 0"
    )
}

/// Appends a part: `?1` how many come after it, `?2` tag, `?3` data.
pub(super) fn append() -> String {
    format!(
        "INSERT INTO changes (position, at, total, previous, tag, data) \
         SELECT position - ?1, {NOW_S}, total, tag, ?2, ?3 FROM feed"
    )
}

/// Position and tag before [`SET_TAG`].
pub(super) const POSITION: &str = "SELECT position, tag FROM feed";
/// `?1` tag.
pub(super) const SET_TAG: &str = "UPDATE feed SET tag = ?1";

/// Removes at most 256 changes from the beginning: those beyond `?1` bytes, or older than `?2` seconds.
pub(super) fn prune() -> String {
    format!(
        "DELETE FROM changes WHERE position < (SELECT min(position) FROM changes \
         WHERE total >= (SELECT total FROM feed) - ?1 AND at >= {NOW_S} - ?2) \
         AND position < (SELECT min(position) FROM changes) + 256"
    )
}

// `CROSS JOIN` has SQLite look rows up in the order of the sums, instead of reading whole tables.

/// Changes after position `?1` in order, at most `?2` of them and `?3` bytes: position, previous tag, tag, data.
pub(super) const CHANGES: &str = "SELECT c.position, c.previous, c.tag, c.data FROM \
     (SELECT position, sum(size) OVER (ORDER BY position) AS upto FROM \
     (SELECT position, length(data) AS size FROM changes WHERE position > ?1 ORDER BY position LIMIT ?2)) AS s \
     CROSS JOIN changes AS c ON c.position = s.position WHERE s.upto <= ?3 ORDER BY c.position";

/// Rows from key `?1` in order, at most `?2` of them and `?3` bytes, with at most `?4` of each value: key, length of
/// the value, beginning of the value, which `substr` makes null where the value is empty.
pub(super) fn copy(keyspace: Keyspace) -> String {
    let table = table(keyspace);
    format!(
        "SELECT t.key, length(t.value), coalesce(substr(t.value, 1, ?4), zeroblob(0)) FROM \
         (SELECT key, sum(size) OVER (ORDER BY key) AS upto FROM \
         (SELECT key, length(key) + min(length(value), ?4) AS size FROM {table} WHERE key >= ?1 ORDER BY key LIMIT ?2)) \
         AS s CROSS JOIN {table} AS t ON t.key = s.key WHERE s.upto <= ?3 ORDER BY t.key"
    )
}

/// A piece of a value: `?1` key, `?2` where it begins, counted from 1, `?3` bytes.
pub(super) fn piece(keyspace: Keyspace) -> String {
    let table = table(keyspace);
    format!("SELECT substr(value, ?2, ?3) FROM {table} WHERE key = ?1")
}

/// Whether a change with tag `?1` comes after position `?2`, and the first position that is there.
pub(super) const FIND_TAG: &str = "SELECT (SELECT position FROM changes WHERE position > ?2 AND tag = ?1 LIMIT 1), \
     (SELECT min(position) FROM changes)";
/// Has every commit that is on its way fail.
pub(super) const RAISE_FENCE: &str = "UPDATE feed SET fence = fence + 1";

/// Asks for the turn: `?1` who, `?2` for how many milliseconds.
pub(super) fn reserve() -> String {
    format!(
        "UPDATE feed SET holder = ?1, until = {NOW_MS} + ?2 WHERE until <= {NOW_MS} OR holder = ?1"
    )
}

/// Gives the turn back: `?1` who.
pub(super) const RELEASE: &str = "UPDATE feed SET until = 0 WHERE holder = ?1";

/// Makes the tables of the registry.
pub(super) const CREATE_REGISTRY: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS installation (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), \
     format INTEGER NOT NULL, id TEXT NOT NULL, prefix TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS tenants (tenant_id TEXT PRIMARY KEY NOT NULL, namespace TEXT NOT NULL UNIQUE, \
     state TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')), life TEXT NOT NULL, since INTEGER NOT NULL)",
];
/// Makes the table of wake times.
pub(super) const CREATE_WAKES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS wakes (tenant_id TEXT PRIMARY KEY NOT NULL, at_ms INTEGER NOT NULL, mark INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS wakes_by_time ON wakes (at_ms, tenant_id)",
];
/// `?1` tenant, `?2` time. Marks are made there: a change that is sent again must not bring back one that somebody saw.
pub(super) const LOWER_WAKE: &str = "INSERT INTO wakes (tenant_id, at_ms, mark) \
     VALUES (?1, ?2, random() & 9223372036854775807) \
     ON CONFLICT (tenant_id) DO UPDATE SET at_ms = min(at_ms, excluded.at_ms), mark = excluded.mark";
/// `?1` tenant, `?2` mark that was seen, `?3` time; a row if it was done.
pub(super) const REPLACE_WAKE: &str = "UPDATE wakes SET at_ms = ?3, mark = random() & 9223372036854775807 \
     WHERE tenant_id = ?1 AND mark = ?2 RETURNING 1";
/// `?1` tenant, `?2` mark that was seen; a row if it was done.
pub(super) const CLEAR_WAKE: &str =
    "DELETE FROM wakes WHERE tenant_id = ?1 AND mark = ?2 RETURNING 1";
/// `?1` tenant.
pub(super) const WAKE: &str = "SELECT tenant_id, at_ms, mark FROM wakes WHERE tenant_id = ?1";
/// `?1` time, `?2` limit.
pub(super) const DUE_WAKES: &str =
    "SELECT tenant_id, at_ms, mark FROM wakes WHERE at_ms <= ?1 ORDER BY at_ms, tenant_id LIMIT ?2";
/// `?1` format, `?2` id, `?3` prefix.
pub(super) const CLAIM: &str = "INSERT INTO installation (only_row, format, id, prefix) VALUES (1, ?1, ?2, ?3) ON CONFLICT DO NOTHING";
pub(super) const INSTALLATION: &str = "SELECT format, id, prefix FROM installation";

/// Entries of the registry: tenant, namespace, state, life, age in milliseconds. `only`: that of tenant `?1`.
pub(super) fn entries(only: bool) -> String {
    let condition = if only { "WHERE tenant_id = ?1 " } else { "" };
    format!(
        "SELECT tenant_id, namespace, state, life, {NOW_MS} - since FROM tenants {condition}ORDER BY tenant_id"
    )
}

/// Enters a tenant that is being created: `?1` tenant, `?2` namespace, `?3` life.
pub(super) fn enter() -> String {
    format!(
        "INSERT INTO tenants (tenant_id, namespace, state, life, since) VALUES (?1, ?2, 'creating', ?3, {NOW_MS}) \
         ON CONFLICT DO NOTHING"
    )
}
/// `?1` tenant, `?2` life.
pub(super) const SET_READY: &str =
    "UPDATE tenants SET state = 'ready' WHERE tenant_id = ?1 AND life = ?2 AND state = 'creating'";
/// `?1` tenant, `?2` life.
pub(super) const SET_DELETING: &str =
    "UPDATE tenants SET state = 'deleting' WHERE tenant_id = ?1 AND life = ?2";
/// `?1` tenant, `?2` life.
pub(super) const FORGET: &str =
    "DELETE FROM tenants WHERE tenant_id = ?1 AND life = ?2 AND state = 'deleting'";
