//! The integration tests of nimbus-storage, in one binary: against its public API only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backup_providers;
mod engine;
#[cfg(feature = "libsql")]
mod libsql_conformance;
#[cfg(feature = "libsql")]
mod libsql_servers;
mod local_fixture;
mod memory_conformance;
mod moving;
#[cfg(feature = "mysql")]
mod mysql_conformance;
#[cfg(feature = "mysql")]
mod mysql_pairs;
#[cfg(feature = "mysql")]
mod mysql_servers;
#[cfg(feature = "postgres")]
mod postgres_conformance;
#[cfg(feature = "postgres")]
mod postgres_pairs;
mod redb_conformance;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod servers;
mod sqlite_conformance;
