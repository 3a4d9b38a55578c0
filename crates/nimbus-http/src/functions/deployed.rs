//! Deployed code as calls need it: modules for the runtime, and functions with their validators.
//!
//! Loaded once for each deployment and kept while it is used. It must not know who calls.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::HEXLOWER;
use nimbus_core::{TenantId, Validator};
use nimbus_runtime::{Analysis, Code, FunctionSpec, Module, UdfKind, Visibility};
use nimbus_storage::{Deployment, DeploymentId, Tenant};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::error::CallError;
use super::path::FunctionPath;

/// Tenants whose code is kept in memory; beyond it, the one that was called longest ago goes.
const MAX_KEPT: usize = 256;

/// Bytes of all code that is kept in memory, the newest call's own not counted.
const MAX_KEPT_BYTES: usize = 256 * 1024 * 1024;

/// What modules see while they are imported, as a deployment keeps it (`udf_config`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UdfConfig {
    /// 32 bytes in lower-case hexadecimal digits.
    pub import_seed: String,
    /// Milliseconds since 1970.
    pub import_time_ms: f64,
}

impl UdfConfig {
    /// The seed's bytes.
    ///
    /// # Errors
    /// [`CallError::Damaged`] if it has not 32 of them.
    pub(super) fn seed(&self) -> Result<[u8; 32], CallError> {
        let seed = HEXLOWER.decode(self.import_seed.as_bytes()).ok();
        let damaged = || CallError::Damaged("the seed of a deployment has not 32 bytes".to_owned());
        seed.and_then(|seed| seed.try_into().ok())
            .ok_or_else(damaged)
    }
}

/// A deployment, loaded.
pub(super) struct Deployed {
    pub code: Arc<Code>,
    /// Bytes of the modules.
    size: usize,
    /// By module path, then by name.
    functions: BTreeMap<String, BTreeMap<String, Function>>,
}

/// A function, as far as a call depends on it.
pub(super) struct Function {
    pub kind: UdfKind,
    pub is_public: bool,
    /// `None`: anything.
    pub args: Option<Validator>,
    /// `None`: anything.
    pub returns: Option<Validator>,
}

impl Deployed {
    /// The function of `path`.
    pub(super) fn find(&self, path: &FunctionPath) -> Option<&Function> {
        if path.is_system() || path.is_shared_code() {
            return None;
        }
        self.functions.get(path.module())?.get(path.name())
    }

    async fn load(
        id: &TenantId,
        tenant: &Tenant,
        deployment: &Deployment,
    ) -> Result<Deployed, CallError> {
        let damaged = |what: &str, error: &dyn std::fmt::Display| {
            CallError::Damaged(format!("{}: {what}: {error}", deployment.id))
        };
        let analysis: Analysis = serde_json::from_str(&deployment.analysis)
            .map_err(|error| damaged("analysis", &error))?;
        let config: UdfConfig = serde_json::from_str(&deployment.udf_config)
            .map_err(|error| damaged("configuration", &error))?;
        let import_seed = config.seed()?;
        let mut modules = BTreeMap::new();
        for (path, module) in &deployment.modules {
            let stored = tenant.module(&module.hash).await?;
            let module = Module {
                source: stored.source,
                source_map: stored.source_map,
            };
            modules.insert(path.clone(), module);
        }
        let mut functions: BTreeMap<String, BTreeMap<String, Function>> = BTreeMap::new();
        for (path, module) in analysis.modules {
            let of_module = functions.entry(path).or_default();
            for spec in module.functions {
                let name = spec.name.clone();
                let function = Function::of(spec)
                    .map_err(|error| damaged(&format!("validators of {name}"), &error))?;
                of_module.insert(name, function);
            }
        }
        let bytes = |module: &Module| {
            module.source.len() + module.source_map.as_ref().map_or(0, |map| map.len())
        };
        Ok(Deployed {
            size: modules.values().map(bytes).sum(),
            code: Arc::new(Code {
                id: format!("{id}/{}", deployment.id).into(),
                modules,
                import_seed,
                import_time_ms: config.import_time_ms,
            }),
            functions,
        })
    }
}

impl Function {
    fn of(spec: FunctionSpec) -> Result<Function, nimbus_core::ValidatorError> {
        // The package writes `null` where nothing is declared.
        let read =
            |text: Option<String>| -> Result<Option<Validator>, nimbus_core::ValidatorError> {
                let text = text.filter(|text| text.trim() != "null");
                let validator = text.as_deref().map(Validator::from_json_text).transpose()?;
                Ok(validator.filter(|validator| !validator.is_any()))
            };
        Ok(Function {
            kind: spec.kind,
            is_public: spec.visibility != Some(Visibility::Internal),
            args: read(spec.args)?,
            returns: read(spec.returns)?,
        })
    }
}

/// The code of the tenants that were called lately.
#[derive(Default)]
pub(super) struct Deployments {
    kept: Mutex<HashMap<TenantId, Kept>>,
    clock: AtomicU64,
}

#[derive(Clone)]
struct Kept {
    id: DeploymentId,
    generation: u64,
    created_ms: u64,
    cell: Arc<OnceCell<Arc<Deployed>>>,
    used: u64,
}

impl Kept {
    /// Generations of one tenant go up whatever the clock does. Those of two tenants of one name do not: the later
    /// one may begin again.
    fn is_newer_than(&self, deployment: &Deployment) -> bool {
        self.generation > deployment.generation && self.created_ms >= deployment.created_ms
    }
}

impl Deployments {
    /// The deployment, loaded; several who ask at once wait for one load.
    ///
    /// # Errors
    /// Errors of the store; [`CallError::Damaged`].
    pub(super) async fn load(
        &self,
        id: &TenantId,
        tenant: &Tenant,
        deployment: Option<&Deployment>,
    ) -> Result<Option<Arc<Deployed>>, CallError> {
        let Some(deployment) = deployment else {
            return Ok(None);
        };
        let cell = self.cell(id, deployment);
        let known = cell.initialized();
        let loading = cell
            .get_or_try_init(async || Deployed::load(id, tenant, deployment).await.map(Arc::new));
        let deployed = Arc::clone(loading.await?);
        if !known {
            self.trim(id);
        }
        Ok(Some(deployed))
    }

    /// Drops code that was called longest ago until the rest fits, but not that of `id`.
    fn trim(&self, id: &TenantId) {
        let mut all = self.lock();
        let size = |kept: &Kept| kept.cell.get().map_or(0, |deployed| deployed.size);
        let mut total: usize = all.values().map(size).sum();
        while total > MAX_KEPT_BYTES {
            let others = all.iter().filter(|(other, _)| *other != id);
            let oldest = others.min_by_key(|(_, kept)| kept.used);
            let Some(oldest) = oldest.map(|(other, _)| other.clone()) else {
                return;
            };
            total -= all.remove(&oldest).as_ref().map_or(0, size);
        }
    }

    fn cell(&self, id: &TenantId, deployment: &Deployment) -> Arc<OnceCell<Arc<Deployed>>> {
        let used = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut all = self.lock();
        if let Some(kept) = all.get_mut(id) {
            kept.used = used;
            if kept.id == deployment.id {
                return Arc::clone(&kept.cell);
            }
            // A call that began before the newest deployment, or one of a tenant of this name that
            // was deleted, does not take the place of what is current.
            if kept.is_newer_than(deployment) {
                return Arc::default();
            }
        } else if all.len() >= MAX_KEPT {
            let oldest = all.iter().min_by_key(|(_, kept)| kept.used);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                all.remove(&oldest);
            }
        }
        let kept = Kept {
            id: deployment.id,
            generation: deployment.generation,
            created_ms: deployment.created_ms,
            cell: Arc::default(),
            used,
        };
        let cell = Arc::clone(&kept.cell);
        all.insert(id.clone(), kept);
        cell
    }

    /// Forgets a tenant that is deleted.
    pub(super) fn forget(&self, id: &TenantId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn deployment(generation: u64, created_ms: u64) -> Deployment {
        let id = format!("{generation:016x}{created_ms:016x}");
        Deployment {
            id: id.parse().unwrap(),
            generation,
            created_ms,
            message: None,
            modules: BTreeMap::new(),
            analysis: "{}".into(),
            schema: None,
            udf_config: "{}".into(),
        }
    }

    #[test]
    fn the_newest_generation_is_kept_whatever_the_clock_does() {
        let (all, demo) = (Deployments::default(), "demo".parse().unwrap());
        // Whether code that is loaded for one call is there for the next.
        let is_kept = |deployment: &Deployment| {
            let first = all.cell(&demo, deployment);
            Arc::ptr_eq(&first, &all.cell(&demo, deployment))
        };
        assert!(is_kept(&deployment(1, 5_000)));
        assert!(is_kept(&deployment(2, 6_000)));
        // A call that began on the older code does not put it back.
        assert!(!is_kept(&deployment(1, 5_000)));
        // The clock went back before this one.
        assert!(is_kept(&deployment(3, 1_000)));
        // A new tenant of the same name begins again.
        assert!(is_kept(&deployment(1, 9_000)));
    }
}
