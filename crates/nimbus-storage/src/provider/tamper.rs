//! What tests of damaged files share: a tenant with about a mebibyte in all keyspaces, everything that can
//! be read of it, and bytes that are changed one at a time.
//!
//! It must not know a provider.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nimbus_core::TenantId;

use super::testing::next;
use super::{
    Batch, Direction, Head, KeyRange, Keyspace, Provider, ProviderError, ProviderResult,
    TenantStore,
};

/// Everything that can be read of a tenant.
pub(crate) type Contents = BTreeMap<(Keyspace, Vec<u8>), Bytes>;

/// Commits of [`fill`].
pub(crate) const COMMITS: u32 = 40;

/// Where the random choices begin, unless `NIMBUS_FLIP_SEED` says.
const SEED: u64 = 11;

/// Flips of one test: `usual`, unless `NIMBUS_FLIPS` says; 0 there is every byte.
pub(crate) fn flips(usual: usize, bytes: usize) -> Vec<usize> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let count = number("NIMBUS_FLIPS").map_or(usual, |n: u64| n as usize);
    if count == 0 {
        return (0..bytes).collect();
    }
    let mut random = fastrand::Rng::with_seed(number("NIMBUS_FLIP_SEED").unwrap_or(SEED));
    (0..count).map(|_| random.usize(..bytes)).collect()
}

/// Reads all of it.
pub(crate) async fn contents(store: &Arc<dyn TenantStore>) -> ProviderResult<Contents> {
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

/// Commits to an empty tenant, and what it holds after each commit, the last of all.
pub(crate) async fn fill(store: &Arc<dyn TenantStore>) -> Vec<Contents> {
    let mut states = vec![contents(store).await.unwrap()];
    let mut head = Head::EMPTY;
    for n in 0..COMMITS {
        let new = next(head);
        let mut writes = BTreeMap::new();
        for (keyspace, len) in Keyspace::ALL
            .into_iter()
            .zip([30, 300, 0, 9000, 8000, 100, 4000])
        {
            let key = [b"key", &n.to_be_bytes()[..]].concat();
            writes.insert((keyspace, key), Some(vec![n as u8; len].into()));
        }
        store
            .commit(head, Batch { head: new, writes })
            .await
            .unwrap();
        head = new;
        states.push(contents(store).await.unwrap());
    }
    states
}

/// Opens, reads everything and closes: what was read.
pub(crate) async fn used(provider: &dyn Provider, tenant: &TenantId) -> ProviderResult<Contents> {
    let store = provider.open(tenant).await?;
    let found = contents(&store).await;
    let closed = store.close().await;
    let found = found?;
    closed?;
    Ok(found)
}

/// How changed bytes were met.
#[derive(Debug, Default)]
pub(crate) struct Met {
    pub(crate) refused: usize,
    pub(crate) equal: usize,
    pub(crate) earlier: usize,
}

/// Changes one bit at each place of `good` in turn, and uses the tenant with it. It must be refused as
/// damaged, or read as in the last of `states`; with `shorter`, as in an earlier one.
pub(crate) async fn flip_each(
    (provider, tenant): (&dyn Provider, &TenantId),
    restore: impl Fn(),
    (path, good): (&Path, &[u8]),
    places: &[usize],
    (states, shorter): (&[Contents], bool),
) -> Met {
    let mut met = Met::default();
    let mut bytes = good.to_vec();
    for (n, at) in places.iter().enumerate() {
        restore();
        bytes[*at] ^= 1 << (n % 8);
        std::fs::write(path, &bytes).unwrap();
        bytes[*at] = good[*at];
        match used(provider, tenant).await {
            Ok(found) if Some(&found) == states.last() => met.equal += 1,
            Ok(found) if shorter && states.contains(&found) => met.earlier += 1,
            Ok(found) => panic!(
                "byte {at} of {} changes what is read: {}",
                path.display(),
                difference(states.last(), &found)
            ),
            Err(ProviderError::Corrupt { .. }) => met.refused += 1,
            Err(e) => panic!("byte {at} of {}: {e:?}", path.display()),
        }
    }
    met
}

/// Where two contents differ, in short.
fn difference(expected: Option<&Contents>, found: &Contents) -> String {
    let Some(expected) = expected else {
        return "nothing was expected".to_owned();
    };
    let lost = expected.iter().filter(|(key, _)| !found.contains_key(*key));
    let changed = expected
        .iter()
        .filter(|(key, value)| found.get(*key).is_some_and(|found| found != *value));
    let made = found.keys().filter(|key| !expected.contains_key(*key));
    format!(
        "{:?} lost, {:?} changed, {} made",
        lost.map(|(key, _)| key).collect::<Vec<_>>(),
        changed.map(|(key, _)| key).collect::<Vec<_>>(),
        made.count()
    )
}
