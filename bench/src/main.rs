//! `nimbus-bench`: measures the Nimbus server against the goals of design section 8, with the
//! baselines in the same run.
//!
//! It drives the real binary from outside; rows about the storage engine or policies alone link them. It must
//! not be linked by anything.

// A program: standard output and standard error are its interface.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bare;
mod documents;
mod hello;
mod http;
mod load;
mod machine;
mod plan;
mod process;
mod random;
mod report;
mod rounds;
mod rows;
mod stats;
mod workerd;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::plan::Plan;
use crate::report::Report;

/// Measures the Nimbus server against its goals.
#[derive(Debug, Parser)]
#[command(name = "nimbus-bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    baseline: Option<Baseline>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Baseline {
    /// Serve one text with axum until ended
    #[command(hide = true)]
    Hello,
    /// Insert documents into SQLite, one sync each
    #[command(hide = true)]
    Bare {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        warm_ms: u64,
        #[arg(long)]
        measure_ms: u64,
    },
}

#[derive(Args, Debug)]
struct RunArgs {
    /// The server that is measured
    #[arg(long, env = "NIMBUS_BENCH_BIN")]
    binary: Option<PathBuf>,
    /// A server built with QuickJS, which the row `functions` measures as well
    #[arg(long, value_name = "PATH")]
    quickjs_binary: Option<PathBuf>,
    /// The program workerd, which functions are compared with; from the npm package of that name
    #[arg(long, env = "NIMBUS_BENCH_WORKERD")]
    workerd: Option<PathBuf>,
    /// URL of a Postgres database for the row `postgres`, which makes schemas in it and drops them
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Where data directories are made; on the disk that is to be measured
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Run everything once and briefly, to see that it works
    #[arg(long)]
    quick: bool,
    /// Rows to measure, separated by commas: inserts, reads, contention, fanout, tenants, scan, functions, policies
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds of each comparison
    #[arg(long)]
    rounds: Option<usize>,
    /// Size of the table that is scanned, in MiB
    #[arg(long)]
    scan_mib: Option<u64>,
    /// Where the result goes as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the table goes as Markdown; it is printed as well
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// The commit that was built, for the report
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// The compiler that built it, for the report
    #[arg(long, default_value = "rustc unknown")]
    rustc: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.baseline {
        Some(Baseline::Hello) => hello::serve(),
        Some(Baseline::Bare {
            dir,
            warm_ms,
            measure_ms,
        }) => bare::main(
            &dir,
            Duration::from_millis(warm_ms),
            Duration::from_millis(measure_ms),
        ),
        None => measure(&cli.run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &RunArgs) -> Result<()> {
    let plan = plan(args)?;
    let rows = selected(&args.only)?;
    let machine = machine::describe(&plan.dir)?;
    let (date, started) = (jiff::Timestamp::now(), Instant::now());
    let mut report = Report {
        run: json!({}),
        quick: plan.quick,
        lines: Vec::new(),
    };
    for (name, row) in rows {
        let began = Instant::now();
        let lines = row(&plan).with_context(|| format!("measuring {name}"))?;
        eprintln!("{name}: {:.0} s", began.elapsed().as_secs_f64());
        report.lines.extend(lines);
    }
    report.run = json!({
        "date": date.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        "seconds": started.elapsed().as_secs_f64(),
        "commit": args.commit,
        "rustc": args.rustc,
        "machine": machine,
        "plan": format!("{plan:?}"),
    });
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    let markdown = report.markdown();
    if let Some(path) = &args.markdown {
        std::fs::write(path, &markdown).with_context(|| format!("writing {}", path.display()))?;
    }
    print!("{markdown}");
    Ok(())
}

fn plan(args: &RunArgs) -> Result<Plan> {
    let binary = args.binary.clone();
    let binary =
        binary.context("name the server in NIMBUS_BENCH_BIN, or run `cargo xtask bench`")?;
    let binary = std::fs::canonicalize(&binary)
        .with_context(|| format!("there is no server at {}", binary.display()))?;
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from("."));
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let dir = std::fs::canonicalize(&dir)?;
    if !args.quick && machine::is_in_memory(&dir)? {
        bail!(
            "{} is in memory, where syncs cost nothing; name a directory on a disk with --dir",
            dir.display()
        );
    }
    let mut plan = match args.quick {
        true => Plan::quick(binary, dir),
        false => Plan::full(binary, dir),
    };
    plan.workerd = args.workerd.clone();
    plan.quickjs.clone_from(&args.quickjs_binary);
    plan.postgres.clone_from(&args.postgres);
    plan.rounds = args.rounds.unwrap_or(plan.rounds);
    ensure!(plan.rounds > 0, "--rounds must be at least 1");
    plan.scan_bytes = args.scan_mib.map_or(plan.scan_bytes, |mib| mib << 20);
    Ok(plan)
}

fn selected(only: &[String]) -> Result<Vec<rows::Row>> {
    for name in only {
        let known = rows::ALL.iter().any(|(row, _)| row == name);
        ensure!(known, "there is no row {name}; see --help");
    }
    let chosen = rows::ALL
        .iter()
        .filter(|(row, _)| only.is_empty() || only.iter().any(|name| name == row));
    Ok(chosen.copied().collect())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rows_are_selected_by_name_in_their_own_order() {
        let names = |only: &[&str]| -> Result<Vec<&str>> {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            Ok(selected(&only)?.iter().map(|(name, _)| *name).collect())
        };
        assert_eq!(names(&[]).unwrap().len(), rows::ALL.len());
        assert_eq!(names(&["scan", "reads"]).unwrap(), ["reads", "scan"]);
        assert!(names(&["nothing"]).is_err());
    }
}
