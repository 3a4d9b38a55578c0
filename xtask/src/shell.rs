//! Where the checkout and its build directory are, and how a command is run from there.
//! Must not know what the tasks are.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::engine::Engine;

/// Variables that `cargo run` sets for xtask alone. Build scripts that watch one
/// of them would run again whenever cargo is called from xtask instead of by hand.
const CARGO_RUN_VARIABLES: [&str; 4] = [
    "CARGO_BIN_",
    "CARGO_CRATE_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
];

/// The checkout that xtask works on.
#[derive(Debug)]
pub(crate) struct Checkout {
    /// Absolute path of the workspace root.
    pub(crate) root: PathBuf,
    /// Absolute path of the build directory.
    pub(crate) target: PathBuf,
    /// The JavaScript engine of what is built.
    pub(crate) engine: Engine,
    /// Variables for cargo that go with the engine.
    pub(crate) environment: Vec<(&'static str, OsString)>,
}

impl Checkout {
    /// Finds the checkout and decides where it is built.
    ///
    /// A build directory that cargo was told of (`CARGO_TARGET_DIR`, a cargo configuration) is
    /// used as it is. Otherwise it is `target` beside the checkout where that can be written, so
    /// that clones side by side share their dependencies and a checkout holds sources only;
    /// where it cannot, it is cargo's default inside the checkout.
    pub(crate) fn find() -> Result<Self> {
        let root = root()?;
        let metadata = metadata(&root)?;
        let configured = metadata["target_directory"]
            .as_str()
            .map(PathBuf::from)
            .context("cargo metadata names no target directory")?;
        let told = env::var_os("CARGO_TARGET_DIR").is_some() || configured != root.join("target");
        let target = match root.parent().map(|parent| parent.join("target")) {
            Some(beside) if !told && is_writable(&beside) => beside,
            _ => configured,
        };
        Ok(Self::new(root, target))
    }

    /// A checkout whose builds have V8, wherever its archive may be.
    pub(crate) fn new(root: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            target: target.into(),
            engine: Engine::V8,
            environment: Vec::new(),
        }
    }

    /// A cargo command that runs in the workspace root with the build directory of [`Self::find`].
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut command = self.command(cargo());
        command.args(args).env("CARGO_TARGET_DIR", &self.target);
        let environment = self.environment.iter();
        command.envs(environment.map(|(name, value)| (name, value)));
        command
    }

    /// A command that runs in the workspace root.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if CARGO_RUN_VARIABLES
                .iter()
                .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        command
    }

    /// The path of the `nimbus` binary that a build with this profile leaves.
    pub(crate) fn nimbus(&self, profile: &str) -> PathBuf {
        self.target.join(profile).join("nimbus")
    }
}

/// Runs a command with the terminal's streams, after printing it.
///
/// # Errors
/// When the program cannot be started or does not exit with zero.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("$ {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Whether a shell test holds; what it prints is dropped.
pub(crate) fn holds(script: &str) -> bool {
    let output = Command::new("sh").args(["-c", script]).output();
    output.is_ok_and(|output| output.status.success())
}

/// What `cargo metadata --no-deps` says of the workspace. It reads manifests only, no registry.
pub(crate) fn metadata(root: &Path) -> Result<Value> {
    // Not run in `root`: a relative CARGO_TARGET_DIR counts from where the caller stands.
    let output = Command::new(cargo())
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--manifest-path",
        ])
        .arg(root.join("Cargo.toml"))
        .output()
        .context("cannot start cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata printed no valid JSON")
}

/// The workspace root: the parent of xtask's own directory.
pub(crate) fn root() -> Result<PathBuf> {
    // Read when run, not when built: clones may share a build directory, and with it this binary.
    let xtask = match env::var_os("CARGO_MANIFEST_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")),
    };
    let root = xtask
        .parent()
        .with_context(|| format!("{} has no parent", xtask.display()))?;
    if !root.join("Cargo.toml").is_file() {
        bail!(
            "{} is no workspace; run this as `cargo xtask`",
            root.display()
        );
    }
    Ok(root.to_path_buf())
}

/// The cargo that runs xtask, so that no second toolchain joins in.
fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The command as a person would type it, for messages.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    std::iter::once(name)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether files can be made in a directory, which is created if need be.
fn is_writable(dir: &Path) -> bool {
    let probe = dir.join(format!(".xtask-probe-{}", std::process::id()));
    fs::create_dir_all(dir).is_ok()
        && fs::write(&probe, "").is_ok()
        && fs::remove_file(&probe).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_workspace() {
        let manifest = fs::read_to_string(root().unwrap().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }

    #[test]
    fn a_failing_command_is_named_in_the_error() {
        let error = run(Command::new("sh").args(["-c", "exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sh -c exit 3") && error.contains('3'),
            "{error}"
        );
        assert!(run(&mut Command::new("/nonexistent/program")).is_err());
    }

    #[test]
    fn shell_tests_report_their_outcome() {
        assert!(holds("true"));
        assert!(!holds("false"));
    }

    #[test]
    fn a_directory_below_a_file_is_not_writable() {
        let manifest = root().unwrap().join("Cargo.toml");
        assert!(!is_writable(&manifest.join("target")));
    }
}
