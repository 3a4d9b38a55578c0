//! The first check of a request: the size and the shape of its head.
//!
//! Runs before anything else and for every caller alike, so an answer from here tells nothing
//! about tenants, routes or credentials. It must not read the body.

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

/// Checks the head of a request.
///
/// # Errors
/// 414 and 431 with `cap`, `observed` and `limit`; 417; 400 for a `Host` header that HTTP/1.1
/// (RFC 9112 3.2) does not allow.
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
    let hosts = parts.headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && parts.version == Version::HTTP_11) {
        return Err(ApiError::invalid(
            "a request needs exactly one `Host` header",
        ));
    }
    Ok(())
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
}
