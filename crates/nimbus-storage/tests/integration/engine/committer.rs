//! Group commit, pipelining, and a batch of which the provider refuses one member: it fails
//! alone, and nothing that was seen of it remains.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nimbus_storage::provider::Keyspace;
use nimbus_storage::{ProviderError, Query, StoreError};

use super::stage::*;
use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_writers_share_batches() {
    const WRITERS: u64 = 64;
    const EACH: u64 = 10;
    let world = World::new().await;
    let tenant = world.create("t").await;
    tenant.insert(&table(), n(-1.0)).await.unwrap();
    let before = tenant.metrics().mutation_journal;
    // Each batch takes until every writer that is not done has a commit on its way.
    let writing = Arc::new(AtomicU64::new(WRITERS));
    let watched = (tenant.clone(), writing.clone());
    world.hooks.on_commit(move |_| {
        let (tenant, writing) = watched.clone();
        async move {
            until("every writer waits", || async {
                let lag = tenant.metrics().mutation_journal.apply_lag;
                lag >= writing.load(Ordering::SeqCst)
            })
            .await;
            Verdict::Pass
        }
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let (tenant, writing) = (tenant.clone(), writing.clone());
            tokio::spawn(async move {
                for i in 0..EACH {
                    let row = n((w * EACH + i) as f64);
                    tenant.insert(&table(), row).await.unwrap();
                }
                writing.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    for writer in writers {
        soon("a writer", writer).await.unwrap();
    }
    let after = tenant.metrics().mutation_journal;
    let commits = after.commit_count - before.commit_count;
    let batches = after.batch_count - before.batch_count;
    assert_eq!(commits, WRITERS * EACH);
    assert!(
        commits >= 20 * batches,
        "{commits} commits in {batches} batches"
    );
    world.hooks.clear();
    let mut expected: Vec<f64> = (0..WRITERS * EACH).map(|i| i as f64).collect();
    expected.push(-1.0);
    assert_table(&tenant, &expected).await;
}

#[tokio::test]
async fn the_next_batch_is_validated_while_one_syncs() {
    let stage = Stage::new(|_| Verdict::Pass).await;
    let tenant = &stage.tenant;
    let first = stage.first;
    let patch = {
        let tenant = tenant.clone();
        tokio::spawn(async move { tenant.patch(&table(), &first.to_string(), n(1.0)).await })
    };
    stage.gate.arrival().await;
    // A transaction sees the commit that is not durable and builds on it.
    let second = {
        let tenant = tenant.clone();
        tokio::spawn(async move {
            tenant
                .transact(|tx| {
                    Box::pin(async move {
                        let seen = tx.get(first).await?.unwrap().fields()?;
                        assert_eq!(seen["n"], num(1.0));
                        tx.patch(&table(), first, n(2.0)).await
                    })
                })
                .await
        })
    };
    until("the second is accepted", || async {
        stage.accepted() == stage.base + 2
    })
    .await;
    assert_eq!(stage.durable(), stage.base, "nothing is durable yet");
    assert!(
        !patch.is_finished() && !second.is_finished(),
        "answered too early"
    );
    // Reads outside a transaction see durable states only.
    let read = tenant.get(&table(), &first.to_string()).await.unwrap();
    assert_eq!(read.fields().unwrap()["n"], num(0.0));
    stage.gate.let_one();
    soon("the first", patch).await.unwrap().unwrap();
    stage.gate.arrival().await;
    assert_eq!(stage.durable(), stage.base + 1);
    assert!(
        !second.is_finished(),
        "answered before its own batch was durable"
    );
    stage.gate.let_one();
    soon("the second", second).await.unwrap().unwrap();
    stage.verify(&[2.0]).await;
}

#[tokio::test]
async fn one_bad_member_fails_alone() {
    let stage = Stage::new(refuse_marked).await;
    let plug = stage.plug().await;
    let rows = (1..=6).map(|i| if i == 3 { marked(3.0) } else { n(f64::from(i)) });
    let tasks = stage.queue_apart(rows.collect()).await;
    stage.gate.open();
    outcome(plug).await.unwrap();
    for (i, task) in tasks.into_iter().enumerate() {
        let result = outcome(task).await;
        if i == 2 {
            let refused = matches!(&result, Err(StoreError::Storage(ProviderError::Io { .. })));
            assert!(refused, "{result:?}");
        } else {
            result.unwrap();
        }
    }
    let mut expected: Vec<f64> = (-1..=6).map(f64::from).collect();
    expected.retain(|v| *v != 3.0);
    stage.verify(&expected).await;
}

/// While the members of a refused batch are committed one by one, others keep coming.
#[tokio::test]
async fn commits_that_arrive_during_one_by_one_keep_the_chain() {
    let stage = Stage::new(refuse_marked).await;
    let plug = stage.plug().await;
    let tasks = stage.queue_apart(vec![marked(1.0), n(2.0), n(3.0)]).await;
    // The plug, the batch that is refused, its first member that is refused again.
    for _ in 0..3 {
        stage.gate.let_one();
        stage.gate.arrival().await;
    }
    outcome(plug).await.unwrap();
    // Its second member stands at the gate alone.
    let head = stage.accepted();
    let late = stage.insert(n(4.0));
    until("the late one is accepted or waits", || async {
        stage.accepted() > head || stage.tenant.metrics().mutation_admission.queue_depth > 0
    })
    .await;
    stage.gate.open();
    let mut results = vec![outcome(late).await.is_ok()];
    for task in tasks {
        results.push(outcome(task).await.is_ok());
    }
    assert_eq!(results, [true, false, true, true]);
    stage.verify(&[-1.0, 0.0, 2.0, 3.0, 4.0]).await;
}

/// A member that read what a refused member wrote must not be committed: that never was.
#[tokio::test]
async fn a_member_that_read_a_refused_one_is_run_again() {
    let stage = Stage::new(refuse_marked).await;
    let (tenant, first) = (&stage.tenant, stage.first);
    let plug = stage.plug().await;
    let mut other = tenant.begin().await.unwrap();
    other.insert(&table(), n(1.0)).await.unwrap();
    let bad = {
        let tenant = tenant.clone();
        tokio::spawn(async move {
            let id = first.to_string();
            tenant.patch(&table(), &id, marked(666.0)).await
        })
    };
    until("the bad one is accepted", || async {
        stage.accepted() == stage.base + 2
    })
    .await;
    // Reads 666 and would write it elsewhere.
    let mut copy = tenant.begin().await.unwrap();
    let seen = copy.get(first).await.unwrap().unwrap().fields().unwrap();
    assert_eq!(seen["n"], num(666.0), "transactions see validated commits");
    let value = seen["n"].clone();
    copy.insert(&table(), object([("n", value)])).await.unwrap();
    // The other one, which read nothing, gets the refused one's sequence in the end.
    let other = stage.commit(other).await;
    let copied = stage.commit(copy).await;
    stage.gate.open();
    outcome(plug).await.unwrap();
    assert!(matches!(outcome(bad).await, Err(StoreError::Storage(_))));
    outcome(other).await.unwrap();
    let copied = soon("the copy", copied).await.unwrap();
    assert!(
        matches!(copied, Err(StoreError::Conflict { .. })),
        "{copied:?}"
    );
    stage.verify(&[-1.0, 0.0, 1.0]).await;
}

#[tokio::test]
async fn a_passing_failure_during_one_by_one_is_tried_again() {
    let calls = AtomicUsize::new(0);
    let stage = Stage::new(move |batch| {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        // Call 0 is the plug, 1 the whole batch, 2 the first single.
        if call == 2 {
            transient()
        } else {
            refuse_marked(batch)
        }
    })
    .await;
    let plug = stage.plug().await;
    let tasks = stage.queue_apart(vec![n(1.0), marked(2.0), n(3.0)]).await;
    stage.gate.open();
    outcome(plug).await.unwrap();
    let mut results = Vec::new();
    for task in tasks {
        results.push(outcome(task).await.is_ok());
    }
    assert_eq!(results, [true, false, true]);
    stage.verify(&[-1.0, 0.0, 1.0, 3.0]).await;
}

/// More writers than may wait: the rest is told at once, nobody waits for ever, and no batch takes
/// more than its share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_recovers() {
    const WAITING: usize = 4_096;
    const MEMBERS: usize = 256;
    let world = World::new().await;
    let tenant = world.create("t").await;
    tenant.insert(&table(), n(0.0)).await.unwrap();
    let gate = Gate::shut();
    let (held, largest) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    let seen = largest.clone();
    world.hooks.on_commit(move |batch| {
        let documents = batch.writes.keys().filter(|(s, _)| *s == Keyspace::Docs);
        seen.fetch_max(documents.count(), Ordering::SeqCst);
        let gate = held.clone();
        async move {
            gate.pass().await;
            Verdict::Pass
        }
    });
    // The batch that is held at the gate has 1 to MEMBERS members, and the next one MEMBERS.
    let (mut inserts, over) = (Vec::new(), MEMBERS + 50);
    for i in 0..MEMBERS + WAITING + over {
        let tenant = tenant.clone();
        let row = n(i as f64);
        inserts.push(tokio::spawn(
            async move { tenant.insert(&table(), row).await },
        ));
    }
    until("the queue is full", || async {
        tenant.metrics().mutation_admission.queue_depth == WAITING as u64
    })
    .await;
    let refused = tenant.insert(&table(), n(0.0)).await;
    assert!(matches!(refused, Err(StoreError::QueueFull)), "{refused:?}");
    gate.open();
    let mut told = [0, 0];
    for insert in inserts {
        match soon("an answer", insert).await.unwrap() {
            Ok(_) => told[0] += 1,
            Err(StoreError::QueueFull) => told[1] += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(told[0] >= MEMBERS + WAITING && told[1] <= over, "{told:?}");
    assert!(largest.load(Ordering::SeqCst) <= MEMBERS);
    let page = tenant.query(&Query::table(table())).await.unwrap();
    assert_eq!(page.len(), 1 + told[0]);
    assert_consistent(&tenant).await;
}
