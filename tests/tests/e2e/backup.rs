//! Backups by the command line: one commit's state from a server that is written to, whole tenants
//! out of it, nothing out of anything less, and nothing half done by a restore that is killed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nimbus_e2e::{Client, Finished, Home, Options, Rng, Server, files};
use serde_json::{Value as Json, json};

const TABLE: &str = "accounts";

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn backup(home: &Home, command: &str, args: &[&str]) -> Finished {
    home.run(["backup", command, "-f", "json"].iter().chain(args))
}

fn create(home: &Home, out: &Path, args: &[&str]) -> Finished {
    let given = [&["--out", path(out)], args].concat();
    backup(home, "create", &given)
}

fn verify(home: &Home, file: &Path) -> Finished {
    backup(home, "verify", &["--in", path(file)])
}

fn restore(home: &Home, file: &Path, data: &Path, args: &[&str]) -> Finished {
    let given = [&["--in", path(file), "--data-dir", path(data)], args].concat();
    backup(home, "restore", &given)
}

/// Documents by id, without what they would have in common.
fn by_id(documents: Vec<Json>) -> BTreeMap<String, Json> {
    let id = |document: &Json| document["_id"].as_str().unwrap().to_owned();
    documents.into_iter().map(|d| (id(&d), d)).collect()
}

/// The state of a table after a commit, as the journal tells it.
fn at_commit(client: &Client, tenant: &str, sequence: u64) -> BTreeMap<String, Json> {
    let mut state = BTreeMap::new();
    let mut after = 0;
    loop {
        let path = format!("/api/tenants/{tenant}/journal?after={after}&limit=1000");
        let page = client.get(&path).expect(200).json();
        for record in page["records"].as_array().unwrap() {
            if record["sequence"].as_u64().unwrap() > sequence {
                return state;
            }
            for write in record["writes"].as_array().unwrap() {
                let id = write["doc_id"].as_str().unwrap().to_owned();
                match (write["table"] == TABLE, &write["current"]) {
                    (false, _) => {}
                    (true, Json::Null) => drop(state.remove(&id)),
                    (true, current) => drop(state.insert(id, current.clone())),
                }
            }
        }
        if page["has_more"] == false {
            return state;
        }
        after = page["next_cursor"].as_u64().unwrap();
    }
}

/// Commits of two documents whose amounts cancel out, and single changes that move no amount.
fn write(client: &Client, writer: u64, stop: &AtomicBool) -> u64 {
    let mut rng = Rng::new(writer);
    let mut known: Vec<String> = Vec::new();
    let mut commits = 0;
    while !stop.load(Ordering::Relaxed) {
        let amount = rng.between(1, 1_000);
        let fields = |sign: f64| json!({"amount": sign * amount as f64, "note": rng_text(amount)});
        let body = json!({"import": format!("w{writer}-{commits}"), "last_line": 2, "rows": [
            {"line": 1, "fields": fields(1.0)}, {"line": 2, "fields": fields(-1.0)}]});
        let path = format!("/api/tenants/busy/import/{TABLE}");
        client.post(&path, &body).expect(200);
        let other = json!({"amount": 0, "note": "x"});
        known.push(client.insert("busy", TABLE, &other));
        let victim = &known[usize::try_from(rng.between(0, known.len() as u64 - 1)).unwrap()];
        let path = format!("/api/tenants/busy/documents/{TABLE}/{victim}");
        let patch = json!({"patch": {"note": format!("changed {commits}")}});
        client.patch(&path, &patch).expect(200);
        commits += 1;
    }
    commits
}

fn rng_text(seed: u64) -> String {
    Rng::new(seed).letters(40)
}

#[test]
fn a_backup_of_a_server_that_is_written_to_is_the_state_after_one_commit() {
    let server = Server::start(Options::new());
    let client = server.client();
    for tenant in ["busy", "idle", "other"] {
        client.create_tenant(tenant);
    }
    let index = json!({"table": TABLE, "fields": [{"name": "amount", "field_type": "number"}],
        "indexes": [{"name": "by_amount", "fields": ["amount"]}]});
    client
        .put(&format!("/api/tenants/busy/schema/{TABLE}"), &index)
        .expect(204);
    client.insert("idle", "t", &json!({"a": 1}));
    let row = |n: u64| json!({"line": n, "fields": {"amount": 0, "note": rng_text(n)}});
    let rows: Vec<Json> = (1..=1_500).map(row).collect();
    let body = json!({"import": "seed", "last_line": 1_500, "rows": rows});
    client
        .post(&format!("/api/tenants/busy/import/{TABLE}"), &body)
        .expect(200);
    let home = Arc::clone(server.home());
    let data = server.data_dir();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (client, stop) = (client.apart(), Arc::clone(&stop));
            thread::spawn(move || write(&client, writer, &stop))
        })
        .collect();
    let mut files = Vec::new();
    for n in 0..3 {
        let file = home.path().join(format!("{n}.backup"));
        let made = create(&home, &file, &["--data-dir", path(&data)])
            .expect(0)
            .json();
        assert_eq!(made["sealed"], false);
        assert_eq!(made["bytes"], fs::metadata(&file).unwrap().len());
        assert_eq!(files::mode(&file), 0o600);
        files.push(file);
    }
    stop.store(true, Ordering::Relaxed);
    let commits: u64 = writers.into_iter().map(|w| w.join().unwrap()).sum();
    assert!(commits > 8, "{commits}");

    let mut sequences = Vec::new();
    for (n, file) in files.iter().enumerate() {
        let found = verify(&home, file).expect(0).json();
        let busy = &found["tenants"][0];
        assert_eq!(busy["tenant"], "busy");
        let sequence = busy["sequence"].as_u64().unwrap();
        sequences.push(sequence);
        let expected = at_commit(&client, "busy", sequence);
        assert_eq!(busy["documents"], expected.len());
        let fresh = home.path().join(format!("restored{n}"));
        assert_eq!(restore(&home, file, &fresh, &[]).expect(0).json(), found);
        assert_eq!(files::mode(&fresh), 0o700);
        let copy = Server::start(Options::new().data_dir(&fresh));
        let copied = copy.client();
        let got = by_id(copied.documents("busy", TABLE));
        let sum: f64 = got.values().map(|d| d["amount"].as_f64().unwrap()).sum();
        assert_eq!(sum, 0.0);
        assert_eq!(got, expected);
        assert_eq!(copied.journal_head("busy"), sequence);
        for tenant in ["busy", "idle", "other"] {
            copied.check_consistency(tenant);
        }
        let filters = json!([{"field": "amount", "op": "gt", "value": 0}]);
        let query = json!({"table": TABLE, "filters": filters});
        let found = copied
            .post("/api/tenants/busy/query", &query)
            .expect(200)
            .json();
        let positive = expected
            .values()
            .filter(|d| d["amount"].as_f64().unwrap() > 0.0);
        assert_eq!(found["data"].as_array().unwrap().len(), positive.count());
        copied.insert("busy", TABLE, &json!({"amount": 0, "note": "on it goes"}));
        assert_eq!(copied.journal_head("busy"), sequence + 1);
    }
    assert!(
        sequences.is_sorted() && sequences[0] < sequences[2],
        "{sequences:?}"
    );
}

/// A data directory of a stopped server with three tenants, and a backup of it.
fn stopped() -> (Server, PathBuf, PathBuf) {
    let mut server = Server::start(Options::new());
    let client = server.client();
    for tenant in ["a", "b", "c"] {
        client.create_tenant(tenant);
        for n in 0..5 {
            client.insert(tenant, "t", &json!({"tenant": tenant, "n": n}));
        }
    }
    assert!(server.terminate().success());
    let (home, data) = (server.home(), server.data_dir());
    let file = home.path().join("all.backup");
    create(home, &file, &["--data-dir", path(&data)]).expect(0);
    (server, data, file)
}

#[test]
fn one_tenant_of_three_offline_and_back_into_the_same_directory() {
    let (mut server, data, file) = stopped();
    let home = Arc::clone(server.home());
    let one = home.path().join("b.backup");
    create(&home, &one, &["--data-dir", path(&data), "--tenant", "b"]).expect(0);
    let found = verify(&home, &one).expect(0).json();
    assert_eq!(found["tenants"].as_array().unwrap().len(), 1);
    assert!(
        files::contains(&one, "\"tenant\":\"b\"") && !files::contains(&one, "\"tenant\":\"c\"")
    );

    server.restart();
    let before = server.client().documents("b", "t");
    server.client().delete("/api/tenants/b").expect(204);
    restore(&home, &file, &data, &["--tenant", "b"])
        .expect(1)
        .says(&["no server holds", "which listens on"]);
    assert!(server.terminate().success());
    restore(&home, &file, &data, &[]).expect(1).says(&[
        "nothing was changed: tenants a, c are there already",
        "--tenant b",
    ]);
    let done = restore(&home, &file, &data, &["--tenant", "b"])
        .expect(0)
        .json();
    assert_eq!(done["tenants"][0]["documents"], 5);
    restore(&home, &file, &data, &["--tenant", "x"])
        .expect(1)
        .says(&["no tenant of this name is there: x"]);
    server.restart();
    assert_eq!(server.client().tenants(), ["a", "b", "c"]);
    assert_eq!(server.client().documents("b", "t"), before);
}

#[test]
fn refusals_say_what_to_do_and_change_nothing() {
    let (server, data, file) = stopped();
    let home = server.home();
    let dir = home.path();
    let before = fs::read(&file).unwrap();
    create(home, &file, &["--data-dir", path(&data)])
        .expect(1)
        .says(&["exists already and is not overwritten; name another file"]);
    assert_eq!(fs::read(&file).unwrap(), before);
    // A link is not followed, wherever it leads.
    let (link, target) = (dir.join("link"), dir.join("target"));
    symlink(&target, &link).unwrap();
    create(home, &link, &["--data-dir", path(&data)])
        .expect(1)
        .says(&["exists already"]);
    assert!(!target.exists());
    create(
        home,
        &dir.join("new"),
        &["--data-dir", path(&data), "--tenant", "x"],
    )
    .expect(1)
    .says(&["no tenant of this name is there: x", "nothing was written"]);
    create(home, &dir.join("no/dir"), &["--data-dir", path(&data)]).expect(1);
    assert!(!dir.join("new").exists());

    let fresh = dir.join("fresh");
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("text", b"hello".to_vec(), "this is not a backup"),
        ("empty", Vec::new(), "this is not a backup"),
        (
            "version",
            b"NIMBUSBK\x00\x07\x00\x00\x00\x00\x00\x00".to_vec(),
            "format version 7",
        ),
        ("cut", before[..before.len() - 1].to_vec(), "is cut off"),
        (
            "longer",
            [&before[..], b"\0"].concat(),
            "bytes after the end",
        ),
    ];
    for (name, bytes, text) in cases {
        let bad = dir.join(name);
        fs::write(&bad, bytes).unwrap();
        verify(home, &bad).expect(1).says(&[text]);
        restore(home, &bad, &fresh, &[]).expect(1).says(&[text]);
    }
    let list = home.run(["tenants", "list", "--data-dir", path(&fresh)]);
    assert_eq!(list.expect(0).stdout, "");
    verify(home, dir).expect(1).says(&["is not a regular file"]);
    verify(home, &dir.join("absent"))
        .expect(1)
        .says(&["absent"]);
    let args = ["--provider", "nosql"];
    restore(home, &file, &fresh, &args)
        .expect(2)
        .says(&["is not a provider"]);

    // Any flipped bit of a plain one.
    let mut rng = Rng::new(3);
    for _ in 0..40 {
        let bit = usize::try_from(rng.between(0, before.len() as u64 * 8 - 1)).unwrap();
        let mut bad = before.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let flipped = dir.join("flipped");
        fs::write(&flipped, bad).unwrap();
        verify(home, &flipped).expect(1);
    }
    verify(home, &file).expect(0);
}

/// Kills a restore when one of its threads makes its `n`th call of `calls`; `false` when it ended
/// before.
fn killed_at(home: &Home, file: &Path, data: &Path, calls: &str, n: usize) -> bool {
    let inject = format!("inject={calls}:signal=SIGKILL:when={n}");
    let trace = format!("trace={calls}");
    let mut command = home.program("strace", ["-f", "-qqq", "-e", &trace, "-e", &inject]);
    command
        .args(["-o", "/dev/null"])
        .arg(nimbus_e2e::home::binary());
    command.args([
        "backup",
        "restore",
        "--in",
        path(file),
        "--data-dir",
        path(data),
    ]);
    let output = command.output().unwrap();
    match output.status.code() {
        Some(0) => false,
        _ if String::from_utf8_lossy(&output.stderr).is_empty() => true,
        other => panic!("{other:?}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn a_restore_that_is_killed_at_any_sync_leaves_no_half_tenant_and_can_be_done_again() {
    let (server, data, file) = stopped();
    let home = server.home();
    let export = |data: &Path, tenant: &str| {
        let args = [
            "export",
            "--table",
            "t",
            "--tenant",
            tenant,
            "--data-dir",
            path(data),
        ];
        home.run(args)
    };
    let whole: Vec<String> = ["a", "b", "c"]
        .map(|tenant| export(&data, tenant).expect(0).stdout)
        .to_vec();
    // Syncs of every thread; and waits of the one that reads the backup, which are spread over
    // all that it does. Every one at first, then some.
    let mut rng = Rng::new(11);
    let mut kills = BTreeMap::new();
    for (calls, every) in [("fsync,fdatasync", 1_000), ("epoll_wait", 6)] {
        let mut n = 1;
        loop {
            let fresh = home.path().join("killed");
            if !killed_at(home, &file, &fresh, calls, n) {
                break;
            }
            *kills.entry(calls).or_insert(0) += 1;
            for (at, tenant) in ["a", "b", "c"].into_iter().enumerate() {
                let found = export(&fresh, tenant);
                match found.code {
                    Some(0) => assert_eq!(found.stdout, whole[at], "{calls} {n}, tenant {tenant}"),
                    _ => drop(found.says(&["tenant"])),
                }
            }
            finish(home, &file, &fresh);
            for (at, tenant) in ["a", "b", "c"].into_iter().enumerate() {
                let found = export(&fresh, tenant).expect(0).stdout;
                assert_eq!(found, whole[at], "{calls} {n}");
            }
            fs::remove_dir_all(&fresh).unwrap();
            n += match n < every {
                true => 1,
                false => usize::try_from(rng.between(1, 5)).unwrap(),
            };
        }
    }
    println!("killed {kills:?} times");
    assert!(
        kills.len() == 2 && kills.values().all(|n| *n >= 8),
        "{kills:?}"
    );
}

/// Restores again; if the one before was killed when all of it was in, then what it names.
fn finish(home: &Home, file: &Path, data: &Path) {
    let again = restore(home, file, data, &[]);
    if again.code == Some(0) {
        return;
    }
    let text = again.says(&["there already; delete"]).stderr;
    let named: Vec<&str> = text.split_whitespace().collect();
    let others: Vec<&str> = named
        .windows(2)
        .filter(|pair| pair[0] == "--tenant")
        .flat_map(|pair| ["--tenant", pair[1]])
        .collect();
    if !others.is_empty() {
        restore(home, file, data, &others).expect(0);
    }
}

/// Runs the binary; returns the most memory it had resident at once.
fn peak_of(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        if let Some(text) = fs::read_to_string(&status).ok()
            && let Some(line) = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))
        {
            peak = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024;
        }
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        thread::yield_now();
    };
    assert!(ended.success());
    peak
}

#[test]
fn memory_does_not_follow_from_the_size() {
    const DOCUMENTS: usize = 240;
    const LIMIT: u64 = 96 * 1024 * 1024;
    let mut server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("big");
    let text = "x".repeat(900_000);
    for n in 0..DOCUMENTS {
        client.insert("big", "t", &json!({"n": n, "text": text}));
    }
    let home = Arc::clone(server.home());
    let (data, file) = (server.data_dir(), home.path().join("big.backup"));
    let before = server.peak_memory();
    create(&home, &file, &["--data-dir", path(&data)]).expect(0);
    let size = fs::metadata(&file).unwrap().len();
    assert!(size > 2 * LIMIT, "{size}");
    let grown = server.peak_memory() - before;
    assert!(server.terminate().success());
    let offline = home.path().join("offline.backup");
    let fresh = home.path().join("fresh");
    let run = |args: &[&str]| peak_of(home.command(["backup"].iter().chain(args)));
    let peaks = [
        run(&["create", "--out", path(&offline), "--data-dir", path(&data)]),
        run(&["verify", "--in", path(&offline)]),
        run(&[
            "restore",
            "--in",
            path(&offline),
            "--data-dir",
            path(&fresh),
        ]),
    ];
    println!("{size} bytes; the server grew by {grown}; create, verify, restore: {peaks:?}");
    assert!(grown < LIMIT && peaks.iter().all(|peak| *peak < LIMIT));
}

#[test]
fn the_route_is_on_record_and_takes_what_the_command_takes() {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("a");
    let reply = client.get("/api/system/backup?tenant=a").expect(200);
    assert_eq!(
        reply.header("content-type"),
        Some("application/vnd.nimbus.backup")
    );
    assert!(reply.body.starts_with(b"NIMBUSBK"));
    let line = fs::read_to_string(server.home().audit_log()).unwrap();
    let last: Json = serde_json::from_str(line.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["reason"], &last["success"]),
        (&json!("backup.begun"), &json!(true))
    );
    client
        .get("/api/system/backup?tenant=a&tenant=x")
        .refused(404, "session.tenant_not_found");
    for path in [
        "?tenant=",
        "?tenant=_a",
        "?plain=1",
        "?plain=true&plain=true",
        "?x=1",
    ] {
        let path = format!("/api/system/backup{path}");
        client.get(&path).refused(400, "op.invalid_input");
    }
    server
        .anonymous()
        .get("/api/system/backup")
        .refused(401, "auth.unauthorized");
}

#[test]
fn the_backup_of_an_encrypted_store_is_sealed_and_needs_its_key() {
    const CANARY: &str = "the owl flies at midnight";
    let home = Arc::new(Home::new());
    let key = |name: &str| {
        let file = home.path().join(name);
        fs::write(&file, Rng::new(name.len() as u64).letters(32)).unwrap();
        files::set_mode(&file, 0o400);
        file
    };
    let (right, wrong) = (key("right.key"), key("other-wrong.key"));
    let settings = |file: &Path| {
        [
            ("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file".into()),
            ("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", file.to_owned()),
        ]
    };
    let mut options = Options::new().home(&home);
    for (name, value) in settings(&right) {
        options = options.env(name, value);
    }
    let mut server = Server::start(options);
    let client = server.client();
    client.create_tenant("a");
    client.insert("a", "t", &json!({"secret": CANARY}));
    let data = server.data_dir();
    let run = |file: Option<&Path>, args: &[&str]| {
        let mut command = home.command(["backup"].iter().chain(args));
        command.envs(file.into_iter().flat_map(settings));
        Finished::of(&mut command)
    };
    let (online, offline) = (
        home.path().join("on.backup"),
        home.path().join("off.backup"),
    );
    let plain = home.path().join("plain.backup");
    let place = ["--data-dir", path(&data), "--out"];
    let create = |out: &Path, more: &[&str]| {
        run(
            Some(&right),
            &[&["create"], &place[..], &[path(out)], more].concat(),
        )
        .expect(0)
    };
    assert!(create(&online, &[]).stdout.contains(", sealed"));
    assert!(
        create(&plain, &["--plain"])
            .stdout
            .contains(", in plain text")
    );
    assert!(server.terminate().success());
    assert!(create(&offline, &[]).stdout.contains(", sealed"));
    assert!(files::contains(&plain, CANARY));
    for file in [&online, &offline] {
        assert!(!files::contains(file, CANARY) && !files::contains(file, "\"tenants\""));
        run(Some(&right), &["verify", "--in", path(file)]).expect(0);
        run(Some(&wrong), &["verify", "--in", path(file)])
            .expect(1)
            .says(&["wrong key for artifact:backup"]);
        run(None, &["verify", "--in", path(file)])
            .expect(1)
            .says(&["NIMBUS_ENCRYPTION_KEY_PROVIDER=master-key-file"]);
    }
    // Out of the encrypted store into one in plain text, and back.
    let fresh = home.path().join("fresh");
    run(
        None,
        &["restore", "--in", path(&plain), "--data-dir", path(&fresh)],
    )
    .expect(0);
    let copy = Server::start(Options::new().data_dir(&fresh));
    assert_eq!(copy.client().documents("a", "t")[0]["secret"], CANARY);
    for (provider, name) in [("sqlite", "a.sqlite3"), ("redb", "a.redb")] {
        let encrypted = home.path().join(provider);
        let args = [
            "restore",
            "--in",
            path(&online),
            "--data-dir",
            path(&encrypted),
        ];
        run(
            Some(&right),
            &[&args[..], &["--provider", provider]].concat(),
        )
        .expect(0);
        let file = encrypted.join(name);
        assert!(!files::contains(&file, CANARY) && !files::contains(&file, "SQLite format 3"));
        let mut options = Options::new().data_dir(&encrypted);
        options = options.args(&["--tenant-provider", provider]);
        for (name, value) in settings(&right) {
            options = options.env(name, value);
        }
        let copy = Server::start(options);
        assert_eq!(copy.client().documents("a", "t")[0]["secret"], CANARY);
        copy.client().check_consistency("a");
    }
}
