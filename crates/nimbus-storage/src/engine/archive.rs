//! Everything that a tenant holds, as it was at one commit: what a backup is made of.
//!
//! Index entries are left out: they follow from documents. So are the rows that describe the
//! storage rather than the tenant: a provider writes its own. File formats are not known here.

use nimbus_core::DocumentId;
use sha2::{Digest as _, Sha256};

use super::RESTORING_KEY;
use super::asof::{AsOf, Keep};
use super::catalog::Catalog;
use super::log::{FLOOR_KEY, Floor};
use super::record::{self, Record};
use super::tenant::Tenant;
use crate::error::{StoreError, StoreResult};
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
        let pin = self.pin_whole_log().await;
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
    let own = [HEAD_KEY, FORMAT_KEY, FLOOR_KEY, RESTORING_KEY];
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

fn gap(after: u64) -> StoreError {
    StoreError::corrupt(format!("the log has a gap after commit {after}"))
}

/// Checks rows of an archive one by one as they pass, in constant memory but for the definitions
/// of tables and one commit record: order, definitions, documents' keys, and the log's chain.
pub(crate) struct RowCheck {
    head: Head,
    last: Option<(usize, Vec<u8>)>,
    catalog: Catalog,
    /// The record that is being put together from parts: its sequence, the next part, its text.
    record: Option<(u64, u16, Vec<u8>)>,
    /// The newest whole record: its sequence, hash and time.
    newest: (u64, [u8; 32], u64),
}

impl RowCheck {
    pub(crate) fn new(head: Head, floor: Floor) -> RowCheck {
        RowCheck {
            head,
            last: None,
            catalog: Catalog::default(),
            record: None,
            newest: (floor.sequence, floor.hash, 0),
        }
    }

    /// The tables that were defined so far.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// `Corrupt` with what is wrong with it.
    pub(crate) fn row(&mut self, space: Keyspace, key: &[u8], value: &[u8]) -> StoreResult<()> {
        let place = ORDER.iter().position(|s| *s == space);
        let Some(place) = place.filter(|_| !is_left_out(space, key)) else {
            return Err(StoreError::corrupt(format!(
                "a row of {} that an archive does not hold",
                space.name()
            )));
        };
        let follows = self
            .last
            .as_ref()
            .is_none_or(|(p, k)| (*p, k.as_slice()) < (place, key));
        if !follows {
            return Err(StoreError::corrupt("rows are out of order"));
        }
        self.last = Some((place, key.to_vec()));
        match space {
            Keyspace::Meta if Catalog::owns(key) => {
                self.catalog.apply(key, Some(value))?;
            }
            Keyspace::Log => self.part(key, value)?,
            Keyspace::Docs => self.document(key)?,
            _ => {}
        }
        Ok(())
    }

    fn document(&mut self, key: &[u8]) -> StoreResult<()> {
        let id = DocumentId::from_key(key)
            .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
        match self.catalog.by_number(id.table) {
            Some(_) => Ok(()),
            None => Err(StoreError::corrupt(format!("document {id} has no table"))),
        }
    }

    fn part(&mut self, key: &[u8], value: &[u8]) -> StoreResult<()> {
        let (sequence, part) = record::parse_key(key)?;
        match &mut self.record {
            Some((s, next, text)) if *s == sequence && *next == part => {
                *next = part.saturating_add(1);
                text.extend_from_slice(value);
                return Ok(());
            }
            _ => self.end_record()?,
        }
        if part != 0 || sequence != self.newest.0 + 1 {
            return Err(gap(self.newest.0));
        }
        self.record = Some((sequence, 1, value.to_vec()));
        Ok(())
    }

    fn end_record(&mut self) -> StoreResult<()> {
        let Some((sequence, _, text)) = self.record.take() else {
            return Ok(());
        };
        let hash: [u8; 32] = Sha256::digest(&text).into();
        let record = Record::decode(&text)?;
        let (before, previous, time) = self.newest;
        if record.sequence != sequence || sequence != before + 1 || record.previous != previous {
            return Err(StoreError::corrupt(format!(
                "commit record {sequence} does not follow the one before it"
            )));
        }
        if record.timestamp <= time {
            return Err(StoreError::corrupt(format!(
                "commit record {sequence} is not later than the one before it"
            )));
        }
        self.newest = (sequence, hash, record.timestamp);
        Ok(())
    }

    /// Ends the check.
    ///
    /// # Errors
    /// `Corrupt` when the log does not lead to the head.
    pub(crate) fn end(&mut self) -> StoreResult<()> {
        self.end_record()?;
        let (sequence, hash, _) = self.newest;
        if (sequence, hash) == (self.head.sequence, self.head.hash) {
            return Ok(());
        }
        Err(StoreError::corrupt(format!(
            "the log ends with commit {sequence} and does not lead to the head, {:?}",
            self.head
        )))
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
