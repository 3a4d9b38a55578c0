//! What a server does not start with: one clear error each, before it serves, and nothing changed.

use nimbus_e2e::files;
use nimbus_e2e::server::{Options, Server};

use super::{KEY_FILE, PROVIDER, Vault, text};

fn refused(vault: &Vault, parts: &[&str]) {
    Server::refused(vault.options()).expect(1).says(parts);
}

#[test]
fn key_files_that_are_no_keys() {
    let vault = Vault::new();
    let key = vault.path("odd.key");
    let odd = vault.with(&[(PROVIDER, "master-key-file"), (KEY_FILE, &text(&key))]);
    refused(&odd, &["there is no key file at", "openssl rand -out"]);
    let write = |bytes: &[u8], mode| {
        let _ = std::fs::remove_file(&key);
        std::fs::write(&key, bytes).unwrap();
        files::set_mode(&key, mode);
    };
    for (bytes, count) in [
        (vec![7; 31], "31 bytes"),
        (vec![7; 33], "33 bytes"),
        (b"07".repeat(32), "64 bytes"),
        (
            b"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".to_vec(),
            "44 bytes",
        ),
    ] {
        write(&bytes, 0o400);
        refused(&odd, &[count, "exactly 32 raw bytes"]);
    }
    for mode in [0o440, 0o404, 0o620] {
        write(&[7; 32], mode);
        refused(&odd, &["is open to others", "chmod 400"]);
    }
    // A link may lead to the key, as secret managers mount them.
    write(&[7; 32], 0o400);
    let link = vault.path("link.key");
    std::os::unix::fs::symlink(&key, &link).unwrap();
    let linked = vault.with(&[(PROVIDER, "master-key-file"), (KEY_FILE, &text(&link))]);
    let mut server = linked.start();
    assert!(server.terminate().success());
    assert!(!vault.home.data_dir().join("odd.key").exists());
}

#[test]
fn settings_that_contradict_each_other() {
    let vault = Vault::new();
    let key = text(&vault.path("master.key"));
    let start = |args: &[&str]| Server::refused(Options::new().home(&vault.home).args(args));
    start(&["--encryption-master-key-file", &key])
        .expect(2)
        .says(&["add --encryption-key-provider"]);
    start(&[
        "--encryption-key-provider",
        "key-dir",
        "--encryption-master-key-file",
        &key,
    ])
    .expect(2)
    .says(&["belongs to the key provider master-key-file"]);
    start(&["--encryption-key-provider", "master-key-file"])
        .expect(2)
        .says(&["needs --encryption-master-key-file"]);
    start(&["--encryption-key-provider", "vault"])
        .expect(2)
        .says(&["master-key-file, key-dir, aws-kms"]);
    assert!(!vault.home.data_dir().exists(), "nothing was made");
}

#[test]
fn manifests_and_files_that_do_not_belong_together() {
    let vault = Vault::new();
    let mut server = vault.start();
    for tenant in ["one", "two"] {
        super::fill(&server, tenant);
    }
    assert!(server.terminate().success());
    let manifest = |tenant: &str| vault.file(&format!("{tenant}.sqlite3.nimbus-enc"));
    let kept = std::fs::read(manifest("one")).unwrap();

    // Encryption off.
    let off = Server::refused(Options::new().home(&vault.home));
    off.expect(1)
        .says(&["encryption is not configured", "one.sqlite3"]);
    // Another key.
    super::make_key(&vault.path("other.key"));
    let other = text(&vault.path("other.key"));
    let other = vault.with(&[(PROVIDER, "master-key-file"), (KEY_FILE, &other)]);
    refused(&other, &["wrong key"]);
    // Swapped, changed, gone.
    std::fs::copy(manifest("two"), manifest("one")).unwrap();
    refused(&vault, &["mixed up", "one.sqlite3"]);
    let changed = String::from_utf8(kept.clone()).unwrap();
    let changed = changed.replacen("\"wrappedKey\": \"", "\"wrappedKey\": \"A", 1);
    assert_ne!(changed.as_bytes(), kept);
    std::fs::write(manifest("one"), changed).unwrap();
    refused(&vault, &["one.sqlite3"]);
    std::fs::remove_file(manifest("one")).unwrap();
    refused(&vault, &["sidecar manifest is missing"]);
    std::fs::write(manifest("one"), &kept).unwrap();
    // A file in plain text beside its manifest.
    let file = std::fs::read(vault.file("one.sqlite3")).unwrap();
    std::fs::write(vault.file("one.sqlite3"), b"SQLite format 3\0 and so on").unwrap();
    refused(&vault, &["in plain text although it has a manifest"]);
    std::fs::write(vault.file("one.sqlite3"), file).unwrap();
    server.restart();
    super::check(&server, "one");
    assert!(server.terminate().success());
}
