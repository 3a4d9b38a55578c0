//! From the audit of refused requests to the rules that would allow them, and no more: for a person to review.
//!
//! Reads lines as `nimbus audit export` writes them. What functions wanted is other people's text, so nothing of it is
//! taken that a policy file could not say. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read as _};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decision::{Decision, Policy};
use crate::egress::{EgressRequest, EgressRule, Verdict};
use crate::host::{self, Host};
use crate::path;
use crate::schema::{EgressProtocol, WorkloadKind};
use crate::text::shown;

/// Longest line of an audit log that is read; the log itself keeps lines far below.
const MAX_LINE: u64 = 64 * 1024;
/// How reasons of refused requests begin.
const DENIED: &str = "egress.denied: ";

/// `nimbus policy suggest -f json`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "Rules that would allow what was refused")]
pub struct SuggestReport {
    tenant_id: String,
    /// Always `review_required`: nothing is applied.
    status: &'static str,
    /// Refused requests of the tenant in the log, those that share a line included.
    denied_requests: u64,
    /// Of those, what the policy allows by now.
    already_allowed: u64,
    /// Of those, what no rule should allow, or none can.
    not_suggested: u64,
    /// By workload.
    workloads: Vec<SuggestedWorkload>,
}

/// What to add to one workload.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SuggestedWorkload {
    pub(crate) workload_key: String,
    /// Whether the policy has the workload.
    pub(crate) exists: bool,
    /// For `network.egress.allow`.
    pub(crate) rules: Vec<SuggestedRule>,
}

/// One rule.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SuggestedRule {
    pub(crate) name: String,
    pub(crate) protocol: EgressProtocol,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) methods: Vec<String>,
    pub(crate) path_prefixes: Vec<String>,
    /// The host leads to addresses that are not public: look twice.
    pub(crate) allow_internal_ips: bool,
    /// Refused requests that it would allow.
    pub(crate) denied_requests: u64,
}

/// An audit line, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(default)]
    tenant_id: Option<String>,
    auth_scope: String,
    reason: String,
    method: String,
    path: String,
}

/// A refused request.
struct Refusal {
    function: String,
    protocol: EgressProtocol,
    host: Host,
    port: u16,
    method: String,
    /// A canonical prefix.
    path: String,
    /// It led, or would have led, to an address that is not public.
    internal: bool,
}

/// Where rules can be one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    function: String,
    host: Host,
    protocol: EgressProtocol,
    port: u16,
}

/// What was wanted of a place.
#[derive(Default)]
struct Wanted {
    /// With how many requests, by path and method.
    requests: BTreeMap<String, BTreeMap<String, u64>>,
    internal: bool,
}

/// The rules that would allow what was refused to the tenant of a policy.
///
/// # Errors
/// What reading the log said.
pub fn suggest(policy: &Policy, mut log: impl BufRead) -> io::Result<SuggestReport> {
    let mut report = SuggestReport {
        tenant_id: policy.tenant.to_string(),
        status: "review_required",
        denied_requests: 0,
        already_allowed: 0,
        not_suggested: 0,
        workloads: Vec::new(),
    };
    let mut wanted: BTreeMap<Place, Wanted> = BTreeMap::new();
    let mut text = Vec::new();
    while read_line(&mut log, &mut text)? {
        let Ok(line) = serde_json::from_slice::<Line>(&text) else {
            continue;
        };
        let ours = line.tenant_id.as_deref() == Some(policy.tenant.as_str());
        let Some((reason, count)) = reason(&line).filter(|_| ours) else {
            continue;
        };
        report.denied_requests += count;
        match Refusal::of(&line, reason) {
            None => report.not_suggested += count,
            Some(refusal) if refusal.is_allowed(policy) => report.already_allowed += count,
            Some(refusal) => refusal.add(&mut wanted, count),
        }
    }
    report.workloads = workloads(policy, wanted);
    Ok(report)
}

/// Reads a line without its end; of one that is too long only the beginning, which is no JSON.
fn read_line(log: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<bool> {
    text.clear();
    if log.by_ref().take(MAX_LINE).read_until(b'\n', text)? == 0 {
        return Ok(false);
    }
    if text.last() != Some(&b'\n') {
        log.skip_until(b'\n')?;
    }
    Ok(true)
}

/// What stands after the mark of a refused request, and for how many requests the line stands.
fn reason(line: &Line) -> Option<(&str, u64)> {
    let reason = line.reason.strip_prefix(DENIED)?;
    if line.auth_scope != "egress" {
        return None;
    }
    let more = reason
        .strip_suffix(" more within a minute)")
        .and_then(|rest| rest.rsplit_once(" ("));
    Some(match more {
        Some((reason, count)) => (reason, count.parse().unwrap_or(1)),
        None => (reason, 1),
    })
}

impl Refusal {
    fn of(line: &Line, reason: &str) -> Option<Refusal> {
        let (word, function) = reason.split_once(" for ")?;
        let internal = match word {
            "host_not_allowed"
            | "port_or_protocol_not_allowed"
            | "method_not_allowed"
            | "path_not_allowed" => false,
            "leads_to_internal_address" | "address_not_public" => true,
            // Such a path is to be mended where it is made.
            _ => return None,
        };
        let (scheme, rest) = line.path.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find('/')?);
        let (host, port) = authority.rsplit_once(':')?;
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let named = |c: char| c.is_ascii_alphanumeric() || "/:._".contains(c);
        let method = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
        let good = !function.is_empty()
            && function.chars().all(named)
            && !line.method.is_empty()
            && line.method.bytes().all(method);
        Some(Refusal {
            function: function.to_owned(),
            protocol: match scheme {
                "https" => EgressProtocol::Https,
                "http" => EgressProtocol::Http,
                _ => return None,
            },
            host: host::parse(bare.unwrap_or(host)).ok()?,
            port: port.parse().ok()?,
            method: line.method.clone(),
            path: path::prefix(path).ok()?,
            internal,
        })
        .filter(|_| good)
    }

    fn is_allowed(&self, policy: &Policy) -> bool {
        let Some(decision) = policy.decision(WorkloadKind::RuntimeFunction, &self.function) else {
            return false;
        };
        let host = self.host.to_string();
        let request = EgressRequest {
            protocol: self.protocol,
            host: &host,
            port: self.port,
            method: Some(&self.method),
            path: Some(&self.path),
        };
        match decision.egress.decide(&request) {
            Verdict::Allowed(rule) => rule.allow_internal_ips || !self.internal,
            Verdict::Denied(_) => false,
        }
    }

    fn add(self, wanted: &mut BTreeMap<Place, Wanted>, count: u64) {
        let internal = self.internal || self.host.is_internal();
        let place = Place {
            function: self.function,
            host: self.host,
            protocol: self.protocol,
            port: self.port,
        };
        let of_place = wanted.entry(place).or_default();
        let methods = of_place.requests.entry(self.path).or_default();
        *methods.entry(self.method).or_default() += count;
        of_place.internal |= internal;
    }
}

impl Wanted {
    /// Paths by the methods that were wanted of them, with the number of requests. One rule for all would let every
    /// method to every path.
    fn apart(&self) -> BTreeMap<BTreeSet<&String>, (BTreeSet<&String>, u64)> {
        let mut groups: BTreeMap<BTreeSet<&String>, (BTreeSet<&String>, u64)> = BTreeMap::new();
        for (path, methods) in &self.requests {
            let group = groups.entry(methods.keys().collect()).or_default();
            group.0.insert(path);
            group.1 += methods.values().sum::<u64>();
        }
        groups
    }
}

fn workloads(policy: &Policy, wanted: BTreeMap<Place, Wanted>) -> Vec<SuggestedWorkload> {
    let mut all: Vec<SuggestedWorkload> = Vec::new();
    for (place, wanted) in wanted {
        let decision = policy.decision(WorkloadKind::RuntimeFunction, &place.function);
        let key = format!("{}/{}", WorkloadKind::RuntimeFunction, place.function);
        let same = all.last().is_some_and(|last| last.workload_key == key);
        if !same {
            all.push(SuggestedWorkload {
                workload_key: key,
                exists: decision.is_some(),
                rules: Vec::new(),
            });
        }
        let Some(workload) = all.last_mut() else {
            continue;
        };
        for (methods, (paths, count)) in wanted.apart() {
            let host = place.host.to_string();
            workload.rules.push(SuggestedRule {
                name: name(&host, place.port, decision, &workload.rules),
                protocol: place.protocol,
                host,
                port: place.port,
                methods: methods.into_iter().cloned().collect(),
                path_prefixes: widest(&paths),
                allow_internal_ips: wanted.internal,
                denied_requests: count,
            });
        }
    }
    all
}

/// The paths that no other covers: prefixes of one rule must not overlap.
fn widest(paths: &BTreeSet<&String>) -> Vec<String> {
    let covered = |path: &String| {
        let mut others = paths.iter().filter(|other| **other != path);
        others.any(|other| path::covers(other, path))
    };
    let widest = paths.iter().filter(|path| !covered(path));
    widest.map(|path| (*path).clone()).collect()
}

/// A name that no rule of the workload has.
fn name(host: &str, port: u16, decision: Option<&Decision>, before: &[SuggestedRule]) -> String {
    let base = format!("{}-{}", host.replace(['.', ':'], "-"), port);
    let rules = decision.map_or(&[] as &[EgressRule], |decision| decision.egress.rules());
    let taken = |name: &String| {
        rules.iter().any(|rule| rule.name == *name) || before.iter().any(|rule| rule.name == *name)
    };
    let numbered = (2_u32..).map(|number| format!("{base}-{number}"));
    let mut names = std::iter::once(base.clone()).chain(numbered);
    names.find(|name| !taken(name)).unwrap_or(base)
}

impl SuggestReport {
    /// As YAML to copy from, with what there is to know in comments.
    #[must_use]
    pub(crate) fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        let _ = writeln!(
            out,
            "# tenant {}: {} denied, {} allowed by now, {} that no rule should allow",
            self.tenant_id, self.denied_requests, self.already_allowed, self.not_suggested,
        );
        if self.workloads.is_empty() {
            out.push_str("# nothing to suggest\n");
            return out;
        }
        out.push_str(
            "# Nothing was changed. These rules allow what was refused, whoever wanted it: review each, then copy it.\n",
        );
        for workload in &self.workloads {
            let key = shown(&workload.workload_key);
            let how = match workload.exists {
                true => "add to its network.egress.allow",
                false => "the policy has no such workload; add it with network.egress.allow",
            };
            let _ = writeln!(out, "\n# {key}: {how}");
            for rule in &workload.rules {
                rule.write(&mut out);
            }
        }
        out
    }
}

impl SuggestedRule {
    fn write(&self, out: &mut String) {
        use std::fmt::Write as _;
        // A JSON string is a YAML one.
        let quoted = |text: &String| serde_json::Value::from(text.as_str()).to_string();
        let list = |texts: &[String]| texts.iter().map(quoted).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "- name: {}", self.name);
        let _ = writeln!(out, "  protocol: {}", self.protocol);
        let _ = writeln!(out, "  host: {}", quoted(&self.host));
        let _ = writeln!(out, "  port: {}", self.port);
        let _ = writeln!(out, "  methods: [{}]", self.methods.join(", "));
        let _ = writeln!(out, "  path_prefixes: [{}]", list(&self.path_prefixes));
        if self.allow_internal_ips {
            out.push_str(
                "  # The host leads to an address that is not public: could that be an attack? In production only a\n  \
                 # function of the tier in_process_trusted_only may have such a rule.\n",
            );
            out.push_str("  allow_internal_ips: true\n");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::source::Source;

    const POLICY: &str = "
schema_version: 1
tenant: acme
workloads:
- kind: runtime_function
  name: orders:notify
  network:
    egress:
      allow:
      - {name: api-example-443, protocol: https, host: api.example, port: 443, methods: [POST], path_prefixes: [/v1]}
";

    fn line(reason: &str, method: &str, path: &str) -> String {
        format!(
            r#"{{"ts":"2026-11-26T10:00:00.000Z","tenantId":"acme","authScope":"egress","success":false,"reason":"egress.denied: {reason}","method":"{method}","path":"{path}","status":403}}"#
        )
    }

    fn suggested(lines: &[String]) -> SuggestReport {
        let policy = crate::compile(&Source::new("p", POLICY.into())).unwrap();
        suggest(&policy, lines.join("\n").as_bytes()).unwrap()
    }

    #[test]
    fn rules_allow_what_was_refused_and_no_more() {
        let report = suggested(&[
            line(
                "method_not_allowed for orders:notify",
                "PUT",
                "https://api.example:443/v1/a",
            ),
            line(
                "path_not_allowed for orders:notify (7 more within a minute)",
                "POST",
                "https://api.example:443/v2",
            ),
            line(
                "path_not_allowed for orders:notify",
                "POST",
                "https://api.example:443/v2/b",
            ),
            line(
                "host_not_allowed for orders:notify",
                "GET",
                "http://[fd00::1]:80/x",
            ),
            line(
                "leads_to_internal_address for mail:send",
                "GET",
                "https://b\u{fc}cher.example:8443/",
            ),
            line(
                "method_not_allowed for orders:notify",
                "POST",
                "https://api.example:443/v1/done",
            ),
            line(
                "path_ambiguous for orders:notify",
                "GET",
                "https://api.example:443/a//b",
            ),
            line("too many to tell apart", "", "other requests"),
            line(
                "host_not_allowed for orders:notify",
                "GET",
                "https://evil.example:443/\\u001b[31m",
            ),
            line("host_not_allowed for a b", "GET", "https://a.example:443/"),
            line(
                "host_not_allowed for orders:notify",
                "GET",
                "https://api.example:443/",
            )
            .replace("acme", "globex"),
            line(
                "host_not_allowed for orders:notify",
                "GET",
                "https://api.example:443/",
            )
            .replace("\"egress\"", "\"secret\""),
            "no JSON".to_owned(),
            "x".repeat(200_000),
            line(
                "host_not_allowed for orders:notify",
                "GET",
                "https://last.example:443/",
            ),
        ]);
        assert_eq!(
            (
                report.denied_requests,
                report.already_allowed,
                report.not_suggested
            ),
            (17, 1, 4)
        );
        let keys: Vec<&str> = report
            .workloads
            .iter()
            .map(|w| w.workload_key.as_str())
            .collect();
        assert_eq!(
            keys,
            [
                "runtime_function/mail:send",
                "runtime_function/orders:notify"
            ]
        );
        assert_eq!(
            report
                .workloads
                .iter()
                .map(|w| w.exists)
                .collect::<Vec<_>>(),
            [false, true]
        );
        let text = report.text();
        for expected in [
            "- name: api-example-443-2\n  protocol: https\n  host: \"api.example\"\n  port: 443\n  methods: [POST]\n  path_prefixes: [\"/v2\"]\n",
            "- name: api-example-443-3\n  protocol: https\n  host: \"api.example\"\n  port: 443\n  methods: [PUT]\n  path_prefixes: [\"/v1/a\"]\n",
            "host: \"xn--bcher-kva.example\"",
            "host: \"fd00::1\"\n  port: 80\n  methods: [GET]\n  path_prefixes: [\"/x\"]\n  # The host leads",
            "host: \"last.example\"",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!text.contains("evil") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_policy_with_the_rules_allows_all_of_it() {
        let lines = [
            line(
                "host_not_allowed for orders:notify",
                "GET",
                "https://a.example:443/x,y]/%20z",
            ),
            line(
                "host_not_allowed for orders:notify",
                "GET",
                "https://a.example:443/it's/\\\"quoted\\\"/%C3%BC",
            ),
            line(
                "host_not_allowed for orders:notify",
                "POST",
                "http://10.0.0.1:8080/",
            ),
        ];
        let text = suggested(&lines).text();
        let indented: String = text.lines().map(|line| format!("      {line}\n")).collect();
        let whole = format!("{POLICY}{indented}");
        let policy = crate::compile(&Source::new("p", whole.clone().into()));
        let policy = policy.unwrap_or_else(|invalid| panic!("{whole}\n{}", invalid.render(false)));
        let again = suggest(&policy, lines.join("\n").as_bytes()).unwrap();
        assert!(again.workloads.is_empty(), "{}", again.text());
        assert_eq!(again.already_allowed, 3, "{}", again.text());
    }

    #[test]
    fn an_empty_log_suggests_nothing() {
        assert!(suggested(&[]).text().contains("nothing to suggest"));
    }
}
