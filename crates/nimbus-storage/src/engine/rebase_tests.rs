//! What becomes of validated transactions when another server's commits come in front of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;

use super::*;
use crate::engine::quota::{Quota, Usage};
use crate::engine::readset::ReadSet;
use crate::engine::record::Write;
use crate::engine::state::{Outcome, Proposal, Submitted, Writes};
use crate::error::{CommitId, StoreError};
use crate::provider::Keyspace;

fn key(n: u8) -> SpaceKey {
    (Keyspace::Docs, Bytes::copy_from_slice(&[n]))
}

/// A transaction that read these keys in the state's newest view and writes one.
fn proposal(state: &State, reads: &[u8], writes: u8) -> Proposal {
    let mut set = ReadSet::default();
    for n in reads {
        set.add_point(Keyspace::Docs, &[*n]);
    }
    Proposal {
        read_sequence: state.head.sequence,
        epoch: state.epoch,
        reads: set,
        writes: Writes::unit(key(writes), Write::to(Some(Bytes::from_static(b"{}")))),
        rendered: "[]".into(),
        commit: CommitId([writes; 16]),
        execution: None,
        maintenance: false,
    }
}

type Answer = tokio::sync::oneshot::Receiver<Outcome>;

fn submit(state: &mut State, reads: &[u8], writes: u8) -> Answer {
    let proposal = proposal(state, reads, writes);
    match state.submit(proposal, 1).unwrap() {
        Submitted::Accepted(answer) => answer,
        _ => panic!("not accepted"),
    }
}

fn foreign(state: &State, writes: &[u8]) -> Foreign {
    Foreign {
        head: Head {
            sequence: state.durable.sequence + 1,
            timestamp: state.durable.timestamp + 10,
            hash: [9; 32],
        },
        keys: writes.iter().map(|n| key(*n)).collect(),
        catalog: None,
        size: 100,
        change: Change::default(),
    }
}

fn new() -> State {
    State::new(Head::EMPTY, Catalog::default(), 0)
}

/// What the members of the batch being built write.
fn building(state: &mut State) -> Vec<u8> {
    let taken = state.take_batch();
    let members = taken.map_or_else(Vec::new, |taken| taken.members);
    members.iter().map(|m| m.proposal.commit.0[0]).collect()
}

#[test]
fn who_read_nothing_of_it_stands_behind_it() {
    let mut state = new();
    let _a = submit(&mut state, &[1], 1);
    let _b = submit(&mut state, &[1, 2], 2);
    let theirs = foreign(&state, &[7]);
    let rerun = state.adopt(std::slice::from_ref(&theirs), Vec::new(), 2);
    assert!(rerun.is_empty());
    assert_eq!(state.durable, theirs.head);
    assert_eq!(state.head.sequence, 3, "theirs, then ours");
    let taken = state.take_batch().unwrap();
    assert_eq!(taken.expected, theirs.head);
    let sequences: Vec<u64> = taken.members.iter().map(|m| m.head.sequence).collect();
    assert_eq!(sequences, [2, 3]);
    assert!(state.log_offset > 100, "their record is counted");
}

#[test]
fn who_read_what_it_wrote_runs_again_and_so_does_who_read_that() {
    let mut state = new();
    let _a = submit(&mut state, &[7], 1);
    let _b = submit(&mut state, &[1], 2);
    let _c = submit(&mut state, &[2], 3);
    let _d = submit(&mut state, &[5], 4);
    let theirs = foreign(&state, &[7]);
    let rerun = state.adopt(&[theirs], Vec::new(), 2);
    let again: Vec<u8> = rerun.iter().map(|m| m.proposal.commit.0[0]).collect();
    assert_eq!(again, [1, 2, 3]);
    assert_eq!(building(&mut state), [4]);
}

#[test]
fn a_batch_in_flight_comes_before_the_one_being_built() {
    let mut state = new();
    let _a = submit(&mut state, &[], 1);
    let in_flight = state.take_batch().unwrap().members;
    let _b = submit(&mut state, &[1], 2);
    let theirs = foreign(&state, &[9]);
    assert!(state.adopt(&[theirs], in_flight, 2).is_empty());
    assert_eq!(building(&mut state), [1, 2]);
}

#[test]
fn views_of_durable_states_stay_comparable_and_others_do_not() {
    let mut state = new();
    let durable = proposal(&state, &[5], 5);
    let _a = submit(&mut state, &[], 1);
    let pending = proposal(&state, &[5], 6);
    let stale = proposal(&state, &[7], 8);
    let theirs = foreign(&state, &[7]);
    state.adopt(&[theirs], Vec::new(), 2);
    assert!(matches!(
        state.submit(pending, 3).unwrap(),
        Submitted::Conflict(_)
    ));
    assert!(matches!(
        state.submit(durable, 3).unwrap(),
        Submitted::Accepted(_)
    ));
    let conflicting = Proposal {
        read_sequence: 0,
        epoch: 0,
        ..stale
    };
    assert!(matches!(
        state.submit(conflicting, 3).unwrap(),
        Submitted::Conflict(Some(_))
    ));
}

#[test]
fn without_anything_pending_the_epoch_goes_on() {
    let mut state = new();
    let epoch = state.epoch;
    let before = proposal(&state, &[5], 5);
    let theirs = foreign(&state, &[7]);
    state.adopt(&[theirs], Vec::new(), 2);
    assert_eq!(state.epoch, epoch);
    assert!(matches!(
        state.submit(before, 3).unwrap(),
        Submitted::Accepted(_)
    ));
}

/// A state in which this many documents are counted and this many may be.
fn limited(found: u64, limit: u64) -> State {
    let mut state = new();
    state.tally.set_quota(Quota {
        documents: Some(limit),
        bytes: None,
    });
    let number = state.tally.begin();
    assert!(state.tally.scan(number, 0, 0));
    state.tally.scanned(number, documents(found));
    state
}

fn documents(documents: u64) -> Usage {
    Usage {
        documents,
        bytes: documents * 3,
    }
}

#[test]
fn who_finds_no_room_behind_the_others_runs_again() {
    let mut state = limited(1, 4);
    let _a = submit(&mut state, &[], 1);
    let _b = submit(&mut state, &[], 2);
    assert_eq!(state.tally.usage(), Some(documents(1)), "none is durable");
    let mut theirs = foreign(&state, &[7]);
    theirs.change = documents(2).into();
    let rerun = state.adopt(&[theirs], Vec::new(), 2);
    let again: Vec<u8> = rerun.iter().map(|m| m.proposal.commit.0[0]).collect();
    assert_eq!(again, [2], "there was room for one");
    assert_eq!(building(&mut state), [1]);
    assert_eq!(state.tally.usage(), Some(documents(3)));
    let refused = state.submit(proposal(&state, &[], 3), 3).err().unwrap();
    assert!(
        matches!(refused, StoreError::QuotaExceeded { observed: 5, .. }),
        "{refused:?}"
    );
}

#[test]
fn a_reset_gives_room_back() {
    let mut state = limited(1, 2);
    let _a = submit(&mut state, &[], 1);
    assert!(state.submit(proposal(&state, &[], 2), 1).is_err());
    state.reset();
    let _b = submit(&mut state, &[], 2);
    let taken = state.take_batch().unwrap();
    state.settle(taken.batch.head, &taken.members);
    assert_eq!(state.tally.usage(), Some(documents(2)));
}

#[test]
fn after_a_gap_it_is_counted_again() {
    let mut state = limited(1, 9);
    let at = Head {
        sequence: 50,
        timestamp: 50,
        hash: [1; 32],
    };
    state.begin_anew(at, Catalog::default(), 0);
    assert_eq!(state.tally.usage(), None);
    let waits = state.submit(proposal(&state, &[], 2), 51).unwrap();
    assert!(matches!(waits, Submitted::Uncounted(_)));
}

/// What was relied on before the snapshot is compared with the commits up to that snapshot, and no others.
#[test]
fn what_was_relied_on_is_compared_with_what_came_since() {
    let mut state = new();
    let _one = submit(&mut state, &[], 1);
    let _two = submit(&mut state, &[], 2);
    let reads = |n| proposal(&new(), &[n], 0).reads;
    let touched = |state: &State, n, since, up_to| state.unchanged(&reads(n), since, up_to);
    assert_eq!(touched(&state, 1, (0, 0), 2), Err(Some(key(1))));
    assert_eq!(touched(&state, 2, (0, 0), 2), Err(Some(key(2))));
    assert_eq!(touched(&state, 2, (0, 0), 1), Ok(()), "it came later");
    assert_eq!(touched(&state, 1, (0, 1), 2), Ok(()), "it was seen");
    assert_eq!(touched(&state, 3, (0, 0), 2), Ok(()));
    // Thrown away: who saw the first of them saw what never was, and who did not did not.
    state.reset();
    assert_eq!(touched(&state, 3, (0, 1), 0), Err(None));
    assert_eq!(touched(&state, 1, (0, 0), 0), Ok(()));
    // Who relied on nothing does not mind, nor does anyone once nothing is remembered.
    assert_eq!(state.unchanged(&ReadSet::default(), (0, 1), 0), Ok(()));
    state.forget_commits(5);
    assert_eq!(touched(&state, 3, (1, 4), 5), Err(None));
    assert_eq!(touched(&state, 3, (1, 5), 5), Ok(()));
}
