//! The conformance suite on the Postgres provider, one test per case, in both durabilities.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt};
use nimbus_storage::conformance::{Failure, Fixture};
use nimbus_storage::control::RandomId;
use nimbus_storage::provider::postgres::{PostgresOptions, PostgresProvider};
use nimbus_storage::provider::{Durability, Provider, ProviderError};

use crate::servers::Place;

/// Schemas of its own for each case.
struct PgFixture {
    provider: Mutex<Option<Arc<dyn Provider>>>,
    options: PostgresOptions,
    _place: Place,
}

impl PgFixture {
    async fn start(durability: Durability) -> PgFixture {
        let place = Place::postgres();
        let mut options = PostgresOptions::new(&place.url).expect("a URL");
        options.metadata_schema.clone_from(&place.metadata);
        options.tenant_schema_prefix.clone_from(&place.prefix);
        options.pool.max = 8;
        options.durability = durability;
        let fixture = PgFixture {
            provider: Mutex::new(None),
            options,
            _place: place,
        };
        fixture.connect().await.expect("a provider");
        fixture
    }

    async fn connect(&self) -> Result<(), ProviderError> {
        let installation = RandomId::try_from("5a".repeat(16)).expect("an id");
        let provider = PostgresProvider::connect(self.options.clone(), installation).await?;
        *self.slot() = Some(Arc::new(provider));
        Ok(())
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Provider>>> {
        self.provider.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fixture for PgFixture {
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

async fn on_full() -> PgFixture {
    PgFixture::start(Durability::Full).await
}

async fn on_relaxed() -> PgFixture {
    PgFixture::start(Durability::Relaxed).await
}

mod full {
    nimbus_storage::conformance_tests!(super::on_full);
}

mod relaxed {
    nimbus_storage::conformance_tests!(super::on_relaxed);
}
