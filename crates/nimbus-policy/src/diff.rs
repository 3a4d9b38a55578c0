//! What changed between two versions of a policy, and whether anyone may do more than before (nimbus.md 6.5).
//!
//! Knows no files. Two grants that cannot be compared (another image, another sandbox) count as widened: what was
//! reviewed is no longer what is granted.

mod grants;

use schemars::JsonSchema;
use serde::Serialize;

use crate::decision::{Acceptance, Decision, Policy};
use crate::decode::choice;
use crate::schema::SandboxBackend;

choice! {
    /// What a change does to the authority of a workload.
    Effect {
        /// Less is allowed than before.
        Narrowed = "narrowed",
        /// As much is allowed as before.
        Unchanged = "unchanged",
        /// More is allowed than before, or something else.
        Widened = "widened",
        /// More of one thing and less of another.
        WidenedAndNarrowed = "widened_and_narrowed",
    }
}

choice! {
    /// How the change takes effect.
    Lifecycle {
        /// While the workload runs.
        DynamicReload = "dynamic_reload",
        /// Once the workload is made anew.
        RecreateRequired = "recreate_required",
    }
}

choice! {
    /// What happened to a grant.
    ChangeKind {
        /// It was not there before.
        Added = "added",
        /// It is there no more.
        Removed = "removed",
        /// It is another.
        Changed = "changed",
    }
}

impl Effect {
    /// More, less, or both.
    pub(crate) fn of(widened: bool, narrowed: bool) -> Effect {
        match (widened, narrowed) {
            (true, true) => Effect::WidenedAndNarrowed,
            (true, false) => Effect::Widened,
            (false, true) => Effect::Narrowed,
            (false, false) => Effect::Unchanged,
        }
    }

    fn widens(self) -> bool {
        matches!(self, Effect::Widened | Effect::WidenedAndNarrowed)
    }

    fn narrows(self) -> bool {
        matches!(self, Effect::Narrowed | Effect::WidenedAndNarrowed)
    }

    fn sum(effects: impl Iterator<Item = Effect> + Clone) -> Effect {
        Effect::of(
            effects.clone().any(Effect::widens),
            effects.clone().any(Effect::narrows),
        )
    }

    /// For people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Effect::WidenedAndNarrowed => "widened and narrowed",
            other => other.name(),
        }
    }
}

/// `nimbus policy diff -f json`.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "What changed between two policy files")]
pub struct DiffReport {
    /// Of the newer file.
    pub(crate) tenant_id: String,
    /// Of everything together.
    pub(crate) lifecycle: Lifecycle,
    /// Of everything together; an added workload widens, a removed one narrows.
    pub(crate) authority: Effect,
    pub(crate) added_workloads: Vec<WorkloadReport>,
    pub(crate) removed_workloads: Vec<WorkloadReport>,
    pub(crate) changed_workloads: Vec<ChangedReport>,
    /// Changes outside of workloads.
    pub(crate) policy_changes: Vec<Change>,
}

/// A workload that is in one of the files only.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct WorkloadReport {
    pub(crate) workload_key: String,
    pub(crate) decision_id: String,
}

/// A workload whose decision is another.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct ChangedReport {
    pub(crate) workload_key: String,
    before_decision_id: String,
    after_decision_id: String,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) authority: Effect,
    pub(crate) changes: Vec<Change>,
}

/// One change.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Change {
    /// What kind of grant it is about, such as `sandbox egress`.
    pub(crate) area: &'static str,
    /// Which one, where there can be several; no secret handle.
    pub(crate) subject: Option<String>,
    pub(crate) change: ChangeKind,
    pub(crate) effect: Effect,
    pub(crate) before: Option<String>,
    pub(crate) after: Option<String>,
}

impl DiffReport {
    /// Whether anyone may do more than before, or something else.
    #[must_use]
    pub fn widens(&self) -> bool {
        self.authority.widens()
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added_workloads.is_empty()
            && self.removed_workloads.is_empty()
            && self.changed_workloads.is_empty()
            && self.policy_changes.is_empty()
    }
}

/// Compares two versions of a policy.
#[must_use]
pub fn diff(before: &Policy, after: &Policy) -> DiffReport {
    let only = |here: &Policy, there: &Policy| -> Vec<WorkloadReport> {
        let missing = here
            .decisions
            .iter()
            .filter(|decision| find(there, decision).is_none());
        missing
            .map(|decision| WorkloadReport {
                workload_key: decision.key.clone(),
                decision_id: decision.id.to_string(),
            })
            .collect()
    };
    let (added, removed) = (only(after, before), only(before, after));
    let changed: Vec<ChangedReport> = after
        .decisions
        .iter()
        .filter_map(|decision| changed(find(before, decision)?, decision))
        .collect();
    let policy = policy_changes(before, after);
    let inner = changed.iter().map(|workload| workload.authority);
    let outer = policy.iter().map(|change| change.effect);
    let sum = Effect::sum(inner.chain(outer));
    let recreate = before.tenant != after.tenant
        || !added.is_empty()
        || !removed.is_empty()
        || changed
            .iter()
            .any(|workload| workload.lifecycle == Lifecycle::RecreateRequired);
    DiffReport {
        tenant_id: after.tenant.to_string(),
        lifecycle: lifecycle(recreate),
        authority: Effect::of(
            sum.widens() || !added.is_empty(),
            sum.narrows() || !removed.is_empty(),
        ),
        added_workloads: added,
        removed_workloads: removed,
        changed_workloads: changed,
        policy_changes: policy,
    }
}

fn find<'a>(policy: &'a Policy, decision: &Decision) -> Option<&'a Decision> {
    let at = policy
        .decisions
        .binary_search_by(|other| other.key.cmp(&decision.key));
    at.ok().and_then(|at| policy.decisions.get(at))
}

fn lifecycle(recreate: bool) -> Lifecycle {
    if recreate {
        Lifecycle::RecreateRequired
    } else {
        Lifecycle::DynamicReload
    }
}

fn changed(before: &Decision, after: &Decision) -> Option<ChangedReport> {
    if before.id == after.id {
        return None;
    }
    let changes = grants::changes(before, after);
    let container = |decision: &Decision| {
        let sandbox = decision.sandbox.as_ref();
        sandbox.and_then(|sandbox| sandbox.backend) == Some(SandboxBackend::Container)
    };
    let containers = container(before) && container(after);
    let dynamic = |change: &Change| match change.area {
        grants::AUDIT => true,
        // The filter in front of a container can be exchanged; a machine's network is made with it.
        grants::EGRESS => containers,
        _ => false,
    };
    Some(ChangedReport {
        workload_key: after.key.clone(),
        before_decision_id: before.id.to_string(),
        after_decision_id: after.id.to_string(),
        lifecycle: lifecycle(!changes.iter().all(dynamic)),
        authority: Effect::sum(changes.iter().map(|change| change.effect)),
        changes,
    })
}

fn policy_changes(before: &Policy, after: &Policy) -> Vec<Change> {
    let mut changes = Vec::new();
    if before.tenant != after.tenant {
        changes.push(Change {
            area: "tenant",
            subject: None,
            change: ChangeKind::Changed,
            effect: Effect::Widened,
            before: Some(before.tenant.to_string()),
            after: Some(after.tenant.to_string()),
        });
    }
    if before.name != after.name {
        changes.push(Change {
            area: "policy name",
            subject: None,
            change: ChangeKind::Changed,
            effect: Effect::Unchanged,
            before: Some(before.name.clone()),
            after: Some(after.name.clone()),
        });
    }
    grants::limits(&before.limits, &after.limits, &mut changes);
    grants::tenant_quotas(before.quotas, after.quotas, &mut changes);
    acceptances(before, after, &mut changes);
    changes
}

/// Acceptances grant nothing, but who reviews a change wants to see them.
fn acceptances(before: &Policy, after: &Policy, changes: &mut Vec<Change>) {
    let told = |accepted: &Acceptance| {
        let until = accepted
            .expires
            .as_ref()
            .map(|expiry| format!(" until {}", expiry.text));
        format!(
            "by {}{}: {}",
            crate::text::prose(&accepted.approved_by),
            until.unwrap_or_default(),
            crate::text::prose(&accepted.reason)
        )
    };
    let of = |policy: &'_ Policy, id: &str| {
        policy
            .acceptances
            .iter()
            .find(|accepted| accepted.advisory_id == id)
            .map(told)
    };
    let ids = before.acceptances.iter().chain(&after.acceptances);
    let ids: std::collections::BTreeSet<&str> =
        ids.map(|accepted| accepted.advisory_id.as_str()).collect();
    for id in ids {
        let (was, is) = (of(before, id), of(after, id));
        if was != is {
            changes.push(Change {
                area: "accepted risks",
                subject: Some(id.to_owned()),
                change: grants::kind(was.is_some(), is.is_some()),
                effect: Effect::Unchanged,
                before: was,
                after: is,
            });
        }
    }
}
