//! How far a local replica follows its primary, as diagnostics show it (nimbus.md 7.6).
//!
//! Must not know how a replica is kept.

use serde::Serialize;

/// Counters of one replica since its tenant was opened. Sequences are those of commits; durations are in
/// milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ReplicaFreshness {
    /// Newest commit of the primary that this server knows of: what the next read waits for.
    pub required_sequence: u64,
    /// Newest commit that is in the replica's file.
    pub local_durable_head: u64,
    /// Newest commit that reads see.
    pub local_applied_sequence: u64,
    /// Whether the next read has to ask the primary first.
    pub refresh_needed: bool,
    /// Reads that wait for a refresh now.
    pub refresh_requested: u64,
    /// Whether a refresh runs now.
    pub refresh_inflight: bool,
    /// How the last read became fresh: `already_current_cache`, `waited_for_background_refresh`,
    /// `incremental_catch_up`, `full_snapshot_rebuild`, or `unknown` before the first.
    pub last_barrier_path: &'static str,
    /// Reads that found the replica fresh.
    pub already_current_cache_count: u64,
    /// Reads that waited for a refresh that another had begun.
    pub waited_for_background_refresh_count: u64,
    /// Refreshes by reading what was committed since.
    pub incremental_catch_up_count: u64,
    /// Refreshes by copying everything.
    pub full_snapshot_rebuild_count: u64,
    /// Why the last refresh was made: `commit_barrier`, `durable_journal_replay`, `schema_mismatch`,
    /// `bootstrap_export`; `null` before the first.
    pub last_refresh_cause: Option<&'static str>,
    /// How it was made, in the words of `last_barrier_path`.
    pub last_refresh_path: Option<&'static str>,
    /// How long it took.
    pub last_refresh_duration_ms: f64,
    /// The longest since the tenant was opened.
    pub max_refresh_duration_ms: f64,
    /// Why the last refresh that failed did; `null` once one succeeded after it.
    pub last_refresh_error: Option<String>,
}
