//! Routes, wire formats and the edge rules of the Nimbus server.
//!
//! The only crate that knows HTTP. A request passes the edge (bounds, Origin, gate), is matched
//! against one table of routes, and reaches stored data through [`Store`] alone, with a context
//! that `nimbus-auth` made. This crate must not open files of tenants, parse flags or keep keys.
//!
//! [`Server::bind`] takes the [`Services`] that it serves and [`Server::run`] serves them until it
//! is told to stop. [`route_table`] lists every route; `docs/http-api.md` describes them.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod answer;
mod app;
pub mod cells;
mod config;
mod convex;
mod edge;
mod encryption;
mod error;
mod extract;
mod functions;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handlers;
mod io;
pub mod lines;
mod metrics;
mod openapi;
mod policy;
mod route;
mod routes;
mod server;
mod status;
mod store;
mod stream;
mod wire;

pub use config::{ServerConfig, ServerError};
pub use edge::attempts::FailedTokenLimits;
pub use edge::client::ProxyError;
pub use edge::origin::OriginError;
pub use encryption::{EncryptionReport, KeyDescriptor};
pub use policy::directory::{PolicyDirectory, PolicyDirectoryError};
pub use route::RouteClass;
pub use routes::{RouteInfo, route_table};
pub use server::{Server, Services, Stopped};
pub use store::{DoorError, DoorResult, Store};
