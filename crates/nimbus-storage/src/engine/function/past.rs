//! The state of a tenant at an earlier commit, for reads up to a minute back.
//!
//! The commit log holds every value as it was before a write. What was written since the commit is
//! undone in a layer over the newest snapshot, code excepted, which is never changed but only dropped; the entries of indexes, which are not logged, follow from
//! the documents. What is read there is not known here.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use nimbus_core::DocumentId;

use crate::engine::catalog::{Catalog, TableDef};
use crate::engine::exec::parse;
use crate::engine::index;
use crate::engine::log::{FLOOR_KEY, Floor, RecordReader};
use crate::engine::overlay::{Overlay, Pending};
use crate::engine::record::{self, Image};
use crate::engine::tenant::{Tenant, now_ns};
use crate::engine::view::View;
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

/// How long ago a state may have been overwritten: 60 s, in ns.
const MAX_AGE_NS: u64 = 60 * 1_000_000_000;
/// Bytes of values that may be undone for one read: 64 MiB.
const MAX_UNDONE_BYTES: usize = 64 * 1024 * 1024;
/// What an entry of the layer takes beside its key and value.
const ENTRY_BYTES: usize = 64;

/// Documents that are fetched at once.
const CHUNK: usize = 256;

/// Values before their first change since the commit.
type Undone = BTreeMap<(Keyspace, Vec<u8>), Option<Bytes>>;

/// The state at the time `at`, ns since 1970-01-01, with its reads tracked.
pub(super) async fn view_at(tenant: &Tenant, at: u64) -> StoreResult<View> {
    let mut view = tenant.settled_view().await?.unbounded();
    if at == view.timestamp {
        view.bound_again();
        return Ok(view.tracked());
    }
    let newest = view.timestamp;
    let refused = || StoreError::TimestampOutOfRetention {
        requested: at,
        newest,
    };
    // Another commit may yet get a time that is to come.
    if at > newest {
        return Err(refused());
    }
    let floor = view.get(Keyspace::Meta, FLOOR_KEY).await?;
    let floor = Floor::decode(floor.as_deref())?.sequence;
    let (first, overwritten) = first_after(&mut view, floor, at).await?;
    // Of the state before the oldest commit that is left it is not known since when it was.
    let unknown = first <= floor + 1 && floor > 0;
    if unknown || now_ns().saturating_sub(overwritten) > MAX_AGE_NS {
        return Err(refused());
    }
    let undone = undone_since(&mut view, first - 1).await?;
    let catalog = catalog_before(&view, &undone)?;
    let layer = layer(&mut view, &catalog, undone)
        .await?
        .ok_or_else(refused)?;
    view.put_back(layer, Arc::new(catalog), (first - 1, at));
    Ok(view)
}

/// The first commit whose time is after `at`, and that time: the head has a later one. Looks no further
/// back than to `floor`.
async fn first_after(view: &mut View, floor: u64, at: u64) -> StoreResult<(u64, u64)> {
    let (mut low, mut high) = (floor + 1, view.read_sequence);
    let mut found = view.timestamp;
    while low < high {
        let middle = low + (high - low) / 2;
        let part = view
            .get(Keyspace::Log, &record::part_key(middle, 0))
            .await?;
        let part =
            part.ok_or_else(|| StoreError::corrupt(format!("no record of commit {middle}")))?;
        let timestamp = record::timestamp_of(&part)?;
        if timestamp > at {
            (high, found) = (middle, timestamp);
        } else {
            low = middle + 1;
        }
    }
    Ok((high, found))
}

async fn undone_since(view: &mut View, sequence: u64) -> StoreResult<Undone> {
    let mut undone = Undone::new();
    let mut bytes = 0;
    let mut known = sequence;
    let mut reader = RecordReader::after(sequence);
    while let Some((record, _)) = reader.next(view).await? {
        if record.sequence != known + 1 {
            break;
        }
        known = record.sequence;
        for write in record.writes {
            if write.space == Keyspace::Code {
                continue;
            }
            let key = (write.space, write.key);
            if undone.contains_key(&key) {
                continue;
            }
            let before = match write.before {
                Image::Absent => None,
                Image::Inline(value) => Some(value),
                Image::Elsewhere { .. } => {
                    return Err(StoreError::corrupt("a before-image is not in its record"));
                }
            };
            bytes += key.1.len() + before.as_ref().map_or(0, Bytes::len) + ENTRY_BYTES;
            undone.insert(key, before);
        }
        if bytes > MAX_UNDONE_BYTES {
            return Err(StoreError::CapExceeded {
                cap: "undone_bytes",
                limit: MAX_UNDONE_BYTES as u64,
                observed: bytes as u64,
                advice: "read at a newer timestamp",
            });
        }
    }
    if known != view.read_sequence {
        let head = view.read_sequence;
        return Err(StoreError::corrupt(format!(
            "the log ends at {known}, before the head {head}"
        )));
    }
    Ok(undone)
}

fn catalog_before(view: &View, undone: &Undone) -> StoreResult<Catalog> {
    let mut catalog = Catalog::clone(&view.catalog);
    for ((space, key), before) in undone {
        if *space == Keyspace::Meta && Catalog::owns(key) {
            catalog.apply(key, before.as_deref())?;
        }
    }
    Ok(catalog)
}

/// The layer that undoes the writes. `None` if it cannot be made: an index that was in use then is
/// not kept up any more.
async fn layer(view: &mut View, then: &Catalog, undone: Undone) -> StoreResult<Option<Overlay>> {
    let mut layer = Overlay::default();
    let (documents, others): (Vec<_>, Vec<_>) = undone
        .into_iter()
        .partition(|((space, _), _)| *space == Keyspace::Docs);
    for ((space, key), before) in others {
        undo(&mut layer, space, key, before);
    }
    for chunk in documents.chunks(CHUNK) {
        let keys: Vec<&[u8]> = chunk.iter().map(|((_, key), _)| key.as_slice()).collect();
        let now = view.get_many(Keyspace::Docs, &keys).await?;
        for (((_, key), before), now) in chunk.iter().zip(now) {
            let id = DocumentId::from_key(key)
                .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
            let indexes = then
                .by_number(id.table)
                .into_iter()
                .flat_map(|t| t.usable());
            for index in indexes {
                if let Some(now) = &now {
                    let entry = index::entry(index, id.internal, &parse(now)?);
                    undo(&mut layer, Keyspace::Index, entry.stored, None);
                }
                if let Some(before) = before {
                    let entry = index::entry(index, id.internal, &parse(before)?);
                    undo(&mut layer, Keyspace::Index, entry.stored, Some(entry.value));
                }
            }
            undo(&mut layer, Keyspace::Docs, key.clone(), before.clone());
            let bytes = now.as_ref().map_or(0, Bytes::len);
            view.pace(0, bytes).await;
        }
    }
    Ok(kept_up(&view.catalog, then).then_some(layer))
}

fn undo(layer: &mut Overlay, space: Keyspace, key: Vec<u8>, value: Option<Bytes>) {
    // Nothing here waits to become durable.
    let pending = Pending { sequence: 0, value };
    layer.insert((space, Bytes::from(key)), pending);
}

/// Whether every index that was in use then has been kept up since.
fn kept_up(now: &Catalog, then: &Catalog) -> bool {
    let mut tables = then.tables();
    tables.all(|before| {
        let table: Option<&Arc<TableDef>> = now.by_number(before.number);
        before
            .usable()
            .all(|used| table.is_some_and(|t| t.maintained().any(|i| i.id == used.id)))
    })
}

#[cfg(test)]
#[path = "past_tests.rs"]
mod tests;
