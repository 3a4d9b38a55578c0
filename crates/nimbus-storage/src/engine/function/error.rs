//! Errors of function reads and writes: those that the function may catch, and those that end its
//! invocation. How either reaches the function is not known here.

use nimbus_core::ErrorCode;
use thiserror::Error;

use super::usage;
use crate::error::StoreError;

/// Result of a call on behalf of a function.
pub type FunctionResult<T> = Result<T, FunctionError>;

/// Failure of a call on behalf of a function. `Display` is the outside text.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// The function is at fault; it may catch this.
    #[error("{message}")]
    User {
        /// Short name, such as `IndexNotFoundError`.
        code: &'static str,
        /// What the function's developer reads.
        message: String,
        /// Data of a `ConvexError`, in the encoding of convex.md 2.1.
        data: Option<serde_json::Value>,
    },
    /// Nothing that the function could do something about: it ends the invocation.
    #[error(transparent)]
    Store(StoreError),
}

impl FunctionError {
    /// A [`FunctionError::User`] without data.
    pub fn user(code: &'static str, message: impl Into<String>) -> FunctionError {
        FunctionError::User {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// ``Invalid argument `name` for `call`: why`` (convex.md 5.4).
    pub fn argument(name: &str, call: &str, why: impl std::fmt::Display) -> FunctionError {
        let message = format!("Invalid argument `{name}` for `{call}`: {why}");
        FunctionError::user("InvalidArgument", message)
    }
}

impl From<StoreError> for FunctionError {
    /// What a caller did wrong is the function's to catch; the rest is not.
    fn from(error: StoreError) -> FunctionError {
        if let StoreError::CapExceeded { cap, .. } = &error {
            return usage::over(cap, error.to_string());
        }
        let code = match error.code() {
            ErrorCode::OpDocumentNotFound => "NonexistentDocument",
            ErrorCode::OpInvalidInput => "InvalidArgument",
            ErrorCode::OpMissingIndex => "MissingIndex",
            ErrorCode::OpSchemaValidation => "SchemaEnforcementError",
            _ => return FunctionError::Store(error),
        };
        FunctionError::user(code, error.to_string())
    }
}
