//! Workloads that stand for a part of the server: what a tenant exposes, and what the server does for it.
//!
//! Knows names alone; the server says which requests are which.

use crate::decision::{Decision, Policy};
use crate::schema::WorkloadKind;

/// The `system_task` that stands for a deployment: its secrets are the variables that modules see while they are
/// analysed.
pub const DEPLOY_TASK: &str = "deploy";

/// A way to reach a tenant over HTTP, named as in the audit log. A policy exposes it with a workload of the kind
/// `http_request` and this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Surface {
    /// `/api/tenants/{tenant}` with keys of the tenant.
    NativeApi,
    /// `/convex/{tenant}`: its functions, with or without a key.
    ConvexHttp,
}

impl Surface {
    /// All of them.
    pub const ALL: [Surface; 2] = [Surface::NativeApi, Surface::ConvexHttp];

    /// The name of the workload.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Surface::NativeApi => "native_api",
            Surface::ConvexHttp => "convex_http",
        }
    }

    pub(crate) const fn text(self) -> &'static str {
        match self {
            Surface::NativeApi => "those below /api/tenants, with keys of the tenant",
            Surface::ConvexHttp => "those below /convex, with or without a key",
        }
    }

    pub(crate) fn of(decision: &Decision) -> Option<Surface> {
        let named = |surface: &Surface| surface.name() == decision.name;
        let found = Surface::ALL.into_iter().find(named);
        found.filter(|_| decision.kind == WorkloadKind::HttpRequest)
    }
}

impl Policy {
    /// Whether the tenant takes requests this way.
    #[must_use]
    pub fn exposes(&self, surface: Surface) -> bool {
        self.decision(WorkloadKind::HttpRequest, surface.name())
            .is_some()
    }
}
