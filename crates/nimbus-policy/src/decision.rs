//! A compiled policy: one decision for each workload, in the one form that its content has.
//!
//! Knows no YAML and no commands. Everything that no decision depends on (comments, order, formatting, names of
//! people) is gone, so two files that say the same give the same ids.

mod form;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use nimbus_core::TenantId;
use sha2::{Digest as _, Sha256};

use crate::egress::Egress;
use crate::host::Host;
use crate::schema::{
    EndpointProtocol, IsolationMode, RuntimeProfile, RuntimeTier, SandboxBackend, WorkloadKind,
};
use crate::source::Place;

/// A policy file that is valid, compiled.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) tenant: TenantId,
    pub(crate) limits: Limits,
    pub(crate) quotas: TenantQuotas,
    pub(crate) acceptances: Vec<Acceptance>,
    /// By key.
    pub(crate) decisions: Vec<Decision>,
    pub(crate) file: String,
}

impl Policy {
    /// The tenant that the policy is for.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// What the whole tenant may take up.
    #[must_use]
    pub fn quotas(&self) -> TenantQuotas {
        self.quotas
    }

    /// One decision for each workload, in the order of their keys.
    #[must_use]
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// The decision of a workload, such as `runtime_function` and `messages:send`.
    #[must_use]
    pub fn decision(&self, kind: WorkloadKind, name: &str) -> Option<&Decision> {
        let wanted = [kind.name(), "/", name];
        let order = |decision: &Decision| {
            let wanted = wanted.iter().flat_map(|part| part.bytes());
            decision.key.bytes().cmp(wanted)
        };
        let at = self.decisions.binary_search_by(order);
        at.ok().and_then(|at| self.decisions.get(at))
    }
}

/// Most warm instances of the tenant; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_total_warm: Option<u32>,
    pub(crate) max_min_warm_total: Option<u32>,
    pub(crate) max_warm_per_function: Option<u32>,
    pub(crate) live_scaling_forbidden: bool,
}

/// What a tenant may take up; `None` is no limit of the policy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenantQuotas {
    /// Bytes of documents as they are stored.
    pub storage_bytes: Option<u64>,
    /// Documents.
    pub documents: Option<u64>,
    /// Requests in a second.
    pub requests_per_second: Option<u64>,
    /// Functions that run at once on one server.
    pub active_functions: Option<u64>,
}

impl TenantQuotas {
    /// Name and value of each.
    pub(crate) fn parts(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("storage_bytes", self.storage_bytes),
            ("documents", self.documents),
            ("requests_per_second", self.requests_per_second),
            ("active_functions", self.active_functions),
        ]
    }
}

/// What one call of a function may take up; `None` is no limit of the policy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallLimits {
    /// Longest time of one run, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// CPU time of one run of a query or mutation, in milliseconds.
    pub user_cpu_ms: Option<u64>,
    /// Bytes of console lines.
    pub log_bytes: Option<u64>,
}

impl CallLimits {
    /// Name and value of each.
    pub(crate) fn parts(&self) -> [(&'static str, Option<u64>); 3] {
        [
            ("timeout_ms", self.timeout_ms),
            ("user_cpu_ms", self.user_cpu_ms),
            ("log_bytes", self.log_bytes),
        ]
    }
}

/// An advisory that someone accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acceptance {
    pub(crate) advisory_id: String,
    pub(crate) approved_by: String,
    pub(crate) reason: String,
    pub(crate) expires: Option<Expiry>,
    pub(crate) place: Place,
}

/// When an acceptance ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expiry {
    /// As it was written.
    pub(crate) text: String,
    /// The first moment at which it does not count.
    pub(crate) ends: Timestamp,
}

/// The id of a decision: `tid_` and the SHA-256 of its canonical form in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DecisionId(String);

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one workload may do.
#[derive(Clone, Debug)]
pub struct Decision {
    pub(crate) id: DecisionId,
    pub(crate) key: String,
    pub(crate) tenant: TenantId,
    pub(crate) kind: WorkloadKind,
    pub(crate) name: String,
    pub(crate) isolation: IsolationMode,
    pub(crate) profile: RuntimeProfile,
    pub(crate) tier: RuntimeTier,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) services: BTreeSet<String>,
    /// By service and name.
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) egress: Egress,
    pub(crate) volumes: BTreeSet<String>,
    pub(crate) image: Option<Image>,
    pub(crate) secrets: BTreeSet<SecretHandle>,
    pub(crate) charge: Charge,
    pub(crate) scaling: Scaling,
    pub(crate) call: CallLimits,
    pub(crate) redactions: BTreeSet<String>,
    /// Where the workload stands in the file.
    pub(crate) place: Place,
    /// Where its rules and endpoints stand, by family and name.
    pub(crate) places: BTreeMap<(&'static str, String), Place>,
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) backend: Option<SandboxBackend>,
    pub(crate) id: Option<String>,
}

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) protocol: EndpointProtocol,
    pub(crate) host: Host,
    pub(crate) host_port: u16,
    pub(crate) guest_port: Option<u16>,
}

/// What an image must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) reference: Option<String>,
    /// Any if there are none.
    pub(crate) allowed_registries: BTreeSet<String>,
    /// Issuer and subject.
    pub(crate) signature: Option<(String, String)>,
    pub(crate) provenance: Option<Provenance>,
    pub(crate) sbom_required: bool,
    pub(crate) allow_local_build: bool,
}

/// How an image must have been built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Provenance {
    pub(crate) builder_id: String,
    pub(crate) source_uri: Option<String>,
    pub(crate) predicates: BTreeSet<String>,
}

/// What sandboxes may take up; `None` is not granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) active_sandboxes: Option<u64>,
    pub(crate) vcpus: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) log_bytes: Option<u64>,
}

/// Warm instances; `None` is not granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scaling {
    pub(crate) max_warm: Option<u32>,
    pub(crate) max_min_warm: Option<u32>,
    pub(crate) allow_live_scaling: bool,
}

/// The name of a secret. It is counted and compared, and shown nowhere: handles tell what a tenant has, and one may
/// have been written as the secret itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SecretHandle(String);

impl SecretHandle {
    pub(crate) fn new(text: String) -> SecretHandle {
        SecretHandle(text)
    }

    /// The text, for comparing and hashing only.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHandle(..)")
    }
}

/// Whether a workload can run in the server's own process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It can.
    InProcess,
    /// It belongs elsewhere.
    Route {
        tier: RuntimeTier,
        reason: &'static str,
    },
}

impl Decision {
    /// The id of the decision, which is the same for every file that says the same about the workload.
    #[must_use]
    pub fn id(&self) -> &DecisionId {
        &self.id
    }

    /// `<kind>/<name>`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The outbound connections that it may make.
    #[must_use]
    pub fn egress(&self) -> &Egress {
        &self.egress
    }

    /// What one call of it may take up.
    #[must_use]
    pub fn call_limits(&self) -> CallLimits {
        self.call
    }

    /// Why it must not run in the server's process; `None` if it may.
    #[must_use]
    pub fn kept_out(&self) -> Option<String> {
        match self.admission() {
            Admission::InProcess => None,
            Admission::Route { tier, reason } => {
                Some(format!("it belongs to {tier}, since {reason}"))
            }
        }
    }

    /// Line and column of something of the workload; of the workload, if it has no place of its own.
    pub(crate) fn place(&self, family: &'static str, name: &str) -> Place {
        let found = self.places.get(&(family, name.to_owned()));
        found.copied().unwrap_or(self.place)
    }

    /// Whether it may read the secret behind this handle.
    #[must_use]
    pub fn may_read_secret(&self, handle: &str) -> bool {
        self.secrets
            .iter()
            .any(|granted| granted.expose() == handle)
    }

    /// Whether it can run in the server's process.
    pub(crate) fn admission(&self) -> Admission {
        if matches!(
            self.tier,
            RuntimeTier::MicrovmService | RuntimeTier::WasmCapabilitySandbox
        ) {
            return Admission::Route {
                tier: self.tier,
                reason: "the workload asks for that tier",
            };
        }
        let tier = RuntimeTier::MicrovmService;
        if let Some(reason) = self.runs_elsewhere() {
            return Admission::Route { tier, reason };
        }
        let internal = self
            .egress
            .rules()
            .iter()
            .any(|rule| rule.allow_internal_ips);
        let untrusted = self.tier == RuntimeTier::InProcessUntrusted;
        if internal && untrusted && self.isolation == IsolationMode::Production {
            let reason = "untrusted code in the server's process must not reach internal addresses";
            return Admission::Route { tier, reason };
        }
        Admission::InProcess
    }

    /// Why nothing of its kind runs in the server's process.
    fn runs_elsewhere(&self) -> Option<&'static str> {
        match self.kind {
            WorkloadKind::Service => Some("a service runs in a process of its own"),
            WorkloadKind::Sandbox => Some("a sandbox is apart from everything else"),
            WorkloadKind::SandboxService => Some("a sandbox service runs in a sandbox of its own"),
            WorkloadKind::RuntimeFunction
            | WorkloadKind::HttpRequest
            | WorkloadKind::SystemTask => None,
        }
    }

    /// Computes the id from everything else.
    pub(crate) fn seal(&mut self) {
        let digest = Sha256::digest(self.canonical().as_bytes());
        let hex = data_encoding::HEXLOWER.encode(&digest);
        self.id = DecisionId(format!("tid_{hex}"));
    }
}

impl Charge {
    /// Name and value of each.
    pub(crate) fn parts(&self) -> [(&'static str, Option<u64>); 5] {
        [
            ("active_sandboxes", self.active_sandboxes),
            ("vcpus", self.vcpus),
            ("memory_bytes", self.memory_bytes),
            ("disk_bytes", self.disk_bytes),
            ("log_bytes", self.log_bytes),
        ]
    }
}

impl Scaling {
    /// Name and value of each number.
    pub(crate) fn parts(&self) -> [(&'static str, Option<u64>); 2] {
        [
            ("max_warm", self.max_warm.map(u64::from)),
            ("max_min_warm", self.max_min_warm.map(u64::from)),
        ]
    }
}

impl DecisionId {
    /// Stands in until [`Decision::seal`].
    pub(crate) fn none() -> DecisionId {
        DecisionId(String::new())
    }
}
