//! The `nimbus` program: reads its command line and hands over to a room per command.
//!
//! No logic of its own: settings are resolved in `settings`, the server is wired in `start`.
//! Exit codes: 0 success, 1 failure, 2 wrong usage; `nimbus policy` has more of its own.

mod anchors;
mod audit;
mod auth;
mod backup;
mod bulk;
mod cli;
mod config;
mod deploy;
mod doctor;
mod encryption;
mod external;
mod functions;
mod local;
mod memory;
mod output;
mod place;
mod policy;
mod progress;
mod remote;
mod settings;
mod start;
mod tenants;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command};
use nimbus_runtime::WORKER;

fn main() -> ExitCode {
    // A process that runs functions: nothing of the server may be done, read or kept in it, and it
    // must start fast.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == WORKER) {
        return nimbus_runtime::engine::main();
    }
    // Files that any part of the program creates are the owner's only.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // The first choice in the process, so there is no error.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(policy::Ended(code)) = error.downcast_ref() {
                return ExitCode::from(*code);
            }
            let _ = writeln!(std::io::stderr(), "error: {}", told(&error));
            match error.downcast_ref::<settings::UsageError>() {
                Some(_) => ExitCode::from(2),
                None => ExitCode::FAILURE,
            }
        }
    }
}

/// The error and its causes, leaving out causes that the text before them tells already.
fn told(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if out.contains(&cause) {
            continue;
        }
        if !out.is_empty() {
            out.push_str(": ");
        }
        out.push_str(&cause);
    }
    out
}

/// Warnings of commands that are no server: what was put in order, or left.
fn show_warnings() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if !matches!(cli.command, Command::Start(_)) {
        show_warnings();
    }
    match cli.command {
        Command::Start(args) => start::run(*args),
        Command::Audit(command) => audit::run(command),
        Command::Auth(command) => auth::run(command),
        Command::Backup(command) => backup::run(command),
        Command::Deploy(args) => deploy::run(*args),
        Command::Deployments(command) => deploy::deployments_command(command),
        Command::Doctor(args) => doctor::run(*args),
        Command::Encryption(command) => encryption::run(command),
        Command::Env(command) => deploy::variables(command),
        Command::Export(args) => bulk::export(args),
        Command::Import(args) => bulk::import(args),
        Command::Keys(command) => deploy::keys(command),
        Command::Policy(command) => policy::run(command),
        Command::Tenants(command) => tenants::run(command),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "nimbus", &mut out);
            output::raw(&out)
        }
        Command::Man { dir: None } => {
            let mut out = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut out)?;
            output::raw(&out)
        }
        Command::Man { dir: Some(dir) } => {
            std::fs::create_dir_all(&dir)?;
            Ok(clap_mangen::generate_to(Cli::command(), dir)?)
        }
    }
}
