//! Servers, users and settings that are not fit: one clear error each, and nothing is changed.

use super::*;
use crate::provider::Durability;
use crate::provider::external::mysql_servers::OwnServer;

/// The least rights, as the documentation lists them. `_` stands for any character in the name of a database, so
/// it is escaped.
pub(super) const LEAST: &[&str] = &[
    "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON `{metadata}`.* TO '{user}'@'%'",
    "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP ON `{prefix}%`.* TO '{user}'@'%'",
];

/// A user with some rights; its name, and a URL with its password.
pub(super) async fn user(world: &World, rights: &[&str]) -> (String, String) {
    let user = format!("u{}", world.place.metadata);
    let create = format!("CREATE USER '{user}'@'%' IDENTIFIED BY 's3cret'");
    world.place.run(&create).await;
    for right in rights {
        let grant = right
            .replace("{metadata}", &world.place.metadata)
            .replace("{prefix}", &world.place.prefix.replace('_', "\\_"))
            .replace("{user}", &user);
        world.place.run(&grant).await;
    }
    let mut url = url::Url::parse(&world.place.url).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("s3cret")).unwrap();
    (user, url.into())
}

pub(super) async fn forget(world: &World, user: &str) {
    world.place.run(&format!("DROP USER '{user}'@'%'")).await;
}

async fn refused(world: &World, options: MysqlOptions, digit: char) -> ProviderError {
    let connected = MysqlProvider::connect_with(options, installation(digit), world.timing);
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
    let told = format!("--join-installation {ours}");
    assert!(error.to_string().contains(&told), "{error}");

    let mut options = world.options();
    options.join_installation = Some(installation('c'));
    let error = refused(&world, options.clone(), 'b').await;
    assert!(
        matches!(error, ProviderError::OtherInstallation { .. }),
        "{error:?}"
    );
    options.join_installation = Some(ours);
    let joined = MysqlProvider::connect_with(options, installation('b'), world.timing)
        .await
        .unwrap();
    assert_eq!(joined.list().await.unwrap(), [tenant("shared")]);

    let mut options = world.options();
    options.tenant_database_prefix = format!("{}more_", world.place.prefix);
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
    let made = format!("SHOW DATABASES LIKE '{}'", world.place.metadata);
    assert!(world.place.ask(&made).await.is_empty(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_of_another_format_is_refused() {
    let world = World::new();
    drop(world.provider().await);
    let metadata = &world.place.metadata;
    let newer = format!("UPDATE `{metadata}`.installation SET format = 2");
    world.place.run(&newer).await;
    let error = refused(&world, world.options(), 'a').await;
    assert!(matches!(error, ProviderError::Corrupt { .. }), "{error:?}");
    let told = "its format is 2 and this server reads 1";
    assert!(error.to_string().contains(told), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_and_a_server_that_is_not_there_are_told_without_the_password() {
    let world = World::new();
    let (user, url) = user(&world, LEAST).await;
    let closed = crate::provider::external::servers::free_port();
    for (url, told) in [
        (url.replace("s3cret", "s3cretly"), "Access denied for user"),
        (format!("mysql://u:s3cret@127.0.0.1:{closed}/"), "refused"),
        (
            "mysql://u:s3cret@no-such-host.invalid/".to_owned(),
            "no-such-host.invalid",
        ),
    ] {
        let error = refused(&world, world.options_at(&url), 'a').await;
        let text = format!("{error} {error:?}");
        assert!(matches!(error, ProviderError::Io { .. }), "{text}");
        assert!(text.contains(told), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    forget(&world, &user).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_least_rights_can_do_everything() {
    let world = World::new();
    let (user, url) = user(&world, LEAST).await;
    let (a, b) = (world.provider_at(&url).await, world.provider_at(&url).await);
    let first = fresh(&a, "small").await;
    let second = b.open(&tenant("small")).await.unwrap();
    let at = put(&first, Head::EMPTY, 1, "x").await;
    while head(&second).await != at {
        second.changed().await;
    }
    let turn = second.turn().await.unwrap();
    let new = next(at, 2);
    turn.commit(batch(new, b"k", "y")).await.unwrap();
    let deletes = Batch {
        head: next(new, 3),
        writes: BTreeMap::from([((Keyspace::Docs, b"k".to_vec()), None)]),
    };
    first.commit(new, deletes).await.unwrap();
    a.health().await.unwrap();
    let metadata = &world.place.metadata;
    let forgotten = format!("DELETE FROM `{metadata}`.tenants");
    world.place.run(&forgotten).await;
    assert_eq!(a.unregistered().await.unwrap(), [tenant("small")]);
    a.adopt(&tenant("small")).await.unwrap();
    assert_eq!(b.list().await.unwrap(), [tenant("small")]);
    b.delete(&tenant("small")).await.unwrap();
    assert_eq!(world.place.databases().await, Vec::<String>::new());
    forget(&world, &user).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_a_right_is_told_which() {
    let world = World::new();
    let (user, url) = user(&world, &[]).await;
    let told = "the user needs SELECT, INSERT, UPDATE, DELETE, CREATE and DROP on it";
    let error = refused(&world, world.options_at(&url), 'a').await;
    let text = error.to_string();
    assert!(
        text.contains(told) && text.contains(&world.place.metadata),
        "{text}"
    );
    assert!(!text.contains("s3cret"), "{text}");
    forget(&world, &user).await;

    // It may have its metadata and no tenant.
    let (user, url) = self::user(&world, &LEAST[..1]).await;
    let provider = world.provider_at(&url).await;
    let error = provider.create(&tenant("no")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(told), "{text}");
    assert!(text.contains(&database(&provider, "no")), "{text}");
    assert_eq!(provider.list().await.unwrap(), []);
    // And nothing is left that would be in the way.
    let left = format!("SELECT tenant_id FROM `{}`.tenants", world.place.metadata);
    assert_eq!(world.place.ask(&left).await, Vec::<String>::new());
    forget(&world, &user).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_set_up_badly_is_refused_and_noticed_later() {
    let server = OwnServer::start();
    let world = World::at(&server.url());
    let provider = world.provider().await;
    provider.health().await.unwrap();
    for (variable, bad, good) in [
        ("innodb_flush_log_at_trx_commit", "2", "1"),
        ("max_allowed_packet", "1048576", "16777216"),
        ("read_only", "ON", "OFF"),
    ] {
        let set = async |value| {
            let sql = format!("SET GLOBAL {variable}={value}");
            world.place.run(&sql).await;
        };
        set(bad).await;
        let error = refused(&world, world.options(), 'a').await;
        let told = format!("{variable} is {bad}");
        assert!(
            matches!(&error, ProviderError::Settings { reason } if reason.contains(&told)),
            "{error:?}"
        );
        if variable != "max_allowed_packet" {
            // Of that one a session keeps what it began with.
            let error = provider.health().await.unwrap_err();
            assert!(error.to_string().contains(&told), "{error:?}");
        }
        set(good).await;
        provider.health().await.unwrap();
    }
    // A server that may lose the newest commits is taken on purpose.
    let lax = "SET GLOBAL innodb_flush_log_at_trx_commit=0";
    world.place.run(lax).await;
    let mut options = world.options();
    options.durability = Durability::Relaxed;
    let relaxed = MysqlProvider::connect_with(options, installation('a'), world.timing);
    relaxed.await.unwrap().health().await.unwrap();
    drop(world);
}
