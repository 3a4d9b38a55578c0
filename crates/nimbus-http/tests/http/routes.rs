//! The table of routes as a whole: foreign origins, unknown paths, OpenAPI; and its rows for the
//! tests that drive each of them.
//!
//! The table is the crate's own, so a new route is driven the day it is added. Who is let in is
//! `matrix`'s.

use std::collections::{BTreeMap, BTreeSet};

use nimbus_http::{RouteClass, RouteInfo, ServerConfig, route_table};
use serde_json::Value as Json;

use crate::harness::{Answer, Ask, Fixture};

/// Every method that HTTP names but CONNECT, whose target is no path, and one that it does not.
pub const METHODS: [&str; 9] = [
    "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "TRACE", "OPTIONS", "BREW",
];

/// The template with something in each brace.
pub fn fill(template: &str, id: &str, commit: &str) -> String {
    let parameter = |segment: &str| match segment {
        "{tenant}" => "demo".to_owned(),
        "{table}" => "tasks".to_owned(),
        "{id}" => id.to_owned(),
        "{commit}" => commit.to_owned(),
        // The id of a key that is not there.
        "{key}" => "0123456789abcdef".to_owned(),
        other if other.starts_with('{') => "x1".to_owned(),
        other => other.to_owned(),
    };
    template
        .split('/')
        .map(parameter)
        .collect::<Vec<_>>()
        .join("/")
}

pub fn templates() -> BTreeMap<&'static str, Vec<RouteInfo>> {
    let mut by_path: BTreeMap<&'static str, Vec<RouteInfo>> = BTreeMap::new();
    for route in route_table() {
        by_path.entry(route.path).or_default().push(route);
    }
    by_path
}

/// Asserts that exactly one line tells about `answer`, without a token in it.
pub fn check_audit(fixture: &Fixture, answer: &Answer, what: &str) -> Json {
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
                if rows[0].class == RouteClass::Convex {
                    // It carries no ambient credential, so it is not refused; nor is it approved.
                    assert_ne!(answer.status, 403, "{what}: {answer:?}");
                    assert_eq!(answer.header("access-control-allow-origin"), None, "{what}");
                    continue;
                }
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
    for path in ["/", "/nope", "/ui/"] {
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
        .filter(|route| !matches!(route.class, RouteClass::Planned | RouteClass::Convex))
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
