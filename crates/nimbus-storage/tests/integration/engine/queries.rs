//! Queries against a naive model, over documents of every type: with no index, with each of
//! several, and while one is being filled, the answer is the same. Pages and cursors likewise.

use std::collections::BTreeMap;

use nimbus_storage::core::{DocumentId, Object, TableName, Value};
use nimbus_storage::provider::Keyspace;
use nimbus_storage::{Direction, Filter, FilterOp, IndexState, Order, Query, StoreError, Tenant};

use super::support::*;

const TABLE: &str = "d";
const FIELDS: [&str; 8] = ["a", "b", "o.x", "o", "zz", "_creationTime", "_id", "o.x.y"];
const OPS: [FilterOp; 6] = [
    FilterOp::Eq,
    FilterOp::Neq,
    FilterOp::Gt,
    FilterOp::Gte,
    FilterOp::Lt,
    FilterOp::Lte,
];
/// Sets of indexes, each an index's fields.
const INDEXES: [&[&[&str]]; 7] = [
    &[],
    &[&["a"]],
    &[&["b"]],
    &[&["a", "b"]],
    &[&["o.x"]],
    &[&["a", "o.x", "b"], &["b", "a"]],
    &[&["a"], &["b"], &["o.x", "a"], &["o"], &["b", "o.x"]],
];

fn table() -> TableName {
    name(TABLE)
}

/// A value of any type, from few, so that equal ones are common.
fn value(random: &mut Random) -> Value {
    let strings = ["", "a", "a\0", "a\0b", "ab", "b", "\u{e9}", "\u{10ffff}"];
    let floats = [
        -0.0,
        0.0,
        1.0,
        1.5,
        -1.0,
        f64::NAN,
        f64::INFINITY,
        f64::MIN,
        -f64::NAN,
    ];
    let bytes: [&[u8]; 5] = [&[], &[0], &[0, 255], &[255], &[255, 0]];
    match random.below(12) {
        0 => Value::Null,
        1 => Value::Bool(random.one_in(2)),
        2 | 3 => int([-2, 0, 1, i64::MIN, i64::MAX][random.below(5)]),
        4..7 => num(*random.pick(&floats)),
        7..9 => text(random.pick::<&str>(&strings)),
        9 => Value::Bytes(random.pick(&bytes).to_vec()),
        10 => Value::Array(vec![num(1.0); random.below(3)]),
        _ => Value::Object(object([("y", num(random.below(2) as f64))])),
    }
}

fn document(random: &mut Random) -> Object {
    let mut fields = Object::new();
    for field in ["a", "b"] {
        if !random.one_in(5) {
            fields.insert(field.to_owned(), value(random));
        }
    }
    match random.below(4) {
        0 => {}
        1 => {
            fields.insert("o".to_owned(), value(random));
        }
        _ => {
            let inner = object([("x", value(random))]);
            fields.insert("o".to_owned(), Value::Object(inner));
        }
    }
    fields
}

async fn fill(tenant: &Tenant, random: &mut Random, count: usize) {
    tenant.put_schema(schema(TABLE, &[], &[])).await.unwrap();
    let mut left = count;
    while left > 0 {
        let some = left.min(50);
        let rows: Vec<Object> = (0..some).map(|_| document(random)).collect();
        tenant
            .transact(|tx| {
                let rows = rows.clone();
                Box::pin(async move {
                    for row in rows {
                        tx.insert(&table(), row).await?;
                    }
                    Ok(())
                })
            })
            .await
            .unwrap();
        left -= some;
    }
}

async fn declare(tenant: &Tenant, indexes: &[&[&str]]) {
    let names: Vec<String> = (0..indexes.len()).map(|i| format!("i_{i}")).collect();
    let named: Vec<(&str, &[&str])> = names
        .iter()
        .zip(indexes)
        .map(|(name, fields)| (name.as_str(), *fields))
        .collect();
    let declared = schema(TABLE, &["a", "b", "o"], &named);
    tenant.put_schema(declared).await.unwrap();
}

fn any_filter(random: &mut Random, model: &Model) -> Filter {
    loop {
        let field = *random.pick(&FIELDS);
        let known = model.0.keys().nth(random.below(model.0.len())).unwrap();
        let operand = match field {
            "_id" if !random.one_in(4) => text(&known.to_string()),
            "_creationTime" if !random.one_in(4) => model.0[known]["_creationTime"].clone(),
            _ => value(random),
        };
        let candidate = filter(field, *random.pick(&OPS), operand);
        let alone = query(TABLE, vec![candidate.clone()], None);
        if alone.check().is_ok() {
            return candidate;
        }
    }
}

fn any_query(random: &mut Random, model: &Model) -> Query {
    let count = [0, 1, 1, 1, 2, 2, 3][random.below(7)];
    let filters = (0..count).map(|_| any_filter(random, model)).collect();
    let order = (!random.one_in(3)).then(|| Order {
        field: name(random.pick::<&str>(&FIELDS)),
        direction: *random.pick(&[Direction::Forward, Direction::Backward]),
    });
    Query {
        table: table(),
        filters,
        order,
        limit: None,
    }
}

async fn answer(tenant: &Tenant, query: &Query) -> Vec<DocumentId> {
    let found = tenant.query(query).await.unwrap();
    found.iter().map(|d| d.id).collect()
}

/// Random queries, plain, limited, and inside a transaction.
async fn compare(tenant: &Tenant, model: &Model, random: &mut Random, count: usize, about: &str) {
    for _ in 0..count {
        let mut asked = any_query(random, model);
        if random.one_in(3) {
            asked.limit = Some(*random.pick(&[1, 2, 5, 40]));
        }
        let expected = model.answer(&asked);
        assert_eq!(answer(tenant, &asked).await, expected, "{about}: {asked:?}");
        let mut transaction = tenant.begin().await.unwrap();
        let found = transaction.query(&asked).await.unwrap();
        let found: Vec<_> = found.iter().map(|d| d.id).collect();
        assert_eq!(found, expected, "{about}, in a transaction: {asked:?}");
    }
}

#[tokio::test]
async fn every_plan_gives_the_answer_of_the_model() {
    for seed in 1..=2 {
        let world = World::new().await;
        let tenant = world.create("t").await;
        let mut random = Random::new(seed);
        fill(&tenant, &mut random, 100).await;
        let model = Model::of(&tenant, TABLE).await;
        for indexes in INDEXES {
            declare(&tenant, indexes).await;
            indexes_ready(&tenant, TABLE).await;
            let about = format!("seed {seed}, indexes {indexes:?}");
            compare(&tenant, &model, &mut random, 60, &about).await;
        }
        assert_consistent(&tenant).await;
    }
}

#[tokio::test]
async fn an_index_that_is_being_filled_changes_no_answer() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let mut random = Random::new(11);
    fill(&tenant, &mut random, 300).await;
    let model = Model::of(&tenant, TABLE).await;
    // Backfill steps write index entries and nothing else.
    let gate = Gate::shut();
    let held = gate.clone();
    world.hooks.on_commit(move |batch| {
        let gate = held.clone();
        async move {
            if batch
                .writes
                .keys()
                .all(|(space, _)| *space == Keyspace::Index)
            {
                gate.pass().await;
            }
            Verdict::Pass
        }
    });
    declare(&tenant, &[&["a"], &["b", "o.x"]]).await;
    gate.arrival().await;
    // The first of two steps is in, the second is not.
    gate.let_one();
    gate.arrival().await;
    let schema = tenant.table_schema(&table()).await.unwrap();
    assert_eq!(schema.indexes[0].state, Some(IndexState::Backfilling));
    compare(&tenant, &model, &mut random, 80, "half filled").await;
    gate.open();
    indexes_ready(&tenant, TABLE).await;
    compare(&tenant, &model, &mut random, 80, "filled").await;
    assert_consistent(&tenant).await;
}

/// Every operator on every pair of types: an ordered comparison never crosses types.
#[tokio::test]
async fn ordered_comparisons_stay_within_a_type() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    declare(&tenant, &[&["a"]]).await;
    let values = [
        Value::Null,
        Value::Bool(true),
        int(1),
        num(1.0),
        text("1"),
        Value::Bytes(vec![b'1']),
        Value::Array(vec![num(1.0)]),
        Value::Object(object([("a", num(1.0))])),
    ];
    for value in &values {
        let row = object([("a", value.clone())]);
        tenant.insert(&table(), row).await.unwrap();
    }
    tenant.insert(&table(), Object::new()).await.unwrap();
    for indexed in [true, false] {
        for operand in &values[2..6] {
            for op in &OPS[2..] {
                let asked = query(TABLE, vec![filter("a", *op, operand.clone())], None);
                let found = tenant.query(&asked).await.unwrap();
                let equal = matches!(op, FilterOp::Gte | FilterOp::Lte);
                assert_eq!(
                    found.len(),
                    usize::from(equal),
                    "{op:?} {operand:?} {indexed}"
                );
            }
        }
        let not = query(TABLE, vec![filter("a", FilterOp::Neq, num(1.0))], None);
        assert_eq!(tenant.query(&not).await.unwrap().len(), values.len() - 1);
        declare(&tenant, &[]).await;
    }
}

async fn pages(tenant: &Tenant, query: &Query, size: u32) -> Vec<DocumentId> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = tenant.page(query, size, after.as_deref()).await.unwrap();
        assert_eq!(page.has_more, page.next_cursor.is_some());
        assert!(page.documents.len() <= size as usize);
        assert!(!page.has_more || page.documents.len() == size as usize);
        all.extend(page.documents.iter().map(|d| d.id));
        after = page.next_cursor;
        if !page.has_more {
            return all;
        }
    }
}

#[tokio::test]
async fn pages_add_up_to_the_whole() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let mut random = Random::new(21);
    fill(&tenant, &mut random, 120).await;
    let model = Model::of(&tenant, TABLE).await;
    for indexes in INDEXES {
        declare(&tenant, indexes).await;
        indexes_ready(&tenant, TABLE).await;
        for size in [1, 2, 7, 1000] {
            for _ in 0..if size == 1 { 3 } else { 8 } {
                let asked = any_query(&mut random, &model);
                let found = pages(&tenant, &asked, size).await;
                assert_eq!(found, model.answer(&asked), "{indexes:?} {size} {asked:?}");
            }
        }
    }
}

/// Each page is read under other indexes than the one before.
#[tokio::test]
async fn cursors_outlive_the_index_that_made_them() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let mut random = Random::new(31);
    fill(&tenant, &mut random, 60).await;
    let model = Model::of(&tenant, TABLE).await;
    for round in 0..12 {
        let asked = any_query(&mut random, &model);
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = tenant.page(&asked, 9, after.as_deref()).await.unwrap();
            all.extend(page.documents.iter().map(|d| d.id));
            after = page.next_cursor;
            if !page.has_more {
                break;
            }
            declare(&tenant, INDEXES[random.below(INDEXES.len())]).await;
            if random.one_in(2) {
                indexes_ready(&tenant, TABLE).await;
            }
        }
        assert_eq!(all, model.answer(&asked), "round {round}: {asked:?}");
    }
}

#[tokio::test]
async fn a_cursor_is_good_for_its_own_query_and_tenant_only() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let other = world.create("other").await;
    for tenant in [&tenant, &other] {
        for i in 0..5 {
            let row = object([("a", num(f64::from(i)))]);
            tenant.insert(&table(), row.clone()).await.unwrap();
            tenant.insert(&name("e"), row).await.unwrap();
        }
    }
    let asc = Some(("a", Direction::Forward));
    let base = query(TABLE, vec![filter("a", FilterOp::Gte, num(0.0))], asc);
    let page = tenant.page(&base, 2, None).await.unwrap();
    let cursor = page.next_cursor.unwrap();
    assert_eq!(
        tenant
            .page(&base, 1, Some(&cursor))
            .await
            .unwrap()
            .documents
            .len(),
        1
    );

    let mut others = vec![
        query("e", base.filters.clone(), asc),
        query(
            TABLE,
            base.filters.clone(),
            Some(("a", Direction::Backward)),
        ),
        query(TABLE, base.filters.clone(), Some(("b", Direction::Forward))),
        query(TABLE, base.filters.clone(), None),
        query(TABLE, Vec::new(), asc),
        query(TABLE, vec![filter("a", FilterOp::Gte, num(1.0))], asc),
        query(TABLE, vec![filter("a", FilterOp::Gt, num(0.0))], asc),
        query(TABLE, vec![filter("a", FilterOp::Gte, int(0))], asc),
    ];
    others.push(query("nowhere", base.filters.clone(), asc));
    for wrong in &others {
        let refused = tenant.page(wrong, 2, Some(&cursor)).await;
        assert!(
            matches!(refused, Err(StoreError::Cursor { .. })),
            "{wrong:?}: {refused:?}"
        );
    }
    let refused = other.page(&base, 2, Some(&cursor)).await;
    assert!(
        matches!(refused, Err(StoreError::Cursor { .. })),
        "another tenant"
    );
    for at in 0..cursor.len() {
        let mut edited = cursor.clone().into_bytes();
        edited[at] = if edited[at] == b'A' { b'B' } else { b'A' };
        let edited = String::from_utf8(edited).unwrap();
        let refused = tenant.page(&base, 2, Some(&edited)).await;
        assert!(
            matches!(refused, Err(StoreError::Cursor { .. })),
            "edited at {at}"
        );
    }
    for bad in ["", "=", "AA", &cursor[1..], &format!("{cursor}A")] {
        let refused = tenant.page(&base, 2, Some(bad)).await;
        assert!(matches!(refused, Err(StoreError::Cursor { .. })), "{bad}");
    }
}

/// Inserts and deletes between pages: whatever was there all the time comes exactly once.
#[tokio::test]
async fn changes_between_pages_neither_repeat_nor_skip_others() {
    let world = World::new().await;
    for seed in 0..6 {
        let tenant = world.create(&format!("t{seed}")).await;
        let mut random = Random::new(seed);
        fill(&tenant, &mut random, 80).await;
        let indexes = INDEXES[seed as usize % INDEXES.len()];
        declare(&tenant, indexes).await;
        indexes_ready(&tenant, TABLE).await;
        let model = Model::of(&tenant, TABLE).await;
        let asked = any_query(&mut random, &model);
        let mut stayed = model.clone();
        let (mut seen, mut after) = (BTreeMap::<DocumentId, usize>::new(), None);
        loop {
            let page = tenant.page(&asked, 6, after.as_deref()).await.unwrap();
            for document in &page.documents {
                *seen.entry(document.id).or_default() += 1;
            }
            after = page.next_cursor;
            if !page.has_more {
                break;
            }
            for _ in 0..3 {
                tenant
                    .insert(&table(), document(&mut random))
                    .await
                    .unwrap();
                // The page's own last document goes first: the cursor stands on nothing then.
                let last = page.documents.last().map(|d| d.id);
                let victim = last
                    .filter(|id| stayed.0.contains_key(id))
                    .unwrap_or_else(|| *stayed.0.keys().nth(random.below(stayed.0.len())).unwrap());
                stayed.0.remove(&victim);
                let id = victim.to_string();
                tenant.delete(&table(), &id).await.unwrap();
            }
        }
        assert!(
            seen.values().all(|n| *n == 1),
            "seed {seed}: repeated, {asked:?}"
        );
        for id in stayed.answer(&asked) {
            assert!(
                seen.contains_key(&id),
                "seed {seed}: {id} was skipped, {asked:?}"
            );
        }
    }
}
