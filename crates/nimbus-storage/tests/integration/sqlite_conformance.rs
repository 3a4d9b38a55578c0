//! The conformance suite on the SQLite provider, one test per case, in both durabilities, in plain text and encrypted.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_crypto::{MasterKeyFile, WrappingKey};
use nimbus_storage::conformance::{Failure, Fixture};
use nimbus_storage::control::ControlDb;
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::sqlite::{Durability, SqliteOptions, SqliteProvider};
use nimbus_storage::provider::{Provider, ProviderError};

const GAP: std::time::Duration = std::time::Duration::from_millis(10);

struct Sqlite {
    dir: tempfile::TempDir,
    durability: Durability,
    keyring: Option<Arc<Keyring>>,
    provider: Mutex<Option<Arc<dyn Provider>>>,
}

impl Sqlite {
    async fn full() -> Sqlite {
        Sqlite::start(Durability::Full, None)
    }

    async fn relaxed() -> Sqlite {
        Sqlite::start(Durability::Relaxed, None)
    }

    async fn encrypted() -> Sqlite {
        let key = WrappingKey::generate().expect("random bytes");
        let keyring = Keyring::new(Arc::new(MasterKeyFile::new(key))).expect("a thread");
        Sqlite::start(Durability::Full, Some(keyring))
    }

    fn start(durability: Durability, keyring: Option<Arc<Keyring>>) -> Sqlite {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sqlite = Sqlite {
            dir,
            durability,
            keyring,
            provider: Mutex::new(None),
        };
        sqlite.open().expect("a provider on an empty directory");
        sqlite
    }

    fn open(&self) -> Result<(), ProviderError> {
        let control = Arc::new(ControlDb::open(self.dir.path())?);
        let mut options = SqliteOptions::new(self.dir.path());
        options.durability = self.durability;
        options.keyring = self.keyring.clone();
        let provider = SqliteProvider::open(options, control)?;
        *self.slot() = Some(Arc::new(provider));
        Ok(())
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Provider>>> {
        self.provider.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fixture for Sqlite {
    fn provider(&self) -> Arc<dyn Provider> {
        self.slot().clone().expect("a provider")
    }

    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            *self.slot() = None;
            // Blocking work that was not awaited holds the control database a little longer.
            for _ in 0..500 {
                match self.open() {
                    Ok(()) => return Ok(()),
                    Err(ProviderError::Busy { .. }) => tokio::time::sleep(GAP).await,
                    Err(e) => return Err(e.into()),
                }
            }
            Err(Failure::new("the control database stayed open"))
        }
        .boxed()
    }
}

mod full {
    nimbus_storage::conformance_tests!(super::Sqlite::full);
}

mod relaxed {
    nimbus_storage::conformance_tests!(super::Sqlite::relaxed);
}

mod encrypted {
    nimbus_storage::conformance_tests!(super::Sqlite::encrypted);
}
