//! The rows of design section 8, one module each, and the engine that in-process rows share.
//!
//! A row knows how it is measured and what its goal is; it must not know other rows.

pub(crate) mod contention;
pub(crate) mod fanout;
pub(crate) mod functions;
pub(crate) mod inserts;
pub(crate) mod pages;
pub(crate) mod policies;
pub(crate) mod postgres;
pub(crate) mod reads;
pub(crate) mod replica;
pub(crate) mod scan;
pub(crate) mod sqlcipher;
pub(crate) mod tenants;

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::sqlite::{SqliteOptions, SqliteProvider};
use nimbus_storage::{Engine, EngineOptions};

use crate::plan::Plan;
use crate::report::Line;

/// A row: its name and how it is measured.
pub(crate) type Row = (&'static str, fn(&Plan) -> Result<Vec<Line>>);

/// Every row, in the order of the table.
pub(crate) const ALL: [Row; 12] = [
    ("inserts", inserts::run),
    ("reads", reads::run),
    ("sqlcipher", sqlcipher::run),
    ("encrypted files", pages::run),
    ("contention", contention::run),
    ("fanout", fanout::run),
    ("tenants", tenants::run),
    ("scan", scan::run),
    ("functions", functions::run),
    ("policies", policies::run),
    ("postgres", postgres::run),
    ("replica", replica::run),
];

/// An engine over SQLite at full durability in `dir`, as the server makes it.
fn engine(dir: &Path) -> Result<Engine> {
    let control = Arc::new(ControlDb::open(dir)?);
    let provider = SqliteProvider::open(SqliteOptions::new(dir), control)?;
    Ok(Engine::new(Arc::new(provider), EngineOptions::default()))
}
