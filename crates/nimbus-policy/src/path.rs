//! Paths of requests and the prefixes that allow them.
//!
//! A prefix names a path and everything below it: `/v1/hooks` allows `/v1/hooks` and `/v1/hooks/7`, not
//! `/v1/hooks-old`. A path that a server could read in two ways matches no prefix (RFC 3986, 6.2.2).

/// Why a text is no prefix. The text says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PathFault {
    /// No slash first.
    #[error("begin with `/`")]
    NoSlash,
    /// A wildcard.
    #[error("write the path alone: everything below it is meant already")]
    Wildcard,
    /// A query or fragment.
    #[error("write the path without query and fragment")]
    Query,
    /// White space, a backslash, a control or a character outside ASCII.
    #[error(
        "write characters other than visible ASCII, and the backslash, as their percent-encoded UTF-8"
    )]
    Character,
    /// `%` without two hexadecimal digits.
    #[error("a `%` needs two hexadecimal digits after it; a percent sign itself is `%25`")]
    Escape,
    /// An encoded slash, backslash, dot or NUL, which servers read in different ways.
    #[error(
        "an encoded `/`, `\\`, `.` or NUL is read differently by different servers: leave it out"
    )]
    Ambiguous,
    /// `.`, `..` or an empty segment.
    #[error("write the path without `.`, `..` and `//`")]
    Segments,
}

/// A prefix in its one form: letters that need no encoding are decoded, hexadecimal digits are in upper case, and
/// there is no slash at the end (but of `/`).
pub(crate) fn prefix(text: &str) -> Result<String, PathFault> {
    if !text.starts_with('/') {
        return Err(PathFault::NoSlash);
    }
    if text.contains('*') {
        return Err(PathFault::Wildcard);
    }
    if text.contains(['?', '#']) {
        return Err(PathFault::Query);
    }
    let mut out = String::with_capacity(text.len());
    for byte in Normal::new(text) {
        out.push(char::from(byte?));
    }
    if out.contains("//") {
        return Err(PathFault::Segments);
    }
    if out.len() > 1 && out.ends_with('/') {
        out.pop();
    }
    let mut segments = out[1..].split('/');
    if out != "/" && segments.any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(PathFault::Segments);
    }
    Ok(out)
}

/// Whether a canonical prefix covers another.
pub(crate) fn covers(prefix: &str, other: &str) -> bool {
    prefix == "/"
        || other
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether the path of a request can be read in one way only.
pub(crate) fn is_unambiguous(path: &str) -> bool {
    if !path.starts_with('/') {
        return false;
    }
    // The segment so far: its length, and whether it is dots alone.
    let (mut length, mut dots, mut first) = (0_usize, true, true);
    for byte in Normal::new(path) {
        let Ok(byte) = byte else { return false };
        if byte == b'/' {
            if !first && bad_segment(length, dots) {
                return false;
            }
            (length, dots, first) = (0, true, false);
        } else {
            length += 1;
            dots &= byte == b'.';
        }
    }
    // Nothing after the last slash is a directory, which is one thing.
    length == 0 || !bad_segment(length, dots)
}

fn bad_segment(length: usize, dots: bool) -> bool {
    length == 0 || (dots && length <= 2)
}

/// Whether a canonical prefix allows the path of a request, which [`is_unambiguous`]. Allocates nothing.
pub(crate) fn allows(prefix: &str, path: &str) -> bool {
    if prefix == "/" {
        return true;
    }
    let mut found = Normal::new(path);
    for expected in prefix.bytes() {
        if found.next() != Some(Ok(expected)) {
            return false;
        }
    }
    matches!(found.next(), None | Some(Ok(b'/')))
}

/// The bytes of a path in normal form.
struct Normal<'a> {
    bytes: &'a [u8],
    /// The rest of an escape that stays one.
    pending: [Option<u8>; 2],
}

impl Normal<'_> {
    fn new(text: &str) -> Normal<'_> {
        Normal {
            bytes: text.as_bytes(),
            pending: [None, None],
        }
    }

    fn escape(&mut self) -> Result<u8, PathFault> {
        let [high, low, rest @ ..] = self.bytes else {
            return Err(PathFault::Escape);
        };
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let (Some(a), Some(b)) = (digit(high), digit(low)) else {
            return Err(PathFault::Escape);
        };
        let value = u8::try_from(a * 16 + b).map_err(|_| PathFault::Escape)?;
        let upper = [high.to_ascii_uppercase(), low.to_ascii_uppercase()];
        self.bytes = rest;
        match value {
            b'/' | b'\\' | b'.' | 0 => Err(PathFault::Ambiguous),
            b'-' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => Ok(value),
            _ => {
                self.pending = upper.map(Some);
                Ok(b'%')
            }
        }
    }
}

impl Iterator for Normal<'_> {
    type Item = Result<u8, PathFault>;

    fn next(&mut self) -> Option<Result<u8, PathFault>> {
        for slot in &mut self.pending {
            if let Some(byte) = slot.take() {
                return Some(Ok(byte));
            }
        }
        let (byte, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(match byte {
            b'%' => self.escape(),
            b'\\' => Err(PathFault::Character),
            b'!'..=b'~' => Ok(*byte),
            _ => Err(PathFault::Character),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_one_form() {
        for (text, canonical) in [
            ("/", "/"),
            ("/v1/hooks", "/v1/hooks"),
            ("/v1/hooks/", "/v1/hooks"),
            ("/%61dm%69n", "/admin"),
            ("/a%c3%bc", "/a%C3%BC"),
            ("/a%20b", "/a%20b"),
        ] {
            assert_eq!(prefix(text).unwrap(), canonical, "{text}");
        }
        use PathFault as F;
        for (text, fault) in [
            ("", F::NoSlash),
            ("v1", F::NoSlash),
            ("/v1/*", F::Wildcard),
            ("/v1?x=1", F::Query),
            ("/a b", F::Character),
            ("/a\\b", F::Character),
            ("/\u{fc}", F::Character),
            ("/a%2", F::Escape),
            ("/a%zz", F::Escape),
            ("/a%2Fb", F::Ambiguous),
            ("/%2e%2e/b", F::Ambiguous),
            ("/a%00", F::Ambiguous),
            ("/a//b", F::Segments),
            ("/a/../b", F::Segments),
            ("//", F::Segments),
            ("/a/.", F::Segments),
        ] {
            assert_eq!(prefix(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn a_prefix_allows_itself_and_what_is_below() {
        for (path, allowed) in [
            ("/v1/hooks", true),
            ("/v1/hooks/", true),
            ("/v1/hooks/7/x", true),
            ("/v1/h%6Foks/7", true),
            ("/v1/hooks-old", false),
            ("/v1", false),
            ("/V1/hooks", false),
        ] {
            assert_eq!(allows("/v1/hooks", path), allowed, "{path}");
        }
        assert!(allows("/", "/anything"));
        assert!(covers("/a", "/a/b") && covers("/a", "/a") && covers("/", "/a"));
        assert!(!covers("/a", "/ab") && !covers("/a/b", "/a"));
    }

    #[test]
    fn paths_that_could_be_read_in_two_ways_are_told_apart() {
        for good in ["/", "/a", "/a/", "/a/b.c", "/...", "/a%20b"] {
            assert!(is_unambiguous(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "//",
            "/a//b",
            "/./a",
            "/a/..",
            "/a/%2e%2e/b",
            "/a%2fb",
            "/a\\b",
            "/a%5cb",
            "/\u{fc}",
            "/a%",
            "/a%0",
            "/a%00",
        ] {
            assert!(!is_unambiguous(bad), "{bad}");
        }
    }
}
