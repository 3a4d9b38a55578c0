//! A private MariaDB, and its client.
//!
//! Must not know what it is for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{answers, directory, free_port, is_root, output, sh};
use crate::wait::until;

/// Where everything is allowed in a server on this port.
pub(super) fn url(port: u16) -> String {
    format!("mysql://root@127.0.0.1:{port}/")
}

/// What a statement returns: a line a row.
pub(super) fn mariadb(url: &str, sql: &str) -> String {
    let place = url.trim_start_matches("mysql://").trim_end_matches('/');
    let (user, address) = place.split_once('@').unwrap();
    let (host, port) = address.split_once(':').unwrap_or((address, "3306"));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let mut command = Command::new("mariadb");
    command.args([
        "--no-defaults",
        "--batch",
        "--skip-column-names",
        "--protocol=tcp",
    ]);
    command.args([
        "--host",
        host,
        "--port",
        port,
        "--user",
        user,
        "--execute",
        sql,
    ]);
    command.env("MYSQL_PWD", password);
    output(&mut command, sql)
}

/// A server of its own in a temporary directory, ended with this.
#[derive(Debug)]
pub(super) struct PrivateMariadb {
    dir: TempDir,
    port: u16,
    settings: Vec<(&'static str, String)>,
    running: Option<Child>,
}

impl PrivateMariadb {
    /// `within` is where its directory is made, and `settings` are more options of the server.
    pub(super) fn start(
        within: Option<&Path>,
        settings: &[(&'static str, String)],
    ) -> PrivateMariadb {
        let found = Command::new("sh")
            .args(["-c", "command -v mariadbd >/dev/null"])
            .status();
        if !found.unwrap().success() {
            sh(
                "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy mariadb-server",
            );
        }
        let mut server = PrivateMariadb {
            dir: directory("nimbus-mariadb-", within),
            port: free_port(),
            settings: settings.to_vec(),
            running: None,
        };
        sh(&format!(
            "mariadb-install-db --no-defaults {} --datadir={} --auth-root-authentication-method=normal \
             --skip-test-db >/dev/null",
            user(),
            server.data().display()
        ));
        server.run();
        server
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Kills it and starts it again.
    pub(super) fn crash_and_restart(&mut self) {
        self.kill();
        self.run();
    }

    /// Starts it where it ended by itself; whether it had.
    pub(super) fn revive(&mut self) -> bool {
        let ended = !answers(self.port);
        if ended {
            self.crash_and_restart();
        }
        ended
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn run(&mut self) {
        let (data, log) = (self.data(), self.dir.path().join("log"));
        let data = data.display();
        let settings = self.settings.iter();
        let more: String = settings
            .map(|(name, value)| format!(" --{name}={value}"))
            .collect();
        // The shell becomes the server, so that the server is what is killed.
        let script = format!(
            "exec mariadbd --no-defaults {} --datadir={data} --bind-address=127.0.0.1 --port={} \
             --socket={data}/socket --pid-file={data}/pid --tmpdir={data} --skip-name-resolve{more}",
            user(),
            self.port
        );
        let started = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log).unwrap())
            .spawn();
        self.running = Some(started.unwrap());
        until("MariaDB answers", || answers(self.port));
    }

    fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
        }
    }
}

impl Drop for PrivateMariadb {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server's own user could not read a directory of root's.
fn user() -> &'static str {
    if is_root() { "--user=root" } else { "" }
}
