//! Transactions that begin without a snapshot, where servers share the store: those that only insert take
//! none, and all others end as if they had begun with one, whatever the other server did meanwhile.
//!
//! As in `servers`, each check runs on any provider that servers share and must not know which one it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use nimbus_storage::core::{DocumentId, TableName};
use nimbus_storage::{ProviderError, Query, Ran, StoreError, StoreResult, Tenant, Transaction};

use super::servers::{Servers, by_n, declare, row, table};
use super::support::*;

fn snapshots(servers: &Servers) -> u64 {
    servers.a.metrics().snapshots + servers.b.metrics().snapshots
}

fn conflicts(tenant: &Tenant) -> u64 {
    tenant.metrics().mutation_admission.conflict_count
}

/// What happens on the other server.
type Change = fn(Tenant) -> BoxFuture<'static, ()>;

/// How a transaction ended, and the runs that it took.
type Ended<T> = (StoreResult<T>, u32);

/// Runs `body` on `tenant`; in its first run `change` happens on `other` after `body` said so.
async fn run<T: Send + 'static>(
    tenant: &Tenant,
    body: impl for<'t> Fn(&'t mut Transaction, Turn) -> BoxFuture<'t, StoreResult<Ran<T>>>,
    (other, change): (&Tenant, Change),
) -> Ended<T> {
    let runs = Arc::new(AtomicU32::new(0));
    let done = tenant.transact_function(|tx, run| {
        runs.store(run, Ordering::SeqCst);
        let turn = Turn((run == 1).then(|| (other.clone(), change)));
        body(tx, turn)
    });
    let done = done.await.map(|(value, _)| value);
    (done, runs.load(Ordering::SeqCst))
}

/// What is to happen on the other server, if it did not yet.
struct Turn(Option<(Tenant, Change)>);

impl Turn {
    async fn give(self) {
        if let Some((other, change)) = self.0 {
            change(other).await;
        }
    }
}

/// Inserts a document, after which the other server has its turn, and then reads if `read` says what.
async fn insert_while(
    tenant: &Tenant,
    n: f64,
    read: Option<Query>,
    change: (&Tenant, Change),
) -> Ended<(DocumentId, usize)> {
    run(
        tenant,
        |tx, turn| insert_and_read(tx, turn, n, read.clone()),
        change,
    )
    .await
}

fn insert_and_read(
    tx: &mut Transaction,
    turn: Turn,
    n: f64,
    read: Option<Query>,
) -> BoxFuture<'_, StoreResult<Ran<(DocumentId, usize)>>> {
    async move {
        let inserted = tx.insert(&table(), row(n)).await;
        turn.give().await;
        let found = match read {
            Some(query) => tx.query(&query).await?.len(),
            None => 0,
        };
        Ok(Ran::Commit((inserted?, found)))
    }
    .boxed()
}

/// Inserts on both servers at once take no snapshots, and none is lost or doubled.
pub async fn inserts_take_no_snapshot(servers: Servers) {
    const WRITERS: u32 = 16;
    const EACH: u32 = 6;
    /// What the background work of both servers may take meanwhile, once each was opened and a schema changed.
    const BACKGROUND: u64 = 12;
    let (a, b) = servers.tenant("t").await;
    declare(&a).await;
    b.catch_up().await.unwrap();
    let before = snapshots(&servers);
    let writers = (0..WRITERS).map(|w| {
        let tenant = if w % 2 == 0 { a.clone() } else { b.clone() };
        tokio::spawn(async move {
            for i in 0..EACH {
                let n = f64::from(w * EACH + i);
                tenant.insert(&table(), row(n)).await.unwrap();
            }
        })
    });
    for writer in join_all(writers.collect::<Vec<_>>()).await {
        writer.unwrap();
    }
    let taken = snapshots(&servers) - before;
    assert!(taken <= BACKGROUND, "{taken} snapshots");
    for tenant in [&a, &b] {
        let all = tenant.query(&Query::table(table())).await.unwrap();
        assert_eq!(all.len(), (WRITERS * EACH) as usize);
        let last = by_n(f64::from(WRITERS * EACH - 1));
        assert_eq!(tenant.query(&last).await.unwrap().len(), 1);
        assert_consistent(tenant).await;
    }
    drop((a, b));
    servers.close().await;
}

/// The other server declares an index between an insert and its commit: the insert runs once more, whether or
/// not it reads after that, and the index has it.
pub async fn an_index_declared_meanwhile_has_the_insert(servers: Servers) {
    for (id, read) in [("reads", Some(by_n(1.0))), ("does-not", None)] {
        let (a, b) = servers.tenant(id).await;
        b.insert(&table(), row(0.0)).await.unwrap();
        let before = conflicts(&b);
        let change: Change = |a| async move { declare(&a).await }.boxed();
        let (done, runs) = insert_while(&b, 1.0, read.clone(), (&a, change)).await;
        let (_, found) = done.unwrap();
        assert_eq!(runs, 2, "{id}");
        assert_eq!(conflicts(&b) - before, 1, "{id}");
        assert_eq!(found, usize::from(read.is_some()), "it sees its own insert");
        for tenant in [&a, &b] {
            assert_eq!(tenant.query(&by_n(1.0)).await.unwrap().len(), 1);
            assert_consistent(tenant).await;
        }
    }
    servers.close().await;
}

fn require_m(tenant: Tenant) -> BoxFuture<'static, ()> {
    async move {
        let mut declared = schema("t", &["n", "m"], &[]);
        declared.fields[1].required = true;
        tenant.put_schema(declared).await.unwrap();
    }
    .boxed()
}

fn require_nothing(tenant: Tenant) -> BoxFuture<'static, ()> {
    async move { tenant.delete_schema(&table()).await.unwrap() }.boxed()
}

/// A schema that the other server declares or drops between an insert and its end decides about the insert.
pub async fn a_schema_changed_meanwhile_decides(servers: Servers) {
    for (id, read) in [("reads", Some(by_n(1.0))), ("does-not", None)] {
        let (a, b) = servers.tenant(id).await;
        // The table is there, and empty, so that the schema contradicts nothing.
        let first = b.insert(&table(), row(0.0)).await.unwrap();
        b.delete(&table(), &first.to_string()).await.unwrap();
        let (refused, runs) = insert_while(&b, 1.0, read.clone(), (&a, require_m)).await;
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, StoreError::SchemaViolation { .. }),
            "{id}: {refused:?}"
        );
        assert_eq!(runs, 2, "{id}");
        // Now what this server knows refuses it, and is not so any more.
        let (done, runs) = insert_while(&b, 2.0, read, (&a, require_nothing)).await;
        done.unwrap();
        assert_eq!(runs, 2, "{id}");
        assert_eq!(a.query(&Query::table(table())).await.unwrap().len(), 1);
        assert_consistent(&b).await;
    }
    servers.close().await;
}

/// What the other server does elsewhere makes no transaction run again, and is seen by what is read later.
pub async fn other_changes_are_seen_without_another_run(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    declare(&a).await;
    b.catch_up().await.unwrap();
    let before = conflicts(&b);
    let change: Change = |a| {
        async move {
            a.insert(&table(), row(1.0)).await.unwrap();
            a.insert(&name("other"), row(1.0)).await.unwrap();
        }
        .boxed()
    };
    let (done, runs) = insert_while(&b, 1.0, Some(by_n(1.0)), (&a, change)).await;
    assert_eq!(done.unwrap().1, 2, "its own insert and the other server's");
    let (done, second) = insert_while(&b, 1.0, None, (&a, change)).await;
    done.unwrap();
    assert_eq!((runs, second), (1, 1));
    assert_eq!(conflicts(&b), before);
    assert_eq!(b.query(&by_n(1.0)).await.unwrap().len(), 4);
    assert_consistent(&b).await;
    drop((a, b));
    servers.close().await;
}

/// What the catalogue alone answers is as new as anything that is read: of transactions that write nothing,
/// that drop their writes and that fail.
pub async fn answers_of_the_catalogue_are_the_newest(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    a.insert(&table(), row(0.0)).await.unwrap();
    let ends = ["u", "v"].into_iter().zip([Ran::Commit, Ran::Discard]);
    for (table, end) in ends {
        let id = a.insert(&name(table), row(1.0)).await.unwrap();
        let asked = b.transact_function(|tx, _| {
            let known = tx.normalize_id(table, &id.to_string()).is_some();
            async move { Ok(end(known)) }.boxed()
        });
        let (known, stamp) = asked.await.unwrap();
        assert!(known, "{table} was there before the transaction");
        assert!(stamp.sequence >= a.metrics().mutation_journal.durable_head);
    }
    let id = a.insert(&name("w"), row(1.0)).await.unwrap().to_string();
    b.patch(&name("w"), &id, row(2.0)).await.unwrap();
    b.delete(&name("w"), &id).await.unwrap();
    // What it does not rest on costs nothing.
    let before = snapshots(&servers);
    let refused = b.insert(&table(), object([("_id", num(1.0))])).await;
    assert!(matches!(refused, Err(StoreError::InvalidInput { .. })));
    assert_eq!(snapshots(&servers), before);
    assert_consistent(&b).await;
    drop((a, b));
    servers.close().await;
}

/// Going back to before the first read does not bring back the catalogue of that time.
pub async fn a_savepoint_does_not_bring_back_an_old_catalogue(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    let read = b.insert(&table(), row(0.0)).await.unwrap();
    let change: Change = |a| {
        async move {
            a.insert(&name("u"), row(1.0)).await.unwrap();
        }
        .boxed()
    };
    let (known, runs) = run(
        &b,
        |tx, turn| after_a_savepoint(tx, turn, read),
        (&a, change),
    )
    .await;
    assert!(known.unwrap(), "the table was there when it was read");
    assert_eq!(runs, 1);
    assert_eq!(a.query(&Query::table(table())).await.unwrap().len(), 2);
    assert_consistent(&b).await;
    drop((a, b));
    servers.close().await;
}

/// Whether the table `u` is known in the end.
fn after_a_savepoint(
    tx: &mut Transaction,
    turn: Turn,
    read: DocumentId,
) -> BoxFuture<'_, StoreResult<Ran<bool>>> {
    async move {
        tx.insert(&table(), row(1.0)).await?;
        let before = tx.savepoint();
        turn.give().await;
        tx.insert(&table(), row(2.0)).await?;
        tx.get(read).await?;
        tx.roll_back(before);
        let known = nimbus_storage::core::TableNames::number(&tx.table_names(), "u").is_some();
        Ok(Ran::Commit(known))
    }
    .boxed()
}

/// Both servers insert into tables that neither has: each is made once.
pub async fn tables_are_made_once(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    let writers = (0..16u32).map(|w| {
        let tenant = if w % 2 == 0 { a.clone() } else { b.clone() };
        tokio::spawn(async move {
            for n in 0..3u32 {
                let table: TableName = name(&format!("t{n}"));
                tenant.insert(&table, row(f64::from(w))).await.unwrap();
            }
        })
    });
    for writer in join_all(writers.collect::<Vec<_>>()).await {
        writer.unwrap();
    }
    for tenant in [&a, &b] {
        for n in 0..3 {
            let all = tenant.query(&Query::table(name(&format!("t{n}")))).await;
            assert_eq!(all.unwrap().len(), 16);
        }
        assert_consistent(tenant).await;
    }
    drop((a, b));
    servers.close().await;
}

/// The other server deletes the tenant between an insert and its commit, which then says so.
pub async fn a_tenant_deleted_meanwhile_is_missed(servers: Servers) {
    for read in [Some(by_n(1.0)), None] {
        let (a, b) = servers.tenant("t").await;
        a.insert(&table(), row(0.0)).await.unwrap();
        b.catch_up().await.unwrap();
        drop(a);
        let engine = servers.a.clone();
        let inserted = b.transact_function(|tx, _| {
            let (engine, read) = (engine.clone(), read.clone());
            async move {
                let id = tx.insert(&table(), row(1.0)).await?;
                engine.delete_tenant(&name("t")).await?;
                if let Some(query) = read {
                    tx.query(&query).await?;
                }
                Ok(Ran::Commit(id))
            }
            .boxed()
        });
        let gone = inserted.await.unwrap_err();
        assert!(
            matches!(gone, StoreError::TenantNotFound { .. }),
            "{gone:?}"
        );
    }
    servers.close().await;
}

/// A document that the provider refuses fails alone, however many others are inserted at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_insert_fails_alone_in_a_crowd() {
    const WRITERS: u32 = 64;
    let servers = Servers::in_memory();
    let (_a, b) = servers.tenant("t").await;
    b.insert(&table(), row(-1.0)).await.unwrap();
    servers
        .hooks
        .on_commit(|batch| async move { refuse_marked(&batch) });
    let writers = (0..WRITERS).map(|w| {
        let b = b.clone();
        tokio::spawn(async move {
            for i in 0..8 {
                let mut fields = row(f64::from(w));
                let bad = w % 8 == i;
                if bad {
                    fields.insert("mark".into(), text("poison"));
                }
                match b.insert(&table(), fields).await {
                    Err(StoreError::Storage(ProviderError::Io { .. })) if bad => {}
                    Ok(_) if !bad => {}
                    other => panic!("{other:?}, though bad is {bad}"),
                }
            }
        })
    });
    for writer in join_all(writers.collect::<Vec<_>>()).await {
        writer.unwrap();
    }
    let all = b.query(&Query::table(table())).await.unwrap();
    assert_eq!(all.len(), 1 + 64 * 7);
    assert_consistent(&b).await;
}
