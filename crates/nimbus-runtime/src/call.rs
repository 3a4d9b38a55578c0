//! What is asked of the runtime, what it asks of the server meanwhile, and what comes back.
//!
//! Plain data and one trait. This room must not know processes or engines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use nimbus_core::TenantId;
use serde::{Deserialize, Serialize};

/// The kinds of functions (convex.md 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UdfKind {
    /// Reads at one state; deterministic, without authority.
    Query,
    /// Reads and writes in one transaction; deterministic, without authority.
    Mutation,
    /// Calls the world and other functions; not transactional.
    Action,
    /// An action that answers an HTTP request.
    #[serde(rename = "httpaction")]
    HttpAction,
}

impl UdfKind {
    /// The word for messages: `query`, `mutation`, `action`, `http action`.
    pub const fn as_str(self) -> &'static str {
        match self {
            UdfKind::Query => "query",
            UdfKind::Mutation => "mutation",
            UdfKind::Action => "action",
            UdfKind::HttpAction => "http action",
        }
    }

    /// Whether it runs within one transaction, and so without clock, randomness or network.
    pub const fn is_transactional(self) -> bool {
        matches!(self, UdfKind::Query | UdfKind::Mutation)
    }
}

/// One deployed file.
#[derive(Clone, PartialEq, Eq)]
pub struct Module {
    /// The bundled JavaScript.
    pub source: Arc<str>,
    /// Its source map (JSON), for stack traces.
    pub source_map: Option<Arc<str>>,
}

/// A deployed bundle.
pub struct Code {
    /// Different for every tenant and bundle: isolates are pooled by it.
    pub id: Arc<str>,
    /// The files by path (`dir/messages.js`).
    pub modules: BTreeMap<String, Module>,
    /// Seed of `Math.random` while modules are imported (convex.md 5.7).
    pub import_seed: [u8; 32],
    /// The clock while modules are imported, in ms since 1970-01-01.
    pub import_time_ms: f64,
}

/// One function to run.
pub struct Invocation {
    /// Whose it is.
    pub tenant: TenantId,
    /// The bundle that has it.
    pub code: Arc<Code>,
    /// What it must be.
    pub kind: UdfKind,
    /// Path of its module, with `.js`.
    pub module: String,
    /// Name of the export.
    pub export: String,
    /// JSON text of the array of arguments, in the lossless encoding (convex.md 2.1).
    pub args: String,
    /// Given when a running function calls this one.
    pub nesting: Option<Nesting>,
    /// What it may take up beside the limits of the runtime.
    pub bounds: CallBounds,
}

/// What one run may take up; the limits of the runtime hold as well. `None`: those alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallBounds {
    /// Longest time on the wall.
    pub timeout: Option<Duration>,
    /// CPU time, of queries and mutations.
    pub user_cpu: Option<Duration>,
    /// Bytes of console lines.
    pub log_bytes: Option<u64>,
}

/// The place of an invocation in a chain of calls; a [`Host`] is told its own and passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nesting {
    pub(crate) depth: u32,
}

/// What a function gets for a syscall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// JSON text.
    Json(String),
    /// Run this function within the same transaction, in the same isolate and a fresh realm;
    /// [`Host::udf_finished`] then gives the JSON text.
    Run(SubCall),
}

/// A function to run within another's transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubCall {
    /// The host's name for it.
    pub token: u64,
    /// What it must be: a query or a mutation.
    pub kind: UdfKind,
    /// Path of its module, with `.js`.
    pub module: String,
    /// Name of the export.
    pub export: String,
    /// JSON text of the array of arguments.
    pub args: String,
}

/// Why a syscall has no answer.
#[derive(Debug)]
pub enum SyscallError {
    /// The function's own fault: it gets an `Error` that it may catch.
    User {
        /// The error's message.
        message: String,
        /// JSON of the data of a `ConvexError` that a called function threw.
        data: Option<String>,
    },
    /// Not for the function to catch: the invocation ends with [`crate::RunError::Host`].
    System(Box<dyn std::error::Error + Send + Sync>),
}

impl SyscallError {
    /// An error that the function may catch.
    pub fn user(message: impl Into<String>) -> SyscallError {
        SyscallError::User {
            message: message.into(),
            data: None,
        }
    }
}

/// The server, as one invocation sees it.
///
/// The calls of a query or a mutation come one at a time and in order; of an action there are up to
/// eight at once.
pub trait Host: Send + Sync {
    /// Answers a syscall of convex.md 5.5, or one of the runtime's own (`nimbus/…`).
    fn syscall<'a>(
        &'a self,
        op: &'a str,
        args: &'a str,
    ) -> BoxFuture<'a, Result<Answer, SyscallError>>;

    /// Takes the result of an [`Answer::Run`] and gives the answer of its syscall.
    fn udf_finished<'a>(
        &'a self,
        token: u64,
        result: Result<String, JsFailure>,
    ) -> BoxFuture<'a, Result<String, SyscallError>>;

    /// Told once, before the function runs: what to pass on in calls made on its behalf.
    fn nesting(&self, nesting: Nesting);
}

/// What a function threw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsFailure {
    /// `Uncaught Error: boom`.
    pub message: String,
    /// Lines of the form `    at fn (../convex/file.ts:1:2)`, or nothing.
    pub stack: String,
    /// JSON of the data of a `ConvexError`.
    pub data: Option<String>,
}

impl std::fmt::Display for JsFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        if !self.stack.is_empty() {
            write!(f, "\n{}", self.stack.trim_end())?;
        }
        Ok(())
    }
}

/// How an invocation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// JSON text of the value, or what was thrown.
    pub result: Result<String, JsFailure>,
    /// Console lines, `[LOG] 'text' 42`.
    pub log_lines: Vec<String>,
    /// Whether it looked at the clock, so that its result is not for ever.
    pub observed_time: bool,
    /// CPU time of the function's own code.
    pub cpu: Duration,
}
