//! Everything that a tenant holds, as it was at one commit: what a backup is made of.
//!
//! Index entries are left out: they follow from documents. So are the rows that describe the
//! storage rather than the tenant: a provider writes its own. File formats are not known here.

use super::RESTORING_KEY;
use super::asof::{AsOf, Keep};
use super::log::{FLOOR_KEY, Floor};
use super::record;
use super::tenant::Tenant;
use crate::error::{StoreError, StoreResult};
use crate::provider::combined::{ARRIVING_KEY, MOVED_KEY};
use crate::provider::{HEAD_KEY, Head, KeyRange, Keyspace, Row};

/// The keyspaces of an archive, in its order: definitions before what they define, and the log
/// early, so that it is not kept from being pruned for as long as the documents are read.
pub(crate) const ORDER: [Keyspace; 6] = [
    Keyspace::Meta,
    Keyspace::Log,
    Keyspace::Code,
    Keyspace::Jobs,
    Keyspace::Files,
    Keyspace::Docs,
];
/// Meta row of providers.
const FORMAT_KEY: &[u8] = b"format";

const KEEP: Keep = Keep {
    values: false,
    cap: "backup_changes",
    advice: "too much of the tenant was written while it was read; make the backup again, \
             with a faster reader or at a quieter time",
};

/// A tenant as it was at one commit, read step by step. Keeps the tenant open and the part of the
/// commit log that it has not read yet.
pub(crate) struct Archive {
    head: Head,
    floor: Floor,
    rows: AsOf,
    /// The newest record of the log that was read.
    logged: u64,
}

impl Tenant {
    /// Begins to read all that the tenant holds, as it is now.
    ///
    /// # Errors
    /// The provider's failure.
    pub(crate) async fn archive(&self) -> StoreResult<Archive> {
        let pin = self.pin_whole_log().await?;
        let mut view = self.inner.durable_view(false).await?.unbounded();
        let head = view.get(Keyspace::Meta, HEAD_KEY).await?;
        let head = Head::decode(&head.unwrap_or_default())
            .ok_or_else(|| StoreError::corrupt("the head row is missing"))?;
        let floor = Floor::decode(view.get(Keyspace::Meta, FLOOR_KEY).await?.as_deref())?;
        let ranges = ORDER.map(|space| (space, range_of(space, floor, head)));
        let rows = AsOf::begin(self, &mut view, pin, ranges, KEEP).await?;
        Ok(Archive {
            head,
            floor,
            rows,
            logged: floor.sequence,
        })
    }
}

fn range_of(space: Keyspace, floor: Floor, head: Head) -> KeyRange {
    match space {
        Keyspace::Log => KeyRange {
            start: record::key_after(floor.sequence),
            end: Some(record::key_after(head.sequence)),
        },
        _ => KeyRange::all(),
    }
}

/// Whether a row belongs to the storage that it lies in, or is part of what surrounds an archive.
pub(crate) fn is_left_out(space: Keyspace, key: &[u8]) -> bool {
    let own = [
        HEAD_KEY,
        FORMAT_KEY,
        FLOOR_KEY,
        RESTORING_KEY,
        ARRIVING_KEY,
        MOVED_KEY,
    ];
    space == Keyspace::Index || (space == Keyspace::Meta && own.contains(&key))
}

impl Archive {
    /// The commit after which the tenant was as it is read.
    pub(crate) fn head(&self) -> Head {
        self.head
    }

    /// Where the log begins.
    pub(crate) fn floor(&self) -> Floor {
        self.floor
    }

    /// The next rows with their keyspace, which may be none; `None` at the end. Keyspaces come in
    /// the order of [`ORDER`], keys in theirs.
    ///
    /// # Errors
    /// As [`AsOf::next`]; `Corrupt` when the log has a gap.
    pub(crate) async fn next(&mut self) -> StoreResult<Option<(Keyspace, Vec<Row>)>> {
        let Some((space, mut rows)) = self.rows.next().await? else {
            // Better now than when the backup is needed.
            if self.logged != self.head.sequence {
                return Err(gap(self.logged));
            }
            return Ok(None);
        };
        rows.retain(|(key, _)| !is_left_out(space, key));
        if space == Keyspace::Log {
            for (key, _) in &rows {
                let (sequence, part) = record::parse_key(key)?;
                if sequence != self.logged && (part, sequence) != (0, self.logged + 1) {
                    return Err(gap(self.logged));
                }
                self.logged = sequence;
            }
        }
        Ok(Some((space, rows)))
    }
}

pub(crate) fn gap(after: u64) -> StoreError {
    StoreError::corrupt(format!("the log has a gap after commit {after}"))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
