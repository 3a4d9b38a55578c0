//! Functions: their deployment and their calls, over the runtime and the store.
//!
//! The runtime runs JavaScript and knows no data; the store keeps data and knows no code. This room
//! joins them. It must not know routes, credentials or the shapes of the wire.

mod actions;
mod cache;
mod call;
mod checks;
pub(crate) mod deploy;
mod deployed;
pub(crate) mod diff;
pub(crate) mod error;
pub(crate) mod format;
pub(crate) mod identity;
pub(crate) mod path;
pub(crate) mod push;
mod reference;
mod service;
mod syscalls;
mod transaction;

pub(crate) use cache::CacheMetrics;
#[cfg(test)]
pub(crate) use call::UdfError;
pub(crate) use call::{Bounded, Caller, FunctionCall, Ran, Wants};
pub(crate) use service::{FunctionService, FunctionSettings};
