//! The libSQL provider against a small primary: several servers on it, lost answers, crashes, and replicas that are of
//! no use any more. What every provider must do is in the conformance suite.

mod crashes;
mod lost;
mod rebuilt;
mod refused;
mod several;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use nimbus_libsql_primary::{Options, Primary};

use super::hrana::{Script, Value};
use super::*;
use crate::encryption::Keyring;
use crate::provider::{Batch, CommitError, Head, Keyspace};

/// Waits that a test can afford, and none that a busy machine runs into.
const QUICK: Timing = Timing {
    connect: Duration::from_secs(5),
    request: Duration::from_secs(20),
    barrier: Duration::from_secs(10),
    poll: Duration::from_millis(20),
    settle: Duration::from_secs(20),
    turn_wait: Duration::from_secs(10),
    lease: Duration::from_secs(2),
    stale_creation: Duration::from_millis(1),
    prune_every: 64,
    keep_bytes: 64 << 20,
    keep_seconds: 24 * 3600,
};

/// A primary, and the caches of the servers.
struct World {
    primary: Primary,
    dir: tempfile::TempDir,
    timing: Timing,
    staleness: Duration,
    keyring: Option<Arc<Keyring>>,
}

impl World {
    fn new() -> World {
        World::with(Options::default())
    }

    fn with(options: Options) -> World {
        let dir = tempfile::tempdir().unwrap();
        World {
            primary: Primary::start(dir.path().join("primary"), options).unwrap(),
            dir,
            timing: QUICK,
            staleness: Duration::ZERO,
            keyring: None,
        }
    }

    /// Settings of the server with this name.
    fn options(&self, server: &str) -> LibsqlOptions {
        let cache = self.dir.path().join(server);
        let mut options = LibsqlOptions::new(self.primary.url(), self.primary.admin_url(), cache);
        options.max_staleness = self.staleness;
        options.keyring.clone_from(&self.keyring);
        options
    }

    async fn provider(&self, server: &str) -> LibsqlProvider {
        self.connect(self.options(server)).await.unwrap()
    }

    async fn connect(&self, options: LibsqlOptions) -> ProviderResult<LibsqlProvider> {
        // A server that was dropped may hold its directory a moment longer.
        let until = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let made =
                LibsqlProvider::connect_with(options.clone(), installation('a'), self.timing).await;
            match made {
                Err(ProviderError::Busy { what })
                    if what.contains("cache") && std::time::Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                made => return made,
            }
        }
    }

    /// The namespaces of tenants on the primary.
    fn namespaces(&self) -> Vec<String> {
        let dir = self.dir.path().join("primary");
        let entries = std::fs::read_dir(dir).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names
            .filter(|n| n.starts_with("tenant_") && n.ends_with(".sqlite3"))
            .collect()
    }

    /// Files below a server's cache, without its lock.
    fn cached(&self, server: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.dir.path().join(server)];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => {
                        open.push(path.clone());
                        found.push(path);
                    }
                    false if path.ends_with("nimbus.lock") => {}
                    false => found.push(path),
                }
            }
        }
        found
    }

    /// The replica's file of a tenant.
    fn replica(&self, server: &str, id: &str) -> PathBuf {
        let dir = self.dir.path().join(server).join(id);
        let entries = std::fs::read_dir(dir).unwrap();
        let mut paths = entries.map(|e| e.unwrap().path());
        paths
            .find(|p| p.extension().is_some_and(|e| e == "sqlite3"))
            .unwrap()
    }
}

fn installation(digit: char) -> RandomId {
    RandomId::try_from(digit.to_string().repeat(32)).unwrap()
}

fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

async fn fresh(provider: &LibsqlProvider, id: &str) -> Arc<dyn TenantStore> {
    provider.create(&tenant(id)).await.unwrap();
    provider.open(&tenant(id)).await.unwrap()
}

/// The same, when whoever had it open a moment ago may still have.
async fn reopened(provider: &LibsqlProvider, id: &str) -> Arc<dyn TenantStore> {
    let until = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        match provider.open(&tenant(id)).await {
            Err(ProviderError::Busy { what })
                if what.contains("cache") && std::time::Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened.unwrap(),
        }
    }
}

fn next(head: Head, mark: u8) -> Head {
    Head {
        sequence: head.sequence + 1,
        timestamp: head.timestamp + 1,
        hash: [mark; 32],
    }
}

fn batch(head: Head, key: &[u8], value: &str) -> Batch {
    let row = (Keyspace::Docs, key.to_vec());
    let writes = [(row, Some(Bytes::from(value.to_owned())))];
    Batch {
        head,
        writes: BTreeMap::from(writes),
    }
}

async fn put(store: &Arc<dyn TenantStore>, at: Head, mark: u8, value: &str) -> Head {
    let head = next(at, mark);
    store.commit(at, batch(head, b"k", value)).await.unwrap();
    head
}

async fn head(store: &Arc<dyn TenantStore>) -> Head {
    store.snapshot().await.unwrap().head().await.unwrap()
}

async fn get(store: &Arc<dyn TenantStore>, key: &[u8]) -> Option<String> {
    let mut snapshot = store.snapshot().await.unwrap();
    let found = snapshot.get_many(Keyspace::Docs, &[key]).await.unwrap();
    found[0]
        .as_ref()
        .map(|v| String::from_utf8_lossy(v).into_owned())
}

/// How often the replica was made anew and caught up.
fn refreshes(store: &Arc<dyn TenantStore>) -> (u64, u64) {
    let freshness = store.freshness().unwrap();
    (
        freshness.full_snapshot_rebuild_count,
        freshness.incremental_catch_up_count,
    )
}

/// Runs a statement in the namespace of a tenant, as nobody should.
async fn run(provider: &LibsqlProvider, id: &str, sql: &str) -> Vec<Vec<Value>> {
    let namespace = provider.shared.known().get(&tenant(id)).unwrap().clone();
    let script = Script::query(sql, Vec::new());
    let mut answers = provider
        .shared
        .http
        .rows(&namespace, &script)
        .await
        .unwrap();
    answers.remove(0)
}

/// Starts something, and gives it up at a step as a crash would.
async fn crash_at<T: std::fmt::Debug>(
    provider: &LibsqlProvider,
    step: &'static str,
    work: impl Future<Output = T>,
) {
    *provider.shared.stop_at.lock().unwrap() = Some(step);
    tokio::select! {
        done = work => panic!("{step} was not reached: {done:?}"),
        () = provider.shared.stopped.notified() => {}
    }
    *provider.shared.stop_at.lock().unwrap() = None;
    provider.shared.killed.notify_one();
}

/// Waits for something that is bound to happen.
async fn soon(what: &str, happened: impl AsyncFn() -> bool) {
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while !happened().await {
        assert!(std::time::Instant::now() < until, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process, this one at least, has a file open.
fn is_open(path: &Path) -> bool {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = links.filter_map(|e| std::fs::read_link(e.unwrap().path()).ok());
    let text = path.display().to_string();
    targets
        .into_iter()
        .any(|target| target.display().to_string().starts_with(&text))
}
