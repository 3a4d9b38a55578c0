//! A deployment from what was sent to what runs: analysed in a worker that is thrown away, checked, and handed to
//! the store, which makes all of it visible in one commit.
//!
//! Calls that run meanwhile end on the code that they began with: nothing here touches them. This room must not
//! know who deploys, nor in which form the outcome is answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use nimbus_core::TenantId;
use nimbus_runtime::{Analysis, AnalyzeError, Code, Module, RunError};
use nimbus_storage::{
    DeployError, DeployPlan, DeployReport, Deployment, DeploymentId, IndexChange, NewModule, Tenant,
};

use super::checks;
use super::deployed::UdfConfig;
use super::diff::{self, DeploymentDiff, Side};
use super::error::CallError;
use super::push::{Push, PushError};
use super::service::FunctionService;

/// Where the schema is while a bundle is analysed; it is no module of the deployment.
const SCHEMA: &str = "schema.js";

/// Why nothing was deployed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeployFailure {
    /// What was sent cannot be deployed.
    #[error(transparent)]
    Push(#[from] PushError),
    /// Another deployment, or a change of the environment, came between; the same one may succeed.
    #[error("{message}")]
    Raced { code: &'static str, message: String },
    /// There is no such deployment to go back to.
    #[error("{0}")]
    Unknown(String),
    /// The runtime or the store failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// What was deployed, or would have been.
pub(crate) struct Deployed {
    /// The new deployment; of a dry run, as it would have been.
    pub deployment: Arc<Deployment>,
    /// Generation of the one before.
    pub previous_generation: Option<u64>,
    pub diff: DeploymentDiff,
}

impl FunctionService {
    /// Deploys, or finds out what a deployment would change.
    ///
    /// # Errors
    /// [`DeployFailure`]; nothing changed then, unless it is `OutcomeUnknown` of the store.
    pub(crate) async fn deploy(
        &self,
        id: &TenantId,
        tenant: &Tenant,
        push: Push,
    ) -> Result<Deployed, DeployFailure> {
        let environment = tenant.environment().await.map_err(CallError::Store)?;
        let config = UdfConfig::new()?;
        let authority = self.authority(id, tenant).await?;
        let mut shown = environment.clone();
        shown.retain(|name, _| authority.deploy_may_read(name));
        let analysis = self.analyse(id, &push, &config, shown).await?;
        checks::check(&analysis)?;
        let plan = DeployPlan {
            analysis: json(&analysis)?.into(),
            schema: analysis.schema.clone().map(Arc::from),
            udf_config: json(&config)?.into(),
            modules: push.modules.into_iter().map(stored).collect(),
            message: push.message,
            expected_environment: Some(environment),
            dry_run: push.dry_run,
        };
        outcome(tenant.deploy(plan).await?)
    }

    /// Makes an earlier deployment the present one again, as a new generation.
    ///
    /// # Errors
    /// As [`FunctionService::deploy`]; [`DeployFailure::Unknown`].
    pub(crate) async fn roll_back(
        &self,
        tenant: &Tenant,
        to: &DeploymentId,
    ) -> Result<Deployed, DeployFailure> {
        outcome(tenant.roll_back(to).await?)
    }

    async fn analyse(
        &self,
        id: &TenantId,
        push: &Push,
        config: &UdfConfig,
        environment: BTreeMap<String, String>,
    ) -> Result<Analysis, DeployFailure> {
        let mut modules: BTreeMap<String, Module> = push.modules.clone();
        if let Some(schema) = &push.schema {
            modules.insert(SCHEMA.to_owned(), schema.clone());
        }
        if modules.is_empty() {
            return Ok(Analysis::default());
        }
        let code = Arc::new(Code {
            // The seed is random, so this is no code that was ever run.
            id: format!("{id}/analysis/{}", config.import_seed).into(),
            modules,
            import_seed: config.seed()?,
            import_time_ms: config.import_time_ms,
        });
        let environment = environment.into_iter();
        let environment = environment.chain(self.system_environment(id)).collect();
        match self.runtime().analyze(id, &code, environment).await {
            Ok(analysis) => Ok(analysis),
            Err(error) => Err(refused(error)),
        }
    }
}

impl UdfConfig {
    /// A new seed, and the present time.
    fn new() -> Result<UdfConfig, DeployFailure> {
        let mut seed = [0_u8; 32];
        getrandom::fill(&mut seed).map_err(|error| {
            CallError::Damaged(format!("no random bytes for a deployment: {error}"))
        })?;
        Ok(UdfConfig {
            import_seed: HEXLOWER.encode(&seed),
            import_time_ms: jiff::Timestamp::now().as_millisecond() as f64,
        })
    }
}

/// What the analysis says against a bundle: its author's affair, but for faults of the server.
fn refused(error: AnalyzeError) -> DeployFailure {
    match error {
        AnalyzeError::Module {
            path,
            code,
            message,
        } => {
            let code = code.unwrap_or_else(|| "ModulesAnalysisFailed".to_owned());
            PushError::new(&code, format!("{path}: {message}")).into()
        }
        AnalyzeError::Run(
            error @ (RunError::UserTimeout { .. }
            | RunError::WallTimeout { .. }
            | RunError::OutOfMemory { .. }),
        ) => PushError::new(
            "ModulesAnalysisFailed",
            format!("the modules could not be imported: {error}"),
        )
        .into(),
        AnalyzeError::Run(error) => CallError::Run(error).into(),
        other => CallError::Damaged(other.to_string()).into(),
    }
}

impl From<DeployError> for DeployFailure {
    fn from(error: DeployError) -> DeployFailure {
        let message = error.to_string();
        let push = |code: &str| PushError::new(code, message.clone()).into();
        match error {
            DeployError::ConcurrentPush => DeployFailure::Raced {
                code: "ConcurrentPush",
                message,
            },
            DeployError::RaceDetected => DeployFailure::Raced {
                code: "RaceDetected",
                message,
            },
            DeployError::UnknownDeployment { .. } => DeployFailure::Unknown(message),
            DeployError::Store(error) => CallError::Store(error).into(),
            DeployError::Schema { .. } => push("SchemaDefinitionError"),
            DeployError::SchemaValidation { .. } => push("SchemaValidationFailed"),
            DeployError::NativeSchema { .. } => push("NativeSchema"),
            _ => push("InvalidModules"),
        }
    }
}

fn stored((path, module): (String, Module)) -> NewModule {
    NewModule {
        path,
        environment: "isolate".to_owned(),
        source: module.source,
        source_map: module.source_map,
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, DeployFailure> {
    let text = serde_json::to_string(value);
    text.map_err(|error| {
        CallError::Damaged(format!("a deployment does not encode: {error}")).into()
    })
}

fn outcome(report: DeployReport) -> Result<Deployed, DeployFailure> {
    let before = report.previous.as_deref();
    let old = before.map(side).transpose()?.unwrap_or_default();
    let mut diff = diff::between(&old, &side(&report.deployment)?);
    diff.indexes.added = index_names(&report.added_indexes);
    diff.indexes.removed = index_names(&report.removed_indexes);
    diff.schema_changed = report.schema_changed;
    Ok(Deployed {
        previous_generation: before.map(|deployment| deployment.generation),
        deployment: report.deployment,
        diff,
    })
}

fn side(deployment: &Deployment) -> Result<Side, DeployFailure> {
    let analysis = serde_json::from_str(&deployment.analysis)
        .map_err(|error| CallError::Damaged(format!("{}: analysis: {error}", deployment.id)))?;
    let modules = deployment.modules.iter();
    Ok(Side {
        analysis,
        modules: modules
            .map(|(path, module)| (path.clone(), module.hash.clone()))
            .collect(),
    })
}

fn index_names(changes: &[IndexChange]) -> Vec<String> {
    let name = |change: &IndexChange| format!("{}.{}", change.table, change.index);
    changes.iter().map(name).collect()
}
