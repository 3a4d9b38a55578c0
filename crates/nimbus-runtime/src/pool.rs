//! Workers between invocations: warm ones by tenant and bundle, and a spare that nobody used yet.
//!
//! A worker that ran code of one tenant never runs another's. This room must not know what an invocation is.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nimbus_core::TenantId;
use tokio::sync::{OnceCell, watch as signal};

use crate::config::RuntimeConfig;
use crate::process::{Worker, WorkerError};
use crate::protocol::{Lane, Setup, Task};
use crate::snapshot;

/// Invocations after which a worker is replaced (nimbus.md 2.10, `max_warm_reuses`).
const MAX_REUSES: u64 = 10_000;

/// What a warm worker may be used for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub tenant: TenantId,
    pub code: Arc<str>,
    pub lane: Lane,
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
    closed: bool,
}

/// Workers of one lane that ran nothing yet.
#[derive(Default)]
struct Fresh {
    spare: Mutex<Option<Worker>>,
    /// A spare is being started.
    starting: AtomicBool,
    /// What realms of the lane are made from; made before its first worker.
    snapshot: OnceCell<Option<OwnedFd>>,
}

struct Inner {
    config: RuntimeConfig,
    state: Mutex<State>,
    transactions: Fresh,
    actions: Fresh,
    /// An operator was told that workers are not confined.
    warned: AtomicBool,
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
                transactions: Fresh::default(),
                actions: Fresh::default(),
                warned: AtomicBool::new(false),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    fn lane(&self, lane: Lane) -> &Fresh {
        match lane {
            Lane::Transactions => &self.inner.transactions,
            Lane::Actions => &self.inner.actions,
        }
    }

    fn setup(&self, lane: Lane, task: Task) -> Setup {
        let config = &self.inner.config;
        Setup {
            heap_mb: config.heap_mb,
            initial_heap_mb: config.initial_heap_mb,
            lane,
            task,
        }
    }

    /// A warm worker for `key` that is still alive.
    pub(crate) fn warm(&self, key: &Key) -> Option<Worker> {
        let mut state = self.state();
        while let Some(at) = state.idle.iter().rposition(|idle| idle.key == *key) {
            let mut worker = state.idle.remove(at)?.worker;
            if worker.is_alive() {
                return Some(worker);
            }
        }
        None
    }

    /// A worker that ran nothing yet.
    ///
    /// # Errors
    /// When none can be started.
    pub(crate) async fn fresh(&self, lane: Lane) -> Result<Worker, WorkerError> {
        let spare = lock(&self.lane(lane).spare).take();
        let alive = spare.and_then(|mut spare| spare.is_alive().then_some(spare));
        let worker = match alive {
            Some(worker) => worker,
            None => self.start(lane).await?,
        };
        self.keep_a_spare(lane);
        Ok(worker)
    }

    /// Starts a worker.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) async fn start(&self, lane: Lane) -> Result<Worker, WorkerError> {
        let command = &self.inner.config.worker;
        let make = async || {
            let bytes = Worker::snapshot(command, self.setup(lane, Task::MakeSnapshot)).await?;
            Ok::<_, WorkerError>(snapshot::seal(&bytes)?)
        };
        let snapshot = self.lane(lane).snapshot.get_or_try_init(make).await?;
        let task = match snapshot {
            Some(_) => Task::RunFromSnapshot,
            None => Task::Run,
        };
        let worker = Worker::start(command, self.setup(lane, task), snapshot.as_ref()).await?;
        if !worker.confined && !self.inner.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "this system does not keep function workers from files (Landlock, Linux 5.13): code that breaks out of the engine could read what this server's user can"
            );
        }
        Ok(worker)
    }

    /// Starts a spare in the background, unless there is one.
    fn keep_a_spare(&self, lane: Lane) {
        if self.lane(lane).starting.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            let fresh = pool.lane(lane);
            let wanted = lock(&fresh.spare).is_none() && !pool.state().closed;
            if wanted {
                match pool.start(lane).await {
                    Ok(worker) => pool.put_spare(lane, worker),
                    Err(error) => tracing::warn!(%error, "no spare function worker"),
                }
            }
            fresh.starting.store(false, Ordering::Release);
        });
    }

    fn put_spare(&self, lane: Lane, worker: Worker) {
        let state = self.state();
        if !state.closed {
            *lock(&self.lane(lane).spare) = Some(worker);
        }
    }

    /// Takes a worker back after a run.
    pub(crate) fn give_back(&self, key: Key, mut worker: Worker, stopped: &signal::Receiver<bool>) {
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
        // Looked at under the lock, which `clear` takes after the signal was given.
        if state.closed || *stopped.borrow() {
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
        let ended = std::mem::take(&mut state.idle);
        let spares =
            [Lane::Transactions, Lane::Actions].map(|lane| lock(&self.lane(lane).spare).take());
        drop(state);
        drop((ended, spares));
    }

    /// Workers that wait, the spare included.
    pub(crate) fn len(&self) -> usize {
        let spares = [Lane::Transactions, Lane::Actions]
            .map(|lane| usize::from(lock(&self.lane(lane).spare).is_some()));
        self.state().idle.len() + spares.iter().sum::<usize>()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in them is whole wherever a panic could strike.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
