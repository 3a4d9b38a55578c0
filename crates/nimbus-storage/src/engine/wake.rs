//! Wake times: when does a tenant that is closed next have work to do?
//!
//! A wake time is lowered durably before the commit that schedules the work, and raised after; so a server that
//! starts finds every due tenant without opening any. Providers that servers share keep them where all of these find
//! them, the engine keeps those of the others. What the work is, the tenant itself knows.
//!
//! Between the two, the work is announced and not there yet. So that nobody who looks then puts the wake off, whoever looks
//! first writes a row that each transaction has read which schedules work: what is committed later runs again, and announces
//! itself again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use nimbus_core::TenantId;

use super::tenant::TenantInner;
use super::txn::Transaction;
use super::{Engine, Tenant, fill_random, lock};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Keyspace, Provider, ProviderError, ProviderResult, Wake, WakeStore};

/// Row of [`Keyspace::Jobs`], another one for each look at the work.
const FENCE_KEY: &[u8] = b"wake";
/// How often a wake time is lowered where others are in the way, and how long is waited in between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(20);

type Keeper = Arc<dyn WakeStore>;

/// Who keeps the wake times of which tenants.
pub(crate) struct Wakes {
    provider: Arc<dyn Provider>,
    /// Of tenants whose provider keeps none.
    own: Option<Keeper>,
    /// Those that providers keep, by their names.
    shared: Vec<(&'static str, Keeper)>,
}

/// A tenant that wants to be woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueTenant {
    wake: Wake,
    /// The provider that keeps its wake time; `None`: the engine.
    kept_by: Option<&'static str>,
}

impl DueTenant {
    /// Which one.
    pub fn tenant(&self) -> &TenantId {
        &self.wake.tenant
    }

    /// When, in milliseconds since 1970-01-01.
    pub fn at_ms(&self) -> u64 {
        self.wake.at_ms
    }
}

impl Wakes {
    pub(super) fn new(provider: &Arc<dyn Provider>, own: Option<Keeper>) -> Wakes {
        let kept = |p: &dyn Provider| Some((p.name(), p.wakes()?));
        let shared = match provider.combined() {
            Some(combined) => combined.all().iter().filter_map(|p| kept(&**p)).collect(),
            None => kept(&**provider).into_iter().collect(),
        };
        Wakes {
            provider: provider.clone(),
            own,
            shared,
        }
    }

    fn kept_by(&self, name: Option<&str>) -> StoreResult<(Option<&'static str>, &Keeper)> {
        let of = |(kept, _): &&(&'static str, _)| Some(*kept) == name;
        match (self.shared.iter().find(of), &self.own) {
            (Some((name, keeper)), _) => Ok((Some(*name), keeper)),
            (None, Some(own)) => Ok((None, own)),
            (None, None) => Err(StoreError::invalid(
                "this engine was made without a store for wake times",
            )),
        }
    }

    /// Who keeps that of a tenant that was opened.
    fn serving(&self, tenant: &TenantId) -> StoreResult<(Option<&'static str>, &Keeper)> {
        let serving = match self.provider.combined() {
            Some(combined) => combined.serving(tenant),
            None => Some(self.provider.clone()),
        };
        self.kept_by(serving.map(|provider| provider.name()))
    }

    fn all(&self) -> impl Iterator<Item = (Option<&'static str>, &Keeper)> {
        let own = self.own.iter().map(|own| (None, own));
        own.chain(self.shared.iter().map(|(name, kept)| (Some(*name), kept)))
    }

    /// Has the wake time go with a tenant from one provider to another: it is there before the tenant is. What is
    /// left behind, to be cleared once the tenant is there for good.
    pub(super) async fn carry(
        &self,
        tenant: &TenantId,
        (from, to): (&dyn Provider, &dyn Provider),
    ) -> StoreResult<Vec<DueTenant>> {
        let Ok((kept_by, old)) = self.kept_by(Some(from.name())) else {
            return Ok(Vec::new());
        };
        let Some(wake) = old.get(tenant).await? else {
            return Ok(Vec::new());
        };
        let (then_kept_by, new) = self.kept_by(Some(to.name()))?;
        if kept_by == then_kept_by {
            return Ok(Vec::new());
        }
        new.lower(tenant, wake.at_ms).await?;
        Ok(vec![DueTenant { wake, kept_by }])
    }

    /// The wake times of a tenant, wherever they are.
    pub(super) async fn of(&self, tenant: &TenantId) -> Vec<DueTenant> {
        let mut found = Vec::new();
        for (kept_by, keeper) in self.all() {
            match keeper.get(tenant).await {
                Ok(wake) => found.extend(wake.map(|wake| DueTenant { wake, kept_by })),
                Err(error) => tracing::warn!(%tenant, %error, "looking for a wake time"),
            }
        }
        found
    }

    /// Clears wake times of a tenant that is gone from where they are, unless they are others by now. One that is left
    /// is cleared by whoever finds that nothing is due.
    pub(super) async fn clear(&self, left: &[DueTenant]) {
        for due in left {
            let cleared = match self.kept_by(due.kept_by) {
                Ok((_, keeper)) => keeper.replace(&due.wake, None).await,
                Err(_) => continue,
            };
            if let Err(error) = cleared {
                let tenant = due.tenant();
                tracing::warn!(%tenant, %error, "clearing a wake time");
            }
        }
    }
}

/// Lowers the wake time of one tenant, once for all transactions that wait for it.
#[derive(Default)]
pub(crate) struct Lowering {
    /// The least time that is wanted, and the number of the call that takes it.
    wanted: Mutex<(Option<u64>, u64)>,
    /// How many calls succeeded or were followed by one that did, and what those took that did neither: their
    /// transactions may have failed, and those of others that waited for them have not.
    done: tokio::sync::Mutex<(u64, Option<u64>)>,
}

impl Lowering {
    /// Has the wake time be at most `at_ms`, by `call_it` if need be, which lowers it durably to what it is given.
    ///
    /// # Errors
    /// The call's failure.
    async fn lower<F>(&self, at_ms: u64, call_it: impl FnOnce(u64) -> F) -> StoreResult<()>
    where
        F: Future<Output = StoreResult<()>>,
    {
        let call = {
            let mut wanted = lock(&self.wanted);
            wanted.0 = Some(wanted.0.map_or(at_ms, |at| at.min(at_ms)));
            wanted.1
        };
        let mut done = self.done.lock().await;
        if done.0 > call {
            return Ok(());
        }
        let (taken, call) = {
            let mut wanted = lock(&self.wanted);
            wanted.1 += 1;
            (wanted.0.take(), wanted.1)
        };
        let least = [taken, done.1].into_iter().flatten().fold(at_ms, u64::min);
        // Kept until it is done, also where this is given up in between.
        done.1 = Some(least);
        call_it(least).await?;
        *done = (call, None);
        Ok(())
    }
}

async fn lower(keeper: &Keeper, tenant: &TenantId, at_ms: u64) -> ProviderResult<()> {
    let mut tries = 1;
    loop {
        match keeper.lower(tenant, at_ms).await {
            Err(ProviderError::Busy { .. }) if tries < TRIES => tries += 1,
            done => return done,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Transaction {
    /// Has those who look for work from now on make this transaction run again, if it schedules some: when.
    pub(super) fn meet_fence(&mut self) -> Option<u64> {
        let at_ms = self.wanted_wake()?;
        // Its value does not matter.
        self.view.rely_on(Keyspace::Jobs, FENCE_KEY);
        Some(at_ms)
    }
}

/// Announces work that a transaction schedules which met the fence, durably.
///
/// # Errors
/// `InvalidInput` if nobody keeps wake times of such tenants; the keeper's failure.
pub(super) async fn announce(tenant: &TenantInner, at_ms: Option<u64>) -> StoreResult<()> {
    let Some(at_ms) = at_ms else { return Ok(()) };
    let call = async |at_ms| {
        let (_, keeper) = tenant.shared.wakes.serving(&tenant.id)?;
        Ok(lower(keeper, &tenant.id, at_ms).await?)
    };
    tenant.lowering.lower(at_ms, call).await
}

impl Tenant {
    /// From here on everything that was scheduled is seen, and what is not seen announces itself again.
    async fn raise_fence(&self) -> StoreResult<()> {
        let raised = self.transact(|tx| {
            Box::pin(async move {
                let mut look = [0; 16];
                fill_random(&mut look)?;
                let look = data_encoding::HEXLOWER.encode(&look);
                let after = Bytes::from(serde_json::json!({ "look": look }).to_string());
                let before = tx.view.get(Keyspace::Jobs, FENCE_KEY).await?;
                tx.view.put(Keyspace::Jobs, FENCE_KEY, before, Some(after))
            })
        });
        raised.await
    }
}

impl Engine {
    /// Tenants that want to be woken by now, earliest first: those of this server, and of all servers that share a
    /// provider. Several may be told of the same tenant; that its work is done once is for its transactions to see to.
    /// A provider that does not answer is left out.
    ///
    /// # Errors
    /// `InvalidInput` if nobody keeps wake times; the failure of the last one if all fail.
    pub async fn due_tenants(&self, now_ms: u64, limit: usize) -> StoreResult<Vec<DueTenant>> {
        let wakes = &self.inner.shared.wakes;
        let (mut due, mut answered) = (Vec::new(), false);
        let mut failed = wakes.kept_by(None).err();
        for (kept_by, keeper) in wakes.all() {
            match keeper.due(now_ms, limit).await {
                Ok(found) => {
                    answered = true;
                    due.extend(found.into_iter().map(|wake| DueTenant { wake, kept_by }));
                }
                Err(error) => {
                    let who = kept_by.unwrap_or("this server");
                    tracing::warn!(who, %error, "looking for tenants that are due");
                    failed = Some(error.into());
                }
            }
        }
        if let (false, Some(error)) = (answered, failed) {
            return Err(error);
        }
        due.sort_by(|a, b| (a.at_ms(), a.tenant()).cmp(&(b.at_ms(), b.tenant())));
        due.truncate(limit);
        Ok(due)
    }

    /// The tenant, opened if need be, to look for its work: all that was announced until now is there, or is going to be
    /// announced again. Takes a commit.
    ///
    /// # Errors
    /// As [`Engine::tenant`] and [`Tenant::transact`]. With `TenantNotFound` the wake time is cleared.
    pub async fn due_tenant(&self, due: &DueTenant) -> StoreResult<Tenant> {
        let opened = async {
            let tenant = self.tenant(due.tenant()).await?;
            tenant.raise_fence().await?;
            Ok(tenant)
        };
        let opened = opened.await;
        if let Err(StoreError::TenantNotFound { .. }) = opened {
            // Its deletion was cut off, or it was never more than the copy of a move.
            let left = std::slice::from_ref(due);
            self.inner.shared.wakes.clear(left).await;
        }
        opened
    }

    /// Sets or clears the wake time of a tenant from [`Engine::due_tenant`], where no work was found that is due. False if
    /// it is another one by now, since somebody announced work or looked as well: then it stays, and [`Engine::due_tenants`]
    /// tells of it if it is due.
    ///
    /// # Errors
    /// `InvalidInput` if nobody keeps wake times of such tenants; the keeper's failure.
    pub async fn set_wake(&self, due: &DueTenant, at_ms: Option<u64>) -> StoreResult<bool> {
        let wakes = &self.inner.shared.wakes;
        let (_, told) = wakes.kept_by(due.kept_by)?;
        let (kept_by, serving) = wakes.serving(due.tenant())?;
        if kept_by == due.kept_by {
            return Ok(told.replace(&due.wake, at_ms).await?);
        }
        // It was moved, or this comes from a version that kept the time elsewhere.
        if let Some(at_ms) = at_ms {
            lower(serving, due.tenant(), at_ms).await?;
        }
        Ok(told.replace(&due.wake, None).await?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    /// What a call took that failed, the next one does for those who waited for it.
    #[tokio::test]
    async fn a_failed_call_is_made_up_for() {
        let lowering = Lowering::default();
        let tried = Mutex::new(Vec::new());
        let call = |at_ms: u64, fails: bool| {
            let tried = &tried;
            lowering.lower(at_ms, move |least| async move {
                lock(tried).push(least);
                match fails {
                    true => Err(StoreError::Closed),
                    false => Ok(()),
                }
            })
        };
        let held = lowering.done.lock().await;
        let waiting = async { tokio::join!(call(10, true), call(1_000, false), call(3, false)) };
        let ((first, second, third), ()) = tokio::join!(waiting, async { drop(held) });
        assert!(first.is_err());
        second.unwrap();
        third.unwrap();
        assert_eq!(*lock(&tried), [3, 3]);
        call(7, false).await.unwrap();
        assert_eq!(lock(&tried).last(), Some(&7), "nothing is owed any more");
    }
}
