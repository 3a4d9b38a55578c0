//! Calls from their beginning to their outcome: what is deployed, whether it may be called, the
//! transaction around it, and the cache before it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::BoxFuture;
use nimbus_auth::{FunctionAccess, RequestId};
use nimbus_core::{TenantId, Value};
use nimbus_runtime::{Admitted, Invocation, Nesting, Runtime, SyscallError, UdfKind};
use nimbus_storage::{Ran as Ending, StoreError, StoreResult, Tenant, Transaction};
use serde_json::json;

use super::actions::ActionHost;
use super::cache::{CacheMetrics, Joined, Key, QueryCache, QueryRun};
use super::call::{self, Caller, FunctionCall, Ran, UdfError, Wants};
use super::deployed::{Deployed, Deployments};
use super::error::{CallError, sort};
use super::identity::Identity;
use super::path::FunctionPath;
use super::transaction::{Facts, TransactionHost, system};
use crate::edge::exchange::AuditTrail;
use crate::policy::authority::Authority;
use crate::policy::{Policies, Refusal};
use crate::store::Store;

/// What functions are run with.
pub(crate) struct FunctionSettings {
    /// Bytes of results that the query cache keeps; 0 turns it off.
    pub cache_bytes: usize,
    /// Where clients reach this server: scheme and authority.
    pub origin: String,
}

struct Inner {
    runtime: Runtime,
    deployments: Deployments,
    cache: QueryCache,
    origin: String,
    trail: Arc<AuditTrail>,
    store: Store,
}

/// Runs functions. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FunctionService {
    inner: Arc<Inner>,
}

/// One call with all that it needs. Cheap to clone: a transaction that conflicts runs again.
#[derive(Clone)]
pub(super) struct Job {
    pub service: FunctionService,
    pub tenant: Tenant,
    pub id: TenantId,
    /// Whether internal functions may be called.
    pub internal: bool,
    pub identity: Option<Arc<Identity>>,
    pub call: Arc<FunctionCall>,
    /// The end that the page of a subscription had.
    pub journal: Option<String>,
    /// Of the action that calls.
    pub nesting: Option<Nesting>,
    pub request_id: Option<RequestId>,
    /// What governed the tenant when the call began.
    pub authority: Authority,
}

/// A run of a query or mutation, before its transaction ends.
struct InTransaction {
    ran: Ran,
    facts: Facts,
    observed_time: bool,
}

impl FunctionService {
    pub(crate) fn new(
        runtime: Runtime,
        settings: FunctionSettings,
        trail: Arc<AuditTrail>,
        store: Store,
    ) -> FunctionService {
        let inner = Arc::new(Inner {
            runtime,
            deployments: Deployments::default(),
            cache: QueryCache::new(settings.cache_bytes),
            origin: settings.origin,
            trail,
            store,
        });
        FunctionService { inner }
    }

    /// The runtime below.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// The environment variables that the server itself sets for a tenant.
    pub(super) fn system_environment(&self, id: &TenantId) -> [(String, String); 2] {
        let base = format!("{}/convex/{id}", self.inner.origin);
        let site = format!("{base}/http");
        [
            ("CONVEX_CLOUD_URL".to_owned(), base),
            ("CONVEX_SITE_URL".to_owned(), site),
        ]
    }

    /// Counters of the query cache.
    pub(crate) fn cache_metrics(&self) -> CacheMetrics {
        self.inner.cache.metrics()
    }

    pub(super) fn trail(&self) -> &AuditTrail {
        &self.inner.trail
    }

    pub(super) fn policies(&self) -> &Policies {
        self.inner.store.policies()
    }

    /// What governs a tenant now.
    pub(super) async fn authority(
        &self,
        id: &TenantId,
        tenant: &Tenant,
    ) -> Result<Authority, CallError> {
        Ok(self.inner.store.authority(id, tenant).await?)
    }

    /// Kills what runs for a tenant, refuses more, and forgets what was kept of it: the first step
    /// of its deletion.
    pub(crate) fn stop_tenant(&self, tenant: &TenantId) {
        self.inner.runtime.stop_tenant(tenant);
        self.inner.cache.forget(tenant);
        self.inner.deployments.forget(tenant);
        self.inner.trail.forget_egress(tenant);
    }

    /// Lets a tenant run functions: one that was just made, or whose deletion failed.
    pub(crate) fn allow_tenant(&self, tenant: &TenantId) {
        self.inner.runtime.allow_tenant(tenant);
    }

    async fn job(
        &self,
        tenant: &Tenant,
        caller: &Caller,
        call: &FunctionCall,
    ) -> Result<Job, CallError> {
        let authority = self.authority(caller.context.tenant(), tenant).await?;
        Ok(Job {
            service: self.clone(),
            tenant: tenant.clone(),
            id: caller.context.tenant().clone(),
            internal: caller.context.access() == FunctionAccess::Internal,
            identity: caller.identity.clone(),
            call: Arc::new(call.clone()),
            journal: None,
            nesting: None,
            request_id: caller.context.request_id().cloned(),
            authority,
        })
    }

    /// Runs a query at the newest state, or at that of a timestamp (ns).
    ///
    /// # Errors
    /// [`CallError`]; what the function threw is not one.
    pub(crate) async fn query(
        &self,
        tenant: &Tenant,
        caller: &Caller,
        call: &FunctionCall,
        at: Option<u64>,
    ) -> Result<Ran, CallError> {
        let job = self.job(tenant, caller, call).await?;
        let run = match at {
            None => job.query().await?,
            Some(_) => Arc::new(job.run_query(at).await?),
        };
        Ok(run.ran.clone())
    }

    /// Runs a function that may change something, or whose kind is not known yet.
    ///
    /// # Errors
    /// [`CallError`]; what the function threw is not one.
    pub(crate) async fn run(
        &self,
        tenant: &Tenant,
        caller: &Caller,
        call: &FunctionCall,
        wants: Wants,
    ) -> Result<Ran, CallError> {
        let access = caller.context.access();
        let job = self.job(tenant, caller, call).await?;
        let kind = match wants {
            Wants::Mutation => UdfKind::Mutation,
            Wants::Action => UdfKind::Action,
            Wants::Named if access != FunctionAccess::Internal => {
                return Err(CallError::Denied("functions of every kind"));
            }
            Wants::Any | Wants::Named => match job.kind().await? {
                Ok(kind) => kind,
                Err(error) => return Ok(error.into()),
            },
        };
        if kind != UdfKind::Query && access == FunctionAccess::PublicQueries {
            return Err(CallError::Denied("mutations and actions"));
        }
        job.run(kind).await
    }
}

impl Job {
    /// The same call of another function, as `kind`, on behalf of this one.
    pub(super) fn nested(&self, call: FunctionCall, nesting: Option<Nesting>) -> Job {
        Job {
            internal: true,
            call: Arc::new(call),
            journal: None,
            nesting,
            ..self.clone()
        }
    }

    /// Runs the function as `kind`. Boxed, since an action may run actions.
    pub(super) fn run(&self, kind: UdfKind) -> BoxFuture<'_, Result<Ran, CallError>> {
        Box::pin(async move {
            match kind {
                UdfKind::Query => Ok(self.query().await?.ran.clone()),
                UdfKind::Mutation => self.mutation().await,
                UdfKind::Action => self.action().await,
                UdfKind::HttpAction => {
                    let path = &self.call.path;
                    let text =
                        format!("Function {path} is an HTTP action and is not called by its path.");
                    Ok(UdfError::new(text).into())
                }
            }
        })
    }

    /// Whether a function may run in this server.
    pub(super) fn admissible(&self, path: &FunctionPath) -> Result<(), CallError> {
        let Some(why) = self.authority.kept_out(path) else {
            return Ok(());
        };
        self.service.policies().count(Refusal::Function);
        let path = path.to_string();
        // Nested calls are internal whoever made the first one, and are told as little as the public.
        let told = self.internal && self.nesting.is_none();
        let why = match told {
            true => format!(": {why}"),
            false => String::new(),
        };
        Err(CallError::KeptOut { path, why })
    }

    /// The value of a variable that users set, if the function may read it: one that it may not is as good as
    /// missing.
    pub(super) fn shown(
        &self,
        authority: &Authority,
        path: &FunctionPath,
        name: &str,
        value: Option<String>,
    ) -> Option<String> {
        let value = value?;
        if authority.may_read(path, name) {
            return Some(value);
        }
        self.service.policies().count(Refusal::Secret);
        let request = self.request_id.as_ref();
        self.service.trail().secret_denied(&self.id, request, path);
        None
    }

    /// What kind of function is called.
    async fn kind(&self) -> Result<Result<UdfKind, UdfError>, CallError> {
        let deployed = self.deployed_now().await?;
        let found = call::find_any(deployed.as_deref(), &self.call.path, self.internal);
        Ok(found.map(|function| function.kind))
    }

    async fn deployed_now(&self) -> Result<Option<Arc<Deployed>>, CallError> {
        let deployment = self.tenant.deployment().await?;
        let deployments = &self.service.inner.deployments;
        deployments
            .load(&self.id, &self.tenant, deployment.as_deref())
            .await
    }

    /// A query at the newest state, from the cache where that is as good.
    async fn query(&self) -> Result<Arc<QueryRun>, CallError> {
        let cache = &self.service.inner.cache;
        if !cache.is_on() {
            return self.run_query(None).await.map(Arc::new);
        }
        // What is kept must be as new as what other servers acknowledged before this call.
        self.tenant.catch_up().await?;
        let key = Key::of(self);
        // A run that began before this call may miss what the caller knows of; one that began while
        // it waited does not.
        let mut waited = false;
        loop {
            if let Some(run) = cache.get(&key, self.identity.as_ref()) {
                return Ok(run);
            }
            // A function that waits for others to end could keep them from beginning.
            if self.nesting.is_some() {
                let run = Arc::new(self.run_query(None).await?);
                cache.put(&key, self.identity.as_ref(), &run);
                return Ok(run);
            }
            match cache.join(&key, self.identity.as_ref()) {
                Joined::First(flight) => {
                    let run = Arc::new(self.run_query(None).await?);
                    cache.put(&key, self.identity.as_ref(), &run);
                    flight.land(&run);
                    return Ok(run);
                }
                Joined::Other(flight) => {
                    let landed = flight.landed().await;
                    if let Some(run) = landed.filter(|run| waited || run.is_current()) {
                        cache.count_shared();
                        return Ok(run);
                    }
                    waited = true;
                }
            }
        }
    }

    /// Runs a query once.
    async fn run_query(&self, at: Option<u64>) -> Result<QueryRun, CallError> {
        let started = Instant::now();
        let admitted = match self.admit().await? {
            Ok(admitted) => admitted,
            Err(ran) => return Ok(QueryRun::refused(ran)),
        };
        let mut txn = self.tenant.begin_read(at).await?;
        let run = self
            .in_transaction(&mut txn, UdfKind::Query, admitted)
            .await?;
        let cacheable = run.ran.result.is_ok() && at.is_none();
        let beyond = run.facts.beyond_reads.into_inner();
        let watch = (cacheable && !beyond).then(|| self.tenant.watch(txn.take_reads()));
        let journal = run.facts.journal.into_inner();
        Ok(QueryRun {
            ran: run.ran,
            journal: journal.unwrap_or_else(PoisonError::into_inner),
            watch,
            observed: run.observed_time.then_some(started),
            identity_read: run.facts.identity.into_inner(),
        })
    }

    /// Runs a mutation until its transaction commits. One that throws writes nothing; the console
    /// lines of runs that conflicted are dropped (convex.md 6.1).
    async fn mutation(&self) -> Result<Ran, CallError> {
        let admitted = match self.admit().await? {
            Ok(admitted) => admitted,
            Err(ran) => return Ok(ran),
        };
        let (job, admitted) = (self.clone(), Arc::new(Mutex::new(Some(admitted))));
        let running = self.tenant.transact_function(move |txn, _| {
            let admitted = admitted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            mutate(job.clone(), txn, admitted)
        });
        let (outcome, _) = running.await?;
        outcome
    }

    /// Waits for the turn of this call: before its transaction begins, since those that wait would hold every reader
    /// of the tenant.
    async fn admit(&self) -> Result<Result<Admitted, Ran>, CallError> {
        match self
            .service
            .inner
            .runtime
            .admit(&self.id, self.nesting)
            .await
        {
            Ok(admitted) => Ok(Ok(admitted)),
            Err(error) => sort(error).map(Err),
        }
    }

    /// Runs a query or mutation within `txn`, up to the check of its result.
    async fn in_transaction(
        &self,
        txn: &mut Transaction,
        kind: UdfKind,
        admitted: Admitted,
    ) -> Result<InTransaction, CallError> {
        let early = |error: UdfError| InTransaction {
            ran: error.into(),
            facts: Facts::default(),
            observed_time: false,
        };
        let deployment = txn.deployment().await?;
        let deployments = &self.service.inner.deployments;
        let deployed = deployments
            .load(&self.id, &self.tenant, deployment.as_deref())
            .await?;
        let path = &self.call.path;
        let function = match call::find(deployed.as_deref(), path, kind, self.internal) {
            Ok(function) => function,
            Err(error) => return Ok(early(error)),
        };
        self.admissible(path)?;
        if let Err(error) = call::check_args(function, &self.call.args, &txn.table_names()) {
            return Ok(early(error));
        }
        let Some(deployed) = deployed.as_ref() else {
            return Ok(early(UdfError::new("nothing is deployed")));
        };
        let host = TransactionHost::new(self, txn, Arc::clone(deployed), kind);
        let invocation = self.invocation(deployed, kind);
        let runtime = &self.service.inner.runtime;
        let outcome = runtime.run_admitted(admitted, invocation, &host).await;
        let (txn, facts) = host.into_parts();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                let ran = sort(error)?;
                return Ok(InTransaction {
                    ran,
                    facts,
                    observed_time: false,
                });
            }
        };
        let tables = txn.table_names();
        let result = outcome
            .result
            .map_err(UdfError::from)
            .and_then(|text| call::read_result(path, function.returns.as_ref(), &text, &tables));
        Ok(InTransaction {
            ran: Ran {
                result,
                log_lines: outcome.log_lines,
            },
            facts,
            observed_time: outcome.observed_time,
        })
    }

    /// Runs an action. Nothing of it is undone when it fails.
    async fn action(&self) -> Result<Ran, CallError> {
        let deployed = self.deployed_now().await?;
        let (path, kind) = (&self.call.path, UdfKind::Action);
        let function = match call::find(deployed.as_deref(), path, kind, self.internal) {
            Ok(function) => function,
            Err(error) => return Ok(error.into()),
        };
        self.admissible(path)?;
        let Some(deployed) = deployed.as_ref() else {
            return Ok(UdfError::new("nothing is deployed").into());
        };
        if function.args.is_none() {
            if let Err(error) = call::check_limits(&self.call.args) {
                return Ok(error.into());
            }
        } else {
            let mut txn = self.tenant.begin_read(None).await?;
            let checked = call::check_args(function, &self.call.args, &txn.table_names());
            if let Err(error) = checked {
                return Ok(error.into());
            }
        }
        let host = ActionHost::new(self);
        let invocation = self.invocation(deployed, kind);
        let outcome = match self.service.inner.runtime.run(invocation, &host).await {
            Ok(outcome) => outcome,
            Err(error) => return sort(error),
        };
        let result = match (outcome.result, &function.returns) {
            (Err(failure), _) => Err(failure.into()),
            // What the action did is done: nothing that could fail is asked of the store for no reason.
            (Ok(text), None) => call::read_any_result(path, &text),
            (Ok(text), returns) => {
                let mut txn = self.tenant.begin_read(None).await?;
                call::read_result(path, returns.as_ref(), &text, &txn.table_names())
            }
        };
        Ok(Ran {
            result,
            log_lines: outcome.log_lines,
        })
    }

    fn invocation(&self, deployed: &Deployed, kind: UdfKind) -> Invocation {
        Invocation {
            tenant: self.id.clone(),
            code: Arc::clone(&deployed.code),
            kind,
            module: self.call.path.module().to_owned(),
            export: self.call.path.name().to_owned(),
            args: self.call.args_text(),
            nesting: self.nesting,
            bounds: self.authority.bounds(&self.call.path),
        }
    }

    /// The user as `getUserIdentity` gives it.
    pub(super) fn identity_json(&self) -> String {
        let identity = self.identity.as_ref();
        identity.map_or_else(|| "null".to_owned(), |identity| identity.json().to_owned())
    }

    /// An environment variable that the server itself sets.
    pub(super) fn system_env(&self, name: &str) -> Option<String> {
        let all = self.service.system_environment(&self.id);
        let found = all.into_iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value)
    }

    pub(super) fn function_metadata(&self, path: Option<&FunctionPath>) -> String {
        let name = path.unwrap_or(&self.call.path).to_string();
        json!({"name": name, "componentPath": ""}).to_string()
    }

    pub(super) fn request_metadata(&self) -> String {
        let request = self.request_id.as_ref().map(RequestId::as_str);
        json!({
            "ip": null,
            "userAgent": null,
            "requestId": request,
            "scheduledFunctionId": null,
            "authToken": null,
        })
        .to_string()
    }

    /// Syscalls that every kind of function has; anything else is unknown.
    pub(super) fn common(&self, op: &str, args: &str) -> Result<String, SyscallError> {
        match op {
            "1.0/createFunctionHandle" => {
                let reference: super::reference::Reference =
                    super::syscalls::read("createFunctionHandle", args)?;
                let path = reference.path().map_err(SyscallError::user)?;
                Ok(Value::String(super::reference::handle(&path)).to_json())
            }
            "1.0/getDeploymentMetadata" => {
                Ok(json!({"name": self.id, "region": null, "class": "s16"}).to_string())
            }
            other => Err(unknown(other)),
        }
    }
}

/// The error of a syscall that is not there. Those that are sync in the package say so, since it
/// looks for the text of the others (convex.md 5.4).
fn unknown(op: &str) -> SyscallError {
    const SYNC: [&str; 5] = [
        "1.0/queryStream",
        "1.0/queryCleanup",
        "1.0/db/normalizeId",
        "1.0/componentArgument",
        "1.0/getSnapshotTs",
    ];
    let shown: String = op.chars().take(80).collect();
    SyscallError::user(match SYNC.contains(&op) {
        true => format!("Unknown operation {shown}"),
        false => format!("Unknown async operation {shown}"),
    })
}

/// The body of a mutation's transaction: what the runtime ends is no failure of the store, so it
/// is carried past it.
fn mutate(
    job: Job,
    txn: &mut Transaction,
    admitted: Option<Admitted>,
) -> BoxFuture<'_, StoreResult<Ending<Result<Ran, CallError>>>> {
    Box::pin(async move {
        let admitted = match admitted {
            Some(admitted) => admitted,
            // It conflicted, and goes on before new work.
            None => match job.service.inner.runtime.admit_again(&job.id).await {
                Ok(admitted) => admitted,
                Err(error) => return Ok(Ending::Discard(sort(error))),
            },
        };
        match job.in_transaction(txn, UdfKind::Mutation, admitted).await {
            Ok(run) if run.ran.result.is_ok() => Ok(Ending::Commit(Ok(run.ran))),
            Ok(run) => Ok(Ending::Discard(Ok(run.ran))),
            Err(CallError::Store(error)) => Err(error),
            Err(other) => Ok(Ending::Discard(Err(other))),
        }
    })
}

/// The error of a nested call as the function that called gets it.
pub(super) fn nested_failure(error: CallError) -> SyscallError {
    match error {
        // Nothing that the function could do something about, and no fault of its own.
        CallError::Store(error @ (StoreError::Conflict { .. } | StoreError::QueueFull)) => {
            SyscallError::user(error.to_string())
        }
        other => system(other),
    }
}
