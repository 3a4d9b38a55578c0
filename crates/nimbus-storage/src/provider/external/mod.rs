//! What the providers of databases that run elsewhere share: names of namespaces, settings that hold a
//! password, the installation that a database belongs to, and hints that another server committed.
//!
//! Must not know any particular database, nor open a connection: Postgres and MySQL build on it.

mod format;
pub(crate) mod hints;
mod installation;
mod names;
pub(crate) mod pool;
mod registry;
mod settings;
#[cfg(feature = "mysql")]
pub(crate) mod snapshots;
mod url;

pub(crate) use format::{FORMAT_KEY, check_format, decode_head, format_row, tenant_of};
pub(crate) use installation::{Ownership, ownership};
pub(crate) use names::Names;
pub(crate) use registry::{Known, state_name, state_of};
pub use settings::PoolSize;
pub use url::DatabaseUrl;
pub(crate) use url::{check_protected, is_local};

#[cfg(all(test, feature = "mysql"))]
#[path = "../../../tests/integration/mysql_servers.rs"]
pub(crate) mod mysql_servers;
/// Servers for the tests of providers; the integration tests have the same files.
#[cfg(test)]
#[path = "../../../tests/integration/servers.rs"]
pub(crate) mod servers;
