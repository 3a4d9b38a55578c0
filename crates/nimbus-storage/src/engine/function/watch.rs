//! Watching what a read depended on: a result stays valid until a commit writes a key in its read
//! set. Live queries use the same index of intervals; what was computed from the reads is not
//! known here.

use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::CommitStamp;
use crate::engine::readset::ReadSet;
use crate::engine::tenant::{Tenant, TenantInner};
use crate::engine::txn::Transaction;

/// What a transaction read, and of which state; see [`Transaction::take_reads`].
#[derive(Clone, Debug, Default)]
pub struct ReadsAt {
    reads: ReadSet,
    /// A commit after which everything was as it was read.
    at: CommitStamp,
    /// Whose reads they are, and from which of its pasts: sequences are compared only there.
    tenant: Weak<TenantInner>,
    epoch: u64,
}

impl ReadsAt {
    /// A commit after which everything was as it was read.
    pub fn at(&self) -> CommitStamp {
        self.at
    }
}

impl Transaction {
    /// What was read so far, for [`Tenant::watch`]. A transaction that only reads starts anew; one that
    /// writes keeps its reads, since its commit depends on them.
    pub fn take_reads(&mut self) -> ReadsAt {
        let at = CommitStamp {
            sequence: self.view.answered_at(),
            timestamp_ns: self.view.timestamp,
        };
        let reads = if self.view.read_only {
            std::mem::take(&mut self.view.reads)
        } else {
            self.view.reads.clone()
        };
        ReadsAt {
            reads,
            at,
            tenant: Arc::downgrade(&self.tenant),
            epoch: self.view.epoch,
        }
    }
}

impl Tenant {
    /// Watches what was read for commits that change it, from the state of the reads on. Does not keep
    /// the tenant open: the watch ends when the tenant is closed. It is over from the start for what
    /// another tenant's transaction read, or one from before the tenant was opened.
    pub fn watch(&self, reads: ReadsAt) -> ReadWatch {
        let ReadsAt {
            reads,
            at,
            tenant: own,
            epoch,
        } = reads;
        let tenant = Arc::downgrade(&self.inner);
        if !own.ptr_eq(&tenant) {
            return ReadWatch {
                tenant: own,
                at,
                watched: None,
            };
        }
        let mut watch = ReadWatch {
            tenant,
            at,
            watched: self.inner.live.watch(reads.clone()),
        };
        // Every commit that becomes durable from here on is matched against the watch. Those since the
        // reads are looked up; where they are not in memory any more, the watch is over.
        let stands = {
            let state = self.inner.state();
            let durable = state.durable.sequence;
            let mut since = state.committed_between(at.sequence, durable).into_iter();
            // Not durable when read, and it may never be.
            state.comparable(epoch, at.sequence)
                && at.sequence <= durable
                && state.covers(at.sequence)
                && !since.any(|c| c.keys.iter().any(|key| reads.contains(key)))
        };
        if !stands {
            watch.give_up();
        }
        self.inner.begin_to_follow();
        watch
    }
}

/// A watch of a read set. Dropping it ends the watch.
pub struct ReadWatch {
    /// Who watches something need not keep what a closed tenant held.
    tenant: Weak<TenantInner>,
    at: CommitStamp,
    /// Its number and where its end is told; `None` when it was over from the start.
    watched: Option<(u64, watch::Receiver<Option<CommitStamp>>)>,
}

impl ReadWatch {
    /// Whether nothing that was read changed up to the newest durable commit. Every write that was
    /// acknowledged before this call is taken into account.
    pub fn is_valid(&self) -> bool {
        let watched = self.watched.as_ref();
        watched.is_some_and(|(_, ended)| ended.borrow().is_none() && ended.has_changed().is_ok())
    }

    /// The newest commit up to which it is known that nothing changed.
    pub fn valid_through(&self) -> CommitStamp {
        let Some(((_, receiver), tenant)) = self.watched.as_ref().zip(self.tenant.upgrade()) else {
            return self.at;
        };
        // In this order: a commit that ends the watch is settled only after that was told.
        let settled = tenant.live.settled();
        let ended = *receiver.borrow();
        match ended {
            Some(ended) => ended.max(self.at),
            None if receiver.has_changed().is_err() => self.at,
            None => settled.max(self.at),
        }
    }

    /// Waits until something that was read changes, or until the tenant is closed. May be dropped and
    /// called again.
    pub async fn invalidated(&self) {
        if let Some((_, receiver)) = &self.watched {
            // An error means that the tenant was closed, which ends it as well.
            let _ = receiver.clone().wait_for(Option::is_some).await;
        }
    }

    fn give_up(&mut self) {
        let watched = self.watched.take();
        if let Some(((id, _), tenant)) = watched.zip(self.tenant.upgrade()) {
            tenant.live.unwatch(id);
        }
    }
}

impl Drop for ReadWatch {
    fn drop(&mut self) {
        self.give_up();
    }
}
