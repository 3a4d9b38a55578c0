//! Quotas and what counts against them: reached exactly, never passed, and given back by whatever does not become
//! durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nimbus_storage::core::{DocumentId, Object, TableName};
use nimbus_storage::provider::Keyspace;
use nimbus_storage::{
    CommitError, Engine, EngineOptions, ImportRow, Query, Quota, Ran, StoreError, StoreResult,
    Tenant, Usage,
};

use super::servers::Servers;
use super::stage::{self, Stage, n, outcome};
use super::support::*;

fn table() -> TableName {
    name("t")
}

fn body(len: usize) -> Object {
    object([("s", text(&"x".repeat(len)))])
}

async fn insert(tenant: &Tenant, len: usize) -> StoreResult<DocumentId> {
    tenant.insert(&table(), body(len)).await
}

fn documents(limit: u64) -> Quota {
    Quota {
        documents: Some(limit),
        bytes: None,
    }
}

fn bytes(limit: u64) -> Quota {
    Quota {
        documents: None,
        bytes: Some(limit),
    }
}

fn limit(world: &World, quota: Quota) {
    world.engine().set_quota(&name("t"), quota);
}

/// What there is in these tables, read as anyone reads it.
async fn found_in(tenant: &Tenant, tables: &[&str]) -> Usage {
    let mut found = Usage::default();
    for table in tables {
        for document in tenant.query(&Query::table(name(table))).await.unwrap() {
            found.documents += 1;
            found.bytes += (document.id.key().len() + document.json.len()) as u64;
        }
    }
    found
}

async fn found(tenant: &Tenant) -> Usage {
    found_in(tenant, &["t"]).await
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: StoreResult<T>, which: &str, at: u64, would_be: u64) {
    let error = result.unwrap_err();
    match &error {
        StoreError::QuotaExceeded {
            quota,
            limit,
            observed,
        } if (*quota, *limit, *observed) == (which, at, would_be) => {}
        other => panic!("{other:?} and not {which} {at} {would_be}"),
    }
}

async fn world() -> (World, Tenant) {
    let world = World::new().await;
    let tenant = world.create("t").await;
    (world, tenant)
}

#[tokio::test]
async fn documents_reach_a_quota_exactly() {
    let (world, tenant) = world().await;
    // Also before anything is there, and on a tenant that is open.
    limit(&world, documents(3));
    let mut ids = Vec::new();
    for len in 0..3 {
        ids.push(insert(&tenant, len).await.unwrap().to_string());
    }
    let head = tenant.metrics().mutation_journal.durable_head;
    refused(insert(&tenant, 0).await, "documents", 3, 4);
    let new_table = tenant.insert(&name("other"), body(0)).await;
    refused(new_table, "documents", 3, 4);
    assert_eq!(tenant.metrics().mutation_journal.durable_head, head);
    assert_eq!(found(&tenant).await.documents, 3);
    assert_eq!(tenant.usage().await.unwrap(), found(&tenant).await);
    // Larger, not more.
    tenant.patch(&table(), &ids[0], body(900)).await.unwrap();
    tenant.delete(&table(), &ids[0]).await.unwrap();
    insert(&tenant, 1).await.unwrap();
    refused(insert(&tenant, 0).await, "documents", 3, 4);
    // One goes and two come in one transaction: one too many. One for one is none.
    let swap = async |come: usize| {
        let id = tenant.query(&Query::table(table())).await.unwrap()[0].id;
        let swapped = tenant.transact(move |tx| {
            Box::pin(async move {
                tx.delete(&table(), id).await?;
                for len in 0..come {
                    tx.insert(&table(), body(len)).await?;
                }
                Ok(())
            })
        });
        swapped.await
    };
    refused(swap(2).await, "documents", 3, 4);
    swap(1).await.unwrap();
    limit(&world, documents(4));
    insert(&tenant, 0).await.unwrap();
    limit(&world, Quota::default());
    insert(&tenant, 0).await.unwrap();
    limit(&world, documents(0));
    refused(insert(&tenant, 0).await, "documents", 0, 6);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn bytes_reach_a_quota_exactly_and_what_shrinks_passes_above_it() {
    let (world, tenant) = world().await;
    let id = insert(&tenant, 100).await.unwrap().to_string();
    let one = tenant.usage().await.unwrap();
    assert_eq!(one, found(&tenant).await);
    let two = {
        insert(&tenant, 100).await.unwrap();
        tenant.usage().await.unwrap()
    };
    limit(&world, bytes(two.bytes));
    refused(
        tenant.patch(&table(), &id, body(101)).await,
        "storage_bytes",
        two.bytes,
        two.bytes + 1,
    );
    tenant.patch(&table(), &id, body(99)).await.unwrap();
    tenant.patch(&table(), &id, body(100)).await.unwrap();
    let full = tenant.patch(&table(), &id, body(102)).await;
    refused(full, "storage_bytes", two.bytes, two.bytes + 2);
    // Far below what there is.
    limit(&world, bytes(1));
    let grown = tenant.patch(&table(), &id, body(101)).await;
    refused(grown, "storage_bytes", 1, two.bytes + 1);
    assert!(insert(&tenant, 0).await.is_err());
    tenant.patch(&table(), &id, body(100)).await.unwrap();
    tenant.patch(&table(), &id, body(50)).await.unwrap();
    tenant.delete(&table(), &id).await.unwrap();
    assert_eq!(tenant.usage().await.unwrap(), found(&tenant).await);
    // Both limits: each stands for itself.
    limit(
        &world,
        Quota {
            documents: Some(1),
            bytes: Some(1 << 20),
        },
    );
    refused(insert(&tenant, 0).await, "documents", 1, 2);
    assert_eq!(found(&tenant).await.documents, 1);
}

#[tokio::test]
async fn every_way_in_is_counted() {
    let (world, tenant) = world().await;
    limit(&world, documents(5));
    let rows = |lines: std::ops::RangeInclusive<u64>| {
        let row = |line| ImportRow {
            line,
            fields: body(3),
        };
        lines.map(row).collect::<Vec<_>>()
    };
    tenant
        .import_chunk(&table(), "i", rows(1..=4), 4)
        .await
        .unwrap();
    let chunk = tenant.import_chunk(&table(), "i", rows(5..=6), 6).await;
    refused(chunk, "documents", 5, 6);
    assert_eq!(tenant.import_progress(&table(), "i").await.unwrap(), 4);
    let call = async |count: usize| {
        let ran = tenant.transact_function(move |tx, _| {
            Box::pin(async move {
                for len in 0..count {
                    tx.fn_insert("f", body(len)).await.unwrap();
                }
                Ok(Ran::Commit(()))
            })
        });
        ran.await
    };
    refused(call(2).await, "documents", 5, 6);
    call(1).await.unwrap();
    refused(call(1).await, "documents", 5, 6);
    // A function that throws writes nothing and needs no room.
    let thrown = tenant.transact_function(|tx, _| {
        Box::pin(async move {
            tx.fn_insert("f", body(1)).await.unwrap();
            Ok(Ran::Discard(()))
        })
    });
    thrown.await.unwrap();
    let mut late = tenant.begin().await.unwrap();
    late.insert(&table(), body(0)).await.unwrap();
    refused(tenant.commit(late).await, "documents", 5, 6);
    // What is no document.
    limit(
        &world,
        Quota {
            documents: Some(0),
            bytes: Some(0),
        },
    );
    tenant
        .deploy(plan(&[("a.js", "export const a = 1;")]))
        .await
        .unwrap();
    let variable = ("A".to_owned(), Some("1".to_owned()));
    tenant.update_environment(vec![variable]).await.unwrap();
    tenant.put_policy("p".into(), None, None).await.unwrap();
    let declared = schema("t", &["s"], &[("by_s", &["s"])]);
    tenant.put_schema(declared).await.unwrap();
    indexes_ready(&tenant, "t").await;
    let there = found_in(&tenant, &["t", "f"]).await;
    assert_eq!(there.documents, 5);
    assert_eq!(tenant.usage().await.unwrap(), there);
}

/// 64 writers that stop when they are refused: the quota is used up, and not by one more.
async fn crowd(
    tenants: &[Tenant],
    quota: Quota,
    size: impl Fn(usize) -> usize + Copy + Send + 'static,
) {
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let tenant = tenants[writer % tenants.len()].clone();
            tokio::spawn(async move {
                for n in 0.. {
                    match insert(&tenant, size(writer + n)).await {
                        Ok(_) => {}
                        Err(StoreError::QuotaExceeded {
                            observed, limit, ..
                        }) => {
                            assert!(observed > limit);
                            return n;
                        }
                        Err(StoreError::Conflict { .. }) => {}
                        Err(other) => panic!("{other}: {:?}", other.inside()),
                    }
                }
                unreachable!()
            })
        })
        .collect();
    let mut written = 0;
    for writer in writers {
        written += soon("a writer", writer).await.unwrap();
    }
    for tenant in tenants {
        let usage = tenant.usage().await.unwrap();
        assert_eq!(usage, found(tenant).await);
        if let Some(limit) = quota.documents {
            assert_eq!(usage.documents, limit);
        }
        if let Some(limit) = quota.bytes {
            assert!(usage.bytes <= limit, "{usage:?}");
            // No document was larger than this, key and system fields included.
            assert!(usage.bytes + 1_000 > limit, "{usage:?}");
        }
    }
    assert!(written > 64, "only {written}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_never_passes_a_quota() {
    for quota in [documents(333), bytes(100_000)] {
        let (world, tenant) = world().await;
        limit(&world, quota);
        crowd(std::slice::from_ref(&tenant), quota, |n| n % 700).await;
        // Then each finds room for what it takes away.
        let all = tenant.query(&Query::table(table())).await.unwrap();
        let swaps: Vec<_> = all
            .into_iter()
            .take(64)
            .map(|old| {
                let tenant = tenant.clone();
                tokio::spawn(async move {
                    tenant.delete(&table(), &old.id.to_string()).await.unwrap();
                    let len = old.fields().unwrap()["s"].clone();
                    let again = object([("s", len)]);
                    // A creation time may be written with more digits than another.
                    match tenant.insert(&table(), again).await {
                        Ok(_)
                        | Err(StoreError::QuotaExceeded {
                            quota: "storage_bytes",
                            ..
                        }) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                })
            })
            .collect();
        for swap in swaps {
            swap.await.unwrap();
        }
        let usage = tenant.usage().await.unwrap();
        assert_eq!(usage, found(&tenant).await);
        assert!(quota.documents.is_none_or(|limit| usage.documents == limit));
        assert!(quota.bytes.is_none_or(|limit| usage.bytes <= limit));
        assert_consistent(&tenant).await;
    }
}

#[tokio::test]
async fn a_tenant_that_is_opened_again_is_counted_again_under_its_quota() {
    let mut settings = Settings::default();
    settings.options.max_open_tenants = 1;
    let mut world = World::with(settings).await;
    let tenant = world.create("t").await;
    limit(&world, documents(3));
    insert(&tenant, 1).await.unwrap();
    drop(tenant);
    // Closed, since only one may be open.
    world.create("other").await;
    assert_eq!(world.engine().metrics().tenants_closed, 1);
    let tenant = world.tenant("t").await;
    insert(&tenant, 1).await.unwrap();
    insert(&tenant, 1).await.unwrap();
    refused(insert(&tenant, 1).await, "documents", 3, 4);
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    assert_eq!(tenant.usage().await.unwrap(), found(&tenant).await);
    // Another life of the server: quotas are in memory.
    insert(&tenant, 1).await.unwrap();
    assert_eq!(tenant.usage().await.unwrap().documents, 4);
}

#[tokio::test]
async fn a_quota_goes_with_its_tenant() {
    let world = World::new().await;
    limit(&world, documents(1));
    let tenant = world.create("t").await;
    insert(&tenant, 1).await.unwrap();
    refused(insert(&tenant, 1).await, "documents", 1, 2);
    drop(tenant);
    world.engine().delete_tenant(&name("t")).await.unwrap();
    let tenant = world.create("t").await;
    for _ in 0..3 {
        insert(&tenant, 1).await.unwrap();
    }
    // Of this one alone.
    limit(&world, documents(3));
    let other = world.create("u").await;
    for _ in 0..5 {
        insert(&other, 1).await.unwrap();
    }
    refused(insert(&tenant, 1).await, "documents", 3, 4);
}

/// What is accepted takes its room before it is durable, and gives it back when it never becomes so.
#[tokio::test]
async fn a_batch_that_fails_gives_its_room_back() {
    let calls = AtomicUsize::new(0);
    let stage = Stage::new(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        1 => disk_full(),
        _ => Verdict::Pass,
    })
    .await;
    limit(&stage.world, documents(4));
    let plug = stage.plug().await;
    let waiting = stage.queue(vec![n(1.0), n(2.0)]).await;
    let more = stage.tenant.insert(&stage::table(), n(3.0)).await;
    refused(more, "documents", 4, 5);
    assert_eq!(stage.tenant.usage().await.unwrap().documents, 1, "durable");
    stage.gate.open();
    outcome(plug).await.unwrap();
    for failed in waiting {
        let failed = outcome(failed).await;
        assert!(
            matches!(failed, Err(StoreError::StorageFull { .. })),
            "{failed:?}"
        );
    }
    assert_eq!(stage.tenant.usage().await.unwrap().documents, 2);
    for value in [4.0, 5.0] {
        stage
            .tenant
            .insert(&stage::table(), n(value))
            .await
            .unwrap();
    }
    let full = stage.tenant.insert(&stage::table(), n(6.0)).await;
    refused(full, "documents", 4, 5);
    stage.verify(&[-1.0, 0.0, 4.0, 5.0]).await;
}

/// A batch that is refused is committed one by one, in another order of room.
#[tokio::test]
async fn who_is_committed_alone_is_counted_once() {
    let stage = Stage::new(refuse_marked).await;
    limit(&stage.world, documents(4));
    let plug = stage.plug().await;
    let members = stage.queue_apart(vec![n(1.0), stage::marked(2.0)]).await;
    stage.gate.open();
    outcome(plug).await.unwrap();
    let mut ends = Vec::new();
    for member in members {
        ends.push(outcome(member).await.is_ok());
    }
    assert_eq!(ends, [true, false]);
    let tenant = &stage.tenant;
    let usage = tenant.usage().await.unwrap();
    assert_eq!(usage, found_in(tenant, &[stage::TABLE]).await);
    assert_eq!(usage.documents, 3);
    tenant.insert(&stage::table(), n(7.0)).await.unwrap();
    refused(
        tenant.insert(&stage::table(), n(8.0)).await,
        "documents",
        4,
        5,
    );
    stage.verify(&[-1.0, 0.0, 1.0, 7.0]).await;
}

/// What a client of the storm does next.
async fn one_call(tenant: &Tenant, random: &mut Random) -> StoreResult<()> {
    let table: TableName = name(["t", "u"][random.below(2)]);
    let all = tenant.query(&Query::table(table.clone())).await?;
    let len = random.below(300);
    let ids: Vec<DocumentId> = (0..3)
        .filter(|_| !all.is_empty())
        .map(|_| random.pick(&all).id)
        .collect();
    let (roll, poison) = (random.below(10), random.one_in(12));
    tenant
        .transact(move |tx| {
            let (table, ids) = (table.clone(), ids.clone());
            Box::pin(async move {
                let mut fields = body(len);
                if poison {
                    fields.insert("mark".into(), text("poison"));
                }
                if roll < 7 || ids.is_empty() {
                    tx.insert(&table, fields.clone()).await?;
                }
                for (at, id) in ids.into_iter().enumerate() {
                    if tx.get(id).await?.is_none() {
                        continue;
                    }
                    match (roll + at) % 8 {
                        0 => tx.delete(&table, id).await?,
                        1 => tx.patch(&table, id, fields.clone()).await?,
                        2 => tx.replace(&table, id, body(len / 2)).await?,
                        _ => {
                            // Undone within the transaction.
                            let before = tx.savepoint();
                            tx.delete(&table, id).await?;
                            tx.insert(&table, body(len)).await?;
                            tx.roll_back(before);
                        }
                    }
                }
                Ok(())
            })
        })
        .await
}

/// Sixteen clients that conflict with each other, on a provider that fails in every way it may: what is kept up to
/// date is what a count finds, and what anyone reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_right_after_a_storm() {
    for seed in 1..=5u64 {
        let mut world = World::new().await;
        let tenant = world.create("t").await;
        let quota = Quota {
            documents: Some(30),
            bytes: Some(6_000),
        };
        limit(&world, quota);
        insert(&tenant, 1).await.unwrap();
        drop(tenant);
        let random = Arc::new(std::sync::Mutex::new(Random::new(seed)));
        world.hooks.on_commit(move |batch| {
            let verdict = match random.lock().unwrap().below(100) {
                0..6 => disk_full(),
                6..10 => transient(),
                10 => Verdict::LandThen(unknown()),
                11 => Verdict::Fail(CommitError::Closed),
                _ => refuse_marked(&batch),
            };
            async move {
                tokio::task::yield_now().await;
                verdict
            }
        });
        let refusals = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..16u64)
            .map(|client| {
                let (engine, refusals) = (world.engine().clone(), refusals.clone());
                tokio::spawn(async move {
                    let mut random = Random::new(seed ^ client << 32);
                    for _ in 0..40 {
                        let called = match engine.tenant(&name("t")).await {
                            Ok(tenant) => one_call(&tenant, &mut random).await,
                            Err(error) => Err(error),
                        };
                        if let Err(StoreError::QuotaExceeded { .. }) = called {
                            refusals.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            soon("a client", client).await.unwrap();
        }
        world.hooks.clear();
        let refusals = refusals.load(Ordering::Relaxed);
        assert!(refusals > 0, "seed {seed}: the quota was never met");
        let tenant = world.tenant("t").await;
        let usage = tenant.usage().await.unwrap();
        assert_eq!(usage, found_in(&tenant, &["t", "u"]).await, "seed {seed}");
        assert!(usage.documents <= 30 && usage.bytes <= 6_000, "{usage:?}");
        assert!(usage.documents > 5, "seed {seed}: {usage:?}");
        drop(tenant);
        world.reopen().await;
        let tenant = world.tenant("t").await;
        assert_eq!(tenant.usage().await.unwrap(), usage, "seed {seed}: counted");
        assert_consistent(&tenant).await;
    }
}

/// Each sees what the other commits, in what it keeps up to date and in what it counts.
pub async fn usage_counts_the_other_servers_commits(servers: Servers) {
    let (a, b) = servers.tenant("t").await;
    insert(&a, 5).await.unwrap();
    assert_eq!(b.usage().await.unwrap(), found(&a).await);
    let mut ids = Vec::new();
    for round in 0..12 {
        let (writer, reader) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        // Some are too large for the log.
        let len = if round % 4 < 2 { 70_000 } else { 30 };
        ids.push(insert(writer, len).await.unwrap().to_string());
        assert_eq!(reader.usage().await.unwrap(), found(writer).await);
        if round % 3 == 0 {
            let id = &ids[round / 2];
            reader.patch(&table(), id, body(round)).await.unwrap();
            writer.delete(&table(), id).await.unwrap();
            ids[round / 2] = insert(reader, 1).await.unwrap().to_string();
        }
        assert_eq!(a.usage().await.unwrap(), found(&b).await);
        assert_eq!(b.usage().await.unwrap(), found(&a).await);
    }
    // Commits that nobody tells of any more are counted anew.
    for _ in 0..5 {
        insert(&a, 9).await.unwrap();
    }
    a.prune_log().await.unwrap();
    assert_eq!(b.usage().await.unwrap(), found(&a).await);
    drop((a, b));
    servers.close().await;
}

/// With equal quotas, clients of both servers together make no more than that.
pub async fn quotas_hold_over_both_servers(servers: Servers) {
    for quota in [documents(150), bytes(60_000)] {
        let id = format!("t{}", quota.documents.unwrap_or(0));
        servers.a.set_quota(&name(&id), quota);
        servers.b.set_quota(&name(&id), quota);
        let (a, b) = servers.tenant(&id).await;
        crowd(&[a.clone(), b.clone()], quota, |n| n % 700).await;
        assert_consistent(&a).await;
    }
    servers.close().await;
}

/// A restore is no commit of the tenant's: it is not refused, and what came in counts.
#[tokio::test]
async fn a_restored_tenant_has_the_usage_of_its_original() {
    use nimbus_storage::backup::{Backup, Source, restore};
    let (world, tenant) = world().await;
    for len in 0..30 {
        insert(&tenant, len).await.unwrap();
    }
    let mut backup = Backup::begin(world.engine(), &[], None).await.unwrap();
    let mut stream = Vec::new();
    while let Some(piece) = backup.next().await.unwrap() {
        stream.extend_from_slice(&piece);
    }
    drop(backup);
    let copy = World::new().await;
    // A quota that was there first does not stand in the way of a restore.
    limit(&copy, documents(30));
    let source = Source::open(std::io::Cursor::new(stream), None).unwrap();
    restore(copy.engine(), source, &[]).await.unwrap();
    let restored = copy.tenant("t").await;
    let usage = restored.usage().await.unwrap();
    assert_eq!(usage, tenant.usage().await.unwrap());
    refused(insert(&restored, 1).await, "documents", 30, 31);
}

/// A count is of what storage has, not of what the log says.
#[tokio::test]
async fn a_count_reads_storage() {
    let (mut world, tenant) = world().await;
    let id = insert(&tenant, 10).await.unwrap();
    let before = tenant.usage().await.unwrap();
    drop(tenant);
    let row = format!("{{\"_creationTime\":1,\"_id\":\"{id}\",\"s\":\"longer\"}}");
    let rows = [(id.key().to_vec(), row.clone().into_bytes())];
    overwrite(&mut world, "t", Keyspace::Docs, &rows).await;
    let tenant = world.tenant("t").await;
    let after = tenant.usage().await.unwrap();
    assert_eq!(after.documents, before.documents);
    assert_eq!(after.bytes, (id.key().len() + row.len()) as u64);
}

#[tokio::test]
async fn a_quota_of_a_tenant_that_does_not_exist_waits_for_it() {
    let provider = nimbus_storage::provider::memory::MemoryProvider::new();
    let engine = Engine::new(Arc::new(provider), EngineOptions::default());
    engine.set_quota(&name("t"), documents(1));
    assert!(engine.tenant(&name("t")).await.is_err());
    engine.create_tenant(&name("t")).await.unwrap();
    let tenant = engine.tenant(&name("t")).await.unwrap();
    insert(&tenant, 1).await.unwrap();
    refused(insert(&tenant, 1).await, "documents", 1, 2);
    drop(tenant);
    engine.close().await.unwrap();
}
