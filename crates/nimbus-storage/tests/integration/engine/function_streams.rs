//! Queries of functions against a sorted list: every range, order and filter, with the transaction's own
//! writes while the query runs. Then the errors of queries, with their texts.

use nimbus_storage::core::{DocumentId, TableName, Value};
use nimbus_storage::{FunctionQuery, IndexState, PageRequest, Tenant, Transaction};
use serde_json::{Value as Json, json};

use super::support::*;

fn table() -> TableName {
    name(FUNCTION_TABLE)
}

#[tokio::test]
async fn streams_agree_with_a_sorted_list() {
    let world = World::new().await;
    let mut random = Random::new(1);
    let tenant = function_tenant(&world, &mut random, 70).await;
    let mut answers = 0;
    for round in 0..600 {
        let mut tx = tenant.begin_read(None).await.unwrap();
        let model = model_of(&mut tx).await;
        let asked = Asked::any(&mut random, &model);
        let found = drain(&mut tx, &asked.query()).await;
        assert_eq!(found, asked.answer(&model), "round {round}: {asked:?}");
        answers += found.len();
    }
    assert!(answers > 600, "{answers}");
}

/// One step of a transaction that writes.
async fn write(
    tx: &mut Transaction,
    random: &mut Random,
    model: &[(DocumentId, nimbus_storage::core::Object)],
) {
    let known = random.pick(model).0.to_string();
    match random.below(3) {
        0 => {
            let fields = any_fields(random);
            tx.fn_insert(FUNCTION_TABLE, fields).await.unwrap();
        }
        1 => {
            let fields = any_fields(random);
            tx.fn_replace(&known, None, fields).await.unwrap();
        }
        _ => {
            tx.fn_remove(&known, None).await.unwrap();
        }
    }
}

/// What comes next is always the least document behind the last one that was looked at.
#[tokio::test]
async fn a_stream_shows_what_the_transaction_writes_ahead_of_it() {
    let world = World::new().await;
    let mut random = Random::new(2);
    let tenant = function_tenant(&world, &mut random, 50).await;
    let mut steps = 0;
    for round in 0..120 {
        let mut tx = tenant.begin().await.unwrap();
        let mut model = model_of(&mut tx).await;
        let mut asked = Asked::any(&mut random, &model);
        asked.limit = None;
        let mut stream = tx.open_query(&asked.query()).unwrap();
        let mut last = None;
        loop {
            if random.one_in(3) && model.len() > 5 {
                write(&mut tx, &mut random, &model).await;
                model = model_of(&mut tx).await;
            }
            let behind =
                |d: &(DocumentId, _)| last.as_ref().is_none_or(|l| asked.compare(l, d).is_lt());
            let range = asked.range(&model);
            let expected = range
                .iter()
                .filter(|d| behind(d))
                .find(|d| asked.passes(&d.1));
            let found = tx.next(&mut stream).await.unwrap();
            assert_eq!(
                found.as_ref().map(|d| d.id),
                expected.map(|d| d.0),
                "round {round}: {asked:?}"
            );
            let Some(found) = found else { break };
            last = Some((found.id, found.fields().unwrap()));
            steps += 1;
            if steps % 50 == 0 {
                break;
            }
        }
    }
    assert!(steps > 500, "{steps}");
}

/// A nested step that is undone takes its documents out of a running query again.
#[tokio::test]
async fn a_stream_does_not_show_what_was_rolled_back() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let mut tx = tenant.begin().await.unwrap();
    let first = tx.fn_insert("d", object([("a", num(1.0))])).await.unwrap();
    let query = FunctionQuery::parse(&scan("d")).unwrap();
    let mut stream = tx.open_query(&query).unwrap();
    let savepoint = tx.savepoint();
    tx.fn_insert("d", object([("a", num(2.0))])).await.unwrap();
    assert_eq!(tx.next(&mut stream).await.unwrap().unwrap().id, first);
    tx.roll_back(savepoint);
    assert!(tx.next(&mut stream).await.unwrap().is_none());
}

fn scan(table: &str) -> Json {
    json!({"source": {"type": "FullTableScan", "tableName": table, "order": null}, "operators": []})
}

fn range(index: &str, terms: Json) -> Json {
    json!({"source": {"type": "IndexRange", "indexName": index, "range": terms, "order": "asc"}})
}

fn eq(field: &str, value: Json) -> Json {
    json!({"type": "Eq", "fieldPath": field, "value": value})
}

async fn refused(tenant: &Tenant, query: Json) -> (&'static str, String) {
    let query = match FunctionQuery::parse(&query) {
        Ok(query) => query,
        Err(error) => return caught::<()>(Err(error)),
    };
    let mut tx = tenant.begin_read(None).await.unwrap();
    let mut stream = match tx.open_query(&query) {
        Ok(stream) => stream,
        Err(error) => return caught::<()>(Err(error)),
    };
    loop {
        match tx.next(&mut stream).await {
            Ok(Some(_)) => {}
            other => return caught(other),
        }
    }
}

#[tokio::test]
async fn queries_that_break_a_rule_are_refused_with_their_texts() {
    let world = World::new().await;
    let tenant = function_tenant(&world, &mut Random::new(3), 3).await;
    let gt = |field: &str| json!({"type": "Gt", "fieldPath": field, "value": 1});
    let cases = [
        (
            range("d.none", json!([])),
            "IndexNotFoundError",
            "Index d.none not found.",
        ),
        (
            range("none.by_a", json!([])),
            "IndexNotFoundError",
            "Index none.by_a not found.",
        ),
        (
            json!({"source": {"type": "Search", "indexName": "d.search", "filters": []}}),
            "IndexNotFoundError",
            "Index d.search not found.",
        ),
        (
            range("d.by_a", json!([eq("b", json!(1))])),
            "FieldNotInIndex",
            "The index range included a comparison with \"b\", but index d.by_a with fields [\"a\", \"_creationTime\"] doesn't index this field.",
        ),
        (
            range("d.by_ab", json!([eq("o.x", json!(1))])),
            "InvalidIndexRange",
            "Tried to query index d.by_ab but the query didn't use the index fields in order.\nIndex fields: [\"a\", \"o.x\", \"_creationTime\"]\nQuery fields: [\"o.x\"]\nFirst incorrect field: \"o.x\"",
        ),
        (
            range("d.by_ab", json!([gt("a"), eq("o.x", json!(1))])),
            "InvalidIndexRange",
            "Tried to query index d.by_ab",
        ),
        (
            range("d.by_a", json!([gt("a"), gt("a")])),
            "AlreadyDefinedBound",
            "The index range on index d.by_a bounds the field \"a\" more than once.",
        ),
        (
            range("d.by_a", json!([eq("a", json!(1)), eq("a", json!(2))])),
            "AlreadyDefinedBound",
            "The index range on index d.by_a bounds",
        ),
        (
            range("by_a", json!([])),
            "InvalidQuery",
            "The query is not valid: `indexName` is a table",
        ),
        (
            json!({}),
            "InvalidQuery",
            "The query is not valid: it has no `source`",
        ),
        (
            scan("_secrets"),
            "InvalidQuery",
            "The query is not valid: the table name `_secrets` is reserved",
        ),
        (
            json!({"source": {"type": "FullTableScan", "tableName": "d"}, "operators": vec![json!({"limit": 1}); 257]}),
            "InvalidQuery",
            "The query is not valid: it has 257 operators, at most 256 are allowed",
        ),
    ];
    for (query, code, message) in cases {
        let (found, text) = refused(&tenant, query.clone()).await;
        assert_eq!(found, code, "{query}: {text}");
        assert!(text.starts_with(message), "{query}: {text}");
    }
}

#[tokio::test]
async fn filters_that_cannot_be_evaluated_say_why() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let fields = object([("a", num(1.0)), ("i", int(i64::MAX))]);
    tenant.insert(&table(), fields).await.unwrap();
    let a = json!({"$field": "a"});
    let i = json!({"$field": "i"});
    let one = json!({"$literal": {"$integer": "AQAAAAAAAAA="}});
    let cases = [
        (a.clone(), "Cannot use value 1 (type float64) as a Boolean"),
        (
            json!({"$not": a}),
            "Cannot use value 1 (type float64) as a Boolean",
        ),
        (
            json!({"$and": [{"$literal": true}, {"$field": "none"}]}),
            "Cannot use value undefined (type undefined) as a Boolean",
        ),
        (
            json!({"$eq": [{"$add": [a, i]}, a]}),
            "Cannot add value 1 (type float64) and value {\"$integer\":\"/////////38=\"} (type int64)",
        ),
        (json!({"$eq": [{"$add": [i, one]}, a]}), "Integer overflow"),
        (
            json!({"$eq": [{"$div": [i, {"$literal": {"$integer": "AAAAAAAAAAA="}}]}, a]}),
            "Division by zero",
        ),
        (
            json!({"$eq": [{"$neg": {"$literal": "x"}}, a]}),
            "Cannot negate value \"x\" (type string)",
        ),
    ];
    for (filter, message) in cases {
        let mut query = scan(FUNCTION_TABLE);
        query["operators"] = json!([{"filter": filter}]);
        let (code, text) = refused(&tenant, query).await;
        assert_eq!(code, "EvalError", "{filter}: {text}");
        assert!(text.starts_with(message), "{filter}: {text}");
    }
    // What is not reached is not evaluated.
    let mut query = scan(FUNCTION_TABLE);
    let short = json!({"$or": [{"$literal": true}, {"$field": "none"}]});
    query["operators"] = json!([{"filter": short}]);
    let mut tx = tenant.begin_read(None).await.unwrap();
    assert_eq!(
        drain(&mut tx, &FunctionQuery::parse(&query).unwrap())
            .await
            .len(),
        1
    );
}

/// Queries refuse an index until it holds every document.
#[tokio::test]
async fn an_index_that_is_being_filled_is_refused() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    tenant
        .insert(&table(), object([("a", num(1.0))]))
        .await
        .unwrap();
    let gate = world.hooks.hold_commits();
    let declare = tokio::spawn({
        let tenant = tenant.clone();
        async move {
            let declared = schema(FUNCTION_TABLE, &["a"], &[("by_a", &["a"])]);
            tenant.put_schema(declared).await.unwrap();
        }
    });
    // A commit comes to the gate when the one before it is durable.
    loop {
        gate.arrival().await;
        let schema = tenant.table_schema(&table()).await;
        let first = schema.ok().and_then(|s| s.indexes.first()?.state);
        if first == Some(IndexState::Backfilling) {
            break;
        }
        gate.let_one();
    }
    let (code, text) = refused(&tenant, range("d.by_a", json!([]))).await;
    assert_eq!(code, "IndexBackfillingError");
    assert_eq!(
        text,
        "Index d.by_a is currently backfilling and not available to query yet."
    );
    gate.open();
    declare.await.unwrap();
    indexes_ready(&tenant, FUNCTION_TABLE).await;
    let mut tx = tenant.begin_read(None).await.unwrap();
    let all = Asked::all("by_a", false).query();
    assert_eq!(drain(&mut tx, &all).await.len(), 1);
}

#[tokio::test]
async fn a_table_that_does_not_exist_is_empty() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let mut tx = tenant.begin_read(None).await.unwrap();
    for table in ["nothing", "_storage", "_scheduled_functions"] {
        let query = FunctionQuery::parse(&scan(table)).unwrap();
        assert!(drain(&mut tx, &query).await.is_empty(), "{table}");
        assert_eq!(tx.fn_count(table).await.unwrap(), 0, "{table}");
    }
    let watch = tenant.watch(tx.take_reads());
    assert!(watch.is_valid());
    tenant
        .insert(&name("nothing"), object([("a", Value::Null)]))
        .await
        .unwrap();
    assert!(!watch.is_valid(), "the table that was asked for exists now");
}

/// The JSON of a query of the whole index `by_a`.
fn by_a(order: &str, operators: Json) -> FunctionQuery {
    FunctionQuery::parse(&json!({
        "source": {"type": "IndexRange", "indexName": "d.by_a", "range": [], "order": order},
        "operators": operators,
    }))
    .unwrap()
}

async fn long_run(tenant: &Tenant, count: u32) {
    let a = text(&"p".repeat(2_100));
    for n in 0..count {
        let fields = object([("a", a.clone()), ("n", num(f64::from(n)))]);
        tenant.insert(&table(), fields).await.unwrap();
    }
}

/// Keys of a run are hashes, so what comes first by its full key can be stored anywhere in the run.
#[tokio::test]
async fn who_takes_of_a_run_of_cut_keys_reads_the_whole_run() {
    for trial in 0..24_u64 {
        let world = World::new().await;
        let mut random = Random::new(trial);
        let tenant = function_tenant(&world, &mut random, 0).await;
        long_run(&tenant, 3).await;
        for order in ["desc", "asc"] {
            let asked = by_a(order, json!([{"limit": 1}]));
            let mut tx = tenant.begin_read(None).await.unwrap();
            let mut stream = tx.open_query(&asked).unwrap();
            tx.next(&mut stream).await.unwrap().unwrap();
            let watch = tenant.watch(tx.take_reads());
            let mut writing = tenant.begin().await.unwrap();
            let mut stream = writing.open_query(&asked).unwrap();
            writing.next(&mut stream).await.unwrap().unwrap();
            let fields = object([("n", num(9.0))]);
            writing.fn_insert("elsewhere", fields).await.unwrap();
            assert!(watch.is_valid());
            long_run(&tenant, 1).await;
            assert!(!watch.is_valid(), "trial {trial}, {order}");
            let committed = tenant.commit(writing).await;
            assert!(
                matches!(committed, Err(nimbus_storage::StoreError::Conflict { .. })),
                "trial {trial}, {order}: {committed:?}"
            );
        }
    }
}

/// A run is put in order once, whatever the transaction writes meanwhile, and its documents count.
#[tokio::test]
async fn a_run_of_cut_keys_counts_once() {
    let world = World::new().await;
    let tenant = function_tenant(&world, &mut Random::new(1), 0).await;
    long_run(&tenant, 40).await;
    let mut tx = tenant.begin().await.unwrap();
    let mut stream = tx.open_query(&by_a("asc", json!([]))).unwrap();
    let mut found = Vec::new();
    while let Some(document) = tx.next(&mut stream).await.unwrap() {
        let reads = tx.usage().documents_read;
        assert_eq!(reads, 40, "after {}", found.len());
        found.push(document.fields().unwrap()["n"].clone());
        let fields = object([("n", num(0.5))]);
        tx.fn_insert("elsewhere", fields).await.unwrap();
    }
    let expected: Vec<Value> = (0..40).map(|n| num(f64::from(n))).collect();
    assert_eq!(found, expected);
}

/// What it writes into the run itself is in its place, and what it takes out is not.
#[tokio::test]
async fn a_run_of_cut_keys_shows_what_is_written_into_it() {
    let world = World::new().await;
    let tenant = function_tenant(&world, &mut Random::new(1), 0).await;
    long_run(&tenant, 6).await;
    let mut tx = tenant.begin().await.unwrap();
    let mut stream = tx.open_query(&by_a("asc", json!([]))).unwrap();
    let first = tx.next(&mut stream).await.unwrap().unwrap();
    let second = tx.next(&mut stream).await.unwrap().unwrap();
    tx.fn_remove(&first.id.to_string(), None).await.unwrap();
    let patch = |a: &str, n: f64| {
        [
            ("a".to_owned(), Some(text(a))),
            ("n".to_owned(), Some(num(n))),
        ]
        .into()
    };
    // Its key stays as it is, its body does not.
    let same = "p".repeat(2_100);
    tx.fn_merge(&second.id.to_string(), None, patch(&same, 77.0))
        .await
        .unwrap();
    let third = tx.next(&mut stream).await.unwrap().unwrap();
    tx.fn_merge(
        &third.id.to_string(),
        None,
        patch(&format!("{same}z"), 88.0),
    )
    .await
    .unwrap();
    let mut rest = Vec::new();
    while let Some(document) = tx.next(&mut stream).await.unwrap() {
        rest.push(document.fields().unwrap()["n"].clone());
    }
    assert_eq!(rest, [num(3.0), num(4.0), num(5.0), num(88.0)]);
}

#[tokio::test]
async fn filters_have_a_bounded_number_of_expressions() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let truth = json!({"$literal": true});
    let wide = |width: usize| {
        let mut query = scan("d");
        let half = vec![truth.clone(); width];
        query["operators"] = json!([{"filter": {"$and": half}}, {"filter": {"$or": half}}]);
        query
    };
    assert!(FunctionQuery::parse(&wide(511)).is_ok());
    let (code, text) = refused(&tenant, wide(512)).await;
    assert_eq!(code, "InvalidQuery");
    assert_eq!(
        text,
        "The query is not valid: its filters have more than 1024 expressions, counted with those inside them"
    );
}

/// Reads wait for nothing, so whoever shares the thread gets a turn only if they give it.
#[tokio::test]
async fn a_long_read_lets_others_run() {
    let world = World::new().await;
    let tenant = function_tenant(&world, &mut Random::new(1), 0).await;
    let filled = tenant.transact(|tx| {
        Box::pin(async move {
            for n in 0..1_000 {
                tx.insert(&table(), object([("n", num(f64::from(n)))]))
                    .await?;
            }
            Ok(())
        })
    });
    filled.await.unwrap();
    let mut none = scan("d");
    none["operators"] = json!([{"filter": {"$literal": false}}]);
    let none = FunctionQuery::parse(&none).unwrap();
    for call in ["next", "page", "count"] {
        let turns = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let other = turns.clone();
        let task = tokio::spawn(async move {
            loop {
                other.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let mut tx = tenant.begin_read(None).await.unwrap();
        let before = turns.load(std::sync::atomic::Ordering::Relaxed);
        match call {
            "next" => {
                let mut stream = tx.open_query(&none).unwrap();
                assert!(tx.next(&mut stream).await.unwrap().is_none());
            }
            "page" => {
                let request = PageRequest {
                    page_size: 10,
                    ..PageRequest::default()
                };
                assert!(tx.fn_page(&none, &request).await.unwrap().is_done);
            }
            _ => assert_eq!(tx.fn_count("d").await.unwrap(), 1_000),
        }
        let turns = turns.load(std::sync::atomic::Ordering::Relaxed) - before;
        assert!(turns >= 3, "{call}: {turns}");
        assert_eq!(
            tx.usage().database_queries,
            if call == "count" { 2 } else { 1 }
        );
        task.abort();
    }
}
