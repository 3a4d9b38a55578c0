//! The database servers that tests run against: one that is named or runs already, else a private one.
//!
//! Must not know the providers. A private server is shared by the processes of a test run, is kept under the
//! target directory, and ends by itself when no test used it for ten minutes. Nothing is ever skipped.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

#[cfg(feature = "postgres")]
/// The URL of a Postgres whose role may do everything.
pub(crate) fn postgres() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        if let Ok(url) = std::env::var("NIMBUS_TEST_POSTGRES_URL") {
            return url;
        }
        let url = |port| format!("postgres://postgres@127.0.0.1:{port}/postgres");
        if answers(5432) {
            return url(5432);
        }
        url(private_postgres())
    })
}

#[cfg(feature = "postgres")]
/// A part of a database of its own for one test, which is dropped with it.
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) metadata: String,
    pub(crate) prefix: String,
}

#[cfg(feature = "postgres")]
impl Place {
    /// In the shared database.
    pub(crate) fn postgres() -> Place {
        let mark = format!("{:016x}", fastrand::u64(..));
        Place {
            url: postgres().to_owned(),
            metadata: format!("m{mark}"),
            prefix: format!("t{mark}_"),
        }
    }

    /// Runs statements with every right, as an operator would.
    pub(crate) async fn run(&self, sql: &str) {
        run(postgres(), sql).await;
    }

    /// The first column of what a statement returns, as text.
    pub(crate) async fn ask(&self, sql: &str) -> Vec<String> {
        ask(postgres(), sql).await
    }

    async fn clear(&self) {
        let listed = format!(
            "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, '{}') OR nspname = '{}'",
            self.prefix, self.metadata
        );
        for schema in self.ask(&listed).await {
            self.run(&format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE"))
                .await;
        }
    }
}

#[cfg(feature = "postgres")]
impl Drop for Place {
    fn drop(&mut self) {
        // On a runtime of its own: this may be in the middle of a test's.
        std::thread::scope(|scope| {
            scope.spawn(|| block_on(self.clear()));
        });
    }
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work)
}

#[cfg(feature = "postgres")]
/// Runs statements.
pub(crate) async fn run(url: &str, sql: &str) {
    use sqlx::Connection as _;
    let mut conn = sqlx::PgConnection::connect(url).await.expect("Postgres");
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut conn)
        .await;
    done.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let _ = conn.close().await;
}

#[cfg(feature = "postgres")]
/// The first column of what a statement returns, as text.
pub(crate) async fn ask(url: &str, sql: &str) -> Vec<String> {
    use sqlx::{Connection as _, Row as _};
    let mut conn = sqlx::PgConnection::connect(url).await.expect("Postgres");
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .fetch_all(&mut conn)
        .await;
    let rows = rows.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let _ = conn.close().await;
    rows.iter().map(|row| row.get::<String, _>(0)).collect()
}

/// Whether something listens on a port of this machine.
pub(crate) fn answers(port: u16) -> bool {
    let address = ([127, 0, 0, 1], port).into();
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// The target directory of this build.
pub(crate) fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of the tests");
    // target/<profile>/deps/<test>
    exe.ancestors().nth(3).expect("a target directory").into()
}

/// Holds a lock among the processes of a test run.
pub(crate) fn locked<T>(path: &Path, work: impl FnOnce() -> T) -> T {
    let file = std::fs::File::create(path).expect("a lock file");
    file.lock().expect("a lock");
    work()
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// The port of the private Postgres, started if it is not running.
fn private_postgres() -> u16 {
    let dir = target_dir().join("test-postgres");
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
        let bin = postgres_binaries();
        let (data, port) = (dir.join("data"), free_port());
        let _ = std::fs::remove_dir_all(&data);
        std::fs::create_dir(&data).expect("a directory");
        if is_root() {
            sh(&format!("chown postgres {}", data.display()));
        }
        let user = if is_root() {
            "runuser -u postgres -- "
        } else {
            ""
        };
        let (bin, data, dir) = (bin.display(), data.display(), dir.display());
        sh(&format!(
            "cd / && {user}{bin}/initdb -D {data} -U postgres -A trust --no-sync >/dev/null"
        ));
        sh(&format!(
            "cd / && {user}{bin}/pg_ctl -D {data} -w -l {data}/log start \
             -o '-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=' >/dev/null"
        ));
        // Ends it, and itself, when the tests are over.
        sh(&format!(
            "(while sleep 60; do [ -n \"$(find {dir}/used -mmin +10)\" ] && \
             cd / && {user}{bin}/pg_ctl -D {data} -m fast stop && exit; done) >/dev/null 2>&1 </dev/null &"
        ));
        std::fs::write(port_file, port.to_string()).expect("a file");
        port
    })
}

pub(crate) fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id");
    id.stdout.trim_ascii() == b"0"
}

/// Where initdb and pg_ctl are; installed if they are missing.
fn postgres_binaries() -> PathBuf {
    let find = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut bins: Vec<PathBuf> = versions
            .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
            .filter(|bin| bin.join("initdb").exists())
            .collect();
        bins.sort();
        bins.pop()
    };
    find().unwrap_or_else(|| {
        sh("apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy postgresql");
        find().expect("Postgres after installing it")
    })
}

/// Runs a script that must succeed.
pub(crate) fn sh(script: &str) {
    let status = Command::new("sh").arg("-c").arg(script).status();
    assert!(status.expect("a shell").success(), "{script}");
}
