//! Ten thousand canaries in values, field names and index keys, and the admin token: after load, a kill and
//! a backup they are in no file of the data directory, no log and no backup. In a store in plain text the same
//! search finds them, so it can.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_e2e::server::{Options, Server};
use nimbus_e2e::{Home, Rng, files};
use serde_json::json;

use super::Vault;

/// What every canary begins with, so that one search finds any of them.
const MARK: &str = "cnry0k7";
/// Documents; each has four canaries of its own.
const DOCUMENTS: usize = 2_500;

/// Values of a table with an index: as text, inside an array, as a field's name, and in the index.
fn lines(rng: &mut Rng) -> String {
    let mut canary = || format!("{MARK}{}", rng.letters(12));
    let mut line = || {
        let (text, listed, name, key) = (canary(), canary(), canary(), canary());
        format!(
            "{}\n",
            json!({"text": text, "list": [listed], "key": key, (name): 1})
        )
    };
    (0..DOCUMENTS).map(|_| line()).collect()
}

fn load(server: &Server) {
    let client = server.client();
    client.create_tenant("demo");
    let schema = json!({
        "table": "birds",
        "fields": [{"name": "key", "field_type": "string", "required": true}],
        "indexes": [{"name": "by_key", "fields": ["key"]}],
    });
    client
        .put("/api/tenants/demo/schema/birds", &schema)
        .expect(204);
    let body = lines(&mut Rng::new(7));
    client
        .upload(
            "/api/tenants/demo/import/birds/all",
            "application/x-ndjson",
            body.as_bytes(),
        )
        .expect(200);
}

/// How often the mark, and whether the token, is in the bytes of files.
fn found(paths: &[PathBuf], token: &str) -> (usize, bool) {
    let mut marks = 0;
    let mut tokens = false;
    for path in paths {
        let bytes = std::fs::read(path).unwrap();
        marks += count(&bytes, MARK.as_bytes());
        tokens |= count(&bytes, token.as_bytes()) > 0;
    }
    (marks, tokens)
}

fn count(bytes: &[u8], text: &[u8]) -> usize {
    let mut count = 0;
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == text[0]) {
        count += usize::from(rest[at..].starts_with(text));
        rest = &rest[at + 1..];
    }
    count
}

/// Bits of information in each byte, by how often each value occurs.
fn entropy(path: &Path) -> f64 {
    let bytes = std::fs::read(path).unwrap();
    let mut counts = [0_u64; 256];
    // A page that was never written is a hole of zeros.
    let written = bytes
        .chunks(64)
        .filter(|chunk| chunk.iter().any(|byte| *byte != 0));
    for byte in written.flatten() {
        counts[usize::from(*byte)] += 1;
    }
    let all = counts.iter().sum::<u64>() as f64;
    let shares = counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| *count as f64 / all);
    shares.map(|share| -share * share.log2()).sum()
}

/// All files of a home but its token and configuration, while the server runs and after it was killed.
fn searched(server: &mut Server, home: &Home, vault: Option<&Vault>) -> (usize, bool) {
    let token = home.token();
    let backup = home.path().join("all.backup");
    let args = [
        "backup",
        "create",
        "--out",
        backup.to_str().unwrap(),
        "--data-dir",
    ];
    let data = home.data_dir();
    let args = args.into_iter().chain([data.to_str().unwrap()]);
    match vault {
        Some(vault) => vault.run(args),
        None => home.run(args),
    }
    .expect(0);
    let places = |home: &Home| {
        let mut paths = files::all_below(&home.data_dir());
        paths.extend(files::all_below(&home.xdg_state()));
        paths.push(home.path().join("all.backup"));
        paths
    };
    let (running, token_running) = found(&places(home), &token);
    let log = server.log();
    server.kill9();
    let (killed, token_killed) = found(&places(home), &token);
    let logged = count(log.as_bytes(), MARK.as_bytes());
    (
        running + killed + logged,
        token_running || token_killed || log.contains(&token),
    )
}

#[test]
fn nothing_of_sqlite() {
    nothing("sqlite", "demo.sqlite3");
}

#[test]
fn nothing_of_redb() {
    nothing("redb", "demo.redb");
}

fn nothing(provider: &str, file: &str) {
    let vault = Vault::new();
    let mut server = Server::start(vault.options().args(&["--tenant-provider", provider]));
    load(&server);
    let home = Arc::clone(&vault.home);
    assert_eq!(searched(&mut server, &home, Some(&vault)), (0, false));
    server.restart();
    assert_eq!(server.client().documents("demo", "birds").len(), DOCUMENTS);
    server.client().check_consistency("demo");
    assert!(server.terminate().success());
    let bits = entropy(&vault.file(file));
    assert!(bits > 7.99, "{bits} bits in each byte of {file}");
}

#[test]
fn the_search_finds_them_in_plain_text() {
    for provider in ["sqlite", "redb"] {
        let home = Arc::new(Home::new());
        let options = Options::new().home(&home);
        let mut server = Server::start(options.args(&["--tenant-provider", provider]));
        load(&server);
        let (marks, token) = searched(&mut server, &home, None);
        assert!(marks >= 4 * DOCUMENTS, "{provider}: {marks}");
        assert!(!token, "the token is in no file of the data either");
    }
}
