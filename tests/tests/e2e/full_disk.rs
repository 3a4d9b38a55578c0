//! A full disk refuses writes, serves reads, and heals without a restart.
//!
//! It must not know which file of the data directory grows.

use std::fs;
use std::path::Path;

use nimbus_e2e::mount::{Mount, fill, switched_off};
use nimbus_e2e::{Client, Options, Server};
use serde_json::{Value as Json, json};

fn insert(client: &Client, n: u64) -> nimbus_e2e::Reply {
    let body =
        json!({"table": "notes", "fields": {"n": format!("{n}"), "text": "x".repeat(20_000)}});
    client.post("/api/tenants/acme/documents", &body)
}

fn check_reads(client: &Client, acknowledged: &[u64]) {
    let mut found: Vec<u64> = client
        .documents("acme", "notes")
        .iter()
        .map(|document| document["n"].as_str().unwrap().parse().unwrap())
        .collect();
    found.sort_unstable();
    assert_eq!(found, acknowledged);
    let last = acknowledged.last().unwrap();
    let query = json!({
        "table": "notes",
        "filters": [{"field": "n", "op": "eq", "value": format!("{last}")}],
    });
    let reply = client.post("/api/tenants/acme/query", &query).expect(200);
    assert_eq!(reply.json()["data"].as_array().map(Vec::len), Some(1));
    client.get("/api/tenants/acme/journal").expect(200);
}

#[test]
fn writes_answer_507_reads_go_on_and_space_heals() {
    if switched_off("a full disk") {
        return;
    }
    let disk = Mount::tmpfs(64);
    let data = disk.path().join("data");
    let mut server = Server::start(Options::new().data_dir(&data));
    let client = server.client();
    client.create_tenant("acme");
    let index = json!({
        "table": "notes",
        "fields": [{"name": "n", "field_type": "string", "required": true}],
        "indexes": [{"name": "by_n", "fields": ["n"]}],
    });
    let path = "/api/tenants/acme/schema/notes";
    client.put(path, &index).expect(204);
    let mut acknowledged: Vec<u64> = Vec::new();
    for n in 0..20 {
        insert(&client, n).expect(201);
        acknowledged.push(n);
    }

    for round in 0..3 {
        let filler = disk.path().join("filler");
        fill(&filler);
        let mut refusals = 0;
        // Space that was reserved before may take some more.
        for n in 0..200 {
            let n = 1_000 * (round + 1) + n;
            let reply = insert(&client, n);
            if reply.status == 201 {
                acknowledged.push(n);
                continue;
            }
            let error = reply.refused(507, "service.storage_full").error();
            assert_eq!(error["retryable"], true);
            assert_eq!(error["detail"]["storageKind"], "full");
            refusals += 1;
            if refusals >= 20 {
                break;
            }
        }
        assert!(refusals >= 20, "round {round}: {refusals} refusals");
        check_reads(&client, &acknowledged);
        // A tenant needs space too; the refusal leaves nothing behind.
        let reply = client.post("/api/tenants", &json!({"id": "late"}));
        reply.refused(507, "service.storage_full");
        assert_eq!(client.tenants(), ["acme"]);
        check_reads(&client, &acknowledged);

        fs::remove_file(&filler).unwrap();
        for n in 0..5 {
            let n = 1_000 * (round + 1) + 500 + n;
            insert(&client, n).expect(201);
            acknowledged.push(n);
        }
        check_reads(&client, &acknowledged);
        let report: Json = client.check_consistency("acme");
        let count = report["authoritative"]["document_count"].as_u64().unwrap();
        assert_eq!(count, acknowledged.len() as u64);
    }
    client.create_tenant("late");
    client.delete("/api/tenants/late").expect(204);

    assert!(server.terminate().success());
    server.restart();
    let client = server.client();
    check_reads(&client, &acknowledged);
    client.check_consistency("acme");
}

/// The server's answers on a disk that is full but for what it reserved, and then on one where it
/// could reserve nothing.
#[test]
fn the_audit_log_has_room_of_its_own_on_a_full_disk() {
    if switched_off("the reserve of the audit log") {
        return;
    }
    for (mebibytes, reserve) in [(160, true), (24, false)] {
        let disk = Mount::tmpfs(mebibytes);
        let state = disk.path().join("state");
        let mut server = Server::start(Options::new().env("XDG_STATE_HOME", &state));
        let client = server.client();
        client.create_tenant("acme");
        let log = state.join("nimbus/logs/access.jsonl");
        if reserve {
            // The segment in use and the next one, 64 MiB each.
            await_room(&log, 64 << 20);
            await_room(&log.with_file_name("access.next"), 64 << 20);
        } else {
            await_log(&server, "no room could be reserved for the audit log");
        }
        let filler = disk.path().join("filler");
        fill(&filler);
        let statuses: Vec<u16> = (0..60).map(|_| client.get("/api/tenants").status).collect();
        if reserve {
            assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        } else {
            // A page that was begun takes some lines; then calls are refused before they run.
            assert_eq!(statuses.last(), Some(&503), "{statuses:?}");
            client
                .post("/api/tenants", &json!({"id": "late"}))
                .refused(503, "service.unavailable");
            client.get("/health").expect(200);
        }
        fs::remove_file(&filler).unwrap();
        // The first refusal that can be written shows that calls may run again.
        client.get("/api/tenants");
        assert_eq!(client.tenants(), ["acme"]);
        assert!(server.terminate().success());
        let verify = ["audit", "verify", "--data-dir"];
        let mut command = server.home().command(verify);
        command.arg(server.data_dir()).env("XDG_STATE_HOME", &state);
        nimbus_e2e::Finished::of(&mut command).expect(0);
    }
}

/// Waits until the server has said `text`, perhaps before it listened.
fn await_log(server: &Server, text: &str) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !server.log().contains(text) {
        assert!(std::time::Instant::now() < deadline, "{text}");
        std::thread::yield_now();
    }
}

/// Waits until a file has `bytes` of room on its disk.
fn await_room(path: &Path, bytes: u64) {
    use std::os::unix::fs::MetadataExt as _;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while fs::metadata(path).map_or(0, |found| found.blocks() * 512) < bytes {
        assert!(std::time::Instant::now() < deadline, "{}", path.display());
        std::thread::yield_now();
    }
}
