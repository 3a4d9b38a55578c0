//! How much a run does: sizes and times, full or quick.
//!
//! Plain data; it must not know how anything is measured.

use std::path::PathBuf;
use std::time::Duration;

/// Sizes of a run, and what it needs to find.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The Nimbus binary.
    pub(crate) binary: PathBuf,
    /// The Nimbus binary with the other JavaScript engine, for the row `functions` again.
    pub(crate) quickjs: Option<PathBuf>,
    /// The program `workerd`, which functions are compared with; without it they stand alone.
    pub(crate) workerd: Option<PathBuf>,
    /// A Postgres database in which the row of that name makes tables; without it the row is left out.
    pub(crate) postgres: Option<String>,
    /// Below this directory every server gets one of its own.
    pub(crate) dir: PathBuf,
    /// Whether the figures are a smoke test and not a measurement.
    pub(crate) quick: bool,
    /// Rounds of each comparison, which alternate in order.
    pub(crate) rounds: usize,
    /// Load before each measurement.
    pub(crate) warm: Duration,
    /// Each measurement.
    pub(crate) time: Duration,
    /// Each measurement of one client.
    pub(crate) time_alone: Duration,
    /// Documents that reads are made from.
    pub(crate) documents: u64,
    /// Accounts that transfers are made between.
    pub(crate) accounts: u64,
    /// Commits that subscribers are told of.
    pub(crate) commits: usize,
    /// Subscribers.
    pub(crate) subscribers: usize,
    /// Tenants registered.
    pub(crate) tenants: usize,
    /// Tenants opened.
    pub(crate) open_tenants: usize,
    /// Bundles that are called for the first time.
    pub(crate) bundles: usize,
    /// Bytes of the table that is scanned.
    pub(crate) scan_bytes: u64,
}

/// Clients of every row with many.
pub(crate) const CLIENTS: usize = 64;

impl Plan {
    /// Sizes of a measurement: about ten minutes.
    pub(crate) fn full(binary: PathBuf, dir: PathBuf) -> Plan {
        Plan {
            binary,
            quickjs: None,
            workerd: None,
            postgres: None,
            dir,
            quick: false,
            rounds: 5,
            warm: Duration::from_millis(500),
            time: Duration::from_secs(3),
            time_alone: Duration::from_millis(1_500),
            documents: 100_000,
            accounts: 100_000,
            commits: 300,
            subscribers: 1_000,
            tenants: 10_000,
            open_tenants: 500,
            bundles: 50,
            scan_bytes: 1 << 30,
        }
    }

    /// Sizes of a smoke test: everything runs, no figure means much.
    pub(crate) fn quick(binary: PathBuf, dir: PathBuf) -> Plan {
        Plan {
            quick: true,
            rounds: 1,
            warm: Duration::from_millis(50),
            time: Duration::from_millis(300),
            time_alone: Duration::from_millis(200),
            documents: 2_000,
            accounts: 1_000,
            commits: 20,
            subscribers: 100,
            tenants: 50,
            open_tenants: 20,
            bundles: 4,
            scan_bytes: 64 << 20,
            ..Plan::full(binary, dir)
        }
    }
}
