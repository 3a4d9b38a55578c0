//! What `fetch` may reach: the question that a worker asks before every request, the answer, and the one that follows
//! from an operator's flags.
//!
//! The server answers; the worker's guard sees to it that the connection goes where the answer allows. This room
//! resolves nothing and opens nothing.

use std::net::IpAddr;

use nimbus_core::net::is_public;
use serde::{Deserialize, Serialize};

/// The syscall that asks; its argument is an [`EgressRequest`], its answer an [`EgressLeave`], both as JSON.
pub const EGRESS: &str = "nimbus/egress";
/// Told once a name turned out to lead where it must not; the argument is an [`EgressRefusal`].
pub const EGRESS_DENIED: &str = "nimbus/egressDenied";

/// What flags have to do with a refusal.
const ADVICE: &str = "An operator may grant it with --runtime-allow-net.";

/// One request that a function wants to send, that of each redirect included.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EgressRequest {
    /// `http` or `https`.
    pub scheme: String,
    /// Name or address, without brackets.
    pub host: String,
    /// The port, said or implied.
    pub port: u16,
    /// The method.
    pub method: String,
    /// The path, without query.
    pub path: String,
}

/// The server's answer to an [`EgressRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressLeave {
    /// It may be sent.
    Granted {
        /// Whether the name may lead to addresses that are not public.
        internal: bool,
        /// What to do when it leads to some and must not; a sentence for the developer.
        advice: String,
    },
    /// It may not.
    Denied {
        /// Why and what to do, for the developer: begins in lower case and ends with a full stop.
        why: String,
    },
}

/// A request that was granted and then led to an address that was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRefusal {
    /// The request.
    pub request: EgressRequest,
    /// Why, in a few words.
    pub reason: String,
}

/// Where `fetch` may go. Without grants: public addresses only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressGrants {
    /// Exact host names or addresses, with a port or for all ports, that may be reached even where
    /// their addresses are private.
    pub hosts: Vec<EgressHost>,
}

/// One grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressHost {
    /// Lower-case name, or an address.
    pub host: String,
    /// The port; all if `None`.
    pub port: Option<u16>,
}

impl EgressGrants {
    /// The answer to a request: public addresses and what was granted.
    #[must_use]
    pub fn leave(&self, request: &EgressRequest) -> EgressLeave {
        let host = request.host.trim_end_matches('.');
        let of_host = |grant: &&EgressHost| grant.host.eq_ignore_ascii_case(host);
        let mut grants = self.hosts.iter().filter(of_host).peekable();
        let named = grants.peek().is_some();
        let granted = grants.any(|grant| grant.port.is_none_or(|port| port == request.port));
        let denied = |why: &str| EgressLeave::Denied {
            why: format!("{why}. {ADVICE}"),
        };
        match host.parse::<IpAddr>() {
            _ if granted => EgressLeave::Granted {
                internal: true,
                advice: ADVICE.to_owned(),
            },
            Ok(address) if !is_public(address) => denied("the address is not public"),
            // A name that is granted for other ports only may not pass as any other name.
            Err(_) if named => denied("the port is not granted"),
            _ => EgressLeave::Granted {
                internal: false,
                advice: ADVICE.to_owned(),
            },
        }
    }
}

/// A text that is no grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no HOST or HOST:PORT")]
pub struct EgressGrantError(String);

impl std::str::FromStr for EgressHost {
    type Err = EgressGrantError;

    /// `HOST`, `HOST:PORT`, `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
    fn from_str(text: &str) -> Result<EgressHost, EgressGrantError> {
        let bad = || EgressGrantError(text.chars().take(80).collect());
        let (host, port) = match text.rsplit_once(':') {
            _ if text.parse::<IpAddr>().is_ok() => (text, None),
            Some((host, port)) => (host, Some(port.parse().map_err(|_| bad())?)),
            None => (text, None),
        };
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        let name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if host.is_empty() || !(host.parse::<IpAddr>().is_ok() || host.chars().all(name)) {
            return Err(bad());
        }
        Ok(EgressHost {
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn leave(grants: &[&str], host: &str, port: u16) -> Option<bool> {
        let hosts = grants.iter().map(|grant| grant.parse().unwrap()).collect();
        let request = EgressRequest {
            scheme: "http".into(),
            host: host.into(),
            port,
            method: "GET".into(),
            path: "/".into(),
        };
        match (EgressGrants { hosts }).leave(&request) {
            EgressLeave::Granted { internal, .. } => Some(internal),
            EgressLeave::Denied { .. } => None,
        }
    }

    #[test]
    fn public_addresses_and_grants_are_reached() {
        let grants = ["db.internal:5432", "10.0.0.7", "[fd00::1]:80"];
        for (host, port, found) in [
            ("example.org", 443, Some(false)),
            ("1.1.1.1", 80, Some(false)),
            ("127.0.0.1", 80, None),
            ("::1", 80, None),
            ("DB.internal.", 5432, Some(true)),
            ("db.internal", 80, None),
            ("10.0.0.7", 9, Some(true)),
            ("10.0.0.8", 9, None),
            ("fd00::1", 80, Some(true)),
            ("fd00::1", 81, None),
        ] {
            assert_eq!(leave(&grants, host, port), found, "{host}:{port}");
        }
        assert_eq!(leave(&[], "db.internal", 5432), Some(false));
    }

    #[test]
    fn grants_are_hosts_with_or_without_a_port() {
        let grant = |text: &str| text.parse::<EgressHost>().map(|g| (g.host, g.port));
        assert_eq!(grant("Example.org"), Ok(("example.org".into(), None)));
        assert_eq!(grant("127.0.0.1:80"), Ok(("127.0.0.1".into(), Some(80))));
        assert_eq!(grant("[::1]:8080"), Ok(("::1".into(), Some(8080))));
        assert_eq!(grant("::1"), Ok(("::1".into(), None)));
        for bad in ["", ":80", "a b", "http://x", "x:99999", "x:", "*"] {
            assert!(grant(bad).is_err(), "{bad}");
        }
    }
}
