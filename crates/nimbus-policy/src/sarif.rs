//! Advisories as SARIF 2.1.0 (OASIS), for code hosts that show findings beside a change.
//!
//! Knows no terminal. Accepted advisories are results with a suppression, stale and expired acceptances are
//! results of their own.

use serde_json::{Value, json};

use crate::decision::{Acceptance, Policy};
use crate::prove::{Advisory, Proof, Severity};
use crate::source::Place;

/// The schema that a log names.
const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// Id, name and description of each rule.
const RULES: [(&str, &str, &str); 6] = [
    (
        "broad_egress",
        "BroadEgress",
        "An outbound rule allows more than concrete methods and paths of one public host.",
    ),
    (
        "write_bypass",
        "WriteBypass",
        "A function can write to a database around the tenant's own data.",
    ),
    (
        "secret_exposure",
        "SecretExposure",
        "Untrusted code in the server's process can read secrets.",
    ),
    (
        "cross_tenant_regression",
        "CrossTenantRegression",
        "A grant looks like one of another tenant.",
    ),
    (
        "stale_acceptance",
        "StaleAcceptance",
        "An accepted risk matches no advisory.",
    ),
    (
        "expired_acceptance",
        "ExpiredAcceptance",
        "The time of an accepted risk is over.",
    ),
];

/// The log of one run.
pub(crate) fn log(policy: &Policy, proof: &Proof<'_>) -> Value {
    let uri = uri(&policy.file);
    let rules: Vec<Value> = RULES
        .iter()
        .map(|(id, name, text)| json!({"id": id, "name": name, "shortDescription": {"text": text}}))
        .collect();
    let mut results: Vec<Value> = proof
        .advisories
        .iter()
        .map(|advisory| advised(advisory, proof, &uri))
        .collect();
    for accepted in &proof.stale {
        let message = format!(
            "the accepted risk `{}` matches no advisory: remove it",
            accepted.advisory_id
        );
        results.push(leftover("stale_acceptance", &message, accepted, &uri));
    }
    for accepted in &proof.expired {
        let message = format!(
            "the accepted risk `{}` expired: review it again",
            accepted.advisory_id
        );
        results.push(leftover("expired_acceptance", &message, accepted, &uri));
    }
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "nimbus policy prove", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

/// A path as a URI reference (RFC 3986): a colon would make a scheme of what is before it.
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            other => {
                let hex = data_encoding::HEXUPPER.encode(&[other]);
                out.extend(["%", &hex]);
            }
        }
    }
    out
}

fn advised(advisory: &Advisory<'_>, proof: &Proof<'_>, uri: &str) -> Value {
    let level = match advisory.severity {
        Severity::High => "error",
        Severity::Medium => "warning",
    };
    let message = format!("{}: {}", advisory.workload, advisory.message);
    let mut result = result(
        advisory.kind.name(),
        level,
        &message,
        &advisory.id,
        advisory.place,
        uri,
    );
    let suppressions: Vec<Value> = advisory
        .accepted
        .filter(|accepted| !accepted.is_expired(proof.now))
        .map(|accepted| {
            let justification = format!("{} ({})", accepted.reason, accepted.approved_by);
            json!({"kind": "inSource", "status": "accepted", "justification": justification})
        })
        .into_iter()
        .collect();
    if let Some(object) = result.as_object_mut() {
        object.insert("suppressions".to_owned(), Value::Array(suppressions));
    }
    result
}

fn leftover(rule: &str, message: &str, accepted: &Acceptance, uri: &str) -> Value {
    result(
        rule,
        "warning",
        message,
        &accepted.advisory_id,
        accepted.place,
        uri,
    )
}

fn result(rule: &str, level: &str, message: &str, id: &str, place: Place, uri: &str) -> Value {
    let index = RULES.iter().position(|(known, ..)| *known == rule);
    json!({
        "ruleId": rule,
        "ruleIndex": index,
        "level": level,
        "message": {"text": message},
        "locations": [{"physicalLocation": {
            "artifactLocation": {"uri": uri},
            "region": {"startLine": place.line, "startColumn": place.column},
        }}],
        "partialFingerprints": {"advisoryId/v1": id},
    })
}
