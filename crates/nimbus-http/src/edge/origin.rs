//! Which web origins and host names may talk to this server, and the CORS answers that follow.
//!
//! One predicate decides both what CORS approves and what the Origin check lets through, so
//! the two cannot disagree. Knows headers only; it must not know credentials or routes.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, request::Parts};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// The other way to present the admin token (seed 000).
pub(crate) const ADMIN_HEADER: HeaderName = HeaderName::from_static("x-nimbus-admin-token");
/// Name and version of a Convex client (convex.md 1.2).
pub(crate) const CONVEX_CLIENT: HeaderName = HeaderName::from_static("convex-client");
/// Request id that a Convex client chooses; allowed and not looked at.
const CONVEX_REQUEST_ID: HeaderName = HeaderName::from_static("convex-request-id");
/// Carries the request id on every answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a browser may remember a preflight answer.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

/// Names that mean this machine.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// A text that is no web origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{origin}` is not an origin: write scheme://host or scheme://host:port, without a path or a wildcard"
)]
pub struct OriginError {
    /// The text as given, at most 256 characters of it.
    pub origin: String,
}

/// The approved origins: loopback on any port, and those that the operator lists exactly.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins {
    listed: Arc<[String]>,
}

impl Origins {
    /// Loopback, and each of `listed` (compared without regard to case).
    ///
    /// # Errors
    /// [`OriginError`] for anything but `http(s)://host[:port]`.
    pub(crate) fn new(listed: &[String]) -> Result<Origins, OriginError> {
        Ok(Origins {
            listed: listed
                .iter()
                .map(|origin| check_origin(origin))
                .collect::<Result<Arc<[String]>, _>>()?,
        })
    }

    /// Whether scripts of `origin` may use this server. `null` never is.
    pub(crate) fn approves(&self, origin: &HeaderValue) -> bool {
        let Ok(text) = origin.to_str() else {
            return false;
        };
        let lower = text.to_ascii_lowercase();
        match split(&lower) {
            Some(host) => LOOPBACK.contains(&host) || self.listed.contains(&lower),
            None => false,
        }
    }

    /// The CORS layer for this predicate (nimbus.md 2.1). No credentials mode: cookies never count.
    pub(crate) fn cors(&self) -> CorsLayer {
        let origins = self.clone();
        let approves = move |origin: &HeaderValue, _: &Parts| origins.approves(origin);
        CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(approves))
            .allow_methods([
                Method::GET,
                Method::POST,
                Method::PUT,
                Method::PATCH,
                Method::DELETE,
                Method::OPTIONS,
            ])
            .allow_headers([
                ACCEPT,
                AUTHORIZATION,
                CONTENT_TYPE,
                ADMIN_HEADER,
                CONVEX_CLIENT,
                CONVEX_REQUEST_ID,
            ])
            .expose_headers([REQUEST_ID, RETRY_AFTER])
            .max_age(PREFLIGHT_AGE)
    }
}

/// An origin in lower case.
///
/// # Errors
/// [`OriginError`] for anything but `http(s)://host[:port]`.
pub(crate) fn check_origin(origin: &str) -> Result<String, OriginError> {
    let lower = origin.to_ascii_lowercase();
    match split(&lower) {
        Some(_) => Ok(lower),
        None => Err(OriginError {
            origin: origin.chars().take(256).collect(),
        }),
    }
}

/// The host of `http(s)://host[:port]` in lower case, or `None` for anything else.
fn split(origin: &str) -> Option<&str> {
    let rest = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"))?;
    split_port(rest)
}

/// The host of `host[:port]`; IPv6 addresses keep their brackets.
fn split_port(authority: &str) -> Option<&str> {
    let host_end = match authority.strip_prefix('[') {
        Some(inner) => inner.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at_checked(host_end)?;
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let named = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
    let well_formed = match inner {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(named),
    };
    let port_ok = match port.strip_prefix(':') {
        Some(digits) => !digits.starts_with('+') && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    (well_formed && port_ok).then_some(host)
}

/// The host names that the console answers to (design section 7): against DNS rebinding.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    tenant_domain: Option<String>,
    allowed: Arc<[String]>,
}

impl Hosts {
    /// Loopback, `tenant_domain` and everything below it, and each of `allowed`.
    pub(crate) fn new(tenant_domain: Option<&str>, allowed: &[String]) -> Hosts {
        let lower = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
        Hosts {
            tenant_domain: tenant_domain.map(lower),
            allowed: allowed.iter().map(|name| lower(name)).collect(),
        }
    }

    /// Whether a `Host` header names this server.
    pub(crate) fn approves(&self, host: Option<&HeaderValue>) -> bool {
        let text = host
            .and_then(|value| value.to_str().ok())
            .map(str::to_ascii_lowercase);
        let Some(name) = text.as_deref().and_then(split_port) else {
            return false;
        };
        let name = name.trim_end_matches('.');
        let within = |domain: &String| {
            name.strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        LOOPBACK.contains(&name)
            || self.allowed.iter().any(|allowed| allowed == name)
            || self.tenant_domain.as_ref().is_some_and(within)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn value(text: &str) -> HeaderValue {
        HeaderValue::from_bytes(text.as_bytes()).unwrap()
    }

    #[test]
    fn loopback_and_listed_origins_are_approved_exactly() {
        let origins = Origins::new(&["https://App.example:8443".into()]).unwrap();
        let approved = [
            "http://localhost",
            "http://localhost:3000",
            "https://LOCALHOST:1",
            "http://127.0.0.1:5173",
            "http://[::1]:9",
            "https://app.example:8443",
        ];
        let refused = [
            "null",
            "",
            "http://localhost.evil.example",
            "http://evil.example",
            "http://127.0.0.2",
            "http://localhost:99999",
            "http://localhost:+1",
            "http://localhost/",
            "http://user@localhost",
            "http://localhost:80:80",
            "file://localhost",
            "localhost",
            "http://[::1",
            "http://[::2]",
            "https://app.example",
            "http://app.example:8443",
            "https://app.example:84430",
            "https://x.app.example:8443",
            "http://localhost http://localhost",
            "http://127.0.0.1.nip.io",
            "http://\u{e9}",
        ];
        for origin in approved {
            assert!(origins.approves(&value(origin)), "{origin}");
        }
        for origin in refused {
            assert!(!origins.approves(&value(origin)), "{origin}");
        }
    }

    #[test]
    fn a_listed_origin_must_be_one() {
        for bad in [
            "*",
            "https://*",
            "example.org",
            "https://example.org/",
            "ftp://x",
            "https://a b",
            "null",
            "",
        ] {
            let error = Origins::new(&[bad.to_owned()]).unwrap_err();
            assert_eq!(error.origin, bad);
        }
    }

    #[test]
    fn hosts_of_the_console() {
        let hosts = Hosts::new(Some("Tenants.example"), &["nimbus.internal".into()]);
        let approved = [
            "localhost",
            "localhost:8080",
            "127.0.0.1:80",
            "[::1]:8080",
            "tenants.example",
            "a.tenants.example:443",
            "NIMBUS.internal",
            "nimbus.internal.:80",
        ];
        let refused = [
            "",
            "evil.example",
            "xtenants.example",
            "nimbus.internal.evil",
            "x.nimbus.internal",
            "127.0.0.1.evil",
            "localhost:x",
            "a@localhost",
            "0.0.0.0",
        ];
        for host in approved {
            assert!(hosts.approves(Some(&value(host))), "{host}");
        }
        for host in refused {
            assert!(!hosts.approves(Some(&value(host))), "{host}");
        }
        assert!(!hosts.approves(None));
    }
}
