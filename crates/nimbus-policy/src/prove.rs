//! Risky grants as advisories: broad egress, ways around the data layer, exposed secrets, what looks like another
//! tenant's (seed 002, nimbus.md 6.4), and what became of the risks that were accepted.
//!
//! Knows no file and no clock. An advisory's id holds a digest of the grant that it is about: an acceptance counts
//! for that grant and for no other, so a grant that is widened is looked at again.

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::canonical::{Canonical, text};
use crate::decision::{Acceptance, Decision, Endpoint, Policy};
use crate::decode::choice;
use crate::egress::EgressRule;
use crate::schema::{EgressProtocol, RuntimeTier, WorkloadKind};
use crate::source::Place;

/// Hexadecimal digits of the digest in an id: 64 bits.
const DIGEST: usize = 16;
/// Words of databases and caches.
const DATABASES: [&str; 8] = [
    "postgres",
    "mysql",
    "mariadb",
    "mongo",
    "redis",
    "database",
    "cassandra",
    "mssql",
];
/// Ports of databases and caches.
const DATABASE_PORTS: [u16; 9] = [1433, 1521, 3306, 5432, 6379, 9042, 11_211, 26_257, 27_017];

choice! {
    /// The kind of an advisory.
    AdvisoryKind {
        /// An outbound rule that allows more than concrete methods and paths of one public host.
        BroadEgress = "broad_egress",
        /// Something that looks like another tenant's.
        CrossTenantRegression = "cross_tenant_regression",
        /// Secrets where untrusted code could read them.
        SecretExposure = "secret_exposure",
        /// A way to a database around the tenant's own data layer.
        WriteBypass = "write_bypass",
    }
}

choice! {
    /// How bad an advisory is.
    Severity {
        /// To be looked at.
        Medium = "medium",
        /// To be looked at first.
        High = "high",
    }
}

/// A risky grant.
#[derive(Clone, Debug)]
pub(crate) struct Advisory<'a> {
    pub(crate) id: String,
    pub(crate) kind: AdvisoryKind,
    pub(crate) severity: Severity,
    pub(crate) workload: &'a str,
    pub(crate) message: String,
    /// What makes it one, as words.
    pub(crate) reasons: Vec<&'static str>,
    pub(crate) place: Place,
    pub(crate) accepted: Option<&'a Acceptance>,
}

impl Advisory<'_> {
    /// Whether it was accepted, and still is.
    pub(crate) fn is_silenced(&self, now: Timestamp) -> bool {
        self.accepted
            .is_some_and(|accepted| !accepted.is_expired(now))
    }
}

impl Acceptance {
    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires
            .as_ref()
            .is_some_and(|expiry| now >= expiry.ends)
    }
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Proof<'a> {
    /// By kind, workload and id.
    pub(crate) advisories: Vec<Advisory<'a>>,
    /// Accepted risks that match no advisory.
    pub(crate) stale: Vec<&'a Acceptance>,
    /// Accepted risks whose time is over, stale ones included.
    pub(crate) expired: Vec<&'a Acceptance>,
    pub(crate) now: Timestamp,
}

impl Proof<'_> {
    /// Advisories that nobody accepted, or not any more.
    pub(crate) fn open(&self) -> usize {
        let open = |advisory: &&Advisory<'_>| !advisory.is_silenced(self.now);
        self.advisories.iter().filter(open).count()
    }

    /// Whether nothing is left to do.
    pub(crate) fn is_clean(&self) -> bool {
        self.open() == 0 && self.stale.is_empty() && self.expired.is_empty()
    }
}

/// Looks at every grant of a policy.
pub(crate) fn prove(policy: &Policy, now: Timestamp) -> Proof<'_> {
    let mut advisories = Vec::new();
    for decision in &policy.decisions {
        Prover {
            policy,
            decision,
            found: &mut advisories,
        }
        .all();
    }
    for advisory in &mut advisories {
        advisory.accepted = policy
            .acceptances
            .iter()
            .find(|accepted| accepted.advisory_id == advisory.id);
    }
    advisories.sort_by(|a, b| {
        (a.kind.name(), a.workload, &a.id).cmp(&(b.kind.name(), b.workload, &b.id))
    });
    let known = |accepted: &&Acceptance| {
        advisories
            .iter()
            .any(|found| found.id == accepted.advisory_id)
    };
    let stale = policy
        .acceptances
        .iter()
        .filter(|accepted| !known(accepted))
        .collect();
    let expired = policy
        .acceptances
        .iter()
        .filter(|accepted| accepted.is_expired(now))
        .collect();
    Proof {
        advisories,
        stale,
        expired,
        now,
    }
}

struct Prover<'a, 'f> {
    policy: &'a Policy,
    decision: &'a Decision,
    found: &'f mut Vec<Advisory<'a>>,
}

/// What an advisory is about.
struct Grant<'g> {
    /// Of the part of the file that it stands in.
    family: &'static str,
    /// Of the grant within the workload; no secret handle.
    subject: &'g str,
    /// What the digest is made over.
    content: &'g dyn Canonical,
}

impl<'a> Prover<'a, '_> {
    fn all(mut self) {
        let decision = self.decision;
        for rule in decision.egress.rules() {
            self.broad(rule);
            self.tcp_bypass(rule);
        }
        for endpoint in &decision.endpoints {
            self.endpoint_bypass(endpoint);
        }
        self.exposure();
        self.foreign();
    }

    fn add(
        &mut self,
        kind: AdvisoryKind,
        severity: Severity,
        grant: &Grant<'_>,
        reasons: Vec<&'static str>,
        message: String,
    ) {
        let workload = self.decision.key.as_str();
        let tenant = self.policy.tenant.as_str();
        let whole: [&dyn Canonical; 5] = [
            &kind.name(),
            &tenant,
            &workload,
            &grant.family,
            grant.content,
        ];
        let digest = Sha256::digest(text(&whole[..]).as_bytes());
        let mut hex = data_encoding::HEXLOWER.encode(&digest);
        hex.truncate(DIGEST);
        self.found.push(Advisory {
            id: format!("{kind}:{workload}:{}:{hex}", grant.subject),
            kind,
            severity,
            workload,
            message,
            reasons,
            place: self.decision.place(grant.family, grant.subject),
            accepted: None,
        });
    }

    fn broad(&mut self, rule: &EgressRule) {
        let mut reasons = Vec::new();
        if rule.protocol == EgressProtocol::Tcp {
            reasons.push("tcp");
        } else {
            if rule.methods.is_empty() {
                reasons.push("any_method");
            }
            if rule.any_path() {
                reasons.push("any_path");
            }
        }
        if rule.allow_internal_ips {
            reasons.push("internal_addresses");
        }
        if reasons.is_empty() {
            return;
        }
        let told: Vec<&str> = reasons
            .iter()
            .map(|reason| match *reason {
                "tcp" => "sends any bytes, since tcp knows neither methods nor paths",
                "any_method" => "allows every method",
                "any_path" => "allows every path",
                _ => "may reach addresses that are not public",
            })
            .collect();
        let severity = if rule.allow_internal_ips {
            Severity::High
        } else {
            Severity::Medium
        };
        let message = format!(
            "the rule `{}` to {}://{}:{} {}",
            rule.name,
            rule.protocol,
            Bracketed(&rule.host),
            rule.port,
            told.join(", and "),
        );
        let grant = Grant {
            family: "egress",
            subject: &rule.name,
            content: rule,
        };
        self.add(
            AdvisoryKind::BroadEgress,
            severity,
            &grant,
            reasons,
            message,
        );
    }

    fn tcp_bypass(&mut self, rule: &EgressRule) {
        let function = self.decision.kind == WorkloadKind::RuntimeFunction;
        if !function || rule.protocol != EgressProtocol::Tcp {
            return;
        }
        let host = rule.host.to_string();
        let reasons = database(&[&rule.name, &host], &[rule.port]);
        if reasons.is_empty() {
            return;
        }
        let message = format!(
            "the rule `{}` lets the function write to what looks like a database at {}:{}, around the tenant's own data",
            rule.name,
            Bracketed(&rule.host),
            rule.port,
        );
        let grant = Grant {
            family: "egress",
            subject: &rule.name,
            content: rule,
        };
        self.add(
            AdvisoryKind::WriteBypass,
            Severity::High,
            &grant,
            reasons,
            message,
        );
    }

    fn endpoint_bypass(&mut self, endpoint: &Endpoint) {
        if self.decision.kind != WorkloadKind::RuntimeFunction {
            return;
        }
        let host = endpoint.host.to_string();
        let ports = [endpoint.host_port, endpoint.guest_port.unwrap_or(0)];
        let reasons = database(&[&endpoint.service, &endpoint.name, &host], &ports);
        if reasons.is_empty() {
            return;
        }
        let subject = format!("{}/{}", endpoint.service, endpoint.name);
        let message = format!(
            "the endpoint `{subject}` lets the function write to what looks like a database at {}:{}, around the \
             tenant's own data",
            Bracketed(&endpoint.host),
            endpoint.host_port,
        );
        let grant = Grant {
            family: "endpoint",
            subject: &subject,
            content: endpoint,
        };
        self.add(
            AdvisoryKind::WriteBypass,
            Severity::High,
            &grant,
            reasons,
            message,
        );
    }

    fn exposure(&mut self) {
        let decision = self.decision;
        if decision.secrets.is_empty() || decision.tier != RuntimeTier::InProcessUntrusted {
            return;
        }
        let count = decision.secrets.len();
        let noun = if count == 1 { "secret" } else { "secrets" };
        let message =
            format!("{count} {noun} can be read by untrusted code in the server's process");
        let grant = Grant {
            family: "secrets",
            subject: decision.tier.name(),
            content: &decision.secrets,
        };
        let reasons = vec!["secrets_in_untrusted_process"];
        self.add(
            AdvisoryKind::SecretExposure,
            Severity::High,
            &grant,
            reasons,
            message,
        );
    }

    /// Names that speak of a tenant other than the policy's. Paths are not looked at: a wider one would say less.
    fn foreign(&mut self) {
        let decision = self.decision;
        for handle in &decision.secrets {
            self.foreign_in("secrets", "secret", handle.expose());
        }
        for volume in &decision.volumes {
            self.foreign_in("volumes", "volume", volume);
        }
        for service in &decision.services {
            self.foreign_in("services", "service", service);
        }
        if let Some(id) = decision
            .sandbox
            .as_ref()
            .and_then(|sandbox| sandbox.id.as_ref())
        {
            self.foreign_in("sandbox", "sandbox", id);
        }
        for endpoint in &decision.endpoints {
            self.foreign_in("endpoints", "endpoint", &endpoint.host.to_string());
        }
        for rule in decision.egress.rules() {
            self.foreign_in("egress", "host", &rule.host.to_string());
        }
    }

    fn foreign_in(&mut self, family: &'static str, what: &'static str, text: &str) {
        let Some(other) = foreign_tenant(text, self.policy.tenant.as_str()) else {
            return;
        };
        let subject = format!("{what}/{other}");
        let content: &[&str] = &[what, text];
        let grant = Grant {
            family,
            subject: &subject,
            content: &content,
        };
        let already = self.found.len();
        let message = format!("a {what} of the workload looks like one of the tenant `{other}`");
        self.add(
            AdvisoryKind::CrossTenantRegression,
            Severity::High,
            &grant,
            vec!["names_another_tenant"],
            message,
        );
        // The same host in two rules is one thing.
        let id = self.found[already].id.clone();
        if self.found[..already].iter().any(|found| found.id == id) {
            self.found.truncate(already);
        }
    }
}

/// Hosts as they stand before a port.
struct Bracketed<'a>(&'a crate::host::Host);

impl std::fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            crate::host::Host::Address(std::net::IpAddr::V6(v6)) => write!(f, "[{v6}]"),
            other => other.fmt(f),
        }
    }
}

/// What speaks for a database.
fn database(texts: &[&str], ports: &[u16]) -> Vec<&'static str> {
    let mut reasons = Vec::new();
    let names = |text: &&str| {
        let lower = text.to_ascii_lowercase();
        let mut words = lower.split(|c: char| !c.is_ascii_alphanumeric());
        DATABASES.iter().any(|name| lower.contains(name))
            || words.any(|word| word.starts_with("db") || word.ends_with("db"))
    };
    if texts.iter().any(names) {
        reasons.push("database_name");
    }
    if ports.iter().any(|port| DATABASE_PORTS.contains(port)) {
        reasons.push("database_port");
    }
    reasons
}

/// The tenant that a text speaks of, if it is another: a segment `tenant-x` or `tenant_x`, or the one after `tenant` or `tenants`.
fn foreign_tenant<'t>(text: &'t str, own: &str) -> Option<&'t str> {
    let mut named = false;
    for segment in text.split(['/', '.', ':']) {
        if named && !segment.is_empty() && segment != own {
            return Some(segment);
        }
        named = matches!(segment, "tenant" | "tenants");
        let rest = segment
            .strip_prefix("tenant-")
            .or_else(|| segment.strip_prefix("tenant_"));
        if let Some(other) = rest
            && !other.is_empty()
            && other != own
            && segment != own
        {
            return Some(segment);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_tenants_are_seen() {
        for (text, other) in [
            ("tenant-b/key", Some("tenant-b")),
            ("shared/tenant-b/key", Some("tenant-b")),
            ("tenants/b/key", Some("b")),
            ("tenant_b.internal", Some("tenant_b")),
            ("tenants/a/key", None),
            ("tenant-a/key", None),
            ("a/key", None),
            ("tenants", None),
            ("tenancy/b", None),
        ] {
            assert_eq!(foreign_tenant(text, "a"), other, "{text}");
        }
        assert_eq!(foreign_tenant("tenant-a/key", "tenant-a"), None);
    }

    #[test]
    fn databases_are_seen_by_words_and_ports() {
        assert_eq!(database(&["main-db"], &[443]), ["database_name"]);
        assert_eq!(database(&["UserDB"], &[443]), ["database_name"]);
        assert_eq!(database(&["orders"], &[5432]), ["database_port"]);
        assert!(database(&["feedback"], &[443]).is_empty());
    }
}
