//! A directory of its own for each case of the conformance suite, with a provider that keeps files.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_crypto::{MasterKeyFile, WrappingKey};
use nimbus_storage::conformance::{Failure, Fixture};
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::{Durability, Provider, ProviderError};

const GAP: std::time::Duration = std::time::Duration::from_millis(10);

/// How a provider is opened.
pub(crate) struct Setup {
    pub(crate) durability: Durability,
    pub(crate) keyring: Option<Arc<Keyring>>,
}

/// Opens a provider in a directory.
pub(crate) type Open = fn(&Path, &Setup) -> Result<Arc<dyn Provider>, ProviderError>;

/// The directory and the provider.
pub(crate) struct LocalFixture {
    dir: tempfile::TempDir,
    setup: Setup,
    open: Open,
    provider: Mutex<Option<Arc<dyn Provider>>>,
}

/// Keys for a case.
pub(crate) fn keyring() -> Option<Arc<Keyring>> {
    let key = WrappingKey::generate().expect("random bytes");
    let provider = Arc::new(MasterKeyFile::new(key));
    Some(Keyring::new(provider).expect("a thread"))
}

impl LocalFixture {
    pub(crate) fn start(
        open: Open,
        durability: Durability,
        keyring: Option<Arc<Keyring>>,
    ) -> LocalFixture {
        let fixture = LocalFixture {
            dir: tempfile::tempdir().expect("a temporary directory"),
            setup: Setup {
                durability,
                keyring,
            },
            open,
            provider: Mutex::new(None),
        };
        fixture.open().expect("a provider on an empty directory");
        fixture
    }

    fn open(&self) -> Result<(), ProviderError> {
        *self.slot() = Some((self.open)(self.dir.path(), &self.setup)?);
        Ok(())
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Provider>>> {
        self.provider.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fixture for LocalFixture {
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
