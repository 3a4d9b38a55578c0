//! What `packaging/` ships, run for real: nginx, HAProxy and Caddy with our files in front of the
//! server, and the systemd unit against what the server does.
//!
//! It must not know how the server is built; a proxy is known by what goes in and comes out.

mod front;
mod papers;
mod smuggling;
mod unit;
mod upstream;
mod wire;

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use nimbus_e2e::{Finished, Home, Options, Reply, Server};
use serde_json::Value as Json;

use front::{Front, HOST, Kind, Setting};
use upstream::{ACCEPT, GREETING, KEY, Upstream};
use wire::Wire;

/// A request without a body, on a connection of its own.
fn ask(address: SocketAddr, target: &str, headers: &str) -> Option<Reply> {
    let request =
        format!("GET {target} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{headers}\r\n");
    Wire::open(address).send(request.as_bytes()).reply()
}

fn audit_lines(home: &Home) -> Vec<Json> {
    let text = fs::read_to_string(home.audit_log()).unwrap_or_default();
    // What follows the last newline is a line that is just being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

#[test]
fn only_the_paths_of_applications_are_forwarded() {
    let server = Server::start(Options::new());
    let bearer = format!("authorization: Bearer {}\r\n", server.home().token());
    let closed = [
        "/",
        "/api",
        "/api/tenants",
        "/API/tenants",
        "//api/tenants",
        "/api/system/shutdown",
        "/debug/license/status",
        "/ui",
        "/ui/",
        "/ws",
        "/metrics",
        "/openapi.json",
        "/healthx",
        "/health/x",
        "/convexx",
        "/index.html",
    ];
    let unclear = [
        "/convex/../api/tenants",
        "/convex/x/../../api/tenants",
        "/convex/%2e%2e/api/tenants",
        "/convex/%2E%2E/api/tenants",
        "/convex/.%2e/api/tenants",
        "/convex/..;/api/tenants",
        "/convex/./x",
        "/convex/..",
        "/convex/x/..?y",
        "/convex%2f..%2fapi%2ftenants",
        "/convex/%2fapi/tenants",
        "/convex/..\\api\\tenants",
        "/convex/%5c..%5capi",
        "/convex/a%00b",
        "/api/../convex/x",
    ];
    for kind in Kind::ALL {
        let front = Front::start(kind, &Setting::plain(server.address()));
        let health = ask(front.address, "/health", "").unwrap().expect(200);
        assert_eq!(health.text(), r#"{"ok":true}"#, "{kind:?}");
        for path in [
            "/convex/demo/query",
            "/convex/a..b?x=/../y",
            "/convex/%C3%A9",
        ] {
            // Nimbus answers, not the proxy: the shape and the words are its own.
            let code = ask(front.address, path, &bearer)
                .unwrap()
                .convex_refusal(404);
            assert!(
                ["NotFound", "TenantNotFound"].contains(&code.as_str()),
                "{path}: {code}"
            );
        }
        for path in closed {
            let reply = ask(front.address, path, &bearer).unwrap();
            assert_eq!(reply.status, 404, "{kind:?} {path}");
            assert_eq!(reply.header("x-request-id"), None, "{kind:?} {path}");
        }
        for path in unclear {
            let reply = ask(front.address, path, &bearer).unwrap();
            assert!([400, 404].contains(&reply.status), "{kind:?} {path}");
            assert_eq!(reply.header("x-request-id"), None, "{kind:?} {path}");
        }
        // Another host name is not served, whatever the path.
        let foreign = "GET /health HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
        let reply = Wire::open(front.address).send(foreign.as_bytes()).reply();
        assert!(
            reply.is_none_or(|reply| reply.header("x-request-id").is_none()),
            "{kind:?}"
        );
    }
    // Dots that are escaped twice pass a proxy that decodes once. The gate decodes three times.
    let nginx = Front::start(Kind::Nginx, &Setting::plain(server.address()));
    assert_eq!(audit_lines(server.home()), [Json::Null; 0]);
    let twice = ask(nginx.address, "/convex/%252e%252e/api/tenants", "").unwrap();
    twice.refused(401, "auth.unauthorized");
    assert_eq!(audit_lines(server.home()).len(), 1);
}

#[test]
fn an_upgrade_reaches_the_server_and_its_bytes_pass_both_ways() {
    let upstream = Upstream::start();
    for kind in Kind::ALL {
        let front = Front::start(kind, &Setting::plain(upstream.address));
        for path in ["/convex/x/ws", "/convex/x/api/1.17.0/sync"] {
            let mut client = Wire::open(front.address);
            client.send(
                format!(
                    "GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: keep-alive, Upgrade\r\n\
                     upgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\
                     sec-websocket-protocol: a, b\r\nauthorization: Bearer x\r\n\r\n"
                )
                .replace("WebSocket", if path.ends_with("ws") { "websocket" } else { "WebSocket" })
                .as_bytes(),
            );
            let reply = client.head();
            assert_eq!(reply.status, 101, "{kind:?}");
            assert_eq!(reply.header("sec-websocket-accept"), Some(ACCEPT));
            let upgrade = reply.header("upgrade").unwrap();
            assert!(upgrade.eq_ignore_ascii_case("websocket"), "{kind:?}");
            assert_eq!(client.exactly(GREETING.len()), GREETING, "{kind:?}");
            // Any bytes: a frame is not text, and none of it may be held back.
            for round in 0..5_u8 {
                let sent: Vec<u8> = (0..=255).map(|byte: u8| byte ^ round).collect();
                client.send(&sent);
                assert_eq!(client.exactly(sent.len()), sent, "{kind:?}");
            }
            let heads = upstream.take();
            assert_eq!(heads.len(), 1, "{kind:?}: {heads:?}");
            let head = &heads[0];
            assert_eq!(head.line, format!("GET {path} HTTP/1.1"), "{kind:?}");
            let upgrade = head.values("upgrade").concat();
            assert!(upgrade.eq_ignore_ascii_case("websocket"), "{kind:?}");
            let connection = head.values("connection").join(",").to_ascii_lowercase();
            assert!(connection.contains("upgrade"), "{kind:?}: {connection}");
            assert_eq!(head.values("sec-websocket-key"), [KEY], "{kind:?}");
            assert_eq!(head.values("sec-websocket-version"), ["13"], "{kind:?}");
            assert_eq!(head.values("sec-websocket-protocol"), ["a, b"]);
            assert_eq!(head.values("authorization"), ["Bearer x"], "{kind:?}");
            assert_eq!(head.values("host"), [HOST], "{kind:?}");
        }
        // Nothing else is upgraded to: h2c would take requests past the proxy's rules.
        let mut client = Wire::open(front.address);
        client.send(
            format!(
                "GET /convex/x/ws HTTP/1.1\r\nhost: {HOST}\r\nconnection: Upgrade, HTTP2-Settings\r\n\
                 upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
            )
            .as_bytes(),
        );
        client.reply().unwrap().expect(200);
        let heads = upstream.take();
        assert_eq!(heads[0].values("upgrade"), [""; 0], "{kind:?}");
    }
}

#[test]
fn an_upgrade_that_nimbus_does_not_serve_is_its_404() {
    let server = Server::start(Options::new());
    let fronts = Kind::ALL.map(|kind| Front::start(kind, &Setting::plain(server.address())));
    let proxied = fronts.iter().map(|front| front.address);
    for address in proxied.chain([server.address()]) {
        let mut client = Wire::open(address);
        client.send(
            format!(
                "GET /convex/x/ws HTTP/1.1\r\nhost: {HOST}\r\nconnection: Upgrade\r\n\
                 upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
            )
            .as_bytes(),
        );
        let reply = client.reply().unwrap();
        assert_eq!(reply.convex_refusal(404), "NotFound");
        // The connection speaks HTTP as before.
        client.send(format!("GET /health HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes());
        client.reply().unwrap().expect(200);
    }
}

#[test]
fn an_early_answer_to_a_long_body_comes_through() {
    let server = Server::start(Options::new());
    let body = vec![b'x'; 1 << 20];
    for kind in Kind::ALL {
        let front = Front::start(kind, &Setting::plain(server.address()));
        let lengths = [1_000, 60_000, 70_000, 1 << 20];
        for length in lengths.into_iter().cycle().take(12) {
            let mut client = Wire::open(front.address);
            let head = format!(
                "POST /convex/x/query HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {length}\r\n\r\n"
            );
            client.send(&[head.as_bytes(), &body[..length]].concat());
            let reply = client
                .reply()
                .unwrap_or_else(|| panic!("{kind:?} {length}: no answer"));
            assert_eq!(reply.status, 404, "{kind:?} {length}: {}", reply.text());
            assert_eq!(reply.convex_refusal(404), "NotFound");
        }
        ask(front.address, "/health", "").unwrap().expect(200);
    }
}

/// What a client may claim about its own address.
const FORGED: &str = "x-forwarded-for: 203.0.113.9\r\nX-Forwarded-For: 127.0.0.1, 203.0.113.9\r\n\
    forwarded: for=203.0.113.9;host=evil.example\r\nx-real-ip: 203.0.113.9\r\n\
    x-forwarded-host: evil.example\r\nx-client-ip: 203.0.113.9\r\ntrue-client-ip: 203.0.113.9\r\n\
    cf-connecting-ip: 203.0.113.9\r\nx-nimbus-admin-token: canary\r\n";

#[test]
fn proxies_replace_what_a_client_claims_about_itself() {
    let upstream = Upstream::start();
    for kind in Kind::ALL {
        let front = Front::start(kind, &Setting::plain(upstream.address));
        ask(front.address, "/convex/x", FORGED).unwrap().expect(200);
        // A proxy must not be talked into dropping its own header as hop-by-hop.
        let headers = format!("{FORGED}connection: x-forwarded-for, x-forwarded-proto\r\n");
        ask(front.address, "/convex/x", &headers)
            .unwrap()
            .expect(200);
        for head in upstream.take() {
            assert_eq!(head.values("x-forwarded-for"), ["127.0.0.1"], "{kind:?}");
            assert_eq!(head.values("x-forwarded-proto").len(), 1, "{kind:?}");
            for gone in ["forwarded", "x-real-ip", "x-nimbus-admin-token"] {
                assert_eq!(head.values(gone), [""; 0], "{kind:?} {gone}");
            }
            let host = head.values("x-forwarded-host").join(" ");
            assert!(!host.contains("evil"), "{kind:?}: {host}");
        }
        // It is the address of the client, not a constant.
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--interface", "127.0.0.77", "-H"]);
        curl.arg(format!("host: {HOST}"));
        curl.arg(format!("http://{}/convex/x", front.address));
        Finished::of(&mut curl).expect(0);
        let heads = upstream.take();
        assert_eq!(heads[0].values("x-forwarded-for"), ["127.0.0.77"]);
    }
}

#[test]
fn a_forged_address_does_not_reach_the_audit_log() {
    let server = Server::start(Options::new());
    let setting = Setting {
        prefix: "/api/tenants/",
        ..Setting::plain(server.address())
    };
    let fronts = Kind::ALL.map(|kind| Front::start(kind, &setting));
    let proxied = fronts.iter().map(|front| front.address);
    let addresses: Vec<SocketAddr> = proxied.chain([server.address()]).collect();
    for address in &addresses {
        let reply = ask(*address, "/api/tenants/x", FORGED).unwrap();
        reply.refused(401, "auth.unauthorized");
    }
    // The field follows the peer, so this test can fail.
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--interface", "127.0.0.77"]);
    curl.args(["-H", "x-forwarded-for: 203.0.113.9"]);
    curl.arg(format!("{}/api/tenants/x", server.base()));
    Finished::of(&mut curl).expect(0);
    let lines = audit_lines(server.home());
    let found: Vec<&str> = lines
        .iter()
        .map(|line| line["clientAddr"].as_str().unwrap())
        .collect();
    let mut expected = vec!["127.0.0.1"; addresses.len()];
    expected.push("127.0.0.77");
    assert_eq!(found, expected);
    let log = fs::read_to_string(server.home().audit_log()).unwrap();
    assert!(!log.contains("203.0.113") && !log.contains("evil") && !log.contains("canary"));
}

#[test]
fn tls_ends_at_the_proxy() {
    let server = Server::start(Options::new());
    let setting = Setting {
        tls: true,
        ..Setting::plain(server.address())
    };
    for kind in Kind::ALL {
        let front = Front::start(kind, &setting);
        let (secure, plain) = (front.address.port(), front.redirect.port());
        let curl = |arguments: &[&str], url: String| {
            let mut curl = Command::new("curl");
            curl.args([
                "-sS",
                "-o",
                "/dev/stdout",
                "-w",
                " %{http_code} %{redirect_url}",
            ]);
            curl.arg("--cacert").arg(front.certificate());
            for port in [secure, plain] {
                let place = format!("{HOST}:{port}:{}", front.address.ip());
                curl.args(["--resolve", &place]);
            }
            Finished::of(curl.args(arguments).arg(url))
        };
        let secured = |path: &str| format!("https://{HOST}:{secure}{path}");
        for (protocol, version) in [("--http1.1", "1.1"), ("--http2", "2"), ("--tlsv1.3", "2")] {
            let shown = ["-w", "%{http_code} %{http_version}", protocol];
            let finished = curl(&shown, secured("/health")).expect(0);
            let expected = format!("{{\"ok\":true}}200 {version}");
            assert_eq!(finished.stdout, expected, "{kind:?}");
            let finished = curl(&[protocol], secured("/convex/x")).expect(0);
            assert!(
                finished.stdout.contains("NotFound\""),
                "{}",
                finished.stdout
            );
            let finished = curl(&[protocol], secured("/api/tenants")).expect(0);
            assert!(finished.stdout.contains(" 404 "), "{}", finished.stdout);
            assert!(!finished.stdout.contains("requestId"), "{kind:?}");
        }
        let plain_text = curl(&[], format!("http://{HOST}:{plain}/convex/x?y=1")).expect(0);
        assert!(
            plain_text.stdout.contains(" 301 https://")
                || plain_text.stdout.contains(" 308 https://"),
            "{kind:?}: {}",
            plain_text.stdout
        );
        assert!(plain_text.stdout.contains("/convex/x?y=1"), "{kind:?}");
    }
    assert_eq!(audit_lines(server.home()), [Json::Null; 0]);
}
