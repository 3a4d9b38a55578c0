//! Live queries: a subscriber sees every commit that changes its result, in order, and none that
//! does not; identical queries run once; a slow subscriber gets the newest result only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use nimbus_storage::core::{DocumentId, Object, TableName, Value};
use nimbus_storage::{
    Direction, FilterOp, LiveResult, ProviderError, Query, StoreError, Subscription, Tenant,
};

use super::support::*;

const TABLE: &str = "d";

fn table() -> TableName {
    name(TABLE)
}

fn row(k: usize, n: f64) -> Object {
    object([("k", num(k as f64)), ("n", num(n))])
}

fn by_k(k: usize) -> Query {
    query(TABLE, vec![filter("k", FilterOp::Eq, num(k as f64))], None)
}

async fn indexed(world: &World) -> Tenant {
    let tenant = world.create("t").await;
    let indexes: &[(&str, &[&str])] = &[("by_k", &["k"]), ("by_n", &["n"])];
    let declared = schema(TABLE, &["k", "n"], indexes);
    tenant.put_schema(declared).await.unwrap();
    tenant
}

async fn next(subscription: &mut Subscription) -> Arc<LiveResult> {
    soon("a live result", subscription.next()).await.unwrap()
}

fn texts(result: &Arc<LiveResult>) -> Vec<String> {
    jsons(result.documents.as_ref().unwrap())
}

/// Queries of every shape that an engine may answer differently.
fn shapes(known: DocumentId) -> Vec<Query> {
    let mut top = query(TABLE, Vec::new(), Some(("n", Direction::Backward)));
    top.limit = Some(3);
    let low = filter("n", FilterOp::Lt, num(4.0));
    vec![
        by_k(1),
        query(TABLE, vec![filter("k", FilterOp::Neq, num(1.0))], None),
        query(TABLE, vec![low], Some(("n", Direction::Forward))),
        query(
            TABLE,
            vec![filter("_id", FilterOp::Eq, text(&known.to_string()))],
            None,
        ),
        query(TABLE, vec![filter("other", FilterOp::Eq, num(2.0))], None),
        top,
        Query::table(table()),
        Query::table(name("later")),
    ]
}

/// One writer that waits for each delivery: exactly the commits that change a result arrive.
#[tokio::test]
async fn exactly_the_commits_that_change_a_result_are_delivered() {
    for seed in 1..=3 {
        let world = World::new().await;
        let tenant = indexed(&world).await;
        let mut random = Random::new(seed);
        let mut ids = vec![tenant.insert(&table(), row(1, 1.0)).await.unwrap()];
        let queries = shapes(ids[0]);
        let mut live = Vec::new();
        for query in &queries {
            let mut subscription = tenant.subscribe(query.clone()).await.unwrap();
            let first = texts(&next(&mut subscription).await);
            live.push((subscription, first));
        }
        let mut delivered = 0;
        for step in 0..120 {
            let head = tenant.metrics().mutation_journal.durable_head;
            change(&tenant, &mut random, &mut ids).await;
            let sequence = tenant.metrics().mutation_journal.durable_head;
            assert_eq!(sequence, head + 1, "one commit a step");
            for (query, (subscription, last)) in queries.iter().zip(&mut live) {
                let now = jsons(&tenant.query(query).await.unwrap());
                if now == *last {
                    continue;
                }
                let result = next(subscription).await;
                assert_eq!(
                    result.sequence, sequence,
                    "seed {seed} step {step} {query:?}"
                );
                assert_eq!(texts(&result), now, "seed {seed} step {step} {query:?}");
                *last = now;
                delivered += 1;
            }
        }
        assert!(delivered > 100, "seed {seed}: {delivered} deliveries");
        for (query, (subscription, _)) in queries.iter().zip(&mut live) {
            assert!(subscription.next().now_or_never().is_none(), "{query:?}");
        }
    }
}

async fn change(tenant: &Tenant, random: &mut Random, ids: &mut Vec<DocumentId>) {
    let (k, n) = (random.below(4), random.below(8) as f64);
    match random.below(8) {
        0..3 => ids.push(tenant.insert(&table(), row(k, n)).await.unwrap()),
        3..6 => {
            let id = random.pick(ids).to_string();
            tenant.patch(&table(), &id, row(k, n)).await.unwrap();
        }
        6 if ids.len() > 3 => {
            let id = ids.swap_remove(1 + random.below(ids.len() - 1));
            tenant.delete(&table(), &id.to_string()).await.unwrap();
        }
        _ => {
            let other = object([("other", num(n))]);
            tenant.insert(&name("later"), other).await.unwrap();
        }
    }
}

/// Writers that wait for nobody: each result is the true one at its sequence, sequences
/// increase, and the last one is reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn free_running_writers_are_followed() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let first = tenant.insert(&table(), row(1, 1.0)).await.unwrap();
    let queries = shapes(first);
    let mut followers = Vec::new();
    for query in queries.clone() {
        let mut subscription = tenant.subscribe(query).await.unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        followers.push(seen.clone());
        tokio::spawn(async move {
            while let Some(result) = subscription.next().await {
                let entry = (result.sequence, texts(&result));
                seen.lock().unwrap().push(entry);
            }
        });
    }
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let tenant = tenant.clone();
            tokio::spawn(async move {
                let mut random = Random::new(writer);
                let mut ids = vec![tenant.insert(&table(), row(0, 0.0)).await.unwrap()];
                for _ in 0..60 {
                    change(&tenant, &mut random, &mut ids).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let states = [
        (TABLE, replay(&tenant, TABLE).await),
        ("later", replay(&tenant, "later").await),
    ];
    for (query, seen) in queries.iter().zip(followers) {
        let last = jsons(&tenant.query(query).await.unwrap());
        until("the follower has the last state", || async {
            seen.lock().unwrap().last().is_some_and(|(_, t)| *t == last)
        })
        .await;
        let seen = seen.lock().unwrap();
        let ordered = seen.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 != w[1].1);
        assert!(ordered, "{query:?}: sequences or repeated results");
        let (_, states) = states
            .iter()
            .find(|(t, _)| *t == query.table.as_str())
            .unwrap();
        for (sequence, texts) in seen.iter() {
            let (documents, model) = &states[sequence];
            let answer = model.answer(query);
            let expected: Vec<_> = answer.iter().map(|id| &documents[id]).collect();
            assert!(texts.iter().eq(expected), "{query:?} at {sequence}");
        }
    }
}

type States = BTreeMap<u64, (BTreeMap<DocumentId, String>, Model)>;

/// A table after each commit, as the journal tells it.
async fn replay(tenant: &Tenant, table: &str) -> States {
    let mut states = States::new();
    let (mut documents, mut model) = (BTreeMap::new(), Model::default());
    let mut after = 0;
    loop {
        let page = tenant.journal(after, 500).await.unwrap();
        for record in &page.records {
            for write in record.writes.iter().filter(|w| w.table == table) {
                let id: DocumentId = write.doc_id.parse().unwrap();
                match &write.current {
                    Some(raw) => {
                        documents.insert(id, raw.get().to_owned());
                        let fields: Object = serde_json::from_str(raw.get()).unwrap();
                        model.0.insert(id, fields);
                    }
                    None => {
                        documents.remove(&id);
                        model.0.remove(&id);
                    }
                }
            }
            states.insert(record.sequence, (documents.clone(), model.clone()));
        }
        after = page.next_cursor;
        if !page.has_more {
            return states;
        }
    }
}

#[tokio::test]
async fn identical_queries_run_once_and_unchanged_results_are_not_sent() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let mut live = Vec::new();
    for _ in 0..50 {
        live.push(tenant.subscribe(by_k(1)).await.unwrap());
    }
    for subscription in &mut live {
        next(subscription).await;
    }
    let metrics = || tenant.metrics().subscription_delivery;
    let before = metrics();
    assert_eq!((before.subscription_count, before.query_count), (50, 1));
    assert_eq!(before.reevaluation_count, 1);
    let id = tenant.insert(&table(), row(1, 1.0)).await.unwrap();
    let mut results = Vec::new();
    for subscription in &mut live {
        results.push(next(subscription).await);
    }
    assert!(results.windows(2).all(|w| Arc::ptr_eq(&w[0], &w[1])));
    assert_eq!(metrics().reevaluation_count, 2);
    // Touches what the query read, and changes nothing of its result.
    let same = object([("k", num(1.0))]);
    tenant.patch(&table(), &id.to_string(), same).await.unwrap();
    until("the query ran again", || async {
        metrics().reevaluation_count == 3
    })
    .await;
    let n = object([("n", num(2.0))]);
    tenant.patch(&table(), &id.to_string(), n).await.unwrap();
    let sequence = tenant.metrics().mutation_journal.durable_head;
    for subscription in &mut live {
        assert_eq!(
            next(subscription).await.sequence,
            sequence,
            "skips the one between"
        );
    }
    // Commits elsewhere run nothing.
    tenant.insert(&table(), row(2, 1.0)).await.unwrap();
    tenant
        .insert(&name("elsewhere"), row(1, 1.0))
        .await
        .unwrap();
    let probe = tenant.subscribe(by_k(2)).await;
    next(&mut probe.unwrap()).await;
    assert_eq!(
        metrics().reevaluation_count,
        5,
        "the change above and the probe"
    );
}

#[tokio::test]
async fn a_slow_subscriber_gets_the_newest_only() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let mut slow = tenant.subscribe(by_k(1)).await.unwrap();
    let mut fast = tenant.subscribe(by_k(1)).await.unwrap();
    next(&mut slow).await;
    next(&mut fast).await;
    for n in 0..20 {
        tenant.insert(&table(), row(1, f64::from(n))).await.unwrap();
        next(&mut fast).await;
    }
    let newest = next(&mut slow).await;
    assert_eq!(texts(&newest).len(), 20);
    assert!(
        slow.next().now_or_never().is_none(),
        "older results are gone"
    );
}

#[tokio::test]
async fn a_late_subscriber_sees_what_was_acknowledged_before() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let mut early = tenant.subscribe(by_k(1)).await.unwrap();
    next(&mut early).await;
    // The writer's own view passes; the live query's waits.
    let gate = Gate::shut();
    let (held, calls) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    world.hooks.on_snapshot(move || {
        let (gate, call) = (held.clone(), calls.fetch_add(1, Ordering::SeqCst));
        async move {
            if call > 0 {
                gate.pass().await;
            }
            Ok(())
        }
    });
    tenant.insert(&table(), row(1, 1.0)).await.unwrap();
    gate.arrival().await;
    let mut late = tenant.subscribe(by_k(1)).await.unwrap();
    assert!(
        late.next().now_or_never().is_none(),
        "the known result is out of date"
    );
    gate.open();
    assert_eq!(texts(&next(&mut late).await).len(), 1);
    assert_eq!(texts(&next(&mut early).await).len(), 1);
    world.hooks.clear();

    // The same when the result turns out to be what it was: the late one must not wait for ever,
    // and the early one hears nothing.
    let gate = Gate::shut();
    let (held, calls) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    world.hooks.on_snapshot(move || {
        let (gate, call) = (held.clone(), calls.fetch_add(1, Ordering::SeqCst));
        async move {
            if call > 0 {
                gate.pass().await;
            }
            Ok(())
        }
    });
    let id = texts(&next(&mut tenant.subscribe(by_k(1)).await.unwrap()).await);
    let id: Object = serde_json::from_str(&id[0]).unwrap();
    let Value::String(id) = &id["_id"] else {
        panic!("an id is text");
    };
    tenant.patch(&table(), id, row(1, 1.0)).await.unwrap();
    gate.arrival().await;
    let mut later = tenant.subscribe(by_k(1)).await.unwrap();
    gate.open();
    assert_eq!(texts(&next(&mut later).await).len(), 1);
    tenant.insert(&table(), row(1, 2.0)).await.unwrap();
    for subscription in [&mut early, &mut late, &mut later] {
        assert_eq!(
            texts(&next(subscription).await).len(),
            2,
            "nothing in between"
        );
    }
}

#[tokio::test]
async fn leaving_cleans_up_and_coming_back_works() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let metrics = || tenant.metrics().subscription_delivery;
    for round in 0..3u32 {
        let mut live: Vec<_> = Vec::new();
        for k in 0..20 {
            let mut subscription = tenant.subscribe(by_k(k % 5)).await.unwrap();
            next(&mut subscription).await;
            live.push(subscription);
        }
        assert_eq!(
            (metrics().subscription_count, metrics().query_count),
            (20, 5)
        );
        live.truncate(10);
        assert_eq!(
            (metrics().subscription_count, metrics().query_count),
            (10, 5)
        );
        tenant
            .insert(&table(), row(1, f64::from(round)))
            .await
            .unwrap();
        assert_eq!(texts(&next(&mut live[1]).await).len(), round as usize + 1);
        drop(live);
        assert_eq!(
            (metrics().subscription_count, metrics().query_count),
            (0, 0)
        );
        let before = metrics().reevaluation_count;
        tenant.insert(&table(), row(9, 0.0)).await.unwrap();
        assert_eq!(metrics().reevaluation_count, before);
    }
}

#[tokio::test]
async fn subscriptions_end_with_the_tenant() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let mut live = tenant.subscribe(by_k(1)).await.unwrap();
    next(&mut live).await;
    let waiting = tokio::spawn(async move { live.next().await.is_none() });
    world.engine().delete_tenant(&name("t")).await.unwrap();
    assert!(soon("the end", waiting).await.unwrap());
    let refused = tenant.subscribe(by_k(1)).await;
    assert!(matches!(refused, Err(StoreError::Closed)));

    let other = world.create("u").await;
    let mut live = other.subscribe(by_k(1)).await.unwrap();
    next(&mut live).await;
    world.engine().close().await.unwrap();
    assert!(soon("the end", live.next()).await.is_none());
}

#[tokio::test]
async fn a_query_that_cannot_be_answered_says_so_and_recovers() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let mut live = tenant.subscribe(Query::table(table())).await.unwrap();
    next(&mut live).await;
    let big = "x".repeat(1_000_000);
    let mut ids = Vec::new();
    let mut result = None;
    for _ in 0..17 {
        let row = object([("k", num(1.0)), ("n", text(&big))]);
        ids.push(tenant.insert(&table(), row).await.unwrap());
        result = Some(next(&mut live).await);
    }
    let error = result.unwrap().documents.clone().unwrap_err();
    assert!(
        matches!(
            *error,
            StoreError::CapExceeded {
                cap: "result_bytes",
                ..
            }
        ),
        "{error}"
    );
    tenant.delete(&table(), &ids[0].to_string()).await.unwrap();
    assert_eq!(next(&mut live).await.documents.as_ref().unwrap().len(), 16);
}

#[tokio::test]
async fn a_failure_of_the_provider_is_got_over() {
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let mut live = tenant.subscribe(by_k(1)).await.unwrap();
    next(&mut live).await;
    let calls = AtomicUsize::new(0);
    world.hooks.on_snapshot(move || {
        // The first view is the writer's, the second the live query's.
        let fails = calls.fetch_add(1, Ordering::SeqCst) == 1;
        async move {
            let what = "planted".to_owned();
            if fails {
                Err(ProviderError::Busy { what })
            } else {
                Ok(())
            }
        }
    });
    tenant.insert(&table(), row(1, 1.0)).await.unwrap();
    let mut result = next(&mut live).await;
    if result.documents.is_err() {
        result = next(&mut live).await;
    }
    assert_eq!(texts(&result).len(), 1);
    tenant.insert(&table(), row(1, 2.0)).await.unwrap();
    assert_eq!(texts(&next(&mut live).await).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_thousand_subscriptions_a_commit_runs_those_it_touches() {
    const COUNT: usize = 100_000;
    let world = World::new().await;
    let tenant = indexed(&world).await;
    let mut live = Vec::with_capacity(COUNT);
    for k in 0..COUNT {
        live.push(tenant.subscribe(by_k(k)).await.unwrap());
    }
    for subscription in &mut live {
        next(subscription).await;
    }
    let metrics = || tenant.metrics().subscription_delivery;
    assert_eq!(metrics().query_count, COUNT as u64);
    assert_eq!(metrics().reevaluation_count, COUNT as u64);
    let ran = |before: u64| metrics().reevaluation_count - before;
    for k in [0, 5, 50_000, COUNT - 1] {
        let before = metrics().reevaluation_count;
        tenant.insert(&table(), row(k, 1.0)).await.unwrap();
        assert_eq!(texts(&next(&mut live[k]).await).len(), 1);
        assert!((1..=10).contains(&ran(before)), "{} ran", ran(before));
    }
    let before = metrics().reevaluation_count;
    tenant.insert(&table(), row(COUNT + 7, 1.0)).await.unwrap();
    let mut probe = tenant.subscribe(by_k(COUNT + 7)).await.unwrap();
    next(&mut probe).await;
    assert!(
        ran(before) <= 1,
        "a key nobody asked for ran {}",
        ran(before)
    );
    let started = std::time::Instant::now();
    drop(live);
    assert_eq!(metrics().query_count, 1);
    assert!(
        started.elapsed().as_secs() < 20,
        "leaving takes {:?}",
        started.elapsed()
    );
}
