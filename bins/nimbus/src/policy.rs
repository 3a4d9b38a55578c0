//! `nimbus policy`: the command line of what nimbus-policy does with policy files, without a server, and of what a running
//! server does with them ([`remote`]).
//!
//! Exit codes: 0 clean, 1 could not run, 2 wrong usage, 3 invalid policy, 4 advisories or acceptances to look at, 5 authority
//! was widened and `--deny-widening` was given.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

mod remote;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use nimbus_policy::command::{self, Exit};

use crate::cli::Format;
use crate::output;

/// Commands about policy files.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Compile a policy file and tell everything that is wrong with it; exit code 3 if it is not valid.
    Validate(FileArgs),
    /// Show the decisions of a policy file and what each grants.
    Explain(FileArgs),
    /// Flag risky grants; exit code 4 if one is not accepted, or an acceptance is stale or expired.
    Prove(ProveArgs),
    /// Classify what changed between two versions of a policy file.
    Diff(DiffArgs),
    /// Print the rules that would allow what a server refused to functions, for a person to review. Changes nothing.
    Suggest(SuggestArgs),
    /// Put a policy file in force for a tenant of a running server, as its next version.
    Put(remote::PutArgs),
    /// Put an earlier version in force again, as the next one.
    Restore(remote::RestoreArgs),
    /// Print the policy that governs a tenant of a running server, and its versions.
    Show(remote::ShowArgs),
}

/// One policy file, and what was refused.
#[derive(Debug, Args)]
pub(crate) struct SuggestArgs {
    /// The policy file of the tenant.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Lines of the audit log, as `nimbus audit export --denied` writes them; `-` is standard input.
    #[arg(long, value_name = "FILE", default_value = "-")]
    audit: PathBuf,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

/// One policy file.
#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// The policy file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

/// One policy file, and when it is looked at.
#[derive(Debug, Args)]
pub(crate) struct ProveArgs {
    /// The policy file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Day or moment (UTC) at which acceptances are looked at, such as 2027-01-31 [default: now]
    #[arg(long, value_name = "DATE", value_parser = command::as_of)]
    as_of: Option<Timestamp>,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t)]
    format: ProveFormat,
}

/// Two versions of a policy file.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The version before; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The version after.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Fail with exit code 5 if anything is allowed that was not before.
    #[arg(long)]
    deny_widening: bool,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

/// How advisories are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProveFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value.
    Json,
    /// For code hosts: SARIF 2.1.0.
    Sarif,
}

/// A command that said itself what is wrong; only the exit code is left.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) u8);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}", self.0)
    }
}

impl std::error::Error for Ended {}

impl From<Format> for command::Format {
    fn from(format: Format) -> command::Format {
        match format {
            Format::Text => command::Format::Text,
            Format::Json => command::Format::Json,
        }
    }
}

impl From<ProveFormat> for command::Format {
    fn from(format: ProveFormat) -> command::Format {
        match format {
            ProveFormat::Text => command::Format::Text,
            ProveFormat::Json => command::Format::Json,
            ProveFormat::Sarif => command::Format::Sarif,
        }
    }
}

/// Runs one of the commands.
pub(crate) fn run(command: PolicyCommand) -> anyhow::Result<()> {
    let (command, format): (_, command::Format) = match command {
        PolicyCommand::Validate(FileArgs { file, format }) => {
            (command::Command::Validate { file }, format.into())
        }
        PolicyCommand::Explain(FileArgs { file, format }) => {
            (command::Command::Explain { file }, format.into())
        }
        PolicyCommand::Prove(args) => {
            let (file, now) = (args.file, args.as_of.unwrap_or_else(Timestamp::now));
            (command::Command::Prove { file, now }, args.format.into())
        }
        PolicyCommand::Diff(args) => {
            let diff = command::Command::Diff {
                from: args.from,
                to: args.to,
                deny_widening: args.deny_widening,
            };
            (diff, args.format.into())
        }
        PolicyCommand::Suggest(SuggestArgs {
            file,
            audit,
            format,
        }) => (command::Command::Suggest { file, audit }, format.into()),
        PolicyCommand::Put(args) => return remote::put(args),
        PolicyCommand::Restore(args) => return remote::restore(args),
        PolicyCommand::Show(args) => return remote::show(args),
    };
    told(&command::run(
        &command,
        format,
        std::io::stderr().is_terminal(),
    ))
}

/// Prints what a command has to say; its exit code is the error, unless it is 0.
fn told(outcome: &command::Outcome) -> anyhow::Result<()> {
    output::raw(outcome.stdout.as_bytes())?;
    std::io::stderr().write_all(outcome.stderr.as_bytes())?;
    match outcome.exit {
        Exit::Clean => Ok(()),
        other => Err(Ended(other.code()).into()),
    }
}
