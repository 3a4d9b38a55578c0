//! `nimbus audit`: the chain of a real server's log is checked, shown and exported, and what others
//! do to it is found.
//!
//! It must not know how a line is sealed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use nimbus_e2e::{Finished, Home, Options, Server, files};
use serde_json::{Value as Json, json};

fn verify(home: &Home) -> Finished {
    let data = home.data_dir();
    home.run([
        "audit",
        "verify",
        "-f",
        "json",
        "--data-dir",
        data.to_str().unwrap(),
    ])
}

fn texts(home: &Home) -> Vec<String> {
    let text = fs::read_to_string(home.audit_log()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// A server with some entries, and how many.
fn busy() -> (Server, u64) {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    for n in 0..5 {
        client.insert("acme", "notes", &json!({"n": n}));
        server.anonymous().get("/api/tenants").expect(401);
    }
    client.delete("/api/tenants/acme").expect(204);
    let count = texts(server.home()).len() as u64;
    (server, count)
}

#[test]
fn a_log_is_checked_beside_a_server_and_after_it() {
    let (mut server, count) = busy();
    let home = server.home().clone();
    // The anchor's first copy is there half a second after the first entry; until then the end cannot
    // be judged.
    let running = loop {
        let finished = verify(&home);
        if finished.json()["anchor"] != Json::Null {
            break finished.expect(0).json();
        }
        finished
            .expect(1)
            .says(&["cannot be told without an anchor"]);
    };
    assert_eq!(
        (&running["intact"], &running["last"]),
        (&json!(true), &json!(count))
    );
    assert_eq!(running["anchor"]["source"], "copy");
    assert!(server.terminate().success());
    let stopped = verify(&home).expect(0).json();
    assert_eq!(
        stopped["anchor"],
        json!({"entry": count, "source": "control_database"})
    );
    assert_eq!(
        (&stopped["entries"], &stopped["first"], &stopped["files"]),
        (&json!(count), &json!(1), &json!(1))
    );
    let text = home.run(["audit", "verify"]).expect(0).stdout;
    assert!(
        text.contains(&format!("entries 1 to {count}")) && text.contains("intact"),
        "{text}"
    );
}

#[test]
fn what_others_do_to_the_log_is_found_and_the_server_goes_on() {
    let (mut server, count) = busy();
    let home = server.home().clone();
    assert!(server.terminate().success());
    let whole = fs::read_to_string(home.audit_log()).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let edited = whole.replacen("\"status\":401", "\"status\":200", 1);
    let missing = [&lines[..3], &lines[4..]].concat().concat();
    let cut = lines[..lines.len() - 2].concat();
    let first_refusal = 1 + lines
        .iter()
        .position(|l| l.contains("\"status\":401"))
        .unwrap();
    for (text, kind, line) in [
        (&edited, "changed", first_refusal),
        (&missing, "missing", 4),
        (&cut, "cut_end", lines.len() - 1),
    ] {
        fs::write(home.audit_log(), text).unwrap();
        let finished = verify(&home)
            .expect(1)
            .says(&["is broken in 1 place;", "evidence"]);
        let found = finished.json();
        assert_eq!(found["intact"], false);
        assert_eq!(
            (&found["breaks"][0]["kind"], &found["breaks"][0]["line"]),
            (&json!(kind), &json!(line))
        );
        let shown = home.run(["audit", "verify"]).expect(1).stdout;
        assert!(shown.contains(&format!("line {line} ")), "{shown}");
    }
    // A server starts on a log with a cut end, says so, and keeps the gap visible for ever.
    server.restart();
    let told = server.log();
    assert!(
        told.contains("audit entries that were durable are missing"),
        "{told}"
    );
    server.client().get("/api/tenants").expect(200);
    assert!(server.terminate().success());
    let found = verify(&home).expect(1).json();
    assert_eq!(found["breaks"][0]["kind"], "missing");
    assert_eq!(found["last"], count + 1);
    // Without the key nothing is trusted, and nothing overwritten.
    let key = home.token_file().with_file_name("audit.key");
    assert_eq!(files::mode(&key), 0o600);
    let before = fs::read(home.audit_log()).unwrap();
    fs::remove_file(&key).unwrap();
    Server::refused(Options::new().home(&home)).says(&["audit.key", "is missing"]);
    home.run(["audit", "verify"]).expect(1).says(&["no key"]);
    assert_eq!(fs::read(home.audit_log()).unwrap(), before);
}

/// Each of these answers waits for a sync that began after its line was written, so one after the
/// other they need one each; without waiting, the log is synced twice a second.
#[test]
fn refusals_changes_and_deletions_are_durable_before_the_answer() {
    let mut server = Server::start(Options::new().sync_takes(Duration::from_millis(1)));
    let (client, anonymous) = (server.client(), server.anonymous());
    let mut waited = 0;
    for n in 0..5 {
        let tenant = format!("t{n}");
        client.create_tenant(&tenant);
        let id = client.insert(&tenant, "notes", &json!({"n": n}));
        client
            .delete(&format!("/api/tenants/{tenant}/documents/notes/{id}"))
            .expect(204);
        client.delete(&format!("/api/tenants/{tenant}")).expect(204);
        anonymous.get("/api/tenants").expect(401);
        // Creating, two deletions, a refusal.
        waited += 4;
    }
    assert!(server.terminate().success());
    let syncs = server.syncs_of("access.jsonl");
    assert!(
        syncs >= waited,
        "{syncs} syncs for {waited} answers that wait for one"
    );
}

#[test]
fn the_end_of_the_log_is_shown_and_followed() {
    let (server, count) = busy();
    let home = server.home();
    let shown = home.run(["audit", "tail", "-n", "3"]).expect(0).stdout;
    assert_eq!(shown.lines().count(), 3);
    assert!(
        shown
            .lines()
            .last()
            .unwrap()
            .contains(" 204 DELETE /api/tenants/acme client=127.0.0.1"),
        "{shown}"
    );
    let stored = home
        .run(["audit", "tail", "-n", "99999", "-f", "json"])
        .expect(0)
        .stdout;
    assert_eq!(stored, fs::read_to_string(home.audit_log()).unwrap());
    assert_eq!(stored.lines().count() as u64, count);
    let mut follow = home
        .command(["audit", "tail", "-n", "1", "-F", "-f", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut paths = lines.map(|line| {
        let line: Json = serde_json::from_str(&line.unwrap()).unwrap();
        line["path"].as_str().unwrap().to_owned()
    });
    assert_eq!(paths.next().unwrap(), "/api/tenants/acme");
    for path in ["/api/tenants/one", "/api/tenants/two"] {
        server.anonymous().get(path).expect(401);
        assert_eq!(paths.next().unwrap(), path);
    }
    follow.kill().unwrap();
    follow.wait().unwrap();
    let empty = Home::new();
    empty
        .run(["audit", "tail"])
        .expect(1)
        .says(&["no audit log"]);
}

#[test]
fn entries_are_exported_by_time_tenant_and_outcome() {
    let (mut server, count) = busy();
    let home = server.home().clone();
    assert!(server.terminate().success());
    let export = |args: &[&str]| -> Vec<Json> {
        let finished = home.run([&["audit", "export"], args].concat()).expect(0);
        finished
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    assert_eq!(export(&[]).len() as u64, count);
    let denied = export(&["--denied"]);
    assert_eq!(denied.len(), 5);
    assert!(denied.iter().all(|line| line["success"] == false));
    assert_eq!(export(&["--tenant", "acme"]).len(), 6);
    let third = &export(&[])[2]["ts"].as_str().unwrap().to_owned();
    let (before, after) = (export(&["--until", third]), export(&["--since", third]));
    assert_eq!((before.len() + after.len()) as u64, count);
    assert!(before.len() <= 2 && !after.is_empty());
    let out = home.path().join("out.jsonl");
    home.run(["audit", "export", "--out", out.to_str().unwrap()])
        .expect(0);
    assert_eq!(fs::read(&out).unwrap(), fs::read(home.audit_log()).unwrap());
    assert_eq!(files::mode(&out), 0o600);
    home.run(["audit", "export", "--since", "yesterday"])
        .expect(2)
        .says(&["--since"]);
    // A broken log is exported as far as it is good, and the exit code tells.
    let text = fs::read_to_string(home.audit_log()).unwrap();
    fs::write(
        home.audit_log(),
        text.replacen("\"status\":401", "\"status\":200", 1),
    )
    .unwrap();
    let finished = home
        .run(["audit", "export"])
        .expect(1)
        .says(&["was changed"]);
    assert_eq!(finished.stdout.lines().count() as u64, count - 1);
}

#[test]
fn a_user_has_one_audit_log_and_a_second_server_is_told() {
    let server = Server::start(Options::new());
    let home = server.home();
    let other = home.path().join("other-data");
    let refused = Server::refused(Options::new().home(home).data_dir(&other));
    refused.says(&["written by another server", "XDG_STATE_HOME"]);
    let apart = home.path().join("other-state");
    let mut second = Server::start(
        Options::new()
            .home(home)
            .data_dir(&other)
            .env("XDG_STATE_HOME", &apart),
    );
    second.client().get("/api/tenants").expect(200);
    assert!(second.terminate().success());
}

#[test]
fn a_log_that_was_taken_away_is_missed() {
    let (mut server, _) = busy();
    let home = server.home().clone();
    assert!(server.terminate().success());
    let logs = home.audit_log().parent().unwrap().to_owned();
    let aside = home.path().join("aside");
    fs::rename(&logs, &aside).unwrap();
    verify(&home).expect(1).says(&["no audit log"]);
    // With its key: the data directory still knows the chain.
    fs::remove_file(home.token_file().with_file_name("audit.key")).unwrap();
    server.restart();
    assert!(
        server.log().contains("knows an older one"),
        "{}",
        server.log()
    );
    server.client().get("/api/tenants").expect(200);
    assert!(server.terminate().success());
    assert_eq!(verify(&home).expect(0).json()["last"], 1);
}
