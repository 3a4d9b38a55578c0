//! Writes that are validated but not yet durable, as a map that snapshots share cheaply.
//!
//! It knows keys, values and sequence numbers only. Reading through it is what lets
//! transactions run while the disk syncs (design section 3).

use bytes::Bytes;
use imbl::OrdMap;

use super::readset::SpaceKey;
use crate::provider::{Direction, KeyRange, Keyspace, Row};

/// The newest validated write of a key.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    /// The commit that wrote it.
    pub(crate) sequence: u64,
    /// The value; `None` for a deletion.
    pub(crate) value: Option<Bytes>,
}

/// All writes above the durable head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlay(OrdMap<SpaceKey, Pending>);

impl Overlay {
    pub(crate) fn get(&self, space: Keyspace, key: &[u8]) -> Option<&Pending> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&(space, Bytes::copy_from_slice(key)))
    }

    pub(crate) fn insert(&mut self, key: SpaceKey, pending: Pending) {
        self.0.insert(key, pending);
    }

    /// Forgets a key whose newest write is durable now.
    pub(crate) fn settle(&mut self, key: &SpaceKey, durable: u64) {
        if self.0.get(key).is_some_and(|p| p.sequence <= durable) {
            self.0.remove(key);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The entries of a range, in key order.
    pub(crate) fn range<'a>(
        &'a self,
        space: Keyspace,
        range: &KeyRange,
    ) -> impl Iterator<Item = (&'a [u8], &'a Pending)> {
        let start = (space, Bytes::copy_from_slice(&range.start));
        let end = range.end.clone();
        self.0
            .range(start..)
            .take_while(move |((s, key), _)| {
                *s == space && end.as_ref().is_none_or(|e| key.as_ref() < e.as_slice())
            })
            .map(|((_, key), pending)| (key.as_ref(), pending))
    }
}

/// Lays sorted changes over sorted rows: a change replaces, adds or removes its key.
/// Both inputs are in `direction`; so is the result.
pub(crate) fn merge(
    rows: Vec<Row>,
    changes: Vec<(Vec<u8>, Option<Bytes>)>,
    direction: Direction,
) -> Vec<Row> {
    if changes.is_empty() {
        return rows;
    }
    let before = |a: &[u8], b: &[u8]| match direction {
        Direction::Forward => a < b,
        Direction::Backward => a > b,
    };
    let mut out = Vec::with_capacity(rows.len() + changes.len());
    let mut rows = rows.into_iter().peekable();
    for (key, value) in changes {
        while let Some(row) = rows.next_if(|(k, _)| before(k, &key)) {
            out.push(row);
        }
        rows.next_if(|(k, _)| *k == key);
        if let Some(value) = value {
            out.push((key, value));
        }
    }
    out.extend(rows);
    out
}
