//! JavaScript functions: budgets, worker processes and, behind the feature `engine`, the isolates in them.
//!
//! The server's half ([`Runtime`]) admits invocations, keeps a pool of worker processes and carries what a
//! function asks to a [`Host`]. The worker's half runs one invocation of one tenant at a time; it is this same
//! binary under a hidden subcommand, without keys, environment or files. This room knows no storage and no HTTP:
//! what a syscall means is the host's business.
#![deny(missing_docs)]

mod admission;
mod analysis;
mod call;
mod config;
mod egress;
#[cfg(feature = "engine")]
#[allow(
    unsafe_code,
    reason = "the V8 binding's callbacks and deno_core's op macro expand to it"
)]
pub mod engine;
mod error;
mod metrics;
mod pool;
mod process;
mod protocol;
mod runtime;
mod snapshot;

pub use analysis::{Analysis, FunctionSpec, HttpRoute, ModuleAnalysis, Visibility};
pub use call::{
    Answer, CallBounds, Code, Host, Invocation, JsFailure, Module, Nesting, Outcome, SubCall,
    SyscallError, UdfKind,
};
pub use config::{RuntimeConfig, WORKER, WorkerCommand};
pub use egress::{
    EGRESS, EGRESS_DENIED, EgressGrantError, EgressGrants, EgressHost, EgressLeave, EgressRefusal,
    EgressRequest,
};
pub use error::{AnalyzeError, RunError};
pub use metrics::{Limits, Metrics};
pub use runtime::{Admitted, Runtime, TriedWorker};
