//! The bound on documents scanned: which error says what, and that an index or a page avoids it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nimbus_core::{TableName, Value};

use super::*;
use crate::engine::test_world::world;
use crate::{FieldSchema, FieldType, FilterOp, IndexSchema, Order, TableSchema};

fn asked(filters: &[(&str, FilterOp)], order: Option<&str>) -> Query {
    Query {
        filters: filters
            .iter()
            .map(|(field, op)| Filter {
                field: field.parse().unwrap(),
                op: *op,
                value: Value::Float64(-1.0),
            })
            .collect(),
        order: order.map(|field| Order {
            field: field.parse().unwrap(),
            direction: Direction::Forward,
        }),
        limit: Some(10),
        table: "d".parse().unwrap(),
    }
}

#[tokio::test]
async fn scanning_too_much_asks_for_an_index() {
    let world = world();
    let tenant = world.tenant("t").await;
    let table: TableName = "d".parse().unwrap();
    for _ in 0..3 {
        tenant
            .transact(|tx| {
                let table = table.clone();
                Box::pin(async move {
                    for i in 0..1_000 {
                        let row = [("a".to_owned(), Value::Float64(f64::from(i)))];
                        tx.insert(&table, Object::from(row)).await?;
                    }
                    Ok(())
                })
            })
            .await
            .unwrap();
    }
    let (eq, lt, neq) = (FilterOp::Eq, FilterOp::Lt, FilterOp::Neq);
    let scans: [(Query, &[&str]); 4] = [
        (asked(&[("x", eq)], None), &["x"]),
        (asked(&[("x", lt), ("y", eq)], Some("z")), &["y", "z", "x"]),
        (asked(&[("a", lt)], None), &["a"]),
        (asked(&[], Some("a")), &["a"]),
    ];
    for (query, expected) in scans {
        let refused = tenant.query(&query).await;
        let Err(StoreError::MissingIndex { fields, limit }) = refused else {
            panic!("{query:?}: {refused:?}");
        };
        assert_eq!(
            (fields.as_slice(), limit),
            (owned(expected).as_slice(), MAX_READ_DOCUMENTS)
        );
    }
    // No index helps against a `neq` that nothing meets.
    let hopeless = tenant.query(&asked(&[("x", neq)], None)).await;
    let capped = matches!(
        hopeless,
        Err(StoreError::CapExceeded {
            cap: "read_documents",
            ..
        })
    );
    assert!(capped, "{hopeless:?}");
    assert_eq!(tenant.query(&asked(&[], None)).await.unwrap().len(), 10);

    tenant.put_schema(declared(&table)).await.unwrap();
    while tenant.table_schema(&table).await.unwrap().indexes[0].state
        != Some(crate::IndexState::Enabled)
    {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert!(
        tenant
            .query(&asked(&[("a", lt)], None))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        tenant.query(&asked(&[], Some("a"))).await.unwrap().len(),
        10
    );
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn declared(table: &TableName) -> TableSchema {
    TableSchema {
        table: table.clone(),
        fields: vec![FieldSchema {
            name: "a".to_owned(),
            field_type: FieldType::Number,
            required: false,
        }],
        indexes: vec![IndexSchema {
            name: "by_a".parse().unwrap(),
            fields: vec!["a".parse().unwrap()],
            id: None,
            state: None,
        }],
    }
}
