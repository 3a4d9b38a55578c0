//! What the providers of databases that run elsewhere share: names of namespaces, settings that hold a
//! password, the installation that a database belongs to, and hints that another server committed.
//!
//! Must not know any particular database: Postgres and MySQL build on it.

#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod backend;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod commit;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod error;
mod format;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod hints;
mod installation;
mod names;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod pool;
pub(crate) mod queue;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod reader;
mod registry;
#[cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]
pub(crate) mod relay;
/// See `relay.rs`, which is for Linux.
#[cfg(all(not(target_os = "linux"), any(feature = "mysql", feature = "postgres")))]
pub(crate) mod relay {
    pub(crate) async fn connect(
        _: &str,
        _: u16,
        _: &str,
    ) -> std::io::Result<Option<std::path::PathBuf>> {
        Ok(None)
    }
}
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod settings;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod snapshots;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod steps;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod store;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod turn;
mod url;
pub(crate) mod wakes;

#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use format::tenant_of;
pub(crate) use format::{FORMAT_KEY, check_format, decode_head, format_row};
pub(crate) use installation::{Ownership, ownership};
pub(crate) use names::Names;
pub(crate) use registry::state_of;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use registry::{Known, state_name};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use settings::PoolSize;
pub use url::DatabaseUrl;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use url::check_protected;
pub(crate) use url::is_local;

#[cfg(all(test, feature = "mysql"))]
#[path = "../../../tests/integration/mysql_servers.rs"]
pub(crate) mod mysql_servers;
/// Servers for the tests of providers; the integration tests have the same files.
#[cfg(all(test, any(feature = "mysql", feature = "postgres")))]
#[path = "../../../tests/integration/servers.rs"]
pub(crate) mod servers;
