//! Everything a push does to tables before its commit, out of sight: new indexes are declared and
//! filled, and existing documents are checked while writes are watched.

use std::collections::HashSet;
use std::sync::Arc;

use nimbus_core::{DocumentId, TableName, Validator};

use super::schema::{AppSchema, AppTable, Compared};
use super::{DeployError, DeploymentId, push};
use crate::engine::catalog::{IndexDef, IndexState, PendingPush, TableDef};
use crate::engine::exec::parse;
use crate::engine::schema_change::{Filling, STEP, next_step, present};
use crate::engine::tenant::Tenant;
use crate::engine::txn::Transaction;
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

/// What has been prepared.
#[derive(Default)]
pub(super) struct Done {
    tables: HashSet<TableName>,
    indexes: HashSet<u32>,
}

/// A table with what the push has to do before its commit.
struct Work {
    def: Arc<TableDef>,
    validator: Option<Validator>,
    indexes: Vec<IndexDef>,
}

/// Refuses a table that has a native schema: it would have two.
pub(super) fn refuse_native(def: &TableDef) -> Result<(), DeployError> {
    if def.fields.is_none() && def.pending.is_none() {
        return Ok(());
    }
    Err(DeployError::NativeSchema {
        table: def.name.clone(),
    })
}

/// Prepares all tables that exist. One that appears meanwhile needs another round.
pub(super) async fn prepare(
    tenant: &Tenant,
    id: DeploymentId,
    (schema, compared): (&Arc<AppSchema>, &Arc<Compared>),
    done: &mut Done,
) -> Result<(), DeployError> {
    let (declared, compared) = (schema.clone(), compared.clone());
    let work = super::deploy::attempt(tenant, move |tx| {
        let (schema, compared) = (declared.clone(), compared.clone());
        Box::pin(async move { declare(tx, id, &schema, &compared).await })
    })
    .await?;
    for table in work {
        let name = &table.def.name;
        if let Some(validator) = table.validator
            && !done.tables.contains(name)
        {
            check_documents(tenant, &table.def, &validator, Beside::Writes).await?;
            done.tables.insert(name.clone());
        }
        for index in table.indexes {
            if !done.indexes.contains(&index.id) {
                fill(tenant, &table.def, &index).await?;
                done.indexes.insert(index.id);
            }
        }
    }
    Ok(())
}

/// Fills an index, unless a write contradicts the push meanwhile.
async fn fill(tenant: &Tenant, table: &TableDef, index: &IndexDef) -> Result<(), DeployError> {
    let mut filling = Filling::begin(&tenant.inner, table).await?;
    while filling.step(&tenant.inner, table, index).await? {
        let mut view = tenant.inner.durable_view(false).await?;
        push::check_violations(&mut view).await?;
    }
    Ok(())
}

/// Marks what the push changes in the definitions of tables, from when on writes maintain its
/// indexes and are compared with its validators.
async fn declare(
    tx: &mut Transaction,
    id: DeploymentId,
    schema: &AppSchema,
    compared: &Compared,
) -> Result<Vec<Work>, DeployError> {
    let mut work = Vec::new();
    for (name, table) in &schema.tables {
        let Some(def) = tx.table(name).await else {
            continue;
        };
        refuse_native(&def)?;
        let mut next = TableDef::clone(&def);
        let tightens = compared.tightens(table, &def);
        if let (Some(validator), true) = (&table.deployed.document_type, tightens) {
            next.push = Some(PendingPush {
                id: id.to_string(),
                document_type: validator.clone(),
            });
        }
        add_indexes(tx, id, table, &mut next).await?;
        if next != *def {
            tx.put_table(&next).await?;
        }
        let own = |i: &&IndexDef| i.push.as_ref().is_some_and(|push| *push == id.to_string());
        work.push(Work {
            validator: next.push.as_ref().map(|p| p.document_type.clone()),
            indexes: next.indexes.iter().filter(own).cloned().collect(),
            def: Arc::new(next),
        });
    }
    Ok(work)
}

/// Declares the indexes that the table does not have yet, beside those that it has.
async fn add_indexes(
    tx: &mut Transaction,
    id: DeploymentId,
    table: &AppTable,
    def: &mut TableDef,
) -> StoreResult<()> {
    for index in &table.indexes {
        if def.maintained().any(|known| index.is(known)) {
            continue;
        }
        let number = next_index_number(tx).await?;
        def.indexes.push(IndexDef {
            id: number,
            name: index.name.clone(),
            fields: index.fields.clone(),
            state: IndexState::Backfilling,
            push: Some(id.to_string()),
        });
    }
    Ok(())
}

/// A number that no index had before.
pub(super) async fn next_index_number(tx: &mut Transaction) -> StoreResult<u32> {
    let mut counters = tx.counters();
    let number = counters.next_index;
    counters.next_index = number
        .checked_add(1)
        .ok_or_else(|| StoreError::corrupt("index numbers are used up"))?;
    tx.put_counters(counters).await?;
    Ok(number)
}

/// What a check of documents minds beside them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// Nothing: no push was declared, and what writes left word of is another's.
    Nothing,
    /// Writes that contradict the push.
    Writes,
}

/// Checks every document that a table has, and on the way whether a write contradicted the push:
/// those that come later are looked at by whoever writes them.
pub(super) async fn check_documents(
    tenant: &Tenant,
    def: &TableDef,
    validator: &Validator,
    beside: Beside,
) -> Result<(), DeployError> {
    let mut remaining = present(&tenant.inner, def).await?;
    loop {
        let mut view = tenant.inner.durable_view(false).await?;
        if beside == Beside::Writes {
            push::check_violations(&mut view).await?;
        }
        let rows = next_step(&mut view, Keyspace::Docs, &mut remaining, STEP).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for (key, body) in rows {
            let document = parse(&body)?;
            let checked = validator.check_document(&document, &*view.catalog);
            if let Err(failure) = checked {
                let id = DocumentId::from_key(&key)
                    .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
                return Err(DeployError::SchemaValidation {
                    table: def.name.clone(),
                    id,
                    failure: failure.to_string(),
                });
            }
        }
        // Reads run on this task; others want their turn.
        tokio::task::yield_now().await;
    }
}
