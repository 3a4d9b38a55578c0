//! A disk that fills up and empties again, and a commit of unknown outcome, seen over HTTP.
//!
//! The provider is real; a wrapper around it refuses commits while a switch says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use futures_util::future::BoxFuture;
use nimbus_core::TenantId;
use nimbus_http::ServerConfig;
use nimbus_storage::provider::{Batch, Head, ProviderResult, Snapshot, StoreStats, TenantStore};
use nimbus_storage::{CommitError, Provider};
use serde_json::json;

use crate::harness::{Ask, Fixture};

const FINE: u8 = 0;
const FULL: u8 = 1;
const LOST: u8 = 2;

struct Failing {
    inner: Arc<dyn Provider>,
    mode: Arc<AtomicU8>,
}

struct FailingStore {
    inner: Arc<dyn TenantStore>,
    mode: Arc<AtomicU8>,
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
                mode: Arc::clone(&self.mode),
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

    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>> {
        match self.mode.load(Ordering::SeqCst) {
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

async fn start(mode: &Arc<AtomicU8>) -> Fixture {
    let mode = Arc::clone(mode);
    let dir = tempfile::tempdir().unwrap();
    let wrap = |inner| Arc::new(Failing { inner, mode }) as Arc<dyn Provider>;
    Fixture::start_on(dir, ServerConfig::default(), wrap).await
}

fn insert() -> Ask {
    let body = json!({"table": "tasks", "fields": {"n": 2}});
    Ask::post("/api/tenants/demo/documents").json(&body)
}

#[tokio::test]
async fn on_a_full_disk_writes_answer_507_and_reads_go_on_until_it_heals() {
    let mode = Arc::new(AtomicU8::new(FINE));
    let fixture = start(&mode).await;
    fixture.tenant("demo").await;
    let id = fixture.insert("demo", "tasks", json!({"n": 1})).await;
    let path = format!("/api/tenants/demo/documents/tasks/{id}");
    let before = fixture.state().await;

    mode.store(FULL, Ordering::SeqCst);
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

    mode.store(FINE, Ordering::SeqCst);
    assert_eq!(fixture.admin(insert()).await.status, 201);
    let list = fixture
        .admin(Ask::get("/api/tenants/demo/documents/tasks"))
        .await
        .json();
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_unknown_outcome_names_its_commit_which_can_be_looked_up() {
    let mode = Arc::new(AtomicU8::new(FINE));
    let fixture = start(&mode).await;
    fixture.tenant("demo").await;
    fixture.insert("demo", "tasks", json!({"n": 1})).await;

    mode.store(LOST, Ordering::SeqCst);
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

    mode.store(FINE, Ordering::SeqCst);
    let path = format!("/api/tenants/demo/commits/{commit}");
    let outcome = fixture.admin(Ask::get(&path)).await;
    assert_eq!(outcome.status, 200, "{outcome:?}");
    assert_eq!(
        outcome.json(),
        json!({"committed": false, "sequence": null})
    );
    assert_eq!(fixture.admin(insert()).await.status, 201);
}
