//! The bound on what an export keeps: changes to what is still to come, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nimbus_core::{Object, Value};

use super::super::asof::{MAX_CHANGED_BYTES, STEP};
use super::*;
use crate::engine::test_world::world;

fn body(len: usize) -> Object {
    Object::from([("s".to_owned(), Value::String("x".repeat(len)))])
}

#[tokio::test]
async fn only_changes_to_what_is_still_to_come_are_kept_and_they_are_bounded() {
    let world = world();
    let tenant = world.tenant("t").await;
    let table: TableName = "d".parse().unwrap();
    let mut ids = Vec::new();
    for _ in 0..4 * STEP {
        ids.push(tenant.insert(&table, body(1_000)).await.unwrap());
    }
    let mut export = tenant.export(&table).await.unwrap();
    assert_eq!(export.next().await.unwrap().len(), STEP);
    // Documents that were read already, and new ones, may change as they like.
    for id in &ids[..STEP] {
        let id = id.to_string();
        tenant.patch(&table, &id, body(5_000)).await.unwrap();
        tenant.patch(&table, &id, body(5_000)).await.unwrap();
        tenant.insert(&table, body(5_000)).await.unwrap();
    }
    assert_eq!(export.next().await.unwrap().len(), STEP);
    assert_eq!(
        (export.rows.changed.len(), export.rows.changed_bytes),
        (0, 0)
    );
    // One that is to come is kept once, as it was, and let go when it was read.
    let last = ids[4 * STEP - 1].to_string();
    for _ in 0..3 {
        tenant.patch(&table, &last, body(4_000)).await.unwrap();
    }
    assert_eq!(export.next().await.unwrap().len(), STEP);
    assert_eq!(export.rows.changed.len(), 1);
    assert!(
        export.rows.changed_bytes < 2_000,
        "{}",
        export.rows.changed_bytes
    );
    let rest = export.next().await.unwrap();
    assert_eq!(rest.len(), STEP);
    assert!(rest.iter().all(|document| document.json.len() < 1_200));
    assert_eq!(
        (export.rows.changed.len(), export.rows.changed_bytes),
        (0, 0)
    );
    assert_eq!(export.next().await.unwrap(), []);

    let mut export = tenant.export(&table).await.unwrap();
    for id in &ids[2 * STEP..] {
        let id = id.to_string();
        tenant.patch(&table, &id, body(1_000)).await.unwrap();
    }
    let error = export.next().await.unwrap_err();
    let StoreError::CapExceeded { cap, observed, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(cap, "export_changes");
    assert!(observed > MAX_CHANGED_BYTES as u64);
}
