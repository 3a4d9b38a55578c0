//! Histories of as many operations as are asked for, in rounds on tenants of their own, each judged in full.
//! Must not know which provider is below.
//!
//! `NIMBUS_HISTORY_OPERATIONS` is how many (20,000 unless given), `NIMBUS_HISTORY_SEED` where the random
//! choices begin (1 unless given); `cargo xtask soak histories` sets both. Which transactions meet depends on
//! time, so a seed repeats the choices and not the history.

use std::sync::Arc;
use std::time::Instant;

use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::redb::{RedbOptions, RedbProvider};
use nimbus_storage::provider::sqlite::{SqliteOptions, SqliteProvider};
use nimbus_storage::provider::{Durability, Provider};
use nimbus_storage::{Engine, EngineOptions};

use super::check::{anomalies, count};
use super::clients::{CLIENTS, run};
use crate::engine::support::*;

/// Committed single reads, appends and transfers of each test ([`super::History::operations`]).
const OPERATIONS: usize = 20_000;
/// Of one round: what bounds the memory of the checker and the size of a tenant.
const ROUND: usize = 20_000;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// Clients in turn on all of these servers, which share their tenants, are strictly serializable.
pub async fn hold(engines: &[&Engine]) {
    let wanted = setting("NIMBUS_HISTORY_OPERATIONS").map_or(OPERATIONS, |n| n.try_into().unwrap());
    let mut seed = setting("NIMBUS_HISTORY_SEED").unwrap_or(1);
    let (begun, mut done) = (Instant::now(), 0);
    while done < wanted {
        done += round(engines, seed, ROUND.min(wanted - done), begun).await;
        seed += 1;
    }
    assert!(done >= wanted, "only {done} operations");
}

/// Runs and judges one round; how many operations were committed.
#[allow(
    clippy::print_stdout,
    reason = "the figures of a long run, which is watched"
)]
async fn round(engines: &[&Engine], seed: u64, wanted: usize, begun: Instant) -> usize {
    let id = name(&format!("lists{seed}"));
    engines[0].create_tenant(&id).await.unwrap();
    let mut tenants = Vec::new();
    for engine in engines {
        tenants.push(engine.tenant(&id).await.unwrap());
    }
    let history = run(&tenants, seed, wanted).await;
    let ran = begun.elapsed();
    let found = anomalies(&history);
    let some: Vec<_> = found.iter().take(20).map(ToString::to_string).collect();
    assert!(
        some.is_empty(),
        "seed {seed}: {:?}, among them {some:#?}",
        count(&found)
    );
    let operations = history.operations();
    assert!(
        operations >= wanted,
        "seed {seed}: only {operations} committed"
    );
    let conflicts = history.told.iter().filter(|told| !told.committed).count();
    assert!(
        conflicts > CLIENTS,
        "seed {seed}: hardly anything ran at once"
    );
    println!(
        "{}, {} servers, seed {seed}: {operations} operations in {} transactions committed, {conflicts} runs conflicted, \
         no anomaly; {:.1} s since the beginning, {:.1} s of them judging this round",
        engines[0].provider().name(),
        engines.len(),
        history.told.len() - conflicts,
        begun.elapsed().as_secs_f64(),
        (begun.elapsed() - ran).as_secs_f64(),
    );
    for tenant in &tenants {
        assert_consistent(tenant).await;
    }
    drop(tenants);
    engines[0].delete_tenant(&id).await.unwrap();
    operations
}

/// One server alone, on a directory of its own.
async fn alone(open: impl FnOnce(&std::path::Path, Arc<ControlDb>) -> Arc<dyn Provider>) {
    let dir = tempfile::tempdir().unwrap();
    let control = Arc::new(ControlDb::open(dir.path()).unwrap());
    let engine = Engine::new(open(dir.path(), control), EngineOptions::default());
    hold(&[&engine]).await;
    engine.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_on_sqlite_is_serializable() {
    alone(|dir, control| {
        let mut options = SqliteOptions::new(dir);
        options.durability = Durability::Relaxed;
        options.readers = CLIENTS + 8;
        Arc::new(SqliteProvider::open(options, control).unwrap())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_on_redb_is_serializable() {
    alone(|dir, control| {
        let mut options = RedbOptions::new(dir);
        options.durability = Durability::Relaxed;
        Arc::new(RedbProvider::open(options, control).unwrap())
    })
    .await;
}
