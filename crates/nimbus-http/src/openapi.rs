//! The OpenAPI 3.1 document, generated from the route table and the types of its rows.
//!
//! Nothing is written by hand that a row knows. It must not list planned routes, nor those of the
//! Convex surface, whose shapes are Convex's.

use std::sync::LazyLock;

use bytes::Bytes;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Json, json};

use crate::extract::QueryKind;
use crate::route::{Route, RouteClass};
use crate::routes::table;
use crate::status::error_statuses;

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| build().to_string().into());

/// The document as JSON text.
pub(crate) fn document() -> Bytes {
    DOCUMENT.clone()
}

/// Schemas of what callers send and of what they get: a member with a default is optional in the
/// one and always there in the other.
struct Schemas {
    bodies: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Schemas {
    fn new() -> Schemas {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        Schemas {
            bodies: settings.clone().for_deserialize().into_generator(),
            answers: settings.for_serialize().into_generator(),
        }
    }

    fn definitions(mut self) -> Map<String, Json> {
        let mut all = self.bodies.take_definitions(true);
        all.extend(self.answers.take_definitions(true));
        all.insert("Error".into(), envelope());
        all
    }
}

fn build() -> Json {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Json> = Map::new();
    for route in table()
        .iter()
        .filter(|route| !matches!(route.class, RouteClass::Planned | RouteClass::Convex))
    {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Some(item) = item.as_object_mut() {
            let method = route.method.as_str().to_ascii_lowercase();
            item.insert(method, operation(route, &mut schemas));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Nimbus native API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Tenants, documents, queries and schemas. See docs/http-api.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}, {"adminHeader": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions(),
            "responses": {"Error": {
                "description": format!("The error envelope, with one of the statuses {}.", statuses()),
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            }},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "adminHeader": {"type": "apiKey", "in": "header", "name": "X-Nimbus-Admin-Token"},
            },
        },
    })
}

fn statuses() -> String {
    let numbers: Vec<String> = error_statuses()
        .iter()
        .map(|status| status.as_str().to_owned())
        .collect();
    numbers.join(", ")
}

fn operation(route: &Route, schemas: &mut Schemas) -> Json {
    let mut operation = Map::new();
    operation.insert("summary".into(), route.summary.into());
    operation.insert("tags".into(), json!([route.family().as_str()]));
    if route.class == RouteClass::Open {
        operation.insert("security".into(), json!([]));
    }
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation.insert("parameters".into(), parameters.into());
    }
    if let Some(body) = route.body {
        // Of JSON the value, of anything else the text.
        let example: Json =
            serde_json::from_str(body.example).unwrap_or_else(|_| body.example.into());
        let schema = (body.schema)(&mut schemas.bodies);
        let content = json!({body.media: {"schema": schema, "example": example}});
        operation.insert(
            "requestBody".into(),
            json!({"required": true, "content": content}),
        );
    }
    let mut answer = json!({"description": reason(route.answer.status)});
    if let (false, Some(members)) = (route.answer.media.is_empty(), answer.as_object_mut()) {
        let schema = route
            .answer
            .schema
            .map(|schema| schema(&mut schemas.answers));
        let schema = schema.map_or_else(|| json!({"type": "string"}), |schema| schema.to_value());
        let content: Map<String, Json> = (route.answer.media.iter())
            .map(|media| ((*media).to_owned(), json!({"schema": schema})))
            .collect();
        members.insert("content".into(), content.into());
    }
    let status = route.answer.status.as_str();
    let error = json!({"$ref": "#/components/responses/Error"});
    operation.insert(
        "responses".into(),
        json!({status: answer, "default": error}),
    );
    Json::Object(operation)
}

fn reason(status: http::StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Success")
}

fn parameters(route: &Route) -> Vec<Json> {
    let mut parameters: Vec<Json> = route
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    parameters.extend(route.query.iter().map(|field| {
        json!({
            "name": field.name,
            "in": "query",
            "required": false,
            "description": field.summary,
            "schema": query_schema(field.kind),
        })
    }));
    parameters
}

fn query_schema(kind: QueryKind) -> Json {
    match kind {
        QueryKind::Number(default) => {
            let mut schema = json!({"type": "integer", "format": "uint64", "minimum": 0});
            if let Some(default) = default {
                schema["default"] = json!(default);
            }
            schema
        }
        QueryKind::Word(words) => {
            json!({"type": "string", "enum": words, "default": words.first()})
        }
        QueryKind::Text => json!({"type": "string", "minLength": 1}),
        QueryKind::Texts => {
            json!({"type": "array", "items": {"type": "string", "minLength": 1}})
        }
    }
}

/// The envelope of nimbus.md 2.11.
fn envelope() -> Json {
    let codes: Vec<&str> = nimbus_core::ErrorCode::ALL
        .iter()
        .map(|code| code.as_str())
        .collect();
    let remediation = json!({
        "type": "object",
        "required": ["action", "message"],
        "properties": {"action": {"type": "string"}, "message": {"type": "string"}},
    });
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["code", "message", "requestId", "timestamp", "severity", "retryable", "detail"],
            "properties": {
                "code": {"type": "string", "enum": codes},
                "message": {"type": "string"},
                "requestId": {"type": "string"},
                "timestamp": {"type": "string", "format": "date-time"},
                "severity": {"type": "string", "enum": ["fatal", "error", "warning"]},
                "retryable": {"type": "boolean"},
                "detail": {"type": ["object", "null"]},
                "remediation": remediation,
            },
        }},
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Json, found: &mut BTreeSet<String>) {
        match value {
            Json::Object(members) => {
                if let Some(Json::String(target)) = members.get("$ref") {
                    found.insert(target.clone());
                }
                members
                    .values()
                    .for_each(|member| references(member, found));
            }
            Json::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = build();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 10, "{found:?}");
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }

    #[test]
    fn bodies_are_closed_and_filters_list_their_operators() {
        let document = build();
        let schema = &document["components"]["schemas"]["QueryBody"];
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["required"], json!(["table", "filters"]));
        let found = &document["components"]["schemas"]["CommitOutcome"];
        assert_eq!(found["required"], json!(["committed", "sequence"]));
        let text = document.to_string();
        for op in ["eq", "neq", "gt", "gte", "lt", "lte"] {
            assert!(text.contains(&format!("\"{op}\"")), "{op}");
        }
        assert!(!text.contains("access_policy"));
    }
}
