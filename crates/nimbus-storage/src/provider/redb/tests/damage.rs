//! Tests of damaged files: a changed byte of an encrypted one is an error, or changes nothing.

use super::*;
use crate::pages::tests::tape::Random;
use crate::provider::tamper::{Contents, fill, flip_each, flips, used};

/// Bytes of page 0 with its header, and of every other page.
const FIRST: usize = 8264;
const SLOT: usize = 4124;

/// A tenant, closed; what it held after each commit.
async fn filled(provider: &RedbProvider) -> Vec<Contents> {
    let store = made(provider, "t").await;
    let states = fill(&store).await;
    store.close().await.unwrap();
    states
}

/// Opens, reads everything, closes: an error, or whether it is what was there.
async fn use_it(provider: &RedbProvider, states: &[Contents]) -> ProviderResult<bool> {
    let found = used(provider, &tenant("t")).await?;
    Ok(states.last() == Some(&found))
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

async fn flip(home: &Home, clean: bool) {
    let provider = home.with(|o| o.cache_bytes = 1 << 20);
    let states = filled(&provider).await;
    let good = file_of(home, &provider, clean).await;
    assert!(good.len() > 1_000_000, "{}", good.len());
    // Page 0 more often than by chance.
    let mut places = flips(2250, good.len());
    places.extend(flips(250, FIRST));
    let (path, id) = (home.path("t.redb"), tenant("t"));
    let met = flip_each(
        (&provider, &id),
        || (),
        (&path, &good),
        &places,
        (&states, false),
    )
    .await;
    assert!(
        met.refused > places.len() / 3 && met.equal > places.len() / 20 && met.earlier == 0,
        "{met:?}"
    );
}

#[tokio::test]
async fn a_changed_byte_of_a_closed_file_is_refused_or_irrelevant() {
    flip(&Home::encrypted_in_memory(), true).await;
}

#[tokio::test]
async fn a_changed_byte_of_a_killed_file_is_refused_or_irrelevant() {
    flip(&Home::encrypted_in_memory(), false).await;
}

/// Of any length, at the border of a slot or not, longer or shorter.
#[tokio::test]
async fn another_length_is_refused_or_irrelevant() {
    for clean in [true, false] {
        let home = Home::encrypted_in_memory();
        let provider = home.provider();
        let expected = filled(&provider).await;
        let good = file_of(&home, &provider, clean).await;
        let slots = (good.len() - FIRST) / SLOT;
        let mut random = Random(13);
        let mut refused = 0;
        for n in 0..300 {
            let mut bad = good.clone();
            let at = FIRST + random.below(slots) * SLOT;
            match n % 4 {
                0 => bad.truncate(at),
                1 => bad.truncate(random.below(good.len())),
                2 => bad.resize(good.len() + (1 + random.below(100)) * SLOT, 0),
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
    let slot = |n: usize| FIRST + n * SLOT..FIRST + (n + 1) * SLOT;
    let slots = (good.len().min(foreign.len()) - FIRST) / SLOT;
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
