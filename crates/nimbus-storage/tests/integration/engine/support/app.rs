//! Applications for tests: plans, exported schemas, and what a tenant's rows say about them.

use std::collections::BTreeMap;
use std::sync::Arc;

use nimbus_storage::core::{DocumentId, Object};
use nimbus_storage::provider::{Batch, KeyRange, Keyspace};
use nimbus_storage::{
    DeployError, DeployPlan, DeployReport, Direction, NewModule, StoreError, Tenant,
};
use serde_json::{Value as Json, json};

use super::{World, name};

/// A plan of modules by path and source, without a schema.
pub fn plan(modules: &[(&str, &str)]) -> DeployPlan {
    let modules = modules.iter().map(|(path, source)| NewModule {
        path: (*path).to_owned(),
        environment: "isolate".to_owned(),
        source: Arc::from(*source),
        source_map: Some(Arc::from("{}")),
    });
    DeployPlan {
        modules: modules.collect(),
        analysis: Arc::from("{\"modules\":{}}"),
        udf_config: Arc::from("{\"seed\":1}"),
        ..DeployPlan::default()
    }
}

/// A plan of one module with a schema.
pub fn with_schema(tables: Vec<Json>) -> DeployPlan {
    let mut plan = plan(&[("a.js", "export const a = 1;")]);
    plan.schema = Some(exported(tables));
    plan
}

pub fn exported(tables: Vec<Json>) -> Arc<str> {
    Arc::from(json!({"tables": tables, "schemaValidation": true}).to_string())
}

/// A table whose documents have these fields (name, type, optional) and which has these indexes.
pub fn declared(table: &str, fields: &[(&str, Json, bool)], indexes: &[(&str, &[&str])]) -> Json {
    let fields: serde_json::Map<String, Json> = fields
        .iter()
        .map(|(field, of, optional)| {
            let json = json!({"fieldType": of, "optional": optional});
            ((*field).to_owned(), json)
        })
        .collect();
    loose(table, json!({"type": "object", "value": fields}), indexes)
}

/// A table with any validator.
pub fn loose(table: &str, document: Json, indexes: &[(&str, &[&str])]) -> Json {
    let indexes: Vec<Json> = indexes
        .iter()
        .map(|(index, fields)| json!({"indexDescriptor": index, "fields": fields}))
        .collect();
    json!({"tableName": table, "documentType": document, "indexes": indexes})
}

pub fn of(kind: &str) -> Json {
    json!({ "type": kind })
}

pub async fn deploy(tenant: &Tenant, plan: DeployPlan) -> DeployReport {
    tenant.deploy(plan).await.unwrap()
}

/// The text of the refusal.
pub fn refused(result: Result<DeployReport, DeployError>) -> String {
    result.unwrap_err().to_string()
}

/// The text of a write that the deployed schema refuses.
pub fn unfit<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(error @ StoreError::SchemaEnforcement { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The newest definition of a table, as the journal has it.
pub async fn definition(tenant: &Tenant, table: &str) -> Json {
    let mut found = Json::Null;
    let mut page = tenant.journal_start(1_000).await.unwrap();
    loop {
        for write in page.records.iter().flat_map(|r| &r.writes) {
            if write.table == "_tables" && write.doc_id == table {
                let text = write.current.as_ref().map_or("null", |raw| raw.get());
                found = serde_json::from_str(text).unwrap();
            }
        }
        if !page.has_more {
            return found;
        }
        page = tenant.journal(page.next_cursor, 1_000).await.unwrap();
    }
}

/// Names, fields and states of a table's indexes, sorted.
pub async fn indexes(tenant: &Tenant, table: &str) -> Vec<String> {
    let definition = definition(tenant, table).await;
    let mut found: Vec<String> = definition["indexes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|i| format!("{} {} {}", i["name"], i["fields"], i["state"]).replace('"', ""))
        .collect();
    found.sort();
    found
}

/// Whether nothing of a push is in a table's definition.
pub fn is_unmarked(definition: &Json) -> bool {
    let indexes = definition["indexes"].as_array();
    definition.get("push").is_none()
        && indexes
            .into_iter()
            .flatten()
            .all(|i| i.get("push").is_none() && i["state"] == "enabled")
}

/// Every row of the tenant but log and head, with the engine closed meanwhile.
pub async fn rows(world: &mut World, tenant: &str) -> BTreeMap<(Keyspace, Vec<u8>), Vec<u8>> {
    world.engine().close().await.unwrap();
    let store = world.engine().provider().open(&name(tenant)).await.unwrap();
    let mut snapshot = store.snapshot().await.unwrap();
    let mut found = BTreeMap::new();
    for space in [
        Keyspace::Meta,
        Keyspace::Code,
        Keyspace::Docs,
        Keyspace::Index,
    ] {
        let mut range = KeyRange::all();
        loop {
            let scan = snapshot.scan(space, &range, Direction::Forward, 1_000);
            let rows = scan.await.unwrap();
            let Some((last, _)) = rows.last() else { break };
            range.start = [last.as_slice(), &[0]].concat();
            found.extend(rows.into_iter().map(|(k, v)| ((space, k), v.to_vec())));
        }
    }
    drop(snapshot);
    store.close().await.unwrap();
    drop(store);
    found.remove(&(Keyspace::Meta, b"head".to_vec()));
    world.reopen().await;
    found
}

/// Puts rows into a keyspace behind the engine's back.
pub async fn overwrite(
    world: &mut World,
    tenant: &str,
    space: Keyspace,
    rows: &[(Vec<u8>, Vec<u8>)],
) {
    world.engine().close().await.unwrap();
    let store = world.engine().provider().open(&name(tenant)).await.unwrap();
    let head = store.snapshot().await.unwrap().head().await.unwrap();
    let row =
        |(key, value): &(Vec<u8>, Vec<u8>)| ((space, key.clone()), Some(value.clone().into()));
    let writes = rows.iter().map(row).collect();
    store.commit(head, Batch { head, writes }).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    world.reopen().await;
}

/// Whether a batch declares what a push adds to a table.
pub fn declares_push(batch: &Batch, table: &str) -> bool {
    let key = (Keyspace::Meta, format!("table/{table}").into_bytes());
    let written = batch.writes.get(&key).and_then(Option::as_ref);
    written.is_some_and(|row| String::from_utf8_lossy(row).contains("\"push\":"))
}

pub async fn insert(tenant: &Tenant, table: &str, fields: Object) -> DocumentId {
    tenant.insert(&name(table), fields).await.unwrap()
}
