//! What must hold for any bytes that reach a parser of Nimbus: one check per format.
//!
//! A check is a plain function over bytes that panics when a promise is broken. `cargo fuzz` calls
//! it through `fuzz_targets/`, and `tests/bounded.rs` calls it in every test run with the inputs in
//! `corpus/` and with seeded mutations of them. This crate must not hold formats of its own.

// A broken promise is told by a panic: that is what fuzzers and tests look for.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

pub mod make;
pub mod mutate;
pub mod targets;
