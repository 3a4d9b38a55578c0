//! Documents one at a time, and the schema that they obey: what is stored, what is refused, and
//! that whatever is refused changes nothing.

use std::collections::BTreeMap;

use nimbus_storage::core::{DocumentId, Object, TableName, Value};
use nimbus_storage::{FilterOp, Query, StoreError, StoreResult, Tenant};

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
