//! Operator policy files (`nimbus-policy`): any bytes are a policy or a list of faults that is bounded and safe to print,
//! and a policy that was taken says the same however it is asked.

use nimbus_policy::{
    EgressProtocol, EgressRequest, Policy, ProveReport, Source, Verdict, compile, diff,
};

/// Keys and values of the file, and what YAML has beyond them.
pub const WORDS: &[&str] = &[
    "schema_version: 1\n",
    "tenant: acme\n",
    "workloads:\n- kind: runtime_function\n  name: a\n",
    "  network: {egress: {allow: [{name: r, protocol: https, host: a.example, port: 443}]}}\n",
    "methods: [GET]",
    "path_prefixes: [/%61%2f, /a/../b]",
    "allow_internal_ips: true",
    "secrets: {handles: [raw:x]}",
    "::ffff:10.0.0.1",
    "xn--\u{fc}.\u{ff0e}",
    "&a [*a, *a]",
    "<<: *a",
    "!!binary ",
    "--- |\n",
    "\"\\e]0;x\\a\\u202e\"",
    "? [",
    "\r\n\t",
];

/// A policy with every block.
const GOOD: &[u8] = include_bytes!("../../corpus/policy/everything");
/// Bytes of an input that say what to change: where, and how much is taken away.
const RECIPE: usize = 4;
/// Longest list of faults as text: 50 of them with their lines.
const TEXT: usize = 128 * 1024;

/// Checks the bytes as a policy file, and as a change of a good one.
pub fn check(data: &[u8]) {
    as_policy(data);
    let Some((recipe, fresh)) = data.split_first_chunk::<RECIPE>() else {
        return;
    };
    let [a, b, c, d] = *recipe;
    let from = usize::from(u16::from_be_bytes([a, b])) % (GOOD.len() + 1);
    let taken = usize::from(u16::from_be_bytes([c, d])) % 64;
    let mut changed = GOOD.to_vec();
    let to = (from + taken).min(changed.len());
    changed.splice(from..to, fresh.iter().copied());
    as_policy(&changed);
}

fn as_policy(data: &[u8]) {
    let source = Source::new("fuzz\u{1b}.yaml", data.to_vec());
    match compile(&source) {
        Ok(policy) => taken(&policy, data),
        Err(invalid) => {
            assert!(!invalid.codes().is_empty());
            printable(&invalid.to_string());
            printable(&invalid.render(false));
            let report = serde_json::to_value(invalid.report()).expect("a report is JSON");
            assert_eq!(report["valid"], false);
        }
    }
}

fn taken(policy: &Policy, data: &[u8]) {
    let again = compile(&Source::new("other", data.to_vec())).expect("a policy that was taken");
    assert!(diff(policy, &again).is_empty());
    let proof = ProveReport::of(policy, jiff::Timestamp::UNIX_EPOCH);
    let proof = serde_json::to_value(proof).expect("a report is JSON");
    let advisories = proof["advisories"].as_array().expect("a list");
    let mut ids: Vec<&str> = advisories
        .iter()
        .filter_map(|one| one["id"].as_str())
        .collect();
    ids.iter().for_each(|id| printable(id));
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), advisories.len(), "ids are not unique");
    for decision in policy.decisions() {
        printable(decision.key());
        let request = EgressRequest {
            protocol: EgressProtocol::Https,
            host: "a.example",
            port: 443,
            method: Some("GET"),
            path: Some("/%61"),
        };
        // Nothing is allowed where there is no rule.
        let verdict = decision.egress().decide(&request);
        assert!(matches!(verdict, Verdict::Denied(_)) || !decision.egress().rules().is_empty());
    }
}

fn printable(text: &str) {
    assert!(text.len() <= TEXT, "{} bytes", text.len());
    let acts = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(acts), "{text:?}");
}
