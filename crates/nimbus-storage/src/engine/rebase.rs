//! Commits of other servers in the memory of an open tenant: they go in front of whatever is validated here
//! and not durable, and that is validated against them.
//!
//! Does no I/O and does not know where such commits come from; see `follow`.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::catalog::Catalog;
use super::readset::{ReadSet, SpaceKey};
use super::state::{Committed, Member, State};
use super::tally::Change;
use crate::provider::Head;

/// Ends of epochs that are remembered.
const ENDED_EPOCHS: usize = 64;

/// A durable commit of another server.
pub(crate) struct Foreign {
    /// The head after it.
    pub(crate) head: Head,
    /// What it wrote, index entries included.
    pub(crate) keys: Arc<[SpaceKey]>,
    /// The catalog after it, if it changed.
    pub(crate) catalog: Option<Arc<Catalog>>,
    /// Bytes of its record.
    pub(crate) size: u64,
    /// How it changed what the tenant holds.
    pub(crate) change: Change,
}

impl State {
    /// Ends the epoch: what is validated and not durable is numbered anew, or never becomes durable.
    pub(super) fn end_epoch(&mut self) {
        self.ended.push_back((self.epoch, self.durable.sequence));
        if self.ended.len() > ENDED_EPOCHS {
            self.ended.pop_front();
        }
        self.epoch += 1;
    }

    /// Whether a sequence read in an epoch still means the same commit: nothing after it that was
    /// thrown away or numbered anew was read.
    pub(crate) fn comparable(&self, epoch: u64, sequence: u64) -> bool {
        if epoch == self.epoch {
            return true;
        }
        let end = self.ended.iter().find(|(ended, _)| *ended == epoch);
        end.is_some_and(|(_, durable)| sequence <= *durable)
    }

    /// Whether what was read after the commit `sequence` of an epoch is so after the commit `up_to` of this
    /// one; if not, the key that changed, if it is known which.
    pub(crate) fn unchanged(
        &self,
        reads: &ReadSet,
        (epoch, sequence): (u64, u64),
        up_to: u64,
    ) -> Result<(), Option<SpaceKey>> {
        if reads.is_empty() || !self.validate {
            return Ok(());
        }
        if !self.comparable(epoch, sequence) || !self.covers(sequence) {
            return Err(None);
        }
        match self.touched_between(reads, sequence, up_to) {
            None => Ok(()),
            Some(key) => Err(Some(key.clone())),
        }
    }

    /// Takes in commits of others that follow the newest durable one. `in_flight` are the members of a
    /// batch that was not written because of them. Those that still stand are numbered behind them and
    /// are in the batch being built, the others come back, to be run again.
    pub(crate) fn adopt(
        &mut self,
        commits: &[Foreign],
        in_flight: Vec<Member>,
        now_ns: u64,
    ) -> Vec<Member> {
        let durable_before = self.durable.sequence;
        let mut pending = in_flight;
        if self.head != self.durable || !pending.is_empty() || !self.building.is_empty() {
            pending.extend(self.reset());
        }
        for commit in commits {
            self.durable = commit.head;
            self.durable_log_offset += commit.size;
            self.tally.note(commit.head.sequence, commit.change);
            if let Some(catalog) = &commit.catalog {
                self.catalogs
                    .push_back((commit.head.sequence, catalog.clone()));
            }
            self.remember(Committed {
                sequence: commit.head.sequence,
                keys: commit.keys.clone(),
            });
        }
        self.head = self.durable;
        self.tally.settle(self.durable.sequence);
        self.log_offset = self.durable_log_offset;
        self.forget_catalogs();
        self.renumber(pending, commits, durable_before, now_ns)
    }

    /// Goes on from a durable state of which it is not known how it came to be. Returns the members of the
    /// batch that was being built.
    pub(crate) fn begin_anew(
        &mut self,
        head: Head,
        catalog: Catalog,
        log_offset: u64,
    ) -> Vec<Member> {
        let waiting = self.reset();
        self.durable = head;
        self.head = head;
        self.durable_log_offset = log_offset;
        self.log_offset = log_offset;
        self.catalogs = VecDeque::from([(head.sequence, Arc::new(catalog))]);
        self.forget_commits(head.sequence);
        self.tally.forget();
        waiting
    }

    /// Accepts again what neither these commits nor a member that falls out touched.
    fn renumber(
        &mut self,
        pending: Vec<Member>,
        commits: &[Foreign],
        durable_before: u64,
        now_ns: u64,
    ) -> Vec<Member> {
        let mut written: HashSet<SpaceKey> = commits
            .iter()
            .flat_map(|commit| commit.keys.iter().cloned())
            .collect();
        let mut rerun = Vec::new();
        for mut member in pending {
            let reads = &member.proposal.reads;
            let stands = !self.validate || !written.iter().any(|key| reads.contains(key));
            // A sequence that it read may name another commit now: the newest one stands for all.
            if member.proposal.read_sequence > durable_before {
                member.proposal.read_sequence = self.head.sequence;
            }
            member.proposal.epoch = self.epoch;
            if !stands || self.take_again(&mut member, now_ns).is_none() {
                written.extend(member.proposal.writes.keys().cloned());
                rerun.push(member);
                continue;
            }
            self.building_bytes += member.proposal.size();
            self.building.push(member);
        }
        rerun
    }

    /// Numbers a member again. `None`: there is no room for it any more beside what others committed, or a table that
    /// it writes cannot be decoded.
    fn take_again(&mut self, member: &mut Member, now_ns: u64) -> Option<()> {
        if !member.proposal.maintenance {
            member.record = Some(self.accept(&member.proposal, now_ns).ok()?);
        }
        member.head = self.head;
        Some(())
    }
}

#[cfg(test)]
#[path = "rebase_tests.rs"]
mod tests;
