//! `cargo xtask bench`: builds the server and its load driver with optimisation, runs the driver,
//! and puts its table into `docs/performance.md`.
//!
//! Must not know what is measured or which goals there are: the driver does.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::{self, Scope};
use crate::shell::{self, Checkout};
use crate::tasks;

/// The page whose table is replaced.
const PAGE: &str = "docs/performance.md";
/// The version of workerd that functions are compared with.
const WORKERD: &str = "workerd@1.20261117.1";
/// The lines around the table.
const START: &str = "<!-- table: written by `cargo xtask bench` -->";
const END: &str = "<!-- table: end -->";

/// Builds, measures and writes the page. With `--quick` among `args` the page is left alone.
///
/// # Errors
/// When a build or the driver fails, or the page lacks its markers.
pub(crate) fn run(checkout: &Checkout, args: &[OsString]) -> Result<()> {
    // For strace, which slows syncs down.
    setup::run(checkout, Scope::Test)?;
    // One after the other: built together, the features that the driver asks of shared crates
    // would end up in the server that is measured.
    shell::run(&mut tasks::server(checkout, "release"))?;
    shell::run(&mut checkout.cargo(&["build", "--release", "-p", "nimbus-bench"]))?;
    let dir = checkout.target.join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let table = dir.join("table.md");
    let workerd = workerd(checkout, &dir)?;
    let mut command = checkout.command(checkout.target.join("release/nimbus-bench"));
    command
        .env("NIMBUS_BENCH_BIN", checkout.nimbus("release"))
        .env("NIMBUS_BENCH_WORKERD", workerd)
        .arg("--dir")
        .arg(&dir)
        .arg("--json")
        .arg(dir.join("results.json"))
        .arg("--markdown")
        .arg(&table)
        .args(["--commit", &commit(checkout)?])
        .args([
            "--rustc",
            &first_line(checkout.command("rustc").arg("--version"))?,
        ])
        .args(args);
    shell::run(&mut command)?;
    println!("results: {}", dir.join("results.json").display());
    if args.iter().any(|arg| arg == "--quick") {
        println!("{PAGE} is left as it is after a quick run");
        return Ok(());
    }
    let path = checkout.root.join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("reading {PAGE}"))?;
    let table = fs::read_to_string(&table).context("the driver wrote no table")?;
    fs::write(&path, replaced(&page, &table)?).with_context(|| format!("writing {PAGE}"))?;
    println!("{PAGE}: the table was replaced");
    Ok(())
}

/// The baseline of functions, from the npm package that has the program for this machine.
fn workerd(checkout: &Checkout, dir: &Path) -> Result<PathBuf> {
    let program = dir.join("node_modules/.bin/workerd");
    if !program.exists() {
        // Its install script puts the program in the place of a wrapper that would run it under Node.
        let mut npm = checkout.command("npm");
        npm.args(["install", "--no-save", "--ignore-scripts", "--prefix"]);
        shell::run(npm.arg(dir).arg(WORKERD))?;
        let install = dir.join("node_modules/workerd/install.js");
        shell::run(checkout.command("node").arg(install))?;
    }
    fs::canonicalize(&program).with_context(|| format!("no {}", program.display()))
}

/// The page with another text between its markers.
fn replaced(page: &str, table: &str) -> Result<String> {
    let found = page
        .split_once(START)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = found.with_context(|| format!("{PAGE} lacks `{START}` or `{END}`"))?;
    Ok(format!(
        "{before}{START}\n\n{}\n\n{END}{after}",
        table.trim()
    ))
}

/// The short hash of the commit, and whether files differ from it.
fn commit(checkout: &Checkout) -> Result<String> {
    let hash = first_line(
        checkout
            .command("git")
            .args(["rev-parse", "--short=10", "HEAD"]),
    )?;
    let changed = checkout
        .command("git")
        .args(["status", "--porcelain"])
        .output();
    let clean = changed.is_ok_and(|output| output.stdout.is_empty());
    Ok(if clean {
        hash
    } else {
        format!("{hash} with changes")
    })
}

fn first_line(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().filter(|_| output.status.success());
    Ok(line.unwrap_or("unknown").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_between_the_markers_changes() {
        let page = format!("# Speed\n\n{START}\nold\n{END}\n\nHow to run it.\n");
        let once = replaced(&page, "| new |\n").unwrap();
        assert_eq!(
            once,
            format!("# Speed\n\n{START}\n\n| new |\n\n{END}\n\nHow to run it.\n")
        );
        assert_eq!(replaced(&once, "| new |\n").unwrap(), once);
    }

    #[test]
    fn a_page_without_markers_is_left_alone() {
        for page in ["", START, &format!("{END}\n{START}\n")] {
            assert!(replaced(page, "| new |").is_err(), "{page}");
        }
    }

    #[test]
    fn the_page_has_its_markers() {
        let page = fs::read_to_string(shell::root().unwrap().join(PAGE)).unwrap();
        assert!(replaced(&page, "").is_ok());
    }
}
