//! The table of every route. The router, the OpenAPI document and the route test are made from
//! these rows alone, so a route without an entry cannot exist.
//!
//! It must not hold behaviour; handlers do.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::routing::{MethodFilter, MethodRouter, on};
use http::{Method, Request, Response};
use nimbus_auth::{Permission, RouteFamily};

use crate::app::App;
use crate::edge::Ticket;
use crate::edge::request_id::Ulid;
use crate::error::ApiError;
use crate::handlers::{
    backup, convex, debug, deployments, documents, export, health, import, journal, keys, policy,
    query, schema, system, tenants,
};
use crate::route::{Route, RouteClass};
use crate::status::Special;

static TABLE: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let mut rows = built();
    rows.extend(planned());
    rows
});

/// Every route, planned ones included.
pub(crate) fn table() -> &'static [Route] {
    &TABLE
}

#[rustfmt::skip] // one route, one line: the table is read as a table
fn built() -> Vec<Route> {
    use Permission::{Deploy, Inspect, ManageKeys, ManageSchema, ManageSystem, ManageTenants, ReadData, WriteData};
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const PUT: Method = Method::PUT;
    const PATCH: Method = Method::PATCH;
    const DELETE: Method = Method::DELETE;
    const DOCUMENT: &str = "/api/tenants/{tenant}/documents/{table}/{id}";
    const IMPORT: &str = "/api/tenants/{tenant}/import/{table}/{import}";
    const SCHEMA: &str = "/api/tenants/{tenant}/schema/{table}";
    vec![
        Route::open(GET, "/health", "Whether the server answers.", health::health),

        Route::new(POST, "/api/tenants", ManageTenants, "Create a tenant.", tenants::create),
        Route::new(GET, "/api/tenants", ManageTenants, "List all tenants.", tenants::list),
        Route::new(DELETE, "/api/tenants/{tenant}", ManageTenants, "Delete a tenant with all its data.", tenants::delete),
        Route::new(POST, "/api/tenants/{tenant}/adopt", ManageTenants, "Take in tenant data that is not registered.", tenants::adopt),
        Route::new(POST, "/api/tenants/{tenant}/move", ManageTenants, "Begin to move a tenant to another provider that the server serves.", tenants::begin_move),
        Route::new(GET, "/api/tenants/{tenant}/move", ManageTenants, "How far the newest move of a tenant is.", tenants::move_status),
        Route::new(DELETE, "/api/tenants/{tenant}/move", ManageTenants, "Cancel a move that is not decided yet, and wait until it is over.", tenants::cancel_move),
        Route::new(GET, "/api/tenants/{tenant}/policy", ManageTenants, "Read the policy that governs a tenant, and its versions.", policy::get).with_query(policy::PARAMETERS),
        Route::new(PUT, "/api/tenants/{tenant}/policy", ManageTenants, "Put a policy in force, or an earlier version again.", policy::put),
        Route::new(POST, "/api/tenants/{tenant}/prune", ManageTenants, "Drop the retained commit log now.", tenants::prune),

        Route::new(POST, "/api/tenants/{tenant}/documents", WriteData, "Insert a document.", documents::insert),
        Route::new(GET, "/api/tenants/{tenant}/documents/{table}", ReadData, "List the documents of a table.", documents::list),
        Route::new(GET, DOCUMENT, ReadData, "Read a document.", documents::get),
        Route::new(PATCH, DOCUMENT, WriteData, "Set fields of a document; the others stay.", documents::patch),
        Route::new(DELETE, DOCUMENT, WriteData, "Delete a document.", documents::delete),

        Route::new(POST, "/api/tenants/{tenant}/import/{table}", WriteData, "Insert a chunk of an import; sent twice, it is inserted once.", import::chunk),
        Route::new(POST, IMPORT, WriteData, "Insert JSON lines as they come in; sent again, those that are done are passed over.", import::lines).with_query(import::PARAMETERS),
        Route::new(GET, IMPORT, ReadData, "Lines of an import that are done.", import::progress),
        Route::new(DELETE, IMPORT, WriteData, "Forget the progress of an import that is complete.", import::finish),

        Route::new(GET, "/api/tenants/{tenant}/export/{table}", ReadData, "All documents of a table at one commit, as they are read.", export::table).with_query(export::PARAMETERS),

        Route::new(POST, "/api/tenants/{tenant}/query", ReadData, "Run a query.", query::query),
        Route::new(POST, "/api/tenants/{tenant}/query/paginated", ReadData, "Run a query, one page at a time.", query::paginated),

        Route::new(GET, "/api/tenants/{tenant}/schema", ReadData, "Read the schemas of all tables that have one.", schema::list),
        Route::new(GET, SCHEMA, ReadData, "Read the schema of a table.", schema::get),
        Route::new(PUT, SCHEMA, ManageSchema, "Replace the schema of a table.", schema::put),
        Route::new(DELETE, SCHEMA, ManageSchema, "Remove the schema of a table; its documents stay.", schema::delete),

        Route::new(GET, "/api/tenants/{tenant}/journal", ReadData, "Read the commit log.", journal::page).with_query(journal::PARAMETERS),
        Route::new(GET, "/api/tenants/{tenant}/journal/bootstrap", ReadData, "Read the whole tenant at one sequence.", journal::bootstrap),
        Route::new(GET, "/api/tenants/{tenant}/commits/{commit}", ReadData, "Look up the outcome of a commit.", journal::commit),

        Route::new(POST, "/api/tenants/{tenant}/keys", ManageKeys, "Make a key of the tenant; its secret is shown this once.", keys::create),
        Route::new(GET, "/api/tenants/{tenant}/keys", ManageKeys, "List the keys of the tenant, without secrets.", keys::list),
        Route::new(DELETE, "/api/tenants/{tenant}/keys/{key}", ManageKeys, "Revoke a key of the tenant, at once.", keys::revoke),

        Route::new(POST, "/api/tenants/{tenant}/deployments", Deploy, "Deploy a bundled application, or find out what that would change.", deployments::create),
        Route::new(GET, "/api/tenants/{tenant}/deployments", Deploy, "List the newest deployments; the first one runs.", deployments::list),
        Route::new(POST, "/api/tenants/{tenant}/deployments/{deployment}/rollback", Deploy, "Deploy again what an earlier deployment was.", deployments::roll_back),
        Route::new(GET, "/api/tenants/{tenant}/environment", Deploy, "List the variables that functions read, with their values.", deployments::variables),
        Route::new(POST, "/api/tenants/{tenant}/environment", Deploy, "Set and remove variables, all in one commit.", deployments::change_variables),

        Route::new(GET, "/debug/tenants/{tenant}/consistency", Inspect, "Check documents, indexes and commit log against each other.", debug::consistency),
        Route::new(GET, "/debug/tenants/{tenant}/engine/metrics", Inspect, "Counters of one tenant.", debug::engine_metrics),
        Route::new(GET, "/debug/encryption/status", Inspect, "State of encryption at rest.", debug::encryption),
        Route::new(GET, "/debug/license/status", Inspect, "State of the licence.", debug::license),
        Route::new(GET, "/debug/policy/status", Inspect, "Which policies are in force, and how the last reload went.", policy::status),
        Route::new(GET, "/debug/runtime/metrics", Inspect, "Counters of the function runtime.", debug::runtime),

        Route::new(POST, "/api/system/token/rotate", ManageSystem, "Replace the admin token at once; needs the Bearer form.", system::rotate),
        Route::new(POST, "/api/system/shutdown", ManageSystem, "Stop the server after the requests in progress.", system::shutdown),
        Route::new(GET, "/api/system/backup", ManageSystem, "A backup of tenants, each at one commit, as they are read.", backup::create).with_query(backup::PARAMETERS),
        Route::new(GET, "/api/system/version-info", Inspect, "Version of this server.", system::version),

        Route::convex(GET, "/convex/{tenant}", "A line for people.", convex::banner),
        Route::convex(GET, "/convex/{tenant}/", "A line for people.", convex::banner),
        Route::convex(GET, "/convex/{tenant}/version", "Version of this server, as text.", convex::version),
        Route::convex(GET, "/convex/{tenant}/instance_name", "Name of the deployment, as text.", convex::instance_name),
        Route::convex(GET, "/convex/{tenant}/instance_version", "Version of this server, as text.", convex::version),
        Route::convex(POST, "/convex/{tenant}/echo", "The body of the request.", convex::echo),
        Route::convex(GET, "/convex/{tenant}/api/query", "Run a query that the query string names.", convex::get_query),
        Route::convex(POST, "/convex/{tenant}/api/query", "Run a query.", convex::query),
        Route::convex(POST, "/convex/{tenant}/api/mutation", "Run a mutation.", convex::mutation),
        Route::convex(POST, "/convex/{tenant}/api/action", "Run an action.", convex::action),
        Route::convex(POST, "/convex/{tenant}/api/function", "Run a function of any kind, internal ones too.", convex::function),
        Route::convex(POST, "/convex/{tenant}/api/run/{*path}", "Run a function that the path names.", convex::run),
        Route::convex(POST, "/convex/{tenant}/api/query_ts", "The newest timestamp.", convex::query_ts),
        Route::convex(POST, "/convex/{tenant}/api/query_at_ts", "Run a query at a timestamp.", convex::query_at_ts),
        Route::convex(POST, "/convex/{tenant}/api/query_batch", "Run queries at one timestamp.", convex::query_batch),

        Route::new(GET, "/metrics", Inspect, "Counters in OpenMetrics text.", system::metrics),
        Route::new(GET, "/openapi.json", Inspect, "This document.", system::openapi),
    ]
}

/// Routes of nimbus.md 2.2 that later versions build. They answer 404 behind the gate; the list
/// may only shrink.
fn planned() -> Vec<Route> {
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const PUT: Method = Method::PUT;
    const PATCH: Method = Method::PATCH;
    const DELETE: Method = Method::DELETE;
    let rows: &[(&[Method], &'static str)] = &[
        (&[GET, POST], "/api/tenants/{tenant}/schedule"),
        (&[DELETE], "/api/tenants/{tenant}/schedule/{job}"),
        (&[GET], "/api/tenants/{tenant}/schedule/history/{job}"),
        (&[GET, POST], "/api/tenants/{tenant}/crons"),
        (&[DELETE], "/api/tenants/{tenant}/crons/{name}"),
        (&[GET, POST], "/api/tenants/{tenant}/services"),
        (
            &[GET, PUT, DELETE],
            "/api/tenants/{tenant}/services/{service}",
        ),
        (&[POST], "/api/tenants/{tenant}/services/{service}/start"),
        (&[POST], "/api/tenants/{tenant}/services/{service}/stop"),
        (&[POST], "/api/tenants/{tenant}/services/{service}/restart"),
        (&[GET, POST], "/api/tenants/{tenant}/sandboxes"),
        (&[GET], "/api/tenants/{tenant}/sandboxes/{sandbox}"),
        (&[POST], "/api/tenants/{tenant}/sandboxes/{sandbox}/stop"),
        (&[GET, POST], "/api/sessions"),
        (&[GET], "/api/sessions/{session}"),
        (&[POST], "/api/sessions/{session}/close"),
        (&[PATCH, DELETE], "/api/machines/{machine}"),
        (&[POST], "/api/machines/{machine}/create"),
        (&[POST], "/api/machines/{machine}/start"),
        (&[POST], "/api/machines/{machine}/stop"),
        (&[POST], "/api/machines/{machine}/restart"),
        (&[POST], "/api/admin/deploy"),
        (&[GET], "/ws"),
    ];
    let row = |(methods, path): &(&[Method], &'static str)| {
        methods
            .iter()
            .map(|method| Route::planned(method.clone(), path))
            .collect::<Vec<_>>()
    };
    rows.iter().flat_map(row).collect()
}

/// The router over the table: nothing else adds routes.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let mut paths: BTreeMap<&'static str, MethodRouter> = BTreeMap::new();
    for route in table() {
        let Ok(filter) = MethodFilter::try_from(route.method.clone()) else {
            continue;
        };
        let app = Arc::clone(app);
        let serve = move |request: Request<Body>| {
            let app = Arc::clone(&app);
            async move { route.serve(app, request).await }
        };
        let methods = paths.remove(route.path).unwrap_or_default();
        paths.insert(route.path, methods.merge(on(filter, serve)));
    }
    let mut router = Router::new();
    for (path, methods) in paths {
        router = router.route(path, methods);
    }
    router
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
}

async fn not_found(request: Request<Body>) -> Response<Body> {
    refuse(&request, ApiError::route_not_found())
}

async fn method_not_allowed(request: Request<Body>) -> Response<Body> {
    let text = "this path has no such method; the Allow header lists those it has";
    refuse(&request, ApiError::special(Special::MethodNotAllowed, text))
}

fn refuse(request: &Request<Body>, error: ApiError) -> Response<Body> {
    match request.extensions().get::<Ticket>() {
        Some(ticket) => ticket.exchange.fail(error),
        None => error.into_response(&Ulid::next()),
    }
}

/// A row of the route table, for tests and documentation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RouteInfo {
    /// The method.
    pub method: Method,
    /// Path template; parameters stand in braces.
    pub path: &'static str,
    /// Who may call it.
    pub class: RouteClass,
    /// The word for it in the audit log.
    pub family: RouteFamily,
    /// What a caller needs; `None` on open and planned routes.
    pub permission: Option<Permission>,
    /// Status of a successful answer; 404 on planned routes.
    pub success: u16,
    /// A body that the route accepts; `None` where it takes none.
    pub example: Option<&'static str>,
    /// The media type of that body.
    pub media: Option<&'static str>,
}

/// Every route of the server.
pub fn route_table() -> Vec<RouteInfo> {
    let info = |route: &Route| RouteInfo {
        method: route.method.clone(),
        path: route.path,
        class: route.class,
        family: route.family(),
        permission: route.permission,
        success: route.answer.status.as_u16(),
        example: route.body.map(|body| body.example),
        media: route.body.map(|body| body.media),
    };
    table().iter().map(info).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::edge::surface::classify;

    #[test]
    fn every_row_but_health_and_convex_lies_behind_the_gate() {
        for route in table() {
            let convex = route.class == RouteClass::Convex;
            assert_eq!(
                convex,
                route.family() == RouteFamily::ConvexHttp,
                "{}",
                route.path
            );
            assert_eq!(
                convex,
                route.path.starts_with("/convex/{tenant}"),
                "{}",
                route.path
            );
            if convex {
                assert!(!classify(route.path).gated && route.permission.is_none());
                continue;
            }
            let open = route.class == RouteClass::Open;
            assert_eq!(
                classify(route.path).gated,
                !open,
                "{} {}",
                route.method,
                route.path
            );
            assert_eq!(open, route.path == "/health", "{}", route.path);
            let protected = matches!(route.class, RouteClass::Server | RouteClass::Tenant);
            assert_eq!(route.permission.is_some(), protected, "{}", route.path);
            let names_tenant = route.path.contains("{tenant}");
            assert_eq!(
                route.class == RouteClass::Tenant,
                names_tenant && protected,
                "{}",
                route.path
            );
        }
    }

    #[test]
    fn no_row_is_there_twice() {
        let mut seen = BTreeSet::new();
        for route in table() {
            assert!(
                seen.insert((route.path, route.method.to_string())),
                "{} {}",
                route.method,
                route.path
            );
        }
        assert!(seen.len() > 60, "{}", seen.len());
    }

    #[test]
    fn what_changes_something_needs_more_than_reading() {
        for route in table().iter().filter(|route| route.permission.is_some()) {
            let reads = matches!(
                route.permission,
                Some(Permission::ReadData | Permission::Inspect | Permission::ManageTenants)
            ) || matches!(
                // Read as well, but what only those may see who may change it.
                route.permission,
                Some(Permission::Deploy | Permission::ManageKeys)
            ) || route.path == "/api/system/backup"; // reads, but everything
            let asks = matches!(route.method, Method::GET) || route.path.contains("/query");
            if asks {
                assert!(reads, "{} {}", route.method, route.path);
            } else {
                let reading = matches!(
                    route.permission,
                    Some(Permission::ReadData | Permission::Inspect)
                );
                assert!(!reading, "{} {}", route.method, route.path);
            }
        }
    }
}
