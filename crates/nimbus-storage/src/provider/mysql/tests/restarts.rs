//! A server that is killed and started again under load: nothing that was acknowledged is lost, nothing is done
//! twice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::provider::external::mysql_servers::OwnServer;
use crate::provider::{Direction, KeyRange};

const WRITERS: u8 = 4;

/// Counts up in a document of its own until it is told to stop; the last number that was acknowledged.
struct Writer {
    number: u8,
    provider: Arc<MysqlProvider>,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    async fn run(self) -> u64 {
        let mut count = 0;
        while !self.stop.load(Ordering::Relaxed) {
            // Opened again whenever its outcome was unknown, as the engine does.
            let Ok(store) = self.provider.open(&tenant("load")).await else {
                continue;
            };
            if let Ok(known) = self.count_in(&store).await {
                count = count.max(known);
                self.write(&store, &mut count).await;
            }
        }
        count
    }

    async fn count_in(&self, store: &Arc<dyn TenantStore>) -> ProviderResult<u64> {
        let mut snapshot = store.snapshot().await?;
        let found = snapshot.get_many(Keyspace::Docs, &[&[self.number]]).await?;
        let count = found[0]
            .as_ref()
            .map(|v| String::from_utf8_lossy(v).parse());
        Ok(count.map_or(0, Result::unwrap))
    }

    async fn write(&self, store: &Arc<dyn TenantStore>, count: &mut u64) {
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(mut snapshot) = store.snapshot().await else {
                continue;
            };
            let Ok(at) = snapshot.head().await else {
                continue;
            };
            drop(snapshot);
            let new = next(at, self.number);
            let mut batch = batch(new, &[self.number], (*count + 1).to_string());
            let record = format!("{}:{}", self.number, *count + 1);
            let log = (Keyspace::Log, new.sequence.to_be_bytes().to_vec());
            batch.writes.insert(log, Some(record.into()));
            match store.commit(at, batch).await {
                Ok(()) => {
                    *count += 1;
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Err(CommitError::HeadMoved { .. } | CommitError::Transient { .. }) => {}
                Err(CommitError::OutcomeUnknown { .. } | CommitError::Closed) => return,
                Err(e) => panic!("{e:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_under_load_loses_and_doubles_nothing() {
    let mut server = OwnServer::start();
    let mut world = World::at(&server.url());
    world.timing.settle = Duration::from_secs(30);
    let provider = Arc::new(world.provider().await);
    provider.create(&tenant("load")).await.unwrap();
    let (acknowledged, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let writer = Writer {
                number,
                provider: provider.clone(),
                acknowledged: acknowledged.clone(),
                stop: stop.clone(),
            };
            tokio::spawn(writer.run())
        })
        .collect();
    for _ in 0..5 {
        let before = acknowledged.load(Ordering::Relaxed);
        soon("more commits", async || {
            acknowledged.load(Ordering::Relaxed) > before + 30
        })
        .await;
        server.kill();
        server.start_again();
    }
    let before = acknowledged.load(Ordering::Relaxed);
    soon("commits after the last start", async || {
        acknowledged.load(Ordering::Relaxed) > before + 30
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut counts = Vec::new();
    for writer in writers {
        counts.push(writer.await.unwrap());
    }

    let store = provider.open(&tenant("load")).await.unwrap();
    let mut snapshot = store.snapshot().await.unwrap();
    let (all, forward) = (KeyRange::all(), Direction::Forward);
    let log = snapshot
        .scan(Keyspace::Log, &all, forward, usize::MAX)
        .await;
    let log = log.unwrap();
    let head = snapshot.head().await.unwrap();
    assert_eq!(
        log.len() as u64,
        head.sequence,
        "one record for every commit"
    );
    for (number, count) in counts.into_iter().enumerate() {
        let mine = log.iter().filter_map(|(_, record)| {
            let text = std::str::from_utf8(record).unwrap();
            text.strip_prefix(&format!("{number}:"))
        });
        let mine: Vec<u64> = mine.map(|n| n.parse().unwrap()).collect();
        let expected: Vec<u64> = (1..=count).collect();
        assert_eq!(mine, expected, "writer {number}");
    }
    drop((snapshot, store));
    drop(world);
}
