//! The commit log of one tenant: reading it, pruning it, and looking a commit up.
//!
//! Pruning records how far it went in the meta row `log_floor`, so that the hash chain stays
//! checkable from there on. The log's format is in `record`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use nimbus_core::DocumentId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::catalog::{Catalog, TABLE_PREFIX};
use super::commit;
use super::query::check_count;
use super::readset::ReadSet;
use super::record::{self, Image, LoggedWrite, Record, Write};
use super::state::{Proposal, Writes};
use super::tenant::{Tenant, TenantInner, now_ns};
use super::upkeep;
use super::view::{Scan, View};
use crate::error::{CommitId, StoreError, StoreResult};
use crate::provider::{Direction, KeyRange, Keyspace};

/// Meta row that says how far the log was pruned.
pub(crate) const FLOOR_KEY: &[u8] = b"log_floor";
/// Records that one journal answer may hold (nimbus.md 2.8).
pub const MAX_JOURNAL_LIMIT: u32 = 1_000;
/// Bytes of records after which a journal answer ends early: 16 MiB.
const JOURNAL_BYTES: u64 = 16 * 1024 * 1024;
/// Records that one pruning step drops.
const PRUNE_STEP: usize = 512;
/// Commits between two looks at whether something can be pruned.
const PRUNE_EVERY: u64 = 256;

/// Where the retained log begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floor {
    /// Newest record that was dropped; 0 if none was.
    pub(crate) sequence: u64,
    /// Its hash, which the oldest retained record names.
    pub(crate) hash: [u8; 32],
    /// Log bytes dropped so far.
    pub(crate) offset: u64,
}

#[derive(Serialize, Deserialize)]
struct WireFloor {
    sequence: u64,
    hash: String,
    offset: u64,
}

impl Floor {
    pub(crate) fn encode(&self) -> StoreResult<Bytes> {
        let hash = data_encoding::HEXLOWER.encode(&self.hash);
        serde_json::to_vec(&WireFloor {
            sequence: self.sequence,
            hash,
            offset: self.offset,
        })
        .map(Bytes::from)
        .map_err(|e| StoreError::corrupt(e.to_string()))
    }

    pub(crate) fn decode(bytes: Option<&[u8]>) -> StoreResult<Floor> {
        let Some(bytes) = bytes else {
            return Ok(Floor::default());
        };
        let damaged = |e: String| StoreError::corrupt(format!("log floor: {e}"));
        let wire: WireFloor = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        let hash = data_encoding::HEXLOWER
            .decode(wire.hash.as_bytes())
            .ok()
            .and_then(|h| h.try_into().ok())
            .ok_or_else(|| damaged("hash".into()))?;
        Ok(Floor {
            sequence: wire.sequence,
            hash,
            offset: wire.offset,
        })
    }
}

/// What an open tenant keeps in memory about its log.
#[derive(Debug, Default)]
pub(crate) struct LogControl {
    floor: Mutex<Floor>,
    pins: Mutex<BTreeMap<u64, u64>>,
    next_pin: AtomicU64,
    commits: AtomicU64,
    pub(crate) prune_wanted: AtomicBool,
    pruning: tokio::sync::Mutex<()>,
}

impl LogControl {
    pub(crate) fn new(floor: Floor) -> LogControl {
        LogControl {
            floor: Mutex::new(floor),
            ..LogControl::default()
        }
    }

    pub(crate) fn floor(&self) -> Floor {
        *self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how far the log is pruned.
    pub(crate) fn set_floor(&self, floor: Floor) {
        *self.floor.lock().unwrap_or_else(PoisonError::into_inner) = floor;
    }

    /// Counts a batch and now and then asks the background task to prune.
    pub(crate) fn note_commit(&self, tenant: &TenantInner) {
        if self.commits.fetch_add(1, Ordering::Relaxed) % PRUNE_EVERY == PRUNE_EVERY - 1 {
            self.prune_wanted.store(true, Ordering::Release);
            tenant.background.notify_one();
        }
    }

    /// The oldest sequence that somebody still reads from.
    fn pinned(&self) -> Option<u64> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.values().min().copied()
    }
}

/// Keeps the log from being pruned beyond a sequence while it lives: for replicas, backups
/// and moves in progress.
pub struct LogPin {
    tenant: Tenant,
    number: u64,
}

impl LogPin {
    /// Keeps only what comes after a later `sequence`.
    pub(crate) fn move_to(&self, sequence: u64) {
        let pins = &self.tenant.inner.log.pins;
        pins.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.number, sequence);
    }
}

impl Drop for LogPin {
    fn drop(&mut self) {
        let pins = &self.tenant.inner.log.pins;
        pins.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.number);
    }
}

/// Reads whole records in order, putting parts together.
pub(crate) struct RecordReader {
    scan: Scan,
    rows: VecDeque<(Vec<u8>, Bytes)>,
}

impl RecordReader {
    /// Records after `sequence`.
    pub(crate) fn after(sequence: u64) -> RecordReader {
        let range = KeyRange {
            start: record::key_after(sequence),
            end: None,
        };
        RecordReader {
            scan: Scan::new(Keyspace::Log, range, Direction::Forward),
            rows: VecDeque::new(),
        }
    }

    /// The record of one commit.
    pub(crate) fn only(sequence: u64) -> RecordReader {
        let range = KeyRange {
            start: record::part_key(sequence, 0),
            end: Some(record::key_after(sequence)),
        };
        RecordReader {
            scan: Scan::new(Keyspace::Log, range, Direction::Forward),
            rows: VecDeque::new(),
        }
    }

    /// The next record's text with its sequence and number of parts.
    pub(crate) async fn next_text(
        &mut self,
        view: &mut View,
    ) -> StoreResult<Option<(u64, u16, Vec<u8>)>> {
        let mut current: Option<(u64, u16, Vec<u8>)> = None;
        loop {
            while let Some((key, part)) = self.rows.front() {
                let (sequence, number) = record::parse_key(key)?;
                match &mut current {
                    None if number == 0 => current = Some((sequence, 1, part.to_vec())),
                    Some((s, parts, text)) if *s == sequence && number == *parts => {
                        *parts += 1;
                        text.extend_from_slice(part);
                    }
                    Some((s, ..)) if *s != sequence && number == 0 => return Ok(current),
                    _ => {
                        return Err(StoreError::corrupt(format!(
                            "part {number} of commit record {sequence} is out of place"
                        )));
                    }
                }
                self.rows.pop_front();
            }
            if self.scan.done {
                return Ok(current);
            }
            self.rows.extend(view.scan_next(&mut self.scan, 128).await?);
        }
    }

    pub(crate) async fn next(&mut self, view: &mut View) -> StoreResult<Option<(Record, u16)>> {
        match self.next_text(view).await? {
            Some((sequence, parts, text)) => {
                let record = Record::decode(&text)?;
                if record.sequence != sequence {
                    return Err(StoreError::corrupt(format!(
                        "commit record {} is stored as {sequence}",
                        record.sequence
                    )));
                }
                Ok(Some((record, parts)))
            }
            None => Ok(None),
        }
    }
}

/// One commit as the journal route shows it (nimbus.md 2.8).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct JournalRecord {
    /// Format version of the stored record.
    pub version: u32,
    /// Number of the commit.
    pub sequence: u64,
    /// Nanoseconds since 1970-01-01.
    pub timestamp: u64,
    /// Name of the commit, 32 hexadecimal digits.
    pub commit_id: String,
    /// What it wrote.
    pub writes: Vec<JournalWrite>,
    /// The scheduled execution that it completed, if any.
    pub scheduled_execution_id: Option<String>,
    /// SHA-256 of the stored record, which names the one before; hexadecimal.
    pub integrity_sha256: String,
}

/// One write of a commit. Table definitions appear as writes of the table `_tables`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct JournalWrite {
    /// The table.
    pub table: String,
    /// `insert`, `update` or `delete`.
    pub op_type: &'static str,
    /// The document's id, or the table's name for `_tables`.
    pub doc_id: String,
    /// The document before.
    pub previous: Option<Box<RawValue>>,
    /// The document after.
    pub current: Option<Box<RawValue>>,
}

/// Answer to [`Tenant::journal`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct JournalPage {
    /// Commits after the cursor, oldest first.
    pub records: Vec<JournalRecord>,
    /// Cursor to continue with.
    pub next_cursor: u64,
    /// Newest commit.
    pub latest_sequence: u64,
    /// Oldest cursor that is still answered.
    pub cursor_floor: u64,
    /// Whether there is more after `next_cursor`.
    pub has_more: bool,
}

impl Tenant {
    /// Commits after `after`, oldest first.
    ///
    /// # Errors
    /// `OutOfRetention` if `after` was pruned; `InvalidInput` beyond the head or for a limit of 0;
    /// `CapExceeded` for a limit over [`MAX_JOURNAL_LIMIT`].
    pub async fn journal(&self, after: u64, limit: u32) -> StoreResult<JournalPage> {
        self.journal_page(Some(after), limit).await
    }

    /// Commits from the oldest that is retained.
    ///
    /// # Errors
    /// As [`Tenant::journal`], but never `OutOfRetention`.
    pub async fn journal_start(&self, limit: u32) -> StoreResult<JournalPage> {
        self.journal_page(None, limit).await
    }

    async fn journal_page(&self, after: Option<u64>, limit: u32) -> StoreResult<JournalPage> {
        check_count("limit", Some(limit), MAX_JOURNAL_LIMIT)?;
        let mut view = self.inner.durable_view(false).await?.unbounded();
        let floor = Floor::decode(view.get(Keyspace::Meta, FLOOR_KEY).await?.as_deref())?;
        let head = view.read_sequence;
        let after = after.unwrap_or(floor.sequence);
        if after > head {
            return Err(StoreError::invalid(format!(
                "cursor {after} is beyond the newest commit {head}"
            )));
        }
        if after < floor.sequence {
            return Err(StoreError::OutOfRetention {
                requested: after,
                floor: floor.sequence,
                head,
            });
        }
        let mut reader = RecordReader::after(after);
        let mut page = JournalPage {
            records: Vec::new(),
            next_cursor: after,
            latest_sequence: head,
            cursor_floor: floor.sequence,
            has_more: false,
        };
        let mut bytes = 0;
        while page.records.len() < limit as usize && bytes < JOURNAL_BYTES {
            let Some((record, _)) = reader.next(&mut view).await? else {
                break;
            };
            bytes += record.size;
            page.next_cursor = record.sequence;
            page.records.push(journal_record(&mut view, record).await?);
        }
        page.has_more = page.next_cursor < head;
        Ok(page)
    }

    /// The sequence of a commit, or `None` if the retained log does not hold it.
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn commit_status(&self, commit: CommitId) -> StoreResult<Option<u64>> {
        let mut view = self.inner.durable_view(false).await?.unbounded();
        let mut scan = Scan::new(Keyspace::Log, KeyRange::all(), Direction::Backward);
        let needle = format!("\"commit\":\"{commit}\"");
        while !scan.done {
            for (key, text) in view.scan_next(&mut scan, 128).await? {
                let (sequence, part) = record::parse_key(&key)?;
                // The front of every record is under 200 bytes, before anything a user wrote.
                let front = &text[..text.len().min(200)];
                if part == 0 && String::from_utf8_lossy(front).contains(&needle) {
                    return Ok(Some(sequence));
                }
            }
        }
        Ok(None)
    }

    /// Drops the whole log up to now, except what is pinned. Returns the records dropped.
    ///
    /// # Errors
    /// As a commit.
    pub async fn prune_log(&self) -> StoreResult<u64> {
        prune(&self.inner, true).await
    }

    /// Keeps all that is left of the log from being pruned.
    pub(crate) async fn pin_whole_log(&self) -> StoreResult<LogPin> {
        // A step of pruning that has begun does not look at pins again.
        let _none_in_progress = self.inner.log.pruning.lock().await;
        let floor = upkeep::refresh_floor(&self.inner).await?;
        Ok(self.pin_log(floor.sequence))
    }

    /// Keeps the log after `sequence` from being pruned.
    pub fn pin_log(&self, sequence: u64) -> LogPin {
        let log = &self.inner.log;
        let number = log.next_pin.fetch_add(1, Ordering::Relaxed);
        log.pins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, sequence);
        LogPin {
            tenant: self.clone(),
            number,
        }
    }
}

async fn journal_record(view: &mut View, record: Record) -> StoreResult<JournalRecord> {
    let mut writes = Vec::new();
    for write in &record.writes {
        let Some((table, doc_id)) = subject(view, write) else {
            continue;
        };
        let previous = raw(resolve(view, record.sequence, write, &write.before).await?)?;
        let current = raw(resolve(view, record.sequence, write, &write.after).await?)?;
        let op_type = match (&previous, &current) {
            (None, _) => "insert",
            (Some(_), Some(_)) => "update",
            (Some(_), None) => "delete",
        };
        writes.push(JournalWrite {
            table,
            op_type,
            doc_id,
            previous,
            current,
        });
    }
    Ok(JournalRecord {
        version: record::RECORD_VERSION,
        sequence: record.sequence,
        timestamp: record.timestamp,
        commit_id: record.commit.to_string(),
        writes,
        scheduled_execution_id: record.execution,
        integrity_sha256: data_encoding::HEXLOWER.encode(&record.hash),
    })
}

/// Table and id of a write, or `None` for writes that the journal does not show.
fn subject(view: &View, write: &LoggedWrite) -> Option<(String, String)> {
    match write.space {
        Keyspace::Docs => {
            let id = DocumentId::from_key(&write.key).ok()?;
            let table = view.catalog.by_number(id.table);
            let name = table.map_or_else(|| format!("#{}", id.table.get()), |t| t.name.to_string());
            Some((name, id.to_string()))
        }
        Keyspace::Meta => {
            let name = write.key.strip_prefix(TABLE_PREFIX)?;
            Some(("_tables".into(), String::from_utf8_lossy(name).into_owned()))
        }
        _ => None,
    }
}

fn raw(value: Option<Bytes>) -> StoreResult<Option<Box<RawValue>>> {
    let Some(value) = value else { return Ok(None) };
    let text = String::from_utf8(value.to_vec())
        .map_err(|_| StoreError::corrupt("a logged document is not UTF-8"))?;
    RawValue::from_string(text)
        .map(Some)
        .map_err(|e| StoreError::corrupt(format!("a logged document is not JSON: {e}")))
}

/// The value of an image. A large after-image lives in its keyspace, or, once it was
/// overwritten, in the before-image of the commit that did so.
pub(super) async fn resolve(
    view: &mut View,
    sequence: u64,
    write: &LoggedWrite,
    image: &Image,
) -> StoreResult<Option<Bytes>> {
    let hash = match image {
        Image::Absent => return Ok(None),
        Image::Inline(value) => return Ok(Some(value.clone())),
        Image::Elsewhere { hash, .. } => hash,
    };
    let fits = |value: &Bytes| <[u8; 32]>::from(Sha256::digest(value)) == *hash;
    if let Some(value) = view.get(write.space, &write.key).await?
        && fits(&value)
    {
        return Ok(Some(value));
    }
    let mut reader = RecordReader::after(sequence);
    while let Some((record, _)) = reader.next(view).await? {
        for later in record.writes {
            if later.space == write.space
                && later.key == write.key
                && let Image::Inline(value) = later.before
                && fits(&value)
            {
                return Ok(Some(value));
            }
        }
    }
    Err(StoreError::corrupt(format!(
        "the body that commit {sequence} wrote is not to be found"
    )))
}

/// The catalog after a commit, if that changed `before`.
pub(super) async fn changed_catalog(
    view: &mut View,
    before: &Catalog,
    record: &Record,
) -> StoreResult<Option<Arc<Catalog>>> {
    let mut after = None;
    for write in &record.writes {
        if write.space == Keyspace::Meta && Catalog::owns(&write.key) {
            let image = resolve(view, record.sequence, write, &write.after).await?;
            let after = after.get_or_insert_with(|| before.clone());
            after.apply(&write.key, image.as_deref())?;
        }
    }
    Ok(after.map(Arc::new))
}

/// Drops what retention no longer asks for, or everything; in steps, from a recorded anchor.
pub(crate) async fn prune(tenant: &Arc<TenantInner>, everything: bool) -> StoreResult<u64> {
    let _one_at_a_time = tenant.log.pruning.lock().await;
    let target = tenant.state().durable.sequence;
    let mut dropped = 0;
    loop {
        let step = prune_step(tenant, everything, target).await?;
        dropped += step;
        if step == 0 {
            return Ok(dropped);
        }
    }
}

async fn prune_step(tenant: &Arc<TenantInner>, everything: bool, target: u64) -> StoreResult<u64> {
    let floor = upkeep::refresh_floor(tenant).await?;
    let options = &tenant.shared.options;
    let oldest = now_ns()
        .saturating_sub(u64::try_from(options.log_retention.as_nanos()).unwrap_or(u64::MAX));
    let newest_offset = tenant.state().log_offset;
    let limit = tenant.log.pinned().unwrap_or(u64::MAX).min(target);
    let mut view = tenant.durable_view(false).await?.unbounded();
    let mut reader = RecordReader::after(floor.sequence);
    let mut writes = Writes::new();
    let mut next = floor;
    let mut records = 0;
    while (records as usize) < PRUNE_STEP {
        let Some((record, parts)) = reader.next(&mut view).await? else {
            break;
        };
        let expired = record.timestamp < oldest
            || newest_offset.saturating_sub(record.offset) > options.log_retention_bytes;
        if record.sequence > limit || !(everything || expired) {
            break;
        }
        for part in 0..parts {
            let key = Bytes::from(record::part_key(record.sequence, part));
            writes.insert(
                (Keyspace::Log, key),
                Write {
                    before: None,
                    after: None,
                },
            );
        }
        next = Floor {
            sequence: record.sequence,
            hash: record.hash,
            offset: record.offset + record.size,
        };
        records += 1;
    }
    drop(view);
    if records == 0 {
        return Ok(0);
    }
    let done = if tenant.store.is_shared() {
        let rows = writes.keys().map(|(_, key)| key.to_vec());
        upkeep::prune_step(tenant, floor, next, rows).await?
    } else {
        let floor_key = (Keyspace::Meta, Bytes::from_static(FLOOR_KEY));
        writes.insert(floor_key, Write::to(Some(next.encode()?)));
        maintain(tenant, None, writes).await?
    };
    if !done {
        return Ok(0);
    }
    tenant.log.set_floor(next);
    tenant.counters.pruned.fetch_add(records, Ordering::Relaxed);
    Ok(records)
}

/// What maintenance writes follow from: they are not written if any of it changed.
pub(crate) struct Basis {
    pub(crate) reads: ReadSet,
    /// The newest commit that the reads saw, and the epoch in which it was numbered.
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
}

/// Commits writes that need no sequence and no record. `false`: what they follow from changed.
pub(crate) async fn maintain(
    tenant: &Arc<TenantInner>,
    basis: Option<Basis>,
    writes: Writes,
) -> StoreResult<bool> {
    let basis = basis.unwrap_or_else(|| {
        // Without reads there is nothing to conflict with.
        let state = tenant.state();
        Basis {
            reads: ReadSet::default(),
            sequence: state.durable.sequence,
            epoch: state.epoch,
        }
    });
    let proposal = Proposal {
        read_sequence: basis.sequence,
        epoch: basis.epoch,
        reads: basis.reads,
        writes,
        rendered: String::new(),
        commit: CommitId([0; 16]),
        execution: None,
        maintenance: true,
    };
    match commit::enqueue(tenant, proposal).await? {
        Ok(accepted) => Ok(accepted.durable(tenant).await?.is_some()),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
