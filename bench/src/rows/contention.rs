//! Contention: transfers between accounts of which a few are in most of them (zipf 1.5), by 64
//! clients of the storage engine. The native HTTP surface has no transaction over two documents.
//!
//! Every transfer is durable, and the sum of all balances is checked at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nimbus_storage::core::{DocumentId, Object, TableName, Value};
use nimbus_storage::{Query, StoreError, StoreResult, Tenant, Transaction};
use serde_json::json;

use crate::plan::{CLIENTS, Plan};
use crate::random::{Rng, Zipf};
use crate::report::{Bound, Line, Unit};
use crate::rounds;
use crate::stats::{Latencies, Spread};

const ROW: &str = "contention";
pub(super) const EXPONENT: f64 = 1.5;
const OPENING_BALANCE: i64 = 1_000_000;
/// Convex at zipf 1.5 on 32 threads, as published by a rival (perf.md 1.3).
pub(super) const CONVEX_PER_SECOND: f64 = 126.0;
/// Accounts opened in one transaction.
const BATCH: u64 = 1_000;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let dir = tempfile::Builder::new()
        .prefix("nimbus-bench-")
        .tempdir_in(&plan.dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let engine = {
        let _inside = runtime.enter();
        super::engine(dir.path())?
    };
    let bank = Arc::new(runtime.block_on(Bank::open(&engine, plan.accounts))?);
    let leg = |round: u64, _| {
        let before = engine.metrics();
        let measured = runtime.block_on(transfers(&bank, plan, round))?;
        let after = engine.metrics();
        Ok(Round {
            per_second: measured.0,
            p50_ms: measured.1.clone().percentile_ms(0.5),
            p99_ms: measured.1.clone().percentile_ms(0.99),
            conflicts: (after.conflicts - before.conflicts) as f64
                / (after.commits - before.commits) as f64,
            syncs: (after.commit_syncs - before.commit_syncs) as f64
                / (after.commits - before.commits) as f64,
        })
    };
    let first = |mut legs: Vec<Round>| legs.pop();
    let rounds = rounds::run(plan, ROW, &[], 1, leg, first)?.filter_map(|round| round);
    let total = runtime.block_on(bank.total())?;
    let expected = OPENING_BALANCE * i64::try_from(plan.accounts)?;
    ensure!(
        total == expected,
        "transfers made or lost money: {total} instead of {expected}"
    );
    runtime.block_on(async {
        drop(bank);
        engine.close().await
    })?;

    let facts = json!({
        "accounts": plan.accounts,
        "p50_ms": rounds.each(|r| r.p50_ms).samples,
        "conflicts_per_commit": rounds.each(|r| r.conflicts).samples,
        "syncs_per_commit": rounds.each(|r| r.syncs).samples,
        "noise": rounds.noise(),
    });
    let job = "transfers, zipf 1.5, 64 clients, durable, in process";
    let speed = (rounds.each(|r| r.per_second), rounds.each(|r| r.p99_ms));
    let convex = Spread::new(rounds.kept.iter().map(|_| CONVEX_PER_SECOND));
    Ok(lines(ROW, job, speed, convex, facts, rounds.noisy()))
}

/// The lines of transfers: how many a second, beside what Convex published, and their p99 in ms.
pub(super) fn lines(
    row: &'static str,
    job: &'static str,
    (per_second, p99_ms): (Spread, Spread),
    convex: Spread,
    facts: serde_json::Value,
    noisy: bool,
) -> Vec<Line> {
    vec![
        Line::new(row, job, Unit::PerSecond, per_second)
            .against("Convex, published", Unit::PerSecond, convex)
            .goal(Bound::AtLeast(1_000.0))
            .facts(facts.clone(), noisy),
        Line::new(row, "the same, p99", Unit::Milliseconds, p99_ms)
            .goal(Bound::AtMost(200.0))
            .facts(facts, noisy),
    ]
}

struct Round {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    conflicts: f64,
    syncs: f64,
}

/// Accounts, each a document with a balance.
struct Bank {
    tenant: Tenant,
    table: TableName,
    accounts: Vec<DocumentId>,
    zipf: Zipf,
}

impl Bank {
    async fn open(engine: &nimbus_storage::Engine, count: u64) -> Result<Bank> {
        let id = "bank".parse()?;
        engine.create_tenant(&id).await?;
        let tenant = engine.tenant(&id).await?;
        let table: TableName = "accounts".parse()?;
        let mut accounts = Vec::new();
        while (accounts.len() as u64) < count {
            let more = BATCH.min(count - accounts.len() as u64);
            let table = table.clone();
            let opened = tenant.transact(move |tx| {
                let table = table.clone();
                Box::pin(async move {
                    let mut opened = Vec::new();
                    for _ in 0..more {
                        opened.push(tx.insert(&table, balance(OPENING_BALANCE)).await?);
                    }
                    Ok(opened)
                })
            });
            accounts.extend(opened.await?);
        }
        let zipf = Zipf::new(accounts.len(), EXPONENT);
        Ok(Bank {
            tenant,
            table,
            accounts,
            zipf,
        })
    }

    /// Moves money between two accounts, each drawn by Zipf's law.
    async fn transfer(&self, rng: &mut Rng) -> StoreResult<()> {
        let from = self.zipf.draw(rng);
        let to = loop {
            let to = self.zipf.draw(rng);
            if to != from {
                break to;
            }
        };
        let (from, to) = (self.accounts[from], self.accounts[to]);
        let amount = rng.below(10) as i64 + 1;
        let table = &self.table;
        self.tenant
            .transact(move |tx| {
                let table = table.clone();
                Box::pin(async move {
                    let (left, right) = (read(tx, from).await?, read(tx, to).await?);
                    tx.patch(&table, from, balance(left - amount)).await?;
                    tx.patch(&table, to, balance(right + amount)).await
                })
            })
            .await
    }

    async fn total(&self) -> Result<i64> {
        let query = Query::table(self.table.clone());
        let (mut total, mut after) = (0, None);
        loop {
            let page = self.tenant.page(&query, 1_000, after.as_deref()).await?;
            for document in &page.documents {
                total += amount(&document.fields()?).context("an account without a balance")?;
            }
            after = page.next_cursor;
            if !page.has_more {
                return Ok(total);
            }
        }
    }
}

fn balance(amount: i64) -> Object {
    Object::from([("balance".to_owned(), Value::Int64(amount))])
}

fn amount(fields: &Object) -> Option<i64> {
    match fields.get("balance") {
        Some(Value::Int64(amount)) => Some(*amount),
        _ => None,
    }
}

async fn read(tx: &mut Transaction, id: DocumentId) -> StoreResult<i64> {
    let document = tx.get(id).await?;
    let fields = document.map(|document| document.fields()).transpose()?;
    fields
        .and_then(|fields| amount(&fields))
        .ok_or(StoreError::Closed)
}

/// Transfers per second and the time that each took, warm-up apart.
async fn transfers(bank: &Arc<Bank>, plan: &Plan, round: u64) -> Result<(f64, Latencies)> {
    let shared = Arc::new(Flags::default());
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS as u64 {
        let (bank, shared) = (Arc::clone(bank), Arc::clone(&shared));
        clients.spawn(async move {
            let mut rng = Rng::new((round << 16) + client);
            let mut latencies = Latencies::default();
            while !shared.stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                bank.transfer(&mut rng).await?;
                if shared.measuring.load(Ordering::Relaxed) {
                    latencies.push(started.elapsed());
                    shared.count.fetch_add(1, Ordering::Relaxed);
                }
            }
            StoreResult::Ok(latencies)
        });
    }
    tokio::time::sleep(plan.warm).await;
    let started = Instant::now();
    shared.measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(plan.time).await;
    shared.measuring.store(false, Ordering::Relaxed);
    let seconds = started
        .elapsed()
        .max(Duration::from_millis(1))
        .as_secs_f64();
    shared.stop.store(true, Ordering::Relaxed);
    let mut all = Latencies::default();
    while let Some(client) = clients.join_next().await {
        all.append(client??);
    }
    Ok((shared.count.load(Ordering::Relaxed) as f64 / seconds, all))
}

#[derive(Default)]
struct Flags {
    measuring: AtomicBool,
    stop: AtomicBool,
    count: AtomicU64,
}
