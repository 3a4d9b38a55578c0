//! Which addresses a server may listen on, and what that asks of the admin token (seed 000).
//!
//! It must not know how the token file is checked; `token_file` does.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use nimbus_e2e::{Home, Options, Server, raw};
use serde_json::json;

/// A time so many days from now, as RFC 3339.
fn days_from_now(days: i64) -> String {
    let output = Command::new("date")
        .args(["-u", "-d", &format!("{days} days"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn public(home: &Arc<Home>) -> Options {
    Options::new()
        .home(home)
        .args(&["--host", "0.0.0.0", "--allow-network"])
}

#[test]
fn loopback_in_every_spelling_needs_no_permission() {
    let home = Arc::new(Home::new());
    let mut hosts = vec!["127.0.0.1", "127.0.0.5", "localhost", "LocalHost"];
    if TcpListener::bind("[::1]:0").is_ok() {
        hosts.push("::1");
    } else {
        eprintln!("NOT TESTED: ::1, since this machine has no IPv6 loopback");
    }
    for host in hosts {
        let options = Options::new().home(&home).args(&["--host", host]);
        let mut server = Server::start(options);
        assert!(server.address().ip().is_loopback(), "{host}");
        let reply = server.anonymous().get("/health").expect(200);
        assert_eq!(reply.text(), r#"{"ok":true}"#, "{host}");
        assert!(server.terminate().success());
    }
}

#[test]
fn other_hosts_are_refused_before_anything_is_made() {
    let home = Arc::new(Home::new());
    for host in ["0.0.0.0", "::", "192.0.2.1", "10.0.0.1", "example.invalid"] {
        let options = Options::new().home(&home).args(&["--host", host]);
        let finished = Server::refused(options).says(&["--allow-network", host]);
        assert_ne!(finished.code, Some(0));
        assert_eq!(finished.stdout, "");
        assert!(!home.data_dir().exists(), "{host} made the data directory");
        assert!(!home.token_file().exists(), "{host} made the token");
        assert!(!home.audit_log().exists(), "{host} made the audit log");
    }
}

#[test]
fn a_public_host_needs_a_token_that_was_rotated_lately() {
    let home = Arc::new(Home::new());
    // First boot mints a token, which never qualifies, neither at once nor later.
    for _ in 0..2 {
        Server::refused(public(&home)).says(&["never rotated", "nimbus auth rotate-admin"]);
        assert!(!home.data_dir().join("nimbus-control.db").exists());
        let mut server = Server::start(Options::new().home(&home));
        assert!(server.terminate().success());
        assert_eq!(home.token_json().get("rotatedAt"), None);
        std::fs::remove_dir_all(home.data_dir()).unwrap();
    }
    let old = home.token();
    home.run(["auth", "rotate-admin"]).expect(0);
    assert_ne!(home.token(), old);
    assert_eq!(home.token_json()["generation"], 2);
    let mut server = Server::start(public(&home));
    assert_eq!(server.address().ip().to_string(), "0.0.0.0");
    server.client().create_tenant("acme");
    server
        .client()
        .with_token(Some(old))
        .get("/api/tenants")
        .refused(401, "auth.unauthorized");
    // The command line finds the way to a server that listens everywhere.
    let data = home.data_dir().into_os_string().into_string().unwrap();
    let listed = home.run(["tenants", "list", "--data-dir", &data, "-f", "json"]);
    assert_eq!(listed.expect(0).json(), json!({"tenants": ["acme"]}));
    assert!(server.terminate().success());

    let set = |rotated: &str| {
        home.edit_token_json(|token| {
            token["issuedAt"] = json!(rotated);
            token["rotatedAt"] = json!(rotated);
        });
    };
    set(&days_from_now(-29));
    assert!(Server::start(public(&home)).terminate().success());
    set(&days_from_now(-31));
    Server::refused(public(&home)).says(&["30 days", "nimbus auth rotate-admin"]);
    set(&days_from_now(2));
    Server::refused(public(&home)).says(&["clock", "nimbus auth rotate-admin"]);
    home.edit_token_json(|token| token["rotatedAt"] = json!("last week"));
    let finished = Server::refused(public(&home)).says(&["nimbus auth rotate-admin"]);
    assert_eq!(finished.code, Some(1));
    // None of it matters on loopback.
    assert!(
        Server::start(Options::new().home(&home))
            .terminate()
            .success()
    );
    // Another rotation opens the way again.
    home.run(["auth", "rotate-admin"]).expect(0);
    assert!(Server::start(public(&home)).terminate().success());
}

#[test]
fn the_permission_can_come_from_the_environment() {
    let home = Arc::new(Home::new());
    home.run(["auth", "rotate-admin"]).expect(0);
    let options = |value: &str| {
        let options = Options::new().home(&home).args(&["--host", "0.0.0.0"]);
        options.env("NIMBUS_ALLOW_NETWORK", value)
    };
    assert!(Server::start(options("true")).terminate().success());
    for refused in ["false", ""] {
        Server::refused(options(refused)).says(&["--allow-network"]);
    }
}

#[test]
fn foreign_pages_get_no_approval_and_local_ones_do() {
    let server = Server::start(Options::new());
    let token = server.home().token();
    for (origin, approved) in [
        ("http://localhost:3000", true),
        ("https://127.0.0.1", true),
        ("http://[::1]:5173", true),
        ("https://evil.example", false),
        ("http://localhost.evil.example", false),
        ("null", false),
    ] {
        let request = format!(
            "GET /api/tenants HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n\
             Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        let reply = raw::exchange(server.address(), request.as_bytes()).unwrap();
        let allowed = reply
            .header("access-control-allow-origin")
            .map(str::to_owned);
        if approved {
            assert_eq!(allowed.as_deref(), Some(origin));
            reply.expect(200);
        } else {
            assert_eq!(allowed, None, "{origin}");
            reply.refused(403, "auth.forbidden");
        }
    }
}
