//! Two servers on one Postgres database, by the checks of `engine::servers`.

use std::sync::Arc;

use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::Provider;
use nimbus_storage::provider::postgres::{PostgresOptions, PostgresProvider};

use crate::engine::servers::{self as checks, Servers};
use crate::servers::Place;

/// A place in the database, and two providers over it of which the second joined the first one's installation.
async fn two() -> (Place, Servers) {
    let place = Place::postgres();
    let control = || {
        let dir = tempfile::tempdir().unwrap();
        ControlDb::open(dir.path()).unwrap().installation()
    };
    let (first, second) = (control(), control());
    let open = async |join| {
        let mut options = PostgresOptions::new(&place.url).unwrap();
        options.metadata_schema.clone_from(&place.metadata);
        options.tenant_schema_prefix.clone_from(&place.prefix);
        options.join_installation = join;
        let own = if join.is_some() { second } else { first };
        let provider = PostgresProvider::connect(options, own).await.unwrap();
        Arc::new(provider) as Arc<dyn Provider>
    };
    let a = open(None).await;
    let b = open(Some(first)).await;
    (place, Servers::over(a, b))
}

macro_rules! on_postgres {
    ($($check:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                let (_place, servers) = two().await;
                checks::$check(servers).await;
            }
        )+
    };
}

on_postgres!(
    reads_see_the_other_server,
    subscriptions_see_the_other_server,
    counters_lose_nothing,
    histories_without_validation_are_not,
    deletion_is_noticed,
    indexes_are_filled_under_the_other_servers_writes,
    schema_changes_and_pruning_take_turns,
    a_pruned_log_is_survived,
    the_schema_turn_is_given_back,
    a_dead_servers_schema_change_is_undone,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_serializable() {
    let (_place, servers) = two().await;
    checks::histories_are_serializable(servers, 1..4).await;
}
