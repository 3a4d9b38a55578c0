//! What surrounds the streams: routes, credentials, namespaces and their admin API.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use super::{execute, world};

#[test]
fn routes_of_both_versions_are_there_and_no_others() {
    let world = world(|_| {});
    for (call, expected) in [
        ("GET /health", 200),
        ("GET /version", 200),
        ("GET /v2", 200),
        ("GET /v3", 200),
        ("GET /v3-protobuf", 404),
        ("POST /v3-protobuf/pipeline", 404),
        ("POST /v2/cursor", 404),
        ("GET /v2/pipeline", 405),
        ("POST /v2", 405),
        ("GET /v1/namespaces", 404),
    ] {
        let (method, path) = call.split_once(' ').unwrap();
        let call = format!("{method} {}{path}", world.primary.url());
        assert_eq!(world.send(&call, &[], b"").unwrap().0, expected, "{call}");
    }
}

#[test]
fn a_body_is_bounded_and_json() {
    let world = world(|options| options.max_body = 1_000);
    let call = format!("POST {}/v2/pipeline", world.primary.url());
    let fits = format!("{:<1000}", json!({ "requests": [] }).to_string());
    assert_eq!(world.send(&call, &[], fits.as_bytes()).unwrap().0, 200);
    assert_eq!(
        world
            .send(&call, &[], format!("{fits} ").as_bytes())
            .unwrap()
            .0,
        413
    );
    for bad in ["", "[]", r#"{"requests":[{"type":"unknown"}]}"#] {
        let (status, text) = world.send(&call, &[], bad.as_bytes()).unwrap();
        assert_eq!(status, 400);
        assert!(text.starts_with(r#"{"error":"#), "{text}");
    }
}

#[test]
fn a_token_is_asked_for() {
    let world = world(|options| options.auth_token = Some("secret".to_owned()));
    let body = json!({ "requests": [] });
    for (header, expected) in [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("Bearer other", 401),
        ("Bearer", 401),
        ("secret", 401),
        ("Basic secret", 401),
    ] {
        let (status, _) = world.post("/v2/pipeline", &[("authorization", header)], &body);
        assert_eq!(status, expected, "{header}");
    }
    let (status, answer) = world.post("/v2/pipeline", &[], &body);
    assert_eq!((status, &answer["error"]), (401, &json!("Unauthorized")));
}

#[test]
fn a_namespace_is_chosen_by_header_and_by_host() {
    let world = world(|_| {});
    for name in ["a-b", "a_b"] {
        assert_eq!(world.create(name), (200, String::new()));
    }
    let file = |headers: &[(&str, &str)]| {
        let body = json!({ "requests": [execute(json!("PRAGMA database_list"))] });
        let (status, answer) = world.post("/v2/pipeline", headers, &body);
        let path = &answer["results"][0]["response"]["result"]["rows"][0][2]["value"];
        let path = path.as_str().unwrap_or_default().to_owned();
        let name = path
            .rsplit('/')
            .next()
            .unwrap()
            .trim_end_matches(".sqlite3")
            .to_owned();
        (
            status,
            if status == 200 {
                name
            } else {
                answer["error"].to_string()
            },
        )
    };
    for (host, expected) in [
        ("a-b.db.example:8080", "a-b"),
        ("a_b.localhost", "a_b"),
        ("localhost:8080", "default"),
        ("127.0.0.1:8080", "default"),
        ("[::1]:8080", "default"),
    ] {
        assert_eq!(
            file(&[("host", host)]),
            (200, expected.to_owned()),
            "{host}"
        );
        assert_eq!(
            file(&[("host", host), ("x-namespace", "a_b")]),
            (200, "a_b".to_owned())
        );
    }
    let missing = |name: &str| (404, format!("\"Namespace `{name}` doesn't exist\""));
    assert_eq!(file(&[("x-namespace", "nobody")]), missing("nobody"));
    assert_eq!(file(&[("host", "nobody.db.example")]), missing("nobody"));
    assert_eq!(
        file(&[("x-namespace", "../default")]),
        missing("../default")
    );
}

#[test]
fn a_request_without_a_host_has_no_namespace() {
    let world = world(|_| {});
    let address = world.primary.url().replace("http://", "");
    for (header, expected) in [("", "400"), ("x-namespace: default\r\n", "200")] {
        let mut stream = TcpStream::connect(&address).unwrap();
        let body = r#"{"requests":[]}"#;
        let length = body.len();
        let head = format!("POST /v2/pipeline HTTP/1.0\r\n{header}content-length: {length}");
        stream
            .write_all(format!("{head}\r\n\r\n{body}").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(expected), "{answer}");
    }
}

#[test]
fn namespaces_are_made_and_deleted() {
    let world = world(|_| {});
    assert_eq!(world.create("one").0, 200);
    let (status, text) = world.create("one");
    assert!(status == 400 && text.contains("already exists"), "{text}");
    let (long, longer) = ("x".repeat(63), "x".repeat(64));
    assert_eq!(world.create(&long).0, 200);
    for bad in [&*longer, "a.b", "a%2Fb", "%00"] {
        assert_eq!(world.create(bad).0, 400, "{bad}");
    }
    let one = [("x-namespace", "one")];
    let create = json!({ "requests": [execute(json!("CREATE TABLE t (k)"))] });
    let (_, answer) = world.post("/v2/pipeline", &one, &create);
    let baton = answer["baton"].as_str().unwrap();
    assert_eq!(
        world.admin("GET", "/v1/namespaces/one/config", &[], "").0,
        200
    );
    assert_eq!(
        world.admin("DELETE", "/v1/namespaces/one", &[], ""),
        (200, String::new())
    );
    assert_eq!(world.primary.open_streams(), 0);
    assert_eq!(world.admin("DELETE", "/v1/namespaces/one", &[], "").0, 404);
    assert_eq!(
        world.admin("GET", "/v1/namespaces/one/config", &[], "").0,
        404
    );
    let more = json!({ "baton": baton, "requests": [] });
    assert_eq!(world.post("/v2/pipeline", &one, &more).0, 404);
    // The next one of that name is empty and knows nothing of old streams.
    assert_eq!(world.create("one").0, 200);
    let (status, answer) = world.post("/v2/pipeline", &one, &more);
    assert_eq!((status, &answer["code"]), (400, &json!("BATON_INVALID")));
    let (_, answer) = world.post("/v2/pipeline", &one, &create);
    assert_eq!(answer["results"][0]["type"], "ok");
}

#[test]
fn the_admin_api_is_strict_about_what_it_is_sent() {
    let world = world(|options| options.admin_auth_header = Some("basic Zm9v".to_owned()));
    let create = "/v1/namespaces/n/create";
    let auth = ("authorization", "basic Zm9v");
    let kind = ("content-type", "application/json");
    for (method, path, headers, body, expected) in [
        ("POST", create, &[kind][..], "{}", 401),
        (
            "POST",
            create,
            &[("authorization", "Basic Zm9v"), kind],
            "{}",
            401,
        ),
        ("GET", "/v1/namespaces/default/config", &[], "", 401),
        ("DELETE", "/v1/namespaces/default", &[], "", 401),
        ("POST", create, &[auth], "{}", 415),
        ("POST", create, &[auth, kind], "", 400),
        (
            "POST",
            create,
            &[auth, kind],
            r#"{"dump_url":"file:x"}"#,
            400,
        ),
        ("GET", "/v1/namespaces", &[auth], "", 404),
        ("GET", create, &[auth], "", 405),
        ("POST", "/v1/namespaces/n/fork/m", &[auth, kind], "{}", 404),
        ("DELETE", "/v1/namespaces/n", &[auth], "", 404),
        ("POST", create, &[auth, kind], "{}", 200),
        ("DELETE", "/v1/namespaces/n", &[auth], "", 200),
    ] {
        let (status, text) = world.admin(method, path, headers, body);
        assert_eq!(status, expected, "{method} {path} {headers:?}: {text}");
    }
}
