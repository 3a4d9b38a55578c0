//! The audit log: one line for each decision on the admin surface, and never the token.
//!
//! It must not know when lines are written beyond "before the answer".

use std::collections::BTreeSet;
use std::fs;

use nimbus_e2e::http::assert_rfc3339;
use nimbus_e2e::{Home, Options, Server, files, raw};
use serde_json::{Value as Json, json};

/// The fields of nimbus.md 4, those of issue 2, and the chain's.
const FIELDS: [&str; 15] = [
    "authMethod",
    "authScope",
    "clientAddr",
    "mac",
    "method",
    "origin",
    "path",
    "reason",
    "requestId",
    "routeFamily",
    "seq",
    "status",
    "success",
    "tenantId",
    "ts",
];

fn lines(home: &Home) -> Vec<Json> {
    let text = fs::read_to_string(home.audit_log()).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

fn check_shape(line: &Json) {
    let names: BTreeSet<&str> = line
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(names, BTreeSet::from(FIELDS), "{line}");
    assert_rfc3339(line["ts"].as_str().unwrap());
    assert!(line["success"].is_boolean());
    assert!(line["status"].is_u64());
    for name in [
        "authScope",
        "method",
        "path",
        "reason",
        "requestId",
        "routeFamily",
    ] {
        let text = line[name].as_str();
        assert!(text.is_some_and(|text| !text.is_empty()), "{name}: {line}");
    }
}

#[test]
fn every_decision_is_one_line_with_its_circumstances() {
    let server = Server::start(Options::new());
    let home = server.home();
    let (client, anonymous) = (server.client(), server.anonymous());
    let wrong = client.with_token(Some(format!("nimbus_at_{}", "A".repeat(43))));
    let create = json!({"id": "acme"});
    let by_header = [("x-nimbus-admin-token", home.token())];
    let header: Vec<(&str, &str)> = by_header.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let local = [("origin", "http://localhost:3000")];
    let foreign = [("origin", "https://evil.example")];
    let (bearer, admin) = (json!("local_admin_bearer"), json!("local_admin_header"));
    let (yes, no) = (true, false);

    // Nothing is written about what needs no decision.
    anonymous.get("/health").expect(200);
    anonymous.get("/nothing").expect(404);
    assert_eq!(lines(home), [Json::Null; 0]);

    let mut expected: Vec<(nimbus_e2e::Reply, Json)> = Vec::new();
    let mut note = |reply: Result<nimbus_e2e::Reply, String>, line: Json| {
        expected.push((reply.unwrap(), line));
        // The line is there when the answer is.
        assert_eq!(lines(home).len(), expected.len());
    };
    note(
        client.send("POST", "/api/tenants", Some(&create)),
        json!({"method": "POST", "path": "/api/tenants", "status": 201, "success": yes,
            "authMethod": bearer, "reason": "authorized", "routeFamily": "native_api", "tenantId": null}),
    );
    note(
        anonymous.send_with("GET", "/api/tenants", &header, None),
        json!({"method": "GET", "path": "/api/tenants", "status": 200, "success": yes,
            "authMethod": admin, "reason": "authorized"}),
    );
    note(
        client.send("GET", "/api/tenants/acme/schema?", None),
        json!({"path": "/api/tenants/acme/schema", "status": 200, "success": yes, "tenantId": "acme"}),
    );
    note(
        client.send("GET", "/api/tenants/none/schema", None),
        json!({"status": 404, "success": yes, "tenantId": "none"}),
    );
    note(
        client.send_with("GET", "/api/tenants", &local, None),
        json!({"status": 200, "success": yes, "origin": "http://localhost:3000"}),
    );
    note(
        anonymous.send("DELETE", "/api/tenants/acme", None),
        json!({"method": "DELETE", "path": "/api/tenants/acme", "status": 401, "success": no,
            "authMethod": null, "tenantId": "acme", "routeFamily": "native_api"}),
    );
    note(
        wrong.send("GET", "/debug/tenants/acme/consistency?token=secret", None),
        json!({"path": "/debug/tenants/acme/consistency", "status": 401, "success": no,
            "authMethod": bearer, "routeFamily": "debug"}),
    );
    note(
        anonymous.send("GET", "/ws", None),
        json!({"path": "/ws", "status": 401, "success": no, "routeFamily": "native_websocket"}),
    );
    note(
        anonymous.send("GET", "/api/no/such/route", None),
        json!({"path": "/api/no/such/route", "status": 401, "success": no}),
    );
    note(
        client.send_with("GET", "/api/tenants", &foreign, None),
        json!({"status": 403, "success": no, "authScope": "origin", "origin": "https://evil.example"}),
    );
    note(
        client.send("POST", "/api/system/token/rotate", None),
        json!({"path": "/api/system/token/rotate", "status": 200, "success": yes, "reason": "token.rotated"}),
    );
    note(
        client.send("GET", "/metrics", None),
        json!({"path": "/metrics", "status": 401, "success": no, "routeFamily": "debug"}),
    );

    let lines = lines(home);
    for ((reply, wanted), line) in expected.iter().zip(&lines) {
        check_shape(line);
        assert_eq!(line["requestId"].as_str(), reply.header("x-request-id"));
        assert_eq!(line["status"], reply.status);
        assert_eq!(line["clientAddr"], "127.0.0.1");
        for (name, value) in wanted.as_object().unwrap() {
            assert_eq!(line[name], *value, "{name} in {line}");
        }
    }
    let ids: BTreeSet<&str> = lines
        .iter()
        .map(|line| line["requestId"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), lines.len(), "request ids repeat");
}

#[test]
fn the_log_is_private_grows_by_appending_and_survives_a_restart() {
    let mut server = Server::start(Options::new());
    let path = server.home().audit_log();
    server.client().create_tenant("acme");
    assert_eq!(files::mode(&path), 0o600);
    assert_eq!(files::mode(path.parent().unwrap()), 0o700);
    server.kill9();
    let before = fs::read(&path).unwrap();
    // A line that a crash cut off is moved away and does not swallow the next.
    fs::write(&path, [&before[..], b"{\"ts\":\"20"].concat()).unwrap();
    server.restart();
    server.client().get("/api/tenants").expect(200);
    let after = fs::read_to_string(&path).unwrap();
    assert!(after.as_bytes().starts_with(&before));
    let last: Json = serde_json::from_str(after.lines().last().unwrap()).unwrap();
    check_shape(&last);
    assert!(server.terminate().success());
    // A log that others can read is not trusted with more.
    files::set_mode(&path, 0o644);
    let options = Options::new().home(server.home());
    let finished = Server::refused(options).says(&[path.to_str().unwrap()]);
    assert_eq!(finished.code, Some(1));
}

#[test]
fn the_token_is_in_no_log_and_no_data() {
    let options = Options::new().env("RUST_LOG", "trace");
    let mut server = Server::start(options);
    let home = std::sync::Arc::clone(server.home());
    let first = home.token();
    let client = server.client();
    client.create_tenant("acme");
    // Everywhere a client may put it by mistake.
    for request in [
        format!("GET /api/tenants?token={first} HTTP/1.1\r\nHost: a\r\n"),
        format!("GET /api/tenants/{first} HTTP/1.1\r\nHost: a\r\n"),
        format!("GET /api/{first} HTTP/1.1\r\nHost: {first}\r\nAuthorization: Bearer {first}\r\n"),
        format!("GET /api/tenants HTTP/1.1\r\nHost: a\r\nOrigin: http://{first}\r\n"),
        format!("GET /api/tenants HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {first}\r\n"),
        format!("{first} /api/tenants HTTP/1.1\r\nHost: a\r\n"),
        format!("GET /{first} HTTP/1.1\r\nHost: a\r\nUser-Agent: {first}\r\n"),
        format!("GET /api/tenants HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x{first}\r\n"),
    ] {
        let request = format!("{request}Connection: close\r\n\r\n");
        raw::exchange(server.address(), request.as_bytes()).unwrap();
    }
    client.post_empty("/api/system/token/rotate").expect(200);
    let second = home.token();
    server.client().get("/api/tenants").expect(200);
    home.run(["auth", "rotate-admin"]).expect(0);
    let third = home.token();
    let log = server.log();
    assert!(server.terminate().success());

    let token_dir = home.token_file().parent().unwrap().to_owned();
    for token in [&first, &second, &third] {
        let secret = &token["nimbus_at_".len()..];
        assert!(!log.contains(secret), "the log shows a token");
        for path in files::all_below(home.path()) {
            if path.starts_with(&token_dir) {
                continue;
            }
            assert!(
                !files::contains(&path, secret),
                "{} has a token",
                path.display()
            );
        }
    }
    // Old tokens are not kept beside the new one either.
    for path in files::all_below(&token_dir) {
        for token in [&first, &second] {
            let secret = &token["nimbus_at_".len()..];
            assert!(
                !files::contains(&path, secret),
                "{} keeps one",
                path.display()
            );
        }
    }
}
