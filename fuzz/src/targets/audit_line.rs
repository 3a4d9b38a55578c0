//! The audit line (`nimbus-auth`, `audit/line.rs`): whatever a client sends is one line of printable
//! ASCII that reads as JSON, and no token stands in it.

use std::net::IpAddr;

use arbitrary::{Result, Unstructured};
use jiff::Timestamp;
use nimbus_auth::audit::{MAX_METHOD, MAX_ORIGIN, MAX_PATH, MAX_REASON};
use nimbus_auth::fuzzing::audit_line;
use nimbus_auth::{AuditEntry, AuthMethod, AuthScope, RouteFamily};

/// Pieces that must not act in a log.
pub const WORDS: &[&str] = &[
    "nimbus_at_",
    "nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "?",
    "#",
    "\u{1b}[31m",
    "\u{202e}",
    "\u{2028}",
    "\u{7f}",
    "\"",
    "\n",
];

const PREFIX: &str = "nimbus_at_";
const REDACTED: &str = "(redacted)";

/// Checks the bytes as the recipe of an entry.
pub fn check(data: &[u8]) {
    // Nothing to write when the recipe ends too early.
    let _ = entry(&mut Unstructured::new(data));
}

fn entry(u: &mut Unstructured<'_>) -> Result<()> {
    let second = u.int_in_range(0..=253_402_300_799)?;
    let address = u.arbitrary::<Option<[u8; 16]>>()?;
    let (success, status) = (u.arbitrary()?, u.arbitrary()?);
    let method = *u.choose(&[None, Some(AuthMethod::LocalAdminBearer)])?;
    let (tenant, request) = ("acme".parse().ok(), "r-1".parse().ok());
    let names = u.arbitrary::<bool>()?;
    let origin = u.arbitrary::<Option<&str>>()?;
    let (reason, verb) = (u.arbitrary()?, u.arbitrary()?);
    let entry = AuditEntry {
        ts: Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH),
        route_family: RouteFamily::NativeApi,
        tenant_id: tenant.as_ref().filter(|_| names),
        auth_scope: AuthScope::ServerAccess,
        auth_method: method,
        success,
        origin,
        reason,
        method: verb,
        path: std::str::from_utf8(u.peek_bytes(u.len()).unwrap_or_default()).unwrap_or("/"),
        status,
        request_id: request.as_ref().filter(|_| names),
        client_addr: address.map(IpAddr::from),
    };
    let line = audit_line(&entry).expect("an entry is JSON");
    written(&entry, &line);
    Ok(())
}

fn written(entry: &AuditEntry<'_>, line: &[u8]) {
    let (last, text) = line.split_last().expect("a line has an end");
    assert_eq!(*last, b'\n');
    assert!(
        text.iter().all(|b| (0x20..0x7f).contains(b)),
        "not printable"
    );
    let json: serde_json::Value = serde_json::from_slice(text).expect("a line is JSON");
    for (field, given, most) in [
        ("origin", entry.origin.unwrap_or_default(), MAX_ORIGIN),
        ("reason", entry.reason, MAX_REASON),
        ("method", entry.method, MAX_METHOD),
        ("path", entry.path, MAX_PATH),
    ] {
        let found = json[field].as_str().unwrap_or_default();
        without_token(field, found);
        // What replaces a token may be longer than the token was.
        let grown = found.matches(PREFIX).count() * REDACTED.len();
        assert!(found.len() <= most + grown, "{field} has {}", found.len());
        if !found.contains(PREFIX) {
            assert!(given.starts_with(found), "{field} is not what was given");
        }
    }
    assert_eq!(json["status"], entry.status);
    assert_eq!(json["success"], entry.success);
    assert!(!json["path"].to_string().contains(['?', '#']));
}

/// After every prefix of a token stands what replaced the rest of it, and nothing of it beyond.
fn without_token(field: &str, text: &str) {
    for part in text.split(PREFIX).skip(1) {
        let rest = part.strip_prefix(REDACTED);
        let rest = rest.unwrap_or_else(|| panic!("{field} shows a token: {text}"));
        let secret = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(!rest.starts_with(secret), "{field} shows a token: {text}");
    }
}
