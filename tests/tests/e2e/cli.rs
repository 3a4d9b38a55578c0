//! The command line by its transcripts in `tests/cli`, and what they cannot show.
//!
//! It must not know what a command does beyond what it prints and leaves behind.

use std::process::Command;
use std::sync::Arc;

use nimbus_e2e::transcript::Transcript;
use nimbus_e2e::{Finished, Home, Options, Server, files};
use serde_json::json;

fn text(path: impl AsRef<std::path::Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

#[test]
fn wrong_usage_is_explained() {
    let home = Home::new();
    let data = text(home.data_dir());
    Transcript::open("usage", &home).word("data", data).play();
    assert!(!home.data_dir().exists());
    assert!(!home.token_file().exists());
}

#[test]
fn the_token_is_rotated_and_shown() {
    let home = Home::new();
    let token_file = text(home.token_file());
    Transcript::open("auth", &home)
        .word("token-file", token_file)
        .play();
    // Exactly the token, once.
    let shown = home.run(["auth", "token"]).expect(0);
    assert_eq!(shown.stdout, format!("{}\n", home.token()));
    assert_eq!(shown.stderr, "");
    assert_eq!(home.token_json()["generation"], 2);
}

#[test]
fn policy_files_are_reviewed_without_a_server() {
    let home = Home::new();
    let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/policy");
    Transcript::open("policy", &home)
        .word("files", text(&files))
        .play();
    let changed = text(files.join("changed.policy.yaml"));
    let sarif = home
        .run(["policy", "prove", "-f", "sarif", "--file", &changed])
        .expect(4);
    let log: serde_json::Value = serde_json::from_str(&sarif.stdout).unwrap();
    assert_eq!(log["version"], "2.1.0");
    // Nothing was written, nor a server looked for.
    assert!(!home.data_dir().exists() && !home.token_file().exists());
}

#[test]
fn what_is_no_text_is_refused_before_a_server_is_asked() {
    let home = Home::new();
    let file = home.path().join("acme.yaml");
    let path = text(&file);
    let good =
        b"schema_version: 1\ntenant: acme\nworkloads:\n- {kind: http_request, name: native_api}\n";
    // Sent without its one bad byte it would be a policy.
    let not_utf8 = [good.as_slice(), b"# caf\xe9\n"].concat();
    let too_large = [good.as_slice(), &vec![b'#'; 4 << 20]].concat();
    for (bytes, code) in [(not_utf8, "not_utf8"), (too_large, "too_large")] {
        std::fs::write(&file, bytes).unwrap();
        for format in ["text", "json"] {
            let validated = home
                .run(["policy", "validate", "-f", format, "--file", &path])
                .expect(3);
            let put = ["policy", "put", "--tenant", "acme", "--file", &path];
            let put = home.run([&put[..], &["-f", format]].concat()).expect(3);
            assert!(format!("{put:?}").contains(code), "{put:?}");
            assert_eq!(
                (put.stdout, put.stderr),
                (validated.stdout, validated.stderr)
            );
        }
    }
    let gone = text(home.path().join("gone.yaml"));
    home.run(["policy", "put", "--tenant", "acme", "--file", &gone])
        .expect(1)
        .says(&["error: reading", "gone.yaml"]);
}

#[test]
fn tenants_are_managed_without_a_server() {
    let mut server = Server::start(Options::new());
    assert!(server.terminate().success());
    let (home, data) = (server.home(), text(server.data_dir()));
    let before = files::names(&server.data_dir());
    Transcript::open("tenants-offline", home)
        .word("data", data)
        .play();
    assert_eq!(files::names(&server.data_dir()), before);
    assert!(!home.path().join("nowhere").exists());
}

#[test]
fn tenants_are_managed_through_a_server() {
    let server = Server::start(Options::new());
    Transcript::open("tenants-online", server.home())
        .word("data", text(server.data_dir()))
        .word("url", server.base())
        .play();
    // Each was a decision of the server, made with the local token.
    let audit = std::fs::read_to_string(server.home().audit_log()).unwrap();
    let allowed = |line: &&str| line.contains("\"authMethod\":\"local_admin_bearer\"");
    assert!(audit.lines().filter(allowed).count() >= 12, "{audit}");
}

#[test]
fn a_token_that_the_server_does_not_know_is_explained() {
    let server = Server::start(Options::new());
    let home = server.home();
    home.run(["auth", "rotate-admin"]).expect(0);
    Transcript::open("tenants-refused", home)
        .word("data", text(server.data_dir()))
        .word("url", server.base())
        .word("token-file", text(home.token_file()))
        .play();
}

#[test]
fn offline_commands_and_a_server_see_the_same_tenants() {
    let mut server = Server::start(Options::new());
    let home = Arc::clone(server.home());
    let data = text(server.data_dir());
    server.client().create_tenant("acme");
    server.client().insert("acme", "notes", &json!({"n": 1}));
    assert!(server.terminate().success());
    home.run(["tenants", "create", "demo", "--data-dir", &data])
        .expect(0);
    // The log of one commit is dropped; its document stays.
    let pruned = home.run([
        "tenants",
        "prune",
        "acme",
        "--data-dir",
        &data,
        "-f",
        "json",
    ]);
    assert_eq!(pruned.expect(0).json(), json!({"id": "acme", "pruned": 1}));
    server.restart();
    let client = server.client();
    assert_eq!(client.tenants(), ["acme", "demo"]);
    assert_eq!(client.documents("acme", "notes").len(), 1);
    let journal = client.get("/api/tenants/acme/journal?after=1").expect(200);
    assert_eq!(journal.json()["records"], json!([]));
    client
        .get("/api/tenants/acme/journal?after=0")
        .refused(409, "op.out_of_retention");
    client.check_consistency("acme");
}

#[test]
fn every_command_has_help_and_a_version() {
    let home = Home::new();
    let commands: [&[&str]; 19] = [
        &[],
        &["start"],
        &["auth"],
        &["auth", "token"],
        &["auth", "rotate-admin"],
        &["tenants"],
        &["tenants", "create"],
        &["tenants", "list"],
        &["tenants", "delete"],
        &["tenants", "adopt"],
        &["tenants", "prune"],
        &["deploy"],
        &["deployments", "list"],
        &["deployments", "rollback"],
        &["env", "set"],
        &["keys", "create"],
        &["keys", "list"],
        &["keys", "revoke"],
        &["completions"],
    ];
    for command in commands.iter().chain(&[&["man"][..]]) {
        for flag in ["-h", "--help"] {
            let help = home.run([*command, &[flag]].concat()).expect(0);
            assert_eq!(help.stderr, "");
            let usage = ["nimbus", &command.join(" ")].join(" ");
            let wanted = format!("Usage: {}", usage.trim());
            assert!(help.stdout.contains(&wanted), "{wanted}: {}", help.stdout);
        }
    }
    let bare = home.run([""; 0]).expect(2);
    assert_eq!(bare.stdout, "");
    assert!(bare.stderr.contains("Usage: nimbus <COMMAND>"));
    let version = home.run(["--version"]).expect(0).stdout;
    assert!(version.starts_with("nimbus 0."), "{version}");
    // Every flag of the server names its variable, so that the help is the reference.
    let help = home.run(["start", "--help"]).expect(0).stdout;
    let flags = help.matches("\n      --").count();
    let variables = help.matches("NIMBUS_").count();
    assert!(
        flags > 25 && variables >= flags,
        "{flags} flags, {variables} variables"
    );
}

#[test]
fn completions_are_scripts_that_their_shells_accept() {
    let home = Home::new();
    for (shell, first, mention) in [
        ("bash", "_nimbus()", "rotate-admin"),
        ("zsh", "#compdef nimbus", "rotate-admin"),
        ("fish", "complete -c nimbus", "rotate-admin"),
    ] {
        let script = home.run(["completions", shell]).expect(0);
        assert_eq!(script.stderr, "");
        assert!(script.stdout.contains(first), "{shell}");
        assert!(script.stdout.contains(mention), "{shell}");
        let path = home.path().join(format!("nimbus.{shell}"));
        std::fs::write(&path, &script.stdout).unwrap();
        if Command::new(shell).arg("-c").arg("true").output().is_ok() {
            Finished::of(&mut home.program(shell, ["-n", path.to_str().unwrap()])).expect(0);
        }
    }
    // The completions of bash complete.
    let script = text(home.path().join("nimbus.bash"));
    let ask = format!(
        ". {script}; COMP_WORDS=(nimbus tenants cr); COMP_CWORD=2; _nimbus nimbus cr tenants; \
         echo \"${{COMPREPLY[@]}}\""
    );
    let reply = Finished::of(&mut home.program("bash", ["-c", &ask])).expect(0);
    assert_eq!(reply.stdout, "create\n");
}

#[test]
fn manual_pages_are_written() {
    let home = Home::new();
    let page = home.run(["man"]).expect(0);
    assert!(page.stdout.contains(".TH nimbus 1"), "{}", page.stdout);
    let dir = home.path().join("man");
    let finished = home.run(["man", "--dir", dir.to_str().unwrap()]).expect(0);
    assert_eq!(finished.stderr, "");
    let names = files::names(&dir);
    for name in ["nimbus.1", "nimbus-start.1", "nimbus-tenants-create.1"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let home = Home::new();
    let binary = nimbus_e2e::home::binary().into_string().unwrap();
    let line =
        format!("'{binary}' completions zsh | head -c 10 >/dev/null; exit ${{PIPESTATUS[0]}}");
    let finished = Finished::of(&mut home.program("bash", ["-c", &line]));
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
}
