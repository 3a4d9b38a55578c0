//! Handlers of the native API, one file for each kind of resource.
//!
//! A handler takes a context that the edge made, calls the store through its door and shapes the
//! answer. It must not look at credentials, statuses or paths.

pub(crate) mod backup;
pub(crate) mod convex;
pub(crate) mod debug;
pub(crate) mod deployments;
pub(crate) mod documents;
pub(crate) mod export;
pub(crate) mod health;
pub(crate) mod import;
pub(crate) mod journal;
pub(crate) mod keys;
pub(crate) mod policy;
pub(crate) mod query;
pub(crate) mod schema;
pub(crate) mod system;
pub(crate) mod tenants;
