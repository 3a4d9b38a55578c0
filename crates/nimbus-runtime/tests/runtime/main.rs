//! The runtime with real worker processes, driven through its public interface.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is how a test fails"
)]

mod actions;
mod analysis;
mod basics;
mod bombs;
mod budgets;
mod escapes;
mod isolation;
mod support;
mod traffic;
