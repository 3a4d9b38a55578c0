//! The one door through which `fetch` leaves: names are resolved first, and the connection goes to the address that
//! was checked (design section 6).
//!
//! Addresses that are not public are refused unless granted, for every request of a redirect anew. A refusal is
//! told to the server, which writes it into the audit log.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock, OnceLock};

use deno_error::JsErrorBox;
use deno_fetch::ReqBody;
use deno_fetch::dns::{Resolve, Resolving};
use deno_permissions::{PermissionsContainer, RuntimePermissionDescriptorParser};
use hyper_util::client::legacy::connect::dns::Name;
use ipnet::{Ipv4Net, Ipv6Net};

use super::session;
use crate::config::EgressGrants;

static GRANTS: OnceLock<EgressGrants> = OnceLock::new();

/// Special IPv4 ranges (IANA special-purpose registry, RFC 6890).
const SPECIAL_V4: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// IPv6 addresses that are public: global unicast, without what is carved out of it below.
const GLOBAL_V6: &str = "2000::/3";
/// Special ranges within it: Teredo and other protocol assignments, documentation, 6to4.
const SPECIAL_V6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

static V4: LazyLock<Vec<Ipv4Net>> = LazyLock::new(|| parsed(&SPECIAL_V4));
static V6: LazyLock<Vec<Ipv6Net>> = LazyLock::new(|| parsed(&SPECIAL_V6));
static GLOBAL: LazyLock<Vec<Ipv6Net>> = LazyLock::new(|| parsed(&[GLOBAL_V6]));

fn parsed<T: std::str::FromStr>(texts: &[&str]) -> Vec<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Sets the grants of this process, once.
pub(crate) fn grant(grants: EgressGrants) {
    // A second call would be a second setup, which the worker refuses.
    drop(GRANTS.set(grants));
}

/// Whether anyone may reach this address.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => public_v4(v4),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => public_v4(v4),
            None => public_v6(v6),
        },
    }
}

fn public_v4(address: Ipv4Addr) -> bool {
    !V4.iter().any(|net| net.contains(&address))
}

fn public_v6(address: Ipv6Addr) -> bool {
    GLOBAL.iter().any(|net| net.contains(&address)) && !V6.iter().any(|net| net.contains(&address))
}

/// Whether `host` (a name or an address) was granted. Without a port only grants for all ports count, since
/// a resolver is not told the port; [`check_request`] looked at it before.
fn granted(host: &str, port: Option<u16>) -> bool {
    let host = host.trim_end_matches('.');
    GRANTS.get().is_some_and(|grants| {
        grants.hosts.iter().any(|grant| {
            let to_port = grant.port.is_none() || port.is_none() || grant.port == port;
            grant.host.eq_ignore_ascii_case(host) && to_port
        })
    })
}

fn refuse(host: &str, reason: &'static str) -> String {
    let args = serde_json::json!({ "host": host, "reason": reason }).to_string();
    session::with(|session| session.tell("nimbus/egressDenied", args));
    format!(
        "fetch to {host} is refused: {reason}. An operator may grant it with --runtime-allow-net."
    )
}

/// Looks at every request before it is sent, that of each redirect included.
pub(crate) fn check_request(request: &mut http::Request<ReqBody>) -> Result<(), JsErrorBox> {
    let uri = request.uri();
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().or(match uri.scheme_str() {
        Some("https") => Some(443),
        _ => Some(80),
    });
    if granted(bare, port) {
        return Ok(());
    }
    match bare.parse::<IpAddr>() {
        Ok(address) if !is_public(address) => Err(JsErrorBox::type_error(refuse(
            bare,
            "the address is not public",
        ))),
        // A name that is granted for other ports only must not pass at the resolver.
        Err(_) if granted(bare, None) => Err(JsErrorBox::type_error(refuse(
            bare,
            "the port is not granted",
        ))),
        _ => Ok(()),
    }
}

/// Resolves names to the addresses among theirs that may be reached.
#[derive(Debug)]
pub(crate) struct GuardedResolver;

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.collect();
            if granted(&host, None) {
                return Ok(found.into_iter());
            }
            // One address that is not public condemns the name: it would be a way to ask which are there.
            if found.iter().any(|address| !is_public(address.ip())) {
                let text = refuse(&host, "the name leads to an address that is not public");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
            Ok(found.into_iter())
        })
    }
}

/// What Deno's extensions ask for leave: all is granted, since what may leave is decided here and files are not
/// reachable.
pub(crate) fn permissions() -> PermissionsContainer {
    let parser = RuntimePermissionDescriptorParser::new(sys_traits::impls::RealSys);
    PermissionsContainer::allow_all(Arc::new(parser))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn special_ranges_are_not_public() {
        assert_eq!(
            V4.len() + V6.len() + GLOBAL.len(),
            SPECIAL_V4.len() + SPECIAL_V6.len() + 1
        );
        for inside in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "2002:7f00:1::",
            "2001::1",
            "fec0::1",
            "100::1",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }
}
