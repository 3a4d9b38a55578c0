//! Maintenance of a shared tenant: steps that take no sequence and no record, which other servers could not
//! be told of. Each runs while this server has the turn, and looks again at what it relies on.
//!
//! Two servers may do the same step one after the other, which changes nothing. What is maintained where
//! commits come through one server alone is in `schema_change` and `log`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use nimbus_core::DocumentId;

use super::catalog::{IndexDef, IndexState, TableDef};
use super::exec::parse;
use super::index;
use super::log::{FLOOR_KEY, Floor};
use super::schema_change::STEP;
use super::tenant::TenantInner;
use crate::error::{StoreError, StoreResult};
use crate::provider::{
    Batch, CommitError, Direction, KeyRange, Keyspace, ProviderError, Snapshot, Turn,
};

type Rows = BTreeMap<(Keyspace, Vec<u8>), Option<Bytes>>;

/// Adds entries of the next documents of `remaining` to an index that is still being filled, and shortens
/// `remaining`; how many documents there were.
pub(crate) async fn fill_step(
    tenant: &TenantInner,
    table: &TableDef,
    index: &IndexDef,
    remaining: &mut KeyRange,
) -> StoreResult<usize> {
    let mut turn = begin(tenant).await?;
    if stored_state(&mut *turn, table, index).await? != Some(IndexState::Backfilling) {
        return Ok(0);
    }
    let documents = turn
        .scan(Keyspace::Docs, remaining, Direction::Forward, STEP)
        .await?;
    let Some((last, _)) = documents.last() else {
        return Ok(0);
    };
    let after = [last.as_slice(), &[0]].concat();
    let mut rows = Rows::new();
    for (key, body) in &documents {
        let id = DocumentId::from_key(key)
            .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
        let entry = index::entry(index, id.internal, &parse(body)?);
        rows.insert((Keyspace::Index, entry.stored), Some(entry.value));
    }
    end(turn, rows).await?;
    remaining.start = after;
    Ok(documents.len())
}

/// Removes the next entries of an index that is being dropped; how many there were.
pub(crate) async fn clear_step(
    tenant: &TenantInner,
    table: &TableDef,
    index: &IndexDef,
) -> StoreResult<usize> {
    let mut turn = begin(tenant).await?;
    let state = stored_state(&mut *turn, table, index).await?;
    if state.is_some_and(|state| state != IndexState::Deleting) {
        return Ok(0);
    }
    let range = KeyRange::prefix(&index.id.to_be_bytes());
    let entries = turn
        .scan(Keyspace::Index, &range, Direction::Forward, STEP)
        .await?;
    if entries.is_empty() {
        return Ok(0);
    }
    let count = entries.len();
    let gone = entries
        .into_iter()
        .map(|(key, _)| ((Keyspace::Index, key), None));
    end(turn, gone.collect()).await?;
    Ok(count)
}

/// Drops log rows and moves the floor from `from` to `to`. `false`: another server moved it.
pub(crate) async fn prune_step(
    tenant: &TenantInner,
    from: Floor,
    to: Floor,
    keys: impl Iterator<Item = Vec<u8>>,
) -> StoreResult<bool> {
    let mut turn = begin(tenant).await?;
    if stored_floor(&mut *turn).await? != from {
        return Ok(false);
    }
    let mut rows: Rows = keys.map(|key| ((Keyspace::Log, key), None)).collect();
    rows.insert((Keyspace::Meta, FLOOR_KEY.to_vec()), Some(to.encode()?));
    end(turn, rows).await?;
    Ok(true)
}

/// Reads again how far the log is pruned, which other servers do too.
pub(crate) async fn refresh_floor(tenant: &TenantInner) -> StoreResult<Floor> {
    if !tenant.store.is_shared() {
        return Ok(tenant.log.floor());
    }
    let floor = stored_floor(&mut *tenant.snapshot().await?).await?;
    tenant.log.set_floor(floor);
    Ok(floor)
}

async fn begin(tenant: &TenantInner) -> StoreResult<Box<dyn Turn>> {
    if tenant.failed.load(Ordering::Acquire) {
        return Err(StoreError::Closed);
    }
    tenant.store.turn().await.map_err(|e| failed(&e))
}

async fn end(mut turn: Box<dyn Turn>, writes: Rows) -> StoreResult<()> {
    let head = turn.head().await?;
    let done = turn.commit(Batch { head, writes }).await;
    done.map_err(|e| failed(&e))
}

fn failed(error: &CommitError) -> StoreError {
    match error {
        CommitError::Closed => StoreError::Closed,
        CommitError::Full { what } => StoreError::StorageFull {
            inside: what.clone(),
        },
        // Doing it twice changes nothing, so an unknown outcome is no worse than a failure.
        other => StoreError::Storage(ProviderError::Busy {
            what: format!("maintenance: {other}"),
        }),
    }
}

/// The state of an index by its table's row, `None` without one.
async fn stored_state(
    turn: &mut dyn Turn,
    table: &TableDef,
    index: &IndexDef,
) -> StoreResult<Option<IndexState>> {
    let key = TableDef::meta_key(&table.name);
    let rows = turn.get_many(Keyspace::Meta, &[&key]).await?;
    let Some(row) = rows.into_iter().next().flatten() else {
        return Ok(None);
    };
    let stored = TableDef::decode(&row)?;
    let found = stored.indexes.iter().find(|known| known.id == index.id);
    Ok(found.map(|known| known.state))
}

async fn stored_floor<S: Snapshot + ?Sized>(snapshot: &mut S) -> StoreResult<Floor> {
    let rows = snapshot.get_many(Keyspace::Meta, &[FLOOR_KEY]).await?;
    Floor::decode(rows.into_iter().next().flatten().as_deref())
}
