//! A push from its plan to its commit (convex.md 4.5).
//!
//! Code is stored and tables are prepared out of sight (see `push` and `prepare`); then one commit
//! swaps the deployment, the schema and the indexes. What fails before leaves nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::future::BoxFuture;
use nimbus_core::{FieldPath, IndexName, TableName};

use super::deployment::{CURRENT_KEY, DeploymentRow, Manifest, history};
use super::module::{self, ModuleSource};
use super::prepare::{self, Beside, Done, next_index_number, prepare, refuse_native};
use super::push::{self, Pushing};
use super::schema::{AppSchema, AppTable, Compared};
use super::{
    DeployError, Deployment, DeploymentId, KEPT_DEPLOYMENTS, ModuleRef, environment, put_row,
};
use crate::engine::catalog::{IndexDef, IndexState, TableDef};
use crate::engine::schema_change::is_empty;
use crate::engine::tenant::Tenant;
use crate::engine::txn::Transaction;
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

/// Modules that a deployment may have (convex.md 4.5).
pub const MAX_MODULES: usize = 4_096;
/// Bytes of one module, its source map included: what one commit can hold.
pub const MAX_MODULE_BYTES: usize = 15 * 1024 * 1024;
/// Bytes of all modules of a deployment.
pub const MAX_DEPLOY_BYTES: usize = 200 * 1024 * 1024;
/// Bytes of what a deployment has beside modules: analysis, schema, configuration, paths.
const MAX_MANIFEST_BYTES: usize = 12 * 1024 * 1024;
/// Longest path of a module, and longest message, in bytes.
const MAX_TEXT: usize = 1_024;
/// Bytes of modules that one commit stores, about.
const STORE_BYTES: usize = 2 * 1024 * 1024;
/// Times that tables are prepared again because some appeared meanwhile.
const MAX_ROUNDS: u32 = 16;

/// A module to be deployed.
#[derive(Clone, Debug)]
pub struct NewModule {
    /// Path within the bundle, such as `dir/messages.js`; 1 to 1,024 bytes.
    pub path: String,
    /// Where it runs: `isolate` or `node`.
    pub environment: String,
    /// JavaScript.
    pub source: Arc<str>,
    /// Its source map.
    pub source_map: Option<Arc<str>>,
}

/// What is to be deployed.
#[derive(Clone, Debug, Default)]
pub struct DeployPlan {
    /// All modules; at most [`MAX_MODULES`] and [`MAX_DEPLOY_BYTES`].
    pub modules: Vec<NewModule>,
    /// JSON of the analysis; kept and not looked at.
    pub analysis: Arc<str>,
    /// JSON of the exported schema (convex.md 4.5); `None` removes every table's schema and indexes.
    pub schema: Option<Arc<str>>,
    /// JSON with seed and time of imports; kept and not looked at.
    pub udf_config: Arc<str>,
    /// What the author says about it; at most 1,024 bytes.
    pub message: Option<String>,
    /// The environment with which the modules were analysed: another one at the commit refuses the
    /// deployment. `None` does not look.
    pub expected_environment: Option<BTreeMap<String, String>>,
    /// Checks everything and changes nothing.
    pub dry_run: bool,
}

/// An index that a deployment adds or removes. One whose fields change is removed and added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexChange {
    /// The table.
    pub table: TableName,
    /// The index.
    pub index: IndexName,
    /// Its fields.
    pub fields: Vec<FieldPath>,
}

/// What a deployment changed, or what it would have changed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeployReport {
    /// The new deployment; of a dry run, as it would have been.
    pub deployment: Arc<Deployment>,
    /// The one that it takes the place of.
    pub previous: Option<Arc<Deployment>>,
    /// Indexes that are new.
    pub added_indexes: Vec<IndexChange>,
    /// Indexes that are gone.
    pub removed_indexes: Vec<IndexChange>,
    /// Whether indexes, or what documents must match, differ.
    pub schema_changed: bool,
}

/// A push that was checked as far as that needs no tenant.
struct Push {
    id: DeploymentId,
    manifest: Manifest,
    stored: Bytes,
    hash: [u8; 32],
    /// To be stored unless they are.
    modules: BTreeMap<[u8; 32], ModuleSource>,
    schema: Arc<AppSchema>,
    message: Option<String>,
    expected_environment: Option<BTreeMap<String, String>>,
}

/// The deployment that a push replaces. One whose code is damaged is none: a push is what mends it.
async fn replaced(tenant: &Tenant) -> StoreResult<Option<Arc<Deployment>>> {
    match tenant.deployment().await {
        Err(StoreError::Corrupt { .. }) => Ok(None),
        found => found,
    }
}

impl Tenant {
    /// Deploys functions and their schema.
    ///
    /// Existing documents are checked where the schema asks for more than before, writes made
    /// meanwhile too, and new indexes are filled, all out of sight; then one commit swaps everything.
    /// Tables that the schema does not name keep their documents and become unrestricted.
    ///
    /// # Errors
    /// [`DeployError`]; nothing changed then, and nothing is left, unless it is
    /// [`StoreError::OutcomeUnknown`].
    pub async fn deploy(&self, plan: DeployPlan) -> Result<DeployReport, DeployError> {
        let dry_run = plan.dry_run;
        let push = Push::of(plan)?;
        if dry_run {
            let previous = replaced(self).await?;
            let report = dry(self, &push).await?;
            return Ok(DeployReport { previous, ..report });
        }
        self.push(async { Ok(push) }).await
    }

    /// Makes the content of a kept deployment current again, as a new deployment: its schema is
    /// checked and its indexes are filled as for any other.
    ///
    /// # Errors
    /// As [`Tenant::deploy`]; [`DeployError::UnknownDeployment`].
    pub async fn roll_back(&self, id: &DeploymentId) -> Result<DeployReport, DeployError> {
        self.push(self.back_to(id)).await
    }

    /// The push of a kept deployment. With the schema lock held, its code cannot be dropped meanwhile.
    async fn back_to(&self, id: &DeploymentId) -> Result<Push, DeployError> {
        let mut view = self.inner.durable_view(false).await?.unbounded();
        let rows = history(&mut view).await?;
        let row = rows.into_iter().find(|row| row.id == *id);
        let row = row.ok_or(DeployError::UnknownDeployment { id: *id })?;
        let manifest = Manifest::load(&mut view, &row.manifest()?).await?;
        let mut code = HashSet::new();
        manifest.add_keys(&row.manifest()?, &mut code)?;
        for key in &code {
            if view.get(Keyspace::Code, key).await?.is_none() {
                let inside = format!(
                    "code of deployment {id} is missing: {}",
                    HEXLOWER.encode(key)
                );
                return Err(StoreError::corrupt(inside).into());
            }
        }
        drop(view);
        let schema = Arc::new(AppSchema::parse(manifest.schema.as_deref())?);
        let (stored, hash) = manifest.encode()?;
        let message = match &row.with(manifest.clone()).message {
            Some(message) => format!("roll back to {id}: {message}"),
            None => format!("roll back to {id}"),
        };
        Ok(Push {
            id: DeploymentId::random()?,
            manifest,
            stored,
            hash,
            modules: BTreeMap::new(),
            schema,
            message: Some(clip(&message)),
            expected_environment: None,
        })
    }

    /// Makes a push. What `push` looks at does not change while it runs.
    async fn push(
        &self,
        push: impl Future<Output = Result<Push, DeployError>>,
    ) -> Result<DeployReport, DeployError> {
        // Dropped after the lock, so that who comes to clean up finds it free.
        let _pushing = Pushing::begin(self)?;
        let _one_at_a_time = self.schema_turn().await?;
        push::clean(self).await?;
        let previous = replaced(self).await?;
        let pushed = run(self, Arc::new(push.await?)).await;
        if let Err(error) = push::clean(self).await {
            // The background task tries again.
            tracing::warn!(tenant = %self.id(), %error, inside = error.inside(), "cleaning up after a push");
        }
        pushed.map(|report| DeployReport { previous, ..report })
    }
}

/// At most [`MAX_TEXT`] bytes of a message.
fn clip(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

impl Push {
    fn of(plan: DeployPlan) -> Result<Push, DeployError> {
        if plan.message.as_ref().is_some_and(|m| m.len() > MAX_TEXT) {
            return Err(DeployError::invalid(format!(
                "the message of a deployment has at most {MAX_TEXT} bytes"
            )));
        }
        let schema = Arc::new(AppSchema::parse(plan.schema.as_deref())?);
        let (refs, modules) = hash_modules(plan.modules)?;
        let manifest = Manifest::new(
            refs,
            &plan.analysis,
            plan.schema.as_deref(),
            &plan.udf_config,
        );
        let (stored, hash) = manifest.encode()?;
        if stored.len() > MAX_MANIFEST_BYTES {
            return Err(DeployError::invalid(format!(
                "analysis and schema of the deployment have {} bytes, at most {MAX_MANIFEST_BYTES} are allowed",
                stored.len()
            )));
        }
        Ok(Push {
            id: DeploymentId::random()?,
            manifest,
            stored,
            hash,
            modules,
            schema,
            message: plan.message,
            expected_environment: plan.expected_environment,
        })
    }

    fn code(&self) -> StoreResult<HashSet<Vec<u8>>> {
        let mut keys = HashSet::new();
        self.manifest.add_keys(&self.hash, &mut keys)?;
        Ok(keys)
    }

    fn deployment(&self, generation: u64) -> (DeploymentRow, Arc<Deployment>) {
        let row = DeploymentRow::new(self.id, generation, self.message.clone(), &self.hash);
        let deployment = Arc::new(row.clone().with(self.manifest.clone()));
        (row, deployment)
    }
}

type Hashed = (
    BTreeMap<String, ModuleRef>,
    BTreeMap<[u8; 32], ModuleSource>,
);

fn hash_modules(modules: Vec<NewModule>) -> Result<Hashed, DeployError> {
    if modules.len() > MAX_MODULES {
        return Err(DeployError::invalid(format!(
            "{} modules are more than the limit of {MAX_MODULES}",
            modules.len()
        )));
    }
    let mut refs = BTreeMap::new();
    let mut sources: BTreeMap<[u8; 32], ModuleSource> = BTreeMap::new();
    let mut total = 0;
    for module in modules {
        let path = module.path;
        let shown: String = path.chars().take(80).collect();
        if path.is_empty() || path.len() > MAX_TEXT || module.environment.len() > 64 {
            return Err(DeployError::invalid(format!(
                "a module's path has 1 to {MAX_TEXT} bytes and its environment at most 64: `{shown}`"
            )));
        }
        let source = ModuleSource {
            source: module.source,
            source_map: module.source_map,
        };
        total += source.size();
        if source.size() > MAX_MODULE_BYTES || total > MAX_DEPLOY_BYTES {
            return Err(DeployError::invalid(format!(
                "module `{shown}` has {} bytes with its source map and the modules so far {total}; at most {MAX_MODULE_BYTES} and {MAX_DEPLOY_BYTES} are allowed",
                source.size()
            )));
        }
        let hash = source.hash();
        if sources.get(&hash).is_some_and(|known| *known != source) {
            return Err(clash(&shown));
        }
        let module = ModuleRef {
            hash: HEXLOWER.encode(&hash),
            environment: module.environment,
        };
        if refs.insert(path, module).is_some() {
            return Err(DeployError::invalid(format!(
                "module `{shown}` is there twice"
            )));
        }
        sources.insert(hash, source);
    }
    Ok((refs, sources))
}

/// The hash is over source and source map together, so two modules can share it that are divided
/// in different places.
fn clash(path: &str) -> DeployError {
    DeployError::invalid(format!(
        "module `{path}` has the hash of another one that is divided differently into source and source map"
    ))
}

/// Runs `body` as [`Tenant::transact`] does; an error of its own undoes what it wrote.
pub(super) async fn attempt<T, F>(tenant: &Tenant, body: F) -> Result<T, DeployError>
where
    T: Send + 'static,
    F: for<'t> Fn(&'t mut Transaction) -> BoxFuture<'t, Result<T, DeployError>>
        + Send
        + Sync
        + 'static,
{
    let body = Arc::new(body);
    let done = tenant.transact(move |tx| {
        let body = body.clone();
        Box::pin(async move {
            let before = tx.savepoint();
            match body(tx).await {
                Ok(value) => Ok(Ok(value)),
                Err(DeployError::Store(error)) => Err(error),
                Err(refused) => {
                    tx.roll_back(before);
                    Ok(Err(refused))
                }
            }
        })
    });
    done.await?
}

async fn run(tenant: &Tenant, push: Arc<Push>) -> Result<DeployReport, DeployError> {
    check_environment(
        push.expected_environment.as_ref(),
        &tenant.environment().await?,
    )?;
    push::begin(tenant, push.id, &push.code()?).await?;
    store_code(tenant, &push).await?;
    let compared = Arc::new(Compared::new(&push.schema, &tenant.catalog()));
    let mut done = Done::default();
    for _ in 0..MAX_ROUNDS {
        prepare(tenant, push.id, (&push.schema, &compared), &mut done).await?;
        let own = (push.clone(), compared.clone());
        let finished = attempt(tenant, move |tx| {
            let (push, compared) = own.clone();
            Box::pin(async move {
                let before = tx.savepoint();
                let finished = finish(tx, &push, &compared).await?;
                if finished.is_none() {
                    tx.roll_back(before);
                }
                Ok(finished)
            })
        });
        if let Some(report) = finished.await? {
            tenant.inner.app.remember(&report.deployment);
            tenant.inner.background.notify_one();
            return Ok(report);
        }
    }
    Err(StoreError::Conflict {
        attempts: MAX_ROUNDS,
        table: None,
    }
    .into())
}

fn check_environment(
    expected: Option<&BTreeMap<String, String>>,
    found: &BTreeMap<String, String>,
) -> Result<(), DeployError> {
    match expected {
        Some(expected) if expected != found => Err(DeployError::RaceDetected),
        _ => Ok(()),
    }
}

/// Stores the modules and the manifest in commits of bounded size.
async fn store_code(tenant: &Tenant, push: &Push) -> Result<(), DeployError> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    for (hash, module) in &push.modules {
        if is_stored(tenant, hash, module).await? {
            continue;
        }
        // A large one is alone in its commit, which it may fill.
        if bytes + module.size() > STORE_BYTES && !rows.is_empty() {
            store(tenant, std::mem::take(&mut rows)).await?;
            bytes = 0;
        }
        rows.push((module::key(hash), module.encode()));
        bytes += module.size();
    }
    if bytes + push.stored.len() > STORE_BYTES && !rows.is_empty() {
        store(tenant, std::mem::take(&mut rows)).await?;
    }
    rows.push((Manifest::key(&push.hash), push.stored.clone()));
    Ok(store(tenant, rows).await?)
}

/// Whether the module is stored whole. A damaged one is stored again.
async fn is_stored(
    tenant: &Tenant,
    hash: &[u8; 32],
    module: &ModuleSource,
) -> Result<bool, DeployError> {
    let mut view = tenant.inner.durable_view(false).await?;
    let Some(stored) = view.get(Keyspace::Code, &module::key(hash)).await? else {
        return Ok(false);
    };
    match ModuleSource::decode(&stored, hash) {
        Ok(known) if known == *module => Ok(true),
        Ok(_) => Err(clash(&HEXLOWER.encode(hash))),
        Err(_) => Ok(false),
    }
}

async fn store(tenant: &Tenant, rows: Vec<(Vec<u8>, Bytes)>) -> StoreResult<()> {
    let rows = Arc::new(rows);
    tenant
        .transact(move |tx| {
            let rows = rows.clone();
            Box::pin(async move {
                for (key, value) in rows.iter() {
                    put_row(tx, Keyspace::Code, key, Some(value.clone())).await?;
                }
                Ok(())
            })
        })
        .await
}

/// Indexes that a table gains and loses.
fn index_changes(def: Option<&TableDef>, table: Option<&AppTable>) -> Changes {
    let known: Vec<&IndexDef> = def.into_iter().flat_map(TableDef::declared).collect();
    let wanted: Vec<_> = table.into_iter().flat_map(|t| &t.indexes).collect();
    let added = wanted
        .iter()
        .filter(|index| !known.iter().any(|k| index.is(k)))
        .map(|index| (index.name.clone(), index.fields.clone()));
    let removed = known
        .iter()
        .filter(|k| !wanted.iter().any(|index| index.is(k)))
        .map(|k| (k.name.clone(), k.fields.clone()));
    Changes {
        added: added.collect(),
        removed: removed.collect(),
        deployed: def.and_then(|d| d.deployed.as_ref()) != table.map(|t| &t.deployed),
    }
}

struct Changes {
    added: Vec<(IndexName, Vec<FieldPath>)>,
    removed: Vec<(IndexName, Vec<FieldPath>)>,
    /// Whether the table is declared otherwise than before.
    deployed: bool,
}

/// What changes in all tables.
#[derive(Default)]
struct Summary {
    added: Vec<IndexChange>,
    removed: Vec<IndexChange>,
    deployed: bool,
}

impl Summary {
    fn add(&mut self, name: &TableName, changes: Changes) {
        let named = |(index, fields): (IndexName, Vec<FieldPath>)| IndexChange {
            table: name.clone(),
            index,
            fields,
        };
        self.added.extend(changes.added.into_iter().map(named));
        self.removed.extend(changes.removed.into_iter().map(named));
        self.deployed |= changes.deployed;
    }

    fn report(self, deployment: Arc<Deployment>) -> DeployReport {
        DeployReport {
            deployment,
            previous: None,
            schema_changed: self.deployed || !self.added.is_empty() || !self.removed.is_empty(),
            added_indexes: self.added,
            removed_indexes: self.removed,
        }
    }
}

/// The commit of a push. `None`: a table appeared that has to be prepared first.
async fn finish(
    tx: &mut Transaction,
    push: &Push,
    compared: &Compared,
) -> Result<Option<DeployReport>, DeployError> {
    push::check(tx, push.id).await?;
    check_environment(
        push.expected_environment.as_ref(),
        &environment::read(&mut tx.view).await?,
    )?;
    let deployed = tx.view.catalog.tables().filter(|t| t.deployed.is_some());
    let mut names: BTreeSet<TableName> = deployed.map(|t| t.name.clone()).collect();
    names.extend(push.schema.tables.keys().cloned());
    let mut summary = Summary::default();
    for name in names {
        let def = tx.table(&name).await;
        let declared = push.schema.tables.get(&name);
        summary.add(&name, index_changes(def.as_deref(), declared));
        match declared {
            Some(table) => {
                if !adopt(tx, push.id, (&name, table), compared).await? {
                    return Ok(None);
                }
            }
            None => release(tx, &name).await?,
        }
    }
    // It was seen under the schema lock, or stored by this push; who dropped it since is noticed.
    for key in push.code()? {
        tx.view.rely_on(Keyspace::Code, &key);
    }
    let deployment = swap(tx, push).await?;
    Ok(Some(summary.report(deployment)))
}

/// Makes a table what the schema declares. `false`: it has documents that were not prepared.
async fn adopt(
    tx: &mut Transaction,
    id: DeploymentId,
    (name, table): (&TableName, &AppTable),
    compared: &Compared,
) -> Result<bool, DeployError> {
    let def = tx.table_or_new(name).await?;
    refuse_native(&def)?;
    let own = |push: Option<&String>| push.is_some_and(|push| *push == id.to_string());
    let mut next = TableDef::clone(&def);
    next.deployed = Some(table.deployed.clone());
    let checked = next.push.take().is_some_and(|p| own(Some(&p.id)));
    let mut empty = None;
    if compared.tightens(table, &def) && !checked {
        empty = Some(is_empty(tx, &def).await?);
    }
    for index in &mut next.indexes {
        let wanted = table.indexes.iter().any(|w| w.is(index));
        index.state = match index.state {
            IndexState::Enabled if wanted => IndexState::Enabled,
            IndexState::Backfilling if wanted && own(index.push.as_ref()) => IndexState::Enabled,
            _ => IndexState::Deleting,
        };
        index.push = None;
    }
    for wanted in &table.indexes {
        if next.usable().any(|known| wanted.is(known)) {
            continue;
        }
        if empty.is_none() {
            empty = Some(is_empty(tx, &def).await?);
        }
        next.indexes.push(IndexDef {
            id: next_index_number(tx).await?,
            name: wanted.name.clone(),
            fields: wanted.fields.clone(),
            state: IndexState::Enabled,
            push: None,
        });
    }
    if empty == Some(false) {
        return Ok(false);
    }
    if next != *def {
        tx.put_table(&next).await?;
    }
    Ok(true)
}

/// A table that the schema does not name any more keeps its documents and nothing else.
async fn release(tx: &mut Transaction, name: &TableName) -> StoreResult<()> {
    let Some(def) = tx.table(name).await else {
        return Ok(());
    };
    let mut next = TableDef::clone(&def);
    next.deployed = None;
    next.push = None;
    for index in &mut next.indexes {
        index.state = IndexState::Deleting;
        index.push = None;
    }
    tx.put_table(&next).await
}

/// Makes the deployment the current one and forgets the oldest.
async fn swap(tx: &mut Transaction, push: &Push) -> StoreResult<Arc<Deployment>> {
    let mut rows = history(&mut tx.view).await?;
    let generation = rows.last().map_or(0, |row| row.generation) + 1;
    let (row, deployment) = push.deployment(generation);
    let mut superfluous = HashSet::new();
    let surplus = (rows.len() + 1).saturating_sub(KEPT_DEPLOYMENTS);
    for old in rows.drain(..surplus) {
        put_row(tx, Keyspace::Meta, &old.key(), None).await?;
        let hash = old.manifest()?;
        match Manifest::load(&mut tx.view, &hash).await {
            Ok(manifest) => manifest.add_keys(&hash, &mut superfluous)?,
            // What it used cannot be told, and is kept.
            Err(StoreError::Corrupt { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    let stored = row.encode()?;
    put_row(tx, Keyspace::Meta, &row.key(), Some(stored.clone())).await?;
    put_row(tx, Keyspace::Meta, CURRENT_KEY, Some(stored)).await?;
    push::end(tx, push.id, superfluous).await?;
    Ok(deployment)
}

/// Looks whether the push would succeed now.
async fn dry(tenant: &Tenant, push: &Push) -> Result<DeployReport, DeployError> {
    check_environment(
        push.expected_environment.as_ref(),
        &tenant.environment().await?,
    )?;
    let catalog = tenant.catalog();
    let mut summary = Summary::default();
    for (name, table) in &push.schema.tables {
        let def = catalog.table(name);
        summary.add(name, index_changes(def.map(|d| &**d), Some(table)));
        let Some(def) = def else { continue };
        refuse_native(def)?;
        if let (Some(validator), true) = (&table.deployed.document_type, table.tightens(def)) {
            prepare::check_documents(tenant, def, validator, Beside::Nothing).await?;
        }
    }
    for def in catalog.tables().filter(|t| t.deployed.is_some()) {
        if !push.schema.tables.contains_key(&def.name) {
            summary.add(&def.name, index_changes(Some(def), None));
        }
    }
    let generation = tenant.deployment().await?.map_or(0, |d| d.generation) + 1;
    Ok(summary.report(push.deployment(generation).1))
}
