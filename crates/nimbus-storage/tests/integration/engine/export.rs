//! Exports: one commit's state, whatever is written meanwhile, and what they hold on to.

use std::collections::BTreeMap;

use nimbus_storage::core::{DocumentId, Object, TableName};
use nimbus_storage::{Document, Export, StoreError, Tenant};

use super::support::*;

fn table() -> TableName {
    name("d")
}

fn row(n: u64, text_len: usize) -> Object {
    object([("n", num(n as f64)), ("s", text(&"x".repeat(text_len)))])
}

/// Inserts many documents with few commits.
async fn fill(tenant: &Tenant, count: u64) {
    for start in (0..count).step_by(500) {
        tenant
            .transact(|tx| {
                Box::pin(async move {
                    for n in start..(start + 500).min(count) {
                        tx.insert(&table(), row(n, 10)).await?;
                    }
                    Ok(())
                })
            })
            .await
            .unwrap();
    }
}

async fn rest_of(export: &mut Export) -> Vec<Document> {
    let mut all = Vec::new();
    loop {
        let step = export.next().await.unwrap();
        if step.is_empty() {
            return all;
        }
        all.extend(step);
    }
}

fn texts(documents: &[Document]) -> BTreeMap<DocumentId, String> {
    documents.iter().map(|d| (d.id, json(d))).collect()
}

#[tokio::test]
async fn an_export_is_the_state_of_its_commit_whatever_is_written_meanwhile() {
    for seed in 0..6 {
        let world = World::new().await;
        let tenant = world.create("t").await;
        // Another table before and after, whose documents must not come along.
        tenant.insert(&name("c"), row(0, 1)).await.unwrap();
        fill(&tenant, 2_600).await;
        tenant.insert(&name("e"), row(0, 1)).await.unwrap();
        let before = rest_of(&mut tenant.export(&table()).await.unwrap()).await;
        assert_eq!(before.len(), 2_600);
        assert!(before.is_sorted_by_key(|d| d.id.key()));

        let mut export = tenant.export(&table()).await.unwrap();
        let mut random = Random::new(seed);
        let (mut found, mut steps) = (Vec::new(), 0);
        loop {
            for _ in 0..30 {
                let victim = random.pick(&before).id.to_string();
                // Bodies over 64 KiB, too: the log keeps those in their keyspace.
                let len = if random.one_in(8) { 70_000 } else { 20 };
                let _ = match random.below(4) {
                    0 => tenant.delete(&table(), &victim).await,
                    1 => tenant.insert(&table(), row(9, len)).await.map(drop),
                    _ => tenant.patch(&table(), &victim, row(9, len)).await.map(drop),
                };
            }
            if random.one_in(2) {
                tenant.prune_log().await.unwrap();
            }
            let step = export.next().await.unwrap();
            if step.is_empty() {
                break;
            }
            steps += 1;
            found.extend(step);
        }
        assert!(steps >= 5, "{steps}");
        assert!(found.is_sorted_by_key(|d| d.id.key()));
        assert_eq!(found.len(), before.len(), "seed {seed}");
        assert_eq!(texts(&found), texts(&before), "seed {seed}");
        assert_consistent(&tenant).await;
    }
}

#[tokio::test]
async fn an_export_keeps_the_log_that_it_has_not_read_and_no_more() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    fill(&tenant, 1_200).await;
    let mut export = tenant.export(&table()).await.unwrap();
    assert_eq!(export.sequence(), 3);
    export.next().await.unwrap();
    for _ in 0..3 {
        tenant.insert(&table(), row(1, 1)).await.unwrap();
    }
    let floor = async || {
        tenant.prune_log().await.unwrap();
        tenant.journal(6, 1).await.unwrap().cursor_floor
    };
    assert_eq!(floor().await, 3);
    export.next().await.unwrap();
    assert_eq!(floor().await, 6, "what was read may go");
    tenant.insert(&table(), row(1, 1)).await.unwrap();
    drop(export);
    tenant.prune_log().await.unwrap();
    assert_eq!(tenant.journal(7, 1).await.unwrap().cursor_floor, 7);
}

#[tokio::test]
async fn tables_without_documents_and_tenants_that_go() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let missing = tenant.export(&table()).await.err().unwrap();
    assert!(matches!(missing, StoreError::TableNotFound { .. }));
    assert_eq!(missing.to_string(), "table d does not exist");
    let id = tenant.insert(&table(), row(1, 1)).await.unwrap();
    tenant.delete(&table(), &id.to_string()).await.unwrap();
    let mut empty = tenant.export(&table()).await.unwrap();
    assert_eq!(empty.next().await.unwrap(), []);
    assert_eq!(empty.next().await.unwrap(), []);

    fill(&tenant, 1_200).await;
    let mut export = tenant.export(&table()).await.unwrap();
    assert!(!export.next().await.unwrap().is_empty());
    world.engine().delete_tenant(&name("t")).await.unwrap();
    let error = export.next().await.unwrap_err();
    assert!(matches!(error, StoreError::Closed), "{error:?}");
}
