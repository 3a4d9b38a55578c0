//! Policies of tenants: versions, what is kept of them, preconditions, and that they go wherever the tenant goes.

use std::io::Cursor;
use std::sync::Arc;

use nimbus_storage::backup::{Backup, Source, restore};
use nimbus_storage::provider::{KeyRange, Keyspace};
use nimbus_storage::{
    Direction, KEPT_POLICIES, MAX_POLICY_BYTES, PolicyVersion, ProviderError, StoreError,
    StoreResult, StoredPolicy, Tenant,
};

use super::servers::Servers;
use super::support::*;

async fn world() -> (World, Tenant) {
    let world = World::new().await;
    let tenant = world.create("t").await;
    (world, tenant)
}

async fn put(tenant: &Tenant, text: &str) -> StoreResult<StoredPolicy> {
    tenant.put_policy(Arc::from(text), None, None).await
}

async fn current(tenant: &Tenant) -> Option<(u64, String)> {
    let policy = tenant.policy().await.unwrap();
    policy.map(|policy| (policy.version, policy.text.to_string()))
}

async fn listed(tenant: &Tenant) -> Vec<u64> {
    let versions = tenant.policies().await.unwrap();
    versions.iter().map(|listed| listed.version).collect()
}

#[tokio::test]
async fn versions_are_put_listed_and_brought_back() {
    let (mut world, tenant) = world().await;
    assert_eq!(current(&tenant).await, None);
    assert!(listed(&tenant).await.is_empty());
    assert_eq!(tenant.policy_of(1).await.unwrap(), None);
    // JSON in the row must not be taken for what surrounds it.
    let texts = ["{\"$ref\": \"é\n\"", "", "limits:\n  documents: 5\n"];
    for (version, text) in (1..).zip(texts) {
        let stored = put(&tenant, text).await.unwrap();
        assert_eq!((stored.version, stored.restored_from), (version, None));
        assert!(stored.created_ms > 1_700_000_000_000);
        assert_eq!(current(&tenant).await, Some((version, text.to_owned())));
    }
    let first = tenant.policy_of(1).await.unwrap().unwrap();
    assert_eq!(first.text.as_ref(), texts[0]);
    let back = tenant.put_policy(first.text, Some(1), Some(3)).await;
    let back = back.unwrap();
    assert_eq!((back.version, back.restored_from), (4, Some(1)));
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    assert_eq!(current(&tenant).await, Some((4, texts[0].to_owned())));
    assert_eq!(tenant.policy_of(4).await.unwrap(), Some(back.clone()));
    let versions = tenant.policies().await.unwrap();
    let newest = PolicyVersion {
        version: 4,
        created_ms: back.created_ms,
        restored_from: Some(1),
        bytes: texts[0].len() as u64,
    };
    assert_eq!(versions[0], newest);
    assert_eq!(listed(&tenant).await, [4, 3, 2, 1]);
    let json = serde_json::to_value(&versions[0]).unwrap();
    assert_eq!(json["restored_from"], 1);
    assert_eq!(tenant.policy_of(2).await.unwrap().unwrap().text.len(), 0);
    // Not shown with the table definitions.
    let journal = tenant.journal_start(100).await.unwrap();
    assert!(journal.records.iter().all(|r| r.writes.is_empty()));
    assert!(!format!("{back:?}").contains("ref\""), "{back:?}");
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn the_newest_twenty_are_kept() {
    let (mut world, tenant) = world().await;
    let last = KEPT_POLICIES as u64 + 5;
    for version in 1..=last {
        put(&tenant, &format!("text {version}")).await.unwrap();
    }
    let kept: Vec<u64> = (6..=last).rev().collect();
    assert_eq!(kept.len(), 20);
    assert_eq!(listed(&tenant).await, kept);
    for version in 1..=last {
        let found = tenant.policy_of(version).await.unwrap();
        let text = found.map(|policy| policy.text.to_string());
        let expected = kept.contains(&version).then(|| format!("text {version}"));
        assert_eq!(text, expected);
    }
    // A number that is not kept any more existed all the same.
    let again = tenant.put_policy("text 2".into(), Some(2), None).await;
    assert_eq!(again.unwrap().version, last + 1);
    assert_consistent(&tenant).await;
    drop(tenant);
    let provider = world.engine().provider().clone();
    world.engine().close().await.unwrap();
    let store = provider.open(&name("t")).await.unwrap();
    let mut snapshot = store.snapshot().await.unwrap();
    let range = KeyRange::prefix(b"policy/");
    let rows = snapshot.scan(Keyspace::Meta, &range, Direction::Forward, 100);
    assert_eq!(rows.await.unwrap().len(), 1 + KEPT_POLICIES);
    drop(snapshot);
    store.close().await.unwrap();
    drop(provider);
    world.reopen().await;
    assert_eq!(listed(&world.tenant("t").await).await[0], last + 1);
}

#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let (_world, tenant) = world().await;
    let put = async |text: &str, from, expected| {
        let put = tenant.put_policy(Arc::from(text), from, expected).await;
        put.map(|stored| stored.version)
    };
    let stale = |error: &StoreError, wanted: u64, found: u64| matches!(error, StoreError::PolicyVersion { expected, current } if (*expected, *current) == (wanted, found));
    let none = put("a", None, Some(1)).await.unwrap_err();
    assert!(stale(&none, 1, 0), "{none:?}");
    let never = put("a", Some(1), None).await.unwrap_err();
    assert!(
        matches!(never, StoreError::InvalidInput { .. }),
        "{never:?}"
    );
    assert_eq!(put("first", None, Some(0)).await.unwrap(), 1);
    for expected in [0, 2] {
        let moved = put("b", None, Some(expected)).await.unwrap_err();
        assert!(stale(&moved, expected, 1), "{moved:?}");
        assert!(moved.to_string().contains("version 1"), "{moved}");
    }
    for from in [0, 2] {
        let never = put("b", Some(from), None).await.unwrap_err();
        assert!(
            matches!(never, StoreError::InvalidInput { .. }),
            "{never:?}"
        );
    }
    let long = "x".repeat(MAX_POLICY_BYTES + 1);
    let refused = put(&long, None, None).await.unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::CapExceeded {
                limit: 1_048_576,
                observed: 1_048_577,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(current(&tenant).await, Some((1, "first".into())));
    assert_eq!(listed(&tenant).await, [1]);
    // The longest, which is longest as JSON.
    let fits = "\u{1}".repeat(MAX_POLICY_BYTES);
    assert_eq!(put(&fits, None, Some(1)).await.unwrap(), 2);
    assert_eq!(current(&tenant).await, Some((2, fits)));
    assert_consistent(&tenant).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_expect_the_same_version_one_comes_too_late() {
    let (_world, tenant) = world().await;
    for version in 0..10 {
        let both = ["left", "right"].map(|text| {
            let tenant = tenant.clone();
            tokio::spawn(async move { tenant.put_policy(text.into(), None, Some(version)).await })
        });
        let mut done = Vec::new();
        for one in both {
            done.push(one.await.unwrap());
        }
        let (won, lost): (Vec<_>, Vec<_>) = done.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 1), "{won:?} {lost:?}");
        let late = lost.into_iter().next().unwrap().unwrap_err();
        assert!(matches!(late, StoreError::PolicyVersion { .. }), "{late:?}");
        let kept = won.into_iter().next().unwrap().unwrap();
        assert_eq!(
            current(&tenant).await,
            Some((version + 1, kept.text.to_string()))
        );
    }
}

/// From now on storage cannot be read.
fn no_reads(world: &World) {
    world.hooks.on_snapshot(|| async {
        let what = "no read is expected".to_owned();
        Err(ProviderError::Busy { what })
    });
}

#[tokio::test]
async fn asking_costs_no_read() {
    let (mut world, tenant) = world().await;
    no_reads(&world);
    assert!(tenant.policies().await.is_err(), "this one reads");
    assert_eq!(current(&tenant).await, None);
    world.hooks.clear();
    put(&tenant, "a").await.unwrap();
    no_reads(&world);
    assert_eq!(current(&tenant).await, Some((1, "a".into())));
    drop(tenant);
    world.hooks.clear();
    world.reopen().await;
    let tenant = world.tenant("t").await;
    no_reads(&world);
    assert!(tenant.policy().await.is_err(), "once after it was opened");
    world.hooks.clear();
    let first = tenant.policy().await.unwrap().unwrap();
    no_reads(&world);
    let second = tenant.policy().await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &second));
}

#[tokio::test]
async fn a_tenant_that_is_made_again_has_none() {
    let (world, tenant) = world().await;
    put(&tenant, "a").await.unwrap();
    drop(tenant);
    world.engine().delete_tenant(&name("t")).await.unwrap();
    let tenant = world.create("t").await;
    assert_eq!(current(&tenant).await, None);
    assert_eq!(tenant.policy_of(1).await.unwrap(), None);
    assert_eq!(put(&tenant, "b").await.unwrap().version, 1);
    assert_eq!(current(&tenant).await, Some((1, "b".into())));
}

#[tokio::test]
async fn a_backup_has_every_version_that_is_kept() {
    let (world, tenant) = world().await;
    for version in 1..=23 {
        put(&tenant, &format!("text {version}")).await.unwrap();
    }
    let kept = tenant.policies().await.unwrap();
    let mut backup = Backup::begin(world.engine(), &[], None).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = backup.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    drop(backup);
    let copy = World::new().await;
    let source = Source::open(Cursor::new(bytes), None).unwrap();
    restore(copy.engine(), source, &[]).await.unwrap();
    let restored = copy.tenant("t").await;
    assert_eq!(restored.policies().await.unwrap(), kept);
    assert_eq!(current(&restored).await, Some((23, "text 23".into())));
    for listed in kept {
        let version = listed.version;
        let (here, there) = (tenant.policy_of(version), restored.policy_of(version));
        assert_eq!(here.await.unwrap(), there.await.unwrap());
    }
    assert_eq!(put(&restored, "next").await.unwrap().version, 24);
    assert_consistent(&restored).await;
}

#[tokio::test]
async fn a_damaged_text_is_told() {
    let (mut world, tenant) = world().await;
    put(&tenant, "ab").await.unwrap();
    drop(tenant);
    let key = [&b"policy/version/"[..], &1u64.to_be_bytes()].concat();
    let other = br#"{"format":1,"version":1,"text":"abc"}"#.to_vec();
    overwrite(&mut world, "t", Keyspace::Meta, &[(key, other)]).await;
    let tenant = world.tenant("t").await;
    let told = tenant.policy().await.unwrap_err();
    assert!(matches!(told, StoreError::Corrupt { .. }), "{told:?}");
    assert!(!tenant.consistency().await.unwrap().ok);
    // The way out.
    put(&tenant, "new").await.unwrap();
    assert_eq!(current(&tenant).await, Some((2, "new".into())));
}

/// What one server put the other has after its next read, and their versions are in one order.
pub async fn policies_reach_the_other_server(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    assert_eq!(current(&b).await, None);
    for round in 0..4 {
        let (writer, reader) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let text = format!("round {round}");
        put(writer, &text).await.unwrap();
        reader.catch_up().await.unwrap();
        assert_eq!(current(reader).await, Some((round + 1, text)));
    }
    let both = [&a, &b].map(|tenant| {
        let tenant = tenant.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                put(&tenant, "storm").await.unwrap();
            }
        })
    });
    for one in both {
        one.await.unwrap();
    }
    for tenant in [&a, &b] {
        tenant.catch_up().await.unwrap();
        assert_eq!(current(tenant).await, Some((24, "storm".into())));
        assert_eq!(listed(tenant).await, (5..=24).rev().collect::<Vec<_>>());
        assert_consistent(tenant).await;
    }
    drop((a, b));
    servers.close().await;
}
