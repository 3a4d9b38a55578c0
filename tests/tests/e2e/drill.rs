//! The verification drill of seed 002, as a script that an operator could run.
//!
//! It must not check anything itself; `drill.sh` does.

use std::path::Path;

use nimbus_e2e::{Database, Finished, Home, home};
use nimbus_libsql_primary::{Options as PrimaryOptions, Primary};

#[test]
fn the_drill_of_the_isolation_guide_passes() {
    drill("");
}

/// The drill compares bytes with those of the guide, so each provider gives the same.
#[test]
fn the_drill_passes_on_the_other_providers() {
    drill("--tenant-provider redb");
    for database in [Database::postgres(), Database::mysql()] {
        drill(&database.flags().join(" "));
    }
}

/// Reads come from a local replica there, writes go to the primary.
#[test]
fn the_drill_passes_on_a_libsql_primary() {
    let place = Home::new();
    let directory = place.path().join("primary");
    let primary = Primary::start(directory, PrimaryOptions::default()).unwrap();
    let cache = place.path().join("cache");
    drill(&format!(
        "--tenant-provider libsql-replica --libsql-url {} --libsql-admin-url {} --libsql-replica-cache-dir {}",
        primary.url(),
        primary.admin_url(),
        cache.display()
    ));
    // The tenants that the drill leaves have replicas; the one that it deleted has none.
    let mut kept: Vec<_> = std::fs::read_dir(&cache)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    assert!(!kept.iter().any(|name| name == "acme"), "{kept:?}");
    assert!(kept.iter().any(|name| name == "tenant-a"), "{kept:?}");
}

fn drill(more: &str) {
    let home = Home::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("drill.sh");
    let mut command = home.program("bash", [script.as_os_str()]);
    // As in the guide: no XDG variables, so the token is below the home directory.
    for name in ["XDG_DATA_HOME", "XDG_STATE_HOME"] {
        command.env(name, "");
    }
    command
        .env("NIMBUS", home::binary())
        .env("NIMBUS_PORT", "0")
        .env("NIMBUS_MORE", more)
        .env("NIMBUS_DATA", home.data_dir());
    let finished = Finished::of(&mut command).expect(0);
    print!("{}", finished.stdout);
    assert!(
        finished.stdout.contains("drill: passed ("),
        "{}",
        finished.stdout
    );
    assert!(
        home.path()
            .join("home/.local/share/nimbus/auth/token")
            .is_file()
    );
    assert!(
        home.path()
            .join("home/.local/state/nimbus/logs/access.jsonl")
            .is_file()
    );
}
