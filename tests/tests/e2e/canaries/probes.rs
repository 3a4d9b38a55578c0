//! Requests to one tenant with things of another, made from the routes that the server lists.
//!
//! It must not know what is to be expected of them.

use nimbus_e2e::{Client, Reply};
use serde_json::{Value as Json, json};

use super::{SHARED, Tenant};

/// A request to one tenant with things of another.
#[derive(Clone, Debug)]
pub struct Probe {
    pub method: String,
    pub path: String,
    body: Option<Json>,
    /// The media type of the body, where it is not JSON: lines of JSON, of which this is one.
    lines: Option<String>,
    /// Whether it may leave a name of the other tenant behind, as any caller may choose any name.
    pub writes_names: bool,
}

impl Probe {
    pub fn text(&self) -> String {
        let body = self.body.as_ref().map(Json::to_string);
        format!("{} {}", self.path, body.unwrap_or_default())
    }

    pub fn send(&self, client: &Client, headers: &[(&str, &str)]) -> Reply {
        let mut headers = headers.to_vec();
        headers.extend(self.lines.as_deref().map(|media| ("content-type", media)));
        let reply = client.send_with(&self.method, &self.path, &headers, self.body.as_ref());
        let reply = reply.unwrap_or_else(|e| panic!("{self:?}: {e}"));
        assert!(reply.status < 500, "{self:?}: {}", reply.text());
        reply
    }
}

/// A route of a tenant: its method, its template, and the media type of its body.
pub struct Route {
    method: String,
    template: String,
    media: Option<String>,
}

/// Every route of a tenant.
pub fn routes(client: &Client) -> Vec<Route> {
    let document = client.get("/openapi.json").expect(200).json();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let content = operation["requestBody"]["content"].as_object();
            if path.contains("{tenant}") {
                routes.push(Route {
                    method: method.to_uppercase(),
                    template: path.clone(),
                    media: content.and_then(|content| content.keys().next().cloned()),
                });
            }
        }
    }
    routes
}

/// The bodies for a route with things of `other`, and whether they leave something behind.
fn bodies(method: &str, template: &str, other: &Tenant) -> Vec<(Json, bool)> {
    let rest = template
        .strip_prefix("/api/tenants/{tenant}")
        .unwrap_or(template);
    match (method, rest) {
        ("POST", "/documents") => vec![
            (
                json!({"table": SHARED, "fields": {"_id": other.documents[0]}}),
                false,
            ),
            (
                json!({"table": other.table, "fields": {&other.field: 1}}),
                true,
            ),
        ],
        ("PATCH", "/documents/{table}/{id}") => vec![
            (json!({"patch": {"text": "changed"}}), false),
            (json!({"patch": {&other.field: null}}), false),
        ],
        ("POST", "/import/{table}") => {
            let rows = json!([{"line": 1, "fields": {&other.field: 1}}]);
            let own = json!([{"line": 1, "fields": {"_id": other.documents[0]}}]);
            vec![
                (
                    json!({"import": other.import, "last_line": 1, "rows": own}),
                    false,
                ),
                (
                    json!({"import": other.import, "last_line": 1, "rows": rows}),
                    true,
                ),
            ]
        }
        // As a stream, whose name is in the path.
        ("POST", "/import/{table}/{import}") => vec![
            (json!({"$id": other.documents[0]}), false),
            (json!({&other.field: 1}), true),
        ],
        ("POST", "/query") => {
            let of =
                |field: &str, value: &str| json!([{"field": field, "op": "eq", "value": value}]);
            let mut all = Vec::new();
            for table in [SHARED, &other.table] {
                all.push((other.query(table), false));
                for value in other.secrets() {
                    for field in [&other.field, "_id", "text"] {
                        all.push((json!({"table": table, "filters": of(field, value)}), false));
                    }
                }
            }
            all
        }
        ("POST", "/query/paginated") => {
            let mut all = Vec::new();
            for cursor in &other.cursors {
                for table in [SHARED, &other.table] {
                    let page =
                        json!({"query": other.query(table), "page_size": 1, "after": cursor});
                    all.push((page, false));
                }
            }
            all
        }
        ("POST", "/move") => vec![(json!({"to": other.id}), false)],
        ("PUT", "/policy") => {
            let (id, surface) = (&other.id, "{kind: http_request, name: native_api}");
            let policy = format!("schema_version: 1\ntenant: {id}\nworkloads: [{surface}]\n");
            vec![
                (json!({ "policy": policy }), false),
                (json!({"restoreVersion": 1}), false),
            ]
        }
        ("POST", "/keys") => vec![(json!({"scope": "read", "name": "probe"}), true)],
        ("POST", "/environment") => {
            vec![(json!({"changes": [{"name": "PROBE", "value": "x"}]}), true)]
        }
        ("POST", "/deployments") => {
            let app = json!({"schema": null, "changedModules": [], "udfServerVersion": "1.48.0"});
            vec![(json!({"dryRun": true, "appDefinition": app}), false)]
        }
        ("PUT", "/schema/{table}") => vec![
            (
                json!({"table": "elsewhere", "fields": [], "indexes": []}),
                false,
            ),
            (other.schema(&other.table), true),
        ],
        _ => panic!("say here what {method} {template} is sent"),
    }
}

/// All probes of `tenant` with things of `other`.
pub fn probes(routes: &[Route], tenant: &Tenant, other: &Tenant) -> Vec<Probe> {
    let mut probes = Vec::new();
    for route in routes {
        let Route {
            method,
            template,
            media,
        } = route;
        // Deleting the tenant itself, or a schema that it has, needs nothing of another.
        if (method.as_str(), template.as_str()) == ("DELETE", "/api/tenants/{tenant}") {
            continue;
        }
        let own_only = (method == "DELETE" || method == "PUT") && template.contains("/schema/");
        let tables: &[&str] = if own_only {
            &[&other.table]
        } else {
            &[SHARED, &other.table]
        };
        let tables = if template.contains("{table}") {
            tables
        } else {
            &[""]
        };
        for table in tables {
            for id in &other.documents {
                let path = template
                    .replace("{tenant}", &tenant.id)
                    .replace("{table}", table)
                    .replace("{id}", id)
                    .replace("{commit}", &other.commit)
                    .replace("{deployment}", &other.commit)
                    .replace("{key}", &other.commit)
                    .replace("{import}", &other.import);
                assert!(
                    !path.contains('{'),
                    "say here what stands for a brace of {template}"
                );
                let bodies = match media {
                    Some(_) => bodies(method, template, other)
                        .into_iter()
                        .map(|(b, w)| (Some(b), w))
                        .collect(),
                    None => vec![(None, false)],
                };
                let lines = media.clone().filter(|media| media != "application/json");
                for (body, writes_names) in bodies {
                    let probe = Probe {
                        method: method.clone(),
                        path: path.clone(),
                        body,
                        lines: lines.clone(),
                        writes_names,
                    };
                    if !writes_names {
                        let mut asked = probe.clone();
                        asked.path = format!("{path}?tenant={}&tenant_id={0}", other.id);
                        probes.push(asked);
                    }
                    probes.push(probe);
                }
                if !template.contains("{id}") {
                    break;
                }
            }
        }
    }
    probes
}
