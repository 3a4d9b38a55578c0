//! Tests of damaged files: a changed byte of an encrypted one is an error, or changes nothing.

use std::collections::BTreeMap;

use super::*;
use crate::pages::tests::tape::Random;

type Contents = BTreeMap<(Keyspace, Vec<u8>), bytes::Bytes>;

async fn contents(store: &Arc<dyn TenantStore>) -> ProviderResult<Contents> {
    let mut snapshot = store.snapshot().await?;
    let mut out = Contents::new();
    for keyspace in Keyspace::ALL {
        let mut range = KeyRange::all();
        loop {
            let rows = snapshot.scan(keyspace, &range, Direction::Forward, 10_000);
            let rows = rows.await?;
            let Some((last, _)) = rows.last() else { break };
            range.start.clone_from(last);
            range.start.push(0);
            out.extend(
                rows.into_iter()
                    .map(|(key, value)| ((keyspace, key), value)),
            );
        }
    }
    Ok(out)
}

/// About 1 MiB in all keyspaces.
async fn filled(provider: &RedbProvider) -> Contents {
    let store = made(provider, "t").await;
    let mut head = Head::EMPTY;
    for n in 0..40_u32 {
        let new = next(head);
        let mut writes = BTreeMap::new();
        for (k, keyspace) in Keyspace::ALL.into_iter().enumerate() {
            let len = [30, 300, 0, 9000, 8000, 100, 4000][k];
            let key = [b"key", &n.to_be_bytes()[..]].concat();
            let value = vec![u8::try_from(n).unwrap(); len];
            writes.insert((keyspace, key), Some(value.into()));
        }
        store
            .commit(head, Batch { head: new, writes })
            .await
            .unwrap();
        head = new;
    }
    let contents = contents(&store).await.unwrap();
    store.close().await.unwrap();
    contents
}

/// Opens, reads everything, writes, closes: an error, or what was there.
async fn use_it(provider: &RedbProvider, expected: &Contents) -> ProviderResult<bool> {
    let store = provider.open(&tenant("t")).await?;
    let found = contents(&store).await;
    let closed = store.close().await;
    let found = found?;
    closed?;
    Ok(found == *expected)
}

/// The bytes of the tenant's file; unless `clean`, as a kill leaves them.
async fn file_of(home: &Home, provider: &RedbProvider, clean: bool) -> Vec<u8> {
    let path = home.path("t.redb");
    if clean {
        return std::fs::read(&path).unwrap();
    }
    let store = provider.open(&tenant("t")).await.unwrap();
    let killed = std::fs::read(&path).unwrap();
    store.close().await.unwrap();
    killed
}

async fn flips(home: &Home, clean: bool, count: usize) {
    let provider = home.with(|o| o.cache_bytes = 1 << 20);
    let expected = filled(&provider).await;
    let path = home.path("t.redb");
    let good = file_of(home, &provider, clean).await;
    assert!(good.len() > 1_000_000, "{}", good.len());
    let mut random = Random(11);
    let (mut refused, mut equal) = (0, 0);
    for n in 0..count {
        // Page 0 more often than by chance.
        let at = match n % 10 {
            0 => random.below(8264),
            _ => random.below(good.len()),
        };
        let mut bad = good.clone();
        bad[at] ^= 1 << random.below(8);
        std::fs::write(&path, &bad).unwrap();
        match use_it(&provider, &expected).await {
            Ok(true) => equal += 1,
            Ok(false) => panic!("byte {at} changes what is read"),
            Err(ProviderError::Corrupt { .. }) => refused += 1,
            Err(e) => panic!("byte {at}: {e:?}"),
        }
    }
    assert!(
        refused > count / 3 && equal > count / 20,
        "{refused} {equal}"
    );
}

#[tokio::test]
async fn a_changed_byte_of_a_closed_file_is_refused_or_irrelevant() {
    flips(&Home::encrypted_in_memory(), true, 2500).await;
}

#[tokio::test]
async fn a_changed_byte_of_a_killed_file_is_refused_or_irrelevant() {
    flips(&Home::encrypted_in_memory(), false, 2500).await;
}

/// Of any length, at the border of a slot or not, longer or shorter.
#[tokio::test]
async fn another_length_is_refused_or_irrelevant() {
    for clean in [true, false] {
        let home = Home::encrypted_in_memory();
        let provider = home.provider();
        let expected = filled(&provider).await;
        let good = file_of(&home, &provider, clean).await;
        let slots = (good.len() - 8264) / 4124;
        let mut random = Random(13);
        let mut refused = 0;
        for n in 0..300 {
            let mut bad = good.clone();
            let at = 8264 + random.below(slots) * 4124;
            match n % 4 {
                0 => bad.truncate(at),
                1 => bad.truncate(random.below(good.len())),
                2 => bad.resize(good.len() + (1 + random.below(100)) * 4124, 0),
                _ => bad.extend_from_slice(&good[at..]),
            }
            std::fs::write(home.path("t.redb"), &bad).unwrap();
            match use_it(&provider, &expected).await {
                Ok(same) => assert!(same, "{n} {}", bad.len()),
                Err(ProviderError::Corrupt { .. }) => refused += 1,
                Err(e) => panic!("{n}: {e:?}"),
            }
        }
        assert!(refused > 140, "{clean}: {refused}");
    }
}

/// Slots of two tenants, and of two places in one file, are not exchanged unnoticed.
#[tokio::test]
async fn exchanged_pages_are_refused() {
    let home = Home::encrypted();
    let provider = home.provider();
    let expected = filled(&provider).await;
    let other = home.sibling();
    filled(&other.provider()).await;
    let path = home.path("t.redb");
    let (good, foreign) = (
        std::fs::read(&path).unwrap(),
        std::fs::read(other.path("t.redb")).unwrap(),
    );
    let slot = |n: usize| 8264 + n * 4124..8264 + (n + 1) * 4124;
    let slots = (good.len().min(foreign.len()) - 8264) / 4124;
    let mut refused = 0;
    for n in (0..slots - 1).step_by(5) {
        for bytes in [&foreign[slot(n)], &good[slot(n + 1)]] {
            let mut bad = good.clone();
            bad[slot(n)].copy_from_slice(bytes);
            std::fs::write(&path, &bad).unwrap();
            match use_it(&provider, &expected).await {
                // A page that is free.
                Ok(same) => assert!(same, "slot {n}"),
                Err(ProviderError::Corrupt { .. }) => refused += 1,
                Err(e) => panic!("slot {n}: {e:?}"),
            }
        }
    }
    assert!(refused > slots / 10, "{refused} of {slots}");
}

/// redb does not check what it reads of a file in plain text, and may panic: that is an error, and
/// the next open is not the worse for it.
#[tokio::test]
async fn damage_to_a_plain_file_ends_no_process() {
    let home = Home::plain();
    let provider = home.provider();
    let expected = filled(&provider).await;
    let path = home.path("t.redb");
    let good = std::fs::read(&path).unwrap();
    let mut random = Random(12);
    for _ in 0..100 {
        let mut bad = good.clone();
        let page = random.below(good.len() / 4096) * 4096;
        for _ in 0..20 {
            let at = page + random.below(4096);
            bad[at] ^= 0x55;
        }
        std::fs::write(&path, &bad).unwrap();
        let _ = use_it(&provider, &expected).await;
    }
    std::fs::write(&path, &good).unwrap();
    assert!(use_it(&provider, &expected).await.unwrap());
}
