//! How much a tenant may hold, and counting what it holds.
//!
//! The sums and the limits are in `tally`, under the state's lock; here documents are counted in a snapshot beside all
//! other work. Where limits come from is not known here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nimbus_core::TenantId;
use serde::Serialize;
use tokio::sync::watch;

use super::tally::not_counted;
use super::tenant::{Tenant, TenantInner};
use super::view::Scan;
use super::{Engine, lock};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Direction, KeyRange, Keyspace};

/// Documents of one step of a count.
const STEP: usize = if cfg!(test) { 4 } else { 1_024 };
/// How long a commit waits for the first count. Whoever tries again later finds it done.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// What a tenant may hold. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Documents.
    pub documents: Option<u64>,
    /// Bytes of documents; see [`Usage::bytes`].
    pub bytes: Option<u64>,
}

/// What a tenant holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Documents.
    pub documents: u64,
    /// Bytes of their keys and values as they are stored. Indexes, log, code and free pages are not counted.
    pub bytes: u64,
}

/// The count of a tenant that is going on, if one is.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    running: AtomicBool,
    ended: watch::Sender<Ended>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    times: u64,
    /// The newest of them found nothing out.
    failed: bool,
}

impl Engine {
    /// Sets what a tenant may hold, from the next commit on; [`Quota::default`] removes the limits. It is kept in
    /// memory, for tenants that are not open or do not exist as well, and forgotten when this server deletes the tenant.
    ///
    /// A commit after which the tenant would hold more than a limit and more than before is refused with
    /// [`StoreError::QuotaExceeded`] and writes nothing. One that makes nothing of what is limited more always passes,
    /// so deleting works above a quota. Commits that are accepted and not yet durable count, so concurrent writers
    /// together never come to hold more.
    ///
    /// Where servers share a tenant each knows its own quota alone. A server adds its commits to those of the others
    /// with nobody in between, so with equal quotas none of them passes it; with different ones the tenant can come to
    /// hold what the highest allows.
    ///
    /// What there is gets counted once for each time that the tenant is opened, when the first commit needs it, beside
    /// reads and other commits. Commits that make more of what is limited wait for that, 5 s at most; after that they
    /// are told that the storage is busy, and to try again.
    pub fn set_quota(&self, tenant: &TenantId, quota: Quota) {
        // Under the lock of the open tenants, so that none is opened in between with what was there before.
        let open = lock(&self.inner.open);
        let mut quotas = lock(&self.inner.quotas);
        match quota == Quota::default() {
            true => quotas.remove(tenant),
            false => quotas.insert(tenant.clone(), quota),
        };
        if let Some(open) = open.get(tenant) {
            open.inner.state().tally.set_quota(quota);
        }
    }
}

impl Tenant {
    /// What the tenant holds after the newest durable commit, those of other servers included. Counts if that is not
    /// known yet, which takes a scan of all documents; from then on it is kept up to date until the tenant is closed
    /// or its quota is removed.
    ///
    /// # Errors
    /// `Closed`; the provider's failure; `Storage` (busy) if it could not be counted.
    pub async fn usage(&self) -> StoreResult<Usage> {
        self.catch_up().await?;
        counted(&self.inner, None).await
    }
}

/// What the tenant holds, once it is known.
///
/// # Errors
/// `Closed`; `Storage` (busy) if counting failed, or takes longer than `patience`.
pub(crate) async fn counted(
    tenant: &Arc<TenantInner>,
    patience: Option<Duration>,
) -> StoreResult<Usage> {
    match patience {
        None => until_counted(tenant).await,
        Some(patience) => tokio::time::timeout(patience, until_counted(tenant))
            .await
            .unwrap_or_else(|_| Err(not_counted())),
    }
}

async fn until_counted(tenant: &Arc<TenantInner>) -> StoreResult<Usage> {
    loop {
        // Before it is looked whether it is known: an end after that is not missed.
        let mut ended = tenant.counting.ended.subscribe();
        {
            let state = tenant.state();
            if let Some(usage) = state.tally.usage() {
                return Ok(usage);
            }
            if state.closed {
                return Err(StoreError::Closed);
            }
        }
        begin(tenant);
        let told = ended.changed().await;
        let failed = ended.borrow().failed;
        if told.is_err() || tenant.state().closed {
            return Err(StoreError::Closed);
        }
        if failed {
            return Err(not_counted());
        }
    }
}

/// Begins a count, unless one is going on. It does not end with who asked for it: the next one needs it too.
fn begin(tenant: &Arc<TenantInner>) {
    if tenant.counting.running.swap(true, Ordering::AcqRel) {
        return;
    }
    let running = Running {
        tenant: Tenant::hold(tenant.clone()),
        failed: true,
    };
    tokio::spawn(run(running));
}

async fn run(mut running: Running) {
    match count(&running.tenant.inner).await {
        Ok(()) => running.failed = false,
        Err(StoreError::Closed) => {}
        Err(error) => {
            let inside = error.inside();
            tracing::warn!(tenant = %running.tenant.id(), %error, inside, "counting what a tenant holds");
        }
    }
}

/// Says that a count is over, however it ended.
struct Running {
    tenant: Tenant,
    failed: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        let counting = &self.tenant.inner.counting;
        counting.running.store(false, Ordering::Release);
        counting.ended.send_modify(|ended| {
            ended.times += 1;
            ended.failed = self.failed;
        });
    }
}

/// Scans one snapshot. Commits that it lacks are noted meanwhile.
async fn count(tenant: &TenantInner) -> StoreResult<()> {
    let (number, accepted, epoch) = {
        let mut state = tenant.state();
        (state.tally.begin(), state.head.sequence, state.epoch)
    };
    // What was accepted before that is not noted: it is in the snapshot, or was thrown away.
    tenant.wait_durable(accepted, epoch).await;
    let mut view = tenant.durable_view(false).await?.unbounded();
    let wanted = {
        let mut state = tenant.state();
        let durable = state.durable.sequence;
        state.tally.scan(number, view.read_sequence, durable)
    };
    if !wanted {
        return Ok(());
    }
    let mut found = Usage::default();
    let mut scan = Scan::new(Keyspace::Docs, KeyRange::all(), Direction::Forward);
    while !scan.done {
        if tenant.state().closed {
            return Err(StoreError::Closed);
        }
        for (key, body) in view.scan_next(&mut scan, STEP).await? {
            found.documents += 1;
            found.bytes += (key.len() + body.len()) as u64;
        }
        // Reads need not wait for anything by themselves.
        tokio::task::yield_now().await;
    }
    tenant.state().tally.scanned(number, found);
    Ok(())
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
