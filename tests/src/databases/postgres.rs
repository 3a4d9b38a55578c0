//! A private Postgres, and its client.
//!
//! Must not know what it is for.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{answers, directory, free_port, is_root, output, sh};

/// Where everything is allowed in a server on this port.
pub(super) fn url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

/// A server of its own in a temporary directory, ended with this.
#[derive(Debug)]
pub(super) struct PrivatePostgres {
    bin: PathBuf,
    dir: TempDir,
    port: u16,
    settings: Vec<(&'static str, String)>,
    /// Of its write-ahead log, where that is elsewhere.
    log: Option<TempDir>,
}

impl PrivatePostgres {
    /// `within` is where its directory is made, `log` where that of its write-ahead log is if it is another place, and
    /// `settings` are more of those in `postgresql.conf`.
    pub(super) fn start(
        within: Option<&Path>,
        log: Option<&Path>,
        settings: &[(&'static str, String)],
    ) -> PrivatePostgres {
        let made = |within: Option<&Path>| {
            let dir = directory("nimbus-postgres-", within);
            if is_root() {
                sh(&format!("chown postgres {}", dir.path().display()));
            }
            dir
        };
        let server = PrivatePostgres {
            bin: binaries(),
            dir: made(within),
            port: free_port(),
            settings: settings.to_vec(),
            log: log.map(|log| made(Some(log))),
        };
        let log = server.log.as_ref();
        let log = log.map(|dir| format!("--waldir={}/wal", dir.path().display()));
        server.as_user(&format!(
            "{}/initdb -D {} -U postgres -A trust --no-sync --wal-segsize=4 {} >/dev/null",
            server.bin.display(),
            server.data().display(),
            log.unwrap_or_default()
        ));
        server.run();
        server
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Ends it without a checkpoint and starts it again.
    pub(super) fn crash_and_restart(&self) {
        self.pg_ctl("-m immediate stop");
        self.run();
    }

    /// Starts it where it ended by itself; whether it had.
    pub(super) fn revive(&self) -> bool {
        let ended = !answers(self.port);
        if ended {
            self.run();
        }
        ended
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn run(&self) {
        let log = self.dir.path().join("log");
        let settings = self.settings.iter();
        let more: String = settings
            .map(|(name, value)| format!(" -c {name}={value}"))
            .collect();
        self.pg_ctl(&format!(
            "-w -t 60 -l {} start -o '-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories= {more}'",
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
        // It may have ended by itself, for want of room.
        if answers(self.port) {
            self.pg_ctl("-m immediate stop");
        }
    }
}

/// What statements return: a line a row, columns divided by `|`.
pub(super) fn psql(url: &str, sql: &str) -> String {
    let mut command = Command::new("psql");
    command
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
        .args(["--set", "ON_ERROR_STOP=1", "--command", sql, url]);
    output(&mut command, sql)
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
