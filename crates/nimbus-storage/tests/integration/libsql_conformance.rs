//! The conformance suite on the libSQL provider, over the small primary of the tests, one test per case, with replicas in
//! plain text and encrypted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_libsql_primary::{Options, Primary};
use nimbus_storage::conformance::{Failure, Fixture};
use nimbus_storage::control::RandomId;
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::libsql::{LibsqlOptions, LibsqlProvider};
use nimbus_storage::provider::{Provider, ProviderError};

use crate::local_fixture::keyring;

const GAP: Duration = Duration::from_millis(10);

/// A primary and a cache of its own for each case.
struct LibsqlFixture {
    provider: Mutex<Option<Arc<dyn Provider>>>,
    options: LibsqlOptions,
    _primary: Primary,
    _dir: tempfile::TempDir,
}

impl LibsqlFixture {
    async fn start(keyring: Option<Arc<Keyring>>) -> LibsqlFixture {
        let dir = tempfile::tempdir().expect("a directory");
        let primary = Primary::start(dir.path().join("primary"), Options::default());
        let primary = primary.expect("a primary");
        let cache = dir.path().join("cache");
        let mut options = LibsqlOptions::new(primary.url(), primary.admin_url(), cache);
        options.keyring = keyring;
        let fixture = LibsqlFixture {
            provider: Mutex::new(None),
            options,
            _primary: primary,
            _dir: dir,
        };
        fixture.connect().await.expect("a provider");
        fixture
    }

    async fn connect(&self) -> Result<(), ProviderError> {
        let installation = RandomId::try_from("5a".repeat(16)).expect("an id");
        let provider = LibsqlProvider::connect(self.options.clone(), installation).await?;
        *self.slot() = Some(Arc::new(provider));
        Ok(())
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<dyn Provider>>> {
        self.provider.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fixture for LibsqlFixture {
    fn provider(&self) -> Arc<dyn Provider> {
        self.slot().clone().expect("a provider")
    }

    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            *self.slot() = None;
            // Work that was not awaited holds the cache directory a little longer.
            for _ in 0..500 {
                match self.connect().await {
                    Ok(()) => return Ok(()),
                    Err(ProviderError::Busy { .. }) => tokio::time::sleep(GAP).await,
                    Err(e) => return Err(e.into()),
                }
            }
            Err(Failure::new("the cache directory stayed locked"))
        }
        .boxed()
    }
}

async fn on_plain() -> LibsqlFixture {
    LibsqlFixture::start(None).await
}

async fn on_encrypted() -> LibsqlFixture {
    LibsqlFixture::start(keyring()).await
}

mod plain {
    nimbus_storage::conformance_tests!(super::on_plain);
}

mod encrypted {
    nimbus_storage::conformance_tests!(super::on_encrypted);
}
