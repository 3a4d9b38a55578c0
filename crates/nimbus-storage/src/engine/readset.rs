//! What a transaction or a live query has read, as points and half-open key intervals.
//!
//! Validation and invalidation ask one question: does a written key lie in here? The set
//! knows keys only, not documents or queries.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use crate::provider::{KeyRange, Keyspace};

/// A key together with its keyspace; cheap to clone.
pub(crate) type SpaceKey = (Keyspace, Bytes);

/// Points and intervals read, merged as they are added.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadSet {
    points: HashSet<SpaceKey>,
    /// Disjoint intervals by start; the value is the end, `None` meaning unbounded.
    ranges: BTreeMap<(Keyspace, Vec<u8>), Option<Vec<u8>>>,
}

impl ReadSet {
    /// Adds one key.
    pub(crate) fn add_point(&mut self, space: Keyspace, key: &[u8]) {
        if !self.range_contains(space, key) {
            self.points.insert((space, Bytes::copy_from_slice(key)));
        }
    }

    /// Adds an interval, merging it with those it touches.
    pub(crate) fn add_range(&mut self, space: Keyspace, range: &KeyRange) {
        if range.is_empty() {
            return;
        }
        let mut start = range.start.clone();
        let mut end = range.end.clone();
        // The interval before may reach into or up to this one.
        if let Some(((s, before), before_end)) =
            self.ranges.range(..=(space, start.clone())).next_back()
            && *s == space
            && before_end.as_ref().is_none_or(|e| *e >= start)
        {
            start = before.clone();
            end = max_end(end, before_end.clone());
        }
        let swallowed: Vec<Vec<u8>> = self
            .ranges
            .range((space, start.clone())..)
            .take_while(|((s, from), _)| *s == space && end.as_ref().is_none_or(|e| from <= e))
            .map(|((_, from), _)| from.clone())
            .collect();
        for from in swallowed {
            if let Some(other) = self.ranges.remove(&(space, from)) {
                end = max_end(end, other);
            }
        }
        self.ranges.insert((space, start), end);
    }

    /// Whether nothing was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.points.is_empty() && self.ranges.is_empty()
    }

    /// Whether a written key was read.
    pub(crate) fn contains(&self, key: &SpaceKey) -> bool {
        self.points.contains(key) || self.range_contains(key.0, &key.1)
    }

    fn range_contains(&self, space: Keyspace, key: &[u8]) -> bool {
        if self.ranges.is_empty() {
            return false;
        }
        self.ranges
            .range(..=(space, key.to_vec()))
            .next_back()
            .is_some_and(|((s, _), end)| {
                *s == space && end.as_ref().is_none_or(|e| key < e.as_slice())
            })
    }

    /// The points.
    pub(crate) fn points(&self) -> impl Iterator<Item = &SpaceKey> {
        self.points.iter()
    }

    /// The disjoint intervals.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Keyspace, KeyRange)> + '_ {
        self.ranges.iter().map(|((space, start), end)| {
            (
                *space,
                KeyRange {
                    start: start.clone(),
                    end: end.clone(),
                },
            )
        })
    }
}

fn max_end(a: Option<Vec<u8>>, b: Option<Vec<u8>>) -> Option<Vec<u8>> {
    Some(std::cmp::max(a?, b?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(a: u8, b: Option<u8>) -> KeyRange {
        KeyRange {
            start: vec![a],
            end: b.map(|b| vec![b]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_list(
            ranges in prop::collection::vec((0u8..40, prop::option::of(0u8..40), 0u8..2), 0..12),
            points in prop::collection::vec((0u8..40, 0u8..2), 0..6),
        ) {
            let spaces = [Keyspace::Docs, Keyspace::Index];
            let mut set = ReadSet::default();
            for (a, b, s) in &ranges {
                set.add_range(spaces[*s as usize], &range(*a, *b));
            }
            for (p, s) in &points {
                set.add_point(spaces[*s as usize], &[*p]);
            }
            for s in 0u8..2 {
                for k in 0u8..45 {
                    let expected = points.contains(&(k, s))
                        || ranges.iter().any(|(a, b, rs)| *rs == s && range(*a, *b).contains(&[k]));
                    let key = (spaces[s as usize], Bytes::copy_from_slice(&[k]));
                    prop_assert_eq!(set.contains(&key), expected, "key {} space {}", k, s);
                }
            }
        }
    }
}
