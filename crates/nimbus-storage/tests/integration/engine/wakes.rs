//! Wake times of tenants: durable before the work they are for, kept while the tenant is closed,
//! gone when it is deleted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nimbus_storage::control::LocalWakes;
use nimbus_storage::core::{TableName, TenantId};
use nimbus_storage::provider::ProviderResult;
use nimbus_storage::{
    Engine, ProviderError, Query, StoreError, StoreResult, Tenant, Wake, WakeStore,
};

use super::support::*;

fn table() -> TableName {
    name("d")
}

async fn count(tenant: &Tenant) -> usize {
    tenant.query(&Query::table(table())).await.unwrap().len()
}

/// Tells what happened in which order, and can refuse.
struct Wakes {
    inner: LocalWakes,
    events: Arc<Mutex<Vec<&'static str>>>,
    full: Arc<AtomicBool>,
}

impl WakeStore for Wakes {
    fn lower<'a>(&'a self, tenant: &'a TenantId, at_ms: u64) -> BoxFuture<'a, ProviderResult<()>> {
        async move {
            if self.full.load(Ordering::SeqCst) {
                return Err(ProviderError::Full {
                    what: "planted".into(),
                });
            }
            self.inner.lower(tenant, at_ms).await?;
            self.events.lock().unwrap().push("lowered");
            Ok(())
        }
        .boxed()
    }

    fn replace<'a>(
        &'a self,
        seen: &'a Wake,
        at_ms: Option<u64>,
    ) -> BoxFuture<'a, ProviderResult<bool>> {
        self.inner.replace(seen, at_ms)
    }

    fn get<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<Option<Wake>>> {
        self.inner.get(tenant)
    }

    fn due(&self, now_ms: u64, limit: usize) -> BoxFuture<'_, ProviderResult<Vec<Wake>>> {
        self.inner.due(now_ms, limit)
    }
}

async fn schedule(tenant: &Tenant, at_ms: u64) -> StoreResult<()> {
    tenant
        .transact(|tx| {
            Box::pin(async move {
                tx.wake_at(at_ms + 50);
                tx.wake_at(at_ms);
                tx.insert(&table(), object([("n", num(at_ms as f64))]))
                    .await
                    .map(drop)
            })
        })
        .await
}

async fn due(engine: &Engine, now: u64) -> Vec<(u64, String)> {
    let due = engine.due_tenants(now, 10).await.unwrap();
    due.iter()
        .map(|due| (due.at_ms(), due.tenant().to_string()))
        .collect()
}

#[tokio::test]
async fn wake_times_are_durable_before_the_work_they_are_for() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let full = Arc::new(AtomicBool::new(false));
    let shared = (events.clone(), full.clone());
    let settings = Settings {
        wakes: Arc::new(move |control| {
            let (events, full) = shared.clone();
            Arc::new(Wakes {
                inner: LocalWakes::new(control),
                events,
                full,
            })
        }),
        ..Settings::default()
    };
    let mut world = World::with(settings).await;
    let tenants = [
        world.create("a").await,
        world.create("b").await,
        world.create("c").await,
    ];
    let committed = events.clone();
    world.hooks.on_commit(move |_| {
        committed.lock().unwrap().push("committed");
        async { Verdict::Pass }
    });
    schedule(&tenants[0], 3_000).await.unwrap();
    assert_eq!(*events.lock().unwrap(), ["lowered", "committed"]);
    schedule(&tenants[1], 1_000).await.unwrap();
    schedule(&tenants[2], 2_000).await.unwrap();
    schedule(&tenants[0], 5_000).await.unwrap();
    let all = [
        (1_000, "b".into()),
        (2_000, "c".into()),
        (3_000, "a".into()),
    ];
    assert_eq!(
        due(world.engine(), 3_000).await,
        all,
        "the earliest of each, in order"
    );
    assert_eq!(due(world.engine(), 2_999).await, all[..2]);
    // Without a durable wake time there is no commit.
    full.store(true, Ordering::SeqCst);
    let refused = schedule(&tenants[2], 500).await;
    assert!(
        matches!(refused, Err(StoreError::StorageFull { .. })),
        "{refused:?}"
    );
    assert_eq!(count(&tenants[2]).await, 1);
    full.store(false, Ordering::SeqCst);
    world.hooks.clear();

    let found = world.engine().due_tenants(2_000, 10).await.unwrap();
    for (one, at_ms) in found.iter().zip([Some(4_000), None]) {
        assert!(world.engine().set_wake(one, at_ms).await.unwrap());
        let again = world.engine().set_wake(one, Some(9_000)).await;
        assert!(!again.unwrap(), "it is not as it was seen");
    }
    drop(tenants);
    world.reopen().await;
    let rest = [(3_000, "a".into()), (4_000, "b".into())];
    assert_eq!(
        due(world.engine(), u64::MAX).await,
        rest,
        "after a restart, nothing opened"
    );
    assert_eq!(world.engine().metrics().open_tenants, 0);
    world.engine().delete_tenant(&name("a")).await.unwrap();
    assert_eq!(
        due(world.engine(), u64::MAX).await,
        rest[1..],
        "deleted tenants have no wake time"
    );
}
