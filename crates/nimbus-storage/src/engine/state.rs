//! The memory of an open tenant: what is validated, what is durable, and what lies between.
//!
//! Everything here is guarded by one short-held mutex and does no I/O. Validation happens
//! here (optimistic concurrency, Kung and Robinson 1981): a proposal is accepted when nothing
//! committed since its snapshot wrote a key that it read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::catalog::Catalog;
use super::function::CommitStamp;
use super::overlay::{Overlay, Pending};
use super::readset::{ReadSet, SpaceKey};
use super::record::{self, RecordFront, Write};
use super::tally::Tally;
use crate::error::{CommitId, StoreError, StoreResult};
use crate::provider::{Batch, Head, Keyspace};

/// Transactions that one provider batch may carry (design section 3).
pub(crate) const BATCH_MEMBERS: usize = 256;
/// Bytes that one provider batch may carry before it is closed.
pub(crate) const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Commits whose written keys stay in memory for validation.
const RING_COMMITS: usize = 8_192;
/// Keys that the ring may hold in all.
const RING_KEYS: usize = 262_144;

/// How a member of a batch ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Durable, under this sequence and time.
    Durable(CommitStamp),
    /// Nothing was written, and the same transaction may run again.
    Rerun,
    /// Nothing was written, or it is unknown; the error says.
    Failed(StoreError),
}

/// Writes with images, in key order; cheap to clone, as savepoints do.
pub(crate) type Writes = imbl::OrdMap<SpaceKey, Write>;

/// A transaction that asks to be committed.
pub(crate) struct Proposal {
    /// Newest commit that the reads saw.
    pub(crate) read_sequence: u64,
    /// Epoch of the state that it read; see [`State::epoch`].
    pub(crate) epoch: u64,
    pub(crate) reads: ReadSet,
    pub(crate) writes: Writes,
    /// The record's `writes` array, rendered before the lock is taken.
    pub(crate) rendered: String,
    pub(crate) commit: CommitId,
    pub(crate) execution: Option<String>,
    /// Maintenance writes (backfill, pruning) take no sequence and no record: nothing reads
    /// them until a later commit says that they are complete.
    pub(crate) maintenance: bool,
}

impl Proposal {
    pub(crate) fn size(&self) -> usize {
        let values: usize = self
            .writes
            .iter()
            .map(|((_, k), w)| k.len() + w.after.as_ref().map_or(0, Bytes::len) + 16)
            .sum();
        values + self.rendered.len()
    }
}

/// A validated member of the batch being built or written.
pub(crate) struct Member {
    pub(crate) proposal: Proposal,
    /// The head once this member is applied.
    pub(crate) head: Head,
    pub(super) record: Option<String>,
    pub(crate) reply: oneshot::Sender<Outcome>,
}

/// What one accepted commit wrote, kept for validation and for live queries.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) sequence: u64,
    pub(crate) keys: Arc<[SpaceKey]>,
}

/// Answer to [`State::submit`].
pub(crate) enum Submitted {
    /// Validated and in the batch; the receiver tells when it is durable.
    Accepted(oneshot::Receiver<Outcome>),
    /// Something read was written since: this key, if it is known which.
    Conflict(Option<SpaceKey>),
    /// The batch is full; try again once it was taken.
    Wait(Proposal),
    /// It makes more of what is limited, and it is not known what there is; try again once it was counted.
    Uncounted(Proposal),
    /// The tenant takes no more commits.
    Closed,
}

/// A batch taken by the committer.
pub(crate) struct TakenBatch {
    pub(crate) expected: Head,
    pub(crate) batch: Batch,
    pub(crate) members: Vec<Member>,
}

impl TakenBatch {
    /// Members that cannot be written.
    pub(crate) fn of(durable: Head, members: Vec<Member>) -> TakenBatch {
        flatten(durable, members)
    }
}

/// See the module documentation.
pub(crate) struct State {
    /// Newest validated commit.
    pub(crate) head: Head,
    /// Newest durable commit.
    pub(crate) durable: Head,
    /// Counts the times that validated commits were thrown away; readers of an older epoch
    /// may have seen something that never happened.
    pub(crate) epoch: u64,
    pub(crate) overlay: Overlay,
    /// Catalog per first sequence, ascending; always one at or below `durable`.
    pub(super) catalogs: VecDeque<(u64, Arc<Catalog>)>,
    ring: VecDeque<Committed>,
    ring_keys: usize,
    /// Commits above this one are all in the ring.
    ring_floor: u64,
    pub(super) building: Vec<Member>,
    pub(super) building_bytes: usize,
    /// Log bytes written up to `head`.
    pub(crate) log_offset: u64,
    pub(super) durable_log_offset: u64,
    /// Epochs that ended, ascending, each with the newest durable commit of its end.
    pub(super) ended: VecDeque<(u64, u64)>,
    pub(crate) closed: bool,
    /// The members of a refused batch are being committed one by one: whatever was numbered
    /// meanwhile would stand between them in the chain, so it waits.
    pub(crate) one_by_one: bool,
    /// Validation off lets the history checker's own test see planted anomalies.
    pub(crate) validate: bool,
    /// What the tenant holds and may hold.
    pub(crate) tally: Tally,
}

impl State {
    pub(crate) fn new(head: Head, catalog: Catalog, log_offset: u64) -> State {
        State {
            head,
            durable: head,
            epoch: 0,
            overlay: Overlay::default(),
            catalogs: VecDeque::from([(head.sequence, Arc::new(catalog))]),
            ring: VecDeque::new(),
            ring_keys: 0,
            ring_floor: head.sequence,
            building: Vec::new(),
            building_bytes: 0,
            log_offset,
            durable_log_offset: log_offset,
            ended: VecDeque::new(),
            closed: false,
            one_by_one: false,
            validate: true,
            tally: Tally::default(),
        }
    }

    /// The catalog as of `sequence`, if it is still known.
    pub(crate) fn catalog_at(&self, sequence: u64) -> Option<Arc<Catalog>> {
        self.catalogs
            .iter()
            .rev()
            .find(|(from, _)| *from <= sequence)
            .map(|(_, c)| c.clone())
    }

    /// The catalog of the newest validated commit.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalogs
            .back()
            .map(|(_, c)| c.clone())
            .unwrap_or_default()
    }

    /// Whether a commit after `sequence` wrote a key in `reads`.
    /// A snapshot older than the ring counts as a conflict, never as none.
    pub(crate) fn conflicts(&self, reads: &ReadSet, sequence: u64) -> bool {
        sequence < self.ring_floor || self.touched(reads, sequence).is_some()
    }

    /// A key in `reads` that a commit after `sequence` wrote, among those still in the ring.
    pub(crate) fn touched(&self, reads: &ReadSet, sequence: u64) -> Option<&SpaceKey> {
        self.touched_between(reads, sequence, u64::MAX)
    }

    /// As [`State::touched`], by commits up to `up_to`.
    pub(super) fn touched_between(
        &self,
        reads: &ReadSet,
        sequence: u64,
        up_to: u64,
    ) -> Option<&SpaceKey> {
        self.ring
            .iter()
            .rev()
            .skip_while(|c| c.sequence > up_to)
            .take_while(|c| c.sequence > sequence)
            .find_map(|c| c.keys.iter().find(|k| reads.contains(k)))
    }

    /// Validates a proposal and, if it stands, numbers it and adds it to the batch.
    ///
    /// # Errors
    /// [`StoreError::QuotaExceeded`]; [`StoreError::Corrupt`] if a written meta row does not decode.
    pub(crate) fn submit(&mut self, proposal: Proposal, now_ns: u64) -> StoreResult<Submitted> {
        if self.closed {
            return Ok(Submitted::Closed);
        }
        if self.one_by_one
            || self.building.len() >= BATCH_MEMBERS
            || (!self.building.is_empty() && self.building_bytes + proposal.size() > BATCH_BYTES)
        {
            return Ok(Submitted::Wait(proposal));
        }
        if self.validate
            && (!self.comparable(proposal.epoch, proposal.read_sequence)
                || self.conflicts(&proposal.reads, proposal.read_sequence))
        {
            let touched = self.touched(&proposal.reads, proposal.read_sequence);
            return Ok(Submitted::Conflict(touched.cloned()));
        }
        if self.tally.must_count_for(&proposal.writes) {
            return Ok(Submitted::Uncounted(proposal));
        }
        let (reply, receiver) = oneshot::channel();
        let record = if proposal.maintenance {
            None
        } else {
            Some(self.accept(&proposal, now_ns)?)
        };
        self.building_bytes += proposal.size();
        self.building.push(Member {
            proposal,
            head: self.head,
            record,
            reply,
        });
        Ok(Submitted::Accepted(receiver))
    }

    /// Numbers a proposal and makes it visible to later transactions; returns its record.
    ///
    /// # Errors
    /// As [`State::submit`], and busy if it is not known what the tenant holds. Then nothing changed.
    pub(super) fn accept(&mut self, proposal: &Proposal, now_ns: u64) -> StoreResult<String> {
        let change = self.tally.weigh(&proposal.writes);
        self.tally.admit(change)?;
        let catalog = self.catalog_after(proposal)?;
        let sequence = self.head.sequence + 1;
        let timestamp = now_ns.max(self.head.timestamp + 1);
        let (text, hash) = record::render(
            &RecordFront {
                sequence,
                timestamp,
                commit: proposal.commit,
                execution: proposal.execution.as_deref(),
                previous: self.head.hash,
                offset: self.log_offset,
            },
            &proposal.rendered,
        );
        self.log_offset += text.len() as u64;
        self.head = Head {
            sequence,
            timestamp,
            hash,
        };
        if let Some(catalog) = catalog {
            self.catalogs.push_back((sequence, catalog));
        }
        self.tally.note(sequence, change);
        for (key, write) in &proposal.writes {
            self.overlay.insert(
                key.clone(),
                Pending {
                    sequence,
                    value: write.after.clone(),
                },
            );
        }
        self.remember(Committed {
            sequence,
            keys: proposal.writes.keys().cloned().collect(),
        });
        Ok(text)
    }

    fn catalog_after(&self, proposal: &Proposal) -> StoreResult<Option<Arc<Catalog>>> {
        let mut rows = proposal
            .writes
            .iter()
            .filter(|((space, key), _)| *space == Keyspace::Meta && Catalog::owns(key))
            .peekable();
        if rows.peek().is_none() {
            return Ok(None);
        }
        let mut catalog = Catalog::clone(&self.catalog());
        for ((_, key), write) in rows {
            catalog.apply(key, write.after.as_deref())?;
        }
        Ok(Some(Arc::new(catalog)))
    }

    pub(super) fn remember(&mut self, committed: Committed) {
        self.ring_keys += committed.keys.len();
        self.ring.push_back(committed);
        while self.ring.len() > RING_COMMITS || (self.ring_keys > RING_KEYS && self.ring.len() > 1)
        {
            if let Some(old) = self.ring.pop_front() {
                self.ring_keys -= old.keys.len();
                self.ring_floor = old.sequence;
            }
        }
    }

    /// Forgets what commits up to `floor` wrote: whoever read an older state conflicts.
    pub(super) fn forget_commits(&mut self, floor: u64) {
        self.ring.clear();
        self.ring_keys = 0;
        self.ring_floor = floor;
    }

    /// Takes the batch that was built so far, if any, as one provider batch.
    pub(crate) fn take_batch(&mut self) -> Option<TakenBatch> {
        if self.building.is_empty() {
            return None;
        }
        let members = std::mem::take(&mut self.building);
        self.building_bytes = 0;
        Some(flatten(self.durable, members))
    }

    /// Whether every commit after `sequence` is still in the ring.
    pub(crate) fn covers(&self, sequence: u64) -> bool {
        sequence >= self.ring_floor
    }

    /// Commits between two sequences, for live queries.
    pub(crate) fn committed_between(&self, after: u64, up_to: u64) -> Vec<Committed> {
        self.ring
            .iter()
            .filter(|c| c.sequence > after && c.sequence <= up_to)
            .cloned()
            .collect()
    }

    /// Marks everything up to `head` as durable and forgets what only bridged the gap.
    pub(crate) fn settle(&mut self, head: Head, members: &[Member]) {
        self.durable = head;
        self.tally.settle(head.sequence);
        for member in members.iter().filter(|m| !m.proposal.maintenance) {
            for key in member.proposal.writes.keys() {
                self.overlay.settle(key, head.sequence);
            }
            if let Some(record) = &member.record {
                self.durable_log_offset += record.len() as u64;
            }
        }
        self.forget_catalogs();
    }

    /// Forgets the catalogs that the newest durable one replaced.
    pub(super) fn forget_catalogs(&mut self) {
        while self.catalogs.len() > 1 && self.catalogs[1].0 <= self.durable.sequence {
            self.catalogs.pop_front();
        }
    }

    /// Throws away everything validated but not durable, and the batch being built.
    /// Returns the members of that batch.
    pub(crate) fn reset(&mut self) -> Vec<Member> {
        self.head = self.durable;
        self.end_epoch();
        self.overlay.clear();
        self.log_offset = self.durable_log_offset;
        let durable = self.durable.sequence;
        self.tally.reset(durable);
        self.catalogs.retain(|(from, _)| *from <= durable);
        while self.ring.back().is_some_and(|c| c.sequence > durable) {
            if let Some(dropped) = self.ring.pop_back() {
                self.ring_keys -= dropped.keys.len();
            }
        }
        self.building_bytes = 0;
        std::mem::take(&mut self.building)
    }

    /// After a reset: validates a member again, alone, and makes a batch of it. Its reads must
    /// be of durable state only. A member that conflicts, or for which there is no room any more, comes back as
    /// `Err`, to be run again.
    pub(crate) fn resubmit(
        &mut self,
        mut member: Member,
        now_ns: u64,
    ) -> Result<TakenBatch, Box<Member>> {
        if self.conflicts(&member.proposal.reads, member.proposal.read_sequence) {
            return Err(Box::new(member));
        }
        if !member.proposal.maintenance {
            match self.accept(&member.proposal, now_ns) {
                Ok(record) => member.record = Some(record),
                Err(_) => return Err(Box::new(member)),
            }
        }
        member.head = self.head;
        Ok(flatten(self.durable, vec![member]))
    }
}

/// Lays the members' writes and records over each other, in order.
fn flatten(expected: Head, members: Vec<Member>) -> TakenBatch {
    let mut writes = BTreeMap::new();
    let mut head = expected;
    for member in &members {
        for ((space, key), write) in &member.proposal.writes {
            writes.insert((*space, key.to_vec()), write.after.clone());
        }
        if let Some(record) = &member.record {
            head = member.head;
            for (key, part) in record::parts(head.sequence, record.as_bytes()) {
                writes.insert((Keyspace::Log, key), Some(part));
            }
        }
    }
    TakenBatch {
        expected,
        batch: Batch { head, writes },
        members,
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
