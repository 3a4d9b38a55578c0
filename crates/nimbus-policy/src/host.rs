//! Hosts in their one canonical form: lower-case ASCII names without a dot at the end, addresses as RFC 5952 and
//! dotted decimals write them, IPv4 in IPv6 as IPv4.
//!
//! Knows no rules and resolves nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nimbus_core::net::{is_public, unmapped};

/// Longest name in bytes (RFC 1035).
const MAX_NAME: usize = 253;
/// Longest label in bytes.
const MAX_LABEL: usize = 63;

/// A host name or address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Host {
    /// An address; never IPv4 mapped into IPv6.
    Address(IpAddr),
    /// A name in ASCII and lower case.
    Name(String),
}

/// Why a text is no host. The text says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum HostFault {
    /// Stars and the like.
    #[error("write the name of each host: wildcards are not taken")]
    Wildcard,
    /// `https://host`, `host/path`, `user@host`.
    #[error("write the host alone, without scheme, user and path")]
    NotAlone,
    /// `host:443`.
    #[error("write the host alone; the port has a key of its own")]
    Port,
    /// `[::1]`.
    #[error("write the address without brackets")]
    Brackets,
    /// `fe80::1%eth0`.
    #[error("write the address without a zone")]
    Zone,
    /// `127.1`, `0x7f.0.0.1`, `010.0.0.1`: programs read these in different ways.
    #[error("write an IPv4 address as four decimal numbers without leading zeros")]
    NotDotted,
    /// A label that is empty, too long, or has other characters.
    #[error(
        "a name consists of labels of 1 to 63 letters, digits, `-` and `_`, with dots between them, and has at most 253 characters"
    )]
    Labels,
    /// Not a name in any language.
    #[error("this is no internationalised name; write the form that begins with `xn--`")]
    Idna,
}

/// Reads a host as a policy file has it.
pub(crate) fn parse(text: &str) -> Result<Host, HostFault> {
    if text.contains('*') {
        return Err(HostFault::Wildcard);
    }
    if text.contains(['/', '@', '?', '#', '\\']) {
        return Err(HostFault::NotAlone);
    }
    if text.contains(['[', ']']) {
        return Err(HostFault::Brackets);
    }
    if text.contains(':') {
        return address_v6(text);
    }
    let ascii = idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::URL)
        .map_err(|_| HostFault::Idna)?;
    // One dot at the end, or what stands for one in other scripts, says that the name is whole.
    let name = ascii.strip_suffix('.').unwrap_or(&ascii);
    if let Some(address) = numeric(name)? {
        return Ok(Host::Address(IpAddr::V4(address)));
    }
    if name.len() > MAX_NAME || !name.split('.').all(is_label) {
        return Err(HostFault::Labels);
    }
    Ok(Host::Name(name.to_owned()))
}

fn address_v6(text: &str) -> Result<Host, HostFault> {
    if text.contains('%') {
        return Err(HostFault::Zone);
    }
    match text.parse::<Ipv6Addr>() {
        Ok(address) => Ok(Host::Address(unmapped(IpAddr::V6(address)))),
        Err(_) => Err(HostFault::Port),
    }
}

/// A name whose last label begins with a digit and is a number is an address, or an attempt at one (WHATWG URL).
fn numeric(name: &str) -> Result<Option<Ipv4Addr>, HostFault> {
    let last = name.rsplit('.').next().unwrap_or_default();
    let digits = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits
        || last
            .strip_prefix("0x")
            .is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if !number {
        return Ok(None);
    }
    // The parser of the standard library takes the strict form only.
    name.parse().map(Some).map_err(|_| HostFault::NotDotted)
}

fn is_label(label: &str) -> bool {
    let good = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
    };
    !label.is_empty()
        && label.len() <= MAX_LABEL
        && label.bytes().all(good)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl Host {
    /// Whether the host is this machine or an address that is not public. What a name leads to is not known here.
    pub(crate) fn is_internal(&self) -> bool {
        match self {
            Host::Address(address) => !is_public(*address),
            Host::Name(name) => {
                let last = name.rsplit('.').next().unwrap_or_default();
                matches!(
                    name.as_str(),
                    "localhost.localdomain" | "localhost6.localdomain6"
                ) || matches!(
                    last,
                    "localhost" | "localhost6" | "ip6-localhost" | "ip6-loopback"
                )
            }
        }
    }

    /// Whether the host stands for every address of the machine.
    pub(crate) fn is_unspecified(&self) -> bool {
        matches!(self, Host::Address(address) if address.is_unspecified())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(address) => address.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_form() {
        for (text, canonical) in [
            ("API.Example.com", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("b\u{fc}cher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            (
                "\u{ff41}pi\u{3002}example\u{ff0e}com\u{3002}",
                "api.example.com",
            ),
            ("my_db", "my_db"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:a00:1", "10.0.0.1"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_told_apart() {
        use HostFault as F;
        let long = "a.".repeat(130);
        for (text, fault) in [
            ("*.example.com", F::Wildcard),
            ("https://a.example", F::NotAlone),
            ("a@b.example", F::NotAlone),
            ("a.example:443", F::Port),
            ("[::1]", F::Brackets),
            ("fe80::1%eth0", F::Zone),
            ("127.1", F::NotDotted),
            ("0x7f.0.0.1", F::NotDotted),
            ("010.0.0.1", F::NotDotted),
            ("2130706433", F::NotDotted),
            ("a..b", F::Labels),
            ("a.example..", F::Labels),
            (".", F::Labels),
            ("", F::Labels),
            ("-a.example", F::Labels),
            (&long, F::Labels),
            ("a b", F::Idna),
            ("xn--\u{fc}", F::Idna),
        ] {
            assert_eq!(parse(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn special_addresses_are_internal() {
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.255.255",
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001::1",
            "localhost",
            "a.localhost",
            "LOCALHOST.",
            "localhost.localdomain",
        ] {
            assert!(parse(inside).unwrap().is_internal(), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "172.32.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "localhost.example",
        ] {
            assert!(!parse(outside).unwrap().is_internal(), "{outside}");
        }
    }
}
