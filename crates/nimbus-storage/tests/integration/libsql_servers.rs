//! Two servers on one libSQL primary: the checks of `engine::servers`.
//!
//! Most of them expect to read at once what the other server acknowledged, which holds with a staleness of zero. Those
//! that hold with the default one run with that as well.

use std::sync::Arc;
use std::time::Duration;

use nimbus_libsql_primary::{Options, Primary};
use nimbus_storage::control::RandomId;
use nimbus_storage::provider::Provider;
use nimbus_storage::provider::libsql::{LibsqlOptions, LibsqlProvider};

use crate::engine::servers::{self, Servers};

/// A primary, and two servers on it.
async fn with_two(staleness: Duration, check: impl AsyncFnOnce(Servers)) {
    let dir = tempfile::tempdir().expect("a directory");
    let primary = Primary::start(dir.path().join("primary"), Options::default());
    let primary = primary.expect("a primary");
    let installation = RandomId::try_from("5a".repeat(16)).expect("an id");
    let mut both: Vec<Arc<dyn Provider>> = Vec::new();
    for name in ["a", "b"] {
        let cache = dir.path().join(name);
        let mut options = LibsqlOptions::new(primary.url(), primary.admin_url(), cache);
        options.max_staleness = staleness;
        let provider = LibsqlProvider::connect(options, installation).await;
        both.push(Arc::new(provider.expect("a provider")));
    }
    let b = both.pop().expect("the second");
    let a = both.pop().expect("the first");
    check(Servers::over(a, b)).await;
}

macro_rules! checks {
    ($module:ident, $staleness:expr, $($check:ident),+ $(,)?) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    super::with_two($staleness, super::servers::$check).await;
                }
            )+
        }
    };
}

checks!(
    asking_always,
    std::time::Duration::ZERO,
    reads_see_the_other_server,
    subscriptions_see_the_other_server,
    counters_lose_nothing,
    histories_without_validation_are_not,
    lists_and_transfers_are_serializable,
    planted_anomalies_are_found,
    deletion_is_noticed,
    indexes_are_filled_under_the_other_servers_writes,
    schema_changes_and_pruning_take_turns,
    a_pruned_log_is_survived,
    the_schema_turn_is_given_back,
    a_dead_servers_schema_change_is_undone,
    due_work_is_done_once,
    due_work_of_a_server_that_is_gone_is_done,
    due_work_that_is_only_announced_is_not_forgotten,
    policies_reach_the_other_server,
    usage_counts_the_other_servers_commits,
    quotas_hold_over_both_servers,
    inserts_take_no_snapshot,
    an_index_declared_meanwhile_has_the_insert,
    a_schema_changed_meanwhile_decides,
    other_changes_are_seen_without_another_run,
    answers_of_the_catalogue_are_the_newest,
    a_savepoint_does_not_bring_back_an_old_catalogue,
    tables_are_made_once,
    a_tenant_deleted_meanwhile_is_missed,
);

checks!(
    by_default,
    std::time::Duration::from_millis(250),
    the_schema_turn_is_given_back,
    a_dead_servers_schema_change_is_undone,
    due_work_is_done_once,
    due_work_of_a_server_that_is_gone_is_done,
    due_work_that_is_only_announced_is_not_forgotten,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_serializable() {
    with_two(Duration::ZERO, async |servers| {
        servers::histories_are_serializable(servers, 1..3).await;
    })
    .await;
}
