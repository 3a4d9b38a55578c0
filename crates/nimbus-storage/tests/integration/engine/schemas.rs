//! Schemas: what they admit, how they are introduced beside existing documents and writers, and
//! that whatever is refused changes nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use nimbus_storage::core::{Object, TableName, Value};
use nimbus_storage::{
    FieldSchema, FieldType, FilterOp, IndexState, Query, StoreError, StoreResult, TableSchema,
    Tenant,
};

use super::support::*;

const TABLE: &str = "d";

fn table() -> TableName {
    name(TABLE)
}

async fn world() -> (World, Tenant) {
    let world = World::new().await;
    let tenant = world.create("t").await;
    (world, tenant)
}

/// Everything a refused call must leave as it was.
async fn state(tenant: &Tenant) -> (u64, Vec<String>, String) {
    let documents = tenant.query(&Query::table(table())).await.unwrap();
    let schema = format!("{:?}", tenant.schema().await.unwrap());
    let head = tenant.metrics().mutation_journal.applied_head;
    (head, jsons(&documents), schema)
}

fn assert_invalid<T: std::fmt::Debug>(result: StoreResult<T>, about: &str) {
    assert!(
        matches!(result, Err(StoreError::InvalidInput { .. })),
        "{about}: {result:?}"
    );
}

fn declared(fields: &[(&str, FieldType, bool)]) -> TableSchema {
    let mut schema = schema(TABLE, &[], &[]);
    schema.fields = fields
        .iter()
        .map(|(field, field_type, required)| FieldSchema {
            name: (*field).to_owned(),
            field_type: *field_type,
            required: *required,
        })
        .collect();
    schema
}

#[tokio::test]
async fn a_schema_admits_its_types_and_refuses_others() {
    let (_world, tenant) = world().await;
    let values = [
        ("string", text("x")),
        ("number", num(1.0)),
        ("number", int(1)),
        ("boolean", Value::Bool(false)),
        ("array", Value::Array(Vec::new())),
        ("object", Value::Object(Object::new())),
        ("", Value::Null),
        ("", Value::Bytes(Vec::new())),
    ];
    for (word, of) in [
        ("string", FieldType::String),
        ("number", FieldType::Number),
        ("boolean", FieldType::Boolean),
        ("array", FieldType::Array),
        ("object", FieldType::Object),
        ("any", FieldType::Any),
    ] {
        let table: TableName = name(&format!("t_{word}"));
        let mut schema = declared(&[("f", of, false)]);
        schema.table = table.clone();
        tenant.put_schema(schema).await.unwrap();
        for (type_name, value) in &values {
            let fits = word == "any" || *type_name == word;
            let result = tenant.insert(&table, object([("f", value.clone())])).await;
            assert_eq!(result.is_ok(), fits, "{word} {value:?}: {result:?}");
            if let Err(error) = result {
                let StoreError::SchemaViolation { id, violations, .. } = error else {
                    panic!("{error}");
                };
                assert_eq!((id, violations.len()), (None, 1));
                let found = (
                    violations[0].field.as_str(),
                    violations[0].expected.as_str(),
                );
                assert_eq!(found, ("f", word));
                assert_eq!(violations[0].found, value.type_name());
            }
        }
        // Optional, and others may come along.
        tenant
            .insert(&table, object([("extra", int(1))]))
            .await
            .unwrap();
    }
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn required_fields_must_be_there_after_every_write() {
    let (_world, tenant) = world().await;
    let strict = declared(&[("a", FieldType::String, true), ("b", FieldType::Any, true)]);
    tenant.put_schema(strict.clone()).await.unwrap();
    assert_eq!(tenant.table_schema(&table()).await.unwrap(), strict);
    let both = object([("a", text("x")), ("b", Value::Null), ("c", int(1))]);
    let id = tenant.insert(&table(), both).await.unwrap();
    let before = state(&tenant).await;
    let missing = tenant.insert(&table(), object([("c", int(1))])).await;
    let Err(StoreError::SchemaViolation { violations, .. }) = missing else {
        panic!("{missing:?}");
    };
    let found: Vec<_> = violations
        .iter()
        .map(|v| (v.field.as_str(), v.found.as_str()))
        .collect();
    assert_eq!(found, [("a", "missing"), ("b", "missing")]);
    let patch = tenant
        .patch(&table(), &id.to_string(), object([("a", int(1))]))
        .await;
    assert!(
        matches!(patch, Err(StoreError::SchemaViolation { .. })),
        "{patch:?}"
    );
    let removal: StoreResult<()> = tenant
        .transact(|tx| {
            let removal = BTreeMap::from([("b".to_owned(), None)]);
            Box::pin(async move { tx.merge(&table(), id, removal).await })
        })
        .await;
    assert!(
        matches!(removal, Err(StoreError::SchemaViolation { .. })),
        "{removal:?}"
    );
    assert_eq!(state(&tenant).await, before);
}

#[tokio::test]
async fn a_schema_that_documents_contradict_changes_nothing() {
    let (mut world, tenant) = world().await;
    for i in 0..600 {
        let value = if i == 577 { int(7) } else { text("x") };
        tenant
            .insert(&table(), object([("f", value)]))
            .await
            .unwrap();
    }
    let odd = query(TABLE, vec![filter("f", FilterOp::Eq, int(7))], None);
    let odd = tenant.query(&odd).await.unwrap()[0].id;
    let (_, documents, schema) = state(&tenant).await;
    let mut strict = declared(&[("f", FieldType::String, true)]);
    strict.indexes = super::support::schema(TABLE, &[], &[("by_f", &["f"])]).indexes;
    let refused = tenant.put_schema(strict.clone()).await;
    let Err(StoreError::SchemaViolation {
        id,
        table: of,
        violations,
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!((id, of), (Some(odd), table()));
    assert_eq!(
        (violations[0].found.as_str(), violations.len()),
        ("int64", 1)
    );
    let (_, documents_now, schema_now) = state(&tenant).await;
    assert_eq!((documents_now, schema_now), (documents, schema));
    // Writes that it would have refused are free again, at once and after a restart.
    tenant
        .insert(&table(), object([("f", int(8))]))
        .await
        .unwrap();
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    let other = tenant.insert(&table(), Object::new()).await.unwrap();
    for id in [odd, other] {
        tenant
            .patch(&table(), &id.to_string(), object([("f", text("y"))]))
            .await
            .unwrap();
    }
    let eight = query(TABLE, vec![filter("f", FilterOp::Eq, int(8))], None);
    let eight = tenant.query(&eight).await.unwrap()[0].id;
    tenant.delete(&table(), &eight.to_string()).await.unwrap();
    tenant.put_schema(strict).await.unwrap();
    indexes_ready(&tenant, TABLE).await;
    assert_consistent(&tenant).await;
}

/// While a schema is being introduced, a document that contradicts it is written: at whatever
/// moment, either the document is refused or the schema is.
#[tokio::test]
async fn a_schema_and_a_document_that_contradict_never_both_succeed() {
    let mut outcomes = Vec::new();
    for moment in 0..20 {
        let (world, tenant) = world().await;
        tenant
            .insert(&table(), object([("f", text("x"))]))
            .await
            .unwrap();
        let strict = declared(&[("f", FieldType::String, true)]);
        // The change stops before one of the views that it takes.
        let gate = Gate::shut();
        let (held, calls) = (gate.clone(), AtomicUsize::new(0));
        world.hooks.on_snapshot(move || {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            let gate = held.clone();
            async move {
                if call == moment {
                    gate.pass().await;
                }
                Ok(())
            }
        });
        let mut declaring = {
            let (tenant, strict) = (tenant.clone(), strict.clone());
            tokio::spawn(async move { tenant.put_schema(strict).await })
        };
        tokio::select! {
            () = gate.arrival() => {}
            result = &mut declaring => {
                result.unwrap().unwrap();
                break;
            }
        }
        if !tenant.schema().await.unwrap().is_empty() {
            // The change is over; what came to the gate was something else.
            gate.open();
            break;
        }
        tenant
            .insert(&table(), object([("f", text("y"))]))
            .await
            .unwrap();
        let written = tenant.insert(&table(), object([("f", int(1))])).await;
        gate.open();
        let declared = soon("the schema", declaring).await.unwrap();
        outcomes.push((written.is_ok(), declared.is_ok()));
        for error in [written.err(), declared.err()].into_iter().flatten() {
            assert!(
                matches!(error, StoreError::SchemaViolation { .. }),
                "{error}"
            );
        }
        assert_consistent(&tenant).await;
        // Nothing of a refused change remains.
        let free = tenant.insert(&table(), object([("f", int(2))])).await;
        assert_eq!(
            free.is_ok(),
            outcomes.last() == Some(&(true, false)),
            "moment {moment}"
        );
    }
    assert!(
        outcomes
            .iter()
            .all(|(written, declared)| written != declared),
        "{outcomes:?}"
    );
    assert!(
        outcomes.contains(&(true, false)) && outcomes.contains(&(false, true)),
        "{outcomes:?}"
    );
}

#[tokio::test]
async fn bad_declarations_are_refused() {
    let (_world, tenant) = world().await;
    let with = |fields: &[&str], indexes: &[(&str, &[&str])]| schema(TABLE, fields, indexes);
    let long: Vec<String> = (0..17).map(|i| format!("f{i}")).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    let names: Vec<String> = (0..65).map(|i| format!("i{i}")).collect();
    let one: &[&str] = &["a"];
    let many: Vec<(&str, &[&str])> = names.iter().map(|n| (n.as_str(), one)).collect();
    let bad = [
        ("a reserved field", with(&["_id"], &[])),
        ("a dollar", with(&["$a"], &[])),
        ("a dotted field", with(&["a.b"], &[])),
        ("an empty field", with(&[""], &[])),
        ("a field twice", with(&["a", "a"], &[])),
        ("an index without fields", with(&["a"], &[("i", &[])])),
        (
            "an index twice",
            with(&["a"], &[("i", &["a"]), ("i", &["a"])]),
        ),
        (
            "an index with a field twice",
            with(&["a"], &[("i", &["a", "a"])]),
        ),
        (
            "an index on an undeclared field",
            with(&["a"], &[("i", &["b"])]),
        ),
        (
            "an index on a system field",
            with(&["a"], &[("i", &["_creationTime"])]),
        ),
        ("17 index fields", with(&long, &[("i", &long)])),
        ("65 indexes", with(&["a"], &many)),
    ];
    let before = state(&tenant).await;
    for (about, schema) in bad {
        assert_invalid(tenant.put_schema(schema).await, about);
    }
    assert_eq!(state(&tenant).await, before);
    let deepest = with(&["a"], &[("i", &["a.b.c", "a.d"])]);
    tenant.put_schema(deepest).await.unwrap();
    let now = tenant.table_schema(&table()).await.unwrap();
    assert_eq!(
        now.indexes[0].state,
        Some(IndexState::Enabled),
        "an empty table is ready at once"
    );
}
