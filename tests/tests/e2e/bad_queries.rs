//! Queries, cursors, ids and schemas that are well-formed JSON and wrong: refused, and nothing
//! changes.
//!
//! It must not know how a query is planned or what an id holds.

use nimbus_e2e::{Options, Server};
use serde_json::json;

const DOCUMENTS: &str = "/api/tenants/acme/documents";

/// A server with a tenant `acme`, and the id of the document in its table `notes`.
fn world() -> (Server, String) {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let document = client.insert("acme", "notes", &json!({"text": "kept"}));
    (server, document)
}

#[test]
fn queries_and_pages_are_checked() {
    let (server, _) = world();
    let client = &server.client();
    let before = client.journal_head("acme");
    let query = |body: &serde_json::Value| client.post("/api/tenants/acme/query", body);
    let page = |body: &serde_json::Value| client.post("/api/tenants/acme/query/paginated", body);
    let filter = |op: &str| json!([{"field": "text", "op": op, "value": "kept"}]);
    for body in [
        json!({"table": "notes"}),
        json!({"table": "notes", "filters": filter("like")}),
        json!({"table": "notes", "filters": filter("EQ")}),
        json!({"table": "notes", "filters": {}}),
        json!({"table": "notes", "filters": [], "limit": 0}),
        json!({"table": "notes", "filters": [], "limit": -1}),
        json!({"table": "notes", "filters": [], "offset": 1}),
        json!({"table": "notes", "filters": [], "order": {"field": "text"}}),
        json!({"table": "notes", "filters": [], "order": {"field": "text", "direction": "up"}}),
        json!({"table": "_notes", "filters": []}),
        json!({"table": "notes", "filters": [{"field": "a..b", "op": "eq", "value": 1}]}),
    ] {
        query(&body).refused(400, "op.invalid_input");
    }
    query(&json!({"table": "notes", "filters": [], "limit": 10_001}))
        .refused(400, "op.cap_exceeded");
    // A range filter never returns values of another type.
    for (op, value) in [
        ("gt", json!(0)),
        ("lt", json!(1e300)),
        ("gte", json!(false)),
        ("lte", json!([])),
    ] {
        let filters = json!([{"field": "text", "op": op, "value": value}]);
        let reply = query(&json!({"table": "notes", "filters": filters}));
        if reply.status == 200 {
            assert_eq!(reply.json(), json!({"data": []}), "{op} {value}");
        } else {
            reply.refused(400, "op.invalid_input");
        }
    }
    let notes = json!({"table": "notes", "filters": []});
    for body in [
        json!({"query": notes}),
        json!({"query": notes, "page_size": 0}),
        json!({"query": notes, "page_size": 1, "after": ""}),
        json!({"query": notes, "page_size": 1, "after": "garbage"}),
        json!({"query": notes, "page_size": 1, "cursor": null}),
    ] {
        page(&body).refused(400, "op.invalid_input");
    }
    page(&json!({"query": notes, "page_size": 1_000_000})).refused(400, "op.cap_exceeded");
    assert_eq!(client.journal_head("acme"), before);

    // A cursor belongs to its query, its tenant and its maker.
    client.insert("acme", "notes", &json!({"text": "second"}));
    client.create_tenant("other");
    for n in 0..2 {
        client.insert("other", "notes", &json!({"n": n}));
    }
    let first = page(&json!({"query": notes, "page_size": 1}))
        .expect(200)
        .json();
    assert_eq!(first["has_more"], true);
    let cursor = first["next_cursor"].as_str().unwrap();
    let with = |query: &serde_json::Value, after: &str| json!({"query": query, "page_size": 1, "after": after});
    for at in 0..cursor.len() {
        let mut edited = cursor.to_owned().into_bytes();
        edited[at] = if edited[at] == b'A' { b'B' } else { b'A' };
        let edited = String::from_utf8(edited).unwrap();
        let reply = page(&with(&notes, &edited));
        // The last character of base64 has bits that carry nothing; the strict reader refuses them too.
        assert_eq!(reply.status, 400, "position {at}: {}", reply.text());
    }
    let others = [
        json!({"table": "notes", "filters": filter("neq")}),
        json!({"table": "notes", "filters": [], "order": {"field": "text", "direction": "asc"}}),
        json!({"table": "other", "filters": []}),
    ];
    for other in &others {
        page(&with(other, cursor)).refused(400, "op.invalid_input");
    }
    let elsewhere = client.post("/api/tenants/other/query/paginated", &with(&notes, cursor));
    elsewhere.refused(400, "op.invalid_input");
    let second = page(&with(&notes, cursor)).expect(200).json();
    assert_eq!(second["data"][0]["text"], "second");
    assert_eq!(second["has_more"], false);
}

#[test]
fn ids_of_other_tables_and_tenants_are_refused() {
    let (server, document) = world();
    let client = &server.client();
    client.create_tenant("other");
    let foreign = client.insert("other", "things", &json!({}));
    let other_table = client.insert("acme", "things", &json!({}));
    let before = client.journal_head("acme");
    let mut damaged = document.clone().into_bytes();
    let at = damaged.len() / 2;
    damaged[at] = if damaged[at] == b'0' { b'1' } else { b'0' };
    let damaged = String::from_utf8(damaged).unwrap();
    for id in [&other_table, &foreign, &damaged, &document.to_uppercase()] {
        let path = format!("{DOCUMENTS}/notes/{id}");
        for (method, body) in [
            ("GET", None),
            ("PATCH", Some(json!({"patch": {"text": "changed"}}))),
            ("DELETE", None),
        ] {
            let reply = client.send(method, &path, body.as_ref()).unwrap();
            let error = reply.error();
            let code = error["code"].as_str().unwrap();
            let known = ["op.invalid_input", "op.document_not_found"].contains(&code);
            assert!(
                known && matches!(reply.status, 400 | 404),
                "{method} {id}: {error}"
            );
        }
    }
    assert_eq!(client.journal_head("acme"), before);
    // The schema of a table is checked like its documents.
    for schema in [
        json!({"table": "other", "fields": [], "indexes": []}),
        json!({"table": "notes", "fields": [], "indexes": [{"name": "_x", "fields": ["text"]}]}),
        json!({"table": "notes", "fields": [], "indexes": [{"name": "by_x", "fields": []}]}),
        json!({"table": "notes", "fields": [], "indexes": [{"name": "by_x", "fields": ["$x"]}]}),
        json!({"table": "notes", "fields": [], "indexes": [
            {"name": "by_x", "fields": ["text"]}, {"name": "by_x", "fields": ["text"]}]}),
        json!({"table": "notes", "fields": [{"name": "a\"; drop", "field_type": "uuid"}]}),
        json!({"table": "notes", "fields": [], "indexes": [], "access_policy": {"read": {}}}),
    ] {
        client
            .put("/api/tenants/acme/schema/notes", &schema)
            .refused(400, "op.invalid_input");
    }
    let strict = json!({"table": "notes", "fields": [{"name": "text", "field_type": "number"}]});
    let reply = client.put("/api/tenants/acme/schema/notes", &strict);
    let error = reply.refused(422, "op.schema_validation").error();
    assert_eq!(error["detail"]["documentId"], document.as_str());
    client
        .get("/api/tenants/acme/schema/notes")
        .refused(404, "op.schema_not_found");
}
