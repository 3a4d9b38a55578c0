//! Servers, roles and settings that are not fit: one clear error each, and nothing is changed.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::servers::{Place, run};
use super::*;
use crate::provider::Durability;
use crate::provider::external::pool::Dial;

async fn refused(world: &World, options: PostgresOptions, digit: char) -> ProviderError {
    let connected = PostgresProvider::connect_with(options, installation(digit), world.timing);
    connected.await.err().expect("a refusal")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_installation_is_refused_with_its_id_and_joined_on_purpose() {
    let world = World::new();
    let first = world.provider().await;
    first.create(&tenant("shared")).await.unwrap();
    let error = refused(&world, world.options(), 'b').await;
    let ours = installation('a');
    assert!(
        matches!(error, ProviderError::OtherInstallation { installation, .. } if installation == ours)
    );
    assert!(
        error
            .to_string()
            .contains(&format!("--join-installation {ours}")),
        "{error}"
    );

    let mut options = world.options();
    options.join_installation = Some(installation('c'));
    let error = refused(&world, options.clone(), 'b').await;
    assert!(
        matches!(error, ProviderError::OtherInstallation { .. }),
        "{error:?}"
    );
    options.join_installation = Some(ours);
    let joined = PostgresProvider::connect_with(options, installation('b'), world.timing)
        .await
        .unwrap();
    assert_eq!(joined.list().await.unwrap(), [tenant("shared")]);

    let mut options = world.options();
    options.tenant_schema_prefix = format!("{}more_", world.place.prefix);
    let error = refused(&world, options, 'a').await.to_string();
    assert!(error.contains("have the prefix"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installation_that_is_not_there_is_not_joined() {
    let world = World::new();
    let mut options = world.options();
    options.join_installation = Some(installation('c'));
    let error = refused(&world, options, 'b').await;
    assert!(matches!(error, ProviderError::Settings { .. }), "{error:?}");
    let made = format!(
        "SELECT nspname::text FROM pg_namespace WHERE nspname = '{}'",
        world.place.metadata
    );
    assert!(world.place.ask(&made).await.is_empty(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_of_another_format_is_refused() {
    let world = World::new();
    drop(world.provider().await);
    let metadata = &world.place.metadata;
    world
        .place
        .run(&format!("UPDATE {metadata}.installation SET format = 0"))
        .await;
    let error = refused(&world, world.options(), 'a').await;
    assert!(matches!(error, ProviderError::Corrupt { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("its format is 0 and this server reads 1"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_too_old_is_refused() {
    let world = World::new();
    let (_, client) = world.options().check().unwrap();
    let mut dial = PgDial::new(client, world.options().url, Durability::Full, 1000);
    dial.require(990_000);
    let mut conn = Dial::dial(&dial).await.unwrap();
    let error = dial.check_server(&mut conn).await.unwrap_err();
    assert!(matches!(error, ProviderError::Settings { .. }), "{error:?}");
    assert!(
        error.to_string().contains("at least 99 is needed"),
        "{error}"
    );
}

/// A server that asks for a password and refuses it.
async fn refusing_server() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut start = vec![0; 1024];
            let _ = stream.read(&mut start).await;
            let _ = stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await;
            let _ = stream.read(&mut start).await;
            let fields =
                b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"u\"\0\0";
            let mut message = vec![b'E'];
            message.extend((fields.len() as u32 + 4).to_be_bytes());
            message.extend(fields);
            let _ = stream.write_all(&message).await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_and_a_server_that_is_not_there_are_told_without_the_password() {
    let world = World::new();
    let port = refusing_server().await;
    let closed = servers::free_port();
    for (url, told) in [
        (
            format!("postgres://u:s3cret@127.0.0.1:{port}/x?sslmode=disable"),
            "password authentication failed",
        ),
        (
            format!("postgres://u:s3cret@127.0.0.1:{closed}/x"),
            "refused",
        ),
        (
            "postgres://u:s3cret@no-such-host.invalid/x".to_owned(),
            "no-such-host.invalid",
        ),
    ] {
        let error = refused(&world, world.options_at(&url), 'a').await;
        let text = format!("{error} {error:?}");
        assert!(matches!(error, ProviderError::Io { .. }), "{text}");
        assert!(text.contains(told), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

/// A database with a role that has what the documentation lists, and no more.
async fn small_role(rights: &str) -> (World, String, String) {
    let world = World::new();
    let name = format!("n{}", world.place.metadata);
    let sql =
        format!("CREATE ROLE {name} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD 's3cret'");
    world.place.run(&sql).await;
    world.place.run(&format!("CREATE DATABASE {name}")).await;
    world
        .place
        .run(&format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"))
        .await;
    world
        .place
        .run(&format!("GRANT {rights} ON DATABASE {name} TO {name}"))
        .await;
    let mut url = url::Url::parse(&world.place.url).unwrap();
    url.set_path(&name);
    run(url.as_str(), "REVOKE ALL ON SCHEMA public FROM PUBLIC").await;
    url.set_username(&name).unwrap();
    url.set_password(Some("s3cret")).unwrap();
    (world, url.into(), name)
}

async fn forget(place: &Place, name: &str) {
    place
        .run(&format!("DROP DATABASE {name} WITH (FORCE)"))
        .await;
    place.run(&format!("DROP ROLE {name}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_with_the_least_rights_can_do_everything() {
    let (world, url, name) = small_role("CONNECT, CREATE").await;
    let (a, b) = (world.provider_at(&url).await, world.provider_at(&url).await);
    let first = fresh(&a, "small").await;
    let second = b.open(&tenant("small")).await.unwrap();
    let at = put(&first, Head::EMPTY, 1, "x").await;
    while head(&second).await != at {
        second.changed().await;
    }
    let turn = second.turn().await.unwrap();
    turn.commit(batch(next(at, 2), b"k", "y")).await.unwrap();
    a.health().await.unwrap();
    assert_eq!(a.unregistered().await.unwrap(), []);
    b.delete(&tenant("small")).await.unwrap();
    forget(&world.place, &name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_a_right_is_told_which() {
    let (world, url, name) = small_role("CONNECT").await;
    let error = refused(&world, world.options_at(&url), 'a')
        .await
        .to_string();
    assert!(
        error.contains("the role needs CREATE on the database"),
        "{error}"
    );
    assert!(!error.contains("s3cret"), "{error}");
    // The operator made the metadata and takes the right back.
    world
        .place
        .run(&format!("GRANT CREATE ON DATABASE {name} TO {name}"))
        .await;
    let provider = world.provider_at(&url).await;
    world
        .place
        .run(&format!("REVOKE CREATE ON DATABASE {name} FROM {name}"))
        .await;
    let error = provider
        .create(&tenant("no"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the role needs CREATE on the database"),
        "{error}"
    );
    assert_eq!(provider.list().await.unwrap(), []);
    forget(&world.place, &name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_hold_every_connection_leave_commits_alone() {
    let mut world = World::new();
    world.timing.wait = Duration::from_millis(300);
    let provider = world.provider().await;
    let store = fresh(&provider, "full").await;
    let mut held = Vec::new();
    let busy = loop {
        match store.snapshot().await {
            Ok(snapshot) => held.push(snapshot),
            Err(e) => break e,
        }
        assert!(held.len() < 20, "there is no bound");
    };
    assert!(matches!(busy, ProviderError::Busy { .. }), "{busy:?}");
    assert_eq!(held.len(), 3, "of 7 connections");
    let at = put(&store, Head::EMPTY, 1, "x").await;
    held.pop();
    soon("a free connection", async || store.snapshot().await.is_ok()).await;
    for mut snapshot in held {
        assert_eq!(snapshot.head().await.unwrap(), Head::EMPTY);
    }
    assert_eq!(head(&store).await, at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_not_had_is_a_passing_failure() {
    let mut world = World::new();
    world.timing.lock = Duration::from_millis(200);
    let provider = world.provider().await;
    let store = fresh(&provider, "locked").await;
    let schema = provider.owned(&tenant("locked"))[0].replace("schema ", "");
    let options: sqlx::postgres::PgConnectOptions = world.place.url.parse().unwrap();
    let mut conn = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let lock = format!("BEGIN; LOCK TABLE {schema}.meta IN ACCESS EXCLUSIVE MODE");
    sqlx::raw_sql(sqlx::AssertSqlSafe(lock))
        .execute(&mut conn)
        .await
        .unwrap();
    let refused = store
        .commit(Head::EMPTY, batch(next(Head::EMPTY, 1), b"k", "x"))
        .await;
    assert!(
        matches!(&refused, Err(CommitError::Transient { reason }) if reason.contains("55P03")),
        "{refused:?}"
    );
    let read = store.snapshot().await.err().unwrap();
    assert!(matches!(read, ProviderError::Busy { .. }), "{read:?}");
    sqlx::raw_sql("ROLLBACK").execute(&mut conn).await.unwrap();
    put(&store, Head::EMPTY, 1, "x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_reports_is_told_apart_and_writes_nothing() {
    let world = World::new();
    let provider = world.provider().await;
    let store = fresh(&provider, "told").await;
    let schema = provider.owned(&tenant("told"))[0].replace("schema ", "");
    let report = async |code: &str| {
        let sql = format!(
            "CREATE OR REPLACE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{code}'; END $$"
        );
        world.place.run(&sql).await;
        let head = next(Head::EMPTY, 1);
        store.commit(Head::EMPTY, batch(head, b"k", "x")).await
    };
    world.place.run(&format!("CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN END $$; \
        CREATE TRIGGER fail BEFORE INSERT ON {schema}.docs FOR EACH ROW EXECUTE FUNCTION {schema}.fail()")).await;
    for code in ["40001", "40P01", "55P03", "57014"] {
        let told = report(code).await;
        assert!(
            matches!(&told, Err(CommitError::Transient { reason }) if reason.contains(code)),
            "{told:?}"
        );
    }
    let told = report("53100").await;
    assert!(matches!(told, Err(CommitError::Full { .. })), "{told:?}");
    let told = report("23514").await;
    assert!(matches!(told, Err(CommitError::Refused { .. })), "{told:?}");
    let told = report("42P01").await;
    assert!(matches!(told, Err(CommitError::Closed)), "{told:?}");
    assert_eq!(head(&store).await, Head::EMPTY);
    world
        .place
        .run(&format!("DROP TRIGGER fail ON {schema}.docs"))
        .await;
    put(&store, Head::EMPTY, 2, "x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_synchronous_unless_that_was_given_up() {
    let (world, url, name) = small_role("CONNECT, CREATE").await;
    world
        .place
        .run(&format!("ALTER ROLE {name} SET synchronous_commit = off"))
        .await;
    for (durability, expected) in [(Durability::Full, "on"), (Durability::Relaxed, "off")] {
        let mut options = world.options_at(&url);
        options.durability = durability;
        let provider = PostgresProvider::connect_with(options, installation('a'), world.timing)
            .await
            .unwrap();
        let mut lease = provider.shared.base.pool.get(Use::Commit).await.unwrap();
        let row = sqlx::query("SHOW synchronous_commit")
            .fetch_one(lease.conn().unwrap())
            .await
            .unwrap();
        assert_eq!(row.get::<String, _>(0), expected);
    }
    forget(&world.place, &name).await;
}
