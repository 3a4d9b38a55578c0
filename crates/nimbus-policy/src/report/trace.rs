//! What was granted, line by line, and who sees to it. What is not granted has no line.
//!
//! The marks are a promise about `nimbus start`: a line is `enforced` only if the server consults the decision for it.

use super::{Enforcement, TraceReport, egress_line, endpoint_line, image_lines, sandbox_line};
use crate::compile::MANDATORY_REDACTIONS;
use crate::decision::{Admission, Decision};
use crate::egress::EgressRule;
use crate::schema::{EgressProtocol, RuntimeProfile, WorkloadKind};
use crate::surface::{DEPLOY_TASK, Surface};

/// The lines of a decision.
pub(super) fn of(decision: &Decision) -> Vec<TraceReport> {
    let mut trace = Trace {
        decision,
        runs_here: runs_here(decision),
        lines: Vec::new(),
    };
    trace.runtime();
    trace.elsewhere();
    trace.egress();
    trace.data();
    trace.quotas();
    trace.audit();
    trace.lines
}

/// Whether the server runs it, or refuses to: what runs elsewhere is out of its hands, whatever it is granted.
fn runs_here(decision: &Decision) -> bool {
    match decision.kind {
        WorkloadKind::RuntimeFunction => decision.admission() == Admission::InProcess,
        WorkloadKind::HttpRequest => Surface::of(decision).is_some(),
        WorkloadKind::SystemTask => decision.name == DEPLOY_TASK,
        WorkloadKind::Service | WorkloadKind::Sandbox | WorkloadKind::SandboxService => false,
    }
}

struct Trace<'d> {
    decision: &'d Decision,
    runs_here: bool,
    lines: Vec<TraceReport>,
}

impl Trace<'_> {
    fn add(&mut self, grant: &'static str, text: impl Into<String>, enforcement: Enforcement) {
        self.lines.push(TraceReport {
            grant,
            text: text.into(),
            enforcement,
        });
    }

    fn not_here(&mut self, grant: &'static str, text: impl Into<String>) {
        self.add(grant, text, Enforcement::NotEnforcedHere);
    }

    /// Enforced if the workload runs here.
    fn run(&self) -> Enforcement {
        match self.runs_here {
            true => Enforcement::Enforced,
            false => Enforcement::NotEnforcedHere,
        }
    }

    fn is_function(&self) -> bool {
        self.decision.kind == WorkloadKind::RuntimeFunction
    }

    fn runtime(&mut self) {
        let decision = self.decision;
        let isolation = format!("tenants are kept apart as in {}", decision.isolation);
        // Nothing here is weaker on a developer's machine, so both hold.
        let apart = match self.runs_here {
            true => Enforcement::Always,
            false => Enforcement::NotEnforcedHere,
        };
        self.add("isolation", isolation, apart);
        if let Some(surface) = Surface::of(decision) {
            let text = format!("requests are taken: {}", surface.text());
            self.add("surface", text, Enforcement::Enforced);
        }
        let interface = match (decision.profile, self.runs_here) {
            // There is no other.
            (RuntimeProfile::WebStandard, true) => Enforcement::Always,
            _ => Enforcement::NotEnforcedHere,
        };
        let text = format!("the programming interface is {}", decision.profile);
        self.add("runtime", text, interface);
        let (routed, tier) = match decision.admission() {
            Admission::InProcess => ("admitted to the server's process".to_owned(), self.run()),
            // The server refuses to run a function that belongs elsewhere.
            Admission::Route { tier, reason } => (
                format!("belongs to {tier}, since {reason}"),
                match self.is_function() {
                    true => Enforcement::Enforced,
                    false => Enforcement::NotEnforcedHere,
                },
            ),
        };
        let text = format!("the tier is {}: {routed}", decision.tier);
        self.add("runtime", text, tier);
    }

    /// What this server does not have.
    fn elsewhere(&mut self) {
        let decision = self.decision;
        if let Some(sandbox) = &decision.sandbox {
            self.not_here("sandbox", format!("runs in {}", sandbox_line(sandbox)));
        }
        for service in &decision.services {
            self.not_here("services", format!("may use the service `{service}`"));
        }
        for endpoint in &decision.endpoints {
            self.not_here("endpoints", endpoint_line(endpoint));
        }
    }

    fn egress(&mut self) {
        let decision = self.decision;
        let run = self.run();
        if decision.egress.rules().is_empty() {
            self.add("egress", "no outbound connection is allowed", run);
        }
        for rule in decision.egress.rules() {
            let mark = match run {
                Enforcement::Enforced if !(self.is_function() && can_fetch(rule)) => {
                    Enforcement::NotEnforcedHere
                }
                run => run,
            };
            self.add("egress", egress_line(rule), mark);
        }
    }

    fn data(&mut self) {
        let decision = self.decision;
        let namespace = format!(
            "data lies in the namespace of the tenant `{}`",
            decision.tenant
        );
        self.add("storage", namespace, Enforcement::Always);
        for volume in &decision.volumes {
            self.not_here("volumes", format!("may mount the volume `{volume}`"));
        }
        let secrets = match decision.secrets.len() {
            0 => "may read no secret".to_owned(),
            1 => "may read 1 secret".to_owned(),
            count => format!("may read {count} secrets"),
        };
        let run = self.run();
        self.add("secrets", secrets, run);
        if let Some(image) = &decision.image {
            let mut lines = Vec::new();
            image_lines(image, |text| lines.push(text));
            for line in lines {
                self.not_here("image", line);
            }
        }
    }

    fn quotas(&mut self) {
        let decision = self.decision;
        let run = self.run();
        for (name, value) in decision.call.parts() {
            if let Some(value) = value {
                self.add(
                    "quotas",
                    format!("one call may take up {name} {value}"),
                    run,
                );
            }
        }
        for (name, value) in decision.charge.parts() {
            if let Some(value) = value {
                self.not_here("quotas", format!("sandboxes may take up {name} {value}"));
            }
        }
        for (name, value) in decision.scaling.parts() {
            if let Some(value) = value {
                self.not_here(
                    "quotas",
                    format!("instances may be kept warm: {name} {value}"),
                );
            }
        }
        if decision.scaling.allow_live_scaling {
            self.not_here("quotas", "these numbers may be changed while it runs");
        }
    }

    fn audit(&mut self) {
        let decision = self.decision;
        let (always, more): (Vec<&str>, Vec<&str>) = decision
            .redactions
            .iter()
            .map(String::as_str)
            .partition(|name| MANDATORY_REDACTIONS.contains(name));
        // The log has no such fields in the first place.
        let text = format!("audit lines leave out {}", always.join(", "));
        self.add("audit", text, Enforcement::Always);
        if !more.is_empty() {
            self.not_here(
                "audit",
                format!("audit lines leave out {}", more.join(", ")),
            );
        }
    }
}

/// `fetch` is the only way out that functions have.
fn can_fetch(rule: &EgressRule) -> bool {
    matches!(rule.protocol, EgressProtocol::Http | EgressProtocol::Https)
}
