//! An engine on SQLite in a directory of its own, for unit tests that need what is private to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use nimbus_core::TenantId;

use super::{Engine, EngineOptions, Tenant};
use crate::control::ControlDb;
use crate::provider::sqlite::{SqliteOptions, SqliteProvider};

pub(crate) struct World {
    _dir: tempfile::TempDir,
    pub(crate) engine: Engine,
}

pub(crate) fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let control = Arc::new(ControlDb::open(dir.path()).unwrap());
    let provider = SqliteProvider::open(SqliteOptions::new(dir.path()), control).unwrap();
    let engine = Engine::new(Arc::new(provider), EngineOptions::default());
    World { _dir: dir, engine }
}

impl World {
    /// Makes a tenant and opens it.
    pub(crate) async fn tenant(&self, id: &str) -> Tenant {
        let id: TenantId = id.parse().unwrap();
        self.engine.create_tenant(&id).await.unwrap();
        self.engine.tenant(&id).await.unwrap()
    }
}
