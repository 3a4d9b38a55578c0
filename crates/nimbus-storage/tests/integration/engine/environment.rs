//! Environment variables and scoped keys: limits, read sets, and that refusals change nothing.

use std::collections::BTreeMap;

use nimbus_storage::provider::Keyspace;
use nimbus_storage::{MAX_KEYS, StoreError, StoreResult, StoredKey, Tenant};

use super::support::*;

async fn world() -> (World, Tenant) {
    let world = World::new().await;
    let tenant = world.create("t").await;
    (world, tenant)
}

async fn set(tenant: &Tenant, name: &str, value: Option<&str>) -> StoreResult<()> {
    let change = (name.to_owned(), value.map(str::to_owned));
    tenant.update_environment(vec![change]).await
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    pairs.iter().map(owned).collect()
}

#[tokio::test]
async fn variables_are_set_changed_and_removed() {
    let (mut world, tenant) = world().await;
    let both = vec![
        ("A".to_owned(), Some("1".to_owned())),
        ("b_2".to_owned(), Some("{\"$ref\": \"é\n\"}".to_owned())),
        ("GONE".to_owned(), None),
    ];
    tenant.update_environment(both).await.unwrap();
    let expected = map(&[("A", "1"), ("b_2", "{\"$ref\": \"é\n\"}")]);
    assert_eq!(tenant.environment().await.unwrap(), expected);
    set(&tenant, "A", None).await.unwrap();
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    let mut tx = tenant.begin().await.unwrap();
    assert_eq!(tx.env("A").await.unwrap(), None);
    assert_eq!(tx.env("b_2").await.unwrap().as_ref(), expected.get("b_2"));
    assert_eq!(tx.env("not a name").await.unwrap(), None);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn what_breaks_a_limit_changes_nothing() {
    let (_world, tenant) = world().await;
    set(&tenant, "KEPT", Some("x")).await.unwrap();
    let long = "x".repeat(8 * 1024 + 1);
    let cases = [
        ("", Some("x"), "is not 1 to 256"),
        ("1A", Some("x"), "is not 1 to 256"),
        ("A-B", Some("x"), "`A-B` is not 1 to 256"),
        (&"A".repeat(257), Some("x"), "is not 1 to 256"),
        ("CONVEX_SITE_URL", Some("x"), "is reserved"),
        ("CONVEX_CLOUD_URL", None, "is reserved"),
        ("A", Some(long.as_str()), "has 8193 bytes"),
    ];
    for (name, value, says) in cases {
        let change = (name.to_owned(), value.map(str::to_owned));
        let changes = vec![("FIRST".to_owned(), Some("x".to_owned())), change];
        let error = tenant.update_environment(changes).await.unwrap_err();
        assert!(matches!(error, StoreError::InvalidInput { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
        // No value in an error, which is logged.
        assert!(!error.to_string().contains("xxxx"), "{error}");
    }
    let many = (0..512).map(|n| (format!("V{n}"), Some("x".to_owned())));
    let cap = tenant.update_environment(many.collect()).await.unwrap_err();
    assert!(
        matches!(cap, StoreError::CapExceeded { limit: 512, .. }),
        "{cap}"
    );
    let large = (0..70).map(|n| (format!("V{n}"), Some("x".repeat(8 * 1024))));
    let cap = tenant
        .update_environment(large.collect())
        .await
        .unwrap_err();
    assert!(
        matches!(cap, StoreError::CapExceeded { limit: 524_288, .. }),
        "{cap}"
    );
    assert_eq!(tenant.environment().await.unwrap(), map(&[("KEPT", "x")]));
    let fits = (0..511).map(|n| (format!("V{n}"), Some("x".to_owned())));
    tenant.update_environment(fits.collect()).await.unwrap();
    assert_eq!(tenant.environment().await.unwrap().len(), 512);
}

#[tokio::test]
async fn only_who_read_a_variable_conflicts_with_its_change() {
    let (_world, tenant) = world().await;
    set(&tenant, "READ", Some("1")).await.unwrap();
    for (changed, conflicts) in [("READ", true), ("OTHER", false), ("UNSET", true)] {
        let mut tx = tenant.begin().await.unwrap();
        let name = if changed == "UNSET" { "UNSET" } else { "READ" };
        tx.env(name).await.unwrap();
        tx.insert(&super::support::name("d"), object([]))
            .await
            .unwrap();
        set(&tenant, changed, Some(&format!("new {changed}")))
            .await
            .unwrap();
        let committed = tenant.commit(tx).await;
        let found = matches!(committed, Err(StoreError::Conflict { .. }));
        assert_eq!(found, conflicts, "{changed}: {committed:?}");
    }
}

fn key(id: &str, expires_ms: Option<u64>) -> StoredKey {
    StoredKey {
        id: id.to_owned(),
        name: "ci".to_owned(),
        scope: "deploy".to_owned(),
        digest: [7; 32],
        created_ms: 5,
        expires_ms,
    }
}

#[tokio::test]
async fn keys_are_kept_listed_and_removed() {
    let (mut world, tenant) = world().await;
    let far = u64::MAX / 2;
    for made in [key("b", None), key("a-1", Some(far)), key("old", Some(1))] {
        tenant.put_key(made).await.unwrap();
    }
    assert!(key("old", Some(1)).is_expired(1) && !key("b", None).is_expired(far));
    let listed = tenant.keys().await.unwrap();
    assert_eq!(
        listed,
        [key("a-1", Some(far)), key("b", None), key("old", Some(1))]
    );
    assert!(!format!("{listed:?}").contains("7, 7"));
    let again = tenant.put_key(key("b", None)).await.unwrap_err();
    assert!(again.to_string().contains("key b exists"), "{again}");
    for bad in ["", "a b", "a/b", &"x".repeat(65)] {
        assert!(tenant.put_key(key(bad, None)).await.is_err(), "{bad}");
        assert_eq!(tenant.key(bad).await.unwrap(), None);
        assert!(!tenant.remove_key(bad).await.unwrap());
    }
    let mut wordy = key("c", None);
    wordy.name = "x".repeat(257);
    assert!(tenant.put_key(wordy).await.is_err());
    // A key that expired makes room when the next is put.
    tenant.put_key(key("c", None)).await.unwrap();
    assert_eq!(tenant.key("old").await.unwrap(), None);
    assert!(tenant.remove_key("b").await.unwrap());
    assert!(!tenant.remove_key("b").await.unwrap());
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    let ids: Vec<_> = tenant
        .keys()
        .await
        .unwrap()
        .into_iter()
        .map(|k| k.id)
        .collect();
    assert_eq!(ids, ["a-1", "c"]);
    assert_eq!(tenant.key("c").await.unwrap(), Some(key("c", None)));
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn there_are_no_more_keys_than_the_limit() {
    let (mut world, tenant) = world().await;
    tenant.put_key(key("first", None)).await.unwrap();
    drop(tenant);
    // The stored text of a key: if this changes, keys of earlier releases are lost.
    let digest = "07".repeat(32);
    let row = format!(
        "{{\"name\":\"ci\",\"scope\":\"deploy\",\"digest\":\"{digest}\",\"createdMs\":5,\"expiresMs\":null}}"
    );
    let many = (1..MAX_KEYS).map(|n| format!("key/k{n}").into_bytes());
    let many: Vec<_> = many.map(|key| (key, row.clone().into_bytes())).collect();
    overwrite(&mut world, "t", Keyspace::Meta, &many).await;
    let tenant = world.tenant("t").await;
    assert_eq!(tenant.key("k7").await.unwrap(), Some(key("k7", None)));
    let cap = tenant.put_key(key("more", None)).await.unwrap_err();
    assert!(
        matches!(cap, StoreError::CapExceeded { limit: 1_024, .. }),
        "{cap}"
    );
    tenant.remove_key("k7").await.unwrap();
    tenant.put_key(key("more", None)).await.unwrap();
}
