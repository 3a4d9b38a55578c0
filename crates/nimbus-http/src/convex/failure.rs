//! What a call without an outcome is to a client of Convex: code, status and text (convex.md 1.5).

use nimbus_core::ErrorCode;
use nimbus_runtime::RunError;
use nimbus_storage::StoreError;

use crate::error::ApiError;
use crate::functions::error::CallError;

impl From<CallError> for ApiError {
    fn from(error: CallError) -> ApiError {
        match error {
            CallError::Store(error) => store(error),
            CallError::Run(error) => run(error),
            CallError::Denied(_) => {
                ApiError::new(ErrorCode::AuthPermissionDenied, error.to_string())
            }
            CallError::Damaged(inside) => ApiError::internal(inside),
        }
    }
}

fn store(error: StoreError) -> ApiError {
    match error {
        StoreError::Conflict { ref table, .. } => {
            let what = match table {
                Some(table) => format!("Documents read from or written to the \"{table}\" table"),
                None => "Documents that were read or written".to_owned(),
            };
            let text = format!(
                "{what} changed while this mutation was being run and on every subsequent retry. Another call to this mutation changed the same documents."
            );
            let (name, code) = (
                "OptimisticConcurrencyControlFailure",
                ErrorCode::ServiceUnavailable,
            );
            ApiError::convex(name, code, text)
        }
        StoreError::TimestampOutOfRetention { .. } => {
            let code = ErrorCode::ServiceUnavailable;
            ApiError::convex("OutOfRetention", code, error.to_string())
        }
        other => other.into(),
    }
}

fn run(error: RunError) -> ApiError {
    match error {
        RunError::QueueFull { retry_after } => {
            let code = ErrorCode::RateResourceExhausted;
            ApiError::new(code, error.to_string()).retry_after(retry_after)
        }
        // It is being deleted: soon it will not have been there.
        RunError::TenantStopped => ApiError::convex(
            "TenantNotFound",
            ErrorCode::SessionTenantNotFound,
            "there is no such tenant on this server",
        ),
        RunError::ShuttingDown => ApiError::new(ErrorCode::ServiceUnavailable, error.to_string()),
        RunError::WorkerLost { why, .. } => ApiError::internal(format!("worker lost: {why}")),
        other => ApiError::internal(other.to_string()),
    }
}
