//! The tasks, each a few commands in a row.
//! Must not know how a rule is checked or a package installed: `tidy` and `setup` do.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::phases::Phases;
use crate::setup::{self, Scope};
use crate::shell::{self, Checkout};
use crate::tidy;

/// Builds the server with optimisation and becomes `nimbus start`.
pub(crate) fn start(checkout: &Checkout, args: &[OsString]) -> Result<()> {
    setup::run(checkout, Scope::Build)?;
    shell::run(&mut checkout.cargo(&["build", "--release", "-p", "nimbus"]))?;
    let binary = checkout.nimbus("release");
    println!("$ {} start", binary.display());
    // Not in the workspace root: relative paths among the arguments count from where the caller stands.
    let error = Command::new(&binary).arg("start").args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}

/// Builds and runs the tests. With `args`, which go to nextest, documentation tests are left out.
pub(crate) fn test(checkout: &Checkout, args: &[OsString]) -> Result<()> {
    let mut phases = Phases::default();
    let result = test_phases(checkout, args, &mut phases);
    print!("\n{}", phases.table());
    result
}

fn test_phases(checkout: &Checkout, args: &[OsString], phases: &mut Phases) -> Result<()> {
    phases.run("setup", || setup::run(checkout, Scope::Test))?;
    phases.run("build server", || {
        shell::run(&mut checkout.cargo(&["build", "--profile", "ci", "-p", "nimbus"]))
    })?;
    if args.is_empty() {
        phases.run("build tests", || {
            shell::run(nextest(checkout, &[]).arg("--no-run"))
        })?;
        // Before the others, so that the output ends with nextest's count and its list of failures.
        phases.run("doc tests", || {
            shell::run(&mut checkout.cargo(&["test", "--doc", "--workspace", "--profile", "ci"]))
        })?;
    } else {
        println!("documentation tests are left out, since nextest arguments were given");
    }
    phases.run("run tests", || shell::run(&mut nextest(checkout, args)))
}

/// The nextest run of `args`, with the server that the end-to-end tests drive in `NIMBUS_TEST_BIN`.
fn nextest(checkout: &Checkout, args: &[OsString]) -> Command {
    let mut command = checkout.cargo(&["nextest", "run", "--cargo-profile", "ci"]);
    command.env("NIMBUS_TEST_BIN", checkout.nimbus("ci"));
    // Cargo takes `--workspace` together with `-p` to mean the whole workspace.
    if !selects_packages(args) {
        command.arg("--workspace");
    }
    command.args(args);
    command
}

/// Whether the nextest arguments name packages (`-p`, `--package`).
fn selects_packages(args: &[OsString]) -> bool {
    let words = args.iter().map(|arg| arg.to_string_lossy());
    words.take_while(|word| word != "--").any(|word| {
        let short = word.starts_with("-p");
        short || word == "--package" || word.starts_with("--package=")
    })
}

/// Checks the rules of `tidy` and prints what breaks them.
pub(crate) fn tidy(checkout: &Checkout) -> Result<()> {
    let findings = tidy::check(&checkout.root)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy found {} problem(s)", findings.len());
    }
    println!("tidy: no problems");
    Ok(())
}

/// Checks the formatting and changes nothing.
pub(crate) fn fmt(checkout: &Checkout) -> Result<()> {
    shell::run(&mut checkout.cargo(&["fmt", "--all", "--check"]))
        .context("the formatting differs; `cargo fmt --all` mends it")
}

/// Runs clippy on every target with warnings denied.
pub(crate) fn clippy(checkout: &Checkout) -> Result<()> {
    let args = ["clippy", "--workspace", "--all-targets", "--profile", "ci"];
    shell::run(checkout.cargo(&args).args(["--", "-D", "warnings"]))
}

/// Builds the API documentation with warnings denied.
pub(crate) fn doc(checkout: &Checkout) -> Result<()> {
    let args = ["doc", "--no-deps", "--workspace", "--profile", "ci"];
    shell::run(checkout.cargo(&args).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Runs every check in order of speed and stops at the first that fails.
pub(crate) fn ci(checkout: &Checkout) -> Result<()> {
    let mut phases = Phases::default();
    let result = ci_phases(checkout, &mut phases);
    print!("\n{}", phases.table());
    result
}

fn ci_phases(checkout: &Checkout, phases: &mut Phases) -> Result<()> {
    phases.run("fmt", || fmt(checkout))?;
    phases.run("tidy", || tidy(checkout))?;
    phases.run("clippy", || clippy(checkout))?;
    phases.run("test", || test(checkout, &[]))?;
    phases.run("doc", || doc(checkout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_selections_are_seen() {
        for (args, expected) in [
            (&["-p", "nimbus-core"][..], true),
            (&["-pnimbus-core"], true),
            (&["--package=nimbus-core"], true),
            (&["key", "--package", "nimbus-core"], true),
            (&["key", "--partition", "count:1/2"], false),
            (&["-P", "default"], false),
            (&["key", "--", "-p"], false),
            (&[], false),
        ] {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            assert_eq!(selects_packages(&args), expected, "{args:?}");
        }
    }

    #[test]
    fn a_run_names_the_server_and_the_workspace() {
        let checkout = Checkout {
            root: "/checkout".into(),
            target: "/build".into(),
        };
        let command = nextest(&checkout, &[]);
        assert!(command.get_args().any(|arg| arg == "--workspace"));
        let server = command
            .get_envs()
            .find(|(name, _)| *name == "NIMBUS_TEST_BIN");
        assert_eq!(server.unwrap().1.unwrap(), "/build/ci/nimbus");
        let one = nextest(&checkout, &["-p".into(), "nimbus-core".into()]);
        assert!(!one.get_args().any(|arg| arg == "--workspace"));
    }
}
