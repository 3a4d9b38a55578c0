//! Grants of two decisions, compared one family after the other.
//!
//! Every part of a decision is here: a decision whose id changed has at least one change.

use std::collections::BTreeSet;

use super::{Change, ChangeKind, Effect};
use crate::decision::{Decision, Image, Limits, Sandbox, TenantQuotas};
use crate::egress::EgressRule;
use crate::report::{egress_line, image_line, sandbox_line};
use crate::schema::{IsolationMode, RuntimeProfile, SandboxBackend};

/// The area of audit redactions.
pub(super) const AUDIT: &str = "audit redactions";
/// The area of outbound rules.
pub(super) const EGRESS: &str = "sandbox egress";

/// Every change from one decision to the other.
pub(super) fn changes(before: &Decision, after: &Decision) -> Vec<Change> {
    let mut out = Vec::new();
    runtime(before, after, &mut out);
    sandbox(before.sandbox.as_ref(), after.sandbox.as_ref(), &mut out);
    sets(
        "services",
        &before.services,
        &after.services,
        More::Widens,
        &mut out,
    );
    endpoints(before, after, &mut out);
    egress(before.egress.rules(), after.egress.rules(), &mut out);
    if before.tenant != after.tenant {
        let values = (before.tenant.to_string(), after.tenant.to_string());
        out.push(changed("storage namespace", values, Effect::Widened));
    }
    sets(
        "volumes",
        &before.volumes,
        &after.volumes,
        More::Widens,
        &mut out,
    );
    image(before.image.as_ref(), after.image.as_ref(), &mut out);
    secrets(before, after, &mut out);
    quotas(before, after, &mut out);
    call_limits(before, after, &mut out);
    sets(
        AUDIT,
        &before.redactions,
        &after.redactions,
        More::Narrows,
        &mut out,
    );
    out
}

/// What having more of something does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Widens,
    Narrows,
}

impl More {
    fn effect(self, more: bool, less: bool) -> Effect {
        match self {
            More::Widens => Effect::of(more, less),
            More::Narrows => Effect::of(less, more),
        }
    }
}

/// Added, removed or changed, by what was there and what is.
pub(super) fn kind(was: bool, is: bool) -> ChangeKind {
    match (was, is) {
        (false, _) => ChangeKind::Added,
        (true, false) => ChangeKind::Removed,
        (true, true) => ChangeKind::Changed,
    }
}

fn changed(area: &'static str, (before, after): (String, String), effect: Effect) -> Change {
    Change {
        area,
        subject: None,
        change: ChangeKind::Changed,
        effect,
        before: Some(before),
        after: Some(after),
    }
}

fn one(
    area: &'static str,
    subject: Option<&str>,
    (before, after): (Option<String>, Option<String>),
    effect: Effect,
) -> Change {
    Change {
        area,
        subject: subject.map(str::to_owned),
        change: kind(before.is_some(), after.is_some()),
        effect,
        before,
        after,
    }
}

fn sets(
    area: &'static str,
    before: &BTreeSet<String>,
    after: &BTreeSet<String>,
    more: More,
    out: &mut Vec<Change>,
) {
    for name in before.union(after) {
        let (was, is) = (before.contains(name), after.contains(name));
        if was != is {
            let values = (was.then(|| name.clone()), is.then(|| name.clone()));
            out.push(one(area, Some(name), values, more.effect(is, was)));
        }
    }
}

fn runtime(before: &Decision, after: &Decision, out: &mut Vec<Change>) {
    if before.isolation != after.isolation {
        let values = (before.isolation.to_string(), after.isolation.to_string());
        let widened = after.isolation == IsolationMode::LocalDevelopment;
        out.push(changed(
            "tenant isolation mode",
            values,
            Effect::of(widened, !widened),
        ));
    }
    if before.profile != after.profile {
        let values = (before.profile.to_string(), after.profile.to_string());
        // Node's interface has more than the web's; its versions are not compared.
        let node = |profile| profile != RuntimeProfile::WebStandard;
        let effect = Effect::of(
            !node(before.profile) && node(after.profile),
            node(before.profile) && !node(after.profile),
        );
        out.push(changed("runtime profile", values, effect));
    }
    if before.tier != after.tier {
        let values = (before.tier.to_string(), after.tier.to_string());
        // Tiers are in order, the strongest walls first.
        let effect = Effect::of(after.tier > before.tier, after.tier < before.tier);
        out.push(changed("runtime tier", values, effect));
    }
}

fn sandbox(before: Option<&Sandbox>, after: Option<&Sandbox>, out: &mut Vec<Change>) {
    let (Some(before), Some(after)) = (before, after) else {
        if before.is_some() || after.is_some() {
            // A sandbox is something that runs, so to have one is authority, whatever it is made of.
            let effect = Effect::of(after.is_some(), before.is_some());
            let values = (before.map(sandbox_line), after.map(sandbox_line));
            out.push(one("sandbox", None, values, effect));
        }
        return;
    };
    if before.backend != after.backend {
        let stronger = after.backend == Some(SandboxBackend::Krun);
        let word = |sandbox: &Sandbox| sandbox.backend.map(|backend| backend.to_string());
        let values = (word(before), word(after));
        out.push(one(
            "sandbox backend",
            None,
            values,
            Effect::of(!stronger, stronger),
        ));
    }
    if before.id != after.id {
        let effect = Effect::of(after.id.is_some(), after.id.is_none());
        let values = (before.id.clone(), after.id.clone());
        out.push(one("sandbox id", None, values, effect));
    }
}

fn endpoints(before: &Decision, after: &Decision, out: &mut Vec<Change>) {
    let of = |decision: &Decision, key: &(String, String)| {
        let found = decision
            .endpoints
            .iter()
            .find(|endpoint| (&endpoint.service, &endpoint.name) == (&key.0, &key.1));
        found.map(|endpoint| {
            let guest = endpoint
                .guest_port
                .map(|port| format!(", port {port} inside"));
            format!(
                "{} on {} port {}{}",
                endpoint.protocol,
                endpoint.host,
                endpoint.host_port,
                guest.unwrap_or_default()
            )
        })
    };
    let keys = before.endpoints.iter().chain(&after.endpoints);
    let keys: BTreeSet<(String, String)> = keys
        .map(|endpoint| (endpoint.service.clone(), endpoint.name.clone()))
        .collect();
    for key in keys {
        let (was, is) = (of(before, &key), of(after, &key));
        if was != is {
            let effect = Effect::of(is.is_some(), is.is_none());
            let subject = format!("{}/{}", key.0, key.1);
            out.push(one("network endpoints", Some(&subject), (was, is), effect));
        }
    }
}

/// Rules are shown by name, but what they allow is compared with all rules of the other side: to rename a rule, or
/// to split one in two, is no widening.
fn egress(before: &[EgressRule], after: &[EgressRule], out: &mut Vec<Change>) {
    let of = |rules: &'_ [EgressRule], name: &str| -> Option<EgressRule> {
        rules.iter().find(|rule| rule.name == name).cloned()
    };
    let covered = |rule: Option<&EgressRule>, by: &[EgressRule]| {
        rule.is_none_or(|rule| by.iter().any(|other| other.covers(rule)))
    };
    let names: BTreeSet<&str> = before
        .iter()
        .chain(after)
        .map(|rule| rule.name.as_str())
        .collect();
    for name in names {
        let (was, is) = (of(before, name), of(after, name));
        if was != is {
            let effect = Effect::of(!covered(is.as_ref(), before), !covered(was.as_ref(), after));
            let values = (was.as_ref().map(egress_line), is.as_ref().map(egress_line));
            out.push(one(EGRESS, Some(name), values, effect));
        }
    }
}

fn image(before: Option<&Image>, after: Option<&Image>, out: &mut Vec<Change>) {
    let (Some(before), Some(after)) = (before, after) else {
        if before.is_some() || after.is_some() {
            // To run an image is authority, however much is asked of it.
            let effect = Effect::of(after.is_some(), before.is_some());
            out.push(one(
                "image",
                None,
                (before.map(image_line), after.map(image_line)),
                effect,
            ));
        }
        return;
    };
    if before.reference != after.reference {
        let values = (before.reference.clone(), after.reference.clone());
        // Without a reference any image will do that the rest allows; another reference is another program.
        let was = before.reference.is_some();
        out.push(one("image reference", None, values, Effect::of(was, !was)));
    }
    registries(&before.allowed_registries, &after.allowed_registries, out);
    if before.signature != after.signature {
        let told = |image: &Image| {
            image.signature.as_ref().map(|(issuer, subject)| {
                format!(
                    "{} by {}",
                    crate::text::prose(subject),
                    crate::text::prose(issuer)
                )
            })
        };
        let fresh = before.signature.is_none();
        out.push(one(
            "image signature",
            None,
            (told(before), told(after)),
            Effect::of(!fresh, fresh),
        ));
    }
    provenance(before, after, out);
    if before.sbom_required != after.sbom_required {
        let values = (
            before.sbom_required.to_string(),
            after.sbom_required.to_string(),
        );
        let effect = Effect::of(before.sbom_required, after.sbom_required);
        out.push(changed("image sbom required", values, effect));
    }
    if before.allow_local_build != after.allow_local_build {
        let values = (
            before.allow_local_build.to_string(),
            after.allow_local_build.to_string(),
        );
        let effect = Effect::of(after.allow_local_build, before.allow_local_build);
        out.push(changed("image local build", values, effect));
    }
}

/// A list that allows all while it is empty.
fn registries(before: &BTreeSet<String>, after: &BTreeSet<String>, out: &mut Vec<Change>) {
    if before == after {
        return;
    }
    let widened = !before.is_empty() && (after.is_empty() || !after.is_subset(before));
    let narrowed = !after.is_empty() && (before.is_empty() || !before.is_subset(after));
    let told = |set: &BTreeSet<String>| {
        if set.is_empty() {
            "any".to_owned()
        } else {
            set.iter().cloned().collect::<Vec<_>>().join(", ")
        }
    };
    out.push(changed(
        "image registries",
        (told(before), told(after)),
        Effect::of(widened, narrowed),
    ));
}

fn provenance(before: &Image, after: &Image, out: &mut Vec<Change>) {
    if before.provenance == after.provenance {
        return;
    }
    let told = |image: &Image| {
        image.provenance.as_ref().map(|provenance| {
            let source = provenance.source_uri.as_deref().map(crate::text::prose);
            let predicates: Vec<&str> = provenance.predicates.iter().map(String::as_str).collect();
            format!(
                "built by {} from {} with {}",
                crate::text::prose(&provenance.builder_id),
                source.as_deref().unwrap_or("any source"),
                if predicates.is_empty() {
                    "no attestation".to_owned()
                } else {
                    predicates.join(", ")
                },
            )
        })
    };
    let effect = match (&before.provenance, &after.provenance) {
        (None, _) => Effect::Narrowed,
        (_, None) => Effect::Widened,
        (Some(was), Some(is)) => {
            let sources = was.source_uri == is.source_uri;
            Effect::of(
                was.builder_id != is.builder_id
                    || (!sources && was.source_uri.is_some())
                    || !was.predicates.is_subset(&is.predicates),
                was.builder_id != is.builder_id
                    || (!sources && is.source_uri.is_some())
                    || !is.predicates.is_subset(&was.predicates),
            )
        }
    };
    out.push(one(
        "image provenance",
        None,
        (told(before), told(after)),
        effect,
    ));
}

/// Counts only: handles are shown nowhere.
fn secrets(before: &Decision, after: &Decision, out: &mut Vec<Change>) {
    let added = after.secrets.difference(&before.secrets).count();
    let removed = before.secrets.difference(&after.secrets).count();
    if added + removed == 0 {
        return;
    }
    let values = (
        before.secrets.len().to_string(),
        format!("{}: {added} added, {removed} removed", after.secrets.len()),
    );
    out.push(changed(
        "secret handles",
        values,
        Effect::of(added > 0, removed > 0),
    ));
}

fn quotas(before: &Decision, after: &Decision, out: &mut Vec<Change>) {
    let was = before
        .charge
        .parts()
        .into_iter()
        .chain(before.scaling.parts());
    let is = after
        .charge
        .parts()
        .into_iter()
        .chain(after.scaling.parts());
    for ((name, was), (_, is)) in was.zip(is) {
        if was != is {
            let values = (
                was.map(|value| value.to_string()),
                is.map(|value| value.to_string()),
            );
            out.push(one(
                "quotas",
                Some(name),
                values,
                Effect::of(is > was, is < was),
            ));
        }
    }
    let (was, is) = (
        before.scaling.allow_live_scaling,
        after.scaling.allow_live_scaling,
    );
    if was != is {
        let values = (Some(was.to_string()), Some(is.to_string()));
        out.push(one(
            "quotas",
            Some("allow_live_scaling"),
            values,
            Effect::of(is, was),
        ));
    }
}

/// What one call may take up; what is not given is not limited.
fn call_limits(before: &Decision, after: &Decision, out: &mut Vec<Change>) {
    let parts = before.call.parts().into_iter().zip(after.call.parts());
    for ((name, was), (_, is)) in parts {
        let told = |limit: Option<u64>| limit.map(|limit| limit.to_string());
        limit("function call", name, (was, is), told, out);
    }
}

/// What the whole tenant may take up; what is not given is not limited.
pub(super) fn tenant_quotas(before: TenantQuotas, after: TenantQuotas, out: &mut Vec<Change>) {
    for ((name, was), (_, is)) in before.parts().into_iter().zip(after.parts()) {
        let told = |limit: Option<u64>| limit.map(|limit| limit.to_string());
        limit("tenant quotas", name, (was, is), told, out);
    }
}

/// A limit, where none is the highest.
fn limit(
    area: &'static str,
    name: &str,
    (was, is): (Option<u64>, Option<u64>),
    told: impl Fn(Option<u64>) -> Option<String>,
    out: &mut Vec<Change>,
) {
    if was == is {
        return;
    }
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let effect = Effect::of(number(is) > number(was), number(is) < number(was));
    out.push(one(area, Some(name), (told(was), told(is)), effect));
}

/// Limits of the whole tenant; what is not given is not limited.
pub(super) fn limits(before: &Limits, after: &Limits, out: &mut Vec<Change>) {
    let parts = |limits: &Limits| {
        [
            ("max_total_warm", limits.max_total_warm),
            ("max_min_warm_total", limits.max_min_warm_total),
            ("max_warm_per_function", limits.max_warm_per_function),
            // A limit of another kind: forbidden is the lower one.
            (
                "allow_live_scaling",
                limits.live_scaling_forbidden.then_some(0),
            ),
        ]
    };
    for ((name, was), (_, is)) in parts(before).into_iter().zip(parts(after)) {
        let told = |limit: Option<u64>| match name {
            "allow_live_scaling" => Some(limit.is_none().to_string()),
            _ => limit.map(|limit| limit.to_string()),
        };
        let values = (was.map(u64::from), is.map(u64::from));
        limit("runtime scaling limits", name, values, told, out);
    }
}
