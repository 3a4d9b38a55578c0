//! A PgBouncer in front of a Postgres database.
//!
//! Must not know what it is for.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{Database, answers, directory, free_port, is_root, sh};
use crate::wait::until;

/// A pooler with its files in a temporary directory, ended with this.
#[derive(Debug)]
pub struct Pooler {
    _dir: TempDir,
    port: u16,
    url: String,
    running: Child,
}

impl Pooler {
    /// Starts one that gives sessions of the database's server away for a `session`, `transaction` or `statement`.
    pub fn before(database: &Database, mode: &str) -> Pooler {
        let (dir, port) = (directory("nimbus-pgbouncer-", None), free_port());
        let url = database.url();
        let (_, place) = url.split_once('@').unwrap();
        let (server, _) = place.split_once('/').unwrap();
        configure(dir.path(), server, port, mode);
        let config = dir.path().join("pgbouncer.ini");
        // It does not run as root. The helper becomes the pooler, so that the pooler is what is killed.
        let mut command = match is_root() {
            true => {
                sh(&format!("chown -R postgres {}", dir.path().display()));
                let mut command = Command::new("setpriv");
                command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
                command.arg("pgbouncer");
                command
            }
            false => Command::new("pgbouncer"),
        };
        command.arg("--quiet").arg(&config);
        command.env("PATH", "/usr/sbin:/usr/bin:/bin");
        let running = command.stdin(Stdio::null()).spawn().unwrap();
        until("PgBouncer answers", || answers(port));
        Pooler {
            _dir: dir,
            port,
            url: url.replace(server, &format!("127.0.0.1:{port}")),
            running,
        }
    }

    /// The database's URL, by way of this.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

fn configure(dir: &Path, server: &str, port: u16, mode: &str) {
    let (host, server_port) = server.split_once(':').unwrap();
    let (shown, users) = (dir.display(), dir.join("users"));
    std::fs::write(&users, "\"postgres\" \"\"\n").unwrap();
    let config = format!(
        "[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = 60\n\
         logfile = {shown}/log\npidfile = {shown}/pid\n",
        users.display()
    );
    std::fs::write(dir.join("pgbouncer.ini"), config).unwrap();
}
