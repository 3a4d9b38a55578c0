//! Tests of nimbus-policy from outside: transcripts of the commands, published schemas, bad input, and properties that hold for
//! policies made at random.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod golden;
mod model;
mod properties;
mod reference;
mod schemas;
