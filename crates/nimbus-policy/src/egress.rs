//! Outbound connections: the rules, and the decision about one request. Allocates nothing while deciding.
//!
//! Knows no sockets and resolves nothing. Two questions are asked of it: before a name is resolved whether the
//! request may be made at all ([`Egress::decide`]), and before a connection whether it may go to the address
//! that was found ([`Verdict::admits`]). The second must be asked about the very address that is connected to.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;

use nimbus_core::net::{is_public, unmapped};

use crate::host::Host;
use crate::path;
use crate::schema::EgressProtocol;

/// Longest name that a rule can have.
const MAX_NAME: usize = 253;

/// One host, port and protocol that may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    pub(crate) name: String,
    pub(crate) protocol: EgressProtocol,
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// All if there are none.
    pub(crate) methods: BTreeSet<String>,
    /// Canonical; all paths if there are none.
    pub(crate) path_prefixes: BTreeSet<String>,
    pub(crate) allow_internal_ips: bool,
}

impl EgressRule {
    /// Name of the rule, unique within its workload.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the rule allows every path, said as `/` or by not saying anything.
    pub(crate) fn any_path(&self) -> bool {
        self.path_prefixes.is_empty() || self.path_prefixes.contains("/")
    }

    /// Whether everything that `other` allows is allowed by this rule.
    pub(crate) fn covers(&self, other: &EgressRule) -> bool {
        let methods = self.methods.is_empty()
            || (!other.methods.is_empty() && other.methods.is_subset(&self.methods));
        let covered = |found: &String| {
            self.path_prefixes
                .iter()
                .any(|prefix| path::covers(prefix, found))
        };
        let paths =
            self.any_path() || (!other.any_path() && other.path_prefixes.iter().all(covered));
        self.protocol == other.protocol
            && self.host == other.host
            && self.port == other.port
            && methods
            && paths
            && (self.allow_internal_ips || !other.allow_internal_ips)
    }
}

/// What a workload wants to do.
#[derive(Clone, Copy, Debug)]
pub struct EgressRequest<'a> {
    /// What is spoken.
    pub protocol: EgressProtocol,
    /// Name or address as in a URL: any case, a dot at the end and brackets do not matter.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// The method; `None` for tcp.
    pub method: Option<&'a str>,
    /// The path; a query after `?` does not matter; `None` for tcp.
    pub path: Option<&'a str>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denied {
    /// No rule names the host.
    Host,
    /// Rules name the host, but not with this port and protocol.
    PortOrProtocol,
    /// Rules would allow it with another method.
    Method,
    /// Rules would allow it with another path.
    Path,
    /// The path could be read in two ways (`..`, `//`, encoded slashes), so it matches no prefix.
    AmbiguousPath,
}

impl Denied {
    /// The reason as a word for logs.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Denied::Host => "host_not_allowed",
            Denied::PortOrProtocol => "port_or_protocol_not_allowed",
            Denied::Method => "method_not_allowed",
            Denied::Path => "path_not_allowed",
            Denied::AmbiguousPath => "path_ambiguous",
        }
    }
}

/// Which addresses a connection may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reach {
    /// To public ones.
    Public,
    /// To any.
    Any,
    /// To this one, public or not.
    Address(IpAddr),
}

impl Reach {
    /// Whether this address is one of them.
    #[must_use]
    pub fn admits(self, address: IpAddr) -> bool {
        match self {
            Reach::Public => is_public(address),
            Reach::Any => true,
            Reach::Address(granted) => unmapped(address) == granted,
        }
    }
}

/// The answer to a request.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    /// This rule allows it.
    Allowed(&'a EgressRule),
    /// No rule does.
    Denied(Denied),
}

impl Verdict<'_> {
    /// Whether a connection for the request may go to this address.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> bool {
        self.reach().is_some_and(|reach| reach.admits(address))
    }

    /// Where a connection for the request may go; `None` if the request is refused.
    #[must_use]
    pub fn reach(&self) -> Option<Reach> {
        match self {
            Verdict::Allowed(rule) => Some(match &rule.host {
                Host::Address(granted) => Reach::Address(*granted),
                Host::Name(_) if rule.allow_internal_ips => Reach::Any,
                Host::Name(_) => Reach::Public,
            }),
            Verdict::Denied(_) => None,
        }
    }

    /// Name of the rule that allows the request.
    #[must_use]
    pub fn rule(&self) -> Option<&str> {
        match self {
            Verdict::Allowed(rule) => Some(&rule.name),
            Verdict::Denied(_) => None,
        }
    }
}

/// The rules of a workload, ready to decide.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    /// By name.
    rules: Vec<EgressRule>,
    /// Places of the rules in the order of their hosts, then of their names.
    by_host: Vec<usize>,
}

impl PartialEq for Egress {
    fn eq(&self, other: &Egress) -> bool {
        self.rules == other.rules
    }
}

impl Egress {
    pub(crate) fn new(mut rules: Vec<EgressRule>) -> Egress {
        rules.sort_by(|a, b| a.name.cmp(&b.name));
        let mut by_host: Vec<usize> = (0..rules.len()).collect();
        by_host.sort_by(|a, b| rules[*a].host.cmp(&rules[*b].host));
        Egress { rules, by_host }
    }

    /// The rules in the order of their names.
    #[must_use]
    pub fn rules(&self) -> &[EgressRule] {
        &self.rules
    }

    /// Whether a request may be made: by the rule that admits most addresses, the first by name among equals; else the
    /// reason of the one that came closest.
    #[must_use]
    pub fn decide(&self, request: &EgressRequest<'_>) -> Verdict<'_> {
        let path = request
            .path
            .map(|path| path.split('?').next().unwrap_or_default());
        let clear = path.is_none_or(path::is_unambiguous);
        let (mut closest, mut allowed) = (Denied::Host, None);
        for rule in self
            .of_host(request.host)
            .iter()
            .filter_map(|at| self.rules.get(*at))
        {
            match judge(rule, request, path, clear) {
                // Another rule for the same request may admit more addresses: names of rules decide nothing.
                None if rule.allow_internal_ips => return Verdict::Allowed(rule),
                None => allowed = allowed.or(Some(rule)),
                Some(denied) if rank(denied) > rank(closest) => closest = denied,
                Some(_) => {}
            }
        }
        allowed.map_or(Verdict::Denied(closest), Verdict::Allowed)
    }

    fn of_host(&self, host: &str) -> &[usize] {
        let bare = host.strip_suffix('.').unwrap_or(host);
        let bracketed = bare
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = bracketed.unwrap_or(bare).parse::<IpAddr>() {
            let wanted = unmapped(address);
            return self.with_host(|host| match host {
                Host::Address(address) => address.cmp(&wanted),
                Host::Name(_) => Ordering::Greater,
            });
        }
        let mut lower = [0_u8; MAX_NAME];
        let Some(buffer) = lower.get_mut(..bare.len()) else {
            return &[];
        };
        buffer.copy_from_slice(bare.as_bytes());
        buffer.make_ascii_lowercase();
        let name = std::str::from_utf8(buffer).unwrap_or_default();
        self.with_host(|host| match host {
            Host::Address(_) => Ordering::Less,
            Host::Name(known) => known.as_str().cmp(name),
        })
    }

    /// The rules of the hosts that are equal to what is wanted, by the order of hosts.
    fn with_host(&self, order: impl Fn(&Host) -> Ordering) -> &[usize] {
        let rule = |at: &usize| self.rules.get(*at);
        let of = |at: &usize| rule(at).map_or(Ordering::Greater, |rule| order(&rule.host));
        let start = self.by_host.partition_point(|at| of(at) == Ordering::Less);
        let rest = self.by_host.get(start..).unwrap_or_default();
        let length = rest.partition_point(|at| of(at) == Ordering::Equal);
        rest.get(..length).unwrap_or_default()
    }
}

/// `None` if the rule allows the request.
fn judge(
    rule: &EgressRule,
    request: &EgressRequest<'_>,
    path: Option<&str>,
    clear: bool,
) -> Option<Denied> {
    if rule.port != request.port || rule.protocol != request.protocol {
        return Some(Denied::PortOrProtocol);
    }
    let method = request.method.unwrap_or_default();
    if !rule.methods.is_empty() && !rule.methods.contains(method) {
        return Some(Denied::Method);
    }
    if rule.any_path() {
        return None;
    }
    if !clear {
        return Some(Denied::AmbiguousPath);
    }
    let path = path.unwrap_or_default();
    let allowed = rule
        .path_prefixes
        .iter()
        .any(|prefix| path::allows(prefix, path));
    (!allowed).then_some(Denied::Path)
}

fn rank(denied: Denied) -> u8 {
    match denied {
        Denied::Host => 0,
        Denied::PortOrProtocol => 1,
        Denied::Method => 2,
        Denied::Path => 3,
        Denied::AmbiguousPath => 4,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rule(name: &str, host: &str) -> EgressRule {
        EgressRule {
            name: name.to_owned(),
            protocol: EgressProtocol::Https,
            host: crate::host::parse(host).unwrap(),
            port: 443,
            methods: BTreeSet::from(["POST".to_owned()]),
            path_prefixes: BTreeSet::from(["/hooks".to_owned()]),
            allow_internal_ips: false,
        }
    }

    fn decide(host: &str, port: u16, method: &str, path: &str) -> Result<String, Denied> {
        let egress = Egress::new(vec![
            rule("partner", "api.example.com"),
            rule("address", "2001:db8::1"),
        ]);
        let request = EgressRequest {
            protocol: EgressProtocol::Https,
            host,
            port,
            method: Some(method),
            path: Some(path),
        };
        match egress.decide(&request) {
            Verdict::Allowed(rule) => Ok(rule.name.clone()),
            Verdict::Denied(denied) => Err(denied),
        }
    }

    #[test]
    fn a_request_is_allowed_by_a_rule_or_refused_for_a_reason() {
        let partner = Ok("partner".to_owned());
        assert_eq!(
            decide("api.example.com", 443, "POST", "/hooks/1?a=/.."),
            partner
        );
        assert_eq!(decide("API.example.com.", 443, "POST", "/hooks"), partner);
        assert_eq!(
            decide("[2001:DB8::1]", 443, "POST", "/hooks"),
            Ok("address".to_owned())
        );
        for (host, port, method, path, denied) in [
            ("example.com", 443, "POST", "/hooks", Denied::Host),
            ("api.example.com..", 443, "POST", "/hooks", Denied::Host),
            ("xapi.example.com", 443, "POST", "/hooks", Denied::Host),
            ("", 443, "POST", "/hooks", Denied::Host),
            (
                "api.example.com",
                80,
                "POST",
                "/hooks",
                Denied::PortOrProtocol,
            ),
            ("api.example.com", 443, "GET", "/hooks", Denied::Method),
            ("api.example.com", 443, "post", "/hooks", Denied::Method),
            ("api.example.com", 443, "POST", "/hooksy", Denied::Path),
            (
                "api.example.com",
                443,
                "POST",
                "/hooks/../x",
                Denied::AmbiguousPath,
            ),
            (
                "api.example.com",
                443,
                "POST",
                "/hooks/%2e%2e/x",
                Denied::AmbiguousPath,
            ),
        ] {
            assert_eq!(
                decide(host, port, method, path),
                Err(denied),
                "{host} {method} {path}"
            );
        }
        let long = "a".repeat(300);
        assert_eq!(decide(&long, 443, "POST", "/hooks"), Err(Denied::Host));
    }

    #[test]
    fn an_address_is_admitted_only_where_the_rule_leads() {
        let (named, mut internal) = (rule("a", "a.example"), rule("a", "a.example"));
        internal.allow_internal_ips = true;
        let literal = rule("a", "1.2.3.4");
        for (rule, address, admitted) in [
            (&named, "1.1.1.1", true),
            (&named, "10.0.0.1", false),
            (&named, "::ffff:169.254.169.254", false),
            (&internal, "10.0.0.1", true),
            (&literal, "1.2.3.4", true),
            (&literal, "::ffff:1.2.3.4", true),
            (&literal, "1.2.3.5", false),
        ] {
            let verdict = Verdict::Allowed(rule);
            assert_eq!(
                verdict.admits(address.parse().unwrap()),
                admitted,
                "{address}"
            );
        }
        assert!(!Verdict::Denied(Denied::Host).admits("1.1.1.1".parse().unwrap()));
    }

    #[test]
    fn covering_needs_every_part() {
        let narrow = rule("a", "a.example");
        let mut wide = narrow.clone();
        assert!(wide.covers(&narrow));
        wide.methods.insert("GET".to_owned());
        wide.path_prefixes = BTreeSet::from(["/".to_owned()]);
        assert!(wide.covers(&narrow) && !narrow.covers(&wide));
        let mut all = narrow.clone();
        (all.methods, all.path_prefixes) = (BTreeSet::new(), BTreeSet::new());
        assert!(all.covers(&wide) && !wide.covers(&all));
    }
}
