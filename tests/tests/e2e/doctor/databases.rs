//! `nimbus doctor` where tenants are in databases, or with several providers.
//!
//! It must not know how a check is made.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use nimbus_e2e::{Database, Home, Options, Server, files};
use nimbus_libsql_primary::{Options as PrimaryOptions, Primary};

use super::{Findings, arguments, doctor};

#[test]
fn a_database_that_answers_is_told_with_its_version() {
    let home = Arc::new(Home::new());
    let database = Database::postgres();
    let url = database.url();
    let provider = ["--tenant-provider", "postgres", "--postgres-url", &url];
    doctor(&home, &provider).has("database", "ok", "PostgreSQL 1");
    // Nothing is made there by looking.
    let made = "SELECT count(*) FROM pg_namespace WHERE nspname = 'nimbus_provider'";
    assert_eq!(database.ask(made), "0");
}

#[test]
fn a_primary_is_asked_as_a_start_would_ask_it() {
    let home = Home::new();
    let options = PrimaryOptions {
        auth_token: Some("s3cret".to_owned()),
        admin_auth_header: Some("Basic s3cret".to_owned()),
        ..PrimaryOptions::default()
    };
    let primary = Primary::start(home.path().join("primary"), options).unwrap();
    let (url, admin) = (primary.url(), primary.admin_url());
    let ask = |url: &str, admin: &str, token: &str, header: &str| {
        let provider = ["--tenant-provider", "libsql-replica"];
        let place = ["--libsql-url", url, "--libsql-admin-url", admin];
        let cache = ["--libsql-replica-cache-dir", "replicas"];
        let args = [&provider[..], &place, &cache].concat();
        let data = home.data_dir();
        let mut command = home.command(arguments(&data, &args));
        command.env("NIMBUS_LIBSQL_AUTH_TOKEN", token);
        command.env("NIMBUS_LIBSQL_ADMIN_AUTH_HEADER", header);
        let found = Findings::of(&mut command);
        let said = &found.finished;
        assert!(!said.stdout.contains("s3cret") && !said.stderr.contains("s3cret"));
        found
    };
    ask(&url, &admin, "s3cret", "Basic s3cret")
        .fails(&[])
        .has("database", "ok", "Hrana 3")
        .has("database", "ok", "nimbus_provider is not there yet");
    // Nothing is made by looking, here nor there.
    let made = files::all_below(home.path());
    let of_nimbus = |path: &PathBuf| path.to_string_lossy().contains("nimbus_provider");
    assert!(!made.iter().any(of_nimbus), "{made:?}");
    assert!(!home.path().join("replicas").exists());
    for (token, header, told) in [
        (
            "other",
            "Basic s3cret",
            "the primary refuses the libSQL auth token (401",
        ),
        (
            "s3cret",
            "other",
            "the primary refuses the libSQL admin auth header (401",
        ),
    ] {
        ask(&url, &admin, token, header)
            .fails(&["database"])
            .has("database", "fail", told);
    }
    primary.refuse_connections();
    ask(&url, &admin, "s3cret", "Basic s3cret")
        .fails(&["database"])
        .has("database", "fail", "the primary cannot be reached");
    primary.resume().unwrap();
    // One that takes connections and says nothing is waited for within bounds.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", silent.local_addr().unwrap());
    ask(&nobody, &admin, "s3cret", "Basic s3cret")
        .fails(&["database"])
        .has("database", "fail", "none within 2s");
    // Refused before anything could show it.
    for wrong in [
        "http://me:s3cret@127.0.0.1:1",
        "http://127.0.0.1:1/?authToken=s3cret",
    ] {
        for command in ["doctor", "start"] {
            let finished = home
                .run([
                    command,
                    "--tenant-provider",
                    "libsql-replica",
                    "--libsql-url",
                    wrong,
                    "--libsql-admin-url",
                    &admin,
                    "--libsql-replica-cache-dir",
                    "replicas",
                ])
                .expect(2)
                .says(&["the libSQL URL", "has no place in it"]);
            assert_eq!(finished.stdout, "");
            assert!(!finished.stderr.contains("s3cret"), "{}", finished.stderr);
        }
    }
}

/// A tenant that was moved has its file with another provider than the first, which is looked at as well.
#[test]
fn files_of_all_providers_that_are_served_are_looked_at() {
    let home = Arc::new(Home::new());
    let both = ["--also-tenant-provider", "redb"];
    let mut server = Server::start(Options::new().home(&home).args(&both));
    for tenant in ["acme", "stays"] {
        server.client().create_tenant(tenant);
    }
    let url = server.base();
    let target = ["--tenant", "acme", "--to", "redb", "--url", &url];
    home.run([&["tenants", "move"], &target[..]].concat())
        .expect(0);
    assert!(server.terminate().success());
    doctor(&home, &both)
        .fails(&[])
        .has("tenants", "ok", "has its file (2)")
        .has("leftovers", "ok", "none");
    doctor(&home, &[])
        .fails(&[])
        .has("tenants", "warn", "do not serve: acme");
    let moved = home.data_dir().join("acme.redb");
    fs::rename(&moved, home.path().join("away")).unwrap();
    doctor(&home, &both)
        .fails(&["tenants"])
        .has("tenants", "fail", "without a file: acme");
}
