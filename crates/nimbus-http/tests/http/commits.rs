//! Commits that fail or take their time, seen over HTTP: a disk that fills up and empties again, an
//! unknown outcome, a client that leaves while its write is under way.
//!
//! The provider is real; a wrapper around it refuses or holds commits while a switch says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use futures_util::future::BoxFuture;
use nimbus_core::TenantId;
use nimbus_http::{ServerConfig, Stopped};
use nimbus_storage::provider::{Batch, Head, ProviderResult, Snapshot, StoreStats, TenantStore};
use nimbus_storage::{CommitError, Provider};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::harness::{Ask, Fixture};

const FINE: u8 = 0;
const FULL: u8 = 1;
const LOST: u8 = 2;
const HELD: u8 = 3;

/// What the wrapper does with commits.
struct Switch {
    mode: AtomicU8,
    /// A permit for each commit that arrived while held.
    arrived: Semaphore,
    /// A permit for each held commit that may go on.
    released: Semaphore,
}

impl Switch {
    fn new() -> Arc<Switch> {
        let (arrived, released) = (Semaphore::new(0), Semaphore::new(0));
        Arc::new(Switch {
            mode: AtomicU8::new(FINE),
            arrived,
            released,
        })
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }
}

struct Failing {
    inner: Arc<dyn Provider>,
    switch: Arc<Switch>,
}

struct FailingStore {
    inner: Arc<dyn TenantStore>,
    switch: Arc<Switch>,
}

impl Provider for Failing {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.inner.create(tenant)
    }

    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>> {
        Box::pin(async move {
            let inner = self.inner.open(tenant).await?;
            let store = FailingStore {
                inner,
                switch: Arc::clone(&self.switch),
            };
            Ok(Arc::new(store) as Arc<dyn TenantStore>)
        })
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.inner.delete(tenant)
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        self.inner.list()
    }

    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>> {
        self.inner.contains(tenant)
    }

    fn owned(&self, tenant: &TenantId) -> Vec<String> {
        self.inner.owned(tenant)
    }

    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>> {
        self.inner.unregistered()
    }

    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>> {
        self.inner.adopt(tenant)
    }

    fn health(&self) -> BoxFuture<'_, ProviderResult<()>> {
        self.inner.health()
    }
}

impl TenantStore for FailingStore {
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>> {
        self.inner.snapshot()
    }

    fn look_again(&self) {
        self.inner.look_again();
    }

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        match self.switch.mode.load(Ordering::SeqCst) {
            FULL => Box::pin(async {
                Err(CommitError::Full {
                    what: "/data/demo.sqlite3".into(),
                })
            }),
            LOST => Box::pin(async {
                Err(CommitError::OutcomeUnknown {
                    reason: "fsync of /data/demo.sqlite3-wal".into(),
                })
            }),
            HELD => Box::pin(async move {
                self.switch.arrived.add_permits(1);
                self.switch.released.acquire().await.unwrap().forget();
                self.inner.commit(expected, batch).await
            }),
            _ => self.inner.commit(expected, batch),
        }
    }

    fn close(&self) -> BoxFuture<'_, ProviderResult<()>> {
        self.inner.close()
    }

    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }
}

async fn start(switch: &Arc<Switch>) -> Fixture {
    let switch = Arc::clone(switch);
    let dir = tempfile::tempdir().unwrap();
    let wrap = |inner| Arc::new(Failing { inner, switch }) as Arc<dyn Provider>;
    Fixture::start_on(dir, ServerConfig::default(), wrap).await
}

fn insert() -> Ask {
    let body = json!({"table": "tasks", "fields": {"n": 2}});
    Ask::post("/api/tenants/demo/documents").json(&body)
}

#[tokio::test]
async fn on_a_full_disk_writes_answer_507_and_reads_go_on_until_it_heals() {
    let switch = Switch::new();
    let fixture = start(&switch).await;
    fixture.tenant("demo").await;
    let id = fixture.insert("demo", "tasks", json!({"n": 1})).await;
    let path = format!("/api/tenants/demo/documents/tasks/{id}");
    let before = fixture.state().await;

    switch.set(FULL);
    for ask in [
        insert(),
        Ask::new("PATCH", &path).json(&json!({"patch": {"n": 9}})),
        Ask::new("DELETE", &path),
    ] {
        let answer = fixture.admin(ask).await;
        let detail = answer.expect_error(507, "service.storage_full");
        assert_eq!(detail, json!({"storageKind": "full"}));
        assert!(!answer.body.contains("/data"), "{answer:?}");
        assert_eq!(answer.json()["error"]["retryable"], true);
    }
    let document = fixture.admin(Ask::get(&path)).await;
    assert_eq!(
        (document.status, &document.json()["document"]["n"]),
        (200, &json!(1))
    );
    assert_eq!(fixture.state().await, before);

    switch.set(FINE);
    assert_eq!(fixture.admin(insert()).await.status, 201);
    let list = fixture
        .admin(Ask::get("/api/tenants/demo/documents/tasks"))
        .await
        .json();
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_unknown_outcome_names_its_commit_which_can_be_looked_up() {
    let switch = Switch::new();
    let fixture = start(&switch).await;
    fixture.tenant("demo").await;
    fixture.insert("demo", "tasks", json!({"n": 1})).await;

    switch.set(LOST);
    let answer = fixture.admin(insert()).await;
    let detail = answer.expect_error(503, "service.storage_transient");
    assert_eq!(
        answer.json()["error"]["retryable"],
        false,
        "a blind retry may write twice"
    );
    assert_eq!(answer.header("retry-after"), None);
    assert!(!answer.body.contains("/data"), "{answer:?}");
    let commit = detail["commitId"].as_str().unwrap();

    switch.set(FINE);
    let path = format!("/api/tenants/demo/commits/{commit}");
    let outcome = fixture.admin(Ask::get(&path)).await;
    assert_eq!(outcome.status, 200, "{outcome:?}");
    assert_eq!(
        outcome.json(),
        json!({"committed": false, "sequence": null})
    );
    assert_eq!(fixture.admin(insert()).await.status, 201);
}

#[tokio::test]
async fn a_client_that_leaves_does_not_cancel_its_write() {
    let switch = Switch::new();
    let fixture = start(&switch).await;
    fixture.tenant("demo").await;
    fixture.insert("demo", "tasks", json!({"n": 1})).await;

    switch.set(HELD);
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    stream
        .write_all(&insert().bearer(&fixture.token).bytes())
        .await
        .unwrap();
    switch.arrived.acquire().await.unwrap().forget();
    drop(stream);
    // The connection is gone when ours is the only one; its write is not.
    loop {
        let text = fixture.admin(Ask::get("/metrics")).await.body;
        if text.lines().any(|line| line == "nimbus_http_connections 1") {
            break;
        }
        tokio::task::yield_now().await;
    }
    let list = fixture
        .admin(Ask::get("/api/tenants/demo/documents/tasks"))
        .await
        .json();
    assert_eq!(
        list["data"].as_array().unwrap().len(),
        1,
        "the write was not held"
    );
    let path = fixture.audit_path.clone();
    let inserts = || {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text
            .lines()
            .filter(|line| line.contains("/demo/documents\",\"status\":"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        inserts().len(),
        1,
        "the line was written before the outcome was known"
    );

    switch.set(FINE);
    switch.released.add_permits(1);
    // Stopping waits for the write, although nobody waits for its answer.
    let (_dir, stopped) = fixture.stop().await;
    assert_eq!(stopped, Stopped::Drained);
    let lines = inserts();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].contains("\"status\":201"), "{lines:?}");
}
