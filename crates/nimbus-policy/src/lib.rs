//! Operator policy files: who may do what in one tenant.
//!
//! [`compile`] turns a file into a [`Policy`] of decisions, one for each workload, or into an [`Invalid`] that tells everything
//! that is wrong with it, with the place and what to write instead. [`command::run`] is what `nimbus policy` does.
//!
//! This crate knows no network, no clock and no server: the time is handed in, and what a decision is used for is
//! the caller's.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod canonical;
pub mod command;
mod compile;
mod decision;
mod decode;
mod diff;
mod egress;
mod host;
mod path;
mod problem;
mod prove;
mod report;
mod sarif;
mod schema;
mod source;
mod suggest;
mod surface;
mod text;
mod yaml;

pub use compile::compile;
pub use decision::{CallLimits, Decision, DecisionId, Policy, TenantQuotas};
pub use diff::{DiffReport, diff};
pub use egress::{Denied, Egress, EgressRequest, EgressRule, Reach, Verdict};
pub use problem::{Code, Invalid, InvalidReport};
pub use report::{Enforcement, ExplainReport, ProveReport, report_schemas};
pub use schema::{EgressProtocol, WorkloadKind, policy_schema};
pub use source::{MAX_FILE_BYTES, ReadError, Source};
pub use suggest::{SuggestReport, suggest};
pub use surface::{DEPLOY_TASK, Surface};
