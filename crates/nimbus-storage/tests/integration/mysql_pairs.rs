//! Two servers on one MySQL or MariaDB server, by the checks of `engine::servers`.

use std::sync::Arc;

use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::Provider;
use nimbus_storage::provider::mysql::{MysqlOptions, MysqlProvider};

use crate::engine::servers::{Servers, two_servers};
use crate::mysql_servers::MyPlace;

/// A place on the server, and two providers over it of which the second joined the first one's installation.
async fn two() -> (MyPlace, Servers) {
    let place = MyPlace::new();
    let control = || {
        let dir = tempfile::tempdir().unwrap();
        ControlDb::open(dir.path()).unwrap().installation()
    };
    let (first, second) = (control(), control());
    let open = async |join| {
        let mut options = MysqlOptions::new(&place.url).unwrap();
        options.metadata_database.clone_from(&place.metadata);
        options.tenant_database_prefix.clone_from(&place.prefix);
        options.join_installation = join;
        let own = if join.is_some() { second } else { first };
        let provider = MysqlProvider::connect(options, own).await.unwrap();
        Arc::new(provider) as Arc<dyn Provider>
    };
    let a = open(None).await;
    let b = open(Some(first)).await;
    (place, Servers::over(a, b))
}

two_servers!(two, 1..4);
