//! The text of an audit line: limits, the query cut off, tokens replaced, ASCII alone.
//!
//! What a client sends ends up on operators' terminals, so no byte of it may act there. This room
//! must not know files.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

use serde::ser::{Serialize, Serializer};
use serde_json::ser::Formatter;

use super::{AuditEntry, MAX_METHOD, MAX_ORIGIN, MAX_PATH, MAX_REASON};
use crate::token::TOKEN_PREFIX;

/// What stands in the place of the secret part of a token.
const REDACTED: &str = "(redacted)";

/// Appends the entry as one line with its newline.
pub(crate) fn append(entry: &AuditEntry<'_>, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
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
        path: clean(path, MAX_PATH),
        status: entry.status,
        request_id: entry.request_id.map(|id| clean(id.as_str(), usize::MAX)),
        client_addr: entry.client_addr.map(Display),
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
}

/// Serialises a value as the text that it displays, without a string in between.
struct Display<T>(T);

impl<T: fmt::Display> Serialize for Display<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// At most `limit` bytes of `text`, whole characters only, with every token replaced.
fn clean(text: &str, limit: usize) -> Cow<'_, str> {
    let cut = text
        .get(..text.floor_char_boundary(limit))
        .unwrap_or_default();
    if !cut.contains(TOKEN_PREFIX) {
        return Cow::Borrowed(cut);
    }
    let mut parts = cut.split(TOKEN_PREFIX);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(TOKEN_PREFIX);
        out.push_str(REDACTED);
        out.push_str(
            part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_'),
        );
    }
    Cow::Owned(out)
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
