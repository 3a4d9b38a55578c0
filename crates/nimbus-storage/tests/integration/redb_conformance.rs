//! The conformance suite on the redb provider, one test per case, in plain text and encrypted, in both
//! durabilities.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_crypto::{MasterKeyFile, WrappingKey};
use nimbus_storage::conformance::{Failure, Fixture};
use nimbus_storage::control::ControlDb;
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::redb::{Durability, RedbOptions, RedbProvider};
use nimbus_storage::provider::{Provider, ProviderError};

const GAP: std::time::Duration = std::time::Duration::from_millis(10);

struct Redb {
    dir: tempfile::TempDir,
    durability: Durability,
    keyring: Option<Arc<Keyring>>,
    provider: Mutex<Option<Arc<dyn Provider>>>,
}

fn keyring() -> Option<Arc<Keyring>> {
    let key = WrappingKey::generate().expect("random bytes");
    let provider = Arc::new(MasterKeyFile::new(key));
    Some(Keyring::new(provider).expect("a thread"))
}

impl Redb {
    async fn full() -> Redb {
        Redb::start(Durability::Full, None)
    }

    async fn relaxed() -> Redb {
        Redb::start(Durability::Relaxed, None)
    }

    async fn encrypted_full() -> Redb {
        Redb::start(Durability::Full, keyring())
    }

    async fn encrypted_relaxed() -> Redb {
        Redb::start(Durability::Relaxed, keyring())
    }

    fn start(durability: Durability, keyring: Option<Arc<Keyring>>) -> Redb {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let redb = Redb {
            dir,
            durability,
            keyring,
            provider: Mutex::new(None),
        };
        redb.open().expect("a provider on an empty directory");
        redb
    }

    fn open(&self) -> Result<(), ProviderError> {
        let control = Arc::new(ControlDb::open(self.dir.path())?);
        let mut options = RedbOptions::new(self.dir.path());
        options.durability = self.durability;
        options.keyring.clone_from(&self.keyring);
        let provider = RedbProvider::open(options, control)?;
        *self.slot() = Some(Arc::new(provider));
        Ok(())
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Provider>>> {
        self.provider.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fixture for Redb {
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
    nimbus_storage::conformance_tests!(super::Redb::full);
}

mod relaxed {
    nimbus_storage::conformance_tests!(super::Redb::relaxed);
}

mod encrypted_full {
    nimbus_storage::conformance_tests!(super::Redb::encrypted_full);
}

mod encrypted_relaxed {
    nimbus_storage::conformance_tests!(super::Redb::encrypted_relaxed);
}
