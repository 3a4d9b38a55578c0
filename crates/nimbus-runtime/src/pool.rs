//! Workers between invocations: warm ones by tenant and bundle, and a spare that nobody used yet.
//!
//! A worker that ran code of one tenant never runs another's. This room must not know what an invocation is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nimbus_core::TenantId;

use crate::config::RuntimeConfig;
use crate::process::{Worker, WorkerError};
use crate::protocol::Setup;

/// Invocations after which a worker is replaced (nimbus.md 2.10, `max_warm_reuses`).
const MAX_REUSES: u64 = 10_000;

/// What a warm worker may be used for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub tenant: TenantId,
    pub code: Arc<str>,
}

struct Idle {
    key: Key,
    worker: Worker,
    since: Instant,
}

#[derive(Default)]
struct State {
    /// Longest idle first.
    idle: VecDeque<Idle>,
    spare: Option<Worker>,
    closed: bool,
}

struct Inner {
    config: RuntimeConfig,
    state: Mutex<State>,
    /// A spare is being started.
    starting: AtomicBool,
}

/// The pool. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

impl Pool {
    pub(crate) fn new(config: RuntimeConfig) -> Pool {
        Pool {
            inner: Arc::new(Inner {
                config,
                state: Mutex::default(),
                starting: AtomicBool::new(false),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn setup(&self) -> Setup {
        let config = &self.inner.config;
        Setup {
            heap_mb: config.heap_mb,
            initial_heap_mb: config.initial_heap_mb,
            egress: config.egress.clone(),
            timeout_ms: u64::try_from(config.timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// A warm worker for `key`.
    pub(crate) fn warm(&self, key: &Key) -> Option<Worker> {
        let mut state = self.state();
        let at = state.idle.iter().rposition(|idle| idle.key == *key)?;
        state.idle.remove(at).map(|idle| idle.worker)
    }

    /// A worker that ran nothing yet.
    ///
    /// # Errors
    /// When none can be started.
    pub(crate) async fn fresh(&self) -> Result<Worker, WorkerError> {
        let spare = self.state().spare.take();
        let worker = match spare {
            Some(worker) => worker,
            None => Worker::start(&self.inner.config.worker, self.setup()).await?,
        };
        self.keep_a_spare();
        Ok(worker)
    }

    /// Starts a spare in the background, unless there is one.
    fn keep_a_spare(&self) {
        if self.inner.starting.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            let wanted = {
                let state = pool.state();
                state.spare.is_none() && !state.closed
            };
            if wanted {
                match Worker::start(&pool.inner.config.worker, pool.setup()).await {
                    Ok(worker) => pool.put_spare(worker),
                    Err(error) => tracing::warn!(%error, "no spare function worker"),
                }
            }
            pool.inner.starting.store(false, Ordering::Release);
        });
    }

    fn put_spare(&self, worker: Worker) {
        let mut state = self.state();
        if !state.closed {
            state.spare = Some(worker);
        }
    }

    /// Takes a worker back after a run.
    pub(crate) fn give_back(&self, key: Key, mut worker: Worker) {
        worker.runs += 1;
        if worker.runs >= MAX_REUSES || !worker.rest() {
            return;
        }
        let idle = Idle {
            key,
            worker,
            since: Instant::now(),
        };
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.idle.push_back(idle);
        let surplus = state.idle.len().saturating_sub(self.inner.config.workers());
        let ended: Vec<Idle> = state.idle.drain(..surplus).collect();
        drop(state);
        drop(ended);
    }

    /// Ends the idle workers of a tenant.
    pub(crate) fn clear(&self, tenant: &TenantId) {
        self.end_where(|idle| idle.key.tenant == *tenant);
    }

    /// Ends workers that waited for longer than they may.
    pub(crate) fn expire(&self) {
        let limit = self.inner.config.idle;
        self.end_where(|idle| idle.since.elapsed() > limit);
    }

    fn end_where(&self, ends: impl Fn(&Idle) -> bool) {
        let mut state = self.state();
        let (ended, kept) = state.idle.drain(..).partition(|idle| ends(idle));
        state.idle = kept;
        drop(state);
        let ended: VecDeque<Idle> = ended;
        drop(ended);
    }

    /// Ends all workers and starts no more.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let ended = (std::mem::take(&mut state.idle), state.spare.take());
        drop(state);
        drop(ended);
    }

    /// Workers that wait, the spare included.
    pub(crate) fn len(&self) -> usize {
        let state = self.state();
        state.idle.len() + usize::from(state.spare.is_some())
    }
}
