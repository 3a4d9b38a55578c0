//! `cargo xtask`: every developer and CI task of the repository, so that there is one way to build, test and check it.
//! Must not know what Nimbus does: it depends on no crate of the workspace and builds in seconds.

// A command line tool: standard output and standard error are its interface.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod fuzz;
mod phases;
mod setup;
mod shell;
mod soak;
mod tasks;
mod tidy;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::shell::Checkout;

/// Every developer and CI task of the Nimbus repository.
#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the build and the tests need; quick when nothing is missing
    Setup,
    /// Build the server with optimisation and run `nimbus start`
    Start {
        /// Arguments for `nimbus start`, after `--`
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Build and run every test: documentation, unit and end-to-end
    Test {
        /// Arguments for `cargo nextest run`, after `--`; documentation tests are then left out
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Check the rules of the house that the compiler does not know
    Tidy,
    /// Check the formatting; `cargo fmt --all` mends it
    Fmt,
    /// Run clippy on every target, warnings denied
    Clippy,
    /// Build the API documentation, warnings denied
    Doc,
    /// Run a suite at length that CI runs short
    Soak {
        #[command(subcommand)]
        suite: soak::Suite,
    },
    /// Run the fuzz targets under libFuzzer for a while; needs cargo-fuzz
    Fuzz(fuzz::Fuzz),
    /// Run fmt, tidy, clippy, test and doc, and stop at the first that fails
    Ci,
    /// Measure the server against its goals and write the table of docs/performance.md
    Bench {
        /// Arguments for `nimbus-bench`, after `--`
        #[arg(last = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    let checkout = Checkout::find()?;
    match task {
        Task::Setup => setup::run(&checkout, setup::Scope::Test),
        Task::Start { args } => tasks::start(&checkout, &args),
        Task::Test { args } => tasks::test(&checkout, &args),
        Task::Tidy => tasks::tidy(&checkout),
        Task::Fmt => tasks::fmt(&checkout),
        Task::Clippy => tasks::clippy(&checkout),
        Task::Doc => tasks::doc(&checkout),
        Task::Soak { suite } => soak::run(&checkout, &suite),
        Task::Fuzz(args) => fuzz::run(&checkout, &args),
        Task::Ci => tasks::ci(&checkout),
        Task::Bench { args } => bench::run(&checkout, &args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_after_two_dashes_reach_the_tool_behind() {
        let cli = Cli::try_parse_from(["xtask", "test", "--", "-p", "nimbus-core"]).unwrap();
        let Task::Test { args } = cli.task else {
            panic!("not the test task");
        };
        assert_eq!(args, ["-p", "nimbus-core"]);
        assert!(Cli::try_parse_from(["xtask", "test", "-p", "nimbus-core"]).is_err());
    }
}
