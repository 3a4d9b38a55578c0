//! Serializability under concurrency: classic anomalies step by step, and random workloads of
//! 64 concurrent clients, both judged by the checker in `history`. With validation off the
//! checker must find what it otherwise never finds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nimbus_storage::core::{DocumentId, Object, TableName, Value};
use nimbus_storage::{Direction, FilterOp, Query, StoreError, StoreResult, Tenant};

use super::history::{Observed, Read, Session, When, anomalies};
use super::support::*;

pub const TABLE: &str = "r";
pub const CLIENTS: usize = 64;
/// Transactions of each client.
pub const EACH: usize = 8;

fn table() -> TableName {
    name(TABLE)
}

fn group(g: usize) -> Query {
    query(
        TABLE,
        vec![filter("group", FilterOp::Eq, num(g as f64))],
        None,
    )
}

fn row(g: usize, n: f64) -> Object {
    object([
        ("group", num(g as f64)),
        ("n", num(n)),
        ("on", Value::Bool(true)),
        ("log", Value::Array(Vec::new())),
    ])
}

pub async fn prepared(tenant: &Tenant, rows: usize) -> Vec<DocumentId> {
    let fields = ["group", "n", "on", "log"];
    let indexes: &[(&str, &[&str])] = &[("by_group", &["group", "n"]), ("by_n", &["n"])];
    tenant
        .put_schema(schema(TABLE, &fields, indexes))
        .await
        .unwrap();
    let mut ids = Vec::new();
    for i in 0..rows {
        ids.push(tenant.insert(&table(), row(i % 4, i as f64)).await.unwrap());
    }
    ids
}

/// Two transactions that read before either commits, each as a list of steps.
async fn overlap(tenant: &Tenant, which: &str, ids: &[DocumentId]) -> (Vec<Observed>, bool) {
    let head = tenant.metrics().mutation_journal.durable_head;
    let mut one = Session::begin(tenant, format!("{which} 1"), head)
        .await
        .unwrap();
    let mut two = Session::begin(tenant, format!("{which} 2"), head)
        .await
        .unwrap();
    let (x, y) = (ids[0], ids[1]);
    let off = || object([("on", Value::Bool(false))]);
    match which {
        "lost update" => {
            for session in [&mut one, &mut two] {
                let Some(Value::Float64(n)) = session.get(x).await.unwrap().unwrap().remove("n")
                else {
                    panic!("n is a number");
                };
                let patch = object([("n", num(n + 1.0))]);
                session.tx.patch(&table(), x, patch).await.unwrap();
            }
        }
        "write skew" => {
            for (session, own) in [(&mut one, x), (&mut two, y)] {
                session.get(x).await.unwrap();
                session.get(y).await.unwrap();
                session.tx.patch(&table(), own, off()).await.unwrap();
            }
        }
        "phantom" => {
            for session in [&mut one, &mut two] {
                assert!(session.query(&group(9)).await.unwrap().is_empty());
                session.tx.insert(&table(), row(9, 0.0)).await.unwrap();
            }
        }
        "moved into a range" => {
            one.get(x).await.unwrap();
            let into = object([("group", num(9.0))]);
            one.tx.patch(&table(), x, into).await.unwrap();
            assert!(two.query(&group(9)).await.unwrap().is_empty());
            two.tx.patch(&table(), y, off()).await.unwrap();
        }
        "deleted from a scan" => {
            one.tx.delete(&table(), x).await.unwrap();
            two.query(&Query::table(table())).await.unwrap();
            two.tx.patch(&table(), y, off()).await.unwrap();
        }
        other => panic!("no scenario {other}"),
    }
    let mut observed = vec![one.commit(tenant).await.unwrap().0];
    let conflicted = match two.commit(tenant).await {
        Ok((seen, _)) => {
            observed.push(seen);
            false
        }
        Err(StoreError::Conflict { .. }) => true,
        Err(other) => panic!("{which}: {other}"),
    };
    (observed, conflicted)
}

const SCENARIOS: [&str; 5] = [
    "lost update",
    "write skew",
    "phantom",
    "moved into a range",
    "deleted from a scan",
];

#[tokio::test]
async fn overlapping_transactions_conflict() {
    let world = World::new().await;
    for (i, which) in SCENARIOS.into_iter().enumerate() {
        let tenant = world.create(&format!("t{i}")).await;
        let ids = prepared(&tenant, 8).await;
        let (observed, conflicted) = overlap(&tenant, which, &ids).await;
        assert!(conflicted, "{which} was not prevented");
        let found = anomalies(&tenant, TABLE, &observed).await;
        assert!(found.is_empty(), "{which}: {found:#?}");
        assert_consistent(&tenant).await;
    }
}

#[tokio::test]
async fn the_checker_finds_each_anomaly_when_validation_is_off() {
    let world = World::new().await;
    for (i, which) in SCENARIOS.into_iter().enumerate() {
        let tenant = world.create(&format!("t{i}")).await;
        let ids = prepared(&tenant, 8).await;
        tenant.without_validation_for_tests();
        let (observed, conflicted) = overlap(&tenant, which, &ids).await;
        assert!(!conflicted, "{which}: validation is off");
        let found = anomalies(&tenant, TABLE, &observed).await;
        assert!(!found.is_empty(), "{which} was planted and not found");
    }
}

/// Long fork: of two readers, one sees only the first of two independent writes and the other
/// only the second. Snapshots of one order cannot do that, however they overlap.
#[tokio::test]
async fn readers_agree_on_the_order_of_independent_writes() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let ids = prepared(&tenant, 2).await;
    let head = tenant.metrics().mutation_journal.durable_head;
    let begin = |label: &'static str, from: u64| Session::begin(&tenant, label, from);
    let write = async |id: DocumentId| {
        let mut session = begin("writer", head).await.unwrap();
        let patch = object([("on", Value::Bool(false))]);
        session.tx.patch(&table(), id, patch).await.unwrap();
        session.commit(&tenant).await.unwrap()
    };
    let mut old = begin("reader before both", head).await.unwrap();
    old.get(ids[0]).await.unwrap();
    let (first, sequence) = write(ids[0]).await;
    let mut middle = begin("reader between", sequence).await.unwrap();
    middle.get(ids[1]).await.unwrap();
    let (second, sequence) = write(ids[1]).await;
    old.get(ids[1]).await.unwrap();
    middle.get(ids[0]).await.unwrap();
    let mut new = begin("reader after both", sequence).await.unwrap();
    new.get(ids[0]).await.unwrap();
    new.get(ids[1]).await.unwrap();
    let mut observed = vec![first, second];
    for reader in [old, middle, new] {
        observed.push(reader.finish(&tenant).await.unwrap());
    }
    let found = anomalies(&tenant, TABLE, &observed).await;
    assert!(found.is_empty(), "{found:#?}");

    // The checker would see a fork: the first reader with the second one's view of `ids[1]`.
    let stolen = match &observed[4].reads[1] {
        Read::Document(id, seen) => Read::Document(*id, seen.clone()),
        Read::Query(..) => panic!("the reader reads documents"),
    };
    observed[2].reads[1] = stolen;
    let found = anomalies(&tenant, TABLE, &observed).await;
    assert_eq!(found.len(), 1, "{found:#?}");
    // And it would see a reader that was shown less than what had been acknowledged.
    let behind = Observed {
        label: "behind".into(),
        acknowledged: sequence,
        when: When::After(sequence - 1),
        reads: Vec::new(),
    };
    assert_eq!(anomalies(&tenant, TABLE, &[behind]).await.len(), 1);
}

/// One of the concurrent clients.
struct Client {
    tenant: Tenant,
    ids: Arc<Vec<DocumentId>>,
    /// Greatest sequence acknowledged to anyone.
    acknowledged: Arc<AtomicU64>,
    random: Random,
    observed: Vec<Observed>,
    number: usize,
    conflicts: u64,
    mode: Mode,
}

/// What surrounds a random workload.
#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Plain,
    /// Some batches meet a full disk, and some members are refused by the provider.
    Faults,
    WithoutValidation,
}

impl Client {
    async fn run(mut self, transactions: usize) -> (Vec<Observed>, u64) {
        for _ in 0..transactions {
            let kind = self.random.below(7);
            for _ in 0..200 {
                match self.attempt(kind).await {
                    Ok(seen) => {
                        self.observed.push(seen);
                        break;
                    }
                    Err(StoreError::Conflict { .. }) => self.conflicts += 1,
                    Err(StoreError::StorageFull { .. } | StoreError::Storage(_))
                        if self.mode == Mode::Faults =>
                    {
                        break;
                    }
                    // States arise in which documents are missing.
                    Err(_) if self.mode == Mode::WithoutValidation => break,
                    Err(other) => panic!("kind {kind}: {other} {:?}", other.inside()),
                }
            }
        }
        (self.observed, self.conflicts)
    }

    async fn attempt(&mut self, kind: usize) -> StoreResult<Observed> {
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        if kind == 6 {
            return self.plain_read(acknowledged).await;
        }
        let label = format!("client {} kind {kind}", self.number);
        let mut session = Session::begin(&self.tenant, label, acknowledged).await?;
        match kind {
            0 => self.append(&mut session).await?,
            1 => self.transfer(&mut session).await?,
            2 => self.guard(&mut session).await?,
            3 | 4 => self.grow_or_shrink(&mut session).await?,
            _ => self.look(&mut session).await?,
        }
        for _ in 0..self.random.below(4) {
            tokio::task::yield_now().await;
        }
        if kind == 5 {
            return session.finish(&self.tenant).await;
        }
        let (seen, sequence) = session.commit(&self.tenant).await?;
        self.acknowledged.fetch_max(sequence, Ordering::SeqCst);
        Ok(seen)
    }

    /// List append: the list read must be the list at that point of the order.
    async fn append(&mut self, session: &mut Session) -> StoreResult<()> {
        let mut patches = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let id = *self.random.pick(&self.ids);
            let found = session.get(id).await?.unwrap_or_default();
            let mut log = match found.get("log") {
                Some(Value::Array(log)) => log.clone(),
                _ => Vec::new(),
            };
            log.push(int(self.random.next().cast_signed()));
            let mut patch = object([("log", Value::Array(log))]);
            if self.mode == Mode::Faults && self.random.one_in(8) {
                patch.insert("poison".to_owned(), Value::Null);
            }
            patches.push((id, patch));
        }
        for (id, patch) in patches {
            session.tx.patch(&table(), id, patch).await?;
        }
        Ok(())
    }

    async fn transfer(&mut self, session: &mut Session) -> StoreResult<()> {
        let (from, to) = (*self.random.pick(&self.ids), *self.random.pick(&self.ids));
        for (id, change) in [(from, -1.0), (to, 1.0)] {
            let n = match session.get(id).await?.unwrap_or_default().get("n") {
                Some(Value::Float64(n)) => *n,
                _ => 0.0,
            };
            if from != to {
                let patch = object([("n", num(n + change))]);
                session.tx.patch(&table(), id, patch).await?;
            }
        }
        if from == to {
            let patch = object([("on", Value::Bool(true))]);
            session.tx.patch(&table(), to, patch).await?;
        }
        Ok(())
    }

    /// Write skew bait: of a group, one may be switched off only while two are on.
    async fn guard(&mut self, session: &mut Session) -> StoreResult<()> {
        let mut on = group(self.random.below(4));
        on.filters
            .push(filter("on", FilterOp::Eq, Value::Bool(true)));
        let found = session.query(&on).await?;
        let (id, state) = match found.len() {
            0 | 1 => (*self.random.pick(&self.ids), true),
            _ => (self.random.pick(&found).id, false),
        };
        let patch = object([("on", Value::Bool(state))]);
        session.tx.patch(&table(), id, patch).await
    }

    /// Phantom bait: inserts into a range or deletes from it, as the range's size says.
    async fn grow_or_shrink(&mut self, session: &mut Session) -> StoreResult<()> {
        let g = 4 + self.random.below(2);
        let mut range = group(g);
        range.filters.push(filter("n", FilterOp::Gte, num(1.0)));
        let found = session.query(&range).await?;
        if found.len() < 6 {
            let row = row(g, 1.0 + found.len() as f64);
            session.tx.insert(&table(), row).await?;
        } else {
            let id = self.random.pick(&found).id;
            session.tx.delete(&table(), id).await?;
        }
        Ok(())
    }

    async fn look(&mut self, session: &mut Session) -> StoreResult<()> {
        for _ in 0..3 {
            session.get(*self.random.pick(&self.ids)).await?;
        }
        session.query(&group(self.random.below(6))).await?;
        let mut last = query(TABLE, Vec::new(), Some(("n", Direction::Backward)));
        last.limit = Some(5);
        session.query(&last).await?;
        Ok(())
    }

    /// A read outside any transaction: some durable state, none older than acknowledged.
    async fn plain_read(&mut self, acknowledged: u64) -> StoreResult<Observed> {
        let read = if self.random.one_in(2) {
            let asked = group(self.random.below(6));
            let found = self.tenant.query(&asked).await?;
            Read::Query(asked, jsons(&found))
        } else {
            let id = *self.random.pick(&self.ids);
            let found = self.tenant.get(&table(), &id.to_string()).await?;
            Read::Document(id, Some(json(&found)))
        };
        let newest = self.tenant.metrics().mutation_journal.applied_head;
        Ok(Observed {
            label: format!("client {} plain read", self.number),
            acknowledged,
            when: When::Within(acknowledged, newest),
            reads: vec![read],
        })
    }
}

/// Runs the clients, each on one of the handles in turn; what they saw, and how often they met a conflict.
pub async fn clients(
    tenants: &[Tenant],
    ids: Vec<DocumentId>,
    seed: u64,
    mode: Mode,
) -> (Vec<Observed>, u64) {
    let ids = Arc::new(ids);
    if mode == Mode::WithoutValidation {
        for tenant in tenants {
            tenant.without_validation_for_tests();
        }
    }
    let acknowledged = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = Client {
                tenant: tenants[number % tenants.len()].clone(),
                ids: ids.clone(),
                acknowledged: acknowledged.clone(),
                random: Random::new(seed * 1_000 + number as u64),
                observed: Vec::new(),
                number,
                conflicts: 0,
                mode,
            };
            tokio::spawn(client.run(EACH))
        })
        .collect();
    let (mut observed, mut conflicts) = (Vec::new(), 0);
    for client in clients {
        let (seen, conflicted) = client.await.unwrap();
        observed.extend(seen);
        conflicts += conflicted;
    }
    (observed, conflicts)
}

async fn workload(seed: u64, mode: Mode) -> (World, Tenant, Vec<Observed>, u64) {
    let settings = Settings {
        readers: CLIENTS + 8,
        ..Settings::default()
    };
    let world = World::with(settings).await;
    let tenant = world.create("t").await;
    let ids = prepared(&tenant, 24).await;
    if mode == Mode::Faults {
        let random = Mutex::new(Random::new(seed));
        world.hooks.on_commit(move |batch| {
            let full = random.lock().unwrap().one_in(12);
            async move {
                if full {
                    disk_full()
                } else {
                    refuse_marked(&batch)
                }
            }
        });
    }
    let (observed, conflicts) = clients(std::slice::from_ref(&tenant), ids, seed, mode).await;
    world.hooks.clear();
    (world, tenant, observed, conflicts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_are_serializable() {
    for seed in 1..=6 {
        let (_world, tenant, observed, conflicts) = workload(seed, Mode::Plain).await;
        assert_eq!(observed.len(), CLIENTS * EACH, "seed {seed}: everyone ends");
        assert!(conflicts > 0, "seed {seed}: nothing ran concurrently");
        let found = anomalies(&tenant, TABLE, &observed).await;
        assert!(found.is_empty(), "seed {seed}: {found:#?}");
        assert_consistent(&tenant).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_on_a_failing_provider_are_serializable() {
    for seed in 1..=6 {
        let (mut world, tenant, observed, _) = workload(seed, Mode::Faults).await;
        assert!(
            observed.len() < CLIENTS * EACH,
            "seed {seed}: nothing failed"
        );
        let found = anomalies(&tenant, TABLE, &observed).await;
        assert!(found.is_empty(), "seed {seed}: {found:#?}");
        for document in tenant.query(&Query::table(table())).await.unwrap() {
            assert!(!json(&document).contains("poison"), "seed {seed}");
        }
        drop(tenant);
        world.reopen().await;
        assert_consistent(&world.tenant("t").await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_without_validation_are_not() {
    let (_world, tenant, observed, _) = workload(7, Mode::WithoutValidation).await;
    let found = anomalies(&tenant, TABLE, &observed).await;
    assert!(found.len() > 5, "only {found:#?}");
}
