//! Where settings come from, which one wins, and which are refused.
//!
//! It must not know what a setting does beyond one that can be seen from outside.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use nimbus_e2e::{Finished, Home, Options, Server};
use serde_json::{Value as Json, json};

/// A home with a configuration file.
fn with_config(config: &Json) -> (Arc<Home>, PathBuf) {
    let home = Arc::new(Home::new());
    let path = home.path().join("nimbus.json");
    fs::write(&path, config.to_string()).unwrap();
    (home, path)
}

/// The body limit that a server has, as its refusal tells it.
fn body_limit(server: &Server) -> u64 {
    let body = json!({"id": "x".repeat(10_000)});
    let reply = server.client().post("/api/tenants", &body);
    let error = reply.refused(413, "op.cap_exceeded").error();
    error["detail"]["limit"].as_u64().unwrap()
}

fn refused(options: Options, code: i32, parts: &[&str]) -> Finished {
    let finished = Server::refused(options);
    assert_eq!(finished.code, Some(code), "{}", finished.stderr);
    finished.says(parts)
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let (home, path) = with_config(&json!({"persistence": {}}));
    let dir = |name: &str| home.path().join(name);
    let config = json!({"persistence": {"data_dir": dir("from-file")}});
    fs::write(&path, config.to_string()).unwrap();
    let file = || {
        let options = Options::new().home(&home).without_data_dir();
        options.args(&["--config", path.to_str().unwrap()])
    };
    let env = || file().env("NIMBUS_DATA_DIR", dir("from-env"));
    let empty = || file().env("NIMBUS_DATA_DIR", "");
    let none = || Options::new().home(&home).without_data_dir();
    let by_env = || none().env("NIMBUS_CONFIG", &path);
    let flag = env().args(&["--data-dir", dir("from-flag").to_str().unwrap()]);
    for (options, made) in [
        (flag, "from-flag"),
        (env(), "from-env"),
        (empty(), "from-file"),
        (by_env(), "from-file"),
        (file(), "from-file"),
        (none(), "data"),
        (none().env("NIMBUS_CONFIG", ""), "data"),
    ] {
        assert!(Server::start(options).terminate().success());
        for name in ["from-flag", "from-env", "from-file", "data"] {
            assert_eq!(dir(name).exists(), name == made, "{name}, not {made}");
        }
        fs::remove_dir_all(dir(made)).unwrap();
    }
}

#[test]
fn numbers_take_the_same_way() {
    let (home, _) = with_config(&json!({}));
    let flag = Options::new()
        .home(&home)
        .args(&["--max-body-bytes", "3000"])
        .env("NIMBUS_MAX_BODY_BYTES", "2000");
    assert_eq!(body_limit(&Server::start(flag)), 3000);
    let env = Options::new().env("NIMBUS_MAX_BODY_BYTES", "2000");
    assert_eq!(body_limit(&Server::start(env)), 2000);
}

#[test]
fn unknown_keys_are_refused_at_every_level() {
    for (config, parts) in [
        (json!({"persistance": {}}), &["persistance"][..]),
        (json!({"persistence": {"data_dri": "x"}}), &["data_dri"]),
        (json!({"persistence": {"data-dir": "x"}}), &["data-dir"]),
        (json!({"persistence": []}), &["nimbus.json"]),
        (json!([]), &["nimbus.json"]),
        (json!({"persistence": {"data_dir": 7}}), &["nimbus.json"]),
        (
            json!({"persistence": {"tenant_provider": "oracle"}}),
            &[
                "oracle",
                "sqlite",
                "redb",
                "postgres",
                "mysql",
                "libsql-replica",
            ],
        ),
        (
            json!({"persistence": {"postgres_url": "postgres://x"}}),
            &["postgres", "tenant-provider"],
        ),
    ] {
        let (home, path) = with_config(&config);
        let args = ["--config", path.to_str().unwrap()];
        let finished = Server::refused(Options::new().home(&home).args(&args)).says(parts);
        assert!(matches!(finished.code, Some(1 | 2)), "{:?}", finished.code);
        assert!(!home.data_dir().exists(), "{config}");
    }
}

#[test]
fn a_file_that_is_named_must_be_there_and_be_json() {
    let (home, path) = with_config(&json!({}));
    let named = || {
        let options = Options::new().home(&home);
        options.args(&["--config", path.to_str().unwrap()])
    };
    fs::write(&path, "{\"persistence\": {").unwrap();
    refused(named(), 1, &["nimbus.json"]);
    fs::write(&path, [0xff, 0xfe]).unwrap();
    refused(named(), 1, &["nimbus.json"]);
    fs::write(
        &path,
        r#"{"persistence": {"data_dir": "a", "data_dir": "b"}}"#,
    )
    .unwrap();
    refused(named(), 1, &["nimbus.json"]);
    fs::remove_file(&path).unwrap();
    refused(named(), 1, &["nimbus.json"]);
}

#[test]
fn a_wrong_provider_is_told_the_right_ones() {
    let all = ["sqlite", "redb", "postgres", "mysql", "libsql-replica"];
    let flag = || Options::new().args(&["--tenant-provider", "oracle"]);
    let env = || Options::new().env("NIMBUS_TENANT_PROVIDER", "oracle");
    for options in [flag(), env()] {
        let finished = Server::refused(options).says(&["oracle"]).says(&all);
        assert!(matches!(finished.code, Some(1 | 2)), "{:?}", finished.code);
    }
    // The right one by name, and with the underscore that variables may have.
    let sqlite = Options::new().args(&["--tenant-provider", "sqlite"]);
    assert!(Server::start(sqlite).terminate().success());
    let libsql = Options::new().env("NIMBUS_TENANT_PROVIDER", "libsql_replica");
    let finished = Server::refused(libsql).says(&["libsql-replica"]);
    assert!(!finished.stderr.contains("unknown"), "{}", finished.stderr);
}

#[test]
fn settings_of_a_provider_that_is_not_selected_are_refused() {
    // Each flag with a value that it would take, and the variable of the same name.
    let settings = [
        ("postgres", "url", "postgres://localhost/db"),
        ("postgres", "metadata-schema", "meta"),
        ("postgres", "tenant-schema-prefix", "t_"),
        ("postgres", "min-connections", "1"),
        ("postgres", "max-connections", "2"),
        ("mysql", "url", "mysql://localhost/db"),
        ("mysql", "metadata-database", "meta"),
        ("mysql", "tenant-database-prefix", "t_"),
        ("mysql", "min-connections", "1"),
        ("mysql", "max-connections", "2"),
        ("libsql", "url", "http://localhost:1"),
        ("libsql", "admin-url", "http://localhost:2"),
        ("libsql", "replica-cache-dir", "cache"),
        ("libsql", "auth-token", "secret-value"),
        ("libsql", "admin-auth-header", "secret-value"),
        ("libsql", "metadata-namespace", "meta"),
        ("libsql", "tenant-namespace-prefix", "t_"),
    ];
    let home = Arc::new(Home::new());
    for (provider, name, value) in settings {
        let flag = format!("--{provider}-{name}");
        let variable = format!("NIMBUS_{provider}_{name}")
            .to_uppercase()
            .replace('-', "_");
        let by_flag = Options::new().home(&home).args(&[&flag, value]);
        let by_variable = Options::new().home(&home).env(&variable, value);
        for options in [by_flag, by_variable] {
            let finished = Server::refused(options).says(&[&flag, "--tenant-provider"]);
            assert!(matches!(finished.code, Some(1 | 2)), "{flag}");
            assert!(!finished.stderr.contains("secret-value"), "{flag}");
        }
        assert!(!home.data_dir().exists(), "{flag}");
        // Empty is unset.
        let empty = Options::new().home(&home).env(&variable, "");
        assert!(Server::start(empty).terminate().success(), "{variable}");
        fs::remove_dir_all(home.data_dir()).unwrap();
    }
}

#[test]
fn a_provider_takes_its_own_settings_only() {
    let home = Arc::new(Home::new());
    for (provider, own, other) in [
        ("redb", "", "--postgres-url"),
        ("redb", "", "--libsql-replica-cache-dir"),
        ("postgres", "--postgres-url", "--mysql-url"),
        ("mysql", "--mysql-url", "--libsql-url"),
        ("libsql-replica", "--libsql-url", "--postgres-url"),
    ] {
        let mut args = vec!["--tenant-provider", provider];
        if !own.is_empty() {
            let url = match provider {
                "postgres" => "postgres://127.0.0.1:1/d",
                "mysql" => "mysql://127.0.0.1:1/",
                _ => "http://localhost:1",
            };
            args.extend([own, url]);
        }
        // With nothing else wrong, what is missing or does not answer is said.
        if provider != "redb" {
            // A database is asked when the control database is there.
            let apart = Arc::new(Home::new());
            let finished = Server::refused(Options::new().home(&apart).args(&args));
            let expected = match provider {
                "postgres" | "mysql" => (1, "127.0.0.1:1"),
                _ => (2, "--libsql-admin-url"),
            };
            assert_eq!(finished.code, Some(expected.0), "{}", finished.stderr);
            finished.says(&[provider, expected.1]);
        }
        args.extend([other, "http://localhost:2"]);
        let finished = Server::refused(Options::new().home(&home).args(&args));
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        finished.says(&[other, provider]);
        assert!(!home.data_dir().exists(), "{provider}");
    }
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let home = Arc::new(Home::new());
    let cases: &[&[&str]] = &[
        &["--port", "65536"],
        &["--port", "http"],
        &["--port", ""],
        &["--host", ""],
        &["--durability", "none"],
        &["--log-format", "xml"],
        &["--max-connections", "-1"],
        &["--max-connections", "0"],
        &["--max-body-bytes", "many"],
        &["--max-body-bytes", "0"],
        &["--max-open-tenants", "0"],
        &["--request-timeout-secs", "0"],
        &["--cors-allow-origin", "not an origin"],
        &["--cors-allow-origin", "https://a.example/path"],
        &["--cors-allow-origin", "*"],
        &["--no-such-flag"],
        &["extra"],
    ];
    for args in cases {
        let finished = Server::refused(Options::new().home(&home).args(args));
        assert!(
            matches!(finished.code, Some(1 | 2)),
            "{args:?}: {:?}",
            finished.code
        );
        assert!(!finished.stderr.is_empty(), "{args:?} is refused silently");
        assert!(
            !finished.stderr.contains("panicked"),
            "{args:?}: {}",
            finished.stderr
        );
        assert!(!home.data_dir().exists(), "{args:?}");
    }
    for (name, value) in [
        ("NIMBUS_DURABILITY", "none"),
        ("NIMBUS_MAX_CONNECTIONS", "lots"),
        ("NIMBUS_LOG_FORMAT", "xml"),
        ("NIMBUS_ALLOW_NETWORK", "perhaps"),
    ] {
        let finished = Server::refused(Options::new().home(&home).env(name, value));
        assert!(matches!(finished.code, Some(1 | 2)), "{name}");
        assert!(
            finished.stderr.contains(value),
            "{name}: {}",
            finished.stderr
        );
    }
}

#[test]
fn an_address_in_use_is_said() {
    let server = Server::start(Options::new());
    let port = server.address().port().to_string();
    let options = Options::new().args(&["--port", &port]);
    refused(options, 1, &[&server.address().to_string()]);
}

#[test]
fn logs_can_be_json() {
    let mut server = Server::start(Options::new().args(&["--log-format", "json"]));
    server.client().create_tenant("acme");
    let log = server.log();
    assert!(server.terminate().success());
    let mut lines = 0;
    for line in log.lines() {
        let json: Json = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(json.is_object(), "{line}");
        lines += 1;
    }
    assert!(lines > 0);
    // Text is the default and carries no terminal codes into a file.
    let server = Server::start(Options::new());
    assert!(!server.log().contains('\u{1b}'), "{}", server.log());
}
