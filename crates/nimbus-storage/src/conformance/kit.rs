//! What the cases share: checks that explain themselves, batches, whole scans, and a small
//! seeded generator of random numbers.
//!
//! Must not assert anything of its own about a provider.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use nimbus_core::TenantId;

use super::{Failure, Fixture};
use crate::provider::{
    Batch, Direction, HEAD_KEY, Head, KeyRange, Keyspace, Row, Snapshot, TenantStore,
};

/// Fails the case unless `$condition` holds; the rest is a format string.
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failure::new(format!($($text)+)));
        }
    };
}

/// Fails the case unless both sides are equal.
macro_rules! check_eq {
    ($found:expr, $expected:expr, $($text:tt)+) => {
        // A match keeps temporaries alive.
        match (&$found, &$expected) {
            (found, expected) => {
                if found != expected {
                    let what = format!($($text)+);
                    return Err($crate::conformance::Failure::new(format!(
                        "{what}: found {found:?}, expected {expected:?}"
                    )));
                }
            }
        }
    };
}

/// Fails the case unless the expression matches the pattern.
macro_rules! check_matches {
    ($found:expr, $pattern:pat, $($text:tt)+) => {{
        let found = $found;
        if !matches!(found, $pattern) {
            let what = format!($($text)+);
            let shown = found.map(|_| "success");
            return Err($crate::conformance::Failure::new(format!(
                "{what}: found {shown:?}, expected {}", stringify!($pattern)
            )));
        }
    }};
}

pub(super) use {check, check_eq, check_matches};

/// Everything the cases write in `meta` starts with this: providers keep rows of their own
/// there.
pub(super) const META_PREFIX: &[u8] = b"t/";

/// A tenant id; the text is a constant of the suite.
pub(super) fn id(text: &str) -> Result<TenantId, Failure> {
    text.parse()
        .map_err(|e| Failure::new(format!("tenant id {text}: {e}")))
}

/// Creates and opens a tenant.
pub(super) async fn fresh(
    fixture: &Arc<dyn Fixture>,
    tenant: &str,
) -> Result<Arc<dyn TenantStore>, Failure> {
    let (provider, tenant) = (fixture.provider(), id(tenant)?);
    provider.create(&tenant).await?;
    Ok(provider.open(&tenant).await?)
}

/// The head after `head`, told apart by `mark`.
pub(super) fn next(head: Head, mark: u8) -> Head {
    Head {
        sequence: head.sequence + 1,
        timestamp: head.timestamp + 1000,
        hash: [mark; 32],
    }
}

/// Final values by keyspace and key; `None` deletes.
pub(super) type Writes = BTreeMap<(Keyspace, Vec<u8>), Option<Bytes>>;

/// A key and its value, or `None` to delete it.
pub(super) type Write<'a> = (Keyspace, &'a [u8], Option<&'a [u8]>);

/// Writes from a list.
pub(super) fn writes(list: &[Write<'_>]) -> Writes {
    let row = |(keyspace, key, value): &Write<'_>| {
        ((*keyspace, key.to_vec()), value.map(Bytes::copy_from_slice))
    };
    list.iter().map(row).collect()
}

/// Commits on top of `head`; the new head.
pub(super) async fn commit(
    store: &Arc<dyn TenantStore>,
    head: Head,
    writes: Writes,
) -> Result<Head, Failure> {
    let new = next(head, u8::try_from(head.sequence % 251).unwrap_or(0) + 1);
    store.commit(head, Batch { head: new, writes }).await?;
    Ok(new)
}

/// One value in a new snapshot.
pub(super) async fn get(
    store: &Arc<dyn TenantStore>,
    keyspace: Keyspace,
    key: &[u8],
) -> Result<Option<Bytes>, Failure> {
    one(&mut *store.snapshot().await?, keyspace, key).await
}

/// One value in a snapshot.
pub(super) async fn one(
    snapshot: &mut dyn Snapshot,
    keyspace: Keyspace,
    key: &[u8],
) -> Result<Option<Bytes>, Failure> {
    let found = snapshot.get_many(keyspace, &[key]).await?;
    check_eq!(found.len(), 1, "values for one key");
    Ok(found.into_iter().next().flatten())
}

/// The head in a new snapshot.
pub(super) async fn head(store: &Arc<dyn TenantStore>) -> Result<Head, Failure> {
    Ok(store.snapshot().await?.head().await?)
}

/// Every row of a range, however many scans that takes.
pub(super) async fn all(
    snapshot: &mut dyn Snapshot,
    keyspace: Keyspace,
    range: &KeyRange,
    direction: Direction,
) -> Result<Vec<Row>, Failure> {
    let (mut rest, mut rows) = (range.clone(), Vec::new());
    loop {
        let some = snapshot.scan(keyspace, &rest, direction, 1000).await?;
        let Some((last, _)) = some.last() else {
            return Ok(rows);
        };
        match direction {
            Direction::Forward => {
                rest.start = last.clone();
                rest.start.push(0);
            }
            Direction::Backward => rest.end = Some(last.clone()),
        }
        rows.extend(some);
    }
}

/// Everything the cases wrote, in all keyspaces.
pub(super) async fn contents(
    snapshot: &mut dyn Snapshot,
) -> Result<BTreeMap<(Keyspace, Vec<u8>), Bytes>, Failure> {
    let mut out = BTreeMap::new();
    for keyspace in Keyspace::ALL {
        let range = visible(keyspace);
        for (key, value) in all(snapshot, keyspace, &range, Direction::Forward).await? {
            check!(
                key != HEAD_KEY || keyspace != Keyspace::Meta,
                "the head row is in the range"
            );
            out.insert((keyspace, key), value);
        }
    }
    Ok(out)
}

/// The part of a keyspace that belongs to the cases.
pub(super) fn visible(keyspace: Keyspace) -> KeyRange {
    match keyspace {
        Keyspace::Meta => KeyRange::prefix(META_PREFIX),
        _ => KeyRange::all(),
    }
}

/// A generator of random numbers (SplitMix64), seeded so that a failure can be repeated.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    /// A key that often shares a prefix with others and often has bytes 00 and FF.
    pub(super) fn key(&mut self, keyspace: Keyspace) -> Vec<u8> {
        let mut key = if keyspace == Keyspace::Meta {
            META_PREFIX.to_vec()
        } else {
            Vec::new()
        };
        for _ in 0..self.below(6) {
            let byte = [0x00, 0x01, b'a', 0x7f, 0x80, 0xfe, 0xff][self.below(7)];
            key.push(byte);
        }
        key
    }

    /// Up to 200 random bytes, sometimes text.
    pub(super) fn value(&mut self) -> Bytes {
        let length = self.below(200);
        if self.below(2) == 0 {
            return Bytes::from(format!("{{\"n\":{length}}}"));
        }
        (0..length).map(|_| self.next().to_be_bytes()[0]).collect()
    }
}
