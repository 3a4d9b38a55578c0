//! Two servers on the same tenants: what one commits the other reads, is told of and never overwrites, and
//! neither undoes what the other is at.
//!
//! Each check runs on any provider that servers share: on memory here, and on databases from the files of
//! their providers. It must not know which one it is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nimbus_storage::core::{Object, TableName, Value};
use nimbus_storage::provider::memory::MemoryProvider;
use nimbus_storage::provider::{Batch, Keyspace, Provider};
use nimbus_storage::{
    Direction, Engine, EngineOptions, FilterOp, ProviderError, Query, StoreError, Tenant,
    Transaction,
};

pub use super::blind::{
    a_savepoint_does_not_bring_back_an_old_catalogue, a_schema_changed_meanwhile_decides,
    a_tenant_deleted_meanwhile_is_missed, an_index_declared_meanwhile_has_the_insert,
    answers_of_the_catalogue_are_the_newest, inserts_take_no_snapshot,
    other_changes_are_seen_without_another_run, tables_are_made_once,
};
pub use super::due::{
    due_work_is_done_once, due_work_of_a_server_that_is_gone_is_done,
    due_work_that_is_only_announced_is_not_forgotten,
};
use super::history::anomalies;
use super::isolation::{CLIENTS, EACH, Mode, TABLE, clients, prepared};
use super::lists;
pub use super::lists::planted_anomalies_are_found;
pub use super::policies::policies_reach_the_other_server;
pub use super::quotas::{quotas_hold_over_both_servers, usage_counts_the_other_servers_commits};
use super::support::*;

/// Two engines over the same tenants.
pub struct Servers {
    pub a: Engine,
    pub b: Engine,
    /// Faults of the second one's storage.
    pub hooks: Arc<Hooks>,
}

impl Servers {
    pub fn over(a: Arc<dyn Provider>, b: Arc<dyn Provider>) -> Servers {
        let engine = |provider| Engine::new(provider, EngineOptions::default());
        let hooks: Arc<Hooks> = Arc::default();
        let wrapped = Wrapper {
            inner: b,
            hooks: hooks.clone(),
        };
        Servers {
            a: engine(a),
            b: engine(Arc::new(wrapped)),
            hooks,
        }
    }

    pub fn in_memory() -> Servers {
        let provider = MemoryProvider::new();
        Servers::over(Arc::new(provider.clone()), Arc::new(provider))
    }

    /// A new tenant, open on both.
    pub async fn tenant(&self, id: &str) -> (Tenant, Tenant) {
        self.a.create_tenant(&name(id)).await.unwrap();
        let a = self.a.tenant(&name(id)).await.unwrap();
        (a, self.b.tenant(&name(id)).await.unwrap())
    }

    pub async fn close(self) {
        self.a.close().await.unwrap();
        self.b.close().await.unwrap();
    }
}

pub(super) fn table() -> TableName {
    name("t")
}

pub(super) fn row(n: f64) -> Object {
    object([("n", num(n))])
}

pub(super) fn by_n(n: f64) -> Query {
    query("t", vec![filter("n", FilterOp::Eq, num(n))], None)
}

pub(super) async fn declare(tenant: &Tenant) {
    let declared = schema("t", &["n"], &[("by_n", &["n"])]);
    tenant.put_schema(declared).await.unwrap();
    indexes_ready(tenant, "t").await;
}

/// What one acknowledges the other reads at once: documents, queries by an index, tables, and pages with a
/// cursor of the first.
pub async fn reads_see_the_other_server(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    declare(&a).await;
    for n in 0..20 {
        let (writer, reader) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let n = f64::from(n);
        let id = writer.insert(&table(), row(n)).await.unwrap();
        let found = reader.get(&table(), &id.to_string()).await.unwrap();
        assert_eq!(found.fields().unwrap()["n"], num(n));
        assert_eq!(reader.query(&by_n(n)).await.unwrap().len(), 1);
        writer
            .patch(&table(), &id.to_string(), row(n + 100.0))
            .await
            .unwrap();
        assert!(reader.query(&by_n(n)).await.unwrap().is_empty());
        assert_eq!(reader.query(&by_n(n + 100.0)).await.unwrap().len(), 1);
    }
    let all = query("t", Vec::new(), Some(("n", Direction::Forward)));
    let first = a.page(&all, 7, None).await.unwrap();
    let second = b.page(&all, 7, first.next_cursor.as_deref()).await.unwrap();
    let numbers: Vec<Value> = first
        .documents
        .iter()
        .chain(&second.documents)
        .map(|d| d.fields().unwrap()["n"].clone())
        .collect();
    let expected: Vec<Value> = (100..114).map(|n| num(f64::from(n))).collect();
    assert_eq!(numbers, expected);
    assert_consistent(&a).await;
    assert_consistent(&b).await;
    drop((a, b));
    servers.close().await;
}

/// A subscription on one is told of commits through the other, and only of those that concern it.
pub async fn subscriptions_see_the_other_server(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    declare(&a).await;
    let mut live = b.subscribe(by_n(1.0)).await.unwrap();
    let first = soon("the first result", live.next()).await.unwrap();
    assert!(first.documents.as_ref().unwrap().is_empty());
    let id = a.insert(&table(), row(1.0)).await.unwrap();
    let second = soon("the other server's insert", live.next())
        .await
        .unwrap();
    assert_eq!(second.documents.as_ref().unwrap().len(), 1);
    // Leaves the range by its index entry alone.
    a.patch(&table(), &id.to_string(), row(2.0)).await.unwrap();
    let third = soon("the other server's update", live.next())
        .await
        .unwrap();
    assert!(third.documents.as_ref().unwrap().is_empty());

    let mut read = b.begin_read(None).await.unwrap();
    read.query(&by_n(5.0)).await.unwrap();
    let watch = b.watch(read.take_reads());
    a.insert(&table(), row(4.0)).await.unwrap();
    b.catch_up().await.unwrap();
    assert!(watch.is_valid(), "nothing that was read changed");
    a.insert(&table(), row(5.0)).await.unwrap();
    soon("the watch to end", watch.invalidated()).await;
    b.catch_up().await.unwrap();
    assert!(!watch.is_valid());
    drop((live, watch, read, a, b));
    servers.close().await;
}

async fn increment(
    tx: &mut Transaction,
    id: nimbus_storage::core::DocumentId,
) -> Result<(), StoreError> {
    let found = tx.get(id).await?.unwrap().fields()?;
    let Some(Value::Float64(n)) = found.get("n") else {
        panic!("n is a number");
    };
    tx.patch(&table(), id, row(n + 1.0)).await
}

/// One counter, incremented from both servers at once, loses nothing, and inserts beside it stand.
pub async fn counters_lose_nothing(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    declare(&a).await;
    let id = a.insert(&table(), row(0.0)).await.unwrap();
    let tasks: Vec<_> = (0..32)
        .map(|number| {
            let tenant = if number % 2 == 0 {
                a.clone()
            } else {
                b.clone()
            };
            tokio::spawn(async move {
                for _ in 0..4 {
                    // Under this contention a caller may be told to try again.
                    loop {
                        let done = tenant.transact(|tx| Box::pin(increment(tx, id))).await;
                        match done {
                            Ok(()) => break,
                            Err(StoreError::Conflict { .. }) => {}
                            Err(other) => panic!("{other} {:?}", other.inside()),
                        }
                    }
                    tenant.insert(&table(), row(-1.0)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for tenant in [&a, &b] {
        let found = tenant.get(&table(), &id.to_string()).await.unwrap();
        assert_eq!(found.fields().unwrap()["n"], num(128.0));
        assert_eq!(tenant.query(&by_n(-1.0)).await.unwrap().len(), 128);
        assert_consistent(tenant).await;
    }
    drop((a, b));
    servers.close().await;
}

/// Random histories over both servers are strictly serializable, by the checker of `history`.
pub async fn histories_are_serializable(servers: Servers, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let (a, b) = servers.tenant(&format!("t{seed}")).await;
        let ids = prepared(&a, 24).await;
        let handles = [a, b];
        let (observed, conflicts) = clients(&handles, ids, seed, Mode::Plain).await;
        assert_eq!(observed.len(), CLIENTS * EACH, "seed {seed}: everyone ends");
        assert!(conflicts > 0, "seed {seed}: nothing ran concurrently");
        for tenant in &handles {
            let found = anomalies(tenant, TABLE, &observed).await;
            assert!(found.is_empty(), "seed {seed}: {found:#?}");
            assert_consistent(tenant).await;
        }
    }
    servers.close().await;
}

/// List appends and transfers of 64 clients on both servers are strictly serializable, by the checker of `lists`.
pub async fn lists_and_transfers_are_serializable(servers: Servers) {
    lists::hold(&[&servers.a, &servers.b]).await;
    servers.close().await;
}

/// Without validation they are not: the checker finds what two servers do to each other.
pub async fn histories_without_validation_are_not(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    let ids = prepared(&a, 24).await;
    let (observed, _) = clients(&[a.clone(), b], ids, 7, Mode::WithoutValidation).await;
    let found = anomalies(&a, TABLE, &observed).await;
    assert!(found.len() > 5, "only {found:#?}");
}

/// Deleted by one, and made again: the other notices, and never shows the old data.
pub async fn deletion_is_noticed(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    a.insert(&table(), row(1.0)).await.unwrap();
    assert_eq!(b.query(&by_n(1.0)).await.unwrap().len(), 1);
    let mut live = b.subscribe(by_n(1.0)).await.unwrap();
    soon("the first result", live.next()).await.unwrap();
    drop(a);
    servers.a.delete_tenant(&name("t")).await.unwrap();
    soon("the subscription to end", async {
        while live.next().await.is_some() {}
    })
    .await;
    let gone = b.query(&by_n(1.0)).await.unwrap_err();
    assert!(
        matches!(gone, StoreError::Closed | StoreError::TenantNotFound { .. }),
        "{gone:?}"
    );
    assert!(b.insert(&table(), row(2.0)).await.is_err());
    let missing = servers.b.tenant(&name("t")).await.map(drop).unwrap_err();
    assert!(
        matches!(missing, StoreError::TenantNotFound { .. }),
        "{missing:?}"
    );
    drop((b, live));

    let (a, b) = servers.tenant("t").await;
    assert!(b.query(&by_n(1.0)).await.unwrap().is_empty());
    a.insert(&table(), row(3.0)).await.unwrap();
    // Made again while it was open here, with a history that is not the one known.
    drop(a);
    servers.a.delete_tenant(&name("t")).await.unwrap();
    servers.a.create_tenant(&name("t")).await.unwrap();
    let a = servers.a.tenant(&name("t")).await.unwrap();
    for _ in 0..3 {
        a.insert(&table(), row(7.0)).await.unwrap();
    }
    let again = async || match b.query(&by_n(3.0)).await {
        Err(StoreError::Closed | StoreError::TenantNotFound { .. }) => Vec::new(),
        other => other.unwrap(),
    };
    assert!(
        again().await.is_empty(),
        "the old tenant's document is shown"
    );
    drop(b);
    let b = servers.b.tenant(&name("t")).await.unwrap();
    assert_eq!(b.query(&by_n(7.0)).await.unwrap().len(), 3);
    assert_consistent(&b).await;
    drop((a, b));
    servers.close().await;
}

/// An index that one server declares over existing documents is kept up by the other while it is filled.
pub async fn indexes_are_filled_under_the_other_servers_writes(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    for n in 0..600 {
        a.insert(&table(), row(f64::from(n))).await.unwrap();
    }
    let writing = {
        let b = b.clone();
        tokio::spawn(async move {
            for n in 600..700 {
                let id = b.insert(&table(), row(f64::from(n))).await.unwrap();
                b.delete(&table(), &id.to_string()).await.unwrap();
            }
        })
    };
    declare(&a).await;
    writing.await.unwrap();
    indexes_ready(&b, "t").await;
    for tenant in [&a, &b] {
        assert_eq!(tenant.query(&by_n(599.0)).await.unwrap().len(), 1);
        assert!(tenant.query(&by_n(650.0)).await.unwrap().is_empty());
        assert_consistent(tenant).await;
    }
    b.delete_schema(&table()).await.unwrap();
    until("the index is gone", || async {
        a.catch_up().await.unwrap();
        a.table_schema(&table())
            .await
            .map_or(true, |s| s.indexes.is_empty())
    })
    .await;
    assert_consistent(&a).await;
    drop((a, b));
    servers.close().await;
}

/// Schema changes of two servers take turns, and both prune the log without losing its chain.
pub async fn schema_changes_and_pruning_take_turns(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    let changes = (0..6).map(|n| {
        let tenant = if n % 2 == 0 { a.clone() } else { b.clone() };
        tokio::spawn(async move {
            let table = format!("t{n}");
            let declared = schema(&table, &["n"], &[("by_n", &["n"])]);
            tenant.put_schema(declared).await.unwrap();
            for n in 0..5 {
                tenant
                    .insert(&name(&table), row(f64::from(n)))
                    .await
                    .unwrap();
            }
            tenant.prune_log().await.unwrap();
        })
    });
    for change in changes.collect::<Vec<_>>() {
        change.await.unwrap();
    }
    for tenant in [&a, &b] {
        for n in 0..6 {
            let found = tenant.query(&Query::table(name(&format!("t{n}")))).await;
            assert_eq!(found.unwrap().len(), 5);
        }
        assert_consistent(tenant).await;
    }
    drop((a, b));
    servers.close().await;
}

/// A server that slept until the log it needs was pruned begins anew at what there is.
pub async fn a_pruned_log_is_survived(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    b.insert(&table(), row(0.0)).await.unwrap();
    let mut begun = b.begin().await.unwrap();
    begun.query(&by_n(77.0)).await.unwrap();
    begun.insert(&table(), row(-7.0)).await.unwrap();
    let mut read = b.begin_read(None).await.unwrap();
    read.query(&by_n(77.0)).await.unwrap();
    let watch = b.watch(read.take_reads());
    let mut live = b.subscribe(Query::table(table())).await.unwrap();
    soon("the first result", live.next()).await.unwrap();
    // This server cannot look before the other's commits are pruned.
    servers.hooks.on_snapshot(|| async {
        let what = "asleep".to_owned();
        Err(ProviderError::Busy { what })
    });
    for n in 0..10 {
        a.insert(&table(), row(f64::from(n))).await.unwrap();
    }
    a.prune_log().await.unwrap();
    servers.hooks.clear();
    assert_eq!(b.query(&Query::table(table())).await.unwrap().len(), 11);
    soon("the result after the gap", async {
        loop {
            let next = live.next().await.unwrap();
            if next.documents.as_ref().unwrap().len() == 11 {
                return;
            }
        }
    })
    .await;
    assert!(!watch.is_valid(), "nobody knows what happened in the gap");
    let old = b.commit(begun).await.unwrap_err();
    assert!(matches!(old, StoreError::Conflict { .. }), "{old:?}");
    b.insert(&table(), row(1.0)).await.unwrap();
    assert_consistent(&b).await;
    drop((a, b, live, watch, read));
    servers.close().await;
}

/// The turn to change tables is given back at its end: the other server need not wait for a lease to pass.
pub async fn the_schema_turn_is_given_back(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    for tenant in [&a, &b, &a] {
        let waited = tokio::time::timeout(Duration::from_secs(8), declare(tenant)).await;
        assert!(waited.is_ok(), "the turn was not given back");
    }
    drop((a, b));
    servers.close().await;
}

/// A schema change that a server died over is undone by the other once the dead one's turn is over.
pub async fn a_dead_servers_schema_change_is_undone(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    declare(&a).await;
    drop((a, b));
    let provider = servers.b.provider().clone();
    servers.close().await;
    // What a server leaves that stops between the two commits of a schema change.
    let store = provider.open(&name("t")).await.unwrap();
    let mut turn = store.turn().await.unwrap();
    let key: &[u8] = b"table/t";
    let stored = turn.get_many(Keyspace::Meta, &[key]).await.unwrap();
    let mut def: serde_json::Value = serde_json::from_slice(stored[0].as_ref().unwrap()).unwrap();
    def["pending"] = serde_json::json!([{"name": "n", "field_type": "string"}]);
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(1);
    let end = u64::try_from(end.as_millis()).unwrap();
    let held = serde_json::json!({"server": "dead", "until": end});
    let put = |key: &[u8], value: &serde_json::Value| {
        let at = (Keyspace::Meta, key.to_vec());
        (at, Some(serde_json::to_vec(value).unwrap().into()))
    };
    let head = turn.head().await.unwrap();
    let writes = [put(key, &def), put(b"schema_turn", &held)].into();
    turn.commit(Batch { head, writes }).await.unwrap();
    // Providers may give a tenant to one store at a time.
    store.close().await.unwrap();

    let b = Engine::new(provider, EngineOptions::default());
    let tenant = b.tenant(&name("t")).await.unwrap();
    let refused = tenant.insert(&table(), row(1.0)).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::SchemaViolation { .. }),
        "{refused:?}"
    );
    until("the other server's schema change is undone", || async {
        tenant.insert(&table(), row(1.0)).await.is_ok()
    })
    .await;
    assert_consistent(&tenant).await;
    drop(tenant);
    b.close().await.unwrap();
}

/// Makes each check a test of its own. `$start` gives a place, kept until the end, and two servers over it.
macro_rules! two_servers {
    ($start:path, $seeds:expr) => {
        $crate::engine::servers::two_servers!(
            @each $start:
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
            a_tenant_deleted_meanwhile_is_missed
        );

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn histories_are_serializable() {
            let (_place, servers) = $start().await;
            $crate::engine::servers::histories_are_serializable(servers, $seeds).await;
        }
    };
    (@each $start:path: $($check:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                let (_place, servers) = $start().await;
                $crate::engine::servers::$check(servers).await;
            }
        )+
    };
}
pub(crate) use two_servers;

mod in_memory {
    async fn start() -> ((), super::Servers) {
        ((), super::Servers::in_memory())
    }

    super::two_servers!(start, 1..7);
}
