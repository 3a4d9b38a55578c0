//! How the shared registry writes a tenant's state, and what this server last saw in it.
//!
//! Must not decide whether a tenant exists: the registry in the database is the only truth, and what is
//! remembered here serves questions that may not wait.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nimbus_core::TenantId;

use crate::control::TenantState;

/// The text of a state in the registry.
pub(crate) const fn state_name(state: TenantState) -> &'static str {
    match state {
        TenantState::Creating => "creating",
        TenantState::Ready => "ready",
        TenantState::Deleting => "deleting",
    }
}

/// The state with this text.
pub(crate) fn state_of(name: &str) -> Option<TenantState> {
    [
        TenantState::Creating,
        TenantState::Ready,
        TenantState::Deleting,
    ]
    .into_iter()
    .find(|state| state_name(*state) == name)
}

/// The tenants that were ready when this server last looked.
#[derive(Default)]
pub(crate) struct Known(Mutex<BTreeSet<TenantId>>);

impl Known {
    pub(crate) fn contains(&self, tenant: &TenantId) -> bool {
        self.set().contains(tenant)
    }

    /// Remembers what was found about one tenant.
    pub(crate) fn note(&self, tenant: &TenantId, is_ready: bool) {
        let mut set = self.set();
        match is_ready {
            true => set.insert(tenant.clone()),
            false => set.remove(tenant),
        };
    }

    /// Remembers a whole list.
    pub(crate) fn replace(&self, tenants: &[TenantId]) {
        *self.set() = tenants.iter().cloned().collect();
    }

    fn set(&self) -> MutexGuard<'_, BTreeSet<TenantId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn states_are_written_and_read() {
        for state in [
            TenantState::Creating,
            TenantState::Ready,
            TenantState::Deleting,
        ] {
            assert_eq!(state_of(state_name(state)), Some(state));
        }
        assert_eq!(state_of("Ready"), None);
    }
}
