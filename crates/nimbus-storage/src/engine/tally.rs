//! What a tenant holds and what it may hold, kept up to date with its commits.
//!
//! Part of the state of an open tenant, under its lock: it does no I/O, and how documents are counted in storage
//! is not known here (see `quota`). While nothing is limited and nobody asked, it does nothing at all.

use std::collections::VecDeque;

use bytes::Bytes;

use super::quota::{Quota, Usage};
use super::record::{Image, LoggedWrite};
use super::state::Writes;
use crate::error::{StoreError, StoreResult};
use crate::provider::{Keyspace, ProviderError};

/// A difference in what a tenant holds, or a sum of such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    documents: i64,
    /// Bytes of keys and values.
    bytes: i64,
}

impl Change {
    /// What a transaction changes.
    pub(crate) fn of(writes: &Writes) -> Change {
        let first = (Keyspace::Docs, Bytes::new());
        let documents = writes
            .range(first..)
            .take_while(|((space, _), _)| *space == Keyspace::Docs);
        documents.fold(Change::default(), |sum, ((_, key), write)| {
            let length = |value: &Option<Bytes>| value.as_ref().map(|value| value.len() as u64);
            sum.plus(Change::from_to(
                key.len() as u64,
                length(&write.before),
                length(&write.after),
            ))
        })
    }

    /// What a commit changed, by its record.
    pub(crate) fn of_record(writes: &[LoggedWrite]) -> Change {
        let documents = writes.iter().filter(|write| write.space == Keyspace::Docs);
        documents.fold(Change::default(), |sum, write| {
            sum.plus(Change::from_to(
                write.key.len() as u64,
                size(&write.before),
                size(&write.after),
            ))
        })
    }

    /// One document whose body had and has these bytes; `None` where there is no document.
    fn from_to(key: u64, before: Option<u64>, after: Option<u64>) -> Change {
        let one = |body: Option<u64>| match body {
            Some(body) => Change {
                documents: 1,
                bytes: signed(key + body),
            },
            None => Change::default(),
        };
        one(after).minus(one(before))
    }

    fn plus(self, other: Change) -> Change {
        Change {
            documents: self.documents.saturating_add(other.documents),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn minus(self, other: Change) -> Change {
        Change {
            documents: self.documents.saturating_sub(other.documents),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl From<Usage> for Change {
    fn from(usage: Usage) -> Change {
        Change {
            documents: signed(usage.documents),
            bytes: signed(usage.bytes),
        }
    }
}

impl From<Change> for Usage {
    fn from(sum: Change) -> Usage {
        Usage {
            documents: u64::try_from(sum.documents).unwrap_or(0),
            bytes: u64::try_from(sum.bytes).unwrap_or(0),
        }
    }
}

fn size(image: &Image) -> Option<u64> {
    match image {
        Image::Absent => None,
        Image::Inline(value) => Some(value.len() as u64),
        Image::Elsewhere { size, .. } => Some(*size),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A count of what there is: one scan of one snapshot, and what was committed since.
#[derive(Debug)]
struct Count {
    /// Tells counts of one tenant apart.
    number: u64,
    /// The newest commit in the snapshot that is scanned, once there is one.
    scanned: Option<u64>,
    /// Whether the scan is done. Until then the sums below lack what it finds.
    known: bool,
    /// What there is after the newest durable commit.
    durable: Change,
    /// What there is after the newest accepted commit.
    newest: Change,
    /// Changes of commits that are in neither the snapshot nor `durable`, ascending.
    pending: VecDeque<(u64, Change)>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    quota: Quota,
    count: Option<Count>,
    counts: u64,
}

impl Tally {
    /// Once there is no limit any more nothing is counted either.
    pub(crate) fn set_quota(&mut self, quota: Quota) {
        let before = std::mem::replace(&mut self.quota, quota);
        if quota == Quota::default() && before != quota {
            self.count = None;
        }
    }

    /// What there is after the newest durable commit, if it is known.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.known().map(|count| count.durable.into())
    }

    fn known(&self) -> Option<&Count> {
        self.count.as_ref().filter(|count| count.known)
    }

    /// What a transaction would change; nothing while nobody wants to know.
    pub(crate) fn weigh(&self, writes: &Writes) -> Change {
        match self.count.is_some() || self.quota != Quota::default() {
            true => Change::of(writes),
            false => Change::default(),
        }
    }

    /// Whether it must be counted before it can be said whether there is room for what a transaction writes.
    pub(crate) fn must_count_for(&self, writes: &Writes) -> bool {
        self.known().is_none() && self.limits_on(self.weigh(writes)).next().is_some()
    }

    /// Whether there is room for a change, beside everything that is accepted.
    ///
    /// # Errors
    /// `QuotaExceeded`; `Storage` (busy) if it is not known what there is.
    pub(crate) fn admit(&self, change: Change) -> StoreResult<()> {
        for (quota, limit, of) in self.limits_on(change) {
            let count = self.known().ok_or_else(not_counted)?;
            let observed = u64::try_from(of(count.newest.plus(change))).unwrap_or(0);
            if observed > limit {
                return Err(StoreError::QuotaExceeded {
                    quota,
                    limit,
                    observed,
                });
            }
        }
        Ok(())
    }

    /// The limits of what a change makes more of: nothing else can break them.
    fn limits_on(
        &self,
        change: Change,
    ) -> impl Iterator<Item = (&'static str, u64, fn(Change) -> i64)> {
        let documents: fn(Change) -> i64 = |sum| sum.documents;
        let bytes: fn(Change) -> i64 = |sum| sum.bytes;
        let limits = [
            ("documents", self.quota.documents, documents),
            ("storage_bytes", self.quota.bytes, bytes),
        ];
        limits
            .into_iter()
            .filter_map(move |(quota, limit, of)| Some((quota, limit?, of)))
            .filter(move |(_, _, of)| of(change) > 0)
    }

    /// A commit was accepted, or came from another server.
    pub(crate) fn note(&mut self, sequence: u64, change: Change) {
        let Some(count) = &mut self.count else { return };
        let seen = count.scanned.is_some_and(|scanned| sequence <= scanned);
        if seen || change == Change::default() {
            return;
        }
        count.newest = count.newest.plus(change);
        count.pending.push_back((sequence, change));
    }

    /// Commits up to this one are durable.
    pub(crate) fn settle(&mut self, durable: u64) {
        // Before there is a snapshot it is not known which of them it has.
        let Some(count) = self.count.as_mut().filter(|count| count.scanned.is_some()) else {
            return;
        };
        while let Some((_, change)) = count.pending.pop_front_if(|(at, _)| *at <= durable) {
            count.durable = count.durable.plus(change);
        }
    }

    /// Commits after this one are thrown away.
    pub(crate) fn reset(&mut self, durable: u64) {
        let Some(count) = &mut self.count else { return };
        while let Some((_, change)) = count.pending.pop_back_if(|(at, _)| *at > durable) {
            count.newest = count.newest.minus(change);
        }
    }

    /// It is not known what happened: whoever wants to know counts again.
    pub(crate) fn forget(&mut self) {
        self.count = None;
    }

    /// Begins a count; its number. Commits that are accepted from now on are noted.
    pub(crate) fn begin(&mut self) -> u64 {
        self.counts += 1;
        self.count = Some(Count {
            number: self.counts,
            scanned: None,
            known: false,
            durable: Change::default(),
            newest: Change::default(),
            pending: VecDeque::new(),
        });
        self.counts
    }

    /// The snapshot that is to be scanned shows the commits up to `scanned`, and none that was accepted before the
    /// count began is missing in it. `false`: the count is not wanted any more.
    pub(crate) fn scan(&mut self, number: u64, scanned: u64, durable: u64) -> bool {
        let Some(count) = self.counting(number) else {
            return false;
        };
        count.scanned = Some(scanned);
        count.pending.retain(|(at, _)| *at > scanned);
        let changes = count.pending.iter().map(|(_, change)| *change);
        count.newest = changes.fold(Change::default(), Change::plus);
        self.settle(durable);
        true
    }

    /// What the scan found.
    pub(crate) fn scanned(&mut self, number: u64, found: Usage) {
        if let Some(count) = self.counting(number) {
            count.durable = count.durable.plus(found.into());
            count.newest = count.newest.plus(found.into());
            count.known = true;
        }
    }

    fn counting(&mut self, number: u64) -> Option<&mut Count> {
        self.count.as_mut().filter(|count| count.number == number)
    }
}

/// Nothing was written, and what is missing is being found out.
pub(crate) fn not_counted() -> StoreError {
    let what = "what the tenant holds is still being counted, for its quota".into();
    StoreError::Storage(ProviderError::Busy { what })
}

#[cfg(test)]
#[path = "tally_tests.rs"]
mod tests;
