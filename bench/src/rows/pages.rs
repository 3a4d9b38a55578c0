//! Encrypted files in process: redb's pages against plain redb, the time to open an encrypted tenant,
//! and the rotation of the key that wraps ten thousand others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use nimbus_crypto::{KekRotation, Manifest, MasterKeyFile, Subject, WrappingKey, manifest_path};
use nimbus_storage::Provider;
use nimbus_storage::control::ControlDb;
use nimbus_storage::core::TenantId;
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::redb::{RedbOptions, RedbProvider};
use nimbus_storage::provider::sqlite::{SqliteOptions, SqliteProvider};
use nimbus_storage::provider::{Batch, Head, Keyspace, TenantStore};
use rustix::fs::Advice;
use serde_json::json;

use crate::machine::{self, CpuTime};
use crate::plan::Plan;
use crate::random::Rng;
use crate::report::{Bound, Line, Unit};
use crate::rounds;
use crate::stats::{Latencies, Spread};

const ROW: &str = "encrypted files";
/// Documents of one commit, as a batch under load has them.
const BATCH: u64 = 64;
/// Bytes of a document.
const DOCUMENT: usize = 1_000;
/// Documents read in one measurement.
const READS: u64 = 5_000;
/// Page cache of stores that are read cold, bytes: nearly every read misses it.
const SMALL_CACHE: usize = 256 << 10;
/// Tenants that are opened.
const OPENED: usize = 100;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut lines = runtime.block_on(redb(plan))?;
    lines.extend(runtime.block_on(opening(plan))?);
    lines.push(runtime.block_on(rotation(plan))?);
    Ok(lines)
}

fn master() -> Result<Arc<MasterKeyFile>> {
    Ok(Arc::new(MasterKeyFile::new(WrappingKey::generate()?)))
}

/// One redb tenant of its own, in plain text or encrypted.
struct Measured {
    dir: tempfile::TempDir,
    keyring: Option<Arc<Keyring>>,
    tenant: TenantId,
    head: Head,
    documents: u64,
}

impl Measured {
    async fn new(plan: &Plan, keyring: Option<Arc<Keyring>>) -> Result<Measured> {
        let subject = Measured {
            dir: tempfile::tempdir_in(&plan.dir)?,
            keyring,
            tenant: "bench".parse()?,
            head: Head::EMPTY,
            documents: 0,
        };
        subject.provider(64 << 20)?.create(&subject.tenant).await?;
        Ok(subject)
    }

    fn provider(&self, cache: usize) -> Result<RedbProvider> {
        let control = ControlDb::open_with(self.dir.path(), self.keyring.as_ref())?;
        let mut options = RedbOptions::new(self.dir.path());
        options.cache_bytes = cache;
        options.keyring.clone_from(&self.keyring);
        Ok(RedbProvider::open(options, Arc::new(control))?)
    }

    /// Commits batches of new documents; CPU-seconds of this process for each batch.
    async fn write(&mut self, batches: u64) -> Result<f64> {
        let provider = self.provider(64 << 20)?;
        let store = provider.open(&self.tenant).await?;
        let before = CpuTime::of(std::process::id())?;
        for _ in 0..batches {
            let writes = (0..BATCH).map(|at| {
                let number = self.documents + at;
                let mut rng = Rng::new(number);
                let body: Vec<u8> = (0..DOCUMENT).map(|_| rng.next() as u8).collect();
                ((Keyspace::Docs, key(number)), Some(Bytes::from(body)))
            });
            let next = Head {
                sequence: self.head.sequence + 1,
                timestamp: self.head.timestamp + 1,
                hash: [1; 32],
            };
            let batch = Batch {
                head: next,
                writes: writes.collect::<BTreeMap<_, _>>(),
            };
            store.commit(self.head, batch).await?;
            self.head = next;
            self.documents += BATCH;
        }
        let used = CpuTime::of(std::process::id())?.since(before).all();
        store.close().await?;
        Ok(used / batches as f64)
    }

    /// Reads documents at random; seconds for each. `from_disk` drops the file from the page cache
    /// of the system first.
    async fn read(&self, round: u64, from_disk: bool) -> Result<f64> {
        let provider = self.provider(SMALL_CACHE)?;
        let store = provider.open(&self.tenant).await?;
        let path = self.dir.path().join("bench.redb");
        let file = std::fs::File::open(&path)?;
        match from_disk {
            true => {
                file.sync_all()?;
                rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
            }
            false => drop(std::fs::read(&path)?),
        }
        let mut snapshot = store.snapshot().await?;
        let mut rng = Rng::new(round);
        let reads = if from_disk { READS / 10 } else { READS };
        let started = Instant::now();
        for _ in 0..reads {
            let key = key(rng.below(self.documents));
            let found = snapshot.get_many(Keyspace::Docs, &[&key]).await?;
            found[0].as_ref().context("a document is gone")?;
        }
        let each = started.elapsed().as_secs_f64() / reads as f64;
        drop(snapshot);
        store.close().await?;
        Ok(each)
    }
}

/// Scattered, so that neighbours are not read together.
fn key(number: u64) -> Vec<u8> {
    Rng::new(number).next().to_be_bytes().to_vec()
}

async fn redb(plan: &Plan) -> Result<Vec<Line>> {
    let keyring = Keyring::new(master()?)?;
    let mut subjects = [
        Measured::new(plan, None).await?,
        Measured::new(plan, Some(keyring)).await?,
    ];
    let batches = plan.documents / BATCH / 2;
    for subject in &mut subjects {
        subject.write(batches).await?;
    }
    let handle = tokio::runtime::Handle::current();
    let pids = [std::process::id()];
    let subjects = std::sync::Mutex::new(subjects);
    let leg = |round: u64, at: usize| {
        let mut subjects = subjects.lock().map_err(|e| anyhow::anyhow!("{e}"))?;
        let subject = &mut subjects[at % 2];
        tokio::task::block_in_place(|| {
            handle.block_on(async {
                match at / 2 {
                    0 => subject.write(batches.div_ceil(10)).await,
                    1 => subject.read(round, false).await,
                    _ => subject.read(round, true).await,
                }
            })
        })
    };
    let rounds = rounds::run(plan, "redb pages", &pids, 6, leg, |legs| legs)?;
    let milliseconds = |at: usize| rounds.each(|legs: &Vec<f64>| legs[at] * 1e3);
    let line = |job: &str, at: usize, most: f64| {
        Line::new(ROW, job, Unit::Milliseconds, milliseconds(at + 1))
            .against("plain redb", Unit::Milliseconds, milliseconds(at))
            .ratio_goal(Bound::AtMost(most))
            .facts(json!({ "noise": rounds.noise() }), rounds.noisy())
    };
    Ok(vec![
        line(
            "redb, encrypted: CPU for a commit of 64 documents of 1 kB",
            0,
            1.25,
        ),
        line(
            "redb, encrypted: read past redb's cache, from the page cache",
            2,
            2.0,
        ),
        line("redb, encrypted: read from disk", 4, 1.1),
    ])
}

/// Opening encrypted tenants with a local key provider.
async fn opening(plan: &Plan) -> Result<Vec<Line>> {
    let keyring = Keyring::new(master()?)?;
    let dir = tempfile::tempdir_in(&plan.dir)?;
    let control = Arc::new(ControlDb::open_with(dir.path(), Some(&keyring))?);
    let mut sqlite = SqliteOptions::new(dir.path());
    sqlite.keyring = Some(Arc::clone(&keyring));
    let mut redb = RedbOptions::new(dir.path());
    redb.keyring = Some(keyring);
    let providers: [(&str, Arc<dyn Provider>); 2] = [
        (
            "sqlite",
            Arc::new(SqliteProvider::open(sqlite, Arc::clone(&control))?),
        ),
        ("redb", Arc::new(RedbProvider::open(redb, control)?)),
    ];
    let count = if plan.quick { 10 } else { OPENED };
    let mut lines = Vec::new();
    for (name, provider) in providers {
        let mut times = Latencies::default();
        for number in 0..count {
            let tenant: TenantId = format!("{name}-{number}").parse()?;
            provider.create(&tenant).await?;
            let started = Instant::now();
            let store: Arc<dyn TenantStore> = provider.open(&tenant).await?;
            store.snapshot().await?.head().await?;
            times.push(started.elapsed());
            store.close().await?;
        }
        lines.push(
            Line::new(
                ROW,
                format!("open an encrypted tenant, {name}, first read included, p50"),
                Unit::Milliseconds,
                Spread::new([times.percentile_ms(0.5)]),
            )
            .goal(Bound::AtMost(5.0))
            .facts(json!({ "p99_ms": times.percentile_ms(0.99) }), false),
        );
    }
    Ok(lines)
}

/// `rotate-kek --all` on as many manifests as there are tenants.
async fn rotation(plan: &Plan) -> Result<Line> {
    let dir = tempfile::tempdir_in(&plan.dir)?;
    let (one, other) = (master()?, master()?);
    for number in 0..plan.tenants {
        make_manifest(dir.path(), &one, number).await?;
    }
    std::fs::File::open(dir.path())?.sync_all()?;
    let mut seconds = Vec::new();
    for (old, new) in [(&one, &other), (&other, &one), (&one, &other)] {
        let rotation = KekRotation::new(&**old, &**new);
        let started = Instant::now();
        let planned = rotation.plan_directory(dir.path(), &mut |_| ()).await?;
        let report = rotation.apply(planned, &mut |_| ()).await?;
        seconds.push(started.elapsed().as_secs_f64());
        anyhow::ensure!(report.is_complete() && report.rotated.len() == plan.tenants);
    }
    let job = format!(
        "rotate the key of {} manifests, planned and durable",
        plan.tenants
    );
    let line = Line::new(ROW, job, Unit::Seconds, Spread::new(seconds));
    Ok(line
        .goal(Bound::AtMost(10.0))
        .facts(json!({ "cpus": machine::cpus() }), false))
}

/// Not durable: only the rotation is measured.
async fn make_manifest(dir: &Path, provider: &MasterKeyFile, number: usize) -> Result<()> {
    let name = format!("tenant-{number:05}");
    let (manifest, _) = Manifest::create(provider, Subject::sqlite_tenant(&name)?, 0).await?;
    let path = manifest_path(&dir.join(format!("{name}.sqlite3")));
    std::fs::write(path, manifest.encode()?)?;
    Ok(())
}
