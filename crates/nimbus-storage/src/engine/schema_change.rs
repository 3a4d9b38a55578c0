//! Introducing and removing schemas and indexes, and the background work that follows.
//!
//! A schema becomes visible only after every existing document was checked against it; until
//! then new writes obey both. An index is maintained from the moment it is declared, filled
//! in steps in the background, and used by queries once complete. Everything here resumes
//! after a restart from what the meta rows say.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use nimbus_core::{DocumentId, TableName};

use super::catalog::{
    Catalog, FieldSchema, IndexDef, IndexState, TableDef, TableSchema, collect_violations,
};
use super::exec::parse;
use super::log::Basis;
use super::readset::ReadSet;
use super::record::Write;
use super::state::Writes;
use super::tenant::{Tenant, TenantInner};
use super::txn::Transaction;
use super::view::{Scan, View};
use super::{index, log, upkeep};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Direction, KeyRange, Keyspace};

/// Documents or entries that one background step handles.
pub(crate) const STEP: usize = 256;
/// How often an open tenant looks for expired log records when nothing else wakes it.
const TICK: Duration = Duration::from_secs(30);
/// How often it looks whether another server still does what there is to do.
const TAKE_OVER: Duration = Duration::from_secs(3);
/// Pause after a background step failed, for example on a full disk.
const RETRY: Duration = Duration::from_secs(1);

impl Tenant {
    /// Declares a table's schema and indexes; the table exists from then on.
    ///
    /// Existing documents are checked first. New indexes of a table that has documents are
    /// filled in the background: their state is `backfilling` until queries can use them.
    ///
    /// # Errors
    /// `InvalidInput` for a bad declaration or a table that the deployed schema declares, `SchemaViolation` naming an existing document that
    /// contradicts it; then nothing changed.
    pub async fn put_schema(&self, schema: TableSchema) -> StoreResult<()> {
        schema.check()?;
        let _one_at_a_time = self.schema_turn().await?;
        if let Some(def) = self.catalog().table(&schema.table) {
            refuse_deployed(def)?;
        }
        let schema = Arc::new(schema);
        // A schema that existing documents contradict leaves no trace; the check after
        // `begin_schema` is then for documents written meanwhile.
        let catalog = self.catalog();
        let known = catalog.table(&schema.table).and_then(|t| t.fields.as_ref());
        if !schema
            .fields
            .iter()
            .all(|f| known.is_some_and(|k| k.contains(f)))
        {
            self.check_existing(&schema.table, &schema.fields).await?;
        }
        let finished = self
            .transact(|tx| {
                let schema = schema.clone();
                Box::pin(async move { begin_schema(tx, &schema).await })
            })
            .await?;
        if !finished {
            if let Err(error) = self.check_existing(&schema.table, &schema.fields).await {
                self.clear_pending(&schema.table).await?;
                return Err(error);
            }
            self.transact(|tx| {
                let schema = schema.clone();
                Box::pin(async move { finish_pending(tx, &schema).await })
            })
            .await?;
        }
        self.inner.background.notify_one();
        Ok(())
    }

    /// Removes a table's schema and indexes; its documents stay.
    ///
    /// # Errors
    /// `SchemaNotFound`; `InvalidInput` for a table that the deployed schema declares.
    pub async fn delete_schema(&self, table: &TableName) -> StoreResult<()> {
        let _one_at_a_time = self.schema_turn().await?;
        self.transact(|tx| {
            let table = table.clone();
            Box::pin(async move {
                let def = tx.table(&table).await;
                def.as_ref().map_or(Ok(()), |d| refuse_deployed(d))?;
                let def = def.filter(|d| d.fields.is_some());
                let def = def.ok_or(StoreError::SchemaNotFound { table })?;
                let mut def = TableDef::clone(&def);
                def.fields = None;
                def.pending = None;
                for index in &mut def.indexes {
                    index.state = IndexState::Deleting;
                }
                tx.put_table(&def).await
            })
        })
        .await?;
        self.inner.background.notify_one();
        Ok(())
    }

    async fn check_existing(&self, table: &TableName, fields: &[FieldSchema]) -> StoreResult<()> {
        let Some(def) = self.catalog().table(table).cloned() else {
            return Ok(());
        };
        let mut remaining = KeyRange::prefix(&def.number.get().to_be_bytes());
        loop {
            let mut view = self.inner.durable_view(false).await?;
            let rows = next_step(&mut view, Keyspace::Docs, &mut remaining, STEP).await?;
            if rows.is_empty() {
                return Ok(());
            }
            for (key, body) in rows {
                let mut violations = Vec::new();
                collect_violations(fields, &parse(&body)?, &mut violations);
                if !violations.is_empty() {
                    let id = DocumentId::from_key(&key).ok();
                    return Err(StoreError::SchemaViolation {
                        table: table.clone(),
                        id,
                        violations,
                    });
                }
            }
        }
    }

    async fn clear_pending(&self, table: &TableName) -> StoreResult<()> {
        self.transact(|tx| {
            let table = table.clone();
            Box::pin(async move {
                match tx.table(&table).await {
                    Some(def) if def.pending.is_some() => {
                        let mut def = TableDef::clone(&def);
                        def.pending = None;
                        tx.put_table(&def).await
                    }
                    _ => Ok(()),
                }
            })
        })
        .await
    }
}

/// A table that functions declare has its schema from there and from nowhere else.
fn refuse_deployed(def: &TableDef) -> StoreResult<()> {
    if def.deployed.is_none() {
        return Ok(());
    }
    Err(StoreError::invalid(format!(
        "table {} is declared by the schema of the deployed functions; change it there and deploy again",
        def.name
    )))
}

/// Finishes at once (`true`) when no existing document can contradict the schema; otherwise
/// makes writes obey it from now on, so that the existing ones can be checked.
async fn begin_schema(tx: &mut Transaction, schema: &TableSchema) -> StoreResult<bool> {
    let def = tx.table_or_new(&schema.table).await?;
    let known = def.fields.as_deref().unwrap_or_default();
    if schema.fields.iter().all(|f| known.contains(f)) || is_empty(tx, &def).await? {
        finish_schema(tx, schema).await?;
        return Ok(true);
    }
    let mut def = TableDef::clone(&def);
    def.pending = Some(schema.fields.clone());
    tx.put_table(&def).await?;
    Ok(false)
}

/// Finishes what [`begin_schema`] began, unless another server took this one for dead and undid it.
async fn finish_pending(tx: &mut Transaction, schema: &TableSchema) -> StoreResult<()> {
    let def = tx.table(&schema.table).await;
    let begun = def.is_some_and(|def| def.pending.as_ref() == Some(&schema.fields));
    if !begun {
        return Err(StoreError::Conflict {
            attempts: 1,
            table: Some(schema.table.clone()),
        });
    }
    finish_schema(tx, schema).await
}

/// Makes the new schema the table's own and declares what changed among the indexes.
async fn finish_schema(tx: &mut Transaction, schema: &TableSchema) -> StoreResult<()> {
    let def = tx.table_or_new(&schema.table).await?;
    refuse_deployed(&def)?;
    let mut def = TableDef::clone(&def);
    def.fields = Some(schema.fields.clone());
    def.pending = None;
    for index in &mut def.indexes {
        let kept = schema
            .indexes
            .iter()
            .any(|i| i.name == index.name && i.fields == index.fields);
        if !kept {
            index.state = IndexState::Deleting;
        }
    }
    let fresh: Vec<_> = schema
        .indexes
        .iter()
        .filter(|i| {
            !def.declared()
                .any(|d| d.name == i.name && d.fields == i.fields)
        })
        .collect();
    if !fresh.is_empty() {
        // An empty table has nothing to fill in.
        let empty = is_empty(tx, &def).await?;
        let state = if empty {
            IndexState::Enabled
        } else {
            IndexState::Backfilling
        };
        let mut counters = tx.counters();
        for declared in fresh {
            let (name, fields) = (declared.name.clone(), declared.fields.clone());
            def.indexes.push(IndexDef {
                id: counters.next_index,
                name,
                fields,
                state,
                push: None,
            });
            counters.next_index += 1;
        }
        tx.put_counters(counters).await?;
    }
    tx.put_table(&def).await
}

/// Whether the table has no document; one inserted meanwhile conflicts.
pub(crate) async fn is_empty(tx: &mut Transaction, def: &TableDef) -> StoreResult<bool> {
    let range = KeyRange::prefix(&def.number.get().to_be_bytes());
    let mut scan = Scan::new(Keyspace::Docs, range, Direction::Forward);
    Ok(tx.view.scan_next(&mut scan, 1).await?.is_empty() && scan.done)
}

/// The next rows of a range, about `limit`; the range is shortened by them. None at its end.
pub(crate) async fn next_step(
    view: &mut View,
    space: Keyspace,
    remaining: &mut KeyRange,
    limit: usize,
) -> StoreResult<Vec<(Vec<u8>, Bytes)>> {
    let mut scan = Scan::new(space, remaining.clone(), Direction::Forward);
    loop {
        let rows = view.scan_next(&mut scan, limit).await?;
        if let Some((last, _)) = rows.last() {
            remaining.start = [last.as_slice(), &[0]].concat();
        } else if !scan.done {
            continue;
        }
        return Ok(rows);
    }
}

/// The background task of an open tenant: schema leftovers, indexes, log retention.
pub(crate) async fn run(tenant: Arc<TenantInner>) {
    loop {
        match step_all(&tenant).await {
            Ok(left) => {
                let pause = match left {
                    Left::Nothing => TICK,
                    Left::ToAnother => TAKE_OVER,
                };
                let _ = tokio::time::timeout(pause, tenant.background.notified()).await;
            }
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(tenant = %tenant.id, %error, inside = error.inside(), "background work is tried again");
                tokio::time::sleep(RETRY).await;
            }
        }
        if tenant.state().closed {
            return;
        }
    }
}

/// What is left to do after the background work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// Another server, or a call in this one, is at it; or died over it.
    ToAnother,
}

async fn step_all(tenant: &Arc<TenantInner>) -> StoreResult<Left> {
    let lease = Tenant::hold(tenant.clone());
    // Another server's schema changes and indexes are known by its commits only.
    lease.catch_up().await?;
    let pending = abandon_pending(&lease).await?;
    // What a push left must not keep anything else from being done.
    let recovered = super::app::recover(&lease).await;
    while let Some((table, index)) = unfinished(&lease.catalog()) {
        match index.state {
            IndexState::Backfilling => {
                fill(tenant, &table, &index).await?;
                set_state(&lease, &table.name, index.id, Some(IndexState::Enabled)).await?;
            }
            IndexState::Deleting => {
                clear(tenant, &table, &index).await?;
                set_state(&lease, &table.name, index.id, None).await?;
            }
            IndexState::Enabled => {}
        }
    }
    if !tenant.log_is_fresh() {
        log::prune(tenant, false).await?;
    }
    match recovered? {
        Left::Nothing => Ok(pending),
        left => Ok(left),
    }
}

impl TenantInner {
    /// Whether a look at the log's age can wait.
    fn log_is_fresh(&self) -> bool {
        let wanted = self.log.prune_wanted.swap(false, Ordering::AcqRel);
        let head = self.state().durable;
        let floor = self.log.floor().sequence;
        !wanted && head.sequence == floor
    }
}

/// A schema change that a crash cut short was never acknowledged: forget it.
async fn abandon_pending(tenant: &Tenant) -> StoreResult<Left> {
    let pending = || -> Vec<TableName> {
        let catalog = tenant.catalog();
        let found = catalog.tables().filter(|t| t.pending.is_some());
        found.map(|t| t.name.clone()).collect()
    };
    if pending().is_empty() {
        return Ok(Left::Nothing);
    }
    let Some(_free) = tenant.try_schema_turn().await? else {
        return Ok(Left::ToAnother);
    };
    for table in pending() {
        tenant.clear_pending(&table).await?;
    }
    Ok(Left::Nothing)
}

fn unfinished(catalog: &Catalog) -> Option<(Arc<TableDef>, IndexDef)> {
    catalog.tables().find_map(|table| {
        let index = table.indexes.iter().find(|i| match i.state {
            IndexState::Enabled => false,
            IndexState::Deleting => true,
            // A push fills its indexes itself.
            IndexState::Backfilling => i.push.is_none(),
        })?;
        Some((table.clone(), index.clone()))
    })
}

/// The documents that a table has now. Those that come later are not waited for: whoever inserts
/// faster than this reads would keep it for ever.
pub(crate) async fn present(tenant: &TenantInner, table: &TableDef) -> StoreResult<KeyRange> {
    let mut range = KeyRange::prefix(&table.number.get().to_be_bytes());
    let mut view = tenant.durable_view(false).await?;
    let mut backward = Scan::new(Keyspace::Docs, range.clone(), Direction::Backward);
    while !backward.done {
        if let Some((last, _)) = view.scan_next(&mut backward, 1).await?.pop() {
            range.end = Some([last.as_slice(), &[0]].concat());
            return Ok(range);
        }
    }
    range.end = Some(range.start.clone());
    Ok(range)
}

/// Adds the entries of documents that were there before the index.
pub(crate) async fn fill(
    tenant: &Arc<TenantInner>,
    table: &TableDef,
    index: &IndexDef,
) -> StoreResult<()> {
    let mut filling = Filling::begin(tenant, table).await?;
    while filling.step(tenant, table, index).await? {}
    Ok(())
}

/// The filling of an index. Later writes maintain it themselves, so only a change to one of the
/// documents of a step can make the step stale.
pub(crate) struct Filling {
    remaining: KeyRange,
    step: usize,
}

impl Filling {
    pub(crate) async fn begin(tenant: &TenantInner, table: &TableDef) -> StoreResult<Filling> {
        Ok(Filling {
            remaining: present(tenant, table).await?,
            step: STEP,
        })
    }

    /// One step; whether there is another.
    pub(crate) async fn step(
        &mut self,
        tenant: &Arc<TenantInner>,
        table: &TableDef,
        index: &IndexDef,
    ) -> StoreResult<bool> {
        if tenant.store.is_shared() {
            let done = upkeep::fill_step(tenant, table, index, &mut self.remaining).await?;
            let counted = &tenant.counters.backfilled;
            counted.fetch_add(done as u64, Ordering::Relaxed);
            return Ok(done > 0);
        }
        // Not the durable state: under load, that of a document which changes in every batch is
        // always out of date.
        let mut view = tenant.newest_view().await?;
        let mut next = self.remaining.clone();
        let rows = next_step(&mut view, Keyspace::Docs, &mut next, self.step).await?;
        if rows.is_empty() || !wanted(tenant, &table.name, index) {
            return Ok(false);
        }
        let mut reads = ReadSet::default();
        let mut writes = Writes::new();
        for (key, body) in &rows {
            reads.add_point(Keyspace::Docs, key);
            let id = DocumentId::from_key(key)
                .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
            let entry = index::entry(index, id.internal, &parse(body)?);
            let key = (Keyspace::Index, Bytes::from(entry.stored));
            let write = Write {
                before: None,
                after: Some(entry.value),
            };
            writes.insert(key, write);
        }
        let basis = Basis {
            reads,
            sequence: view.read_sequence,
            epoch: view.epoch,
        };
        drop(view);
        if log::maintain(tenant, Some(basis), writes).await? {
            self.remaining = next;
            self.step = STEP;
            tenant
                .counters
                .backfilled
                .fetch_add(rows.len() as u64, Ordering::Relaxed);
        } else {
            // A smaller step is less likely to meet a change.
            self.step = (self.step / 2).max(1);
        }
        Ok(true)
    }
}

/// Whether the index is still to be filled: a newer schema may have dropped it.
fn wanted(tenant: &TenantInner, table: &TableName, index: &IndexDef) -> bool {
    let state = tenant.state();
    let catalog = state.catalog();
    catalog.table(table).is_some_and(|t| {
        t.indexes
            .iter()
            .any(|i| i.id == index.id && i.state == IndexState::Backfilling)
    })
}

/// Removes every entry of an index that no transaction maintains or reads any more.
async fn clear(tenant: &Arc<TenantInner>, table: &TableDef, index: &IndexDef) -> StoreResult<()> {
    if tenant.store.is_shared() {
        while upkeep::clear_step(tenant, table, index).await? > 0 {}
        return Ok(());
    }
    let mut remaining = KeyRange::prefix(&index.id.to_be_bytes());
    loop {
        let mut view = tenant.durable_view(false).await?;
        let mut next = remaining.clone();
        let rows = next_step(&mut view, Keyspace::Index, &mut next, STEP).await?;
        drop(view);
        if rows.is_empty() {
            return Ok(());
        }
        let writes = rows
            .into_iter()
            .map(|(key, _)| {
                (
                    (Keyspace::Index, Bytes::from(key)),
                    Write {
                        before: None,
                        after: None,
                    },
                )
            })
            .collect();
        if log::maintain(tenant, None, writes).await? {
            remaining = next;
        }
    }
}

/// Enables an index, or removes its definition.
async fn set_state(
    tenant: &Tenant,
    table: &TableName,
    index: u32,
    state: Option<IndexState>,
) -> StoreResult<()> {
    tenant
        .transact(|tx| {
            let table = table.clone();
            Box::pin(async move {
                let Some(def) = tx.table(&table).await else {
                    return Ok(());
                };
                let mut def = TableDef::clone(&def);
                match state {
                    None => def.indexes.retain(|i| i.id != index),
                    Some(state) => {
                        let still =
                            |i: &&mut IndexDef| i.id == index && i.state == IndexState::Backfilling;
                        if let Some(found) = def.indexes.iter_mut().find(still) {
                            found.state = state;
                        }
                    }
                }
                tx.put_table(&def).await
            })
        })
        .await
}

/// Index definitions by number, for the consistency check.
pub(crate) fn indexes_by_id(catalog: &Catalog) -> HashMap<u32, (Arc<TableDef>, IndexDef)> {
    catalog
        .tables()
        .flat_map(|t| {
            t.indexes
                .iter()
                .map(move |i| (i.id, (t.clone(), i.clone())))
        })
        .collect()
}
