//! Every route of the table, by every method, as every caller, and a count that proves it.
//!
//! The table is the crate's own, so a new route is driven the day it is added; callers are those
//! of `callers`. Nothing here may list routes by hand but the exceptions that it explains.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use nimbus_auth::{PrincipalKind, TokenFile};
use nimbus_http::{RouteClass, RouteInfo, route_table};
use serde_json::{Value as Json, json};

use crate::callers::{Caller, Class, Tokens, WRONG, all, ask, class_of};
use crate::deployments::deploy;
use crate::harness::{Answer, Ask, Fixture};
use crate::routes::{METHODS, check_audit, fill, templates};

/// One cell of the matrix: path template, method, name of the caller.
type Cell = (&'static str, &'static str, &'static str);

/// What a caller meets on a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meets {
    /// The answer of a stranger, whatever the method.
    Refusal,
    /// What its scope opens in its own tenant; see `keyed`.
    Scope,
    /// The functions of the tenant; see `convex`.
    Functions,
    /// The route, or 405 for a method that the path does not have.
    Route,
}

/// Who meets what. A new kind of principal stops the build here, too.
fn meets(route: RouteClass, class: Class) -> Meets {
    let kind = PrincipalKind::ALL
        .into_iter()
        .find(|kind| class_of(*kind) == class);
    match (route, kind) {
        (RouteClass::Convex, _) => Meets::Functions,
        (RouteClass::Open, _) | (_, Some(PrincipalKind::Operator)) => Meets::Route,
        (_, Some(PrincipalKind::TenantKey)) => Meets::Scope,
        (_, None) if class == Class::ForeignKey => Meets::Scope,
        (_, None) => Meets::Refusal,
    }
}

/// The whole matrix.
fn cells() -> BTreeSet<Cell> {
    let mut cells = BTreeSet::new();
    for path in templates().into_keys() {
        for method in METHODS {
            cells.extend(all().map(|(_, caller)| (path, method, caller.name)));
        }
    }
    cells
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_by_every_method_as_every_caller() {
    let (refused, admitted) = (tokio::spawn(refused()), tokio::spawn(admitted()));
    let (keyed, convex) = (tokio::spawn(keyed()), tokio::spawn(convex()));
    let (refused, admitted, open) = tokio::join!(refused, admitted, open());
    let (refused, admitted) = (refused.unwrap(), admitted.unwrap());
    let (keyed, convex) = (keyed.await.unwrap(), convex.await.unwrap());
    let whole = cells();
    println!(
        "{} rows on {} paths x {} methods x {} callers of {} classes = {} cells: {} refused, {} admitted, {} keyed, {} open, {} convex",
        route_table().len(),
        templates().len(),
        METHODS.len(),
        all().count(),
        Class::ALL.len(),
        whole.len(),
        refused.len(),
        admitted.len(),
        keyed.len(),
        open.len(),
        convex.len(),
    );
    assert_eq!(
        whole.len(),
        templates().len() * METHODS.len() * all().count()
    );
    let parts = [&refused, &admitted, &keyed, &open, &convex];
    let driven: BTreeSet<Cell> = parts.into_iter().flatten().copied().collect();
    let left: Vec<&Cell> = whole.difference(&driven).collect();
    assert!(left.is_empty(), "not driven: {left:?}");
    // Nobody is both let in and refused in one place.
    let sum: usize = parts.iter().map(|part| part.len()).sum();
    assert_eq!(driven.len(), sum);
    assert_eq!(driven.len(), whole.len());
}

/// A server whose token was rotated once, with the tenant `demo` and keys of it and another.
async fn rotated() -> (Fixture, Tokens) {
    let mut fixture = Fixture::start().await;
    let old = fixture.token.clone();
    let answer = fixture.admin(Ask::post("/api/system/token/rotate")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let file = TokenFile::load(&fixture.token_path).unwrap();
    fixture.token = file.token().expose_secret().to_owned();
    fixture.tenant("demo").await;
    let right = fixture.token.clone();
    assert!(right != old && right.len() == WRONG.len());
    fixture.tenant("other").await;
    let mut keys = BTreeMap::new();
    for scope in ["read", "write", "deploy", "admin"] {
        keys.insert(scope, fixture.key("demo", scope).await.0);
    }
    let (revoked, id) = fixture.key("demo", "admin").await;
    let path = format!("/api/tenants/demo/keys/{id}");
    assert_eq!(fixture.admin(Ask::new("DELETE", &path)).await.status, 204);
    keys.insert("revoked", revoked);
    keys.insert("foreign", fixture.key("other", "admin").await.0);
    // Last, since making a key drops those that have expired.
    keys.insert("expired", fixture.expired_key("demo", "admin").await);
    (fixture, Tokens { right, old, keys })
}

/// Paths that do not exist, or not for everyone, and must look like those that do.
const LOOKALIKES: [&str; 15] = [
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
];

/// An answer without what differs from one to the next: the request id and the time.
fn comparable(answer: &Answer, method: &str) -> String {
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| name != "x-request-id" && name != "date");
    if method == "HEAD" {
        return format!("{headers:?}");
    }
    answer.expect_error(answer.status, "auth.unauthorized");
    let mut error = answer.json();
    error["error"]["requestId"] = Json::Null;
    error["error"]["timestamp"] = Json::Null;
    format!("{headers:?} {error}")
}

/// Drives every cell of a caller who is refused: one answer, one line, no change.
async fn refused() -> BTreeSet<Cell> {
    let (fixture, tokens) = rotated().await;
    let before = fixture.state().await;
    // Template and path; what is in no table has none.
    let mut paths: Vec<(Option<&'static str>, String)> = templates()
        .into_keys()
        .map(|path| (Some(path), fill(path, "k1", &"0".repeat(32))))
        .collect();
    paths.extend(LOOKALIKES.map(|path| (None, path.to_owned())));
    let class_of_path = |path: Option<&str>| {
        let rows = path.and_then(|path| templates().remove(path));
        rows.map_or(RouteClass::Server, |rows| rows[0].class)
    };
    let mut cells = BTreeSet::new();
    let mut asked = Asked::new();
    let mut answers = BTreeSet::new();
    let lines_before = fixture.audit().len();
    for (template, path) in &paths {
        let route = class_of_path(*template);
        for method in METHODS {
            // All callers at once, since each refusal waits until its line is on the disk.
            let callers = all().filter(|(class, _)| meets(route, *class) == Meets::Refusal);
            let sending = callers.map(async |(_, caller)| {
                let answer = fixture.send(ask(method, path, caller, &tokens)).await;
                (caller, answer)
            });
            for (caller, answer) in join_all(sending).await {
                let what = format!("{method} {path} as {}", caller.name);
                assert_eq!(answer.status, 401, "{what}: {answer:?}");
                assert_eq!(
                    answer.header("www-authenticate"),
                    Some("Bearer realm=\"nimbus\""),
                    "{what}"
                );
                answers.insert((method == "HEAD", comparable(&answer, method)));
                let id = answer.request_id().to_owned();
                assert!(asked.insert(id, (path.clone(), method, caller)).is_none());
                cells.extend(template.map(|template| (template, method, caller.name)));
            }
        }
    }
    assert_eq!(answers.len(), 2, "the answer tells something: {answers:?}");
    let lines = fixture.audit();
    check_lines(&lines[lines_before..], asked, &tokens);
    assert_eq!(
        fixture.state().await,
        before,
        "a refused caller changed something"
    );
    cells
}

/// What was asked by whom, by the request id of the answer.
type Asked = BTreeMap<String, (String, &'static str, &'static Caller)>;

/// One line for each request that tells who was refused and why, and no secret.
fn check_lines(lines: &[Json], mut asked: Asked, tokens: &Tokens) {
    assert_eq!(lines.len(), asked.len());
    for line in lines {
        let request = asked.remove(line["requestId"].as_str().unwrap());
        let (path, method, caller) = request.unwrap_or_else(|| panic!("a second line: {line}"));
        let what = format!("{method} {path} as {}: {line}", caller.name);
        assert_eq!(line["success"], false, "{what}");
        assert_eq!(line["status"], 401, "{what}");
        assert_eq!(line["method"], method, "{what}");
        assert_eq!(line["reason"], caller.reason, "{what}");
        let credential = line["authMethod"].as_str().unwrap_or("");
        assert_eq!(credential, caller.method, "{what}");
        assert_eq!(line["authScope"], "server_access", "{what}");
        assert_eq!(line["origin"], Json::Null, "{what}");
        let text = line.to_string();
        for secret in [
            tokens.right.as_str(),
            &tokens.old,
            WRONG,
            "nimbus_tk_",
            "eyJ",
            "token=",
            // Of the wrong deploy key. Longer than a MAC or a request id can hold by chance: over 7,000 lines,
            // six of its digits were found in one.
            "01a1b2c3d4e5f607",
        ] {
            assert!(!text.contains(secret), "{what}");
        }
    }
}

/// Drives every cell of the open surface: a credential, whatever it is, makes no difference.
async fn open() -> BTreeSet<Cell> {
    let (fixture, tokens) = rotated().await;
    let mut cells = BTreeSet::new();
    for (path, rows) in templates() {
        if rows[0].class != RouteClass::Open {
            continue;
        }
        for method in METHODS {
            for (_, caller) in all() {
                let what = format!("{method} {path} as {}", caller.name);
                let answer = fixture.send(ask(method, path, caller, &tokens)).await;
                let known = rows.iter().any(|row| row.method == method);
                match (known, method) {
                    (true, _) => assert_eq!(answer.body, r#"{"ok":true}"#, "{what}"),
                    (_, "HEAD") => assert_eq!((answer.status, answer.body.as_str()), (200, "")),
                    _ => assert_eq!(answer.status, 405, "{what}: {answer:?}"),
                }
                assert_eq!(fixture.audit_of(answer.request_id()).len(), 0, "{what}");
                cells.insert((path, method, caller.name));
            }
        }
    }
    cells
}

/// Drives every cell of a caller who is let in: the route by its method, 405 by any other.
async fn admitted() -> BTreeSet<Cell> {
    let (mut fixture, mut tokens) = rotated().await;
    let mut cells = BTreeSet::new();
    for (path, rows) in templates() {
        for method in METHODS {
            let row = rows.iter().find(|row| row.method == method);
            let before = fixture.state().await;
            for (class, caller) in all() {
                let wanted = !matches!(rows[0].class, RouteClass::Open | RouteClass::Convex);
                if !wanted || meets(rows[0].class, class) != Meets::Route {
                    continue;
                }
                let what = format!("{method} {path} as {}", caller.name);
                match row {
                    Some(row) => use_route(&mut fixture, &mut tokens, row, caller, &what).await,
                    None => lack_method(&fixture, &tokens, &rows, method, caller, &what).await,
                }
                cells.insert((path, method, caller.name));
            }
            if row.is_none() && method != "HEAD" {
                assert_eq!(
                    fixture.state().await,
                    before,
                    "{method} {path} changed something"
                );
            }
        }
    }
    cells
}

/// Calls a route with what its example needs, and asserts that it did its work.
async fn use_route(
    fixture: &mut Fixture,
    tokens: &mut Tokens,
    route: &RouteInfo,
    caller: &Caller,
    what: &str,
) {
    let path = prepare(fixture, route).await;
    let mut ask = ask(route.method.as_str(), &path, caller, tokens);
    if let (Some(example), Some(media)) = (route.example, route.media) {
        ask = ask.body(media, example.as_bytes());
    }
    let answer = fixture.send(ask).await;
    // The one route that wants the bearer form (nimbus.md 2.2), also beside the header.
    let wants_bearer = route.path == "/api/system/token/rotate"
        && ["header", "both, bearer wrong"].contains(&caller.name);
    if wants_bearer {
        answer.expect_error(401, "auth.unauthorized");
        assert_eq!(
            check_audit(fixture, &answer, what)["success"],
            false,
            "{what}"
        );
        return;
    }
    assert_eq!(answer.status, route.success, "{what}: {answer:?}");
    if route.class == RouteClass::Planned {
        answer.expect_error(404, "service.route_not_found");
    } else {
        let failed = answer.body.starts_with(r#"{"error""#);
        assert!(!failed, "{what}: {answer:?}");
    }
    let line = check_audit(fixture, &answer, what);
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
            tokens.old = std::mem::replace(&mut tokens.right, fixture.token.clone());
        }
        "/api/system/shutdown" => {
            assert_eq!(line["reason"], "server.shutdown_requested");
            assert_eq!(answer.json(), json!({"accepted": true}));
            fixture.ended().await;
            (*fixture, *tokens) = rotated().await;
        }
        "/api/tenants/{tenant}/keys" if route.method == "POST" => {
            assert_eq!(line["reason"], "key.created", "{what}");
            assert!(
                answer.json()["key"]
                    .as_str()
                    .unwrap()
                    .starts_with("demo|nimbus_tk_")
            );
        }
        "/api/tenants/{tenant}/keys/{key}" => {
            assert_eq!(line["reason"], "key.revoked", "{what}");
        }
        "/api/tenants/{tenant}/deployments" if route.method == "POST" => {
            assert_eq!(line["reason"], "deployment.checked", "{what}");
        }
        "/api/tenants/{tenant}/deployments/{deployment}/rollback" => {
            let reason = line["reason"].as_str().unwrap();
            assert!(
                reason.starts_with("deployment.rolled_back "),
                "{what}: {line}"
            );
        }
        "/api/tenants/{tenant}/environment" if route.method == "POST" => {
            assert_eq!(line["reason"], "environment.changed ISSUER", "{what}");
        }
        "/api/system/backup" => {
            assert_eq!(line["reason"], "backup.begun");
            assert!(answer.body.starts_with("NIMBUSBK"), "{what}");
        }
        _ => assert_eq!(line["reason"], "authorized", "{what}"),
    }
}

/// Drives every cell of a key behind the gate: below its own tenant what its scope allows, of
/// other tenants the answer for one that is not there, elsewhere 403; and one line for each.
async fn keyed() -> BTreeSet<Cell> {
    let (fixture, tokens) = rotated().await;
    let mut cells = BTreeSet::new();
    for (path, rows) in templates() {
        for method in METHODS {
            let asked = if method == "HEAD" { "GET" } else { method };
            let row = rows.iter().find(|row| row.method == asked);
            for (class, caller) in all() {
                if meets(rows[0].class, class) != Meets::Scope {
                    continue;
                }
                let what = format!("{method} {path} as {}", caller.name);
                let native = path.starts_with("/api/tenants/{tenant}");
                let (status, code) = match class {
                    _ if !native => (403, "auth.permission_denied"),
                    Class::ForeignKey => (404, "session.tenant_not_found"),
                    _ => in_scope(row, caller),
                };
                let filled = match row {
                    Some(row) if status < 300 => prepare(&fixture, row).await,
                    _ => fill(path, "k1", &"0".repeat(32)),
                };
                let mut asking = ask(method, &filled, caller, &tokens);
                if let Some((example, media)) = row.and_then(|row| row.example.zip(row.media)) {
                    asking = asking.body(media, example.as_bytes());
                }
                let answer = fixture.send(asking).await;
                assert_eq!(answer.status, status, "{what}: {answer:?}");
                if status >= 400 && method != "HEAD" {
                    answer.expect_error(status, code);
                }
                let line = check_audit(&fixture, &answer, &what);
                let passed = !matches!(code, "auth.permission_denied" | "session.tenant_not_found");
                assert_eq!(line["success"], passed, "{what}: {line}");
                assert_eq!(line["authMethod"], "tenant_key", "{what}: {line}");
                assert!(!line.to_string().contains("nimbus_tk_"), "{what}: {line}");
                cells.insert((path, method, caller.name));
            }
        }
    }
    cells
}

/// What a key of `demo` meets on a route below it.
fn in_scope(row: Option<&RouteInfo>, caller: &Caller) -> (u16, &'static str) {
    use nimbus_auth::Permission::{Deploy, ManageKeys, ManageSchema, ReadData, WriteData};
    let Some(row) = row else {
        return (405, "op.invalid_input");
    };
    let Some(permission) = row.permission else {
        return (404, "service.route_not_found");
    };
    let least = match permission {
        ReadData => "read",
        WriteData => "write",
        ManageSchema | Deploy => "deploy",
        ManageKeys => "admin",
        _ => return (403, "auth.permission_denied"),
    };
    let scopes = ["read", "write", "deploy", "admin"];
    let rank = |scope: &str| scopes.iter().position(|known| *known == scope);
    let held = caller.name.strip_suffix(" key").and_then(rank);
    if held >= rank(least) {
        (row.success, "")
    } else {
        (403, "auth.permission_denied")
    }
}

/// Drives every cell of the Convex surface. Who presents nothing that is looked at is anyone; a
/// credential that fails is refused, and a key of another tenant finds no tenant.
async fn convex() -> BTreeSet<Cell> {
    let (fixture, tokens) = rotated().await;
    let before = fixture.state().await;
    let body = json!({"path": "m:f", "args": {}, "queries": [], "ts": "AAAAAAAAAAA="});
    let mut cells = BTreeSet::new();
    for (path, rows) in templates() {
        if rows[0].class != RouteClass::Convex {
            continue;
        }
        let filled = fill(path, "k1", "x");
        let filled = filled.replace("/run/x1", "/run/m/f");
        for method in METHODS {
            let asked = if method == "HEAD" { "GET" } else { method };
            let known = rows.iter().any(|row| row.method == asked);
            for (class, caller) in all() {
                let what = format!("{method} {path} as {}", caller.name);
                let asking = ask(method, &filled, caller, &tokens).json(&body);
                let answer = fixture.send(asking).await;
                check_convex(&answer, path, method, known, (class, caller), &what);
                let lines = fixture.audit_of(answer.request_id());
                assert!(lines.len() <= 1, "{what}: {lines:?}");
                for line in &lines {
                    let success = ![401, 403, 404].contains(&answer.status);
                    assert_eq!(line["success"], success, "{what}: {line}");
                    assert_eq!(line["tenantId"], "demo", "{what}: {line}");
                    assert!(!line.to_string().contains("nimbus_"), "{what}: {line}");
                }
                let looked_at = matches!(
                    class,
                    Class::Operator | Class::TenantKey | Class::ForeignKey | Class::Rotated
                );
                assert!(!known || !looked_at || lines.len() == 1, "{what}");
                assert!(
                    caller.method.is_empty()
                        || caller.method == "tenant_key"
                        || !known
                        || lines.len() == 1
                        || answer.status < 402,
                    "{what}"
                );
                cells.insert((path, method, caller.name));
            }
        }
    }
    assert_eq!(fixture.state().await, before);
    cells
}

fn check_convex(
    answer: &Answer,
    path: &str,
    method: &str,
    known: bool,
    (class, caller): (Class, &Caller),
    what: &str,
) {
    let anyone = caller.method.is_empty();
    let right = anyone || matches!(class, Class::Operator | Class::TenantKey);
    let internal = class == Class::Operator || ["deploy key", "admin key"].contains(&caller.name);
    let changes = ["/api/mutation", "/api/action"]
        .iter()
        .any(|end| path.ends_with(end));
    let expected: &[u16] = match class {
        _ if !known => &[405],
        Class::ForeignKey => &[404],
        _ if !right => &[400, 401],
        _ if path.ends_with("/api/function") && !internal => &[403],
        _ if changes && caller.name == "read key" => &[403],
        // The state before the first commit, as long as it is not long ago.
        _ if path.ends_with("/query_at_ts") => &[200, 503],
        _ if path.ends_with("/api/query") && method != "POST" => &[400],
        _ => &[200],
    };
    assert!(expected.contains(&answer.status), "{what}: {answer:?}");
    if answer.status >= 400 && method != "HEAD" {
        let error = answer.json();
        assert!(
            error["code"].is_string() && error["message"].is_string(),
            "{what}: {answer:?}"
        );
        assert_eq!(error.as_object().unwrap().len(), 2, "{what}: {answer:?}");
    }
    // Nothing is deployed, so a call names no function.
    if answer.status == 200 && (changes || path.ends_with("/run/{*path}")) {
        let text = match internal {
            true => "Could not find function for 'm:f'",
            false => "Could not find public function for 'm:f'.",
        };
        let message = answer.json()["errorMessage"].as_str().unwrap().to_owned();
        assert!(message.contains(text), "{what}: {message}");
    }
}

/// Asks by a method that the path has no row for: HEAD is GET without a body, the rest is 405.
async fn lack_method(
    fixture: &Fixture,
    tokens: &Tokens,
    rows: &[RouteInfo],
    method: &str,
    caller: &Caller,
    what: &str,
) {
    let mut allowed: BTreeSet<&str> = rows.iter().map(|row| row.method.as_str()).collect();
    let get = rows.iter().find(|row| row.method == "GET");
    if get.is_some() {
        allowed.insert("HEAD");
    }
    let path = match get {
        Some(get) if method == "HEAD" => prepare(fixture, get).await,
        _ => fill(rows[0].path, "k1", &"0".repeat(32)),
    };
    let answer = fixture.send(ask(method, &path, caller, tokens)).await;
    if let Some(get) = get.filter(|_| method == "HEAD") {
        assert_eq!(answer.status, get.success, "{what}: {answer:?}");
        assert_eq!(answer.body, "", "{what}");
        let full = fixture.admin(Ask::get(&path)).await;
        assert_eq!(
            answer.header("content-type"),
            full.header("content-type"),
            "{what}"
        );
    } else {
        assert_eq!(answer.status, 405, "{what}: {answer:?}");
        let allow = answer.header("allow").unwrap();
        let allow: BTreeSet<&str> = allow.split(',').map(str::trim).collect();
        assert_eq!(allow, allowed, "{what}");
        if method != "HEAD" {
            answer.expect_error(405, "op.invalid_input");
        }
    }
    let line = check_audit(fixture, &answer, what);
    assert_eq!(line["success"], true, "{what}: {line}");
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
        ("POST" | "GET" | "DELETE", "/api/tenants/{tenant}/move") => {
            delete("/api/tenants/mover".into()).await;
            fixture.tenant("mover").await;
            let path = "/api/tenants/mover/move".to_owned();
            if route.method != "POST" {
                let begun = Ask::post(&path).json(&json!({"to": "redb"}));
                assert_eq!(fixture.admin(begun).await.status, 202);
            }
            path
        }
        ("POST", "/api/tenants/{tenant}/adopt") => {
            delete("/api/tenants/orphan".into()).await;
            plant_orphan(fixture, "orphan").await;
            "/api/tenants/orphan/adopt".into()
        }
        ("POST", "/api/tenants/{tenant}/deployments/{deployment}/rollback") => {
            let made = deploy(fixture, "demo", &json!({})).await;
            assert_eq!(made.status, 200, "{made:?}");
            let id = made.json()["deployment"]["id"].clone();
            format!(
                "/api/tenants/demo/deployments/{}/rollback",
                id.as_str().unwrap()
            )
        }
        ("DELETE", "/api/tenants/{tenant}/keys/{key}") => {
            let (_, id) = fixture.key("demo", "read").await;
            format!("/api/tenants/demo/keys/{id}")
        }
        _ => prepare_document(fixture, route).await,
    }
}

/// A document and its commit, under the schema that the example of PUT declares.
async fn prepare_document(fixture: &Fixture, route: &RouteInfo) -> String {
    let schema = route_table()
        .into_iter()
        .find(|r| r.method == "PUT" && r.path.ends_with("schema/{table}"));
    let body = schema.unwrap().example.unwrap();
    let put = Ask::new("PUT", "/api/tenants/demo/schema/tasks").text(body);
    assert_eq!(fixture.admin(put).await.status, 204);
    let fields = json!({"title": "x", "done": false});
    let id = fixture.insert("demo", "tasks", fields).await;
    let bootstrap = Ask::get("/api/tenants/demo/journal/bootstrap");
    let bootstrap = fixture.admin(bootstrap).await.json();
    let newest = bootstrap["resume_after_sequence"].as_u64().unwrap();
    let after = format!("/api/tenants/demo/journal?after={}", newest - 1);
    let journal = fixture.admin(Ask::get(&after)).await.json();
    let commit = journal["records"][0]["commit_id"].as_str().unwrap();
    fill(route.path, &id, commit)
}
