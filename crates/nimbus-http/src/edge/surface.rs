//! Which surface a request path belongs to, decided before routing and on the safe side.
//!
//! A path is gated when any reading of it leads under a gated prefix: as sent, percent-decoded
//! up to three times, in any case, with doubled slashes, dot segments, back slashes or path
//! parameters. So no disagreement with the router, or with a proxy in front, opens a way
//! around the gate. This room must not know which routes exist.

use nimbus_auth::RouteFamily;
use nimbus_auth::keys::KEY_PREFIX;
use nimbus_auth::token::TOKEN_PREFIX;
use nimbus_core::TenantId;

/// First path segments that need the admin token (design section 7).
const GATED: [&str; 5] = ["api", "debug", "ws", "metrics", "openapi.json"];

/// Rounds of percent-decoding that the gate looks through.
const ROUNDS: usize = 3;

/// What the edge knows about a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// For the audit log and metrics.
    pub family: RouteFamily,
    /// Whether the admin token is needed.
    pub gated: bool,
    /// The tenant that the path names, unverified; for the audit log only.
    pub tenant: Option<TenantId>,
    /// Why no route may see this path.
    pub refused: Option<&'static str>,
}

impl Target {
    /// Whether a foreign `Origin` is refused here: the admin surface and the console.
    pub(crate) fn checks_origin(&self) -> bool {
        self.gated || self.family == RouteFamily::Ui
    }

    /// Whether the `Host` header is checked here (design section 7).
    pub(crate) fn checks_host(&self) -> bool {
        self.family == RouteFamily::Ui
    }
}

/// Sorts `path`, the path part of the request target as it was sent.
pub(crate) fn classify(path: &str) -> Target {
    let mut readings = vec![path.as_bytes().to_vec()];
    for _ in 0..ROUNDS {
        match readings.last().map(|last| decode(last)) {
            Some(next) if readings.last() != Some(&next) => readings.push(next),
            _ => break,
        }
    }
    let mut firsts: Vec<(String, String)> = Vec::with_capacity(2);
    for reading in &readings {
        let text = String::from_utf8_lossy(reading)
            .to_ascii_lowercase()
            .replace('\\', "/");
        firsts.push(first_two(
            text.split('/')
                .map(bare)
                .filter(|s| !s.is_empty() && *s != "."),
        ));
        firsts.push(first_two(resolve(&text).into_iter()));
    }
    let gated = firsts
        .iter()
        .find(|(first, _)| GATED.contains(&first.as_str()));
    let shown = gated.or_else(|| firsts.first());
    Target {
        family: shown.map_or(RouteFamily::Unknown, |(first, second)| {
            family(first, second)
        }),
        gated: gated.is_some(),
        tenant: readings
            .get(1)
            .or(readings.first())
            .and_then(|reading| tenant(reading)),
        refused: refusal(path.as_bytes()),
    }
}

fn family(first: &str, second: &str) -> RouteFamily {
    match (first, second) {
        ("health", "") => RouteFamily::Health,
        ("api", "admin") => RouteFamily::DeployAdmin,
        ("api", _) => RouteFamily::NativeApi,
        ("debug" | "metrics" | "openapi.json", _) => RouteFamily::Debug,
        ("ws", _) => RouteFamily::NativeWebsocket,
        ("ui", _) => RouteFamily::Ui,
        ("convex", _) => RouteFamily::ConvexHttp,
        _ => RouteFamily::Unknown,
    }
}

/// A segment without its path parameters (`;v=1`) and outer white space.
fn bare(segment: &str) -> &str {
    segment
        .split(';')
        .next()
        .unwrap_or_default()
        .trim_matches(|c: char| c <= ' ')
}

fn first_two<'a>(mut segments: impl Iterator<Item = &'a str>) -> (String, String) {
    let first = segments.next().unwrap_or_default().to_owned();
    (first, segments.next().unwrap_or_default().to_owned())
}

/// The segments after dot segments have been followed (RFC 3986 5.2.4).
fn resolve(path: &str) -> Vec<&str> {
    let mut stack = Vec::new();
    for segment in path.split('/').map(bare) {
        match segment {
            "" | "." => {}
            ".." => {
                stack.pop();
            }
            other => stack.push(other),
        }
    }
    stack
}

/// One round of percent-decoding; what is not an escape stays as it is.
fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [byte, tail @ ..] = rest {
        match escape(rest) {
            Some(decoded) => {
                out.push(decoded);
                rest = rest.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    out
}

/// The byte that `%xx` at the start of `bytes` stands for.
fn escape(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else {
        return None;
    };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Why a path is refused whoever sends it: its meaning would depend on who reads it.
fn refusal(path: &[u8]) -> Option<&'static str> {
    if path.first() != Some(&b'/') {
        return Some("the request target must be a path");
    }
    let (mut index, mut escaped_separator) = (0, false);
    while let Some(byte) = path.get(index) {
        if *byte == b'%' {
            match escape(path.get(index..).unwrap_or_default()) {
                None => return Some("the path has an incomplete percent escape"),
                Some(b'/' | b'\\') => escaped_separator = true,
                Some(_) => {}
            }
            index += 2;
        }
        index += 1;
    }
    let decoded = decode(path);
    if std::str::from_utf8(&decoded).is_err() {
        return Some("the path is not UTF-8");
    }
    if decoded.iter().any(u8::is_ascii_control) {
        return Some("the path has a control character");
    }
    if escaped_separator || path.contains(&b'\\') {
        return Some("the path has an escaped slash or a back slash");
    }
    let dotted = decoded
        .split(|byte| *byte == b'/')
        .any(|segment| segment == b"..");
    dotted.then_some("the path has a `..` segment")
}

/// The tenant of `/api/tenants/{t}...`, `/debug/tenants/{t}...` or `/convex/{t}...`, if it could be one. A secret
/// pasted there by mistake has the form of a tenant id, too, and must not reach the audit log.
fn tenant(path: &[u8]) -> Option<TenantId> {
    let text = std::str::from_utf8(path).ok()?;
    let mut segments = text.split('/').filter(|segment| !segment.is_empty());
    let (first, second) = (segments.next()?, segments.next()?);
    let named = match (first, second) {
        ("api" | "debug", "tenants") => segments.next()?,
        ("convex", name) => name,
        _ => return None,
    };
    let secret = [TOKEN_PREFIX, KEY_PREFIX]
        .iter()
        .any(|prefix| named.contains(prefix));
    (!secret).then(|| named.parse().ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn every_disguise_of_a_gated_prefix_is_gated() {
        let disguises = [
            "/api",
            "/api/",
            "/api/tenants",
            "/api/anything",
            "//api/tenants",
            "///api",
            "/./api/tenants",
            "/x/../api/tenants",
            "/api/../x",
            "/x/%2e%2e/api/tenants",
            "/API/Tenants",
            "/%61pi/tenants",
            "/%2561pi/tenants",
            "/%252561pi/tenants",
            "/api%2ftenants",
            "/%2fapi",
            "/\\api\\tenants",
            "/%5capi",
            "/api;v=1/tenants",
            "/%20api/tenants",
            "/api%00/tenants",
            "/debug",
            "/debug/tenants/a/consistency",
            "/Debug/",
            "/ws",
            "/ws/",
            "/metrics",
            "/openapi.json",
            "/OpenAPI.json",
            "/openapi%2ejson",
            "/health/../api/tenants",
            "/convex/%2e%2e/api",
        ];
        for path in disguises {
            assert!(classify(path).gated, "{path}");
        }
    }

    #[test]
    fn what_is_not_under_a_prefix_is_open() {
        let open = [
            "/",
            "",
            "*",
            "/health",
            "/convex/demo/query",
            "/ui",
            "/ui/",
            "/apix",
            "/x/api",
            "/wsx",
            "/openapi",
            "/metricsx",
            "/debugger",
            "/a%70",
        ];
        for path in open {
            assert!(!classify(path).gated, "{path}");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused_with_their_reason() {
        let cases = [
            ("/api/tenants/a%2fb", "escaped slash"),
            ("/api/tenants/a%5Cb", "escaped slash"),
            ("/api/tenants/a\\b", "escaped slash"),
            ("/api/tenants/a%00", "control character"),
            ("/api/tenants/a%0a", "control character"),
            ("/api/tenants/%ff%fe", "not UTF-8"),
            ("/api/../health", "`..` segment"),
            ("/x/%2E%2e/health", "`..` segment"),
            ("/api/tenants/%4", "percent escape"),
            ("/api/tenants/%zz", "percent escape"),
            ("*", "must be a path"),
            ("", "must be a path"),
        ];
        for (path, reason) in cases {
            let refused = classify(path)
                .refused
                .unwrap_or_else(|| panic!("{path} passed"));
            assert!(refused.contains(reason), "{path}: {refused}");
        }
        for path in [
            "/",
            "/api/tenants/a-b",
            "/api/tenants/%61",
            "/a..b",
            "/api//tenants",
            "/x/./y",
        ] {
            assert_eq!(classify(path).refused, None, "{path}");
        }
    }

    #[test]
    fn families_and_tenants_are_named() {
        use RouteFamily::{
            ConvexHttp, Debug, DeployAdmin, Health, NativeApi, NativeWebsocket, Ui, Unknown,
        };
        let cases = [
            ("/health", Health, None),
            ("/health/x", Unknown, None),
            ("/api/tenants", NativeApi, None),
            ("/api/tenants/acme", NativeApi, Some("acme")),
            ("/api/tenants/%61cme/query", NativeApi, Some("acme")),
            ("/api/tenants/_evil/query", NativeApi, None),
            ("/api/tenants/a%20b", NativeApi, None),
            ("/api/tenants/nimbus_at_AAAA", NativeApi, None),
            ("/api/tenants/%6eimbus_at_AAAA", NativeApi, None),
            ("/api/tenants/nimbus_tk_AAAA", NativeApi, None),
            ("/api/admin/deploy", DeployAdmin, None),
            ("/debug/tenants/acme/consistency", Debug, Some("acme")),
            ("/metrics", Debug, None),
            ("/openapi.json", Debug, None),
            ("/ws", NativeWebsocket, None),
            ("/ui/auth", Ui, None),
            ("/convex/acme/query", ConvexHttp, Some("acme")),
            ("/convex/acme", ConvexHttp, Some("acme")),
            ("/convex/", ConvexHttp, None),
            ("/nope", Unknown, None),
        ];
        for (path, family, tenant) in cases {
            let target = classify(path);
            assert_eq!(target.family, family, "{path}");
            assert_eq!(
                target.tenant.as_ref().map(TenantId::as_str),
                tenant,
                "{path}"
            );
        }
        assert_eq!(
            classify(&format!("/api/tenants/{}", "a".repeat(129))).tenant,
            None
        );
    }
}
