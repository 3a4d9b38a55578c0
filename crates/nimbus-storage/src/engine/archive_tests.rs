//! Archives: one commit's whole state whatever is written meanwhile, and tenants made from them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nimbus_core::{Object, TableName, TenantId, Value};

use super::*;
use crate::engine::asof::STEP;
use crate::engine::rowcheck::RowCheck;
use crate::engine::test_world::{World, world};
use crate::{FieldSchema, FieldType, IndexSchema, TableSchema};

impl World {
    async fn restored(&self, id: &str, archive: &All) -> Tenant {
        let id: TenantId = id.parse().unwrap();
        let begun = self.engine.begin_restore(&id, archive.head, archive.floor);
        let mut restore = begun.await.unwrap();
        for (space, key, value) in &archive.rows {
            restore
                .row(*space, key.clone(), value.clone())
                .await
                .unwrap();
        }
        restore.finish().await.unwrap();
        drop(restore);
        let refused = self.engine.tenant(&id).await.err().unwrap();
        assert!(matches!(refused, StoreError::RestoreUnfinished { .. }));
        assert!(self.engine.is_restoring(&id).await.unwrap());
        self.engine.end_restore(&id).await.unwrap();
        assert!(!self.engine.is_restoring(&id).await.unwrap());
        self.engine.tenant(&id).await.unwrap()
    }
}

#[derive(Clone, PartialEq, Debug)]
struct All {
    head: Head,
    floor: Floor,
    rows: Vec<(Keyspace, Vec<u8>, bytes::Bytes)>,
}

async fn all(tenant: &Tenant, mut between: impl AsyncFnMut()) -> All {
    let mut archive = tenant.archive().await.unwrap();
    let mut found = All {
        head: archive.head(),
        floor: archive.floor(),
        rows: Vec::new(),
    };
    loop {
        between().await;
        let Some((space, rows)) = archive.next().await.unwrap() else {
            break;
        };
        found
            .rows
            .extend(rows.into_iter().map(|(k, v)| (space, k, v)));
    }
    let mut check = RowCheck::deep(found.head, found.floor);
    for (space, key, value) in &found.rows {
        check.row(*space, key, value).unwrap();
    }
    check.end().unwrap();
    found
}

fn table(name: &str) -> TableName {
    name.parse().unwrap()
}

fn body(n: usize, len: usize) -> Object {
    let n = Value::Float64(n as f64);
    Object::from([
        ("n".to_owned(), n),
        ("s".to_owned(), Value::String("x".repeat(len))),
    ])
}

fn schema(name: &str) -> TableSchema {
    let field = |name: &str, field_type| FieldSchema {
        name: name.into(),
        field_type,
        required: false,
    };
    TableSchema {
        table: table(name),
        fields: vec![field("n", FieldType::Number), field("s", FieldType::String)],
        indexes: vec![IndexSchema {
            name: "by_s_n".parse().unwrap(),
            fields: vec!["s".parse().unwrap(), "n".parse().unwrap()],
            id: None,
            state: None,
        }],
    }
}

#[tokio::test]
async fn an_archive_is_one_commit_whatever_is_written_meanwhile_and_makes_an_equal_tenant() {
    let world = world();
    let tenant = world.tenant("a").await;
    let mut ids = Vec::new();
    for name in ["d", "e"] {
        tenant.put_schema(schema(name)).await.unwrap();
        for n in 0..6 * STEP {
            // Long keys are cut, and long bodies are in their keyspace alone.
            let len = [3, 3_000, 70_000][n % 3];
            ids.push((
                name,
                tenant.insert(&table(name), body(n, len)).await.unwrap(),
            ));
        }
    }
    tenant
        .import_chunk(&table("e"), "half", Vec::new(), 7)
        .await
        .unwrap();
    tenant.prune_log().await.unwrap();
    for (name, id) in &ids[..4] {
        let id = id.to_string();
        tenant.patch(&table(name), &id, body(9, 10)).await.unwrap();
    }
    let quiet = all(&tenant, async || {}).await;
    assert_eq!(quiet.floor.sequence + 4, quiet.head.sequence);
    assert_eq!(quiet, all(&tenant, async || {}).await);
    for space in [
        Keyspace::Meta,
        Keyspace::Log,
        Keyspace::Jobs,
        Keyspace::Docs,
    ] {
        assert!(quiet.rows.iter().any(|(s, ..)| *s == space), "{space:?}");
    }

    let mut turn = 0;
    let busy = all(&tenant, async || {
        turn += 1;
        let (name, id) = &ids[(turn * 7) % ids.len()];
        let id = id.to_string();
        match turn % 4 {
            0 => drop(tenant.delete(&table(name), &id).await),
            1 => drop(tenant.patch(&table(name), &id, body(turn, 80)).await),
            2 => drop(tenant.insert(&table("d"), body(turn, 80)).await),
            _ => {
                tenant.prune_log().await.unwrap();
                let fresh = format!("t{turn}");
                tenant.insert(&table(&fresh), body(1, 1)).await.unwrap();
                let (e, lines) = (table("e"), 7 + turn as u64);
                let progress = tenant.import_chunk(&e, "half", Vec::new(), lines);
                progress.await.unwrap();
            }
        }
    })
    .await;
    assert!(turn > 10, "{turn}");
    assert_eq!(busy, quiet);
    assert!(tenant.consistency().await.unwrap().ok);

    let copy = world.restored("b", &quiet).await;
    assert_eq!(all(&copy, async || {}).await, quiet);
    let report = copy.consistency().await.unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.shadow.index_entry_count, 12 * STEP as u64);
    assert_eq!(copy.journal_start(100).await.unwrap().records.len(), 4);
    assert_eq!(copy.import_progress(&table("e"), "half").await.unwrap(), 7);
    let next = copy.insert(&table("d"), body(1, 1)).await.unwrap();
    assert!(ids.iter().all(|(_, id)| id.internal < next.internal));
    let journal = copy.journal(quiet.head.sequence, 5).await.unwrap();
    assert_eq!(journal.records[0].sequence, quiet.head.sequence + 1);
}

#[tokio::test]
async fn an_empty_tenant_and_what_is_begun_twice() {
    let world = world();
    let tenant = world.tenant("a").await;
    let archive = all(&tenant, async || {}).await;
    assert_eq!(archive.head, Head::EMPTY);
    let copy = world.restored("b", &archive).await;
    assert_eq!(all(&copy, async || {}).await, archive);

    let again = world
        .engine
        .begin_restore(copy.id(), archive.head, archive.floor);
    assert!(matches!(
        again.await.err().unwrap(),
        StoreError::TenantExists { .. }
    ));
    let id = "c".parse().unwrap();
    let begun = world.engine.begin_restore(&id, archive.head, archive.floor);
    begun.await.unwrap().abandon().await.unwrap();
    let gone = world.engine.tenant(&id).await.err().unwrap();
    assert!(matches!(gone, StoreError::TenantNotFound { .. }));
}

#[tokio::test]
async fn rows_that_contradict_each_other_make_no_tenant() {
    let world = world();
    let tenant = world.tenant("a").await;
    for n in 0..6 {
        tenant.insert(&table("d"), body(n, 5)).await.unwrap();
    }
    let good = all(&tenant, async || {}).await;
    let refused = async |archive: &All| {
        let id: TenantId = "b".parse().unwrap();
        let begun = world.engine.begin_restore(&id, archive.head, archive.floor);
        let mut restore = begun.await.unwrap();
        let outcome = async {
            for (space, key, value) in &archive.rows {
                restore.row(*space, key.clone(), value.clone()).await?;
            }
            restore.finish().await.map(drop)
        };
        let outcome = outcome.await;
        restore.abandon().await.unwrap();
        match outcome {
            Err(StoreError::Corrupt { inside }) => inside,
            other => panic!("{other:?}"),
        }
    };
    // What a restore finds on the tenant that it made, a deep check finds without one.
    let deep = |archive: &All| {
        let mut check = RowCheck::deep(archive.head, archive.floor);
        let mut rows = archive.rows.iter();
        let outcome = rows.try_for_each(|(space, key, value)| check.row(*space, key, value));
        match outcome.and_then(|()| check.end()) {
            Err(StoreError::Corrupt { inside }) => inside,
            other => panic!("{other:?}"),
        }
    };
    let last = good.rows.len() - 1;
    let of = |space| good.rows.iter().position(|(s, ..)| *s == space).unwrap();
    let mut bad = good.clone();
    bad.rows.remove(last);
    assert!(refused(&bad).await.starts_with("log_agrees_with_data"));
    assert!(deep(&bad).contains("does not agree"), "{}", deep(&bad));
    let mut bad = good.clone();
    bad.rows.swap(last, last - 1);
    assert!(refused(&bad).await.contains("out of order"));
    let mut bad = good.clone();
    bad.rows.remove(of(Keyspace::Log) + 2);
    assert!(refused(&bad).await.contains("gap after commit 2"));
    let mut bad = good.clone();
    bad.rows.remove(of(Keyspace::Log) + 5);
    assert!(refused(&bad).await.contains("does not lead to the head"));
    let mut bad = good.clone();
    let defined = bad
        .rows
        .iter()
        .position(|(_, k, _)| k == b"table/d")
        .unwrap();
    bad.rows.remove(defined);
    assert!(refused(&bad).await.contains("has no table"));
    for (space, key) in [(Keyspace::Meta, HEAD_KEY), (Keyspace::Index, b"x")] {
        let mut bad = good.clone();
        bad.rows.insert(0, (space, key.to_vec(), "x".into()));
        assert!(refused(&bad).await.contains("does not hold"));
    }
    let defined = good.rows[defined].clone();
    let text = String::from_utf8(defined.2.to_vec()).unwrap();
    let mut bad = good.clone();
    let at = bad.rows.iter().position(|row| *row == defined).unwrap();
    bad.rows[at].2 = text.replace("\"fields\":null", "\"fields\":[]").into();
    assert!(refused(&bad).await.starts_with("log_agrees_with_data"));
    assert!(deep(&bad).contains("does not agree"), "{}", deep(&bad));
    let mut bad = good.clone();
    bad.rows[last].2 = "{}".into();
    assert!(
        deep(&bad).contains("document_is_canonical"),
        "{}",
        deep(&bad)
    );
    let text = good.rows[last].2.to_vec();
    let mut bad = good.clone();
    bad.rows[last].2 = String::from_utf8(text)
        .unwrap()
        .replace("xxxxx", "xxxxy")
        .into();
    assert!(refused(&bad).await.starts_with("log_agrees_with_data"));
    assert!(deep(&bad).contains("does not agree"), "{}", deep(&bad));
}

#[tokio::test]
async fn what_changes_meanwhile_is_bounded_by_its_number_and_not_by_its_size() {
    let world = world();
    let tenant = world.tenant("a").await;
    let mut ids = Vec::new();
    for n in 0..3 * STEP {
        ids.push(tenant.insert(&table("d"), body(n, 60_000)).await.unwrap());
    }
    let quiet = all(&tenant, async || {}).await;
    let mut first = true;
    let busy = all(&tenant, async || {
        for id in ids.iter().filter(|_| first) {
            let id = id.to_string();
            for len in [50_000, 5] {
                tenant.patch(&table("d"), &id, body(0, len)).await.unwrap();
            }
        }
        first = false;
        // What the log alone has yet must stay there.
        tenant.prune_log().await.unwrap();
    })
    .await;
    assert_eq!(busy, quiet);

    let mut archive = tenant.archive().await.unwrap();
    for _ in 0..200 {
        let id = tenant.insert(&table("e"), body(0, 5)).await.unwrap();
        let id = id.to_string();
        tenant.delete(&table("e"), &id).await.unwrap();
    }
    while archive.next().await.unwrap().is_some() {}
    let mut many = Vec::new();
    for n in 0..crate::engine::asof::MAX_CHANGED_BYTES / 64 {
        many.push(tenant.insert(&table("f"), body(n, 500)).await.unwrap());
    }
    let mut archive = tenant.archive().await.unwrap();
    for id in many {
        let id = id.to_string();
        tenant.patch(&table("f"), &id, body(0, 5)).await.unwrap();
    }
    let error = loop {
        match archive.next().await {
            Ok(step) => assert!(step.is_some(), "nothing bounds it"),
            Err(error) => break error,
        }
    };
    let StoreError::CapExceeded { cap, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(cap, "backup_changes");
}
