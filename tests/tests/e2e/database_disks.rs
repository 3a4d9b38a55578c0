//! The disk of the database server is full: writes are refused, reads go on, nothing acknowledged is lost, and Nimbus
//! heals without a restart once there is room.
//!
//! It must not know which file of the database grows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nimbus_e2e::mount::{Mount, fill, switched_off};
use nimbus_e2e::wait::until;
use nimbus_e2e::{Client, Database, Options, Rng, Server};
use serde_json::json;

/// Refusals until the disk counts as full.
const REFUSALS: usize = 20;
/// Bytes of a document: little enough that a list of all is one answer, and more than a page.
const SIZE: usize = 10_000;

/// A tenant that is written to, and what became of each write.
struct Writer {
    client: Client,
    rng: Rng,
    next: u64,
    acknowledged: BTreeSet<u64>,
    /// Refused for want of room, so that nothing may be there of them.
    refused: BTreeSet<u64>,
}

impl Writer {
    fn new(server: &Server) -> Writer {
        let client = server.client();
        client.create_tenant("acme");
        let mut writer = Writer {
            client,
            rng: Rng::new(7),
            next: 0,
            acknowledged: BTreeSet::new(),
            refused: BTreeSet::new(),
        };
        for _ in 0..20 {
            assert_eq!(writer.write(SIZE), 201);
        }
        writer
    }

    /// Writes one document, of letters that no database makes smaller; the status of the answer.
    fn write(&mut self, size: usize) -> u16 {
        let n = self.next;
        self.next += 1;
        let fields = json!({"n": n, "text": self.rng.letters(size)});
        let body = json!({"table": "notes", "fields": fields});
        let reply = self.client.post("/api/tenants/acme/documents", &body);
        let status = reply.status;
        match status {
            201 => drop(self.acknowledged.insert(n)),
            507 => {
                let error = reply.refused(507, "service.storage_full").error();
                assert_eq!(error["retryable"], true, "{error}");
                self.refused.insert(n);
            }
            // The database is on its way down or up, or away.
            503 => {}
            500 => drop(reply.refused(500, "service.storage_io")),
            _ => panic!("{status}: {}", reply.text()),
        }
        status
    }

    /// Writes until enough was refused; how often with each status.
    fn write_until_full(&mut self, size: usize) -> BTreeMap<u16, usize> {
        let mut statuses = BTreeMap::new();
        let refusals = |statuses: &BTreeMap<u16, usize>| {
            statuses
                .iter()
                .filter(|(status, _)| **status != 201)
                .map(|(_, count)| count)
                .sum::<usize>()
        };
        while refusals(&statuses) < REFUSALS {
            *statuses.entry(self.write(size)).or_default() += 1;
            assert!(statuses.get(&201) < Some(&5_000), "the disk is never full");
        }
        println!("full: {statuses:?}");
        statuses
    }

    fn check(&self) {
        let found = self.found();
        let lost: Vec<_> = self.acknowledged.difference(&found).collect();
        assert!(
            lost.is_empty(),
            "{lost:?} of {} lost",
            self.acknowledged.len()
        );
        let there: Vec<_> = self.refused.intersection(&found).collect();
        assert!(there.is_empty(), "{there:?} were refused and are there");
    }

    fn found(&self) -> BTreeSet<u64> {
        let documents = self.client.documents("acme", "notes");
        let numbers = documents.iter().map(|d| d["n"].as_f64().unwrap() as u64);
        let found: BTreeSet<u64> = numbers.collect();
        assert_eq!(found.len(), documents.len(), "an insert was doubled");
        found
    }

    fn heals(&mut self) {
        until("it takes inserts again", || self.write(SIZE) == 201);
        self.check();
        self.client.check_consistency("acme");
    }
}

fn fills_and_heals(database: &Database, disk: &Mount) {
    let mut server = Server::start(Options::new().on(database));
    let mut writer = Writer::new(&server);
    for _ in 0..2 {
        let filler = disk.path().join("filler");
        fill(&filler);
        let statuses = writer.write_until_full(SIZE);
        assert!(statuses.contains_key(&507), "{statuses:?}");
        writer.check();
        let late = writer.client.post("/api/tenants", &json!({"id": "late"}));
        assert!([503, 507].contains(&late.status), "{}", late.text());
        assert_eq!(writer.client.tenants(), ["acme"]);
        fs::remove_file(filler).unwrap();
        writer.heals();
    }
    until("tenants are made again", || {
        let late = writer.client.post("/api/tenants", &json!({"id": "late"}));
        late.status == 201
    });
    server.terminate();
    server.restart();
    writer.client = server.client();
    writer.check();
}

#[test]
fn a_full_disk_of_postgres_stops_writes_only() {
    if switched_off("a full disk of Postgres") {
        return;
    }
    let disk = Mount::shared_tmpfs(160);
    fills_and_heals(
        &Database::postgres_with(Some(&disk.path()), &small_log()),
        &disk,
    );
}

/// Files of 4 MiB, and few of them.
fn small_log() -> [(&'static str, String); 2] {
    [
        ("max_wal_size", "16MB".to_owned()),
        ("min_wal_size", "8MB".to_owned()),
    ]
}

/// Writes until the database ends by itself, makes room, starts it as an operator would, and Nimbus goes on.
fn stops_and_is_found_again(database: &mut Database, disk: &Mount) {
    let server = Server::start(Options::new().on(database));
    let mut writer = Writer::new(&server);
    let filler = disk.path().join("filler");
    fill(&filler);
    let mut statuses = BTreeMap::<u16, usize>::new();
    until("the database stops", || {
        *statuses.entry(writer.write(100_000)).or_default() += 1;
        statuses.contains_key(&503) || statuses.contains_key(&500)
    });
    fs::remove_file(filler).unwrap();
    let revived = database.revive();
    println!("until it stopped: {statuses:?}; started again by us: {revived}");
    writer.heals();
}

/// Postgres ends when it has no room for its log, and may not come up again until somebody makes some.
#[test]
fn a_postgres_that_stops_for_want_of_room_is_found_again() {
    if switched_off("a Postgres without room for its log") {
        return;
    }
    let disk = Mount::shared_tmpfs(24);
    let mut database = Database::postgres_with_log_on(&disk.path(), &small_log());
    stops_and_is_found_again(&mut database, &disk);
}

/// InnoDB of 10.11 ends the server when a rollback finds no room.
#[test]
fn a_mariadb_that_stops_for_want_of_room_is_found_again() {
    if switched_off("a MariaDB without room") {
        return;
    }
    let disk = Mount::shared_tmpfs(256);
    let settings = [("innodb-log-file-size", "8M".to_owned())];
    let mut database = Database::mysql_with(Some(&disk.path()), &settings);
    stops_and_is_found_again(&mut database, &disk);
}
