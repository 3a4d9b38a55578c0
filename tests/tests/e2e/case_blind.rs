//! A disk on which `a` and `A` are one name keeps tenants apart by refusing the second.
//!
//! It must not know how the server finds out.

use nimbus_e2e::mount::{Mount, switched_off};
use nimbus_e2e::{Options, Server, files};
use serde_json::json;

#[test]
fn ids_that_differ_in_case_only_are_refused_with_the_reason() {
    if switched_off("a disk that is blind to case") {
        return;
    }
    let disk = Mount::blind_to_case();
    let data = disk.path().join("data");
    let mut server = Server::start(Options::new().data_dir(&data));
    let client = server.client();
    client.create_tenant("a-b");
    let id = client.insert("a-b", "notes", &json!({"owner": "a-b"}));
    for _ in 0..2 {
        let client = server.client();
        for clash in ["A-B", "A-b", "a-B"] {
            let reply = client.post("/api/tenants", &json!({"id": clash}));
            let error = reply.refused(409, "op.already_exists").error();
            let message = error["message"].as_str().unwrap();
            assert!(
                message.contains("a-b") && message.contains("case"),
                "{message}"
            );
            assert_eq!(error["detail"]["existing"], "a-b");
            let path = format!("/api/tenants/{clash}/documents/notes");
            client.get(&path).refused(404, "session.tenant_not_found");
            client
                .delete(&format!("/api/tenants/{clash}"))
                .refused(404, "session.tenant_not_found");
        }
        // Ids that differ otherwise are as free as anywhere.
        client.create_tenant("a_b");
        client.delete("/api/tenants/a_b").expect(204);
        let documents = client.documents("a-b", "notes");
        assert_eq!(documents.len(), 1);
        assert_eq!(documents[0]["_id"], id.as_str());
        // The same after a restart, when the registry is read from the disk.
        assert!(server.terminate().success());
        server.restart();
    }
    let client = server.client();
    client.delete("/api/tenants/a-b").expect(204);
    client.create_tenant("A-B");
    assert!(client.documents("A-B", "notes").is_empty());
    // This disk shows every name in lower case.
    let names = files::names(&data);
    let ours = |name: &&String| name.eq_ignore_ascii_case("A-B.sqlite3");
    assert_eq!(names.iter().filter(ours).count(), 1, "{names:?}");
    assert!(server.terminate().success());
}
