//! Requests that no client library would send: each is refused with the envelope, changes nothing
//! and leaves the server well.
//!
//! It must not know which room of the server refuses what.

use std::fmt::Write as _;
use std::net::SocketAddr;

use nimbus_e2e::raw::{self, Connection};
use nimbus_e2e::{Client, Options, Reply, Server};
use serde_json::json;

const DOCUMENTS: &str = "/api/tenants/acme/documents";
const JSON: &str = "Content-Type: application/json\r\n";

struct World {
    server: Server,
    client: Client,
    token: String,
    document: String,
}

fn world() -> World {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let document = client.insert("acme", "notes", &json!({"text": "kept"}));
    let token = server.home().token();
    World {
        server,
        client,
        token,
        document,
    }
}

impl World {
    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// A request with the right credential and a body, whose length is declared.
    fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        let _ = write!(head, "Authorization: Bearer {}\r\n{headers}", self.token);
        let _ = write!(
            head,
            "Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    fn post(&self, headers: &str, body: &[u8]) -> Vec<u8> {
        self.request("POST", DOCUMENTS, headers, body)
    }

    /// Sends bytes and checks that nothing changed.
    fn send(&self, name: &str, request: &[u8]) -> Reply {
        let before = self.client.journal_head("acme");
        let reply = raw::exchange(self.address(), request);
        assert_eq!(
            self.client.journal_head("acme"),
            before,
            "{name} changed something"
        );
        reply.unwrap_or_else(|| panic!("{name}: no answer"))
    }

    /// Checks that all is as it was at first.
    fn check(&self) {
        let documents = self.client.documents("acme", "notes");
        assert_eq!(documents.len(), 1);
        assert_eq!(documents[0]["_id"], self.document.as_str());
        assert_eq!(documents[0]["text"], "kept");
        assert_eq!(self.client.tenants(), ["acme"]);
        self.client.check_consistency("acme");
        assert!(!self.server.log().contains("panicked"));
    }
}

#[test]
fn bodies_that_are_no_document_are_refused() {
    let world = world();
    let deep = |levels: usize| {
        let text = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        format!(r#"{{"table":"notes","fields":{{"a":{text}}}}}"#).into_bytes()
    };
    let fields = |text: &str| format!(r#"{{"table":"notes","fields":{text}}}"#).into_bytes();
    let not_utf8 = [
        &b"{\"table\":\"notes\",\"fields\":{\"a\":\"\xff\"}}"[..],
        b"",
    ]
    .concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("no JSON", b"table=notes".to_vec()),
        ("half of it", br#"{"table":"notes","fields":{"#.to_vec()),
        (
            "more after it",
            br#"{"table":"notes","fields":{}}{}"#.to_vec(),
        ),
        ("a list", b"[]".to_vec()),
        ("null", b"null".to_vec()),
        ("not UTF-8", not_utf8),
        (
            "a byte order mark",
            [&b"\xef\xbb\xbf"[..], &fields("{}")].concat(),
        ),
        (
            "UTF-16",
            "{\"table\""
                .encode_utf16()
                .flat_map(u16::to_be_bytes)
                .collect(),
        ),
        ("half a surrogate", fields(r#"{"a":"\ud800"}"#)),
        ("too deep", deep(101)),
        ("far too deep", deep(500_000)),
        ("deeper than a value", deep(70)),
        ("a comment", b"{/* */}".to_vec()),
        (
            "a trailing comma",
            br#"{"table":"notes","fields":{},}"#.to_vec(),
        ),
        ("NaN", fields(r#"{"a":NaN}"#)),
        ("a number too large", fields(r#"{"a":1e999}"#)),
        ("an inexact integer", fields(r#"{"a":9007199254740993}"#)),
        ("a repeated key", fields(r#"{"a":1,"a":2}"#)),
        (
            "a repeated field",
            br#"{"table":"notes","table":"notes","fields":{}}"#.to_vec(),
        ),
        (
            "an unknown field",
            br#"{"table":"notes","fields":{},"id":"x"}"#.to_vec(),
        ),
        ("no table", br#"{"fields":{}}"#.to_vec()),
        ("no fields", br#"{"table":"notes"}"#.to_vec()),
        ("fields that are a list", fields("[]")),
        (
            "a reserved table",
            br#"{"table":"_notes","fields":{}}"#.to_vec(),
        ),
        (
            "a table with a slash",
            br#"{"table":"a/b","fields":{}}"#.to_vec(),
        ),
        ("an id of one's own", fields(r#"{"_id":"x"}"#)),
        (
            "a creation time of one's own",
            fields(r#"{"_creationTime":1}"#),
        ),
        ("a reserved field", fields(r#"{"_x":1}"#)),
        ("a field with a dollar", fields(r#"{"$x":1}"#)),
    ];
    for (name, body) in &cases {
        let reply = world.send(name, &world.post(JSON, body));
        let error = reply.refused(400, "op.invalid_input").error();
        let message = error["message"].as_str().unwrap();
        assert!(
            message.len() < 1_000,
            "{name}: {} bytes of message",
            message.len()
        );
        assert_eq!(error["retryable"], false, "{name}");
    }
    world.check();
}

#[test]
fn what_is_too_large_is_refused_by_name() {
    let world = world();
    let limit = 8 << 20;
    let large = vec![b' '; limit + 1];
    let declared = format!(
        "POST {DOCUMENTS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{JSON}\
         Connection: close\r\nContent-Length: 99999999999\r\n\r\n",
        world.token
    );
    let mut chunked = format!(
        "POST {DOCUMENTS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{JSON}\
         Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
        world.token
    )
    .into_bytes();
    for _ in 0..=(limit >> 16) {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&vec![b' '; 0x10000]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let many = "X-Many: 1\r\n".repeat(80);
    let wide = format!("X-Wide: {}\r\n", "v".repeat(40_000));
    let long = format!("/api/tenants?{}", "q".repeat(9_000));
    let document = format!(
        r#"{{"table":"notes","fields":{{"a":"{}"}}}}"#,
        "x".repeat(1 << 20)
    );
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("a large body", world.post(JSON, &large), 413, "body_bytes"),
        (
            "a large declared body",
            declared.into_bytes(),
            413,
            "body_bytes",
        ),
        ("a large chunked body", chunked, 413, "body_bytes"),
        (
            "many headers",
            world.request("GET", "/api/tenants", &many, b""),
            431,
            "headers",
        ),
        (
            "wide headers",
            world.request("GET", "/api/tenants", &wide, b""),
            431,
            "header_bytes",
        ),
        (
            "a long path",
            world.request("GET", &long, "", b""),
            414,
            "uri_bytes",
        ),
    ];
    for (name, request, status, cap) in &cases {
        let reply = world.send(name, request);
        let error = reply.refused(*status, "op.cap_exceeded").error();
        let detail = &error["detail"];
        assert_eq!(detail["cap"], *cap, "{name}: {error}");
        let number = |field: &str| detail[field].as_u64().unwrap_or_else(|| panic!("{error}"));
        assert!(number("observed") > number("limit"), "{name}: {error}");
    }
    // A document has a limit below that of a body.
    let reply = world.send("a large document", &world.post(JSON, document.as_bytes()));
    let message = reply.refused(400, "op.invalid_input").error()["message"].to_string();
    assert!(message.contains("1048576"), "{message}");
    world.check();
}

#[test]
fn credentials_that_leave_room_for_doubt_are_refused() {
    let world = world();
    let right = format!("Authorization: Bearer {}\r\n", world.token);
    let header = format!("X-Nimbus-Admin-Token: {}\r\n", world.token);
    let other = format!("nimbus_at_{}", "A".repeat(43));
    let cases: Vec<(&str, String, u16)> = vec![
        ("bearer", right.clone(), 200),
        (
            "a scheme in other case",
            right.replace("Bearer", "bEARER"),
            200,
        ),
        ("header", header.clone(), 200),
        ("both right", format!("{right}{header}"), 200),
        ("none", String::new(), 401),
        ("the right one twice", right.repeat(2), 401),
        ("the header twice", header.repeat(2), 401),
        (
            "a right and a wrong bearer",
            format!("{right}Authorization: Bearer {other}\r\n"),
            401,
        ),
        (
            "a wrong header beside a right bearer",
            format!("{right}X-Nimbus-Admin-Token: {other}\r\n"),
            401,
        ),
        ("another scheme", right.replace("Bearer", "Basic"), 401),
        ("no scheme", right.replace("Bearer ", ""), 401),
        (
            "an empty bearer",
            "Authorization: Bearer \r\n".to_owned(),
            401,
        ),
        (
            "an empty header",
            "X-Nimbus-Admin-Token: \r\n".to_owned(),
            401,
        ),
        (
            "one byte less",
            format!("Authorization: Bearer {}\r\n", &world.token[..52]),
            401,
        ),
        (
            "one byte more",
            format!("Authorization: Bearer {}A\r\n", world.token),
            401,
        ),
        ("in the query", String::new(), 401),
        (
            "as a cookie",
            format!("Cookie: nimbus_session={}\r\n", world.token),
            401,
        ),
    ];
    for (name, headers, status) in &cases {
        let query = if *name == "in the query" {
            format!("?token={}", world.token)
        } else {
            String::new()
        };
        let request = format!(
            "GET /api/tenants{query} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"
        );
        let reply = world.send(name, request.as_bytes());
        if *status == 200 {
            assert_eq!(reply.status, 200, "{name}: {}", reply.text());
        } else {
            assert_eq!(reply.status, 401, "{name}: {}", reply.text());
            assert!(reply.header("www-authenticate").is_some(), "{name}");
            reply.refused(401, "auth.unauthorized");
        }
    }
    world.check();
}

#[test]
fn types_methods_routes_and_paths_are_checked() {
    let world = world();
    let body = br#"{"table":"notes","fields":{}}"#;
    let foreign = format!("{JSON}Origin: https://evil.example\r\n");
    let gzip = format!("{JSON}Content-Encoding: gzip\r\n");
    let two = format!("{JSON}Content-Type: text/plain\r\n");
    let get = |path: &str| world.request("GET", path, "", b"");
    let invalid = "op.invalid_input";
    let absent = "service.route_not_found";
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("no content type", world.post("", body), 415, invalid),
        (
            "text",
            world.post("Content-Type: text/plain\r\n", body),
            415,
            invalid,
        ),
        (
            "a form",
            world.post("Content-Type: application/x-www-form-urlencoded\r\n", body),
            415,
            invalid,
        ),
        (
            "latin-1",
            world.post("Content-Type: application/json; charset=latin1\r\n", body),
            415,
            invalid,
        ),
        ("two types", world.post(&two, body), 415, invalid),
        ("compressed", world.post(&gzip, body), 415, invalid),
        (
            "a foreign page",
            world.post(&foreign, body),
            403,
            "auth.forbidden",
        ),
        (
            "an expectation",
            world.post(&format!("{JSON}Expect: coffee\r\n"), body),
            417,
            invalid,
        ),
        (
            "a wrong method",
            world.request("PUT", DOCUMENTS, JSON, body),
            405,
            invalid,
        ),
        (
            "TRACE",
            world.request("TRACE", DOCUMENTS, "", b""),
            405,
            invalid,
        ),
        (
            "an unknown method",
            world.request("BREW", DOCUMENTS, "", b""),
            405,
            invalid,
        ),
        ("an unknown route", get("/api/nothing"), 404, absent),
        ("an open unknown route", get("/nothing"), 404, absent),
        (
            "a later version's route",
            get("/api/tenants/acme/crons"),
            404,
            absent,
        ),
        ("the console", get("/ui/"), 404, absent),
        ("a slash at the end", get("/api/tenants/"), 404, absent),
        (
            "an escaped slash",
            get("/api/tenants/a%2fb/schema"),
            400,
            invalid,
        ),
        ("a NUL", get("/api/tenants/a%00b/schema"), 400, invalid),
        ("not UTF-8", get("/api/tenants/%ff/schema"), 400, invalid),
        ("a way up", get("/api/tenants/../tenants"), 400, invalid),
        (
            "an escaped way up",
            get("/api/tenants/%2e%2e/tenants"),
            400,
            invalid,
        ),
        (
            "half an escape",
            get("/api/tenants/%4/schema"),
            400,
            invalid,
        ),
        (
            "a reserved tenant",
            get("/api/tenants/_nimbus/schema"),
            400,
            invalid,
        ),
        (
            "a long tenant",
            get(&format!("/api/tenants/{}/schema", "x".repeat(129))),
            400,
            invalid,
        ),
        (
            "an unknown tenant",
            get("/api/tenants/none/schema"),
            404,
            "session.tenant_not_found",
        ),
        (
            "an unknown schema",
            get("/api/tenants/acme/schema/none"),
            404,
            "op.schema_not_found",
        ),
        (
            "a reserved table",
            get("/api/tenants/acme/documents/_x"),
            400,
            invalid,
        ),
        (
            "a malformed id",
            get("/api/tenants/acme/documents/notes/1"),
            400,
            invalid,
        ),
        (
            "an unknown parameter",
            get("/api/tenants/acme/journal?x=1"),
            400,
            invalid,
        ),
        (
            "a limit of 0",
            get("/api/tenants/acme/journal?limit=0"),
            400,
            invalid,
        ),
        (
            "a limit beyond the cap",
            get("/api/tenants/acme/journal?limit=1001"),
            400,
            "op.cap_exceeded",
        ),
        (
            "a position beyond the end",
            get("/api/tenants/acme/journal?after=99"),
            400,
            invalid,
        ),
    ];
    for (name, request, status, code) in cases {
        let reply = world.send(name, &request);
        assert_eq!(reply.status, status, "{name}: {}", reply.text());
        if status == 405 {
            let allow = reply
                .header("allow")
                .unwrap_or_else(|| panic!("{name}: no Allow"));
            assert!(allow.contains("POST"), "{name}: {allow}");
        }
        let found = reply.error()["code"].clone();
        assert_eq!(found, code, "{name}: {}", reply.text());
    }
    world.check();
}

#[test]
fn a_body_that_ends_early_changes_nothing() {
    let world = world();
    let before = world.client.journal_head("acme");
    let whole = world.post(JSON, br#"{"table":"notes","fields":{"text":"half"}}"#);
    for cut in [1, 20, 42] {
        let mut connection = Connection::open(world.address());
        connection.send(&whole[..whole.len() - cut]).finish();
        // The client has gone, so an answer is possible but not owed.
        if let Some(reply) = connection.reply() {
            reply.refused(400, "op.invalid_input");
        }
    }
    // A chunk that is none.
    let chunked = format!(
        "POST {DOCUMENTS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{JSON}\
         Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n",
        world.token
    );
    world
        .send("a broken chunk", chunked.as_bytes())
        .refused(400, "op.invalid_input");
    assert_eq!(world.client.journal_head("acme"), before);
    world.check();
    // A whole body in chunks is as good as any.
    let good = chunked.replace(
        "zz\r\n{}\r\n0\r\n\r\n",
        "1c\r\n{\"table\":\"things\",\"fields\":{\r\n2\r\n}}\r\n0\r\n\r\n",
    );
    raw::exchange(world.address(), good.as_bytes())
        .unwrap()
        .expect(201);
    assert_eq!(world.client.journal_head("acme"), before + 1);
}

#[test]
fn what_is_not_http_gets_a_refusal_and_harms_nobody() {
    let world = world();
    let smuggled = format!(
        "POST {DOCUMENTS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{JSON}\
         Content-Length: 4\r\nContent-Length: 44\r\nConnection: close\r\n\r\n",
        world.token
    );
    let hello = [
        &[0x16, 0x03, 0x01, 0x02, 0x00][..],
        &[0x41; 600],
        b"\r\n\r\n",
    ]
    .concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no request line", b"hello\r\n\r\n".to_vec()),
        (
            "a bad method",
            b"G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        ),
        (
            "a bad version",
            b"GET / HTTP/9.9\r\nHost: a\r\n\r\n".to_vec(),
        ),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("TLS", hello),
        (
            "a header without colon",
            b"GET /health HTTP/1.1\r\nHost a\r\n\r\n".to_vec(),
        ),
        (
            "a NUL in a header",
            b"GET /health HTTP/1.1\r\nHost: a\0b\r\n\r\n".to_vec(),
        ),
        (
            "no host",
            b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n".to_vec(),
        ),
        (
            "two hosts",
            b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n".to_vec(),
        ),
        ("two lengths", smuggled.into_bytes()),
        (
            "a bad length",
            b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_vec(),
        ),
        (
            "a header of a megabyte",
            [
                &b"GET /health HTTP/1.1\r\nX: "[..],
                &vec![b'x'; 1 << 20],
                b"\r\n\r\n",
            ]
            .concat(),
        ),
    ];
    for (name, request) in cases {
        let before = world.client.journal_head("acme");
        // What the parser refuses has no request id and gets a bare status, or the connection ends.
        if let Some(reply) = raw::exchange(world.address(), &request) {
            assert!(
                matches!(reply.status, 400 | 431 | 505),
                "{name}: {}",
                reply.status
            );
            if !reply.body.is_empty() {
                reply.error();
            }
        }
        assert_eq!(world.client.journal_head("acme"), before, "{name}");
    }
    world.check();
}
