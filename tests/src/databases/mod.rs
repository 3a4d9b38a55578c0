//! Databases of their own for tests of servers that share one.
//!
//! A database is made in the server that `NIMBUS_TEST_POSTGRES_URL` or `NIMBUS_TEST_MYSQL_URL` names, else in the one on the
//! standard port, else in a private one, which a test that crashes its server gets in any case. It must not know Nimbus
//! beyond the flags that name a database.

mod libsql;
mod mariadb;
mod pooler;
mod postgres;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libsql::PrivateLibsql;
pub use libsql::{DIR as PRIMARY_DIR, PORTS as PRIMARY_PORTS};
use mariadb::PrivateMariadb;
pub use pooler::Pooler;
use postgres::PrivatePostgres;
use tempfile::TempDir;

/// A place for tenants in a Postgres or MariaDB server or on a libSQL primary, cleared when dropped.
#[derive(Debug)]
pub struct Database {
    kind: Kind,
    server: String,
    /// The name of a Postgres database, or the prefix of databases.
    name: String,
    private: Option<Private>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Postgres,
    Mysql,
    Libsql,
}

#[derive(Debug)]
enum Private {
    Postgres(PrivatePostgres),
    Mariadb(PrivateMariadb),
    Libsql(PrivateLibsql),
}

impl Database {
    /// What a server is given that names no provider: `NIMBUS_TEST_DATABASE` says whether it is a database of its own.
    pub fn asked_for() -> Option<Database> {
        match std::env::var("NIMBUS_TEST_DATABASE").ok()?.as_str() {
            "" => None,
            "postgres" => Some(Database::postgres()),
            "mysql" => Some(Database::mysql()),
            other => panic!("NIMBUS_TEST_DATABASE is {other}, expected postgres or mysql"),
        }
    }

    /// A new Postgres database.
    pub fn postgres() -> Database {
        let named = std::env::var("NIMBUS_TEST_POSTGRES_URL").ok();
        match named.or_else(|| answers(5432).then(|| postgres::url(5432))) {
            Some(url) => Database::on(Kind::Postgres, url, None),
            None => Database::private_postgres(),
        }
    }

    /// A place in a MySQL or MariaDB server.
    pub fn mysql() -> Database {
        let named = std::env::var("NIMBUS_TEST_MYSQL_URL").ok();
        match named.or_else(|| answers(3306).then(|| mariadb::url(3306))) {
            Some(url) => Database::on(Kind::Mysql, url, None),
            None => Database::private_mysql(),
        }
    }

    /// A Postgres database in a server that nobody else uses, so that it can be crashed.
    pub fn private_postgres() -> Database {
        Database::postgres_with(None, &[])
    }

    /// The same with its files below a directory, and with more settings.
    pub fn postgres_with(within: Option<&Path>, settings: &[(&'static str, String)]) -> Database {
        let server = PrivatePostgres::start(within, None, settings);
        Database::on_postgres(server)
    }

    /// The same with its write-ahead log elsewhere.
    pub fn postgres_with_log_on(log: &Path, settings: &[(&'static str, String)]) -> Database {
        Database::on_postgres(PrivatePostgres::start(None, Some(log), settings))
    }

    fn on_postgres(server: PrivatePostgres) -> Database {
        Database::on(
            Kind::Postgres,
            postgres::url(server.port()),
            Some(Private::Postgres(server)),
        )
    }

    /// A place in a MariaDB server that nobody else uses.
    pub fn private_mysql() -> Database {
        Database::mysql_with(None, &[])
    }

    /// The same with its files below a directory, and with more settings.
    pub fn mysql_with(within: Option<&Path>, settings: &[(&'static str, String)]) -> Database {
        let server = PrivateMariadb::start(within, settings);
        Database::on(
            Kind::Mysql,
            mariadb::url(server.port()),
            Some(Private::Mariadb(server)),
        )
    }

    /// A libSQL primary, which nobody else uses.
    pub fn private_libsql() -> Database {
        let primary = PrivateLibsql::start();
        let url = primary.url();
        Database::on(Kind::Libsql, url, Some(Private::Libsql(primary)))
    }

    fn on(kind: Kind, server: String, private: Option<Private>) -> Database {
        // No two are made by one process at once within a nanosecond.
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let mark = time.as_nanos() % 1_000_000_000_000;
        let name = format!("e2e_{}_{mark}_", std::process::id());
        let database = Database {
            kind,
            server,
            name,
            private,
        };
        if kind == Kind::Postgres {
            let create = format!("CREATE DATABASE {}", database.name);
            postgres::psql(&database.server, &create);
        }
        database
    }

    /// The flags of `nimbus start` for tenants here.
    pub fn flags(&self) -> Vec<String> {
        let url = self.url();
        let admin = match &self.private {
            Some(Private::Libsql(primary)) => primary.admin_url(),
            _ => String::new(),
        };
        let flags: &[&str] = match self.kind {
            Kind::Postgres => &["--tenant-provider", "postgres", "--postgres-url", &url],
            Kind::Libsql => &[
                "--tenant-provider",
                "libsql-replica",
                "--libsql-url",
                &url,
                "--libsql-admin-url",
                &admin,
                // Below the home of each server, where it is started.
                "--libsql-replica-cache-dir",
                "replicas",
            ],
            Kind::Mysql => &[
                "--tenant-provider",
                "mysql",
                "--mysql-url",
                &url,
                "--mysql-metadata-database",
                &format!("meta_{}", self.name),
                "--mysql-tenant-database-prefix",
                &self.name,
            ],
        };
        flags.iter().map(|flag| (*flag).to_owned()).collect()
    }

    /// Its URL.
    pub fn url(&self) -> String {
        match self.kind {
            Kind::Postgres => {
                let (server, _) = self.server.rsplit_once('/').unwrap();
                format!("{server}/{}", self.name)
            }
            Kind::Mysql | Kind::Libsql => self.server.clone(),
        }
    }

    /// What a statement returns: a line a row.
    pub fn ask(&self, sql: &str) -> String {
        match self.kind {
            Kind::Postgres => postgres::psql(&self.url(), sql),
            Kind::Mysql => mariadb::mariadb(&self.server, sql),
            Kind::Libsql => panic!("a primary has no client here: {sql}"),
        }
    }

    /// The names of what is there of tenants.
    pub fn tenants_left(&self) -> String {
        match self.kind {
            Kind::Postgres => {
                self.ask(r"SELECT nspname FROM pg_namespace WHERE nspname LIKE 'tenant\_%'")
            }
            Kind::Mysql => self.ask(&format!(
                "SHOW DATABASES LIKE '{}%'",
                self.name.replace('_', r"\_")
            )),
            Kind::Libsql => panic!("a primary does not list its namespaces"),
        }
    }

    /// Crashes a private server and starts it again: what it did not sync is gone.
    pub fn crash_and_restart(&mut self) {
        match self.private.as_mut().expect("a private server") {
            Private::Postgres(server) => server.crash_and_restart(),
            Private::Mariadb(server) => server.crash_and_restart(),
            Private::Libsql(primary) => primary.crash_and_restart(),
        }
    }

    /// Starts a private server that ended by itself, as an operator would. Whether it had.
    pub fn revive(&mut self) -> bool {
        match self.private.as_mut().expect("a private server") {
            Private::Postgres(server) => server.revive(),
            Private::Mariadb(server) => server.revive(),
            Private::Libsql(_) => false,
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A private server goes with all that it holds.
        if self.private.is_some() {
            return;
        }
        match self.kind {
            Kind::Postgres => {
                let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
                postgres::psql(&self.server, &drop);
            }
            Kind::Mysql => {
                let metadata = format!("meta_{}", self.name);
                for name in self.tenants_left().lines().chain([metadata.as_str()]) {
                    self.ask(&format!("DROP DATABASE IF EXISTS `{name}`"));
                }
            }
            Kind::Libsql => {}
        }
    }
}

/// A directory of one's own, within another one if that is named.
fn directory(prefix: &str, within: Option<&Path>) -> TempDir {
    let made = match within {
        Some(within) => TempDir::with_prefix_in(prefix, within),
        None => TempDir::with_prefix(prefix),
    };
    made.unwrap()
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn answers(port: u16) -> bool {
    let address = ([127, 0, 0, 1], port).into();
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn sh(script: &str) {
    let status = Command::new("sh").arg("-c").arg(script).status();
    assert!(status.expect("a shell").success(), "{script}");
}

/// A client program's output, which must be a success.
fn output(command: &mut Command, sql: &str) -> String {
    let output = command.output().expect("the client of the database");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{sql}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
