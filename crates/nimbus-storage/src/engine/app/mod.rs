//! The application that a tenant's functions form: deployments and their modules, the schema that
//! they bring, environment variables and scoped keys; and the policy that the operator put over it.
//!
//! All of it is tenant data: rows of `meta` and `code`, written by ordinary commits, so a backup, a
//! copy and the consistency check cover it, and a transaction that relied on it has the row in its
//! read set. What the modules do, and who may change them, is not known here.
//!
//! | row | holds |
//! |---|---|
//! | meta `deployment` | the current deployment: id, generation, time, message, hash of its manifest |
//! | meta `deployments/` + generation u64 | the same for the newest ten |
//! | meta `env/` + name | the value of an environment variable |
//! | meta `key/` + id | a scoped key: name, scope, digest, times |
//! | meta `policy/current` | the newest twenty versions of the tenant's policy: number, time, length |
//! | meta `policy/version/` + number u64 | the text of one |
//! | meta `push` | a push in progress, or code that is to be dropped; see `push` |
//! | code `m` + SHA-256 | a module: source and source map |
//! | code `d` + SHA-256 | a manifest: modules by path, analysis, schema |

mod deploy;
mod deployment;
mod environment;
mod error;
mod keys;
mod module;
mod policy;
mod prepare;
mod push;
mod schema;
mod tables;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

pub use deploy::{
    DeployPlan, DeployReport, IndexChange, MAX_DEPLOY_BYTES, MAX_MODULE_BYTES, MAX_MODULES,
    NewModule,
};
pub use deployment::{Deployment, DeploymentId, KEPT_DEPLOYMENTS, ModuleRef};
pub use error::DeployError;
pub use keys::{MAX_KEYS, StoredKey};
pub use module::ModuleSource;
pub use policy::{KEPT_POLICIES, MAX_POLICY_BYTES, PolicyVersion, StoredPolicy};
pub use tables::TransactionTables;

pub(crate) use policy::{POLICY_KEY, Policies};
pub(crate) use push::recover;

use super::txn::Transaction;
use super::view::{Scan, View};
use crate::error::StoreResult;
use crate::provider::{Direction, KeyRange, Keyspace, Row};

/// What an open tenant keeps in memory about its application.
#[derive(Debug)]
pub(crate) struct AppControl {
    /// Whether a push is in progress: there is one at a time.
    pushing: AtomicBool,
    /// Whether a push may have left something behind. True at first, since a crash says nothing.
    leftover: AtomicBool,
    /// The deployment that was read last.
    current: Mutex<Option<Arc<Deployment>>>,
    /// The newest policy that was read.
    policy: Mutex<Option<Arc<StoredPolicy>>>,
}

impl Default for AppControl {
    fn default() -> AppControl {
        AppControl {
            pushing: AtomicBool::new(false),
            leftover: AtomicBool::new(true),
            current: Mutex::new(None),
            policy: Mutex::new(None),
        }
    }
}

/// Writes or removes a row of a keyspace that no catalog follows.
async fn put_row(
    tx: &mut Transaction,
    space: Keyspace,
    key: &[u8],
    after: Option<Bytes>,
) -> StoreResult<()> {
    let before = tx.view.get(space, key).await?;
    if before == after {
        return Ok(());
    }
    tx.view.put(space, key, before, after)
}

/// Every row of `meta` under a prefix, which a few hundred kilobytes hold.
async fn rows_under(view: &mut View, prefix: &[u8]) -> StoreResult<Vec<Row>> {
    let range = KeyRange::prefix(prefix);
    let mut scan = Scan::new(Keyspace::Meta, range, Direction::Forward);
    let mut rows = Vec::new();
    while !scan.done {
        rows.extend(view.scan_next(&mut scan, 1_000).await?);
    }
    Ok(rows)
}

/// Milliseconds since 1970-01-01.
fn now_ms() -> u64 {
    super::tenant::now_ns() / 1_000_000
}
