//! Settings, credentials and primaries that are refused, each with one clear error and nothing changed.

use super::*;

fn secured() -> World {
    World::with(Options {
        auth_token: Some("t0ken".to_owned()),
        admin_auth_header: Some("Basic 4dmin".to_owned()),
        ..Options::default()
    })
}

fn with(world: &World, token: &str, admin: &str) -> LibsqlOptions {
    let mut options = world.options("a");
    options.auth_token = Some(Secret::new(token));
    options.admin_auth_header = Some(Secret::new(admin));
    options
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_and_a_wrong_header_are_named() {
    let world = secured();
    let wrong = with(&world, "wr0ng", "Basic 4dmin");
    let refused = world.connect(wrong).await.err().unwrap();
    assert!(
        matches!(refused, ProviderError::Settings { .. }),
        "{refused:?}"
    );
    let text = refused.to_string();
    assert!(
        text.contains("auth token (401") && !text.contains("wr0ng"),
        "{text}"
    );
    let wrong = with(&world, "t0ken", "Basic wr0ng");
    let refused = world.connect(wrong).await.err().unwrap();
    let text = refused.to_string();
    assert!(
        text.contains("admin auth header (401") && !text.contains("wr0ng"),
        "{text}"
    );
    let right = with(&world, "t0ken", "Basic 4dmin");
    let provider = world.connect(right).await.unwrap();
    let store = fresh(&provider, "t").await;
    put(&store, Head::EMPTY, 1, "0").await;
    store.close().await.unwrap();
    drop((store, provider));
    // The header is needed to create and delete only.
    let wrong = with(&world, "t0ken", "Basic wr0ng");
    let provider = world.connect(wrong).await.unwrap();
    let refused = provider.create(&tenant("u")).await.unwrap_err();
    assert!(
        refused.to_string().contains("admin auth header"),
        "{refused}"
    );
    assert!(provider.delete(&tenant("t")).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_installation_s_tenants_are_left_alone() {
    let world = World::new();
    let own = world.provider("a").await;
    own.create(&tenant("t")).await.unwrap();
    let mut options = world.options("b");
    let connect = async |options: &LibsqlOptions| {
        LibsqlProvider::connect_with(options.clone(), installation('b'), QUICK).await
    };
    let refused = connect(&options).await.err().unwrap();
    let ProviderError::OtherInstallation {
        installation: found,
        ..
    } = &refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(*found, installation('a'));
    assert!(
        refused.to_string().contains("--join-installation"),
        "{refused}"
    );
    options.join_installation = Some(installation('c'));
    assert!(connect(&options).await.is_err());
    options.join_installation = Some(installation('a'));
    let joined = connect(&options).await.unwrap();
    assert_eq!(joined.list().await.unwrap(), [tenant("t")]);
    drop(joined);
    // Another prefix cannot be meant.
    options.tenant_namespace_prefix = "other_".to_owned();
    let refused = connect(&options).await.err().unwrap();
    assert!(refused.to_string().contains("prefix tenant_"), "{refused}");
    // Nothing to join.
    let mut options = world.options("c");
    options.metadata_namespace = "elsewhere".to_owned();
    options.join_installation = Some(installation('a'));
    let refused = connect(&options).await.err().unwrap();
    assert!(
        refused.to_string().contains("no installation yet"),
        "{refused}"
    );
    let made = world.dir.path().join("primary/elsewhere.sqlite3");
    assert!(!made.exists(), "a refused start made a namespace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_that_are_no_primary_are_named() {
    let mut world = World::new();
    world.timing.barrier = Duration::from_millis(200);
    // The two URLs, exchanged.
    let mut options = world.options("a");
    std::mem::swap(&mut options.url, &mut options.admin_url);
    let refused = world.connect(options).await.err().unwrap();
    assert!(
        refused.to_string().contains("neither in version 3 nor 2"),
        "{refused}"
    );
    let mut options = world.options("a");
    options.admin_url.clone_from(&options.url);
    let refused = world.connect(options).await.err().unwrap();
    assert!(refused.to_string().contains("no admin API"), "{refused}");
    // Nobody there.
    let options = world.options("a");
    world.primary.stop();
    let refused = world.connect(options).await.err().unwrap();
    assert!(matches!(refused, ProviderError::Busy { .. }), "{refused:?}");
    assert!(
        refused.to_string().contains("cannot be reached"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_has_one_process() {
    let world = World::new();
    let first = world.provider("a").await;
    let options = world.options("a");
    let refused = LibsqlProvider::connect_with(options, installation('a'), QUICK).await;
    let refused = refused.err().unwrap();
    assert!(matches!(refused, ProviderError::Busy { .. }), "{refused:?}");
    drop(first);
    world.provider("a").await;
}

/// A namespace that is there already is looked into, and one with tables is never taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_already_is_not_taken() {
    let world = World::new();
    let provider = world.provider("a").await;
    let (http, life) = (&provider.shared.http, installation('1'));
    assert_eq!(
        http.create_namespace("tenant_x").await.unwrap(),
        http::Made::New
    );
    assert_eq!(
        http.create_namespace("tenant_x").await.unwrap(),
        http::Made::Exists
    );
    http.delete_namespace("tenant_x").await.unwrap();
    http.delete_namespace("tenant_x").await.unwrap();
    // Damage of a namespace that is registered.
    let store = fresh(&provider, "t").await;
    store.close().await.unwrap();
    let namespace = provider.shared.known().get(&tenant("t")).unwrap().clone();
    run(&provider, "t", "UPDATE feed SET version = 2").await;
    let refused = provider.open(&tenant("t")).await.err().unwrap();
    assert!(refused.to_string().contains("version 2"), "{refused}");
    run(&provider, "t", "UPDATE feed SET version = 1").await;
    let other = format!("UPDATE feed SET life = '{life}'");
    run(&provider, "t", &other).await;
    let refused = provider.open(&tenant("t")).await.err().unwrap();
    assert!(refused.to_string().contains("another life"), "{refused}");
    http.delete_namespace(&namespace).await.unwrap();
    let missing = provider.open(&tenant("t")).await.err().unwrap();
    assert!(
        matches!(missing, ProviderError::Corrupt { .. }),
        "{missing:?}"
    );
    provider.delete(&tenant("t")).await.unwrap();
    assert_eq!(provider.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_too_large_is_refused() {
    let world = World::with(Options {
        max_body: 1 << 20,
        ..Options::default()
    });
    let provider = world.provider("a").await;
    let store = fresh(&provider, "t").await;
    let large = "x".repeat(1 << 20);
    let refused = store
        .commit(Head::EMPTY, batch(next(Head::EMPTY, 1), b"k", &large))
        .await;
    assert!(
        matches!(refused, Err(CommitError::Refused { .. })),
        "{refused:?}"
    );
    put(&store, Head::EMPTY, 1, "small").await;
    let own = store
        .commit(
            Head::EMPTY,
            Batch {
                head: next(Head::EMPTY, 1),
                writes: BTreeMap::from([((Keyspace::Meta, b"format".to_vec()), None)]),
            },
        )
        .await;
    assert!(matches!(own, Err(CommitError::Refused { .. })), "{own:?}");
}
