//! Databases of their own for tests of servers that share one.
//!
//! Uses the server that `NIMBUS_TEST_POSTGRES_URL` names, else the one on the standard port. It must not know
//! Nimbus. A machine without either gets a private server from the suite of nimbus-storage, which CI runs first.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// A Postgres database that is dropped with this.
#[derive(Debug)]
pub struct Database {
    server: String,
    name: String,
}

impl Database {
    /// A new one.
    pub fn postgres() -> Database {
        let server = std::env::var("NIMBUS_TEST_POSTGRES_URL")
            .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
        // Random enough for a name: no two are made by one process at once within a nanosecond.
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let name = format!("nimbus_e2e_{}_{}", std::process::id(), time.as_nanos());
        let database = Database { server, name };
        psql(
            &database.server,
            &format!("CREATE DATABASE {}", database.name),
        );
        database
    }

    /// Its URL.
    pub fn url(&self) -> String {
        let (server, _) = self.server.rsplit_once('/').unwrap();
        format!("{server}/{}", self.name)
    }

    /// What a statement returns: a line a row, columns divided by `|`.
    pub fn ask(&self, sql: &str) -> String {
        psql(&self.url(), sql)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        psql(&self.server, &drop);
    }
}

fn psql(url: &str, sql: &str) -> String {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
        .args(["--set", "ON_ERROR_STOP=1", "--command", sql, url])
        .output()
        .expect("psql, of Debian's package postgresql-client");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{sql}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
