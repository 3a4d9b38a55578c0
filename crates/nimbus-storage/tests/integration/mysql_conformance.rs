//! The conformance suite on the MySQL provider, one test per case.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_storage::conformance::{Failure, Fixture};
use nimbus_storage::control::RandomId;
use nimbus_storage::provider::mysql::{MysqlOptions, MysqlProvider};
use nimbus_storage::provider::{Provider, ProviderError};

use crate::mysql_servers::MyPlace;

/// Databases of its own for each case.
struct MyFixture {
    provider: Mutex<Option<Arc<dyn Provider>>>,
    options: MysqlOptions,
    _place: MyPlace,
}

impl MyFixture {
    async fn start() -> MyFixture {
        let place = MyPlace::new();
        let mut options = MysqlOptions::new(&place.url).expect("a URL");
        options.metadata_database.clone_from(&place.metadata);
        options.tenant_database_prefix.clone_from(&place.prefix);
        options.pool.max = 8;
        let fixture = MyFixture {
            provider: Mutex::new(None),
            options,
            _place: place,
        };
        fixture.connect().await.expect("a provider");
        fixture
    }

    async fn connect(&self) -> Result<(), ProviderError> {
        let installation = RandomId::try_from("5a".repeat(16)).expect("an id");
        let provider = MysqlProvider::connect(self.options.clone(), installation).await?;
        *self.slot() = Some(Arc::new(provider));
        Ok(())
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Provider>>> {
        self.provider.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fixture for MyFixture {
    fn provider(&self) -> Arc<dyn Provider> {
        self.slot().clone().expect("a provider")
    }

    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            *self.slot() = None;
            Ok(self.connect().await?)
        }
        .boxed()
    }
}

nimbus_storage::conformance_tests!(MyFixture::start);
