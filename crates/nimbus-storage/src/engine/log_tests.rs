//! Work on the whole log and the whole tenant, which no bound on a caller's reads may stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nimbus_core::{Object, TableName, Value};

use super::*;
use crate::engine::test_world::world;
use crate::engine::view::MAX_READ_BYTES;
use crate::{FieldSchema, FieldType, Filter, FilterOp, IndexSchema, Query, TableSchema};

/// Documents of a megabyte each, changed once: more than one caller may read, in the table, in
/// the log, and behind the entries of an index.
const DOCUMENTS: u64 = 12;

fn body(fill: &str) -> Object {
    Object::from([("s".to_owned(), Value::String(fill.repeat(1_000_000)))])
}

fn declared(table: &TableName) -> TableSchema {
    TableSchema {
        table: table.clone(),
        fields: vec![FieldSchema {
            name: "s".to_owned(),
            field_type: FieldType::String,
            required: false,
        }],
        indexes: vec![IndexSchema {
            name: "by_s".parse().unwrap(),
            fields: vec!["s".parse().unwrap()],
            id: None,
            state: None,
        }],
    }
}

#[tokio::test]
async fn whole_tenants_are_read_beyond_the_bound_of_a_query() {
    let world = world();
    let tenant = world.tenant("t").await;
    let table: TableName = "d".parse().unwrap();
    tenant.put_schema(declared(&table)).await.unwrap();
    for _ in 0..DOCUMENTS {
        let id = tenant.insert(&table, body("a")).await.unwrap();
        tenant
            .patch(&table, &id.to_string(), body("b"))
            .await
            .unwrap();
    }
    const { assert!(DOCUMENTS * 1_000_000 > MAX_READ_BYTES) };
    let scan = Query {
        filters: vec![Filter {
            field: "other".parse().unwrap(),
            op: FilterOp::Eq,
            value: Value::Null,
        }],
        ..Query::table(table)
    };
    let over = tenant.query(&scan).await;
    assert!(
        matches!(
            over,
            Err(StoreError::CapExceeded {
                cap: "read_bytes",
                ..
            })
        ),
        "a query has the bound"
    );

    let first = tenant.journal(0, 1).await.unwrap().records.remove(0);
    let commit = first.commit_id.parse().unwrap();
    assert_eq!(tenant.commit_status(commit).await.unwrap(), Some(1));
    let mut after = 0;
    loop {
        let page = tenant.journal(after, 5).await.unwrap();
        after = page.next_cursor;
        if !page.has_more {
            break;
        }
    }
    let report = tenant.consistency().await.unwrap();
    assert!(report.ok, "{:?}", report.mismatches);
    assert_eq!(
        tenant
            .journal_bootstrap()
            .await
            .unwrap()
            .resume_after_sequence,
        after
    );
    assert_eq!(tenant.prune_log().await.unwrap(), after);
    assert!(tenant.consistency().await.unwrap().ok);
}
