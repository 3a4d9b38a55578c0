//! Every route of the table, with every method, as every kind of caller.
//!
//! The table is the crate's own, so a new route is driven the day it is added. Nothing here may
//! list routes by hand but the exceptions that it explains.

use std::collections::{BTreeMap, BTreeSet};

use nimbus_auth::TokenFile;
use nimbus_http::{RouteClass, RouteInfo, ServerConfig, route_table};
use serde_json::{Value as Json, json};

use crate::harness::{Answer, Ask, Fixture};

const METHODS: [&str; 8] = [
    "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "TRACE", "OPTIONS",
];

/// How a caller presents itself; `{}` stands for the right token.
struct Caller {
    name: &'static str,
    headers: &'static [(&'static str, &'static str)],
    /// Word for the credential in the audit log; empty for none.
    method: &'static str,
    /// Why it is refused; empty when it is let in.
    reason: &'static str,
}

const WRONG: &str = "nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[rustfmt::skip] // a table
const REFUSED: &[Caller] = &[
    Caller { name: "anonymous", headers: &[], method: "", reason: "auth.credential_missing" },
    Caller { name: "wrong token", headers: &[("authorization", "Bearer nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
    Caller { name: "wrong header token", headers: &[("x-nimbus-admin-token", "nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")], method: "local_admin_header", reason: "auth.credential_wrong" },
    Caller { name: "right token, more behind it", headers: &[("authorization", "Bearer {}x")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
    Caller { name: "right token without scheme", headers: &[("authorization", "{}")], method: "local_admin_bearer", reason: "auth.credential_scheme" },
    Caller { name: "another scheme", headers: &[("authorization", "Basic {}")], method: "local_admin_bearer", reason: "auth.credential_scheme" },
    Caller { name: "scheme alone", headers: &[("authorization", "Bearer")], method: "local_admin_bearer", reason: "auth.credential_empty" },
    Caller { name: "empty", headers: &[("authorization", "")], method: "local_admin_bearer", reason: "auth.credential_empty" },
    Caller { name: "empty header", headers: &[("x-nimbus-admin-token", "")], method: "local_admin_header", reason: "auth.credential_empty" },
    Caller { name: "two words", headers: &[("authorization", "Bearer {} {}")], method: "local_admin_bearer", reason: "auth.credential_malformed" },
    Caller { name: "right twice", headers: &[("authorization", "Bearer {}"), ("authorization", "Bearer {}")], method: "local_admin_bearer", reason: "auth.credential_malformed" },
    Caller { name: "right header twice", headers: &[("x-nimbus-admin-token", "{}"), ("x-nimbus-admin-token", "{}")], method: "local_admin_header", reason: "auth.credential_malformed" },
    Caller { name: "not ASCII", headers: &[("x-nimbus-admin-token", "{}\u{e9}")], method: "local_admin_header", reason: "auth.credential_malformed" },
    Caller { name: "header wrong, bearer right", headers: &[("x-nimbus-admin-token", "nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), ("authorization", "Bearer {}")], method: "local_admin_header", reason: "auth.credential_wrong" },
    Caller { name: "token in the query and cookie", headers: &[("cookie", "nimbus_session={}")], method: "", reason: "auth.credential_missing" },
];

#[rustfmt::skip] // a table
const ADMITTED: &[Caller] = &[
    Caller { name: "bearer", headers: &[("authorization", "Bearer {}")], method: "local_admin_bearer", reason: "" },
    Caller { name: "bearer in lower case", headers: &[("authorization", "bearer {}")], method: "local_admin_bearer", reason: "" },
    Caller { name: "header", headers: &[("x-nimbus-admin-token", "{}")], method: "local_admin_header", reason: "" },
    Caller { name: "both, bearer wrong", headers: &[("x-nimbus-admin-token", "{}"), ("authorization", "Bearer nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")], method: "local_admin_header", reason: "" },
    Caller { name: "approved origin", headers: &[("origin", "http://localhost:3000"), ("authorization", "Bearer {}")], method: "local_admin_bearer", reason: "" },
];

fn ask(method: &str, path: &str, caller: &Caller, token: &str) -> Ask {
    caller
        .headers
        .iter()
        .fold(Ask::new(method, path), |ask, (name, value)| {
            ask.header(name, &value.replace("{}", token))
        })
}

/// The template with something in each brace.
fn fill(template: &str, id: &str, commit: &str) -> String {
    let parameter = |segment: &str| match segment {
        "{tenant}" => "demo".to_owned(),
        "{table}" => "tasks".to_owned(),
        "{id}" => id.to_owned(),
        "{commit}" => commit.to_owned(),
        other if other.starts_with('{') => "x1".to_owned(),
        other => other.to_owned(),
    };
    template
        .split('/')
        .map(parameter)
        .collect::<Vec<_>>()
        .join("/")
}

fn templates() -> BTreeMap<&'static str, Vec<RouteInfo>> {
    let mut by_path: BTreeMap<&'static str, Vec<RouteInfo>> = BTreeMap::new();
    for route in route_table() {
        by_path.entry(route.path).or_default().push(route);
    }
    by_path
}

/// Asserts that exactly one line tells about `answer`, without a token in it.
fn check_audit(fixture: &Fixture, answer: &Answer, what: &str) -> Json {
    let lines = fixture.audit_of(answer.request_id());
    assert_eq!(lines.len(), 1, "{what}: {lines:?}");
    let line = lines.into_iter().next().unwrap();
    assert_eq!(line["status"], answer.status, "{what}: {line}");
    assert_eq!(line["clientAddr"], "127.0.0.1", "{what}: {line}");
    let text = line.to_string();
    assert!(
        !text.contains("nimbus_at_") && !text.contains(&fixture.token),
        "{what}: {line}"
    );
    line
}

#[tokio::test]
async fn refused_callers_get_one_answer_for_every_path_and_method() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let before = fixture.state().await;
    let mut paths: Vec<String> = templates()
        .iter()
        .filter(|(_, rows)| rows[0].class != RouteClass::Open)
        .map(|(path, _)| fill(path, "k1", &"0".repeat(32)))
        .collect();
    // What does not exist must look the same.
    paths.extend(
        [
            "/api",
            "/api/",
            "/api/nothing",
            "/api/tenants/absent/documents/tasks",
            "/api/tenants/_reserved",
            "/api/tenants/a%2fb",
            "/api/tenants/../../health",
            "/API/Tenants",
            "//api/tenants",
            "/%61pi/tenants",
            "/debug/nothing",
            "/debug",
            "/metrics/x",
            "/openapi.json/x",
            "/api/tenants?token=x",
        ]
        .map(String::from),
    );
    let mut answers = BTreeSet::new();
    let (mut sent, lines_before) = (0, fixture.audit().len());
    for path in &paths {
        for method in METHODS {
            for caller in REFUSED {
                let what = format!("{method} {path} as {}", caller.name);
                let answer = fixture
                    .send(ask(method, path, caller, &fixture.token))
                    .await;
                sent += 1;
                assert_eq!(answer.status, 401, "{what}: {answer:?}");
                assert_eq!(
                    answer.header("www-authenticate"),
                    Some("Bearer realm=\"nimbus\""),
                    "{what}"
                );
                if method != "HEAD" {
                    answer.expect_error(401, "auth.unauthorized");
                    let mut error = answer.json();
                    error["error"]["requestId"] = Json::Null;
                    error["error"]["timestamp"] = Json::Null;
                    answers.insert(error.to_string());
                }
            }
        }
    }
    assert_eq!(answers.len(), 1, "the answer tells something: {answers:?}");

    let lines = fixture.audit();
    let lines = &lines[lines_before..];
    assert_eq!(lines.len(), sent);
    let mut expected = paths.iter().flat_map(|path| {
        METHODS
            .iter()
            .flat_map(move |method| REFUSED.iter().map(move |caller| (path, method, caller)))
    });
    for line in lines {
        let (path, method, caller) = expected.next().unwrap();
        let what = format!("{method} {path} as {}: {line}", caller.name);
        assert_eq!(line["success"], false, "{what}");
        assert_eq!(line["status"], 401, "{what}");
        assert_eq!(line["method"], *method, "{what}");
        assert_eq!(line["reason"], caller.reason, "{what}");
        assert_eq!(
            line["authMethod"].as_str().unwrap_or(""),
            caller.method,
            "{what}"
        );
        assert_eq!(line["authScope"], "server_access", "{what}");
        assert_eq!(line["origin"], Json::Null, "{what}");
        let text = line.to_string();
        assert!(
            !text.contains(&fixture.token) && !text.contains(WRONG),
            "{what}"
        );
        assert!(!text.contains("token="), "{what}");
    }
    assert_eq!(
        fixture.state().await,
        before,
        "a refused caller changed something"
    );
}

#[tokio::test]
async fn a_foreign_origin_is_refused_even_with_the_token() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let before = fixture.state().await;
    for (path, rows) in templates() {
        for method in METHODS {
            let what = format!("{method} {path}");
            let filled = fill(path, "k1", &"0".repeat(32));
            for origin in [
                "https://evil.example",
                "null",
                "http://localhost.evil.example",
            ] {
                let ask = Ask::new(method, &filled)
                    .header("origin", origin)
                    .bearer(&fixture.token);
                let answer = fixture.send(ask).await;
                if rows[0].class == RouteClass::Open {
                    assert!([200, 405].contains(&answer.status), "{what}: {answer:?}");
                    continue;
                }
                assert_eq!(answer.status, 403, "{what}: {answer:?}");
                assert_eq!(answer.header("access-control-allow-origin"), None, "{what}");
                if method != "HEAD" {
                    answer.expect_error(403, "auth.forbidden");
                }
                let line = check_audit(&fixture, &answer, &what);
                assert_eq!(line["success"], false, "{what}");
                assert_eq!(line["authScope"], "origin", "{what}");
                assert_eq!(line["origin"], origin, "{what}");
            }
        }
    }
    assert_eq!(fixture.state().await, before);
}

/// Puts a tenant file without a registry entry into the server's data directory.
async fn plant_orphan(fixture: &Fixture, tenant: &str) {
    let donor = Fixture::start().await;
    donor.tenant(tenant).await;
    donor.insert(tenant, "notes", json!({"kept": true})).await;
    let (dir, _) = donor.stop().await;
    let name = format!("{tenant}.sqlite3");
    std::fs::copy(
        dir.path().join("data").join(&name),
        fixture.dir.path().join("data").join(&name),
    )
    .unwrap();
}

/// Makes the state that the route's example needs, and returns the path to ask.
async fn prepare(fixture: &Fixture, route: &RouteInfo) -> String {
    let delete = |path: String| fixture.admin(Ask::new("DELETE", &path));
    match (route.method.as_str(), route.path) {
        ("POST", "/api/tenants") => {
            delete("/api/tenants/acme".into()).await;
            route.path.into()
        }
        ("DELETE", "/api/tenants/{tenant}") => {
            delete("/api/tenants/doomed".into()).await;
            fixture.tenant("doomed").await;
            "/api/tenants/doomed".into()
        }
        ("POST", "/api/tenants/{tenant}/adopt") => {
            delete("/api/tenants/orphan".into()).await;
            plant_orphan(fixture, "orphan").await;
            "/api/tenants/orphan/adopt".into()
        }
        _ => {
            // The example is the schema of the table `tasks`.
            let schema = route_table()
                .into_iter()
                .find(|r| r.method == "PUT" && r.path.ends_with("schema/{table}"));
            let body = schema.unwrap().example.unwrap();
            let put = Ask::new("PUT", "/api/tenants/demo/schema/tasks").text(body);
            assert_eq!(fixture.admin(put).await.status, 204);
            let id = fixture
                .insert("demo", "tasks", json!({"title": "x", "done": false}))
                .await;
            let bootstrap = fixture
                .admin(Ask::get("/api/tenants/demo/journal/bootstrap"))
                .await;
            let newest = bootstrap.json()["resume_after_sequence"].as_u64().unwrap();
            let after = format!("/api/tenants/demo/journal?after={}", newest - 1);
            if route.path.ends_with("/journal") {
                // The log was pruned on the way, so its start is not 0.
                return after;
            }
            let journal = fixture.admin(Ask::get(&after)).await.json();
            fill(
                route.path,
                &id,
                journal["records"][0]["commit_id"].as_str().unwrap(),
            )
        }
    }
}

#[tokio::test]
async fn admitted_callers_reach_every_route() {
    let mut fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    for route in route_table() {
        for caller in ADMITTED {
            let what = format!("{} {} as {}", route.method, route.path, caller.name);
            let path = prepare(&fixture, &route).await;
            let mut ask = ask(route.method.as_str(), &path, caller, &fixture.token);
            if let (Some(example), Some(media)) = (route.example, route.media) {
                ask = ask.body(media, example.as_bytes());
            }
            let answer = fixture.send(ask).await;
            // The one route that wants the bearer form (nimbus.md 2.2).
            let wants_bearer =
                route.path == "/api/system/token/rotate" && caller.method != "local_admin_bearer";
            if wants_bearer {
                answer.expect_error(401, "auth.unauthorized");
                assert_eq!(
                    check_audit(&fixture, &answer, &what)["success"],
                    false,
                    "{what}"
                );
                continue;
            }
            assert_eq!(answer.status, route.success, "{what}: {answer:?}");
            match route.class {
                RouteClass::Planned => {
                    answer.expect_error(404, "service.route_not_found");
                }
                RouteClass::Open => {
                    assert_eq!(answer.body, r#"{"ok":true}"#);
                    assert_eq!(fixture.audit_of(answer.request_id()).len(), 0, "{what}");
                    continue;
                }
                _ => assert!(
                    !answer.body.starts_with(r#"{"error""#),
                    "{what}: {answer:?}"
                ),
            }
            let line = check_audit(&fixture, &answer, &what);
            assert_eq!(line["success"], true, "{what}: {line}");
            assert_eq!(line["authMethod"], caller.method, "{what}: {line}");
            assert_eq!(line["routeFamily"], route.family.as_str(), "{what}: {line}");
            let named = path
                .split('/')
                .nth(3)
                .filter(|_| path.contains("/tenants/"));
            assert_eq!(line["tenantId"].as_str(), named, "{what}: {line}");
            match route.path {
                "/api/system/token/rotate" => {
                    assert_eq!(line["reason"], "token.rotated");
                    let file = TokenFile::load(&fixture.token_path).unwrap();
                    assert_eq!(answer.json(), json!({"generation": file.generation()}));
                    assert!(file.rotated_at().is_some());
                    // The old token is dead at once.
                    let old = fixture.admin(Ask::get("/api/tenants")).await;
                    assert_eq!(old.status, 401);
                    fixture.token = file.token().expose_secret().to_owned();
                }
                "/api/system/shutdown" => {
                    assert_eq!(line["reason"], "server.shutdown_requested");
                    assert_eq!(answer.json(), json!({"accepted": true}));
                    fixture.ended().await;
                    fixture = Fixture::start().await;
                    fixture.tenant("demo").await;
                }
                _ => assert_eq!(line["reason"], "authorized", "{what}"),
            }
        }
    }
}

#[tokio::test]
async fn methods_that_a_path_does_not_have_are_405_with_allow() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let id = fixture.insert("demo", "tasks", json!({})).await;
    let before = fixture.state().await;
    for (path, rows) in templates() {
        let mut allowed: BTreeSet<&str> = rows.iter().map(|row| row.method.as_str()).collect();
        if allowed.contains("GET") {
            allowed.insert("HEAD");
        }
        let filled = fill(path, &id, &"0".repeat(32));
        for method in METHODS {
            let what = format!("{method} {path}");
            let known = allowed.contains(method);
            if known && method != "HEAD" {
                continue;
            }
            let answer = fixture.admin(Ask::new(method, &filled)).await;
            if known {
                let get = fixture.admin(Ask::get(&filled)).await;
                assert_eq!(answer.status, get.status, "{what}: {answer:?}");
                assert_eq!(answer.body, "", "{what}");
                assert_eq!(
                    answer.header("content-type"),
                    get.header("content-type"),
                    "{what}"
                );
            } else {
                assert_eq!(answer.status, 405, "{what}: {answer:?}");
                let allow: BTreeSet<&str> = answer
                    .header("allow")
                    .unwrap()
                    .split(',')
                    .map(str::trim)
                    .collect();
                assert_eq!(allow, allowed, "{what}");
                if method != "HEAD" {
                    answer.expect_error(405, "op.invalid_input");
                }
            }
            if rows[0].class != RouteClass::Open {
                assert_eq!(
                    check_audit(&fixture, &answer, &what)["success"],
                    true,
                    "{what}"
                );
            }
        }
    }
    assert_eq!(fixture.state().await, before);
}

#[tokio::test]
async fn unknown_paths_are_404_for_those_who_may_know() {
    let fixture = Fixture::start_with(ServerConfig::default()).await;
    let paths = [
        "/api",
        "/api/",
        "/api/nothing",
        "/api/tenants/",
        "//api/tenants",
        "/API/tenants",
        "/%61pi/tenants",
        "/debug",
        "/ws/x",
        "/metrics/",
        "/",
        "/nope",
        "/convex/demo/query",
        "/ui",
        "/ui/",
        "/health/",
        "/api/tenants/demo/documents/tasks/x/y",
    ];
    for path in paths {
        for method in ["GET", "POST", "DELETE"] {
            let answer = fixture.admin(Ask::new(method, path)).await;
            answer.expect_error(404, "service.route_not_found");
        }
    }
    for path in ["/", "/nope", "/convex/demo/query", "/ui/"] {
        fixture
            .send(Ask::get(path))
            .await
            .expect_error(404, "service.route_not_found");
    }
}

#[tokio::test]
async fn openapi_and_the_table_say_the_same() {
    let fixture = Fixture::start().await;
    let answer = fixture.admin(Ask::get("/openapi.json")).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut listed = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let statuses: Vec<&String> =
                operation["responses"].as_object().unwrap().keys().collect();
            let success = statuses
                .iter()
                .find(|status| **status != "default")
                .unwrap();
            let body = operation.get("requestBody").is_some();
            listed.insert((
                path.clone(),
                method.to_uppercase(),
                success.parse::<u16>().unwrap(),
                body,
            ));
        }
    }
    let table: BTreeSet<(String, String, u16, bool)> = route_table()
        .into_iter()
        .filter(|route| route.class != RouteClass::Planned)
        .map(|route| {
            (
                route.path.to_owned(),
                route.method.to_string(),
                route.success,
                route.example.is_some(),
            )
        })
        .collect();
    assert_eq!(listed, table);
}
