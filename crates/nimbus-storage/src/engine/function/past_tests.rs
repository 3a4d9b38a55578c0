//! Reads of a state are bounded, however much the engine read to find it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nimbus_core::{TableName, Value};

use crate::engine::test_world::world;
use crate::{Query, StoreError};

#[tokio::test]
async fn the_bound_on_reads_holds_at_every_timestamp() {
    let world = world();
    let tenant = world.tenant("t").await;
    let table: TableName = "d".parse().unwrap();
    let large = || [("a".to_owned(), Value::String("x".repeat(1_000_000)))].into();
    for _ in 0..9 {
        tenant.insert(&table, large()).await.unwrap();
    }
    let then = tenant.latest_timestamp();
    let other: TableName = "e".parse().unwrap();
    tenant.insert(&other, large()).await.unwrap();
    for at in [then, tenant.latest_timestamp()] {
        let mut tx = tenant.begin_read(Some(at)).await.unwrap();
        let read = tx.query(&Query::table(table.clone())).await;
        let capped = matches!(
            read,
            Err(StoreError::CapExceeded {
                cap: "read_bytes",
                ..
            })
        );
        assert!(capped, "{:?}", read.map(|found| found.len()));
    }
}
