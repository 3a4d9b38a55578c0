//! Documents one at a time, and the schema that they obey: what is stored, what is refused, and
//! that whatever is refused changes nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use nimbus_storage::core::{DocumentId, Object, TableName, Value};
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

fn assert_missing<T: std::fmt::Debug>(result: StoreResult<T>, about: &str) {
    let missing = matches!(result, Err(StoreError::DocumentNotFound { .. }));
    assert!(missing, "{about}: {result:?}");
}

#[tokio::test]
async fn a_document_is_written_read_changed_and_deleted() {
    let (mut world, tenant) = world().await;
    let fields = object([
        ("text", text("\u{e9}\0\u{1F600}")),
        ("int", int(i64::MIN)),
        ("nan", num(f64::NAN)),
        ("zero", num(-0.0)),
        ("bytes", Value::Bytes(vec![0, 255])),
        ("list", Value::Array(vec![Value::Null, Value::Bool(true)])),
        ("nested", Value::Object(object([("x", num(1.5))]))),
    ]);
    let id = tenant.insert(&table(), fields.clone()).await.unwrap();
    let read = tenant.get(&table(), &id.to_string()).await.unwrap();
    assert_eq!(read.id, id);
    let mut expected = fields.clone();
    let stored = read.fields().unwrap();
    assert_eq!(stored["_id"], text(&id.to_string()));
    let Value::Float64(created) = stored["_creationTime"] else {
        panic!("a time is a float64");
    };
    assert!(created > 1.7e12, "{created}");
    for system in ["_id", "_creationTime"] {
        expected.insert(system.to_owned(), stored[system].clone());
    }
    assert_eq!(stored, expected);

    // A patch is shallow: `nested` is replaced, the rest stays.
    let patch = object([("nested", Value::Object(object([("y", num(2.0))])))]);
    tenant
        .patch(&table(), &id.to_string(), patch.clone())
        .await
        .unwrap();
    expected.extend(patch);
    let read = tenant.get(&table(), &id.to_string()).await.unwrap();
    assert_eq!(read.fields().unwrap(), expected);

    // A merge removes, a replacement keeps the system fields only.
    tenant
        .transact(|tx| {
            Box::pin(async move {
                let removal = [("list".to_owned(), None), ("never".to_owned(), None)];
                tx.merge(&table(), id, BTreeMap::from(removal)).await
            })
        })
        .await
        .unwrap();
    expected.remove("list");
    let read = tenant.get(&table(), &id.to_string()).await.unwrap();
    assert_eq!(read.fields().unwrap(), expected);
    tenant
        .transact(|tx| {
            let fields = object([("only", int(1))]);
            Box::pin(async move { tx.replace(&table(), id, fields).await })
        })
        .await
        .unwrap();
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    let read = tenant
        .get(&table(), &id.to_string())
        .await
        .unwrap()
        .fields()
        .unwrap();
    assert_eq!(
        read.keys().collect::<Vec<_>>(),
        ["_creationTime", "_id", "only"]
    );
    assert_eq!(read["_creationTime"], num(created));

    tenant.delete(&table(), &id.to_string()).await.unwrap();
    assert_missing(tenant.get(&table(), &id.to_string()).await, "a deleted one");
    assert_missing(
        tenant.delete(&table(), &id.to_string()).await,
        "deleting again",
    );
    let patch = tenant.patch(&table(), &id.to_string(), Object::new()).await;
    assert_missing(patch, "patching a deleted one");
    assert!(
        tenant
            .query(&Query::table(table()))
            .await
            .unwrap()
            .is_empty()
    );
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn ids_increase_and_are_those_of_their_table() {
    let (mut world, tenant) = world().await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(tenant.insert(&table(), Object::new()).await.unwrap());
    }
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    for _ in 0..50 {
        ids.push(tenant.insert(&table(), Object::new()).await.unwrap());
    }
    let increasing = ids.windows(2).all(|w| w[0].internal < w[1].internal);
    assert!(increasing, "also over a restart");
    let mut one = tenant.begin().await.unwrap();
    let mut made = Vec::new();
    for _ in 0..200 {
        made.push(one.insert(&table(), Object::new()).await.unwrap());
    }
    assert!(made.windows(2).all(|w| w[0] < w[1]), "within a transaction");
}

#[tokio::test]
async fn ids_of_elsewhere_and_bad_ids_are_refused() {
    let (world, tenant) = world().await;
    let id = tenant.insert(&table(), Object::new()).await.unwrap();
    let elsewhere = tenant.insert(&name("e"), Object::new()).await.unwrap();
    let stranger = world.create("u").await;
    let foreign = stranger.insert(&table(), Object::new()).await.unwrap();
    let before = state(&tenant).await;
    let text = id.to_string();
    let mut flipped = text.clone().into_bytes();
    flipped[5] = if flipped[5] == b'0' { b'1' } else { b'0' };
    let flipped = String::from_utf8(flipped).unwrap();
    let malformed = [
        "",
        "x",
        "not an id",
        &flipped,
        &text[1..],
        &text.to_uppercase(),
    ];
    for bad in malformed {
        assert_invalid(tenant.get(&table(), bad).await, bad);
        assert_invalid(tenant.patch(&table(), bad, Object::new()).await, bad);
        assert_invalid(tenant.delete(&table(), bad).await, bad);
    }
    let nowhere: TableName = name("nowhere");
    for (table, id) in [
        (table(), elsewhere),
        (table(), foreign),
        (name("e"), id),
        (nowhere, id),
    ] {
        let id: DocumentId = id;
        let text = id.to_string();
        assert_missing(tenant.get(&table, &text).await, "get");
        assert_missing(tenant.patch(&table, &text, Object::new()).await, "patch");
        assert_missing(tenant.delete(&table, &text).await, "delete");
    }
    assert_eq!(state(&tenant).await, before);
}

/// An array in an array, so deep; a document adds one level.
fn nested(levels: usize) -> Value {
    (1..levels).fold(Value::Array(Vec::new()), |inner, _| {
        Value::Array(vec![inner])
    })
}

#[tokio::test]
async fn values_beyond_the_limits_and_reserved_names_are_refused() {
    let (_world, tenant) = world().await;
    let id = tenant.insert(&table(), Object::new()).await.unwrap();
    let fields =
        |count: usize| -> Object { (0..count).map(|i| (format!("f{i}"), Value::Null)).collect() };
    let bad = [
        ("a reserved name", object([("_id", text("x"))])),
        ("a system field", object([("_creationTime", num(1.0))])),
        ("an underscore", object([("_x", num(1.0))])),
        ("a dollar", object([("$x", num(1.0))])),
        (
            "a dollar inside",
            object([("a", Value::Object(object([("$x", num(1.0))])))]),
        ),
        ("17 levels", object([("a", nested(16))])),
        (
            "8,193 elements",
            object([("a", Value::Array(vec![Value::Null; 8_193]))]),
        ),
        ("1,025 fields", fields(1_025)),
        (
            "over 1 MiB",
            object([("a", text(&"x".repeat(1024 * 1024)))]),
        ),
    ];
    let before = state(&tenant).await;
    for (about, fields) in bad {
        assert_invalid(tenant.insert(&table(), fields.clone()).await, about);
        assert_invalid(
            tenant
                .patch(&table(), &id.to_string(), fields.clone())
                .await,
            about,
        );
        let replaced: StoreResult<()> = tenant
            .transact(|tx| {
                let fields = fields.clone();
                Box::pin(async move { tx.replace(&table(), id, fields).await })
            })
            .await;
        assert_invalid(replaced, about);
    }
    assert_eq!(state(&tenant).await, before);
    let good = [
        ("16 levels", object([("a", nested(15))])),
        (
            "8,192 elements",
            object([("a", Value::Array(vec![Value::Null; 8_192]))]),
        ),
        // `_id` and `_creationTime` count as well.
        ("1,024 fields", fields(1_022)),
        (
            "under 1 MiB",
            object([("a", text(&"x".repeat(1024 * 1024 - 200)))]),
        ),
    ];
    for (about, fields) in good {
        let id = tenant.insert(&table(), fields).await;
        assert!(id.is_ok(), "{about}: {id:?}");
    }
    // The whole counts, not the patch.
    let id = tenant
        .insert(&table(), object([("a", text(&"x".repeat(600_000)))]))
        .await
        .unwrap();
    let more = object([("b", text(&"x".repeat(600_000)))]);
    assert_invalid(
        tenant.patch(&table(), &id.to_string(), more).await,
        "1.2 MB together",
    );
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn limits_of_zero_and_beyond_the_cap_are_refused() {
    let (_world, tenant) = world().await;
    tenant.insert(&table(), Object::new()).await.unwrap();
    let all = Query::table(table());
    let limited = |limit| Query {
        limit: Some(limit),
        ..all.clone()
    };
    assert_invalid(tenant.query(&limited(0)).await, "a limit of 0");
    assert_invalid(tenant.page(&all, 0, None).await, "a page of 0");
    assert_invalid(
        tenant.page(&limited(5), 5, None).await,
        "a page with a limit",
    );
    assert_invalid(tenant.journal(0, 0).await.map(drop), "a journal of 0");
    let over = tenant.query(&limited(10_001)).await.map(drop);
    assert!(
        matches!(over, Err(StoreError::CapExceeded { limit: 10_000, .. })),
        "{over:?}"
    );
    let over = tenant.page(&all, 1_001, None).await.map(drop);
    assert!(
        matches!(over, Err(StoreError::CapExceeded { limit: 1_000, .. })),
        "{over:?}"
    );
    let over = tenant.journal(0, 1_001).await.map(drop);
    assert!(
        matches!(over, Err(StoreError::CapExceeded { limit: 1_000, .. })),
        "{over:?}"
    );
    assert_eq!(tenant.query(&limited(10_000)).await.unwrap().len(), 1);
    let many = (0..65).map(|_| filter("a", FilterOp::Eq, num(1.0)));
    assert_invalid(
        tenant.query(&query(TABLE, many.collect(), None)).await,
        "65 filters",
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

#[tokio::test]
async fn answers_have_caps() {
    let (_world, tenant) = world().await;
    let big = "x".repeat(1_000_000);
    for _ in 0..18 {
        let row = object([("s", text(&big)), ("n", num(1.0))]);
        tenant.insert(&table(), row).await.unwrap();
    }
    let over = tenant.query(&Query::table(table())).await.map(drop);
    let expected = matches!(
        over,
        Err(StoreError::CapExceeded {
            cap: "result_bytes",
            ..
        })
    );
    assert!(expected, "{over:?}");
    // Pages get through it, each within the cap, in key order and when sorted in memory.
    for order in [None, Some(("n", nimbus_storage::Direction::Backward))] {
        let asked = query(TABLE, Vec::new(), order);
        let (mut count, mut after) = (0, None);
        loop {
            let page = tenant.page(&asked, 1_000, after.as_deref()).await.unwrap();
            let bytes: usize = page.documents.iter().map(|d| d.json.len()).sum();
            assert!(bytes <= 16 * 1024 * 1024 && !page.documents.is_empty());
            count += page.documents.len();
            after = page.next_cursor;
            if !page.has_more {
                break;
            }
        }
        assert_eq!(count, 18, "{order:?}");
    }
}

#[tokio::test]
async fn more_documents_than_an_answer_holds() {
    let (_world, tenant) = world().await;
    for _ in 0..10 {
        tenant
            .transact(|tx| {
                Box::pin(async move {
                    for _ in 0..1_000 {
                        tx.insert(&table(), Object::new()).await?;
                    }
                    Ok(())
                })
            })
            .await
            .unwrap();
    }
    let all = Query::table(table());
    assert_eq!(tenant.query(&all).await.unwrap().len(), 10_000);
    tenant.insert(&table(), Object::new()).await.unwrap();
    let over = tenant.query(&all).await.map(drop);
    let expected = matches!(
        over,
        Err(StoreError::CapExceeded {
            cap: "result_documents",
            limit: 10_000,
            ..
        })
    );
    assert!(expected, "{over:?}");
}
