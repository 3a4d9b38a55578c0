//! Headers that every answer carries, whatever it is.
//!
//! Must not depend on the request, except for its id.

use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, SERVER, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::origin::REQUEST_ID;
use super::request_id::Ulid;

const SECURITY: [(HeaderName, HeaderValue); 5] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// Adds the security headers and the request id, and removes what would name the software.
pub(crate) fn finish(headers: &mut HeaderMap, request: &Ulid) {
    headers.remove(SERVER);
    for (name, value) in SECURITY {
        headers.insert(name, value);
    }
    headers.insert(REQUEST_ID, request.header());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gets_them_all() {
        let mut headers = HeaderMap::new();
        headers.insert(SERVER, HeaderValue::from_static("x"));
        let id = Ulid::next();
        finish(&mut headers, &id);
        assert_eq!(headers["x-request-id"], id.as_str());
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["x-frame-options"], "DENY");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert_eq!(headers["cache-control"], "no-store");
        assert!(
            headers["content-security-policy"]
                .to_str()
                .unwrap()
                .starts_with("default-src 'none'")
        );
        assert!(!headers.contains_key("server"));
    }
}
