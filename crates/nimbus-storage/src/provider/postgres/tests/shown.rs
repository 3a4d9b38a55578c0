//! What an operator sees in the database, and what others put there.

use super::*;

fn schema(provider: &PostgresProvider, id: &str) -> String {
    provider.shared.names.namespace(&tenant(id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_shown_as_json_even_with_a_zero_character() {
    let world = World::new();
    let provider = world.provider().await;
    let store = fresh(&provider, "seen").await;
    let mut key = 7_u32.to_be_bytes().to_vec();
    key.extend([0xab; 16]);
    let new = next(Head::EMPTY, 1);
    let text = r#"{"text":"a\u0000b","n":1}"#;
    store
        .commit(Head::EMPTY, batch(new, &key, text))
        .await
        .unwrap();
    let schema = schema(&provider, "seen");
    let sql = format!("SELECT document::text FROM \"{schema}\".documents WHERE table_number = 7");
    assert_eq!(world.place.ask(&sql).await, [text]);
    // Postgres does not look into such a document; it does into others.
    key[0] = 1;
    let more = batch(next(new, 2), &key, r#"{"n":1}"#);
    store.commit(new, more).await.unwrap();
    let sql = format!(
        "SELECT (document->>'n') || encode(id, 'hex') FROM \"{schema}\".documents WHERE table_number > 7"
    );
    let expected = format!("1{}", "ab".repeat(16));
    assert_eq!(world.place.ask(&sql).await, [expected]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_was_left_behind_is_reported_and_never_overwritten() {
    let world = World::new();
    let provider = world.provider().await;
    let id = tenant("Left-Behind");
    let store = fresh(&provider, "Left-Behind").await;
    let at = put(&store, Head::EMPTY, 1, "kept").await;
    store.close().await.unwrap();
    let (metadata, schema) = (&world.place.metadata, schema(&provider, "Left-Behind"));
    world
        .place
        .run(&format!("DELETE FROM {metadata}.tenants"))
        .await;
    let strange = format!(
        "CREATE SCHEMA \"{}strange_{}\"",
        world.place.prefix,
        "0".repeat(32)
    );
    world.place.run(&strange).await;

    let found = provider.unregistered().await.unwrap();
    assert_eq!(found, std::slice::from_ref(&id));
    let error = provider.create(&id).await.unwrap_err();
    assert!(
        matches!(&error, ProviderError::Unregistered { path, .. } if path.contains(&schema)),
        "{error:?}"
    );
    assert!(matches!(
        provider.open(&id).await,
        Err(ProviderError::NotFound { .. })
    ));
    provider.adopt(&id).await.unwrap();
    assert_eq!(provider.unregistered().await.unwrap(), []);
    let store = provider.open(&id).await.unwrap();
    assert_eq!(head(&store).await, at);
    assert_eq!(get(&store, b"k").await.as_deref(), Some("kept"));
    put(&store, at, 2, "and goes on").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_schema_is_neither_adopted_nor_opened() {
    let world = World::new();
    let provider = world.provider().await;
    let (metadata, id) = (&world.place.metadata, tenant("hurt"));
    drop(fresh(&provider, "hurt").await);
    let schema = schema(&provider, "hurt");
    let corrupt = async |sql: String, adopted: bool| {
        world.place.run(&sql).await;
        let error = match adopted {
            true => provider.adopt(&id).await.err(),
            false => provider.open(&id).await.err(),
        };
        assert!(
            matches!(error, Some(ProviderError::Corrupt { .. })),
            "{sql}: {error:?}"
        );
    };
    let meta = format!("\"{schema}\".meta");
    corrupt(
        format!("UPDATE {meta} SET value = '{{}}' WHERE key = 'format'"),
        false,
    )
    .await;
    corrupt(format!("DELETE FROM {meta} WHERE key = 'format'"), false).await;
    corrupt(format!("DELETE FROM {metadata}.tenants"), true).await;
    provider.create(&tenant("donor")).await.unwrap();
    let donor = provider.shared.names.namespace(&tenant("donor"));
    let rows = format!("DELETE FROM {meta}; INSERT INTO {meta} SELECT * FROM \"{donor}\".meta");
    corrupt(rows, true).await;
    assert_eq!(provider.list().await.unwrap(), [tenant("donor")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_tenant_whose_schema_is_missing_is_damage() {
    let world = World::new();
    let provider = world.provider().await;
    drop(fresh(&provider, "taken").await);
    let schema = schema(&provider, "taken");
    world
        .place
        .run(&format!("DROP SCHEMA \"{schema}\" CASCADE"))
        .await;
    let error = provider.open(&tenant("taken")).await.err().unwrap();
    assert!(matches!(error, ProviderError::Corrupt { .. }), "{error:?}");
    // It can be deleted all the same.
    provider.delete(&tenant("taken")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_every_connection() {
    let world = World::new();
    let app = format!("nimbus-{}", world.place.prefix);
    let url = format!("{}?application_name={app}", world.place.url);
    let provider = world.provider_at(&url).await;
    let store = fresh(&provider, "closed").await;
    put(&store, Head::EMPTY, 1, "x").await;
    store.close().await.unwrap();
    provider.close().await;
    let open = format!("SELECT pid::text FROM pg_stat_activity WHERE application_name = '{app}'");
    soon("the end of all connections", async || {
        world.place.ask(&open).await.is_empty()
    })
    .await;
    assert!(matches!(provider.list().await, Err(ProviderError::Closed)));
}
