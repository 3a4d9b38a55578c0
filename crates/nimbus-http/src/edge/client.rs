//! Whose request it is: the peer of the connection, or what a trusted proxy says about it.
//!
//! Addresses serve the audit log and the slow-down of failed tokens; they never let anyone in.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// The header that proxies add to; `Forwarded` (RFC 7239) and other spellings are not read.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A trusted proxy that is neither an address nor a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is neither an IP address nor a network such as 10.0.0.0/8 or fd00::/8")]
pub struct ProxyError {
    /// The setting.
    pub text: String,
}

/// The proxies whose word counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Reads addresses and networks.
    ///
    /// # Errors
    /// The first that is neither.
    pub(crate) fn new(texts: &[String]) -> Result<TrustedProxies, ProxyError> {
        let read = |text: &String| {
            let network = text.parse::<IpNet>().ok();
            let network = network.or_else(|| Some(text.parse::<IpAddr>().ok()?.into()));
            network.ok_or_else(|| ProxyError { text: text.clone() })
        };
        Ok(TrustedProxies(
            texts.iter().map(read).collect::<Result<_, _>>()?,
        ))
    }

    /// The client of a request: the nearest address that is not a trusted proxy. What stands
    /// further left in the header was said by that client and proves nothing.
    pub(crate) fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.ip().to_canonical();
        let lines: Vec<&str> = headers
            .get_all(FORWARDED_FOR)
            .iter()
            // What is no text is no address; it must not let an entry further left count.
            .map(|line| line.to_str().unwrap_or("?"))
            .collect();
        let mut entries = lines.iter().rev().flat_map(|line| line.rsplit(','));
        while self.trusts(client) {
            match entries.next().map(address) {
                Some(Some(next)) => client = next,
                Some(None) | None => break,
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// An entry of the header, with or without a port.
fn address(entry: &str) -> Option<IpAddr> {
    let entry = entry.trim();
    let bare = entry.parse::<IpAddr>().ok();
    let with_port = || Some(entry.parse::<SocketAddr>().ok()?.ip());
    bare.or_else(with_port)
        .map(|address| address.to_canonical())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, lines: &[&str]) -> String {
        let texts: Vec<String> = trusted.iter().map(|text| (*text).to_owned()).collect();
        let proxies = TrustedProxies::new(&texts).unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(
                FORWARDED_FOR,
                http::HeaderValue::from_bytes(line.as_bytes()).unwrap(),
            );
        }
        let peer = SocketAddr::new(peer.parse().unwrap(), 9);
        proxies.client(peer, &headers).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_about_their_own_client() {
        let table: &[(&[&str], &str, &[&str], &str)] = &[
            (&[], "10.0.0.1", &["1.2.3.4"], "10.0.0.1"),
            (&["10.0.0.2"], "10.0.0.1", &["1.2.3.4"], "10.0.0.1"),
            (&["10.0.0.1"], "10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            (&["10.0.0.0/8"], "10.9.9.9", &["1.2.3.4"], "1.2.3.4"),
            (&["10.0.0.0/8"], "::ffff:10.9.9.9", &["1.2.3.4"], "1.2.3.4"),
            (&["fd00::/8", "::1"], "::1", &["fd00::7"], "fd00::7"),
            // The client's own words stand on the left.
            (&["10.0.0.1"], "10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
            (
                &["10.0.0.1"],
                "10.0.0.1",
                &["6.6.6.6", "1.2.3.4"],
                "1.2.3.4",
            ),
            // A chain of proxies.
            (
                &["10.0.0.0/8"],
                "10.0.0.1",
                &["6.6.6.6,1.2.3.4 , 10.0.0.2"],
                "1.2.3.4",
            ),
            (
                &["10.0.0.0/8"],
                "10.0.0.1",
                &["10.0.0.3, 10.0.0.2"],
                "10.0.0.3",
            ),
            (&["10.0.0.1"], "10.0.0.1", &[], "10.0.0.1"),
            (&["10.0.0.1"], "10.0.0.1", &[""], "10.0.0.1"),
            // What is no address ends the way, it is not skipped.
            (
                &["10.0.0.0/8"],
                "10.0.0.1",
                &["1.2.3.4, unknown, 10.0.0.2"],
                "10.0.0.2",
            ),
            (
                &["10.0.0.0/8"],
                "10.0.0.1",
                &["1.2.3.4", "\u{e9}"],
                "10.0.0.1",
            ),
            (&["10.0.0.1"], "10.0.0.1", &["1.2.3.4:5678"], "1.2.3.4"),
            (
                &["10.0.0.1"],
                "10.0.0.1",
                &["[2001:db8::1]:5678"],
                "2001:db8::1",
            ),
            (&["10.0.0.1"], "10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4"),
        ];
        for (trusted, peer, lines, expected) in table {
            assert_eq!(
                client(trusted, peer, lines),
                *expected,
                "{trusted:?} {peer} {lines:?}"
            );
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "localhost", "10.0.0.0/33", "10.0.0", "*", "10.0.0.1 "] {
            let error = TrustedProxies::new(&[text.to_owned()]).unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }
}
