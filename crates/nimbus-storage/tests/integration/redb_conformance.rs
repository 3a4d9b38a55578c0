//! The conformance suite on the redb provider, one test per case, in plain text and encrypted, in both
//! durabilities.

use std::path::Path;
use std::sync::Arc;

use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::redb::{RedbOptions, RedbProvider};
use nimbus_storage::provider::{Durability, Provider, ProviderError};

use crate::local_fixture::{LocalFixture, Setup, keyring};

fn open(dir: &Path, setup: &Setup) -> Result<Arc<dyn Provider>, ProviderError> {
    let control = Arc::new(ControlDb::open(dir)?);
    let mut options = RedbOptions::new(dir);
    options.durability = setup.durability;
    options.keyring.clone_from(&setup.keyring);
    Ok(Arc::new(RedbProvider::open(options, control)?))
}

async fn on_full() -> LocalFixture {
    LocalFixture::start(open, Durability::Full, None)
}

async fn on_relaxed() -> LocalFixture {
    LocalFixture::start(open, Durability::Relaxed, None)
}

async fn on_encrypted_full() -> LocalFixture {
    LocalFixture::start(open, Durability::Full, keyring())
}

async fn on_encrypted_relaxed() -> LocalFixture {
    LocalFixture::start(open, Durability::Relaxed, keyring())
}

mod full {
    nimbus_storage::conformance_tests!(super::on_full);
}

mod relaxed {
    nimbus_storage::conformance_tests!(super::on_relaxed);
}

mod encrypted_full {
    nimbus_storage::conformance_tests!(super::on_encrypted_full);
}

mod encrypted_relaxed {
    nimbus_storage::conformance_tests!(super::on_encrypted_relaxed);
}
