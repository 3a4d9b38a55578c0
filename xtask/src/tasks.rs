//! The tasks, each a few commands in a row.
//! Must not know how a rule is checked or a package installed: `tidy` and `setup` do.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::engine::{Choice, Engine};
use crate::phases::Phases;
use crate::setup::{self, Scope};
use crate::shell::{self, Checkout};
use crate::tidy;

/// Builds the server with optimisation and becomes `nimbus start`.
pub(crate) fn start(checkout: &Checkout, args: &[OsString]) -> Result<()> {
    setup::run(checkout, Scope::Build)?;
    shell::run(&mut server(checkout, "release"))?;
    let binary = checkout.nimbus("release");
    println!("$ {} start", binary.display());
    // Not in the workspace root: relative paths among the arguments count from where the caller stands.
    let error = Command::new(&binary).arg("start").args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}

/// The build of the server with a profile.
pub(crate) fn server(checkout: &Checkout, profile: &str) -> Command {
    let mut command = checkout.cargo(&["build", "--profile", profile, "-p", "nimbus"]);
    command.args(checkout.engine.features(&["nimbus".to_owned()]));
    command
}

/// Builds and runs the tests. With `args`, which go to nextest, documentation tests are left out.
/// Of an engine that was asked for, and that is not the product's, the suite of functions alone is run.
pub(crate) fn test(checkout: &Checkout, choice: Choice, args: &[OsString]) -> Result<()> {
    let mut phases = Phases::default();
    let result = if args.is_empty() && choice.engine == Some(Engine::Quickjs) {
        println!(
            "the suite of nimbus-runtime alone, since an engine was asked for and no nextest arguments were given"
        );
        runtime_phases(checkout, &mut phases)
    } else {
        test_phases(checkout, args, &mut phases)
    };
    print!("\n{}", phases.table());
    result
}

fn runtime_phases(checkout: &Checkout, phases: &mut Phases) -> Result<()> {
    let args = ["-p".into(), "nimbus-runtime".into()];
    phases.run("setup", || setup::run(checkout, Scope::Test))?;
    phases.run("build tests", || {
        shell::run(nextest(checkout, &args).arg("--no-run"))
    })?;
    phases.run("run tests", || shell::run(&mut nextest(checkout, &args)))
}

fn test_phases(checkout: &Checkout, args: &[OsString], phases: &mut Phases) -> Result<()> {
    phases.run("setup", || setup::run(checkout, Scope::Test))?;
    phases.run("build server", || shell::run(&mut server(checkout, "ci")))?;
    if args.is_empty() {
        phases.run("build tests", || {
            shell::run(nextest(checkout, &[]).arg("--no-run"))
        })?;
        // Before the others, so that the output ends with nextest's count and its list of failures.
        phases.run("doc tests", || shell::run(&mut doc_tests(checkout)))?;
        // Fails the task at its end only: one failure must not hide the others.
        let on_postgres = phases.run("functions on pg", || {
            shell::run(&mut functions_on_postgres(checkout))
        });
        phases.run("run tests", || shell::run(&mut nextest(checkout, args)))?;
        return on_postgres;
    }
    println!(
        "documentation tests and functions on Postgres are left out, since nextest arguments were given"
    );
    phases.run("run tests", || shell::run(&mut nextest(checkout, args)))
}

/// The end-to-end tests of functions once more, their tenants in Postgres. `.config/nextest.toml` says which.
fn functions_on_postgres(checkout: &Checkout) -> Command {
    let mut command = nextest(checkout, &["--profile".into(), "postgres".into()]);
    command.env("NIMBUS_TEST_DATABASE", "postgres");
    command
}

fn doc_tests(checkout: &Checkout) -> Command {
    let mut command = checkout.cargo(&["test", "--doc", "--workspace", "--profile", "ci"]);
    command.args(checkout.engine.features(&[]));
    command
}

/// The nextest run of `args`, with the server that the end-to-end tests drive in `NIMBUS_TEST_BIN`.
fn nextest(checkout: &Checkout, args: &[OsString]) -> Command {
    let mut command = checkout.cargo(&["nextest", "run", "--cargo-profile", "ci"]);
    command.env("NIMBUS_TEST_BIN", checkout.nimbus("ci"));
    let packages = packages(args);
    // Cargo takes `--workspace` together with `-p` to mean the whole workspace.
    if packages.is_empty() {
        command.arg("--workspace");
    }
    command.args(checkout.engine.features(&packages));
    command.args(args);
    command
}

/// The packages that the nextest arguments name (`-p`, `--package`).
fn packages(args: &[OsString]) -> Vec<String> {
    let mut words = args.iter().map(|arg| arg.to_string_lossy());
    let mut names = Vec::new();
    while let Some(word) = words.next().filter(|word| word != "--") {
        let name = match (word.strip_prefix("--package"), word.strip_prefix("-p")) {
            (Some(""), _) | (None, Some("")) => words.next().map(Into::into),
            (Some(rest), _) => rest.strip_prefix('=').map(str::to_owned),
            (None, rest) => rest.map(|rest| rest.trim_start_matches('=').to_owned()),
        };
        names.extend(name);
    }
    names
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
    let mut command = checkout.cargo(&["clippy", "--workspace", "--all-targets"]);
    command
        .args(["--profile", "ci"])
        .args(checkout.engine.features(&[]));
    shell::run(command.args(["--", "-D", "warnings"]))
}

/// Builds the API documentation with warnings denied.
pub(crate) fn doc(checkout: &Checkout) -> Result<()> {
    let mut command = checkout.cargo(&["doc", "--no-deps", "--workspace", "--profile", "ci"]);
    command.args(checkout.engine.features(&[]));
    shell::run(command.env("RUSTDOCFLAGS", "-D warnings"))
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
    phases.run("test", || test(checkout, Choice::default(), &[]))?;
    phases.run("doc", || doc(checkout))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout(engine: Engine) -> Checkout {
        Checkout {
            engine,
            ..Checkout::new("/checkout", "/build")
        }
    }

    #[test]
    fn package_selections_are_seen() {
        for (args, expected) in [
            (&["-p", "nimbus-core"][..], &["nimbus-core"][..]),
            (&["-pnimbus-core"], &["nimbus-core"]),
            (&["-p=nimbus-core"], &["nimbus-core"]),
            (&["--package=nimbus-core"], &["nimbus-core"]),
            (
                &["-p", "nimbus", "key", "--package", "nimbus-core"],
                &["nimbus", "nimbus-core"],
            ),
            (&["key", "--partition", "count:1/2"], &[]),
            (&["-P", "default"], &[]),
            (&["key", "--", "-p"], &[]),
            (&[], &[]),
        ] {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            assert_eq!(packages(&args), expected, "{args:?}");
        }
    }

    #[test]
    fn a_run_names_the_server_and_the_workspace() {
        let checkout = checkout(Engine::V8);
        let command = nextest(&checkout, &[]);
        assert!(command.get_args().any(|arg| arg == "--workspace"));
        assert!(!command.get_args().any(|arg| arg == "--features"));
        let server = command
            .get_envs()
            .find(|(name, _)| *name == "NIMBUS_TEST_BIN");
        assert_eq!(server.unwrap().1.unwrap(), "/build/ci/nimbus");
        let one = nextest(&checkout, &["-p".into(), "nimbus-core".into()]);
        assert!(!one.get_args().any(|arg| arg == "--workspace"));
    }

    #[test]
    fn the_run_on_postgres_says_so_to_the_tests_and_has_its_profile() {
        let command = functions_on_postgres(&checkout(Engine::V8));
        let args: Vec<_> = command.get_args().collect();
        assert!(
            args.ends_with(&["--profile".as_ref(), "postgres".as_ref()]),
            "{args:?}"
        );
        assert!(args.iter().any(|arg| *arg == "--workspace"), "{args:?}");
        let mut environment = command.get_envs();
        let database = environment.find(|(name, _)| *name == "NIMBUS_TEST_DATABASE");
        assert_eq!(database.unwrap().1.unwrap(), "postgres");
        let config = shell::root().unwrap().join(".config/nextest.toml");
        let config = std::fs::read_to_string(config).unwrap();
        assert!(config.contains("[profile.postgres]"), "{config}");
    }

    #[test]
    fn a_run_with_quickjs_takes_v8_away_wherever_it_would_be_built() {
        let checkout = checkout(Engine::Quickjs);
        let runtime: Vec<OsString> = vec!["-p".into(), "nimbus-runtime".into()];
        for command in [
            server(&checkout, "ci"),
            doc_tests(&checkout),
            nextest(&checkout, &[]),
            nextest(&checkout, &runtime),
        ] {
            let args: Vec<_> = command.get_args().collect();
            let wanted = ["--no-default-features", "--features", "quickjs"];
            assert!(args.windows(3).any(|three| three == wanted), "{args:?}");
        }
        // A package without the feature would be an error for cargo.
        let core = nextest(&checkout, &["-p".into(), "nimbus-core".into()]);
        assert!(!core.get_args().any(|arg| arg == "--features"));
    }
}
