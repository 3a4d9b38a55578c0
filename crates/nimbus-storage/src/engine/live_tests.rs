//! The registry of live queries: what it keeps, and that it keeps nothing of those that left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;

use super::*;
use crate::provider::KeyRange;

fn reads(from: u8, to: u8) -> ReadSet {
    let mut reads = ReadSet::default();
    reads.add_point(Keyspace::Meta, b"table/d");
    let range = KeyRange {
        start: vec![from],
        end: Some(vec![to]),
    };
    reads.add_range(Keyspace::Index, &range);
    reads
}

fn group(registry: &mut Registry, id: u64) {
    let table = "d".parse().unwrap();
    let group = Group {
        query: Arc::new(Query::table(table)),
        reads: ReadSet::default(),
        results: watch::Sender::new(None),
        subscribers: 1,
        stage: Stage::Idle,
        owed: 0,
    };
    registry.groups.insert(id, group);
}

fn touched(registry: &Registry, space: Keyspace, key: &[u8]) -> Vec<u64> {
    let mut found = HashSet::new();
    registry.touched_by(&(space, Bytes::copy_from_slice(key)), &mut found);
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_unstable();
    found
}

#[test]
fn a_key_touches_the_queries_that_read_it() {
    let mut registry = Registry::default();
    for (id, (from, to)) in [(1, (10, 20)), (2, (15, 30)), (3, (30, 40))] {
        group(&mut registry, id);
        registry.register(id, reads(from, to));
    }
    for (key, expected) in [
        (9, vec![]),
        (10, vec![1]),
        (15, vec![1, 2]),
        (20, vec![2]),
        (30, vec![3]),
        (40, vec![]),
    ] {
        assert_eq!(
            touched(&registry, Keyspace::Index, &[key]),
            expected,
            "{key}"
        );
    }
    assert_eq!(touched(&registry, Keyspace::Meta, b"table/d"), [1, 2, 3]);
    assert!(touched(&registry, Keyspace::Docs, &[15]).is_empty());
    // A newer read set replaces the older.
    registry.register(2, reads(50, 60));
    assert_eq!(touched(&registry, Keyspace::Index, &[15]), [1]);
    assert_eq!(touched(&registry, Keyspace::Index, &[55]), [2]);
}

#[test]
fn nothing_remains_of_a_query_that_everyone_left() {
    let mut registry = Registry::default();
    group(&mut registry, 1);
    registry.register(1, reads(10, 20));
    registry.drop_group(1);
    // The run that was under way when the last subscriber left ends now.
    registry.register(1, reads(10, 20));
    assert!(registry.points.is_empty(), "{:?}", registry.points);
    assert!(touched(&registry, Keyspace::Index, &[15]).is_empty());
}
