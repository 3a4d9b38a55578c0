//! The MySQL provider against a real server: several servers on one database, lost connections, crashes, and
//! servers that are not fit. What every provider must do is in the conformance suite.

mod crashes;
mod locks;
mod lost;
mod proxy;
mod refused;
mod restarts;
mod rows;
mod several;
mod shown;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::provider::external::mysql_servers::MyPlace;
use crate::provider::{Batch, CommitError, Head, Keyspace};

/// Waits that a test can afford, and none that a busy machine runs into.
const QUICK: Timing = Timing {
    wait: Duration::from_secs(5),
    lock: Duration::from_secs(8),
    turn_idle: Duration::from_secs(5),
    statement: Duration::from_secs(20),
    settle: Duration::from_secs(10),
};

/// A place on the server, and how to get there.
struct World {
    place: MyPlace,
    timing: Timing,
}

impl World {
    fn new() -> World {
        World {
            place: MyPlace::new(),
            timing: QUICK,
        }
    }

    fn at(url: &str) -> World {
        World {
            place: MyPlace::at(url),
            timing: QUICK,
        }
    }

    fn options(&self) -> MysqlOptions {
        self.options_at(&self.place.url)
    }

    fn options_at(&self, url: &str) -> MysqlOptions {
        let mut options = MysqlOptions::new(url).unwrap();
        options.metadata_database.clone_from(&self.place.metadata);
        options
            .tenant_database_prefix
            .clone_from(&self.place.prefix);
        options.pool.max = 7;
        options
    }

    async fn provider(&self) -> MysqlProvider {
        self.provider_at(&self.place.url).await
    }

    async fn provider_at(&self, url: &str) -> MysqlProvider {
        let options = self.options_at(url);
        MysqlProvider::connect_with(options, installation('a'), self.timing)
            .await
            .unwrap()
    }
}

fn installation(digit: char) -> RandomId {
    RandomId::try_from(digit.to_string().repeat(32)).unwrap()
}

fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

async fn fresh(provider: &MysqlProvider, id: &str) -> Arc<dyn TenantStore> {
    provider.create(&tenant(id)).await.unwrap();
    provider.open(&tenant(id)).await.unwrap()
}

/// The database of a tenant.
fn database(provider: &MysqlProvider, id: &str) -> String {
    provider.shared.names.namespace(&tenant(id))
}

fn next(head: Head, mark: u8) -> Head {
    Head {
        sequence: head.sequence + 1,
        timestamp: head.timestamp + 1,
        hash: [mark; 32],
    }
}

/// A batch of one document, with the record that the engine would write.
fn batch(head: Head, key: &[u8], value: impl Into<Bytes>) -> Batch {
    let log = (Keyspace::Log, head.sequence.to_be_bytes().to_vec());
    let record = Bytes::from(format!("record {:?}", head.hash));
    let docs = (Keyspace::Docs, key.to_vec());
    Batch {
        head,
        writes: BTreeMap::from([(docs, Some(value.into())), (log, Some(record))]),
    }
}

async fn put(store: &Arc<dyn TenantStore>, at: Head, mark: u8, value: &str) -> Head {
    let head = next(at, mark);
    let batch = batch(head, b"k", value.to_owned());
    store.commit(at, batch).await.unwrap();
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

/// Waits for something that is bound to happen.
async fn soon(what: &str, happened: impl AsyncFn() -> bool) {
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while !happened().await {
        assert!(std::time::Instant::now() < until, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
