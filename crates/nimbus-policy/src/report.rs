//! The answers of `explain` and `prove` as JSON (nimbus.md 6.3 and 6.4), and the lines that say what was granted.
//!
//! Knows no terminal. Secret handles are counted and never told.

mod trace;

use schemars::JsonSchema;
use serde::Serialize;

use crate::decision::{
    Acceptance, Admission, Decision, Endpoint, Image, Policy, Sandbox, TenantQuotas,
};
use crate::egress::EgressRule;
use crate::prove::{AdvisoryKind, Proof, Severity};
use crate::schema::{
    EgressProtocol, EndpointProtocol, IsolationMode, RuntimeProfile, RuntimeTier, SandboxBackend,
};

/// Who sees to it that a grant is the most that a workload gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Enforcement {
    /// The server always does it so, whatever a policy says.
    Always,
    /// The server enforces what the policy says.
    Enforced,
    /// This server has no such thing; whoever runs it must see to it.
    NotEnforcedHere,
}

impl Enforcement {
    /// For people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Enforcement::Always => "holds always",
            Enforcement::Enforced => "enforced",
            Enforcement::NotEnforcedHere => "not enforced here",
        }
    }
}

/// `nimbus policy explain -f json`, and that of `validate`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "Decisions of a policy file")]
pub struct ExplainReport {
    policy_name: String,
    description: Option<String>,
    tenant_id: String,
    /// What the whole tenant may take up.
    tenant_quotas: TenantQuotasReport,
    decision_count: usize,
    /// In the order of their keys.
    decisions: Vec<DecisionReport>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct TenantQuotasReport {
    storage_bytes: Option<u64>,
    documents: Option<u64>,
    requests_per_second: Option<u64>,
    active_functions: Option<u64>,
    /// Who enforces them.
    enforcement: Enforcement,
}

impl TenantQuotasReport {
    fn new(quotas: TenantQuotas) -> TenantQuotasReport {
        TenantQuotasReport {
            storage_bytes: quotas.storage_bytes,
            documents: quotas.documents,
            requests_per_second: quotas.requests_per_second,
            active_functions: quotas.active_functions,
            enforcement: Enforcement::Enforced,
        }
    }
}

/// One decision.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DecisionReport {
    /// `<kind>/<name>`.
    pub(crate) workload_key: String,
    /// `tid_` and a SHA-256.
    pub(crate) decision_id: String,
    tenant_id: String,
    runtime_tier: RuntimeTier,
    runtime_profile: RuntimeProfile,
    tenant_isolation_mode: IsolationMode,
    runtime_admission: AdmissionReport,
    sandbox_backend: Option<SandboxBackend>,
    sandbox_id: Option<String>,
    services: Vec<String>,
    network_endpoints: Vec<EndpointReport>,
    sandbox_egress: Vec<EgressReport>,
    storage_namespace: String,
    named_volumes: Vec<String>,
    image_policy: Option<ImageReport>,
    image_reference: Option<String>,
    /// How many secrets; their handles are shown nowhere.
    secret_handle_count: usize,
    quotas: QuotasReport,
    audit_redactions: Vec<String>,
    /// What was granted, line by line.
    pub(crate) trace: Vec<TraceReport>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct AdmissionReport {
    /// `admit_in_process` or `route`.
    outcome: &'static str,
    recommended_tier: Option<RuntimeTier>,
    reason: Option<&'static str>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct EndpointReport {
    service: String,
    name: String,
    protocol: EndpointProtocol,
    host: String,
    host_port: u16,
    guest_port: Option<u16>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct EgressReport {
    name: String,
    protocol: EgressProtocol,
    host: String,
    port: u16,
    /// All if empty.
    methods: Vec<String>,
    /// All if empty.
    path_prefixes: Vec<String>,
    allow_internal_ips: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ImageReport {
    digest_required: bool,
    /// Any if empty.
    allowed_registries: Vec<String>,
    signature: Option<SignatureReport>,
    provenance: Option<ProvenanceReport>,
    sbom_required: bool,
    allow_local_build: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct SignatureReport {
    issuer: String,
    subject: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ProvenanceReport {
    builder_id: String,
    source_uri: Option<String>,
    predicates: Vec<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct QuotasReport {
    sandbox_charge: ChargeReport,
    runtime_scaling: ScalingReport,
    function_call: CallReport,
}

/// What is `null` is limited by the server alone.
#[derive(Debug, Serialize, JsonSchema)]
struct CallReport {
    timeout_ms: Option<u64>,
    user_cpu_ms: Option<u64>,
    log_bytes: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ChargeReport {
    active_sandboxes: Option<u64>,
    vcpus: Option<u64>,
    memory_bytes: Option<u64>,
    disk_bytes: Option<u64>,
    log_bytes: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ScalingReport {
    max_warm: Option<u32>,
    max_min_warm: Option<u32>,
    allow_live_scaling: bool,
}

/// One grant.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TraceReport {
    /// The part of the policy that it comes from.
    pub(crate) grant: &'static str,
    /// What is granted.
    pub(crate) text: String,
    /// Who enforces it.
    pub(crate) enforcement: Enforcement,
}

impl ExplainReport {
    /// What a policy grants.
    #[must_use]
    pub fn new(policy: &Policy) -> ExplainReport {
        ExplainReport {
            policy_name: policy.name.clone(),
            description: policy.description.clone(),
            tenant_id: policy.tenant.to_string(),
            tenant_quotas: TenantQuotasReport::new(policy.quotas),
            decision_count: policy.decisions.len(),
            decisions: policy.decisions.iter().map(DecisionReport::new).collect(),
        }
    }

    pub(crate) fn decisions(&self) -> &[DecisionReport] {
        &self.decisions
    }
}

impl DecisionReport {
    fn new(decision: &Decision) -> DecisionReport {
        let sandbox = decision.sandbox.as_ref();
        let image = decision.image.as_ref();
        DecisionReport {
            workload_key: decision.key.clone(),
            decision_id: decision.id.to_string(),
            tenant_id: decision.tenant.to_string(),
            runtime_tier: decision.tier,
            runtime_profile: decision.profile,
            tenant_isolation_mode: decision.isolation,
            runtime_admission: AdmissionReport::new(decision.admission()),
            sandbox_backend: sandbox.and_then(|sandbox| sandbox.backend),
            sandbox_id: sandbox.and_then(|sandbox| sandbox.id.clone()),
            services: decision.services.iter().cloned().collect(),
            network_endpoints: decision.endpoints.iter().map(EndpointReport::new).collect(),
            sandbox_egress: decision
                .egress
                .rules()
                .iter()
                .map(EgressReport::new)
                .collect(),
            storage_namespace: decision.tenant.to_string(),
            named_volumes: decision.volumes.iter().cloned().collect(),
            image_policy: image.map(ImageReport::new),
            image_reference: image.and_then(|image| image.reference.clone()),
            secret_handle_count: decision.secrets.len(),
            quotas: QuotasReport::new(decision),
            audit_redactions: decision.redactions.iter().cloned().collect(),
            trace: trace::of(decision),
        }
    }
}

impl AdmissionReport {
    fn new(admission: Admission) -> AdmissionReport {
        match admission {
            Admission::InProcess => AdmissionReport {
                outcome: "admit_in_process",
                recommended_tier: None,
                reason: None,
            },
            Admission::Route { tier, reason } => AdmissionReport {
                outcome: "route",
                recommended_tier: Some(tier),
                reason: Some(reason),
            },
        }
    }
}

impl EndpointReport {
    fn new(endpoint: &Endpoint) -> EndpointReport {
        EndpointReport {
            service: endpoint.service.clone(),
            name: endpoint.name.clone(),
            protocol: endpoint.protocol,
            host: endpoint.host.to_string(),
            host_port: endpoint.host_port,
            guest_port: endpoint.guest_port,
        }
    }
}

impl EgressReport {
    fn new(rule: &EgressRule) -> EgressReport {
        EgressReport {
            name: rule.name.clone(),
            protocol: rule.protocol,
            host: rule.host.to_string(),
            port: rule.port,
            methods: rule.methods.iter().cloned().collect(),
            path_prefixes: rule.path_prefixes.iter().cloned().collect(),
            allow_internal_ips: rule.allow_internal_ips,
        }
    }
}

impl ImageReport {
    fn new(image: &Image) -> ImageReport {
        ImageReport {
            digest_required: true,
            allowed_registries: image.allowed_registries.iter().cloned().collect(),
            signature: image
                .signature
                .as_ref()
                .map(|(issuer, subject)| SignatureReport {
                    issuer: issuer.clone(),
                    subject: subject.clone(),
                }),
            provenance: image
                .provenance
                .as_ref()
                .map(|provenance| ProvenanceReport {
                    builder_id: provenance.builder_id.clone(),
                    source_uri: provenance.source_uri.clone(),
                    predicates: provenance.predicates.iter().cloned().collect(),
                }),
            sbom_required: image.sbom_required,
            allow_local_build: image.allow_local_build,
        }
    }
}

impl QuotasReport {
    fn new(decision: &Decision) -> QuotasReport {
        let (charge, scaling) = (decision.charge, decision.scaling);
        QuotasReport {
            sandbox_charge: ChargeReport {
                active_sandboxes: charge.active_sandboxes,
                vcpus: charge.vcpus,
                memory_bytes: charge.memory_bytes,
                disk_bytes: charge.disk_bytes,
                log_bytes: charge.log_bytes,
            },
            runtime_scaling: ScalingReport {
                max_warm: scaling.max_warm,
                max_min_warm: scaling.max_min_warm,
                allow_live_scaling: scaling.allow_live_scaling,
            },
            function_call: CallReport {
                timeout_ms: decision.call.timeout_ms,
                user_cpu_ms: decision.call.user_cpu_ms,
                log_bytes: decision.call.log_bytes,
            },
        }
    }
}

/// A sandbox in a few words.
pub(crate) fn sandbox_line(sandbox: &Sandbox) -> String {
    let backend = sandbox.backend.map_or("any backend", SandboxBackend::name);
    let id = sandbox
        .id
        .as_deref()
        .map(|id| format!(" with the id `{id}`"));
    format!("a sandbox of {backend}{}", id.unwrap_or_default())
}

/// An image with all that is asked of it.
pub(crate) fn image_line(image: &Image) -> String {
    let mut parts = Vec::new();
    image_lines(image, |text| parts.push(text));
    parts.join("; ")
}

fn endpoint_line(endpoint: &Endpoint) -> String {
    let guest = endpoint
        .guest_port
        .map(|port| format!(", port {port} inside"))
        .unwrap_or_default();
    format!(
        "may reach the endpoint `{}/{}`: {} on {} port {}{guest}",
        endpoint.service, endpoint.name, endpoint.protocol, endpoint.host, endpoint.host_port,
    )
}

pub(crate) fn egress_line(rule: &EgressRule) -> String {
    let list = |set: &std::collections::BTreeSet<String>, all: &str| {
        if set.is_empty() {
            all.to_owned()
        } else {
            set.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
        }
    };
    let details = if rule.protocol == EgressProtocol::Tcp {
        "any bytes".to_owned()
    } else {
        let methods = list(&rule.methods, "any method");
        format!("{methods} on {}", list(&rule.path_prefixes, "any path"))
    };
    let internal = if rule.allow_internal_ips {
        ", internal addresses too"
    } else {
        ""
    };
    format!(
        "rule `{}`: {} to {} port {}, {details}{internal}",
        rule.name, rule.protocol, rule.host, rule.port,
    )
}

fn image_lines(image: &Image, mut add: impl FnMut(String)) {
    match &image.reference {
        Some(reference) => add(format!("runs the image {reference}")),
        None => add("runs an image that is named by its digest".to_owned()),
    }
    let join = |set: &std::collections::BTreeSet<String>| {
        set.iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !image.allowed_registries.is_empty() {
        add(format!(
            "images come from {}",
            join(&image.allowed_registries)
        ));
    }
    if let Some((issuer, subject)) = &image.signature {
        let (issuer, subject) = (crate::text::prose(issuer), crate::text::prose(subject));
        add(format!("signed by {subject}, as {issuer} says"));
    }
    if let Some(provenance) = &image.provenance {
        let builder = crate::text::prose(&provenance.builder_id);
        let source = provenance.source_uri.as_deref().map(crate::text::prose);
        let source = source.map(|uri| format!(" from {uri}")).unwrap_or_default();
        add(format!("built by {builder}{source}"));
        if !provenance.predicates.is_empty() {
            add(format!(
                "with attestations of {}",
                join(&provenance.predicates)
            ));
        }
    }
    if image.sbom_required {
        add("comes with a bill of materials".to_owned());
    }
    if image.allow_local_build {
        add("may be built on this host".to_owned());
    }
}

/// `nimbus policy prove -f json`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "Risky grants of a policy file")]
pub struct ProveReport {
    tenant_id: String,
    checked_workloads: usize,
    advisory_count: usize,
    /// Accepted, and not expired.
    accepted_count: usize,
    unaccepted_count: usize,
    stale_count: usize,
    expired_count: usize,
    /// By kind, workload and id.
    advisories: Vec<AdvisoryReport>,
    /// Accepted risks that match no advisory: remove them.
    stale_acceptances: Vec<AcceptanceReport>,
    /// Accepted risks whose time is over: review them again, or remove them.
    expired_acceptances: Vec<AcceptanceReport>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct AdvisoryReport {
    /// What to write into `accepted_risks`.
    id: String,
    kind: AdvisoryKind,
    severity: Severity,
    workload_key: String,
    message: String,
    /// What makes it one, as words.
    reasons: Vec<&'static str>,
    /// In the policy file, from 1.
    line: usize,
    /// In characters, from 1.
    column: usize,
    accepted_risk: Option<AcceptanceReport>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct AcceptanceReport {
    advisory_id: String,
    approved_by: String,
    reason: String,
    expires: Option<String>,
    expired: bool,
}

impl ProveReport {
    /// Looks at every grant of a policy; acceptances that ended before `now` do not count.
    #[must_use]
    pub fn of(policy: &Policy, now: jiff::Timestamp) -> ProveReport {
        ProveReport::new(policy, &crate::prove::prove(policy, now))
    }

    pub(crate) fn new(policy: &Policy, proof: &Proof<'_>) -> ProveReport {
        let told = |accepted: &Acceptance| AcceptanceReport {
            advisory_id: accepted.advisory_id.clone(),
            approved_by: accepted.approved_by.clone(),
            reason: accepted.reason.clone(),
            expires: accepted.expires.as_ref().map(|expiry| expiry.text.clone()),
            expired: accepted.is_expired(proof.now),
        };
        let count = proof.advisories.len();
        ProveReport {
            tenant_id: policy.tenant.to_string(),
            checked_workloads: policy.decisions.len(),
            advisory_count: count,
            accepted_count: count - proof.open(),
            unaccepted_count: proof.open(),
            stale_count: proof.stale.len(),
            expired_count: proof.expired.len(),
            advisories: proof
                .advisories
                .iter()
                .map(|advisory| AdvisoryReport {
                    id: advisory.id.clone(),
                    kind: advisory.kind,
                    severity: advisory.severity,
                    workload_key: advisory.workload.to_owned(),
                    message: advisory.message.clone(),
                    reasons: advisory.reasons.clone(),
                    line: advisory.place.line,
                    column: advisory.place.column,
                    accepted_risk: advisory.accepted.map(told),
                })
                .collect(),
            stale_acceptances: proof.stale.iter().map(|accepted| told(accepted)).collect(),
            expired_acceptances: proof
                .expired
                .iter()
                .map(|accepted| told(accepted))
                .collect(),
        }
    }
}

/// The JSON Schemas (2020-12) of what the commands print with `-f json`, by name of the file that publishes them.
#[must_use]
pub fn report_schemas() -> [(&'static str, serde_json::Value); 5] {
    [
        (
            "policy-explain",
            schemars::schema_for!(ExplainReport).to_value(),
        ),
        (
            "policy-prove",
            schemars::schema_for!(ProveReport).to_value(),
        ),
        (
            "policy-diff",
            schemars::schema_for!(crate::diff::DiffReport).to_value(),
        ),
        (
            "policy-suggest",
            schemars::schema_for!(crate::suggest::SuggestReport).to_value(),
        ),
        (
            "policy-errors",
            schemars::schema_for!(crate::problem::InvalidReport).to_value(),
        ),
    ]
}
