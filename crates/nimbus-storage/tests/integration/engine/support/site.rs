//! Where the tenants of a [`World`](super::World) are: files, or a place in a database.
//!
//! `NIMBUS_TEST_PROVIDER` names the provider: sqlite (the default), redb, redb-encrypted, memory, postgres, mysql or
//! libsql. Nothing here cuts the power, so embedded files are written with relaxed durability.

use std::path::Path;
use std::sync::Arc;

use nimbus_crypto::{MasterKeyFile, WrappingKey};
#[cfg(feature = "libsql")]
use nimbus_libsql_primary::{Options, Primary};
use nimbus_storage::control::ControlDb;
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::Provider;
#[cfg(feature = "libsql")]
use nimbus_storage::provider::libsql::{LibsqlOptions, LibsqlProvider};
use nimbus_storage::provider::memory::MemoryProvider;
#[cfg(feature = "mysql")]
use nimbus_storage::provider::mysql::{MysqlOptions, MysqlProvider};
#[cfg(feature = "postgres")]
use nimbus_storage::provider::postgres::{PostgresOptions, PostgresProvider};
use nimbus_storage::provider::redb::{self, RedbOptions, RedbProvider};
use nimbus_storage::provider::sqlite::{Durability, SqliteOptions, SqliteProvider};

#[cfg(feature = "mysql")]
use crate::mysql_servers::MyPlace;
#[cfg(feature = "postgres")]
use crate::servers::Place;

/// A data directory, and what is shared beside it. It is removed with all its tenants.
pub struct Site {
    // Declared first: it may have files in the directory.
    tenants: Tenants,
    dir: tempfile::TempDir,
}

enum Tenants {
    Sqlite,
    Redb {
        encrypted: bool,
    },
    Memory(MemoryProvider),
    #[cfg(feature = "postgres")]
    Postgres(Place),
    #[cfg(feature = "mysql")]
    Mysql(MyPlace),
    #[cfg(feature = "libsql")]
    Libsql(Primary),
}

impl Site {
    pub fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let tenants = match std::env::var("NIMBUS_TEST_PROVIDER").as_deref() {
            Err(_) | Ok("sqlite") => Tenants::Sqlite,
            Ok("redb") => Tenants::Redb { encrypted: false },
            Ok("redb-encrypted") => Tenants::Redb { encrypted: true },
            Ok("memory") => Tenants::Memory(MemoryProvider::new()),
            #[cfg(feature = "postgres")]
            Ok("postgres") => Tenants::Postgres(Place::postgres()),
            #[cfg(feature = "mysql")]
            Ok("mysql") => Tenants::Mysql(MyPlace::new()),
            #[cfg(feature = "libsql")]
            Ok("libsql") => {
                let primary = Primary::start(dir.path().join("primary"), Options::default());
                Tenants::Libsql(primary.unwrap())
            }
            Ok(other) => panic!("NIMBUS_TEST_PROVIDER={other}"),
        };
        Site { tenants, dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The provider, made anew as after a start.
    pub async fn provider(&self, control: Arc<ControlDb>, readers: usize) -> Arc<dyn Provider> {
        match &self.tenants {
            Tenants::Sqlite => {
                let mut sqlite = SqliteOptions::new(self.path());
                sqlite.durability = Durability::Relaxed;
                sqlite.readers = readers;
                Arc::new(SqliteProvider::open(sqlite, control).unwrap())
            }
            Tenants::Redb { encrypted } => {
                let mut redb = RedbOptions::new(self.path());
                redb.durability = redb::Durability::Relaxed;
                // The same key each time, since the world may be opened again.
                let key = MasterKeyFile::new(WrappingKey::from_bytes(&[7; 32]));
                redb.keyring = encrypted.then(|| Keyring::new(Arc::new(key)).unwrap());
                Arc::new(RedbProvider::open(redb, control).unwrap())
            }
            Tenants::Memory(memory) => Arc::new(memory.clone()),
            #[cfg(feature = "postgres")]
            Tenants::Postgres(place) => {
                let mut options = PostgresOptions::new(&place.url).unwrap();
                options.metadata_schema.clone_from(&place.metadata);
                options.tenant_schema_prefix.clone_from(&place.prefix);
                let provider = PostgresProvider::connect(options, control.installation()).await;
                Arc::new(provider.unwrap())
            }
            #[cfg(feature = "mysql")]
            Tenants::Mysql(place) => {
                let mut options = MysqlOptions::new(&place.url).unwrap();
                options.metadata_database.clone_from(&place.metadata);
                options.tenant_database_prefix.clone_from(&place.prefix);
                let provider = MysqlProvider::connect(options, control.installation()).await;
                Arc::new(provider.unwrap())
            }
            #[cfg(feature = "libsql")]
            Tenants::Libsql(primary) => {
                let cache = self.path().join("replicas");
                let mut options = LibsqlOptions::new(primary.url(), primary.admin_url(), cache);
                // One server reads what it wrote in any case; what tests write behind its back is seen too.
                options.max_staleness = std::time::Duration::ZERO;
                let provider = LibsqlProvider::connect(options, control.installation()).await;
                Arc::new(provider.unwrap())
            }
        }
    }
}
