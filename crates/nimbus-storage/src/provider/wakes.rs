//! When a tenant next has work to do, for whoever looks after tenants that nobody calls.
//!
//! Must not know what the work is. A time is lowered durably before the commit that schedules the work, and raised
//! after the work was done, unless somebody lowered it meanwhile: servers that share a database need not know of each
//! other, and what one of them scheduled the others find when it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use nimbus_core::TenantId;

use super::ProviderResult;

/// A tenant's wake time as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wake {
    /// The tenant.
    pub tenant: TenantId,
    /// When it wants to be woken, milliseconds since 1970-01-01.
    pub at_ms: u64,
    /// Another one after each change and each [`WakeStore::lower`], also of one that changed nothing.
    pub mark: u64,
}

/// Keeps one wake time per tenant. It outlives the registration of the tenant, which may have been moved elsewhere:
/// whoever deletes a tenant clears it.
pub trait WakeStore: Send + Sync + 'static {
    /// Makes the wake time at most `at_ms`, durably.
    ///
    /// # Errors
    /// When it could not be made durable; the work that it is for must not be committed then.
    fn lower<'a>(&'a self, tenant: &'a TenantId, at_ms: u64) -> BoxFuture<'a, ProviderResult<()>>;

    /// Replaces the wake time, or clears it, if its mark is still the one that was seen; whether it was. Need not be
    /// durable at once: a crash only wakes the tenant too early.
    ///
    /// # Errors
    /// When it could not be written.
    fn replace<'a>(
        &'a self,
        seen: &'a Wake,
        at_ms: Option<u64>,
    ) -> BoxFuture<'a, ProviderResult<bool>>;

    /// The wake time of a tenant, if it has one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<Option<Wake>>>;

    /// Wake times that are not after `now_ms`, earliest first, at most `limit`. A tenant may be among them that is gone.
    ///
    /// # Errors
    /// When they cannot be read.
    fn due(&self, now_ms: u64, limit: usize) -> BoxFuture<'_, ProviderResult<Vec<Wake>>>;
}

/// Newest mark of all tables in memory, since one may be read from its file again.
static MARKS: AtomicU64 = AtomicU64::new(0);

/// Wake times in memory.
#[derive(Debug, Default)]
pub(crate) struct WakeTable {
    /// Time and mark.
    tenants: BTreeMap<TenantId, (u64, u64)>,
    by_time: BTreeSet<(u64, TenantId)>,
}

impl WakeTable {
    pub(crate) fn at(&self, tenant: &TenantId) -> Option<u64> {
        self.tenants.get(tenant).map(|(at, _)| *at)
    }

    pub(crate) fn get(&self, tenant: &TenantId) -> Option<Wake> {
        let (at_ms, mark) = *self.tenants.get(tenant)?;
        Some(Wake {
            tenant: tenant.clone(),
            at_ms,
            mark,
        })
    }

    /// Whether nobody changed or lowered the time since.
    pub(crate) fn is_as_seen(&self, seen: &Wake) -> bool {
        let now = self.tenants.get(&seen.tenant);
        now.is_some_and(|(_, mark)| *mark == seen.mark)
    }

    pub(crate) fn set(&mut self, tenant: &TenantId, at_ms: Option<u64>) {
        let mark = MARKS.fetch_add(1, Ordering::Relaxed) + 1;
        let old = match at_ms {
            Some(at) => self.tenants.insert(tenant.clone(), (at, mark)),
            None => self.tenants.remove(tenant),
        };
        if let Some((old, _)) = old {
            self.by_time.remove(&(old, tenant.clone()));
        }
        if let Some(at) = at_ms {
            self.by_time.insert((at, tenant.clone()));
        }
    }

    /// In the order of their times.
    pub(crate) fn times(&self) -> &BTreeSet<(u64, TenantId)> {
        &self.by_time
    }

    pub(crate) fn due(&self, now_ms: u64, limit: usize) -> Vec<Wake> {
        let due = self.by_time.iter().take_while(|(at, _)| *at <= now_ms);
        let due = due.filter_map(|(_, tenant)| self.get(tenant));
        due.take(limit).collect()
    }
}
