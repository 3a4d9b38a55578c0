//! Counters of the runtime, in the names of `/debug/runtime/metrics` (nimbus.md 2.10).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nimbus_core::TenantId;
use serde::Serialize;

use crate::config::RuntimeConfig;

/// The budgets in force.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the names are those of nimbus.md 2.10")]
pub struct Limits {
    pub runtime_backend: &'static str,
    pub execution_model: &'static str,
    pub runtime_language: &'static str,
    pub module_state_semantics: &'static str,
    pub max_heap_mb: u64,
    pub initial_heap_mb: u64,
    pub execution_timeout_ms: u64,
    pub user_cpu_ms: u64,
    pub max_concurrent_runtime_instances: usize,
    pub worker_threads: usize,
    pub max_active_top_level_invocations_per_tenant: usize,
    pub max_in_flight_top_level_invocations_per_tenant: usize,
    pub max_queued_top_level_invocations_per_tenant: usize,
    pub max_nested_runtime_invocations: u32,
}

impl Limits {
    pub(crate) fn of(config: &RuntimeConfig) -> Limits {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Limits {
            runtime_backend: config.engine,
            execution_model: "worker_process",
            runtime_language: "javascript",
            module_state_semantics: "fresh_realm_per_call",
            max_heap_mb: config.heap_mb,
            initial_heap_mb: config.initial_heap_mb,
            execution_timeout_ms: ms(config.timeout),
            user_cpu_ms: ms(config.user_cpu),
            max_concurrent_runtime_instances: config.instances(),
            worker_threads: config.workers(),
            max_active_top_level_invocations_per_tenant: config.active_per_tenant(),
            max_in_flight_top_level_invocations_per_tenant: config.in_flight_per_tenant(),
            max_queued_top_level_invocations_per_tenant: config.queued_per_tenant(),
            max_nested_runtime_invocations: config.max_nested_calls,
        }
    }
}

/// Counters at one moment.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are those of nimbus.md 2.10")]
pub struct Metrics {
    pub active_runtime_instances: usize,
    pub queued_invocations: usize,
    pub started_invocations: u64,
    pub completed_invocations: u64,
    pub timed_out_invocations: u64,
    pub out_of_memory_invocations: u64,
    pub canceled_invocations: u64,
    pub rejected_invocations: u64,
    pub lost_workers: u64,
    pub queue_wait_nanos_total: u64,
    pub execution_nanos_total: u64,
    pub user_cpu_nanos_total: u64,
    pub nested_local_dispatches: u64,
    pub runtime_pool_hits: u64,
    pub runtime_pool_misses: u64,
    pub runtime_pool_workers: usize,
    /// Completed invocations by tenant.
    pub tenants: BTreeMap<String, u64>,
}

/// Counters as they grow.
#[derive(Default)]
pub(crate) struct Counters {
    pub started: AtomicU64,
    pub completed: AtomicU64,
    pub timed_out: AtomicU64,
    pub out_of_memory: AtomicU64,
    pub canceled: AtomicU64,
    pub lost: AtomicU64,
    pub execution_ns: AtomicU64,
    pub cpu_ns: AtomicU64,
    pub nested: AtomicU64,
    pub pool_hits: AtomicU64,
    pub pool_misses: AtomicU64,
    tenants: Mutex<BTreeMap<TenantId, u64>>,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(crate) fn add_time(counter: &AtomicU64, time: Duration) {
    add(counter, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

impl Counters {
    pub(crate) fn completed_for(&self, tenant: &TenantId) {
        add(&self.completed, 1);
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        match tenants.get_mut(tenant) {
            Some(count) => *count += 1,
            None => drop(tenants.insert(tenant.clone(), 1)),
        }
    }

    /// Forgets a deleted tenant.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.remove(tenant);
    }

    pub(crate) fn report(&self) -> Metrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        Metrics {
            started_invocations: get(&self.started),
            completed_invocations: get(&self.completed),
            timed_out_invocations: get(&self.timed_out),
            out_of_memory_invocations: get(&self.out_of_memory),
            canceled_invocations: get(&self.canceled),
            lost_workers: get(&self.lost),
            execution_nanos_total: get(&self.execution_ns),
            user_cpu_nanos_total: get(&self.cpu_ns),
            nested_local_dispatches: get(&self.nested),
            runtime_pool_hits: get(&self.pool_hits),
            runtime_pool_misses: get(&self.pool_misses),
            tenants: tenants.iter().map(|(t, n)| (t.to_string(), *n)).collect(),
            ..Metrics::default()
        }
    }
}
