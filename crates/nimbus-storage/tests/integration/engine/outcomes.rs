//! What becomes of a batch that the provider does not commit: a full disk, a passing failure,
//! an unknown outcome, a moved head, a caller that left. Nothing acknowledged is lost, nothing
//! refused appears, and only those concerned are told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nimbus_storage::provider::Head;
use nimbus_storage::{CommitError, CommitId, Engine, ProviderError, Query, StoreError};

use super::stage::*;
use super::support::*;

#[tokio::test]
async fn a_full_disk_fails_the_batch_and_heals_without_reopening() {
    let calls = AtomicUsize::new(0);
    let stage = Stage::new(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        1 => disk_full(),
        _ => Verdict::Pass,
    })
    .await;
    let plug = stage.plug().await;
    let members = stage.queue(vec![n(1.0), n(2.0)]).await;
    stage.gate.let_one();
    outcome(plug).await.unwrap();
    stage.gate.arrival().await;
    // These see the members, which will fail: they run again and succeed.
    let tenant = &stage.tenant;
    let all = Query::table(table());
    let dependent = {
        let (tenant, all) = (tenant.clone(), all.clone());
        tokio::spawn(async move {
            tenant
                .transact(|tx| {
                    let all = all.clone();
                    Box::pin(async move {
                        let seen = tx.query(&all).await?.len();
                        tx.insert(&table(), n(100.0 + seen as f64)).await
                    })
                })
                .await
        })
    };
    until("the dependent is accepted", || async {
        stage.accepted() == stage.base + 4
    })
    .await;
    stage.gate.open();
    for member in members {
        let result = outcome(member).await;
        assert!(
            matches!(result, Err(StoreError::StorageFull { .. })),
            "{result:?}"
        );
    }
    outcome(dependent).await.unwrap();
    // The same handle goes on.
    tenant.insert(&table(), n(9.0)).await.unwrap();
    stage.verify(&[-1.0, 0.0, 9.0, 102.0]).await;
}

#[tokio::test]
async fn passing_failures_are_tried_again_a_bounded_number_of_times() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    tenant.insert(&table(), n(0.0)).await.unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let failures = |count: usize| {
        let calls = calls.clone();
        calls.store(0, Ordering::SeqCst);
        world.hooks.on_commit(move |_| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            async move {
                if call < count {
                    transient()
                } else {
                    Verdict::Pass
                }
            }
        });
    };
    failures(2);
    tenant.insert(&table(), n(1.0)).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    failures(usize::MAX);
    let result = tenant.insert(&table(), n(2.0)).await;
    let busy = matches!(
        &result,
        Err(StoreError::Storage(ProviderError::Busy { .. }))
    );
    assert!(busy, "{result:?}");
    let tries = calls.load(Ordering::SeqCst);
    assert!((2..20).contains(&tries), "{tries} tries");
    failures(0);
    tenant.insert(&table(), n(3.0)).await.unwrap();
    assert_table(&tenant, &[0.0, 1.0, 3.0]).await;
}

/// Two members of a batch of unknown outcome, and one behind them.
async fn unknown_outcome(landed: bool) {
    let calls = AtomicUsize::new(0);
    let stage = Stage::new(
        move |_| match (calls.fetch_add(1, Ordering::SeqCst), landed) {
            (1, true) => Verdict::LandThen(unknown()),
            (1, false) => Verdict::Fail(unknown()),
            _ => Verdict::Pass,
        },
    )
    .await;
    let plug = stage.plug().await;
    let members = stage.queue(vec![n(1.0), n(2.0)]).await;
    stage.gate.let_one();
    outcome(plug).await.unwrap();
    stage.gate.arrival().await;
    let behind = stage.queue(vec![n(3.0)]).await.remove(0);
    stage.gate.open();
    let mut commits: Vec<CommitId> = Vec::new();
    for member in members {
        match outcome(member).await {
            Err(StoreError::OutcomeUnknown { commit, .. }) => commits.push(commit),
            other => panic!("{other:?}"),
        }
    }
    assert_ne!(commits[0], commits[1]);
    let behind = outcome(behind).await;
    assert!(matches!(behind, Err(StoreError::Closed)), "{behind:?}");
    let late = stage.tenant.insert(&table(), n(4.0)).await;
    assert!(
        matches!(late, Err(StoreError::Closed)),
        "the old handle: {late:?}"
    );
    // The next caller finds the tenant open again.
    let again = stage.world.tenant("t").await;
    for (i, commit) in commits.into_iter().enumerate() {
        let expected = landed.then_some(stage.base + 2 + i as u64);
        assert_eq!(again.commit_status(commit).await.unwrap(), expected);
    }
    again.insert(&table(), n(5.0)).await.unwrap();
    drop(again);
    let mut expected = vec![-1.0, 0.0, 5.0];
    if landed {
        expected.extend([1.0, 2.0]);
    }
    stage.verify(&expected).await;
}

#[tokio::test]
async fn an_unknown_outcome_that_landed_can_be_looked_up() {
    unknown_outcome(true).await;
}

#[tokio::test]
async fn an_unknown_outcome_that_did_not_land_can_be_looked_up() {
    unknown_outcome(false).await;
}

#[tokio::test]
async fn a_moved_head_closes_the_tenant_and_the_next_caller_opens_it() {
    let calls = AtomicUsize::new(0);
    let stage = Stage::new(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        1 => Verdict::Fail(CommitError::HeadMoved {
            actual: Head::EMPTY,
        }),
        _ => Verdict::Pass,
    })
    .await;
    let plug = stage.plug().await;
    let members = stage.queue(vec![n(1.0), n(2.0)]).await;
    stage.gate.open();
    outcome(plug).await.unwrap();
    for member in members {
        let result = outcome(member).await;
        assert!(matches!(result, Err(StoreError::Closed)), "{result:?}");
    }
    let again = stage.world.tenant("t").await;
    again.insert(&table(), n(3.0)).await.unwrap();
    drop(again);
    stage.verify(&[-1.0, 0.0, 3.0]).await;
}

/// A defect of a provider must not leave callers waiting for ever, nor tell them that nothing
/// was written.
#[tokio::test]
async fn a_provider_that_panics_closes_the_tenant() {
    let calls = AtomicUsize::new(0);
    let stage = Stage::new(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        1 => panic!("planted"),
        _ => Verdict::Pass,
    })
    .await;
    let plug = stage.plug().await;
    let member = stage.queue(vec![n(1.0)]).await.remove(0);
    stage.gate.let_one();
    outcome(plug).await.unwrap();
    stage.gate.arrival().await;
    let behind = stage.queue(vec![n(2.0)]).await.remove(0);
    stage.gate.open();
    let Err(StoreError::OutcomeUnknown { commit, .. }) = outcome(member).await else {
        panic!("the provider did not say what became of it");
    };
    let behind = outcome(behind).await;
    assert!(matches!(behind, Err(StoreError::Closed)), "{behind:?}");
    let again = stage.world.tenant("t").await;
    assert_eq!(again.commit_status(commit).await.unwrap(), None);
    again.insert(&table(), n(3.0)).await.unwrap();
    drop(again);
    stage.verify(&[-1.0, 0.0, 3.0]).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_cancel_its_commit() {
    let stage = Stage::new(|_| Verdict::Pass).await;
    let flying = stage.plug().await;
    let waiting = stage.queue(vec![n(1.0)]).await.remove(0);
    for task in [flying, waiting] {
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
    stage.gate.open();
    until("both are durable", || async {
        stage.durable() == stage.base + 2
    })
    .await;
    stage.verify(&[-1.0, 0.0, 1.0]).await;
}

/// What a writer of the storm was told about each of its inserts.
#[derive(Default)]
struct Told {
    durable: Vec<f64>,
    nothing: Vec<f64>,
    unknown: Vec<(f64, CommitId)>,
}

async fn storm_writer(engine: Engine, number: usize, told: Arc<Mutex<Told>>, seed: u64) {
    let mut random = Random::new(seed ^ (number as u64) << 32);
    for i in 0..25 {
        let value = (number * 1_000 + i) as f64;
        let row = if random.one_in(12) {
            marked(value)
        } else {
            n(value)
        };
        let result = match engine.tenant(&name("t")).await {
            Ok(tenant) => tenant.insert(&table(), row).await,
            Err(error) => Err(error),
        };
        let mut told = told.lock().unwrap();
        match result {
            Ok(_) => told.durable.push(value),
            Err(StoreError::OutcomeUnknown { commit, .. }) => told.unknown.push((value, commit)),
            Err(StoreError::Closed | StoreError::StorageFull { .. } | StoreError::Storage(_)) => {
                told.nothing.push(value)
            }
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
}

/// Sixteen writers on a provider that fails in every way it may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_failures_loses_nothing_acknowledged() {
    for seed in 1..=6u64 {
        let mut world = World::new().await;
        let tenant = world.create("t").await;
        tenant.insert(&table(), n(-1.0)).await.unwrap();
        drop(tenant);
        let random = Arc::new(Mutex::new(Random::new(seed)));
        world.hooks.on_commit(move |batch| {
            let roll = random.lock().unwrap().below(100);
            let verdict = match roll {
                0..7 => disk_full(),
                7..12 => transient(),
                12..15 => Verdict::LandThen(unknown()),
                15..18 => Verdict::Fail(unknown()),
                18..20 => Verdict::Fail(CommitError::HeadMoved {
                    actual: Head::EMPTY,
                }),
                _ => refuse_marked(&batch),
            };
            async move {
                tokio::task::yield_now().await;
                verdict
            }
        });
        let told = Arc::new(Mutex::new(Told::default()));
        let writers: Vec<_> = (0..16)
            .map(|number| {
                let engine = world.engine().clone();
                tokio::spawn(storm_writer(engine, number, told.clone(), seed))
            })
            .collect();
        for writer in writers {
            soon("a writer", writer).await.unwrap();
        }
        world.hooks.clear();
        world.reopen().await;
        let told = std::mem::take(&mut *told.lock().unwrap());
        let tenant = world.tenant("t").await;
        let mut expected = told.durable;
        expected.push(-1.0);
        assert!(expected.len() > 50, "seed {seed}: too few got through");
        for (value, commit) in told.unknown {
            if tenant.commit_status(commit).await.unwrap().is_some() {
                expected.push(value);
            }
        }
        assert!(!told.nothing.is_empty(), "seed {seed}: nothing failed");
        assert_table(&tenant, &expected).await;
    }
}
