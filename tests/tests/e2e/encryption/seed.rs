//! Every command block of seed 003 in its order, paths aside.

use nimbus_e2e::files;
use nimbus_e2e::server::{Options, Server};
use serde_json::json;

use super::{Vault, canary, check, fill, make_key, text};

/// "Start Nimbus with encryption enabled", by flags; status over HTTP and on the command line.
#[test]
fn a_server_with_a_master_key_encrypts_what_it_makes() {
    let vault = Vault::new();
    let key = text(&vault.path("master.key"));
    let mut server = Server::start(Options::new().home(&vault.home).args(&[
        "--encryption-key-provider",
        "master-key-file",
        "--encryption-master-key-file",
        &key,
    ]));
    fill(&server, "tenant-a");
    let expected = json!({
        "enabled": true,
        "encrypted_families": ["embedded_sqlite", "control_plane_redb"],
        "descriptor": {"status": "enabled", "provider": "master_key_file", "path": key},
    });
    assert_eq!(
        server.client().get("/debug/encryption/status").json(),
        expected
    );
    server
        .anonymous()
        .get("/debug/encryption/status")
        .expect(401);

    // The status command does not need the server to be stopped.
    let status = vault.encryption("status").expect(0);
    for part in [
        "enabled",
        "master-key-file",
        "embedded_sqlite, control_plane_redb",
        "2 wrapped by",
    ] {
        assert!(status.stdout.contains(part), "{part}: {}", status.stdout);
    }
    let mut status = vault.encryption("status --format json").expect(0).json();
    let files = status.as_object_mut().unwrap().remove("files").unwrap();
    assert_eq!(status, expected);
    assert_eq!(files["keys"][0]["files"], 2);

    for path in files::all_below(&vault.home.data_dir()) {
        assert!(!files::contains(&path, "canary of"), "{}", path.display());
        assert_eq!(files::mode(&path) & 0o077, 0, "{}", path.display());
    }
    assert!(server.terminate().success());
    server.restart();
    check(&server, "tenant-a");
    assert!(server.terminate().success());
    assert!(vault.file("tenant-a.sqlite3.nimbus-enc").exists());
    assert!(vault.file("nimbus-control.db.nimbus-enc").exists());
}

/// "If you enable encryption on a server that already has plaintext database files": refused, migrated,
/// moved into place, served; exported again; key-encryption keys and data-encryption keys rotated.
#[test]
fn plain_files_are_migrated_rotated_and_exported() {
    let vault = Vault::new();
    vault.plain_tenant("tenant-a");
    let refused = Server::refused(vault.options());
    refused.expect(1).says(&[
        "2 local files cannot be served",
        "nimbus-control.db",
        "tenant-a.sqlite3",
        "sidecar manifest is missing",
        "nimbus encryption migrate --source",
        "--provider sqlite --tenant-id tenant-a",
    ]);

    let migrate = "migrate --source {data}/tenant-a.sqlite3 --provider sqlite --tenant-id tenant-a";
    vault.encryption(migrate).expect(0);
    vault
        .encryption(migrate)
        .expect(1)
        .says(&["exists already"]);
    for ending in ["", ".nimbus-enc"] {
        let made = vault.file(&format!("tenant-a.sqlite3.encrypted{ending}"));
        std::fs::rename(made, vault.file(&format!("tenant-a.sqlite3{ending}"))).unwrap();
    }
    vault
        .encryption("migrate --source {data}/nimbus-control.db --provider redb --replace")
        .expect(0);
    let mut server = vault.start();
    check(&server, "tenant-a");

    // The commands that change files refuse while it runs.
    let dek = "rotate-dek --path {data}/tenant-a.sqlite3 --provider sqlite --tenant-id tenant-a";
    let export = "export --source {data}/tenant-a.sqlite3 --target {home}/tenant-a.sqlite3 --provider sqlite --tenant-id tenant-a";
    make_key(&vault.path("new.key"));
    let kek = "rotate-kek --path {data}/tenant-a.sqlite3 --new-master-key-file {home}/new.key";
    for words in [migrate, dek, export, kek] {
        vault
            .encryption(words)
            .expect(1)
            .says(&["stop the server first"]);
    }
    assert!(server.terminate().success());

    vault.encryption(dek).expect(0);
    vault.encryption(export).expect(0);
    assert!(files::contains(
        &vault.path("tenant-a.sqlite3"),
        &canary("tenant-a")
    ));
    vault.encryption(export).expect(1).says(&["exists already"]);

    let dry = vault
        .encryption(&format!("{kek} --dry-run -f json"))
        .expect(0)
        .json();
    assert_eq!(dry["due"].as_array().unwrap().len(), 1);
    vault.encryption(kek).expect(0);
    vault
        .encryption("rotate-kek --path {data} --all --new-master-key-file {home}/new.key")
        .expect(0);
    Server::refused(vault.options())
        .expect(1)
        .says(&["wrong key"]);
    let new = text(&vault.path("new.key"));
    let vault = vault.with(&[
        (super::PROVIDER, "master-key-file"),
        (super::KEY_FILE, &new),
    ]);
    let mut server = vault.start();
    check(&server, "tenant-a");
    assert!(server.terminate().success());
}

/// `redb`, and the control database, which needs no tenant.
#[test]
fn redb_tenants_are_migrated_rotated_and_exported() {
    let vault = Vault::new();
    let redb = || vault.options().args(&["--tenant-provider", "redb"]);
    let mut server = Server::start(
        Options::new()
            .home(&vault.home)
            .args(&["--tenant-provider", "redb"]),
    );
    fill(&server, "demo");
    assert!(server.terminate().success());
    vault
        .encryption("migrate --source {data}/demo.redb --provider redb --tenant-id demo --replace")
        .expect(0);
    vault
        .encryption("migrate --source {data}/nimbus-control.db --provider redb")
        .expect(0);
    for ending in ["", ".nimbus-enc"] {
        let made = vault.file(&format!("nimbus-control.db.encrypted{ending}"));
        std::fs::rename(made, vault.file(&format!("nimbus-control.db{ending}"))).unwrap();
    }
    let mut server = Server::start(redb());
    check(&server, "demo");
    assert_eq!(
        server.client().get("/debug/encryption/status").json()["encrypted_families"],
        json!(["embedded_redb", "control_plane_redb"])
    );
    assert!(server.terminate().success());
    assert!(!files::contains(&vault.file("demo.redb"), "canary of"));
    for words in [
        "rotate-dek --path {data}/demo.redb --provider redb --tenant-id demo",
        "rotate-dek --path {data}/demo.redb --provider redb --tenant-id demo --skip-backup",
        "rotate-dek --path {data}/nimbus-control.db --provider redb",
        "export --source {data}/demo.redb --target {home}/demo.redb --provider redb --tenant-id demo",
    ] {
        vault.encryption(words).expect(0);
    }
    assert!(files::contains(&vault.path("demo.redb"), &canary("demo")));
    server.restart();
    check(&server, "demo");
    assert!(server.terminate().success());
}

/// `key-dir`: files are named by hex-encoding the descriptor.
#[test]
fn a_key_directory_has_one_key_for_each_file() {
    let vault = Vault::new();
    let dir = vault.path("keys");
    std::fs::create_dir(&dir).unwrap();
    files::set_mode(&dir, 0o700);
    for name in [
        // db:sqlite:tenant:demo:demo.sqlite3, as the document has it.
        "64623a73716c6974653a74656e616e743a64656d6f3a64656d6f2e73716c69746533.key",
        // db:redb:control:nimbus-control.db
        "64623a726564623a636f6e74726f6c3a6e696d6275732d636f6e74726f6c2e6462.key",
    ] {
        make_key(&dir.join(name));
    }
    let vault = vault.with(&[(super::PROVIDER, "key-dir"), (super::KEY_DIR, &text(&dir))]);
    let mut server = vault.start();
    fill(&server, "demo");
    // No key, no tenant; nothing of it is left, and the answer says what is missing.
    let create = |id: &str| {
        let refused = server.client().post("/api/tenants", &json!({"id": id}));
        refused.refused(400, "op.invalid_input").error()["message"].to_string()
    };
    assert!(create("other").contains("the key directory has no file 6462"));
    assert!(create(&"n".repeat(50)).contains("at most 49 characters"));
    assert_eq!(server.client().tenants(), ["demo"]);
    assert!(!vault.file("other.sqlite3").exists());
    assert!(server.terminate().success());
    server.restart();
    check(&server, "demo");
    assert!(server.terminate().success());
}

/// "libSQL caches": named and refused with the reason.
#[test]
fn libsql_caches_are_not_converted() {
    let vault = Vault::new();
    vault.plain_tenant("demo");
    for words in [
        "migrate --source {data}/demo.sqlite3 --provider libsql-cache --tenant-id demo",
        "export --source {data}/demo.sqlite3 --target {home}/x --provider libsql-cache --tenant-id demo",
    ] {
        vault
            .encryption(words)
            .expect(1)
            .says(&["rebuilt from the remote primary"]);
    }
}

/// "The commands refuse to run when encryption is not configured."
#[test]
fn without_settings_every_command_refuses() {
    let vault = Vault::new();
    vault.plain_tenant("demo");
    let bare = vault.with(&[]);
    for words in [
        "status",
        "migrate --source {data}/demo.sqlite3 --provider sqlite --tenant-id demo",
        "export --source {data}/demo.sqlite3 --target {home}/x --provider sqlite --tenant-id demo",
        "rotate-kek --path {data}/demo.sqlite3 --new-master-key-file {home}/master.key",
        "rotate-dek --path {data}/demo.sqlite3 --provider sqlite --tenant-id demo",
    ] {
        bare.encryption(words).expect(2).says(&[
            "encryption is not configured",
            "NIMBUS_ENCRYPTION_KEY_PROVIDER",
        ]);
    }
    // The settings may be in the file that NIMBUS_CONFIG names.
    let config = vault.path("nimbus.json");
    let key = text(&vault.path("master.key"));
    let json = json!({"persistence": {
        "data_dir": vault.home.data_dir(),
        "encryption_key_provider": "master-key-file",
        "encryption_master_key_file": key,
    }});
    std::fs::write(&config, json.to_string()).unwrap();
    let configured = vault.with(&[("NIMBUS_CONFIG", &text(&config))]);
    configured
        .encryption("migrate --source {data}/demo.sqlite3 --provider sqlite --tenant-id demo --retire-source")
        .expect(0);
    assert!(!vault.file("demo.sqlite3").exists());
}

/// What the refusal names is run as it is written, by a shell, and the server starts.
#[test]
fn the_commands_that_a_refusal_names_mend_it() {
    let vault = Vault::new();
    vault.plain_tenant("demo");
    let refused = Server::refused(vault.options()).expect(1);
    let commands: Vec<_> = refused
        .stderr
        .split('`')
        .filter(|part| part.starts_with("nimbus encryption"))
        .collect();
    assert_eq!(commands.len(), 2, "{}", refused.stderr);
    let binary = nimbus_e2e::home::binary();
    for command in commands {
        let script = command.replacen("nimbus", binary.to_str().unwrap(), 1);
        let mut shell = vault.home.program("sh", ["-c", &script]);
        shell.envs(vault.env.iter().map(|(name, value)| (*name, value)));
        nimbus_e2e::home::Finished::of(&mut shell).expect(0);
    }
    let mut server = vault.start();
    check(&server, "demo");
    assert!(server.terminate().success());
}
