//! The edge over the wire: bounds, CORS, Origin, Host, headers, request ids, tricky paths.

use std::time::Duration;

use nimbus_http::ServerConfig;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Answer, Ask, Fixture};

#[tokio::test]
async fn every_answer_has_the_security_headers_and_its_own_request_id() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let mut ids = std::collections::BTreeSet::new();
    for ask in [
        Ask::get("/health"),
        Ask::get("/nope"),
        Ask::get("/api/tenants"),
        Ask::get("/api/tenants").bearer(&fixture.token),
        Ask::get("/api/tenants")
            .bearer(&fixture.token)
            .header("origin", "https://evil.example"),
        Ask::new("PUT", "/api/tenants").bearer(&fixture.token),
        Ask::get("/metrics").bearer(&fixture.token),
        Ask::get("/health").header("x-request-id", "mine"),
        Ask::new("OPTIONS", "/api/tenants")
            .header("origin", "http://localhost:1")
            .header("access-control-request-method", "GET"),
    ] {
        let answer = fixture.send(ask).await;
        assert_eq!(
            answer.header("x-content-type-options"),
            Some("nosniff"),
            "{answer:?}"
        );
        assert_eq!(answer.header("x-frame-options"), Some("DENY"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(
            answer.header("content-security-policy"),
            Some("default-src 'none'; frame-ancestors 'none'")
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("server"), None);
        assert_eq!(answer.request_id().len(), 26, "{answer:?}");
        assert!(ids.insert(answer.request_id().to_owned()), "{answer:?}");
    }
}

#[tokio::test]
async fn requests_beyond_the_bounds() {
    let fixture = Fixture::start().await;
    let long = format!("/api/tenants/{}", "a".repeat(8 * 1024));
    let detail = fixture
        .send(Ask::get(&long))
        .await
        .expect_error(414, "op.cap_exceeded");
    assert_eq!(
        (&detail["cap"], &detail["limit"]),
        (&json!("uri_bytes"), &json!(8192))
    );
    let wide = Ask::get("/health").header("x-wide", &"v".repeat(33 * 1024));
    let detail = fixture
        .send(wide)
        .await
        .expect_error(431, "op.cap_exceeded");
    assert_eq!(detail["cap"], "header_bytes");
    let many = (0..70).fold(Ask::get("/health"), |ask, n| {
        ask.header(&format!("x-{n}"), "v")
    });
    assert_eq!(
        fixture
            .send(many)
            .await
            .expect_error(431, "op.cap_exceeded")["cap"],
        "headers"
    );
    // Far beyond, the HTTP library refuses by itself, without an envelope.
    let many = (0..500).fold(Ask::get("/health"), |ask, n| {
        ask.header(&format!("x-{n}"), "v")
    });
    assert_eq!(fixture.send(many).await.status, 431);
    fixture
        .send(Ask::get("/health").header("expect", "coffee"))
        .await
        .expect_error(417, "op.invalid_input");
    for hosts in ["", "host: a\r\nhost: b\r\n"] {
        let raw = format!("GET /health HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        fixture
            .raw(raw.as_bytes())
            .await
            .expect_error(400, "op.invalid_input");
    }
    for raw in [
        "GET /health HTTP/1.1\r\nbad header\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET /health HTTP/9.9\r\nhost: a\r\n\r\n",
    ] {
        assert_eq!(fixture.raw(raw.as_bytes()).await.status, 400, "{raw}");
    }
    let smuggled = "POST /health HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n";
    let answer = fixture.raw(smuggled.as_bytes()).await;
    assert!([400, 405].contains(&answer.status), "{answer:?}");
    assert_eq!(fixture.send(Ask::get("/health")).await.status, 200);
}

#[tokio::test]
async fn expect_continue_is_answered() {
    let fixture = Fixture::start().await;
    let body = r#"{"id":"acme"}"#;
    let head = format!(
        "POST /api/tenants HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        fixture.token,
        body.len()
    );
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let interim = Answer::read(&mut stream, false).await;
    assert_eq!(interim.status, 100);
    stream.write_all(body.as_bytes()).await.unwrap();
    assert_eq!(Answer::read(&mut stream, false).await.status, 201);
}

#[tokio::test]
async fn approved_origins_get_cors_answers() {
    let mut config = ServerConfig::default();
    config.cors_allow_origins = vec!["https://app.example".into()];
    let fixture = Fixture::start_with(config).await;
    let before = fixture.audit().len();
    for origin in [
        "http://localhost:3000",
        "https://127.0.0.1",
        "http://[::1]:8080",
        "https://app.example",
    ] {
        for path in [
            "/api/tenants",
            "/debug/license/status",
            "/health",
            "/convex/demo/query",
        ] {
            let preflight = Ask::new("OPTIONS", path)
                .header("origin", origin)
                .header("access-control-request-method", "DELETE")
                .header("access-control-request-headers", "x-nimbus-admin-token");
            let answer = fixture.send(preflight).await;
            assert_eq!(answer.status, 200, "{origin} {path}: {answer:?}");
            assert_eq!(answer.body, "");
            assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
            assert_eq!(
                answer.header("access-control-allow-methods"),
                Some("GET,POST,PUT,PATCH,DELETE,OPTIONS")
            );
            let headers = answer.header("access-control-allow-headers").unwrap();
            for name in [
                "accept",
                "authorization",
                "content-type",
                "x-nimbus-admin-token",
            ] {
                assert!(headers.split(',').any(|found| found == name), "{headers}");
            }
            assert_eq!(answer.header("access-control-allow-credentials"), None);
        }
    }
    // A preflight carries no credential and decides nothing, so it leaves no line.
    assert_eq!(fixture.audit().len(), before);

    let ask = Ask::get("/api/tenants")
        .header("origin", "https://app.example")
        .bearer(&fixture.token);
    let answer = fixture.send(ask).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    assert_eq!(
        answer.header("access-control-expose-headers"),
        Some("x-request-id,retry-after")
    );
    // The page may read the refusal too.
    let answer = fixture
        .send(Ask::get("/api/tenants").header("origin", "https://app.example"))
        .await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (401, Some("https://app.example"))
    );
    // OPTIONS that is no preflight reaches the gate.
    let answer = fixture
        .send(Ask::new("OPTIONS", "/api/tenants").header("origin", "https://app.example"))
        .await;
    answer.expect_error(401, "auth.unauthorized");
    // Open surfaces answer a foreign origin, without approval.
    let answer = fixture
        .send(Ask::get("/health").header("origin", "https://evil.example"))
        .await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, None)
    );
    let twice = Ask::get("/api/tenants")
        .bearer(&fixture.token)
        .header("origin", "https://app.example");
    let answer = fixture
        .send(twice.header("origin", "https://app.example"))
        .await;
    answer.expect_error(403, "auth.forbidden");
}

#[tokio::test]
async fn the_console_answers_to_its_own_names_only() {
    let mut config = ServerConfig::default();
    config.tenant_domain = Some("tenants.example".into());
    config.allowed_hosts = vec!["nimbus.internal".into()];
    let fixture = Fixture::start_with(config).await;
    let ask = |path: &str, host: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
    };
    for host in [
        "localhost:1",
        "127.0.0.1",
        "a.tenants.example",
        "nimbus.internal:80",
    ] {
        let answer = fixture.raw(ask("/ui/", host).as_bytes()).await;
        answer.expect_error(404, "service.route_not_found");
    }
    for host in ["evil.example", "tenants.example.evil", "10.0.0.1"] {
        fixture
            .raw(ask("/ui/", host).as_bytes())
            .await
            .expect_error(403, "auth.forbidden");
        // Elsewhere the name does not matter: reverse proxies pass on their own.
        assert_eq!(
            fixture.raw(ask("/health", host).as_bytes()).await.status,
            200
        );
    }
    let foreign = Ask::get("/ui/").header("origin", "https://evil.example");
    fixture
        .send(foreign)
        .await
        .expect_error(403, "auth.forbidden");
}

#[tokio::test]
async fn disguised_paths_do_not_pass_the_gate() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    for target in [
        "//api/tenants",
        "/./api/tenants",
        "/x/../api/tenants",
        "/API/tenants",
        "/%61pi/tenants",
        "/%2561pi/tenants",
        "/api%2ftenants",
        "/%2fapi/tenants",
        "/api;x/tenants",
        "/api/tenants/",
        "/health/../api/tenants",
        "/debug/../api/tenants",
        "http://localhost/api/tenants",
        "http://evil.example/api/tenants",
        "/convex/../api/tenants",
        "/api/tenants/demo/%2e%2e",
    ] {
        let answer = fixture.send(Ask::get(target)).await;
        answer.expect_error(401, "auth.unauthorized");
    }
    // With the token, ambiguous paths are refused and the others are plain.
    for (target, status) in [
        ("/x/../api/tenants", 400),
        ("/api%2ftenants", 400),
        ("/api/tenants/%00", 400),
        ("/api/tenants/%zz", 400),
        ("//api/tenants", 404),
        ("/%61pi/tenants", 404),
        ("http://localhost/api/tenants", 200),
        ("/api/tenants", 200),
    ] {
        let answer = fixture.admin(Ask::get(target)).await;
        assert_eq!(answer.status, status, "{target}: {answer:?}");
    }
    for target in ["/x/../health", "*"] {
        let answer = fixture.send(Ask::get(target)).await;
        answer.expect_error(400, "op.invalid_input");
    }
    let answer = fixture.send(Ask::get("/convex/%2e%2e/x")).await;
    answer.expect_convex(400, "BadRequest");
}

#[tokio::test]
async fn a_host_that_is_none_is_refused_on_every_surface() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let before = fixture.state().await;
    let hosts = [
        "a b",
        "",
        "a,b",
        "localhost, evil.example",
        "user@localhost",
        "localhost:x",
        "localhost:65536",
        "localhost/x",
        "localhost#x",
        "[::1",
        "::1",
        "%6cocalhost",
        "h\u{f6}st",
    ];
    let paths = [
        "/health",
        "/nope",
        "/convex/demo/query",
        "/ui/",
        "/api/tenants",
        "/debug/license/status",
        "/metrics",
        "/openapi.json",
        "/ws",
    ];
    for path in paths {
        for host in hosts {
            for credential in ["", &format!("authorization: Bearer {}\r\n", fixture.token)] {
                let raw = format!(
                    "GET {path} HTTP/1.1\r\nhost: {host}\r\n{credential}connection: close\r\n\r\n"
                );
                let answer = fixture.raw(raw.as_bytes()).await;
                assert_eq!(answer.status, 400, "{host:?} {path}: {answer:?}");
                match path.starts_with("/convex/") {
                    true => drop(answer.expect_convex(400, "BadRequest")),
                    false => drop(answer.expect_error(400, "op.invalid_input")),
                }
            }
        }
    }
    // The same in a target that names a host; HTTP/1.0 needs none.
    for target in ["http://user@localhost/health", "http://localhost:x/health"] {
        let raw = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = fixture.raw(raw.as_bytes()).await;
        answer.expect_error(400, "op.invalid_input");
    }
    for host in [
        "localhost",
        "a.example:80",
        "127.0.0.1:1",
        "[::1]:1",
        "a_b.",
    ] {
        let raw = format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(fixture.raw(raw.as_bytes()).await.status, 200, "{host}");
    }
    let old = fixture.raw(b"GET /health HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.status, 200);
    assert_eq!(fixture.state().await, before);
}

#[tokio::test]
async fn connections_are_kept_and_pipelined_requests_answered_in_order() {
    let fixture = Fixture::start().await;
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    let ask = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    for _ in 0..3 {
        stream.write_all(ask.as_bytes()).await.unwrap();
        assert_eq!(Answer::read(&mut stream, false).await.status, 200);
    }
    drop(stream);
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    let both = format!("{ask}GET /api/tenants HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(both.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (first, second) = (
        text.find("200 OK").unwrap(),
        text.find("401 Unauthorized").unwrap(),
    );
    assert!(first < second, "{text}");
}

#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let mut config = ServerConfig::default();
    config.head_timeout = Duration::from_millis(200);
    let fixture = Fixture::start_with(config).await;
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\nx-")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let closing = stream.read_to_end(&mut rest);
    tokio::time::timeout(Duration::from_secs(30), closing)
        .await
        .expect("the connection stays open")
        .ok();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let mut config = ServerConfig::default();
    config.max_connections = 2;
    let fixture = Fixture::start_with(config).await;
    let ask = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(fixture.address).await.unwrap();
        stream.write_all(ask).await.unwrap();
        assert_eq!(Answer::read(&mut stream, false).await.status, 200);
        held.push(stream);
    }
    let mut third = TcpStream::connect(fixture.address).await.unwrap();
    let _ = third.write_all(ask).await;
    let mut bytes = Vec::new();
    let _ = third.read_to_end(&mut bytes).await;
    assert!(bytes.is_empty(), "{}", String::from_utf8_lossy(&bytes));
    // A closed one makes room.
    drop(held.pop());
    loop {
        let mut stream = TcpStream::connect(fixture.address).await.unwrap();
        let _ = stream.write_all(ask).await;
        let mut first = [0; 12];
        if stream.read_exact(&mut first).await.is_ok() {
            assert_eq!(&first, b"HTTP/1.1 200");
            break;
        }
        tokio::task::yield_now().await;
    }
}
