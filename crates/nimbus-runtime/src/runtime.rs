//! Invocations from admission to outcome.
//!
//! The conversation with a worker is in [`drive`]; here is who may have one, and what its end means.

mod console;
mod drive;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nimbus_core::TenantId;
use tokio::sync::watch as signal;

use crate::admission::{ActiveSlot, Admission, Budgets, InFlight, NestedPlace};
use crate::analysis::Analysis;
use crate::call::{Code, Host, Invocation, Nesting, Outcome};
use crate::config::RuntimeConfig;
use crate::egress::EgressGrants;
use crate::error::{AnalyzeError, RunError};
use crate::metrics::{self, Counters, Limits, Metrics};
use crate::pool::{Key, Pool};
use crate::process::{Ended, Worker, WorkerError};
use crate::protocol::{Analyze, Import, Lane, Start, ToWorker};
use console::Console;
use drive::{Conversation, Stop};
use watch::Watch;

/// How often workers that wait too long are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// CPU time that importing a bundle may take (convex.md 5.9).
const ANALYZE_CPU: Duration = Duration::from_secs(4);

struct Inner {
    config: RuntimeConfig,
    admission: Admission,
    pool: Pool,
    counters: Counters,
    /// Given once a tenant is stopped.
    tenants: Mutex<HashMap<TenantId, signal::Sender<bool>>>,
    closing: signal::Sender<bool>,
}

/// The function runtime of a server. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

impl Runtime {
    /// Makes the runtime; within a tokio runtime. No process is started before it is needed.
    pub fn new(config: RuntimeConfig) -> Runtime {
        let inner = Arc::new(Inner {
            admission: Admission::new(Budgets::of(&config)),
            pool: Pool::new(config.clone()),
            config,
            counters: Counters::default(),
            tenants: Mutex::default(),
            closing: signal::Sender::new(false),
        });
        let pool = inner.pool.clone();
        let alive = Arc::downgrade(&inner);
        tokio::spawn(async move {
            while alive.strong_count() > 0 {
                tokio::time::sleep(SWEEP).await;
                pool.expire();
            }
        });
        Runtime { inner }
    }

    /// Starts one worker and ends it, to see whether this machine lets it: how long it took.
    ///
    /// # Errors
    /// [`RunError::WorkerLost`] with what is known.
    pub async fn try_worker(config: &RuntimeConfig) -> Result<TriedWorker, RunError> {
        let started = Instant::now();
        let pool = Pool::new(config.clone());
        let worker = pool.start(Lane::Transactions).await.map_err(lost)?;
        let took = started.elapsed();
        let confined = worker.confined;
        worker.kill().await;
        Ok(TriedWorker { took, confined })
    }

    /// Waits for the turn of a function of `tenant`, before anything is prepared that should not be held while
    /// waiting, such as a snapshot of the store.
    ///
    /// # Errors
    /// [`RunError::QueueFull`], [`RunError::NestedTooDeep`], [`RunError::TooManyNested`], [`RunError::TenantStopped`], [`RunError::ShuttingDown`].
    pub async fn admit(
        &self,
        tenant: &TenantId,
        nesting: Option<Nesting>,
    ) -> Result<Admitted, RunError> {
        let inner = &*self.inner;
        let stopped = self.signal(tenant)?;
        let limit = inner.config.max_nested_calls;
        let (slot, place) = match nesting {
            Some(nesting) if nesting.depth > limit => {
                return Err(RunError::NestedTooDeep { limit });
            }
            Some(_) => {
                metrics::add(&inner.counters.nested, 1);
                let (slot, place) = inner.admission.enter_nested(tenant, limit).await?;
                (slot, Place::Nested(place))
            }
            None => {
                let (slot, place) = inner.admission.enter(tenant).await?;
                (slot, Place::InFlight(place))
            }
        };
        Ok(Admitted {
            slot,
            place,
            stopped,
        })
    }

    /// Waits for the turn of a function that runs again, since its transaction conflicted: before new ones.
    ///
    /// # Errors
    /// [`RunError::TenantStopped`], [`RunError::ShuttingDown`].
    pub async fn admit_again(&self, tenant: &TenantId) -> Result<Admitted, RunError> {
        let stopped = self.signal(tenant)?;
        let slot = self.inner.admission.resume(tenant).await?;
        Ok(Admitted {
            slot,
            place: Place::None,
            stopped,
        })
    }

    /// Runs a function to its end. Dropping the future kills it.
    ///
    /// # Errors
    /// See [`RunError`]; what the function threw is not one.
    pub async fn run(&self, call: Invocation, host: &dyn Host) -> Result<Outcome, RunError> {
        let admitted = self.admit(&call.tenant, call.nesting).await?;
        self.run_admitted(admitted, call, host).await
    }

    /// As [`Runtime::run`], for a function whose turn it is. What was admitted ends with it.
    ///
    /// # Errors
    /// As [`Runtime::run`].
    pub async fn run_admitted(
        &self,
        admitted: Admitted,
        call: Invocation,
        host: &dyn Host,
    ) -> Result<Outcome, RunError> {
        let inner = &*self.inner;
        let depth = call.nesting.map_or(0, |n| n.depth) + 1;
        host.nesting(Nesting { depth });
        let Admitted {
            slot,
            place: _place,
            stopped,
        } = admitted;
        let generation = stopped.clone();
        if *stopped.borrow() {
            return Err(RunError::TenantStopped);
        }
        let key = Key {
            tenant: call.tenant.clone(),
            code: call.code.id.clone(),
            lane: Lane::of(call.kind),
        };
        let mut worker = self.worker(&key).await?;
        metrics::add(&inner.counters.started, 1);
        let started = Instant::now();
        let mut canceled = CountCanceled(Some(&inner.counters));
        let start = ToWorker::Start(Box::new(start_of(&call)?));
        let bounds = call.bounds;
        let least =
            |bound: Option<Duration>, limit: Duration| bound.map_or(limit, |b| b.min(limit));
        let timeout = least(bounds.timeout, inner.config.timeout);
        let cpu = call
            .kind
            .is_transactional()
            .then(|| least(bounds.user_cpu, inner.config.user_cpu));
        let mut conversation = Conversation {
            admission: &inner.admission,
            tenant: &call.tenant,
            slot: Some(slot),
            code: &call.code,
            host,
            at_once: if call.kind.is_transactional() { 1 } else { 8 },
            stopped,
            closing: inner.closing.subscribe(),
            watch: Watch::new(&worker, cpu, timeout),
            console: Console::new(bounds.log_bytes),
        };
        let ended = conversation.run(&mut worker, &start).await;
        let log_lines = std::mem::take(&mut conversation.console).into_lines();
        drop(conversation);
        canceled.0 = None;
        metrics::add_time(&inner.counters.execution_ns, started.elapsed());
        match ended {
            Ok(done) => {
                inner.counters.completed_for(&call.tenant);
                metrics::add(&inner.counters.cpu_ns, done.cpu_ns);
                if !done.retire {
                    inner.pool.give_back(key, worker, &generation);
                }
                Ok(Outcome {
                    result: done.result,
                    log_lines,
                    observed_time: done.observed_time,
                    cpu: Duration::from_nanos(done.cpu_ns),
                })
            }
            Err(stop) => Err(self.explain(stop, worker, log_lines).await),
        }
    }

    /// Imports a bundle and says what it declares.
    ///
    /// # Errors
    /// [`AnalyzeError::Module`] for what is wrong with the bundle.
    pub async fn analyze(
        &self,
        tenant: &TenantId,
        code: &Arc<Code>,
        environment: Vec<(String, String)>,
    ) -> Result<Analysis, AnalyzeError> {
        let inner = &*self.inner;
        let stopped = self.signal(tenant)?;
        let (slot, _place) = inner.admission.enter(tenant).await?;
        let mut worker = inner.pool.fresh(Lane::Transactions).await.map_err(lost)?;
        let message = ToWorker::Analyze(Box::new(Analyze {
            paths: code.modules.keys().cloned().collect(),
            environment,
            import: import_of(code),
        }));
        let mut conversation = Conversation {
            admission: &inner.admission,
            tenant,
            slot: Some(slot),
            code,
            host: &drive::NoHost,
            at_once: 1,
            stopped,
            closing: inner.closing.subscribe(),
            watch: Watch::new(&worker, Some(ANALYZE_CPU), inner.config.timeout),
            console: Console::default(),
        };
        let ended = conversation.analyze(&mut worker, &message).await;
        drop(conversation);
        match ended {
            Ok(Ok(analysis)) => {
                worker.kill().await;
                serde_json::from_str(&analysis).map_err(|error| {
                    let why = format!("its analysis does not parse: {error}");
                    let log_lines = Vec::new();
                    RunError::WorkerLost { why, log_lines }.into()
                })
            }
            Ok(Err(error)) => {
                worker.kill().await;
                Err(AnalyzeError::Module {
                    path: error.path,
                    code: error.code,
                    message: error.message,
                })
            }
            Err(stop) => Err(self.explain(stop, worker, Vec::new()).await.into()),
        }
    }

    /// Kills what runs for a tenant and refuses more of it, until [`Runtime::allow_tenant`].
    pub fn stop_tenant(&self, tenant: &TenantId) {
        let mut tenants = self.tenants();
        tenants
            .entry(tenant.clone())
            .or_insert_with(|| signal::Sender::new(false))
            .send_replace(true);
        drop(tenants);
        self.inner.pool.clear(tenant);
        self.inner.counters.forget(tenant);
    }

    /// Lets a tenant of this name run functions again.
    pub fn allow_tenant(&self, tenant: &TenantId) {
        self.tenants().remove(tenant);
    }

    /// Kills everything and refuses more.
    pub fn close(&self) {
        self.inner.closing.send_replace(true);
        self.inner.pool.close();
    }

    /// Bounds how many functions of a tenant run at once, those that wait for a timer or the network included; `None`
    /// leaves it to the budgets of the runtime. What runs goes on.
    pub fn bound_tenant(&self, tenant: &TenantId, functions: Option<usize>) {
        self.inner.admission.bound(tenant, functions);
    }

    /// What `fetch` may reach for tenants that no policy governs.
    pub fn egress(&self) -> &EgressGrants {
        &self.inner.config.egress
    }

    /// The budgets in force.
    pub fn limits(&self) -> Limits {
        Limits::of(&self.inner.config)
    }

    /// Counters now.
    pub fn metrics(&self) -> Metrics {
        let (active, queued, rejected, waited) = self.inner.admission.counts();
        Metrics {
            active_runtime_instances: active,
            queued_invocations: queued,
            rejected_invocations: rejected,
            queue_wait_nanos_total: waited,
            runtime_pool_workers: self.inner.pool.len(),
            ..self.inner.counters.report()
        }
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, signal::Sender<bool>>> {
        self.inner
            .tenants
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes true when the tenant is stopped.
    fn signal(&self, tenant: &TenantId) -> Result<signal::Receiver<bool>, RunError> {
        if *self.inner.closing.borrow() {
            return Err(RunError::ShuttingDown);
        }
        let mut tenants = self.tenants();
        if let Some(sender) = tenants.get(tenant) {
            if *sender.borrow() {
                return Err(RunError::TenantStopped);
            }
            return Ok(sender.subscribe());
        }
        // Senders that nobody listens to say nothing; drop them before they add up.
        if tenants.len() >= 1024 {
            tenants.retain(|_, sender| *sender.borrow() || sender.receiver_count() > 0);
        }
        let sender = signal::Sender::new(false);
        let receiver = sender.subscribe();
        tenants.insert(tenant.clone(), sender);
        Ok(receiver)
    }

    async fn worker(&self, key: &Key) -> Result<Worker, RunError> {
        let counters = &self.inner.counters;
        if let Some(worker) = self.inner.pool.warm(key) {
            metrics::add(&counters.pool_hits, 1);
            return Ok(worker);
        }
        metrics::add(&counters.pool_misses, 1);
        self.inner.pool.fresh(key.lane).await.map_err(lost)
    }

    /// Ends the worker and says what its end means to the caller.
    async fn explain(&self, stop: Stop, mut worker: Worker, log_lines: Vec<String>) -> RunError {
        let counters = &self.inner.counters;
        let (said, ended) = match &stop {
            Stop::Worker(_) => {
                let said = worker.last_words().await;
                let ended = worker.end(&said).await;
                (said, ended)
            }
            _ => {
                worker.kill().await;
                (String::new(), Ended::Killed)
            }
        };
        match stop {
            Stop::UserTime { limit } => {
                metrics::add(&counters.timed_out, 1);
                RunError::UserTimeout { limit, log_lines }
            }
            Stop::WallTime { limit } => {
                metrics::add(&counters.timed_out, 1);
                RunError::WallTimeout { limit, log_lines }
            }
            Stop::Worker(_) if ended == Ended::OutOfMemory => {
                metrics::add(&counters.out_of_memory, 1);
                let limit_mb = self.inner.config.heap_mb;
                RunError::OutOfMemory {
                    limit_mb,
                    log_lines,
                }
            }
            Stop::Worker(error) => {
                metrics::add(&counters.lost, 1);
                let why = format!("{error}; it ended so: {ended:?}; it said: {said}");
                RunError::WorkerLost { why, log_lines }
            }
            Stop::Host(error) => RunError::Host(error),
            Stop::TenantStopped => {
                metrics::add(&counters.canceled, 1);
                RunError::TenantStopped
            }
            Stop::Closing => RunError::ShuttingDown,
            Stop::Admission(error) => error,
        }
    }
}

/// What [`Runtime::try_worker`] found.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TriedWorker {
    /// How long it took until the engine was up.
    pub took: Duration,
    /// Whether the system keeps workers from files (Landlock).
    pub confined: bool,
}

/// The turn of one function; see [`Runtime::admit`].
pub struct Admitted {
    slot: ActiveSlot,
    place: Place,
    /// Of the tenant that was there when it was admitted; a new one of the same name has another.
    stopped: signal::Receiver<bool>,
}

/// What an invocation is counted as while it lasts.
#[expect(dead_code, reason = "they are held for what dropping them gives back")]
enum Place {
    InFlight(InFlight),
    Nested(NestedPlace),
    /// It runs again, in the place of the run before.
    None,
}

/// Counts an invocation whose future was dropped.
struct CountCanceled<'a>(Option<&'a Counters>);

impl Drop for CountCanceled<'_> {
    fn drop(&mut self) {
        if let Some(counters) = self.0 {
            metrics::add(&counters.canceled, 1);
        }
    }
}

fn lost(error: WorkerError) -> RunError {
    RunError::WorkerLost {
        why: format!("it did not start: {error}"),
        log_lines: Vec::new(),
    }
}

fn import_of(code: &Code) -> Import {
    Import {
        seed: code.import_seed,
        time_ms: code.import_time_ms,
    }
}

fn start_of(call: &Invocation) -> Result<Start, RunError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| RunError::WorkerLost {
        why: format!("no random seed: {error}"),
        log_lines: Vec::new(),
    })?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok(Start {
        kind: call.kind,
        module: call.module.clone(),
        export: call.export.clone(),
        args: call.args.clone(),
        import: import_of(&call.code),
        seed,
        now_ms: now.as_millis() as f64,
    })
}
