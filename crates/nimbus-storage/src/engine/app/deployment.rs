//! Deployments: the rows that name them, the manifests that hold them, and reading them.
//!
//! The rows are short, so that what every call of a function reads is one small row. What is long
//! lies in a manifest, which is content-addressed like modules and therefore kept in memory.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

use super::module::{self, ModuleSource, parse_hash, tagged};
use super::{AppControl, rows_under};
use crate::engine::tenant::Tenant;
use crate::engine::txn::Transaction;
use crate::engine::view::View;
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

/// Deployments that are kept, the current one included.
pub const KEPT_DEPLOYMENTS: usize = 10;

/// Meta row of the current deployment.
pub(super) const CURRENT_KEY: &[u8] = b"deployment";
/// Prefix of the meta rows of the newest deployments.
pub(super) const HISTORY_PREFIX: &[u8] = b"deployments/";
/// First byte of the code keys of manifests.
const MANIFEST_TAG: u8 = b'd';
/// Version of the rows and of manifests.
const VERSION: u32 = 1;

/// Random name of a deployment: 32 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeploymentId(pub(super) [u8; 16]);

impl DeploymentId {
    pub(super) fn random() -> StoreResult<DeploymentId> {
        let mut id = [0; 16];
        crate::engine::fill_random(&mut id)?;
        Ok(DeploymentId(id))
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeploymentId({self})")
    }
}

impl std::str::FromStr for DeploymentId {
    type Err = StoreError;

    fn from_str(text: &str) -> StoreResult<DeploymentId> {
        let id = HEXLOWER.decode(text.as_bytes()).ok();
        id.and_then(|id| id.try_into().ok())
            .map(DeploymentId)
            .ok_or_else(|| {
                StoreError::invalid("a deployment id is 32 lower-case hexadecimal digits")
            })
    }
}

impl Serialize for DeploymentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeploymentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A module of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRef {
    /// SHA-256 of source and source map, 64 hexadecimal digits; see [`Tenant::module`].
    pub hash: String,
    /// Where it runs: `isolate` or `node`.
    pub environment: String,
}

/// What a tenant's functions are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Its name.
    pub id: DeploymentId,
    /// Counts the deployments of the tenant.
    pub generation: u64,
    /// When it was committed: ms since 1970-01-01.
    pub created_ms: u64,
    /// What its author said about it.
    pub message: Option<String>,
    /// Modules by path.
    pub modules: BTreeMap<String, ModuleRef>,
    /// JSON of the analysis; not looked at here.
    pub analysis: Arc<str>,
    /// JSON of the exported schema, if there is one (convex.md 4.5).
    pub schema: Option<Arc<str>>,
    /// JSON with seed and time of imports; not looked at here.
    pub udf_config: Arc<str>,
}

/// A row of `deployment` and `deployments/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeploymentRow {
    version: u32,
    pub(super) id: DeploymentId,
    pub(super) generation: u64,
    created_ms: u64,
    message: Option<String>,
    manifest: String,
}

/// What a deployment holds, apart from its name and time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    version: u32,
    pub(super) modules: BTreeMap<String, ModuleRef>,
    analysis: String,
    pub(super) schema: Option<String>,
    udf_config: String,
}

impl DeploymentRow {
    pub(super) fn new(
        id: DeploymentId,
        generation: u64,
        message: Option<String>,
        manifest: &[u8; 32],
    ) -> DeploymentRow {
        DeploymentRow {
            version: VERSION,
            id,
            generation,
            created_ms: super::now_ms(),
            message,
            manifest: HEXLOWER.encode(manifest),
        }
    }

    pub(super) fn key(&self) -> Vec<u8> {
        [HISTORY_PREFIX, &self.generation.to_be_bytes()].concat()
    }

    pub(super) fn encode(&self) -> StoreResult<Bytes> {
        let text = serde_json::to_vec(self);
        text.map(Bytes::from)
            .map_err(|e| StoreError::corrupt(format!("deployment row does not encode: {e}")))
    }

    pub(super) fn decode(bytes: &[u8]) -> StoreResult<DeploymentRow> {
        let damaged = |e: String| StoreError::corrupt(format!("deployment row: {e}"));
        let row: DeploymentRow =
            serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        known(row.version).map_err(damaged)?;
        Ok(row)
    }

    /// Hash of the manifest.
    pub(super) fn manifest(&self) -> StoreResult<[u8; 32]> {
        parse_hash(&self.manifest)
            .ok_or_else(|| StoreError::corrupt("a deployment names no manifest"))
    }

    pub(super) fn with(self, manifest: Manifest) -> Deployment {
        Deployment {
            id: self.id,
            generation: self.generation,
            created_ms: self.created_ms,
            message: self.message,
            modules: manifest.modules,
            analysis: manifest.analysis.into(),
            schema: manifest.schema.map(Arc::from),
            udf_config: manifest.udf_config.into(),
        }
    }
}

fn known(version: u32) -> Result<(), String> {
    if version == VERSION {
        return Ok(());
    }
    Err(format!(
        "version {version} is not known, expected {VERSION}"
    ))
}

impl Manifest {
    pub(super) fn new(
        modules: BTreeMap<String, ModuleRef>,
        analysis: &str,
        schema: Option<&str>,
        udf_config: &str,
    ) -> Manifest {
        Manifest {
            version: VERSION,
            modules,
            analysis: analysis.to_owned(),
            schema: schema.map(str::to_owned),
            udf_config: udf_config.to_owned(),
        }
    }

    /// The stored text and its hash.
    pub(super) fn encode(&self) -> StoreResult<(Bytes, [u8; 32])> {
        let text = serde_json::to_vec(self)
            .map_err(|e| StoreError::corrupt(format!("manifest does not encode: {e}")))?;
        let hash = Sha256::digest(&text).into();
        Ok((Bytes::from(text), hash))
    }

    fn decode(bytes: &[u8], hash: &[u8; 32]) -> StoreResult<Manifest> {
        let damaged = |e: String| {
            let hash = HEXLOWER.encode(hash);
            StoreError::corrupt(format!("the stored manifest {hash}: {e}"))
        };
        if <[u8; 32]>::from(Sha256::digest(bytes)) != *hash {
            return Err(damaged("its hash differs".into()));
        }
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        known(manifest.version).map_err(damaged)?;
        Ok(manifest)
    }

    pub(super) fn key(hash: &[u8; 32]) -> Vec<u8> {
        tagged(MANIFEST_TAG, hash)
    }

    pub(super) async fn load(view: &mut View, hash: &[u8; 32]) -> StoreResult<Manifest> {
        let stored = view.get(Keyspace::Code, &Manifest::key(hash)).await?;
        let stored = stored.ok_or_else(|| missing(hash))?;
        Manifest::decode(&stored, hash)
    }

    /// Adds the code keys of the manifest, which has this hash, and of its modules.
    pub(super) fn add_keys(&self, hash: &[u8; 32], keys: &mut HashSet<Vec<u8>>) -> StoreResult<()> {
        keys.insert(Manifest::key(hash));
        for module in self.modules.values() {
            let hash = parse_hash(&module.hash)
                .ok_or_else(|| StoreError::corrupt("a manifest names a module without a hash"))?;
            keys.insert(module::key(&hash));
        }
        Ok(())
    }
}

impl AppControl {
    fn cached(&self, id: DeploymentId) -> Option<Arc<Deployment>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|d| d.id == id).cloned()
    }

    pub(super) fn remember(&self, deployment: &Arc<Deployment>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Who reads the past comes upon an old one, which nobody else asks for.
        if current
            .as_ref()
            .is_none_or(|c| c.generation <= deployment.generation)
        {
            *current = Some(deployment.clone());
        }
    }
}

/// The rows of the deployments that are kept, oldest first.
pub(super) async fn history(view: &mut View) -> StoreResult<Vec<DeploymentRow>> {
    let rows = rows_under(view, HISTORY_PREFIX).await?;
    rows.iter()
        .map(|(_, value)| DeploymentRow::decode(value))
        .collect()
}

/// Whole deployments of rows, in their order.
pub(super) async fn whole(
    view: &mut View,
    rows: Vec<DeploymentRow>,
) -> StoreResult<Vec<Arc<Deployment>>> {
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let manifest = Manifest::load(view, &row.manifest()?).await?;
        found.push(Arc::new(row.with(manifest)));
    }
    Ok(found)
}

/// The deployment that is current in a view.
async fn current(app: &AppControl, view: &mut View) -> StoreResult<Option<Arc<Deployment>>> {
    let Some(row) = view.get(Keyspace::Meta, CURRENT_KEY).await? else {
        return Ok(None);
    };
    let row = DeploymentRow::decode(&row)?;
    if let Some(known) = app.cached(row.id) {
        return Ok(Some(known));
    }
    let hash = row.manifest()?;
    let key = Manifest::key(&hash);
    // It never changes while anything names it: it needs no part in what a transaction read.
    let stored = view.get_ahead(Keyspace::Code, &[key.as_slice()]).await?;
    let manifest = match stored.into_iter().next().flatten() {
        Some(stored) => Manifest::decode(&stored, &hash)?,
        None => return Err(view.code_gone().unwrap_or_else(|| missing(&hash))),
    };
    let deployment = Arc::new(row.with(manifest));
    app.remember(&deployment);
    Ok(Some(deployment))
}

fn missing(manifest: &[u8; 32]) -> StoreError {
    let hash = HEXLOWER.encode(manifest);
    StoreError::corrupt(format!("the manifest {hash} is missing"))
}

impl Tenant {
    /// The current deployment, as of the newest durable commit.
    ///
    /// # Errors
    /// `Corrupt` if its manifest is missing or damaged; the provider's failure.
    pub async fn deployment(&self) -> StoreResult<Option<Arc<Deployment>>> {
        let mut view = self.inner.durable_view(false).await?;
        current(&self.inner.app, &mut view).await
    }

    /// The newest deployments, newest first: at most `limit`, and at most [`KEPT_DEPLOYMENTS`].
    ///
    /// # Errors
    /// As [`Tenant::deployment`].
    pub async fn deployments(&self, limit: usize) -> StoreResult<Vec<Arc<Deployment>>> {
        let mut view = self.inner.durable_view(false).await?;
        let mut rows = history(&mut view).await?;
        rows.reverse();
        rows.truncate(limit);
        whole(&mut view, rows).await
    }

    /// A module by its hash (64 hexadecimal digits), compared with it.
    ///
    /// # Errors
    /// `InvalidInput` for a text that is no hash; `Corrupt` if the module is damaged or is not there.
    pub async fn module(&self, hash: &str) -> StoreResult<ModuleSource> {
        let hash = parse_hash(hash)
            .ok_or_else(|| StoreError::invalid("a module's hash is 64 hexadecimal digits"))?;
        let mut view = self.inner.durable_view(false).await?;
        let stored = view.get(Keyspace::Code, &module::key(&hash)).await?;
        let stored = stored.ok_or_else(|| {
            let hash = HEXLOWER.encode(&hash);
            StoreError::corrupt(format!("the module {hash} is missing"))
        })?;
        ModuleSource::decode(&stored, &hash)
    }
}

impl Transaction {
    /// The current deployment. That it is current joins the read set, with one key.
    ///
    /// # Errors
    /// As [`Tenant::deployment`]; `TimestampOutOfRetention` in a read of the past whose deployment is
    /// not kept any more.
    pub async fn deployment(&mut self) -> StoreResult<Option<Arc<Deployment>>> {
        current(&self.tenant.app, &mut self.view).await
    }
}
