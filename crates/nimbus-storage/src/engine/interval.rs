//! An index over byte-string intervals: which of them contain a key?
//!
//! A treap ordered by start and augmented with the greatest end below each node
//! (Cormen et al., interval trees). It knows numbers and bytes, not queries.

use std::cmp::Ordering;

/// No node.
const NIL: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
    id: u64,
    priority: u64,
    left: u32,
    right: u32,
    /// The node in this subtree with the greatest end.
    furthest: u32,
}

/// A multiset of half-open intervals, each with an owner's number.
#[derive(Debug)]
pub(crate) struct IntervalIndex {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    seed: u64,
}

impl Default for IntervalIndex {
    fn default() -> IntervalIndex {
        IntervalIndex {
            nodes: Vec::new(),
            free: Vec::new(),
            root: NIL,
            seed: 0,
        }
    }
}

impl IntervalIndex {
    /// Adds an interval; `end` of `None` is unbounded.
    pub(crate) fn insert(&mut self, start: Vec<u8>, end: Option<Vec<u8>>, id: u64) {
        let priority = self.next_priority();
        let node = Node {
            start,
            end,
            id,
            priority,
            left: NIL,
            right: NIL,
            furthest: NIL,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        self.update(at);
        let (left, right) = self.split(self.root, at);
        let left = self.merge(left, at);
        self.root = self.merge(left, right);
    }

    /// Removes the interval that was added with this start and number, if it is there.
    pub(crate) fn remove(&mut self, start: &[u8], id: u64) {
        self.root = self.remove_from(self.root, start, id);
    }

    /// Calls `found` with the number of every interval that contains `key`.
    pub(crate) fn stab(&self, key: &[u8], found: &mut impl FnMut(u64)) {
        self.stab_from(self.root, key, found);
    }

    fn stab_from(&self, at: u32, key: &[u8], found: &mut impl FnMut(u64)) {
        if at == NIL {
            return;
        }
        let node = &self.nodes[at as usize];
        if !self.ends_after(node.furthest, key) {
            return;
        }
        self.stab_from(node.left, key, found);
        if node.start.as_slice() <= key {
            if self.ends_after(at, key) {
                found(node.id);
            }
            self.stab_from(node.right, key, found);
        }
    }

    fn ends_after(&self, at: u32, key: &[u8]) -> bool {
        self.nodes[at as usize]
            .end
            .as_ref()
            .is_none_or(|end| key < end.as_slice())
    }

    /// SplitMix64 (Steele et al. 2014): enough randomness to keep a treap shallow.
    fn next_priority(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn order(&self, at: u32, start: &[u8], id: u64) -> Ordering {
        let node = &self.nodes[at as usize];
        node.start.as_slice().cmp(start).then(node.id.cmp(&id))
    }

    fn update(&mut self, at: u32) {
        let (left, right) = (self.nodes[at as usize].left, self.nodes[at as usize].right);
        let mut furthest = at;
        for child in [left, right] {
            if child != NIL {
                let candidate = self.nodes[child as usize].furthest;
                if self.reaches_further(candidate, furthest) {
                    furthest = candidate;
                }
            }
        }
        self.nodes[at as usize].furthest = furthest;
    }

    fn reaches_further(&self, a: u32, b: u32) -> bool {
        match (&self.nodes[a as usize].end, &self.nodes[b as usize].end) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(a), Some(b)) => a > b,
        }
    }

    /// Splits into nodes before and after `pivot`'s place.
    fn split(&mut self, at: u32, pivot: u32) -> (u32, u32) {
        if at == NIL {
            return (NIL, NIL);
        }
        let (start, id) = {
            let p = &self.nodes[pivot as usize];
            (p.start.clone(), p.id)
        };
        self.split_at(at, &start, id)
    }

    fn split_at(&mut self, at: u32, start: &[u8], id: u64) -> (u32, u32) {
        if at == NIL {
            return (NIL, NIL);
        }
        if self.order(at, start, id) == Ordering::Less {
            let (left, right) = self.split_at(self.nodes[at as usize].right, start, id);
            self.nodes[at as usize].right = left;
            self.update(at);
            (at, right)
        } else {
            let (left, right) = self.split_at(self.nodes[at as usize].left, start, id);
            self.nodes[at as usize].left = right;
            self.update(at);
            (left, at)
        }
    }

    fn merge(&mut self, a: u32, b: u32) -> u32 {
        if a == NIL {
            return b;
        }
        if b == NIL {
            return a;
        }
        if self.nodes[a as usize].priority > self.nodes[b as usize].priority {
            let right = self.merge(self.nodes[a as usize].right, b);
            self.nodes[a as usize].right = right;
            self.update(a);
            a
        } else {
            let left = self.merge(a, self.nodes[b as usize].left);
            self.nodes[b as usize].left = left;
            self.update(b);
            b
        }
    }

    fn remove_from(&mut self, at: u32, start: &[u8], id: u64) -> u32 {
        if at == NIL {
            return NIL;
        }
        match self.order(at, start, id) {
            Ordering::Equal => {
                let node = &mut self.nodes[at as usize];
                node.start = Vec::new();
                node.end = None;
                let (left, right) = (node.left, node.right);
                self.free.push(at);
                self.merge(left, right)
            }
            Ordering::Less => {
                let right = self.remove_from(self.nodes[at as usize].right, start, id);
                self.nodes[at as usize].right = right;
                self.update(at);
                at
            }
            Ordering::Greater => {
                let left = self.remove_from(self.nodes[at as usize].left, start, id);
                self.nodes[at as usize].left = left;
                self.update(at);
                at
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_list(
            steps in prop::collection::vec((0u8..30, prop::option::of(0u8..32), any::<bool>(), 0usize..40), 1..120)
        ) {
            let mut index = IntervalIndex::default();
            let mut list: Vec<(Vec<u8>, Option<Vec<u8>>, u64)> = Vec::new();
            for (n, (start, end, remove, which)) in steps.into_iter().enumerate() {
                if remove && !list.is_empty() {
                    let (start, _, id) = list.remove(which % list.len());
                    index.remove(&start, id);
                } else {
                    let (start, end) = (vec![start], end.map(|e| vec![e]));
                    index.insert(start.clone(), end.clone(), n as u64);
                    list.push((start, end, n as u64));
                }
                for key in 0u8..33 {
                    let mut found = Vec::new();
                    index.stab(&[key], &mut |id| found.push(id));
                    found.sort_unstable();
                    let expected: Vec<u64> = list
                        .iter()
                        .filter(|(s, e, _)| *s <= vec![key] && e.as_ref().is_none_or(|e| vec![key] < *e))
                        .map(|(_, _, id)| *id)
                        .collect();
                    let mut expected = expected;
                    expected.sort_unstable();
                    prop_assert_eq!(&found, &expected, "key {}", key);
                }
            }
        }
    }
}
