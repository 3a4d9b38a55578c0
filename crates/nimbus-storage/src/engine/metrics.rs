//! Counters of the engine and of one tenant, and the shapes in which they are shown.
//!
//! Field names of the tenant's diagnostics follow nimbus.md 2.10. Exposition formats are
//! the HTTP layer's business.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::record::logged;
use super::state::Writes;
use super::tenant::TenantInner;
use crate::provider::{Keyspace, ReplicaFreshness};

/// Counters since a tenant was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) transactions: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    pub(crate) documents_read: AtomicU64,
    pub(crate) documents_written: AtomicU64,
    pub(crate) index_entries_written: AtomicU64,
    pub(crate) reevaluations: AtomicU64,
    /// Commits of other servers that were taken in.
    pub(crate) followed: AtomicU64,
    pub(crate) pruned: AtomicU64,
    pub(crate) backfilled: AtomicU64,
}

impl Counters {
    pub(crate) fn note_writes(&self, writes: &Writes) {
        let documents = writes.keys().filter(|(s, _)| *s == Keyspace::Docs).count();
        let entries = writes.keys().filter(|(s, _)| !logged(*s)).count();
        self.documents_written
            .fetch_add(documents as u64, Ordering::Relaxed);
        self.index_entries_written
            .fetch_add(entries as u64, Ordering::Relaxed);
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Totals over all tenants since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EngineMetrics {
    /// Tenants open now.
    pub open_tenants: u64,
    /// Times that a tenant was opened.
    pub tenants_opened: u64,
    /// Times that a tenant was closed.
    pub tenants_closed: u64,
    /// Transactions accepted.
    pub transactions: u64,
    /// Runs of transactions that conflicted.
    pub conflicts: u64,
    /// Commits that are durable.
    pub commits: u64,
    /// Provider batches that carried them.
    pub batches: u64,
    /// Syncs that they waited for.
    pub commit_syncs: u64,
    /// Read views taken.
    pub snapshots: u64,
    /// Documents read by queries and transactions, scanned ones included.
    pub documents_read: u64,
    /// Documents inserted, changed or deleted.
    pub documents_written: u64,
    /// Index entries added or removed.
    pub index_entries_written: u64,
    /// Live subscriptions now.
    pub subscriptions: u64,
    /// Runs of live queries.
    pub reevaluations: u64,
    /// Log records dropped by retention.
    pub log_records_pruned: u64,
    /// Bytes in write-ahead logs now.
    pub wal_bytes: u64,
    /// Age of the oldest read view in milliseconds.
    pub oldest_snapshot_ms: u64,
}

impl EngineMetrics {
    /// Adds what a tenant counted; used for open ones on reading and for each when it closes.
    pub(crate) fn add(&mut self, tenant: &TenantInner) {
        let c = &tenant.counters;
        self.transactions += get(&c.transactions);
        self.conflicts += get(&c.conflicts);
        self.commits += get(&c.commits);
        self.batches += get(&c.batches);
        self.commit_syncs += tenant.store.stats().commit_syncs;
        self.snapshots += get(&c.snapshots);
        self.documents_read += get(&c.documents_read);
        self.documents_written += get(&c.documents_written);
        self.index_entries_written += get(&c.index_entries_written);
        self.reevaluations += get(&c.reevaluations);
        self.log_records_pruned += get(&c.pruned);
    }

    /// Adds what only an open tenant has.
    pub(crate) fn add_open(&mut self, tenant: &TenantInner) {
        self.open_tenants += 1;
        self.subscriptions += tenant.live.counts().0 as u64;
        let stats = tenant.store.stats();
        self.wal_bytes += stats.wal_bytes;
        self.oldest_snapshot_ms = self.oldest_snapshot_ms.max(stats.oldest_snapshot_ms);
    }
}

/// Diagnostics of one open tenant.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TenantMetrics {
    /// Transactions on their way into a batch.
    pub mutation_admission: AdmissionMetrics,
    /// The commit log.
    pub mutation_journal: JournalMetrics,
    /// Live queries.
    pub subscription_delivery: SubscriptionMetrics,
    /// Reads.
    pub materialized_read_surface: ReadMetrics,
    /// Views of the provider.
    pub serving_snapshot_manager: SnapshotMetrics,
    /// Index maintenance.
    pub query_planning: PlanningMetrics,
    /// How far the local replica follows; of the libSQL provider only.
    pub libsql_replica_freshness: Option<ReplicaFreshness>,
}

/// See [`TenantMetrics::mutation_admission`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct AdmissionMetrics {
    /// Transactions waiting for room in the batch.
    pub queue_depth: u64,
    /// Transactions that one batch takes.
    pub queue_capacity: u64,
    /// Transactions accepted.
    pub admitted_count: u64,
    /// Runs that conflicted.
    pub conflict_count: u64,
}

/// See [`TenantMetrics::mutation_journal`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct JournalMetrics {
    /// Newest durable commit.
    pub durable_head: u64,
    /// Newest validated commit.
    pub applied_head: u64,
    /// Commits validated and not yet durable.
    pub apply_lag: u64,
    /// Newest commit that was pruned from the log.
    pub cursor_floor: u64,
    /// Durable commits.
    pub commit_count: u64,
    /// Batches that carried them.
    pub batch_count: u64,
    /// Syncs that they waited for.
    pub commit_syncs: u64,
    /// Bytes of log retained.
    pub retained_bytes: u64,
    /// Bytes in the write-ahead log.
    pub wal_bytes: u64,
    /// Whether the committer takes commits.
    pub worker_running: bool,
}

/// See [`TenantMetrics::subscription_delivery`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SubscriptionMetrics {
    /// Subscriptions now.
    pub subscription_count: u64,
    /// Distinct queries among them.
    pub query_count: u64,
    /// Queries waiting to run again.
    pub queue_depth: u64,
    /// Runs so far.
    pub reevaluation_count: u64,
}

/// See [`TenantMetrics::materialized_read_surface`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ReadMetrics {
    /// Documents read, scanned ones included.
    pub documents_read: u64,
    /// Documents written.
    pub documents_written: u64,
}

/// See [`TenantMetrics::serving_snapshot_manager`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SnapshotMetrics {
    /// Views taken.
    pub snapshot_count: u64,
    /// Views open now.
    pub open_snapshots: u64,
    /// Age of the oldest in milliseconds.
    pub oldest_snapshot_ms: u64,
}

/// See [`TenantMetrics::query_planning`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PlanningMetrics {
    /// Index entries written by transactions.
    pub index_entries_written: u64,
    /// Documents that backfills added to indexes.
    pub documents_backfilled: u64,
}

impl TenantMetrics {
    pub(crate) fn of(tenant: &TenantInner) -> TenantMetrics {
        let c = &tenant.counters;
        let stats = tenant.store.stats();
        let (durable, head, offset, closed) = {
            let s = tenant.state();
            (s.durable.sequence, s.head.sequence, s.log_offset, s.closed)
        };
        let floor = tenant.log.floor();
        let (subscriptions, queries, queued) = tenant.live.counts();
        TenantMetrics {
            mutation_admission: AdmissionMetrics {
                queue_depth: tenant.waiting.load(Ordering::Relaxed) as u64,
                queue_capacity: super::state::BATCH_MEMBERS as u64,
                admitted_count: get(&c.transactions),
                conflict_count: get(&c.conflicts),
            },
            mutation_journal: JournalMetrics {
                durable_head: durable,
                applied_head: head,
                apply_lag: head.saturating_sub(durable),
                cursor_floor: floor.sequence,
                commit_count: get(&c.commits),
                batch_count: get(&c.batches),
                commit_syncs: stats.commit_syncs,
                retained_bytes: offset.saturating_sub(floor.offset),
                wal_bytes: stats.wal_bytes,
                worker_running: !closed,
            },
            subscription_delivery: SubscriptionMetrics {
                subscription_count: subscriptions as u64,
                query_count: queries as u64,
                queue_depth: queued as u64,
                reevaluation_count: get(&c.reevaluations),
            },
            materialized_read_surface: ReadMetrics {
                documents_read: get(&c.documents_read),
                documents_written: get(&c.documents_written),
            },
            serving_snapshot_manager: SnapshotMetrics {
                snapshot_count: get(&c.snapshots),
                open_snapshots: stats.open_snapshots,
                oldest_snapshot_ms: stats.oldest_snapshot_ms,
            },
            query_planning: PlanningMetrics {
                index_entries_written: get(&c.index_entries_written),
                documents_backfilled: get(&c.backfilled),
            },
            libsql_replica_freshness: tenant.store.freshness(),
        }
    }
}
