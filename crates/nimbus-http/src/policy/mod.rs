//! What policies say of each tenant, wherever they are kept: the one place that server, functions and storage ask.
//!
//! Policies come from a directory ([`directory`]) or from the tenants themselves, never from both. This room must not
//! know routes or what a request looks like.

pub(crate) mod authority;
pub(crate) mod directory;
mod rates;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nimbus_core::TenantId;
use nimbus_policy::{Source, Surface, TenantQuotas, compile};
use nimbus_storage::StoredPolicy;

use authority::Authority;
use directory::PolicyDirectory;
use rates::Rates;

/// Numbers for authorities; 0 is that of the flags.
static STAMPS: AtomicU64 = AtomicU64::new(1);

fn next_stamp() -> u64 {
    STAMPS.fetch_add(1, Ordering::Relaxed)
}

/// What was refused by a policy, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A request that a function wanted to send.
    Egress,
    /// A variable that is set and was not shown to a function.
    Secret,
    /// A request by a way that the tenant does not expose.
    Surface,
    /// A request beyond the tenant's rate.
    Rate,
    /// A function that must not run in this server.
    Function,
}

impl Refusal {
    const ALL: [Refusal; 5] = [
        Refusal::Egress,
        Refusal::Secret,
        Refusal::Surface,
        Refusal::Rate,
        Refusal::Function,
    ];

    fn name(self) -> &'static str {
        match self {
            Refusal::Egress => "egress",
            Refusal::Secret => "secret",
            Refusal::Surface => "surface",
            Refusal::Rate => "rate",
            Refusal::Function => "function",
        }
    }
}

/// A policy that a tenant keeps, compiled.
#[derive(Debug)]
struct Kept {
    version: u64,
    /// Of a tenant of the same name that was deleted, it would be another.
    created_ms: u64,
    authority: Authority,
}

/// What governs all tenants.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    directory: Option<PolicyDirectory>,
    kept: Mutex<HashMap<TenantId, Kept>>,
    /// Stamp of the authority whose quotas the store was told.
    told: Mutex<HashMap<TenantId, u64>>,
    rates: Rates,
    refusals: [AtomicU64; Refusal::ALL.len()],
}

impl Policies {
    /// Those of a directory; of the tenants themselves without one.
    pub(crate) fn new(directory: Option<PolicyDirectory>) -> Policies {
        Policies {
            directory,
            ..Policies::default()
        }
    }

    /// The directory, if policies come from one.
    pub(crate) fn directory(&self) -> Option<&PolicyDirectory> {
        self.directory.as_ref()
    }

    /// What governs a tenant that keeps this policy.
    pub(crate) fn authority(&self, tenant: &TenantId, stored: Option<&StoredPolicy>) -> Authority {
        if let Some(directory) = &self.directory {
            let loaded = directory.loaded();
            let file = loaded.files.get(tenant);
            let authority = file.map_or(&loaded.others, |file| &file.authority);
            return authority.clone();
        }
        let Some(stored) = stored else {
            return Authority::flags();
        };
        let same = |known: &&Kept| {
            (known.version, known.created_ms) == (stored.version, stored.created_ms)
        };
        if let Some(known) = lock(&self.kept).get(tenant).filter(same) {
            return known.authority.clone();
        }
        // Not under the lock, which every request takes.
        let authority = compiled(tenant, stored);
        let mut kept = lock(&self.kept);
        // Another request may have been faster, or know a newer version.
        let newest = |known: &&Kept| {
            known.created_ms >= stored.created_ms && known.version >= stored.version
        };
        if let Some(known) = kept.get(tenant).filter(newest) {
            return known.authority.clone();
        }
        let entry = Kept {
            version: stored.version,
            created_ms: stored.created_ms,
            authority: authority.clone(),
        };
        kept.insert(tenant.clone(), entry);
        authority
    }

    /// Has `tell` called with what the tenant may take up, unless that is known already, or something newer is: stamps
    /// of one tenant go up.
    pub(crate) fn tell_quotas(
        &self,
        tenant: &TenantId,
        authority: &Authority,
        tell: impl FnOnce(TenantQuotas),
    ) {
        let mut told = lock(&self.told);
        let known = told.get(tenant).copied().unwrap_or_default();
        if known < authority.stamp() {
            tell(authority.quotas());
            told.insert(tenant.clone(), authority.stamp());
        }
    }

    /// Takes a request of a tenant by this way, from someone who is no operator.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn take_request(
        &self,
        tenant: &TenantId,
        authority: &Authority,
        surface: Surface,
    ) -> Result<(), Refused> {
        if !authority.exposes(surface) {
            self.count(Refusal::Surface);
            return Err(Refused::Surface { surface });
        }
        let Some(rate) = authority.quotas().requests_per_second else {
            return Ok(());
        };
        self.rates
            .take(tenant, rate, Instant::now())
            .map_err(|retry_after| {
                self.count(Refusal::Rate);
                Refused::Rate { rate, retry_after }
            })
    }

    /// Forgets a tenant that is deleted.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        lock(&self.kept).remove(tenant);
        lock(&self.told).remove(tenant);
        self.rates.forget(tenant);
    }

    /// Counts a refusal.
    pub(crate) fn count(&self, refusal: Refusal) {
        self.refusals[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Refusals since the start, by kind.
    pub(crate) fn refusals(&self) -> [(&'static str, u64); Refusal::ALL.len()] {
        let count = |kind: Refusal| self.refusals[kind as usize].load(Ordering::Relaxed);
        Refusal::ALL.map(|kind| (kind.name(), count(kind)))
    }

    /// Tenants whose own policies were used since the start, with their versions.
    pub(crate) fn kept(&self) -> Vec<(TenantId, u64, Authority)> {
        let kept = lock(&self.kept);
        let mut all: Vec<_> = kept
            .iter()
            .map(|(tenant, kept)| (tenant.clone(), kept.version, kept.authority.clone()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Looks for changes of the directory as long as the server runs.
    pub(crate) async fn watch(self: Arc<Policies>) {
        let Some(directory) = self.directory.clone() else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(directory::LOOK_EVERY).await;
            let looked = directory.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || looked.look()).await {
                tracing::error!(%error, "the look at the policies panicked");
            }
        }
    }
}

/// Why a request of a tenant is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the policy of this tenant does not expose `{}`", surface.name())]
    Surface { surface: Surface },
    #[error("the policy of this tenant allows {rate} requests in a second")]
    Rate { rate: u64, retry_after: Duration },
}

fn compiled(tenant: &TenantId, stored: &StoredPolicy) -> Authority {
    let source = Source::new("policy", stored.text.as_bytes().to_vec());
    match compile(&source) {
        Ok(policy) if policy.tenant() == tenant => Authority::of(next_stamp(), policy),
        // It was checked when it was put: an older server reads what a newer one wrote, or a backup was restored
        // under another name.
        other => {
            let why = match other {
                Ok(policy) => format!("it is for the tenant `{}`", policy.tenant()),
                Err(invalid) => invalid.render(false),
            };
            let version = stored.version;
            tracing::error!(%tenant, version, "the policy of a tenant cannot be enforced, so nothing is granted: {why}");
            Authority::nothing(next_stamp())
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
