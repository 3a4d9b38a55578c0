//! Checks of where the server listens: the gate for public addresses, and who has the port.
//!
//! It connects to this machine only, and asks `/health`, which takes no credential.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use jiff::Timestamp;
use nimbus_auth::{MAX_ROTATION_AGE, TokenError, TokenFile};

use super::report::Check;
use crate::settings::{self, Settings};

/// Longest wait for a connection and for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What answers at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nobody listens.
    Nobody,
    /// A Nimbus.
    Nimbus,
    /// Something else, or a Nimbus that does not answer.
    Other,
}

/// The addresses that the host stands for.
pub(crate) fn resolve(settings: &Settings) -> std::io::Result<Vec<SocketAddr>> {
    use std::net::ToSocketAddrs as _;
    let host = settings.host.trim_start_matches('[').trim_end_matches(']');
    Ok((host, settings.port).to_socket_addrs()?.collect())
}

/// `listen`: loopback, or allowed and with a fresh token (seed 000).
pub(crate) fn gate(
    settings: &Settings,
    addresses: &std::io::Result<Vec<SocketAddr>>,
    token: Option<&Result<TokenFile, TokenError>>,
    now: Timestamp,
) -> Check {
    let name = "listen";
    let (host, port) = (&settings.host, settings.port);
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(error) => {
            return Check::fail(
                name,
                format!("--host {host} cannot be looked up: {error}"),
                "correct the name, or give an address of this machine",
            );
        }
    };
    let public = |a: &SocketAddr| !a.ip().to_canonical().is_loopback();
    if settings::is_loopback(host) && !addresses.iter().any(public) {
        return Check::ok(name, format!("{host} port {port}, on loopback"));
    }
    if !settings.allow_network {
        return Check::fail(
            name,
            format!("{host} is not on loopback, and --allow-network is not given"),
            "keep the server on 127.0.0.1 behind a reverse proxy, or pass --allow-network",
        );
    }
    match token {
        Some(Ok(token)) => match token.fresh_for_network(now, MAX_ROTATION_AGE) {
            Ok(()) => Check::warn(
                name,
                format!("{host} port {port} is not on loopback, and the connection is plain HTTP"),
                "let a firewall admit the proxy alone; who can listen on the wire reads the token",
            ),
            Err(stale) => Check::refused(name, &stale),
        },
        _ => Check::fail(
            name,
            format!("{host} is not on loopback, and there is no usable admin token"),
            "run `nimbus auth rotate-admin` as the user of the service",
        ),
    }
}

/// `port`: free, or held by the Nimbus that has the data directory.
pub(crate) fn port(
    settings: &Settings,
    addresses: &std::io::Result<Vec<SocketAddr>>,
    holder: Option<SocketAddr>,
) -> Check {
    let name = "port";
    if settings.port == 0 {
        return Check::ok(name, "any free one");
    }
    let Some(address) = addresses.as_ref().ok().and_then(|all| all.first()) else {
        return Check::fail(
            name,
            "not looked at, since the host has no address",
            "see `listen`",
        );
    };
    // Port 0 of the same address: tells whether it is one of this machine and takes nothing.
    if let Err(error) = TcpListener::bind((address.ip(), 0)) {
        return Check::fail(
            name,
            format!("{} cannot be listened on: {error}", address.ip()),
            "give --host an address of this machine",
        );
    }
    judge_port(*address, ask(*address), holder)
}

fn judge_port(address: SocketAddr, answer: Answer, holder: Option<SocketAddr>) -> Check {
    let name = "port";
    let ours = holder.is_some_and(|holder| holder.port() == address.port());
    match answer {
        Answer::Nobody => Check::ok(name, format!("{} is free", address.port())),
        Answer::Nimbus if ours => Check::ok(
            name,
            format!("{address} is the running server of this data directory; /health answers"),
        ),
        Answer::Nimbus => Check::fail(
            name,
            format!("{address} is a Nimbus, but not one of this data directory"),
            "stop it, or choose another --port or --data-dir",
        ),
        Answer::Other => Check::fail(
            name,
            format!("{address} is held by a program that does not answer as Nimbus does"),
            "stop it, or choose another --port",
        ),
    }
}

/// Asks who is there.
pub(crate) fn ask(address: SocketAddr) -> Answer {
    let address = SocketAddr::new(reachable(address.ip()), address.port());
    if TcpStream::connect_timeout(&address, PATIENCE).is_err() {
        return Answer::Nobody;
    }
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .timeout_global(Some(PATIENCE))
        .build()
        .into();
    let answer = agent.get(format!("http://{address}/health")).call();
    let text = answer.and_then(|mut answer| {
        let body = answer
            .body_mut()
            .with_config()
            .limit(1_024)
            .read_to_string()?;
        Ok((answer.status().as_u16(), body))
    });
    match text {
        Ok((200, body)) if body == r#"{"ok":true}"# => Answer::Nimbus,
        _ => Answer::Other,
    }
}

/// An address at which this machine reaches a listener on `ip`.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::super::report::Status;
    use super::super::tests::settings;
    use super::*;

    #[test]
    fn the_gate_follows_the_one_of_start() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("nimbus/auth/token");
        let never = Ok(TokenFile::load_or_create(&path).unwrap());
        let fresh = Ok(TokenFile::rotate(&path).unwrap().file);
        let now = Timestamp::now();
        let later = now + jiff::SignedDuration::from_hours(31 * 24);
        let public = &["--host", "0.0.0.0"][..];
        let allowed = &["--host", "0.0.0.0", "--allow-network"][..];
        for (args, token, now, status, part) in [
            (&[][..], Some(&never), now, Status::Ok, "loopback"),
            (&["--host", "::1"], None, now, Status::Ok, "loopback"),
            (
                public,
                Some(&fresh),
                now,
                Status::Fail,
                "--allow-network is not given",
            ),
            (allowed, Some(&never), now, Status::Fail, "never rotated"),
            (allowed, Some(&fresh), later, Status::Fail, "31 days ago"),
            (allowed, None, now, Status::Fail, "no usable admin token"),
            (allowed, Some(&fresh), now, Status::Warn, "plain HTTP"),
        ] {
            let settings = settings(args);
            let check = gate(&settings, &resolve(&settings), token, now);
            assert_eq!(check.status, status, "{args:?}: {check:?}");
            assert!(check.message.contains(part), "{args:?}: {check:?}");
        }
        let settings = settings(&["--host", "name.invalid", "--allow-network"]);
        let check = gate(&settings, &resolve(&settings), Some(&fresh), now);
        assert!(check.message.contains("cannot be looked up"), "{check:?}");
    }

    #[test]
    fn the_port_is_free_ours_or_somebody_elses() {
        let address: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let other = "127.0.0.1:8081".parse().ok();
        for (answer, holder, status) in [
            (Answer::Nobody, None, Status::Ok),
            (Answer::Nobody, Some(address), Status::Ok),
            (Answer::Nimbus, Some(address), Status::Ok),
            (Answer::Nimbus, other, Status::Fail),
            (Answer::Nimbus, None, Status::Fail),
            (Answer::Other, Some(address), Status::Fail),
        ] {
            assert_eq!(
                judge_port(address, answer, holder).status,
                status,
                "{answer:?}"
            );
        }
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        // TEST-NET-1 (RFC 5737) is nobody's.
        let settings = settings(&["--host", "192.0.2.1", "--allow-network"]);
        let check = port(&settings, &resolve(&settings), None);
        assert_eq!(check.status, Status::Fail);
        assert!(check.message.contains("cannot be listened on"), "{check:?}");
    }

    #[test]
    fn whoever_answers_otherwise_is_no_nimbus() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            // The look whether anybody is there, then the question.
            for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"] {
                let (mut stream, _) = listener.accept().unwrap();
                if !answer.is_empty() {
                    let _ = stream.read(&mut [0; 1_024]).unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        assert_eq!(ask(address), Answer::Other);
        server.join().unwrap();
        assert_eq!(ask(address), Answer::Nobody);
    }
}
