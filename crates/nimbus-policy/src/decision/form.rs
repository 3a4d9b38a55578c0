//! The canonical form of a decision and its parts, over which ids are computed.
//!
//! Whatever is written here differently gives every file new ids. Keys are in alphabetical order.

use super::{
    CallLimits, Charge, Decision, Endpoint, Image, Provenance, Sandbox, Scaling, SecretHandle,
};
use crate::canonical::{Canonical, object, text};
use crate::egress::EgressRule;
use crate::host::Host;
use crate::schema::{SandboxBackend, WorkloadKind};

/// Names the form that ids are computed over; a change of the form changes the name.
const FORM: &str = "nimbus-policy-decision/1";

impl Decision {
    /// The canonical form.
    pub(super) fn canonical(&self) -> String {
        text(self)
    }

    fn surface(&self) -> &'static str {
        match self.kind {
            WorkloadKind::RuntimeFunction => "function",
            WorkloadKind::Service => "service",
            WorkloadKind::Sandbox | WorkloadKind::SandboxService => "sandbox",
            WorkloadKind::HttpRequest => "http",
            WorkloadKind::SystemTask => "system",
        }
    }

    fn authority(&self) -> &'static str {
        match self.kind {
            WorkloadKind::SystemTask => "system",
            _ => "application",
        }
    }
}

impl Canonical for Decision {
    fn write(&self, out: &mut String) {
        object(out, |it| {
            it.with("audit", &self.redactions)
                .with("authority", self.authority())
                // No deployment and no server take part in an offline decision.
                .with("deployment", &None::<bool>)
                .with("form", FORM)
                .with("image", &self.image)
                .with("isolation", self.isolation.name())
                .with("location", &None::<bool>)
                .nested("network", |it| {
                    it.with("egress", self.egress.rules())
                        .with("endpoints", self.endpoints.as_slice());
                })
                .nested("quotas", |it| {
                    // Came after the form was in use: a decision without them keeps its id.
                    if self.call != CallLimits::default() {
                        it.with("function_call", &self.call);
                    }
                    it.with("runtime_scaling", &self.scaling)
                        .with("sandbox_charge", &self.charge);
                })
                .nested("runtime", |it| {
                    it.with("profile", self.profile.name())
                        .with("tier", self.tier.name());
                })
                .with("sandbox", &self.sandbox)
                .with("secrets", &self.secrets)
                .with("services", &self.services)
                .nested("storage", |it| {
                    it.with("namespace", self.tenant.as_str());
                })
                .with("surface", self.surface())
                .with("tenant", self.tenant.as_str())
                .with("volumes", &self.volumes)
                .nested("workload", |it| {
                    it.with("kind", self.kind.name()).with("name", &self.name);
                });
        });
    }
}

impl Canonical for EgressRule {
    fn write(&self, out: &mut String) {
        object(out, |it| {
            it.with("allow_internal_ips", &self.allow_internal_ips)
                .with("host", &self.host)
                .with("methods", &self.methods)
                .with("name", &self.name)
                .with("path_prefixes", &self.path_prefixes)
                .with("port", &self.port)
                .with("protocol", self.protocol.name());
        });
    }
}

impl Canonical for Endpoint {
    fn write(&self, out: &mut String) {
        object(out, |it| {
            it.with("guest_port", &self.guest_port)
                .with("host", &self.host)
                .with("host_port", &self.host_port)
                .with("name", &self.name)
                .with("protocol", self.protocol.name())
                .with("service", &self.service);
        });
    }
}

impl Canonical for Host {
    fn write(&self, out: &mut String) {
        match self {
            Host::Address(address) => address.to_string().write(out),
            Host::Name(name) => name.write(out),
        }
    }
}

impl Canonical for SecretHandle {
    fn write(&self, out: &mut String) {
        self.expose().write(out);
    }
}

impl Canonical for Sandbox {
    fn write(&self, out: &mut String) {
        object(out, |it| {
            it.with("backend", &self.backend.map(SandboxBackend::name))
                .with("id", &self.id);
        });
    }
}

impl Canonical for Image {
    fn write(&self, out: &mut String) {
        object(out, |it| {
            it.with("allow_local_build", &self.allow_local_build)
                .with("allowed_registries", &self.allowed_registries)
                .with("provenance", &self.provenance)
                .with("reference", &self.reference)
                .with("sbom_required", &self.sbom_required);
            match &self.signature {
                Some((issuer, subject)) => it.nested("signature", |it| {
                    it.with("issuer", issuer).with("subject", subject);
                }),
                None => it.with("signature", &None::<bool>),
            };
        });
    }
}

impl Canonical for Provenance {
    fn write(&self, out: &mut String) {
        object(out, |it| {
            it.with("builder_id", &self.builder_id)
                .with("predicates", &self.predicates)
                .with("source_uri", &self.source_uri);
        });
    }
}

impl Canonical for CallLimits {
    fn write(&self, out: &mut String) {
        object(out, |it| {
            it.with("log_bytes", &self.log_bytes)
                .with("timeout_ms", &self.timeout_ms)
                .with("user_cpu_ms", &self.user_cpu_ms);
        });
    }
}

impl Canonical for Charge {
    fn write(&self, out: &mut String) {
        object(out, |it| {
            it.with("active_sandboxes", &self.active_sandboxes)
                .with("disk_bytes", &self.disk_bytes)
                .with("log_bytes", &self.log_bytes)
                .with("memory_bytes", &self.memory_bytes)
                .with("vcpus", &self.vcpus);
        });
    }
}

impl Canonical for Scaling {
    fn write(&self, out: &mut String) {
        object(out, |it| {
            it.with("allow_live_scaling", &self.allow_live_scaling)
                .with("max_min_warm", &self.max_min_warm)
                .with("max_warm", &self.max_warm);
        });
    }
}
