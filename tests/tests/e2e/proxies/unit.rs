//! The systemd unit: what systemd says about it, and whether the server stays within what it
//! allows.
//!
//! No service manager runs where tests run, so nothing is started by the unit itself. The server
//! is traced instead, and its system calls are compared with the unit's filter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nimbus_e2e::{Client, Finished, Home, home};
use serde_json::json;

use super::front::shipped;

/// What docs/hardening.md says that `systemd-analyze security` says; it goes from 0 to 10.
pub const EXPOSURE: f64 = 1.0;

/// The values of a directive, in order.
fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    let found = lines.filter(|(found, _)| *found == name);
    found.map(|(_, value)| value).collect()
}

fn unit() -> String {
    fs::read_to_string(shipped("systemd/nimbus.service")).unwrap()
}

/// The unit with the binary under test, since systemd looks whether the program exists.
fn checkable(dir: &Path) -> String {
    let binary = home::binary().into_string().unwrap();
    let text = unit().replace("/usr/local/bin/nimbus", &binary);
    let path = dir.join("nimbus.service");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn analyze(arguments: &[&str]) -> Finished {
    Finished::of(
        Command::new("systemd-analyze")
            .args(arguments)
            .env("SYSTEMD_COLORS", "0")
            .env("LANG", "C.UTF-8"),
    )
}

#[test]
fn systemd_accepts_the_unit_and_finds_it_hardly_exposed() {
    let dir = Home::new();
    let file = checkable(dir.path());
    let verified = analyze(&["verify", "--man=no", &file]).expect(0);
    assert_eq!(verified.stderr, "", "systemd-analyze verify");
    let report = analyze(&["security", "--offline=true", "--no-pager", &file]).expect(0);
    let overall = report.stdout.lines().last().unwrap();
    let score: f64 = overall
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("{overall}"));
    println!("{overall}");
    assert!(score <= EXPOSURE, "{}", report.stdout);
}

#[test]
fn the_unit_has_every_directive_of_the_seed() {
    let unit = unit();
    for (name, value) in [
        ("NoNewPrivileges", "true"),
        ("ProtectSystem", "strict"),
        ("ReadWritePaths", "/var/lib/nimbus"),
        ("ProtectHome", "true"),
        ("PrivateTmp", "true"),
        ("ProtectKernelTunables", "true"),
        ("ProtectControlGroups", "true"),
        ("RestrictSUIDSGID", "true"),
    ] {
        assert_eq!(values(&unit, name), [value], "{name}");
    }
    // `sudo -u nimbus -H nimbus auth rotate-admin` must find the token that the service uses.
    let user = fs::read_to_string(shipped("systemd/nimbus.sysusers")).unwrap();
    let user = user.lines().find(|line| line.starts_with("u ")).unwrap();
    assert!(user.starts_with("u nimbus ") && user.contains(" /var/lib/nimbus "));
    assert_eq!(values(&unit, "User"), ["nimbus"]);
    assert!(!unit.contains("nimbus_at_"), "a token in the unit");
}

/// The system calls that the unit lets through.
fn allowed(unit: &str) -> BTreeSet<String> {
    let sets = sets();
    let mut allowed = BTreeSet::new();
    for value in values(unit, "SystemCallFilter") {
        let (deny, names) = match value.strip_prefix('~') {
            Some(names) => (true, names),
            None => (false, value),
        };
        for name in names.split_whitespace() {
            for call in expanded(name, &sets) {
                if deny {
                    allowed.remove(&call);
                } else {
                    allowed.insert(call);
                }
            }
        }
    }
    allowed
}

/// The members of each set that systemd knows.
fn sets() -> BTreeMap<String, Vec<String>> {
    let listing = analyze(&["syscall-filter", "--no-pager"]).expect(0).stdout;
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in listing.lines() {
        let member = line.trim_start();
        if member.starts_with('#') || member.is_empty() {
            continue;
        }
        if member.len() == line.len() {
            current = member.to_owned();
        } else {
            let members = sets.entry(current.clone()).or_default();
            members.push(member.to_owned());
        }
    }
    sets
}

fn expanded(name: &str, sets: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    match sets.get(name) {
        Some(members) => members.iter().flat_map(|m| expanded(m, sets)).collect(),
        None => {
            assert!(!name.starts_with('@'), "systemd knows no set {name}");
            BTreeSet::from([name.to_owned()])
        }
    }
}

#[test]
fn the_server_stays_within_the_system_calls_of_the_unit() {
    let home = Home::new();
    let unit = unit();
    let start = values(&unit, "ExecStart").concat();
    let mut words = start.split_whitespace();
    assert_eq!(words.next(), Some("/usr/local/bin/nimbus"));
    // The arguments of the unit, with a port and a directory of this test.
    let data = home.data_dir().into_os_string().into_string().unwrap();
    let arguments = words.map(|word| match word {
        "8080" => "0",
        "/var/lib/nimbus/data" => &data,
        word => word,
    });
    let trace = home.path().join("trace");
    // With -D our child is the server and the tracer ends with it.
    let options = ["-D", "-f", "-qq", "-e", "signal=none", "-o"];
    let mut command = home.program("strace", options);
    command.arg(&trace).arg(home::binary()).args(arguments);
    let spawned = command.stderr(Stdio::piped()).spawn();
    let mut traced = Traced(spawned.expect("strace is installed; `cargo xtask setup` does it"));
    let mut log = BufReader::new(traced.0.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("listening on http://") {
        let count = log.read_line(&mut seen).unwrap();
        assert_ne!(count, 0, "the server did not start:\n{seen}");
    }
    let (_, address) = seen.rsplit_once("listening on http://").unwrap();
    let end = address.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ':')));
    let base = format!("http://{}", &address[..end.unwrap_or(address.len())]);
    let client = Client::new(base, Some(home.token()));
    exercise(&client);
    let client = client.with_token(Some(home.token()));
    let ended = client.post_empty("/api/system/shutdown");
    assert!((200..300).contains(&ended.status), "{}", ended.text());
    // The tracer has the pipe too, so the end of it is the end of the trace.
    std::io::copy(&mut log, &mut std::io::sink()).unwrap();
    assert!(traced.0.wait().unwrap().success());

    let allowed = allowed(&unit);
    let (mut called, mut at_once) = (BTreeSet::new(), Vec::new());
    for line in fs::read_to_string(&trace).unwrap().lines() {
        let call = line
            .split_once(' ')
            .map_or(line, |(_, call)| call)
            .trim_start();
        let Some((name, _)) = call.split_once('(') else {
            continue;
        };
        let name = name.trim_start_matches("<... ").trim();
        if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            called.insert(name.to_owned());
        }
        if call.contains("PROT_WRITE|PROT_EXEC") || call.contains("PROT_READ|PROT_WRITE|PROT_EXEC")
        {
            at_once.push(call.to_owned());
        }
    }
    // SQLite hands new files to the owner of the database, when it runs as root and only then.
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        called.remove("fchown");
    }
    println!("{} different system calls: {called:?}", called.len());
    assert!(called.contains("fdatasync") && called.contains("accept4"));
    let refused: Vec<&String> = called.difference(&allowed).collect();
    assert!(refused.is_empty(), "the unit refuses {refused:?}");
    assert!(at_once.is_empty(), "MemoryDenyWriteExecute: {at_once:?}");
    assert!(!allowed.contains("mount") && !allowed.contains("ptrace"));
}

/// A traced server, ended by handle when dropped.
struct Traced(Child);

impl Drop for Traced {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bit of everything that the server does.
fn exercise(client: &Client) {
    client.create_tenant("acme");
    let fields = json!({"name": "a", "size": 1});
    let id = client.insert("acme", "items", &fields);
    let schema = json!({"table": "items", "fields": [], "indexes": [{"name": "by_name", "fields": ["name"]}]});
    let put = client.put("/api/tenants/acme/schema/items", &schema);
    assert!(put.status < 500, "{}", put.text());
    client
        .patch(
            &format!("/api/tenants/acme/documents/items/{id}"),
            &json!({"patch": {"size": 2}}),
        )
        .expect(200);
    assert_eq!(client.documents("acme", "items").len(), 1);
    client.check_consistency("acme");
    client.get("/metrics").expect(200);
    client.get("/openapi.json").expect(200);
    client.with_token(None).get("/api/tenants").expect(401);
    client.post_empty("/api/system/token/rotate").expect(200);
}
