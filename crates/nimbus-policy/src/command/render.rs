//! The answers as text for people. Everything that comes from a file and may hold any letter is escaped first.

use std::fmt::Write as _;

use crate::decision::{Acceptance, Policy};
use crate::diff::{Change, ChangeKind, DiffReport};
use crate::prove::Proof;
use crate::report::{Enforcement, ExplainReport};
use crate::text::{file_name, prose};

pub(super) fn validate(policy: &Policy) -> String {
    let mut out = format!("valid: {}\n", file_name(&policy.file));
    head(policy, &mut out);
    for decision in &policy.decisions {
        let _ = writeln!(out, "- {} -> {}", decision.key, decision.id);
    }
    out
}

fn head(policy: &Policy, out: &mut String) {
    let _ = writeln!(out, "policy:    {}", prose(&policy.name));
    let _ = writeln!(out, "tenant:    {}", policy.tenant);
    let _ = writeln!(out, "decisions: {}", policy.decisions.len());
}

pub(super) fn explain(policy: &Policy, report: &ExplainReport) -> String {
    let mut out = String::new();
    head(policy, &mut out);
    for (name, value) in policy.quotas.parts() {
        if let Some(value) = value {
            let mark = Enforcement::Enforced.text();
            let _ = writeln!(out, "tenant:    may take up {name} {value} [{mark}]");
        }
    }
    for decision in report.decisions() {
        let _ = writeln!(
            out,
            "\n{}\n  {}",
            decision.workload_key, decision.decision_id
        );
        for line in &decision.trace {
            let mark = line.enforcement.text();
            let _ = writeln!(out, "  {:<9} {} [{mark}]", line.grant, line.text);
        }
    }
    let _ = writeln!(
        out,
        "\n[{}] by a server that has the policy: `nimbus start --policy-dir`, or PUT /api/tenants/{}/policy\n\
         [{}] this server has no such thing, or the workload runs elsewhere; whoever runs it must see to it",
        Enforcement::Enforced.text(),
        policy.tenant,
        Enforcement::NotEnforcedHere.text(),
    );
    out
}

pub(super) fn prove(policy: &Policy, proof: &Proof<'_>) -> String {
    let mut out = String::new();
    for advisory in &proof.advisories {
        let state = match advisory.accepted {
            Some(_) if advisory.is_silenced(proof.now) => "accepted",
            Some(_) => "expired",
            None => "open",
        };
        let _ = writeln!(
            out,
            "{state}: {} {} in {} ({}:{}:{})",
            advisory.severity,
            advisory.kind,
            advisory.workload,
            file_name(&policy.file),
            advisory.place.line,
            advisory.place.column,
        );
        let _ = writeln!(out, "  {}", advisory.message);
        let _ = writeln!(out, "  id: {}", advisory.id);
        if let Some(accepted) = advisory.accepted {
            let _ = writeln!(out, "  {}", acceptance(accepted));
        }
        out.push('\n');
    }
    for accepted in &proof.stale {
        let _ = writeln!(
            out,
            "stale: the accepted risk {} matches no advisory",
            accepted.advisory_id
        );
        let _ = writeln!(out, "  {}", acceptance(accepted));
        let _ = writeln!(
            out,
            "  remove it; a changed grant has a new id and is to be reviewed again\n"
        );
    }
    let silent = |accepted: &&&Acceptance| {
        proof
            .stale
            .iter()
            .all(|stale| stale.advisory_id != accepted.advisory_id)
    };
    for accepted in proof.expired.iter().filter(silent) {
        let until = accepted
            .expires
            .as_ref()
            .map(|expiry| expiry.text.as_str())
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "expired: the accepted risk {} counted until {until}",
            accepted.advisory_id
        );
        let _ = writeln!(
            out,
            "  review it and set a new date, or take the grant away\n"
        );
    }
    let (count, open) = (proof.advisories.len(), proof.open());
    let _ = writeln!(
        out,
        "tenant {}: {} checked, {}: {} accepted, {open} open; {} stale, {} expired",
        policy.tenant,
        counted(policy.decisions.len(), "workload"),
        if count == 1 {
            "1 advisory".to_owned()
        } else {
            format!("{count} advisories")
        },
        count - open,
        counted(proof.stale.len(), "acceptance"),
        proof.expired.len(),
    );
    out
}

fn acceptance(accepted: &Acceptance) -> String {
    let until = accepted
        .expires
        .as_ref()
        .map(|expiry| format!(" until {}", expiry.text));
    format!(
        "accepted by {}{}: {}",
        prose(&accepted.approved_by),
        until.unwrap_or_default(),
        prose(&accepted.reason)
    )
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

pub(super) fn diff(report: &DiffReport) -> String {
    let mut out = String::new();
    for change in &report.policy_changes {
        line(change, "", &mut out);
    }
    for workload in &report.added_workloads {
        let _ = writeln!(
            out,
            "added: {} -> {}",
            workload.workload_key, workload.decision_id
        );
    }
    for workload in &report.removed_workloads {
        let _ = writeln!(
            out,
            "removed: {} -> {}",
            workload.workload_key, workload.decision_id
        );
    }
    for workload in &report.changed_workloads {
        let _ = writeln!(
            out,
            "changed: {} ({}, {})",
            workload.workload_key,
            workload.authority.text(),
            workload.lifecycle
        );
        for change in &workload.changes {
            line(change, "  ", &mut out);
        }
    }
    if report.is_empty() {
        out.push_str("no change\n");
    }
    let _ = writeln!(out, "Authority: {}", report.authority.text());
    let _ = writeln!(out, "Lifecycle: {}", report.lifecycle);
    out
}

fn line(change: &Change, indent: &str, out: &mut String) {
    let subject = change
        .subject
        .as_deref()
        .map(|subject| format!(" `{subject}`"));
    let _ = writeln!(
        out,
        "{indent}{} {}{} ({})",
        change.area,
        change.change,
        subject.unwrap_or_default(),
        change.effect.text()
    );
    let named = change.subject.as_ref();
    let told = |value: &Option<String>| {
        value
            .as_ref()
            .filter(|value| named != Some(*value))
            .map(|value| prose(value))
    };
    if let Some(before) = told(&change.before).filter(|_| change.change != ChangeKind::Added) {
        let _ = writeln!(out, "{indent}  - {before}");
    }
    if let Some(after) = told(&change.after) {
        let _ = writeln!(out, "{indent}  + {after}");
    }
}
