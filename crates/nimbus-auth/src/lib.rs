//! Credentials, principals, the admin token and the audit log of Nimbus.
//!
//! A caller presents header values ([`Credentials`]); the [`Authenticator`] turns them into an
//! [`Authenticated`] caller, the only source of an [`OperationContext`] (one tenant) or a
//! [`ServerContext`] (the whole server). Without such a context no store is reached (design
//! section 1). This crate must not know routes, HTTP types, stores or policies: it takes plain
//! text and paths, and names of route families only as words for the audit log.
//!
//! ```
//! use nimbus_auth::{
//!     AdminVerifier, Authenticator, Credentials, Permission, Principal, TokenFile,
//! };
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let home = tempfile::tempdir()?;
//! let file = TokenFile::load_or_create(&home.path().join("nimbus/auth/token"))?;
//! let authenticator = Authenticator::new(Arc::new(AdminVerifier::new(&file)));
//!
//! let header = format!("Bearer {}", file.token().expose_secret());
//! let credentials = Credentials { authorization: Some(&header), admin_header: None };
//! let caller = authenticator.authenticate(&credentials)?;
//! let context = caller.tenant_context("acme".parse()?, Permission::ReadData)?;
//! assert_eq!(*context.principal(), Principal::Operator { generation: 1 });
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod audit;
pub mod context;
pub mod functions;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod keys;
pub mod paths;
mod private_fs;
pub mod token;
pub mod verify;

pub use audit::{AuditEntry, AuditError, AuditLog, AuthScope, RouteFamily};
pub use context::{
    AuthFailure, AuthMethod, Authenticated, Authenticator, Claim, Credentials, MalformedCredential,
    OperationContext, Permission, Principal, PrincipalKind, RequestId, RequestIdError,
    ServerContext,
};
pub use functions::{FunctionAccess, FunctionContext};
pub use keys::{KeyClaim, KeyId, KeyIdError, KeyRecord, KeyScope, KeyScopeError, NewKey};
pub use paths::{Environment, PathError, Platform};
pub use private_fs::PrivateFileError;
pub use token::{
    AdminToken, MAX_ROTATION_AGE, Rotation, SetAside, StaleToken, TokenError, TokenFault, TokenFile,
};
pub use verify::AdminVerifier;
