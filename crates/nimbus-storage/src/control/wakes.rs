//! When each tenant of this server next wants to be woken.
//!
//! Must not know what a wake is for.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use nimbus_core::TenantId;
use redb::WriteTransaction;

use super::{ControlDb, LAZY_COMMITS, Sync, WAKES, WAKES_BY_TIME, Writer};
use crate::provider::local::blocking;
use crate::provider::{ProviderResult, Wake, WakeStore};

impl ControlDb {
    /// When the tenant next wants to be woken, milliseconds since 1970-01-01.
    pub fn wake(&self, tenant: &TenantId) -> Option<u64> {
        self.read().wakes.at(tenant)
    }

    /// Makes sure, durably before it returns, that the tenant is woken at `at_ms` or earlier.
    /// True if the stored time had to be lowered; otherwise nothing is written.
    ///
    /// # Errors
    /// `Full`, `Io`; the caller must not commit the work that the wake is for.
    pub fn lower_wake(&self, tenant: &TenantId, at_ms: u64) -> ProviderResult<bool> {
        let mut writer = self.writer();
        // After an error only the file knows.
        self.reopened(&mut writer)?;
        // The time on disk is never later than the one in memory: only raises are lazy.
        let old = self.wake(tenant);
        if old.is_some_and(|old| old <= at_ms) {
            // Another mark: who raises the time now does not know of this work.
            self.mirror().wakes.set(tenant, old);
            return Ok(false);
        }
        let result = self.commit(&mut writer, Sync::Wake, |txn| {
            write_wake(txn, tenant, Some(at_ms))
        });
        result?;
        self.mirror().wakes.set(tenant, Some(at_ms));
        Ok(true)
    }

    /// Sets the time to exactly `at_ms`, or forgets it. Lowering is durable at once; raising
    /// and forgetting may be lost by a crash, which only wakes the tenant too early.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub fn set_wake(&self, tenant: &TenantId, at_ms: Option<u64>) -> ProviderResult<()> {
        let mut writer = self.writer();
        self.reopened(&mut writer)?;
        self.write_time(&mut writer, tenant, at_ms)
    }

    /// As [`ControlDb::set_wake`], unless somebody set or lowered it since `seen`; whether it was done.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub fn replace_wake(&self, seen: &Wake, at_ms: Option<u64>) -> ProviderResult<bool> {
        let mut writer = self.writer();
        self.reopened(&mut writer)?;
        let is_as_seen = self.read().wakes.is_as_seen(seen);
        if is_as_seen {
            self.write_time(&mut writer, &seen.tenant, at_ms)?;
        }
        Ok(is_as_seen)
    }

    fn write_time(
        &self,
        writer: &mut Writer,
        tenant: &TenantId,
        at_ms: Option<u64>,
    ) -> ProviderResult<()> {
        let old = self.wake(tenant);
        if old != at_ms {
            let lowers = at_ms.is_some_and(|at| old.is_none_or(|old| at < old));
            let sync = if lowers || writer.lazy >= LAZY_COMMITS {
                Sync::Wake
            } else {
                Sync::Lazy
            };
            self.commit(writer, sync, |txn| write_wake(txn, tenant, at_ms))?;
        }
        self.mirror().wakes.set(tenant, at_ms);
        Ok(())
    }

    /// The wakes at or before `now_ms`, earliest first, at most `limit`. A tenant may be among them that is gone.
    pub fn due(&self, now_ms: u64, limit: usize) -> Vec<Wake> {
        self.read().wakes.due(now_ms, limit)
    }

    /// The earliest wake of any tenant.
    pub fn next_wake(&self) -> Option<u64> {
        self.read().wakes.times().first().map(|(at, _)| *at)
    }
}

fn write_wake(
    txn: &WriteTransaction,
    tenant: &TenantId,
    new: Option<u64>,
) -> Result<(), redb::Error> {
    let mut wakes = txn.open_table(WAKES)?;
    let mut by_time = txn.open_table(WAKES_BY_TIME)?;
    // What the file has: after an error that can be another time than the one in memory was.
    let old = match new {
        Some(at) => wakes.insert(tenant.as_str(), at)?,
        None => wakes.remove(tenant.as_str())?,
    };
    if let Some(old) = old {
        by_time.remove((old.value(), tenant.as_str()))?;
    }
    if let Some(at) = new {
        by_time.insert((at, tenant.as_str()), ())?;
    }
    Ok(())
}

/// The wake times of a control database, for an engine.
pub struct LocalWakes(Arc<ControlDb>);

impl LocalWakes {
    /// Those of this one.
    pub fn new(control: Arc<ControlDb>) -> LocalWakes {
        LocalWakes(control)
    }

    fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ControlDb) -> ProviderResult<T> + Send + 'static,
    ) -> BoxFuture<'static, ProviderResult<T>> {
        let control = self.0.clone();
        blocking(move || work(&control)).boxed()
    }
}

impl WakeStore for LocalWakes {
    fn lower<'a>(&'a self, tenant: &'a TenantId, at_ms: u64) -> BoxFuture<'a, ProviderResult<()>> {
        let tenant = tenant.clone();
        self.apart(move |control| control.lower_wake(&tenant, at_ms).map(drop))
    }

    fn replace<'a>(
        &'a self,
        seen: &'a Wake,
        at_ms: Option<u64>,
    ) -> BoxFuture<'a, ProviderResult<bool>> {
        let seen = seen.clone();
        self.apart(move |control| control.replace_wake(&seen, at_ms))
    }

    fn get<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<Option<Wake>>> {
        std::future::ready(Ok(self.0.read().wakes.get(tenant))).boxed()
    }

    fn due(&self, now_ms: u64, limit: usize) -> BoxFuture<'_, ProviderResult<Vec<Wake>>> {
        std::future::ready(Ok(self.0.due(now_ms, limit))).boxed()
    }
}
