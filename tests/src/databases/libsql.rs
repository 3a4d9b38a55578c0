//! A private libSQL primary: a process of its own, so that it can be killed.
//!
//! Must not know the primary beyond its directory and ports. The process is the program of the tests once more, which
//! [`PROCESS`] turns into a primary: whoever built the tests has it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{answers, free_port};
use crate::wait::until;

/// The test that is the primary when it is told its directory and ports.
const PROCESS: &str = "libsql::the_process_of_a_primary";
/// What tells it.
pub const DIR: &str = "NIMBUS_TEST_PRIMARY_DIR";
/// Its ports, for users and of the admin API, with a comma between.
pub const PORTS: &str = "NIMBUS_TEST_PRIMARY_PORTS";

/// A primary in a temporary directory, ended with this.
#[derive(Debug)]
pub(super) struct PrivateLibsql {
    dir: TempDir,
    port: u16,
    admin_port: u16,
    running: Option<Child>,
}

impl PrivateLibsql {
    pub(super) fn start() -> PrivateLibsql {
        let mut primary = PrivateLibsql {
            dir: TempDir::with_prefix("nimbus-libsql-").unwrap(),
            port: free_port(),
            admin_port: free_port(),
            running: None,
        };
        primary.run();
        primary
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    pub(super) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Kills it and starts it again, on the same files and ports.
    pub(super) fn crash_and_restart(&mut self) {
        self.kill();
        self.run();
    }

    fn run(&mut self) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", PROCESS, "--ignored", "--nocapture"])
            .env(DIR, self.data())
            .env(PORTS, format!("{},{}", self.port, self.admin_port))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        self.running = Some(command.spawn().unwrap());
        until("the primary answers", || {
            answers(self.port) && answers(self.admin_port)
        });
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
        }
    }
}

impl Drop for PrivateLibsql {
    fn drop(&mut self) {
        self.kill();
    }
}
