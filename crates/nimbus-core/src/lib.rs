//! The vocabulary every Nimbus crate shares: values and their limits, ids and names,
//! order-preserving key bytes, the strict JSON entry and the list of error codes.
//!
//! This crate knows no storage, no HTTP, no clock, no randomness and no files: it turns values
//! into bytes and text and back, and says no precisely when it cannot.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod error;
pub mod id;
pub mod json;
pub mod key;
pub mod name;
pub mod net;
pub mod validator;
pub mod value;

pub use error::ErrorCode;
pub use id::{DocumentId, IdError, InternalId, TableNumber};
pub use json::JsonError;
pub use key::KeyError;
pub use name::{FieldPath, IndexName, NameError, TableName, TenantId};
pub use validator::{TableNames, ValidationFailure, Validator, ValidatorError};
pub use value::{Object, Value, ValueError};

/// The most characters of a caller's input that any error of this crate repeats.
pub(crate) const ECHO_LIMIT: usize = 80;

/// At most [`ECHO_LIMIT`] characters of `text`, for use in an error.
pub(crate) fn echo(text: &str) -> String {
    text.chars().take(ECHO_LIMIT).collect()
}
