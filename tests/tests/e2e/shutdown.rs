//! A server that is asked to stop answers what it accepted, checkpoints and leaves cleanly.
//!
//! It must not know signals beyond SIGTERM; `Server` sends it.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use nimbus_e2e::{Client, Options, Server, files};
use serde_json::json;

const WRITERS: u64 = 8;

/// Writes until the server is gone; the ids that were acknowledged.
fn write(client: &Client, writer: u64, first: &mpsc::Sender<()>) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    for n in 0.. {
        let body = json!({"table": "notes", "fields": {"writer": writer, "n": n}});
        let Ok(reply) = client.send("POST", "/api/tenants/acme/documents", Some(&body)) else {
            break;
        };
        let id = reply.expect(201).json()["id"].as_str().unwrap().to_owned();
        acknowledged.insert(id);
        let _ = first.send(());
    }
    acknowledged
}

/// Stops a server under load by `stop`, and checks what it left.
fn stops_cleanly(stop: impl FnOnce(&Server)) {
    let mut server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    client.create_tenant("idle");
    let (first, acknowledgements) = mpsc::channel();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (client, first) = (client.apart(), first.clone());
            std::thread::spawn(move || write(&client, writer, &first))
        })
        .collect();
    // Every writer is in the middle of something by then.
    for _ in 0..20 * WRITERS {
        let limit = Duration::from_secs(20);
        acknowledgements.recv_timeout(limit).unwrap();
    }
    stop(&server);
    let status = server.wait();
    assert_eq!(status.code(), Some(0), "{status}");
    let mut acknowledged = BTreeSet::new();
    for writer in writers {
        acknowledged.extend(writer.join().unwrap());
    }
    assert!(acknowledged.len() as u64 >= 20 * WRITERS);

    let names = files::names(&server.data_dir());
    for name in &names {
        let left = [".sqlite3-wal", ".sqlite3-shm", "-journal", ".tmp"];
        assert!(!left.iter().any(|end| name.ends_with(end)), "{names:?}");
    }
    assert!(names.contains("acme.sqlite3") && names.contains("idle.sqlite3"));

    server.restart();
    let client = server.client();
    let found = every_id(&client);
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());
    // A graceful stop answers all that it carried out: nothing may be there unacknowledged but
    // answers that a closing connection could not take, one for each writer at most.
    assert!(found.len() - acknowledged.len() <= usize::try_from(WRITERS).unwrap());
    client.check_consistency("acme");
    assert!(server.terminate().success());
}

fn every_id(client: &Client) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut after = json!(null);
    loop {
        let query = json!({"table": "notes", "filters": []});
        let body = match &after {
            serde_json::Value::Null => json!({"query": query, "page_size": 500}),
            cursor => json!({"query": query, "page_size": 500, "after": cursor}),
        };
        let path = "/api/tenants/acme/query/paginated";
        let mut page = client.post(path, &body).expect(200).json();
        for document in page["data"].as_array().unwrap() {
            let id = document["_id"].as_str().unwrap().to_owned();
            assert!(found.insert(id), "a document is on two pages");
        }
        after = page["next_cursor"].take();
        if page["has_more"] == false {
            return found;
        }
    }
}

#[test]
fn sigterm_under_load_keeps_every_acknowledged_write() {
    stops_cleanly(Server::ask_to_stop);
}

#[test]
fn the_shutdown_route_under_load_keeps_every_acknowledged_write() {
    stops_cleanly(|server| {
        let reply = server
            .client()
            .post_empty("/api/system/shutdown")
            .expect(200);
        assert_eq!(reply.json(), json!({"accepted": true}));
    });
}

#[test]
fn stopping_again_and_again_changes_nothing() {
    let mut server = Server::start(Options::new());
    server.client().create_tenant("acme");
    let id = server
        .client()
        .insert("acme", "notes", &json!({"text": "kept"}));
    let mut sizes = BTreeSet::new();
    for _ in 0..3 {
        assert!(server.terminate().success());
        let file = server.data_dir().join("acme.sqlite3");
        sizes.insert(std::fs::metadata(file).unwrap().len());
        server.restart();
        let documents = server.client().documents("acme", "notes");
        assert_eq!(documents.len(), 1);
        assert_eq!(documents[0]["_id"], id.as_str());
    }
    assert_eq!(sizes.len(), 1, "{sizes:?}");
}
