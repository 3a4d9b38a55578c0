//! A deploy that is cut off at any of its commits: after the next start there is the old
//! deployment or the new one, and nothing else.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nimbus_storage::core::Object;
use nimbus_storage::provider::{Batch, Keyspace};
use nimbus_storage::{CommitError, DeployError, DeployPlan, StoreError, Tenant};

use super::support::*;

fn row(n: u32) -> Object {
    object([("a", text("x")), ("n", num(f64::from(n)))])
}

fn old() -> DeployPlan {
    let any = [("a", of("any"), true), ("n", of("any"), true)];
    let mut made = plan(&[("a.js", "old")]);
    made.schema = Some(exported(vec![declared("d", &any, &[("by_it", &["a"])])]));
    made
}

fn new() -> DeployPlan {
    let fields = [("a", of("string"), false), ("n", of("number"), false)];
    let source = "x".repeat(100_000);
    let mut made = plan(&[("a.js", "new"), ("b.js", &source)]);
    made.schema = Some(exported(vec![
        declared("d", &fields, &[("by_it", &["n"]), ("by_a", &["a"])]),
        declared("fresh", &fields, &[("by_a", &["a"])]),
    ]));
    made
}

async fn prepared(world: &World) -> Tenant {
    let tenant = world.create("t").await;
    deploy(&tenant, old()).await;
    for n in 0..300 {
        insert(&tenant, "d", row(n)).await;
    }
    tenant
}

/// Lets `pass` commits through and cuts the tenant off at the next one, which lands or does not.
fn cut(world: &World, pass: usize, lands: bool) -> Arc<AtomicUsize> {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    world.hooks.on_commit(move |_: Batch| {
        let at = count.fetch_add(1, Ordering::SeqCst);
        async move {
            match (at == pass, lands) {
                (false, _) => Verdict::Pass,
                (true, true) => Verdict::LandThen(unknown()),
                (true, false) => Verdict::Fail(unknown()),
            }
        }
    });
    seen
}

/// Nothing of a push is left: no mark, no row, no code but that of deployments.
async fn assert_clean(world: &mut World) {
    let expected = {
        let tenant = world.tenant("t").await;
        until("what the push left is gone", || async {
            let unmarked = is_unmarked(&definition(&tenant, "d").await);
            unmarked && is_unmarked(&definition(&tenant, "fresh").await)
        })
        .await;
        let deployments = tenant.deployments(9).await.unwrap();
        let modules: HashSet<_> = deployments
            .iter()
            .flat_map(|d| d.modules.values().map(|m| m.hash.clone()))
            .collect();
        modules.len() + deployments.len()
    };
    // The end of the clean-up is a commit of its own, which only storage shows.
    let mut left = Vec::new();
    for pause in 1..100 {
        left = rows(world, "t").await.into_keys().collect();
        if !left.iter().any(is_of_push) {
            break;
        }
        let _open = world.tenant("t").await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    assert!(!left.iter().any(is_of_push));
    let code = left.iter().filter(|(space, _)| *space == Keyspace::Code);
    assert_eq!(code.count(), expected);
}

fn is_of_push((space, key): &(Keyspace, Vec<u8>)) -> bool {
    *space == Keyspace::Meta && key.starts_with(b"push")
}

async fn crash_everywhere(lands: bool) {
    let mut pass = 0;
    loop {
        let mut world = World::new().await;
        let tenant = prepared(&world).await;
        let first = tenant.deployment().await.unwrap();
        until("the background work is done", || async {
            is_unmarked(&definition(&tenant, "d").await)
        })
        .await;
        let seen = cut(&world, pass, lands);
        let result = tenant.deploy(new()).await;
        world.hooks.clear();
        drop(tenant);
        world.reopen().await;
        let tenant = world.tenant("t").await;
        let now = tenant.deployment().await.unwrap();
        let is_new = now != first;
        match &result {
            Ok(report) => assert_eq!(now.as_ref(), Some(&report.deployment)),
            Err(DeployError::Store(StoreError::OutcomeUnknown { .. } | StoreError::Closed)) => {}
            Err(other) => panic!("cut {pass}: {other}"),
        }
        // Whichever it is, it is whole.
        let strict = tenant.insert(&name("d"), object([])).await;
        assert_eq!(strict.is_err(), is_new, "cut {pass}: {strict:?}");
        if !is_new {
            assert_eq!(indexes(&tenant, "fresh").await, Vec::<String>::new());
        }
        assert_consistent(&tenant).await;
        drop(tenant);
        assert_clean(&mut world).await;
        let tenant = world.tenant("t").await;
        let expected: &[&str] = match is_new {
            true => &["by_a [a] enabled", "by_it [n] enabled"],
            false => &["by_it [a] enabled"],
        };
        assert_eq!(indexes(&tenant, "d").await, expected, "cut {pass}");
        assert_consistent(&tenant).await;
        let whole = result.is_ok() && seen.load(Ordering::SeqCst) <= pass;
        if whole {
            // As many commits as a deploy at least has: mark, code, declare, two fills, commit.
            assert!(pass >= 6, "{pass}");
            return;
        }
        pass += 1;
    }
}

#[tokio::test]
async fn a_crash_before_any_commit_of_a_deploy_leaves_one_whole_deployment() {
    crash_everywhere(false).await;
}

#[tokio::test]
async fn a_crash_after_any_commit_of_a_deploy_leaves_one_whole_deployment() {
    crash_everywhere(true).await;
}

#[tokio::test]
async fn a_full_disk_at_any_commit_of_a_deploy_undoes_it() {
    for pass in 0..6 {
        let mut world = World::new().await;
        let tenant = prepared(&world).await;
        until("the background work is done", || async {
            is_unmarked(&definition(&tenant, "d").await)
        })
        .await;
        let count = Arc::new(AtomicUsize::new(0));
        world.hooks.on_commit(move |_| {
            let at = count.fetch_add(1, Ordering::SeqCst);
            let full = Verdict::Fail(CommitError::Full {
                what: "the test's disk".into(),
            });
            async move { if at == pass { full } else { Verdict::Pass } }
        });
        let refused = tenant.deploy(new()).await;
        world.hooks.clear();
        assert!(
            matches!(
                refused,
                Err(DeployError::Store(StoreError::StorageFull { .. }))
            ),
            "commit {pass}: {refused:?}"
        );
        assert_eq!(tenant.deployments(9).await.unwrap().len(), 1);
        deploy(&tenant, new()).await;
        assert_consistent(&tenant).await;
        drop(tenant);
        assert_clean(&mut world).await;
    }
}
