//! Databases of their own for tests of servers that share one.
//!
//! A database is made in the server that `NIMBUS_TEST_POSTGRES_URL` names, else in the one on the standard port, else in a
//! private one, which a test that stops its server gets in any case. It must not know Nimbus.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// A Postgres database that is dropped with this.
#[derive(Debug)]
pub struct Database {
    /// URL of the server, ending in `/`.
    server: String,
    name: String,
    private: Option<PrivatePostgres>,
}

impl Database {
    /// A new one.
    pub fn postgres() -> Database {
        let named = std::env::var("NIMBUS_TEST_POSTGRES_URL").ok();
        let running =
            answers(5432).then(|| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
        match named.or(running) {
            Some(url) => Database::on(&url, None),
            None => Database::private(),
        }
    }

    /// A new one in a server that nobody else uses, so that it can be stopped.
    pub fn private() -> Database {
        let server = PrivatePostgres::start();
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
        Database::on(&url, Some(server))
    }

    fn on(url: &str, private: Option<PrivatePostgres>) -> Database {
        let (server, _) = url.rsplit_once('/').unwrap();
        // No two are made by one process at once within a nanosecond.
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let database = Database {
            server: format!("{server}/"),
            name: format!("nimbus_e2e_{}_{}", std::process::id(), time.as_nanos()),
            private,
        };
        psql(
            &database.maintenance(),
            &format!("CREATE DATABASE {}", database.name),
        );
        database
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("{}{}", self.server, self.name)
    }

    fn maintenance(&self) -> String {
        format!("{}postgres", self.server)
    }

    /// What a statement returns: a line a row, columns divided by `|`.
    pub fn ask(&self, sql: &str) -> String {
        psql(&self.url(), sql)
    }

    /// Crashes a private server and starts it again: what it did not sync is gone.
    pub fn crash_and_restart(&self) {
        let server = self.private.as_ref().expect("a private server");
        server.pg_ctl("-m immediate stop");
        server.run();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A private server goes with all its databases.
        if self.private.is_none() {
            let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
            psql(&self.maintenance(), &drop);
        }
    }
}

/// A server of its own in a temporary directory, ended with this.
#[derive(Debug)]
struct PrivatePostgres {
    bin: PathBuf,
    dir: TempDir,
    port: u16,
}

impl PrivatePostgres {
    fn start() -> PrivatePostgres {
        let server = PrivatePostgres {
            bin: binaries(),
            dir: TempDir::with_prefix("nimbus-postgres-").unwrap(),
            port: TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port(),
        };
        if is_root() {
            sh(&format!("chown postgres {}", server.dir.path().display()));
        }
        server.as_user(&format!(
            "{}/initdb -D {} -U postgres -A trust --no-sync >/dev/null",
            server.bin.display(),
            server.data().display()
        ));
        server.run();
        server
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn run(&self) {
        let log = self.dir.path().join("log");
        self.pg_ctl(&format!(
            "-w -t 60 -l {} start -o '-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories='",
            log.display(),
            self.port
        ));
    }

    fn pg_ctl(&self, how: &str) {
        let (bin, data) = (self.bin.display(), self.data());
        self.as_user(&format!(
            "{bin}/pg_ctl -D {} {how} >/dev/null",
            data.display()
        ));
    }

    /// Postgres does not run as root.
    fn as_user(&self, script: &str) {
        let user = if is_root() {
            "runuser -u postgres -- "
        } else {
            ""
        };
        sh(&format!("cd / && {user}{script}"));
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        self.pg_ctl("-m immediate stop");
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

fn answers(port: u16) -> bool {
    let address = ([127, 0, 0, 1], port).into();
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where initdb and pg_ctl are; installed if they are missing.
fn binaries() -> PathBuf {
    let find = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let bins = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
        bins.filter(|bin| bin.join("initdb").exists()).max()
    };
    find().unwrap_or_else(|| {
        sh("apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy postgresql");
        find().expect("Postgres after installing it")
    })
}

fn sh(script: &str) {
    let status = Command::new("sh").arg("-c").arg(script).status();
    assert!(status.expect("a shell").success(), "{script}");
}
