//! One commit to many subscribers of the storage engine: how long after the commit returned the
//! last of them has its result.
//!
//! Measured where all ask the same query, which runs once, and where each asks another one, which
//! all run again. The socket that would carry the result to a browser is not here yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nimbus_storage::core::{DocumentId, Object, TableName, Value};
use nimbus_storage::{Filter, FilterOp, Query, Subscription, Tenant};
use serde_json::json;
use tokio::sync::Notify;

use crate::machine::Watch;
use crate::plan::Plan;
use crate::report::{Bound, Line, Unit};
use crate::stats::{Latencies, Spread};

const ROW: &str = "fanout";
/// Longest wait for all deliveries of one commit.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let subscribers = plan.subscribers;
    for (job, distinct) in [
        (
            format!(
                "one commit to {subscribers} subscribers of one query, last delivery after the commit, p99"
            ),
            false,
        ),
        (
            format!(
                "one commit to {subscribers} subscribers of {subscribers} queries, last delivery after the commit, p99"
            ),
            true,
        ),
    ] {
        let watch = Watch::start(&[])?;
        let (mut last, commits) = measure(plan, distinct)?;
        let foreign = watch.foreign()?;
        eprintln!("{ROW}: done, others kept {foreign:.2} CPUs busy");
        let facts = json!({
            "commits": last.len(),
            "p50_ms": last.percentile_ms(0.5),
            "max_ms": last.percentile_ms(1.0),
            "commit_p50_ms": commits.clone().percentile_ms(0.5),
            "foreign_cpus": foreign,
        });
        let p99 = Spread::new([last.percentile_ms(0.99)]);
        lines.push(
            Line::new(ROW, job, Unit::Milliseconds, p99)
                .goal(Bound::AtMost(25.0))
                .facts(facts, foreign > 0.25),
        );
    }
    Ok(lines)
}

/// Times from a commit's return to its last delivery, and times of the commits.
fn measure(plan: &Plan, distinct: bool) -> Result<(Latencies, Latencies)> {
    let dir = tempfile::Builder::new()
        .prefix("nimbus-bench-")
        .tempdir_in(&plan.dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let engine = super::engine(dir.path())?;
        let id = "news".parse()?;
        engine.create_tenant(&id).await?;
        let tenant = engine.tenant(&id).await?;
        let table: TableName = "headlines".parse()?;
        let document = tenant.insert(&table, headline(0)).await?;
        let feed = Feed {
            tenant,
            table,
            document,
        };
        let result = publish(&feed, plan, distinct).await;
        drop(feed);
        engine.close().await?;
        result
    })
}

/// One document that every commit changes and every query finds.
struct Feed {
    tenant: Tenant,
    table: TableName,
    document: DocumentId,
}

fn headline(number: i64) -> Object {
    Object::from([("number".to_owned(), Value::Int64(number))])
}

/// Deliveries of the commit in progress.
struct Deliveries {
    origin: Instant,
    /// Subscribers that do not have it yet.
    left: AtomicUsize,
    /// When the last one got it, in nanoseconds since `origin`.
    last: AtomicU64,
    all: Notify,
}

impl Deliveries {
    fn one(&self) {
        let now = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.fetch_max(now, Ordering::AcqRel);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all.notify_one();
        }
    }

    async fn wait(&self) -> Result<Duration> {
        let waited = tokio::time::timeout(LIMIT, self.all.notified()).await;
        waited.context("a subscriber did not get a commit")?;
        Ok(Duration::from_nanos(self.last.load(Ordering::Acquire)))
    }
}

async fn publish(feed: &Feed, plan: &Plan, distinct: bool) -> Result<(Latencies, Latencies)> {
    let deliveries = Arc::new(Deliveries {
        origin: Instant::now(),
        left: AtomicUsize::new(plan.subscribers),
        last: AtomicU64::new(0),
        all: Notify::new(),
    });
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..plan.subscribers {
        let number = if distinct { i64::try_from(reader)? } else { 0 };
        let live = feed.tenant.subscribe(query(feed, number)?).await?;
        readers.spawn(receive(live, Arc::clone(&deliveries)));
    }
    // The first result of each subscription.
    deliveries.wait().await?;
    let (mut last, mut commits) = (Latencies::default(), Latencies::default());
    for number in 1..=plan.commits {
        deliveries.left.store(plan.subscribers, Ordering::Release);
        let started = deliveries.origin.elapsed();
        let (document, number) = (feed.document.to_string(), i64::try_from(number)?);
        feed.tenant
            .patch(&feed.table, &document, headline(number))
            .await?;
        let returned = deliveries.origin.elapsed();
        let delivered = deliveries.wait().await?;
        commits.push(returned - started);
        last.push(delivered.saturating_sub(returned));
    }
    readers.abort_all();
    while readers.join_next().await.is_some() {}
    Ok((last, commits))
}

/// Every commit changes the result once, and the next commit waits for all, so each result is
/// the delivery of one commit.
async fn receive(mut live: Subscription, deliveries: Arc<Deliveries>) {
    while live.next().await.is_some() {
        deliveries.one();
    }
}

/// A query that the document always meets, another for each number.
fn query(feed: &Feed, number: i64) -> Result<Query> {
    Ok(Query {
        filters: vec![Filter {
            field: "number".parse()?,
            op: FilterOp::Gte,
            value: Value::Int64(-number),
        }],
        ..Query::table(feed.table.clone())
    })
}
