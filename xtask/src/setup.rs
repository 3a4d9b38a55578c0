//! Installs what the build and the tests need from the machine, or says what to install.
//! Must not know what the needs are for beyond one line each.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::engine::Engine;
use crate::shell::{self, Checkout};

/// What a task is about to do, and so how much it needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scope {
    /// Build the server.
    Build,
    /// Build it and run the tests.
    Test,
}

/// One thing that the machine has to have.
#[derive(Debug)]
struct Need {
    /// The Debian package that brings it.
    package: &'static str,
    /// A shell test that holds where it is present, on whatever system.
    present: &'static str,
    scope: Scope,
    /// The engine that alone needs it; `None`: every build.
    engine: Option<Engine>,
}

const fn need(package: &'static str, scope: Scope, present: &'static str) -> Need {
    Need {
        package,
        present,
        scope,
        engine: None,
    }
}

/// QuickJS is compiled, and with it its WebAssembly.
const fn quickjs(package: &'static str, present: &'static str) -> Need {
    Need {
        engine: Some(Engine::Quickjs),
        ..need(package, Scope::Build, present)
    }
}

/// SQLCipher and OpenSSL are built from source: a C compiler with headers, make, and a
/// perl with more modules than Debian's perl-base.
const NEEDS: [Need; 21] = [
    need(
        "ca-certificates",
        Scope::Build,
        "ls /etc/ssl/certs/*.crt /etc/ssl/cert.pem /etc/pki/tls/certs/*.crt | grep -q .",
    ),
    need("gcc", Scope::Build, "command -v cc"),
    need(
        "libc6-dev",
        Scope::Build,
        "echo '#include <stdlib.h>' | cc -E -x c -",
    ),
    need("make", Scope::Build, "command -v make"),
    need(
        "perl",
        Scope::Build,
        "perl -MFile::Compare -MFindBin -MIPC::Cmd -e 1",
    ),
    need("pkg-config", Scope::Build, "command -v pkg-config"),
    quickjs("cmake", "command -v cmake"),
    quickjs("libsimde-dev", "test -f /usr/include/simde/wasm/simd128.h"),
    // The proxies are in /usr/sbin, which is not on every user's path.
    need("caddy", Scope::Test, "command -v caddy"),
    need("curl", Scope::Test, "command -v curl"),
    need(
        "haproxy",
        Scope::Test,
        "PATH=$PATH:/usr/sbin command -v haproxy",
    ),
    need("jq", Scope::Test, "command -v jq"),
    need(
        "nginx",
        Scope::Test,
        "PATH=$PATH:/usr/sbin command -v nginx",
    ),
    // The records of the bulk test are a package of the npm registry, and so are the clients of functions.
    need("npm", Scope::Test, "command -v npm"),
    need("ntfs-3g", Scope::Test, "command -v lowntfs-3g"),
    need("openssl", Scope::Test, "command -v openssl"),
    need(
        "pgbouncer",
        Scope::Test,
        "PATH=$PATH:/usr/sbin command -v pgbouncer",
    ),
    need(
        "python3-venv",
        Scope::Test,
        "python3 -c 'import ensurepip, venv'",
    ),
    need("sqlite3", Scope::Test, "command -v sqlite3"),
    need("strace", Scope::Test, "command -v strace"),
    need("systemd", Scope::Test, "command -v systemd-analyze"),
];

/// The oldest nextest that understands `.config/nextest.toml`, and the one that is installed.
const NEXTEST: &str = "0.9.143";

/// What is to be done about missing packages.
#[derive(Debug, Eq, PartialEq)]
enum Plan {
    Nothing,
    Install,
    /// Not ours to install: the exact command for whoever may.
    Advise(String),
}

/// Installs what is missing for `scope`; when nothing is, it only looks.
///
/// # Errors
/// When something is missing and cannot be installed: not root, no apt, or a failed installation.
pub(crate) fn run(checkout: &Checkout, scope: Scope) -> Result<()> {
    let missing = missing(checkout.engine, scope);
    match plan(&missing, is_root(), shell::holds("command -v apt-get")) {
        Plan::Nothing => {}
        Plan::Install => apt_install(&missing, || self::missing(checkout.engine, scope))?,
        Plan::Advise(advice) => bail!("missing on this machine: {}; {advice}", missing.join(" ")),
    }
    if scope == Scope::Test {
        install_nextest(checkout)?;
        install_python(checkout)?;
        install_apps(checkout)?;
    }
    println!("setup: everything is there");
    Ok(())
}

fn missing(engine: Engine, scope: Scope) -> Vec<&'static str> {
    let absent = needs(engine, scope).filter(|need| !shell::holds(need.present));
    absent.map(|need| need.package).collect()
}

fn needs(engine: Engine, scope: Scope) -> impl Iterator<Item = &'static Need> {
    NEEDS.iter().filter(move |need| {
        let scoped = scope == Scope::Test || need.scope == Scope::Build;
        scoped && need.engine.is_none_or(|only| only == engine)
    })
}

fn plan(missing: &[&str], root: bool, apt: bool) -> Plan {
    let packages = missing.join(" ");
    match (missing, apt, root) {
        ([], _, _) => Plan::Nothing,
        (_, true, true) => Plan::Install,
        (_, true, false) => Plan::Advise(format!(
            "run `sudo apt-get update && sudo apt-get install -y --no-install-recommends {packages}`"
        )),
        (_, false, _) => Plan::Advise(format!(
            "install what your system calls the Debian packages {packages}"
        )),
    }
}

fn apt_install(packages: &[&str], missing: impl FnOnce() -> Vec<&'static str>) -> Result<()> {
    println!("setup: installing {}", packages.join(" "));
    shell::run(&mut apt(&["update"]))?;
    let quiet = NoDaemons::hold()?;
    shell::run(apt(&["install", "-y", "--no-install-recommends"]).args(packages))?;
    drop(quiet);
    let still = missing();
    if !still.is_empty() {
        bail!("apt-get succeeded, but still missing: {}", still.join(" "));
    }
    Ok(())
}

/// Packages that bring a daemon do not start it while this lives: the tests run the proxies
/// themselves, and a machine that builds should not begin to listen on port 80.
struct NoDaemons {
    /// Whether the policy is ours to remove.
    ours: bool,
}

impl NoDaemons {
    /// Asked by Debian's packages before they start anything (`/usr/share/doc/sysv-rc`).
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn hold() -> Result<NoDaemons> {
        let policy = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(NoDaemons::POLICY);
        match policy {
            // 101: not allowed.
            Ok(mut file) => file.write_all(b"#!/bin/sh\nexit 101\n")?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(NoDaemons { ours: false });
            }
            Err(e) => return Err(e).context(NoDaemons::POLICY),
        }
        Ok(NoDaemons { ours: true })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours {
            // Whoever removed it before us wanted the same.
            let _ = fs::remove_file(NoDaemons::POLICY);
        }
    }
}

fn apt(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("-q")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn install_nextest(checkout: &Checkout) -> Result<()> {
    let installed = checkout.cargo(&["nextest", "--version"]).output();
    let text = installed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    if is_new_enough(&text.unwrap_or_default()) {
        return Ok(());
    }
    println!("setup: installing cargo-nextest {NEXTEST}, which takes some minutes");
    // Without optimisation: a test runner mostly waits, and the build takes a third of the time.
    let mut command = checkout.cargo(&["install", "cargo-nextest", "--locked", "--debug"]);
    command
        .args(["--version", NEXTEST])
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    // Cargo's own temporary directory: the build directory has no use for what this leaves.
    shell::run(command.env_remove("CARGO_TARGET_DIR"))
        .context("cargo-nextest is missing; https://nexte.st tells of other ways to install it")
}

/// A virtual environment in the build directory with what `tests/requirements.txt` lists. A copy of
/// that file, written last, says what is there.
fn install_python(checkout: &Checkout) -> Result<()> {
    let listed = checkout.root.join("tests/requirements.txt");
    let wanted = fs::read(&listed).with_context(|| format!("reading {}", listed.display()))?;
    let environment = checkout.target.join("python");
    let done = environment.join("nimbus-requirements.txt");
    if fs::read(&done).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    println!("setup: installing the Python packages of the tests, which takes a minute");
    let mut make = checkout.command("python3");
    shell::run(make.args(["-m", "venv", "--clear"]).arg(&environment))?;
    let mut install = checkout.command(environment.join("bin/python"));
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--requirement",
    ]);
    shell::run(
        install
            .arg(&listed)
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
    )?;
    fs::write(&done, wanted).with_context(|| format!("writing {}", done.display()))
}

/// The packages of the tests' applications, in `apps` of the build directory, by the lock file of one of them.
/// A copy of that file, written last, says what is there.
fn install_apps(checkout: &Checkout) -> Result<()> {
    let source = checkout.root.join("tests/apps/chat");
    let lock = source.join("package-lock.json");
    let wanted = fs::read(&lock).with_context(|| format!("reading {}", lock.display()))?;
    let apps = checkout.target.join("apps");
    let done = apps.join("nimbus-package-lock.json");
    if fs::read(&done).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    println!("setup: installing the npm packages of the tests");
    fs::create_dir_all(&apps).with_context(|| format!("making {}", apps.display()))?;
    for name in ["package.json", "package-lock.json"] {
        let (from, to) = (source.join(name), apps.join(name));
        fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
    }
    let mut install = checkout.command("npm");
    install.current_dir(&apps);
    shell::run(install.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]))?;
    fs::write(&done, wanted).with_context(|| format!("writing {}", done.display()))
}

/// Reads the first line of `cargo nextest --version`: `cargo-nextest 0.9.143 (…)`.
fn is_new_enough(output: &str) -> bool {
    let found = output
        .strip_prefix("cargo-nextest ")
        .and_then(|rest| rest.split_whitespace().next());
    found
        .and_then(version)
        .is_some_and(|found| version(NEXTEST).is_some_and(|least| found >= least))
}

fn version(text: &str) -> Option<[u64; 3]> {
    let release = text.split(['-', '+']).next()?;
    let numbers: Vec<u64> = release
        .split('.')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    numbers.try_into().ok()
}

/// The owner of this process, as the kernel tells it.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_by_what_is_missing_and_who_asks() {
        assert_eq!(plan(&[], false, false), Plan::Nothing);
        assert_eq!(plan(&["make"], true, true), Plan::Install);
        let Plan::Advise(user) = plan(&["make", "perl"], false, true) else {
            panic!("a user may not install");
        };
        assert!(user.contains("sudo apt-get install -y --no-install-recommends make perl"));
        let Plan::Advise(other) = plan(&["make", "perl"], true, false) else {
            panic!("no apt to install with");
        };
        assert!(other.contains("make perl"));
    }

    #[test]
    fn only_quickjs_needs_what_compiles_it() {
        let listed = |engine, scope| -> Vec<&str> {
            needs(engine, scope).map(|need| need.package).collect()
        };
        for scope in [Scope::Build, Scope::Test] {
            let (v8, quickjs) = (listed(Engine::V8, scope), listed(Engine::Quickjs, scope));
            assert!(v8.contains(&"gcc") && quickjs.contains(&"gcc"));
            for package in ["cmake", "libsimde-dev"] {
                assert!(!v8.contains(&package), "{package}");
                assert!(quickjs.contains(&package), "{package}");
            }
        }
        assert!(!listed(Engine::Quickjs, Scope::Build).contains(&"caddy"));
    }

    #[test]
    fn nextest_versions_compare_as_numbers() {
        for (output, expected) in [
            (
                "cargo-nextest 0.9.143 (60fa45f63 2026-08-04)\nrelease: 0.9.143\n",
                true,
            ),
            ("cargo-nextest 0.10.0\n", true),
            ("cargo-nextest 1.0.0-rc.1\n", true),
            ("cargo-nextest 0.9.99 (abc)\n", false),
            ("error: no such command: `nextest`", false),
            ("", false),
        ] {
            assert_eq!(is_new_enough(output), expected, "{output}");
        }
    }

    #[test]
    fn the_nextest_configuration_asks_for_the_same_version() {
        let path = shell::root().unwrap().join(".config/nextest.toml");
        let line = format!("nextest-version = {{ required = \"{NEXTEST}\" }}");
        assert!(fs::read_to_string(path).unwrap().contains(&line), "{line}");
    }
}
