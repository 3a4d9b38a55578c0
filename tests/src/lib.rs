//! The harness of the end-to-end tests: it starts the real binary, talks to it, and cleans up.
//!
//! It links no crate of the workspace and knows Nimbus only from outside: the command line, the
//! files, the sockets. What it cannot do it reports by a panic with a text, because that is how a
//! test fails; the functions do not repeat this under `# Panics`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "this crate is run by tests only, and a panic is how a test fails"
)]

pub mod apps;
pub mod certificates;
pub mod databases;
pub mod faults;
pub mod files;
pub mod home;
pub mod http;
pub mod moto;
pub mod mount;
pub mod power;
pub mod process;
pub mod python;
pub mod raw;
pub mod recorder;
pub mod rng;
pub mod server;
pub mod transcript;
pub mod wait;

pub use apps::App;
pub use certificates::Authority;
pub use databases::{Database, Pooler};
pub use faults::{Fault, FaultProxy};
pub use home::{Finished, Home};
pub use http::{Client, Reply};
pub use moto::Moto;
pub use recorder::Recorder;
pub use rng::Rng;
pub use server::{Options, Server};
