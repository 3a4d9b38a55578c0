//! `kill -9` under load loses no acknowledged write and leaves no half transaction.
//!
//! Each writer has one request in flight and writes down an acknowledgement before it sends the
//! next, so after a kill the table may differ from what was acknowledged by that one request.
//! A kill cannot show a lost sync, because the page cache survives it; the power-loss tests do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use nimbus_e2e::{Client, Home, Options, Rng, Server};
use serde_json::{Value as Json, json};

const SEED: u64 = 0x6e69_6d62_7573_0001;
const KILLS: usize = 20;
/// Kills of the kinds of files that are not the default.
const OTHER_KILLS: usize = 8;
const WRITERS: u64 = 8;
const TENANT: &str = "load";

/// A request that may have been carried out although no answer came.
#[derive(Clone, Debug)]
enum Op {
    Insert(Json),
    Patch(String, Json),
    Delete(String),
}

/// What a writer knows when its server is gone.
#[derive(Debug)]
struct Writer {
    number: u64,
    /// Acknowledged documents by id.
    documents: BTreeMap<String, Json>,
    /// The request that got no answer.
    pending: Op,
    acknowledged: u64,
}

impl Writer {
    /// Writes until the connection fails.
    fn run(number: u64, client: &Client, table: &str, seed: u64, first: &Sender<()>) -> Writer {
        let mut rng = Rng::new(seed);
        let mut documents: BTreeMap<String, Json> = BTreeMap::new();
        for acknowledged in 0.. {
            let op = next_op(number, &documents, &mut rng);
            let Ok(answer) = send(client, table, &op) else {
                return Writer {
                    number,
                    documents,
                    pending: op,
                    acknowledged,
                };
            };
            match op {
                Op::Insert(fields) => drop(documents.insert(answer.unwrap(), fields)),
                Op::Patch(id, fields) => drop(documents.insert(id, fields)),
                Op::Delete(id) => drop(documents.remove(&id)),
            }
            // The receiver hears the first acknowledgement of all and then stops listening.
            let _ = first.send(());
        }
        unreachable!("the loop has no end of its own");
    }

    /// Checks the writer's documents in the table.
    fn check(&self, mut found: BTreeMap<String, Json>) {
        let context = format!("writer {} with {:?} pending", self.number, self.pending);
        for (id, fields) in &self.documents {
            let stored = found.remove(id);
            let as_acknowledged = stored.as_ref() == Some(fields);
            let as_pending = match &self.pending {
                Op::Patch(target, new) => target == id && stored.as_ref() == Some(new),
                Op::Delete(target) => target == id && stored.is_none(),
                Op::Insert(_) => false,
            };
            assert!(
                as_acknowledged || as_pending,
                "{context}: {id} was acknowledged as {fields} and is {stored:?}"
            );
        }
        // What is left was never acknowledged: the pending insert, whole, or nothing.
        assert!(found.len() <= 1, "{context}: {found:?}");
        for (id, stored) in found {
            let Op::Insert(fields) = &self.pending else {
                panic!("{context}: {id} comes from nowhere: {stored}");
            };
            assert_eq!(stored, *fields, "{context}: {id}");
        }
    }
}

/// Five in seven insert, one patches, one deletes.
fn next_op(writer: u64, documents: &BTreeMap<String, Json>, rng: &mut Rng) -> Op {
    let len = usize::try_from(rng.between(0, 3_000)).unwrap();
    let fields = json!({
        "writer": format!("w{writer}"),
        "key": rng.letters(8),
        "text": rng.letters(len),
    });
    let kind = rng.between(0, 6);
    if documents.is_empty() || kind < 5 {
        return Op::Insert(fields);
    }
    let at = rng.between(0, documents.len() as u64 - 1);
    let id = documents.keys().nth(usize::try_from(at).unwrap()).unwrap();
    if kind == 5 {
        Op::Patch(id.clone(), fields)
    } else {
        Op::Delete(id.clone())
    }
}

/// Sends `op`; the id that an insert was given. `Err` when there was no answer.
fn send(client: &Client, table: &str, op: &Op) -> Result<Option<String>, String> {
    let documents = format!("/api/tenants/{TENANT}/documents");
    match op {
        Op::Insert(fields) => {
            let body = json!({"table": table, "fields": fields});
            let reply = client.send("POST", &documents, Some(&body))?.expect(201);
            Ok(reply.json()["id"].as_str().map(str::to_owned))
        }
        Op::Patch(id, fields) => {
            let path = format!("{documents}/{table}/{id}");
            let reply = client.send("PATCH", &path, Some(&json!({"patch": fields})))?;
            reply.expect(200);
            Ok(None)
        }
        Op::Delete(id) => {
            let path = format!("{documents}/{table}/{id}");
            client.send("DELETE", &path, None)?.expect(204);
            Ok(None)
        }
    }
}

fn declare(client: &Client, table: &str) {
    let schema = json!({
        "table": table,
        "fields": [
            {"name": "writer", "field_type": "string", "required": true},
            {"name": "key", "field_type": "string", "required": true},
        ],
        "indexes": [
            {"name": "by_writer", "fields": ["writer"]},
            {"name": "by_writer_and_key", "fields": ["writer", "key"]},
        ],
    });
    let path = format!("/api/tenants/{TENANT}/schema/{table}");
    client.put(&path, &schema).expect(204);
}

/// The documents of one writer without their system fields, found through the index.
fn stored(client: &Client, table: &str, writer: u64) -> BTreeMap<String, Json> {
    let query = json!({
        "table": table,
        "filters": [{"field": "writer", "op": "eq", "value": format!("w{writer}")}],
    });
    let reply = client.post(&format!("/api/tenants/{TENANT}/query"), &query);
    let Json::Array(documents) = reply.expect(200).json()["data"].take() else {
        panic!("no list");
    };
    let mut found = BTreeMap::new();
    for mut document in documents {
        let fields = document.as_object_mut().unwrap();
        let id = fields.remove("_id").unwrap();
        assert!(fields.remove("_creationTime").unwrap().is_number());
        found.insert(id.as_str().unwrap().to_owned(), document);
    }
    found
}

fn check_round(client: &Client, table: &str, writers: &[Writer]) {
    let mut total = 0;
    for writer in writers {
        let found = stored(client, table, writer.number);
        total += found.len();
        writer.check(found);
    }
    // The same count without the index.
    assert_eq!(client.documents(TENANT, table).len(), total, "{table}");
}

#[test]
fn no_acknowledged_write_is_lost_in_twenty_kills() {
    kills(Options::new(), KILLS);
}

#[test]
fn no_acknowledged_write_is_lost_on_encrypted_sqlite() {
    kills(encrypted("sqlite"), OTHER_KILLS);
}

#[test]
fn no_acknowledged_write_is_lost_on_redb() {
    kills(
        Options::new().args(&["--tenant-provider", "redb"]),
        OTHER_KILLS,
    );
}

#[test]
fn no_acknowledged_write_is_lost_on_encrypted_redb() {
    kills(encrypted("redb"), OTHER_KILLS);
}

/// A server with a master key.
fn encrypted(provider: &str) -> Options {
    let home = Arc::new(Home::new());
    let key = home.path().join("master.key");
    std::fs::write(&key, [0x4b; 32]).unwrap();
    nimbus_e2e::files::set_mode(&key, 0o400);
    let options = Options::new()
        .home(&home)
        .args(&["--tenant-provider", provider]);
    options
        .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file")
        .env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", &key)
}

fn kills(options: Options, kills: usize) {
    let mut rng = Rng::new(SEED);
    let mut server = Server::start(options);
    server.client().create_tenant(TENANT);
    let mut rounds: Vec<(String, Vec<Writer>)> = Vec::new();
    for round in 0..kills {
        let client = server.client();
        let table = format!("round{round}");
        declare(&client, &table);
        let (first, acknowledged) = mpsc::channel();
        let start = |number: u64| -> JoinHandle<Writer> {
            let (client, table, first) = (client.apart(), table.clone(), first.clone());
            let seed = SEED ^ (round as u64) << 32 ^ number << 8;
            std::thread::spawn(move || Writer::run(number, &client, &table, seed, &first))
        };
        let writers: Vec<_> = (0..WRITERS).map(start).collect();
        drop(first);
        acknowledged.recv_timeout(Duration::from_secs(20)).unwrap();
        run_for(&acknowledged, Duration::from_millis(rng.between(50, 600)));
        server.kill9();
        let writers: Vec<Writer> = writers.into_iter().map(|w| w.join().unwrap()).collect();

        server.restart();
        let client = server.client();
        check_round(&client, &table, &writers);
        if let Some((table, writers)) = rounds.last() {
            check_round(&client, table, writers);
        }
        client.check_consistency(TENANT);
        rounds.push((table, writers));
    }
    let client = server.client();
    for (table, writers) in &rounds {
        check_round(&client, table, writers);
    }
    let writers = rounds.iter().flat_map(|(_, writers)| writers);
    let acknowledged: u64 = writers.clone().map(|w| w.acknowledged).sum();
    let kept: usize = writers.map(|w| w.documents.len()).sum();
    println!(
        "{kills} kills with {WRITERS} writers, seed {SEED:#x}: {acknowledged} writes acknowledged, \
         {kept} documents expected, none lost, consistency ok each time"
    );
    // A run in which hardly anything was written shows nothing.
    assert!(acknowledged > 20 * WRITERS, "{acknowledged}");
}

/// Lets the writers go on for `time`. They never stop by themselves before the kill.
fn run_for(acknowledged: &mpsc::Receiver<()>, time: Duration) {
    let deadline = std::time::Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        match acknowledged.recv_timeout(left) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return,
            Err(RecvTimeoutError::Disconnected) => panic!("every writer stopped before the kill"),
        }
    }
}

#[test]
fn a_killed_creation_or_deletion_is_finished_or_undone() {
    for options in [Options::new(), encrypted("sqlite"), encrypted("redb")] {
        churns(options);
    }
}

fn churns(options: Options) {
    let mut rng = Rng::new(SEED ^ 1);
    let mut server = Server::start(options);
    for round in 0..8 {
        let client = server.client();
        let (first, acknowledged) = mpsc::channel();
        let churn = std::thread::spawn({
            let client = client.apart();
            move || churn(&client, round, &first)
        });
        acknowledged.recv_timeout(Duration::from_secs(20)).unwrap();
        run_for(&acknowledged, Duration::from_millis(rng.between(1, 60)));
        server.kill9();
        let (kept, pending) = churn.join().unwrap();
        server.restart();
        let client = server.client();
        let mut listed = client.tenants();
        listed.retain(|id| id.starts_with(&format!("t{round}-")));
        let mut expected = kept.clone();
        if listed.contains(&pending) != kept.contains(&pending) {
            // The pending request was carried out.
            match expected.iter().position(|id| *id == pending) {
                Some(at) => drop(expected.remove(at)),
                None => expected.push(pending),
            }
        }
        expected.sort();
        assert_eq!(listed, expected, "round {round}");
        for id in &listed {
            assert!(client.documents(id, "notes").len() <= 1);
            client.check_consistency(id);
        }
        // A name that was lost in between can be used again.
        for id in &listed {
            client.delete(&format!("/api/tenants/{id}")).expect(204);
        }
        let names = nimbus_e2e::files::names(&server.data_dir());
        let left: Vec<_> = names
            .iter()
            .filter(|name| name.contains(".sqlite3") || name.contains(".redb"))
            .collect();
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
}

/// Creates and deletes tenants until the connection fails; the tenants that must be there, and
/// the one whose creation or deletion got no answer.
fn churn(client: &Client, round: u64, first: &Sender<()>) -> (Vec<String>, String) {
    let mut kept: Vec<String> = Vec::new();
    for n in 0.. {
        let id = format!("t{round}-{n}");
        match client.send("POST", "/api/tenants", Some(&json!({"id": id}))) {
            Ok(reply) => drop(reply.expect(201)),
            Err(_) => return (kept, id),
        }
        kept.push(id.clone());
        let _ = first.send(());
        let body = json!({"table": "notes", "fields": {"n": id}});
        match client.send("POST", &format!("/api/tenants/{id}/documents"), Some(&body)) {
            Ok(reply) => drop(reply.expect(201)),
            Err(_) => return (kept, "none".to_owned()),
        }
        if n % 2 == 0 {
            match client.send("DELETE", &format!("/api/tenants/{id}"), None) {
                Ok(reply) => drop(reply.expect(204)),
                Err(_) => return (kept, id),
            }
            kept.pop();
        }
    }
    unreachable!("the loop has no end of its own");
}
