//! Tenant files that came from elsewhere: reported, never overwritten, adopted on request.
//!
//! It must not know what a tenant file holds.

use std::fs;
use std::sync::Arc;

use nimbus_e2e::{Home, Options, Server};
use serde_json::json;

/// The file of a tenant with one document, made by another server.
fn foreign_file(tenant: &str) -> (Vec<u8>, String) {
    let mut server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant(tenant);
    let id = client.insert(tenant, "notes", &json!({"text": "from elsewhere"}));
    assert!(server.terminate().success());
    let path = server.data_dir().join(format!("{tenant}.sqlite3"));
    (fs::read(path).unwrap(), id)
}

#[test]
fn a_foreign_tenant_file_is_reported_kept_and_adopted() {
    let (bytes, id) = foreign_file("acme");
    let home = Arc::new(Home::new());
    let path = home.data_dir().join("acme.sqlite3");
    fs::create_dir(home.data_dir()).unwrap();
    fs::write(&path, &bytes).unwrap();

    let mut server = Server::start(Options::new().home(&home));
    let log = server.log();
    let warning = log
        .lines()
        .find(|line| line.contains("acme"))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(
        warning.contains("WARN") && warning.contains("adopt"),
        "{warning}"
    );
    let client = server.client();
    assert_eq!(client.tenants(), [""; 0]);
    let path_of_table = "/api/tenants/acme/documents/notes";
    client
        .get(path_of_table)
        .refused(404, "session.tenant_not_found");
    let reply = client.post("/api/tenants", &json!({"id": "acme"}));
    let error = reply.refused(409, "op.already_exists").error();
    assert!(
        error["message"].as_str().unwrap().contains("adopt"),
        "{error}"
    );
    client
        .delete("/api/tenants/acme")
        .refused(404, "session.tenant_not_found");
    assert_eq!(fs::read(&path).unwrap(), bytes, "the file was touched");

    let reply = client.post_empty("/api/tenants/acme/adopt").expect(201);
    assert_eq!(reply.json(), json!({"id": "acme"}));
    assert_eq!(client.tenants(), ["acme"]);
    let documents = client.documents("acme", "notes");
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0]["_id"], id.as_str());
    assert_eq!(documents[0]["text"], "from elsewhere");
    client.insert("acme", "notes", &json!({"text": "from here"}));
    client.check_consistency("acme");
    client
        .post_empty("/api/tenants/acme/adopt")
        .refused(409, "op.already_exists");
    client
        .post_empty("/api/tenants/none/adopt")
        .refused(404, "session.tenant_not_found");

    assert!(server.terminate().success());
    server.restart();
    assert!(!server.log().contains("WARN"), "{}", server.log());
    assert_eq!(server.client().documents("acme", "notes").len(), 2);
    server.client().delete("/api/tenants/acme").expect(204);
    assert!(!path.exists());
}

#[test]
fn garbage_is_not_adopted() {
    let (sound, _) = foreign_file("acme");
    let home = Arc::new(Home::new());
    fs::create_dir(home.data_dir()).unwrap();
    let garbage: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("text", b"this is no database\n".repeat(500)),
        ("noise", vec![0xa5; 1 << 16]),
        ("cut", sound[..sound.len() / 2].to_vec()),
    ];
    for (name, bytes) in &garbage {
        fs::write(home.data_dir().join(format!("{name}.sqlite3")), bytes).unwrap();
    }
    let server = Server::start(Options::new().home(&home));
    let client = server.client();
    for (name, bytes) in &garbage {
        let reply = client.post_empty(&format!("/api/tenants/{name}/adopt"));
        assert!(reply.status >= 400, "{name} was adopted");
        let error = reply.error();
        assert_ne!(error["code"], "service.internal", "{name}: {error}");
        let reply = client.post("/api/tenants", &json!({"id": name}));
        reply.refused(409, "op.already_exists");
        let path = home.data_dir().join(format!("{name}.sqlite3"));
        assert_eq!(fs::read(path).unwrap(), *bytes, "{name} was touched");
    }
    assert_eq!(client.tenants(), [""; 0]);
    let left = nimbus_e2e::files::names(&home.data_dir());
    let beside: Vec<_> = left
        .iter()
        .filter(|name| name.ends_with("-wal") || name.ends_with("-shm"))
        .collect();
    assert!(beside.is_empty(), "{beside:?}");
}
