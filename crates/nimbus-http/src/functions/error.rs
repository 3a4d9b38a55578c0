//! Why a call has no outcome that its function is responsible for.

use nimbus_runtime::RunError;
use nimbus_storage::StoreError;

use super::call::{Ran, UdfError};

/// Why a call has no outcome.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CallError {
    /// What is deployed cannot be read.
    #[error("the deployment is damaged: {0}")]
    Damaged(String),
    /// The caller may call functions, but not this kind of them.
    #[error("this key may not call {0}")]
    Denied(&'static str),
    /// The policy of the tenant keeps it out of this server.
    #[error("the policy of this tenant keeps `{path}` out of this server{why}")]
    KeptOut {
        path: String,
        /// Nothing, or `: ` and the reason, for those who may know what a policy says.
        why: String,
    },
    /// The runtime did not run it to its end.
    #[error(transparent)]
    Run(RunError),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Sorts the failure of a run: what the function is responsible for is its outcome; what the host
/// ended is the host's own error again.
pub(super) fn sort(error: RunError) -> Result<Ran, CallError> {
    let message = error.to_string();
    let log_lines = match error {
        RunError::UserTimeout { log_lines, .. }
        | RunError::WallTimeout { log_lines, .. }
        | RunError::OutOfMemory { log_lines, .. } => log_lines,
        RunError::NestedTooDeep { .. } | RunError::TooManyNested { .. } => Vec::new(),
        RunError::Host(inner) => {
            return Err(match inner.downcast::<StoreError>() {
                Ok(store) => CallError::Store(*store),
                Err(inner) => match inner.downcast::<CallError>() {
                    Ok(call) => *call,
                    Err(inner) => CallError::Run(RunError::Host(inner)),
                },
            });
        }
        other => return Err(CallError::Run(other)),
    };
    Ok(Ran {
        result: Err(UdfError::new(message)),
        log_lines,
    })
}
