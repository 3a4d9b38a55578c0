//! The text of an audit line: limits, the query cut off, tokens replaced, ASCII alone.
//!
//! What a client sends ends up on operators' terminals, so no byte of it may act there. This room
//! must not know files.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

use percent_encoding::percent_decode_str;
use serde::ser::{Serialize, Serializer};
use serde_json::ser::Formatter;

use super::{AuditEntry, MAX_METHOD, MAX_ORIGIN, MAX_PATH, MAX_REASON};
use crate::keys::KEY_PREFIX;
use crate::token::TOKEN_PREFIX;

/// How secrets begin, whatever they open.
const SECRETS: [&str; 2] = [TOKEN_PREFIX, KEY_PREFIX];

/// What stands in the place of the secret part of a token.
const REDACTED: &str = "(redacted)";

/// Appends the entry as one line, `{…,"seq":N}` and a newline.
pub(crate) fn append(
    entry: &AuditEntry<'_>,
    seq: u64,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    let path = entry.path.split(['?', '#']).next().unwrap_or_default();
    let stored = Stored {
        ts: Display(format_args!("{:.3}", entry.ts)),
        route_family: entry.route_family.as_str(),
        tenant_id: entry.tenant_id.map(AsRef::as_ref),
        auth_scope: entry.auth_scope.as_str(),
        auth_method: entry.auth_method.map(|method| method.as_str()),
        success: entry.success,
        origin: entry.origin.map(|origin| clean(origin, MAX_ORIGIN)),
        reason: clean(entry.reason, MAX_REASON),
        method: clean(entry.method, MAX_METHOD),
        path: clean_path(path),
        status: entry.status,
        request_id: entry.request_id.map(|id| clean(id.as_str(), usize::MAX)),
        client_addr: entry.client_addr.map(Display),
        seq,
    };
    stored.serialize(&mut serde_json::Serializer::with_formatter(
        &mut *out, Ascii,
    ))?;
    out.push(b'\n');
    Ok(())
}

/// The entry as it stands in the log; the field names are those of nimbus.md 4 and our own.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Stored<'a> {
    ts: Display<fmt::Arguments<'a>>,
    route_family: &'static str,
    tenant_id: Option<&'a str>,
    auth_scope: &'static str,
    auth_method: Option<&'static str>,
    success: bool,
    origin: Option<Cow<'a, str>>,
    reason: Cow<'a, str>,
    method: Cow<'a, str>,
    path: Cow<'a, str>,
    status: u16,
    request_id: Option<Cow<'a, str>>,
    client_addr: Option<Display<std::net::IpAddr>>,
    seq: u64,
}

/// Serialises a value as the text that it displays, without a string in between.
struct Display<T>(T);

impl<T: fmt::Display> Serialize for Display<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// How often a path is decoded to look for a token; the edge decodes no further.
const DECODINGS: usize = 3;

/// A path, or its decoded form when only that shows a token.
fn clean_path(path: &str) -> Cow<'_, str> {
    let mut decoded = Cow::Borrowed(path);
    for _ in 0..DECODINGS {
        if !decoded.contains('%') {
            break;
        }
        let next = percent_decode_str(&decoded)
            .decode_utf8_lossy()
            .into_owned();
        if next == *decoded {
            break;
        }
        decoded = Cow::Owned(next);
        let more = |prefix: &&str| decoded.matches(prefix).count() > path.matches(prefix).count();
        if SECRETS.iter().any(more) {
            return Cow::Owned(clean(&decoded, MAX_PATH).into_owned());
        }
    }
    clean(path, MAX_PATH)
}

/// At most `limit` bytes of `text`, whole characters only, with every token replaced.
fn clean(text: &str, limit: usize) -> Cow<'_, str> {
    let cut = text
        .get(..text.floor_char_boundary(limit))
        .unwrap_or_default();
    let mut shown = Cow::Borrowed(cut);
    for prefix in SECRETS {
        if shown.contains(prefix) {
            shown = Cow::Owned(redact(&shown, prefix));
        }
    }
    shown
}

/// The text with whatever follows `prefix` replaced.
fn redact(text: &str, prefix: &str) -> String {
    let mut parts = text.split(prefix);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(prefix);
        out.push_str(REDACTED);
        out.push_str(
            part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_'),
        );
    }
    out
}

/// JSON whose strings are printable ASCII: beside what JSON escapes anyway, DEL and everything
/// outside ASCII (control characters, line separators, text direction marks) is escaped.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !c.is_ascii() || c == '\x7f') {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut chars = tail.chars();
            if let Some(c) = chars.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_replaced_wherever_they_stand() {
        let token = format!("{TOKEN_PREFIX}{}", "aB3-_".repeat(8));
        let table: &[(&str, usize, &str)] = &[
            ("/api/tenants", 99, "/api/tenants"),
            ("T", 99, "nimbus_at_(redacted)"),
            (
                "/a/T/b/T",
                999,
                "/a/nimbus_at_(redacted)/b/nimbus_at_(redacted)",
            ),
            ("TT", 999, "nimbus_at_(redacted)nimbus_at_(redacted)"),
            ("nimbus_at_", 99, "nimbus_at_(redacted)"),
            (
                "/T/demo|nimbus_tk_aB3-_/x",
                99,
                "/nimbus_at_(redacted)/demo|nimbus_tk_(redacted)/x",
            ),
            // Cut within the token, and within its prefix.
            ("/T", 20, "/nimbus_at_(redacted)"),
            ("/T", 5, "/nimb"),
        ];
        for (text, limit, expected) in table {
            assert_eq!(
                clean(&text.replace('T', &token), *limit),
                *expected,
                "{text}"
            );
        }
    }

    #[test]
    fn an_encoded_token_in_a_path_is_replaced() {
        let secret = "aB3-_".repeat(8);
        let encode = |text: &str| -> String { text.bytes().map(|b| format!("%{b:02x}")).collect() };
        let token = format!("nimbus_at_{secret}");
        let once = encode(&token);
        let shown = [
            format!("/a/nimbus%5fat%5F{secret}/b"),
            format!("/a/{once}/b"),
            format!("/a/{}/b", encode(&once)),
            format!("/a/{}/b", encode(&encode(&once))),
            format!("/a/{token}/b"),
        ];
        for path in shown {
            assert_eq!(clean_path(&path), "/a/nimbus_at_(redacted)/b", "{path}");
        }
        let both = clean_path(&format!("/{token}/nimbus%5Fat_{secret}")).into_owned();
        assert!(!both.contains(&secret), "{both}");
        for path in ["/a%20b", "/%zz%", "/%ff%fe", "/100%"] {
            assert_eq!(clean_path(path), path);
        }
    }

    #[test]
    fn cuts_keep_whole_characters() {
        assert_eq!(clean("a\u{e9}b", 2), "a");
        assert_eq!(clean("a\u{e9}b", 3), "a\u{e9}");
        assert_eq!(clean("a\u{1f600}", 4), "a");
        assert_eq!(clean("abc", 0), "");
        assert_eq!(clean("abc", 3), "abc");
    }

    #[test]
    fn strings_are_printable_ascii_and_read_back_the_same() {
        let text = "q\"b\\n\nt\te\u{1b}d\u{7f}c\u{9b}e\u{e9}l\u{2028}r\u{202e}g\u{1f600}z";
        let mut out = Vec::new();
        text.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Ascii))
            .unwrap();
        assert!(
            out.iter().all(|b| (0x20..0x7f).contains(b)),
            "{}",
            String::from_utf8_lossy(&out)
        );
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
    }
}
