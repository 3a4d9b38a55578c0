//! Two servers on one database: one refuses the other until it is told, both serve the same tenants,
//! and neither waits for one that died or stands still.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nimbus_e2e::wait::until;
use nimbus_e2e::{Client, Database, Home, Options, Server};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

fn on(database: &Database) -> Options {
    Options::new().on(database)
}

/// The first server of a database, and a second one that joins it.
fn pair(database: &Database) -> (Server, Server) {
    let first = Server::start(on(database));
    let home = Arc::new(Home::new());
    let refused = Server::refused(on(database).home(&home));
    let text = &refused.stderr;
    let (_, rest) = text.split_once("--join-installation ").expect(text);
    let id = &rest[..32];
    assert!(id.bytes().all(|b| b.is_ascii_hexdigit()), "{text}");
    assert!(text.contains("belongs to installation"), "{text}");
    let joined = on(database).home(&home).args(&["--join-installation", id]);
    (first, Server::start(joined))
}

fn insert(client: &Client, n: u64) -> bool {
    let body = json!({"table": "t", "fields": {"n": n}});
    let sent = client.send("POST", "/api/tenants/acme/documents", Some(&body));
    sent.is_ok_and(|reply| reply.status == 201)
}

fn numbers(client: &Client) -> BTreeSet<u64> {
    let documents = client.documents("acme", "t");
    let count = documents.len();
    let numbers: BTreeSet<u64> = documents
        .iter()
        .map(|d| d["n"].as_f64().unwrap() as u64)
        .collect();
    assert_eq!(numbers.len(), count, "an insert was doubled");
    numbers
}

#[test]
fn two_servers_share_the_tenants_of_a_database() {
    share(&Database::postgres());
}

#[test]
fn two_servers_share_the_tenants_of_a_mariadb() {
    share(&Database::mysql());
}

fn share(database: &Database) {
    let (a, mut b) = pair(database);
    let (at_a, at_b) = (a.client(), b.client());
    at_a.create_tenant("acme");
    assert_eq!(at_b.tenants(), ["acme"]);
    for n in 0..20 {
        let (writer, reader) = if n % 2 == 0 {
            (&at_a, &at_b)
        } else {
            (&at_b, &at_a)
        };
        assert!(insert(writer, n));
        assert_eq!(
            numbers(reader).len() as u64,
            n + 1,
            "an acknowledged insert is not there"
        );
    }
    // A schema of one holds on the other at once.
    let schema = json!({"table": "t", "fields": [{"name": "n", "field_type": "number", "required": true}], "indexes": []});
    at_a.put("/api/tenants/acme/schema/t", &schema).expect(204);
    let wrong = json!({"table": "t", "fields": {"n": "text"}});
    at_b.post("/api/tenants/acme/documents", &wrong).expect(422);
    // One that died takes nothing with it, and finds everything when it comes back.
    b.kill9();
    assert!(insert(&at_a, 100));
    b.restart();
    let at_b = b.client();
    assert_eq!(numbers(&at_b).len(), 21);
    at_b.check_consistency("acme");
    // Deleted by one, gone on both, with nothing left in the database.
    at_b.delete("/api/tenants/acme").expect(204);
    at_a.get("/api/tenants/acme/tables").expect(404);
    assert!(at_a.tenants().is_empty());
    assert_eq!(database.tenants_left(), "");
}

#[test]
fn a_server_that_stands_still_holds_nobody_up_and_loses_nothing() {
    stand_still(&Database::postgres());
}

#[test]
fn a_server_that_stands_still_holds_nobody_up_on_mariadb() {
    stand_still(&Database::mysql());
}

fn stand_still(database: &Database) {
    let (a, b) = pair(database);
    a.client().create_tenant("acme");
    let stop = AtomicBool::new(false);
    let acknowledged: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..16)
            .map(|number: u64| {
                let client = if number.is_multiple_of(2) {
                    a.client()
                } else {
                    b.client()
                };
                let stop = &stop;
                scope.spawn(move || {
                    let mut done = Vec::new();
                    let mut n = number * 1_000_000;
                    while !stop.load(Ordering::SeqCst) {
                        if insert(&client, n) {
                            done.push(n);
                        }
                        n += 1;
                    }
                    done
                })
            })
            .collect();
        let (at_a, at_b) = (a.client(), b.client());
        let stood = Pid::from_raw(i32::try_from(a.pid()).unwrap()).unwrap();
        for round in 0..3 {
            // In the middle of commits, since writers never pause.
            kill_process(stood, Signal::STOP).unwrap();
            let head = at_b.journal_head("acme");
            assert!(insert(&at_b, 90_000_000 + round), "the other server waits");
            assert!(at_b.journal_head("acme") > head);
            kill_process(stood, Signal::CONT).unwrap();
            assert!(insert(&at_a, 91_000_000 + round), "it does not go on");
        }
        stop.store(true, Ordering::SeqCst);
        writers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect()
    });
    let found = numbers(&a.client());
    assert_eq!(found, numbers(&b.client()));
    let lost: Vec<_> = acknowledged.iter().filter(|n| !found.contains(n)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} lost",
        lost.len(),
        acknowledged.len()
    );
    a.client().check_consistency("acme");
    b.client().check_consistency("acme");
}

/// Restarts of the database in a run of CI; the soak has a hundred.
const RESTARTS: usize = 5;

#[test]
fn a_database_that_crashes_under_load_loses_and_doubles_nothing() {
    crash_often(Database::private_postgres(), Shown::AtOnce);
}

#[test]
fn a_database_that_crashes_under_load_loses_and_doubles_nothing_on_mariadb() {
    crash_often(Database::private_mysql(), Shown::AtOnce);
}

#[test]
fn a_database_that_crashes_under_load_loses_and_doubles_nothing_on_libsql() {
    crash_often(Database::private_libsql(), Shown::Soon);
}

/// When a server shows what another one acknowledged (docs/scaling.md).
#[derive(PartialEq)]
enum Shown {
    AtOnce,
    /// Within 250 ms.
    Soon,
}

fn crash_often(mut database: Database, shown: Shown) {
    let (a, b) = pair(&database);
    a.client().create_tenant("acme");
    let restarts = std::env::var("NIMBUS_SOAK_RESTARTS").map_or(RESTARTS, |n| n.parse().unwrap());
    let stop = AtomicBool::new(false);
    let acknowledged: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..16_u64)
            .map(|number| {
                let client = if number.is_multiple_of(2) {
                    a.client()
                } else {
                    b.client()
                };
                let stop = &stop;
                scope.spawn(move || {
                    let mut done = Vec::new();
                    for n in number * 1_000_000.. {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        if insert(&client, n) {
                            done.push(n);
                        }
                    }
                    done
                })
            })
            .collect();
        for _ in 0..restarts {
            // Some commits between two crashes, on both servers.
            for client in [a.client(), b.client()] {
                let before = commits(&client);
                until("twenty more commits", || commits(&client) >= before + 20);
            }
            database.crash_and_restart();
        }
        for (client, first) in [(a.client(), 98_000_000), (b.client(), 99_000_000)] {
            // Never the same number twice: what was not acknowledged may be there.
            let mut numbers = first..;
            until("it takes inserts again", || {
                insert(&client, numbers.next().unwrap())
            });
        }
        stop.store(true, Ordering::SeqCst);
        writers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect()
    });
    if shown == Shown::Soon {
        let same = || numbers(&a.client()) == numbers(&b.client());
        until("both show the same", same);
    }
    let found = numbers(&a.client());
    assert_eq!(found, numbers(&b.client()));
    let lost: Vec<_> = acknowledged.iter().filter(|n| !found.contains(n)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} lost",
        lost.len(),
        acknowledged.len()
    );
    println!(
        "{restarts} crashes of the database, {} acknowledged inserts, none lost, none doubled",
        acknowledged.len()
    );
    a.client().check_consistency("acme");
    b.client().check_consistency("acme");
}

/// Commits of a server so far; the number stands still while the database is away.
fn commits(client: &Client) -> u64 {
    client.metric("nimbus_commits_total")
}
