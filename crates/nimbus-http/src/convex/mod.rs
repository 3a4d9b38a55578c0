//! The Convex surface below its routes: who calls, and the shapes of requests and answers.
//!
//! It must not run functions; [`crate::functions`] does.

pub(crate) mod client;
pub(crate) mod entry;
mod failure;
pub(crate) mod wire;
