//! A segment of the audit log (`nimbus-auth`, `audit/verify.rs`): whatever bytes stand in it, the check
//! ends, and whatever is done to a log, the check finds it.

use jiff::Timestamp;
use nimbus_auth::audit::{Anchor, ChainKey, Verification};
use nimbus_auth::fuzzing::{audit_segment, verify_segment};
use nimbus_auth::{AuditEntry, AuthScope, RouteFamily};

/// Pieces of lines.
pub const WORDS: &[&str] = &[
    "\n",
    ",\"mac\":\"",
    ",\"seq\":",
    "\"}\n",
    "{\"ts\":\"",
    "18446744073709551615",
    "0000000000000000000000000000000000000000000000000000000000000000",
];

/// Entries of the log that is changed.
const ENTRIES: u16 = 6;
/// Bytes of an input that say what to change: where, and how much is taken away.
const RECIPE: usize = 4;

/// Checks the bytes as a segment, and as a change of a good one.
pub fn check(data: &[u8]) {
    let key = ChainKey::new([7; 32].into());
    as_segment(data, &key);
    as_change(data, &key);
}

/// Nothing that the key did not write is an entry.
fn as_segment(data: &[u8], key: &ChainKey) {
    let found = verify(data, key, None);
    assert_eq!(found.entries, 0, "forged");
    assert_eq!(found.is_intact(), !data.contains(&b'\n'), "{found:?}");
}

fn as_change(data: &[u8], key: &ChainKey) {
    let Some((recipe, fresh)) = data.split_first_chunk::<RECIPE>() else {
        return;
    };
    let (good, anchor) = log(key);
    assert!(verify(&good, key, Some(anchor)).is_intact());
    let [a, b, c, d] = *recipe;
    let from = usize::from(u16::from_be_bytes([a, b])) % (good.len() + 1);
    let taken = usize::from(u16::from_be_bytes([c, d])) % (good.len() - from + 1);
    let mut changed = good.clone();
    changed.splice(from..from + taken, fresh.iter().copied());
    let found = verify(&changed, key, Some(anchor));
    if changed == good {
        assert!(found.is_intact(), "{found:?}");
        return;
    }
    // A piece of a line behind the last is what a crash leaves.
    let torn = changed.strip_prefix(&good[..]);
    if torn.is_some_and(|piece| !piece.contains(&b'\n')) {
        assert!(found.is_intact() && found.torn, "{found:?}");
        return;
    }
    let place = found.breaks.first().expect("a change is found");
    let same = good
        .iter()
        .zip(&changed)
        .take_while(|(a, b)| a == b)
        .count();
    let line = 1 + good[..same].iter().filter(|byte| **byte == b'\n').count() as u64;
    assert_eq!(place.line, line, "{place}");
}

fn verify(bytes: &[u8], key: &ChainKey, anchor: Option<Anchor>) -> Verification {
    verify_segment(bytes, key, anchor).expect("bytes can be read")
}

fn log(key: &ChainKey) -> (Vec<u8>, Anchor) {
    let entry = |status| AuditEntry {
        ts: Timestamp::UNIX_EPOCH,
        route_family: RouteFamily::NativeApi,
        tenant_id: None,
        auth_scope: AuthScope::ServerAccess,
        auth_method: None,
        success: false,
        origin: None,
        reason: "auth.credential_missing",
        method: "GET",
        path: "/",
        status,
        request_id: None,
        client_addr: None,
    };
    let entries: Vec<_> = (0..ENTRIES).map(entry).collect();
    audit_segment(key, &entries).expect("entries are JSON")
}
