//! The conformance suite on the SQLite provider, one test per case, in both durabilities, in plain text and encrypted.

use std::path::Path;
use std::sync::Arc;

use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::sqlite::{SqliteOptions, SqliteProvider};
use nimbus_storage::provider::{Durability, Provider, ProviderError};

use crate::local_fixture::{LocalFixture, Setup, keyring};

fn open(dir: &Path, setup: &Setup) -> Result<Arc<dyn Provider>, ProviderError> {
    let control = Arc::new(ControlDb::open(dir)?);
    let mut options = SqliteOptions::new(dir);
    options.durability = setup.durability;
    options.keyring.clone_from(&setup.keyring);
    Ok(Arc::new(SqliteProvider::open(options, control)?))
}

async fn on_full() -> LocalFixture {
    LocalFixture::start(open, Durability::Full, None)
}

async fn on_relaxed() -> LocalFixture {
    LocalFixture::start(open, Durability::Relaxed, None)
}

async fn on_encrypted() -> LocalFixture {
    LocalFixture::start(open, Durability::Full, keyring())
}

mod full {
    nimbus_storage::conformance_tests!(super::on_full);
}

mod relaxed {
    nimbus_storage::conformance_tests!(super::on_relaxed);
}

mod encrypted {
    nimbus_storage::conformance_tests!(super::on_encrypted);
}
