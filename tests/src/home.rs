//! A user of its own for each test: home, data, state and configuration in a temporary directory,
//! and the binary run with nothing else in its environment.
//!
//! It must not know servers; `server` does.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value as Json;
use tempfile::TempDir;

/// The directories of one user, removed when dropped.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
}

/// A program that ran to its end.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Home {
    /// A home in the system's temporary directory.
    pub fn new() -> Home {
        Home::prepared(TempDir::with_prefix("nimbus-e2e-").unwrap())
    }

    /// A home below `parent`, for tests that care which disk it is on.
    pub fn within(parent: &Path) -> Home {
        fs::create_dir_all(parent).unwrap();
        Home::prepared(TempDir::with_prefix_in("nimbus-e2e-", parent).unwrap())
    }

    fn prepared(dir: TempDir) -> Home {
        for name in ["home", "run"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Home { dir }
    }

    /// The directory that holds all the others.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where servers keep their data unless told otherwise; not created here.
    pub fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    /// `XDG_DATA_HOME`; not created here.
    pub fn xdg_data(&self) -> PathBuf {
        self.path().join("xdg-data")
    }

    /// `XDG_STATE_HOME`; not created here.
    pub fn xdg_state(&self) -> PathBuf {
        self.path().join("xdg-state")
    }

    /// The file of the admin token (nimbus.md 1.13).
    pub fn token_file(&self) -> PathBuf {
        self.xdg_data().join("nimbus/auth/token")
    }

    /// The audit log (nimbus.md 1.13).
    pub fn audit_log(&self) -> PathBuf {
        self.xdg_state().join("nimbus/logs/access.jsonl")
    }

    /// The token file as JSON.
    pub fn token_json(&self) -> Json {
        let path = self.token_file();
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).unwrap()
    }

    /// Changes the token file in place; its mode stays.
    pub fn edit_token_json(&self, edit: impl FnOnce(&mut Json)) {
        let mut json = self.token_json();
        edit(&mut json);
        fs::write(self.token_file(), serde_json::to_vec_pretty(&json).unwrap()).unwrap();
    }

    /// The admin token as its file has it.
    pub fn token(&self) -> String {
        self.token_json()["token"].as_str().unwrap().to_owned()
    }

    /// The binary with an environment of this home alone.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.program(binary(), args)
    }

    /// Any program with an environment of this home alone.
    pub fn program<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path().join("home"))
            .env("XDG_DATA_HOME", self.xdg_data())
            .env("XDG_STATE_HOME", self.xdg_state())
            .env("XDG_CONFIG_HOME", self.path().join("xdg-config"))
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            .env("LANG", "C.UTF-8")
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        Finished::of(&mut self.command(args))
    }
}

impl Default for Home {
    fn default() -> Home {
        Home::new()
    }
}

impl Finished {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Finished {
        let output = command
            .output()
            .unwrap_or_else(|e| panic!("cannot run {:?}: {e}", command.get_program()));
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
        }
    }

    /// The same, once the exit code is as expected.
    pub fn expect(self, code: i32) -> Finished {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Checks that standard error contains each of `parts`.
    pub fn says(self, parts: &[&str]) -> Finished {
        contains(&self.stderr, parts);
        self
    }

    /// Checks that standard output contains each of `parts`.
    pub fn prints(self, parts: &[&str]) -> Finished {
        contains(&self.stdout, parts);
        self
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.stdout))
    }
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// The binary under test: `NIMBUS_TEST_BIN`, or `nimbus` beside the build of these tests.
pub fn binary() -> OsString {
    let named = std::env::var_os("NIMBUS_TEST_BIN").filter(|value| !value.is_empty());
    let path = named.map_or_else(beside, PathBuf::from);
    assert!(
        path.is_file(),
        "there is no server binary at {}: build it with `cargo build --profile ci -p nimbus`, or \
         name one in NIMBUS_TEST_BIN (`cargo xtask test` does both)",
        path.display()
    );
    path.into_os_string()
}

/// `<target>/<profile>/nimbus`, counted from `<target>/<profile>/deps/<this test>`.
fn beside() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let profile = this.parent().and_then(Path::parent).unwrap();
    profile.join(format!("nimbus{}", std::env::consts::EXE_SUFFIX))
}
