//! Rows that are long or many.

use super::*;
use crate::provider::{Direction, KeyRange, SCAN_BYTES};

/// Bytes that are not alike.
fn bytes(seed: u64, length: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..))
        .take(length)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_many_statements_near_16_mib_is_one_commit() {
    let world = World::new();
    let (provider, other) = (world.provider().await, world.provider().await);
    let store = fresh(&provider, "big").await;
    let mut writes = BTreeMap::new();
    let mut total = 0;
    for n in 0..60_u64 {
        let value = bytes(n, 200_000);
        total += value.len();
        writes.insert((Keyspace::Docs, n.to_be_bytes().to_vec()), Some(value));
    }
    for n in 0..20_000_u64 {
        let value = bytes(n, 150);
        total += value.len();
        writes.insert((Keyspace::Jobs, n.to_be_bytes().to_vec()), Some(value));
    }
    for n in 0..200_u64 {
        let mut key = vec![0xff; 2048];
        key[..8].copy_from_slice(&n.to_be_bytes());
        total += key.len();
        writes.insert((Keyspace::Index, key), Some(Bytes::new()));
    }
    assert!((14 << 20..16 << 20).contains(&total), "{total}");
    let new = next(Head::EMPTY, 1);
    let expected = writes.clone();
    let batch = Batch { head: new, writes };
    let commit = tokio::spawn({
        let store = store.clone();
        async move { store.commit(Head::EMPTY, batch).await }
    });
    // Another server sees all of it or nothing.
    let seen = other.open(&tenant("big")).await.unwrap();
    let first = 0_u64.to_be_bytes();
    while !commit.is_finished() {
        let mut snapshot = seen.snapshot().await.unwrap();
        let is_done = snapshot.head().await.unwrap() == new;
        let row = snapshot.get_many(Keyspace::Docs, &[&first]).await.unwrap();
        assert_eq!(row[0].is_some(), is_done);
    }
    commit.await.unwrap().unwrap();
    let mut snapshot = seen.snapshot().await.unwrap();
    for keyspace in [Keyspace::Docs, Keyspace::Jobs, Keyspace::Index] {
        let of = expected.iter().filter(|((k, _), _)| *k == keyspace);
        let keys: Vec<&[u8]> = of.clone().map(|((_, key), _)| &key[..]).collect();
        let values: Vec<Option<Bytes>> = of.map(|(_, value)| value.clone()).collect();
        assert!(snapshot.get_many(keyspace, &keys).await.unwrap() == values);
    }
    drop(snapshot);
    // And all of it goes in one commit.
    let gone = expected.into_keys().map(|key| (key, None)).collect();
    let last = next(new, 2);
    let batch = Batch {
        head: last,
        writes: gone,
    };
    store.commit(new, batch).await.unwrap();
    let mut snapshot = seen.snapshot().await.unwrap();
    for keyspace in [Keyspace::Docs, Keyspace::Jobs, Keyspace::Index] {
        let all = KeyRange::all();
        let rows = snapshot.scan(keyspace, &all, Direction::Forward, 10).await;
        assert_eq!(rows.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_stops_at_the_bytes_and_never_earlier() {
    let world = World::new();
    let provider = world.provider().await;
    let store = fresh(&provider, "scan").await;
    let mut at = Head::EMPTY;
    let mut all = Vec::new();
    for (n, length) in [10, 900_000, 5_000, 2_000_000, 0, 1_500_000, 3, 3_000_000, 4]
        .into_iter()
        .enumerate()
    {
        let (key, value) = (vec![n as u8; 3], bytes(n as u64, length));
        let new = next(at, 1);
        let row = ((Keyspace::Docs, key.clone()), Some(value.clone()));
        let writes = BTreeMap::from([row]);
        store.commit(at, Batch { head: new, writes }).await.unwrap();
        at = new;
        all.push((key, value));
    }
    let mut snapshot = store.snapshot().await.unwrap();
    for direction in [Direction::Forward, Direction::Backward] {
        if direction == Direction::Backward {
            all.reverse();
        }
        for limit in [1, 3, 5, 100, usize::MAX] {
            let range = KeyRange::all();
            let rows = snapshot
                .scan(Keyspace::Docs, &range, direction, limit)
                .await;
            let rows = rows.unwrap();
            let mut size = 0;
            let expected = all.iter().take(limit).take_while(|(key, value)| {
                let goes_on = size < SCAN_BYTES;
                size += key.len() + value.len();
                goes_on
            });
            let expected: Vec<_> = expected.cloned().collect();
            assert!(rows == expected, "{direction:?} {limit}: {}", rows.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_do_not_fit_are_refused_and_nothing_is_written() {
    let world = World::new();
    let provider = world.provider().await;
    let store = fresh(&provider, "long").await;
    let max = provider.shared.max_packet as usize;
    let refused = async |key: Vec<u8>, value: Bytes, told: &str| {
        let new = next(Head::EMPTY, 1);
        let mut batch = batch(new, b"k", "x");
        batch.writes.insert((Keyspace::Code, key), Some(value));
        let refused = store.commit(Head::EMPTY, batch).await;
        assert!(
            matches!(&refused, Err(CommitError::Refused { reason }) if reason.contains(told)),
            "{refused:?}"
        );
        assert_eq!(head(&store).await, Head::EMPTY);
    };
    refused(vec![7; 2049], Bytes::new(), "2049 bytes and at most 2048").await;
    refused(vec![7], bytes(1, max), "max_allowed_packet").await;
    // The longest that the engine writes: a module of 15 MiB.
    let (new, module) = (next(Head::EMPTY, 1), bytes(2, 15 << 20));
    let mut longest = batch(new, b"k", "x");
    let key = vec![7; 2048];
    longest
        .writes
        .insert((Keyspace::Code, key.clone()), Some(module.clone()));
    store.commit(Head::EMPTY, longest).await.unwrap();
    let mut snapshot = store.snapshot().await.unwrap();
    let found = snapshot.get_many(Keyspace::Code, &[&key]).await.unwrap();
    assert!(found == [Some(module.clone())]);
    let range = KeyRange::prefix(&[7]);
    let found = snapshot
        .scan(Keyspace::Code, &range, Direction::Forward, 9)
        .await;
    assert!(found.unwrap() == [(key, module)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_differ_by_case_are_other_tenants() {
    let world = World::new();
    let provider = world.provider().await;
    for id in ["acme", "Acme", "ACME"] {
        let store = fresh(&provider, id).await;
        put(&store, Head::EMPTY, 1, id).await;
    }
    let listed = [tenant("ACME"), tenant("Acme"), tenant("acme")];
    assert_eq!(provider.list().await.unwrap(), listed);
    provider.delete(&tenant("Acme")).await.unwrap();
    for id in ["acme", "ACME"] {
        let store = provider.open(&tenant(id)).await.unwrap();
        assert_eq!(get(&store, b"k").await.as_deref(), Some(id));
    }
    assert!(!provider.contains(&tenant("Acme")).await.unwrap());
}
