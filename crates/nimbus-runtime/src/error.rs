//! Why an invocation has no outcome. `Display` may be shown to the caller.

use std::time::Duration;

/// Why a function did not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The tenant has as many invocations waiting as it may.
    #[error("too many functions of this tenant are waiting; try again in {} s", retry_after.as_secs().max(1))]
    QueueFull {
        /// When there may be room.
        retry_after: Duration,
    },
    /// The function's own code used its CPU time up (convex.md 5.9).
    #[error("Function execution timed out (maximum duration: {})", seconds(*limit))]
    UserTimeout {
        /// The CPU time it had.
        limit: Duration,
        /// What it wrote to the console.
        log_lines: Vec<String>,
    },
    /// The wall-clock limit of seed 002 passed.
    #[error("Function execution took too long (maximum duration: {})", seconds(*limit))]
    WallTimeout {
        /// The limit.
        limit: Duration,
        /// What it wrote to the console.
        log_lines: Vec<String>,
    },
    /// Its heap or its array buffers reached the limit.
    #[error("JavaScript execution ran out of memory (maximum memory usage: {limit_mb} MB)")]
    OutOfMemory {
        /// The limit in MiB.
        limit_mb: u64,
        /// What it wrote to the console.
        log_lines: Vec<String>,
    },
    /// Functions called one another too deeply.
    #[error("functions call one another more than {limit} deep")]
    NestedTooDeep {
        /// The limit.
        limit: u32,
    },
    /// Too many calls by functions are in progress.
    #[error("more than {limit} calls by functions of this tenant are in progress")]
    TooManyNested {
        /// The limit.
        limit: u32,
    },
    /// The host refused to go on; the error is its own.
    #[error("{0}")]
    Host(Box<dyn std::error::Error + Send + Sync>),
    /// The tenant is being deleted.
    #[error("the tenant was stopped")]
    TenantStopped,
    /// The worker process ended before its answer.
    #[error("the function's worker process was lost")]
    WorkerLost {
        /// What is known; for the log.
        why: String,
        /// What it wrote to the console.
        log_lines: Vec<String>,
    },
    /// The server stops.
    #[error("the server is shutting down")]
    ShuttingDown,
}

fn seconds(limit: Duration) -> String {
    if limit.subsec_millis() == 0 {
        format!("{}s", limit.as_secs())
    } else {
        format!("{}ms", limit.as_millis())
    }
}

/// Why a bundle has no analysis.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnalyzeError {
    /// A module cannot be imported, or exports what it must not.
    #[error("{path}: {message}")]
    Module {
        /// The module.
        path: String,
        /// A short code where convex.md 4.5 has one, such as `InvalidFunctionName`.
        code: Option<String>,
        /// What is wrong, with the stack where code threw.
        message: String,
    },
    /// The analysis itself was stopped or lost.
    #[error(transparent)]
    Run(#[from] RunError),
}
