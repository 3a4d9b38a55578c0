//! Histories of list appends and transfers, in the style of Elle: many clients run transactions on a few
//! documents, and what they were told is judged afterwards without any help from the store.
//!
//! Each document has a list and a balance. An append puts an element that nobody else uses to the end of a list,
//! so a list that somebody read tells which writes were before it, and in which order. A transfer appends the
//! same element to two lists and moves an amount between the two balances, so that each balance follows from
//! its list. From this the dependencies between transactions follow, and a cycle among them is an anomaly.
//!
//! `history` looks at queries and phantoms instead, and believes the journal; nothing here reads the journal.

mod check;
mod clients;
mod cycles;
mod planted;
mod rounds;
mod transact;

use std::fmt;

pub use planted::planted_anomalies_are_found;
pub use rounds::hold;

/// What an append or a transfer puts to the end of a list: a number that is used once in a history.
pub type Element = u32;

/// Which document, counted from 0 in each history.
pub type Key = usize;

/// What a document held when a transaction looked at it, the transaction's own writes included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub list: Vec<Element>,
    pub balance: i64,
}

/// What a transaction put on a document that it looked at.
#[derive(Clone, Copy, Debug)]
pub struct Put {
    pub element: Element,
    /// What it added to the balance; 0 for an append.
    pub amount: i64,
}

/// One look at one document, with a write to it or without.
#[derive(Clone, Debug)]
pub struct Step {
    pub key: Key,
    pub seen: Seen,
    pub put: Option<Put>,
}

/// A transaction as its client knows it.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Which client, and what it did.
    pub label: String,
    /// Moments of the clock that all clients share: before it began, and after its answer had come.
    pub began: u64,
    pub ended: u64,
    /// The answer: committed, or else that it conflicted and left nothing.
    pub committed: bool,
    pub steps: Vec<Step>,
    /// Single reads, appends and transfers. A transfer counts once, though it is two steps.
    pub operations: usize,
}

/// What there is to judge.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub told: Vec<Told>,
    /// The documents at the end, when every client had its answer.
    pub last: Vec<Seen>,
    /// The balance that each document began with.
    pub initial: i64,
}

impl History {
    /// Single reads, appends and transfers of transactions that committed.
    pub fn operations(&self) -> usize {
        let committed = self.told.iter().filter(|told| told.committed);
        committed.map(|told| told.operations).sum()
    }
}

/// What a history contradicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An acknowledged write is not in the list, and not because another one took its place.
    LostAppend,
    /// An acknowledged write was overwritten by one that had not seen it.
    LostUpdate,
    /// An element is in a list twice.
    DuplicatedAppend,
    /// A write is seen whose client was told that nothing was written.
    RefusedAppend,
    /// An element is seen that nobody wrote.
    InventedElement,
    /// A list was read that is no beginning of the list at the end: two orders of one document's writes.
    ForkedList,
    /// A transaction's writes to a document were seen in part.
    IntermediateRead,
    /// Two looks at one document in one transaction differ by more than its own writes.
    UnrepeatableRead,
    /// A balance does not follow from the list beside it.
    WrongBalance,
    /// The sum of all balances changed.
    MoneyCreated,
    /// Writes of two transactions are in one order here and in the other there (Adya's G0).
    DirtyWrite,
    /// Two transactions have seen each other's writes (G1c).
    CircularInformation,
    /// A transaction saw part of what another one wrote, or a state that never was (G-single).
    ReadSkew,
    /// Each of several transactions missed what another one wrote (G2).
    WriteSkew,
    /// Only the order in time contradicts: what was acknowledged before it began was not seen.
    StaleRead,
}

/// Something that no order of the transactions explains.
#[derive(Clone, Debug)]
pub struct Anomaly {
    pub kind: Kind,
    pub what: String,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}
