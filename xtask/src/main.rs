//! `cargo xtask`: every developer and CI task of the repository, so that there is one way to build, test and check it.
//! Must not know what Nimbus does: it depends on no crate of the workspace and builds in seconds.

// A command line tool: standard output and standard error are its interface.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod engine;
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

use crate::engine::{Choice, choose};
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
    Setup {
        #[command(flatten)]
        choice: Choice,
    },
    /// Build the server with optimisation and run `nimbus start`
    Start {
        #[command(flatten)]
        choice: Choice,
        /// Arguments for `nimbus start`, after `--`
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Build and run every test: documentation, unit and end-to-end
    Test {
        #[command(flatten)]
        choice: Choice,
        /// Arguments for `cargo nextest run`, after `--`; documentation tests are then left out
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Check the rules of the house that the compiler does not know
    Tidy,
    /// Check the formatting; `cargo fmt --all` mends it
    Fmt,
    /// Run clippy on every target, warnings denied
    Clippy {
        #[command(flatten)]
        choice: Choice,
    },
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
        #[command(flatten)]
        choice: Choice,
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
    let default = Choice::default();
    match task {
        // Formatting and rules need no engine, and the fuzzed crates have none.
        Task::Tidy => tasks::tidy(&checkout),
        Task::Fmt => tasks::fmt(&checkout),
        Task::Fuzz(args) => fuzz::run(&checkout, &args),
        Task::Setup { choice } => setup::run(&choose(checkout, choice)?, setup::Scope::Test),
        Task::Start { choice, args } => tasks::start(&choose(checkout, choice)?, &args),
        Task::Test { choice, args } => tasks::test(&choose(checkout, choice)?, choice, &args),
        Task::Clippy { choice } => tasks::clippy(&choose(checkout, choice)?),
        Task::Doc => tasks::doc(&choose(checkout, default)?),
        Task::Soak { suite } => soak::run(&choose(checkout, default)?, &suite),
        Task::Ci => tasks::ci(&choose(checkout, default)?),
        Task::Bench { choice, args } => bench::run(&choose(checkout, choice)?, &args),
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
        let Task::Test { args, .. } = cli.task else {
            panic!("not the test task");
        };
        assert_eq!(args, ["-p", "nimbus-core"]);
        assert!(Cli::try_parse_from(["xtask", "test", "-p", "nimbus-core"]).is_err());
    }
}
