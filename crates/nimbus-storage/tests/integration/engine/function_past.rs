//! Reads at earlier timestamps equal what was there then, in every index.

use nimbus_storage::core::{DocumentId, TableName};
use nimbus_storage::{Ran, StoreError, Tenant, Transaction};

use super::support::*;

fn table() -> TableName {
    name(FUNCTION_TABLE)
}

/// One random commit.
async fn change(tenant: &Tenant, random: &mut Random) {
    let steps: Vec<_> = (0..1 + random.below(3))
        .map(|_| (random.below(4), random.next(), any_fields(random)))
        .collect();
    tenant
        .transact(|tx| {
            let steps = steps.clone();
            Box::pin(async move {
                for (kind, which, fields) in steps {
                    let model = model_of(tx).await;
                    let known = (!model.is_empty()).then(|| {
                        let at = usize::try_from(which).unwrap() % model.len();
                        model[at].0.to_string()
                    });
                    match (kind, known) {
                        (0, Some(id)) => drop(tx.fn_remove(&id, None).await.unwrap()),
                        (1 | 2, Some(id)) => drop(tx.fn_replace(&id, None, fields).await.unwrap()),
                        _ => drop(tx.fn_insert(FUNCTION_TABLE, fields).await.unwrap()),
                    }
                }
                Ok(())
            })
        })
        .await
        .unwrap();
}

/// What a transaction sees, in every index.
async fn seen(tx: &mut Transaction) -> Vec<Vec<DocumentId>> {
    let mut all = Vec::new();
    for (index, _) in FUNCTION_INDEXES {
        for descending in [false, true] {
            all.push(drain(tx, &Asked::all(index, descending).query()).await);
        }
    }
    all
}

#[tokio::test]
async fn the_past_is_what_was_there() {
    let world = World::new().await;
    let mut random = Random::new(1);
    let tenant = function_tenant(&world, &mut random, 10).await;
    let mut states = Vec::new();
    for _ in 0..40 {
        change(&tenant, &mut random).await;
        let mut tx = tenant.begin_read(None).await.unwrap();
        assert_eq!(tx.timestamp(), tenant.latest_timestamp());
        let (model, seen) = (model_of(&mut tx).await, seen(&mut tx).await);
        states.push((tx.timestamp(), model, seen));
    }
    for (at, model, all) in &states {
        let mut tx = tenant.begin_read(Some(*at)).await.unwrap();
        assert_eq!(tx.timestamp(), *at);
        assert_eq!(&model_of(&mut tx).await, model, "at {at}");
        assert_eq!(&seen(&mut tx).await, all, "at {at}");
        for _ in 0..3 {
            let asked = Asked::any(&mut random, model);
            assert_eq!(
                drain(&mut tx, &asked.query()).await,
                asked.answer(model),
                "{asked:?}"
            );
        }
        let (id, fields) = random.pick(model);
        let found = tx.fn_get(&id.to_string(), None).await.unwrap().unwrap();
        assert_eq!(&found.fields().unwrap(), fields);
    }
    // Between two commits it is what the earlier one left.
    for pair in states.windows(2) {
        let between = pair[1].0 - 1;
        let mut tx = tenant.begin_read(Some(between)).await.unwrap();
        assert_eq!(model_of(&mut tx).await, pair[0].1);
    }
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn reads_of_the_past_can_be_watched() {
    let world = World::new().await;
    let mut random = Random::new(2);
    let tenant = function_tenant(&world, &mut random, 3).await;
    let mut tx = tenant.begin_read(None).await.unwrap();
    let at = tx.timestamp();
    let ids: Vec<_> = model_of(&mut tx).await.into_iter().map(|d| d.0).collect();
    let patch = object([("n", num(7.0))]);
    tenant
        .patch(&table(), &ids[0].to_string(), patch)
        .await
        .unwrap();
    for (which, valid) in [(0, false), (1, true)] {
        let mut tx = tenant.begin_read(Some(at)).await.unwrap();
        tx.fn_get(&ids[which].to_string(), None)
            .await
            .unwrap()
            .unwrap();
        let watch = tenant.watch(tx.take_reads());
        assert_eq!(watch.is_valid(), valid, "document {which}");
    }
}

#[tokio::test]
async fn the_past_has_the_tables_and_indexes_of_its_time() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    tenant
        .insert(&name("first"), object([("a", num(0.0))]))
        .await
        .unwrap();
    let empty = tenant.latest_timestamp();
    tenant
        .insert(&table(), object([("a", num(1.0))]))
        .await
        .unwrap();
    let bare = tenant.latest_timestamp();
    let declared = schema(FUNCTION_TABLE, &["a"], &[("by_a", &["a"])]);
    tenant.put_schema(declared).await.unwrap();
    indexes_ready(&tenant, FUNCTION_TABLE).await;
    let indexed = tenant.begin_read(None).await.unwrap().timestamp();
    tenant
        .insert(&table(), object([("a", num(0.5))]))
        .await
        .unwrap();
    let by_a = Asked::all("by_a", false).query();
    for (at, message) in [(empty, "not found."), (bare, "not found.")] {
        let mut tx = tenant.begin_read(Some(at)).await.unwrap();
        let (code, text) = caught(tx.open_query(&by_a).map(|_| ()));
        assert_eq!(code, "IndexNotFoundError");
        assert!(text.ends_with(message), "{text}");
    }
    let mut tx = tenant.begin_read(Some(empty)).await.unwrap();
    assert_eq!(tx.fn_count(FUNCTION_TABLE).await.unwrap(), 0);
    let mut tx = tenant.begin_read(Some(indexed)).await.unwrap();
    assert_eq!(drain(&mut tx, &by_a).await.len(), 1);
    // An index that was dropped since cannot be put back.
    tenant
        .put_schema(schema(FUNCTION_TABLE, &["a"], &[]))
        .await
        .unwrap();
    let gone = tenant.begin_read(Some(indexed)).await;
    assert!(matches!(
        gone,
        Err(StoreError::TimestampOutOfRetention { .. })
    ));
}

#[tokio::test]
async fn times_that_are_not_kept_are_refused() {
    let world = World::new().await;
    let mut random = Random::new(3);
    let tenant = function_tenant(&world, &mut random, 5).await;
    let old = tenant.latest_timestamp();
    change(&tenant, &mut random).await;
    let newest = tenant.latest_timestamp();
    for at in [newest + 1, u64::MAX] {
        match tenant.begin_read(Some(at)).await.map(|_| ()) {
            Err(StoreError::TimestampOutOfRetention {
                requested,
                newest: known,
            }) => {
                assert_eq!((requested, known), (at, newest));
            }
            other => panic!("{other:?}"),
        }
    }
    tenant.begin_read(Some(old)).await.unwrap();
    tenant.prune_log().await.unwrap();
    let pruned = tenant.begin_read(Some(old)).await.map(|_| ());
    assert!(
        matches!(pruned, Err(StoreError::TimestampOutOfRetention { .. })),
        "{pruned:?}"
    );
    tenant.begin_read(Some(newest)).await.unwrap();
}

#[tokio::test]
async fn a_transaction_that_reads_cannot_write() {
    let world = World::new().await;
    let tenant = function_tenant(&world, &mut Random::new(4), 2).await;
    let head = tenant.latest_timestamp();
    for at in [None, Some(head)] {
        let mut tx = tenant.begin_read(at).await.unwrap();
        let id = model_of(&mut tx).await[0].0.to_string();
        let (_, text) = caught(tx.fn_insert("new", object([("a", num(1.0))])).await);
        assert!(text.contains("only reads"), "{text}");
        caught(tx.fn_remove(&id, None).await);
        assert!(
            tx.normalize_id("new", &id).is_none(),
            "the table was not made"
        );
        assert_eq!(model_of(&mut tx).await.len(), 2);
        tenant.commit(tx).await.unwrap();
    }
    assert_eq!(tenant.latest_timestamp(), head);
}

/// The stamp of a run that left nothing is that of a state which has all that it saw.
#[tokio::test]
async fn stamps_are_those_of_commits() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    assert_eq!(tenant.latest_timestamp(), 0);
    let mut last = nimbus_storage::CommitStamp::default();
    for run in 0..6 {
        let discard = run % 3 == 2;
        let (kept, stamp) = tenant
            .transact_function(|tx, attempt| {
                Box::pin(async move {
                    assert_eq!(attempt, 1);
                    tx.fn_insert("t", object([("a", num(1.0))])).await.unwrap();
                    Ok(if discard {
                        Ran::Discard(false)
                    } else {
                        Ran::Commit(true)
                    })
                })
            })
            .await
            .unwrap();
        assert_eq!(kept, !discard);
        if discard {
            assert_eq!(stamp, last);
        } else {
            assert_eq!(stamp.sequence, last.sequence + 1);
            assert!(stamp.timestamp_ns > last.timestamp_ns);
        }
        assert_eq!(stamp.timestamp_ns, tenant.latest_timestamp());
        last = stamp;
    }
    let mut tx = tenant.begin_read(None).await.unwrap();
    assert_eq!(
        tx.fn_count("t").await.unwrap(),
        4,
        "what was discarded is not there"
    );
}

/// The deployment of a read of the past comes from its own snapshot, of which there is one.
#[tokio::test]
async fn the_past_has_its_own_deployment() {
    let settings = Settings {
        readers: 1,
        ..Settings::default()
    };
    let world = World::with(settings).await;
    let tenant = world.create("t").await;
    let old = deploy(&tenant, plan(&[("a.js", "old")])).await.deployment;
    let then = tenant.latest_timestamp();
    let new = deploy(&tenant, plan(&[("a.js", "new")])).await.deployment;
    let mut past = tenant.begin_read(Some(then)).await.unwrap();
    let found = soon("the deployment", past.deployment()).await.unwrap();
    assert_eq!(found, Some(old));
    drop(past);
    let mut present = tenant.begin_read(None).await.unwrap();
    let found = soon("the deployment", present.deployment()).await.unwrap();
    // From memory: it was not displaced by the old one.
    assert!(std::sync::Arc::ptr_eq(&found.unwrap(), &new));
    drop(present);
    for n in 0..nimbus_storage::KEPT_DEPLOYMENTS {
        deploy(&tenant, plan(&[("a.js", &format!("{n}"))])).await;
    }
    let mut past = tenant.begin_read(Some(then)).await.unwrap();
    let gone = soon("the deployment", past.deployment()).await;
    assert!(
        matches!(gone, Err(StoreError::TimestampOutOfRetention { .. })),
        "{gone:?}"
    );
}

/// Code is not undone, so a large one that was dropped does not keep the past from being read.
#[tokio::test]
async fn dropped_code_does_not_weigh_on_the_past() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let id = insert(&tenant, "d", object([("n", num(1.0))]))
        .await
        .to_string();
    let large = "x".repeat(14 << 20);
    let modules: Vec<String> = (0..5).map(|n| format!("{n}{large}")).collect();
    let paths: Vec<String> = (0..5).map(|n| format!("{n}.js")).collect();
    let both = paths.iter().zip(&modules);
    let all: Vec<(&str, &str)> = both.map(|(p, m)| (p.as_str(), m.as_str())).collect();
    deploy(&tenant, plan(&all)).await;
    let then = tenant.latest_timestamp();
    for n in 0..nimbus_storage::KEPT_DEPLOYMENTS {
        deploy(&tenant, plan(&[("a.js", &format!("{n}"))])).await;
    }
    let patch = object([("n", num(2.0))]);
    tenant.patch(&name("d"), &id, patch).await.unwrap();
    let mut past = tenant.begin_read(Some(then)).await.unwrap();
    let found = past.fn_get(&id, None).await.unwrap().unwrap();
    assert_eq!(found.fields().unwrap()["n"], num(1.0));
}
