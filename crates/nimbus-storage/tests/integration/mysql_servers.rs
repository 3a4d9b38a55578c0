//! The MySQL or MariaDB server that tests run against: one that is named or runs already, else a private MariaDB.
//!
//! Must not know the providers. See `servers`, whose rules for private servers it follows.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, Row as _, raw_sql};

use super::servers::{answers, block_on, free_port, is_root, locked, sh, target_dir};

/// The URL of a server whose user may do everything.
pub(crate) fn mysql() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        if let Ok(url) = std::env::var("NIMBUS_TEST_MYSQL_URL") {
            return url;
        }
        let running = url_at(3306);
        if answers(3306) && takes(&running) {
            return running;
        }
        url_at(private_mariadb())
    })
}

fn url_at(port: u16) -> String {
    format!("mysql://root@127.0.0.1:{port}/")
}

/// Whether a server lets this user in.
fn takes(url: &str) -> bool {
    apart(MySqlConnection::connect(url)).is_ok()
}

/// Databases of its own for one test, which are dropped with it.
pub(crate) struct MyPlace {
    pub(crate) url: String,
    pub(crate) metadata: String,
    pub(crate) prefix: String,
}

impl MyPlace {
    /// On the server that tests share.
    pub(crate) fn new() -> MyPlace {
        MyPlace::at(mysql())
    }

    pub(crate) fn at(url: &str) -> MyPlace {
        let mark = format!("{:016x}", fastrand::u64(..));
        MyPlace {
            url: url.to_owned(),
            metadata: format!("m{mark}"),
            prefix: format!("t{mark}_"),
        }
    }

    /// Runs statements with every right, as an operator would.
    pub(crate) async fn run(&self, sql: &str) {
        let mut conn = self.connect().await;
        let done = raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await;
        done.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let _ = conn.close().await;
    }

    /// The first column of what a statement returns, as text.
    pub(crate) async fn ask(&self, sql: &str) -> Vec<String> {
        let mut conn = self.connect().await;
        let rows = raw_sql(AssertSqlSafe(sql)).fetch_all(&mut conn).await;
        let rows = rows.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let _ = conn.close().await;
        let text = |row: &sqlx::mysql::MySqlRow| {
            let bytes: Vec<u8> = row.try_get_unchecked(0).expect("a column");
            String::from_utf8(bytes).expect("text")
        };
        rows.iter().map(text).collect()
    }

    /// A session of its own, with every right.
    pub(crate) async fn connect(&self) -> MySqlConnection {
        let connected = MySqlConnection::connect(&self.url).await;
        connected.expect("a MySQL or MariaDB server")
    }

    /// The databases of its tenants.
    pub(crate) async fn databases(&self) -> Vec<String> {
        let (prefix, length) = (&self.prefix, self.prefix.len());
        self.ask(&format!(
            "SELECT schema_name FROM information_schema.schemata WHERE LEFT(schema_name,{length})='{prefix}' \
             ORDER BY schema_name"
        ))
        .await
    }

    async fn clear(&self) {
        let mut all = self.databases().await;
        all.push(self.metadata.clone());
        for database in all {
            self.run(&format!("DROP DATABASE IF EXISTS `{database}`"))
                .await;
        }
    }
}

impl Drop for MyPlace {
    fn drop(&mut self) {
        apart(self.clear());
    }
}

/// The port of the private MariaDB, started if it is not running.
fn private_mariadb() -> u16 {
    let dir = target_dir().join("test-mariadb");
    std::fs::create_dir_all(&dir).expect("a directory");
    locked(&dir.join("lock"), || {
        let port_file = dir.join("port");
        std::fs::write(dir.join("used"), "").expect("a file");
        let known = std::fs::read_to_string(&port_file).ok();
        if let Some(port) = known.and_then(|text| text.trim().parse().ok())
            && answers(port)
        {
            return port;
        }
        let port = start_mariadb(&dir);
        std::fs::write(port_file, port.to_string()).expect("a file");
        port
    })
}

/// Starts the server that the processes of a test run share. It ends by itself when the tests are over.
fn start_mariadb(dir: &Path) -> u16 {
    let (data, port) = (dir.join("data"), free_port());
    install_mariadb(&data);
    let (command, dir) = (mariadbd(&data, port), dir.display());
    sh(&format!(
        "({command} & server=$!; \
         while sleep 60; do [ -n \"$(find {dir}/used -mmin +10)\" ] && kill $server && exit; done) \
         >/dev/null 2>{dir}/log </dev/null &"
    ));
    wait_for(port);
    port
}

/// Makes an empty data directory, and installs the server if it is missing.
fn install_mariadb(data: &Path) {
    let has_server = || {
        let found = Command::new("sh")
            .args(["-c", "command -v mariadbd"])
            .output();
        found.expect("a shell").status.success()
    };
    if !has_server() {
        sh(
            "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy mariadb-server",
        );
        assert!(has_server(), "MariaDB after installing it");
    }
    let _ = std::fs::remove_dir_all(data);
    let (user, data) = (user(), data.display());
    sh(&format!(
        "mariadb-install-db --no-defaults {user} --datadir={data} --auth-root-authentication-method=normal \
         --skip-test-db >/dev/null"
    ));
}

/// The server's own user could not read a directory of root's.
fn user() -> &'static str {
    if is_root() { "--user=root" } else { "" }
}

fn mariadbd(data: &Path, port: u16) -> String {
    let (user, data) = (user(), data.display());
    format!(
        "mariadbd --no-defaults {user} --datadir={data} --bind-address=127.0.0.1 --port={port} \
         --socket={data}/socket --pid-file={data}/pid --tmpdir={data} --skip-name-resolve"
    )
}

fn wait_for(port: u16) {
    apart(async {
        let until = Instant::now() + Duration::from_secs(60);
        while !answers(port) {
            assert!(Instant::now() < until, "MariaDB does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// Runs something on a runtime of its own: this may be in the middle of a test's.
fn apart<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let done = scope.spawn(|| block_on(work)).join();
        done.expect("a thread")
    })
}

/// A server of one test, which may end it. It ends with the test.
pub(crate) struct OwnServer {
    dir: tempfile::TempDir,
    port: u16,
    running: Option<Child>,
}

impl OwnServer {
    pub(crate) fn start() -> OwnServer {
        let dir = tempfile::tempdir_in(target_dir()).expect("a directory");
        install_mariadb(&dir.path().join("data"));
        let mut server = OwnServer {
            dir,
            port: free_port(),
            running: None,
        };
        server.start_again();
        server
    }

    pub(crate) fn url(&self) -> String {
        url_at(self.port)
    }

    /// Starts it after [`OwnServer::kill`].
    pub(crate) fn start_again(&mut self) {
        let command = mariadbd(&self.dir.path().join("data"), self.port);
        let log = File::create(self.dir.path().join("log")).expect("a log");
        // The shell becomes the server, so that the server is what is killed.
        let started = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.running = Some(started.expect("MariaDB"));
        wait_for(self.port);
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
        }
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.kill();
    }
}
