//! Export of a table: every document as it was at one commit, however long the reading takes.
//!
//! A snapshot that lives as long as a slow reader would keep a connection busy and the
//! write-ahead log growing, so each step takes a view of its own, reads the next keys, and puts
//! back what changed since the export's commit: the commit log holds every document as it was
//! before a write. Only changes to documents that are still to come are kept, so memory follows
//! from what is written meanwhile and not from the table's size. File formats are not known here.

use std::collections::BTreeMap;

use bytes::Bytes;
use nimbus_core::{DocumentId, TableName};

use super::Document;
use super::log::{LogPin, RecordReader};
use super::overlay;
use super::record::Image;
use super::tenant::Tenant;
use super::view::{Scan, View};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Direction, KeyRange, Keyspace};

/// Documents of one step, at most.
const STEP: usize = if cfg!(test) { 4 } else { 512 };
/// Bytes of documents that changed since the export's commit and are still to come: 64 MiB, and
/// little in tests.
const MAX_CHANGED_BYTES: usize = if cfg!(test) { 8 } else { 64 * 1024 } * 1024;
/// What an entry of the map of changes takes beside its key and value.
const ENTRY_BYTES: usize = 64;

/// A table as it was at one commit, read step by step. Keeps the tenant open and the part of the
/// commit log that it has not read yet.
pub struct Export {
    tenant: Tenant,
    sequence: u64,
    /// Keys that are still to be read.
    rest: KeyRange,
    /// The newest commit whose changes are in `changed`.
    known: u64,
    pin: LogPin,
    /// Documents in `rest` that were written since, as they were.
    changed: BTreeMap<Vec<u8>, Option<Bytes>>,
    changed_bytes: usize,
}

impl Tenant {
    /// Begins to read all documents of a table as they are now, oldest first.
    ///
    /// # Errors
    /// `TableNotFound`, or the provider's failure.
    pub async fn export(&self, table: &TableName) -> StoreResult<Export> {
        // Pinned first: what is pruned meanwhile is older than the view.
        let pin = self.pin_log(self.inner.state().durable.sequence);
        let mut view = self.inner.durable_view(false).await?.unbounded();
        let Some(def) = view.catalog.table(table) else {
            return Err(StoreError::TableNotFound {
                table: table.clone(),
            });
        };
        let mut rest = KeyRange::prefix(&def.number.get().to_be_bytes());
        // Ids grow with time, so nearly all that is inserted from now on lies behind this end.
        let mut backward = Scan::new(Keyspace::Docs, rest.clone(), Direction::Backward);
        let newest = view.scan_next(&mut backward, 1).await?;
        rest.end = Some(match newest.first() {
            Some((key, _)) => [key.as_slice(), &[0]].concat(),
            None => rest.start.clone(),
        });
        let sequence = view.read_sequence;
        pin.move_to(sequence);
        Ok(Export {
            tenant: self.clone(),
            sequence,
            rest,
            known: sequence,
            pin,
            changed: BTreeMap::new(),
            changed_bytes: 0,
        })
    }
}

impl Export {
    /// The commit after which the table was as it is read.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The next documents; none at the end.
    ///
    /// # Errors
    /// `CapExceeded` when too many documents that are still to come were changed;
    /// `OutOfRetention` or `Closed` when the tenant was taken away; the provider's failure. The
    /// export cannot go on then.
    pub async fn next(&mut self) -> StoreResult<Vec<Document>> {
        while !self.rest.is_empty() {
            let documents = self.step().await?;
            if !documents.is_empty() {
                return Ok(documents);
            }
        }
        Ok(Vec::new())
    }

    async fn step(&mut self) -> StoreResult<Vec<Document>> {
        let mut view = self.tenant.inner.durable_view(false).await?.unbounded();
        self.catch_up(&mut view).await?;
        let mut scan = Scan::new(Keyspace::Docs, self.rest.clone(), Direction::Forward);
        let rows = view.scan_next(&mut scan, STEP).await?;
        self.tenant.note_reads(&view);
        drop(view);
        let changes = if scan.done {
            self.rest.start = self.rest.end.clone().unwrap_or_default();
            std::mem::take(&mut self.changed)
        } else {
            self.rest.start = scan.remaining.start;
            let later = self.changed.split_off(&self.rest.start);
            std::mem::replace(&mut self.changed, later)
        };
        for (key, before) in &changes {
            self.changed_bytes -= weight(key, before.as_ref());
        }
        let rows = overlay::merge(rows, changes.into_iter().collect(), Direction::Forward);
        rows.into_iter()
            .map(|(key, json)| {
                let id = DocumentId::from_key(&key)
                    .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
                Ok(Document { id, json })
            })
            .collect()
    }

    /// Notes what the commits up to the view's changed, and lets go of the log so far.
    async fn catch_up(&mut self, view: &mut View) -> StoreResult<()> {
        if self.known == view.read_sequence {
            return Ok(());
        }
        let mut reader = RecordReader::after(self.known);
        while let Some((record, _)) = reader.next(view).await? {
            if record.sequence != self.known + 1 {
                break;
            }
            self.known = record.sequence;
            for write in record.writes {
                if write.space == Keyspace::Docs && self.rest.contains(&write.key) {
                    self.note(write.key, write.before)?;
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
        self.pin.move_to(self.known);
        Ok(())
    }

    /// Keeps a document as it was before its first change.
    fn note(&mut self, key: Vec<u8>, before: Image) -> StoreResult<()> {
        if self.changed.contains_key(&key) {
            return Ok(());
        }
        let before = match before {
            Image::Absent => None,
            Image::Inline(body) => Some(body),
            Image::Elsewhere { .. } => {
                return Err(StoreError::corrupt("a before-image is not in its record"));
            }
        };
        self.changed_bytes += weight(&key, before.as_ref());
        self.changed.insert(key, before);
        if self.changed_bytes <= MAX_CHANGED_BYTES {
            return Ok(());
        }
        Err(StoreError::CapExceeded {
            cap: "export_changes",
            limit: MAX_CHANGED_BYTES as u64,
            observed: self.changed_bytes as u64,
            advice: "too much of the table was written while it was exported; export it again, \
                     with a faster reader or at a quieter time",
        })
    }
}

fn weight(key: &[u8], before: Option<&Bytes>) -> usize {
    key.len() + before.map_or(0, Bytes::len) + ENTRY_BYTES
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
