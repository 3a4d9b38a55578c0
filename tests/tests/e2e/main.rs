//! End-to-end tests of the Nimbus binary: one module per promise of the first issue.
//!
//! Each test has a home, a data directory and a port of its own. The binary is the one that
//! `NIMBUS_TEST_BIN` names, else `nimbus` beside this test's build.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod adopt;
mod audit;
mod audit_chain;
mod backup;
mod bad_input;
mod bad_queries;
mod bombs;
mod bulk;
mod canaries;
mod case_blind;
mod cli;
mod config;
mod crash;
mod data_dir;
mod database_disks;
mod database_tls;
mod doctor;
mod drill;
mod encryption;
mod failed_tokens;
mod full_disk;
mod functions;
mod group_commit;
mod hostile_ids;
mod libsql;
mod moving;
mod network;
mod poolers;
mod power_loss;
mod proxies;
mod servers;
mod shutdown;
mod slow_clients;
mod tenants;
mod token_file;
