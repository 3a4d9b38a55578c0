//! What is known of a replica's freshness, for those who only look: whether a read has to wait, what to report.
//!
//! Must not wait for anything.

use std::time::{Duration, Instant};

use nimbus_core::TenantId;

use crate::provider::libsql::feed::Mark;
use crate::provider::libsql::lifecycle::not_found;
use crate::provider::libsql::primary::Tag;
use crate::provider::{ProviderError, ProviderResult, ReplicaFreshness};

/// Causes of a refresh.
pub(super) const BOOTSTRAP: &str = "bootstrap_export";
pub(super) const COMMIT: &str = "commit_barrier";
pub(super) const FOLLOW: &str = "durable_journal_replay";
pub(super) const MISMATCH: &str = "schema_mismatch";

/// How a replica came to be fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Path {
    #[default]
    Unknown,
    Current,
    Waited,
    CaughtUp,
    Rebuilt,
}

impl Path {
    const fn name(self) -> &'static str {
        match self {
            Path::Unknown => "unknown",
            Path::Current => "already_current_cache",
            Path::Waited => "waited_for_background_refresh",
            Path::CaughtUp => "incremental_catch_up",
            Path::Rebuilt => "full_snapshot_rebuild",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct View {
    /// Newest position of the primary that is known, and the sequence of its head.
    pub(super) required: i64,
    required_sequence: u64,
    applied: Option<(i64, u64)>,
    /// When the primary was asked last, of everything that is applied.
    pub(super) looked: Option<Instant>,
    /// When it was asked before this, that is not enough.
    pub(super) look_from: Option<Instant>,
    /// The copy is of no use any more.
    pub(super) doubt: bool,
    /// The tenant is deleted.
    pub(super) gone: bool,
    /// Tag of this server's newest commit.
    pub(super) own: Option<Tag>,
    /// Changes of others that were taken in, and how many of them were told of.
    pub(super) foreign: u64,
    told: u64,
    /// Why the next refresh is made, if it is for another reason than it seems.
    pub(super) cause: Option<&'static str>,
    /// When the last refresh that failed began, and why it failed.
    failure: Option<(Instant, String)>,
    pub(super) waiting: u64,
    pub(super) inflight: bool,
    last: Path,
    paths: [u64; 5],
    refresh: Option<(&'static str, Path)>,
    took: Duration,
    longest: Duration,
}

impl View {
    /// Whether a read that began at `asked` may go ahead.
    pub(super) fn is_fresh(&self, asked: Instant, stale: Duration) -> bool {
        let reached = self.applied.is_some_and(|(at, _)| at >= self.required);
        let looked = self
            .looked
            .is_some_and(|looked| looked + stale >= asked && Some(looked) >= self.look_from);
        reached && looked && !self.doubt && !self.gone
    }

    /// The failure of a refresh that began after `asked`.
    pub(super) fn failed_since(&self, asked: Instant, tenant: &TenantId) -> Option<ProviderError> {
        let (began, reason) = self.failure.as_ref()?;
        (*began >= asked).then(|| match self.gone {
            true => not_found(tenant),
            false => ProviderError::Busy {
                what: reason.clone(),
            },
        })
    }

    /// The primary has reached this position.
    pub(super) fn require(&mut self, position: i64, sequence: u64) {
        if position > self.required {
            (self.required, self.required_sequence) = (position, sequence);
        }
    }

    /// A new copy is this far. The primary may have gone back, so nothing more is required than that.
    pub(super) fn rebuilt(&mut self, mark: &Mark) {
        (self.required, self.required_sequence) = (mark.position, mark.head.sequence);
        self.applied(mark);
    }

    pub(super) fn applied(&mut self, mark: &Mark) {
        self.applied = Some((mark.position, mark.head.sequence));
    }

    /// A read went ahead.
    pub(super) fn passed(&mut self, path: Path) {
        self.last = path;
        if matches!(path, Path::Current | Path::Waited) {
            self.paths[path as usize] += 1;
        }
    }

    /// A refresh ended.
    pub(super) fn ended(
        &mut self,
        began: Instant,
        cause: &'static str,
        result: &ProviderResult<Path>,
    ) {
        self.took = began.elapsed();
        self.longest = self.longest.max(self.took);
        match result {
            Ok(path) => {
                let cause = self.cause.take().unwrap_or(cause);
                self.paths[*path as usize] += 1;
                self.refresh = Some((cause, *path));
                self.failure = None;
            }
            Err(e) => self.failure = Some((began, e.to_string())),
        }
    }

    /// Whether others committed since this was last true.
    pub(super) fn take_news(&mut self) -> bool {
        let is_news = self.foreign != self.told;
        self.told = self.foreign;
        is_news
    }

    pub(super) fn freshness(&self, stale: Duration) -> ReplicaFreshness {
        let applied = self.applied.map_or(0, |(_, sequence)| sequence);
        let count = |path: Path| self.paths[path as usize];
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        ReplicaFreshness {
            required_sequence: self.required_sequence.max(applied),
            local_durable_head: applied,
            local_applied_sequence: applied,
            refresh_needed: !self.is_fresh(Instant::now(), stale),
            refresh_requested: self.waiting,
            refresh_inflight: self.inflight,
            last_barrier_path: self.last.name(),
            already_current_cache_count: count(Path::Current),
            waited_for_background_refresh_count: count(Path::Waited),
            incremental_catch_up_count: count(Path::CaughtUp),
            full_snapshot_rebuild_count: count(Path::Rebuilt),
            last_refresh_cause: self.refresh.map(|(cause, _)| cause),
            last_refresh_path: self.refresh.map(|(_, path)| path.name()),
            last_refresh_duration_ms: ms(self.took),
            max_refresh_duration_ms: ms(self.longest),
            last_refresh_error: self.failure.as_ref().map(|(_, reason)| reason.clone()),
        }
    }
}
