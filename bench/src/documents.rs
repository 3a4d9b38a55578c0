//! The documents that all rows insert: about 400 bytes as they are stored (perf.md 8, item 7).
//!
//! It must not know where they go.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::random::Rng;

/// The table that HTTP rows work on.
pub(crate) const TABLE: &str = "people";
/// Distinct values of `team`.
const TEAMS: u64 = 1_000;
/// Values of `rank` lie below this.
pub(crate) const RANKS: u64 = 1_000_000;
/// Characters that fill a document up.
const FILLER: usize = 190;

/// Makes requests that insert one document each.
pub(crate) fn inserts(
    token: &str,
    tenant: &str,
) -> impl Fn(&mut Rng, u64, &mut Vec<u8>) + Send + 'static {
    let (token, path) = (
        Arc::<str>::from(token),
        format!("/api/tenants/{tenant}/documents"),
    );
    move |rng, number, out| {
        let body = format!(
            "{{\"table\":\"{TABLE}\",\"fields\":{{{}}}}}",
            fields(rng, number)
        );
        crate::http::request(out, "POST", &path, Some(&token), Some(body.as_bytes()));
    }
}

/// The fields of a document as a JSON object.
pub(crate) fn object(rng: &mut Rng, number: u64) -> String {
    format!("{{{}}}", fields(rng, number))
}

/// A document as it is stored, id and creation time included.
pub(crate) fn stored(rng: &mut Rng, number: u64) -> String {
    let id = format!("{:032x}", number);
    format!(
        "{{\"_creationTime\":1700000000000.25,\"_id\":\"{id}\",{}}}",
        fields(rng, number)
    )
}

/// The schema of the table: three typed fields and three indexes.
pub(crate) fn schema() -> Value {
    json!({
        "table": TABLE,
        "fields": [
            { "name": "email", "field_type": "string", "required": true },
            { "name": "rank", "field_type": "number", "required": true },
            { "name": "team", "field_type": "string", "required": true },
        ],
        "indexes": [
            { "name": "by_rank", "fields": ["rank"] },
            { "name": "by_team", "fields": ["team", "rank"] },
            { "name": "by_email", "fields": ["email"] },
        ],
    })
}

fn fields(rng: &mut Rng, number: u64) -> String {
    let (rank, team) = (rng.below(RANKS), rng.below(TEAMS));
    let mut text = String::with_capacity(400);
    // Writing into a string does not fail.
    let _ = write!(
        text,
        "\"active\":{},\"email\":\"user{number}@example.org\",\"name\":\"User number {number}\",\"note\":\"",
        number.is_multiple_of(2)
    );
    for _ in 0..FILLER {
        text.push(char::from(b'a' + (rng.next() % 26) as u8));
    }
    let _ = write!(text, "\",\"rank\":{rank},\"team\":\"team-{team:03}\"");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_about_400_bytes_and_parse() {
        let mut rng = Rng::new(1);
        for number in [0, 99_999] {
            let text = stored(&mut rng, number);
            assert!((360..=440).contains(&text.len()), "{}", text.len());
            let document: Value = serde_json::from_str(&text).unwrap();
            assert!(document["rank"].as_u64().is_some_and(|rank| rank < RANKS));
        }
    }

    #[test]
    fn insert_requests_hold_a_document() {
        let mut out = Vec::new();
        inserts("token", "acme")(&mut Rng::new(1), 7, &mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /api/tenants/acme/documents HTTP/1.1"));
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["table"], TABLE);
        assert_eq!(body["fields"]["email"], "user7@example.org");
    }
}
