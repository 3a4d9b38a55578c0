//! Budgets of the runtime, with the defaults that follow from the machine (nimbus.md 1.2).
//!
//! Plain data; it must not know flags or environment variables.

use std::path::PathBuf;
use std::time::Duration;

use crate::egress::EgressGrants;

/// The hidden subcommand of this binary that is a worker.
pub const WORKER: &str = "runtime-worker";

/// How a worker process is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCommand {
    /// The program; this same binary.
    pub program: PathBuf,
    /// Its arguments: the hidden subcommand.
    pub args: Vec<String>,
}

impl WorkerCommand {
    /// This binary's [`WORKER`].
    ///
    /// # Errors
    /// When the path of the running program cannot be found.
    pub fn this_binary() -> std::io::Result<WorkerCommand> {
        // The file may be replaced while the server runs, and a worker of another version would not
        // understand it: Linux keeps a way to the one that was started.
        let running = PathBuf::from("/proc/self/exe");
        let program = match running.exists() {
            true => running,
            false => std::env::current_exe()?,
        };
        Ok(WorkerCommand {
            program,
            args: vec![WORKER.into()],
        })
    }
}

/// Budgets. `None` means what follows from the others.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RuntimeConfig {
    /// How workers are started.
    pub worker: WorkerCommand,
    /// The engine that the workers have, for reports: `engine::NAME` of their binary.
    pub engine: &'static str,
    /// Heap of an isolate, and as much again for array buffers, in MiB: 128.
    pub heap_mb: u64,
    /// Heap that an isolate starts with, in MiB: 8.
    pub initial_heap_mb: u64,
    /// Longest wall-clock time of one invocation of any kind (seed 002): 30 s.
    pub timeout: Duration,
    /// CPU time of a query's or mutation's own code (convex.md 5.9): 1 s.
    pub user_cpu: Duration,
    /// Invocations that run JavaScript at once: the number of processors.
    pub max_instances: Option<usize>,
    /// Worker processes kept warm, and invocations in flight per tenant at most: twice the instances.
    pub worker_threads: Option<usize>,
    /// Invocations of one tenant that run JavaScript at once: instances - 1, at least 1.
    pub max_active_per_tenant: Option<usize>,
    /// Active and waiting invocations of one tenant: twice the active ones, at most `worker_threads`.
    pub max_in_flight_per_tenant: Option<usize>,
    /// Invocations of one tenant in the queue: as many as may be in flight.
    pub max_queued_per_tenant: Option<usize>,
    /// How deep functions may call one another: 64.
    pub max_nested_calls: u32,
    /// Where `fetch` may go beside public addresses, for tenants that no policy governs.
    pub egress: EgressGrants,
    /// How long a worker without work is kept: 60 s.
    pub idle: Duration,
}

impl RuntimeConfig {
    /// The defaults, with this command for workers.
    pub fn new(worker: WorkerCommand) -> RuntimeConfig {
        RuntimeConfig {
            worker,
            engine: "v8",
            heap_mb: 128,
            initial_heap_mb: 8,
            timeout: Duration::from_secs(30),
            user_cpu: Duration::from_secs(1),
            max_instances: None,
            worker_threads: None,
            max_active_per_tenant: None,
            max_in_flight_per_tenant: None,
            max_queued_per_tenant: None,
            max_nested_calls: 64,
            egress: EgressGrants::default(),
            idle: Duration::from_secs(60),
        }
    }

    /// Instances that run at once.
    pub fn instances(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        self.max_instances.unwrap_or_else(processors).max(1)
    }

    /// Workers kept warm.
    pub fn workers(&self) -> usize {
        self.worker_threads
            .unwrap_or_else(|| 2 * self.instances())
            .max(1)
    }

    /// Active invocations per tenant.
    pub fn active_per_tenant(&self) -> usize {
        self.max_active_per_tenant
            .unwrap_or_else(|| self.instances() - 1)
            .max(1)
    }

    /// Invocations in flight per tenant.
    pub fn in_flight_per_tenant(&self) -> usize {
        self.max_in_flight_per_tenant
            .unwrap_or_else(|| (2 * self.active_per_tenant()).min(self.workers()))
            .max(1)
    }

    /// Invocations in the queue per tenant.
    pub fn queued_per_tenant(&self) -> usize {
        self.max_queued_per_tenant
            .unwrap_or_else(|| self.in_flight_per_tenant())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn config() -> RuntimeConfig {
        RuntimeConfig::new(WorkerCommand {
            program: "/none".into(),
            args: Vec::new(),
        })
    }

    #[test]
    fn budgets_follow_from_the_instances() {
        let mut config = config();
        config.max_instances = Some(4);
        let all = |c: &RuntimeConfig| {
            (
                c.instances(),
                c.workers(),
                c.active_per_tenant(),
                c.in_flight_per_tenant(),
                c.queued_per_tenant(),
            )
        };
        assert_eq!(all(&config), (4, 8, 3, 6, 6));
        config.max_instances = Some(1);
        assert_eq!(all(&config), (1, 2, 1, 2, 2));
        config.worker_threads = Some(1);
        assert_eq!(all(&config), (1, 1, 1, 1, 1));
        config.max_active_per_tenant = Some(3);
        config.max_in_flight_per_tenant = Some(9);
        assert_eq!(all(&config), (1, 1, 3, 9, 9));
        config.max_queued_per_tenant = Some(0);
        assert_eq!(all(&config), (1, 1, 3, 9, 0));
    }
}
