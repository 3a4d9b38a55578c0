//! Tenants whose ids look alike stay apart, and a deleted tenant leaves nothing.
//!
//! It must not know how files are named beyond `<tenant>.sqlite3` (seed 002).

use nimbus_e2e::{Options, Server, files};
use serde_json::json;

fn alike() -> Vec<String> {
    let mut ids: Vec<String> = ["a-b", "a_b", "A-B", "a-B", "A_B", "ab", "0", "-"]
        .iter()
        .map(|id| (*id).to_owned())
        .collect();
    ids.push("x".repeat(128));
    ids.push(format!("{}y", "x".repeat(127)));
    ids
}

#[test]
fn alike_ids_stay_disjoint_and_deletion_leaves_no_file() {
    let mut server = Server::start(Options::new());
    let client = server.client();
    let before = files::names(&server.data_dir());
    let ids = alike();
    for id in &ids {
        client.create_tenant(id);
    }
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(client.tenants(), sorted);
    let mut documents = Vec::new();
    for id in &ids {
        let schema = json!({
            "table": "notes",
            "fields": [{"name": "owner", "field_type": "string", "required": true}],
            "indexes": [{"name": "by_owner", "fields": ["owner"]}],
        });
        let path = format!("/api/tenants/{id}/schema/notes");
        client.put(&path, &schema).expect(204);
        documents.push(client.insert(id, "notes", &json!({"owner": id})));
        // Each file is the tenant's own and private.
        let file = server.data_dir().join(format!("{id}.sqlite3"));
        assert_eq!(files::mode(&file), 0o600, "{}", file.display());
    }

    for (id, document) in ids.iter().zip(&documents) {
        let found = client.documents(id, "notes");
        assert_eq!(found.len(), 1, "{id}: {found:?}");
        assert_eq!(found[0]["owner"], id.as_str());
        assert_eq!(found[0]["_id"], document.as_str());
        for other in ids.iter().filter(|other| *other != id) {
            // By the id of a document, and through the index of the same name.
            let path = format!("/api/tenants/{other}/documents/notes/{document}");
            let status = client.get(&path).status;
            assert!(status == 404 || status == 400, "{id} in {other}: {status}");
            let query = json!({
                "table": "notes",
                "filters": [{"field": "owner", "op": "eq", "value": id}],
            });
            let reply = client.post(&format!("/api/tenants/{other}/query"), &query);
            assert_eq!(reply.expect(200).json(), json!({"data": []}));
        }
        client.check_consistency(id);
    }

    // One half goes while the server runs, the other after a restart.
    let (first, second) = ids.split_at(ids.len() / 2);
    for id in first {
        let reply = client.delete(&format!("/api/tenants/{id}")).expect(204);
        assert_eq!(reply.body, b"");
        let path = format!("/api/tenants/{id}/documents/notes");
        client.get(&path).refused(404, "session.tenant_not_found");
    }
    for id in second {
        assert_eq!(client.documents(id, "notes").len(), 1, "{id}");
    }
    assert!(server.terminate().success());
    server.restart();
    let client = server.client();
    for id in second {
        assert_eq!(client.documents(id, "notes")[0]["owner"], id.as_str());
        client.delete(&format!("/api/tenants/{id}")).expect(204);
    }
    assert_eq!(client.tenants(), [""; 0]);
    assert_eq!(files::names(&server.data_dir()), before);
    let left = files::all_below(server.home().path()).into_iter();
    let left: Vec<_> = left
        .filter(|path| path.to_str().unwrap().contains("sqlite3"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_tenant_created_again_starts_empty() {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let id = client.insert("acme", "notes", &json!({"text": "first life"}));
    let refusal = client.post("/api/tenants", &json!({"id": "acme"}));
    let error = refusal.refused(409, "op.already_exists").error();
    assert_eq!(error["detail"]["tenantId"], "acme");
    client.delete("/api/tenants/acme").expect(204);
    client
        .delete("/api/tenants/acme")
        .refused(404, "session.tenant_not_found");
    client.create_tenant("acme");
    assert!(client.documents("acme", "notes").is_empty());
    let path = format!("/api/tenants/acme/documents/notes/{id}");
    let status = client.get(&path).status;
    assert!(status == 404 || status == 400, "{status}");
    assert_eq!(client.journal_head("acme"), 0);
}

#[test]
fn nothing_tells_a_caller_without_token_which_tenants_exist() {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    client.insert("acme", "notes", &json!({}));
    let wrong = client.with_token(Some(format!("nimbus_at_{}", "A".repeat(43))));
    let shape = |reply: nimbus_e2e::Reply| {
        let mut error = reply.refused(401, "auth.unauthorized").error();
        for name in ["requestId", "timestamp"] {
            error[name].take();
        }
        error
    };
    for caller in [&server.anonymous(), &wrong] {
        for (known, unknown) in [
            ("/api/tenants/acme", "/api/tenants/none"),
            (
                "/api/tenants/acme/documents/notes",
                "/api/tenants/none/documents/notes",
            ),
            (
                "/debug/tenants/acme/consistency",
                "/debug/tenants/none/consistency",
            ),
            ("/api/tenants", "/api/tenants/acme/no/such/route"),
        ] {
            for method in ["GET", "DELETE", "POST"] {
                let call = |path: &str| shape(caller.send(method, path, None).unwrap());
                assert_eq!(call(known), call(unknown), "{method} {known}");
            }
        }
    }
    assert_eq!(client.documents("acme", "notes").len(), 1);
}
