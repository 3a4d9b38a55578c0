//! Documents of functions by id: argument errors with their texts, the rules of system fields, limits
//! that refuse a write whole, and transactions that never lose one another's work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nimbus_storage::core::{DocumentId, Object, TableName, Value};
use nimbus_storage::{Ran, StoreError, Tenant, Transaction};
use tokio::sync::Barrier;

use super::support::*;

const WELL_FORMED: &str = "j57000820c20a1g7104gm2rc1m70ynr8";

fn table() -> TableName {
    name("t")
}

async fn read(tx: &mut Transaction, id: DocumentId) -> Object {
    let found = tx.fn_get(&id.to_string(), None).await.unwrap();
    found.unwrap().fields().unwrap()
}

#[tokio::test]
async fn documents_are_read_and_written_by_id() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let mut tx = tenant.begin().await.unwrap();
    let id = tx
        .fn_insert("t", object([("a", num(1.0)), ("b", num(2.0))]))
        .await
        .unwrap();
    let text_id = id.to_string();
    let created = read(&mut tx, id).await["_creationTime"].clone();

    let patch = BTreeMap::from([("a".to_owned(), Some(num(5.0))), ("b".to_owned(), None)]);
    let merged = tx.fn_merge(&text_id, Some(&table()), patch).await.unwrap();
    let expected = object([
        ("_creationTime", created.clone()),
        ("_id", text(&text_id)),
        ("a", num(5.0)),
    ]);
    assert_eq!(merged.fields().unwrap(), expected);
    assert_eq!(read(&mut tx, id).await, expected);

    // The system fields may be given as they are.
    let same = object([
        ("_creationTime", created.clone()),
        ("_id", text(&text_id)),
        ("c", num(1.0)),
    ]);
    let replaced = tx.fn_replace(&text_id, None, same.clone()).await.unwrap();
    assert_eq!(replaced.fields().unwrap(), same);
    let removed = tx.fn_remove(&text_id, None).await.unwrap();
    assert_eq!(removed.fields().unwrap(), same);
    assert_eq!(tx.fn_get(&text_id, None).await.unwrap(), None);
    let usage = tx.usage();
    assert_eq!((usage.documents_written, usage.documents_read), (4, 5));
}

#[tokio::test]
async fn ids_and_values_that_break_a_rule_are_refused_with_their_texts() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let mut tx = tenant.begin().await.unwrap();
    let id = tx
        .fn_insert("t", object([("a", num(1.0))]))
        .await
        .unwrap()
        .to_string();
    tx.fn_insert("u", Object::new()).await.unwrap();
    let before = read(&mut tx, id.parse().unwrap()).await;

    let (_, found) = caught(tx.fn_get("xyz", None).await);
    assert!(
        found.starts_with("Invalid argument `id` for `db.get`: Unable to decode ID: "),
        "{found}"
    );
    let (_, found) = caught(tx.fn_remove("", None).await);
    assert!(
        found.starts_with("Invalid argument `id` for `db.delete`: Unable to decode ID: "),
        "{found}"
    );
    let (_, found) = caught(tx.fn_get(&id, Some(&name("u"))).await);
    assert_eq!(
        found,
        "Invalid argument `id` for `db.get`: Expected an ID of table `u`, found one of table `t`"
    );
    assert_eq!(
        tx.fn_get(WELL_FORMED, None).await.unwrap(),
        None,
        "no such document"
    );
    let (code, found) = caught(tx.fn_merge(WELL_FORMED, None, BTreeMap::new()).await);
    assert_eq!(code, "NonexistentDocument");
    assert_eq!(
        found,
        format!("Update on nonexistent document ID {WELL_FORMED}")
    );
    let (_, found) = caught(tx.fn_replace(WELL_FORMED, None, Object::new()).await);
    assert_eq!(
        found,
        format!("Update on nonexistent document ID {WELL_FORMED}")
    );
    let (_, found) = caught(tx.fn_remove(WELL_FORMED, None).await);
    assert_eq!(
        found,
        format!("Delete on nonexistent document ID {WELL_FORMED}")
    );

    for (field, value) in [("_id", text(WELL_FORMED)), ("_creationTime", num(1.0))] {
        let (_, found) = caught(tx.fn_insert("t", object([(field, value.clone())])).await);
        let expected = format!(
            "Invalid argument `value` for `db.insert`: the document has the field `{field}`"
        );
        assert!(found.starts_with(&expected), "{found}");
        let (_, found) = caught(
            tx.fn_replace(&id, None, object([(field, value.clone())]))
                .await,
        );
        let expected = format!(
            "Provided `{field}` field value {} does not match",
            value.to_json()
        );
        assert!(found.starts_with(&expected), "{found}");
        for value in [Some(value), None] {
            let patch = BTreeMap::from([(field.to_owned(), value)]);
            let (_, found) = caught(tx.fn_merge(&id, None, patch).await);
            assert!(
                found.starts_with(&format!("Provided `{field}` field value")),
                "{found}"
            );
        }
    }
    let (_, found) = caught(tx.fn_insert("_t", Object::new()).await);
    assert!(
        found.starts_with("Invalid argument `table` for `db.insert`: "),
        "{found}"
    );
    let (_, found) = caught(tx.fn_insert("t", object([("$a", num(1.0))])).await);
    assert!(
        found.starts_with("Invalid argument `value` for `db.insert`: the field name"),
        "{found}"
    );
    let patch = BTreeMap::from([("_x".to_owned(), Some(num(1.0)))]);
    let (_, found) = caught(tx.fn_merge(&id, None, patch).await);
    assert!(
        found.starts_with("Invalid argument `value` for `db.patch`: the field name"),
        "{found}"
    );
    let large = object([("s", text(&"x".repeat(1 << 20)))]);
    let (_, found) = caught(tx.fn_replace(&id, None, large).await);
    assert!(
        found.starts_with("Invalid argument `value` for `db.replace`: the value has"),
        "{found}"
    );
    assert_eq!(
        read(&mut tx, id.parse().unwrap()).await,
        before,
        "nothing changed"
    );

    for id in [id.as_str(), WELL_FORMED] {
        assert_eq!(
            tx.normalize_id("t", id).as_deref(),
            Some(id),
            "whether it exists or not"
        );
    }
    for (table, id) in [("u", id.as_str()), ("none", &id), ("_t", &id), ("t", "xyz")] {
        assert_eq!(tx.normalize_id(table, id), None, "{table} {id}");
    }
}

#[tokio::test]
async fn each_limit_is_refused_with_its_text() {
    const LESS: &str = "Consider using smaller limits in your queries, paginating your queries, or using indexed queries with a selective index range expressions.";
    let world = World::new().await;
    let tenant = world.create("t").await;

    let mut tx = tenant.begin_read(None).await.unwrap();
    let ids = |n: u32| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        DocumentId {
            table: nimbus_storage::core::TableNumber::FIRST_USER,
            internal: nimbus_storage::core::InternalId::from_bytes(bytes),
        }
        .to_string()
    };
    for n in 0..4_096 {
        assert_eq!(tx.fn_get(&ids(n), None).await.unwrap(), None);
    }
    assert_eq!(
        tx.fn_get(&ids(0), None).await.unwrap(),
        None,
        "it was read already"
    );
    let (_, found) = caught(tx.fn_get(&ids(4_096), None).await);
    assert_eq!(
        found,
        format!("Too many reads in a single function execution (limit: 4096). {LESS}")
    );

    // Documents written; the one too many is not there.
    let mut tx = tenant.begin().await.unwrap();
    for _ in 0..16_000 {
        tx.fn_insert("t", Object::new()).await.unwrap();
    }
    let (_, found) = caught(tx.fn_insert("t", Object::new()).await);
    assert_eq!(
        found,
        "Too many writes in a single function execution (limit: 16000)"
    );
    assert_eq!(tx.fn_count("t").await.unwrap(), 16_000);
    tenant.commit(tx).await.unwrap();
    let mut tx = tenant.begin().await.unwrap();
    for _ in 0..16_000 {
        tx.fn_insert("t", Object::new()).await.unwrap();
    }
    let mut stream = tx.open_query(&scan()).unwrap();
    for _ in 0..32_000 {
        tx.next(&mut stream).await.unwrap().unwrap();
    }
    assert_eq!(
        tx.next(&mut stream).await.unwrap(),
        None,
        "the end is no document"
    );
    tenant.commit(tx).await.unwrap();
    tenant.insert(&table(), Object::new()).await.unwrap();
    let mut tx = tenant.begin_read(None).await.unwrap();
    let mut stream = tx.open_query(&scan()).unwrap();
    for _ in 0..32_000 {
        tx.next(&mut stream).await.unwrap().unwrap();
    }
    let (_, found) = caught(tx.next(&mut stream).await);
    assert_eq!(
        found,
        format!("Too many documents read in a single function execution (limit: 32000). {LESS}")
    );
    assert_eq!(tx.usage().documents_read, 32_001);
}

fn scan() -> nimbus_storage::FunctionQuery {
    let json = serde_json::json!({"source": {"type": "FullTableScan", "tableName": "t", "order": "asc"}, "operators": []});
    nimbus_storage::FunctionQuery::parse(&json).unwrap()
}

#[tokio::test]
async fn bytes_are_limited_and_a_refused_write_leaves_nothing() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let indexes: &[(&str, &[&str])] = &[("by_a", &["a"])];
    tenant
        .put_schema(schema("t", &["a", "s"], indexes))
        .await
        .unwrap();
    let body = |a: f64| object([("a", num(a)), ("s", text(&"x".repeat(1_000_000)))]);
    let mut tx = tenant.begin().await.unwrap();
    for a in 0..16 {
        tx.fn_insert("t", body(f64::from(a))).await.unwrap();
    }
    let (code, found) = caught(tx.fn_insert("t", body(16.0)).await);
    assert_eq!(code, "TooManyBytesWritten");
    assert_eq!(
        found,
        "Too many bytes written in a single function execution (limit: 16777216 bytes)"
    );
    tenant.commit(tx).await.unwrap();
    assert_consistent(&tenant).await;
    tenant.insert(&table(), body(16.0)).await.unwrap();
    let mut tx = tenant.begin_read(None).await.unwrap();
    let mut stream = tx.open_query(&scan()).unwrap();
    for _ in 0..16 {
        tx.next(&mut stream).await.unwrap().unwrap();
    }
    let (_, found) = caught(tx.next(&mut stream).await);
    assert!(
        found.starts_with(
            "Too many bytes read in a single function execution (limit: 16777216 bytes). Consider"
        ),
        "{found}"
    );
}

async fn number(tx: &mut Transaction, id: &str) -> f64 {
    let found = tx.fn_get(id, None).await.unwrap().unwrap();
    match found.fields().unwrap()["n"] {
        Value::Float64(n) => n,
        ref other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_loses_no_increment() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let id = tenant
        .insert(&table(), object([("n", num(0.0))]))
        .await
        .unwrap()
        .to_string();
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let (tenant, id) = (tenant.clone(), id.clone());
            tokio::spawn(async move {
                let increment = tenant.transact_function(|tx, _| {
                    let id = id.clone();
                    Box::pin(async move {
                        let n = number(tx, &id).await;
                        let patch = BTreeMap::from([("n".to_owned(), Some(num(n + 1.0)))]);
                        tx.fn_merge(&id, None, patch).await.unwrap();
                        Ok(Ran::Commit(n))
                    })
                });
                increment.await.unwrap()
            })
        })
        .collect();
    let mut seen = Vec::new();
    for client in clients {
        let (n, stamp) = client.await.unwrap();
        seen.push((stamp.sequence, stamp.timestamp_ns, n));
    }
    seen.sort_by(|a, b| a.partial_cmp(b).unwrap());
    for (i, pair) in seen.windows(2).enumerate() {
        assert!(pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1, "{pair:?}");
        assert_eq!(pair[0].2, i as f64, "each saw all before it");
    }
    let mut tx = tenant.begin_read(None).await.unwrap();
    assert_eq!(number(&mut tx, &id).await, 64.0);
}

/// Two mutations read the same two documents, and each switches another one off while both are on.
#[tokio::test]
async fn a_write_skew_never_commits_twice() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let indexes: &[(&str, &[&str])] = &[("by_on", &["on"])];
    tenant
        .put_schema(schema("t", &["on"], indexes))
        .await
        .unwrap();
    let query = serde_json::json!({"source": {"type": "IndexRange", "indexName": "t.by_on",
        "range": [{"type": "Eq", "fieldPath": "on", "value": true}], "order": null}, "operators": []});
    let query = nimbus_storage::FunctionQuery::parse(&query).unwrap();
    for round in 0..20 {
        let on = || object([("on", Value::Bool(true))]);
        let one = tenant.insert(&table(), on()).await.unwrap();
        let two = tenant.insert(&table(), on()).await.unwrap();
        let met = Arc::new(Barrier::new(2));
        let runs = Arc::new(AtomicU32::new(0));
        let guards: Vec<_> = [one, two]
            .into_iter()
            .map(|id| {
                let (tenant, query) = (tenant.clone(), query.clone());
                let (met, runs) = (met.clone(), runs.clone());
                tokio::spawn(async move {
                    let guard = tenant.transact_function(|tx, run| {
                        let (query, met, runs) = (query.clone(), met.clone(), runs.clone());
                        Box::pin(async move {
                            runs.fetch_add(1, Ordering::SeqCst);
                            let found = drain(tx, &query).await;
                            if run == 1 {
                                // Both have read before either writes.
                                met.wait().await;
                            }
                            if found.len() < 2 {
                                return Ok(Ran::Discard(false));
                            }
                            let off = BTreeMap::from([("on".to_owned(), Some(Value::Bool(false)))]);
                            tx.fn_merge(&id.to_string(), None, off).await.unwrap();
                            Ok(Ran::Commit(true))
                        })
                    });
                    guard.await.unwrap().0
                })
            })
            .collect();
        let mut switched = 0;
        for guard in guards {
            switched += u32::from(soon("a guard", guard).await.unwrap());
        }
        assert_eq!(switched, 1, "round {round}");
        assert_eq!(
            runs.load(Ordering::SeqCst),
            3,
            "round {round}: one ran again"
        );
        for id in [one, two] {
            tenant.delete(&table(), &id.to_string()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_conflict_names_the_table() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let id = tenant
        .insert(&table(), object([("n", num(0.0))]))
        .await
        .unwrap();
    let by_read = async |tx: &mut Transaction| {
        tx.fn_get(&id.to_string(), None).await.unwrap();
    };
    let by_query = async |tx: &mut Transaction| {
        drain(tx, &scan()).await;
    };
    let conflict = async |mut tx: Transaction, tenant: &Tenant| {
        tx.fn_insert("other", Object::new()).await.unwrap();
        let patch = object([("n", num(1.0))]);
        tenant
            .patch(&table(), &id.to_string(), patch)
            .await
            .unwrap();
        match tenant.commit(tx).await {
            Err(StoreError::Conflict { table, .. }) => table,
            other => panic!("{other:?}"),
        }
    };
    let mut tx = tenant.begin().await.unwrap();
    by_read(&mut tx).await;
    assert_eq!(conflict(tx, &tenant).await, Some(table()));
    let mut tx = tenant.begin().await.unwrap();
    by_query(&mut tx).await;
    assert_eq!(conflict(tx, &tenant).await, Some(table()));
}

/// A function that catches the refusal and goes on commits no table that nobody filled.
#[tokio::test]
async fn a_refused_insert_makes_no_table() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let mut tx = tenant.begin().await.unwrap();
    // The bound on bytes written is met only after the document's table is known.
    let large = || object([("a", text(&"x".repeat(1_000_000)))]);
    for _ in 0..16 {
        tx.fn_insert("t", large()).await.unwrap();
    }
    let (code, _) = caught(tx.fn_insert("new", large()).await);
    assert_eq!(code, "TooManyBytesWritten");
    tenant.commit(tx).await.unwrap();
    let tables = tenant.journal_start(100).await.unwrap();
    let written = tables.records.iter().flat_map(|r| &r.writes);
    let named: Vec<_> = written
        .filter(|w| w.table == "_tables")
        .map(|w| w.doc_id.clone())
        .collect();
    assert_eq!(named, ["t"]);
}

/// Index entries count as keys, and the refusal says that it is they.
#[tokio::test]
async fn a_table_of_many_indexes_says_why_it_stops() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let names: Vec<String> = (0..63).map(|n| format!("by_{n}")).collect();
    let fields: [&str; 1] = ["a"];
    let indexes: Vec<(&str, &[&str])> = names.iter().map(|n| (n.as_str(), &fields[..])).collect();
    tenant
        .put_schema(schema("t", &["a"], &indexes))
        .await
        .unwrap();
    let mut tx = tenant.begin().await.unwrap();
    for _ in 0..2_000 {
        tx.fn_insert("t", object([("a", num(1.0))])).await.unwrap();
    }
    let (code, text) = caught(tx.fn_insert("t", object([("a", num(1.0))])).await);
    assert_eq!(code, "TooManyWrites");
    assert_eq!(
        text,
        "Too many keys written in a single function execution, index entries included (limit: 128000)"
    );
}
