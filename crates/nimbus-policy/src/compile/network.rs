//! Endpoints and outbound rules.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Compiler;
use super::names::Seen;
use crate::decision::Endpoint;
use crate::decode::Spanned;
use crate::egress::{Egress, EgressRule};
use crate::host::{self, Host, HostFault};
use crate::path;
use crate::problem::Code;
use crate::schema::{EgressBlockRule, EgressProtocol, EndpointBlock};
use crate::source::Span;
use crate::text::shown;

/// Longest method.
const MAX_METHOD: usize = 32;

impl Compiler<'_> {
    pub(super) fn endpoints(
        &mut self,
        list: &[Spanned<EndpointBlock>],
        services: &BTreeSet<String>,
    ) -> Vec<Endpoint> {
        let mut seen: HashMap<String, Span> = HashMap::new();
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for item in list {
            let Some(endpoint) = self.endpoint(&item.value, services) else {
                continue;
            };
            let key = format!("{}/{}", endpoint.service, endpoint.name);
            let place = self.lines.place(item.span);
            self.places.insert(("endpoint", key.clone()), place);
            let span = item.value.name.span;
            match seen.get(&key) {
                Some(first) => self.twice(
                    span,
                    *first,
                    &format!("the endpoint `{key}` is there twice"),
                ),
                None => {
                    seen.insert(key, span);
                    endpoints.push(endpoint);
                }
            }
        }
        endpoints.sort_by(|a, b| (&a.service, &a.name).cmp(&(&b.service, &b.name)));
        endpoints
    }

    fn endpoint(&mut self, file: &EndpointBlock, services: &BTreeSet<String>) -> Option<Endpoint> {
        let service = self.name(&file.service, "a service");
        if let Some(service) = &service
            && !services.contains(service)
        {
            let message = format!("the service `{service}` is not granted");
            self.problems
                .add(Code::ServiceNotAllowed, file.service.span, message)
                .help("add it to `services.allow` of the workload, or remove the endpoint");
        }
        let name = self.name(&file.name, "an endpoint");
        let host = self.host(&file.host);
        let host_port = self.port(&file.host_port);
        let guest_port = match &file.guest_port {
            Some(port) => self.port(port).map(Some),
            None => Some(None),
        };
        Some(Endpoint {
            service: service?,
            name: name?,
            protocol: file.protocol,
            host: host?,
            host_port: host_port?,
            guest_port: guest_port?,
        })
    }

    pub(super) fn egress(&mut self, list: &[Spanned<EgressBlockRule>]) -> Egress {
        let mut seen = Seen::default();
        let mut rules: Vec<EgressRule> = Vec::new();
        for item in list {
            let Some(rule) = self.rule(&item.value) else {
                continue;
            };
            let place = self.lines.place(item.span);
            self.places.insert(("egress", rule.name.clone()), place);
            let name = &item.value.name;
            match seen.before(&name.value, name.span) {
                Some(first) => {
                    let message = format!("the rule `{}` is there twice", rule.name);
                    self.twice(name.span, first, &message);
                }
                None => rules.push(rule),
            }
        }
        Egress::new(rules)
    }

    fn rule(&mut self, file: &EgressBlockRule) -> Option<EgressRule> {
        let name = self.name(&file.name, "a rule");
        let host = self.host(&file.host);
        let port = self.port(&file.port);
        let internal = file.allow_internal_ips.unwrap_or(false);
        if let Some(host) = &host
            && host.is_internal()
            && !internal
        {
            let message = format!("`{host}` is this machine or an address that is not public");
            self.problems
                .add(Code::InternalHost, file.host.span, message)
                .help("add `allow_internal_ips: true` if the workload must reach it; `prove` then flags the rule");
        }
        if file.protocol == EgressProtocol::Tcp {
            for (key, list) in [
                ("methods", &file.methods),
                ("path_prefixes", &file.path_prefixes),
            ] {
                if let Some(list) = list {
                    self.problems
                        .add(
                            Code::NotForProtocol,
                            list.span,
                            format!("tcp knows no `{key}`"),
                        )
                        .help("remove the key, or set `protocol` to http or https");
                }
            }
        }
        let methods = file.methods.as_ref().map(|list| self.methods(list));
        let path_prefixes = file.path_prefixes.as_ref().map(|list| self.prefixes(list));
        Some(EgressRule {
            name: name?,
            protocol: file.protocol,
            host: host?,
            port: port?,
            methods: methods.unwrap_or_default(),
            path_prefixes: path_prefixes.unwrap_or_default(),
            allow_internal_ips: internal,
        })
    }

    fn host(&mut self, text: &Spanned<String>) -> Option<Host> {
        match host::parse(&text.value) {
            Ok(host) if host.is_unspecified() => {
                let message = format!("`{host}` stands for every address, not for a host");
                self.problems
                    .add(Code::BadHost, text.span, message)
                    .help("name the host that is meant");
                None
            }
            Ok(host) => Some(host),
            Err(fault) => {
                let code = match fault {
                    HostFault::Wildcard => Code::Wildcard,
                    _ => Code::BadHost,
                };
                let message = format!("`{}` is no host", shown(&text.value));
                self.problems
                    .add(code, text.span, message)
                    .help(fault.to_string());
                None
            }
        }
    }

    fn port(&mut self, port: &Spanned<u16>) -> Option<u16> {
        if port.value == 0 {
            self.problems
                .add(Code::BadNumber, port.span, "there is no port 0")
                .help("write a port from 1 to 65535");
            return None;
        }
        Some(port.value)
    }

    fn methods(&mut self, list: &Spanned<Vec<Spanned<String>>>) -> BTreeSet<String> {
        self.not_empty(list, "methods");
        let mut seen = Seen::default();
        let mut methods = BTreeSet::new();
        for item in &list.value {
            let text = item.value.as_str();
            let letters = text
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'-');
            if text == "*" {
                self.problems
                    .add(Code::Wildcard, item.span, "a wildcard is no method")
                    .help("list the methods; without the key all are allowed, which `prove` flags");
            } else if text.is_empty() || !letters || text.len() > MAX_METHOD {
                let message = format!("`{}` is no method", shown(text));
                self.problems
                    .add(Code::BadMethod, item.span, message)
                    .help("write methods in upper case, such as `GET` and `POST`");
            } else if let Some(first) = seen.before(text, item.span) {
                self.twice(item.span, first, &format!("`{text}` is listed twice"));
            } else {
                methods.insert(text.to_owned());
            }
        }
        methods
    }

    fn prefixes(&mut self, list: &Spanned<Vec<Spanned<String>>>) -> BTreeSet<String> {
        self.not_empty(list, "path_prefixes");
        let mut prefixes: BTreeMap<String, Span> = BTreeMap::new();
        for item in &list.value {
            let prefix = match path::prefix(&item.value) {
                Ok(prefix) => prefix,
                Err(fault) => {
                    let code = match fault {
                        path::PathFault::Wildcard => Code::Wildcard,
                        _ => Code::BadPath,
                    };
                    let message = format!("`{}` is no path prefix", shown(&item.value));
                    self.problems
                        .add(code, item.span, message)
                        .help(fault.to_string());
                    continue;
                }
            };
            match overlapping(&prefixes, &prefix) {
                Some((other, first)) => {
                    let message = format!("`{prefix}` and `{other}` overlap");
                    let first = *first;
                    self.problems
                        .add(Code::OverlappingPaths, item.span, message)
                        .help("keep the shorter one, which covers the other; or make them disjoint")
                        .also(first, "first here");
                }
                None => drop(prefixes.insert(prefix, item.span)),
            }
        }
        prefixes.into_keys().collect()
    }

    fn not_empty(&mut self, list: &Spanned<Vec<Spanned<String>>>, key: &str) {
        if list.value.is_empty() {
            self.problems
                .add(Code::NoValue, list.span, format!("`{key}` is empty"))
                .help("list what is allowed, or remove the key, which allows all");
        }
    }
}

/// One of some prefixes, none of which covers another, that covers this one or is covered by it. Not all are looked at: a
/// file has room for hundreds of thousands.
fn overlapping<'m>(
    known: &'m BTreeMap<String, Span>,
    prefix: &str,
) -> Option<(&'m String, &'m Span)> {
    if known.is_empty() {
        return None;
    }
    let cuts = prefix
        .match_indices('/')
        .map(|(at, _)| &prefix[..at.max(1)]);
    let above = cuts
        .chain([prefix])
        .find_map(|above| known.get_key_value(above));
    // What is below comes after it: at once, or after what goes on with something less than a slash.
    let below = || {
        let inside = match prefix {
            "/" => prefix.to_owned(),
            _ => format!("{prefix}/"),
        };
        let next = known.range(inside..).next();
        next.filter(|(other, _)| path::covers(prefix, other))
    };
    above.or_else(below)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_those_of_a_look_at_all() {
        let pieces = ["", "/a", "/b", "/a-b", "/ab", "/!", "/z"];
        let mut all = vec!["/".to_owned()];
        for one in &pieces[1..] {
            for two in pieces {
                for three in ["", "/a", "/c"] {
                    all.push(format!("{one}{two}{three}"));
                }
            }
        }
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let mut known = BTreeMap::new();
            for _ in 0..4 {
                let prefix = rng.choice(&all).unwrap();
                let slow = known.keys().any(|other: &String| {
                    path::covers(other, prefix) || path::covers(prefix, other)
                });
                let found = overlapping(&known, prefix);
                assert_eq!(found.is_some(), slow, "{prefix} {known:?}");
                if let Some((other, _)) = found {
                    assert!(path::covers(other, prefix) || path::covers(prefix, other));
                } else {
                    known.insert(prefix.clone(), Span::default());
                }
            }
        }
    }
}
