//! What a push leaves in storage before it is committed, and how that is removed again.
//!
//! A push writes down first what it is about to write (meta row `push`): the code rows that it may
//! add. Then come those rows, and what it adds to the definitions of tables, marked with its id.
//! Nothing of it can be seen. Its commit makes all of it current and takes the marks away. Whatever
//! comes in between, a crash included, [`clean`] undoes from the row alone: at the end of the
//! push, when the tenant is opened, or at the beginning of the next push.
//!
//! The same row then lists code that the commit made superfluous, which is dropped in commits of
//! bounded size: a commit record holds what it deletes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use nimbus_core::{DocumentId, TableName};
use serde::{Deserialize, Serialize};

use super::deployment::{Manifest, history};
use super::{DeployError, DeploymentId, put_row};
use crate::engine::catalog::{IndexState, TableDef};
use crate::engine::schema_change::Left;
use crate::engine::tenant::Tenant;
use crate::engine::txn::Transaction;
use crate::engine::view::{Scan, View};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Direction, KeyRange, Keyspace};

const PUSH_KEY: &[u8] = b"push";
/// Prefix of the rows that writes leave which contradict the schema of the push.
const VIOLATION_PREFIX: &[u8] = b"push_violation/";
/// Bytes of code that one commit drops, about.
const DROP_BYTES: usize = 4 * 1024 * 1024;
/// Rows of code that one commit drops.
const DROP_ROWS: usize = 256;
/// Rows about violations that one commit removes.
const DROP_VIOLATIONS: usize = 256;
/// Bytes of the text that such a row keeps.
const MAX_FAILURE: usize = 1_024;
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Phase {
    /// What the push added has to be made current, or removed.
    Prepare,
    /// What is left is to drop the code that no deployment uses.
    Drop,
}

/// The row `push`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PushRow {
    version: u32,
    id: DeploymentId,
    phase: Phase,
    /// Keys of code rows, hexadecimal.
    code: Vec<String>,
}

/// A document that contradicts the schema of a push and was written while it was made.
#[derive(Serialize, Deserialize)]
struct Violation {
    table: TableName,
    id: DocumentId,
    failure: String,
}

impl PushRow {
    async fn read(view: &mut View) -> StoreResult<Option<PushRow>> {
        let Some(stored) = view.get(Keyspace::Meta, PUSH_KEY).await? else {
            return Ok(None);
        };
        let damaged = |e: String| StoreError::corrupt(format!("push row: {e}"));
        let row: PushRow = serde_json::from_slice(&stored).map_err(|e| damaged(e.to_string()))?;
        if row.version != VERSION {
            return Err(damaged(format!("version {} is not known", row.version)));
        }
        Ok(Some(row))
    }

    async fn write(tx: &mut Transaction, row: Option<&PushRow>) -> StoreResult<()> {
        let after = row
            .map(|row| serde_json::to_vec(row).map(Bytes::from))
            .transpose()
            .map_err(|e| StoreError::corrupt(format!("push row does not encode: {e}")))?;
        put_row(tx, Keyspace::Meta, PUSH_KEY, after).await
    }
}

fn listed(code: impl IntoIterator<Item = Vec<u8>>) -> Vec<String> {
    let mut code: Vec<_> = code.into_iter().map(|key| HEXLOWER.encode(&key)).collect();
    code.sort();
    code
}

/// Writes down that a push begins and which code rows it may add.
pub(super) async fn begin(
    tenant: &Tenant,
    id: DeploymentId,
    code: &HashSet<Vec<u8>>,
) -> StoreResult<()> {
    let row = PushRow {
        version: VERSION,
        id,
        phase: Phase::Prepare,
        code: listed(code.iter().cloned()),
    };
    tenant
        .transact(move |tx| {
            let row = row.clone();
            Box::pin(async move { PushRow::write(tx, Some(&row)).await })
        })
        .await
}

/// In the commit of a push: it is still the one in progress, and no document that was written
/// meanwhile contradicts its schema.
pub(super) async fn check(tx: &mut Transaction, id: DeploymentId) -> Result<(), DeployError> {
    let row = PushRow::read(&mut tx.view).await?;
    if row.is_none_or(|row| row.id != id || row.phase != Phase::Prepare) {
        return Err(DeployError::ConcurrentPush);
    }
    check_violations(&mut tx.view).await
}

/// In the commit of a push: it is over, and this code may have become superfluous.
pub(super) async fn end(
    tx: &mut Transaction,
    id: DeploymentId,
    superfluous: HashSet<Vec<u8>>,
) -> StoreResult<()> {
    if superfluous.is_empty() {
        return PushRow::write(tx, None).await;
    }
    let row = PushRow {
        version: VERSION,
        id,
        phase: Phase::Drop,
        code: listed(superfluous),
    };
    PushRow::write(tx, Some(&row)).await
}

/// Whether a document was written that contradicts the schema of the push in progress.
pub(super) async fn check_violations(view: &mut View) -> Result<(), DeployError> {
    let range = KeyRange::prefix(VIOLATION_PREFIX);
    let mut scan = Scan::new(Keyspace::Meta, range, Direction::Forward);
    let mut stored = None;
    while !scan.done && stored.is_none() {
        // One says it all, and there may be as many as there were writes.
        stored = view.scan_next(&mut scan, 1).await?.pop();
    }
    let Some((_, stored)) = stored else {
        return Ok(());
    };
    let found: Violation = serde_json::from_slice(&stored)
        .map_err(|e| StoreError::corrupt(format!("violation row: {e}")))?;
    Err(DeployError::SchemaValidation {
        table: found.table,
        id: found.id,
        failure: found.failure,
    })
}

/// Leaves word for the push in progress, in the commit of the write.
pub(super) fn note_violation(
    tx: &mut Transaction,
    def: &TableDef,
    id: DocumentId,
    failure: &str,
) -> StoreResult<()> {
    let from = (Keyspace::Meta, Bytes::from_static(VIOLATION_PREFIX));
    let noted = tx.view.writes.range(from..).next();
    if noted.is_some_and(|((s, k), _)| *s == Keyspace::Meta && k.starts_with(VIOLATION_PREFIX)) {
        return Ok(());
    }
    // A key that nobody else writes, so that such writes do not conflict with each other.
    let mut random = [0; 16];
    crate::engine::fill_random(&mut random)?;
    let key = [VIOLATION_PREFIX, HEXLOWER.encode(&random).as_bytes()].concat();
    let violation = Violation {
        table: def.name.clone(),
        id,
        failure: failure[..failure.floor_char_boundary(MAX_FAILURE)].to_owned(),
    };
    let row = serde_json::to_vec(&violation)
        .map_err(|e| StoreError::corrupt(format!("violation row does not encode: {e}")))?;
    tx.view
        .put(Keyspace::Meta, &key, None, Some(Bytes::from(row)))
}

/// Removes what pushes left: what one that was not committed added, and code that no deployment
/// uses. The caller holds the tenant's schema lock, so that nobody else changes what is used.
pub(super) async fn clean(tenant: &Tenant) -> StoreResult<()> {
    let mut used = None;
    loop {
        let mut view = tenant.inner.durable_view(false).await?.unbounded();
        let Some(row) = PushRow::read(&mut view).await? else {
            // Even with nothing left the indexes of a push that failed have entries to remove.
            tenant.inner.background.notify_one();
            tenant.inner.app.leftover.store(false, Ordering::Release);
            return Ok(());
        };
        if row.phase == Phase::Drop && used.is_none() {
            used = Some(Arc::new(used_code(&mut view).await?));
        }
        drop(view);
        let used = used.clone();
        let step = tenant.transact(move |tx| Box::pin(clean_step(tx, used.clone())));
        step.await?;
        tenant.inner.background.notify_one();
    }
}

/// Keys of the code rows that deployments use. `None`: nobody knows.
type Used = Option<HashSet<Vec<u8>>>;

async fn used_code(view: &mut View) -> StoreResult<Used> {
    let mut used = HashSet::new();
    for row in history(view).await? {
        let hash = row.manifest()?;
        match Manifest::load(view, &hash).await {
            Ok(manifest) => manifest.add_keys(&hash, &mut used)?,
            Err(StoreError::Corrupt { inside }) => {
                tracing::warn!(inside, "code that may be superfluous is kept");
                return Ok(None);
            }
            Err(other) => return Err(other),
        }
    }
    Ok(Some(used))
}

/// One commit of [`clean`].
async fn clean_step(tx: &mut Transaction, used: Option<Arc<Used>>) -> StoreResult<()> {
    let Some(mut row) = PushRow::read(&mut tx.view).await? else {
        return Ok(());
    };
    match (row.phase, used) {
        (Phase::Prepare, _) => {
            undo(tx).await?;
            if !drop_violations(tx).await? {
                row.phase = Phase::Drop;
                PushRow::write(tx, Some(&row)).await?;
            }
        }
        (Phase::Drop, Some(used)) => {
            row.code = match &*used {
                Some(used) => drop_code(tx, row.code, used).await?,
                None => Vec::new(),
            };
            PushRow::write(tx, (!row.code.is_empty()).then_some(&row)).await?;
        }
        // The next step knows it.
        (Phase::Drop, None) => {}
    }
    Ok(())
}

/// Drops rows about violations, as many as one commit may; whether there may be more.
async fn drop_violations(tx: &mut Transaction) -> StoreResult<bool> {
    let range = KeyRange::prefix(VIOLATION_PREFIX);
    let mut scan = Scan::new(Keyspace::Meta, range, Direction::Forward);
    let rows = tx.view.scan_next(&mut scan, DROP_VIOLATIONS).await?;
    for (key, before) in rows {
        tx.view.put(Keyspace::Meta, &key, Some(before), None)?;
    }
    Ok(!scan.done)
}

/// Takes the marks of an unfinished push off all tables.
async fn undo(tx: &mut Transaction) -> StoreResult<()> {
    let marked =
        |def: &TableDef| def.push.is_some() || def.indexes.iter().any(|i| i.push.is_some());
    let tables: Vec<TableName> = tx
        .view
        .catalog
        .tables()
        .filter(|def| marked(def))
        .map(|def| def.name.clone())
        .collect();
    for table in tables {
        let Some(def) = tx.table(&table).await else {
            continue;
        };
        let mut def = TableDef::clone(&def);
        def.push = None;
        for index in def.indexes.iter_mut().filter(|i| i.push.is_some()) {
            index.push = None;
            index.state = IndexState::Deleting;
        }
        tx.put_table(&def).await?;
    }
    Ok(())
}

/// Drops those of the rows that no deployment uses, as far as one commit may; returns the rest.
async fn drop_code(
    tx: &mut Transaction,
    mut code: Vec<String>,
    used: &HashSet<Vec<u8>>,
) -> StoreResult<Vec<String>> {
    let (mut rows, mut bytes) = (0, 0);
    while rows < DROP_ROWS && bytes < DROP_BYTES {
        let Some(key) = code.pop() else { break };
        let key = HEXLOWER
            .decode(key.as_bytes())
            .map_err(|_| StoreError::corrupt("push row: a key is not hexadecimal"))?;
        if used.contains(&key) {
            continue;
        }
        if let Some(before) = tx.view.get(Keyspace::Code, &key).await? {
            bytes += before.len();
            rows += 1;
            tx.view.put(Keyspace::Code, &key, Some(before), None)?;
        }
    }
    Ok(code)
}

/// Cleans up after a crash or a push whose caller went away, unless a push is in progress.
pub(crate) async fn recover(tenant: &Tenant) -> StoreResult<Left> {
    let app = &tenant.inner.app;
    if app.pushing.load(Ordering::Acquire) {
        return Ok(Left::Nothing);
    }
    if tenant.inner.store.is_shared() {
        // What another server left is known by its row alone.
        let mut view = tenant.inner.durable_view(false).await?.unbounded();
        if PushRow::read(&mut view).await?.is_none() {
            app.leftover.store(false, Ordering::Release);
            return Ok(Left::Nothing);
        }
    } else if !app.leftover.load(Ordering::Acquire) {
        return Ok(Left::Nothing);
    }
    let Some(_free) = tenant.try_schema_turn().await? else {
        return Ok(Left::ToAnother);
    };
    clean(tenant).await?;
    Ok(Left::Nothing)
}

/// Says that a push is in progress while it lives, and then has somebody look what it left.
pub(super) struct Pushing<'a>(&'a Tenant);

impl<'a> Pushing<'a> {
    pub(super) fn begin(tenant: &'a Tenant) -> Result<Pushing<'a>, DeployError> {
        if tenant.inner.app.pushing.swap(true, Ordering::AcqRel) {
            return Err(DeployError::ConcurrentPush);
        }
        Ok(Pushing(tenant))
    }
}

impl Drop for Pushing<'_> {
    fn drop(&mut self) {
        // Whoever looks next finds out; a caller that went away did not.
        self.0.inner.app.leftover.store(true, Ordering::Release);
        self.0.inner.app.pushing.store(false, Ordering::Release);
        self.0.inner.background.notify_one();
    }
}
