//! `nimbus tenants move`: around all providers while requests come in, and whole after whatever cuts it off.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nimbus_e2e::wait::until;
use nimbus_e2e::{Client, Database, Home, Options, Server, files};
use nimbus_libsql_primary::{Options as PrimaryOptions, Primary};
use serde_json::{Value as Json, json};

/// A server of embedded providers that serves the other one too.
fn embedded(home: &Arc<Home>, first: &str, other: &str) -> Options {
    let args = ["--tenant-provider", first, "--also-tenant-provider", other];
    Options::new().home(home).args(&args)
}

fn insert(client: &Client, n: u64) -> Result<u16, String> {
    let body = json!({"table": "t", "fields": {"n": n, "body": "x".repeat(200)}});
    let sent = client.send("POST", "/api/tenants/acme/documents", Some(&body));
    sent.map(|reply| reply.status)
}

fn numbers(client: &Client) -> BTreeSet<u64> {
    let documents = client.documents("acme", "t");
    let all: BTreeSet<u64> = documents
        .iter()
        .map(|d| d["n"].as_f64().unwrap() as u64)
        .collect();
    assert_eq!(all.len(), documents.len(), "an insert was doubled");
    all
}

/// A tenant with an index and some documents, and their numbers.
fn fill(client: &Client, documents: u64) -> BTreeSet<u64> {
    client.create_tenant("acme");
    let schema = json!({"table": "t", "fields": [{"name": "n", "field_type": "number", "required": true}],
        "indexes": [{"name": "by_n", "fields": ["n"]}]});
    client
        .put("/api/tenants/acme/schema/t", &schema)
        .expect(204);
    for n in 0..documents {
        assert_eq!(insert(client, n).unwrap(), 201);
    }
    (0..documents).collect()
}

fn moved(server: &Server, to: &str) -> Json {
    let url = server.base();
    let args = ["tenants", "move", "--tenant", "acme", "--to", to];
    let place = ["--url", &url, "-f", "json"];
    server
        .home()
        .run(args.into_iter().chain(place))
        .expect(0)
        .json()
}

/// Inserts until it is told to stop, and what was acknowledged. A tenant that is being closed may refuse a request that
/// had begun, with a status that says to try again; nothing else may fail.
fn write(client: &Client, first: u64, stop: &AtomicBool) -> BTreeSet<u64> {
    let mut done = BTreeSet::new();
    let mut n = first;
    while !stop.load(Ordering::SeqCst) {
        match insert(client, n) {
            Ok(201) => drop(done.insert(n)),
            Ok(503) => {}
            other => panic!("{other:?}"),
        }
        n += 1;
    }
    done
}

#[test]
fn around_all_providers_while_it_is_written_to() {
    let (postgres, mysql) = (Database::postgres(), Database::mysql());
    let home = Arc::new(Home::new());
    let primary = Primary::start(home.path().join("primary"), PrimaryOptions::default()).unwrap();
    let mut args = vec!["--also-tenant-provider".to_owned(), "redb".to_owned()];
    for database in [&postgres, &mysql] {
        let mut flags = database.flags();
        assert_eq!(flags[0], "--tenant-provider");
        "--also-tenant-provider".clone_into(&mut flags[0]);
        args.extend(flags);
    }
    let cache = home.path().join("replicas").display().to_string();
    let libsql = [
        ("--also-tenant-provider", "libsql-replica".to_owned()),
        ("--libsql-url", primary.url()),
        ("--libsql-admin-url", primary.admin_url()),
        ("--libsql-replica-cache-dir", cache),
    ];
    args.extend(
        libsql
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]),
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut server = Server::start(Options::new().home(&home).args(&args));
    let client = server.client();
    let mut expected = fill(&client, 200);
    let stop = AtomicBool::new(false);
    let round = ["redb", "postgres", "mysql", "libsql-replica", "sqlite"];
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=4)
            .map(|writer| {
                let (client, stop) = (client.apart(), &stop);
                scope.spawn(move || write(&client, writer * 1_000_000, stop))
            })
            .collect();
        let mut from = "sqlite";
        for to in round {
            let status = moved(&server, to);
            assert_eq!(
                (status["from"].as_str(), status["to"].as_str()),
                (Some(from), Some(to))
            );
            assert!(status["rows"].as_u64() > Some(200), "{status}");
            println!("{status}");
            from = to;
        }
        stop.store(true, Ordering::SeqCst);
        for writer in writers {
            expected.extend(writer.join().unwrap());
        }
    });
    assert_eq!(numbers(&client), expected);
    client.check_consistency("acme");
    // Nothing is left where it was.
    assert_eq!(postgres.tenants_left(), "");
    assert_eq!(mysql.tenants_left(), "");
    let names = files::names(&server.data_dir());
    assert!(
        !names.contains("acme.redb") && names.contains("acme.sqlite3"),
        "{names:?}"
    );
    let left = files::all_below(&home.path().join("primary"));
    let of_tenant = |path: &std::path::PathBuf| path.to_string_lossy().contains("acme");
    assert!(!left.iter().any(of_tenant), "{left:?}");
    server.terminate();
}

/// Killed again and again in the middle: each start finds all that was acknowledged, and the last move ends.
#[test]
fn a_server_that_is_killed_while_it_moves_loses_nothing() {
    let home = Arc::new(Home::new());
    let mut server = Server::start(embedded(&home, "sqlite", "redb"));
    let mut expected = fill(&server.client(), 3_000);
    let phases = ["copying", "verifying", "catching_up", "switching", "done"];
    let mut seen = BTreeSet::new();
    for kill in 0..6_u64 {
        let client = server.client();
        let path = "/api/tenants/acme/move";
        client.post(path, &json!({"to": "redb"})).expect(202);
        let n = 1_000_000 + kill;
        assert_eq!(insert(&client, n).unwrap(), 201);
        expected.insert(n);
        // Later each time, by what the server says and not by a clock.
        let wanted = phases[usize::try_from(kill / 2).unwrap()];
        let mut phase = String::new();
        until("the move has come so far", || {
            phase = client.get(path).expect(200).json()["phase"]
                .as_str()
                .unwrap()
                .to_owned();
            let at = |name: &str| phases.iter().position(|p| *p == name);
            assert_ne!(phase, "failed");
            at(&phase) >= at(wanted)
        });
        seen.insert(phase);
        server.kill9();
        server.restart();
        let client = server.client();
        assert_eq!(numbers(&client), expected);
        client.check_consistency("acme");
        let names = files::names(&server.data_dir());
        assert_eq!(
            names
                .iter()
                .filter(|n| n.as_str() == "acme.redb" || n.as_str() == "acme.sqlite3")
                .count(),
            1,
            "{names:?}"
        );
        if names.contains("acme.redb") {
            moved(&server, "sqlite");
        }
    }
    assert!(seen.len() > 1, "{seen:?}");
    let status = moved(&server, "redb");
    assert_eq!(status["id"], "acme");
    server.terminate();
    // Whoever serves redb alone has it.
    let args = ["--tenant-provider", "redb"];
    let server = Server::start(Options::new().home(&home).args(&args));
    assert_eq!(numbers(&server.client()), expected);
}

#[test]
fn without_a_server_and_with_wrong_names() {
    let home = Arc::new(Home::new());
    let mut server = Server::start(Options::new().home(&home));
    let client = server.client();
    let expected = fill(&client, 10);
    client
        .get("/api/tenants/acme/move")
        .refused(404, "op.not_found");
    let body = json!({"to": "redb"});
    let reply = client.post("/api/tenants/acme/move", &body);
    let text = reply.refused(400, "op.invalid_input").text();
    assert!(text.contains("--also-tenant-provider"), "{text}");
    let url = server.base();
    let run = |args: &[&str]| home.run(["tenants", "move"].iter().chain(args));
    let nobody = ["--tenant", "nobody", "--to", "redb", "--url", &url];
    run(&nobody).expect(1);
    run(&["--tenant", "acme", "--to", "oracle", "--url", &url]).expect(2);
    run(&["--tenant", "acme", "--url", &url]).expect(2);
    run(&[
        "--tenant", "acme", "--to", "redb", "--cancel", "--url", &url,
    ])
    .expect(2);
    let nothing = run(&["--tenant", "acme", "--cancel", "--url", &url]).expect(1);
    assert!(nothing.stderr.contains("is not being moved"), "{nothing:?}");
    server.terminate();

    let data = home.data_dir().display().to_string();
    let there = ["--tenant", "acme", "--to", "redb", "--data-dir", &data];
    let done = run(&there).expect(0);
    assert!(
        done.stdout.starts_with("moved acme from sqlite to redb: "),
        "{done:?}"
    );
    let again = run(&there).expect(1);
    assert!(again.stderr.contains("is with redb already"), "{again:?}");
    let args = ["--tenant-provider", "redb"];
    let mut server = Server::start(Options::new().home(&home).args(&args));
    assert_eq!(numbers(&server.client()), expected);
    server.terminate();
    // One that does not serve redb does not have it.
    let server = Server::start(Options::new().home(&home));
    assert!(server.client().tenants().is_empty());
}

/// The copy is cut off in the middle, or it was too late; the command says which.
#[test]
fn a_move_is_cancelled_from_the_command_line() {
    let home = Arc::new(Home::new());
    let mut server = Server::start(embedded(&home, "sqlite", "redb"));
    let client = server.client();
    let expected = fill(&client, 3_000);
    let url = server.base();
    let (mut from, mut to) = ("sqlite", "redb");
    loop {
        let begun = client.post("/api/tenants/acme/move", &json!({"to": to}));
        begun.expect(202);
        let args = ["tenants", "move", "--tenant", "acme", "--cancel"];
        let ended = home.run(args.into_iter().chain(["--url", &url]));
        if ended.code == Some(0) {
            let told = format!("cancelled: acme stays with {from}\n");
            assert_eq!(ended.stdout, told);
            break;
        }
        let too_late = ended.stderr.contains("it was too late: the tenant is with")
            || ended.stderr.contains("is not being moved");
        assert!(too_late, "{ended:?}");
        std::mem::swap(&mut from, &mut to);
    }
    let status = client.get("/api/tenants/acme/move").expect(200).json();
    assert_eq!(status["phase"], "failed");
    assert_eq!(status["error"], "the move was cancelled");
    assert_eq!(numbers(&client), expected);
    server.terminate();
    let names = files::names(&server.data_dir());
    let files = ["acme.sqlite3", "acme.redb"];
    assert_eq!(files.iter().filter(|f| names.contains(**f)).count(), 1);
}
