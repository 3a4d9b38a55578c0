//! Sums and limits against a list of commits that is added up anew each time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;
use crate::engine::record::Write;

fn usage(documents: u64, bytes: u64) -> Usage {
    Usage { documents, bytes }
}

fn change(documents: i64, bytes: i64) -> Change {
    Change { documents, bytes }
}

/// A tally that has counted this much after commit 0.
fn counted(quota: Quota, found: Usage) -> Tally {
    let mut tally = Tally::default();
    tally.set_quota(quota);
    let number = tally.begin();
    assert!(tally.scan(number, 0, 0));
    tally.scanned(number, found);
    tally
}

/// Writes of one document whose body had and has these bytes.
fn one(before: Option<usize>, after: Option<usize>) -> Writes {
    let image = |bytes: Option<usize>| bytes.map(|bytes| Bytes::from(vec![b'x'; bytes]));
    let (before, after) = (image(before), image(after));
    let key = (Keyspace::Docs, Bytes::from_static(b"k"));
    Writes::unit(key, Write { before, after })
}

fn documents(limit: u64) -> Quota {
    Quota {
        documents: Some(limit),
        bytes: None,
    }
}

#[test]
fn writes_are_weighed_by_both_images() {
    let image = |bytes: usize| Some(Bytes::from(vec![b'x'; bytes]));
    let write = |before: Option<Bytes>, after: Option<Bytes>| Write { before, after };
    let all = [
        (Keyspace::Meta, "m", write(None, image(1_000))),
        (Keyspace::Docs, "inserted", write(None, image(10))),
        (Keyspace::Docs, "changed", write(image(100), image(70))),
        (Keyspace::Docs, "deleted", write(image(5), None)),
        (Keyspace::Docs, "come and gone", write(None, None)),
        (Keyspace::Index, "i", write(None, image(1_000))),
    ];
    let writes: Writes = all
        .into_iter()
        .map(|(space, key, write)| ((space, Bytes::from(key)), write))
        .collect();
    let expected = change(0, (8 + 10) - 30 - (7 + 5));
    assert_eq!(Change::of(&writes), expected);
    let logged = |space, key: &str, before, after| LoggedWrite {
        space,
        key: key.into(),
        before,
        after,
    };
    let inline = |bytes: usize| Image::Inline(Bytes::from(vec![b'x'; bytes]));
    let elsewhere = Image::Elsewhere {
        hash: [0; 32],
        size: 70_000,
    };
    let record = [
        logged(Keyspace::Meta, "m", Image::Absent, inline(1_000)),
        logged(Keyspace::Docs, "ab", Image::Absent, elsewhere),
        logged(Keyspace::Docs, "c", inline(7), inline(9)),
    ];
    assert_eq!(Change::of_record(&record), change(1, 70_002 + 2));
}

#[test]
fn nothing_is_weighed_while_nobody_wants_to_know() {
    let writes = one(None, Some(2));
    let mut tally = Tally::default();
    assert_eq!(tally.weigh(&writes), Change::default());
    assert!(!tally.must_count_for(&writes));
    tally.admit(change(1, 1)).unwrap();
    tally.set_quota(documents(1));
    assert_eq!(tally.weigh(&writes), change(1, 3));
    tally.set_quota(Quota::default());
    assert_eq!(tally.weigh(&writes), Change::default());
    tally.begin();
    assert_eq!(tally.weigh(&writes), change(1, 3));
}

#[test]
fn a_limit_is_reached_exactly_and_stands_in_the_way_of_growth_only() {
    let mut tally = counted(documents(3), usage(2, 500));
    tally.admit(change(1, 1_000_000)).unwrap();
    tally.note(1, change(1, 100));
    let refused = tally.admit(change(1, 1)).unwrap_err();
    let StoreError::QuotaExceeded {
        quota: "documents",
        limit: 3,
        observed: 4,
    } = refused
    else {
        panic!("{refused:?}");
    };
    tally.admit(change(0, 1_000_000)).unwrap();
    tally.admit(change(-1, -5)).unwrap();
    // A quota that is below what there is.
    tally.set_quota(Quota {
        documents: Some(1),
        bytes: Some(400),
    });
    tally.admit(change(-1, -5)).unwrap();
    tally.admit(change(0, 0)).unwrap();
    let grows = tally.admit(change(-1, 1)).unwrap_err();
    let StoreError::QuotaExceeded {
        quota: "storage_bytes",
        limit: 400,
        observed: 601,
    } = grows
    else {
        panic!("{grows:?}");
    };
    tally.set_quota(Quota::default());
    tally.admit(change(10, 10_000)).unwrap();
    assert_eq!(tally.usage(), None, "nothing is counted any more");
}

#[test]
fn growth_waits_for_the_count_and_nothing_else_does() {
    let mut tally = Tally::default();
    tally.set_quota(documents(5));
    for begun in [false, true] {
        if begun {
            tally.begin();
        }
        assert!(tally.must_count_for(&one(None, Some(1))));
        assert!(!tally.must_count_for(&one(Some(1), Some(9))));
        assert!(!tally.must_count_for(&one(Some(1), None)));
        let busy = tally.admit(change(1, 1)).unwrap_err();
        assert!(matches!(busy, StoreError::Storage(_)), "{busy:?}");
        tally.admit(change(-1, -1)).unwrap();
    }
}

#[test]
fn a_count_that_was_replaced_or_forgotten_finds_nothing() {
    let mut tally = Tally::default();
    let first = tally.begin();
    let second = tally.begin();
    assert!(!tally.scan(first, 0, 0));
    assert!(tally.scan(second, 0, 0));
    tally.scanned(first, usage(7, 7));
    assert_eq!(tally.usage(), None);
    tally.forget();
    tally.scanned(second, usage(7, 7));
    assert_eq!(tally.usage(), None);
}

/// What can happen to a tenant.
#[derive(Clone, Debug)]
enum Step {
    Accept(i64, i64),
    /// This many of the accepted commits become durable.
    Settle(usize),
    Reset,
    /// Another server commits, when nothing is pending here.
    Foreign(i64, i64),
    Begin,
    /// The snapshot has this many of the accepted commits beside the durable ones.
    Scan(usize),
    Scanned,
    Forget,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pair = (-3..5i64, -50..100i64);
    let step = prop_oneof![
        6 => pair.clone().prop_map(|(d, b)| Step::Accept(d, b)),
        3 => (0..4usize).prop_map(Step::Settle),
        1 => Just(Step::Reset),
        1 => pair.prop_map(|(d, b)| Step::Foreign(d, b)),
        1 => Just(Step::Begin),
        1 => (0..3usize).prop_map(Step::Scan),
        2 => Just(Step::Scanned),
        1 => Just(Step::Forget),
    ];
    proptest::collection::vec(step, 0..60)
}

/// The truth: every commit, in order, and what a count that is going on has to find.
#[derive(Default)]
struct Model {
    commits: Vec<Change>,
    durable: usize,
    /// Number of the count and the accepted commits at its begin.
    begun: Option<(u64, usize)>,
    /// The commits in the snapshot that is scanned.
    scanned: Option<usize>,
}

impl Model {
    fn sum(&self, commits: usize) -> Change {
        let some = self.commits[..commits].iter().copied();
        some.fold(Change::default(), Change::plus)
    }

    fn accept(&mut self, tally: &mut Tally, change: Change) {
        self.commits.push(change);
        tally.note(self.commits.len() as u64, change);
    }

    fn settle(&mut self, tally: &mut Tally, commits: usize) {
        self.durable = (self.durable + commits).min(self.commits.len());
        tally.settle(self.durable as u64);
    }

    fn apply(&mut self, tally: &mut Tally, step: &Step) {
        match *step {
            Step::Accept(documents, bytes) => self.accept(tally, change(documents, bytes)),
            Step::Settle(commits) => self.settle(tally, commits),
            Step::Reset => {
                // What a snapshot shows is not thrown away.
                self.durable = self.durable.max(self.scanned.unwrap_or(0));
                self.commits.truncate(self.durable);
                tally.reset(self.durable as u64);
                if let Some((_, accepted)) = &mut self.begun {
                    *accepted = (*accepted).min(self.durable);
                }
            }
            Step::Foreign(documents, bytes) => {
                self.apply(tally, &Step::Reset);
                self.accept(tally, change(documents, bytes));
                self.settle(tally, 1);
            }
            Step::Begin => {
                self.begun = Some((tally.begin(), self.commits.len()));
                self.scanned = None;
            }
            Step::Scan(ahead) => self.scan(tally, ahead),
            Step::Scanned => {
                if let (Some((number, _)), Some(commits)) = (self.begun, self.scanned.take()) {
                    tally.scanned(number, self.sum(commits).into());
                    // What a snapshot shows is durable, whether the state was told of it or not.
                    self.durable = self.durable.max(commits);
                    self.begun = None;
                    assert!(tally.usage().is_some());
                }
            }
            Step::Forget => {
                tally.forget();
                (self.begun, self.scanned) = (None, None);
            }
        }
    }

    fn scan(&mut self, tally: &mut Tally, ahead: usize) {
        let commits = (self.durable + ahead).min(self.commits.len());
        // As `quota::count` does: not before what was accepted at its begin is durable.
        let ready = |(_, accepted): &(u64, usize)| *accepted <= commits;
        if let (Some((number, _)), None) = (self.begun.filter(ready), self.scanned) {
            assert!(tally.scan(number, commits as u64, self.durable as u64));
            self.scanned = Some(commits);
        }
    }
}

proptest! {
    /// Whatever is accepted, settled, thrown away or comes from others around a count, it ends with the truth. Sums
    /// stay above zero, as those of real documents do.
    #[test]
    fn a_count_finds_the_truth(steps in steps()) {
        let mut tally = Tally::default();
        let mut model = Model::default();
        model.accept(&mut tally, change(1_000, 100_000));
        model.settle(&mut tally, 1);
        for step in &steps {
            model.apply(&mut tally, step);
            let Some(found) = tally.usage() else { continue };
            prop_assert_eq!(found, Usage::from(model.sum(model.durable)));
            let newest = tally.count.as_ref().unwrap().newest;
            prop_assert_eq!(newest, model.sum(model.commits.len()));
        }
    }
}
