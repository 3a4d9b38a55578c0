//! The policy file: every key that there is (nimbus.md 6.1), as the types from which decoder and JSON Schema come.
//!
//! Knows the types of values and no other rule; `compile` has those. A doc comment here is what an editor shows.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use serde_json::Value;

use crate::decode::{Spanned, choice, mapping};

mapping! {
    /// Who may do what in one tenant: runtime, network, image, secret, volume and quota authority of its workloads.
    PolicyFile {
        /// Version of this format.
        #[schemars(extend("const" = 1))]
        required schema_version: Spanned<u32>,
        /// Id of the tenant.
        required tenant: Spanned<String>,
        /// What people call the policy.
        optional metadata: Metadata,
        /// Advisories of `nimbus policy prove` that were reviewed and accepted.
        optional accepted_risks: Vec<AcceptedRisk>,
        /// What holds for all workloads.
        optional defaults: Defaults,
        /// What runs in the tenant, and what each may do. Nothing is allowed that is not listed.
        #[schemars(length(min = 1))]
        required workloads: Spanned<Vec<Spanned<Workload>>>,
    }
}

mapping! {
    /// What people call the policy. No decision depends on it.
    Metadata {
        /// A name.
        #[schemars(length(min = 1))]
        optional name: Spanned<String>,
        /// A description.
        optional description: Spanned<String>,
    }
}

mapping! {
    /// An advisory that someone looked at and accepted. It silences that advisory and no other.
    AcceptedRisk {
        /// Id of the advisory, as `nimbus policy prove` prints it.
        #[schemars(length(min = 1))]
        required advisory_id: Spanned<String>,
        /// Who accepted it.
        #[schemars(length(min = 1))]
        required approved_by: Spanned<String>,
        /// Why.
        #[schemars(length(min = 1))]
        required reason: Spanned<String>,
        /// Last day (UTC) on which this counts, `2027-01-31`, or the moment from which it does not, `2027-01-31T12:00:00Z`.
        optional expires: Spanned<String>,
    }
}

mapping! {
    /// What holds for all workloads.
    Defaults {
        /// How tenants are kept apart. Default: production.
        optional tenant_isolation_mode: IsolationMode,
        /// The only namespace there is: the tenant's own.
        #[expect(dead_code, reason = "has one value only")]
        optional storage_namespace: StorageNamespace,
        /// Fields kept out of audit lines; the four mandatory ones must be listed.
        optional audit_redactions: Spanned<Vec<Spanned<String>>>,
        /// Most warm instances of the whole tenant.
        optional runtime_scaling_limits: Spanned<ScalingLimits>,
        /// What the whole tenant may take up.
        optional tenant_quotas: TenantQuotasBlock,
    }
}

mapping! {
    /// What the whole tenant may take up. What is not given is not limited beyond the server's own limits.
    TenantQuotasBlock {
        /// Bytes of documents as they are stored; beyond, writes that add to them are answered with 507.
        #[schemars(range(min = 1))]
        optional storage_bytes: Spanned<u64>,
        /// Documents; beyond, writes that add some are answered with 507.
        #[schemars(range(min = 1))]
        optional documents: Spanned<u64>,
        /// Requests in a second, by keys of the tenant and to its functions; twice as many at once. Beyond, the answer is 429.
        #[schemars(range(min = 1))]
        optional requests_per_second: Spanned<u64>,
        /// Functions that run at once on one server; others wait for their turn, and too many of those are answered with 429.
        #[schemars(range(min = 1))]
        optional active_functions: Spanned<u64>,
    }
}

mapping! {
    /// Most warm instances of the whole tenant. What is not given is not limited.
    ScalingLimits {
        /// Sum of `max_warm` of all workloads.
        optional max_total_warm: u32,
        /// Sum of `max_min_warm` of all workloads.
        optional max_min_warm_total: u32,
        /// `max_warm` of any one workload.
        optional max_warm_per_function: u32,
        /// Whether a workload may ask for live scaling. Default: true.
        optional allow_live_scaling: bool,
    }
}

mapping! {
    /// Something that runs, and what it may do.
    Workload {
        /// What it is.
        required kind: WorkloadKind,
        /// Its name; kind and name together are unique.
        #[schemars(length(min = 1, max = 200))]
        required name: Spanned<String>,
        /// Where it runs.
        optional runtime: RuntimeBlock,
        /// The sandbox that it runs in.
        optional sandbox: Spanned<SandboxBlock>,
        /// Services that it may use.
        optional services: ServicesBlock,
        /// Where it may connect to.
        optional network: NetworkBlock,
        /// Where its data lies.
        #[expect(dead_code, reason = "has one value only")]
        optional storage: StorageBlock,
        /// Volumes that it may mount.
        optional volumes: VolumesBlock,
        /// Secrets that it may read.
        optional secrets: SecretsBlock,
        /// What is kept out of audit lines.
        optional audit: AuditBlock,
        /// The image that it runs.
        optional image: Spanned<ImageBlock>,
        /// What it may take up.
        optional quotas: QuotasBlock,
    }
}

mapping! {
    /// Where a workload runs.
    RuntimeBlock {
        /// Which programming interface it sees. Default: web_standard.
        optional profile: RuntimeProfile,
        /// Where it runs. Default: in_process_untrusted.
        optional tier: RuntimeTier,
        /// How this workload is kept apart. Default: as in `defaults`.
        optional tenant_isolation_mode: IsolationMode,
    }
}

mapping! {
    /// The sandbox that a workload runs in.
    SandboxBlock {
        /// What the sandbox is made of.
        optional backend: SandboxBackend,
        /// Its id; a `sandbox` and a `sandbox_service` must have one.
        #[schemars(length(min = 1, max = 200))]
        optional sandbox_id: Spanned<String>,
    }
}

mapping! {
    /// Services that a workload may use.
    ServicesBlock {
        /// Their names.
        required allow: Vec<Spanned<String>>,
    }
}

mapping! {
    /// Where a workload may connect to.
    NetworkBlock {
        /// Endpoints of services.
        optional endpoints: Vec<Spanned<EndpointBlock>>,
        /// Everything else that it may reach.
        optional egress: EgressBlock,
    }
}

mapping! {
    /// An endpoint of a service.
    EndpointBlock {
        /// The service; it must be in `services.allow`.
        #[schemars(length(min = 1, max = 200))]
        required service: Spanned<String>,
        /// Name of the endpoint, unique within its service.
        #[schemars(length(min = 1, max = 200))]
        required name: Spanned<String>,
        /// What is spoken there.
        required protocol: EndpointProtocol,
        /// Name or address of the host.
        #[schemars(length(min = 1))]
        required host: Spanned<String>,
        /// Port on the host.
        #[schemars(range(min = 1))]
        required host_port: Spanned<u16>,
        /// Port inside the sandbox.
        #[schemars(range(min = 1))]
        optional guest_port: Spanned<u16>,
    }
}

mapping! {
    /// Outbound connections.
    EgressBlock {
        /// The rules; what none allows is refused.
        required allow: Vec<Spanned<EgressBlockRule>>,
    }
}

mapping! {
    /// One host, port and protocol that may be reached.
    EgressBlockRule {
        /// Name of the rule, unique within the workload.
        #[schemars(length(min = 1, max = 200))]
        required name: Spanned<String>,
        /// What is spoken.
        required protocol: EgressProtocol,
        /// One DNS name or address: no wildcard, scheme, port or brackets.
        #[schemars(length(min = 1))]
        required host: Spanned<String>,
        /// The port.
        #[schemars(range(min = 1))]
        required port: Spanned<u16>,
        /// Methods, in upper case. Default: all, which `prove` flags.
        optional methods: Spanned<Vec<Spanned<String>>>,
        /// Paths, each with everything below it. Default: all, which `prove` flags.
        optional path_prefixes: Spanned<Vec<Spanned<String>>>,
        /// Whether the host may be, or lead to, an address that is not public. Default: false.
        optional allow_internal_ips: bool,
    }
}

mapping! {
    /// Where a workload's data lies.
    StorageBlock {
        /// The only namespace there is: the tenant's own.
        #[expect(dead_code, reason = "has one value only")]
        required namespace: StorageNamespace,
    }
}

mapping! {
    /// Volumes that a workload may mount.
    VolumesBlock {
        /// Their names.
        required named: Vec<Spanned<String>>,
    }
}

mapping! {
    /// Secrets that a workload may read.
    SecretsBlock {
        /// Handles of secrets, never the secrets themselves. No command prints them.
        required handles: Vec<Spanned<String>>,
    }
}

mapping! {
    /// What is kept out of audit lines.
    AuditBlock {
        /// Further fields; the four mandatory ones must be listed.
        optional redacted_fields: Spanned<Vec<Spanned<String>>>,
    }
}

mapping! {
    /// The image that a workload runs.
    ImageBlock {
        /// The image with its digest, `registry.example/app@sha256:...`.
        optional reference: Spanned<String>,
        /// Always true: a tag alone can be moved.
        #[schemars(extend("const" = true))]
        optional digest_required: Spanned<bool>,
        /// Registries that the reference may name. Default: any.
        optional allowed_registries: Vec<Spanned<String>>,
        /// Who must have signed it.
        optional signature: SignatureBlock,
        /// How it must have been built.
        optional provenance: ProvenanceBlock,
        /// Whether it must come with a bill of materials. Default: false.
        optional sbom_required: bool,
        /// Whether an image built on this host will do; not in production.
        optional allow_local_build: Spanned<bool>,
    }
}

mapping! {
    /// Who must have signed an image.
    SignatureBlock {
        /// Issuer of the identity.
        #[schemars(length(min = 1))]
        required issuer: Spanned<String>,
        /// The identity.
        #[schemars(length(min = 1))]
        required subject: Spanned<String>,
    }
}

mapping! {
    /// How an image must have been built.
    ProvenanceBlock {
        /// Who built it.
        #[schemars(length(min = 1))]
        required builder_id: Spanned<String>,
        /// From which source.
        #[schemars(length(min = 1))]
        optional source_uri: Spanned<String>,
        /// Types of attestations that must be there.
        optional predicates: Vec<Spanned<String>>,
    }
}

mapping! {
    /// What a workload may take up.
    QuotasBlock {
        /// What its sandboxes may take up.
        optional sandbox_charge: SandboxChargeBlock,
        /// How many warm instances it may have.
        optional runtime_scaling: Spanned<RuntimeScalingBlock>,
        /// What one call of a function may take up.
        optional function_call: Spanned<FunctionCallBlock>,
    }
}

mapping! {
    /// What one call of a function may take up; the server's own limits hold as well. What is not given is not limited
    /// further.
    FunctionCallBlock {
        /// Longest time of one run, in milliseconds.
        #[schemars(range(min = 1))]
        optional timeout_ms: Spanned<u64>,
        /// CPU time of one run of a query or mutation, in milliseconds.
        #[schemars(range(min = 1))]
        optional user_cpu_ms: Spanned<u64>,
        /// Bytes of its console lines; beyond, the rest is left out, and a line says so. 0 keeps none.
        optional log_bytes: Spanned<u64>,
    }
}

mapping! {
    /// What a workload's sandboxes may take up. What is not given is not granted.
    SandboxChargeBlock {
        /// Sandboxes at once.
        #[schemars(range(min = 1))]
        optional active_sandboxes: Spanned<u64>,
        /// Virtual processors.
        #[schemars(range(min = 1))]
        optional vcpus: Spanned<u64>,
        /// Memory in bytes.
        #[schemars(range(min = 1))]
        optional memory_bytes: Spanned<u64>,
        /// Disk in bytes.
        #[schemars(range(min = 1))]
        optional disk_bytes: Spanned<u64>,
        /// Log in bytes; 0 keeps none.
        optional log_bytes: Spanned<u64>,
    }
}

mapping! {
    /// How many warm instances a workload may have.
    RuntimeScalingBlock {
        /// Most warm instances.
        #[schemars(range(min = 1))]
        optional max_warm: Spanned<u32>,
        /// Most instances that may be asked to be warm always.
        #[schemars(range(min = 1))]
        optional max_min_warm: Spanned<u32>,
        /// Whether the numbers may be changed while it runs. Default: false.
        optional allow_live_scaling: bool,
    }
}

choice! {
    /// What a workload is.
    WorkloadKind {
        /// A query, mutation, action or cron of the tenant's functions.
        RuntimeFunction = "runtime_function",
        /// A service that others use by its name (`services.allow`), wherever it runs.
        Service = "service",
        /// A sandbox that is no service: nobody uses it by a name.
        Sandbox = "sandbox",
        /// A service in a sandbox of its own.
        SandboxService = "sandbox_service",
        /// What answers HTTP requests.
        HttpRequest = "http_request",
        /// Work of the server itself.
        SystemTask = "system_task",
    }
}

choice! {
    /// How tenants are kept apart.
    IsolationMode {
        /// Fully.
        Production = "production",
        /// For one developer's machine.
        LocalDevelopment = "local_development",
    }
}

choice! {
    /// Which programming interface a workload sees.
    RuntimeProfile {
        /// The web's.
        WebStandard = "web_standard",
        /// Node.js 20's.
        Node20 = "node20",
        /// Node.js 22's.
        Node22 = "node22",
        /// Node.js 24's.
        Node24 = "node24",
        /// Node.js 26's.
        Node26 = "node26",
    }
}

choice! {
    /// Where a workload runs, from the strongest walls to the weakest.
    RuntimeTier {
        /// In a virtual machine of its own.
        MicrovmService = "microvm_service",
        /// In a WebAssembly sandbox without ambient authority.
        WasmCapabilitySandbox = "wasm_capability_sandbox",
        /// In an isolate, as code that nobody vouches for.
        InProcessUntrusted = "in_process_untrusted",
        /// In an isolate, as code that the operator vouches for.
        InProcessTrustedOnly = "in_process_trusted_only",
    }
}

choice! {
    /// What a sandbox is made of, from the strongest walls to the weakest.
    SandboxBackend {
        /// A small virtual machine.
        Krun = "krun",
        /// A container.
        Container = "container",
    }
}

choice! {
    /// What an endpoint speaks.
    EndpointProtocol {
        /// Bytes.
        Tcp = "tcp",
        /// HTTP.
        Http = "http",
        /// HTTP over TLS.
        Https = "https",
    }
}

choice! {
    /// What is spoken to a host.
    EgressProtocol {
        /// Bytes: neither methods nor paths can be told apart, so `prove` flags it.
        Tcp = "tcp",
        /// HTTP.
        Http = "http",
        /// HTTP over TLS.
        Https = "https",
        /// WebSocket.
        Ws = "ws",
        /// WebSocket over TLS.
        Wss = "wss",
    }
}

choice! {
    /// The only namespace there is.
    StorageNamespace {
        /// The tenant's own.
        Tenant = "tenant",
    }
}

impl WorkloadKind {
    /// Whether it cannot be without a sandbox that has an id.
    pub(crate) fn needs_sandbox(self) -> bool {
        matches!(self, WorkloadKind::Sandbox | WorkloadKind::SandboxService)
    }
}

/// The JSON Schema (2020-12) of policy files, for editors. Rules that need more than one value to be looked at are
/// left to `nimbus policy validate`.
#[must_use]
pub fn policy_schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<PolicyFile>();
    // A key that is not wanted is left out: `null` is refused.
    RecursiveTransform(without_null).transform(&mut schema);
    schema.insert("title".into(), "Nimbus policy file".into());
    schema.to_value()
}

fn without_null(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            object.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(any)) = object.get_mut("anyOf") {
        any.retain(|one| one.get("type").is_none_or(|name| name != "null"));
        if let [Value::Object(one)] = any.as_slice() {
            let one = one.clone();
            object.remove("anyOf");
            object.extend(one);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::fs;

    use super::*;
    use crate::problem::{Code, Problems};
    use crate::source::Source;
    use crate::yaml::{Kind, Node};

    /// The file as an editor's checker sees it.
    fn value(node: &Node<'_>) -> Value {
        match &node.kind {
            Kind::Scalar { text, plain: true } => {
                serde_json::from_str(text).unwrap_or_else(|_| text.as_ref().into())
            }
            Kind::Scalar { text, .. } => text.as_ref().into(),
            Kind::List(items) => items.iter().map(value).collect(),
            Kind::Map(entries) => entries
                .iter()
                .map(|(key, node)| (key.text.clone().into_owned(), value(node)))
                .collect(),
        }
    }

    /// Faults that types alone tell.
    const OF_TYPES: [Code; 5] = [
        Code::UnknownKey,
        Code::MissingKey,
        Code::UnknownValue,
        Code::BadVersion,
        Code::WrongType,
    ];

    #[test]
    fn editors_take_what_the_program_takes_and_refuse_what_types_tell() {
        let validator = jsonschema::validator_for(&policy_schema()).unwrap();
        let (mut taken, mut refused) = (0, 0);
        for entry in fs::read_dir("tests/policy/files").unwrap() {
            let path = entry.unwrap().path();
            let source = Source::read(&path).unwrap();
            let Some(node) = crate::yaml::parse(&source, &mut Problems::default()) else {
                continue;
            };
            let codes = match crate::compile(&source) {
                Ok(_) => Vec::new(),
                Err(invalid) => invalid.codes(),
            };
            let valid = validator.is_valid(&value(&node));
            if codes.is_empty() {
                assert!(valid, "{}", path.display());
                taken += 1;
            // A sandbox that a kind needs is a missing key by a rule, not by a type.
            } else if codes.iter().all(|code| OF_TYPES.contains(code))
                && !path.to_string_lossy().contains("bad-sandbox")
            {
                assert!(!valid, "{}", path.display());
                refused += 1;
            }
        }
        assert!(taken >= 40 && refused >= 6, "{taken} {refused}");
    }
}
