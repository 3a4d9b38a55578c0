//! Repeats commits on a copy of a tenant, from the log of the original.
//!
//! The log has no index entries: they follow from both images of a document. What a record says was there before
//! must be what the copy has, so a copy that differs is found with the first commit that touches the difference. Where
//! the copy lies and when it is used is not known here.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use nimbus_core::DocumentId;
use sha2::{Digest as _, Sha256};

use super::Loaded;
use super::catalog::Catalog;
use super::exec::parse;
use super::index;
use super::log::{self, RecordReader};
use super::record::{self, Image, LoggedWrite, Record};
use super::restore;
use super::view::View;
use crate::error::{StoreError, StoreResult};
use crate::provider::{Head, Keyspace, SCAN_BYTES, Snapshot, TenantStore};

/// Commits of one step.
const STEP: usize = if cfg!(test) { 4 } else { 512 };

type Writes = BTreeMap<(Keyspace, Vec<u8>), Option<Bytes>>;

/// A copy that follows a log. Nobody else writes to it.
pub(crate) struct Replay {
    store: Arc<dyn TenantStore>,
    head: Head,
    catalog: Arc<Catalog>,
}

/// What one step is going to write, over what the copy has.
struct Step {
    copy: Box<dyn Snapshot>,
    writes: Writes,
    bytes: usize,
}

impl Step {
    /// The value that a key has in the copy after the commits before.
    async fn current(&mut self, space: Keyspace, key: &[u8]) -> StoreResult<Option<Bytes>> {
        if let Some(written) = self.writes.get(&(space, key.to_vec())) {
            return Ok(written.clone());
        }
        let found = self.copy.get_many(space, &[key]).await?;
        Ok(found.into_iter().next().flatten())
    }

    fn put(&mut self, space: Keyspace, key: Vec<u8>, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        self.writes.insert((space, key), value);
    }
}

impl Replay {
    /// Goes on from what the copy in `store` has.
    ///
    /// # Errors
    /// `Corrupt`; the provider's failure.
    pub(crate) async fn open(store: Arc<dyn TenantStore>) -> StoreResult<Replay> {
        let mut snapshot = store.snapshot().await?;
        let loaded = Loaded::read(&mut *snapshot).await?;
        drop(snapshot);
        Ok(Replay {
            store,
            head: loaded.head,
            catalog: Arc::new(loaded.catalog),
        })
    }

    /// The newest commit that the copy has.
    pub(crate) fn head(&self) -> Head {
        self.head
    }

    /// Repeats the next commits that `view`, of the original, shows; how many they were.
    ///
    /// # Errors
    /// `OutOfRetention` when the log has them no more; `InvalidInput` when an index was finished or removed meanwhile,
    /// whose entries no log tells; `Corrupt` when the copy differs from the original; the providers' failures.
    pub(crate) async fn step(&mut self, view: &mut View) -> StoreResult<usize> {
        let mut reader = RecordReader::after(self.head.sequence);
        let mut step = Step {
            copy: self.store.snapshot().await?,
            writes: Writes::new(),
            bytes: 0,
        };
        let (mut head, mut catalog, mut records) = (self.head, self.catalog.clone(), 0);
        while records < STEP
            && step.bytes < SCAN_BYTES
            && let Some((_, _, text)) = reader.next_text(view).await?
        {
            let record = Record::decode(&text)?;
            self.follows(head, &record, view.read_sequence)?;
            catalog = apply(view, &mut step, &catalog, &record).await?;
            for (key, part) in record::parts(record.sequence, &text) {
                step.put(Keyspace::Log, key, Some(part));
            }
            head = Head {
                sequence: record.sequence,
                timestamp: record.timestamp,
                hash: record.hash,
            };
            records += 1;
        }
        drop(step.copy);
        if records > 0 {
            restore::write(&*self.store, self.head, head, step.writes).await?;
            (self.head, self.catalog) = (head, catalog);
        }
        Ok(records)
    }

    fn follows(&self, head: Head, record: &Record, newest: u64) -> StoreResult<()> {
        if head == self.head && record.sequence > head.sequence + 1 {
            return Err(StoreError::OutOfRetention {
                requested: head.sequence,
                floor: record.sequence - 1,
                head: newest,
            });
        }
        if record.sequence != head.sequence + 1 || record.previous != head.hash {
            return Err(StoreError::corrupt(format!(
                "commit {} does not follow {head:?}",
                record.sequence
            )));
        }
        Ok(())
    }

    /// Lets go of the copy.
    ///
    /// # Errors
    /// The provider's failure.
    pub(crate) async fn close(self) -> StoreResult<()> {
        Ok(self.store.close().await?)
    }
}

/// Adds what one commit wrote; the catalog after it.
async fn apply(
    view: &mut View,
    step: &mut Step,
    before: &Arc<Catalog>,
    record: &Record,
) -> StoreResult<Arc<Catalog>> {
    let changed = log::changed_catalog(view, before, record).await?;
    let after = changed.unwrap_or_else(|| before.clone());
    if has_other_entries(before, &after) {
        return Err(StoreError::invalid(
            "an index was finished or removed while the tenant was copied; move it again",
        ));
    }
    for write in &record.writes {
        let current = step.current(write.space, &write.key).await?;
        check_before(record.sequence, write, current.as_deref())?;
        let value = log::resolve(view, record.sequence, write, &write.after).await?;
        if write.space == Keyspace::Docs {
            index_entries(step, (before, &after), write, (&current, &value))?;
        }
        step.put(write.space, write.key.clone(), value);
    }
    Ok(after)
}

/// Whether an index of a table that was there before was finished or is gone: entries came or went without a record.
fn has_other_entries(before: &Catalog, after: &Catalog) -> bool {
    before.tables().any(|old| {
        let Some(new) = after.by_number(old.number) else {
            return old.maintained().next().is_some();
        };
        let usable = |id: u32| old.usable().any(|known| known.id == id);
        let kept = |id: u32| new.indexes.iter().any(|known| known.id == id);
        let finished = new.usable().any(|index| !usable(index.id));
        finished || old.indexes.iter().any(|index| !kept(index.id))
    })
}

/// Whether the copy has what a record says was there before. Code is named by its hash: what lies there is right.
fn check_before(sequence: u64, write: &LoggedWrite, current: Option<&[u8]>) -> StoreResult<()> {
    let fits = match (&write.before, current) {
        _ if write.space == Keyspace::Code => true,
        (Image::Absent, None) => true,
        (Image::Inline(value), Some(current)) => value == current,
        (Image::Elsewhere { hash, .. }, Some(current)) => {
            <[u8; 32]>::from(Sha256::digest(current)) == *hash
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(StoreError::corrupt(format!(
        "the copy differs from the original: commit {sequence} found another value of {} {}",
        write.space.name(),
        data_encoding::HEXLOWER.encode(&write.key)
    )))
}

/// Takes the entries of a document's old body away and adds those of the new one.
fn index_entries(
    step: &mut Step,
    (before, after): (&Catalog, &Catalog),
    write: &LoggedWrite,
    (old, new): (&Option<Bytes>, &Option<Bytes>),
) -> StoreResult<()> {
    let id = DocumentId::from_key(&write.key)
        .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
    if let (Some(body), Some(table)) = (old, before.by_number(id.table)) {
        let document = parse(body)?;
        for def in table.maintained() {
            let entry = index::entry(def, id.internal, &document);
            step.put(Keyspace::Index, entry.stored, None);
        }
    }
    if let (Some(body), Some(table)) = (new, after.by_number(id.table)) {
        let document = parse(body)?;
        for def in table.maintained() {
            let entry = index::entry(def, id.internal, &document);
            step.put(Keyspace::Index, entry.stored, Some(entry.value));
        }
    }
    Ok(())
}
