//! The first check of a request: the size and the shape of its head.
//!
//! Runs before anything else and for every caller alike, so an answer from here tells nothing
//! about tenants, routes or credentials. It must not read the body.

use std::net::Ipv6Addr;

use http::header::{EXPECT, HOST};
use http::{HeaderMap, Version, request::Parts};

use crate::error::ApiError;
use crate::status::Special;

/// Longest request target in bytes. A path of ours stays under 500; a proxy may add to the query.
pub(crate) const MAX_URI_BYTES: usize = 8 * 1024;
/// Most header lines.
pub(crate) const MAX_HEADERS: usize = 64;
/// Most bytes of all header names and values together.
pub(crate) const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Longest host name: that of the DNS, with a dot at the end.
const MAX_HOST_BYTES: usize = 254;

/// Checks the head of a request.
///
/// # Errors
/// 414 and 431 with `cap`, `observed` and `limit`; 417; 400 for a `Host` header that HTTP/1.1
/// (RFC 9112 3.2) does not allow, and for a target that names no host.
pub(crate) fn check(parts: &Parts) -> Result<(), ApiError> {
    let uri = parts.uri.path().len() + parts.uri.query().map_or(0, |query| query.len() + 1);
    if uri > MAX_URI_BYTES {
        return Err(too_large(
            Special::UriTooLong,
            "uri_bytes",
            uri,
            MAX_URI_BYTES,
        ));
    }
    check_headers(&parts.headers)?;
    check_host(parts)
}

fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let count = headers.len();
    if count > MAX_HEADERS {
        return Err(too_large(
            Special::HeadersTooLarge,
            "headers",
            count,
            MAX_HEADERS,
        ));
    }
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if bytes > MAX_HEADER_BYTES {
        return Err(too_large(
            Special::HeadersTooLarge,
            "header_bytes",
            bytes,
            MAX_HEADER_BYTES,
        ));
    }
    let known = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if !headers.get_all(EXPECT).iter().all(known) {
        let message = "the only expectation that is understood is `100-continue`";
        return Err(ApiError::special(Special::Expectation, message));
    }
    Ok(())
}

fn check_host(parts: &Parts) -> Result<(), ApiError> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() || (host.is_none() && parts.version == Version::HTTP_11) {
        return Err(ApiError::invalid(
            "a request needs exactly one `Host` header",
        ));
    }
    let authority = parts.uri.authority().map(|found| found.as_str().as_bytes());
    let named = host.map(|value| value.as_bytes()).into_iter();
    if named.chain(authority).all(is_host) {
        Ok(())
    } else {
        let text = "the `Host` header, and the target if it has one, must name a host as `name` or `name:port`";
        Err(ApiError::invalid(text))
    }
}

/// Whether `value` is `host` or `host:port` (RFC 9110 7.2): a name, an IPv4 address, or an IPv6
/// address in brackets. Of the characters that RFC 3986 allows in a name, those that no name has
/// are refused: a comma may be two headers that a proxy joined, an `@` a user.
fn is_host(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else {
        return false;
    };
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let (name, port) = text.split_at(end);
            (is_name(name), port)
        }
    };
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let port = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.is_empty() || (digits(port) && port.parse::<u16>().is_ok()));
    host && port
}

/// Whether `text` is a host name or an IPv4 address.
fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    !text.is_empty() && text.len() <= MAX_HOST_BYTES && text.bytes().all(allowed)
}

fn too_large(case: Special, cap: &'static str, observed: usize, limit: usize) -> ApiError {
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    ApiError::too_large(case, cap, wide(observed), wide(limit))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> Parts {
        build(Request::builder().uri("/health"))
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    #[test]
    fn each_bound_has_its_status() {
        let long = format!("/{}", "a".repeat(MAX_URI_BYTES));
        let query = format!("/?{}", "a".repeat(MAX_URI_BYTES));
        let wide = "v".repeat(MAX_HEADER_BYTES);
        let cases: Vec<(&str, Parts, u16)> = vec![
            ("plain", parts(|b| b.header("host", "a")), 0),
            (
                "long path",
                parts(|b| b.uri(&long).header("host", "a")),
                414,
            ),
            (
                "long query",
                parts(|b| b.uri(&query).header("host", "a")),
                414,
            ),
            (
                "wide header",
                parts(|b| b.header("host", "a").header("x", &wide)),
                431,
            ),
            (
                "many headers",
                parts(|b| (0..=MAX_HEADERS).fold(b.header("host", "a"), |b, i| b.header("x", i))),
                431,
            ),
            (
                "continue",
                parts(|b| b.header("host", "a").header("expect", "100-Continue")),
                0,
            ),
            (
                "expectation",
                parts(|b| b.header("host", "a").header("expect", "coffee")),
                417,
            ),
            ("no host", parts(|b| b), 400),
            (
                "two hosts",
                parts(|b| b.header("host", "a").header("host", "b")),
                400,
            ),
            (
                "HTTP/1.0 without host",
                parts(|b| b.version(Version::HTTP_10)),
                0,
            ),
        ];
        for (name, parts, status) in cases {
            let found = check(&parts)
                .err()
                .map_or(0, |error| error.status().as_u16());
            assert_eq!(found, status, "{name}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        let good = [
            "localhost",
            "a.example",
            "A.Example.:80",
            "my_service-1",
            "127.0.0.1:8080",
            "[::1]",
            "[2001:db8::1]:65535",
            "xn--bcher-kva.example:",
        ];
        let long = "a".repeat(MAX_HOST_BYTES + 1);
        let bad = [
            "",
            ":",
            ":80",
            " ",
            "a b",
            "a\tb",
            "a,b",
            "a/b",
            "a\\b",
            "a#b",
            "a?b",
            "u@a",
            "u:p@a",
            "a:b",
            "a:80:80",
            "a:65536",
            "a:+80",
            "a:-1",
            "a: 80",
            "%61",
            "a%00",
            "\u{e9}",
            "a'b",
            "a\"b",
            "<a>",
            "a;b",
            "[::1",
            "::1",
            "[::1]x",
            "[]",
            "[a]",
            "[fe80::1%25eth0]",
            "::ffff:127.0.0.1",
            "http://a",
            &long,
        ];
        for host in good {
            assert!(is_host(host.as_bytes()), "{host}");
            let target = format!("http://{host}/health");
            let parts = parts(|b| b.uri(target).header("host", host));
            assert!(check(&parts).is_ok(), "{host}");
        }
        for host in bad {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
        assert!(!is_host(b"a\xff"));
        for target in [
            "http://u@a/",
            "http://u:p@a/",
            "http://a:x/",
            "http://a:99999/",
            "http://a%20b/",
        ] {
            // What the library cannot read as a target it refuses by itself.
            let Ok(uri) = target.parse::<http::Uri>() else {
                continue;
            };
            let error = check(&parts(|b| b.uri(uri).header("host", "a"))).unwrap_err();
            assert_eq!(error.status().as_u16(), 400, "{target}");
        }
    }
}
