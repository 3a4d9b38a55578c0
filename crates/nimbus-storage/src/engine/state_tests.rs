//! What the memory of an open tenant keeps for validation, and what it answers once it no longer
//! keeps enough.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn key(n: u64) -> SpaceKey {
    (Keyspace::Docs, Bytes::copy_from_slice(&n.to_be_bytes()))
}

fn read(n: u64) -> ReadSet {
    let mut reads = ReadSet::default();
    reads.add_point(Keyspace::Docs, &n.to_be_bytes());
    reads
}

/// A tenant whose commits 1 to `commits` wrote `keys` keys each, the first of them their number.
fn after(commits: u64, keys: u64) -> State {
    let mut state = State::new(Head::EMPTY, Catalog::default(), 0);
    for sequence in 1..=commits {
        let keys = (0..keys).map(|i| key(sequence + i * 1_000_000)).collect();
        state.remember(Committed { sequence, keys });
    }
    state
}

#[test]
fn a_commit_after_the_snapshot_that_wrote_what_was_read_is_a_conflict() {
    let state = after(10, 1);
    for snapshot in 0..=10 {
        for read_key in 1..=10 {
            let expected = read_key > snapshot;
            assert_eq!(
                state.conflicts(&read(read_key), snapshot),
                expected,
                "{read_key} {snapshot}"
            );
        }
        assert!(!state.conflicts(&read(99), snapshot));
    }
}

#[test]
fn a_snapshot_older_than_what_is_kept_is_a_conflict_whatever_it_read() {
    let commits = RING_COMMITS as u64 + 100;
    let state = after(commits, 1);
    assert_eq!(state.ring.len(), RING_COMMITS);
    assert!(state.conflicts(&ReadSet::default(), 99));
    assert!(!state.covers(99));
    assert!(!state.conflicts(&ReadSet::default(), 100));
    assert!(state.covers(100));
    assert!(state.conflicts(&read(101), 100));
    assert!(!state.conflicts(&read(100), 100));
}

#[test]
fn the_keys_kept_are_bounded_too() {
    let each = 1_000;
    let kept = RING_KEYS as u64 / each;
    let state = after(kept + 5, each);
    assert_eq!(state.ring.len() as u64, kept);
    assert_eq!(state.ring_keys as u64, kept * each);
    assert!(state.conflicts(&ReadSet::default(), 4));
    assert!(!state.conflicts(&ReadSet::default(), 5));
}
