//! What an operator sees on the server, and what others put there.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_read_with_the_client_of_the_server() {
    let world = World::new();
    let provider = world.provider().await;
    let store = fresh(&provider, "seen").await;
    let text = r#"{"text":"a\u0000b","n":1}"#;
    let new = next(Head::EMPTY, 1);
    let batch = batch(new, b"key", text);
    store.commit(Head::EMPTY, batch).await.unwrap();
    let name = database(&provider, "seen");
    assert_eq!(
        provider.owned(&tenant("seen")),
        [format!("database {name}")]
    );
    let sql = format!("SELECT value FROM `{name}`.docs");
    assert_eq!(world.place.ask(&sql).await, [text]);
    let sql = format!("SELECT JSON_VALUE(CONVERT(value USING utf8mb4), '$.n') FROM `{name}`.docs");
    assert_eq!(world.place.ask(&sql).await, ["1"]);
    let sql = format!(
        "SELECT CONCAT(engine, ' ', row_format) FROM information_schema.tables WHERE table_schema = '{name}'"
    );
    assert_eq!(world.place.ask(&sql).await, ["InnoDB Dynamic"; 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_left_behind_is_reported_and_never_overwritten() {
    let world = World::new();
    let provider = world.provider().await;
    let id = tenant("Left-Behind");
    let store = fresh(&provider, "Left-Behind").await;
    let at = put(&store, Head::EMPTY, 1, "kept").await;
    store.close().await.unwrap();
    let (metadata, name) = (&world.place.metadata, database(&provider, "Left-Behind"));
    world
        .place
        .run(&format!("DELETE FROM `{metadata}`.tenants"))
        .await;
    let strange = format!("{}strange_{}", world.place.prefix, "0".repeat(32));
    world
        .place
        .run(&format!("CREATE DATABASE `{strange}`"))
        .await;

    let found = provider.unregistered().await.unwrap();
    assert_eq!(found, std::slice::from_ref(&id));
    let error = provider.create(&id).await.unwrap_err();
    assert!(
        matches!(&error, ProviderError::Unregistered { path, .. } if path.contains(&name)),
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
async fn a_damaged_database_is_neither_adopted_nor_opened() {
    let world = World::new();
    let provider = world.provider().await;
    let (metadata, id) = (&world.place.metadata, tenant("hurt"));
    drop(fresh(&provider, "hurt").await);
    let name = database(&provider, "hurt");
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
    let meta = format!("`{name}`.meta");
    let unreadable = format!("UPDATE {meta} SET value = '{{}}' WHERE `key` = 'format'");
    corrupt(unreadable, false).await;
    corrupt(format!("DELETE FROM {meta} WHERE `key` = 'format'"), false).await;
    corrupt(format!("DELETE FROM `{metadata}`.tenants"), true).await;
    provider.create(&tenant("donor")).await.unwrap();
    let donor = database(&provider, "donor");
    let rows = format!("DELETE FROM {meta}; INSERT INTO {meta} SELECT * FROM `{donor}`.meta");
    corrupt(rows, true).await;
    assert_eq!(provider.list().await.unwrap(), [tenant("donor")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_tenant_whose_database_is_missing_is_damage() {
    let world = World::new();
    let provider = world.provider().await;
    drop(fresh(&provider, "taken").await);
    let name = database(&provider, "taken");
    world.place.run(&format!("DROP DATABASE `{name}`")).await;
    let error = provider.open(&tenant("taken")).await.err().unwrap();
    assert!(matches!(error, ProviderError::Corrupt { .. }), "{error:?}");
    // It can be deleted all the same.
    provider.delete(&tenant("taken")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_every_connection() {
    let world = World::new();
    let (user, url) = refused::user(&world, refused::LEAST).await;
    let provider = world.provider_at(&url).await;
    let store = fresh(&provider, "closed").await;
    put(&store, Head::EMPTY, 1, "x").await;
    // That of the polls too.
    let _ = tokio::time::timeout(Duration::from_millis(100), store.changed()).await;
    store.close().await.unwrap();
    provider.close().await;
    let open =
        format!("SELECT CONCAT(id) FROM information_schema.processlist WHERE user = '{user}'");
    soon("the end of all connections", async || {
        world.place.ask(&open).await.is_empty()
    })
    .await;
    assert!(matches!(provider.list().await, Err(ProviderError::Closed)));
    refused::forget(&world, &user).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_while_nobody_waits() {
    let world = World::new();
    let (user, url) = refused::user(&world, refused::LEAST).await;
    let provider = world.provider_at(&url).await;
    let store = fresh(&provider, "calm").await;
    // The connection of the polls is made when somebody waits.
    let open =
        format!("SELECT CONCAT(id) FROM information_schema.processlist WHERE user = '{user}'");
    let before = world.place.ask(&open).await.len();
    let waits = tokio::spawn(async move { store.changed().await });
    soon("a poll", async || {
        world.place.ask(&open).await.len() > before
    })
    .await;
    waits.abort();
    drop(provider);
    refused::forget(&world, &user).await;
}
