//! The long forms of suites that CI runs short: `cargo xtask soak <suite>`.
//! Must not know what a suite does: it hands figures over in the environment, which the tests read.

use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand, ValueEnum};

use crate::setup::{self, Scope};
use crate::shell::{self, Checkout};
use crate::tasks;

/// A suite to run at length.
#[derive(Debug, Subcommand)]
pub(crate) enum Suite {
    /// Power cuts and failing disk calls against the real binary
    PowerLoss(PowerLoss),
    /// Seeded edits of an audit log, each of which the check must find with its position
    Audit {
        /// How many
        #[arg(long, default_value_t = 20_000)]
        edits: u64,
    },
    /// Bits of encrypted files changed one at a time: an error, or nothing that is read differs
    Tamper {
        /// How many in each kind of file; 0 changes every byte, which takes hours
        #[arg(long, default_value_t = 50_000)]
        flips: u64,
        /// Where the random choices begin; another one each time unless given
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Functions that mean harm: each is ended, and how fast is shown
    Functions {
        /// How often each goes off
        #[arg(long, default_value_t = 20)]
        runs: u64,
    },
    /// List appends and transfers of 64 clients, judged: two servers on each shared provider, one on each local one
    Histories(Histories),
    /// Crashes of a private Postgres, MariaDB and libSQL primary under two servers that are written to
    Restarts {
        /// How many
        #[arg(long, default_value_t = 100)]
        crashes: u64,
    },
}

/// How long the power-loss suite runs.
#[derive(Clone, Debug, Args)]
pub(crate) struct PowerLoss {
    /// Power cuts with full durability; a quarter as many with relaxed. 10,000 take about half an hour
    #[arg(long, default_value_t = 10_000)]
    points: u64,
    /// Failing calls; 0 tries every call of the workload with every error
    #[arg(long, default_value_t = 0)]
    faults: u64,
    /// Where the random choices begin; another one each time unless given
    #[arg(long)]
    seed: Option<u64>,
}

/// How many operations the histories have.
#[derive(Clone, Debug, Args)]
pub(crate) struct Histories {
    /// Committed single reads, appends and transfers on each provider
    #[arg(long, default_value_t = 1_000_000)]
    operations: u64,
    /// Where the random choices begin; another one each time unless given
    #[arg(long)]
    seed: Option<u64>,
    /// One provider only
    #[arg(long, value_enum)]
    on: Option<On>,
}

/// A provider that histories run on.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum On {
    Memory,
    Postgres,
    Mysql,
    Libsql,
    Sqlite,
    Redb,
}

impl On {
    /// The test with its histories.
    fn test(self) -> &'static str {
        match self {
            On::Memory => "engine::servers::in_memory::lists_and_transfers_are_serializable",
            On::Postgres => "postgres_pairs::lists_and_transfers_are_serializable",
            On::Mysql => "mysql_pairs::lists_and_transfers_are_serializable",
            On::Libsql => "libsql_servers::asking_always::lists_and_transfers_are_serializable",
            On::Sqlite => "engine::lists::rounds::one_server_on_sqlite_is_serializable",
            On::Redb => "engine::lists::rounds::one_server_on_redb_is_serializable",
        }
    }
}

/// Runs a suite.
pub(crate) fn run(checkout: &Checkout, suite: &Suite) -> Result<()> {
    match suite {
        Suite::PowerLoss(args) => power_loss(checkout, args),
        Suite::Audit { edits } => audit(checkout, *edits),
        Suite::Functions { runs } => functions(checkout, *runs),
        Suite::Histories(args) => histories(checkout, args),
        Suite::Restarts { crashes } => restarts(checkout, *crashes),
        Suite::Tamper { flips, seed } => tamper(checkout, *flips, seed.unwrap_or_else(clock)),
    }
}

fn audit(checkout: &Checkout, edits: u64) -> Result<()> {
    let mut command = checkout.cargo(&["test", "--profile", "ci", "-p", "nimbus-auth", "--lib"]);
    command.args(["--", "tamper::", "--nocapture"]);
    shell::run(command.env("NIMBUS_AUDIT_EDITS", edits.to_string()))
}

fn functions(checkout: &Checkout, runs: u64) -> Result<()> {
    let mut command = checkout.cargo(&["test", "--profile", "ci", "-p", "nimbus-runtime"]);
    command.args(["--features", "engine", "--test", "runtime", "--", "bombs::"]);
    // One after the other: the figures are of a machine that does nothing else.
    command.args(["--nocapture", "--test-threads", "1"]);
    shell::run(command.env("NIMBUS_BOMB_RUNS", runs.to_string()))
}

fn tamper(checkout: &Checkout, flips: u64, seed: u64) -> Result<()> {
    println!("seed {seed}; the same again: cargo xtask soak tamper --flips {flips} --seed {seed}");
    let mut command = checkout.cargo(&["test", "--profile", "ci", "-p", "nimbus-storage", "--lib"]);
    command.args(["--", "a_changed_", "--nocapture"]);
    command.env("NIMBUS_FLIPS", flips.to_string());
    shell::run(command.env("NIMBUS_FLIP_SEED", seed.to_string()))
}

fn histories(checkout: &Checkout, args: &Histories) -> Result<()> {
    let (seed, operations) = (args.seed.unwrap_or_else(clock), args.operations);
    println!(
        "seed {seed}; the same choices again: cargo xtask soak histories --operations {operations} --seed {seed}"
    );
    let on = args.on.as_ref();
    let on = on.map_or(On::value_variants(), std::slice::from_ref);
    let mut known = integration(checkout, on);
    // A name that is no test any more would run nothing, and pass.
    let listed = known.arg("--list").stderr(Stdio::inherit()).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let count = listed.lines().filter(|line| line.ends_with(": test"));
    let (count, expected) = (count.count(), on.len());
    ensure!(
        count == expected,
        "{count} tests of {expected} are known:\n{listed}"
    );
    let mut command = integration(checkout, on);
    // One after the other: the times are of a machine that does nothing else.
    command.args(["--nocapture", "--test-threads", "1"]);
    command.env("NIMBUS_HISTORY_OPERATIONS", operations.to_string());
    shell::run(command.env("NIMBUS_HISTORY_SEED", seed.to_string()))
}

/// The tests with histories on these providers. Our own code is optimised, of which a million operations are a lot.
fn integration(checkout: &Checkout, on: &[On]) -> Command {
    let mut command = checkout.cargo(&["test", "--profile", "ci", "-p", "nimbus-storage"]);
    for own in ["nimbus-core", "nimbus-storage"] {
        command.args(["--config", &format!("profile.ci.package.{own}.opt-level=2")]);
    }
    command.args(["--test", "integration", "--", "--exact"]);
    command.args(on.iter().map(|on| on.test()));
    command
}

fn restarts(checkout: &Checkout, crashes: u64) -> Result<()> {
    let mut command = end_to_end(checkout, "servers::a_database_that_crashes_under_load")?;
    shell::run(command.env("NIMBUS_SOAK_RESTARTS", crashes.to_string()))
}

/// The end-to-end tests whose names begin so, with the server that they drive.
fn end_to_end(checkout: &Checkout, tests: &str) -> Result<Command> {
    setup::run(checkout, Scope::Test)?;
    shell::run(&mut tasks::server(checkout, "ci"))?;
    // Not nextest, which ends a test after five minutes.
    let mut command = checkout.cargo(&["test", "--profile", "ci", "-p", "nimbus-e2e"]);
    command.args(["--test", "e2e", "--", tests]);
    command.args(["--nocapture", "--test-threads", "1"]);
    command.env("NIMBUS_TEST_BIN", checkout.nimbus("ci"));
    Ok(command)
}

fn power_loss(checkout: &Checkout, args: &PowerLoss) -> Result<()> {
    let seed = args.seed.unwrap_or_else(clock);
    println!("seed {seed}; the same again: cargo xtask soak power-loss --seed {seed}");
    let mut command = end_to_end(checkout, "power_loss::")?;
    for (name, value) in environment(args, seed) {
        command.env(name, value.to_string());
    }
    shell::run(&mut command)
}

/// What the tests read.
fn environment(args: &PowerLoss, seed: u64) -> [(&'static str, u64); 3] {
    [
        ("NIMBUS_POWER_POINTS", args.points),
        ("NIMBUS_POWER_FAULTS", args.faults),
        ("NIMBUS_POWER_SEED", seed),
    ]
}

/// A seed that differs from run to run: the seconds since 1970.
fn clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_reach_the_tests() {
        let args = PowerLoss {
            points: 7,
            faults: 8,
            seed: None,
        };
        let expected = [
            ("NIMBUS_POWER_POINTS", 7),
            ("NIMBUS_POWER_FAULTS", 8),
            ("NIMBUS_POWER_SEED", 9),
        ];
        assert_eq!(environment(&args, 9), expected);
    }
}
