//! Ranges of keys as they were at one commit, however long the reading takes.
//!
//! A snapshot that lives as long as a slow reader would keep a connection busy and the
//! write-ahead log growing, so each step takes a view of its own, reads the next keys, and puts
//! back what changed since the commit: the commit log holds every value as it was before a write.
//! Only changes to what is still to come are kept, so memory follows from what is written
//! meanwhile and not from how much there is. What the values mean is not known here.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use super::log::{LogPin, RecordReader};
use super::overlay;
use super::record::{self, Image};
use super::tenant::Tenant;
use super::view::{Scan, View};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Direction, KeyRange, Keyspace, Row};

/// Rows of one step, at most.
pub(crate) const STEP: usize = if cfg!(test) { 4 } else { 512 };
/// Bytes of values that changed since the commit and are still to come: 64 MiB, and little in
/// tests.
pub(crate) const MAX_CHANGED_BYTES: usize = if cfg!(test) { 8 } else { 64 * 1024 } * 1024;
/// What an entry of the map of changes takes beside its key and value.
const ENTRY_BYTES: usize = 64;
/// Bytes of the table's number in front of a document's key.
const TABLE_BYTES: usize = 4;

/// Longest value that is kept rather than found in the log again.
const SHORT: usize = 64;

/// How what changed is kept.
#[derive(Clone, Copy)]
pub(crate) struct Keep {
    /// Values themselves, so that the log can be let go; or else where they are in the log, which
    /// is then kept from the commit on: many more fit in memory.
    pub(crate) values: bool,
    /// The name of the bound.
    pub(crate) cap: &'static str,
    /// What an operator is told when too much changed.
    pub(crate) advice: &'static str,
}

/// A value as it was before its first change.
pub(crate) enum Before {
    Value(Option<Bytes>),
    /// In the record of this commit.
    Logged(u64),
}

/// Ranges as they were at one commit, read step by step. Keeps the tenant open and the part of
/// the commit log that it has not read yet.
pub(crate) struct AsOf {
    tenant: Tenant,
    /// The commit.
    sequence: u64,
    /// What is still to be read, in this order.
    rest: VecDeque<(Keyspace, KeyRange)>,
    /// The newest commit whose changes are in `changed`.
    known: u64,
    pin: LogPin,
    /// Values in `rest` that were written since, as they were.
    pub(crate) changed: BTreeMap<(Keyspace, Vec<u8>), Before>,
    pub(crate) changed_bytes: usize,
    /// The newest document of each table at the commit. Ids grow with time, so nearly all that is
    /// inserted from then on lies behind it, and need not be kept in order to be left out.
    newest: HashMap<Vec<u8>, Vec<u8>>,
    keep: Keep,
}

impl AsOf {
    /// Begins to read `ranges` as they are in `view`. `pin` keeps the log since then; and from its
    /// beginning, if it is among the ranges.
    pub(crate) async fn begin(
        tenant: &Tenant,
        view: &mut View,
        pin: LogPin,
        ranges: impl IntoIterator<Item = (Keyspace, KeyRange)>,
        keep: Keep,
    ) -> StoreResult<AsOf> {
        let rest: VecDeque<_> = ranges.into_iter().filter(|(_, r)| !r.is_empty()).collect();
        let mut newest = HashMap::new();
        for (space, range) in &rest {
            if *space == Keyspace::Docs {
                newest_documents(view, range, &mut newest).await?;
            }
        }
        let as_of = AsOf {
            tenant: tenant.clone(),
            sequence: view.read_sequence,
            rest,
            known: view.read_sequence,
            pin,
            changed: BTreeMap::new(),
            changed_bytes: 0,
            newest,
            keep,
        };
        as_of.let_go();
        Ok(as_of)
    }

    /// The next rows with their keyspace, which may be none; `None` at the end.
    ///
    /// # Errors
    /// `CapExceeded` when too many values that are still to come were changed; `OutOfRetention` or
    /// `Closed` when the tenant was taken away; the provider's failure. It cannot go on then.
    pub(crate) async fn next(&mut self) -> StoreResult<Option<(Keyspace, Vec<Row>)>> {
        let Some((space, range)) = self.rest.front().cloned() else {
            return Ok(None);
        };
        let mut view = self.tenant.inner.durable_view(false).await?.unbounded();
        self.catch_up(&mut view).await?;
        let mut scan = Scan::new(space, range.clone(), Direction::Forward);
        let mut rows = view.scan_next(&mut scan, STEP).await?;
        let covered = self.advance((space, range), scan);
        if space == Keyspace::Docs {
            rows.retain(|(key, _)| !self.is_newer(key));
        }
        let changes = self.take_changes(space, &covered);
        let changes = resolve(&mut view, space, changes).await?;
        self.tenant.note_reads(&view);
        Ok(Some((
            space,
            overlay::merge(rows, changes, Direction::Forward),
        )))
    }

    /// Shortens what is to be read by what a scan covered, and returns that.
    fn advance(&mut self, (space, range): (Keyspace, KeyRange), scan: Scan) -> KeyRange {
        let next = match scan.done {
            true => None,
            false if space == Keyspace::Docs => self.past_newer(scan.remaining.start),
            false => Some(scan.remaining.start),
        };
        let end = match next {
            Some(next) if range.contains(&next) => {
                if let Some((_, range)) = self.rest.front_mut() {
                    range.start.clone_from(&next);
                }
                Some(next)
            }
            _ => {
                self.rest.pop_front();
                range.end
            }
        };
        KeyRange {
            start: range.start,
            end,
        }
    }

    /// `key`, or where the next table begins if nothing of this one is to come: or else whoever
    /// inserts faster than this reads would keep it in one table for ever.
    fn past_newer(&self, key: Vec<u8>) -> Option<Vec<u8>> {
        match self.is_newer(&key) {
            true => nimbus_core::key::prefix_successor(&key[..key.len().min(TABLE_BYTES)]),
            false => Some(key),
        }
    }

    fn take_changes(&mut self, space: Keyspace, range: &KeyRange) -> Vec<(Vec<u8>, Before)> {
        let inside = self
            .changed
            .range((space, range.start.clone())..)
            .take_while(|((s, key), _)| *s == space && range.contains(key))
            .map(|(key, _)| key.clone());
        let keys: Vec<_> = inside.collect();
        let mut changes = Vec::with_capacity(keys.len());
        for at in keys {
            if let Some(before) = self.changed.remove(&at) {
                self.changed_bytes -= weight(&at.1, &before);
                changes.push((at.1, before));
            }
        }
        changes
    }

    /// Whether a document was inserted behind all that its table had.
    fn is_newer(&self, key: &[u8]) -> bool {
        let table = &key[..key.len().min(TABLE_BYTES)];
        self.newest
            .get(table)
            .is_none_or(|newest| key > newest.as_slice())
    }

    fn is_to_come(&self, space: Keyspace, key: &[u8]) -> bool {
        let mut rest = self.rest.iter();
        rest.any(|(s, range)| *s == space && range.contains(key))
            && !(space == Keyspace::Docs && self.is_newer(key))
    }

    /// Notes what the commits up to the view's changed, and lets go of the log so far.
    async fn catch_up(&mut self, view: &mut View) -> StoreResult<()> {
        if self.known == view.read_sequence {
            self.let_go();
            return Ok(());
        }
        let mut reader = RecordReader::after(self.known);
        while let Some((record, _)) = reader.next(view).await? {
            if record.sequence != self.known + 1 {
                break;
            }
            self.known = record.sequence;
            for write in record.writes {
                if record::logged(write.space) && self.is_to_come(write.space, &write.key) {
                    self.note((write.space, write.key), write.before, record.sequence)?;
                }
            }
        }
        if self.known != view.read_sequence {
            return Err(StoreError::OutOfRetention {
                requested: self.known,
                floor: self.tenant.inner.log.floor().sequence,
                head: view.read_sequence,
            });
        }
        self.let_go();
        Ok(())
    }

    /// Lets go of the log that is not needed any more; of nothing while its own rows are to come.
    fn let_go(&self) {
        if !self.rest.iter().any(|(space, _)| *space == Keyspace::Log) {
            let needed = if self.keep.values {
                self.known
            } else {
                self.sequence
            };
            self.pin.move_to(needed);
        }
    }

    /// Keeps a value as it was before its first change.
    fn note(&mut self, at: (Keyspace, Vec<u8>), before: Image, sequence: u64) -> StoreResult<()> {
        if self.changed.contains_key(&at) {
            return Ok(());
        }
        let before = match before {
            Image::Absent => Before::Value(None),
            Image::Inline(body) if self.keep.values || body.len() <= SHORT => {
                Before::Value(Some(body))
            }
            Image::Inline(_) => Before::Logged(sequence),
            Image::Elsewhere { .. } => {
                return Err(StoreError::corrupt("a before-image is not in its record"));
            }
        };
        self.changed_bytes += weight(&at.1, &before);
        self.changed.insert(at, before);
        if self.changed_bytes <= MAX_CHANGED_BYTES {
            return Ok(());
        }
        Err(StoreError::CapExceeded {
            cap: self.keep.cap,
            limit: MAX_CHANGED_BYTES as u64,
            observed: self.changed_bytes as u64,
            advice: self.keep.advice,
        })
    }
}

/// Notes the newest document of each table in `range`.
async fn newest_documents(
    view: &mut View,
    range: &KeyRange,
    newest: &mut HashMap<Vec<u8>, Vec<u8>>,
) -> StoreResult<()> {
    let numbers: Vec<_> = view.catalog.tables().map(|t| t.number.get()).collect();
    for number in numbers {
        let table = number.to_be_bytes();
        if !range.contains(&table) && !KeyRange::prefix(&table).contains(&range.start) {
            continue;
        }
        let mut backward = Scan::new(
            Keyspace::Docs,
            KeyRange::prefix(&table),
            Direction::Backward,
        );
        if let Some((key, _)) = view.scan_next(&mut backward, 1).await?.pop() {
            newest.insert(table.to_vec(), key);
        }
    }
    Ok(())
}

/// Finds values in the log, each record once.
async fn resolve(
    view: &mut View,
    space: Keyspace,
    changes: Vec<(Vec<u8>, Before)>,
) -> StoreResult<Vec<(Vec<u8>, Option<Bytes>)>> {
    let mut records: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    let mut found = Vec::with_capacity(changes.len());
    for (at, (key, before)) in changes.into_iter().enumerate() {
        let value = match before {
            Before::Value(value) => value,
            Before::Logged(sequence) => {
                records.entry(sequence).or_default().push(at);
                None
            }
        };
        found.push((key, value));
    }
    for (sequence, places) in records {
        let record = RecordReader::only(sequence).next(view).await?;
        let writes = record.map_or_else(Vec::new, |(record, _)| record.writes);
        let of_space = writes.into_iter().filter(|write| write.space == space);
        let mut values: HashMap<_, _> = of_space.map(|w| (w.key, w.before)).collect();
        for at in places {
            let (key, value) = &mut found[at];
            match values.remove(key) {
                Some(Image::Inline(body)) => *value = Some(body),
                _ => {
                    let text = format!("commit {sequence} is not in the log as it was");
                    return Err(StoreError::corrupt(text));
                }
            }
        }
    }
    Ok(found)
}

fn weight(key: &[u8], before: &Before) -> usize {
    let value = match before {
        Before::Value(Some(value)) => value.len(),
        Before::Value(None) | Before::Logged(_) => 0,
    };
    key.len() + value + ENTRY_BYTES
}
