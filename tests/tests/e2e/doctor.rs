//! `nimbus doctor` finds what was planted, says what to do, and changes nothing.
//!
//! It must not know how a check is made; unit tests of the program judge made-up facts.

mod databases;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nimbus_e2e::home::binary;
use nimbus_e2e::mount::{Mount, switched_off};
use nimbus_e2e::{Finished, Home, Options, Server, files};
use serde_json::Value as Json;

/// What `nimbus doctor` said.
struct Findings {
    finished: Finished,
    json: Json,
}

impl Findings {
    fn of(command: &mut Command) -> Findings {
        let finished = Finished::of(command);
        let json = finished.json();
        let failed = checks(&json).any(|check| check["status"] == "fail");
        assert_eq!(finished.code, Some(i32::from(failed)), "{json:#}");
        for check in checks(&json) {
            let ok = check["status"] == "ok";
            assert_eq!(ok, check["advice"].is_null(), "{check}");
        }
        Findings { finished, json }
    }

    /// The check of this name has this status, and its texts have this part.
    #[track_caller]
    fn has(&self, name: &str, status: &str, part: &str) -> &Findings {
        let found = checks(&self.json).find(|check| check["name"] == name);
        let check = found.unwrap_or_else(|| panic!("no check {name}: {:#}", self.json));
        let text = check.to_string();
        assert!(
            check["status"] == status && text.contains(part),
            "{check:#}"
        );
        self
    }

    /// No check failed but these.
    #[track_caller]
    fn fails(&self, names: &[&str]) -> &Findings {
        let failed = checks(&self.json).filter(|check| check["status"] == "fail");
        let failed: Vec<_> = failed
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        assert_eq!(failed, names, "{:#}", self.json);
        self
    }

    fn names(&self) -> Vec<&str> {
        checks(&self.json)
            .map(|check| check["name"].as_str().unwrap())
            .collect()
    }
}

fn checks(json: &Json) -> impl Iterator<Item = &Json> {
    json["checks"].as_array().unwrap().iter()
}

fn arguments<'a>(data: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["doctor", "-f", "json", "--data-dir", data.to_str().unwrap()];
    let mut all = fixed.to_vec();
    // Whoever has port 8080 of this machine is no business of the test.
    if !more.contains(&"--port") {
        all.extend(["--port", "0"]);
    }
    all.extend(more);
    all
}

fn doctor(home: &Home, more: &[&str]) -> Findings {
    let data = home.data_dir();
    Findings::of(&mut home.command(arguments(&data, more)))
}

/// A home in which a server ran, with one tenant.
fn used() -> Arc<Home> {
    let mut server = Server::start(Options::new());
    server.client().create_tenant("acme");
    assert!(server.terminate().success());
    Arc::clone(server.home())
}

/// Every file below the home with its content; the doctor must not change any.
fn everything(home: &Home) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut all: Vec<_> = files::all_below(home.path())
        .into_iter()
        .map(|path| (path.clone(), files::mode(&path), fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_machine_that_never_ran_a_server_is_fit_and_stays_empty() {
    let home = Home::new();
    let before = everything(&home);
    doctor(&home, &[])
        .fails(&[])
        .has("token", "warn", "the first `nimbus start` makes it")
        .has("data_dir", "ok", "not there yet")
        .has("lock", "ok", "nobody")
        .has("control_db", "ok", "not there yet")
        .has("audit_log", "ok", "not there yet");
    assert_eq!(everything(&home), before);
    assert!(!home.data_dir().exists() && !home.xdg_data().exists() && !home.xdg_state().exists());
}

#[test]
fn every_check_is_in_the_documentation() {
    let home = used();
    let control = home.path().join("control");
    let more = [
        "--control-data-dir",
        control.to_str().unwrap(),
        "--policy-dir",
        home.path().to_str().unwrap(),
    ];
    let found = doctor(&home, &more);
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/doctor.md");
    let page = fs::read_to_string(page).unwrap();
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(found.names(), rows.collect::<Vec<_>>());
}

#[test]
fn a_stopped_server_leaves_nothing_to_mend() {
    let home = used();
    let before = everything(&home);
    let found = doctor(&home, &[]);
    found
        .fails(&[])
        .has("token", "ok", "generation 1, never rotated")
        .has("listen", "ok", "loopback")
        .has("data_dir", "ok", "0700")
        .has("control_db", "ok", "sound, 1 registered")
        .has("tenants", "ok", "has its file (1)")
        .has("leftovers", "ok", "none")
        .has("audit_log", "ok", "bytes");
    assert_eq!(everything(&home), before);
    // People read the same in lines.
    let data = home.data_dir();
    let text = home
        .run([
            "doctor",
            "--port",
            "0",
            "--data-dir",
            data.to_str().unwrap(),
        ])
        .expect(0);
    assert!(
        text.stdout
            .lines()
            .any(|line| line.starts_with("ok    control_db")),
        "{}",
        text.stdout
    );
    assert!(
        text.stdout.trim_end().ends_with(" 0 fail"),
        "{}",
        text.stdout
    );
    let secret = &home.token()["nimbus_at_".len()..];
    for said in [&text, &found.finished] {
        assert!(!said.stdout.contains(secret) && !said.stderr.contains(secret));
    }
}

#[test]
fn a_running_server_is_found_and_not_disturbed() {
    let server = Server::start(Options::new());
    server.client().create_tenant("acme");
    let home = server.home();
    let audit = fs::read(home.audit_log()).unwrap();
    let (pid, port) = (
        server.pid().to_string(),
        server.address().port().to_string(),
    );
    doctor(home, &["--port", &port])
        .fails(&[])
        .has("lock", "ok", &pid)
        .has("port", "ok", "/health answers")
        .has("control_db", "ok", "in use")
        .has("tenants", "ok", "in use");
    // With another port the server is found all the same, by its lock.
    doctor(home, &[]).fails(&[]).has("lock", "ok", &pid);
    assert_eq!(fs::read(home.audit_log()).unwrap(), audit);
    server
        .client()
        .insert("acme", "notes", &serde_json::json!({"n": 1}));
    // Another data directory on the same port cannot be served.
    let other = Home::new();
    doctor(&other, &["--port", &port]).fails(&["port"]).has(
        "port",
        "fail",
        "not one of this data directory",
    );
}

#[test]
fn a_killed_server_leaves_no_holder() {
    let mut server = Server::start(Options::new());
    server.kill9();
    doctor(server.home(), &[])
        .fails(&[])
        .has("lock", "ok", "nobody");
}

#[test]
fn faults_of_the_token_are_found() {
    let home = used();
    let (path, elsewhere) = (home.token_file(), home.path().join("elsewhere"));
    let dir = path.parent().unwrap();
    files::set_mode(&path, 0o640);
    doctor(&home, &[])
        .fails(&["token"])
        .has("token", "fail", "chmod 600");
    files::set_mode(&path, 0o600);
    files::set_mode(dir, 0o755);
    doctor(&home, &[])
        .fails(&["token"])
        .has("token", "fail", "chmod 700");
    files::set_mode(dir, 0o700);
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    doctor(&home, &[])
        .fails(&["token"])
        .has("token", "fail", "symbolic link");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "{").unwrap();
    files::set_mode(&path, 0o600);
    doctor(&home, &[])
        .fails(&["token"])
        .has("token", "fail", "rotate-admin");
    home.run(["auth", "rotate-admin"]).expect(0);
    doctor(&home, &[])
        .fails(&[])
        .has("token", "ok", "rotated 0 hours ago")
        .has("token_leftovers", "warn", "token.corrupt-");
}

#[test]
fn a_public_address_needs_leave_and_a_fresh_token() {
    let home = used();
    let public = ["--host", "0.0.0.0", "--allow-network"];
    doctor(&home, &public[..2]).fails(&["listen"]).has(
        "listen",
        "fail",
        "--allow-network is not given",
    );
    doctor(&home, &public)
        .fails(&["listen"])
        .has("listen", "fail", "never rotated");
    home.run(["auth", "rotate-admin"]).expect(0);
    doctor(&home, &public)
        .fails(&[])
        .has("listen", "warn", "plain HTTP");
    home.edit_token_json(|json| json["rotatedAt"] = "2026-01-01T00:00:00Z".into());
    doctor(&home, &public)
        .fails(&["listen"])
        .has("listen", "fail", "days ago");
    home.edit_token_json(|json| json["rotatedAt"] = "2100-01-01T00:00:00Z".into());
    doctor(&home, &public)
        .fails(&["listen"])
        .has("listen", "fail", "later than the clock")
        .has("token", "warn", "later than the clock");
}

#[test]
fn faults_of_the_data_directory_are_found() {
    let home = used();
    let data = home.data_dir();
    for (mode, status) in [(0o755, "warn"), (0o770, "fail"), (0o702, "fail")] {
        files::set_mode(&data, mode);
        doctor(&home, &[]).has("data_dir", status, "chmod 700");
    }
    files::set_mode(&data, 0o700);

    let (tenant, stray) = (data.join("acme.sqlite3"), data.join("stray.sqlite3"));
    fs::copy(&tenant, &stray).unwrap();
    files::set_mode(&stray, 0o600);
    doctor(&home, &[])
        .fails(&[])
        .has("tenants", "warn", "nimbus tenants adopt stray");
    files::set_mode(&stray, 0o644);
    doctor(&home, &[])
        .fails(&["tenants"])
        .has("tenants", "fail", "chmod 600");
    fs::rename(&tenant, home.path().join("away")).unwrap();
    doctor(&home, &[])
        .fails(&["tenants"])
        .has("tenants", "fail", "without a file: acme");
    symlink(home.path().join("away"), &tenant).unwrap();
    doctor(&home, &[])
        .fails(&["tenants"])
        .has("tenants", "fail", "follows no links");
    fs::remove_file(&tenant).unwrap();
    fs::remove_file(&stray).unwrap();
    fs::rename(home.path().join("away"), &tenant).unwrap();

    let left = data.join("nimbus-control.db.new");
    fs::write(&left, "").unwrap();
    doctor(&home, &[])
        .fails(&[])
        .has("leftovers", "warn", "nimbus-control.db.new");
    fs::remove_file(&left).unwrap();

    let (lock, control) = (data.join("nimbus.lock"), data.join("nimbus-control.db"));
    fs::remove_file(&lock).unwrap();
    symlink(&control, &lock).unwrap();
    doctor(&home, &[]).has("lock", "fail", "not a regular file");
    fs::remove_file(&lock).unwrap();
    let sound = fs::read(&control).unwrap();
    let damaged = &sound[..sound.len() / 2];
    fs::write(&control, damaged).unwrap();
    doctor(&home, &[]).has("control_db", "fail", "nimbus-control.db");
    assert_eq!(fs::read(&control).unwrap(), damaged, "it was changed");
    fs::write(&control, &sound).unwrap();
    doctor(&home, &[]).fails(&[]);
}

/// The files of redb, encrypted: those of its own kind are looked at, and manifests beside them.
#[test]
fn faults_of_redb_files_are_found() {
    let home = Arc::new(Home::new());
    let key = home.path().join("master.key");
    fs::write(&key, [7; 32]).unwrap();
    files::set_mode(&key, 0o600);
    let settings = [
        "--tenant-provider",
        "redb",
        "--encryption-key-provider",
        "master-key-file",
        "--encryption-master-key-file",
        key.to_str().unwrap(),
    ];
    let mut server = Server::start(Options::new().home(&home).args(&settings));
    server.client().create_tenant("acme");
    assert!(server.terminate().success());
    let before = everything(&home);
    doctor(&home, &settings)
        .fails(&[])
        .has("provider", "ok", "redb")
        .has("encryption", "ok", "on")
        .has("tenants", "ok", "has its file (1)")
        .has("leftovers", "ok", "none");
    assert_eq!(everything(&home), before);

    let data = home.data_dir();
    let (tenant, stray) = (data.join("acme.redb"), data.join("stray.redb"));
    let beside = |path: &Path| path.with_extension("redb.nimbus-enc");
    let (manifest, lone) = (beside(&tenant), beside(&stray));
    fs::copy(&manifest, &lone).unwrap();
    files::set_mode(&lone, 0o600);
    doctor(&home, &settings)
        .has("tenants", "warn", "stray.redb.nimbus-enc")
        .has("tenants", "warn", "remove the manifest")
        .has("leftovers", "ok", "none");
    fs::copy(&tenant, &stray).unwrap();
    files::set_mode(&stray, 0o600);
    doctor(&home, &settings).has("tenants", "warn", "nimbus tenants adopt stray");
    fs::remove_file(&stray).unwrap();
    fs::remove_file(&lone).unwrap();
    files::set_mode(&manifest, 0o644);
    doctor(&home, &settings)
        .fails(&["tenants"])
        .has("tenants", "fail", "chmod 600");
    files::set_mode(&manifest, 0o600);
    fs::rename(&tenant, home.path().join("away")).unwrap();
    doctor(&home, &settings)
        .fails(&["tenants"])
        .has("tenants", "fail", "without a file: acme");
    fs::rename(home.path().join("away"), &tenant).unwrap();
    let staged = data.join("acme.redb.rotating");
    fs::write(&staged, "").unwrap();
    files::set_mode(&staged, 0o600);
    doctor(&home, &settings)
        .fails(&[])
        .has("leftovers", "warn", "acme.redb.rotating");
}

#[test]
fn a_directory_that_somebody_holds_is_told() {
    let home = used();
    let lock = home.data_dir().join("nimbus.lock");
    let mut holder = home
        .program(
            "flock",
            [
                "--exclusive",
                lock.to_str().unwrap(),
                "sh",
                "-c",
                "echo held; read line",
            ],
        )
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    doctor(&home, &[])
        .fails(&[])
        .has("lock", "warn", "does not say who it is");
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().code().is_some());
}

#[test]
fn a_port_that_another_program_has_is_told() {
    let home = used();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let answers = std::thread::spawn(move || {
        // The look whether anybody is there, and the question, which gets no answer.
        for _ in 0..2 {
            drop(listener.accept().unwrap());
        }
    });
    doctor(&home, &["--port", &port]).fails(&["port"]).has(
        "port",
        "fail",
        "does not answer as Nimbus does",
    );
    answers.join().unwrap();
}

#[test]
fn faults_of_the_audit_log_are_found() {
    let home = used();
    let path = home.audit_log();
    let sound = fs::read(&path).unwrap();
    fs::write(&path, &sound[..sound.len() - 10]).unwrap();
    doctor(&home, &[])
        .fails(&[])
        .has("audit_log", "warn", "cut short");
    fs::write(&path, [&sound[..], b"noise\n"].concat()).unwrap();
    doctor(&home, &[])
        .fails(&["audit_log"])
        .has("audit_log", "fail", "no JSON object");
    files::set_mode(&path, 0o604);
    doctor(&home, &[])
        .fails(&["audit_log"])
        .has("audit_log", "fail", "chmod 600");
}

#[test]
fn small_and_read_only_disks_are_told() {
    if switched_off("nimbus doctor on small and read-only disks") {
        return;
    }
    let home = used();
    let small = Mount::tmpfs(8);
    let data = small.path();
    Findings::of(&mut home.command(arguments(&data, &[])))
        .fails(&["disk_data"])
        .has("disk_data", "fail", "of 8 MiB free")
        .has("file_system", "warn", "tmpfs");
    let view = Mount::read_only_view(&home.data_dir());
    let data = view.path();
    Findings::of(&mut home.command(arguments(&data, &[])))
        .fails(&["data_dir"])
        .has("data_dir", "fail", "mounted read-only");
}

#[test]
fn limits_of_the_process_are_told() {
    let home = used();
    let data = home.data_dir();
    let mut words = vec!["-c", "ulimit -n 200 && ulimit -c 0 && exec \"$0\" \"$@\""];
    let binary = binary();
    words.push(binary.to_str().unwrap());
    words.extend(arguments(&data, &[]));
    Findings::of(&mut home.program("sh", words))
        .fails(&["open_files"])
        .has("open_files", "fail", "LimitNOFILE=")
        .has("core_dumps", "ok", "off");
}

#[test]
fn settings_are_those_of_start() {
    let home = Home::new();
    for wrong in [
        &["doctor", "--port", "70000"][..],
        &["doctor", "-f", "xml"],
        &["doctor", "--postgres-url", "postgres://x"],
    ] {
        let finished = home.run(wrong).expect(2);
        assert_eq!(finished.stdout, "", "{wrong:?}");
    }
    let config = home.path().join("nimbus.json");
    let chosen = home.path().join("chosen");
    fs::create_dir(&chosen).unwrap();
    files::set_mode(&chosen, 0o755);
    let text = serde_json::json!({"persistence": {"data_dir": chosen}}).to_string();
    fs::write(&config, text).unwrap();
    let mut command = home.command(["doctor", "-f", "json", "--port", "0"]);
    Findings::of(command.env("NIMBUS_CONFIG", &config)).has(
        "data_dir",
        "warn",
        chosen.to_str().unwrap(),
    );
    let provider = [
        "--tenant-provider",
        "postgres",
        "--postgres-url",
        "postgres://x:secret@127.0.0.1:1/d",
    ];
    let found = doctor(&home, &provider);
    found
        .fails(&["database"])
        .has("provider", "ok", "postgres://x")
        .has("database", "fail", "127.0.0.1:1");
    assert!(!found.finished.stdout.contains("secret") && !found.finished.stderr.contains("secret"));
    assert!(
        found.finished.stderr.contains("1 of "),
        "{}",
        found.finished.stderr
    );
}

#[test]
fn policies_are_judged_as_start_does() {
    let home = Home::new();
    let dir = home.path().join("policies");
    fs::create_dir(&dir).unwrap();
    files::set_mode(&dir, 0o755);
    let path = dir.to_str().unwrap();
    let put = |name: &str, tenant: &str, kind: &str| {
        let text = format!(
            "schema_version: 1\ntenant: {tenant}\nworkloads:\n- {{kind: {kind}, name: native_api}}\n"
        );
        fs::write(dir.join(name), text).unwrap();
    };
    let flags = ["--policy-dir", path];
    // What start says of the same directory.
    let started = |said: &[&str]| {
        let data = home.data_dir();
        let args = ["start", "--port", "0", "--data-dir", data.to_str().unwrap()];
        home.run([&args[..], &flags].concat()).expect(1).says(said);
    };
    assert!(!doctor(&home, &[]).names().contains(&"policies"));
    put("acme.yaml", "acme", "http_request");
    doctor(&home, &flags).has("policies", "ok", "tenants with a policy: 1");
    put("globex.yaml", "acme", "http_request");
    put("hooli.yaml", "hooli", "moon");
    doctor(&home, &flags)
        .fails(&["policies"])
        .has("policies", "fail", "is for the tenant `acme`, not `globex`")
        .has("policies", "fail", "`moon` is none of the values here");
    started(&["is for the tenant `acme`, not `globex`"]);
    fs::remove_file(dir.join("globex.yaml")).unwrap();
    started(&["hooli.yaml is no valid policy", "moon"]);
    // The place is that of start, wherever it comes from.
    let mut command = home.command(["doctor", "-f", "json", "--port", "0"]);
    Findings::of(command.env("NIMBUS_POLICY_DIR", path)).has(
        "policies",
        "fail",
        "nimbus policy validate --file",
    );
    let config = home.path().join("nimbus.json");
    fs::write(&config, serde_json::json!({"policy_dir": path}).to_string()).unwrap();
    let mut command = home.command(["doctor", "--port", "0"]);
    let text = Finished::of(command.env("NIMBUS_CONFIG", &config)).expect(1);
    text.prints(&[
        "fail  policies ",
        "no valid policy: error[unknown_value]: `moon` is none of the values here\n",
        "no file is taken, and the server does not start",
    ]);
}
