//! Two servers on one Postgres database, by the checks of `engine::servers`.

use std::sync::Arc;

use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::Provider;
use nimbus_storage::provider::postgres::{PostgresOptions, PostgresProvider};

use crate::engine::servers::{Servers, two_servers};
use crate::servers::Place;

/// A place in the database, and two providers over it of which the second joined the first one's installation.
async fn two() -> (Place, Servers) {
    let place = Place::postgres();
    let control = || {
        let dir = tempfile::tempdir().unwrap();
        ControlDb::open(dir.path()).unwrap().installation()
    };
    let (first, second) = (control(), control());
    let open = async |join| {
        let mut options = PostgresOptions::new(&place.url).unwrap();
        options.metadata_schema.clone_from(&place.metadata);
        options.tenant_schema_prefix.clone_from(&place.prefix);
        options.join_installation = join;
        let own = if join.is_some() { second } else { first };
        let provider = PostgresProvider::connect(options, own).await.unwrap();
        Arc::new(provider) as Arc<dyn Provider>
    };
    let a = open(None).await;
    let b = open(Some(first)).await;
    (place, Servers::over(a, b))
}

two_servers!(two, 1..4);
